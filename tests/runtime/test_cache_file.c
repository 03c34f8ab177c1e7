/* A cache that went through a file goes on as the one that never left memory: token by token, bit by bit. */
#include <stdlib.h>
#include <string.h>

#include "tests/support/cm.h"
#include "tests/support/saved_caches.h"
#include "tests/support/scratch.h"

enum { TOKENS = 70 };

static const rt_shape plain = {.layers = 2, .heads = 4, .kv_heads = 2, .head_dim = 16, .channels = 4, .centroids = 16,
                               .rope_style = KVB_ROPE_HALF, .rope_dims = 16, .transform = true, .seed = 1};
static const rt_shape fine = {.layers = 2, .heads = 2, .kv_heads = 2, .head_dim = 12, .channels = 4, .centroids = 32,
                              .frame = KVB_FRAME_BLOCK, .rope_block = 8, .rope_style = KVB_ROPE_INTERLEAVED, .rope_dims = 8,
                              .last_exact = true, .seed = 2, .fine_channels = 2, .fine_centroids = 64};
static const rt_shape additive = {.layers = 1, .heads = 3, .kv_heads = 1, .head_dim = 8, .channels = 2, .centroids = 4,
                                  .frame = KVB_FRAME_POST, .rope_style = KVB_ROPE_HALF, .rope_dims = 8, .sliding = 20,
                                  .seed = 3, .stages = 3};

/* The file of `cache`, and what comes of it. */
static kvb_cache *through_file(const kvb_cache *cache, const kvb_book *book, const kvb_policy *policy, bool compress,
                               const char *folder)
{
    char path[512], again[512];
    kvb_error err = {0};
    kvb_cache_file *file;
    size_t size, size_again;
    scratch_path(folder, "one.kvp", path);
    if (sc_save(cache, path, compress, &err) != KVB_OK || kvb_cache_file_open(path, &file, &err) != KVB_OK)
        fail_msg("%s: %s", err.where, err.message);
    kvb_cache *restored = sc_cache(book, policy, 5);
    assert_non_null(restored);
    if (kvb_cache_file_restore(file, 0, restored, &err) != KVB_OK ||
        kvb_cache_file_check(file, 0, &err) != KVB_OK)
        fail_msg("%s: %s", err.where, err.message);
    kvb_cache_file_close(file);
    /* What is saved again is the same file. */
    assert_int_equal(sc_save(restored, scratch_path(folder, "two.kvp", again), compress, &err), KVB_OK);
    uint8_t *a = scratch_read(path, &size), *b = scratch_read(again, &size_again);
    assert_int_equal(size, size_again);
    assert_memory_equal(a, b, size);
    free(a);
    free(b);
    return restored;
}

/* Saves after every `every` tokens and goes on with both. */
static void check_run(const rt_shape *shape, const kvb_policy *policy, bool without_book, bool compress, uint32_t every)
{
    static float expected[4096], out[4096];
    char *folder = scratch_create();
    kvb_book *book = rt_book_make(shape, policy);
    assert_non_null(book);
    const kvb_policy *used = without_book ? NULL : policy;
    kvb_cache *cache = sc_cache(book, used, 5), *restored = NULL;
    for (uint32_t t = 0; t < TOKENS; t++) {
        assert_int_equal(sc_step(cache, book, t, expected, NULL), KVB_OK);
        if (restored != NULL) {
            assert_int_equal(sc_step(restored, book, t, out, NULL), KVB_OK);
            assert_memory_equal(out, expected, sc_outputs(book) * sizeof *out);
        }
        if (t % every != 0)
            continue;
        kvb_cache_destroy(restored);
        restored = through_file(cache, book, used, compress, folder);
        assert_true(sc_same(cache, restored, book));
    }
    assert_true(sc_same(cache, restored, book));
    kvb_cache_destroy(cache);
    kvb_cache_destroy(restored);
    kvb_book_close(book);
    scratch_remove(folder);
}

static const kvb_policy anchored = {.anchor_fraction = 0.2, .score = KVB_SCORE_EXACT_K, .window = 9, .sinks = 3};

static void every_score_goes_on(void **state)
{
    (void)state;
    kvb_policy policy = anchored;
    for (int score = KVB_SCORE_EXACT_K; score <= KVB_SCORE_RANDOM; score++) {
        policy.score = (kvb_anchor_score)score;
        check_run(&plain, &policy, false, false, 23);
    }
}

static void every_length_goes_on(void **state)
{
    (void)state;
    check_run(&plain, &anchored, false, false, 1);
    check_run(&plain, &anchored, false, true, 1);
}

static void every_policy_goes_on(void **state)
{
    (void)state;
    static const kvb_policy policies[] = {
        {.window = 0},
        {.window = 5, .sinks = 100},
        {.window = 100, .anchor_fraction = 0.5},
        {.anchor_fraction = 1.0, .score = KVB_SCORE_EXACT_V, .window = 4},
        {.anchor_fraction = 0.3, .score = KVB_SCORE_EXACT_V, .window = 0, .sinks = 1},
        {.anchor_fraction = 0.01, .score = KVB_SCORE_EXACT_K, .window = 16},
    };
    for (size_t i = 0; i < sizeof policies / sizeof *policies; i++) {
        check_run(&plain, policies + i, false, i % 2 != 0, 11);
        check_run(&additive, policies + i, false, i % 2 == 0, 13);
    }
}

static void every_shape_goes_on(void **state)
{
    (void)state;
    kvb_policy policy = anchored;
    check_run(&fine, &policy, false, true, 7);
    check_run(&additive, &policy, false, true, 7);
    policy.exact = KVB_EXACT_FINE;
    check_run(&fine, &policy, false, false, 5);
    check_run(&fine, &policy, false, true, 9);
}

static void a_cache_without_a_book_goes_on(void **state)
{
    (void)state;
    check_run(&plain, &anchored, true, false, 17);
    check_run(&fine, &anchored, true, true, 17);
}

/* Prompts of one file do not mix, and what is kept beside them comes back. */
static void several_prompts_in_one_file(void **state)
{
    (void)state;
    static float out[4096], other[4096];
    char *folder = scratch_create(), path[512];
    kvb_book *book = rt_book_make(&plain, &anchored);
    kvb_cache_writer_options options;
    kvb_cache_writer *w;
    kvb_cache_writer_options_init(&options);
    options.meta_json = "{\"tool\":\"test\"}";
    assert_int_equal(kvb_cache_writer_create(&options, &w, NULL), KVB_OK);
    kvb_cache *cache[3];
    static const char *const names[] = {"first", "zwei \xC3\xA4", "third/with a slash"};
    uint32_t ids[30];
    for (uint32_t i = 0; i < 3; i++) {
        kvb_saved_prompt prompt;
        kvb_saved_prompt_init(&prompt);
        prompt.name = names[i];
        cache[i] = sc_cache(book, &anchored, 5);
        for (uint32_t t = 0; t < 10 * (i + 1); t++) {
            ids[t] = 1000 * i + t;
            assert_int_equal(sc_step(cache[i], book, 100 * i + t, out, NULL), KVB_OK);
        }
        prompt.ids = i != 1 ? ids : NULL;
        prompt.hidden = i == 1 ? out : NULL;
        prompt.hidden_count = i == 1 ? 7 : 0;
        assert_int_equal(kvb_cache_writer_add(w, cache[i], &prompt, NULL), KVB_OK);
        if (i == 1)
            memcpy(other, out, sizeof out);
        /* A name that is taken is refused and does no harm. */
        assert_int_equal(kvb_cache_writer_add(w, cache[i], &prompt, NULL), KVB_E_USAGE);
    }
    assert_int_equal(kvb_cache_writer_commit(w, scratch_path(folder, "three.kvp", path), NULL), KVB_OK);
    kvb_cache_file *file;
    assert_int_equal(kvb_cache_file_open(path, &file, NULL), KVB_OK);
    assert_int_equal(kvb_cache_file_prompts(file), 3);
    assert_string_equal(kvb_cache_file_meta(file, NULL), options.meta_json);
    assert_memory_equal(kvb_cache_file_book_id(file), kvb_book_id(book), 32);
    kvb_cache_options made;
    kvb_cache_file_options(file, &made);
    assert_int_equal(made.seed, 5);
    assert_int_equal(made.policy.window, anchored.window);
    for (uint32_t i = 3; i-- > 0;) {
        uint32_t at, got[30];
        float hidden[7];
        assert_int_equal(kvb_cache_file_find(file, names[i], &at, NULL), KVB_OK);
        assert_int_equal(at, i);
        const kvb_prompt_info info = kvb_cache_file_prompt(file, at);
        assert_string_equal(info.name, names[i]);
        assert_int_equal(info.tokens, 10 * (i + 1));
        assert_int_equal(info.has_ids, i != 1);
        assert_int_equal(kvb_cache_file_ids(file, at, got, NULL), i != 1 ? KVB_OK : KVB_E_USAGE);
        assert_true(i == 1 || (got[0] == 1000 * i && got[info.tokens - 1] == 1000 * i + info.tokens - 1));
        assert_int_equal(kvb_cache_file_hidden(file, at, hidden, NULL), i == 1 ? KVB_OK : KVB_E_USAGE);
        if (i == 1)
            assert_memory_equal(hidden, other, sizeof hidden);
        kvb_cache *restored = sc_cache(book, &anchored, 5);
        assert_int_equal(kvb_cache_file_restore(file, at, restored, NULL), KVB_OK);
        assert_true(sc_same(cache[i], restored, book));
        kvb_cache_destroy(restored);
        kvb_cache_destroy(cache[i]);
    }
    kvb_cache_file_close(file);
    kvb_book_close(book);
    scratch_remove(folder);
}

/* Zlib by columns finds what repeats. */
static void compression_makes_it_smaller(void **state)
{
    (void)state;
    static float out[4096];
    char *folder = scratch_create(), path[2][512];
    kvb_book *book = rt_book_make(&plain, &anchored);
    kvb_cache *cache = sc_cache(book, &anchored, 5);
    for (uint32_t t = 0; t < 600; t++)
        assert_int_equal(sc_step(cache, book, t, out, NULL), KVB_OK);
    kvb_prompt_info info[2];
    for (int i = 0; i < 2; i++) {
        kvb_cache_file *file;
        scratch_path(folder, i == 0 ? "raw.kvp" : "packed.kvp", path[i]);
        assert_int_equal(sc_save(cache, path[i], i == 1, NULL), KVB_OK);
        assert_int_equal(kvb_cache_file_open(path[i], &file, NULL), KVB_OK);
        info[i] = kvb_cache_file_prompt(file, 0);
        kvb_cache_file_close(file);
    }
    assert_int_equal(info[0].stored_size, info[0].raw_size);
    assert_int_equal(info[1].raw_size, info[0].raw_size);
    assert_true(info[1].stored_size < info[0].stored_size * 95 / 100);
    kvb_cache_destroy(cache);
    kvb_book_close(book);
    scratch_remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_score_goes_on),     cmocka_unit_test(every_length_goes_on),
        cmocka_unit_test(every_policy_goes_on),    cmocka_unit_test(every_shape_goes_on),
        cmocka_unit_test(a_cache_without_a_book_goes_on), cmocka_unit_test(several_prompts_in_one_file),
        cmocka_unit_test(compression_makes_it_smaller),
    };
    return cmocka_run_group_tests_name("saved caches", tests, NULL, NULL);
}
