/* Token weights and query moments: against dense formulas, and against what a real perturbation does to attention. */
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "calib/observe.h"
#include "format/base/rng.h"
#include "format/base/rope.h"
#include "tests/support/cm.h"
#include "tests/support/synth.h"

typedef struct shape {
    uint32_t heads, kv_heads, dim, tokens, window;
} shape;

static const shape shapes[] = {
    {1, 1, 8, 1, 0}, {2, 1, 16, 5, 0}, {4, 2, 12, 67, 0}, {3, 3, 7, 131, 0}, {6, 2, 64, 257, 0}, {4, 1, 16, 200, 37},
};

static void dense_weights(const synth_call *s, double *weight_k, double *weight_v)
{
    uint32_t tokens = s->call.tokens, dim = s->layer.head_dim, group = s->layer.heads / s->layer.kv_heads;
    double *row = malloc(tokens * sizeof *row), *out = malloc(dim * sizeof *out);
    memset(weight_k, 0, (size_t)s->layer.kv_heads * tokens * sizeof *weight_k);
    memset(weight_v, 0, (size_t)s->layer.kv_heads * tokens * sizeof *weight_v);
    for (uint32_t h = 0; h < s->layer.heads; h++)
        for (uint32_t i = 0; i < tokens; i++) {
            double norm = 0.0;
            synth_probabilities(s, h, i, row);
            synth_output(s, h, i, out);
            for (uint32_t c = 0; c < dim; c++)
                norm += pow((double)s->q[((size_t)h * tokens + i) * dim + c], 2.0);
            for (uint32_t j = 0; j < tokens; j++) {
                double l1 = 0.0;
                size_t at = (size_t)(h / group) * tokens + j;
                for (uint32_t c = 0; c < dim; c++)
                    l1 += fabs((double)s->v[at * dim + c] - out[c]);
                weight_k[at] += s->layer.attention_scale * row[j] * l1 * sqrt(norm);
                weight_v[at] += row[j];
            }
        }
    free(row);
    free(out);
}

static void check_weights(const shape *p, uint64_t key)
{
    synth_call s;
    kvb_observer *o;
    kvb_observed seen;
    synth_call_create(&s, p->heads, p->kv_heads, p->dim, p->tokens, p->window, key);
    size_t count = (size_t)p->kv_heads * p->tokens;
    double *weight_k = malloc(count * sizeof *weight_k), *weight_v = malloc(count * sizeof *weight_v);
    dense_weights(&s, weight_k, weight_v);
    assert_int_equal(kvb_observer_create(&s.layer, 1, p->tokens + 3, 1, &o, NULL), KVB_OK);
    assert_int_equal(kvb_observer_see(o, &s.call, s.out, s.lse, &seen, NULL), KVB_OK);
    for (size_t i = 0; i < count; i++) {
        assert_true(fabs((double)seen.weight_k[i] - weight_k[i]) <= 1e-4 * weight_k[i] + 1e-5);
        assert_true(fabs((double)seen.weight_v[i] - weight_v[i]) <= 1e-4 * weight_v[i] + 1e-6);
    }
    assert_int_equal(seen.bad_queries, 0);
    kvb_observer_destroy(o);
    synth_call_free(&s);
    free(weight_k);
    free(weight_v);
}

static void test_dense(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        check_weights(&shapes[i], 100 + i);
}

/* sum over queries of ||O'_i - O_i||_1 after one key or value moved by `delta` [D]. */
static double effect(synth_call *s, float *of, const double *delta)
{
    uint32_t tokens = s->call.tokens, dim = s->layer.head_dim;
    double before[64], after[64], sum = 0.0;
    float saved[64];
    memcpy(saved, of, dim * sizeof *of);
    for (uint32_t h = 0; h < s->layer.heads; h++)
        for (uint32_t i = 0; i < tokens; i++) {
            synth_output(s, h, i, before);
            for (uint32_t c = 0; c < dim; c++)
                of[c] = (float)((double)saved[c] + delta[c]);
            synth_output(s, h, i, after);
            memcpy(of, saved, dim * sizeof *of);
            for (uint32_t c = 0; c < dim; c++)
                sum += fabs(after[c] - before[c]);
        }
    return sum;
}

/* An error in one value moves every output by A_ij times that error: weight_v is exact, for any size of error. */
static void test_value_perturbation(void **state)
{
    (void)state;
    synth_call s;
    kvb_observer *o;
    kvb_observed seen;
    synth_call_create(&s, 2, 1, 8, 24, 0, 7);
    assert_int_equal(kvb_observer_create(&s.layer, 1, 24, 1, &o, NULL), KVB_OK);
    assert_int_equal(kvb_observer_see(o, &s.call, s.out, s.lse, &seen, NULL), KVB_OK);
    for (uint32_t j = 0; j < 24; j += 5) {
        double delta[8], size = 0.0;
        for (uint32_t c = 0; c < 8; c++) {
            delta[c] = 0.5 * (c % 3 == 0 ? -1.0 : 1.0);
            size += fabs(delta[c]);
        }
        double got = effect(&s, s.v + (size_t)j * 8, delta), expected = size * (double)seen.weight_v[j];
        assert_true(fabs(got - expected) <= 1e-4 * expected);
    }
    kvb_observer_destroy(o);
    synth_call_free(&s);
}

/* A small error e in key j moves output i by scale * A_ij (q_i.e) (V_j - O_i): to first order
 * sum_i ||dO_i||_1 = scale * sum_i A_ij |q_i.e| ||V_j - O_i||_1, which weight_k |e| is with |q_i.e| = |q_i| |e|.
 * All queries of a head in one direction make the two equal: e along that direction. */
static void test_key_perturbation(void **state)
{
    (void)state;
    synth_call s;
    kvb_observer *o;
    kvb_observed seen;
    synth_call_create(&s, 2, 1, 8, 24, 0, 9);
    for (uint32_t row = 0; row < 2 * 24; row++)
        for (uint32_t c = 0; c < 8; c++)
            s.q[(size_t)row * 8 + c] = (float)((c + 1.0) * (0.1 + 0.01 * row));
    for (uint32_t row = 0; row < 2 * 24; row++) {
        double out[8], probabilities[24];
        s.lse[row] = (float)synth_probabilities(&s, row / 24, row % 24, probabilities);
        synth_output(&s, row / 24, row % 24, out);
        for (uint32_t c = 0; c < 8; c++)
            s.out[(size_t)row * 8 + c] = (float)out[c];
    }
    assert_int_equal(kvb_observer_create(&s.layer, 1, 24, 1, &o, NULL), KVB_OK);
    assert_int_equal(kvb_observer_see(o, &s.call, s.out, s.lse, &seen, NULL), KVB_OK);
    for (uint32_t j = 0; j < 24; j += 5) {
        double delta[8], size = 0.0;
        for (uint32_t c = 0; c < 8; c++) {
            delta[c] = 2e-4 * (c + 1.0);
            size += delta[c] * delta[c];
        }
        double got = effect(&s, s.k + (size_t)j * 8, delta), expected = sqrt(size) * (double)seen.weight_k[j];
        assert_true(fabs(got - expected) <= 0.01 * expected);
    }
    kvb_observer_destroy(o);
    synth_call_free(&s);
}

/* Means of q q^T, with each query turned back by its drawn position. */
static void dense_moments(const synth_call *s, const kvb_observer *o, uint32_t kv, double *relative, double *post)
{
    uint32_t tokens = s->call.tokens, dim = s->layer.head_dim, group = s->layer.heads / s->layer.kv_heads;
    kvb_rope_table rope;
    float turned[64];
    kvb_rope_table_create(&rope, &s->layer, 0, tokens, NULL);
    for (uint32_t h = kv * group; h < (kv + 1) * group; h++)
        for (uint32_t i = 0; i < tokens; i++) {
            const float *q = s->q + ((size_t)h * tokens + i) * dim;
            kvb_rope_unrotate(&rope, kvb_observer_draw(o, i, s->layer.sliding_window), dim, q, turned);
            for (uint32_t a = 0; a < dim; a++)
                for (uint32_t b = 0; b < dim; b++) {
                    relative[a * dim + b] += (double)turned[a] * (double)turned[b] / (group * tokens);
                    post[a * dim + b] += (double)q[a] * (double)q[b] / (group * tokens);
                }
        }
    kvb_rope_table_free(&rope);
}

/* [2][G][D][D]: relative, then post. */
static void take_moments(const kvb_observer *o, const kvb_layer *layer, float *to)
{
    const uint64_t *queries;
    const kvb_exact *sums = kvb_observer_sums(o, 0, &queries);
    for (uint32_t which = 0; which < 2; which++)
        kvb_query_means(layer, sums, queries, which, to + (size_t)which * layer->kv_heads * layer->head_dim * layer->head_dim);
}

static void check_moments(const shape *p, uint64_t key)
{
    synth_call s;
    kvb_observer *o;
    kvb_observed seen;
    size_t square = (size_t)p->dim * p->dim;
    float *got = malloc(2 * p->kv_heads * square * sizeof *got);
    double *want = malloc(2 * square * sizeof *want);
    synth_call_create(&s, p->heads, p->kv_heads, p->dim, p->tokens, p->window, key);
    assert_int_equal(kvb_observer_create(&s.layer, 1, p->tokens, key, &o, NULL), KVB_OK);
    kvb_observer_begin_chunk(o, 5);
    assert_int_equal(kvb_observer_see(o, &s.call, s.out, s.lse, &seen, NULL), KVB_OK);
    take_moments(o, &s.layer, got);
    for (uint32_t kv = 0; kv < p->kv_heads; kv++) {
        memset(want, 0, 2 * square * sizeof *want);
        dense_moments(&s, o, kv, want, want + square);
        for (size_t i = 0; i < square; i++) {
            assert_true(fabs((double)got[kv * square + i] - want[i]) < 1e-5 * (1.0 + fabs(want[i])));
            assert_true(fabs((double)got[(p->kv_heads + kv) * square + i] - want[square + i]) <
                        1e-5 * (1.0 + fabs(want[square + i])));
        }
    }
    kvb_observer_destroy(o);
    synth_call_free(&s);
    free(got);
    free(want);
}

static void test_moments(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        check_moments(&shapes[i], 200 + i);
}

static void test_draws(void **state)
{
    (void)state;
    kvb_observer *o;
    kvb_layer layer = {.heads = 1, .kv_heads = 1, .head_dim = 8, .attention_scale = 1.0};
    assert_int_equal(kvb_observer_create(&layer, 1, 16, 3, &o, NULL), KVB_OK);
    double sum = 0.0;
    uint32_t differ = 0;
    for (uint32_t i = 0; i < 4096; i++) {
        uint32_t u = kvb_observer_draw(o, i, 0), near = kvb_observer_draw(o, i, 16);
        assert_true(u <= i && near <= i && near + 16 > i);
        sum += (u + 0.5) / (i + 1.0);
        kvb_observer_begin_chunk(o, 1);
        differ += kvb_observer_draw(o, i, 0) != u;
        kvb_observer_begin_chunk(o, 0);
        assert_int_equal(kvb_observer_draw(o, i, 0), u);
    }
    assert_true(fabs(sum / 4096 - 0.5) < 0.02);
    assert_true(differ > 4000);
    kvb_observer_destroy(o);
}

/* All that one and several threads see must be the same bits. */
static void test_threads(void **state)
{
    (void)state;
    const uint32_t counts[] = {1, 2, 5};
    synth_call s;
    float weights[3][2 * 3 * 300], moments[3][2 * 3 * 16 * 16];
    int before = omp_get_max_threads();
    synth_call_create(&s, 6, 3, 16, 300, 0, 11);
    for (int run = 0; run < 3; run++) {
        kvb_observer *o;
        kvb_observed seen;
        omp_set_num_threads((int)counts[run]);
        assert_int_equal(kvb_observer_create(&s.layer, 1, 300, 1, &o, NULL), KVB_OK);
        assert_int_equal(kvb_observer_see(o, &s.call, s.out, s.lse, &seen, NULL), KVB_OK);
        memcpy(weights[run], seen.weight_k, 3 * 300 * sizeof(float));
        memcpy(weights[run] + 3 * 300, seen.weight_v, 3 * 300 * sizeof(float));
        take_moments(o, &s.layer, moments[run]);
        assert_memory_equal(weights[run], weights[0], sizeof weights[0]);
        assert_memory_equal(moments[run], moments[0], sizeof moments[0]);
        kvb_observer_destroy(o);
    }
    omp_set_num_threads(before);
    synth_call_free(&s);
}

static void test_bad_query(void **state)
{
    (void)state;
    synth_call s;
    kvb_observer *o;
    kvb_observed seen;
    float moments[2 * 8 * 8];
    synth_call_create(&s, 2, 1, 8, 20, 0, 12);
    s.q[8 * 7] = NAN;
    s.q[8 * 33 + 2] = INFINITY;
    assert_int_equal(kvb_observer_create(&s.layer, 1, 20, 1, &o, NULL), KVB_OK);
    assert_int_equal(kvb_observer_see(o, &s.call, s.out, s.lse, &seen, NULL), KVB_OK);
    assert_int_equal(seen.bad_queries, 2);
    take_moments(o, &s.layer, moments);
    for (int i = 0; i < 128; i++)
        assert_true(isfinite(moments[i]));
    kvb_observer_destroy(o);
    synth_call_free(&s);
}

static void test_foreign_call(void **state)
{
    (void)state;
    synth_call s;
    kvb_observer *o;
    kvb_observed seen;
    kvb_error err;
    synth_call_create(&s, 2, 1, 8, 20, 0, 13);
    assert_int_equal(kvb_observer_create(&s.layer, 1, 19, 1, &o, NULL), KVB_OK);
    assert_int_equal(kvb_observer_see(o, &s.call, s.out, s.lse, &seen, &err), KVB_E_USAGE);
    assert_non_null(strstr(err.message, "20 tokens"));
    kvb_observer_destroy(o);
    synth_call_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dense),   cmocka_unit_test(test_value_perturbation),
        cmocka_unit_test(test_key_perturbation), cmocka_unit_test(test_moments),
        cmocka_unit_test(test_draws),   cmocka_unit_test(test_threads),
        cmocka_unit_test(test_bad_query), cmocka_unit_test(test_foreign_call),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
