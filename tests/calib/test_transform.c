/* Transforms by what they promise: inverses, distances, decorrelation, balance; and moments against the formula. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "calib/row_moments.h"
#include "calib/transform.h"
#include "calib/transform_eigen.h"
#include "tests/support/cm.h"
#include "tests/support/synth.h"

enum { DIM = 24, CHANNELS = 4, GROUPS = DIM / CHANNELS, SQUARE = DIM * DIM };

typedef struct fixture {
    double covariance[SQUARE];
    float moment[SQUARE];
    float forward[SQUARE], inverse[SQUARE];
} fixture;

/* B diag(spread^2) B^T of random B: a covariance whose eigenvalues span orders of magnitude. */
static void random_psd(double *out, uint64_t key, double decay)
{
    float *b = synth_normals(SQUARE, key, 1.0);
    for (int i = 0; i < DIM; i++)
        for (int j = 0; j < DIM; j++) {
            double sum = 0.0;
            for (int k = 0; k < DIM; k++)
                sum += (double)b[i * DIM + k] * (double)b[j * DIM + k] * exp(-decay * k);
            out[i * DIM + j] = sum;
        }
    free(b);
}

static void setup(fixture *f)
{
    double moment[SQUARE];
    random_psd(f->covariance, 1, 0.3);
    random_psd(moment, 2, 0.2);
    for (int i = 0; i < SQUARE; i++)
        f->moment[i] = (float)moment[i];
}

static void make(fixture *f, kvb_rotation rotation, double alpha)
{
    kvb_error err = {0};
    kvb_transform_request r = {.dim = DIM, .channels = CHANNELS, .rotation = rotation, .moment = f->moment,
                               .alpha = alpha, .ridge = 1e-3, .covariance = f->covariance, .seed = 9};
    if (alpha < 0.0)
        r.moment = NULL;
    if (kvb_transform_make(&r, f->forward, f->inverse, &err) != KVB_OK)
        fail_msg("%s", err.message);
}

static double identity_error(const float *a, const float *b)
{
    double most = 0.0;
    for (int i = 0; i < DIM; i++)
        for (int j = 0; j < DIM; j++) {
            double sum = 0.0;
            for (int k = 0; k < DIM; k++)
                sum += (double)a[i * DIM + k] * (double)b[k * DIM + j];
            most = fmax(most, fabs(sum - (i == j)));
        }
    return most;
}

/* c = f covariance f^T */
static void transformed_covariance(const fixture *f, double *c)
{
    double half[SQUARE] = {0};
    memset(c, 0, SQUARE * sizeof *c);
    for (int i = 0; i < DIM; i++)
        for (int k = 0; k < DIM; k++)
            for (int j = 0; j < DIM; j++)
                half[i * DIM + j] += (double)f->forward[i * DIM + k] * f->covariance[k * DIM + j];
    for (int i = 0; i < DIM; i++)
        for (int j = 0; j < DIM; j++)
            for (int k = 0; k < DIM; k++)
                c[i * DIM + j] += half[i * DIM + k] * (double)f->forward[j * DIM + k];
}

static void test_inverse(void **state)
{
    (void)state;
    static const double alpha[] = {-1.0, 0.0, 0.5, 1.0};
    fixture f;
    setup(&f);
    for (int rotation = KVB_ROTATION_NONE; rotation <= KVB_ROTATION_RANDOM; rotation++)
        for (size_t i = 0; i < sizeof alpha / sizeof *alpha; i++) {
            make(&f, (kvb_rotation)rotation, alpha[i]);
            assert_true(identity_error(f.inverse, f.forward) < 1e-4);
            assert_true(identity_error(f.forward, f.inverse) < 1e-4);
        }
}

/* |forward z|^2 = z^T (M/mean diagonal + ridge)^alpha z: for alpha 1 the formula needs no power of a matrix, and alpha
 * 0.5 applied twice must be alpha 1. */
static void test_distance_is_the_metric(void **state)
{
    (void)state;
    fixture f;
    setup(&f);
    double trace = 0.0, metric[SQUARE], squared[SQUARE] = {0};
    for (int i = 0; i < DIM; i++)
        trace += (double)f.moment[i * DIM + i];
    for (int i = 0; i < SQUARE; i++)
        metric[i] = (double)f.moment[i] * DIM / trace + (i % (DIM + 1) == 0 ? 1e-3 : 0.0);
    for (int rotation = KVB_ROTATION_NONE; rotation <= KVB_ROTATION_RANDOM; rotation++)
        for (int half = 0; half < 2; half++) {
            make(&f, (kvb_rotation)rotation, half != 0 ? 0.5 : 1.0);
            double gram[SQUARE] = {0};
            for (int k = 0; k < DIM; k++)
                for (int i = 0; i < DIM; i++)
                    for (int j = 0; j < DIM; j++)
                        gram[i * DIM + j] += (double)f.forward[k * DIM + i] * (double)f.forward[k * DIM + j];
            memset(squared, 0, sizeof squared);
            for (int i = 0; i < DIM; i++)
                for (int k = 0; k < DIM; k++)
                    for (int j = 0; j < DIM; j++)
                        squared[i * DIM + j] += gram[i * DIM + k] * gram[k * DIM + j];
            for (int i = 0; i < SQUARE; i++)
                assert_true(fabs((half != 0 ? squared[i] : gram[i]) - metric[i]) < 1e-4);
        }
}

static void test_alpha_zero_is_no_metric(void **state)
{
    (void)state;
    fixture with, without;
    setup(&with);
    without = with;
    make(&with, KVB_ROTATION_BALANCED_PCA, 0.0);
    make(&without, KVB_ROTATION_BALANCED_PCA, -1.0);
    assert_memory_equal(with.forward, without.forward, sizeof with.forward);
    assert_memory_equal(with.inverse, without.inverse, sizeof with.inverse);
    make(&with, KVB_ROTATION_NONE, 0.0);
    for (int i = 0; i < SQUARE; i++)
        assert_true(with.forward[i] == (i % (DIM + 1) == 0 ? 1.0f : 0.0f));
}

/* Largest minus smallest sum of logarithms of the variances of a group. */
static double unbalance(const double *c)
{
    double least = INFINITY, most = -INFINITY;
    for (int g = 0; g < GROUPS; g++) {
        double sum = 0.0;
        for (int k = 0; k < CHANNELS; k++)
            sum += log(c[(g * CHANNELS + k) * (DIM + 1)]);
        least = fmin(least, sum);
        most = fmax(most, sum);
    }
    return most - least;
}

static void test_pca(void **state)
{
    (void)state;
    fixture f;
    double plain[SQUARE], balanced[SQUARE], random[SQUARE];
    setup(&f);
    make(&f, KVB_ROTATION_PCA, 0.5);
    transformed_covariance(&f, plain);
    make(&f, KVB_ROTATION_BALANCED_PCA, 0.5);
    transformed_covariance(&f, balanced);
    make(&f, KVB_ROTATION_RANDOM, 0.5);
    transformed_covariance(&f, random);
    double off_random = 0.0;
    for (int i = 0; i < DIM; i++)
        for (int j = 0; j < DIM; j++) {
            assert_true(i == j || fabs(plain[i * DIM + j]) < 1e-5 * plain[0]);
            assert_true(i == j || fabs(balanced[i * DIM + j]) < 1e-5 * plain[0]);
            off_random = i != j ? fmax(off_random, fabs(random[i * DIM + j])) : off_random;
        }
    assert_true(off_random > 1e-2 * plain[0]); /* or the zeros above would say nothing */
    for (int i = 1; i < DIM; i++)
        assert_true(plain[i * (DIM + 1)] <= plain[(i - 1) * (DIM + 1)]);
    assert_true(unbalance(balanced) < 0.25 * unbalance(plain));
    /* Groups hold their variances in descending order, one of each round. */
    for (int g = 0; g < GROUPS; g++)
        for (int k = 1; k < CHANNELS; k++)
            assert_true(balanced[(g * CHANNELS + k) * (DIM + 1)] <= balanced[(g * CHANNELS + k - 1) * (DIM + 1)]);
}

static void test_deal(void **state)
{
    (void)state;
    /* By hand: 64, 32, 16 to groups 0, 1, 2; then 8 to the smallest product (2), 4 to group 1, 2 to group 0: products
     * 128 each; then 1 to group 0 (lowest of equals), 1/2 to group 1, 1/4 to group 2. */
    static const double value[9] = {64, 32, 16, 8, 4, 2, 1, 0.5, 0.25};
    static const uint32_t expected[9] = {0, 5, 6, 1, 4, 7, 2, 3, 8};
    static const double zeros[4] = {0};
    uint32_t order[9];
    kvb_transform_deal(value, 9, 3, order);
    assert_memory_equal(order, expected, sizeof expected);
    kvb_transform_deal(value, 9, 9, order);
    for (uint32_t i = 0; i < 9; i++)
        assert_int_equal(order[i], i);
    kvb_transform_deal(zeros, 4, 2, order);
    bool seen[4] = {false};
    for (int i = 0; i < 4; i++)
        seen[order[i]] = true;
    assert_true(seen[0] && seen[1] && seen[2] && seen[3]);
}

/* Rank 1, a constant channel, nothing at all: still a transform and its inverse. */
static void test_degenerate(void **state)
{
    (void)state;
    fixture f;
    for (int which = 0; which < 3; which++)
        for (int rotation = KVB_ROTATION_PCA; rotation <= KVB_ROTATION_BALANCED_PCA; rotation++) {
            setup(&f);
            for (int i = 0; i < DIM; i++)
                for (int j = 0; j < DIM; j++) {
                    double *c = &f.covariance[i * DIM + j];
                    *c = which == 0 ? (i + 1.0) * (j - 3.0 + 4.0) : which == 1 ? (i == 5 || j == 5 ? 0.0 : *c) : 0.0;
                    f.moment[i * DIM + j] = i == 0 && j == 0 ? 7.0f : 0.0f;
                }
            make(&f, (kvb_rotation)rotation, 0.5);
            assert_true(identity_error(f.inverse, f.forward) < 1e-4);
        }
}

static void refuse(const kvb_transform_request *r, const char *part)
{
    float forward[SQUARE], inverse[SQUARE];
    kvb_error err = {0};
    assert_int_equal(kvb_transform_make(r, forward, inverse, &err), KVB_E_CHECK);
    assert_non_null(strstr(err.message, part));
}

static void test_refused(void **state)
{
    (void)state;
    fixture f;
    setup(&f);
    kvb_transform_request r = {.dim = DIM, .channels = CHANNELS, .rotation = KVB_ROTATION_PCA, .moment = f.moment,
                               .alpha = 0.5, .ridge = 1e-3, .covariance = f.covariance};
    f.covariance[7] = NAN;
    refuse(&r, "covariance");
    setup(&f);
    f.moment[3] = INFINITY;
    refuse(&r, "NaN or infinity");
    memset(f.moment, 0, sizeof f.moment);
    refuse(&r, "trace of 0");
    /* A rotation to the metric's own axes would save the digits; without one they are lost. */
    r.alpha = 2.0;
    r.ridge = 1e-9;
    r.rotation = KVB_ROTATION_NONE;
    for (int i = 0; i < SQUARE; i++)
        f.moment[i] = (float)((i / DIM + 1) * (i % DIM + 1));
    refuse(&r, "larger ridge");
}

static void test_eigen(void **state)
{
    (void)state;
    double a[SQUARE], v[SQUARE], value[DIM];
    random_psd(a, 5, 0.1);
    memcpy(v, a, sizeof v);
    assert_int_equal(kvb_eigen_symmetric(v, DIM, value, NULL), KVB_OK);
    for (int e = 0; e < DIM; e++) {
        double largest = 0.0;
        for (int i = 0; i < DIM; i++) {
            double sum = 0.0;
            for (int j = 0; j < DIM; j++)
                sum += a[i * DIM + j] * v[e * DIM + j];
            assert_true(fabs(sum - value[e] * v[e * DIM + i]) < 1e-9 * value[0]);
            largest = fabs(v[e * DIM + i]) > fabs(largest) ? v[e * DIM + i] : largest;
        }
        assert_true(largest > 0.0);
        assert_true(e == 0 || value[e] <= value[e - 1]);
    }
    double one = 4.0;
    assert_int_equal(kvb_eigen_symmetric(&one, 1, value, NULL), KVB_OK);
    assert_true(value[0] == 4.0 && one == 1.0);
}

static void check_moments(size_t n, uint32_t dim, bool weighted)
{
    float *x = synth_normals(n * dim, n + dim, 2.0), *w = synth_normals(n, 3, 1.0);
    double *got = malloc((dim + 1) * dim * sizeof *got), *more = malloc((dim + 1) * dim * sizeof *got);
    double *expected = malloc((dim + 1) * dim * sizeof *got), *mean = malloc(dim * sizeof *mean);
    for (size_t i = 0; i < n; i++) {
        w[i] = i % 5 == 3 ? 0.0f : expf(w[i]);
        x[i * dim] += 100.0f; /* a mean far from 0 must not cost digits */
    }
    const float *weight = weighted ? w : NULL;
    kvb_row_moments_reference(x, n, dim, weight, expected, expected + dim);
    assert_int_equal(kvb_row_moments(x, n, dim, weight, 1, got, got + dim, NULL), KVB_OK);
    for (size_t i = 0; i < dim * (dim + 1); i++)
        assert_true(fabs(got[i] - expected[i]) < 1e-9);
    for (int threads = 2; threads <= 5; threads += 3) {
        assert_int_equal(kvb_row_moments(x, n, dim, weight, threads, more, more + dim, NULL), KVB_OK);
        assert_memory_equal(got, more, (dim + 1) * dim * sizeof *got);
    }
    assert_int_equal(kvb_row_moments(x, n, dim, weight, 2, mean, NULL, NULL), KVB_OK);
    assert_memory_equal(got, mean, dim * sizeof *mean);
    free(x);
    free(w);
    free(got);
    free(more);
    free(expected);
    free(mean);
}

static void test_moments(void **state)
{
    (void)state;
    static const size_t rows[] = {1, 2, 31, 33, 700, 9001};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (uint32_t dim = 1; dim < 40; dim = dim * 3 + 1) {
            check_moments(rows[i], dim, false);
            check_moments(rows[i], dim, true);
        }
}

static void test_ranges(void **state)
{
    (void)state;
    for (size_t n = 0; n < 200; n += 7) {
        assert_int_equal(kvb_moment_range(n, 0), 0);
        assert_int_equal(kvb_moment_range(n, KVB_MOMENT_RANGES), n);
        for (size_t r = 0; r < KVB_MOMENT_RANGES; r++)
            assert_true(kvb_moment_range(n, r) <= kvb_moment_range(n, r + 1));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_inverse),    cmocka_unit_test(test_distance_is_the_metric),
        cmocka_unit_test(test_alpha_zero_is_no_metric), cmocka_unit_test(test_pca), cmocka_unit_test(test_deal),
        cmocka_unit_test(test_degenerate), cmocka_unit_test(test_refused), cmocka_unit_test(test_eigen),
        cmocka_unit_test(test_moments),    cmocka_unit_test(test_ranges),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
