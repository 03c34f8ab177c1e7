/* Numbers coded one by one by what calibration found: fixed scales of channels, trained levels, in made-up captures. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "calib/train.h"
#include "format/base/half.h"
#include "runtime/codec.h"
#include "tests/support/cm.h"
#include "tests/support/synth.h"
#include "tests/support/train_recipe.h"

enum { ROWS = 1500, D = 8, HEADS = 2 };

static const synth_capture usual = {.layers = 1, .heads = 4, .kv_heads = HEADS, .dim = D, .rows = ROWS, .key = 21};

#define SCALED(levels, weights, bits)                                                                                     \
    "{\"schema\":1,\"name\":\"t\",\"keys\":{\"weights\":\"" weights "\",\"shape\":\"1x" bits "\",\"scale\":{\"axis\":\"channel\","   \
    "\"form\":\"fixed\",\"levels\":\"" levels "\",\"outliers\":0.1}},\"values\":{\"weights\":\"" weights "\",\"shape\":\"1x" bits "\"," \
    "\"scale\":{\"group\":0,\"form\":\"range\",\"levels\":\"" levels "\",\"outliers\":0.1}}}"

static kvb_book *book_of(const kvb_capture *c, const char *json)
{
    kvb_book *book;
    kvb_error err = {0};
    if (train_recipe(c, json, 0, &book, NULL, &err) != KVB_OK)
        fail_msg("%s: %s", err.where, err.message);
    return book;
}

/* What the book makes of all rows of a kind: sum of w |x - x'|^2, w the gradient's square where `fisher`. */
static double error_of(const kvb_book *book, const kvb_capture *c, kvb_kind kind, bool fisher)
{
    const uint16_t *half = kind == KVB_KEY ? c->layer[0].keys : c->layer[0].values;
    static float x[ROWS * D], y[ROWS * D];
    double sum = 0.0;
    for (uint32_t head = 0; head < HEADS; head++) {
        kvb_codec *codec;
        assert_int_equal(kvb_codec_create(kvb_book_codebook(book, 0, head, kind), D, true, &codec, NULL), KVB_OK);
        uint8_t *packed = malloc(kvb_codec_bytes(codec, ROWS));
        kvb_half_to_floats(x, half + head * ROWS * D, ROWS * D);
        kvb_codec_encode_packed(codec, x, D, ROWS, packed);
        kvb_codec_decode_packed(codec, packed, 0, ROWS, y);
        for (size_t i = 0; i < ROWS * D; i++) {
            const double g = (double)kvb_half_to_float(c->layer[0].gradient[kind][head * ROWS * D + i]);
            sum += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]) * (fisher ? g * g : 1.0);
        }
        free(packed);
        kvb_codec_destroy(codec);
    }
    return sum;
}

static void test_levels(void **state)
{
    (void)state;
    kvb_capture_store *store;
    assert_int_equal(synth_capture_make(&usual, NULL, &store), 0);
    const kvb_capture *c = kvb_capture_view(store);
    /* Numbers above 0 matter more. */
    for (size_t i = 0; i < 2 * HEADS * ROWS * D; i++) {
        const uint16_t *x = (i % 2 == 0 ? c->layer[0].keys : c->layer[0].values) + i / 2;
        ((uint16_t *)(uintptr_t)c->layer[0].gradient[i % 2])[i / 2] = *x < 0x8000 ? 0x4400 : 0x2c00; /* 4 or 1/16 */
    }
    kvb_book *even = book_of(c, SCALED("even", "none", "4")), *trained = book_of(c, SCALED("trained", "none", "4"));
    kvb_book *fisher = book_of(c, SCALED("trained", "fisher", "4"));
    for (int kind = 0; kind < 2; kind++) {
        const kvb_codebook *b = kvb_book_codebook(trained, 0, 1, (kvb_kind)kind);
        assert_int_equal(b->scaling->outliers, 1); /* 0.1 of 8, rounded up */
        assert_true(kvb_half_to_float(b->table[0]) > -1.0f && kvb_half_to_float(b->table[3]) < 1.0f);
        assert_memory_equal(b->table, kvb_book_codebook(trained, 0, 0, (kvb_kind)kind)->table, 8); /* one for the layer */
        assert_null(kvb_book_codebook(even, 0, 0, (kvb_kind)kind)->table);
        assert_true(error_of(trained, c, (kvb_kind)kind, false) < 0.9 * error_of(even, c, (kvb_kind)kind, false));
        assert_true(error_of(fisher, c, (kvb_kind)kind, true) < 0.9 * error_of(trained, c, (kvb_kind)kind, true));
    }
    kvb_book_close(even);
    kvb_book_close(trained);
    kvb_book_close(fisher);
    kvb_capture_close(store);
}

/* Offset and scale of a channel leave the asked share of the rows beyond, on both sides; sinks and left-out rows do not count. */
static void test_fixed(void **state)
{
    (void)state;
    static const char sinks[] = "{\"schema\":1,\"name\":\"t\",\"keys\":{\"shape\":\"1x4\",\"scale\":{\"axis\":\"channel\",\"form\":\"fixed\","
                                "\"outliers\":0.1}},\"values\":{\"shape\":\"1x4\",\"scale\":{}},\"cache\":{\"sinks\":2}}";
    kvb_capture_store *store;
    assert_int_equal(synth_capture_make(&usual, NULL, &store), 0);
    const kvb_capture *c = kvb_capture_view(store);
    for (size_t i = 0; i < ROWS; i++)
        for (size_t d = 0; d < D; d++)
            if (c->row_position[i] < 2)
                ((uint16_t *)(uintptr_t)c->layer[0].keys)[i * D + d] = 0x7000; /* 8192 */
    kvb_book *book = book_of(c, sinks);
    for (uint32_t head = 0; head < HEADS; head++) {
        const kvb_scaling *s = kvb_book_codebook(book, 0, head, KVB_KEY)->scaling;
        for (uint32_t d = 0; d < D; d++) {
            const float offset = kvb_half_to_float(s->fixed[d]), scale = kvb_half_to_float(s->fixed[D + d]);
            uint32_t below = 0, above = 0, rows = 0;
            for (size_t i = 0; i < ROWS; i++) {
                const float x = kvb_half_to_float(c->layer[0].keys[(head * ROWS + i) * D + d]);
                if (c->row_position[i] < 2)
                    continue;
                rows++;
                below += x < offset - scale;
                above += x > offset + scale;
            }
            assert_true(fabs((double)below / rows - 0.05) < 0.002 && fabs((double)above / rows - 0.05) < 0.002);
        }
    }
    kvb_book_close(book);
    kvb_capture_close(store);
}

static void test_refused(void **state)
{
    (void)state;
    kvb_capture_store *store;
    kvb_book *book;
    kvb_error err = {0};
    assert_int_equal(synth_capture_make(&usual, NULL, &store), 0);
    kvb_capture c = *kvb_capture_view(store);
    kvb_capture_layer layer = c.layer[0];
    c.layer = &layer;
    layer.gradient[KVB_KEY] = NULL;
    assert_int_equal(train_recipe(&c, SCALED("trained", "fisher", "4"), 0, &book, NULL, &err), KVB_E_MISMATCH);
    assert_non_null(strstr(err.message, "gradient_k"));
    kvb_capture_close(store);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_levels), cmocka_unit_test(test_fixed), cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests_name("levels", tests, NULL, NULL);
}
