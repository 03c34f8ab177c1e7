/* Numbers coded one by one with scales found while coding: against the formula, in the cache, at once and token by token. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/half.h"
#include "format/base/rng.h"
#include "runtime/codec.h"
#include "runtime/prefill.h"
#include "tests/support/cm.h"
#include "tests/support/rt_book.h"

enum { D = 16, TOKENS = 150 };

static rt_shape shape_of(kvb_scaling keys, kvb_scaling values, uint32_t levels)
{
    return (rt_shape){.layers = 1, .heads = 4, .kv_heads = 2, .head_dim = D, .channels = 1, .centroids = levels,
                      .frame = KVB_FRAME_POST, .rope_style = KVB_ROPE_HALF, .rope_dims = D, .seed = 3, .scaling = {keys, values}};
}

static const kvb_scaling along_tokens = {KVB_AXIS_CHANNEL, KVB_SCALE_RANGE, 8, 1.0f};
static const kvb_scaling along_channels = {KVB_AXIS_TOKEN, KVB_SCALE_RANGE, 4, 1.0f};

/* The formula for a group of numbers: nearest of even levels between offset - scale and offset + scale. */
static void plain_group(const float *y, uint32_t count, uint32_t stride, kvb_scale_form form, float clip, uint32_t levels, float *out)
{
    double least = 1e30, most = -1e30, largest = 0.0, square = 0.0;
    for (uint32_t i = 0; i < count; i++) {
        const double x = (double)y[i * stride];
        least = fmin(least, x);
        most = fmax(most, x);
        largest = fmax(largest, fabs(x));
        square += x * x / count;
    }
    const double centre = form == KVB_SCALE_RANGE ? (least + most) / 2 : 0.0;
    const double reach = form == KVB_SCALE_RANGE ? (most - least) / 2 : form == KVB_SCALE_ABSMAX ? largest : sqrt(square);
    const double offset = (double)kvb_half_to_float(kvb_half_from_float((float)centre));
    const double scale = (double)kvb_half_to_float(kvb_half_from_float((float)((double)clip * reach)));
    for (uint32_t i = 0; i < count; i++) {
        double best = 1e30, at = 0.0;
        for (uint32_t k = 0; k < levels; k++) {
            const double level = offset + scale * (2.0 * k / (levels - 1) - 1.0);
            if (fabs((double)y[i * stride] - level) < best) {
                best = fabs((double)y[i * stride] - level);
                at = level;
            }
        }
        out[i * stride] = (float)at;
    }
}

static void check_formula(kvb_scaling scaling, uint32_t levels)
{
    const kvb_policy none = {0};
    const rt_shape shape = shape_of(scaling, scaling, levels);
    kvb_book *book = rt_book_make(&shape, &none);
    kvb_codec *codec;
    float x[64 * D], found[64 * D], expected[64 * D];
    const uint32_t tokens = 48;
    assert_non_null(book);
    rt_normal(x, tokens * D, 7);
    assert_int_equal(kvb_codec_create(kvb_book_codebook(book, 0, 1, KVB_KEY), D, true, &codec, NULL), KVB_OK);
    uint8_t *packed = malloc(kvb_codec_bytes(codec, tokens));
    assert_non_null(packed);
    kvb_codec_encode_packed(codec, x, D, tokens, packed);
    kvb_codec_decode_packed(codec, packed, 0, tokens, found);
    for (uint32_t t = 0; t < tokens; t += scaling.axis == KVB_AXIS_CHANNEL ? scaling.group : 1)
        for (uint32_t i = 0; i < D; i += scaling.axis == KVB_AXIS_CHANNEL ? 1 : scaling.group)
            plain_group(x + t * D + i, scaling.group, scaling.axis == KVB_AXIS_CHANNEL ? D : 1, scaling.form, scaling.clip, levels,
                        expected + t * D + i);
    /* A number halfway between two levels may fall either way: within rounding, its error is the same. */
    for (uint32_t i = 0; i < tokens * D; i++)
        assert_true(fabs(fabs((double)found[i] - (double)x[i]) - fabs((double)expected[i] - (double)x[i])) < 1e-5);
    /* Any stretch decodes to the same. */
    float part[11 * D];
    kvb_codec_decode_packed(codec, packed, 5, 11, part);
    assert_memory_equal(part, found + 5 * D, sizeof part);
    free(packed);
    kvb_codec_destroy(codec);
    kvb_book_close(book);
}

static void test_formula(void **state)
{
    (void)state;
    static const uint32_t levels[] = {2, 4, 16, 256};
    for (int form = KVB_SCALE_RANGE; form <= KVB_SCALE_RMS; form++)
        for (size_t i = 0; i < 4; i++) {
            check_formula((kvb_scaling){KVB_AXIS_CHANNEL, (kvb_scale_form)form, 16, 1.0f}, levels[i]);
            check_formula((kvb_scaling){KVB_AXIS_TOKEN, (kvb_scale_form)form, 4, 0.8f}, levels[i]);
            check_formula((kvb_scaling){KVB_AXIS_TOKEN, (kvb_scale_form)form, D, 1.5f}, levels[i]);
        }
}

/* Token by token through a cache, and at once. */
static void check_cache(rt_shape shape, kvb_policy policy, uint32_t tokens)
{
    kvb_book *book = rt_book_make(&shape, &policy);
    assert_non_null(book);
    const kvb_layer *l = kvb_book_layer(book, 0);
    rt_rows rows;
    assert_true(rt_rows_make(&rows, l, tokens, 55));
    const size_t floats = (size_t)l->heads * tokens * D;
    float *at_once = calloc(floats, sizeof *at_once), *stepwise = calloc(floats, sizeof *stepwise);
    kvb_prefill p = {.book = book, .layer = 0, .tokens = tokens, .policy = &policy, .seed = 5, .q = rows.q, .k_pre = rows.k_pre,
                     .k = rows.k, .v = rows.v};
    kvb_cache_options options;
    kvb_cache *cache;
    kvb_cache_options_init(&options, book);
    assert_int_equal(kvb_prefill_attend(&p, NULL, at_once, NULL), KVB_OK);
    assert_int_equal(kvb_cache_create(book, &options, &cache, NULL), KVB_OK);
    assert_int_equal(rt_run_cache(cache, l, 0, &rows, stepwise, NULL), KVB_OK);
    double most = 0.0;
    for (size_t i = 0; i < floats; i++)
        most = fmax(most, fabs((double)at_once[i] - (double)stepwise[i]));
    assert_true(most < 1e-5);
    const kvb_cache_bytes counted = kvb_cache_count_bytes(cache), predicted = kvb_cache_predict_bytes(book, &policy, tokens);
    assert_int_equal(counted.codes, predicted.codes);
    assert_int_equal(counted.window, predicted.window);
    assert_int_equal(counted.total, predicted.total);
    assert_int_equal(counted.elements, predicted.elements);
    kvb_cache_destroy(cache);
    rt_rows_free(&rows);
    free(at_once);
    free(stepwise);
    kvb_book_close(book);
}

static void test_cache_equals_prefill(void **state)
{
    (void)state;
    static const struct { uint32_t window, sinks; } policies[] = {{0, 0}, {1, 0}, {13, 0}, {32, 5}, {0, 3}, {200, 2}};
    for (size_t i = 0; i < sizeof policies / sizeof *policies; i++)
        for (uint32_t tokens = 1; tokens < TOKENS; tokens += tokens < 20 ? 1 : 43) {
            const kvb_policy policy = {.window = policies[i].window, .sinks = policies[i].sinks};
            check_cache(shape_of(along_tokens, along_channels, 4), policy, tokens);
            check_cache(shape_of(along_channels, along_channels, 16), policy, tokens);
            rt_shape turned = shape_of(along_tokens, along_tokens, 4);
            turned.scaling[1].group = 32;
            turned.transform = true;
            turned.frame = KVB_FRAME_PRE;
            check_cache(turned, policy, tokens);
        }
    /* Scales of a token alone do not bind it to others: anchors may stay. */
    const kvb_policy anchors = {.window = 9, .sinks = 2, .anchor_fraction = 0.1, .score = KVB_SCORE_EXACT_K};
    check_cache(shape_of(along_channels, along_channels, 4), anchors, TOKENS);
}

/* Tokens that have had their time in the window stay exact until their block is whole, and then all of it is codes. */
static void test_blocks_leave_together(void **state)
{
    (void)state;
    const kvb_policy policy = {.window = 10, .sinks = 3};
    const rt_shape shape = shape_of(along_tokens, along_channels, 4);
    kvb_book *book = rt_book_make(&shape, &policy);
    kvb_cache_options options;
    kvb_cache *cache;
    assert_non_null(book);
    kvb_cache_options_init(&options, book);
    assert_int_equal(kvb_cache_create(book, &options, &cache, NULL), KVB_OK);
    for (uint32_t length = 1; length < 80; length++) {
        float keys[2 * D], values[2 * D], key[D], value[D];
        int exact;
        rt_normal(keys, 2 * D, length);
        rt_normal(values, 2 * D, length + 1000);
        assert_int_equal(kvb_cache_append(cache, 0, keys, values, NULL), KVB_OK);
        const uint32_t left = length > 13 ? (length - 13) / 8 * 8 : 0;
        for (uint32_t p = 0; p < length; p++) {
            assert_int_equal(kvb_cache_read(cache, 0, 1, p, key, value, &exact, NULL), KVB_OK);
            assert_int_equal(exact, p < 3 || p >= 3 + left);
        }
    }
    kvb_cache_destroy(cache);
    kvb_book_close(book);
}

static void test_refusals(void **state)
{
    (void)state;
    const kvb_policy policy = {.window = 10};
    const rt_shape shape = shape_of(along_tokens, along_channels, 4);
    kvb_book *book = rt_book_make(&shape, &policy);
    kvb_cache_options options;
    kvb_cache *cache;
    kvb_error err;
    assert_non_null(book);
    kvb_cache_options_init(&options, book);
    options.policy.anchor_fraction = 0.1;
    assert_int_equal(kvb_cache_create(book, &options, &cache, &err), KVB_E_USAGE);
    assert_non_null(strstr(err.message, "share scales"));
    float x[D] = {0};
    uint32_t codes[D];
    assert_int_equal(kvb_encode(kvb_book_codebook(book, 0, 0, KVB_KEY), D, x, D, 1, codes, &err), KVB_E_USAGE);
    kvb_book_close(book);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_formula), cmocka_unit_test(test_cache_equals_prefill), cmocka_unit_test(test_blocks_leave_together),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
