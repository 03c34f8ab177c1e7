/* Training on made-up captures: the book's shape, determinism, what weights buy, frames and means, refusals. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calib/train.h"
#include "format/base/checked.h"
#include "format/base/half.h"
#include "format/base/json.h"
#include "format/base/nearest.h"
#include "format/base/rope.h"
#include "format/book_write.h"
#include "kvbook/cache.h"
#include "tests/support/cm.h"
#include "tests/support/rt_book.h"
#include "tests/support/synth.h"

static const synth_capture usual = {.layers = 2, .heads = 4, .kv_heads = 2, .dim = 8, .rows = 1500, .key = 21};

typedef struct trained {
    uint8_t *image;
    size_t size;
    kvb_train_report report;
    kvb_book *book;
} trained;

static kvb_recipe recipe_of(const char *json)
{
    kvb_recipe r;
    kvb_error err = {0};
    if (kvb_recipe_parse(json, strlen(json), "test.json", &r, &err) != KVB_OK)
        fail_msg("%s: %s", err.where, err.message);
    return r;
}

#define UNWEIGHTED "{\"schema\":1,\"name\":\"plain\",\"keys\":{\"shape\":\"4x16\"},\"values\":{\"shape\":\"2x8\"}}"
#define WEIGHTED                                                                                  \
    "{\"schema\":1,\"name\":\"weighted\",\"keys\":{\"shape\":\"4x16\",\"weights\":\"exact-k\"}," \
    "\"values\":{\"shape\":\"2x8\",\"weights\":\"exact-v\"},\"cache\":{\"anchors\":0.02,\"window\":9}}"

static trained train(const kvb_capture *c, const char *json, uint32_t threads, uint32_t holdout)
{
    trained t = {0};
    kvb_error err = {0};
    kvb_recipe r = recipe_of(json);
    kvb_train_options o;
    kvb_train_options_init(&o);
    o.seed = 4;
    o.threads = threads;
    o.holdout_every = holdout;
    if (kvb_train_book(c, &r, &o, &t.image, &t.size, &t.report, &err) != KVB_OK)
        fail_msg("%s: %s", err.where, err.message);
    assert_int_equal(kvb_book_open_memory(t.image, t.size, "book", &t.book, &err), KVB_OK);
    kvb_recipe_free(&r);
    return t;
}

static void free_trained(trained *t)
{
    kvb_book_close(t->book);
    free(t->image);
}

static void test_shape(void **state)
{
    (void)state;
    kvb_capture_store *store;
    assert_int_equal(synth_capture_make(&usual, NULL, &store), 0);
    trained t = train(kvb_capture_view(store), WEIGHTED, 1, 0);
    assert_int_equal(kvb_book_layers(t.book), 2);
    for (uint32_t l = 0; l < 2; l++)
        for (uint32_t h = 0; h < 2; h++) {
            const kvb_codebook *k = kvb_book_codebook(t.book, l, h, KVB_KEY);
            const kvb_codebook *v = kvb_book_codebook(t.book, l, h, KVB_VALUE);
            assert_int_equal(k->groups, 2);
            assert_int_equal(k->centroids, 16);
            assert_int_equal(v->groups, 4);
            assert_int_equal(v->code_bits, 3);
            assert_null(k->mean);
            assert_null(k->forward);
            const kvb_quality *q = kvb_book_quality(t.book, l, h, KVB_VALUE);
            assert_true(q[3].train_error > 0.0f && q[3].train_error < 1.0f && isnan(q[3].heldout_error));
            assert_true(q[3].usage > 0.9f && q[3].entropy > 1.0f && q[3].entropy <= 3.0f);
        }
    kvb_policy p = kvb_book_policy(t.book);
    assert_true(p.anchor_fraction == 0.02 && p.window == 9 && p.sinks == 0);
    assert_int_equal(kvb_book_layer(t.book, 0)->frame, KVB_FRAME_PRE);
    assert_true(t.report.key_error > 0.0 && t.report.key_error < 1.0 && isnan(t.report.key_heldout_error));
    assert_true(fabs(t.report.points_per_centroid - 1500.0 / 16) < 1e-9);
    free_trained(&t);
    kvb_capture_close(store);
}

/* Mean squared error of a head's rows through a codebook, without transforms. */
static double coding_error(const kvb_codebook *c, const uint16_t *half, size_t rows, uint32_t dim)
{
    double sum = 0.0;
    float *table = malloc((size_t)c->centroids * dim * sizeof *table), *x = malloc(dim * sizeof *x);
    assert_true(table != NULL && x != NULL);
    kvb_half_to_floats(table, c->table, (size_t)c->centroids * dim);
    for (size_t i = 0; i < rows; i++) {
        kvb_half_to_floats(x, half + i * dim, dim);
        for (uint32_t s = 0; s < c->groups; s++) {
            double best = INFINITY;
            for (uint32_t k = 0; k < c->centroids; k++) {
                double distance = 0.0;
                for (uint32_t j = 0; j < c->channels; j++)
                    distance += pow((double)x[s * c->channels + j] -
                                        (double)table[((size_t)s * c->centroids + k) * c->channels + j], 2);
                best = fmin(best, distance);
            }
            sum += best;
        }
    }
    free(table);
    free(x);
    return sum / (double)rows / dim;
}

#define FINE                                                                                                        \
    "{\"schema\":1,\"name\":\"fine\",\"keys\":{\"shape\":\"4x16\",\"fine\":\"1x16\"},\"values\":{\"shape\":\"2x8\",\"fine\":\"2x64\"}," \
    "\"cache\":{\"exact\":\"fine\",\"window\":9}}"

/* A second batch of the same points: the coarse codebooks stay what they are, the fine ones err far less. */
static void test_fine(void **state)
{
    (void)state;
    kvb_capture_store *store;
    assert_int_equal(synth_capture_make(&usual, NULL, &store), 0);
    const kvb_capture *c = kvb_capture_view(store);
    trained plain = train(c, UNWEIGHTED, 1, 4), one = train(c, FINE, 1, 4), two = train(c, FINE, 2, 4);
    assert_int_equal(one.size, two.size);
    assert_memory_equal(one.image, two.image, one.size);
    assert_int_equal(kvb_book_policy(one.book).exact, KVB_EXACT_FINE);
    assert_null(kvb_book_fine(plain.book, 0, 0, KVB_KEY));
    for (uint32_t l = 0; l < 2; l++)
        for (uint32_t i = 0; i < 4; i++) {
            const kvb_kind kind = (kvb_kind)(i % 2);
            const kvb_codebook *coarse = kvb_book_codebook(one.book, l, i / 2, kind);
            const kvb_codebook *same = kvb_book_codebook(plain.book, l, i / 2, kind);
            const kvb_codebook *fine = kvb_book_fine(one.book, l, i / 2, kind);
            assert_memory_equal(coarse->table, same->table, (size_t)8 * coarse->centroids * sizeof *coarse->table);
            assert_int_equal(fine->groups, kind == KVB_KEY ? 8 : 4);
            assert_int_equal(fine->code_bits, kind == KVB_KEY ? 4 : 6);
            const uint16_t *rows = (kind == KVB_KEY ? c->layer[l].keys : c->layer[l].values) + (i / 2) * c->rows * 8;
            assert_true(coding_error(fine, rows, c->rows, 8) < 0.5 * coding_error(coarse, rows, c->rows, 8));
        }
    assert_true(isnan(plain.report.key_fine_error) && one.report.key_error == plain.report.key_error);
    assert_true(one.report.key_fine_error < 0.5 * one.report.key_error);
    assert_true(one.report.value_fine_error < 0.5 * one.report.value_error);
    assert_non_null(strstr(kvb_book_meta(one.book, NULL), "\"key_fine_error\""));
    assert_null(strstr(kvb_book_meta(plain.book, NULL), "fine"));
    free_trained(&plain);
    free_trained(&one);
    free_trained(&two);
    kvb_capture_close(store);
}

static int never_back(void *user, const char *step, uint64_t done, uint64_t total)
{
    uint64_t *last = user;
    (void)step;
    assert_true(done >= *last && done <= total);
    *last = done;
    return 0;
}

/* Layers side by side: the same bytes, however many at a time, and one voice that says how far all is. */
static void test_lanes(void **state)
{
    (void)state;
    const synth_capture deep = {.layers = 5, .heads = 4, .kv_heads = 2, .dim = 8, .rows = 700, .key = 3};
    kvb_capture_store *store;
    kvb_recipe r = recipe_of(WEIGHTED);
    uint8_t *first = NULL, *image;
    size_t first_size = 0, size;
    assert_int_equal(synth_capture_make(&deep, NULL, &store), 0);
    for (uint32_t lanes = 0; lanes <= 7; lanes += lanes < 4 ? 1 : 3) {
        kvb_train_options o;
        kvb_error err = {0};
        uint64_t last = 0;
        kvb_train_options_init(&o);
        o.lanes = lanes;
        o.threads = 3;
        o.progress = never_back;
        o.progress_user = &last;
        if (kvb_train_book(kvb_capture_view(store), &r, &o, &image, &size, NULL, &err) != KVB_OK)
            fail_msg("%s: %s", err.where, err.message);
        assert_int_equal(last, 5 * 2 * (2 + 4));
        if (first == NULL) {
            first = image;
            first_size = size;
            continue;
        }
        assert_int_equal(size, first_size);
        assert_memory_equal(image, first, size);
        free(image);
    }
    free(first);
    kvb_recipe_free(&r);
    kvb_capture_close(store);
}

static void test_threads(void **state)
{
    (void)state;
    kvb_capture_store *store;
    static const char json[] = "{\"schema\":1,\"name\":\"x\",\"keys\":{\"shape\":\"4x16\",\"weights\":\"exact-k\","
                               "\"frame\":\"block:16\",\"mean\":true},\"values\":{\"shape\":\"2x8\",\"mean\":true}}";
    assert_int_equal(synth_capture_make(&usual, NULL, &store), 0);
    trained one = train(kvb_capture_view(store), json, 1, 4);
    for (uint32_t threads = 2; threads <= 5; threads += 3) {
        trained more = train(kvb_capture_view(store), json, threads, 4);
        assert_int_equal(one.size, more.size);
        assert_memory_equal(one.image, more.image, one.size);
        free_trained(&more);
    }
    free_trained(&one);
    kvb_capture_close(store);
}

/* Error of one head's keys or values coded by a book, weighted. Rows as the book's frame and mean want them. */
static double coded_error(const kvb_codebook *b, const float *x, const float *weight, uint32_t dim, size_t rows)
{
    double sum = 0.0, total = 0.0;
    float *y = kvb_alloc_array(rows * dim, sizeof *y), *table = kvb_alloc_array((size_t)b->centroids * dim, sizeof *y);
    float *distances = kvb_alloc_array(rows, sizeof *distances);
    uint32_t *index = kvb_alloc_array(rows, sizeof *index);
    kvb_half_to_floats(table, b->table, (size_t)b->centroids * dim);
    for (size_t i = 0; i < rows * dim; i++)
        y[i] = x[i] - (b->mean != NULL ? b->mean[i % dim] : 0.0f);
    for (uint32_t s = 0; s < b->groups; s++) {
        kvb_nearest_reference(table + (size_t)s * b->centroids * b->channels, b->channels, b->centroids,
                              y + (size_t)s * b->channels, dim, rows, index, distances);
        for (size_t i = 0; i < rows; i++)
            sum += (double)weight[i] * (double)distances[i];
    }
    for (size_t i = 0; i < rows; i++)
        total += (double)weight[i];
    free(y);
    free(table);
    free(index);
    free(distances);
    return sum / (total * dim);
}

static double key_error(const kvb_capture *c, const trained *t, uint32_t head)
{
    size_t n = c->rows, dim = usual.dim;
    float *x = kvb_alloc_array(n * dim, sizeof *x);
    kvb_half_to_floats(x, c->layer[0].keys + head * n * dim, n * dim);
    double error = coded_error(kvb_book_codebook(t->book, 0, head, KVB_KEY), x, c->layer[0].weight_k + head * n,
                               usual.dim, n);
    free(x);
    return error;
}

static void test_weighted_beats_unweighted(void **state)
{
    (void)state;
    kvb_capture_store *store;
    assert_int_equal(synth_capture_make(&usual, NULL, &store), 0);
    trained plain = train(kvb_capture_view(store), UNWEIGHTED, 2, 0);
    trained weighted = train(kvb_capture_view(store), WEIGHTED, 2, 0);
    for (uint32_t head = 0; head < 2; head++)
        assert_true(key_error(kvb_capture_view(store), &weighted, head) <
                    key_error(kvb_capture_view(store), &plain, head));
    free_trained(&plain);
    free_trained(&weighted);
    kvb_capture_close(store);
}

#define ADDITIVE                                                                                       \
    "{\"schema\":1,\"name\":\"sums\",\"keys\":{\"shape\":\"add:4x4+4\",\"weights\":\"exact-k\"}," \
    "\"values\":{\"shape\":\"2x8\",\"weights\":\"exact-v\"}}"

/* Keys as sums of 2 stages of 4 beside plain values: between plain books of 4 and of 16, and what the records promise. */
static void test_additive(void **state)
{
    (void)state;
    static const char few[] = "{\"schema\":1,\"name\":\"few\",\"keys\":{\"shape\":\"4x4\",\"weights\":\"exact-k\"},"
                              "\"values\":{\"shape\":\"2x8\",\"weights\":\"exact-v\"}}";
    kvb_capture_store *store;
    assert_int_equal(synth_capture_make(&usual, NULL, &store), 0);
    const kvb_capture *c = kvb_capture_view(store);
    trained coarse = train(c, few, 2, 0), fine = train(c, WEIGHTED, 2, 0), sums = train(c, ADDITIVE, 2, 0);
    trained one = train(c, ADDITIVE, 1, 0);
    assert_int_equal(one.size, sums.size);
    assert_memory_equal(one.image, sums.image, one.size);
    const kvb_codebook *k = kvb_book_codebook(sums.book, 1, 1, KVB_KEY), *v = kvb_book_codebook(sums.book, 1, 1, KVB_VALUE);
    assert_true(k->stages == 2 && k->stage_centroids == 4 && k->centroids == 16 && k->code_bits == 4 && k->groups == 2);
    assert_true(v->stages == 1 && v->centroids == 8);
    assert_memory_equal(v->table, kvb_book_codebook(fine.book, 1, 1, KVB_VALUE)->table, 4 * 8 * 2 * sizeof *v->table);
    assert_true(sums.report.key_error < 0.5 * coarse.report.key_error);
    assert_true(sums.report.key_error > fine.report.key_error);
    assert_true(sums.report.value_error == fine.report.value_error);
    for (uint32_t s = 0; s < 2; s++) {
        const kvb_quality *q = kvb_book_quality(sums.book, 1, 1, KVB_KEY) + s;
        assert_true(q->usage == 1.0f && q->entropy > 2.0f && q->entropy <= 4.0f);
    }
    assert_non_null(strstr(kvb_book_meta(sums.book, NULL), "\"shape\":\"add:4x4+4\""));
    assert_non_null(strstr(kvb_book_meta(sums.book, NULL), "\"bits_nominal\":1.25"));
    free_trained(&coarse);
    free_trained(&fine);
    free_trained(&sums);
    free_trained(&one);
    kvb_capture_close(store);
}

/* The error that codes of the book's own encoder leave is the one on record. */
static void test_additive_codes(void **state)
{
    (void)state;
    kvb_capture_store *store;
    assert_int_equal(synth_capture_make(&usual, NULL, &store), 0);
    const kvb_capture *c = kvb_capture_view(store);
    const size_t n = c->rows, dim = usual.dim;
    trained t = train(c, ADDITIVE, 2, 0);
    const kvb_codebook *b = kvb_book_codebook(t.book, 0, 0, KVB_KEY);
    float *x = kvb_alloc_array(n * dim, sizeof *x), *y = kvb_alloc_array(n * dim, sizeof *y);
    uint32_t *codes = kvb_alloc_array(n * b->groups, sizeof *codes);
    kvb_half_to_floats(x, c->layer[0].keys, n * dim);
    assert_int_equal(kvb_encode(b, usual.dim, x, dim, n, codes, NULL), KVB_OK);
    assert_int_equal(kvb_decode(b, usual.dim, codes, n, y, NULL), KVB_OK);
    for (uint32_t s = 0; s < b->groups; s++) {
        double error = 0.0, total = 0.0, mean[8] = {0}, variance = 0.0;
        for (size_t i = 0; i < n; i++) {
            double w = (double)c->layer[0].weight_k[i];
            total += w;
            for (uint32_t d = 4 * s; d < 4 * s + 4; d++) {
                error += w * pow((double)x[i * dim + d] - (double)y[i * dim + d], 2);
                mean[d] += w * (double)x[i * dim + d];
                variance += w * pow((double)x[i * dim + d], 2);
            }
        }
        for (uint32_t d = 4 * s; d < 4 * s + 4; d++)
            variance -= mean[d] * mean[d] / total;
        double promised = (double)kvb_book_quality(t.book, 0, 0, KVB_KEY)[s].train_error;
        assert_true(fabs(error / variance - promised) < 2e-3 * promised);
    }
    free(x);
    free(y);
    free(codes);
    free_trained(&t);
    kvb_capture_close(store);
}

/* What the quality records promise: the mean squared error per channel of the keys of layer 0, head 0. */
static double promised_error(const trained *t, const float *x, uint32_t dim, size_t rows)
{
    const kvb_codebook *b = kvb_book_codebook(t->book, 0, 0, KVB_KEY);
    const kvb_quality *quality = kvb_book_quality(t->book, 0, 0, KVB_KEY);
    double sum = 0.0;
    for (uint32_t c = 0; c < dim; c++) {
        double mean = 0.0, square = 0.0;
        for (size_t i = 0; i < rows; i++) {
            mean += (double)x[i * dim + c] / (double)rows;
            square += (double)x[i * dim + c] * (double)x[i * dim + c] / (double)rows;
        }
        sum += (square - mean * mean) * (double)quality[c / b->channels].train_error;
    }
    return sum / dim;
}

/* Keys turned as the frame says are coded as well as the book's quality records say. */
static void check_frame(const kvb_capture *c, const char *json, kvb_rope_frame frame, uint32_t block)
{
    size_t n = c->rows, dim = usual.dim;
    float *x = kvb_alloc_array(n * dim, sizeof *x), *ones = kvb_alloc_array(n, sizeof *ones);
    kvb_rope_table rope;
    assert_int_equal(kvb_rope_table_create(&rope, &c->geometry[0], 0, 512, NULL), KVB_OK);
    trained t = train(c, json, 2, 0);
    assert_int_equal(kvb_book_layer(t.book, 0)->frame, frame);
    assert_int_equal(kvb_book_layer(t.book, 0)->rope_block, block);
    kvb_half_to_floats(x, c->layer[0].keys, n * dim);
    for (size_t i = 0; i < n; i++) {
        uint32_t p = c->row_position[i];
        ones[i] = 1.0f;
        kvb_rope_rotate(&rope, frame == KVB_FRAME_POST ? p : p % block, usual.dim, x + i * dim, x + i * dim);
    }
    double got = coded_error(kvb_book_codebook(t.book, 0, 0, KVB_KEY), x, ones, usual.dim, n);
    double promised = promised_error(&t, x, usual.dim, n);
    assert_true(fabs(got - promised) < 0.01 * promised);
    free_trained(&t);
    kvb_rope_table_free(&rope);
    free(x);
    free(ones);
}

static void test_bytes(void **state)
{
    (void)state;
    kvb_capture_store *store;
    assert_int_equal(synth_capture_make(&usual, NULL, &store), 0);
    const kvb_capture *c = kvb_capture_view(store);
    const char *const shapes[] = {"4x16", "4x32", "add:4x16+16"};
    for (int i = 0; i < 3; i++) {
        char half[200], bytes[240];
        snprintf(half, sizeof half, "{\"schema\":1,\"name\":\"x\",\"keys\":{\"shape\":\"%s\"},\"values\":{\"shape\":\"%s\"}}",
                 shapes[i], shapes[i]);
        snprintf(bytes, sizeof bytes, "{\"centroids\":\"int8\",%s", half + 1);
        trained a = train(c, half, 1, 0), b = train(c, bytes, 1, 0);
        assert_false(rt_book_on_grid(a.book));
        assert_true(rt_book_on_grid(b.book));
        /* The same centroids, but for the rounding. */
        const kvb_codebook *x = kvb_book_codebook(a.book, 1, 1, KVB_VALUE), *y = kvb_book_codebook(b.book, 1, 1, KVB_VALUE);
        float most = 0.0f, apart = 0.0f;
        for (uint32_t k = 0; k < x->groups * x->stages * x->stage_centroids * x->channels; k++) {
            most = fmaxf(most, fabsf(kvb_half_to_float(x->table[k])));
            apart = fmaxf(apart, fabsf(kvb_half_to_float(x->table[k]) - kvb_half_to_float(y->table[k])));
        }
        assert_true(apart > 0.0f && apart <= 0.51f * most / (x->stages == 1 && x->stage_centroids > 16 ? 127.0f : 63.0f));
        free_trained(&a);
        free_trained(&b);
    }
    kvb_capture_close(store);
}

static void test_frames(void **state)
{
    (void)state;
    kvb_capture_store *store;
    assert_int_equal(synth_capture_make(&usual, NULL, &store), 0);
    check_frame(kvb_capture_view(store),
                "{\"schema\":1,\"name\":\"x\",\"keys\":{\"shape\":\"4x16\",\"frame\":\"post\"},"
                "\"values\":{\"shape\":\"2x8\"}}", KVB_FRAME_POST, 0);
    check_frame(kvb_capture_view(store),
                "{\"schema\":1,\"name\":\"x\",\"keys\":{\"shape\":\"4x16\",\"frame\":\"block:7\"},"
                "\"values\":{\"shape\":\"2x8\"}}", KVB_FRAME_BLOCK, 7);
    kvb_capture_close(store);
}

static void test_mean(void **state)
{
    (void)state;
    static const char json[] = "{\"schema\":1,\"name\":\"x\",\"keys\":{\"shape\":\"4x16\",\"weights\":\"exact-k\",\"mean\":true},"
                               "\"values\":{\"shape\":\"2x8\"}}";
    kvb_capture_store *store;
    assert_int_equal(synth_capture_make(&usual, NULL, &store), 0);
    const kvb_capture *c = kvb_capture_view(store);
    trained t = train(c, json, 2, 0);
    for (uint32_t head = 0; head < 2; head++)
        for (uint32_t d = 0; d < usual.dim; d++) {
            double sum = 0.0, total = 0.0;
            for (size_t i = 0; i < c->rows; i++) {
                double w = (double)c->layer[0].weight_k[head * c->rows + i];
                sum += w * (double)kvb_half_to_float(c->layer[0].keys[(head * c->rows + i) * usual.dim + d]);
                total += w;
            }
            float got = kvb_book_codebook(t.book, 0, head, KVB_KEY)->mean[d];
            assert_true(fabs((double)got - sum / total) < 1e-4);
        }
    assert_null(kvb_book_codebook(t.book, 0, 0, KVB_VALUE)->mean);
    free_trained(&t);
    kvb_capture_close(store);
}

static void test_holdout(void **state)
{
    (void)state;
    synth_capture large = usual;
    kvb_capture_store *store;
    large.rows = 4096;
    large.layers = 1;
    assert_int_equal(synth_capture_make(&large, NULL, &store), 0);
    trained with = train(kvb_capture_view(store), UNWEIGHTED, 2, 16);
    trained without = train(kvb_capture_view(store), UNWEIGHTED, 2, 0);
    assert_true(with.report.key_heldout_error > 0.0 && with.report.key_heldout_error < 1.0);
    assert_true(fabs(with.report.points_per_centroid - 3840.0 / 16) < 1e-9);
    assert_true(isnan(without.report.key_heldout_error));
    free_trained(&with);
    free_trained(&without);
    kvb_capture_close(store);
}

static void test_meta(void **state)
{
    (void)state;
    kvb_capture_store *store;
    kvb_json_doc *doc;
    uint64_t number = 0;
    assert_int_equal(synth_capture_make(&usual, NULL, &store), 0);
    setenv("SOURCE_DATE_EPOCH", "1700000000", 1);
    trained dated = train(kvb_capture_view(store), WEIGHTED, 2, 0);
    unsetenv("SOURCE_DATE_EPOCH");
    trained t = train(kvb_capture_view(store), WEIGHTED, 2, 0);
    assert_non_null(strstr(kvb_book_meta(dated.book, NULL), "\"created\":\"2023-11-14T22:13:20Z\""));
    const char *meta = kvb_book_meta(t.book, NULL);
    assert_null(strstr(meta, "created"));
    assert_int_equal(kvb_json_parse(meta, strlen(meta), "meta", &doc, NULL), KVB_OK);
    const kvb_json *root = kvb_json_root(doc), *training = kvb_json_get(root, "training");
    assert_string_equal(kvb_json_string(kvb_json_get(kvb_json_get(root, "model"), "name"), ""), "synthetic");
    assert_string_equal(kvb_json_string(kvb_json_get(kvb_json_get(root, "recipe"), "name"), ""), "weighted");
    assert_true(kvb_json_u64(kvb_json_get(training, "seed"), &number) && number == 4);
    assert_true(kvb_json_number(kvb_json_get(training, "bits_nominal"), 0) == 1.25);
    assert_true(kvb_json_number(kvb_json_get(kvb_json_get(training, "quality"), "key_error"), 0) > 0);
    kvb_json_free(doc);
    free_trained(&dated);
    free_trained(&t);
    kvb_capture_close(store);
}

/* ---- refusals: a capture in memory may be spoilt through these */

static uint16_t *halves(const uint16_t *p)
{
    return (uint16_t *)(uintptr_t)p;
}

static float *floats(const float *p)
{
    return (float *)(uintptr_t)p;
}

static void expect_refused(const kvb_capture *c, const char *json, kvb_status expected, const char *where,
                           const char *part)
{
    kvb_recipe r = recipe_of(json);
    kvb_train_options o;
    kvb_error err = {0};
    uint8_t *image;
    size_t size;
    kvb_train_options_init(&o);
    kvb_status status = kvb_train_book(c, &r, &o, &image, &size, NULL, &err);
    if (status != expected || strstr(err.where, where) == NULL || strstr(err.message, part) == NULL)
        print_error("%s: %s: %s\n", kvb_status_name(status), err.where, err.message);
    assert_int_equal(status, expected);
    assert_null(image);
    assert_non_null(strstr(err.where, where));
    assert_non_null(strstr(err.message, part));
    kvb_recipe_free(&r);
}

static void test_refused_recipes(void **state)
{
    (void)state;
    kvb_capture_store *store;
    assert_int_equal(synth_capture_make(&usual, NULL, &store), 0);
    const kvb_capture *c = kvb_capture_view(store);
    expect_refused(c, "{\"schema\":1,\"name\":\"open\"}", KVB_E_USAGE, "layer 0, keys", "leaves the shape open");
    expect_refused(c, "{\"schema\":1,\"name\":\"x\",\"keys\":{\"shape\":\"3x8\"}}", KVB_E_USAGE, "layer 0, keys",
                   "3 channels do not divide a head of 8");
    expect_refused(c, "{\"schema\":1,\"name\":\"x\",\"keys\":{\"shape\":\"2x8\"},\"values\":{\"shape\":\"2x2048\"}}",
                   KVB_E_USAGE, "layer 0, values", "1500 rows for 2048 centroids");
    expect_refused(c, "{\"schema\":1,\"name\":\"x\",\"keys\":{\"shape\":\"2x8\",\"fine\":\"3x8\"},"
                      "\"values\":{\"shape\":\"2x8\",\"fine\":\"2x8\"}}",
                   KVB_E_USAGE, "layer 0, keys (fine)", "3 channels do not divide a head of 8");
    expect_refused(c, "{\"schema\":1,\"name\":\"x\",\"keys\":{\"shape\":\"2x8\",\"fine\":\"2x8\"},"
                      "\"values\":{\"shape\":\"2x8\",\"fine\":\"2x2048\"}}",
                   KVB_E_USAGE, "layer 0, values (fine)", "1500 rows for 2048 centroids");
    kvb_capture_close(store);
}

static void test_refused_data(void **state)
{
    (void)state;
    kvb_capture_store *store;
    assert_int_equal(synth_capture_make(&usual, NULL, &store), 0);
    const kvb_capture *c = kvb_capture_view(store);
    uint16_t *key = halves(c->layer[1].keys) + (1500 + 700) * 8 + 3, saved = *key;
    *key = 0x7e00;
    expect_refused(c, UNWEIGHTED, KVB_E_CHECK, "layer 1, KV head 1, keys", "row 700 (chunk 1, token 188), channel 3");
    *key = 0xfc00;
    expect_refused(c, UNWEIGHTED, KVB_E_CHECK, "layer 1, KV head 1, keys", "NaN or infinity");
    *key = saved;
    float *weight = floats(c->layer[0].weight_v) + 1500;
    weight[9] = -1.0f;
    expect_refused(c, WEIGHTED, KVB_E_CHECK, "layer 0, KV head 1, values", "row 9 has a weight of -1");
    weight[9] = INFINITY;
    expect_refused(c, WEIGHTED, KVB_E_CHECK, "layer 0, KV head 1, values", "row 9");
    memset(weight, 0, 1500 * sizeof *weight);
    expect_refused(c, WEIGHTED, KVB_E_CHECK, "layer 0, KV head 1, values", "all 1500 weights are 0");
    for (size_t i = 0; i < 1500; i++)
        memcpy(halves(c->layer[0].values) + i * 8, c->layer[0].values, 4);
    expect_refused(c, UNWEIGHTED, KVB_E_CHECK, "layer 0, KV head 0, values, group 0", "all rows are equal");
    kvb_capture_close(store);
}

static void test_missing_parts(void **state)
{
    (void)state;
    kvb_capture_store *store;
    assert_int_equal(synth_capture_make(&usual, NULL, &store), 0);
    kvb_capture c = *kvb_capture_view(store);
    kvb_capture_layer layer[2] = {c.layer[0], c.layer[1]};
    c.layer = layer;
    layer[1].weight_k = NULL;
    expect_refused(&c, WEIGHTED, KVB_E_MISMATCH, "layer 1", "no layers.1.weight_k");
    trained t = train(&c, UNWEIGHTED, 2, 0);
    free_trained(&t);
    c.row_position = NULL;
    expect_refused(&c, "{\"schema\":1,\"name\":\"x\",\"keys\":{\"shape\":\"4x16\",\"frame\":\"post\"},"
                       "\"values\":{\"shape\":\"2x8\"}}", KVB_E_MISMATCH, "layer 0", "row_position");
    kvb_capture_close(store);
}

/* A row that capture left out (both weights 0) must not pull on an unweighted book. */
static void test_left_out_rows(void **state)
{
    (void)state;
    kvb_capture_store *store;
    assert_int_equal(synth_capture_make(&usual, NULL, &store), 0);
    const kvb_capture *c = kvb_capture_view(store);
    for (size_t i = 0; i < 1500; i += 2) {
        floats(c->layer[0].weight_k)[i] = floats(c->layer[0].weight_v)[i] = 0.0f;
        for (size_t d = 0; d < 8; d++)
            halves(c->layer[0].keys)[i * 8 + d] = 0x7000; /* 8192: no data has it */
    }
    trained t = train(c, UNWEIGHTED, 2, 0);
    const kvb_codebook *k = kvb_book_codebook(t.book, 0, 0, KVB_KEY);
    for (size_t i = 0; i < (size_t)k->groups * k->centroids * k->channels; i++)
        assert_true(fabsf(kvb_half_to_float(k->table[i])) < 100.0f);
    free_trained(&t);
    kvb_capture_close(store);
}

static int stop(void *user, const char *step, uint64_t done, uint64_t total)
{
    uint64_t *most = user;
    (void)step;
    assert_int_equal(total, 2 * 2 * (2 + 4));
    *most = done;
    return done >= 12;
}

static void test_cancel(void **state)
{
    (void)state;
    kvb_capture_store *store;
    kvb_recipe r = recipe_of(UNWEIGHTED);
    kvb_train_options o;
    uint8_t *image;
    size_t size;
    uint64_t most = 0;
    assert_int_equal(synth_capture_make(&usual, NULL, &store), 0);
    kvb_train_options_init(&o);
    o.progress = stop;
    o.progress_user = &most;
    assert_int_equal(kvb_train_book(kvb_capture_view(store), &r, &o, &image, &size, NULL, NULL), KVB_E_CANCELLED);
    assert_null(image);
    assert_int_equal(most, 12);
    kvb_recipe_free(&r);
    kvb_capture_close(store);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fine),    cmocka_unit_test(test_shape),   cmocka_unit_test(test_threads), cmocka_unit_test(test_lanes), cmocka_unit_test(test_weighted_beats_unweighted),
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_frames),  cmocka_unit_test(test_mean),    cmocka_unit_test(test_holdout),
        cmocka_unit_test(test_meta),    cmocka_unit_test(test_refused_recipes), cmocka_unit_test(test_refused_data),
        cmocka_unit_test(test_missing_parts), cmocka_unit_test(test_left_out_rows), cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_additive), cmocka_unit_test(test_additive_codes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
