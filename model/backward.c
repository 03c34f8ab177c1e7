#include "model/backward.h"

#include <math.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "model/forward_impl.h"
#include "model/linear.h"

/* Shapes as in forward_impl.h. */
struct kvb_backward {
    const kvb_model *model;
    kvb_forward *f;
    kvb_tape_layer *tape;
    uint32_t count;   /* tokens of the last forward pass; 0: none went through */
    float *dx;        /* [T][E] gradient of the residual stream */
    float *d_norm;    /* [T][E] */
    float *d_wide;    /* [T][max((H+2G)D, 2F)] */
    float *d_mixed;   /* [T][max(HD, F)] */
    float *d_out, *d_q; /* [H][T][D] */
    float *d_k, *d_v; /* [G][T][D] */
};

static float *floats(uint64_t count)
{
    return kvb_alloc_array(count, sizeof(float));
}

static uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static bool allocate_tape(kvb_backward *b, uint64_t tokens, uint64_t budget)
{
    const kvb_model_config *c = &b->model->config;
    const uint64_t heads = (uint64_t)c->geometry.heads * c->geometry.head_dim;
    bool good = (b->tape = kvb_alloc_zeroed(c->layers, sizeof *b->tape)) != NULL;
    for (uint32_t l = 0; good && l < c->layers; l++) {
        kvb_tape_layer *t = &b->tape[l];
        const uint64_t qkv = tokens * b->model->layer[l].qkv.rows, wide = tokens * b->model->layer[l].gate_up.rows;
        const uint64_t bytes = (qkv + wide) * sizeof(float);
        t->x = floats(tokens * c->embedding);
        t->mid = floats(tokens * c->embedding);
        t->out = floats(tokens * heads);
        if (c->arch->post_norms) {
            t->attended = floats(tokens * c->embedding);
            t->fed = floats(tokens * c->embedding);
            good = t->attended != NULL && t->fed != NULL;
        }
        good = good && t->x != NULL && t->mid != NULL && t->out != NULL;
        if (!good || bytes > budget)
            continue;
        budget -= bytes;
        t->qkv = floats(qkv);
        t->gate_up = floats(wide);
        good = t->qkv != NULL && t->gate_up != NULL;
    }
    return good;
}

static bool allocate_scratch(kvb_backward *b, uint64_t tokens)
{
    const kvb_model_config *c = &b->model->config;
    const kvb_layer *g = &c->geometry;
    const uint64_t heads = (uint64_t)g->heads * g->head_dim, kv = (uint64_t)g->kv_heads * g->head_dim;
    b->dx = floats(tokens * c->embedding);
    b->d_norm = floats(tokens * c->embedding);
    b->d_wide = floats(tokens * larger(heads + 2 * kv, 2 * (uint64_t)c->ffn));
    b->d_mixed = floats(tokens * larger(heads, c->ffn));
    b->d_out = floats(tokens * heads);
    b->d_q = floats(tokens * heads);
    b->d_k = floats(tokens * kv);
    b->d_v = floats(tokens * kv);
    return b->dx && b->d_norm && b->d_wide && b->d_mixed && b->d_out && b->d_q && b->d_k && b->d_v;
}

kvb_status kvb_backward_create(const kvb_model *model, uint32_t max_tokens, uint64_t max_product_bytes,
                               kvb_backward **out, kvb_error *err)
{
    kvb_backward *b = kvb_alloc_zeroed(1, sizeof *b);
    *out = NULL;
    if (b == NULL)
        return kvb_fail_memory(err, "backward pass");
    b->model = model;
    kvb_status status = kvb_forward_create(model, max_tokens, &b->f, err);
    if (status == KVB_OK && !(allocate_tape(b, max_tokens, max_product_bytes ? max_product_bytes : UINT64_MAX) &&
                              allocate_scratch(b, max_tokens)))
        status = kvb_fail(err, KVB_E_MEMORY, "backward pass",
                          "out of memory for %u layers over sequences of %u tokens; use shorter ones", model->config.layers,
                          max_tokens);
    if (status != KVB_OK) {
        kvb_backward_destroy(b);
        return status;
    }
    b->f->tape = b->tape;
    *out = b;
    return KVB_OK;
}

void kvb_backward_destroy(kvb_backward *b)
{
    if (b == NULL)
        return;
    for (uint32_t l = 0; b->tape != NULL && l < b->model->config.layers; l++) {
        const kvb_tape_layer *t = &b->tape[l];
        float *all[] = {t->x, t->mid, t->out, t->qkv, t->gate_up, t->attended, t->fed};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++)
            free(all[i]);
    }
    float *all[] = {b->dx, b->d_norm, b->d_wide, b->d_mixed, b->d_out, b->d_q, b->d_k, b->d_v};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    free(b->tape);
    kvb_forward_destroy(b->f);
    free(b);
}

kvb_status kvb_backward_forward(kvb_backward *b, const uint32_t *tokens, uint32_t count, const kvb_forward_hooks *hooks,
                                const float **hidden, kvb_error *err)
{
    b->count = 0;
    kvb_status status = kvb_forward_run(b->f, tokens, count, 0, hooks, hidden, err);
    if (status == KVB_OK)
        b->count = count;
    return status;
}

/* dX = dY W. */
static void back(const kvb_backward *b, const float *dy, uint64_t lddy, const kvb_weight *w, float *dx, uint64_t lddx)
{
    kvb_linear_backward(dy, lddy, kvb_weight_floats(w, b->f->weights), b->count, w->rows, w->cols, false, dx, lddx);
}

/* RMSNorm backwards for one row: with y = r w x and r = (mean(x^2) + epsilon)^-1/2,
 * dx (+)= r w dy - x r^3 / E * sum(w dy x). dx may be dy. */
static void norm_row_backward(const kvb_backward *b, const float *x, const float *weight, const float *dy, uint32_t width,
                              bool accumulate, float *dx)
{
    double square = 0.0, product = 0.0;
    for (uint32_t c = 0; c < width; c++) {
        square += (double)(x[c] * x[c]);
        product += (double)(weight[c] * dy[c] * x[c]);
    }
    const double r = 1.0 / sqrt(square / width + b->model->config.norm_epsilon);
    const float factor = (float)r, along = (float)(r * r * r * product / width);
    for (uint32_t c = 0; c < width; c++)
        dx[c] = (accumulate ? dx[c] : 0.0f) + (factor * weight[c] * dy[c] - along * x[c]);
}

static void norm_backward(const kvb_backward *b, const float *rows, const float *weight, const float *d_rows,
                          bool accumulate, float *d_out)
{
    const uint32_t width = b->model->config.embedding;
#pragma omp parallel for schedule(static) if (b->count >= KVB_SHARED_ROWS)
    for (uint32_t t = 0; t < b->count; t++)
        norm_row_backward(b, rows + (size_t)t * width, weight, d_rows + (size_t)t * width, width, accumulate,
                          d_out + (size_t)t * width);
}

/* The gradient of what attention or feed-forward gave, out of the stream's: b->dx itself where nothing norms it, else
 * b->d_norm. */
static const float *before_post_norm(const kvb_backward *b, const float *rows, const float *weight)
{
    if (weight == NULL)
        return b->dx;
    norm_backward(b, rows, weight, b->dx, false, b->d_norm);
    return b->d_norm;
}

/* dx becomes the gradient of the stream between attention and feed-forward. */
static void feed_forward_backward(kvb_backward *b, const kvb_layer_weights *w, const kvb_tape_layer *tape)
{
    const kvb_model_config *c = &b->model->config;
    const size_t width = 2 * (size_t)c->ffn;
    const float *gate_up = tape->gate_up;
    if (gate_up == NULL) {
        kvb_forward_gate_up(b->f, tape->mid, b->count, w, b->f->wide);
        gate_up = b->f->wide;
    }
    const bool gelu = c->arch->activation == KVB_ACTIVATION_GELU_TANH;
    back(b, before_post_norm(b, tape->fed, w->ffn_post_norm), c->embedding, &w->down, b->d_mixed, c->ffn);
#pragma omp parallel for schedule(static) if (b->count >= KVB_SHARED_ROWS)
    for (uint32_t t = 0; t < b->count; t++) {
        const float *gate = gate_up + t * width;
        float *d_gate = b->d_wide + t * width;
        (gelu ? b->f->kernels->gelu_gradient : b->f->kernels->silu_gradient)(
            gate, gate + c->ffn, b->d_mixed + (size_t)t * c->ffn, c->ffn, d_gate, d_gate + c->ffn);
    }
    back(b, b->d_wide, width, &w->gate_up, b->d_norm, c->embedding);
    norm_backward(b, tape->mid, w->ffn_norm, b->d_norm, true, b->dx);
}

/* d_out [H][T][D] from rows with heads side by side. */
static void split_gradient(const kvb_backward *b)
{
    const kvb_layer *g = &b->model->config.geometry;
    const size_t dim = g->head_dim;
#pragma omp parallel for schedule(static) if (b->count >= KVB_SHARED_ROWS)
    for (uint32_t t = 0; t < b->count; t++)
        for (uint32_t h = 0; h < g->heads; h++)
            memcpy(b->d_out + ((size_t)h * b->count + t) * dim, b->d_mixed + ((size_t)t * g->heads + h) * dim,
                   dim * sizeof *b->d_out);
}

/* From the gradient of a head's row after RoPE to that of the row of the product: a rotation's gradient is the rotation
 * back. `row` is the row of the product. */
static void turn_back(const kvb_backward *b, const kvb_rope_table *rope, uint32_t t, const float *d, uint32_t dim,
                      const float *row, const float *norm, float *to)
{
    kvb_rope_unrotate(rope, t, dim, d, to);
    if (norm != NULL)
        norm_row_backward(b, row, norm, to, dim, false, to);
}

/* Rows of [dq | dk | dv] of the product qkv. */
static void merge_gradients(const kvb_backward *b, uint32_t layer, const float *qkv)
{
    const kvb_layer *g = &b->model->geometry[layer];
    const kvb_layer_weights *w = &b->model->layer[layer];
    const kvb_rope_table *rope = &b->f->rope[b->f->rope_of[layer]];
    const size_t dim = g->head_dim, row = (g->heads + 2 * (size_t)g->kv_heads) * dim;
#pragma omp parallel for schedule(static) if (b->count >= KVB_SHARED_ROWS)
    for (uint32_t t = 0; t < b->count; t++) {
        float *to = b->d_wide + t * row;
        const float *from = qkv + t * row;
        for (uint32_t h = 0; h < g->heads; h++, to += dim, from += dim)
            turn_back(b, rope, t, b->d_q + ((size_t)h * b->count + t) * dim, g->head_dim, from, w->q_norm, to);
        for (uint32_t h = 0; h < g->kv_heads; h++, to += dim, from += dim)
            turn_back(b, rope, t, b->d_k + ((size_t)h * b->count + t) * dim, g->head_dim, from, w->k_norm, to);
        for (uint32_t h = 0; h < g->kv_heads; h++, to += dim)
            memcpy(to, b->d_v + ((size_t)h * b->count + t) * dim, dim * sizeof *to);
    }
}

/* The product [T][(H+2G)D] of a layer, out of its tape or made again in the forward pass's scratch. */
static const float *product_of(kvb_backward *b, uint32_t layer)
{
    const kvb_tape_layer *tape = &b->tape[layer];
    if (tape->qkv != NULL)
        return tape->qkv;
    kvb_forward_qkv(b->f, tape->x, b->count, &b->model->layer[layer], b->f->wide);
    return b->f->wide;
}

/* The attention's own step: its inputs as they were, and the caller's gradient. */
static kvb_status attend_backward(kvb_backward *b, uint32_t layer, const float *qkv, kvb_attend_backward_fn attend,
                                  void *user, kvb_error *err)
{
    kvb_forward *f = b->f;
    kvb_forward_split(f, layer, qkv, b->count, 0);
    const kvb_attention_call call = {layer, &b->model->geometry[layer], b->count, 0, f->q, f->k_pre, f->k, f->v};
    const kvb_attention_gradient gradient = {b->tape[layer].out, b->d_out, b->d_q, b->d_k, b->d_v};
    return attend(user, &call, &gradient, err);
}

static kvb_status layer_backward(kvb_backward *b, uint32_t layer, kvb_attend_backward_fn attend, void *user,
                                 bool to_input, kvb_error *err)
{
    const uint32_t width = b->model->config.embedding;
    const kvb_layer_weights *w = &b->model->layer[layer];
    feed_forward_backward(b, w, &b->tape[layer]);
    back(b, before_post_norm(b, b->tape[layer].attended, w->attention_post_norm), width, &w->out, b->d_mixed, w->out.cols);
    split_gradient(b);
    const float *qkv = product_of(b, layer);
    kvb_status status = attend_backward(b, layer, qkv, attend, user, err);
    if (status != KVB_OK || !to_input)
        return status;
    merge_gradients(b, layer, qkv);
    back(b, b->d_wide, w->qkv.rows, &w->qkv, b->d_norm, width);
    norm_backward(b, b->tape[layer].x, w->attention_norm, b->d_norm, true, b->dx);
    return KVB_OK;
}

kvb_status kvb_backward_run(kvb_backward *b, const float *d_hidden, kvb_attend_backward_fn attend, void *user,
                            float *d_embedded, kvb_error *err)
{
    if (b->count == 0)
        return kvb_fail(err, KVB_E_USAGE, "backward pass", "no forward pass went before; call kvb_backward_forward()");
    norm_backward(b, b->f->x, b->model->final_norm, d_hidden, false, b->dx);
    kvb_status status = KVB_OK;
    for (uint32_t l = b->model->config.layers; l-- > 0 && status == KVB_OK;)
        status = layer_backward(b, l, attend, user, l > 0 || d_embedded != NULL, err);
    if (status == KVB_OK && d_embedded != NULL)
        memcpy(d_embedded, b->dx, (size_t)b->count * b->model->config.embedding * sizeof *d_embedded);
    return status;
}
