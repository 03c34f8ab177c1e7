#include "calib/memory.h"

#include "calib/query_sums.h"
#include "model/weights.h"

enum {
    PROCESS_BYTES = 16 << 20, /* code, libraries, stacks */
    TOKEN_BYTES = 12,         /* an id, its copy while the text is read, bytes of the text */
    LOGIT_ROWS = 2 * 256,     /* kvb_divergence */
    POINT_BYTES = 28,         /* of a channel: both kinds moved to float32, and as points of k-means in two orders */
};

static uint64_t weight_bytes(const kvb_weight *w)
{
    uint64_t bytes = w->resident != NULL ? w->rows * w->cols * sizeof(float) : 0;
    for (uint32_t i = 0; i < w->parts; i++)
        bytes += w->part[i]->size;
    return bytes;
}

static uint64_t model_bytes(const kvb_model *m)
{
    uint64_t bytes = weight_bytes(&m->embedding) + (m->tied ? 0 : weight_bytes(&m->head));
    for (uint32_t l = 0; l < m->config.layers; l++)
        bytes += weight_bytes(&m->layer[l].qkv) + weight_bytes(&m->layer[l].out) + weight_bytes(&m->layer[l].gate_up) +
                 weight_bytes(&m->layer[l].down);
    return bytes + (m->tied ? m->head.rows * m->head.cols * sizeof(float) : 0);
}

static uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* Floats of one token in a forward pass, with what the capture sees of it. */
static uint64_t forward_floats(const kvb_model_config *c)
{
    const kvb_layer *g = &c->geometry;
    const uint64_t heads = (uint64_t)g->heads * g->head_dim, kv = (uint64_t)g->kv_heads * g->head_dim;
    return 2 * c->embedding + larger(heads + 2 * kv, 2 * (uint64_t)c->ffn) + 3 * heads + 6 * kv + 6 * (uint64_t)g->heads;
}

/* The same in a backward pass: what every layer keeps, gradients, and tiles of attention. */
static uint64_t backward_floats(const kvb_model_config *c)
{
    const kvb_layer *g = &c->geometry;
    const uint64_t heads = (uint64_t)g->heads * g->head_dim, kv = (uint64_t)g->kv_heads * g->head_dim;
    const uint64_t wide = heads + 2 * kv + 2 * (uint64_t)c->ffn, norms = c->arch->post_norms ? 4u : 2u;
    return forward_floats(c) + c->layers * (norms * c->embedding + heads + wide) + 3 * c->embedding + wide + c->ffn + 6 * heads + 9 * kv;
}

uint64_t kvb_memory_fixed(const kvb_model *m, const kvb_text *text, uint32_t ctx, bool backward)
{
    const kvb_model_config *c = &m->config;
    const uint64_t dim = c->geometry.head_dim, square = dim * dim, kv = c->geometry.kv_heads;
    uint64_t bytes = PROCESS_BYTES + model_bytes(m) + m->scratch_floats * sizeof(float) + TOKEN_BYTES * (uint64_t)text->id_count;
    bytes += ctx * sizeof(float) * forward_floats(c) + 2 * c->geometry.heads * square * sizeof(double);
    bytes += c->layers * kv * (4 * kvb_triangle(dim) * sizeof(kvb_exact) + 2 * square * sizeof(float));
    if (backward)
        bytes += ctx * sizeof(float) * backward_floats(c) + LOGIT_ROWS * (uint64_t)c->vocab * sizeof(float) +
                 4 * c->layers * kv * square * sizeof(float);
    return bytes;
}

uint64_t kvb_memory_row(const kvb_layer *geometry, uint32_t layers, bool gradients)
{
    uint64_t most = 0;
    for (uint32_t l = 0; l < layers; l++)
        if (geometry[l].kind != KVB_LAYER_UNSUPPORTED)
            most = larger(most, (uint64_t)geometry[l].kv_heads * geometry[l].head_dim);
    return kvb_capture_row_bytes(geometry, layers, gradients) + POINT_BYTES * most;
}
