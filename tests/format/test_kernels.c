/* Every build of the vector kernels against loops in double, on shapes with odd tails. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "format/base/checked.h"
#include "format/base/kernels.h"
#include "format/base/rng.h"

static const char *const builds[] = {"plain", "avx2", "avx512"};

static float *random_floats(size_t n, uint64_t key)
{
    float *x = kvb_alloc_array(n, sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(2.0 * kvb_rng_unit(key, i) - 1.0);
    return x;
}

static void check_product(const kvb_kernels *k, size_t m, size_t n, size_t depth, bool accumulate, bool l1)
{
    size_t lda = depth + 3, ldb = n + 5, ldc = n + 1;
    float *a = random_floats(m * lda, 1), *b = random_floats(depth * ldb, 2), *c = random_floats(m * ldc, 3);
    float *before = random_floats(m * ldc, 3);
    if (l1)
        k->l1(m, n, depth, a, lda, b, ldb, c, ldc);
    else
        k->gemm(m, n, depth, a, lda, b, ldb, c, ldc, accumulate);
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
            double want = accumulate ? (double)before[i * ldc + j] : 0.0;
            for (size_t p = 0; p < depth; p++) {
                double x = (double)a[i * lda + p], y = (double)b[p * ldb + j];
                want += l1 ? fabs(y - x) : x * y;
            }
            assert_true(fabs((double)c[i * ldc + j] - want) <= 1e-5 * (1.0 + fabs(want)));
        }
    for (size_t i = 0; i < m; i++) /* the padding of C is not ours */
        assert_true(c[i * ldc + n] == before[i * ldc + n]);
    free(a);
    free(b);
    free(c);
    free(before);
}

static void test_products(void **state)
{
    (void)state;
    static const size_t shapes[][3] = {{1, 1, 1}, {3, 64, 64}, {6, 128, 5}, {7, 67, 33}, {13, 48, 80}, {64, 128, 64}, {5, 15, 2}};
    for (size_t v = 0; v < 3; v++) {
        const kvb_kernels *k = kvb_kernels_named(builds[v]);
        if (k == NULL)
            continue;
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
            check_product(k, shapes[s][0], shapes[s][1], shapes[s][2], false, false);
            check_product(k, shapes[s][0], shapes[s][1], shapes[s][2], true, false);
            check_product(k, shapes[s][0], shapes[s][1], shapes[s][2], false, true);
        }
    }
}

static void check_exp(const kvb_kernels *k, size_t n)
{
    float *x = kvb_alloc_array(n, sizeof *x), *got = kvb_alloc_array(n, sizeof *got);
    for (size_t i = 0; i < n; i++)
        x[i] = got[i] = (float)(160.0 * kvb_rng_unit(7, i) - 100.0);
    x[0] = got[0] = -INFINITY;
    float shift = 0.75f;
    double sum = 0.0;
    float said = k->exp_sum(got, n, shift);
    for (size_t i = 0; i < n; i++) {
        double want = exp((double)(x[i] - shift));
        if (x[i] - shift < -87.6f)
            assert_true(got[i] == 0.0f || fabs((double)got[i] - want) < 1e-37);
        else
            assert_true(fabs((double)got[i] - want) <= 3e-7 * want);
        sum += (double)got[i];
    }
    assert_true(fabs((double)said - sum) <= 1e-5 * sum);
    assert_true(got[0] == 0.0f);
    free(x);
    free(got);
}

static void check_silu_gradient(const kvb_kernels *k, size_t n)
{
    float *gate = random_floats(n, 21), *up = random_floats(n, 22), *d = random_floats(n, 23);
    float *d_gate = kvb_alloc_array(n, sizeof *d_gate), *d_up = kvb_alloc_array(n, sizeof *d_up);
    for (size_t i = 0; i < n; i++)
        gate[i] *= i % 3 == 0 ? 100.0f : 4.0f;
    k->silu_gradient(gate, up, d, n, d_gate, d_up);
    for (size_t i = 0; i < n; i++) {
        double g = (double)gate[i], sigmoid = 1.0 / (1.0 + exp(-g));
        double slope = sigmoid * (1.0 + g * (1.0 - sigmoid));
        assert_true(fabs((double)d_up[i] - (double)d[i] * g * sigmoid) < 2e-6 * (1.0 + fabs(g)));
        assert_true(fabs((double)d_gate[i] - (double)d[i] * (double)up[i] * slope) < 2e-6);
    }
    free(gate);
    free(up);
    free(d);
    free(d_gate);
    free(d_up);
}

static void check_gelu(const kvb_kernels *k, size_t n)
{
    float *gate = random_floats(n, 24), *up = random_floats(n, 25), *d = random_floats(n, 26);
    float *d_gate = kvb_alloc_array(n, sizeof *d_gate), *d_up = kvb_alloc_array(n, sizeof *d_up);
    const double a = sqrt(2.0 / acos(-1.0)), b = 0.044715;
    for (size_t i = 0; i < n; i++)
        gate[i] *= i % 3 == 0 ? 100.0f : 4.0f;
    k->gelu_gradient(gate, up, d, n, d_gate, d_up);
    for (size_t i = 0; i < n; i++) {
        const double g = (double)gate[i], t = tanh(a * (g + b * g * g * g)), gelu = 0.5 * g * (1.0 + t);
        const double slope = 0.5 * (1.0 + t) + 0.5 * g * (1.0 - t * t) * a * (1.0 + 3.0 * b * g * g);
        assert_true(fabs((double)d_up[i] - (double)d[i] * gelu) < 2e-6 * (1.0 + fabs(g)));
        assert_true(fabs((double)d_gate[i] - (double)d[i] * (double)up[i] * slope) < 4e-6);
        float one = gate[i];
        k->gelu_product(&one, up + i, 1);
        assert_true(fabs((double)one - gelu * (double)up[i]) < 2e-6 * (1.0 + fabs(g)));
    }
    float *whole = kvb_alloc_array(n, sizeof *whole);
    memcpy(whole, gate, n * sizeof *whole);
    k->gelu_product(whole, up, n);
    for (size_t i = 0; i < n; i++) {
        const double g = (double)gate[i], gelu = 0.5 * g * (1.0 + tanh(a * (g + b * g * g * g)));
        assert_true(fabs((double)whole[i] - gelu * (double)up[i]) < 2e-6 * (1.0 + fabs(g)));
    }
    float *all[] = {gate, up, d, d_gate, d_up, whole};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

static void test_rows(void **state)
{
    (void)state;
    for (size_t v = 0; v < 3; v++) {
        const kvb_kernels *k = kvb_kernels_named(builds[v]);
        if (k == NULL)
            continue;
        for (size_t n = 1; n < 70; n += 4) {
            float *x = random_floats(n, 11), *y = random_floats(n, 12), *z = random_floats(n, 13);
            float most = -2.0f;
            double product = 0.0;
            for (size_t i = 0; i < n; i++) {
                most = x[i] > most ? x[i] : most;
                product += (double)x[i] * (double)y[i];
            }
            assert_true(k->max(x, n) == most);
            assert_true(fabs((double)k->dot(x, y, n) - product) < 1e-5);
            float first = z[0], last = z[n - 1];
            k->axpy(z, x, n, 0.5f);
            k->axpy_product(z, x, y, n, 2.0f);
            k->scale(z, n, 3.0f);
            assert_true(fabsf(z[0] - 3.0f * (first + 0.5f * x[0] + 2.0f * x[0] * y[0])) < 1e-5f);
            assert_true(fabsf(z[n - 1] - 3.0f * (last + 0.5f * x[n - 1] + 2.0f * x[n - 1] * y[n - 1])) < 1e-5f);
            float gate = x[n - 1];
            k->silu_product(x, y, n);
            assert_true(fabsf(x[n - 1] - gate / (1.0f + expf(-gate)) * y[n - 1]) < 1e-6f);
            free(x);
            free(y);
            free(z);
            check_exp(k, n);
            check_silu_gradient(k, n);
            check_gelu(k, n);
        }
    }
}

static void test_nan_is_not_hidden(void **state)
{
    (void)state;
    for (size_t v = 0; v < 3; v++) {
        const kvb_kernels *k = kvb_kernels_named(builds[v]);
        if (k == NULL)
            continue;
        float x[20] = {0};
        x[3] = NAN;
        assert_true(isnan(k->exp_sum(x, 20, 0.0f)));
    }
}

static void test_choice(void **state)
{
    (void)state;
    assert_non_null(kvb_kernels_best());
    assert_null(kvb_kernels_named("no such build"));
    setenv("KVB_ISA", "plain", 1);
    assert_string_equal(kvb_kernels_best()->name, "plain");
    unsetenv("KVB_ISA");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products),
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_nan_is_not_hidden),
        cmocka_unit_test(test_choice),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
