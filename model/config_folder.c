/* The configuration of a Hugging Face folder: config.json as `transformers` 4 and 5 write it. What a key would change here and
 * is not supported is refused by name; what has no influence on the pass (dropout, initialisers, ...) is passed over. */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "model/config_rope.h"
#include "model/weights.h"

/* NULL for a member that is missing or null. */
static const kvb_json *get(const kvb_json *object, const char *key)
{
    const kvb_json *v = kvb_json_get(object, key);
    return v != NULL && kvb_json_type_of(v) != KVB_JSON_NULL ? v : NULL;
}

static kvb_status need_u32(const kvb_model *m, const kvb_json *config, const char *key, uint32_t otherwise,
                           uint32_t *value, kvb_error *err)
{
    const kvb_json *v = get(config, key);
    uint64_t wide = otherwise;
    if ((v != NULL && !kvb_json_u64(v, &wide)) || wide == 0 || wide > INT32_MAX)
        return kvb_fail(err, KVB_E_FORMAT, m->path, "config.json: %s is missing or not a positive 31-bit number", key);
    *value = (uint32_t)wide;
    return KVB_OK;
}

static kvb_status need_f64(const kvb_model *m, const kvb_json *config, const char *key, double otherwise, double *value,
                           kvb_error *err)
{
    *value = kvb_json_number(get(config, key), otherwise);
    if (*value > 0.0 && isnormal(*value))
        return KVB_OK;
    return kvb_fail(err, KVB_E_FORMAT, m->path, "config.json: %s is missing or not a positive number", key);
}

static bool differs(double a, double b)
{
    return a < b || a > b;
}

/* Keys that change what the model computes: a value that means "off" is all right. */
static kvb_status refuse_features(const kvb_model *m, const kvb_json *config, kvb_error *err)
{
    static const char *const flags[] = {"attention_bias", "mlp_bias", "use_bidirectional_attention", "add_cross_attention"};
    static const char *const numbers[] = {"attn_logit_softcapping", "final_logit_softcapping", "num_experts",
                                          "num_local_experts"};
    static const char *const factors[] = {"attention_multiplier", "embedding_multiplier", "residual_multiplier",
                                          "logits_scaling"};
    const char *bad = NULL;
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
        if (kvb_json_bool(get(config, flags[i]), false) && !(i == 0 && m->config.arch->qkv_bias))
            bad = flags[i];
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (kvb_json_number(get(config, numbers[i]), 0.0) > 0.0)
            bad = numbers[i];
    for (size_t i = 0; i < sizeof factors / sizeof *factors; i++)
        if (differs(kvb_json_number(get(config, factors[i]), 1.0), 1.0))
            bad = factors[i];
    if (bad != NULL)
        return kvb_fail(err, KVB_E_FORMAT, m->path, "config.json: %s is set: this feature is not supported", bad);
    if (get(kvb_folder_config(m->folder), "quantization_config") != NULL)
        return kvb_fail(err, KVB_E_FORMAT, m->path, "config.json: quantization_config is set: quantised weights of Hugging "
                        "Face folders are not read; use the original model, or a GGUF file");
    return KVB_OK;
}

static kvb_status check_activation(const kvb_model *m, const kvb_json *config, kvb_error *err)
{
    const bool gelu = m->config.arch->activation == KVB_ACTIVATION_GELU_TANH;
    const char *want = gelu ? "gelu_pytorch_tanh" : "silu";
    const char *found = kvb_json_string(get(config, "hidden_activation"), kvb_json_string(get(config, "hidden_act"), want));
    if (strcmp(found, want) == 0)
        return KVB_OK;
    return kvb_fail(err, KVB_E_FORMAT, m->path, "config.json: the activation is \"%s\": %s models have %s", found,
                    m->config.arch->name, want);
}

static kvb_status read_heads(kvb_model *m, const kvb_json *config, kvb_error *err)
{
    kvb_model_config *c = &m->config;
    kvb_layer *g = &c->geometry;
    const kvb_architecture *a = c->arch;
    kvb_status s = need_u32(m, config, "num_attention_heads", a->defaults.heads, &g->heads, err);
    const uint32_t kv_heads = a->kv_heads_optional ? g->heads : a->defaults.kv_heads;
    if (s == KVB_OK) s = need_u32(m, config, "num_key_value_heads", kv_heads, &g->kv_heads, err);
    if (s != KVB_OK)
        return s;
    uint32_t head_dim = a->defaults.head_dim;
    if (head_dim == 0 && get(config, "head_dim") == NULL) {
        if (c->embedding % g->heads != 0)
            return kvb_fail(err, KVB_E_FORMAT, m->path, "config.json: hidden_size %u is not a multiple of %u heads, and "
                            "head_dim is missing", c->embedding, g->heads);
        head_dim = c->embedding / g->heads;
    }
    s = need_u32(m, config, "head_dim", head_dim, &g->head_dim, err);
    if (s != KVB_OK)
        return s;
    double scalar = g->head_dim;
    if (a->query_scalar)
        s = need_f64(m, config, "query_pre_attn_scalar", scalar, &scalar, err);
    g->attention_scale = 1.0 / sqrt(scalar);
    return s;
}

/* Which layers slide, out of layer_types where it is there. */
static kvb_status read_layer_types(const kvb_model *m, const kvb_json *types, bool *slides, kvb_error *err)
{
    if (kvb_json_type_of(types) != KVB_JSON_ARRAY || kvb_json_count(types) != m->config.layers)
        return kvb_fail(err, KVB_E_FORMAT, m->path, "config.json: layer_types is not a list of %u names", m->config.layers);
    for (uint32_t l = 0; l < m->config.layers; l++) {
        const char *type = kvb_json_string(kvb_json_at(types, l), "");
        slides[l] = strcmp(type, "sliding_attention") == 0;
        if (!slides[l] && strcmp(type, "full_attention") != 0)
            return kvb_fail(err, KVB_E_FORMAT, m->path, "config.json: layer_types[%u] is \"%s\": full_attention and "
                            "sliding_attention are supported", l, type);
    }
    return KVB_OK;
}

/* The same out of older keys. */
static kvb_status read_slides(const kvb_model *m, const kvb_json *config, bool window, bool *slides, kvb_error *err)
{
    const kvb_architecture *a = m->config.arch;
    const kvb_json *types = get(config, "layer_types");
    /* Classes whose layers all slide have no layer_types of their own; one that says otherwise is not heard there. */
    if (types != NULL && a->slides != KVB_SLIDES_ALL)
        return read_layer_types(m, types, slides, err);
    uint32_t period = a->full_period, from = 0;
    kvb_status s = KVB_OK;
    if (a->slides == KVB_SLIDES_PERIOD)
        s = need_u32(m, config, "sliding_window_pattern", period, &period, err);
    const bool upper = a->slides == KVB_SLIDES_UPPER && kvb_json_bool(get(config, "use_sliding_window"), false);
    if (s == KVB_OK && upper && kvb_json_number(get(config, "max_window_layers"), 28.0) > 0.0)
        s = need_u32(m, config, "max_window_layers", 28, &from, err);
    for (uint32_t l = 0; s == KVB_OK && l < m->config.layers; l++)
        slides[l] = (a->slides == KVB_SLIDES_ALL && window) || (a->slides == KVB_SLIDES_PERIOD && (l + 1) % period != 0) ||
                    (upper && window && l >= from);
    return s;
}

/* RoPE of full and of sliding layers. transformers 5 has rope_parameters, where these differ one object for each; 4 has
 * rope_theta, rope_scaling and rope_local_base_freq. */
static kvb_status read_ropes(kvb_model *m, const kvb_json *config, kvb_error *err)
{
    kvb_model_config *c = &m->config;
    const kvb_architecture *a = c->arch;
    const kvb_json *parameters = get(config, "rope_parameters"), *old = get(config, "rope_scaling");
    const kvb_json *full = get(parameters, "full_attention"), *sliding = get(parameters, "sliding_attention");
    const double base = kvb_json_number(get(config, "rope_theta"), a->defaults.rope_base);
    const double part = kvb_json_number(get(config, "partial_rotary_factor"), 1.0);
    kvb_rope_source source = {m->path, full != NULL ? full : parameters != NULL ? parameters : old, base, part};
    kvb_status s = kvb_config_rope(&source, &c->geometry, &c->rope_factors, err);
    c->sliding = c->geometry;
    if (s != KVB_OK || (sliding == NULL && !(a->sliding_rope_base > 0.0)))
        return s;
    source.rope = sliding;
    source.base = kvb_json_number(get(config, "rope_local_base_freq"), a->sliding_rope_base);
    return kvb_config_rope(&source, &c->sliding, &c->sliding_factors, err);
}

static kvb_status read_layers(kvb_model *m, const kvb_json *config, kvb_error *err)
{
    kvb_model_config *c = &m->config;
    const kvb_json *window = get(config, "sliding_window");
    bool *slides = kvb_alloc_zeroed(c->layers, sizeof *slides), any = false;
    if (slides == NULL)
        return kvb_fail_memory(err, "model geometry");
    kvb_status s = c->arch->slides == KVB_SLIDES_NEVER ? KVB_OK : read_slides(m, config, window != NULL, slides, err);
    for (uint32_t l = 0; l < c->layers; l++)
        any = any || slides[l];
    c->sliding.kind = KVB_LAYER_SLIDING;
    if (s == KVB_OK && any) s = need_u32(m, config, "sliding_window", 0, &c->sliding.sliding_window, err);
    if (s == KVB_OK) s = kvb_config_lay_out(m, slides, err);
    free(slides);
    return s;
}

static kvb_status read_architecture(kvb_model *m, const kvb_json *root, kvb_error *err)
{
    const char *class = kvb_json_string(kvb_json_at(get(root, "architectures"), 0), "");
    m->config.arch = kvb_architecture_of_class(class);
    if (m->config.arch != NULL) {
        snprintf(m->config.architecture, sizeof m->config.architecture, "%s", m->config.arch->name);
        return KVB_OK;
    }
    char known[256];
    kvb_architecture_list(true, known, sizeof known);
    return kvb_fail(err, KVB_E_FORMAT, m->path, "config.json: architecture \"%s\" is not supported; these are: %s", class,
                    known);
}

/* The folder's own name, whatever slashes follow it. */
static void set_name(kvb_model *m)
{
    size_t end = strlen(m->path);
    while (end > 1 && m->path[end - 1] == '/')
        end--;
    size_t start = end;
    while (start > 0 && m->path[start - 1] != '/')
        start--;
    snprintf(m->config.name, sizeof m->config.name, "%.*s", (int)(end - start), m->path + start);
}

/* Tied weights win over an lm_head that a file holds all the same, as in transformers. */
static kvb_status read_tied(kvb_model *m, const kvb_json *config, kvb_error *err)
{
    const kvb_json *root = kvb_folder_config(m->folder);
    const bool inner = kvb_json_bool(get(config, "tie_word_embeddings"), m->config.arch->defaults.tied);
    char head[KVB_TENSOR_NAME];
    m->tied = kvb_json_bool(get(root, "tie_word_embeddings"), inner);
    if (m->tied)
        return KVB_OK;
    kvb_folder_name(m->config.arch, kvb_folder_prefix(m->folder), "output.weight", head);
    if (kvb_folder_tensor(m->folder, head) != NULL)
        return KVB_OK;
    return kvb_fail(err, KVB_E_FORMAT, m->path, "tensor %s is missing, and config.json does not tie it to the embedding", head);
}

kvb_status kvb_config_from_folder(kvb_model *m, kvb_error *err)
{
    kvb_model_config *c = &m->config;
    const kvb_json *root = kvb_folder_config(m->folder), *text = get(root, "text_config");
    const kvb_json *config = text != NULL ? text : root;
    set_name(m);
    kvb_status s = read_architecture(m, root, err);
    if (s != KVB_OK)
        return s;
    const kvb_folder_defaults *d = &c->arch->defaults;
    c->norm_offset = c->arch->folder_norm_offset;
    s = refuse_features(m, config, err);
    if (s == KVB_OK) s = check_activation(m, config, err);
    if (s == KVB_OK) s = need_u32(m, config, "num_hidden_layers", 0, &c->layers, err);
    if (s == KVB_OK) s = need_u32(m, config, "hidden_size", 0, &c->embedding, err);
    if (s == KVB_OK) s = need_u32(m, config, "intermediate_size", 0, &c->ffn, err);
    if (s == KVB_OK) s = need_u32(m, config, "max_position_embeddings", d->context, &c->context, err);
    if (s == KVB_OK) s = need_f64(m, config, "rms_norm_eps", d->norm_epsilon, &c->norm_epsilon, err);
    if (s == KVB_OK) s = read_heads(m, config, err);
    if (s == KVB_OK) s = kvb_config_check_heads(m, err);
    if (s == KVB_OK) s = read_ropes(m, config, err);
    if (s == KVB_OK) s = kvb_config_check(m, err);
    if (s == KVB_OK) s = read_layers(m, config, err);
    if (s == KVB_OK) s = read_tied(m, config, err);
    const kvb_tensor *embedding = s == KVB_OK ? kvb_model_find(m, "token_embd.weight") : NULL;
    if (s == KVB_OK && (embedding == NULL || embedding->dims != 2 || embedding->shape[1] > UINT32_MAX))
        s = kvb_fail(err, KVB_E_FORMAT, m->path, "tensor model.embed_tokens.weight is missing or not a matrix");
    if (s == KVB_OK)
        c->vocab = (uint32_t)embedding->shape[1];
    return s;
}
