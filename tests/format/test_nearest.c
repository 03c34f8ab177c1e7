/* kvb_nearest against the formula: every build, odd sizes, ties, far-away data, independence of neighbours. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "format/base/nearest.h"
#include "format/base/rng.h"

static const char *const builds[] = {"plain", "avx2", "avx512"};
enum { BUILDS = 3 };

static float *random_rows(size_t n, uint32_t d, uint64_t seed, float scale, float offset)
{
    float *x = malloc(n * d * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < n * d; i++)
        x[i] = offset + scale * (float)(kvb_rng_unit(seed, 3 * i) + kvb_rng_unit(seed, 3 * i + 1) - 1.0);
    return x;
}

static double distance_of(const float *x, const float *c, uint32_t d)
{
    double sum = 0.0;
    for (uint32_t k = 0; k < d; k++)
        sum += ((double)x[k] - c[k]) * ((double)x[k] - c[k]);
    return sum;
}

/* The index may differ from the reference's only where the two distances agree to rounding. */
static void check_against_reference(const char *build, uint32_t d, uint32_t count, size_t n, size_t stride,
                                    float offset)
{
    kvb_nearest *t = kvb_nearest_create_named(d, count, build);
    if (t == NULL)
        return;
    float *x = random_rows(n, (uint32_t)stride, 7 * d + count, 1.0f, offset);
    float *c = random_rows(count, d, 11 * d + count, 1.0f, offset);
    uint32_t *want = malloc(n * sizeof *want), *got = malloc((n + 1) * sizeof *got);
    float *want_d = malloc(n * sizeof *want_d), *got_d = malloc((n + 1) * sizeof *got_d);
    got[n] = 12345;
    got_d[n] = -1.0f;
    kvb_nearest_set(t, c);
    kvb_nearest_find(t, x, stride, n, got, got_d);
    kvb_nearest_reference(c, d, count, x, stride, n, want, want_d);
    assert_int_equal(got[n], 12345);
    assert_true(got_d[n] == -1.0f);
    for (size_t i = 0; i < n; i++) {
        assert_true(got[i] < count);
        double found = distance_of(x + i * stride, c + (size_t)got[i] * d, d);
        assert_true(fabs(got_d[i] - found) <= 1e-5 * (found + 1e-6));
        if (got[i] != want[i])
            assert_true(found - want_d[i] <= 2e-6 * d);
    }
    free(x), free(c), free(want), free(got), free(want_d), free(got_d);
    kvb_nearest_destroy(t);
}

static void equals_reference(void **state)
{
    (void)state;
    static const uint32_t channels[] = {1, 2, 3, 4, 5, 7, 8, 12, 16, 17, 31, 32, 33, 64, 100, 256};
    static const uint32_t counts[] = {1, 2, 15, 16, 17, 32, 33, 64, 100, 256};
    static const size_t points[] = {1, 5, 6, 16, 47, 48, 49, 131};
    for (size_t b = 0; b < BUILDS; b++)
        for (size_t i = 0; i < sizeof channels / sizeof *channels; i++)
            for (size_t j = 0; j < sizeof counts / sizeof *counts; j++) {
                size_t n = points[(i * 3 + j) % (sizeof points / sizeof *points)];
                check_against_reference(builds[b], channels[i], counts[j], n, channels[i] + (j % 3) * 5, 0.0f);
            }
}

static void far_from_zero_loses_no_digits(void **state)
{
    (void)state;
    for (size_t b = 0; b < BUILDS; b++)
        check_against_reference(builds[b], 8, 256, 500, 8, 1000.0f);
}

static void ties_go_to_the_lowest_index(void **state)
{
    (void)state;
    static const uint32_t counts[] = {8, 40, 300};
    for (size_t b = 0; b < BUILDS; b++)
        for (size_t j = 0; j < 3; j++) {
            uint32_t d = 6, count = counts[j], n = 100, got[100];
            kvb_nearest *t = kvb_nearest_create_named(d, count, builds[b]);
            if (t == NULL)
                continue;
            float *x = random_rows(n, d, 5, 1.0f, 0.0f), *c = random_rows(count, d, 6, 1.0f, 0.0f);
            for (uint32_t k = 0; k < count / 4; k++) /* every centroid four times, twice in a row */
                memcpy(c + (size_t)(2 * k + 1) * d, c + (size_t)(2 * k) * d, d * sizeof *c);
            memcpy(c + (size_t)count / 2 * d, c, (size_t)count / 2 * d * sizeof *c);
            kvb_nearest_set(t, c);
            kvb_nearest_find(t, x, d, n, got, NULL);
            for (uint32_t i = 0; i < n; i++)
                assert_true(got[i] < count / 2 && got[i] % 2 == 0);
            kvb_nearest_find(t, x, d, 1, got, NULL);
            assert_true(got[0] < count / 2 && got[0] % 2 == 0);
            free(x), free(c);
            kvb_nearest_destroy(t);
        }
}

static void result_does_not_depend_on_neighbours(void **state)
{
    (void)state;
    static const uint32_t counts[] = {20, 300};
    for (size_t b = 0; b < BUILDS; b++)
        for (size_t j = 0; j < 2; j++) {
            uint32_t d = 5, n = 200, all[200], one;
            kvb_nearest *t = kvb_nearest_create_named(d, counts[j], builds[b]);
            if (t == NULL)
                continue;
            float *x = random_rows(n, d, 5, 1.0f, 0.0f), *c = random_rows(counts[j], d, 6, 0.01f, 0.0f);
            float all_d[200], one_d;
            kvb_nearest_set(t, c);
            kvb_nearest_find(t, x, d, n, all, all_d);
            for (uint32_t i = 0; i < n; i++) {
                kvb_nearest_find(t, x + (size_t)i * d, d, 1, &one, &one_d);
                assert_int_equal(one, all[i]);
                assert_memory_equal(&one_d, &all_d[i], sizeof one_d);
            }
            free(x), free(c);
            kvb_nearest_destroy(t);
        }
}

static void packed_equals_unpacked(void **state)
{
    (void)state;
    for (size_t b = 0; b < BUILDS; b++) {
        uint32_t d = 8, count = 64, n = 333, direct[333], packed_index[333];
        kvb_nearest *t = kvb_nearest_create_named(d, count, builds[b]);
        if (t == NULL)
            continue;
        float *x = random_rows(n, d, 5, 1.0f, 3.0f), *c = random_rows(count, d, 6, 1.0f, 3.0f);
        float origin[8] = {3, 3, 3, 3, 3, 3, 3, 3}, direct_d[333], packed_d[333];
        float *packed = malloc(kvb_nearest_packed_floats(d, n) * sizeof *packed);
        kvb_nearest_set_around(t, c, origin);
        kvb_nearest_find(t, x, d, n, direct, direct_d);
        kvb_nearest_pack(packed, d, x, d, n, origin);
        kvb_nearest_find_packed(t, packed, n, packed_index, packed_d);
        assert_memory_equal(direct, packed_index, sizeof direct);
        for (uint32_t i = 0; i < n; i++)
            assert_true(fabsf(direct_d[i] - packed_d[i]) < 1e-5f);
        free(x), free(c), free(packed);
        kvb_nearest_destroy(t);
    }
}

static void bad_points_get_some_valid_index(void **state)
{
    (void)state;
    for (size_t b = 0; b < BUILDS; b++)
        for (uint32_t count = 3; count < 100; count += 46) {
            float x[20], c[100];
            uint32_t got[20];
            for (int i = 0; i < 100; i++)
                c[i] = (float)i;
            for (int i = 0; i < 20; i++)
                x[i] = i % 3 == 0 ? NAN : i % 3 == 1 ? INFINITY : -3e38f;
            kvb_nearest *t = kvb_nearest_create_named(1, count, builds[b]);
            if (t == NULL)
                continue;
            kvb_nearest_set(t, c);
            kvb_nearest_find(t, x, 1, 20, got, NULL);
            for (int i = 0; i < 20; i++)
                assert_true(got[i] < count);
            kvb_nearest_find(t, x, 1, 3, got, NULL);
            for (int i = 0; i < 3; i++)
                assert_true(got[i] < count);
            kvb_nearest_destroy(t);
        }
}

static void sizes_out_of_range_are_refused(void **state)
{
    (void)state;
    assert_null(kvb_nearest_create(0, 4));
    assert_null(kvb_nearest_create(257, 4));
    assert_null(kvb_nearest_create(4, 0));
    assert_null(kvb_nearest_create(4, 65537));
    assert_null(kvb_nearest_create_named(4, 4, "abacus"));
    kvb_nearest_destroy(NULL);
}

static void environment_chooses_the_build(void **state)
{
    (void)state;
    assert_int_equal(setenv("KVB_ISA", "plain", 1), 0);
    kvb_nearest *t = kvb_nearest_create(4, 4);
    assert_non_null(t);
    assert_string_equal(kvb_nearest_build_name(t), "plain");
    kvb_nearest_destroy(t);
    unsetenv("KVB_ISA");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_reference),
        cmocka_unit_test(far_from_zero_loses_no_digits),
        cmocka_unit_test(ties_go_to_the_lowest_index),
        cmocka_unit_test(result_does_not_depend_on_neighbours),
        cmocka_unit_test(packed_equals_unpacked),
        cmocka_unit_test(bad_points_get_some_valid_index),
        cmocka_unit_test(sizes_out_of_range_are_refused),
        cmocka_unit_test(environment_chooses_the_build),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
