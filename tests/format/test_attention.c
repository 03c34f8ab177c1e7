/* Tiled attention and token weights against the dense formulas in double. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include "format/base/attention.h"
#include "format/base/checked.h"
#include "format/base/rng.h"

typedef struct sample {
    uint32_t tokens, dim, window;
    size_t ld;
    float scale;
    float *q, *k, *v, *k_t, *v_t, *out, *lse, *norm;
    double *prob, *want; /* dense A [T][T] and O [T][D] */
} sample;

static float *normals(size_t n, uint64_t key, double spread)
{
    float *x = kvb_alloc_array(n, sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(spread * sqrt(-2.0 * log(kvb_rng_unit(key, 2 * i))) * cos(6.283185307 * kvb_rng_unit(key, 2 * i + 1)));
    return x;
}

static bool visible(const sample *s, uint32_t i, uint32_t j)
{
    return j <= i && (s->window == 0 || i - j < s->window);
}

static void dense_row(sample *s, uint32_t i)
{
    double sum = 0.0;
    for (uint32_t j = 0; j < s->tokens; j++) {
        double score = 0.0;
        for (uint32_t c = 0; c < s->dim; c++)
            score += (double)s->q[i * s->dim + c] * (double)s->k[j * s->dim + c];
        double p = visible(s, i, j) ? exp(score * (double)s->scale) : 0.0;
        s->prob[i * s->tokens + j] = p;
        sum += p;
    }
    for (uint32_t j = 0; j < s->tokens; j++) {
        s->prob[i * s->tokens + j] /= sum;
        for (uint32_t c = 0; c < s->dim; c++)
            s->want[i * s->dim + c] += s->prob[i * s->tokens + j] * (double)s->v[j * s->dim + c];
    }
}

static sample make_sample(uint32_t tokens, uint32_t dim, uint32_t window)
{
    sample s = {.tokens = tokens, .dim = dim, .window = window, .scale = 1.0f / sqrtf((float)dim)};
    size_t n = (size_t)tokens * dim;
    s.ld = kvb_attn_padded(tokens);
    s.q = normals(n, 1, 2.0);
    s.k = normals(n, 2, 1.5);
    s.v = normals(n, 3, 1.0);
    s.k_t = kvb_alloc_array(s.ld * dim, sizeof(float));
    s.v_t = kvb_alloc_array(s.ld * dim, sizeof(float));
    s.out = kvb_alloc_array(n, sizeof(float));
    s.lse = kvb_alloc_array(tokens, sizeof(float));
    s.norm = kvb_alloc_array(tokens, sizeof(float));
    s.prob = kvb_alloc_zeroed((size_t)tokens * tokens, sizeof(double));
    s.want = kvb_alloc_zeroed(n, sizeof(double));
    kvb_transpose(s.k, dim, tokens, dim, s.k_t, s.ld);
    kvb_transpose(s.v, dim, tokens, dim, s.v_t, s.ld);
    for (uint32_t i = 0; i < tokens; i++) {
        dense_row(&s, i);
        double norm = 0.0;
        for (uint32_t c = 0; c < dim; c++)
            norm += (double)s.q[i * dim + c] * (double)s.q[i * dim + c];
        s.norm[i] = (float)sqrt(norm);
    }
    return s;
}

static void free_sample(sample *s)
{
    free(s->q), free(s->k), free(s->v), free(s->k_t), free(s->v_t);
    free(s->out), free(s->lse), free(s->norm), free(s->prob), free(s->want);
}

static void run_exact(sample *s)
{
    float *scratch = kvb_alloc_array(kvb_attn_scratch_floats(s->dim), sizeof *scratch);
    for (uint32_t first = 0; first < s->tokens; first += KVB_ATTN_ROWS) {
        uint32_t rows = s->tokens - first < KVB_ATTN_ROWS ? s->tokens - first : KVB_ATTN_ROWS;
        kvb_attn_exact(kvb_kernels_best(), s->q, s->k_t, s->ld, s->v, first, rows, s->dim, s->scale, s->window,
                       s->out + (size_t)first * s->dim, s->lse + first, scratch);
    }
    free(scratch);
}

static void check_sample(uint32_t tokens, uint32_t dim, uint32_t window)
{
    sample s = make_sample(tokens, dim, window);
    run_exact(&s);
    for (size_t i = 0; i < (size_t)tokens * dim; i++)
        assert_true(fabs((double)s.out[i] - s.want[i]) < 2e-5);
    kvb_attn_head head = {s.q, s.k_t, s.v_t, s.out, s.lse, s.norm, s.ld, tokens, dim, window, s.scale};
    float *scratch = kvb_alloc_array(kvb_attn_weights_scratch_floats(dim), sizeof *scratch);
    double *wk = kvb_alloc_zeroed(tokens, sizeof *wk), *wv = kvb_alloc_zeroed(tokens, sizeof *wv);
    for (uint32_t first = 0; first < tokens; first += KVB_ATTN_COLS) {
        uint32_t count = tokens - first < KVB_ATTN_COLS ? tokens - first : KVB_ATTN_COLS;
        kvb_attn_weights(kvb_kernels_best(), &head, first, count, wk + first, wv + first, scratch);
    }
    for (uint32_t j = 0; j < tokens; j++) {
        double want_k = 0.0, want_v = 0.0;
        for (uint32_t i = j; i < tokens; i++) {
            double distance = 0.0, p = s.prob[i * tokens + j];
            for (uint32_t c = 0; c < dim; c++)
                distance += fabs((double)s.v[j * dim + c] - s.want[i * dim + c]);
            want_k += (double)s.scale * p * distance * (double)s.norm[i];
            want_v += p;
        }
        assert_true(fabs(wk[j] - want_k) < 1e-4 * (1.0 + want_k));
        assert_true(fabs(wv[j] - want_v) < 1e-4 * (1.0 + want_v));
    }
    free(wk);
    free(wv);
    free(scratch);
    free_sample(&s);
}

static void test_dense(void **state)
{
    (void)state;
    check_sample(1, 8, 0);
    check_sample(63, 16, 0);
    check_sample(129, 64, 0);
    check_sample(300, 40, 0);
    check_sample(257, 128, 0);
}

static void test_sliding(void **state)
{
    (void)state;
    check_sample(300, 16, 50);
    check_sample(200, 32, 1);
    check_sample(260, 16, 200);
}

/* First-order effects: a small change of one key moves the outputs as the weights say; of one value exactly so. */
static void test_finite_differences(void **state)
{
    (void)state;
    sample s = make_sample(96, 16, 0), t = make_sample(96, 16, 0);
    uint32_t j = 20, dim = 16;
    double step = 1e-4;
    run_exact(&s);
    for (uint32_t c = 0; c < dim; c++)
        t.k[j * dim + c] = (float)((double)s.k[j * dim + c] + step * (c % 2 ? 1.0 : -1.0));
    for (size_t i = 0; i < 96u * dim; i++)
        t.want[i] = 0.0;
    for (uint32_t i = 0; i < 96; i++)
        dense_row(&t, i);
    double moved = 0.0, predicted = 0.0;
    for (uint32_t i = j; i < 96; i++) {
        double along = 0.0, distance = 0.0;
        for (uint32_t c = 0; c < dim; c++) {
            along += (double)s.q[i * dim + c] * ((double)t.k[j * dim + c] - (double)s.k[j * dim + c]);
            distance += fabs((double)s.v[j * dim + c] - s.want[i * dim + c]);
            moved += fabs(t.want[i * dim + c] - s.want[i * dim + c]);
        }
        predicted += (double)s.scale * s.prob[i * 96 + j] * distance * fabs(along);
    }
    assert_true(fabs(moved / predicted - 1.0) < 2e-3);
    free_sample(&s);
    free_sample(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dense),
        cmocka_unit_test(test_sliding),
        cmocka_unit_test(test_finite_differences),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
