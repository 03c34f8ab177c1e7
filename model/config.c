/* What every reader of a model's configuration ends with: checks, and the geometry of each layer. */
#include <math.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "model/weights.h"

static kvb_status check_layer(const kvb_model *m, const kvb_layer *g, kvb_error *err)
{
    if (g->rope_dims < 2 || g->rope_dims % 2 != 0 || g->rope_dims > g->head_dim)
        return kvb_fail(err, KVB_E_FORMAT, m->path, "RoPE over %u channels, expected an even number of 2..%u",
                        g->rope_dims, g->head_dim);
    if (g->rope_dims != g->head_dim && !m->config.arch->partial_rotary)
        return kvb_fail(err, KVB_E_FORMAT, m->path, "RoPE over %u of %u channels: %s models rotate all of them",
                        g->rope_dims, g->head_dim, m->config.arch->name);
    if (!(m->config.norm_epsilon > 0.0) || !(g->rope_base > 0.0) || !isnormal(g->rope_base))
        return kvb_fail(err, KVB_E_FORMAT, m->path, "norm epsilon %g and RoPE base %g must be positive",
                        m->config.norm_epsilon, g->rope_base);
    if (!(g->attention_scale > 0.0) || !isnormal(g->attention_scale))
        return kvb_fail(err, KVB_E_FORMAT, m->path, "attention scale %g must be positive", g->attention_scale);
    return KVB_OK;
}

kvb_status kvb_config_check_heads(const kvb_model *m, kvb_error *err)
{
    const kvb_layer *g = &m->config.geometry;
    if (g->kv_heads == 0 || g->heads % g->kv_heads != 0)
        return kvb_fail(err, KVB_E_FORMAT, m->path, "%u query heads are not a multiple of %u KV heads", g->heads,
                        g->kv_heads);
    if (m->config.layers > 1024 || g->heads > 1024 || g->head_dim > 1024)
        return kvb_fail(err, KVB_E_FORMAT, m->path, "%u layers, %u heads, head size %u: at most 1024 of each",
                        m->config.layers, g->heads, g->head_dim);
    return KVB_OK;
}

kvb_status kvb_config_check(const kvb_model *m, kvb_error *err)
{
    kvb_status status = kvb_config_check_heads(m, err);
    return status == KVB_OK ? check_layer(m, &m->config.geometry, err) : status;
}

kvb_status kvb_config_lay_out(kvb_model *m, const bool *slides, kvb_error *err)
{
    kvb_model_config *c = &m->config;
    m->geometry = kvb_alloc_array(c->layers, sizeof *m->geometry);
    if (m->geometry == NULL)
        return kvb_fail_memory(err, "model geometry");
    for (uint32_t l = 0; l < c->layers; l++)
        m->geometry[l] = slides != NULL && slides[l] ? c->sliding : c->geometry;
    c->embedding_scale = c->arch->embedding_scale ? (float)sqrt((double)c->embedding) : 1.0f;
    kvb_status status = KVB_OK;
    for (uint32_t l = 0; l < c->layers && status == KVB_OK; l++)
        status = check_layer(m, &m->geometry[l], err);
    return status;
}

kvb_status kvb_config_lay_out_sliding(kvb_model *m, uint32_t window, kvb_error *err)
{
    kvb_model_config *c = &m->config;
    bool *slides = kvb_alloc_array(c->layers, sizeof *slides);
    if (slides == NULL)
        return kvb_fail_memory(err, "model geometry");
    c->sliding.kind = KVB_LAYER_SLIDING;
    c->sliding.sliding_window = window;
    for (uint32_t l = 0; l < c->layers; l++)
        slides[l] = c->arch->slides == KVB_SLIDES_ALL || (l + 1) % c->arch->full_period != 0;
    kvb_status status = kvb_config_lay_out(m, slides, err);
    free(slides);
    return status;
}
