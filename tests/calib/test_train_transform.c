/* Training in a transform's space, and the runtime reading such books: what the records promise is what encoding gives,
 * in every frame, token by token as in one pass. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calib/train.h"
#include "format/base/checked.h"
#include "format/base/half.h"
#include "format/base/json.h"
#include "format/base/rope.h"
#include "format/book_write.h"
#include "runtime/prefill.h"
#include "tests/support/cm.h"
#include "tests/support/rt_book.h"
#include "tests/support/synth.h"

enum { DIM = 16, ROWS = 1200, SQUARE = DIM * DIM };

static const synth_capture usual = {.layers = 1, .heads = 4, .kv_heads = 2, .dim = DIM, .rows = ROWS, .key = 33};

typedef struct trained {
    uint8_t *image;
    size_t size;
    kvb_book *book;
} trained;

/* A capture in memory may be changed through these. */
static uint16_t *halves(const uint16_t *p)
{
    return (uint16_t *)(uintptr_t)p;
}

static float *floats(const float *p)
{
    return (float *)(uintptr_t)p;
}

/* Neighbouring channels made alike, so that a rotation has something to find, and moments as queries have them: q q^T
 * summed, uneven over the channels. */
static kvb_capture_store *correlated(void)
{
    kvb_capture_store *store;
    assert_int_equal(synth_capture_make(&usual, NULL, &store), 0);
    const kvb_capture_layer *l = &kvb_capture_view(store)->layer[0];
    for (size_t i = 0; i < 2 * (size_t)ROWS; i++) {
        uint16_t *rows[2] = {halves(l->keys) + i * DIM, halves(l->values) + i * DIM};
        for (int kind = 0; kind < 2; kind++)
            for (size_t c = 1; c < DIM; c++)
                rows[kind][c] = kvb_half_from_float(0.8f * kvb_half_to_float(rows[kind][c - 1]) +
                                                    0.4f * kvb_half_to_float(rows[kind][c]) + 0.5f);
    }
    for (int which = 0; which < 2; which++) {
        float *to = floats(which == 0 ? l->moment_relative : l->moment_post);
        memset(to, 0, 2 * SQUARE * sizeof *to);
        for (uint64_t head = 0; head < 2; head++) {
            float *q = synth_normals(64 * DIM, 7 + head + 2 * (uint64_t)which, 1.0);
            for (size_t i = 0; i < 64 * SQUARE; i++) {
                size_t a = i / DIM % DIM, b = i % DIM, row = i / SQUARE * DIM;
                to[head * SQUARE + a * DIM + b] += q[row + a] * q[row + b] / (float)((a + 1) * (b + 1));
            }
            free(q);
        }
    }
    return store;
}

static kvb_recipe recipe_of(const char *json)
{
    kvb_recipe r;
    kvb_error err = {0};
    if (kvb_recipe_parse(json, strlen(json), "test.json", &r, &err) != KVB_OK)
        fail_msg("%s: %s", err.where, err.message);
    return r;
}

static kvb_status try_training(const kvb_capture *c, const char *json, uint32_t threads, trained *t, kvb_error *err)
{
    kvb_recipe r = recipe_of(json);
    kvb_train_options o;
    kvb_train_options_init(&o);
    o.seed = 4;
    o.threads = threads;
    o.holdout_every = 0;
    *t = (trained){0};
    kvb_status status = kvb_train_book(c, &r, &o, &t->image, &t->size, NULL, err);
    kvb_recipe_free(&r);
    if (status == KVB_OK)
        status = kvb_book_open_memory(t->image, t->size, "book", &t->book, err);
    return status;
}

static trained train(const kvb_capture *c, const char *json, uint32_t threads)
{
    trained t;
    kvb_error err = {0};
    if (try_training(c, json, threads, &t, &err) != KVB_OK)
        fail_msg("%s: %s", err.where, err.message);
    return t;
}

static void free_trained(trained *t)
{
    kvb_book_close(t->book);
    free(t->image);
}

#define VALUES "\"values\":{\"shape\":\"4x16\",\"weights\":\"exact-v\",\"rotation\":\"pca\"}}"
#define KEYS(frame, space)                                                                                         \
    "{\"schema\":1,\"name\":\"x\",\"keys\":{\"shape\":\"4x16\",\"weights\":\"exact-k\",\"frame\":\"" frame "\"" space "}," VALUES
#define FULL_SPACE ",\"mean\":true,\"metric\":{\"alpha\":0.5,\"ridge\":0.001},\"rotation\":\"balanced-pca\""

static const struct {
    const char *json;
    kvb_rope_frame frame;
    uint32_t block;
} frames[] = {
    {KEYS("pre", FULL_SPACE), KVB_FRAME_PRE, 0},
    {KEYS("post", FULL_SPACE), KVB_FRAME_POST, 0},
    {KEYS("block:7", FULL_SPACE), KVB_FRAME_BLOCK, 7},
};
enum { FRAMES = 3 };

/* Keys of a head as the frame turns them. */
static float *turned_keys(const kvb_capture *c, uint32_t head, kvb_rope_frame frame, uint32_t block)
{
    float *x = kvb_alloc_array(ROWS * DIM, sizeof *x);
    kvb_rope_table rope;
    assert_int_equal(kvb_rope_table_create(&rope, &c->geometry[0], 0, 512, NULL), KVB_OK);
    kvb_half_to_floats(x, c->layer[0].keys + (size_t)head * ROWS * DIM, ROWS * DIM);
    for (size_t i = 0; frame != KVB_FRAME_PRE && i < ROWS; i++) {
        uint32_t p = c->row_position[i];
        kvb_rope_rotate(&rope, frame == KVB_FRAME_POST ? p : p % block, DIM, x + i * DIM, x + i * DIM);
    }
    kvb_rope_table_free(&rope);
    return x;
}

/* y = forward (x - mean), in double. */
static void to_space(const kvb_codebook *b, const float *x, double *y)
{
    for (int i = 0; i < DIM; i++) {
        y[i] = 0.0;
        for (int j = 0; j < DIM; j++)
            y[i] += (double)b->forward[i * DIM + j] * ((double)x[j] - (b->mean != NULL ? (double)b->mean[j] : 0.0));
    }
}

/* Error and variance of each group in the space, weighted, of rows that kvb_encode and kvb_decode took there and back. */
static void measure(const kvb_codebook *b, const float *x, const float *weight, double *error, double *variance)
{
    uint32_t *codes = kvb_alloc_array((size_t)ROWS * b->groups, sizeof *codes);
    float *back = kvb_alloc_array(ROWS * DIM, sizeof *back);
    double sum[DIM] = {0}, square[DIM] = {0}, y[DIM], z[DIM], total = 0.0;
    assert_int_equal(kvb_encode(b, DIM, x, DIM, ROWS, codes, NULL), KVB_OK);
    assert_int_equal(kvb_decode(b, DIM, codes, ROWS, back, NULL), KVB_OK);
    memset(error, 0, b->groups * sizeof *error);
    memset(variance, 0, b->groups * sizeof *variance);
    for (size_t i = 0; i < ROWS; i++) {
        double w = (double)weight[i];
        to_space(b, x + i * DIM, y);
        to_space(b, back + i * DIM, z);
        total += w;
        for (uint32_t c = 0; c < DIM; c++) {
            sum[c] += w * y[c];
            square[c] += w * y[c] * y[c];
            error[c / b->channels] += w * (y[c] - z[c]) * (y[c] - z[c]);
        }
    }
    for (uint32_t c = 0; c < DIM; c++)
        variance[c / b->channels] += square[c] - sum[c] * sum[c] / total;
    free(codes);
    free(back);
}

static void test_records_are_kept(void **state)
{
    (void)state;
    kvb_capture_store *store = correlated();
    const kvb_capture *c = kvb_capture_view(store);
    for (int f = 0; f < FRAMES; f++) {
        trained t = train(c, frames[f].json, 2);
        assert_int_equal(kvb_book_layer(t.book, 0)->frame, frames[f].frame);
        for (uint32_t head = 0; head < 2; head++) {
            double error[4], variance[4];
            const kvb_codebook *b = kvb_book_codebook(t.book, 0, head, KVB_KEY);
            const kvb_quality *quality = kvb_book_quality(t.book, 0, head, KVB_KEY);
            assert_non_null(b->mean);
            assert_non_null(b->forward);
            assert_null(kvb_book_codebook(t.book, 0, head, KVB_VALUE)->mean);
            assert_non_null(kvb_book_codebook(t.book, 0, head, KVB_VALUE)->inverse);
            float *x = turned_keys(c, head, frames[f].frame, frames[f].block);
            measure(b, x, c->layer[0].weight_k + head * ROWS, error, variance);
            for (int g = 0; g < 4; g++)
                assert_true(fabs(error[g] / variance[g] - (double)quality[g].train_error) <
                            0.01 * (double)quality[g].train_error);
            free(x);
        }
        free_trained(&t);
    }
    kvb_capture_close(store);
}

/* The sum of errors that the metric sees: what a transform is for. */
static double metric_error(const kvb_capture *c, const trained *t, const kvb_codebook *space)
{
    const kvb_codebook *b = kvb_book_codebook(t->book, 0, 0, KVB_KEY);
    float *x = turned_keys(c, 0, KVB_FRAME_PRE, 0), *back = kvb_alloc_array(ROWS * DIM, sizeof *back);
    uint32_t codes[ROWS * 4];
    double y[DIM], z[DIM], error = 0.0;
    assert_int_equal(kvb_encode(b, DIM, x, DIM, ROWS, codes, NULL), KVB_OK);
    assert_int_equal(kvb_decode(b, DIM, codes, ROWS, back, NULL), KVB_OK);
    for (size_t i = 0; i < ROWS; i++) {
        to_space(space, x + i * DIM, y);
        to_space(space, back + i * DIM, z);
        for (int k = 0; k < DIM; k++)
            error += (double)c->layer[0].weight_k[i] * (y[k] - z[k]) * (y[k] - z[k]);
    }
    free(x);
    free(back);
    return error;
}

static void test_transform_pays(void **state)
{
    (void)state;
    kvb_capture_store *store = correlated();
    const kvb_capture *c = kvb_capture_view(store);
    trained full = train(c, frames[0].json, 2), none = train(c, KEYS("pre", ""), 2);
    trained plain = train(c, KEYS("pre", ",\"metric\":{},\"rotation\":\"pca\""), 2);
    const kvb_codebook *space = kvb_book_codebook(full.book, 0, 0, KVB_KEY);
    double with = metric_error(c, &full, space);
    assert_true(with < 0.8 * metric_error(c, &none, space));
    assert_true(with < metric_error(c, &plain, space));
    assert_null(kvb_book_codebook(none.book, 0, 0, KVB_KEY)->forward);
    free_trained(&full);
    free_trained(&none);
    free_trained(&plain);
    kvb_capture_close(store);
}

static double largest_difference(const float *a, const float *b, size_t count)
{
    double most = 0.0;
    for (size_t i = 0; i < count; i++)
        most = fmax(most, fabs((double)a[i] - (double)b[i]));
    return most;
}

static void check_runtime(const kvb_book *book, const kvb_policy *policy, bool coded)
{
    const uint32_t tokens = 150;
    const kvb_layer *l = kvb_book_layer(book, 0);
    const size_t count = (size_t)l->heads * tokens * DIM;
    float *once = calloc(count, sizeof *once), *stepped = calloc(count, sizeof *stepped);
    rt_rows rows;
    kvb_cache_options options;
    kvb_cache *cache;
    assert_true(rt_rows_make(&rows, l, tokens, 71));
    kvb_prefill p = {.book = book, .tokens = tokens, .policy = policy, .seed = 5, .q = rows.q, .k_pre = rows.k_pre,
                     .k = rows.k, .v = rows.v};
    assert_int_equal(kvb_prefill_attend(&p, NULL, once, NULL), KVB_OK);
    kvb_cache_options_init(&options, book);
    options.policy = *policy;
    options.seed = 5;
    assert_int_equal(kvb_cache_create(book, &options, &cache, NULL), KVB_OK);
    assert_int_equal(rt_run_cache(cache, l, 0, &rows, stepped, NULL), KVB_OK);
    kvb_cache_destroy(cache);
    assert_true(largest_difference(once, stepped, count) < 1e-5);
    const kvb_policy exact = {.window = UINT32_MAX};
    p.policy = &exact;
    assert_int_equal(kvb_prefill_attend(&p, NULL, stepped, NULL), KVB_OK);
    assert_true((largest_difference(once, stepped, count) > 1e-2) == coded); /* codes were used at all */
    rt_rows_free(&rows);
    free(once);
    free(stepped);
}

static void test_runtime(void **state)
{
    (void)state;
    static const kvb_policy policies[] = {
        {.window = 0},
        {.anchor_fraction = 0.05, .score = KVB_SCORE_EXACT_K, .window = 9, .sinks = 2},
    };
    kvb_capture_store *store = correlated();
    for (int f = 0; f < FRAMES; f++) {
        trained t = train(kvb_capture_view(store), frames[f].json, 2);
        check_runtime(t.book, &policies[0], true);
        check_runtime(t.book, &policies[1], true);
        check_runtime(t.book, &(kvb_policy){.window = 150}, false);
        free_trained(&t);
    }
    kvb_capture_close(store);
}

static void test_threads(void **state)
{
    (void)state;
    kvb_capture_store *store = correlated();
    for (int f = 0; f < FRAMES; f++) {
        trained one = train(kvb_capture_view(store), frames[f].json, 1);
        for (uint32_t threads = 2; threads <= 5; threads += 3) {
            trained more = train(kvb_capture_view(store), frames[f].json, threads);
            assert_int_equal(one.size, more.size);
            assert_memory_equal(one.image, more.image, one.size);
            free_trained(&more);
        }
        free_trained(&one);
    }
    kvb_capture_close(store);
}

static void refuse(const kvb_capture *c, const char *json, kvb_status expected, const char *where, const char *part)
{
    trained t;
    kvb_error err = {0};
    assert_int_equal(try_training(c, json, 2, &t, &err), expected);
    assert_null(t.image);
    assert_non_null(strstr(err.where, where));
    assert_non_null(strstr(err.message, part));
}

/* Without a name the frame picks the moment; one that is missing or spoilt is refused. */
static void test_moments(void **state)
{
    (void)state;
    kvb_capture_store *store = correlated();
    kvb_capture c = *kvb_capture_view(store);
    kvb_capture_layer layer = c.layer[0];
    c.layer = &layer;
    layer.moment_relative = NULL;
    trained t = train(&c, frames[1].json, 2);
    free_trained(&t);
    refuse(&c, frames[0].json, KVB_E_MISMATCH, "layer 0, KV head 0, keys", "no layers.0.moment_relative");
    refuse(&c, frames[2].json, KVB_E_MISMATCH, "layer 0, KV head 0, keys", "no layers.0.moment_relative");
    layer = kvb_capture_view(store)->layer[0];
    layer.moment_post = NULL;
    t = train(&c, frames[2].json, 2);
    free_trained(&t);
    refuse(&c, frames[1].json, KVB_E_MISMATCH, "layer 0", "no layers.0.moment_post");
    floats(layer.moment_relative)[SQUARE + 3] = NAN;
    refuse(&c, frames[0].json, KVB_E_CHECK, "layer 0, KV head 1, keys", "NaN or infinity");
    kvb_capture_close(store);
}

static void test_meta(void **state)
{
    (void)state;
    kvb_capture_store *store = correlated();
    kvb_json_doc *doc;
    trained t = train(kvb_capture_view(store), frames[1].json, 2);
    const char *meta = kvb_book_meta(t.book, NULL);
    assert_int_equal(kvb_json_parse(meta, strlen(meta), "meta", &doc, NULL), KVB_OK);
    const kvb_json *training = kvb_json_get(kvb_json_root(doc), "training");
    const kvb_json *keys = kvb_json_get(training, "keys"), *values = kvb_json_get(training, "values");
    assert_string_equal(kvb_json_string(kvb_json_get(keys, "rotation"), ""), "balanced-pca");
    assert_string_equal(kvb_json_string(kvb_json_get(kvb_json_get(keys, "metric"), "moment"), ""), "post");
    assert_true(kvb_json_number(kvb_json_get(kvb_json_get(keys, "metric"), "ridge"), 0) == 0.001);
    assert_string_equal(kvb_json_string(kvb_json_get(values, "rotation"), ""), "pca");
    assert_null(kvb_json_get(values, "metric"));
    kvb_json_free(doc);
    free_trained(&t);
    t = train(kvb_capture_view(store), KEYS("pre", ""), 2);
    assert_null(strstr(kvb_book_meta(t.book, NULL), "metric"));
    free_trained(&t);
    kvb_capture_close(store);
}

/* A channel that never changes, and keys that all lie on a few axes: groups must still hold something to tell apart. */
static void test_degenerate_keys(void **state)
{
    (void)state;
    for (size_t kept = 4; kept < DIM; kept += 11) {
        kvb_capture_store *store = correlated();
        const kvb_capture *c = kvb_capture_view(store);
        for (size_t i = 0; i < 2 * (size_t)ROWS; i++)
            for (size_t d = kept; d < DIM; d++)
                halves(c->layer[0].keys)[i * DIM + d] = 0x3c00;
        trained t = train(c, frames[0].json, 2);
        const kvb_codebook *b = kvb_book_codebook(t.book, 0, 0, KVB_KEY);
        const kvb_quality *quality = kvb_book_quality(t.book, 0, 0, KVB_KEY);
        for (int g = 0; g < 4; g++)
            assert_true(quality[g].train_error > 0.0f && quality[g].train_error < 1.0f);
        for (int i = 0; i < SQUARE; i++)
            assert_true(isfinite(b->forward[i]) && isfinite(b->inverse[i]));
        free_trained(&t);
        kvb_capture_close(store);
    }
}

/* Fewer directions than groups: a group would hold nothing but rounding. */
static void test_too_few_directions(void **state)
{
    (void)state;
    kvb_capture_store *store = correlated();
    const kvb_capture *c = kvb_capture_view(store);
    for (size_t i = 0; i < ROWS; i++)
        for (size_t d = 2; d < DIM; d++)
            halves(c->layer[0].keys)[i * DIM + d] = 0x3c00;
    refuse(c, frames[0].json, KVB_E_CHECK, "layer 0, KV head 0, keys, group", "fewer directions than there are groups");
    kvb_capture_close(store);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_records_are_kept), cmocka_unit_test(test_transform_pays), cmocka_unit_test(test_runtime),
        cmocka_unit_test(test_threads),          cmocka_unit_test(test_moments),        cmocka_unit_test(test_meta),
        cmocka_unit_test(test_degenerate_keys),  cmocka_unit_test(test_too_few_directions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
