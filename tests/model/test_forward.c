/* The forward pass against a plain one in double, its seams, and its independence of threads. */
#include <math.h>
#include <omp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "format/base/checked.h"
#include "format/base/rng.h"
#include "model/weights.h"
#include "tests/support/plain_llama.h"
#include "tests/support/tiny_gguf.h"
#include "tests/support/tiny_llama2c.h"

static char model_path[64], tokenizer_path[64];

static kvb_model *open_tiny(const tiny_llama2c *t, uint64_t budget)
{
    kvb_model *m = NULL;
    kvb_error err;
    kvb_model_options o = {.tokenizer_path = tokenizer_path, .max_weight_bytes = budget};
    assert_true(tiny_llama2c_write(t, model_path, tokenizer_path));
    kvb_status status = kvb_model_open(model_path, &o, &m, &err);
    if (status != KVB_OK)
        fail_msg("%s: %s", err.where, err.message);
    return m;
}

static uint32_t *some_tokens(uint32_t count, uint32_t vocab)
{
    uint32_t *ids = kvb_alloc_array(count, sizeof *ids);
    for (uint32_t i = 0; i < count; i++)
        ids[i] = (uint32_t)kvb_rng_below(99, i, vocab);
    return ids;
}

/* ---- the plain model: matrices as they stand in the file, everything in double */

static const float *tensor(const kvb_model *m, const char *pattern, uint32_t layer)
{
    char name[64];
    snprintf(name, sizeof name, pattern, layer);
    const kvb_tensor *t = kvb_model_find(m, name);
    assert_non_null(t);
    return (const float *)(const void *)t->bytes;
}

static void plain_product(const float *w, const double *x, uint32_t rows, uint32_t cols, double *y)
{
    for (uint32_t r = 0; r < rows; r++) {
        y[r] = 0.0;
        for (uint32_t c = 0; c < cols; c++)
            y[r] += (double)w[r * cols + c] * x[c];
    }
}

static void plain_norm(const double *x, const float *w, uint32_t n, double *y)
{
    double square = 0.0;
    for (uint32_t i = 0; i < n; i++)
        square += x[i] * x[i];
    for (uint32_t i = 0; i < n; i++)
        y[i] = x[i] / sqrt(square / n + 1e-5) * (double)w[i];
}

static void plain_rope(double *x, uint32_t dim, uint32_t position)
{
    for (uint32_t i = 0; i < dim; i += 2) {
        double angle = position * pow(10000.0, -(double)i / dim), a = x[i], b = x[i + 1];
        x[i] = a * cos(angle) - b * sin(angle);
        x[i + 1] = a * sin(angle) + b * cos(angle);
    }
}

typedef struct plain_cache {
    double *k, *v; /* [L][T][G D] */
} plain_cache;

static void plain_attention(const tiny_llama2c *t, const double *q, const double *k, const double *v, uint32_t at,
                            double *out)
{
    uint32_t dim = t->embedding / t->heads, kv = t->kv_heads * dim;
    for (uint32_t h = 0; h < t->heads; h++) {
        uint32_t g = h / (t->heads / t->kv_heads);
        double sum = 0.0;
        memset(out + h * dim, 0, dim * sizeof *out);
        for (uint32_t j = 0; j <= at; j++) {
            double score = 0.0;
            for (uint32_t c = 0; c < dim; c++)
                score += q[h * dim + c] * k[j * kv + g * dim + c];
            double p = exp(score / sqrt((double)dim));
            sum += p;
            for (uint32_t c = 0; c < dim; c++)
                out[h * dim + c] += p * v[j * kv + g * dim + c];
        }
        for (uint32_t c = 0; c < dim; c++)
            out[h * dim + c] /= sum;
    }
}

static void plain_layer(const kvb_model *m, const tiny_llama2c *t, uint32_t l, uint32_t at, plain_cache *cache,
                        double *x)
{
    uint32_t e = t->embedding, dim = e / t->heads, kv = t->kv_heads * dim;
    double norm[64], q[64], mixed[64], back[64], gate[96], up[96];
    double *keys = cache->k + (size_t)l * t->context * kv, *values = cache->v + (size_t)l * t->context * kv;
    plain_norm(x, tensor(m, "blk.%u.attn_norm.weight", l), e, norm);
    plain_product(tensor(m, "blk.%u.attn_q.weight", l), norm, e, e, q);
    plain_product(tensor(m, "blk.%u.attn_k.weight", l), norm, kv, e, keys + at * kv);
    plain_product(tensor(m, "blk.%u.attn_v.weight", l), norm, kv, e, values + at * kv);
    for (uint32_t h = 0; h < t->heads; h++)
        plain_rope(q + h * dim, dim, at);
    for (uint32_t h = 0; h < t->kv_heads; h++)
        plain_rope(keys + at * kv + h * dim, dim, at);
    plain_attention(t, q, keys, values, at, mixed);
    plain_product(tensor(m, "blk.%u.attn_output.weight", l), mixed, e, e, back);
    for (uint32_t c = 0; c < e; c++)
        x[c] += back[c];
    plain_norm(x, tensor(m, "blk.%u.ffn_norm.weight", l), e, norm);
    plain_product(tensor(m, "blk.%u.ffn_gate.weight", l), norm, t->ffn, e, gate);
    plain_product(tensor(m, "blk.%u.ffn_up.weight", l), norm, t->ffn, e, up);
    for (uint32_t c = 0; c < t->ffn; c++)
        gate[c] = gate[c] / (1.0 + exp(-gate[c])) * up[c];
    plain_product(tensor(m, "blk.%u.ffn_down.weight", l), gate, e, t->ffn, back);
    for (uint32_t c = 0; c < e; c++)
        x[c] += back[c];
}

/* logits [T][vocab] */
static double *plain_logits(const kvb_model *m, const tiny_llama2c *t, const uint32_t *ids, uint32_t count)
{
    uint32_t e = t->embedding, kv = t->kv_heads * (e / t->heads);
    plain_cache cache = {kvb_alloc_array((size_t)t->layers * t->context * kv, sizeof(double)),
                         kvb_alloc_array((size_t)t->layers * t->context * kv, sizeof(double))};
    double *logits = kvb_alloc_array((size_t)count * t->vocab, sizeof *logits), x[64], norm[64];
    for (uint32_t i = 0; i < count; i++) {
        for (uint32_t c = 0; c < e; c++)
            x[c] = (double)tensor(m, "token_embd.weight", 0)[ids[i] * e + c];
        for (uint32_t l = 0; l < t->layers; l++)
            plain_layer(m, t, l, i, &cache, x);
        plain_norm(x, tensor(m, "output_norm.weight", 0), e, norm);
        const char *head = t->shared ? "token_embd.weight" : "output.weight";
        plain_product(tensor(m, head, 0), norm, t->vocab, e, logits + (size_t)i * t->vocab);
    }
    free(cache.k);
    free(cache.v);
    return logits;
}

/* ---- the tests */

static float *run(const kvb_model *m, const tiny_llama2c *t, const uint32_t *ids, uint32_t count,
                  const kvb_forward_hooks *hooks)
{
    kvb_forward *f;
    const float *hidden;
    assert_int_equal(kvb_forward_create(m, count, &f, NULL), KVB_OK);
    assert_int_equal(kvb_forward_run(f, ids, count, 0, hooks, &hidden, NULL), KVB_OK);
    float *logits = kvb_alloc_array((size_t)count * t->vocab, sizeof *logits);
    kvb_forward_logits(f, hidden, count, logits);
    kvb_forward_destroy(f);
    return logits;
}

static void check_against_plain(const tiny_llama2c *t, uint32_t count, uint64_t budget)
{
    kvb_model *m = open_tiny(t, budget);
    uint32_t *ids = some_tokens(count, t->vocab);
    float *got = run(m, t, ids, count, NULL);
    double *want = plain_logits(m, t, ids, count);
    for (size_t i = 0; i < (size_t)count * t->vocab; i++)
        assert_true(fabs((double)got[i] - want[i]) < 2e-4 * (1.0 + fabs(want[i])));
    free(want);
    free(got);
    free(ids);
    kvb_model_close(m);
}

static void test_equals_plain(void **state)
{
    (void)state;
    tiny_llama2c t = tiny_llama2c_default();
    check_against_plain(&t, 1, 0);
    check_against_plain(&t, 67, 0);
    check_against_plain(&t, 300, 0);
    t.shared = false;
    t.kv_heads = 6;
    check_against_plain(&t, 130, 0);
}

static void test_weights_expanded_when_used(void **state)
{
    (void)state;
    tiny_llama2c t = tiny_llama2c_default();
    check_against_plain(&t, 40, 1);
    check_against_plain(&t, 40, 100000);
}

static void test_threads_do_not_matter(void **state)
{
    (void)state;
    tiny_llama2c t = tiny_llama2c_default();
    kvb_model *m = open_tiny(&t, 0);
    uint32_t *ids = some_tokens(300, t.vocab);
    int before = omp_get_max_threads();
    omp_set_num_threads(1);
    float *one = run(m, &t, ids, 300, NULL);
    omp_set_num_threads(3);
    float *three = run(m, &t, ids, 300, NULL);
    omp_set_num_threads(before);
    assert_memory_equal(one, three, 300 * t.vocab * sizeof *one);
    free(one);
    free(three);
    free(ids);
    kvb_model_close(m);
}

typedef struct seen {
    uint32_t calls;
    float lse_of_first;
} seen;

/* With one visible token the log-sum-exp is its score. */
static kvb_status watch(void *user, const kvb_attention_call *call, const float *out, const float *lse, kvb_error *err)
{
    (void)err;
    seen *s = user;
    assert_int_equal(call->layer, s->calls++);
    uint32_t dim = call->geometry->head_dim;
    double score = 0.0;
    for (uint32_t c = 0; c < dim; c++)
        score += (double)call->q[c] * (double)call->k[c];
    assert_true(fabs((double)lse[0] - score * call->geometry->attention_scale) < 1e-5);
    for (uint32_t c = 0; c < dim; c++)
        assert_true(fabsf(out[c] - call->v[c]) < 1e-6f);
    assert_memory_equal(call->k, call->k_pre, dim * sizeof(float)); /* position 0 does not turn */
    return KVB_OK;
}

static kvb_status silence(void *user, const kvb_attention_call *call, float *out, kvb_error *err)
{
    (void)user, (void)err;
    memset(out, 0, (size_t)call->geometry->heads * call->tokens * call->geometry->head_dim * sizeof *out);
    return KVB_OK;
}

static kvb_status refuse(void *user, const kvb_attention_call *call, float *out, kvb_error *err)
{
    (void)user, (void)call, (void)out, (void)err;
    return KVB_E_CANCELLED;
}

static void test_output_weights(void **state)
{
    (void)state;
    const tiny_llama2c t = tiny_llama2c_default();
    const size_t count = (size_t)t.embedding * t.embedding;
    float *w = kvb_alloc_array(count, sizeof *w);
    for (uint64_t budget = 0; budget <= 1; budget++) {
        kvb_model *m = open_tiny(&t, budget); /* 0: resident, 1: expanded when used */
        for (uint32_t l = 0; l < t.layers; l++) {
            memset(w, 0, count * sizeof *w);
            kvb_model_output_weights(m, l, w);
            assert_memory_equal(w, tensor(m, "blk.%u.attn_output.weight", l), count * sizeof *w);
        }
        kvb_model_close(m);
    }
    free(w);
}

static void test_hooks(void **state)
{
    (void)state;
    tiny_llama2c t = tiny_llama2c_default();
    kvb_model *m = open_tiny(&t, 0);
    uint32_t *ids = some_tokens(20, t.vocab);
    seen s = {0};
    kvb_forward_hooks observe = {.observe = watch, .observe_user = &s}, mute = {.attend = silence};
    float *plain = run(m, &t, ids, 20, NULL), *watched = run(m, &t, ids, 20, &observe), *muted = run(m, &t, ids, 20, &mute);
    assert_int_equal(s.calls, t.layers);
    assert_memory_equal(plain, watched, 20 * t.vocab * sizeof *plain); /* observing changes nothing */
    assert_true(memcmp(plain, muted, 20 * t.vocab * sizeof *plain) != 0);
    free(plain);
    free(watched);
    free(muted);
    kvb_forward *f;
    const float *hidden;
    kvb_forward_hooks stop = {.attend = refuse};
    assert_int_equal(kvb_forward_create(m, 20, &f, NULL), KVB_OK);
    assert_int_equal(kvb_forward_run(f, ids, 20, 0, &stop, &hidden, NULL), KVB_E_CANCELLED);
    assert_int_equal(kvb_forward_run(f, ids, 21, 0, NULL, &hidden, NULL), KVB_E_USAGE);
    ids[3] = t.vocab;
    assert_int_equal(kvb_forward_run(f, ids, 20, 0, NULL, &hidden, NULL), KVB_E_USAGE);
    kvb_forward_destroy(f);
    free(ids);
    kvb_model_close(m);
}

static void expect_refused(const char *part)
{
    kvb_model *m = NULL;
    kvb_error err = {0};
    kvb_model_options o = {.tokenizer_path = tokenizer_path};
    assert_int_equal(kvb_model_open(model_path, &o, &m, &err), KVB_E_FORMAT);
    assert_null(m);
    assert_non_null(strstr(err.where, model_path));
    assert_non_null(strstr(err.message, part));
}

static void test_damaged_checkpoints(void **state)
{
    (void)state;
    tiny_llama2c t = tiny_llama2c_default();
    t.nan_at = 20000;
    assert_true(tiny_llama2c_write(&t, model_path, tokenizer_path));
    expect_refused("NaN");
    t.nan_at = UINT64_MAX;
    assert_true(tiny_llama2c_write(&t, model_path, tokenizer_path));
    uint64_t size = 28 + 4 * tiny_llama2c_floats(&t);
    static const int64_t cuts[] = {-1, -4, -1000};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(truncate(model_path, (off_t)size + cuts[i]), 0);
        expect_refused("llama2.c");
    }
    assert_int_equal(truncate(model_path, 20), 0);
    expect_refused("llama2.c");
    t.heads = 5;
    assert_true(tiny_llama2c_write(&t, model_path, NULL));
    expect_refused("do not fit together");
}

static kvb_status open_gguf(const tiny_gguf *t, uint64_t budget, kvb_error *err)
{
    kvb_model *m = NULL;
    kvb_model_options o = {.max_weight_bytes = budget};
    assert_int_equal(tiny_gguf_write(t, model_path), 0);
    kvb_status status = kvb_model_open(model_path, &o, &m, err);
    kvb_model_close(m);
    return status;
}

static void test_tensors_nobody_reads(void **state)
{
    (void)state;
    static const char *const refused[] = {"blk.0.attn_q.bias", "blk.1.attn_q_norm.weight", "blk.2.attn_q.weight",
                                          "blk.01.attn_q.weight", "output.bias", "blk."};
    static const char *const ignored[] = {"blk.1.attn_rot_embd", "blk.0.rope_freqs.weight"};
    tiny_gguf t = tiny_gguf_default();
    kvb_error err = {0};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        t.extra_tensor = refused[i];
        assert_int_equal(open_gguf(&t, 0, &err), KVB_E_FORMAT);
        assert_non_null(strstr(err.message, refused[i]));
        assert_non_null(strstr(err.message, "not supported"));
    }
    for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++) {
        t.extra_tensor = ignored[i];
        assert_int_equal(open_gguf(&t, 0, &err), KVB_OK);
    }
}

/* Whatever is resident: the embedding beside a head of its own never is, and a budget of 1 byte holds no matrix. */
static void test_nan_anywhere(void **state)
{
    (void)state;
    static const char *const names[] = {"token_embd.weight", "output.weight", "blk.1.attn_v.weight",
                                        "blk.0.ffn_up.weight", "blk.1.ffn_norm.weight"};
    tiny_gguf t = tiny_gguf_default();
    t.untied = true;
    for (size_t i = 0; i < 2 * (sizeof names / sizeof *names); i++) {
        kvb_error err = {0};
        t.nan_in = names[i / 2];
        assert_int_equal(open_gguf(&t, i % 2, &err), KVB_E_FORMAT);
        assert_non_null(strstr(err.message, t.nan_in));
        assert_non_null(strstr(err.message, "NaN"));
    }
    t.nan_in = NULL;
    assert_int_equal(open_gguf(&t, 1, NULL), KVB_OK);
}

static void test_no_rotation(void **state)
{
    (void)state;
    tiny_gguf t = tiny_gguf_default();
    kvb_error err = {0};
    t.no_rotation = true;
    assert_int_equal(open_gguf(&t, 0, &err), KVB_E_FORMAT);
    assert_non_null(strstr(err.message, "RoPE over 0 channels"));
}

/* Hidden states of every architecture against the formulas in double, with and without resident weights. */
static void test_architectures_equal_plain(void **state)
{
    (void)state;
    static const char *const names[] = {"llama", "qwen2", "qwen3", "gemma3", "phi3"};
    enum { COUNT = 21 };
    for (size_t i = 0; i < 2 * (sizeof names / sizeof *names); i++) {
        const tiny_gguf t = tiny_gguf_of(names[i / 2]);
        const kvb_model_options budget = {.max_weight_bytes = i % 2};
        kvb_model *m, *lean;
        kvb_forward *f;
        const float *hidden;
        assert_int_equal(tiny_gguf_write(&t, model_path), 0);
        assert_int_equal(kvb_model_open(model_path, NULL, &m, NULL), KVB_OK);
        assert_int_equal(kvb_model_open(model_path, &budget, &lean, NULL), KVB_OK);
        assert_string_equal(kvb_model_get_info(m)->architecture, names[i / 2]);
        uint32_t *ids = some_tokens(COUNT, m->config.vocab);
        const size_t floats = COUNT * (size_t)m->config.embedding;
        double *want = kvb_alloc_array(floats, sizeof *want);
        plain_llama plain = plain_llama_make(m, ids, COUNT, 0.0);
        plain_llama_hidden(&plain, want);
        assert_int_equal(kvb_forward_create(lean, COUNT, &f, NULL), KVB_OK);
        assert_int_equal(kvb_forward_run(f, ids, COUNT, 0, NULL, &hidden, NULL), KVB_OK);
        for (size_t j = 0; j < floats; j++)
            assert_true(fabs((double)hidden[j] - want[j]) < 3e-5);
        plain_llama_free(&plain);
        kvb_forward_destroy(f);
        kvb_model_close(m);
        kvb_model_close(lean);
        free(ids);
        free(want);
    }
}

static void test_layers_that_slide(void **state)
{
    (void)state;
    const tiny_gguf t = tiny_gguf_of("gemma3");
    kvb_model *m;
    assert_int_equal(tiny_gguf_write(&t, model_path), 0);
    assert_int_equal(kvb_model_open(model_path, NULL, &m, NULL), KVB_OK);
    for (uint32_t l = 0; l < t.layers; l++) {
        const kvb_layer *g = &kvb_model_get_info(m)->layer[l];
        assert_int_equal(g->kind, l == 5 ? KVB_LAYER_FULL : KVB_LAYER_SLIDING);
        assert_int_equal(g->sliding_window, l == 5 ? 0 : 5);
        assert_true(fabs(g->rope_base - (l == 5 ? 1e6 : 1e4)) < 1e-9);
        assert_int_equal(g->head_dim, 24);
    }
    kvb_model_close(m);
}

static void test_architectures_refused(void **state)
{
    (void)state;
    kvb_error err;
    tiny_gguf t = tiny_gguf_of("gemma2");
    assert_int_equal(open_gguf(&t, 0, &err), KVB_E_FORMAT);
    assert_non_null(strstr(err.message, "\"gemma2\" is not supported; these are: llama, qwen2, qwen3, gemma3, phi3"));
    t = tiny_gguf_of("gemma3");
    t.without_key = "gemma3.attention.sliding_window";
    assert_int_equal(open_gguf(&t, 0, &err), KVB_E_FORMAT);
    assert_non_null(strstr(err.message, "gemma3.attention.sliding_window is missing"));
    t = tiny_gguf_of("qwen3");
    t.rope_dims = 8;
    assert_int_equal(open_gguf(&t, 0, &err), KVB_E_FORMAT);
    assert_non_null(strstr(err.message, "RoPE over 8 of 16 channels: qwen3 models rotate all"));
    t = tiny_gguf_of("qwen2");
    t.kv_heads = 3;
    assert_int_equal(open_gguf(&t, 0, &err), KVB_E_FORMAT);
    assert_non_null(strstr(err.message, "4 query heads are not a multiple of 3 KV heads"));
    t.kv_heads = 2;
    t.sliding_window = 5;
    assert_int_equal(open_gguf(&t, 0, &err), KVB_E_FORMAT);
    assert_non_null(strstr(err.message, "does not say which layers slide"));
    static const char *const features[] = {"attn_logit_softcapping", "final_logit_softcapping", "expert_count"};
    for (size_t i = 0; i < sizeof features / sizeof *features; i++) {
        t = tiny_gguf_of("gemma3");
        t.extra_key = features[i];
        assert_int_equal(open_gguf(&t, 0, &err), KVB_E_FORMAT);
        assert_non_null(strstr(err.message, features[i]));
        assert_non_null(strstr(err.message, "this feature is not supported"));
    }
    static const struct { const char *architecture, *tensor; } missing[] = {
        {"qwen2", "blk.1.attn_k.bias"}, {"qwen3", "blk.0.attn_q_norm.weight"}, {"phi3", "blk.1.attn_qkv.weight"},
        {"gemma3", "blk.6.post_ffw_norm.weight"},
    };
    for (size_t i = 0; i < sizeof missing / sizeof *missing; i++) {
        t = tiny_gguf_of(missing[i].architecture);
        t.without_tensor = missing[i].tensor;
        assert_int_equal(open_gguf(&t, 0, &err), KVB_E_FORMAT);
        assert_non_null(strstr(err.message, missing[i].tensor));
        assert_non_null(strstr(err.message, "is missing"));
        t.without_tensor = NULL;
        t.wrong_shape = missing[i].tensor;
        assert_int_equal(open_gguf(&t, 0, &err), KVB_E_FORMAT);
        assert_non_null(strstr(err.message, "has shape"));
    }
}

int main(void)
{
    snprintf(model_path, sizeof model_path, "/tmp/kvb-test-forward-%d.bin", (int)getpid());
    snprintf(tokenizer_path, sizeof tokenizer_path, "/tmp/kvb-test-forward-%d.tok", (int)getpid());
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_equals_plain),
        cmocka_unit_test(test_weights_expanded_when_used),
        cmocka_unit_test(test_threads_do_not_matter),
        cmocka_unit_test(test_hooks),
        cmocka_unit_test(test_output_weights),
        cmocka_unit_test(test_damaged_checkpoints),
        cmocka_unit_test(test_tensors_nobody_reads),
        cmocka_unit_test(test_nan_anywhere),
        cmocka_unit_test(test_no_rotation),
        cmocka_unit_test(test_architectures_equal_plain),
        cmocka_unit_test(test_layers_that_slide),
        cmocka_unit_test(test_architectures_refused),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(model_path);
    unlink(tokenizer_path);
    return failed;
}
