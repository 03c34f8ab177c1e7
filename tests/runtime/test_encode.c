/* Encoding and decoding with a codebook against the formula. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/half.h"
#include "format/base/nearest.h"
#include "format/book_write.h"
#include "kvbook/cache.h"
#include "tests/support/cm.h"
#include "tests/support/rt_book.h"

enum { ROWS = 70 };

static const kvb_policy no_policy = {0};

/* forward * (x - mean) in double. */
static void transform(const kvb_codebook *b, uint32_t dim, const float *x, float *y)
{
    for (uint32_t i = 0; i < dim; i++) {
        double sum = 0.0;
        for (uint32_t j = 0; j < dim; j++) {
            double centred = (double)x[j] - (b->mean != NULL ? (double)b->mean[j] : 0.0);
            sum += b->forward != NULL ? (double)b->forward[(size_t)i * dim + j] * centred : i == j ? centred : 0.0;
        }
        y[i] = (float)sum;
    }
}

/* One channel of one centroid: the rows that the code names, added in float from stage 0 on. */
static float centroid_value(const kvb_codebook *b, uint32_t group, uint32_t code, uint32_t channel)
{
    float sum = 0.0f;
    for (uint32_t m = 0; m < b->stages; m++, code /= b->stage_centroids) {
        size_t row = ((size_t)group * b->stages + m) * b->stage_centroids + code % b->stage_centroids;
        float value = kvb_half_to_float(b->table[row * b->channels + channel]);
        sum = m == 0 ? value : sum + value;
    }
    return sum;
}

static void centroids_of(const kvb_codebook *b, uint32_t group, float *table)
{
    for (uint32_t k = 0; k < b->centroids; k++)
        for (uint32_t i = 0; i < b->channels; i++)
            table[(size_t)k * b->channels + i] = centroid_value(b, group, k, i);
}

/* Codes name a centroid as near as the nearest; where they differ it is a tie within rounding. */
static void check_codes(const kvb_codebook *b, uint32_t dim, const float *x, const uint32_t *codes)
{
    float *y = malloc(dim * sizeof *y), *table = malloc((size_t)b->centroids * b->channels * sizeof *table);
    transform(b, dim, x, y);
    for (uint32_t s = 0; s < b->groups; s++) {
        uint32_t index;
        float nearest, chosen;
        centroids_of(b, s, table);
        kvb_nearest_reference(table, b->channels, b->centroids, y + s * b->channels, dim, 1, &index, &nearest);
        if (index == codes[s])
            continue;
        uint32_t zero;
        kvb_nearest_reference(table + (size_t)codes[s] * b->channels, b->channels, 1, y + s * b->channels, dim, 1,
                              &zero, &chosen);
        assert_true((double)chosen - (double)nearest < 1e-4 * (double)(1.0f + nearest));
    }
    free(y);
    free(table);
}

/* inverse * centroids + mean in double. */
static void check_decoded(const kvb_codebook *b, uint32_t dim, const uint32_t *codes, const float *x)
{
    for (uint32_t i = 0; i < dim; i++) {
        double sum = b->mean != NULL ? (double)b->mean[i] : 0.0;
        for (uint32_t j = 0; j < dim; j++) {
            uint32_t s = j / b->channels;
            double value = (double)centroid_value(b, s, codes[s], j % b->channels);
            sum += b->inverse != NULL ? (double)b->inverse[(size_t)i * dim + j] * value : i == j ? value : 0.0;
        }
        assert_true(fabs(sum - (double)x[i]) < 1e-4);
        if (b->mean == NULL && b->inverse == NULL) /* to the last bit: the order of the sum is part of the format */
            assert_true(sum == (double)x[i]);
    }
}

static void check_stages(uint32_t dim, uint32_t channels, uint32_t stages, uint32_t centroids, bool transforms)
{
    const rt_shape shape = {.layers = 1, .heads = 1, .kv_heads = 1, .head_dim = dim, .channels = channels,
                            .centroids = centroids, .transform = transforms, .seed = dim + centroids,
                            .stages = stages};
    kvb_book *book = rt_book_make(&shape, &no_policy);
    assert_non_null(book);
    const kvb_codebook *b = kvb_book_codebook(book, 0, 0, KVB_KEY);
    const size_t stride = dim + 3;
    float *x = malloc(ROWS * stride * sizeof *x), *back = malloc((size_t)ROWS * dim * sizeof *back);
    uint32_t *codes = malloc((size_t)ROWS * b->groups * sizeof *codes), *one = malloc(b->groups * sizeof *one);
    rt_normal(x, ROWS * stride, 99);
    assert_int_equal(kvb_encode(b, dim, x, stride, ROWS, codes, NULL), KVB_OK);
    assert_int_equal(kvb_decode(b, dim, codes, ROWS, back, NULL), KVB_OK);
    for (size_t i = 0; i < ROWS; i++) {
        check_codes(b, dim, x + i * stride, codes + i * b->groups);
        check_decoded(b, dim, codes + i * b->groups, back + i * dim);
        /* A row's codes do not depend on its neighbours. */
        assert_int_equal(kvb_encode(b, dim, x + i * stride, dim, 1, one, NULL), KVB_OK);
        assert_memory_equal(one, codes + i * b->groups, b->groups * sizeof *one);
    }
    free(x);
    free(back);
    free(codes);
    free(one);
    kvb_book_close(book);
}

static void check_shape(uint32_t dim, uint32_t channels, uint32_t centroids, bool transforms)
{
    check_stages(dim, channels, 0, centroids, transforms);
}

static void additive_codebooks(void **state)
{
    (void)state;
    check_stages(64, 8, 2, 16, false);
    check_stages(20, 5, 3, 4, false);
    check_stages(6, 2, 8, 2, false);
    check_stages(8, 8, 4, 16, false);
    check_stages(32, 16, 2, 16, true);
    check_stages(12, 3, 6, 4, true);
}

/* Sums that float cannot hold: (1 + e) + e is 1 where 1 + (e + e) is not. The order is part of the format. */
static void order_of_stages(void **state)
{
    (void)state;
    const float e = 0x1p-24f, table[2][6] = {{1, -1, 0, e, 0, e}, {0, e, 0, e, 1, -1}};
    const kvb_layer layer = {.heads = 1, .kv_heads = 1, .head_dim = 1, .attention_scale = 1.0};
    kvb_book_part part[2];
    for (int kind = 0; kind < 2; kind++)
        part[kind] = (kvb_book_part){.channels = 1, .centroids = 2, .stages = 3, .table = table[kind]};
    const kvb_book_spec spec = {.layers = 1, .layer = &layer, .part = part, .part_heads = 1, .meta_json = "{}"};
    uint8_t *image;
    size_t size;
    kvb_book *book;
    assert_int_equal(kvb_book_build(&spec, &image, &size, NULL), KVB_OK);
    assert_int_equal(kvb_book_open_memory(image, size, "stages", &book, NULL), KVB_OK);
    float x[2];
    const uint32_t all = 6, ends = 3; /* rows 0, 1, 1 and 1, 1, 0 */
    assert_int_equal(kvb_decode(kvb_book_codebook(book, 0, 0, KVB_KEY), 1, &all, 1, x, NULL), KVB_OK);
    assert_int_equal(kvb_decode(kvb_book_codebook(book, 0, 0, KVB_VALUE), 1, &ends, 1, x + 1, NULL), KVB_OK);
    assert_true(x[0] == 1.0f);
    assert_true(x[1] == 1.0f + 0x1p-23f);
    kvb_book_close(book);
    free(image);
}

static void plain_codebooks(void **state)
{
    (void)state;
    check_shape(64, 8, 256, false);
    check_shape(64, 32, 64, false);
    check_shape(6, 2, 2, false);
    check_shape(6, 1, 4, false);
    check_shape(1024, 256, 4, false);
    check_shape(80, 16, 16, false);
}

static void transformed_codebooks(void **state)
{
    (void)state;
    check_shape(64, 4, 16, true);
    check_shape(20, 5, 32, true);
    check_shape(128, 8, 256, true);
}

static void bad_arguments(void **state)
{
    (void)state;
    const rt_shape shape = {.layers = 1, .heads = 1, .kv_heads = 1, .head_dim = 8, .channels = 4, .centroids = 4};
    kvb_book *book = rt_book_make(&shape, &no_policy);
    assert_non_null(book);
    const kvb_codebook *b = kvb_book_codebook(book, 0, 0, KVB_VALUE);
    float x[16] = {0};
    uint32_t codes[4] = {0};
    kvb_error err = {0};
    assert_int_equal(kvb_encode(NULL, 8, x, 8, 2, codes, &err), KVB_E_USAGE);
    assert_int_equal(kvb_encode(b, 16, x, 16, 1, codes, &err), KVB_E_USAGE);
    assert_string_equal(err.where, "head_dim");
    assert_int_equal(kvb_encode(b, 8, x, 7, 2, codes, &err), KVB_E_USAGE);
    assert_int_equal(kvb_encode(b, 8, NULL, 8, 2, codes, &err), KVB_E_USAGE);
    assert_int_equal(kvb_encode(b, 8, x, 8, 2, NULL, &err), KVB_E_USAGE);
    assert_int_equal(kvb_encode(b, 8, NULL, 8, 0, NULL, &err), KVB_OK);
    x[11] = NAN;
    assert_int_equal(kvb_encode(b, 8, x, 8, 2, codes, &err), KVB_E_CHECK);
    assert_non_null(strstr(err.message, "row 1, channel 3"));
    codes[3] = 4;
    assert_int_equal(kvb_decode(b, 8, codes, 2, x, &err), KVB_E_USAGE);
    assert_non_null(strstr(err.message, "row 1, group 1 is code 4"));
    assert_int_equal(kvb_decode(b, 8, codes, 1, NULL, &err), KVB_E_USAGE);
    assert_int_equal(kvb_decode(NULL, 8, codes, 1, x, &err), KVB_E_USAGE);
    kvb_book_close(book);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_codebooks),
        cmocka_unit_test(transformed_codebooks),
        cmocka_unit_test(additive_codebooks),
        cmocka_unit_test(order_of_stages),
        cmocka_unit_test(bad_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
