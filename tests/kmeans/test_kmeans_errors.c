/* What kvb_kmeans_train() refuses, how it says so, and how it stops. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kvbook/kmeans.h"
#include "tests/kmeans/kmeans_testdata.h"

enum { N = 100, D = 4, K = 8 };

typedef struct setup {
    float x[N * D], w[N], start[K * D], table[K * D];
    kvb_kmeans_problem problem;
    kvb_kmeans_options options;
    kvb_error err;
} setup;

static void prepare(setup *s)
{
    for (int i = 0; i < N * D; i++)
        s->x[i] = (float)test_normal(7, (uint64_t)i);
    for (int i = 0; i < N; i++)
        s->w[i] = 1.0f + (float)i;
    memcpy(s->start, s->x, sizeof s->start);
    s->problem = (kvb_kmeans_problem){.points = s->x, .type = KVB_POINTS_F32, .count = N, .stride = D, .channels = D,
                                      .centroids = K, .weights = s->w, .initial = s->start, .table = s->table};
    kvb_kmeans_options_init(&s->options);
    memset(&s->err, 0, sizeof s->err);
}

/* The second of two problems is the bad one: the error must name it and `text`. */
static void expect(setup *s, kvb_status status, const char *text)
{
    setup good;
    prepare(&good);
    kvb_kmeans_problem both[2] = {good.problem, s->problem};
    for (size_t i = 0; i < K * D; i++)
        good.table[i] = s->table[i] = -77.0f;
    assert_int_equal(kvb_kmeans_train(both, 2, &s->options, NULL, &s->err), status);
    assert_int_equal(s->err.code, status);
    if (strstr(s->err.message, text) == NULL)
        fail_msg("expected \"%s\" in \"%s\"", text, s->err.message);
    for (size_t i = 0; i < K * D; i++) /* nothing was started */
        assert_true(good.table[i] < -76.0f && s->table[i] < -76.0f);
    assert_int_equal(kvb_kmeans_train(both, 2, &s->options, NULL, NULL), status);
}

static void expect_here(setup *s, kvb_status status, const char *text)
{
    expect(s, status, text);
    assert_string_equal(s->err.where, "k-means problem 1");
}

static void sizes(void **state)
{
    (void)state;
    setup s;
    prepare(&s), s.problem.points = NULL, expect_here(&s, KVB_E_USAGE, "points is NULL");
    prepare(&s), s.problem.table = NULL, expect_here(&s, KVB_E_USAGE, "table is NULL");
    prepare(&s), s.problem.type = (kvb_points_type)9, expect_here(&s, KVB_E_USAGE, "unknown type of points 9");
    prepare(&s), s.problem.channels = 0, expect_here(&s, KVB_E_USAGE, "0 channels: 1 to 64");
    prepare(&s), s.problem.channels = 65, s.problem.stride = 65, expect_here(&s, KVB_E_USAGE, "65 channels");
    prepare(&s), s.problem.centroids = 0, expect_here(&s, KVB_E_USAGE, "0 centroids: 1 to 65536");
    prepare(&s), s.problem.centroids = 65537, expect_here(&s, KVB_E_USAGE, "65537 centroids");
    prepare(&s), s.problem.stride = 3, expect_here(&s, KVB_E_USAGE, "stride 3 is smaller than the 4 channels");
    prepare(&s), s.problem.count = 7, expect_here(&s, KVB_E_USAGE, "7 points are fewer than the 8 centroids");
    prepare(&s), s.problem.count = 0, expect_here(&s, KVB_E_USAGE, "0 points are fewer");
    prepare(&s), s.problem.count = SIZE_MAX / 2, expect_here(&s, KVB_E_USAGE, "do not fit in memory");
}

static void values(void **state)
{
    (void)state;
    setup s;
    prepare(&s), s.x[42 * D + 3] = NAN, expect_here(&s, KVB_E_CHECK, "point 42 holds a NaN");
    prepare(&s), s.x[99 * D] = -INFINITY, expect_here(&s, KVB_E_CHECK, "point 99 holds an infinity");
    prepare(&s), s.w[13] = -1e-30f, expect_here(&s, KVB_E_CHECK, "weight 13 is -1e-30");
    prepare(&s), s.w[14] = NAN, expect_here(&s, KVB_E_CHECK, "weight 14 is");
    prepare(&s), s.w[15] = INFINITY, expect_here(&s, KVB_E_CHECK, "weight 15 is inf");
    prepare(&s), memset(s.w, 0, sizeof s.w), expect_here(&s, KVB_E_CHECK, "all 100 training points are zero");
    prepare(&s), s.start[5 * D] = NAN, expect_here(&s, KVB_E_CHECK, "initial centroid 5");
}

static void half_values(void **state)
{
    (void)state;
    setup s;
    uint16_t half[N * D] = {0};
    prepare(&s);
    s.problem.points = half;
    s.problem.type = KVB_POINTS_F16;
    half[50 * D + 1] = 0x7C00;
    expect_here(&s, KVB_E_CHECK, "point 50 holds an infinity");
    half[50 * D + 1] = 0x7E00;
    expect_here(&s, KVB_E_CHECK, "point 50 holds a NaN");
}

static void holdout_that_leaves_too_little(void **state)
{
    (void)state;
    setup s;
    prepare(&s);
    s.problem.count = 10;
    s.options.holdout_every = 2;
    s.options.holdout_block = 5;
    expect(&s, KVB_E_USAGE, "5 of 10 points are left for training after the hold-out, fewer than the 8 centroids");
}

static void options(void **state)
{
    (void)state;
    setup s;
    prepare(&s), s.options.struct_size = 0, expect(&s, KVB_E_USAGE, "struct_size is 0");
    prepare(&s), s.options.seeding = (kvb_kmeans_seeding)7, expect(&s, KVB_E_USAGE, "unknown seeding 7");
    prepare(&s), s.options.tolerance = NAN, expect(&s, KVB_E_USAGE, "tolerance nan");
    prepare(&s), s.options.tolerance = -1.0, expect(&s, KVB_E_USAGE, "tolerance -1");
    prepare(&s), s.options.holdout_every = 1, expect(&s, KVB_E_USAGE, "hold every point out");
    prepare(&s), s.options.holdout_every = 2, s.options.holdout_block = 0, expect(&s, KVB_E_USAGE, "holdout_block");
    assert_int_equal(kvb_kmeans_train(NULL, 1, NULL, NULL, NULL), KVB_E_USAGE);
    assert_int_equal(kvb_kmeans_train(NULL, 0, NULL, NULL, NULL), KVB_OK);
    prepare(&s);
    s.options.struct_size = sizeof s.options.struct_size + sizeof s.options.iterations; /* an older caller */
    s.options.seeding = (kvb_kmeans_seeding)7;
    assert_int_equal(kvb_kmeans_train(&s.problem, 1, &s.options, NULL, NULL), KVB_OK);
}

typedef struct meter {
    uint64_t calls, stop_at, last, total;
    int bad;
} meter;

static int on_progress(void *user, const char *step, uint64_t done, uint64_t total)
{
    meter *m = user;
    m->bad |= step == NULL || done > total || done < m->last;
    m->last = done;
    m->total = total;
    return ++m->calls == m->stop_at;
}

static void progress_and_cancel(void **state)
{
    (void)state;
    for (uint32_t threads = 1; threads <= 3; threads++)
        for (uint64_t stop = 0; stop < 12; stop++) {
            setup s;
            meter m = {.stop_at = stop};
            prepare(&s);
            s.problem.initial = NULL;
            s.options.threads = threads;
            s.options.progress = on_progress;
            s.options.progress_user = &m;
            kvb_kmeans_problem three[3] = {s.problem, s.problem, s.problem};
            float tables[3][K * D];
            for (int i = 0; i < 3; i++)
                three[i].table = tables[i];
            kvb_status status = kvb_kmeans_train(three, 3, &s.options, NULL, &s.err);
            assert_int_equal(m.bad, 0);
            assert_int_equal(m.total, 3 * 15);
            if (stop == 0 || m.calls < stop)
                assert_int_equal(status, KVB_OK);
            else {
                assert_int_equal(status, KVB_E_CANCELLED);
                assert_int_equal(m.calls, stop); /* not asked again */
            }
        }
}

/* Callers whose struct is shorter than the library's: nothing is written past what they have, and what they have serves. */
static void older_callers(void **state)
{
    (void)state;
    setup s;
    for (size_t size = offsetof(kvb_kmeans_options, swap_rounds); size <= sizeof s.options; size += sizeof(uint32_t)) {
        uint8_t *after = (uint8_t *)&s.options + size;
        prepare(&s);
        memset(&s.options, 0xA5, sizeof s.options);
        kvb_kmeans_options_init_sized(&s.options, size);
        assert_int_equal(s.options.struct_size, size);
        assert_int_equal(s.options.iterations, 15);
        for (size_t i = 0; i < sizeof s.options - size; i++)
            assert_int_equal(after[i], 0xA5);
        assert_int_equal(kvb_kmeans_train(&s.problem, 1, &s.options, NULL, &s.err), KVB_OK);
    }
    /* The symbol itself, as found at run time. */
    uint8_t *after = (uint8_t *)&s.options + offsetof(kvb_kmeans_options, swap_rounds);
    memset(&s.options, 0xA5, sizeof s.options);
    (kvb_kmeans_options_init)(&s.options);
    assert_int_equal(s.options.struct_size, offsetof(kvb_kmeans_options, swap_rounds));
    for (uint8_t *p = after; p < (uint8_t *)(&s.options + 1); p++)
        assert_int_equal(*p, 0xA5);
    assert_int_equal(kvb_kmeans_train(&s.problem, 1, &s.options, NULL, &s.err), KVB_OK);
    /* A newer one: what the library does not know of is the caller's own. */
    _Alignas(kvb_kmeans_options) uint8_t longer[sizeof s.options + 8];
    memset(longer, 0xA5, sizeof longer);
    kvb_kmeans_options_init_sized((kvb_kmeans_options *)(void *)longer, sizeof longer);
    for (size_t i = sizeof s.options; i < sizeof longer; i++)
        assert_int_equal(longer[i], 0xA5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes),
        cmocka_unit_test(values),
        cmocka_unit_test(half_values),
        cmocka_unit_test(holdout_that_leaves_too_little),
        cmocka_unit_test(options),
        cmocka_unit_test(older_callers),
        cmocka_unit_test(progress_and_cancel),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
