#include <math.h>
#include <stdio.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/path.h"
#include "model/weights.h"

/* Reads "<architecture>.<suffix>". */
static bool get_u32(const kvb_model *m, const char *suffix, uint32_t *value)
{
    char key[96];
    uint64_t wide;
    snprintf(key, sizeof key, "%s.%s", m->config.arch->gguf, suffix);
    if (!kvb_gguf_get_u64(m->gguf, key, &wide) || wide > UINT32_MAX)
        return false;
    *value = (uint32_t)wide;
    return true;
}

static double get_f64(const kvb_model *m, const char *suffix, double otherwise)
{
    char key[96];
    double value;
    snprintf(key, sizeof key, "%s.%s", m->config.arch->gguf, suffix);
    return kvb_gguf_get_f64(m->gguf, key, &value) ? value : otherwise;
}

static kvb_status need_u32(const kvb_model *m, const char *suffix, uint32_t *value, kvb_error *err)
{
    if (get_u32(m, suffix, value) && *value > 0)
        return KVB_OK;
    return kvb_fail(err, KVB_E_FORMAT, m->path, "metadata %s.%s is missing or not a positive 32-bit number",
                    m->config.arch->gguf, suffix);
}

static void get_text(const kvb_gguf *g, const char *key, const char *otherwise, char *out, size_t room)
{
    const char *bytes;
    uint64_t size;
    if (kvb_gguf_get_string(g, key, &bytes, &size))
        snprintf(out, room, "%.*s", (int)(size < room ? size : room - 1), bytes);
    else
        snprintf(out, room, "%s", otherwise);
}

/* rope_freqs.weight divides each pair's frequency (Llama 3.1 and later); linear scaling divides all alike. */
static kvb_status read_rope_factors(kvb_model *m, kvb_error *err)
{
    kvb_layer *g = &m->config.geometry;
    const kvb_tensor *t = kvb_model_find(m, "rope_freqs.weight");
    char scaling[32] = "", key[96];
    snprintf(key, sizeof key, "%s.rope.scaling.type", m->config.arch->gguf);
    get_text(m->gguf, key, "none", scaling, sizeof scaling);
    double factor = strcmp(scaling, "linear") == 0 ? get_f64(m, "rope.scaling.factor", 1.0) : 1.0;
    if (strcmp(scaling, "none") != 0 && strcmp(scaling, "linear") != 0)
        return kvb_fail(err, KVB_E_FORMAT, m->path, "RoPE scaling \"%s\" is not supported (none and linear are)",
                        scaling);
    if (t == NULL && factor == 1.0)
        return KVB_OK;
    if (!(factor > 0.0) || !isfinite(factor))
        return kvb_fail(err, KVB_E_FORMAT, m->path, "rope.scaling.factor is %g, expected a positive number", factor);
    uint32_t pairs = g->rope_dims / 2;
    if (t != NULL && (t->dtype != KVB_DTYPE_F32 || t->shape[0] != pairs))
        return kvb_fail(err, KVB_E_FORMAT, m->path, "rope_freqs.weight is not %u F32 values", pairs);
    m->config.rope_factors = kvb_alloc_array(pairs, sizeof(float));
    if (m->config.rope_factors == NULL)
        return kvb_fail_memory(err, "RoPE factors");
    if (t != NULL)
        kvb_dequantise(t, 0, pairs, m->config.rope_factors);
    for (uint32_t i = 0; i < pairs; i++) {
        float value = (t != NULL ? m->config.rope_factors[i] : 1.0f) * (float)factor;
        if (!(value > 0.0f) || !isnormal(value))
            return kvb_fail(err, KVB_E_FORMAT, m->path, "rope_freqs.weight[%u] is not a positive normal number", i);
        m->config.rope_factors[i] = value;
    }
    g->rope_factors = m->config.rope_factors;
    return KVB_OK;
}

static kvb_status read_heads(kvb_model *m, kvb_error *err)
{
    kvb_model_config *c = &m->config;
    kvb_layer *g = &c->geometry;
    kvb_status status = need_u32(m, "attention.head_count", &g->heads, err);
    if (status != KVB_OK)
        return status;
    if (!get_u32(m, "attention.head_count_kv", &g->kv_heads))
        g->kv_heads = g->heads;
    if (!get_u32(m, "attention.key_length", &g->head_dim)) {
        if (c->embedding % g->heads != 0)
            return kvb_fail(err, KVB_E_FORMAT, m->path, "%u channels are not a multiple of %u heads", c->embedding,
                            g->heads);
        g->head_dim = c->embedding / g->heads;
    }
    uint32_t value_dim = g->head_dim;
    if (get_u32(m, "attention.value_length", &value_dim) && value_dim != g->head_dim)
        return kvb_fail(err, KVB_E_FORMAT, m->path, "keys of %u and values of %u channels: they must be equal",
                        g->head_dim, value_dim);
    if (!get_u32(m, "rope.dimension_count", &g->rope_dims))
        g->rope_dims = g->head_dim;
    g->rope_style = c->arch->gguf_rope;
    g->rope_base = get_f64(m, "rope.freq_base", 10000.0);
    return KVB_OK;
}

static void read_attention_scale(kvb_model *m)
{
    kvb_model_config *c = &m->config;
    const bool by_embedding = c->arch->wide_scale_at != 0 && c->layers == c->arch->wide_scale_at;
    const double channels = by_embedding ? (double)c->embedding / c->geometry.heads : (double)c->geometry.head_dim;
    c->geometry.attention_scale = 1.0 / sqrt(channels);
}

/* GGUF does not say which layers slide: the architecture does. */
static kvb_status read_sliding(kvb_model *m, kvb_error *err)
{
    kvb_model_config *c = &m->config;
    const kvb_architecture *a = c->arch;
    uint32_t window = 0;
    get_u32(m, "attention.sliding_window", &window);
    if (a->slides == KVB_SLIDES_PERIOD && window == 0)
        return need_u32(m, "attention.sliding_window", &window, err);
    if (a->slides == KVB_SLIDES_UPPER && window != 0)
        return kvb_fail(err, KVB_E_FORMAT, m->path, "%s.attention.sliding_window is %u, but a GGUF file does not say which "
                        "layers slide; use the model's Hugging Face folder", a->gguf, window);
    if (a->slides == KVB_SLIDES_NEVER || window == 0)
        return kvb_config_lay_out(m, NULL, err);
    c->sliding = c->geometry;
    if (a->sliding_rope_base > 0.0) {
        c->sliding.rope_base = get_f64(m, "rope.freq_base_swa", a->sliding_rope_base);
        c->sliding.rope_factors = NULL;
    }
    return kvb_config_lay_out_sliding(m, window, err);
}

/* Features that a file of a supported architecture may still ask for. */
static kvb_status refuse_features(const kvb_model *m, kvb_error *err)
{
    static const char *const features[] = {"attn_logit_softcapping", "final_logit_softcapping", "expert_count",
                                           "attention.clamp_kqv", "attention.max_alibi_bias", "logit_scale"};
    for (size_t i = 0; i < sizeof features / sizeof *features; i++)
        if (get_f64(m, features[i], 0.0) > 0.0)
            return kvb_fail(err, KVB_E_FORMAT, m->path, "%s.%s is set: this feature is not supported",
                            m->config.arch->gguf, features[i]);
    return KVB_OK;
}

static kvb_status read_architecture(kvb_model *m, kvb_error *err)
{
    kvb_model_config *c = &m->config;
    get_text(m->gguf, "general.architecture", "", c->architecture, sizeof c->architecture);
    c->arch = kvb_architecture_of_gguf(c->architecture);
    if (c->arch != NULL)
        return KVB_OK;
    char known[128];
    kvb_architecture_list(false, known, sizeof known);
    return kvb_fail(err, KVB_E_FORMAT, m->path, "architecture \"%s\" is not supported; these are: %s", c->architecture,
                    known);
}

kvb_status kvb_config_from_gguf(kvb_model *m, kvb_error *err)
{
    kvb_model_config *c = &m->config;
    kvb_status s = read_architecture(m, err);
    get_text(m->gguf, "general.name", kvb_base_name(m->path), c->name, sizeof c->name);
    if (s == KVB_OK) s = refuse_features(m, err);
    if (s == KVB_OK) s = need_u32(m, "block_count", &c->layers, err);
    if (s == KVB_OK) s = need_u32(m, "embedding_length", &c->embedding, err);
    if (s == KVB_OK) s = need_u32(m, "feed_forward_length", &c->ffn, err);
    if (s == KVB_OK) s = need_u32(m, "context_length", &c->context, err);
    if (s == KVB_OK) s = read_heads(m, err);
    if (s != KVB_OK)
        return s;
    read_attention_scale(m);
    c->norm_epsilon = get_f64(m, "attention.layer_norm_rms_epsilon", 0.0);
    s = kvb_config_check(m, err);
    if (s == KVB_OK) s = read_rope_factors(m, err);
    if (s == KVB_OK) s = read_sliding(m, err);
    const kvb_tensor *embedding = kvb_model_find(m, "token_embd.weight");
    if (s == KVB_OK && (embedding == NULL || embedding->dims != 2 || embedding->shape[1] > UINT32_MAX))
        s = kvb_fail(err, KVB_E_FORMAT, m->path, "tensor token_embd.weight is missing or not a matrix");
    if (s == KVB_OK)
        c->vocab = (uint32_t)embedding->shape[1];
    return s;
}
