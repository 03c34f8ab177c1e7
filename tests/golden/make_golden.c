/* Writes the golden books that the writer makes: `make golden`. The argument is the folder. */
#include <stdio.h>
#include <stdlib.h>

#include "format/base/outfile.h"
#include "tests/support/sample_book.h"
#include "tests/support/saved_caches.h"

static kvb_status write_book(const kvb_book_spec *spec, const char *folder, const char *name, kvb_error *err)
{
    char path[512];
    uint8_t *image;
    size_t size;
    kvb_outfile *out;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    kvb_status status = kvb_book_build(spec, &image, &size, err);
    if (status != KVB_OK)
        return status;
    status = kvb_outfile_open(path, &out, err);
    if (status == KVB_OK) {
        status = kvb_outfile_write(out, image, size, err);
        if (status == KVB_OK)
            status = kvb_outfile_commit(out, err);
        else
            kvb_outfile_abandon(out);
    }
    free(image);
    return status;
}

/* Anchors, codes and a window in few tokens. */
static const kvb_policy cache_policy = {.anchor_fraction = 0.25, .score = KVB_SCORE_EXACT_K, .window = 4, .sinks = 1};

/* A cache of `tokens` tokens of the golden book, of which every `cycle` are the same, joins a file. */
static kvb_status add_cache(kvb_cache_writer *w, const kvb_book *book, const kvb_policy *policy, uint32_t tokens,
                            uint32_t cycle, const char *name, bool extras, kvb_error *err)
{
    static const float hidden[3] = {0.5f, -2.0f, 0x1p-140f};
    static float out[1024];
    uint32_t ids[64];
    kvb_status status = KVB_OK;
    kvb_saved_prompt prompt;
    kvb_cache *cache = sc_cache(book, policy, 5);
    for (uint32_t t = 0; status == KVB_OK && t < tokens; t++) {
        ids[t] = 3 * t;
        status = sc_step(cache, book, t % cycle, out, err);
    }
    kvb_saved_prompt_init(&prompt);
    prompt.name = name;
    if (extras) {
        prompt.ids = ids;
        prompt.hidden = hidden;
        prompt.hidden_count = 3;
    }
    if (status == KVB_OK)
        status = kvb_cache_writer_add(w, cache, &prompt, err);
    kvb_cache_destroy(cache);
    return status;
}

/* Codes and scores come of sums that differ a little between kinds of processors: a reason more to keep these as they are. */
static kvb_status write_caches(const char *folder, const char *book_name, const char *name, const kvb_policy *policy,
                               bool compress, bool two, kvb_error *err)
{
    char path[512];
    kvb_book *book;
    kvb_cache_writer *w = NULL;
    kvb_cache_writer_options options;
    kvb_cache_writer_options_init(&options);
    options.compress = compress;
    options.meta_json = SAMPLE_META;
    snprintf(path, sizeof path, "%s/%s", folder, book_name);
    kvb_status status = kvb_book_open(path, &book, err);
    if (status == KVB_OK)
        status = kvb_cache_writer_create(&options, &w, err);
    if (status == KVB_OK)
        status = add_cache(w, book, policy, 20, compress ? 3 : 99, "system", true, err);
    if (status == KVB_OK && two)
        status = add_cache(w, book, policy, 7, 99, "short \xC3\xA4", false, err);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    if (status == KVB_OK)
        status = kvb_cache_writer_commit(w, path, err);
    else
        kvb_cache_writer_abandon(w);
    kvb_book_close(book);
    return status;
}

static kvb_status write_all_caches(const char *folder, kvb_error *err)
{
    kvb_policy fine = cache_policy;
    fine.exact = KVB_EXACT_FINE;
    kvb_status status = write_caches(folder, "full.kvb", "caches.kvp", &cache_policy, false, true, err);
    if (status == KVB_OK)
        status = write_caches(folder, "fine.kvb", "planes.kvp", &fine, true, true, err);
    return status == KVB_OK ? write_caches(folder, "full.kvb", "exact.kvp", NULL, false, false, err) : status;
}

int main(int argc, char **argv)
{
    static sample_book book;
    kvb_error err;
    if (argc != 2) {
        fprintf(stderr, "usage: make_golden FOLDER\n");
        return 2;
    }
    sample_minimal(&book);
    kvb_status status = write_book(&book.spec, argv[1], "minimal.kvb", &err);
    sample_full(&book);
    if (status == KVB_OK)
        status = write_book(&book.spec, argv[1], "full.kvb", &err);
    book.spec.compress = true;
    if (status == KVB_OK)
        status = write_book(&book.spec, argv[1], "packed.kvb", &err);
    sample_additive(&book);
    if (status == KVB_OK)
        status = write_book(&book.spec, argv[1], "additive.kvb", &err);
    sample_fine(&book);
    if (status == KVB_OK)
        status = write_book(&book.spec, argv[1], "fine.kvb", &err);
    sample_scaled(&book);
    if (status == KVB_OK)
        status = write_book(&book.spec, argv[1], "scaled.kvb", &err);
    sample_outliers(&book);
    if (status == KVB_OK)
        status = write_book(&book.spec, argv[1], "outliers.kvb", &err);
    sample_groups(&book);
    if (status == KVB_OK)
        status = write_book(&book.spec, argv[1], "groups.kvb", &err);
    sample_pool(&book);
    if (status == KVB_OK)
        status = write_book(&book.spec, argv[1], "pool.kvb", &err);
    if (status == KVB_OK)
        status = write_all_caches(argv[1], &err);
    if (status != KVB_OK)
        fprintf(stderr, "%s: %s\n", err.where, err.message);
    return (int)status;
}
