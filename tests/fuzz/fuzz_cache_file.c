/* The .kvp reader: any bytes, as they are and with their checksums made right. What opens is checked, and what is whole goes
 * into a cache, which then goes on. */
#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/fuzz.h"
#include "tests/support/sample_book.h"
#include "tests/support/saved_caches.h"
#include "tests/support/seal.h"

enum { MOST_TOKENS = 4096, STEPS = 3 };

static volatile double sink; /* so that no read below is optimised away */

/* full.kvb and fine.kvb of tests/golden/, made once. */
static kvb_book *const *golden_books(void)
{
    static kvb_book *book[2];
    static sample_book sample;
    for (int i = 0; i < 2 && book[i] == NULL; i++) {
        uint8_t *image;
        size_t size;
        if (i == 0)
            sample_full(&sample);
        else
            sample_fine(&sample);
        if (kvb_book_build(&sample.spec, &image, &size, NULL) != KVB_OK ||
            kvb_book_open_memory(image, size, "golden", &book[i], NULL) != KVB_OK)
            abort();
        free(image);
    }
    return book;
}

static void go_on(const kvb_cache_file *file, uint32_t prompt, const kvb_book *book, bool exact)
{
    static float out[256];
    kvb_cache_options options;
    kvb_cache_file_options(file, &options);
    kvb_cache *cache = sc_cache(book, exact ? NULL : &options.policy, options.seed);
    if (cache != NULL && kvb_cache_file_restore(file, prompt, cache, NULL) == KVB_OK) {
        if (!sc_same(cache, cache, book))
            abort();
        for (uint32_t t = 0; t < STEPS; t++)
            if (sc_step(cache, book, t, out, NULL) != KVB_OK)
                abort();
        sink += (double)out[0];
    }
    kvb_cache_destroy(cache);
}

static void read_prompt(const kvb_cache_file *file, uint32_t prompt)
{
    static uint32_t ids[MOST_TOKENS];
    static float hidden[MOST_TOKENS];
    kvb_error err;
    const kvb_prompt_info info = kvb_cache_file_prompt(file, prompt);
    if (info.tokens > MOST_TOKENS || info.hidden_count > MOST_TOKENS)
        return;
    sink += (double)strlen(info.name);
    kvb_status status = kvb_cache_file_check(file, prompt, &err);
    kvb_cache_file_ids(file, prompt, ids, &err);
    kvb_cache_file_hidden(file, prompt, hidden, &err);
    if (status != KVB_OK)
        return;
    const uint8_t *id = kvb_cache_file_book_id(file);
    for (int i = 0; i < 2; i++)
        if (id == NULL || memcmp(id, kvb_book_id(golden_books()[i]), 32) == 0)
            go_on(file, prompt, golden_books()[i], id == NULL);
}

static void read_file(const uint8_t *data, size_t size)
{
    kvb_cache_file *file;
    kvb_error err;
    if (kvb_cache_file_open_memory(data, size, "fuzz", &file, &err) != KVB_OK)
        return;
    sink += (double)strlen(kvb_cache_file_meta(file, NULL)) + kvb_cache_file_id(file)[31];
    for (uint32_t p = 0; p < kvb_cache_file_prompts(file) && p < 8; p++)
        read_prompt(file, p);
    kvb_cache_file_close(file);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    read_file(data, size);
    uint8_t *sealed = malloc(size > 0 ? size : 1);
    if (sealed == NULL)
        return 0;
    memcpy(sealed, data, size);
    seal_book(sealed, size);
    read_file(sealed, size);
    free(sealed);
    return 0;
}
