/* FAISS beside our own iterations from the same start. In a build without it: that it is refused. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kvbook/kmeans.h"
#include "tests/kmeans/kmeans_testdata.h"
#include "tests/support/cm.h"

enum { N = 3000, D = 8, K = 64, BATCH = 12, ITERATIONS = 10 };

static kvb_kmeans_options options_of(kvb_kmeans_backend backend)
{
    kvb_kmeans_options options;
    kvb_kmeans_options_init(&options);
    options.backend = backend;
    options.iterations = ITERATIONS;
    options.swap_rounds = 0;
    return options;
}

#ifdef KVB_FAISS
static double mean_error(const kvb_kmeans_problem *problems, kvb_kmeans_backend backend)
{
    kvb_kmeans_options options = options_of(backend);
    kvb_kmeans_result results[BATCH];
    kvb_error err = {0};
    double sum = 0.0;
    if (kvb_kmeans_train(problems, BATCH, &options, results, &err) != KVB_OK)
        fail_msg("%s: %s", err.where, err.message);
    for (size_t i = 0; i < BATCH; i++) {
        assert_int_equal(results[i].iterations, ITERATIONS);
        sum += results[i].train_error / results[i].variance;
    }
    return sum / BATCH;
}

static void agrees(bool weighted)
{
    kvb_kmeans_problem problems[BATCH];
    float *x[BATCH], *w[BATCH], *table = malloc(BATCH * K * D * sizeof *table);
    for (uint32_t i = 0; i < BATCH; i++) {
        x[i] = test_mixture(N, D, i);
        w[i] = test_weights(N, i);
        problems[i] = (kvb_kmeans_problem){.points = x[i], .count = N, .stride = D, .channels = D, .centroids = K,
                                           .weights = weighted ? w[i] : NULL, .initial = x[i],
                                           .table = table + i * K * D};
    }
    double own = mean_error(problems, KVB_KMEANS_OWN), faiss = mean_error(problems, KVB_KMEANS_FAISS);
    if (!(fabs(faiss / own - 1.0) < 1e-3))
        fail_msg("mean error %.8g, FAISS's %.8g", own, faiss);
    for (uint32_t i = 0; i < BATCH; i++)
        free(x[i]), free(w[i]);
    free(table);
}

static void agrees_without_weights(void **state)
{
    (void)state;
    agrees(false);
}

static void agrees_with_weights(void **state)
{
    (void)state;
    agrees(true);
}

/* More than 256 points a centroid, which 1.7.3 would train on a sample of: with one centroid the result is the mean. */
static void uses_every_point(void **state)
{
    (void)state;
    float *x = test_mixture(N, D, 1), table[D];
    kvb_kmeans_problem p = {.points = x, .count = N, .stride = D, .channels = D, .centroids = 1, .table = table};
    kvb_kmeans_options options = options_of(KVB_KMEANS_FAISS);
    kvb_kmeans_result r;
    assert_int_equal(kvb_kmeans_train(&p, 1, &options, &r, NULL), KVB_OK);
    assert_true(fabs(r.train_error / r.variance - 1.0) < 1e-6);
    free(x);
}

/* Small weights and centroids that no point is near: FAISS alone would look for a cluster to split for ever. */
static void empty_clusters_end(void **state)
{
    (void)state;
    float *x = test_mixture(N, D, 1), *w = malloc(N * sizeof *w), start[K * D], table[K * D];
    for (size_t i = 0; i < N; i++)
        w[i] = (i % 7 == 0 ? 1.0f : 1e-6f) / N;
    for (size_t i = 0; i < K * D; i++)
        start[i] = i < D ? 0.0f : 1000.0f;
    kvb_kmeans_problem p = {.points = x, .count = N, .stride = D, .channels = D, .centroids = K, .weights = w,
                            .initial = start, .table = table};
    kvb_kmeans_options options = options_of(KVB_KMEANS_FAISS);
    kvb_kmeans_result r;
    alarm(120); /* a hang is a failure, not a wait */
    assert_int_equal(kvb_kmeans_train(&p, 1, &options, &r, NULL), KVB_OK);
    assert_true(isfinite(r.train_error) && r.used > 1);
    for (size_t i = 0; i < K * D; i++)
        assert_true(isfinite(table[i]));
    /* As many centroids as points, and most of the weight on one of them. */
    p.count = K;
    w[0] = 1e6f;
    assert_int_equal(kvb_kmeans_train(&p, 1, &options, &r, NULL), KVB_OK);
    alarm(0);
    free(x), free(w);
}
#else
static void without_it_it_is_refused(void **state)
{
    (void)state;
    float x[4] = {1, 2, 3, 4}, table[2];
    kvb_kmeans_problem p = {.points = x, .count = 4, .stride = 1, .channels = 1, .centroids = 2, .table = table};
    kvb_kmeans_options options = options_of(KVB_KMEANS_FAISS);
    kvb_error err = {0};
    assert_true(kvb_kmeans_has_backend(KVB_KMEANS_OWN));
    assert_false(kvb_kmeans_has_backend(KVB_KMEANS_FAISS));
    assert_int_equal(kvb_kmeans_train(&p, 1, &options, NULL, &err), KVB_E_USAGE);
    assert_non_null(strstr(err.message, "make FAISS=1"));
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
#ifdef KVB_FAISS
        cmocka_unit_test(agrees_without_weights),
        cmocka_unit_test(agrees_with_weights),
        cmocka_unit_test(uses_every_point),
        cmocka_unit_test(empty_clusters_end),
#else
        cmocka_unit_test(without_it_it_is_refused),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
