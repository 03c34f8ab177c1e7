/* Sums in fixed point: exact, whatever the order and the grouping. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "calib/query_sums.h"
#include "format/base/rng.h"
#include "tests/support/cm.h"

static void test_numbers(void **state)
{
    (void)state;
    static const double x[] = {0.0, 1.0, -1.0, 0.5, -0.5, 1e-30, -1e-30, 3.25e9, -3.25e9, 0x1p-64, -0x1p-64, 1e300, -1e300, NAN, INFINITY};
    static const double back[] = {0.0, 1.0, -1.0, 0.5, -0.5, 0.0, 0.0, 3.25e9, -3.25e9, 0x1p-64, -0x1p-64, 0x1p62, -0x1p62, 0.0, 0x1p62};
    for (size_t i = 0; i < sizeof x / sizeof *x; i++)
        assert_true(kvb_exact_to_double(kvb_exact_of(x[i])) == back[i]);
    kvb_exact carry = kvb_exact_add(kvb_exact_of(0.75), kvb_exact_of(0.5));
    assert_true(carry.high == 1 && carry.low == (uint64_t)1 << 62);
    assert_true(kvb_exact_to_double(kvb_exact_add(kvb_exact_of(-0.75), kvb_exact_of(0.5))) == -0.25);
}

/* Numbers of very different sizes: a sum of doubles depends on the order. */
static void test_order(void **state)
{
    (void)state;
    enum { N = 1000 };
    double x[N], forward = 0.0, backward = 0.0;
    kvb_exact a = {0, 0}, b = {0, 0}, part[7] = {{0, 0}};
    for (uint64_t i = 0; i < N; i++)
        x[i] = (kvb_rng_unit(1, i) - 0.5) * exp2(60.0 * kvb_rng_unit(2, i) - 40.0);
    for (size_t i = 0; i < N; i++) {
        forward += x[i];
        backward += x[N - 1 - i];
        a = kvb_exact_add(a, kvb_exact_of(x[i]));
        b = kvb_exact_add(b, kvb_exact_of(x[N - 1 - i]));
        part[i % 7] = kvb_exact_add(part[i % 7], kvb_exact_of(x[i]));
    }
    for (size_t i = 1; i < 7; i++)
        part[0] = kvb_exact_add(part[0], part[i]);
    assert_true(forward != backward);
    assert_memory_equal(&a, &b, sizeof a);
    assert_memory_equal(&a, &part[0], sizeof a);
    assert_true(fabs(kvb_exact_to_double(a) - forward) < 1e-9);
}

static void test_means(void **state)
{
    (void)state;
    const double m[9] = {2.0, 1.0, 4.0, 3.0, -6.0, 0.5, 0.0, 1.5, 8.0};
    const float want[9] = {1.0f, 1.0f, 1.0f, 1.0f, -3.0f, 0.5f, 1.0f, 0.5f, 4.0f};
    kvb_exact sums[6] = {{0, 0}};
    float mean[9];
    kvb_query_sums_add(sums, m, 3);
    kvb_query_sums_mean(sums, 2, 3, mean);
    assert_memory_equal(mean, want, sizeof want);
    kvb_query_sums_mean(sums, 0, 3, mean);
    assert_true(mean[0] == 0.0f && mean[8] == 0.0f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_means),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
