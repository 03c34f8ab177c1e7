#include "calib/sensitivity.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "calib/attention_grad.h"
#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/rng.h"
#include "format/base/rope.h"
#include "model/backward.h"
#include "model/divergence.h"

/* One token in so many, those with the largest gradients, is left out of each head. */
enum { LEFT_OUT = 50 };

struct kvb_sensitivity {
    uint32_t layers;
    const kvb_layer *layer;
    float **moment[2]; /* by kvb_kind: [layers] -> [G][D][D] */
};

typedef struct measurer {
    kvb_sensitivity *s;
    const kvb_capture_options *options;
    uint64_t chunk, chunks;
    kvb_backward *backward;
    kvb_divergence *divergence;
    kvb_attn_grad *attention;
    uint32_t most_heads, most_kv_heads, most_dim;
    double *sum;         /* [most_kv_heads][D][D] of the layer and kind at hand */
    float *out, *lse;    /* [H][T][D], [H][T] */
    float *d_k, *d_v;    /* [G][T][D] */
    float *before;       /* [G][T][D] d_k turned back to before RoPE */
    double *norm, *sorted; /* [G][T] */
    uint32_t *until;     /* [G][T] */
    uint32_t *tokens;
    float *d_hidden;     /* [T][E] */
} measurer;

void kvb_sensitivity_free(kvb_sensitivity *s)
{
    if (s == NULL)
        return;
    for (int kind = 0; kind < 2; kind++) {
        for (uint32_t l = 0; s->moment[kind] != NULL && l < s->layers; l++)
            free(s->moment[kind][l]);
        free(s->moment[kind]);
    }
    free(s);
}

const float *kvb_sensitivity_get(const kvb_sensitivity *s, uint32_t layer, kvb_kind kind)
{
    return s->moment[kind][layer];
}

static kvb_status create_result(const kvb_model_info *info, kvb_sensitivity **out, kvb_error *err)
{
    kvb_sensitivity *s = kvb_alloc_zeroed(1, sizeof *s);
    bool good = s != NULL;
    *out = s;
    if (good)
        *s = (kvb_sensitivity){.layers = info->layers, .layer = info->layer};
    for (int kind = 0; good && kind < 2; kind++) {
        s->moment[kind] = kvb_alloc_zeroed(s->layers, sizeof *s->moment[kind]);
        good = s->moment[kind] != NULL;
        for (uint32_t l = 0; good && l < s->layers; l++) {
            const size_t dim = info->layer[l].head_dim;
            s->moment[kind][l] = kvb_alloc_zeroed(info->layer[l].kv_heads * dim, dim * sizeof(float));
            good = s->moment[kind][l] != NULL;
        }
    }
    return good ? KVB_OK : kvb_fail_memory(err, "sensitivities");
}

/* The attention's inputs, read "from codes" that are exact: so the gradient of coded reads is what an error would meet. */
static kvb_grad_layer layer_of(const measurer *m, const kvb_attention_call *call)
{
    const kvb_layer *g = call->geometry;
    return (kvb_grad_layer){
        .heads = g->heads, .kv_heads = g->kv_heads, .head_dim = g->head_dim, .tokens = call->tokens,
        .sliding_window = g->kind == KVB_LAYER_SLIDING ? g->sliding_window : 0, .scale = g->attention_scale,
        .q = call->q, .exact_k = call->k, .exact_v = call->v, .coded_k = call->k, .coded_v = call->v, .until = m->until,
    };
}

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* sum of g g^T [D][D] over the head's tokens but for those with the largest |g|, and those whose gradient is not finite. */
static void add_head(const measurer *m, const float *gradient, uint32_t head, uint32_t tokens, uint32_t dim, double *sum)
{
    double *norm = m->norm + (size_t)head * tokens, *sorted = m->sorted + (size_t)head * tokens;
    for (uint32_t j = 0; j < tokens; j++) {
        norm[j] = 0.0;
        for (uint32_t c = 0; c < dim; c++)
            norm[j] += (double)gradient[(size_t)j * dim + c] * (double)gradient[(size_t)j * dim + c];
        if (!isfinite(norm[j]))
            norm[j] = INFINITY;
    }
    memcpy(sorted, norm, tokens * sizeof *norm);
    qsort(sorted, tokens, sizeof *sorted, compare_doubles);
    const double most = sorted[tokens - 1 - tokens / LEFT_OUT];
    for (uint32_t j = 0; j < tokens; j++) {
        const float *g = gradient + (size_t)j * dim;
        if (norm[j] > most || !isfinite(norm[j]))
            continue;
        for (uint32_t a = 0; a < dim; a++)
            for (uint32_t b = 0; b <= a; b++)
                sum[(size_t)a * dim + b] += (double)g[a] * (double)g[b];
    }
}

/* Adds one kind of the layer's gradients [G][T][D] to its moments. */
static void add_layer(measurer *m, const kvb_attention_call *call, kvb_kind kind, const float *gradient)
{
    const uint32_t heads = call->geometry->kv_heads, dim = call->geometry->head_dim, tokens = call->tokens;
    const size_t square = (size_t)dim * dim;
    const double share = 1.0 / ((double)tokens * (double)m->chunks);
    memset(m->sum, 0, heads * square * sizeof *m->sum);
#pragma omp parallel for schedule(dynamic, 1)
    for (uint32_t g = 0; g < heads; g++)
        add_head(m, gradient + (size_t)g * tokens * dim, g, tokens, dim, m->sum + g * square);
    float *moment = m->s->moment[kind][call->layer];
    for (uint32_t g = 0; g < heads; g++)
        for (uint32_t a = 0; a < dim; a++)
            for (uint32_t b = 0; b < dim; b++) {
                const size_t at = a > b ? (size_t)a * dim + b : (size_t)b * dim + a;
                moment[g * square + (size_t)a * dim + b] += (float)(share * m->sum[g * square + at]);
            }
}

/* Gradients with respect to keys after RoPE become those with respect to keys before it. */
static kvb_status turn_back(const kvb_attention_call *call, const float *from, float *to, kvb_error *err)
{
    const kvb_layer *g = call->geometry;
    kvb_rope_table rope = {0};
    kvb_status status = kvb_rope_table_create(&rope, g, 0, call->tokens, err);
    if (status != KVB_OK)
        return status;
#pragma omp parallel for schedule(static)
    for (uint32_t j = 0; j < g->kv_heads * call->tokens; j++)
        kvb_rope_unrotate(&rope, j % call->tokens, g->head_dim, from + (size_t)j * g->head_dim,
                        to + (size_t)j * g->head_dim);
    kvb_rope_table_free(&rope);
    return KVB_OK;
}

static void set_until(measurer *m, const kvb_attention_call *call)
{
    for (uint32_t g = 0; g < call->geometry->kv_heads; g++)
        for (uint32_t j = 0; j < call->tokens; j++)
            m->until[(size_t)g * call->tokens + j] = j + KVB_SENSITIVITY_WINDOW;
}

static kvb_status attend(void *user, const kvb_attention_call *call, float *out, kvb_error *err)
{
    measurer *m = user;
    (void)err;
    set_until(m, call);
    const kvb_grad_layer layer = layer_of(m, call);
    kvb_attn_grad_forward(m->attention, &layer, out, m->lse);
    return KVB_OK;
}

static kvb_status attend_backward(void *user, const kvb_attention_call *call, const kvb_attention_gradient *g,
                                  kvb_error *err)
{
    measurer *m = user;
    const size_t values = (size_t)call->geometry->kv_heads * call->tokens * call->geometry->head_dim;
    set_until(m, call);
    const kvb_grad_layer layer = layer_of(m, call);
    const kvb_grad_all all = {.q = g->d_q, .exact_k = g->d_k, .exact_v = g->d_v, .coded_k = m->d_k, .coded_v = m->d_v};
    kvb_attn_grad_forward(m->attention, &layer, m->out, m->lse);
    kvb_attn_grad_backward_all(m->attention, &layer, m->out, m->lse, g->d_out, &all);
    /* Both ways of reading are the same exact key: what made it gets the gradient of both. */
    for (size_t i = 0; i < values; i++) {
        g->d_k[i] += m->d_k[i];
        g->d_v[i] += m->d_v[i];
    }
    kvb_status status = turn_back(call, m->d_k, m->before, err);
    if (status != KVB_OK)
        return status;
    add_layer(m, call, KVB_KEY, m->before);
    add_layer(m, call, KVB_VALUE, m->d_v);
    return KVB_OK;
}

static kvb_status run_chunk(measurer *m, const kvb_text *text, kvb_error *err)
{
    const kvb_capture_options *o = m->options;
    const kvb_forward_hooks hooks = {.attend = attend, .attend_user = m};
    const float *hidden;
    kvb_text_chunk(text, o->ctx, o->skip, m->chunk, o->bos, m->tokens);
    kvb_status status = kvb_backward_forward(m->backward, m->tokens, o->ctx, &hooks, &hidden, err);
    if (status != KVB_OK)
        return status;
    kvb_divergence_sample(m->divergence, hidden, o->ctx, kvb_rng_key(o->seed, o->skip + m->chunk, 0, 0, 0x46697368),
                          m->d_hidden);
    return kvb_backward_run(m->backward, m->d_hidden, attend_backward, m, NULL, err);
}

static kvb_status create(measurer *m, const kvb_model *model, kvb_error *err)
{
    const kvb_model_info *info = kvb_model_get_info(model);
    const size_t tokens = m->options->ctx;
    for (uint32_t l = 0; l < info->layers; l++) {
        const kvb_layer *g = &info->layer[l];
        m->most_heads = g->heads > m->most_heads ? g->heads : m->most_heads;
        m->most_kv_heads = g->kv_heads > m->most_kv_heads ? g->kv_heads : m->most_kv_heads;
        m->most_dim = g->head_dim > m->most_dim ? g->head_dim : m->most_dim;
    }
    const size_t dim = m->most_dim, keys = m->most_kv_heads * tokens;
    m->sum = kvb_alloc_array(m->most_kv_heads * dim, dim * sizeof *m->sum);
    m->out = kvb_alloc_array(m->most_heads * tokens, dim * sizeof *m->out);
    m->lse = kvb_alloc_array(m->most_heads * tokens, sizeof *m->lse);
    m->d_k = kvb_alloc_array(keys, dim * sizeof *m->d_k);
    m->d_v = kvb_alloc_array(keys, dim * sizeof *m->d_v);
    m->before = kvb_alloc_array(keys, dim * sizeof *m->before);
    m->norm = kvb_alloc_array(keys, sizeof *m->norm);
    m->sorted = kvb_alloc_array(keys, sizeof *m->sorted);
    m->until = kvb_alloc_array(keys, sizeof *m->until);
    m->tokens = kvb_alloc_array(tokens, sizeof *m->tokens);
    m->d_hidden = kvb_alloc_array(tokens * info->embedding, sizeof *m->d_hidden);
    if (m->sum == NULL || m->out == NULL || m->lse == NULL || m->d_k == NULL || m->d_v == NULL || m->before == NULL ||
        m->norm == NULL || m->sorted == NULL || m->until == NULL || m->tokens == NULL || m->d_hidden == NULL)
        return kvb_fail_memory(err, "sensitivities");
    kvb_status status = kvb_attn_grad_create(m->most_heads, m->most_kv_heads, m->most_dim, m->options->ctx, 0,
                                             &m->attention, err);
    if (status == KVB_OK)
        status = kvb_backward_create(model, m->options->ctx, 0, &m->backward, err);
    return status == KVB_OK ? kvb_divergence_create(model, &m->divergence, err) : status;
}

static void destroy(measurer *m)
{
    kvb_attn_grad_destroy(m->attention);
    kvb_backward_destroy(m->backward);
    kvb_divergence_destroy(m->divergence);
    free(m->sum);
    free(m->out);
    free(m->lse);
    free(m->d_k);
    free(m->d_v);
    free(m->before);
    free(m->norm);
    free(m->sorted);
    free(m->until);
    free(m->tokens);
    free(m->d_hidden);
}

kvb_status kvb_sensitivity_measure(const kvb_model *model, const kvb_text *text, const kvb_capture_options *options,
                                   uint64_t chunks, kvb_sensitivity **sensitivity, kvb_error *err)
{
    measurer m = {.options = options, .chunks = chunks};
    kvb_status status = create_result(kvb_model_get_info(model), &m.s, err);
    if (status == KVB_OK)
        status = create(&m, model, err);
    for (; status == KVB_OK && m.chunk < chunks; m.chunk++) {
        if (options->progress != NULL && options->progress(options->progress_user, "sensitivity", m.chunk, chunks) != 0)
            status = kvb_fail(err, KVB_E_CANCELLED, "sensitivity", "stopped at chunk %" PRIu64 " of %" PRIu64, m.chunk,
                              chunks);
        else
            status = run_chunk(&m, text, err);
    }
    if (status == KVB_OK && options->progress != NULL)
        (void)options->progress(options->progress_user, "sensitivity", chunks, chunks);
    destroy(&m);
    if (status != KVB_OK) {
        kvb_sensitivity_free(m.s);
        m.s = NULL;
    }
    *sensitivity = m.s;
    return status;
}
