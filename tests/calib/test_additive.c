/* Additive training: the least squares of one round against the formula point by point, and what whole runs promise. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "calib/additive.h"
#include "calib/additive_fit.h"
#include "format/base/half.h"
#include "format/base/nearest.h"
#include "format/base/rng.h"
#include "tests/support/cm.h"
#include "tests/support/synth.h"

enum { MOST = 64 }; /* unknown rows in these tests */

/* --- one round --- */

/* Points with codes given to them, and everything a round starts from. */
typedef struct round_case {
    kvb_additive_shape shape;
    size_t count;
    float *x, *weight, *rows; /* [n][d], [n], [M][Km][d] */
    uint32_t *code;
    double *moments, *scratch;
} round_case;

static void make_round(round_case *r, uint32_t stages, uint32_t rows, uint32_t channels, size_t count, uint32_t skip)
{
    assert_true(kvb_additive_shape_of(stages, rows, channels, &r->shape));
    const size_t k = r->shape.codes, d = channels, unknown = (size_t)stages * rows;
    r->count = count;
    r->x = synth_normals(count * d, 1 + rows, 1.0);
    r->weight = synth_normals(count, 2, 1.0);
    r->rows = synth_normals(unknown * d, 3, 1.0);
    r->code = malloc(count * sizeof *r->code);
    r->moments = calloc(k * (d + 1), sizeof *r->moments);
    r->scratch = malloc(kvb_additive_scratch(&r->shape) * sizeof *r->scratch);
    for (size_t i = 0; i < count; i++) {
        r->weight[i] = r->weight[i] * r->weight[i];
        r->code[i] = (uint32_t)kvb_rng_below(7, i, k);
        if (r->code[i] % rows == skip) /* row `skip` of stage 0 gets no points */
            r->code[i] ^= 1;
        for (size_t c = 0; c < d; c++)
            r->moments[r->code[i] * (d + 1) + c] += (double)r->weight[i] * (double)r->x[i * d + c];
        r->moments[r->code[i] * (d + 1) + d] += (double)r->weight[i];
    }
}

static void free_round(round_case *r)
{
    free(r->x);
    free(r->weight);
    free(r->rows);
    free(r->code);
    free(r->moments);
    free(r->scratch);
}

/* Gauss with pivots on the full normal matrix, added up point by point: [n][n] t = right [n][d]. */
static void gauss(double *a, double *right, size_t n, size_t d)
{
    for (size_t i = 0; i < n; i++) {
        size_t pivot = i;
        for (size_t j = i + 1; j < n; j++)
            pivot = fabs(a[j * n + i]) > fabs(a[pivot * n + i]) ? j : pivot;
        for (size_t j = 0; j < n; j++) {
            double swap = a[i * n + j];
            a[i * n + j] = a[pivot * n + j];
            a[pivot * n + j] = swap;
        }
        for (size_t c = 0; c < d; c++) {
            double swap = right[i * d + c];
            right[i * d + c] = right[pivot * d + c];
            right[pivot * d + c] = swap;
        }
        for (size_t j = 0; j < n; j++) {
            double factor = j == i ? 0.0 : a[j * n + i] / a[i * n + i];
            for (size_t k = 0; k < n; k++)
                a[j * n + k] -= factor * a[i * n + k];
            for (size_t c = 0; c < d; c++)
                right[j * d + c] -= factor * right[i * d + c];
        }
    }
    for (size_t i = 0; i < n; i++)
        for (size_t c = 0; c < d; c++)
            right[i * d + c] /= a[i * n + i];
}

/* min_t sum_i w_i |x_i - sum_m t_m[c_m(i)]|^2 + ridge |t - rows|^2 */
static void reference_update(const round_case *r, double ridge, double *t)
{
    const size_t n = (size_t)r->shape.stages * r->shape.rows, d = r->shape.channels;
    double *a = calloc(n * n, sizeof *a);
    for (size_t i = 0; i < n; i++) {
        a[i * n + i] = ridge;
        for (size_t c = 0; c < d; c++)
            t[i * d + c] = ridge * (double)r->rows[i * d + c];
    }
    for (size_t i = 0; i < r->count; i++)
        for (uint32_t m = 0; m < r->shape.stages; m++) {
            size_t row = m * r->shape.rows + (size_t)(r->code[i] / pow(r->shape.rows, m)) % r->shape.rows;
            for (uint32_t l = 0; l < r->shape.stages; l++) {
                size_t other = l * r->shape.rows + (size_t)(r->code[i] / pow(r->shape.rows, l)) % r->shape.rows;
                a[row * n + other] += (double)r->weight[i];
            }
            for (size_t c = 0; c < d; c++)
                t[row * d + c] += (double)r->weight[i] * (double)r->x[i * d + c];
        }
    gauss(a, t, n, d);
    free(a);
}

static void check_round(uint32_t stages, uint32_t rows, uint32_t channels, size_t count, uint32_t skip)
{
    round_case r;
    double t[MOST * KVB_ADDITIVE_CHANNELS];
    make_round(&r, stages, rows, channels, count, skip);
    const size_t d = channels, values = (size_t)stages * rows * d;
    float *before = malloc(values * sizeof *before);
    memcpy(before, r.rows, values * sizeof *before);
    reference_update(&r, 0.01, t);
    assert_true(kvb_additive_update(&r.shape, r.moments, 0.01, r.rows, r.scratch));
    for (size_t i = 0; i < values; i++)
        assert_true(fabs((double)r.rows[i] - t[i]) < 1e-5 * (1.0 + fabs(t[i])));
    if (skip < rows) /* a row without points stays where it is */
        assert_memory_equal(r.rows + skip * d, before + skip * d, d * sizeof *before);
    free(before);
    free_round(&r);
}

static void test_update(void **state)
{
    (void)state;
    check_round(1, 8, 3, 500, 99);
    check_round(2, 16, 8, 3000, 99);
    check_round(2, 16, 1, 3000, 5);
    check_round(3, 4, 5, 60, 0);
    check_round(8, 4, 2, 5000, 99);
    check_round(5, 2, 64, 200, 1);
}

/* Weights that double cannot solve for leave the rows as they were. */
static void test_update_without_solution(void **state)
{
    (void)state;
    round_case r;
    make_round(&r, 2, 4, 2, 100, 99);
    float before[16];
    memcpy(before, r.rows, sizeof before);
    r.moments[2] = INFINITY;
    assert_false(kvb_additive_update(&r.shape, r.moments, 0.01, r.rows, r.scratch));
    assert_memory_equal(before, r.rows, sizeof before);
    free_round(&r);
}

static void test_expand(void **state)
{
    (void)state;
    kvb_additive_shape shape;
    const float rows[12] = {1, 2, 3, 4, 10, 20, 30, 40, 100, 200, 300, 400}; /* 3 stages of 2 rows of 2 channels */
    float sums[16];
    assert_true(kvb_additive_shape_of(3, 2, 2, &shape));
    assert_int_equal(shape.codes, 8);
    kvb_additive_expand(&shape, rows, sums);
    assert_true(sums[0] == 111 && sums[1] == 222);  /* code 0 */
    assert_true(sums[2] == 113 && sums[3] == 224);  /* code 1: row 1 of stage 0 */
    assert_true(sums[8] == 311 && sums[9] == 422);  /* code 4: row 1 of stage 2 */
    assert_true(sums[14] == 333 && sums[15] == 444);
}

static void test_shapes(void **state)
{
    (void)state;
    kvb_additive_shape s;
    assert_true(kvb_additive_shape_of(8, 4, 64, &s) && s.codes == 65536);
    assert_true(kvb_additive_shape_of(2, 256, 1, &s) && s.codes == 65536);
    assert_false(kvb_additive_shape_of(0, 16, 8, &s));
    assert_false(kvb_additive_shape_of(9, 2, 8, &s));
    assert_false(kvb_additive_shape_of(2, 512, 8, &s));
    assert_false(kvb_additive_shape_of(2, 1, 8, &s));
    assert_false(kvb_additive_shape_of(2, 12, 8, &s));
    assert_false(kvb_additive_shape_of(2, 16, 65, &s));
    assert_false(kvb_additive_shape_of(2, 16, 0, &s));
}

/* --- whole runs --- */

enum { POINTS = 5000, D = 6, STAGES = 2, KM = 8 };

/* Clusters of clusters far from zero, with skewed weights: sums of a row of one set and a row of another, and noise. */
static void make_points(float *x, float *weight)
{
    float *coarse = synth_normals(KM * D, 11, 3.0), *fine = synth_normals(KM * D, 12, 1.0);
    float *noise = synth_normals(POINTS * D, 13, 0.3), *w = synth_normals(POINTS, 14, 1.0);
    for (size_t i = 0; i < POINTS; i++) {
        size_t a = kvb_rng_below(15, i, KM), b = kvb_rng_below(16, i, KM);
        weight[i] = expf(w[i]);
        for (size_t c = 0; c < D; c++)
            x[i * D + c] = 40.0f + coarse[a * D + c] + fine[b * D + c] + noise[i * D + c];
    }
    free(coarse);
    free(fine);
    free(noise);
    free(w);
}

typedef struct run_case {
    float x[POINTS * D], weight[POINTS], table[STAGES * KM * D];
    kvb_kmeans_problem problem;
    kvb_kmeans_result result;
    kvb_additive_options options;
} run_case;

static run_case run;

static void make_run(void)
{
    make_points(run.x, run.weight);
    run.problem = (kvb_kmeans_problem){.points = run.x, .type = KVB_POINTS_F32, .count = POINTS, .stride = D, .channels = D,
                                       .centroids = KM, .weights = run.weight, .seed = 3, .table = run.table};
    kvb_additive_options_init(&run.options);
    run.options.kmeans.threads = 1;
}

static void train_run(void)
{
    const uint32_t stages = STAGES;
    kvb_error err = {0};
    if (kvb_additive_train(&run.problem, &stages, 1, &run.options, &run.result, &err) != KVB_OK)
        fail_msg("%s: %s", err.where, err.message);
}

/* Weighted error of the table, from the points and by the plain reference. */
static double reference_error(const float *table, size_t first, size_t last)
{
    kvb_additive_shape shape;
    float sums[KM * KM * D], distance;
    uint32_t index;
    double error = 0.0, total = 0.0;
    assert_true(kvb_additive_shape_of(STAGES, KM, D, &shape));
    kvb_additive_expand(&shape, table, sums);
    for (size_t i = first; i < last; i++) {
        kvb_nearest_reference(sums, D, KM * KM, run.x + i * D, D, 1, &index, &distance);
        error += (double)run.weight[i] * (double)distance;
        total += (double)run.weight[i];
    }
    return error / total / D;
}

static void test_error_never_rises(void **state)
{
    (void)state;
    double before = INFINITY, start = 0.0;
    float *normals = synth_normals(POINTS * D, 21, 1.0); /* no structure: rounds go on improving */
    make_run();
    run.problem.points = normals;
    run.options.tolerance = 0.0;
    for (uint32_t rounds = 0; rounds <= 20; rounds++) {
        run.options.rounds = rounds;
        train_run();
        assert_true(run.result.train_error <= before * (1.0 + 1e-6));
        assert_int_equal(run.result.iterations, rounds);
        before = run.result.train_error;
        start = rounds == 0 ? before : start;
    }
    assert_true(before < 0.97 * start);
    run.options.tolerance = 0.5; /* no round after the first improves by half */
    train_run();
    assert_int_equal(run.result.iterations, 1);
    free(normals);
}

static void test_promises(void **state)
{
    (void)state;
    make_run();
    train_run();
    double error = reference_error(run.table, 0, POINTS);
    assert_true(fabs(error - run.result.train_error) < 1e-4 * error);
    assert_true(run.result.train_error < 0.1 * run.result.variance);
    assert_true(isnan(run.result.heldout_error));
    assert_int_equal(run.result.used, STAGES * KM);
    assert_true(run.result.entropy > 4.0 && run.result.entropy <= 6.0);
    /* The points are sums of two sets of 8: as good as 64 free centroids, and far better than 8. */
    kvb_kmeans_result plain[2];
    float table[KM * KM * D];
    kvb_kmeans_problem problem = run.problem;
    problem.table = table;
    for (int i = 0; i < 2; i++) {
        problem.centroids = i == 0 ? KM : KM * KM;
        assert_int_equal(kvb_kmeans_train(&problem, 1, &run.options.kmeans, plain + i, NULL), KVB_OK);
    }
    assert_true(run.result.train_error < 0.3 * plain[0].train_error);
    assert_true(run.result.train_error < 1.15 * plain[1].train_error);
    float first[STAGES * KM * D];
    memcpy(first, run.table, sizeof first);
    run.problem.seed++;
    train_run();
    assert_memory_not_equal(first, run.table, sizeof first);
    run.options.rounds = 0; /* the greedy start: each stage takes what the one before left */
    train_run();
    assert_int_equal(run.result.iterations, 0);
    assert_true(run.result.train_error < 0.6 * plain[0].train_error);
    assert_true(fabs(run.result.variance - plain[0].variance) < 1e-5 * plain[0].variance);
}

/* What is held out is measured and nothing else: other held-out points, the same rows. */
static void test_holdout(void **state)
{
    (void)state;
    float first[STAGES * KM * D];
    kvb_kmeans_result plain;
    make_run();
    run.options.kmeans.holdout_every = 4;
    run.options.kmeans.holdout_block = 250;
    train_run();
    memcpy(first, run.table, sizeof first);
    double heldout = 0.0;
    for (size_t block = 3; block < 20; block += 4)
        heldout += reference_error(run.table, block * 250, block * 250 + 250) / 5;
    assert_true(fabs(heldout - run.result.heldout_error) < 0.2 * heldout); /* blocks do not weigh the same */
    assert_true(run.result.heldout_error > run.result.train_error);
    kvb_kmeans_problem problem = run.problem;
    float table[KM * D];
    problem.table = table;
    assert_int_equal(kvb_kmeans_train(&problem, 1, &run.options.kmeans, &plain, NULL), KVB_OK);
    assert_true(fabs(run.result.heldout_variance - plain.heldout_variance) < 1e-5 * plain.heldout_variance);
    for (size_t i = 3 * 250 * D; i < 4 * 250 * D; i++)
        run.x[i] = 41.0f;
    double before = run.result.heldout_error;
    train_run();
    assert_memory_equal(first, run.table, sizeof first);
    assert_true(run.result.heldout_error != before);
}

/* Fewer different points than rows: later stages have nothing to do, and nothing breaks. */
static void test_few_different_points(void **state)
{
    (void)state;
    make_run();
    for (size_t i = 0; i < POINTS; i++)
        for (size_t c = 0; c < D; c++)
            run.x[i * D + c] = (float)(i % 5) + 10.0f * (float)c;
    train_run();
    for (size_t i = 0; i < STAGES * KM * D; i++)
        assert_true(isfinite(run.table[i]));
    assert_true(run.result.train_error < 1e-6 * run.result.variance);
    assert_true(run.result.entropy > 2.0 && run.result.entropy < 2.4 && run.result.used >= 5);
}

/* Halves, and floats whose squares no float holds: the same book but for a power of two. */
static void test_types_and_scales(void **state)
{
    (void)state;
    static uint16_t half[POINTS * D];
    static float scaled[POINTS * D];
    float first[STAGES * KM * D];
    make_run();
    kvb_half_from_floats(half, run.x, POINTS * D);
    kvb_half_to_floats(run.x, half, POINTS * D);
    train_run();
    memcpy(first, run.table, sizeof first);
    double error = run.result.train_error;
    run.problem.points = half;
    run.problem.type = KVB_POINTS_F16;
    train_run();
    assert_memory_equal(first, run.table, sizeof first);
    for (size_t i = 0; i < POINTS * D; i++)
        scaled[i] = run.x[i] * 0x1p100f;
    run.problem.points = scaled;
    run.problem.type = KVB_POINTS_F32;
    train_run();
    for (size_t i = 0; i < STAGES * KM * D; i++)
        assert_true(run.table[i] == first[i] * 0x1p100f);
    assert_true(fabs(run.result.train_error / error * 0x1p-200 - 1.0) < 1e-12);
}

/* Plain and additive problems in one batch, by any number of threads, as each alone. */
static void test_batch(void **state)
{
    (void)state;
    enum { COUNT = 5 };
    const uint32_t stages[COUNT] = {1, 2, 3, 1, 2}, centroids[COUNT] = {32, 8, 4, 16, 4};
    static float table[2][COUNT][64 * D];
    kvb_kmeans_result result[2][COUNT], alone;
    make_run();
    for (int threads = 1; threads <= 4; threads += 3) {
        kvb_kmeans_problem problem[COUNT];
        for (int i = 0; i < COUNT; i++) {
            problem[i] = run.problem;
            problem[i].channels = 3;
            problem[i].points = run.x + i % 2 * 3;
            problem[i].centroids = centroids[i];
            problem[i].seed = (uint64_t)i;
            problem[i].table = table[threads > 1][i];
        }
        run.options.kmeans.threads = (uint32_t)threads;
        assert_int_equal(kvb_additive_train(problem, stages, COUNT, &run.options, result[threads > 1], NULL), KVB_OK);
        problem[1].table = run.table;
        assert_int_equal(kvb_additive_train(problem + 1, stages + 1, 1, &run.options, &alone, NULL), KVB_OK);
        assert_memory_equal(run.table, table[threads > 1][1], 2 * 8 * 3 * sizeof(float));
    }
    assert_memory_equal(table[0], table[1], sizeof table[0]);
    for (int i = 0; i < COUNT; i++)
        assert_true(result[0][i].train_error == result[1][i].train_error && result[0][i].used == result[1][i].used);
}

static void expect_refused(kvb_status expected, const char *where, const char *part)
{
    const uint32_t stages[2] = {STAGES, STAGES};
    kvb_kmeans_problem problems[2] = {run.problem, run.problem};
    kvb_error err = {0};
    float table[STAGES * KM * D];
    make_run();
    problems[0] = run.problem;
    problems[0].table = table;
    kvb_status status = kvb_additive_train(problems, stages, 2, &run.options, NULL, &err);
    if (status != expected || strstr(err.where, where) == NULL || strstr(err.message, part) == NULL)
        fail_msg("%s: %s: %s", kvb_status_name(status), err.where, err.message);
}

static void test_refusals(void **state)
{
    (void)state;
    static float spoilt[POINTS * D], none[POINTS];
    make_run();
    run.problem.centroids = 12;
    expect_refused(KVB_E_USAGE, "problem 1", "12 rows");
    run.problem.centroids = 512;
    expect_refused(KVB_E_USAGE, "problem 1", "65536 sums");
    run.problem.stride = D - 1;
    expect_refused(KVB_E_USAGE, "problem 1", "stride");
    run.problem.count = KM - 1;
    expect_refused(KVB_E_USAGE, "problem 1", "7 of 7 points");
    run.problem.initial = run.x;
    expect_refused(KVB_E_USAGE, "problem 1", "no initial");
    memcpy(spoilt, run.x, sizeof spoilt);
    spoilt[700 * D + 2] = NAN;
    run.problem.points = spoilt;
    expect_refused(KVB_E_CHECK, "problem 1", "point 700");
    run.problem.weights = none;
    expect_refused(KVB_E_CHECK, "problem 1", "5000 training points are zero");
    none[9] = -1.0f;
    run.problem.weights = none;
    expect_refused(KVB_E_CHECK, "problem 1", "weight 9");
    run.options.tolerance = 2.0;
    const uint32_t stages = STAGES;
    assert_int_equal(kvb_additive_train(&run.problem, &stages, 1, &run.options, NULL, NULL), KVB_E_USAGE);
    assert_int_equal(kvb_additive_train(NULL, NULL, 0, &(kvb_additive_options){0}, NULL, NULL), KVB_OK);
}

typedef struct progress_log {
    uint64_t calls, last, stop_at;
} progress_log;

static int note_progress(void *user, const char *step, uint64_t done, uint64_t total)
{
    progress_log *log = user;
    (void)step;
    assert_true(done >= log->last && done <= total);
    assert_int_equal(total, 3);
    log->last = done;
    return ++log->calls == log->stop_at;
}

static void test_progress(void **state)
{
    (void)state;
    const uint32_t stages[3] = {1, STAGES, STAGES};
    static float table[3][STAGES * KM * D];
    kvb_kmeans_problem problem[3];
    progress_log log = {0};
    make_run();
    for (int i = 0; i < 3; i++) {
        problem[i] = run.problem;
        problem[i].table = table[i];
    }
    run.options.kmeans.progress = note_progress;
    run.options.kmeans.progress_user = &log;
    assert_int_equal(kvb_additive_train(problem, stages, 3, &run.options, NULL, NULL), KVB_OK);
    assert_int_equal(log.last, 3);
    for (uint64_t stop = 1; stop < log.calls; stop += 7) {
        progress_log stopped = {.stop_at = stop};
        run.options.kmeans.progress_user = &stopped;
        assert_int_equal(kvb_additive_train(problem, stages, 3, &run.options, NULL, NULL), KVB_E_CANCELLED);
        assert_true(stopped.calls == stop);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_update),   cmocka_unit_test(test_update_without_solution), cmocka_unit_test(test_expand),
        cmocka_unit_test(test_shapes),   cmocka_unit_test(test_error_never_rises),       cmocka_unit_test(test_promises),
        cmocka_unit_test(test_holdout),  cmocka_unit_test(test_types_and_scales),        cmocka_unit_test(test_batch),
        cmocka_unit_test(test_refusals), cmocka_unit_test(test_progress),
        cmocka_unit_test(test_few_different_points),
    };
    return cmocka_run_group_tests_name("additive", tests, NULL, NULL);
}
