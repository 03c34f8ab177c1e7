/* Pivots: matched by token ids alone, the longest first, and in the coded cache bit by bit what the exact one held. */
#include <stdlib.h>
#include <string.h>

#include "calib/train.h"
#include "format/base/rng.h"
#include "tests/support/cm.h"
#include "tests/support/scratch.h"
#include "tests/support/tiny_llama2c.h"
#include "tools/pivots.h"
#include "tools/stream.h"

enum { TOKENS = 7, SHORT = 3, CTX = 64 };

typedef struct fixture {
    char *folder;
    kvb_model *model;
    kvb_book *book;
    uint32_t ids[CTX];
    kvb_cache *exact; /* of the first TOKENS ids */
    char path[512];
} fixture;

#define RECIPE                                                                                                       \
    "{\"schema\":1,\"name\":\"p\",\"keys\":{\"shape\":\"1x4\",\"scale\":{\"group\":0}},\"values\":{\"shape\":\"1x4\"," \
    "\"scale\":{\"group\":0}}}"

static kvb_book *make_book(const fixture *f)
{
    kvb_text_source source = {.path = "words.txt", .bytes = 9, .tokens = 7};
    const kvb_text text = {.sources = &source, .source_count = 1, .id_count = CTX, .ids = (uint32_t *)(uintptr_t)f->ids};
    const kvb_capture_options options = {.ctx = CTX - 1, .chunks = 1, .bos = -1, .seed = 1};
    kvb_capture_store *store;
    kvb_recipe recipe;
    kvb_train_options train;
    kvb_book *book;
    kvb_error err = {0};
    uint8_t *image;
    size_t size;
    assert_int_equal(kvb_capture_run(f->model, &text, &options, &store, &err), KVB_OK);
    assert_int_equal(kvb_recipe_parse(RECIPE, strlen(RECIPE), "p.json", &recipe, &err), KVB_OK);
    kvb_train_options_init(&train);
    assert_int_equal(kvb_train_book(kvb_capture_view(store), &recipe, &train, &image, &size, NULL, &err), KVB_OK);
    assert_int_equal(kvb_book_open_memory(image, size, "book", &book, &err), KVB_OK);
    free(image);
    kvb_recipe_free(&recipe);
    kvb_capture_close(store);
    return book;
}

static kvb_cache *run(const fixture *f, kvb_cache *cache, const uint32_t *ids, size_t count)
{
    kvb_stream *stream;
    const float *hidden;
    assert_int_equal(kvb_stream_create(f->model, cache, &stream, NULL), KVB_OK);
    assert_int_equal(kvb_stream_run(stream, ids, count, &hidden, NULL), KVB_OK);
    kvb_stream_destroy(stream);
    return cache;
}

static kvb_cache *exact_cache(const fixture *f, const uint32_t *ids, size_t count)
{
    kvb_cache *cache;
    assert_int_equal(kvb_prompt_cache(f->model, NULL, NULL, &cache, NULL), KVB_OK);
    return run(f, cache, ids, count);
}

static void add(kvb_cache_writer *writer, const kvb_cache *cache, const char *name, const uint32_t *ids)
{
    kvb_saved_prompt saved;
    kvb_saved_prompt_init(&saved);
    saved.name = name;
    saved.ids = ids;
    assert_int_equal(kvb_cache_writer_add(writer, cache, &saved, NULL), KVB_OK);
}

/* The first 3 ids, the first 7, 7 of which the last differs, and the first 7 without their ids. */
static void write_pivots(fixture *f)
{
    kvb_cache_writer *writer;
    uint32_t other[TOKENS];
    memcpy(other, f->ids, sizeof other);
    other[TOKENS - 1] ^= 1;
    kvb_cache *few = exact_cache(f, f->ids, SHORT), *differs = exact_cache(f, other, TOKENS);
    kvb_cache_writer_options options;
    kvb_cache_writer_options_init(&options);
    assert_int_equal(kvb_cache_writer_create(&options, &writer, NULL), KVB_OK);
    add(writer, few, "few", f->ids);
    add(writer, f->exact, "all", f->ids);
    add(writer, differs, "other", other);
    add(writer, f->exact, "unnamed", NULL);
    assert_int_equal(kvb_cache_writer_commit(writer, f->path, NULL), KVB_OK);
    kvb_cache_destroy(few);
    kvb_cache_destroy(differs);
}

static int set_up(void **state)
{
    static fixture f;
    char path[512], tokenizer[512];
    tiny_llama2c tiny = tiny_llama2c_default();
    f.folder = scratch_create();
    scratch_path(f.folder, "tiny.bin", path);
    scratch_path(f.folder, "tokenizer.bin", tokenizer);
    scratch_path(f.folder, "pivots.kvp", f.path);
    const kvb_model_options options = {.tokenizer_path = tokenizer};
    if (!tiny_llama2c_write(&tiny, path, tokenizer) || kvb_model_open(path, &options, &f.model, NULL) != KVB_OK)
        return 1;
    for (uint32_t i = 0; i < CTX; i++)
        f.ids[i] = (uint32_t)kvb_rng_below(3, i, tiny.vocab);
    f.book = make_book(&f);
    f.exact = exact_cache(&f, f.ids, TOKENS);
    write_pivots(&f);
    *state = &f;
    return 0;
}

static int tear_down(void **state)
{
    fixture *f = *state;
    kvb_cache_destroy(f->exact);
    kvb_book_close(f->book);
    kvb_model_close(f->model);
    scratch_remove(f->folder);
    return 0;
}

static kvb_pivots open_pivots(const fixture *f)
{
    const kvb_override_args allow = {.model = true, .tokenizer = true}; /* these were not packed by the command, which writes the hashes */
    kvb_pivots p;
    kvb_error err = {0};
    if (kvb_pivots_open(f->path, f->model, &allow, &p, &err) != KVB_OK)
        fail_msg("%s: %s", err.where, err.message);
    return p;
}

/* Without leave, a file that does not name this model is refused. */
static void test_another_model(void **state)
{
    const fixture *f = *state;
    const kvb_override_args strict = {0};
    kvb_pivots p;
    kvb_error err = {0};
    assert_int_equal(kvb_pivots_open(f->path, f->model, &strict, &p, &err), KVB_E_MISMATCH);
    assert_null(p.file);
}

static void test_match(void **state)
{
    fixture *f = *state;
    kvb_pivots p = open_pivots(f);
    static const struct { uint32_t count, expected; } cases[] = {{CTX, TOKENS}, {TOKENS, TOKENS}, {TOKENS - 1, SHORT}, {SHORT, SHORT},
                                                                 {SHORT - 1, 0}, {0, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(kvb_pivots_match(&p, f->ids, cases[i].count, NULL), KVB_OK);
        assert_int_equal(p.tokens, cases[i].expected);
    }
    /* One id that differs, at each place. */
    for (uint32_t i = 0; i < TOKENS; i++) {
        uint32_t ids[CTX];
        memcpy(ids, f->ids, sizeof ids);
        ids[i] ^= 2;
        assert_int_equal(kvb_pivots_match(&p, ids, CTX, NULL), KVB_OK);
        assert_int_equal(p.tokens, i < SHORT ? 0 : SHORT);
    }
    kvb_pivots_close(&p);
}

static void expect_same_rows(const fixture *f, const kvb_cache *a, const kvb_cache *b)
{
    const kvb_model_info *info = kvb_model_get_info(f->model);
    for (uint32_t l = 0; l < info->layers; l++)
        for (uint32_t i = 0; i < TOKENS * info->layer[l].kv_heads; i++) {
            float k[2][64], v[2][64];
            int exact;
            const uint32_t head = i % info->layer[l].kv_heads, at = i / info->layer[l].kv_heads;
            assert_int_equal(kvb_cache_read(a, l, head, at, k[0], v[0], &exact, NULL), KVB_OK);
            assert_true(exact);
            assert_int_equal(kvb_cache_read(b, l, head, at, k[1], v[1], &exact, NULL), KVB_OK);
            assert_true(exact);
            assert_memory_equal(k[0], k[1], info->layer[l].head_dim * sizeof(float));
            assert_memory_equal(v[0], v[1], info->layer[l].head_dim * sizeof(float));
        }
}

/* After many more tokens too, and what does not fit is refused. */
static void test_put(void **state)
{
    fixture *f = *state;
    kvb_pivots p = open_pivots(f);
    kvb_cache_options options;
    kvb_cache *cache;
    kvb_error err = {0};
    kvb_cache_options_init(&options, f->book);
    options.policy.sinks = TOKENS;
    assert_int_equal(kvb_cache_create(f->book, &options, &cache, NULL), KVB_OK);
    assert_int_equal(kvb_pivots_match(&p, f->ids, CTX, NULL), KVB_OK);
    assert_int_equal(kvb_pivots_put(&p, f->model, cache, NULL), KVB_OK);
    assert_int_equal(kvb_cache_length(cache, 0), TOKENS);
    expect_same_rows(f, f->exact, cache);
    run(f, cache, f->ids + TOKENS, CTX - TOKENS);
    expect_same_rows(f, f->exact, cache);
    assert_int_equal(kvb_pivots_put(&p, f->model, cache, &err), KVB_E_USAGE);
    assert_non_null(strstr(err.message, "expected an empty one"));
    kvb_cache_destroy(cache);
    kvb_pivots_close(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_another_model), cmocka_unit_test(test_match), cmocka_unit_test(test_put)};
    return cmocka_run_group_tests_name("pivots", tests, set_up, tear_down);
}
