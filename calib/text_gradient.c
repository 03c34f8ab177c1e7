#include "calib/text_gradient.h"

#include <stdlib.h>

#include "calib/attention_grad.h"
#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/rng.h"
#include "format/base/rope.h"
#include "model/backward.h"
#include "model/divergence.h"

struct kvb_text_gradient {
    const kvb_capture_options *options;
    kvb_gradient_target target;
    uint32_t window;
    kvb_backward *backward;
    kvb_divergence *divergence;
    kvb_attn_grad *attention;
    uint32_t most_heads, most_kv_heads, most_dim;
    float *out, *lse;   /* [H][T][D], [H][T] */
    float *d_k, *d_v;   /* [G][T][D] */
    float *before;      /* [G][T][D] d_k turned back to before RoPE */
    uint32_t *until;    /* [G][T] */
    uint32_t *tokens;   /* [T] */
    float *d_hidden;    /* [T][E] */
    kvb_gradient_fn see;
    void *user;
};

/* The attention's inputs, read "from codes" that are exact: so the gradient of coded reads is what an error would meet. */
static kvb_grad_layer layer_of(const kvb_text_gradient *m, const kvb_attention_call *call)
{
    const kvb_layer *g = call->geometry;
    for (uint32_t head = 0; head < g->kv_heads; head++)
        for (uint32_t j = 0; j < call->tokens; j++)
            m->until[(size_t)head * call->tokens + j] = j + m->window;
    return (kvb_grad_layer){
        .heads = g->heads, .kv_heads = g->kv_heads, .head_dim = g->head_dim, .tokens = call->tokens,
        .sliding_window = g->kind == KVB_LAYER_SLIDING ? g->sliding_window : 0, .scale = g->attention_scale,
        .q = call->q, .exact_k = call->k, .exact_v = call->v, .coded_k = call->k, .coded_v = call->v, .until = m->until,
    };
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

static kvb_status attend(void *user, const kvb_attention_call *call, float *out, kvb_error *err)
{
    kvb_text_gradient *m = user;
    (void)err;
    const kvb_grad_layer layer = layer_of(m, call);
    kvb_attn_grad_forward(m->attention, &layer, out, m->lse);
    return KVB_OK;
}

static kvb_status attend_backward(void *user, const kvb_attention_call *call, const kvb_attention_gradient *g,
                                  kvb_error *err)
{
    kvb_text_gradient *m = user;
    const size_t values = (size_t)call->geometry->kv_heads * call->tokens * call->geometry->head_dim;
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
    return status == KVB_OK ? m->see(m->user, call, m->before, m->d_v, err) : status;
}

kvb_status kvb_text_gradient_run(kvb_text_gradient *m, const kvb_text *text, uint64_t chunk, kvb_gradient_fn see, void *user,
                                 kvb_error *err)
{
    const kvb_capture_options *o = m->options;
    const kvb_forward_hooks hooks = {.attend = attend, .attend_user = m};
    const float *hidden;
    m->see = see;
    m->user = user;
    kvb_text_chunk(text, o->ctx, o->skip, chunk, o->bos, m->tokens);
    kvb_status status = kvb_backward_forward(m->backward, m->tokens, o->ctx, &hooks, &hidden, err);
    if (status != KVB_OK)
        return status;
    if (m->target == KVB_TARGET_DRAWN)
        kvb_divergence_sample(m->divergence, hidden, o->ctx, kvb_rng_key(o->seed, o->skip + chunk, 0, 0, 0x46697368),
                              m->d_hidden);
    else
        kvb_divergence_next(m->divergence, hidden, m->tokens, o->ctx, m->d_hidden);
    return kvb_backward_run(m->backward, m->d_hidden, attend_backward, m, NULL, err);
}

static kvb_status create(kvb_text_gradient *m, const kvb_model *model, kvb_error *err)
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
    m->out = kvb_alloc_array(m->most_heads * tokens, dim * sizeof *m->out);
    m->lse = kvb_alloc_array(m->most_heads * tokens, sizeof *m->lse);
    m->d_k = kvb_alloc_array(keys, dim * sizeof *m->d_k);
    m->d_v = kvb_alloc_array(keys, dim * sizeof *m->d_v);
    m->before = kvb_alloc_array(keys, dim * sizeof *m->before);
    m->until = kvb_alloc_array(keys, sizeof *m->until);
    m->tokens = kvb_alloc_array(tokens, sizeof *m->tokens);
    m->d_hidden = kvb_alloc_array(tokens * info->embedding, sizeof *m->d_hidden);
    if (m->out == NULL || m->lse == NULL || m->d_k == NULL || m->d_v == NULL || m->before == NULL || m->until == NULL ||
        m->tokens == NULL || m->d_hidden == NULL)
        return kvb_fail_memory(err, "gradients of the text");
    kvb_status status = kvb_attn_grad_create(m->most_heads, m->most_kv_heads, m->most_dim, m->options->ctx, 0,
                                             &m->attention, err);
    if (status == KVB_OK)
        status = kvb_backward_create(model, m->options->ctx, 0, &m->backward, err);
    return status == KVB_OK ? kvb_divergence_create(model, &m->divergence, err) : status;
}

kvb_status kvb_text_gradient_create(const kvb_model *model, const kvb_capture_options *options, kvb_gradient_target target,
                                    uint32_t window, kvb_text_gradient **gradient, kvb_error *err)
{
    kvb_text_gradient *m = kvb_alloc_zeroed(1, sizeof *m);
    *gradient = NULL;
    if (m == NULL)
        return kvb_fail_memory(err, "gradients of the text");
    *m = (kvb_text_gradient){.options = options, .target = target, .window = window};
    kvb_status status = create(m, model, err);
    if (status != KVB_OK) {
        kvb_text_gradient_destroy(m);
        return status;
    }
    *gradient = m;
    return KVB_OK;
}

void kvb_text_gradient_destroy(kvb_text_gradient *m)
{
    if (m == NULL)
        return;
    kvb_attn_grad_destroy(m->attention);
    kvb_backward_destroy(m->backward);
    kvb_divergence_destroy(m->divergence);
    free(m->out);
    free(m->lse);
    free(m->d_k);
    free(m->d_v);
    free(m->before);
    free(m->until);
    free(m->tokens);
    free(m->d_hidden);
    free(m);
}
