/* Scores of rows of logits against plain loops in double. The command's own objects are in no library: included. */
#include "tools/score.c"

#include <stdlib.h>

#include "format/base/rng.h"
#include "tests/support/cm.h"

enum { ROWS = 5 };

static float *random_logits(uint32_t vocab, uint64_t seed, float spread)
{
    float *x = malloc((size_t)ROWS * vocab * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < (size_t)ROWS * vocab; i++)
        x[i] = spread * (float)(kvb_rng_unit(seed, i) - 0.5);
    return x;
}

static double plain_log_sum(const float *x, uint32_t vocab)
{
    double most = (double)x[0], sum = 0;
    for (uint32_t v = 0; v < vocab; v++)
        most = fmax(most, (double)x[v]);
    for (uint32_t v = 0; v < vocab; v++)
        sum += exp((double)x[v] - most);
    return most + log(sum);
}

static double plain_divergence(const float *x, const float *y, uint32_t vocab)
{
    double a = plain_log_sum(x, vocab), b = plain_log_sum(y, vocab), sum = 0;
    for (uint32_t v = 0; v < vocab; v++)
        sum += exp((double)x[v] - a) * (((double)x[v] - a) - ((double)y[v] - b));
    return sum;
}

static const uint32_t vocabularies[] = {2, 7, 255, 256, 257, 1000, 4099};

static void test_rows(void **state)
{
    (void)state;
    for (size_t n = 0; n < sizeof vocabularies / sizeof *vocabularies; n++) {
        uint32_t vocab = vocabularies[n], target[ROWS];
        float *x = random_logits(vocab, n, 40);
        kvb_row_score score[ROWS];
        for (uint32_t r = 0; r < ROWS; r++)
            target[r] = (uint32_t)kvb_rng_below(99, r, vocab);
        kvb_score_rows(kvb_kernels_best(), x, ROWS, vocab, target, score);
        for (uint32_t r = 0; r < ROWS; r++) {
            const float *row = x + (size_t)r * vocab;
            double log_sum = plain_log_sum(row, vocab);
            assert_true(fabs(score[r].log_sum - log_sum) < 1e-6 * (1 + fabs(log_sum)));
            assert_true(fabs(score[r].nll - (log_sum - (double)row[target[r]])) < 2e-5);
            for (uint32_t v = 0; v < vocab; v++)
                assert_true(row[v] < row[score[r].top] || (row[v] <= row[score[r].top] && v >= score[r].top));
        }
        free(x);
    }
}

static void test_divergence(void **state)
{
    (void)state;
    for (size_t n = 0; n < sizeof vocabularies / sizeof *vocabularies; n++) {
        uint32_t vocab = vocabularies[n], target[ROWS] = {0};
        float *x = random_logits(vocab, n, 20), *y = random_logits(vocab, n + 100, 20);
        kvb_row_score a[ROWS], b[ROWS];
        double kl[ROWS];
        kvb_score_rows(kvb_kernels_best(), x, ROWS, vocab, target, a);
        kvb_score_rows(kvb_kernels_best(), y, ROWS, vocab, target, b);
        kvb_score_divergence(kvb_kernels_best(), x, a, y, b, ROWS, vocab, kl);
        for (uint32_t r = 0; r < ROWS; r++) {
            double plain = plain_divergence(x + (size_t)r * vocab, y + (size_t)r * vocab, vocab);
            assert_true(fabs(kl[r] - plain) < 1e-5 * (1 + plain));
        }
        free(x);
        free(y);
    }
}

static void test_equal_rows_do_not_diverge(void **state)
{
    (void)state;
    float *x = random_logits(777, 3, 30);
    uint32_t target[ROWS] = {0};
    kvb_row_score a[ROWS];
    double kl[ROWS];
    kvb_score_rows(kvb_kernels_best(), x, ROWS, 777, target, a);
    kvb_score_divergence(kvb_kernels_best(), x, a, x, a, ROWS, 777, kl);
    for (uint32_t r = 0; r < ROWS; r++)
        assert_true(kl[r] <= 0.0 && kl[r] >= 0.0);
    free(x);
}

static void test_nan_is_not_hidden(void **state)
{
    (void)state;
    float *x = random_logits(300, 4, 30);
    uint32_t target[ROWS] = {0};
    kvb_row_score score[ROWS];
    x[2 * 300 + 17] = NAN;
    kvb_score_rows(kvb_kernels_best(), x, ROWS, 300, target, score);
    assert_true(isnan(score[2].nll) != 0);
    assert_true(!isnan(score[1].nll));
    free(x);
}

static void test_apart(void **state)
{
    (void)state;
    kvb_error err;
    assert_int_equal(kvb_check_apart("b.kvb", "x", 0.0, KVB_APART_ATTENTION, &err), KVB_OK);
    assert_int_equal(kvb_check_apart("b.kvb", "x", KVB_APART_EXACT, KVB_APART_EXACT, &err), KVB_OK);
    assert_int_equal(kvb_check_apart("b.kvb", "x", 1.01e-4, KVB_APART_ATTENTION, &err), KVB_E_CHECK);
    assert_non_null(strstr(err.message, "b.kvb: x"));
    assert_int_equal(kvb_check_apart("b.kvb", "x", NAN, KVB_APART_EXACT, &err), KVB_E_CHECK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_divergence),
        cmocka_unit_test(test_equal_rows_do_not_diverge),
        cmocka_unit_test(test_nan_is_not_hidden), cmocka_unit_test(test_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
