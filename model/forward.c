#include <math.h>
#include <omp.h>
#include <string.h>

#include "format/base/attention.h"
#include "format/base/checked.h"
#include "format/base/fail.h"
#include "model/forward_impl.h"
#include "model/linear.h"

static float *floats(uint64_t count)
{
    return kvb_alloc_array(count, sizeof(float));
}

static bool allocate(kvb_forward *f)
{
    const kvb_model_config *c = &f->model->config;
    const kvb_layer *g = &c->geometry;
    uint64_t t = f->max_tokens, heads = (uint64_t)g->heads * g->head_dim, kv = (uint64_t)g->kv_heads * g->head_dim;
    uint64_t qkv = heads + 2 * kv, wide = qkv > 2 * (uint64_t)c->ffn ? qkv : 2 * (uint64_t)c->ffn;
    f->x = floats(t * c->embedding);
    f->norm = floats(t * c->embedding);
    f->wide = floats(t * wide);
    f->mixed = floats(t * heads);
    f->q = floats(t * heads);
    f->out = floats(t * heads);
    f->k_pre = floats(t * kv);
    f->k = floats(t * kv);
    f->v = floats(t * kv);
    f->k_t = floats(kvb_attn_padded(f->max_tokens) * kv);
    f->lse = floats(t * g->heads);
    f->weights = floats(f->model->scratch_floats);
    f->rope = kvb_alloc_zeroed(c->layers, sizeof *f->rope);
    f->rope_of = kvb_alloc_array(c->layers, sizeof *f->rope_of);
    return f->rope && f->rope_of && f->x && f->norm && f->wide && f->mixed && f->q && f->out && f->k_pre && f->k &&
           f->v && f->k_t && f->lse && f->weights;
}

kvb_status kvb_forward_create(const kvb_model *model, uint32_t max_tokens, kvb_forward **out, kvb_error *err)
{
    *out = NULL;
    kvb_forward *f = kvb_alloc_zeroed(1, sizeof *f);
    if (f == NULL)
        return kvb_fail_memory(err, "forward pass");
    f->model = model;
    f->kernels = kvb_kernels_best();
    f->max_tokens = max_tokens;
    if (!allocate(f)) {
        kvb_forward_destroy(f);
        return kvb_fail(err, KVB_E_MEMORY, "forward pass", "out of memory for sequences of %u tokens", max_tokens);
    }
    for (uint32_t l = 0; l < model->config.layers; l++)
        for (f->rope_of[l] = 0; !kvb_rope_same(&model->geometry[f->rope_of[l]], &model->geometry[l]);)
            f->rope_of[l]++;
    *out = f;
    return KVB_OK;
}

static void free_ropes(kvb_forward *f)
{
    for (uint32_t l = 0; f->rope != NULL && l < f->model->config.layers; l++)
        kvb_rope_table_free(&f->rope[l]);
    f->positions = 0;
}

void kvb_forward_destroy(kvb_forward *f)
{
    if (f == NULL)
        return;
    float *all[] = {f->x, f->norm, f->wide, f->mixed, f->q, f->out, f->k_pre, f->k, f->v, f->k_t, f->lse, f->weights,
                    f->scratch};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    free_ropes(f);
    free(f->rope);
    free(f->rope_of);
    free(f);
}

kvb_status kvb_forward_prepare(kvb_forward *f, uint32_t count, uint32_t position, kvb_error *err)
{
    const kvb_layer *g = &f->model->config.geometry;
    if (omp_get_max_threads() > f->threads) {
        free(f->scratch);
        f->threads = omp_get_max_threads();
        f->scratch = floats((uint64_t)f->threads * kvb_attn_scratch_floats(g->head_dim));
        if (f->scratch == NULL) {
            f->threads = 0;
            return kvb_fail_memory(err, "attention scratch");
        }
    }
    if (position + count <= f->positions)
        return KVB_OK;
    free_ropes(f);
    uint32_t wanted = position + count > f->max_tokens ? (position + count) * 2 : f->max_tokens;
    for (uint32_t l = 0; l < f->model->config.layers; l++) {
        kvb_status status = KVB_OK;
        if (f->rope_of[l] == l)
            status = kvb_rope_table_create(&f->rope[l], &f->model->geometry[l], 0, wanted, err);
        if (status != KVB_OK)
            return status;
    }
    f->positions = wanted;
    return KVB_OK;
}

static void embed(kvb_forward *f, const uint32_t *tokens, uint32_t count)
{
    const uint64_t width = f->model->config.embedding;
    const kvb_weight *e = &f->model->embedding;
#pragma omp parallel for schedule(static) if (count >= KVB_SHARED_ROWS)
    for (uint32_t t = 0; t < count; t++) {
        kvb_dequantise(e->part[0], tokens[t] * width, width, f->x + t * width);
        if (f->model->config.arch->embedding_scale)
            f->kernels->scale(f->x + t * width, width, f->model->config.embedding_scale);
    }
}

/* RMSNorm (arXiv 1910.07467) of one row, times its weights; out may be x. */
static void norm_row(const kvb_forward *f, const float *x, const float *weight, uint32_t width, float *out)
{
    double square = (double)f->kernels->dot(x, x, width) / width;
    float factor = (float)(1.0 / sqrt(square + f->model->config.norm_epsilon));
    for (uint32_t c = 0; c < width; c++)
        out[c] = x[c] * factor * weight[c];
}

static void rms_norm(const kvb_forward *f, const float *rows, uint32_t count, const float *weight, float *out)
{
    const uint32_t width = f->model->config.embedding;
#pragma omp parallel for schedule(static) if (count >= KVB_SHARED_ROWS)
    for (uint32_t t = 0; t < count; t++)
        norm_row(f, rows + (size_t)t * width, weight, width, out + (size_t)t * width);
}

static void linear(const kvb_forward *f, const float *x, uint64_t ldx, const kvb_weight *w, uint32_t count,
                   bool accumulate, float *y, uint64_t ldy)
{
    kvb_linear(x, ldx, kvb_weight_floats(w, f->weights), count, w->rows, w->cols, accumulate, y, ldy);
}

void kvb_forward_qkv(kvb_forward *f, const float *x, uint32_t count, const kvb_layer_weights *w, float *qkv)
{
    const uint32_t width = f->model->config.embedding;
    rms_norm(f, x, count, w->attention_norm, f->norm);
    for (uint32_t t = 0; w->qkv_bias != NULL && t < count; t++)
        memcpy(qkv + t * w->qkv.rows, w->qkv_bias, w->qkv.rows * sizeof *qkv);
    linear(f, f->norm, width, &w->qkv, count, w->qkv_bias != NULL, qkv, w->qkv.rows);
}

void kvb_forward_gate_up(kvb_forward *f, const float *x, uint32_t count, const kvb_layer_weights *w, float *gate_up)
{
    const uint32_t width = f->model->config.embedding;
    rms_norm(f, x, count, w->ffn_norm, f->norm);
    linear(f, f->norm, width, &w->gate_up, count, false, gate_up, w->gate_up.rows);
}

/* One head's row as it is before RoPE. */
static void before_rope(const kvb_forward *f, const float *from, const float *norm, uint32_t dim, float *to)
{
    if (norm != NULL)
        norm_row(f, from, norm, dim, to);
    else
        memcpy(to, from, dim * sizeof *to);
}

/* From rows of [q | k | v] to heads, with keys before and after RoPE. */
void kvb_forward_split(kvb_forward *f, uint32_t layer, const float *qkv, uint32_t count, uint32_t position)
{
    const kvb_layer *g = &f->model->geometry[layer];
    const kvb_layer_weights *w = &f->model->layer[layer];
    const kvb_rope_table *rope = &f->rope[f->rope_of[layer]];
    const size_t dim = g->head_dim, row = (g->heads + 2 * (size_t)g->kv_heads) * dim;
#pragma omp parallel for schedule(static) if (count >= KVB_SHARED_ROWS)
    for (uint32_t t = 0; t < count; t++) {
        const float *from = qkv + t * row;
        for (uint32_t h = 0; h < g->heads; h++, from += dim) {
            float *q = f->q + ((size_t)h * count + t) * dim;
            before_rope(f, from, w->q_norm, g->head_dim, q);
            kvb_rope_rotate(rope, position + t, g->head_dim, q, q);
        }
        for (uint32_t h = 0; h < g->kv_heads; h++, from += dim) {
            float *pre = f->k_pre + ((size_t)h * count + t) * dim;
            before_rope(f, from, w->k_norm, g->head_dim, pre);
            kvb_rope_rotate(rope, position + t, g->head_dim, pre, f->k + ((size_t)h * count + t) * dim);
        }
        for (uint32_t h = 0; h < g->kv_heads; h++, from += dim)
            memcpy(f->v + ((size_t)h * count + t) * dim, from, dim * sizeof *from);
    }
}

/* Tasks are (query head, block of queries), the longest rows first so that threads end together. */
static void attend_exactly(kvb_forward *f, const kvb_layer *g, uint32_t count, float *out)
{
    const size_t dim = g->head_dim, ld = kvb_attn_padded(count);
    const uint32_t group = g->heads / g->kv_heads, blocks = (count + KVB_ATTN_ROWS - 1) / KVB_ATTN_ROWS;
    const uint32_t window = g->kind == KVB_LAYER_SLIDING ? g->sliding_window : 0;
#pragma omp parallel
    {
        float *scratch = f->scratch + (size_t)omp_get_thread_num() * kvb_attn_scratch_floats(g->head_dim);
#pragma omp for schedule(dynamic)
        for (uint32_t h = 0; h < g->kv_heads; h++)
            kvb_transpose(f->k + h * count * dim, dim, count, g->head_dim, f->k_t + h * ld * dim, ld);
#pragma omp for schedule(dynamic)
        for (uint32_t task = 0; task < g->heads * blocks; task++) {
            uint32_t h = task % g->heads, first = (blocks - 1 - task / g->heads) * KVB_ATTN_ROWS;
            uint32_t rows = count - first < KVB_ATTN_ROWS ? count - first : KVB_ATTN_ROWS;
            size_t head = (size_t)h * count, kv = h / group;
            kvb_attn_exact(f->kernels, f->q + head * dim, f->k_t + kv * ld * dim, ld, f->v + kv * count * dim, first,
                           rows, g->head_dim, (float)g->attention_scale, window, out + (head + first) * dim,
                           f->lse + head + first, scratch);
        }
    }
}

static void merge_heads(kvb_forward *f, uint32_t count, const float *out)
{
    const kvb_layer *g = &f->model->config.geometry;
    const size_t dim = g->head_dim;
#pragma omp parallel for schedule(static) if (count >= KVB_SHARED_ROWS)
    for (uint32_t t = 0; t < count; t++)
        for (uint32_t h = 0; h < g->heads; h++)
            memcpy(f->mixed + ((size_t)t * g->heads + h) * dim, out + ((size_t)h * count + t) * dim,
                   dim * sizeof *out);
}

static kvb_status attend(kvb_forward *f, uint32_t layer, uint32_t count, uint32_t position,
                         const kvb_forward_hooks *hooks, float *out, kvb_error *err)
{
    const kvb_attention_call call = {layer, &f->model->geometry[layer], count, position, f->q, f->k_pre, f->k, f->v};
    if (hooks != NULL && hooks->attend != NULL)
        return hooks->attend(hooks->attend_user, &call, out, err);
    attend_exactly(f, call.geometry, count, out);
    if (hooks != NULL && hooks->observe != NULL)
        return hooks->observe(hooks->observe_user, &call, out, f->lse, err);
    return KVB_OK;
}

static void keep(float *tape, const float *x, size_t floats_kept)
{
    if (tape != NULL)
        memcpy(tape, x, floats_kept * sizeof *tape);
}

/* x += rows W^T, or x += norm(rows W^T) where the architecture has post norms: the tape keeps what goes into these. */
static void add_to_stream(kvb_forward *f, const float *rows, uint64_t ld, const kvb_weight *w, const float *post_norm,
                          uint32_t count, float *tape)
{
    const uint32_t width = f->model->config.embedding;
    if (post_norm == NULL) {
        linear(f, rows, ld, w, count, true, f->x, width);
        return;
    }
    linear(f, rows, ld, w, count, false, f->norm, width);
    keep(tape, f->norm, (size_t)count * width);
    rms_norm(f, f->norm, count, post_norm, f->norm);
#pragma omp parallel for schedule(static) if (count >= KVB_SHARED_ROWS)
    for (uint32_t t = 0; t < count; t++)
        f->kernels->axpy(f->x + (size_t)t * width, f->norm + (size_t)t * width, width, 1.0f);
}

/* SwiGLU and GeGLU (arXiv 2002.05202): down(activation(gate) * up). A tape keeps what comes before the activation. */
static void feed_forward(kvb_forward *f, uint32_t count, const kvb_layer_weights *w, const kvb_tape_layer *tape)
{
    const kvb_model_config *c = &f->model->config;
    const bool gelu = c->arch->activation == KVB_ACTIVATION_GELU_TANH;
    const size_t width = 2 * (size_t)c->ffn;
    float *gate_up = tape->gate_up != NULL ? tape->gate_up : f->wide;
    kvb_forward_gate_up(f, f->x, count, w, gate_up);
#pragma omp parallel for schedule(static) if (count >= KVB_SHARED_ROWS)
    for (uint32_t t = 0; t < count; t++) {
        float *gate = f->wide + t * width;
        if (tape->gate_up != NULL)
            memcpy(gate, tape->gate_up + t * width, c->ffn * sizeof *gate);
        (gelu ? f->kernels->gelu_product : f->kernels->silu_product)(gate, gate_up + t * width + c->ffn, c->ffn);
    }
    add_to_stream(f, f->wide, width, &w->down, w->ffn_post_norm, count, tape->fed);
}

static kvb_status run_layer(kvb_forward *f, uint32_t layer, uint32_t count, uint32_t position,
                            const kvb_forward_hooks *hooks, kvb_error *err)
{
    const uint32_t width = f->model->config.embedding;
    const kvb_layer_weights *w = &f->model->layer[layer];
    const kvb_tape_layer tape = f->tape != NULL ? f->tape[layer] : (kvb_tape_layer){0};
    float *qkv = tape.qkv != NULL ? tape.qkv : f->wide, *out = tape.out != NULL ? tape.out : f->out;
    keep(tape.x, f->x, (size_t)count * width);
    kvb_forward_qkv(f, f->x, count, w, qkv);
    kvb_forward_split(f, layer, qkv, count, position);
    kvb_status status = attend(f, layer, count, position, hooks, out, err);
    if (status != KVB_OK)
        return status;
    merge_heads(f, count, out);
    add_to_stream(f, f->mixed, w->out.cols, &w->out, w->attention_post_norm, count, tape.attended);
    keep(tape.mid, f->x, (size_t)count * width);
    feed_forward(f, count, w, &tape);
    return KVB_OK;
}

kvb_status kvb_forward_check(const kvb_forward *f, const uint32_t *tokens, uint32_t count, kvb_error *err)
{
    if (count == 0 || count > f->max_tokens)
        return kvb_fail(err, KVB_E_USAGE, "forward pass", "%u tokens, expected 1 to %u", count, f->max_tokens);
    for (uint32_t t = 0; t < count; t++)
        if (tokens[t] >= f->model->config.vocab)
            return kvb_fail(err, KVB_E_USAGE, "forward pass", "token %u is id %u of a vocabulary of %u", t, tokens[t],
                            f->model->config.vocab);
    return KVB_OK;
}

kvb_status kvb_forward_run(kvb_forward *f, const uint32_t *tokens, uint32_t count, uint32_t position,
                           const kvb_forward_hooks *hooks, const float **hidden, kvb_error *err)
{
    kvb_status status = kvb_forward_check(f, tokens, count, err);
    if (status == KVB_OK)
        status = kvb_forward_prepare(f, count, position, err);
    if (status != KVB_OK)
        return status;
    embed(f, tokens, count);
    for (uint32_t l = 0; l < f->model->config.layers && status == KVB_OK; l++)
        status = run_layer(f, l, count, position, hooks, err);
    if (status != KVB_OK)
        return status;
    rms_norm(f, f->x, count, f->model->final_norm, f->norm);
    *hidden = f->norm;
    return KVB_OK;
}

void kvb_forward_logits(const kvb_forward *f, const float *hidden, uint32_t n, float *logits)
{
    linear(f, hidden, f->model->config.embedding, &f->model->head, n, false, logits, f->model->config.vocab);
}
