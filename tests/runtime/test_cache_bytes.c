/* Bytes of a cache: counted, predicted, and added up by hand. */
#include <stdlib.h>
#include <string.h>

#include "tests/support/cm.h"
#include "tests/support/rt_book.h"

static const rt_shape shape = {.layers = 3, .heads = 4, .kv_heads = 2, .head_dim = 16, .channels = 4, .centroids = 8,
                               .rope_style = KVB_ROPE_HALF, .rope_dims = 16, .transform = true, .last_exact = true,
                               .seed = 1, .fine_channels = 2, .fine_centroids = 16};

static void append_rows(kvb_cache *cache, uint32_t tokens, uint64_t key)
{
    float rows[4 * 16];
    for (uint32_t layer = 0; layer < shape.layers; layer++)
        for (uint32_t t = 0; t < tokens; t++) {
            rt_normal(rows, 64, key + 1000 * layer + t);
            assert_int_equal(kvb_cache_append(cache, layer, rows, rows + 32, NULL), KVB_OK);
        }
}

static void predicted_equals_counted(void **state)
{
    (void)state;
    const kvb_policy policy[] = {
        {.anchor_fraction = 0.01, .score = KVB_SCORE_EXACT_K, .window = 32, .sinks = 4},
        {.anchor_fraction = 0.1, .score = KVB_SCORE_RANDOM, .window = 7},
        {.anchor_fraction = 0.0, .window = 0},
        {.anchor_fraction = 0.3, .score = KVB_SCORE_EXACT_V, .window = 0, .sinks = 9},
        {.anchor_fraction = 1.0, .score = KVB_SCORE_EXACT_V, .window = 3},
        {.anchor_fraction = 0.5, .window = UINT32_MAX, .sinks = 2},
        {.anchor_fraction = 0.5, .window = 5, .sinks = UINT32_MAX},
        {.anchor_fraction = 0.1, .score = KVB_SCORE_EXACT_K, .window = 32, .sinks = 4, .exact = KVB_EXACT_FINE},
        {.anchor_fraction = 0.2, .score = KVB_SCORE_RANDOM, .window = 0, .exact = KVB_EXACT_FINE},
        {.anchor_fraction = 0.5, .window = UINT32_MAX, .sinks = 2, .exact = KVB_EXACT_FINE},
    };
    for (size_t i = 0; i < sizeof policy / sizeof *policy; i++) {
        kvb_book *book = rt_book_make(&shape, policy + i);
        assert_non_null(book);
        for (uint32_t tokens = 0; tokens < 150; tokens = 2 * tokens + 1) {
            kvb_cache_options options;
            kvb_cache *cache;
            kvb_cache_options_init(&options, book);
            options.reserve = i % 2 == 0 ? 0 : 100;
            assert_int_equal(kvb_cache_create(book, &options, &cache, NULL), KVB_OK);
            append_rows(cache, tokens, i);
            kvb_cache_bytes counted = kvb_cache_count_bytes(cache);
            kvb_cache_bytes predicted = kvb_cache_predict_bytes(book, policy + i, tokens);
            assert_memory_equal(&counted, &predicted, sizeof counted);
            kvb_cache_destroy(cache);
        }
        kvb_book_close(book);
    }
}

static void bytes_by_hand(void **state)
{
    (void)state;
    const kvb_policy policy = {.anchor_fraction = 0.1, .score = KVB_SCORE_EXACT_K, .window = 32, .sinks = 4};
    kvb_book *book = rt_book_make(&shape, &policy);
    assert_non_null(book);
    kvb_cache_bytes b = kvb_cache_predict_bytes(book, &policy, 136);
    /* 100 tokens have left the window: 10 anchors and 90 of codes, in 2 layers of 2 KV heads; a row of half floats is
     * 64 bytes and its codes, 4 of 3 bits for K and for V, are 2 * 2. The third layer is exact. */
    const uint64_t heads = 2 * 2;
    assert_int_equal(b.codes, heads * 90 * 4);
    assert_int_equal(b.anchors, heads * 10 * 64);
    assert_int_equal(b.sinks, heads * 4 * 64);
    assert_int_equal(b.window, heads * 32 * 64 + 2 * 136 * 64);
    assert_int_equal(b.index, heads * (10 * 8 + 32 * 8));
    assert_int_equal(b.codebooks, heads * 2 * (16 * 8 * 2 + 16 * 4 + 2 * 16 * 16 * 4));
    assert_int_equal(b.total, b.codes + b.anchors + b.sinks + b.window + b.index + b.codebooks);
    assert_int_equal(b.elements, 3 * 2 * 136 * 32);
    kvb_book_close(book);
}

/* Two stages of 8 hold 64 centroids in the bytes of 16: what is stored counts, and codes have 6 bits. */
static void additive_bytes_by_hand(void **state)
{
    (void)state;
    const kvb_policy policy = {.window = 32};
    rt_shape additive = shape;
    additive.stages = 2;
    kvb_book *book = rt_book_make(&additive, &policy);
    assert_non_null(book);
    kvb_cache_bytes b = kvb_cache_predict_bytes(book, &policy, 132);
    assert_int_equal(b.codes, 2 * 2 * 100 * 2 * 3);
    assert_int_equal(b.codebooks, 2 * 2 * 2 * (16 * 2 * 8 * 2 + 16 * 4 + 2 * 16 * 16 * 4));
    kvb_book_close(book);
}

static void fine_bytes_by_hand(void **state)
{
    (void)state;
    const kvb_policy policy = {.anchor_fraction = 0.1, .score = KVB_SCORE_EXACT_K, .window = 32, .sinks = 4,
                               .exact = KVB_EXACT_FINE};
    kvb_book *book = rt_book_make(&shape, &policy);
    assert_non_null(book);
    kvb_cache_bytes b = kvb_cache_predict_bytes(book, &policy, 136);
    /* As above, but the row of an anchor or of the window is 8 codes of 4 bits for K and for V. Sinks and the layer
     * without codebooks stay half floats. The fine tables come on top; means and transforms are there once. */
    const uint64_t heads = 2 * 2;
    assert_int_equal(b.codes, heads * 90 * 4);
    assert_int_equal(b.anchors, heads * 10 * 8);
    assert_int_equal(b.sinks, heads * 4 * 64);
    assert_int_equal(b.window, heads * 32 * 8 + 2 * 136 * 64);
    assert_int_equal(b.index, heads * (10 * 8 + 32 * 8));
    assert_int_equal(b.codebooks, heads * 2 * (16 * 8 * 2 + 16 * 16 * 2 + 16 * 4 + 2 * 16 * 16 * 4));
    kvb_book_close(book);
}

static void exact_cache_holds_half_floats(void **state)
{
    (void)state;
    kvb_layer layer[3];
    kvb_cache *cache;
    for (int i = 0; i < 3; i++)
        layer[i] = (kvb_layer){.heads = 4, .kv_heads = 2, .head_dim = 16, .attention_scale = 0.25};
    assert_int_equal(kvb_cache_create_exact(layer, 3, &cache, NULL), KVB_OK);
    append_rows(cache, 50, 3);
    kvb_cache_bytes b = kvb_cache_count_bytes(cache);
    assert_int_equal(b.total, 3 * 2 * 50 * 64);
    assert_int_equal(b.window, b.total);
    assert_int_equal(b.total * 8 / b.elements, 16);
    kvb_cache_destroy(cache);
}

static void nothing_of_nothing(void **state)
{
    (void)state;
    const kvb_policy policy = {0};
    assert_int_equal(kvb_cache_count_bytes(NULL).total, 0);
    assert_int_equal(kvb_cache_predict_bytes(NULL, &policy, 10).total, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(predicted_equals_counted),
        cmocka_unit_test(bytes_by_hand),
        cmocka_unit_test(additive_bytes_by_hand),
        cmocka_unit_test(fine_bytes_by_hand),
        cmocka_unit_test(exact_cache_holds_half_floats),
        cmocka_unit_test(nothing_of_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
