/* The backward pass of attention over codes: the reference against finite differences, the fast version against the
 * reference on odd shapes, windows, anchors and sliding layers, and any number of threads against one. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "calib/attention_grad.h"
#include "format/base/checked.h"
#include "format/base/rng.h"
#include "tests/support/cm.h"
#include "tests/support/synth.h"

typedef struct shape {
    uint32_t heads, kv_heads, dim, tokens, sliding, window;
    uint32_t anchors; /* one token in so many is exact for ever; 0: none */
} shape;

typedef struct problem {
    kvb_grad_layer layer;
    float *q, *exact_k, *exact_v, *coded_k, *coded_v, *d_out;
    uint32_t *until;
    size_t values, outputs; /* floats of all KV heads, of all query heads */
} problem;

static problem make(const shape *s, uint64_t key)
{
    problem p = {.values = (size_t)s->kv_heads * s->tokens * s->dim, .outputs = (size_t)s->heads * s->tokens * s->dim};
    p.q = synth_normals(p.outputs, key, 1.2);
    p.exact_k = synth_normals(p.values, key + 1, 1.0);
    p.exact_v = synth_normals(p.values, key + 2, 1.0);
    p.coded_k = synth_normals(p.values, key + 3, 1.0);
    p.coded_v = synth_normals(p.values, key + 4, 1.0);
    p.d_out = synth_normals(p.outputs, key + 5, 1.0);
    p.until = kvb_alloc_array((size_t)s->kv_heads * s->tokens, sizeof *p.until);
    for (uint32_t g = 0; g < s->kv_heads; g++)
        for (uint32_t j = 0; j < s->tokens; j++) {
            const bool anchor = s->anchors != 0 && kvb_rng_below(key, g * 100000 + j, s->anchors) == 0;
            p.until[g * s->tokens + j] = anchor ? KVB_GRAD_EVER : j + s->window;
        }
    p.layer = (kvb_grad_layer){.heads = s->heads, .kv_heads = s->kv_heads, .head_dim = s->dim, .tokens = s->tokens,
                               .sliding_window = s->sliding, .scale = 1.0 / sqrt(s->dim), .q = p.q, .exact_k = p.exact_k,
                               .exact_v = p.exact_v, .coded_k = p.coded_k, .coded_v = p.coded_v, .until = p.until};
    return p;
}

static void drop(problem *p)
{
    float *all[] = {p->q, p->exact_k, p->exact_v, p->coded_k, p->coded_v, p->d_out};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    free(p->until);
}

/* sum of d_out * O', whose gradient with respect to O' is d_out. */
static double loss(const problem *p)
{
    double *out = kvb_alloc_array(p->outputs, sizeof *out), sum = 0.0;
    assert_int_equal(kvb_attn_grad_forward_reference(&p->layer, out, NULL, NULL), KVB_OK);
    for (size_t i = 0; i < p->outputs; i++)
        sum += (double)p->d_out[i] * out[i];
    free(out);
    return sum;
}

static void check_differences(const problem *p, float *coded, const double *gradient, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const float saved = coded[i], step = 1e-3f;
        coded[i] = saved + step;
        const double above = loss(p), up = (double)coded[i];
        coded[i] = saved - step;
        const double below = loss(p), down = (double)coded[i];
        coded[i] = saved;
        const double expected = (above - below) / (up - down);
        if (fabs(gradient[i] - expected) > 1e-5 * (1.0 + fabs(expected)))
            fail_msg("value %zu: gradient %g, difference %g", i, gradient[i], expected);
    }
}

static const shape small_shapes[] = {
    {1, 1, 4, 9, 0, 0, 0}, {4, 2, 6, 11, 0, 3, 4}, {3, 1, 8, 10, 4, 2, 5}, {2, 2, 2, 1, 0, 0, 0},
};

static void test_finite_differences(void **state)
{
    (void)state;
    for (size_t s = 0; s < sizeof small_shapes / sizeof *small_shapes; s++) {
        problem p = make(&small_shapes[s], 50 + 10 * s);
        double *d_out = kvb_alloc_array(p.outputs, sizeof *d_out);
        double *d_k = kvb_alloc_array(p.values, sizeof *d_k), *d_v = kvb_alloc_array(p.values, sizeof *d_v);
        for (size_t i = 0; i < p.outputs; i++)
            d_out[i] = (double)p.d_out[i];
        assert_int_equal(kvb_attn_grad_backward_reference(&p.layer, d_out, d_k, d_v, NULL), KVB_OK);
        check_differences(&p, p.coded_k, d_k, p.values);
        check_differences(&p, p.coded_v, d_v, p.values);
        free(d_out);
        free(d_k);
        free(d_v);
        drop(&p);
    }
}

typedef struct fast_result {
    float *out, *lse, *d_k, *d_v;
} fast_result;

static fast_result run_fast(const problem *p, uint32_t threads)
{
    const kvb_grad_layer *l = &p->layer;
    kvb_attn_grad *grad;
    fast_result r = {kvb_alloc_array(p->outputs, sizeof(float)), kvb_alloc_array(p->outputs, sizeof(float)),
                     kvb_alloc_array(p->values, sizeof(float)), kvb_alloc_array(p->values, sizeof(float))};
    assert_int_equal(kvb_attn_grad_create(l->heads, l->kv_heads, l->head_dim, l->tokens, threads, &grad, NULL), KVB_OK);
    kvb_attn_grad_forward(grad, l, r.out, r.lse);
    kvb_attn_grad_backward(grad, l, r.out, r.lse, p->d_out, r.d_k, r.d_v);
    kvb_attn_grad_destroy(grad);
    return r;
}

static void drop_result(fast_result *r)
{
    free(r->out);
    free(r->lse);
    free(r->d_k);
    free(r->d_v);
}

static double farthest(const float *x, const double *y, size_t n)
{
    double most = 0.0;
    for (size_t i = 0; i < n; i++) {
        double off = fabs((double)x[i] - y[i]) / (1.0 + fabs(y[i]));
        most = off > most || isnan(off) ? off : most;
    }
    return most;
}

static const shape odd_shapes[] = {
    {1, 1, 8, 1, 0, 0, 0},      {2, 1, 16, 63, 0, 0, 0},    {6, 2, 64, 129, 0, 0, 0},   {3, 3, 20, 300, 0, 32, 0},
    {4, 2, 12, 257, 0, 7, 10},  {3, 1, 64, 333, 0, 32, 50}, {2, 2, 8, 400, 37, 5, 20},  {2, 1, 24, 260, 150, 200, 9},
    {4, 1, 32, 192, 64, 0, 0},  {2, 1, 16, 300, 0, 1000, 0}, {2, 2, 8, 270, 0, 32, 1},
};

static void test_fast_is_reference(void **state)
{
    (void)state;
    for (size_t s = 0; s < sizeof odd_shapes / sizeof *odd_shapes; s++) {
        problem p = make(&odd_shapes[s], 900 + 10 * s);
        double *out = kvb_alloc_array(p.outputs, sizeof *out), *lse = kvb_alloc_array(p.outputs, sizeof *lse);
        double *d_out = kvb_alloc_array(p.outputs, sizeof *d_out);
        double *d_k = kvb_alloc_array(p.values, sizeof *d_k), *d_v = kvb_alloc_array(p.values, sizeof *d_v);
        for (size_t i = 0; i < p.outputs; i++)
            d_out[i] = (double)p.d_out[i];
        assert_int_equal(kvb_attn_grad_forward_reference(&p.layer, out, lse, NULL), KVB_OK);
        assert_int_equal(kvb_attn_grad_backward_reference(&p.layer, d_out, d_k, d_v, NULL), KVB_OK);
        fast_result fast = run_fast(&p, 2);
        const double off[] = {farthest(fast.out, out, p.outputs),
                              farthest(fast.lse, lse, (size_t)p.layer.heads * p.layer.tokens),
                              farthest(fast.d_k, d_k, p.values), farthest(fast.d_v, d_v, p.values)};
        for (int i = 0; i < 4; i++)
            if (!(off[i] < 3e-5))
                fail_msg("shape %zu: result %d is off by %g", s, i, off[i]);
        drop_result(&fast);
        free(out);
        free(lse);
        free(d_out);
        free(d_k);
        free(d_v);
        drop(&p);
    }
}

static void test_threads(void **state)
{
    (void)state;
    problem p = make(&odd_shapes[5], 77);
    fast_result one = run_fast(&p, 1);
    for (uint32_t threads = 2; threads <= 3; threads++) {
        fast_result more = run_fast(&p, threads);
        assert_memory_equal(one.out, more.out, p.outputs * sizeof(float));
        assert_memory_equal(one.d_k, more.d_k, p.values * sizeof(float));
        assert_memory_equal(one.d_v, more.d_v, p.values * sizeof(float));
        drop_result(&more);
    }
    drop_result(&one);
    drop(&p);
}

/* Where nothing is read from codes nothing flows, whatever the codes hold. */
static void test_exact_tokens_get_nothing(void **state)
{
    (void)state;
    problem p = make(&(shape){2, 1, 8, 200, 0, 32, 0}, 5);
    for (uint32_t j = 0; j < 200; j += 3)
        p.until[j] = KVB_GRAD_EVER;
    fast_result r = run_fast(&p, 2);
    for (uint32_t j = 0; j < 200; j++) {
        bool any = false;
        for (uint32_t c = 0; c < 8; c++)
            any = any || r.d_k[j * 8 + c] != 0.0f || r.d_v[j * 8 + c] != 0.0f;
        assert_int_equal(any, j % 3 != 0 && j + 32 < 200);
    }
    drop_result(&r);
    drop(&p);
}

/* ---- all gradients */

/* The loss's change with each number against the reference's gradient; q, exact and coded rows alike. */
static void test_all_finite_differences(void **state)
{
    (void)state;
    for (size_t s = 0; s < sizeof small_shapes / sizeof *small_shapes; s++) {
        problem p = make(&small_shapes[s], 450 + 10 * s);
        double *d_out = kvb_alloc_array(p.outputs, sizeof *d_out), *d_q = kvb_alloc_array(p.outputs, sizeof *d_q), *d[4];
        float *rows[] = {p.exact_k, p.exact_v, p.coded_k, p.coded_v};
        for (int i = 0; i < 4; i++)
            d[i] = kvb_alloc_array(p.values, sizeof **d);
        for (size_t i = 0; i < p.outputs; i++)
            d_out[i] = (double)p.d_out[i];
        const kvb_grad_all_reference all = {d_q, d[0], d[1], d[2], d[3]};
        assert_int_equal(kvb_attn_grad_all_reference(&p.layer, d_out, &all, NULL), KVB_OK);
        for (int i = 0; i < 4; i++)
            check_differences(&p, rows[i], d[i], p.values);
        check_differences(&p, p.q, d_q, p.outputs);
        for (int i = 0; i < 4; i++)
            free(d[i]);
        free(d_q);
        free(d_out);
        drop(&p);
    }
}

static void expect_close(const float *got, const double *want, size_t n, const char *name, size_t shape_number)
{
    for (size_t i = 0; i < n; i++)
        if (!(fabs((double)got[i] - want[i]) <= 2e-4 * (1.0 + fabs(want[i]))))
            fail_msg("shape %zu, %s[%zu]: %g, the reference %g", shape_number, name, i, (double)got[i], want[i]);
}

static const shape all_shapes[] = {
    {1, 1, 4, 9, 0, 0, 0},      {4, 2, 6, 11, 0, 3, 4},     {3, 1, 8, 200, 0, 32, 50}, {6, 3, 20, 131, 0, 32, 1},
    {4, 2, 16, 300, 90, 32, 40}, {2, 1, 12, 257, 0, 500, 0}, {3, 3, 10, 140, 0, 1, 7},  {2, 2, 2, 1, 0, 0, 0},
};

static void test_all_equals_reference(void **state)
{
    (void)state;
    static const char *const names[] = {"exact_k", "exact_v", "coded_k", "coded_v", "q"};
    for (size_t s = 0; s < sizeof all_shapes / sizeof *all_shapes; s++) {
        problem p = make(&all_shapes[s], 650 + 10 * s);
        double *want[5], *d_out = kvb_alloc_array(p.outputs, sizeof *d_out);
        float *got[5], *again[5], *out = kvb_alloc_array(p.outputs, sizeof *out), *lse = kvb_alloc_array(p.outputs, sizeof *lse);
        for (int i = 0; i < 5; i++) {
            const size_t n = i == 4 ? p.outputs : p.values;
            want[i] = kvb_alloc_array(n, sizeof(double));
            got[i] = kvb_alloc_array(n, sizeof(float));
            again[i] = kvb_alloc_array(n, sizeof(float));
        }
        for (size_t i = 0; i < p.outputs; i++)
            d_out[i] = (double)p.d_out[i];
        const kvb_grad_all_reference all = {want[4], want[0], want[1], want[2], want[3]};
        assert_int_equal(kvb_attn_grad_all_reference(&p.layer, d_out, &all, NULL), KVB_OK);
        for (uint32_t threads = 1; threads <= 3; threads += 2) {
            float **to = threads == 1 ? got : again;
            kvb_attn_grad *grad;
            const kvb_grad_layer *l = &p.layer;
            assert_int_equal(kvb_attn_grad_create(l->heads, l->kv_heads, l->head_dim, l->tokens, threads, &grad, NULL),
                             KVB_OK);
            kvb_attn_grad_forward(grad, l, out, lse);
            const kvb_grad_all fast = {to[4], to[0], to[1], to[2], to[3]};
            kvb_attn_grad_backward_all(grad, l, out, lse, p.d_out, &fast);
            kvb_attn_grad_destroy(grad);
        }
        for (int i = 0; i < 5; i++) {
            const size_t n = i == 4 ? p.outputs : p.values;
            expect_close(got[i], want[i], n, names[i], s);
            assert_memory_equal(got[i], again[i], n * sizeof(float));
            free(want[i]);
            free(got[i]);
            free(again[i]);
        }
        free(d_out);
        free(out);
        free(lse);
        drop(&p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_finite_differences),
        cmocka_unit_test(test_all_finite_differences),
        cmocka_unit_test(test_all_equals_reference),
        cmocka_unit_test(test_fast_is_reference),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_exact_tokens_get_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
