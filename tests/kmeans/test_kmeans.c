/* Properties of kvb_kmeans_train(): issue by issue what a user may rely on. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "format/base/half.h"
#include "kmeans/kmeans_reference.h"
#include "kvbook/kmeans.h"
#include "tests/kmeans/kmeans_testdata.h"

static kvb_kmeans_problem problem_of(const float *x, size_t n, uint32_t d, uint32_t k, float *table)
{
    return (kvb_kmeans_problem){.points = x, .type = KVB_POINTS_F32, .count = n, .stride = d, .channels = d,
                                .centroids = k, .seed = 1, .table = table};
}

/* Plain Lloyd iterations: what can be compared point by point. */
static kvb_kmeans_result train(const kvb_kmeans_problem *p, uint32_t iterations, uint32_t threads)
{
    kvb_kmeans_options options;
    kvb_kmeans_result result;
    kvb_error err = {0};
    kvb_kmeans_options_init(&options);
    options.iterations = iterations;
    options.threads = threads;
    options.swap_rounds = 0;
    if (kvb_kmeans_train(p, 1, &options, &result, &err) != KVB_OK)
        fail_msg("%s: %s", err.where, err.message);
    return result;
}

static void objective_never_rises(void **state)
{
    (void)state;
    static const uint32_t shapes[][3] = {{2, 16, 500}, {8, 64, 3000}, {4, 300, 1000}, {33, 20, 700}, {1, 256, 2000}};
    for (size_t s = 0; s < 5; s++) {
        uint32_t d = shapes[s][0], k = shapes[s][1], n = shapes[s][2];
        float *x = test_mixture(n, d, s), *w = test_weights(n, s), *table = malloc(k * d * sizeof *table);
        kvb_kmeans_problem p = problem_of(x, n, d, k, table);
        p.weights = w;
        double before = INFINITY;
        for (uint32_t i = 0; i < 12; i++) {
            kvb_kmeans_result r = train(&p, i, 1);
            assert_int_equal(r.iterations, i);
            assert_true(r.train_error <= before * (1.0 + 1e-9));
            before = r.train_error;
        }
        free(x), free(w), free(table);
    }
}

static void equals_the_reference(void **state)
{
    (void)state;
    static const uint32_t shapes[][3] = {{2, 5, 333}, {8, 64, 1500}, {3, 17, 777}, {64, 40, 600}, {16, 100, 2000}};
    for (size_t s = 0; s < 5; s++) {
        uint32_t d = shapes[s][0], k = shapes[s][1], n = shapes[s][2];
        float *x = test_mixture(n, d, s), *w = test_weights(n, s), *table = malloc(k * d * sizeof *table);
        double *want = malloc(k * d * sizeof *want);
        uint32_t *codes = malloc(n * sizeof *codes);
        for (size_t i = 0; i < (size_t)k * d; i++)
            want[i] = x[i];
        kvb_kmeans_problem p = problem_of(x, n, d, k, table);
        p.weights = s % 2 ? w : NULL;
        p.initial = x;
        kvb_kmeans_result r = train(&p, 3, 2);
        for (int i = 0; i < 3; i++) {
            kvb_kmeans_reference_assign(x, p.weights, n, d, want, k, codes);
            kvb_kmeans_reference_update(x, p.weights, n, d, want, k, codes);
        }
        double error = kvb_kmeans_reference_assign(x, p.weights, n, d, want, k, codes), total = 0.0;
        for (uint32_t i = 0; i < n; i++)
            total += p.weights ? w[i] : 1.0;
        assert_int_equal(r.repairs, 0);
        assert_true(fabs(r.train_error * total * d / error - 1.0) < 1e-5);
        for (size_t i = 0; i < (size_t)k * d; i++)
            assert_true(fabs(table[i] - want[i]) < 1e-3);
        free(x), free(w), free(table), free(want), free(codes);
    }
}

static void equal_weights_equal_none(void **state)
{
    (void)state;
    enum { N = 2000, D = 8, K = 32 };
    float *x = test_mixture(N, D, 3), w[N], a[K * D], b[K * D];
    for (int i = 0; i < N; i++)
        w[i] = 3.7f;
    kvb_kmeans_problem p = problem_of(x, N, D, K, a);
    kvb_kmeans_result ra = train(&p, 10, 1);
    p.weights = w;
    p.table = b;
    kvb_kmeans_result rb = train(&p, 10, 1);
    assert_memory_equal(a, b, sizeof a);
    assert_memory_equal(&ra, &rb, sizeof ra);
    free(x);
}

static void weight_two_equals_a_point_twice(void **state)
{
    (void)state;
    enum { N = 1000, D = 4, K = 16 };
    float *x = test_mixture(N, D, 3), *twice = malloc(2 * N * D * sizeof *twice), w[N], a[K * D], b[K * D];
    size_t n = 0;
    for (size_t i = 0; i < N; i++) {
        w[i] = i % 3 == 0 ? 2.0f : 1.0f;
        for (int j = 0; j < (i % 3 == 0 ? 2 : 1); j++)
            memcpy(twice + n++ * D, x + i * D, D * sizeof *x);
    }
    kvb_kmeans_problem p = problem_of(x, N, D, K, a);
    p.weights = w;
    p.initial = x;
    kvb_kmeans_result ra = train(&p, 10, 1);
    p = problem_of(twice, n, D, K, b);
    p.initial = x;
    kvb_kmeans_result rb = train(&p, 10, 1);
    assert_true(fabs(ra.train_error / rb.train_error - 1.0) < 1e-5);
    for (int i = 0; i < K * D; i++)
        assert_true(fabsf(a[i] - b[i]) < 1e-3f);
    free(x), free(twice);
}

static void order_of_points_changes_only_rounding(void **state)
{
    (void)state;
    enum { N = 1500, D = 8, K = 32 };
    float *x = test_mixture(N, D, 3), *mixed = malloc(N * D * sizeof *mixed), a[K * D], b[K * D];
    for (size_t i = 0; i < N; i++)
        memcpy(mixed + i * D, x + i * 7 % N * D, D * sizeof *x); /* 7 does not divide 1500 */
    kvb_kmeans_problem p = problem_of(x, N, D, K, a);
    p.initial = x;
    kvb_kmeans_result ra = train(&p, 10, 1);
    p.points = mixed;
    p.table = b;
    kvb_kmeans_result rb = train(&p, 10, 1);
    assert_true(fabs(ra.train_error / rb.train_error - 1.0) < 1e-4);
    for (int i = 0; i < K * D; i++)
        assert_true(fabsf(a[i] - b[i]) < 2e-2f);
    free(x), free(mixed);
}

static void enough_centroids_leave_no_error(void **state)
{
    (void)state;
    enum { DISTINCT = 40, N = 4000, D = 5, K = 48 };
    float *base = test_mixture(DISTINCT, D, 3), *x = malloc(N * D * sizeof *x), table[K * D];
    for (size_t i = 0; i < N; i++)
        memcpy(x + i * D, base + i * i % DISTINCT * D, D * sizeof *x);
    for (int seeding = 0; seeding < 3; seeding++) {
        kvb_kmeans_problem p = problem_of(x, N, D, K, table);
        kvb_kmeans_options options;
        kvb_kmeans_result r;
        kvb_kmeans_options_init(&options);
        options.seeding = (kvb_kmeans_seeding)seeding;
        assert_int_equal(kvb_kmeans_train(&p, 1, &options, &r, NULL), KVB_OK);
        assert_true(r.train_error <= 1e-12 * r.variance);
        for (int i = 0; i < K * D; i++)
            assert_true(isfinite(table[i]));
    }
    free(base), free(x);
}

static void equal_points_are_no_trouble(void **state)
{
    (void)state;
    float x[300], table[24];
    for (int i = 0; i < 300; i++)
        x[i] = (float)(i % 3) + 0.3f;
    kvb_kmeans_problem p = problem_of(x, 100, 3, 8, table);
    kvb_kmeans_result r = train(&p, 15, 1);
    assert_true(r.train_error < 1e-12 && r.variance < 1e-12);
    assert_int_equal(r.used, 1);
    for (int i = 0; i < 24; i++)
        assert_true(fabsf(table[i] - (float)(i % 3) - 0.3f) < 1e-6f);
}

/* Scaling all weights or all points changes nothing but the scale, even at the ends of float's range. */
static void extreme_magnitudes(void **state)
{
    (void)state;
    enum { N = 600, D = 3, K = 10 };
    static const float scales[] = {1e-42f, 1e-30f, 1e30f, 1e37f};
    float *x = test_mixture(N, D, 3), *w = test_weights(N, 4), y[N * D], v[N], table[K * D];
    kvb_kmeans_problem p = problem_of(x, N, D, K, table);
    p.weights = w;
    kvb_kmeans_result want = train(&p, 10, 1);
    for (size_t s = 0; s < 4; s++) {
        for (int i = 0; i < N; i++)
            v[i] = w[i] / 32.0f * scales[s];
        p.weights = v;
        p.points = x;
        kvb_kmeans_result r = train(&p, 10, 1);
        assert_true(fabs(r.train_error / want.train_error - 1.0) < 0.05);
        for (int i = 0; i < N * D; i++)
            y[i] = x[i] * scales[s];
        p.weights = w;
        p.points = y;
        r = train(&p, 10, 1);
        double unscaled = r.train_error / scales[s] / scales[s];
        assert_true(fabs(unscaled / want.train_error - 1.0) < 0.05);
        for (int i = 0; i < K * D; i++)
            assert_true(isfinite(table[i]));
    }
    free(x), free(w);
}

static void weights_of_zero_and_of_all_sizes(void **state)
{
    (void)state;
    enum { N = 500, D = 4, K = 16 };
    float *x = test_mixture(N, D, 3), w[N], table[K * D];
    for (int i = 0; i < N; i++)
        w[i] = i % 4 == 0 ? 0.0f : i % 4 == 1 ? 1e-45f : i % 4 == 2 ? 1.0f : 3e38f;
    for (int i = 0; i < D; i++)
        x[i] = 1e6f; /* weight 0: it must not attract a centroid */
    for (int seeding = 0; seeding < 2; seeding++) {
        kvb_kmeans_problem p = problem_of(x, N, D, K, table);
        kvb_kmeans_options options;
        kvb_kmeans_result r;
        kvb_kmeans_options_init(&options);
        options.seeding = seeding ? KVB_SEED_RANDOM : KVB_SEED_PLUSPLUS;
        p.weights = w;
        assert_int_equal(kvb_kmeans_train(&p, 1, &options, &r, NULL), KVB_OK);
        assert_true(isfinite(r.train_error) && r.train_error < r.variance);
        for (int i = 0; i < K * D; i++)
            assert_true(isfinite(table[i]) && fabsf(table[i]) < 1e4f);
    }
    free(x);
}

static void an_offset_costs_no_precision(void **state)
{
    (void)state;
    enum { N = 2000, D = 8, K = 64 };
    float *x = test_mixture(N, D, 3), table[K * D];
    for (int i = 0; i < N * D; i++)
        x[i] = roundf(x[i] * 1024.0f) / 1024.0f;
    kvb_kmeans_problem p = problem_of(x, N, D, K, table);
    kvb_kmeans_result a = train(&p, 10, 1);
    for (int i = 0; i < N * D; i++)
        x[i] += 4096.0f;
    kvb_kmeans_result b = train(&p, 10, 1);
    assert_true(fabs(b.train_error / a.train_error - 1.0) < 0.03);
    assert_true(fabs(b.variance / a.variance - 1.0) < 1e-5);
    free(x);
}

static void stride_and_half_floats(void **state)
{
    (void)state;
    enum { N = 900, D = 6, K = 20, STRIDE = 17 };
    float *x = test_mixture(N, D, 3), *wide = calloc(N * STRIDE, sizeof *wide), a[K * D], b[K * D];
    uint16_t *half = calloc(N * STRIDE, sizeof *half);
    for (size_t i = 0; i < N; i++)
        for (size_t c = 0; c < D; c++) {
            half[i * STRIDE + c] = kvb_half_from_float(x[i * D + c]);
            x[i * D + c] = kvb_half_to_float(half[i * STRIDE + c]);
            wide[i * STRIDE + c] = x[i * D + c];
        }
    for (size_t i = 0; i < N; i++)
        for (size_t c = D; c < STRIDE; c++)
            wide[i * STRIDE + c] = NAN; /* not ours: never read */
    kvb_kmeans_problem p = problem_of(x, N, D, K, a);
    train(&p, 8, 1);
    p.table = b;
    p.points = wide;
    p.stride = STRIDE;
    train(&p, 8, 1);
    assert_memory_equal(a, b, sizeof a);
    memset(b, 0, sizeof b);
    p.points = half;
    p.type = KVB_POINTS_F16;
    train(&p, 8, 1);
    assert_memory_equal(a, b, sizeof a);
    free(x), free(wide), free(half);
}

static void threads_do_not_change_a_byte(void **state)
{
    (void)state;
    enum { N = 50000, D = 4, K = 32, PROBLEMS = 3 };
    float *x = test_mixture(N, D, 3), *w = test_weights(N, 3);
    float *tables[3];
    kvb_kmeans_result results[3][PROBLEMS];
    for (uint32_t t = 0; t < 3; t++) {
        kvb_kmeans_problem p[PROBLEMS];
        kvb_kmeans_options options;
        kvb_kmeans_options_init(&options);
        options.threads = t + 1;
        options.iterations = 5;
        options.holdout_every = 8;
        tables[t] = calloc(PROBLEMS * K * D, sizeof(float));
        for (size_t i = 0; i < PROBLEMS; i++) {
            p[i] = problem_of(x, N - i * 1111, D, K, tables[t] + i * K * D);
            p[i].weights = i == 1 ? NULL : w;
            p[i].seed = i;
        }
        assert_int_equal(kvb_kmeans_train(p, PROBLEMS, &options, results[t], NULL), KVB_OK);
    }
    for (uint32_t t = 1; t < 3; t++) {
        assert_memory_equal(tables[0], tables[t], PROBLEMS * K * D * sizeof(float));
        assert_memory_equal(results[0], results[t], sizeof results[0]);
    }
    free(x), free(w), free(tables[0]), free(tables[1]), free(tables[2]);
}

static void seeds_differ_and_repeat(void **state)
{
    (void)state;
    enum { N = 800, D = 4, K = 16 };
    float *x = test_mixture(N, D, 3), a[K * D], b[K * D];
    for (int seeding = 0; seeding < 2; seeding++) {
        kvb_kmeans_options options;
        kvb_kmeans_options_init(&options);
        options.seeding = seeding ? KVB_SEED_RANDOM : KVB_SEED_PLUSPLUS;
        options.iterations = 1;
        kvb_kmeans_problem p = problem_of(x, N, D, K, a);
        kvb_kmeans_train(&p, 1, &options, NULL, NULL);
        p.table = b;
        kvb_kmeans_train(&p, 1, &options, NULL, NULL);
        assert_memory_equal(a, b, sizeof a);
        p.seed = 2;
        kvb_kmeans_train(&p, 1, &options, NULL, NULL);
        assert_memory_not_equal(a, b, sizeof a);
    }
    free(x);
}

static void builds_agree(void **state)
{
    (void)state;
    enum { N = 3000, D = 8, K = 64 };
    static const char *const builds[] = {"plain", "avx2", "avx512"};
    float *x = test_mixture(N, D, 3), table[K * D];
    double errors[3];
    for (int b = 0; b < 3; b++) {
        setenv("KVB_ISA", builds[b], 1);
        kvb_kmeans_problem p = problem_of(x, N, D, K, table);
        p.initial = x;
        errors[b] = train(&p, 5, 1).train_error;
    }
    unsetenv("KVB_ISA");
    assert_true(fabs(errors[1] / errors[0] - 1.0) < 1e-4);
    assert_true(fabs(errors[2] / errors[0] - 1.0) < 1e-4);
    free(x);
}

static void empty_clusters_are_repaired(void **state)
{
    (void)state;
    enum { N = 3000, D = 4, K = 64 };
    float *x = test_mixture(N, D, 3), table[K * D], start[K * D];
    for (int i = 0; i < K * D; i++)
        start[i] = 1e30f; /* all but one are beyond reach */
    memcpy(start, x, D * sizeof *x);
    kvb_kmeans_problem p = problem_of(x, N, D, K, table);
    p.initial = start;
    kvb_kmeans_result r = train(&p, 15, 1);
    assert_true(r.repairs >= K - 1);
    assert_int_equal(r.used, K);
    p.initial = NULL;
    assert_true(r.train_error < 1.25 * train(&p, 15, 1).train_error);
    free(x);
}

static void seeding_beats_random(void **state)
{
    (void)state;
    enum { N = 6000, D = 2, K = 128 };
    float *x = test_mixture(N, D, 3), *w = test_weights(N, 4), table[K * D];
    static const kvb_kmeans_seeding seedings[] = {KVB_SEED_PLUSPLUS, KVB_SEED_SPLIT, KVB_SEED_RANDOM};
    double errors[3];
    for (int seeding = 0; seeding < 3; seeding++) {
        kvb_kmeans_problem p = problem_of(x, N, D, K, table);
        p.weights = w;
        kvb_kmeans_options options;
        kvb_kmeans_result r;
        kvb_kmeans_options_init(&options);
        options.iterations = 3;
        options.seeding = seedings[seeding];
        assert_int_equal(kvb_kmeans_train(&p, 1, &options, &r, NULL), KVB_OK);
        errors[seeding] = r.train_error;
    }
    assert_true(errors[0] < 0.9 * errors[2]);
    assert_true(errors[1] < 0.9 * errors[2]);
    free(x), free(w);
}

/* Any number of centroids, all points equal, and the same bytes for any number of threads. */
static void splits_of_any_number(void **state)
{
    (void)state;
    enum { N = 20000, D = 4 };
    float *x = test_mixture(N, D, 3), *same = calloc(N, D * sizeof *same), one[300 * D], two[300 * D];
    for (uint32_t k = 1; k <= 300; k = 3 * k + 1) {
        kvb_kmeans_options options;
        kvb_kmeans_result r;
        kvb_kmeans_options_init(&options);
        options.seeding = KVB_SEED_SPLIT;
        for (int i = 0; i < 2; i++) {
            kvb_kmeans_problem p = problem_of(x, N, D, k, i ? two : one);
            options.threads = i ? 3 : 1;
            assert_int_equal(kvb_kmeans_train(&p, 1, &options, &r, NULL), KVB_OK);
            assert_int_equal(r.used, k);
        }
        assert_memory_equal(one, two, k * D * sizeof *one);
        kvb_kmeans_problem p = problem_of(same, N, D, k, one);
        assert_int_equal(kvb_kmeans_train(&p, 1, &options, &r, NULL), KVB_OK);
        assert_true(r.train_error < 1e-12 && r.used == 1);
    }
    free(x), free(same);
}

static void swaps_lower_the_error(void **state)
{
    (void)state;
    enum { N = 8000, K = 64 };
    for (uint32_t d = 2; d <= 8; d *= 2) {
        float *x = test_mixture(N, d, d), *w = test_weights(N, 4), *table = malloc(K * d * sizeof *table);
        double errors[2] = {0, 0};
        for (uint64_t i = 0; i < 6; i++) {
            kvb_kmeans_problem p = problem_of(x, N, d, K, table);
            kvb_kmeans_options options;
            kvb_kmeans_result r;
            p.weights = w;
            p.seed = i / 2;
            kvb_kmeans_options_init(&options);
            options.swap_rounds *= i % 2;
            assert_int_equal(kvb_kmeans_train(&p, 1, &options, &r, NULL), KVB_OK);
            assert_true((r.swaps > 0) == (i % 2 == 1));
            assert_int_equal(r.iterations, 15);
            errors[i % 2] += r.train_error;
        }
        assert_true(errors[1] < 0.995 * errors[0]);
        free(x), free(w), free(table);
    }
}

static void holdout_is_held_out(void **state)
{
    (void)state;
    enum { N = 4096, D = 2, K = 8, EVERY = 4, BLOCK = 64 };
    float *x = test_mixture(N, D, 3), table[K * D], same[K * D];
    kvb_kmeans_problem p = problem_of(x, N, D, K, table);
    kvb_kmeans_options options;
    kvb_kmeans_result r;
    kvb_kmeans_options_init(&options);
    options.holdout_every = EVERY;
    options.holdout_block = BLOCK;
    assert_int_equal(kvb_kmeans_train(&p, 1, &options, &r, NULL), KVB_OK);
    assert_true(r.heldout_error > 0.0 && r.heldout_error < r.heldout_variance);
    assert_true(fabs(r.heldout_variance / r.variance - 1.0) < 0.3);
    /* The reported error is that of the last block of every four, and what they hold changes no centroid. */
    double error = 0.0, centroids[K * D];
    uint32_t codes[BLOCK];
    for (int i = 0; i < K * D; i++)
        centroids[i] = table[i];
    for (size_t b = EVERY - 1; b < N / BLOCK; b += EVERY)
        error += kvb_kmeans_reference_assign(x + b * BLOCK * D, NULL, BLOCK, D, centroids, K, codes);
    assert_true(fabs(error / (N / EVERY) / D / r.heldout_error - 1.0) < 1e-5);
    options.holdout_every = 0;
    kvb_kmeans_train(&p, 1, &options, &r, NULL);
    assert_true(isnan(r.heldout_error) && isnan(r.heldout_variance));
    float *training = malloc(N * D * sizeof *x);
    size_t n = 0;
    for (size_t i = 0; i < N; i++)
        if (i / BLOCK % EVERY != EVERY - 1)
            memcpy(training + n++ * D, x + i * D, D * sizeof *x);
    p.initial = x;
    options.swap_rounds = 0;
    options.holdout_every = EVERY;
    kvb_kmeans_train(&p, 1, &options, &r, NULL);
    p.points = training;
    p.count = n;
    p.table = same;
    options.holdout_every = 0;
    kvb_kmeans_train(&p, 1, &options, &r, NULL);
    for (int i = 0; i < K * D; i++)
        assert_true(fabsf(table[i] - same[i]) < 1e-4f);
    free(x), free(training);
}

static void statistics(void **state)
{
    (void)state;
    float x[] = {0, 0, 0, 0, 1, 1, 5, 5, 9, 9, 9, 9}, w[] = {1, 1, 1, 3, 1, 1};
    float start[] = {0, 0, 1, 1, 5, 5, 9, 9}, table[8];
    kvb_kmeans_problem p = problem_of(x, 6, 2, 4, table);
    p.initial = start;
    p.weights = w;
    kvb_kmeans_result r = train(&p, 2, 1);
    assert_true(r.train_error < 1e-12);
    assert_int_equal(r.used, 4);
    assert_true(fabs(r.points_per_centroid - 1.5) < 1e-12);
    assert_true(fabs(r.entropy - (2.0 * (1.0 / 3) * log2(3.0) + 2.0 * (1.0 / 6) * log2(6.0))) < 1e-12);
    double mean = (1 + 15 + 18) / 8.0;
    double variance = (2 * mean * mean + (1 - mean) * (1 - mean) + 3 * (5 - mean) * (5 - mean) +
                       2 * (9 - mean) * (9 - mean)) / 8.0;
    assert_true(fabs(r.variance / variance - 1.0) < 1e-6);
}

static void tolerance_stops_early(void **state)
{
    (void)state;
    enum { N = 2000, D = 2, K = 8 };
    float *x = test_mixture(N, D, 3), table[K * D];
    kvb_kmeans_problem p = problem_of(x, N, D, K, table);
    kvb_kmeans_options options;
    kvb_kmeans_result r;
    kvb_kmeans_options_init(&options);
    options.iterations = 500;
    options.swap_rounds = 0;
    options.tolerance = 1e-3;
    assert_int_equal(kvb_kmeans_train(&p, 1, &options, &r, NULL), KVB_OK);
    assert_true(r.iterations >= 2 && r.iterations < 100);
    free(x);
}

/* Entry i is the error that i iterations end with; for any number of threads, weighted or not, with points held out. */
static void curve_is_the_error_of_each_iteration(void **state)
{
    (void)state;
    enum { N = 20000, D = 8, K = 40, MOST = 9, ROOM = 11 };
    float *x = test_mixture(N, D, 4), *w = test_weights(N, 4), table[2][K * D];
    double curve[2][2 * ROOM];
    for (uint32_t threads = 1; threads <= 2; threads++) {
        kvb_kmeans_problem p[2] = {problem_of(x, N, D, K, table[0]), problem_of(x, N, D, K, table[1])};
        kvb_kmeans_options options;
        kvb_kmeans_result result[2], end;
        kvb_kmeans_options_init(&options);
        p[1].weights = w;
        options.threads = threads;
        options.iterations = MOST;
        options.holdout_every = 5;
        options.swap_rounds = 0;
        options.curve = curve[threads - 1];
        options.curve_length = ROOM;
        assert_int_equal(kvb_kmeans_train(p, 2, &options, result, NULL), KVB_OK);
        options.curve = NULL;
        for (uint32_t i = 0; i < MOST && threads == 1; i++)
            for (uint32_t n = 0; n < 2; n++) {
                options.iterations = i;
                assert_int_equal(kvb_kmeans_train(&p[n], 1, &options, &end, NULL), KVB_OK);
                assert_true(fabs(curve[0][n * ROOM + i] / end.train_error - 1.0) < 1e-5);
            }
        for (uint32_t n = 0; n < 2; n++)
            for (uint32_t i = MOST; i < ROOM; i++)
                assert_true(isnan(curve[threads - 1][n * ROOM + i]));
    }
    assert_memory_equal(curve[0], curve[1], sizeof curve[0]);
    free(x), free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(objective_never_rises),
        cmocka_unit_test(equals_the_reference),
        cmocka_unit_test(equal_weights_equal_none),
        cmocka_unit_test(weight_two_equals_a_point_twice),
        cmocka_unit_test(order_of_points_changes_only_rounding),
        cmocka_unit_test(enough_centroids_leave_no_error),
        cmocka_unit_test(equal_points_are_no_trouble),
        cmocka_unit_test(extreme_magnitudes),
        cmocka_unit_test(weights_of_zero_and_of_all_sizes),
        cmocka_unit_test(an_offset_costs_no_precision),
        cmocka_unit_test(stride_and_half_floats),
        cmocka_unit_test(threads_do_not_change_a_byte),
        cmocka_unit_test(seeds_differ_and_repeat),
        cmocka_unit_test(builds_agree),
        cmocka_unit_test(empty_clusters_are_repaired),
        cmocka_unit_test(seeding_beats_random),
        cmocka_unit_test(splits_of_any_number),
        cmocka_unit_test(swaps_lower_the_error),
        cmocka_unit_test(holdout_is_held_out),
        cmocka_unit_test(statistics),
        cmocka_unit_test(tolerance_stops_early),
        cmocka_unit_test(curve_is_the_error_of_each_iteration),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
