/* The calls around a cache: what they refuse, what they promise about order and repetition, caches without a book. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/half.h"
#include "tests/support/cm.h"
#include "tests/support/rt_book.h"

static const rt_shape shape = {.layers = 2, .heads = 2, .kv_heads = 1, .head_dim = 8, .channels = 4, .centroids = 8,
                               .rope_style = KVB_ROPE_HALF, .rope_dims = 8, .last_exact = true, .seed = 1};
static const kvb_policy policy = {.anchor_fraction = 0.1, .score = KVB_SCORE_EXACT_K, .window = 6, .sinks = 2};

static kvb_cache *make_cache(const kvb_book *book, uint32_t reserve)
{
    kvb_cache_options options;
    kvb_cache *cache = NULL;
    kvb_cache_options_init(&options, book);
    options.reserve = reserve;
    assert_int_equal(kvb_cache_create(book, &options, &cache, NULL), KVB_OK);
    return cache;
}

static void nothing_closes(void **state)
{
    (void)state;
    kvb_cache_destroy(NULL);
    assert_int_equal(kvb_cache_length(NULL, 0), 0);
}

static void options_come_from_the_book(void **state)
{
    (void)state;
    kvb_book *book = rt_book_make(&shape, &policy);
    assert_non_null(book);
    kvb_cache_options options;
    kvb_cache_options_init(&options, book);
    assert_int_equal(options.struct_size, sizeof options);
    assert_int_equal(options.policy.window, 6);
    assert_int_equal(options.policy.sinks, 2);
    kvb_cache_options_init(&options, NULL);
    assert_int_equal(options.policy.window, UINT32_MAX);
    kvb_book_close(book);
}

static void bad_options(void **state)
{
    (void)state;
    kvb_book *book = rt_book_make(&shape, &policy);
    assert_non_null(book);
    kvb_cache_options options;
    kvb_cache *cache = (kvb_cache *)&options;
    kvb_error err = {0};
    kvb_cache_options_init(&options, book);
    assert_int_equal(kvb_cache_create(NULL, &options, &cache, &err), KVB_E_USAGE);
    assert_null(cache);
    assert_int_equal(kvb_cache_create(book, NULL, &cache, &err), KVB_E_USAGE);
    assert_int_equal(kvb_cache_create(book, &options, NULL, &err), KVB_E_USAGE);
    options.struct_size = 0;
    assert_int_equal(kvb_cache_create(book, &options, &cache, &err), KVB_E_USAGE);
    assert_string_equal(err.where, "options");
    const double fraction[] = {-0.1, 1.5, NAN};
    for (int i = 0; i < 3; i++) {
        kvb_cache_options_init(&options, book);
        options.policy.anchor_fraction = fraction[i];
        assert_int_equal(kvb_cache_create(book, &options, &cache, &err), KVB_E_USAGE);
        assert_string_equal(err.where, "policy.anchor_fraction");
    }
    kvb_cache_options_init(&options, book);
    options.policy.score = (kvb_anchor_score)5;
    assert_int_equal(kvb_cache_create(book, &options, &cache, &err), KVB_E_USAGE);
    assert_string_equal(err.where, "policy.score");
    kvb_book_close(book);
}

static void bad_geometry(void **state)
{
    (void)state;
    const kvb_layer good = {.heads = 4, .kv_heads = 2, .head_dim = 8, .rope_style = KVB_ROPE_HALF, .rope_dims = 8,
                            .rope_base = 1e4, .attention_scale = 0.3};
    kvb_layer bad[9] = {good, good, good, good, good, good, good, good, good};
    kvb_cache *cache;
    kvb_error err = {0};
    bad[0].kv_heads = 0;
    bad[1].kv_heads = 3;
    bad[2].heads = 0;
    bad[3].head_dim = 0;
    bad[4].head_dim = 1025;
    bad[5].rope_dims = 10;
    bad[6].rope_dims = 7;
    bad[7].attention_scale = NAN;
    bad[8].kind = KVB_LAYER_SLIDING;
    for (int i = 0; i < 9; i++) {
        const kvb_layer two[2] = {good, bad[i]};
        assert_int_equal(kvb_cache_create_exact(two, 2, &cache, &err), KVB_E_USAGE);
        assert_null(cache);
        assert_string_equal(err.where, "layer 1");
    }
    assert_int_equal(kvb_cache_create_exact(NULL, 1, &cache, &err), KVB_E_USAGE);
    assert_int_equal(kvb_cache_create_exact(&good, 0, &cache, &err), KVB_E_USAGE);
    assert_int_equal(kvb_cache_create_exact(&good, 1, NULL, &err), KVB_E_USAGE);
}

static void bad_calls_change_nothing(void **state)
{
    (void)state;
    kvb_book *book = rt_book_make(&shape, &policy);
    assert_non_null(book);
    kvb_cache *cache = make_cache(book, 0);
    float x[16] = {0}, out[16];
    kvb_error err = {0};
    assert_int_equal(kvb_cache_append(NULL, 0, x, x, &err), KVB_E_USAGE);
    assert_int_equal(kvb_cache_append(cache, 2, x, x, &err), KVB_E_USAGE);
    assert_int_equal(kvb_cache_append(cache, 0, NULL, x, &err), KVB_E_USAGE);
    assert_int_equal(kvb_cache_append(cache, 0, x, NULL, &err), KVB_E_USAGE);
    assert_int_equal(kvb_cache_attend(cache, 0, x, out, &err), KVB_E_USAGE);
    x[5] = NAN;
    assert_int_equal(kvb_cache_append(cache, 0, x, x, &err), KVB_E_CHECK);
    assert_string_equal(err.where, "keys");
    assert_non_null(strstr(err.message, "channel 5"));
    x[5] = 0.0f;
    assert_int_equal(kvb_cache_length(cache, 0), 0);
    assert_int_equal(kvb_cache_append(cache, 0, x, x, &err), KVB_OK);
    assert_int_equal(kvb_cache_length(cache, 0), 1);
    assert_int_equal(kvb_cache_length(cache, 1), 0);
    assert_int_equal(kvb_cache_length(cache, 2), 0);
    assert_int_equal(kvb_cache_attend(cache, 0, NULL, out, &err), KVB_E_USAGE);
    assert_int_equal(kvb_cache_attend(cache, 0, x, NULL, &err), KVB_E_USAGE);
    assert_int_equal(kvb_cache_attend(cache, 2, x, out, &err), KVB_E_USAGE);
    x[9] = INFINITY;
    assert_int_equal(kvb_cache_attend(cache, 0, x, out, &err), KVB_E_CHECK);
    assert_non_null(strstr(err.message, "head 1, channel 1"));
    assert_int_equal(kvb_cache_read(cache, 0, 0, 1, x, x, NULL, &err), KVB_E_USAGE);
    assert_int_equal(kvb_cache_read(cache, 0, 1, 0, x, x, NULL, &err), KVB_E_USAGE);
    assert_int_equal(kvb_cache_read(cache, 2, 0, 0, x, x, NULL, &err), KVB_E_USAGE);
    assert_int_equal(kvb_cache_read(cache, 0, 0, 0, NULL, x, NULL, &err), KVB_E_USAGE);
    assert_int_equal(kvb_cache_read(cache, 0, 0, 0, x, x, NULL, &err), KVB_OK);
    kvb_cache_destroy(cache);
    kvb_book_close(book);
}

/* Attending again gives the same output and does not count a token's attention twice; room made early changes nothing.
 * */
static void attending_twice_counts_once(void **state)
{
    (void)state;
    enum { TOKENS = 80 };
    kvb_book *book = rt_book_make(&shape, &policy);
    assert_non_null(book);
    kvb_cache *once = make_cache(book, 0), *twice = make_cache(book, 50);
    float kv[16], q[16], out[3][16], key[2][8], value[2][8];
    for (uint32_t t = 0; t < TOKENS; t++) {
        rt_normal(kv, 16, 10 + t);
        rt_normal(q, 16, 1000 + t);
        assert_int_equal(kvb_cache_append(once, 0, kv, kv + 8, NULL), KVB_OK);
        assert_int_equal(kvb_cache_append(twice, 0, kv, kv + 8, NULL), KVB_OK);
        assert_int_equal(kvb_cache_attend(once, 0, q, out[0], NULL), KVB_OK);
        /* Not at every step: doubling all scores alike would change no choice. */
        for (int i = 1; i < (t % 3 == 0 ? 3 : 2); i++) {
            assert_int_equal(kvb_cache_attend(twice, 0, q, out[i], NULL), KVB_OK);
            assert_memory_equal(out[0], out[i], sizeof out[0]);
        }
    }
    for (uint32_t t = 0; t < TOKENS; t++) {
        int exact[2];
        kvb_cache_read(once, 0, 0, t, key[0], value[0], exact, NULL);
        kvb_cache_read(twice, 0, 0, t, key[1], value[1], exact + 1, NULL);
        assert_int_equal(exact[0], exact[1]);
        assert_memory_equal(key[0], key[1], sizeof key[0]);
        assert_memory_equal(value[0], value[1], sizeof value[0]);
    }
    kvb_cache_destroy(once);
    kvb_cache_destroy(twice);
    kvb_book_close(book);
}

/* Without a book, or in a layer without codebooks, every token is exact. */
static void check_exact_layer(kvb_cache *cache, const kvb_layer *l, uint32_t layer)
{
    enum { TOKENS = 200 };
    rt_rows rows;
    assert_true(rt_rows_make(&rows, l, TOKENS, 4));
    float out[2 * TOKENS * 8], keys_read[8], values[TOKENS * 8];
    double keys[TOKENS * 8], probs[TOKENS], truth[8];
    assert_int_equal(rt_run_cache(cache, l, layer, &rows, out, NULL), KVB_OK);
    for (uint32_t t = 0; t < TOKENS; t++) {
        int exact = 0;
        assert_int_equal(kvb_cache_read(cache, layer, 0, t, keys_read, values + 8 * t, &exact, NULL), KVB_OK);
        assert_true(exact);
        for (uint32_t c = 0; c < 8; c++)
            assert_true(keys_read[c] == kvb_half_to_float(kvb_half_from_float(rows.k_pre[8 * t + c])));
        rt_rotate(l, t, keys_read, keys + 8 * t);
        for (uint32_t h = 0; h < 2; h++) {
            rt_attend(l, rows.q + (h * TOKENS + t) * 8, keys, values, t + 1, truth, probs);
            for (uint32_t c = 0; c < 8; c++)
                assert_true(fabs(truth[c] - (double)out[(h * TOKENS + t) * 8 + c]) < 1e-5);
        }
    }
    rt_rows_free(&rows);
}

static void layers_without_codebooks_are_exact(void **state)
{
    (void)state;
    kvb_book *book = rt_book_make(&shape, &policy);
    assert_non_null(book);
    kvb_cache *cache = make_cache(book, 0);
    assert_null(kvb_book_codebook(book, 1, 0, KVB_KEY));
    check_exact_layer(cache, kvb_book_layer(book, 1), 1);
    kvb_cache_destroy(cache);
    const kvb_layer layer = *kvb_book_layer(book, 0);
    assert_int_equal(kvb_cache_create_exact(&layer, 1, &cache, NULL), KVB_OK);
    check_exact_layer(cache, &layer, 0);
    kvb_cache_destroy(cache);
    kvb_book_close(book);
}

/* Layers that rotate alike share a table, others do not: each must be right whatever the others' lengths. */
static void layers_of_different_rotation(void **state)
{
    (void)state;
    static const float factors[4] = {1.0f, 2.0f, 4.0f, 8.0f};
    const kvb_layer plain = {.heads = 2, .kv_heads = 1, .head_dim = 8, .rope_style = KVB_ROPE_HALF, .rope_dims = 8,
                             .rope_base = 1e4, .attention_scale = 0.35};
    kvb_layer layer[5] = {plain, plain, plain, plain, plain};
    layer[1].rope_base = 5e5;
    layer[3].rope_style = KVB_ROPE_NONE;
    layer[4].rope_factors = factors;
    kvb_cache *cache, *alone;
    float kv[16], q[16], out[2][16];
    assert_int_equal(kvb_cache_create_exact(layer, 5, &cache, NULL), KVB_OK);
    for (uint32_t i = 0; i < 5; i++) {
        assert_int_equal(kvb_cache_create_exact(layer + i, 1, &alone, NULL), KVB_OK);
        for (uint32_t t = 0; t < 300 + 100 * i; t++) {
            rt_normal(kv, 16, t);
            rt_normal(q, 16, 5000 + t);
            assert_int_equal(kvb_cache_append(cache, i, kv, kv + 8, NULL), KVB_OK);
            assert_int_equal(kvb_cache_append(alone, 0, kv, kv + 8, NULL), KVB_OK);
        }
        assert_int_equal(kvb_cache_attend(cache, i, q, out[0], NULL), KVB_OK);
        assert_int_equal(kvb_cache_attend(alone, 0, q, out[1], NULL), KVB_OK);
        assert_memory_equal(out[0], out[1], sizeof out[0]);
        kvb_cache_destroy(alone);
    }
    kvb_cache_destroy(cache);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_closes),
        cmocka_unit_test(options_come_from_the_book),
        cmocka_unit_test(bad_options),
        cmocka_unit_test(bad_geometry),
        cmocka_unit_test(bad_calls_change_nothing),
        cmocka_unit_test(attending_twice_counts_once),
        cmocka_unit_test(layers_without_codebooks_are_exact),
        cmocka_unit_test(layers_of_different_rotation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
