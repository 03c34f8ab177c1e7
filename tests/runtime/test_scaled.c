/* Numbers coded one by one with scales found while coding: against the formula, in the cache, at once and token by token. */
#include <math.h>
#include <stdbool.h>
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

static const kvb_scaling along_tokens = {.axis = KVB_AXIS_CHANNEL, .form = KVB_SCALE_RANGE, .group = 8, .clip = 1.0f};
static const kvb_scaling along_channels = {.axis = KVB_AXIS_TOKEN, .form = KVB_SCALE_RANGE, .group = 4, .clip = 1.0f};
/* Offsets -1, 0, 1, 0, ... and scales 0.5, 1, 2, 1, ... */
static const uint16_t fixed_halves[2 * D] = {
    0xbc00, 0, 0x3c00, 0, 0xbc00, 0, 0x3c00, 0, 0xbc00, 0, 0x3c00, 0, 0xbc00, 0, 0x3c00, 0,
    0x3800, 0x3c00, 0x4000, 0x3c00, 0x3800, 0x3c00, 0x4000, 0x3c00, 0x3800, 0x3c00, 0x4000, 0x3c00, 0x3800, 0x3c00, 0x4000, 0x3c00};
static const kvb_scaling of_channels = {.axis = KVB_AXIS_CHANNEL, .form = KVB_SCALE_FIXED, .group = 1, .clip = 1.0f, .outliers = 2,
                                        .fixed = fixed_halves};
static const kvb_scaling with_outliers = {.axis = KVB_AXIS_TOKEN, .form = KVB_SCALE_RANGE, .group = 8, .clip = 1.0f, .outliers = 3};

/* Three lists of channels, of 3, 8 and 5. */
static const uint16_t list_order[D] = {5, 0, 11, 1, 15, 2, 9, 3, 4, 13, 6, 7, 8, 14, 10, 12}, list_end[3] = {3, 11, 16};
static const float list_clips[3] = {0.75f, 1.0f, 0.5f}, neighbour_clips[4] = {0.5f, 1.0f, 0.8f, 1.25f};
static const kvb_scaling in_lists = {.axis = KVB_AXIS_TOKEN, .form = KVB_SCALE_RANGE, .group = D, .clip = 1.0f, .store = KVB_STORE_FP8,
                                     .lists = 3, .order = list_order, .end = list_end, .clips = list_clips};

/* As what offsets and scales are stored: the nearest number of e4m3 by looking at all, or a half float. */
static double stored(double x, kvb_scale_store store)
{
    double best = 1e30, at = 0.0;
    if (store == KVB_STORE_HALF)
        return (double)kvb_half_to_float(kvb_half_from_float((float)x));
    for (int e = 0; e < 16; e++)
        for (int m = 0; m < (e == 15 ? 7 : 8); m++) {
            const double y = copysign(e == 0 ? m * 0x1p-9 : (8 + m) * ldexp(1.0, e - 10), x);
            if (fabs(x - y) < best || (fabs(x - y) == best && m % 2 == 0)) {
                best = fabs(x - y);
                at = y;
            }
        }
    return at;
}

/* The formula for a group of numbers: nearest of even levels between offset - scale and offset + scale. */
static void plain_group(const float *y, uint32_t count, uint32_t stride, const kvb_scaling *s, float clip, uint32_t levels, float *out)
{
    const kvb_scale_form form = s->form;
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
    const double offset = stored((double)(float)centre, s->store), scale = stored((double)(float)((double)clip * reach), s->store);
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

/* Groups of one token: neighbours or lists, each with its own clip or not. */
static void plain_token(const float *x, const kvb_scaling *s, uint32_t levels, float *out)
{
    float in[D], decoded[D];
    for (uint32_t i = 0, first = 0, end; first < D; i++, first = end) {
        end = s->lists > 0 ? s->end[i] : first + s->group;
        for (uint32_t j = first; j < end; j++)
            in[j] = x[s->lists > 0 ? s->order[j] : j];
        plain_group(in + first, end - first, 1, s, s->clips != NULL ? s->clips[i] : s->clip, levels, decoded + first);
    }
    for (uint32_t j = 0; j < D; j++)
        out[s->lists > 0 ? s->order[j] : j] = decoded[j];
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
    for (uint32_t t = 0; scaling.axis == KVB_AXIS_TOKEN && t < tokens; t++)
        plain_token(x + t * D, &scaling, levels, expected + t * D);
    for (uint32_t t = 0; scaling.axis == KVB_AXIS_CHANNEL && t < tokens; t += scaling.group)
        for (uint32_t i = 0; i < D; i++)
            plain_group(x + t * D + i, scaling.group, D, &scaling, scaling.clip, levels, expected + t * D + i);
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
            check_formula((kvb_scaling){.axis = KVB_AXIS_CHANNEL, .form = (kvb_scale_form)form, .group = 16, .clip = 1.0f}, levels[i]);
            check_formula((kvb_scaling){.axis = KVB_AXIS_TOKEN, .form = (kvb_scale_form)form, .group = 4, .clip = 0.8f}, levels[i]);
            check_formula((kvb_scaling){.axis = KVB_AXIS_TOKEN, .form = (kvb_scale_form)form, .group = D, .clip = 1.5f}, levels[i]);
            check_formula((kvb_scaling){.axis = KVB_AXIS_CHANNEL, .form = (kvb_scale_form)form, .group = 8, .clip = 1.0f,
                                        .store = KVB_STORE_FP8}, levels[i]);
            check_formula((kvb_scaling){.axis = KVB_AXIS_TOKEN, .form = (kvb_scale_form)form, .group = 4, .clip = 1.0f,
                                        .clips = neighbour_clips}, levels[i]);
            kvb_scaling lists = in_lists;
            lists.form = (kvb_scale_form)form;
            check_formula(lists, levels[i]);
            lists.clips = NULL;
            check_formula(lists, levels[i]);
        }
}

/* The numbers that stand out, by the words of the header: taken one after the other. */
static void plain_outliers(const float *y, uint32_t dim, const kvb_scaling *s, bool *out)
{
    memset(out, 0, dim * sizeof *out);
    for (uint32_t n = 0; n < s->outliers; n++) {
        double most = -1.0;
        uint32_t best = 0;
        for (uint32_t c = 0; c < dim; c++) {
            double sum = 0.0, count = 0.0, distance;
            const uint32_t first = c / s->group * s->group;
            for (uint32_t i = first; i < first + s->group; i++) {
                sum += out[i] ? 0.0 : (double)y[i];
                count += out[i] ? 0.0 : 1.0;
            }
            distance = fabs((double)y[c] - sum / count);
            if (s->form == KVB_SCALE_FIXED)
                distance = fabs((double)y[c] - (double)kvb_half_to_float(s->fixed[c])) / (double)kvb_half_to_float(s->fixed[dim + c]);
            if (!out[c] && distance > most) {
                most = distance;
                best = c;
            }
        }
        out[best] = true;
    }
}

/* Outliers come back as half floats, to the bit; the others are coded by the range of what is left. */
static void check_outliers(const kvb_scaling *s, uint32_t dim, const uint16_t *level, uint32_t levels)
{
    enum { MOST = 320, N = 9 };
    static float x[N * MOST], found[N * MOST];
    bool out[MOST];
    const kvb_codebook c = {.channels = 1, .centroids = levels, .groups = dim, .code_bits = levels == 4 ? 2 : 4, .table = level, .stages = 1,
                            .stage_centroids = levels, .scaling = s};
    const float least = level != NULL ? kvb_half_to_float(level[0]) : -1.0f;
    kvb_codec *codec;
    rt_normal(x, N * dim, 9 + dim);
    assert_int_equal(kvb_codec_create(&c, dim, true, &codec, NULL), KVB_OK);
    assert_int_equal(codec->packed_bytes, (dim * c.code_bits + 7) / 8 + (s->form == KVB_SCALE_FIXED ? 0 : dim / s->group * 4) +
                                              s->outliers * (dim > 256 ? 4 : 3));
    uint8_t *packed = malloc(kvb_codec_bytes(codec, N));
    kvb_codec_encode_packed(codec, x, dim, N, packed);
    kvb_codec_decode_packed(codec, packed, 0, N, found);
    for (uint32_t t = 0; t < N; t++) {
        const float *y = x + t * dim;
        plain_outliers(y, dim, s, out);
        for (uint32_t i = 0; i < dim; i++) {
            float low = INFINITY, high = -INFINITY;
            for (uint32_t k = i / s->group * s->group; k < (i / s->group + 1) * s->group; k++) {
                low = out[k] ? low : fminf(low, y[k]);
                high = out[k] ? high : fmaxf(high, y[k]);
            }
            const float is = found[t * dim + i];
            if (out[i]) {
                assert_true(is == kvb_half_to_float(kvb_half_from_float(y[i])));
            } else if (s->form == KVB_SCALE_FIXED) {
                const float offset = kvb_half_to_float(s->fixed[i]), scale = kvb_half_to_float(s->fixed[dim + i]);
                assert_true(is >= offset + least * scale && is <= offset - least * scale);
                if (fabsf(y[i] - offset) < scale) /* inside: half a step, and the edges of these levels are at +-1 */
                    assert_true(fabsf(is - y[i]) <= scale * 0.5f);
            } else {
                assert_true(fabsf(is - y[i]) <= 0.5f * (high - low) / (float)(levels - 1) + 4e-3f);
            }
        }
    }
    /* Places beyond the head, which no encoder writes, are passed over. */
    memset(packed, 0xff, kvb_codec_bytes(codec, N));
    kvb_codec_decode_packed(codec, packed, 0, N, found);
    free(packed);
    kvb_codec_destroy(codec);
}

static void test_outliers(void **state)
{
    (void)state;
    enum { WIDE = 320 };
    static uint16_t wide[2 * WIDE];
    static const uint16_t level[4] = {0xbc00, 0xb400, 0x3400, 0x3c00};
    check_outliers(&of_channels, D, NULL, 16);
    check_outliers(&of_channels, D, level, 4);
    check_outliers(&with_outliers, D, NULL, 16);
    kvb_scaling s = with_outliers;
    s.group = WIDE;
    check_outliers(&s, WIDE, NULL, 16);
    s.form = KVB_SCALE_FIXED;
    s.axis = KVB_AXIS_CHANNEL;
    s.group = 1;
    s.fixed = wide;
    for (uint32_t i = 0; i < WIDE; i++)
        wide[WIDE + i] = 0x3c00;
    check_outliers(&s, WIDE, NULL, 16);
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
            rt_shape lists = shape_of(in_lists, in_lists, 4);
            lists.frame = KVB_FRAME_PRE;
            check_cache(lists, policy, tokens);
            kvb_scaling bytes = along_tokens;
            bytes.store = KVB_STORE_FP8;
            check_cache(shape_of(bytes, in_lists, 4), policy, tokens);
            kvb_scaling pooled = along_tokens;
            pooled.pool = 3;
            pooled.spill = 5;
            check_cache(shape_of(pooled, along_channels, 4), policy, tokens);
            check_cache(shape_of(pooled, along_tokens, 4), policy, tokens);
        }
    /* Outliers, and scales of calibration: heads of queries share them. */
    for (uint32_t tokens = 1; tokens < TOKENS; tokens += 37) {
        const kvb_policy sink = {.sinks = 1, .window = tokens % 2 * 12};
        check_cache(shape_of(of_channels, with_outliers, 4), sink, tokens);
    }
    const kvb_policy some = {.window = 9, .sinks = 2, .anchor_fraction = 0.1, .score = KVB_SCORE_EXACT_K};
    check_cache(shape_of(of_channels, with_outliers, 4), some, TOKENS);
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

/* Which tokens the pools of a head hold, found in the plainest way: groups of 8 after the sinks, coded as they leave the window. */
static void expect_pools(const float (*keys)[2 * D], uint32_t coded, uint32_t sinks, bool *held)
{
    enum { PLACES = 2, SPILL = 4 };
    uint32_t in[PLACES], inside = 0, spilled = 0;
    double size[TOKENS];
    memset(held, 0, TOKENS * sizeof *held);
    for (uint32_t t = 0; t < TOKENS; t++) {
        float sum = 0.0f;
        for (uint32_t i = 0; i < D; i++)
            sum += fabsf(kvb_half_to_float(kvb_half_from_float(keys[t][D + i])));
        size[t] = (double)sum;
    }
    for (uint32_t first = sinks; first < sinks + coded; first += 8)
        for (bool more = true; more && spilled < SPILL;) {
            uint32_t best = first + 8, worst = 0;
            for (uint32_t t = first; t < first + 8; t++)
                if (!held[t] && (best == first + 8 || size[t] < size[best]))
                    best = t;
            if (best == first + 8)
                break;
            for (uint32_t i = 1; i < inside; i++)
                worst = size[in[i]] > size[in[worst]] ? i : worst;
            more = inside < PLACES || size[best] < size[in[worst]];
            if (!more)
                break;
            if (inside < PLACES)
                in[inside++] = best;
            else {
                in[worst] = best;
                spilled++;
            }
            held[best] = true;
        }
}

/* The pools hold the right tokens, exactly; they stop when the second is full. */
static void test_pools(void **state)
{
    (void)state;
    enum { SINKS = 3, WINDOW = 10 };
    const kvb_policy policy = {.window = WINDOW, .sinks = SINKS};
    kvb_scaling pooled = along_tokens;
    pooled.pool = 2;
    pooled.spill = 4;
    rt_shape shape = shape_of(pooled, along_channels, 256);
    shape.rope_style = KVB_ROPE_NONE; /* keys stay as they came */
    shape.rope_dims = 0;
    kvb_book *book = rt_book_make(&shape, &policy);
    kvb_cache_options options;
    kvb_cache *cache;
    static float keys[TOKENS][2 * D], values[TOKENS][2 * D];
    bool held[TOKENS], before[TOKENS] = {false};
    uint32_t most = 0;
    assert_non_null(book);
    kvb_cache_options_init(&options, book);
    assert_int_equal(kvb_cache_create(book, &options, &cache, NULL), KVB_OK);
    for (uint32_t t = 0; t < TOKENS; t++) {
        rt_normal(keys[t], 2 * D, t + 1);
        rt_normal(values[t], 2 * D, t + 1000);
        for (uint32_t i = 0; i < 2 * D; i++)
            keys[t][i] *= 1.0f + 4.0f * (float)((t * 37) % 11); /* of many sizes */
        if (t % 29 == 28)
            for (uint32_t i = 0; i < 2 * D; i++)
                keys[t][i] *= 0.01f / (float)(t + 1); /* smaller than all before: takes a place */
    }
    for (uint32_t t = 0; t < TOKENS; t++) {
        assert_int_equal(kvb_cache_append(cache, 0, keys[t], values[t], NULL), KVB_OK);
        const uint32_t length = t + 1, left = length > WINDOW + SINKS ? (length - WINDOW - SINKS) / 8 * 8 : 0;
        if (left == 0 || length % 8 != 0)
            continue;
        expect_pools((const float(*)[2 * D])keys, left, SINKS, held);
        uint32_t count = 0;
        for (uint32_t p = SINKS; p < SINKS + left; p++) {
            float key[D], value[D];
            int exact;
            assert_int_equal(kvb_cache_read(cache, 0, 1, p, key, value, &exact, NULL), KVB_OK);
            assert_int_equal(exact, held[p]);
            assert_true(held[p] || !before[p]); /* once held, always */
            for (uint32_t i = 0; held[p] && i < D; i++) {
                assert_true(key[i] == kvb_half_to_float(kvb_half_from_float(keys[p][D + i])));
                assert_true(value[i] == kvb_half_to_float(kvb_half_from_float(values[p][D + i])));
            }
            count += held[p];
        }
        assert_true(count >= most && count <= 6);
        most = count;
        memcpy(before, held, sizeof before);
    }
    assert_int_equal(most, 6); /* both are full */
    /* Counted by hand: a key and a value of D half floats each for the 6 tokens, and their position and size, of both KV heads. */
    const kvb_cache_bytes bytes = kvb_cache_count_bytes(cache), predicted = kvb_cache_predict_bytes(book, &policy, TOKENS);
    assert_int_equal(bytes.anchors, 2 * 6 * (2 * D * 2));
    assert_int_equal(bytes.index, 2 * 6 * (4 + 4));
    assert_int_equal(predicted.anchors, bytes.anchors);
    assert_int_equal(predicted.index, bytes.index);
    kvb_cache_destroy(cache);
    kvb_book_close(book);
}

/* One more token in a cache, and what its queries get. */
static void step(kvb_cache *cache, const rt_rows *rows, uint32_t t, float *out)
{
    float q[4 * D], keys[2 * D], values[2 * D];
    rt_rows_take(rows->q, 4, rows->tokens, D, t, q);
    rt_rows_take(rows->k_pre, 2, rows->tokens, D, t, keys);
    rt_rows_take(rows->v, 2, rows->tokens, D, t, values);
    assert_int_equal(kvb_cache_append(cache, 0, keys, values, NULL), KVB_OK);
    assert_int_equal(kvb_cache_attend(cache, 0, q, out, NULL), KVB_OK);
}

/* A cache's pools know its own tokens alone: beside another cache of the same book, whose keys are smaller and would take all places,
 * the outputs are those of a cache by itself to the bit; and the next cache begins with empty pools. */
static void test_pools_are_a_caches_own(void **state)
{
    (void)state;
    const kvb_policy policy = {.window = 10, .sinks = 3};
    kvb_scaling pooled = along_tokens;
    pooled.pool = 2;
    pooled.spill = 4;
    const rt_shape shape = shape_of(pooled, along_channels, 4);
    kvb_book *book = rt_book_make(&shape, &policy);
    assert_non_null(book);
    rt_rows rows, small;
    assert_true(rt_rows_make(&rows, kvb_book_layer(book, 0), TOKENS, 55));
    assert_true(rt_rows_make(&small, kvb_book_layer(book, 0), TOKENS, 56));
    for (uint32_t i = 0; i < 2 * TOKENS * D; i++)
        small.k_pre[i] *= 0.01f;
    static float alone[TOKENS][4 * D], beside[4 * D], other[4 * D];
    kvb_cache_options options;
    kvb_cache *cache, *neighbour;
    kvb_cache_options_init(&options, book);
    assert_int_equal(kvb_cache_create(book, &options, &cache, NULL), KVB_OK);
    for (uint32_t t = 0; t < TOKENS; t++)
        step(cache, &rows, t, alone[t]);
    uint32_t held = 0;
    for (uint32_t p = 3; p < TOKENS - 18; p++) {
        float key[D], value[D];
        int exact;
        assert_int_equal(kvb_cache_read(cache, 0, 1, p, key, value, &exact, NULL), KVB_OK);
        held += (uint32_t)exact;
    }
    assert_int_equal(held, 6); /* all places of both pools are taken */
    kvb_cache_destroy(cache);
    assert_int_equal(kvb_cache_create(book, &options, &cache, NULL), KVB_OK);
    assert_int_equal(kvb_cache_create(book, &options, &neighbour, NULL), KVB_OK);
    bool differ = false;
    for (uint32_t t = 0; t < TOKENS; t++) {
        step(neighbour, &small, t, other);
        step(cache, &rows, t, beside);
        assert_memory_equal(beside, alone[t], sizeof beside);
        differ |= memcmp(other, beside, sizeof other) != 0;
    }
    assert_true(differ);
    kvb_cache_destroy(cache);
    kvb_cache_destroy(neighbour);
    rt_rows_free(&rows);
    rt_rows_free(&small);
    kvb_book_close(book);
}

/* In the codes of a group the mean of those that stay stands for each token taken out: levels lie as they would for these rows, found by the
 * formula. Keys and values of two tokens are smaller than the others: left in place they would widen every range, and a mean that counts them, or by another
 * count, would too. */
static void test_pool_means(void **state)
{
    (void)state;
    enum { GROUP = 8, SMALL = 2, OTHER = 5 };
    kvb_scaling pooled = along_tokens;
    pooled.pool = 2;
    pooled.spill = 4;
    rt_shape shape = shape_of(pooled, along_tokens, 256);
    shape.rope_style = KVB_ROPE_NONE;
    shape.rope_dims = 0;
    kvb_book *book = rt_book_make(&shape, &(kvb_policy){0});
    kvb_cache_options options;
    kvb_cache *cache;
    float rows[2][GROUP][2 * D], expected[2][GROUP][D];
    assert_non_null(book);
    kvb_cache_options_init(&options, book);
    assert_int_equal(kvb_cache_create(book, &options, &cache, NULL), KVB_OK);
    for (uint32_t t = 0; t < GROUP; t++) {
        for (uint32_t kind = 0; kind < 2; kind++) {
            rt_normal(rows[kind][t], 2 * D, 10 * t + kind);
            for (uint32_t i = 0; i < 2 * D; i++) {
                const float x = t == SMALL || t == OTHER ? 7.0f + 0.01f * rows[kind][t][i] : 10.0f + rows[kind][t][i];
                rows[kind][t][i] = kvb_half_to_float(kvb_half_from_float(x));
            }
        }
        assert_int_equal(kvb_cache_append(cache, 0, rows[0][t], rows[1][t], NULL), KVB_OK);
    }
    for (uint32_t kind = 0; kind < 2; kind++)
        for (uint32_t i = 0; i < D; i++) {
            float column[GROUP], out[GROUP];
            double sum = 0.0;
            for (uint32_t t = 0; t < GROUP; t++)
                sum += t == SMALL || t == OTHER ? 0.0 : (double)(column[t] = rows[kind][t][D + i]);
            column[SMALL] = column[OTHER] = (float)(sum / (GROUP - 2));
            plain_group(column, GROUP, 1, &along_tokens, 1.0f, 256, out);
            for (uint32_t t = 0; t < GROUP; t++)
                expected[kind][t][i] = t == SMALL || t == OTHER ? rows[kind][t][D + i] : out[t];
        }
    for (uint32_t t = 0; t < GROUP; t++) {
        float row[2][D];
        int exact;
        assert_int_equal(kvb_cache_read(cache, 0, 1, t, row[0], row[1], &exact, NULL), KVB_OK);
        assert_int_equal(exact, t == SMALL || t == OTHER);
        for (uint32_t kind = 0; kind < 2; kind++)
            for (uint32_t i = 0; i < D; i++)
                assert_float_equal(row[kind][i], expected[kind][t][i], 2e-6f);
    }
    kvb_cache_destroy(cache);
    kvb_book_close(book);
}

/* Fixed offsets and scales are held once for each head, as half floats. */
static void test_fixed_bytes(void **state)
{
    (void)state;
    const kvb_policy policy = {.window = 10};
    const rt_shape shape = shape_of(of_channels, with_outliers, 4);
    kvb_book *book = rt_book_make(&shape, &policy);
    assert_non_null(book);
    assert_int_equal(kvb_cache_predict_bytes(book, &policy, 100).codebooks, 2 * 2 * D * sizeof(uint16_t));
    /* Keys of 2 bits with 2 outliers, values with a pair of half floats for each 8 and 3 outliers. */
    assert_int_equal(kvb_cache_predict_bytes(book, &policy, 100).codes, 2 * 90 * ((D / 4 + 2 * 3) + (D / 4 + D / 8 * 4 + 3 * 3)));
    kvb_book_close(book);
}

/* Lists and clips are held once for each head, e4m3 scales a byte each for every token; with so many bits that nothing is lost by them, the
 * order of the channels is no one's business. */
static void test_lists(void **state)
{
    (void)state;
    const kvb_policy policy = {.window = 10};
    const rt_shape shape = shape_of(in_lists, in_lists, 4);
    kvb_book *book = rt_book_make(&shape, &policy);
    assert_non_null(book);
    assert_int_equal(kvb_cache_predict_bytes(book, &policy, 100).codebooks, 2 * 2 * (3 * sizeof(float) + (D + 3) * sizeof(uint16_t)));
    assert_int_equal(kvb_cache_predict_bytes(book, &policy, 100).codes, 2 * 2 * 90 * (D / 4 + 3 * 2));
    kvb_book_close(book);
    /* Channels of their own ranges: each comes back where it was. */
    kvb_scaling fine = in_lists;
    fine.clips = NULL;
    fine.store = KVB_STORE_HALF;
    const kvb_codebook c = {.channels = 1, .centroids = 256, .groups = D, .code_bits = 8, .stages = 1, .stage_centroids = 256, .scaling = &fine};
    float x[D], found[D];
    uint8_t packed[64];
    kvb_codec *codec;
    for (uint32_t i = 0; i < D; i++)
        x[i] = (float)i * (i % 2 == 0 ? 1.0f : -1.0f);
    assert_int_equal(kvb_codec_create(&c, D, true, &codec, NULL), KVB_OK);
    assert_int_equal(codec->packed_bytes, D + 3 * 4);
    kvb_codec_encode_packed(codec, x, D, 1, packed);
    kvb_codec_decode_packed(codec, packed, 0, 1, found);
    for (uint32_t i = 0; i < D; i++)
        assert_true(fabsf(found[i] - x[i]) < 0.1f);
    kvb_codec_destroy(codec);
}

static void run_with(const kvb_scaling *scaling, uint32_t window, float *out)
{
    const kvb_policy policy = {.window = window};
    rt_shape shape = shape_of(*scaling, *scaling, 4);
    shape.frame = KVB_FRAME_PRE;
    kvb_book *book = rt_book_make(&shape, &policy);
    kvb_cache_options options;
    kvb_cache *cache;
    rt_rows rows;
    assert_non_null(book);
    assert_true(rt_rows_make(&rows, kvb_book_layer(book, 0), 60, 77));
    kvb_cache_options_init(&options, book);
    assert_int_equal(kvb_cache_create(book, &options, &cache, NULL), KVB_OK);
    assert_int_equal(rt_run_cache(cache, kvb_book_layer(book, 0), 0, &rows, out, NULL), KVB_OK);
    kvb_cache_destroy(cache);
    rt_rows_free(&rows);
    kvb_book_close(book);
}

/* An order of channels is no more than that: what is exact stays so to the bit, and which list comes first, or which channel in it, is one. */
static void test_order(void **state)
{
    (void)state;
    /* Other lists; and those of in_lists in another order, the channels of each too. */
    static const uint16_t others[D] = {8, 7, 6, 13, 4, 3, 9, 2, 12, 10, 14, 15, 11, 5, 1, 0}, others_end[3] = {8, 11, 16};
    static const uint16_t turned[D] = {6, 13, 1, 15, 2, 9, 3, 4, 12, 7, 8, 14, 10, 0, 5, 11}, turned_end[3] = {8, 13, 16};
    static const float clips[3] = {1.0f, 0.5f, 0.75f};
    static float a[4 * 60 * D], b[4 * 60 * D];
    kvb_scaling other = in_lists;
    other.order = others;
    other.end = others_end;
    run_with(&in_lists, 60, a);
    run_with(&other, 60, b);
    assert_memory_equal(a, b, sizeof a);
    run_with(&in_lists, 5, a);
    run_with(&other, 5, b);
    assert_memory_not_equal(a, b, sizeof a);
    other.clips = clips;
    other.order = turned;
    other.end = turned_end;
    run_with(&other, 5, b);
    assert_memory_equal(a, b, sizeof a);
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
        cmocka_unit_test(test_formula), cmocka_unit_test(test_outliers), cmocka_unit_test(test_cache_equals_prefill), cmocka_unit_test(test_blocks_leave_together),
        cmocka_unit_test(test_pools), cmocka_unit_test(test_pools_are_a_caches_own),
        cmocka_unit_test(test_pool_means), cmocka_unit_test(test_fixed_bytes), cmocka_unit_test(test_lists), cmocka_unit_test(test_order), cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
