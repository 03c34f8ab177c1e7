#include "model/weights.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"

const kvb_tensor *kvb_model_find(const kvb_model *m, const char *name)
{
    char own[KVB_TENSOR_NAME];
    if (m->gguf != NULL)
        return kvb_gguf_tensor(m->gguf, name);
    if (m->folder != NULL && m->tied && strcmp(name, "output.weight") == 0)
        return NULL;
    if (m->folder != NULL)
        return kvb_folder_name(m->config.arch, kvb_folder_prefix(m->folder), name, own) ?
                   kvb_folder_tensor(m->folder, own) : NULL;
    for (size_t i = 0; i < m->tensor_count; i++)
        if (strcmp(m->tensors[i].name, name) == 0)
            return &m->tensors[i];
    return NULL;
}

/* Rows of a matrix are expanded in parallel; a row is a whole number of blocks, as kvb_weights_load has checked. */
static void expand(const kvb_weight *w, float *out)
{
    float *at = out;
    for (uint32_t p = 0; p < w->parts; p++) {
        const kvb_tensor *t = w->part[p];
        uint64_t cols = t->shape[0];
        int64_t rows = (int64_t)(t->dims > 1 ? t->shape[1] : 1);
#pragma omp parallel for schedule(static)
        for (int64_t r = 0; r < rows; r++)
            kvb_dequantise(t, (uint64_t)r * cols, cols, at + (uint64_t)r * cols);
        at += (uint64_t)rows * cols;
    }
}

const float *kvb_weight_floats(const kvb_weight *w, float *scratch)
{
    if (w->resident != NULL)
        return w->resident;
    expand(w, scratch);
    return scratch;
}

void kvb_model_output_weights(const kvb_model *model, uint32_t layer, float *w)
{
    const kvb_weight *out = &model->layer[layer].out;
    if (out->resident != NULL)
        memcpy(w, out->resident, out->rows * out->cols * sizeof *w);
    else
        expand(out, w);
}

/* `floats` are the tensor's expanded values, or NULL: then row by row, so that a matrix over the budget needs one row of
 * scratch a thread. */
static kvb_status check_finite_part(const kvb_model *m, const kvb_tensor *t, const float *floats, kvb_error *err)
{
    const uint64_t cols = t->shape[0];
    const int64_t rows = (int64_t)(t->dims > 1 ? t->shape[1] : 1);
    int64_t bad = 0, starved = 0;
#pragma omp parallel reduction(+ : bad, starved)
    {
        float *scratch = kvb_alloc_array(floats == NULL ? cols : 0, sizeof *scratch);
        starved += scratch == NULL;
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            const float *row = floats != NULL ? floats + (uint64_t)r * cols : scratch;
            if (scratch == NULL)
                continue;
            if (floats == NULL)
                kvb_dequantise(t, (uint64_t)r * cols, cols, scratch);
            for (uint64_t c = 0; c < cols; c++)
                bad += !(fabsf(row[c]) <= 3.0e38f);
        }
        free(scratch);
    }
    if (starved != 0)
        return kvb_fail_memory(err, "model weights");
    if (bad == 0)
        return KVB_OK;
    return kvb_fail(err, KVB_E_FORMAT, m->path, "%s: %lld weights are NaN or infinite; the file is damaged", t->name,
                    (long long)bad);
}

static kvb_status check_finite(const kvb_model *m, const kvb_weight *w, kvb_error *err)
{
    kvb_status status = KVB_OK;
    const float *floats = w->resident;
    for (uint32_t p = 0; p < w->parts && status == KVB_OK; p++) {
        status = check_finite_part(m, w->part[p], floats, err);
        if (floats != NULL)
            floats += w->part[p]->shape[0] * (w->part[p]->dims > 1 ? w->part[p]->shape[1] : 1);
    }
    return status;
}

static kvb_status check_tensor(const kvb_model *m, const kvb_tensor *t, const char *name, uint64_t cols, uint64_t rows,
                               kvb_error *err)
{
    char own[KVB_TENSOR_NAME];
    if (m->folder != NULL && kvb_folder_name(m->config.arch, kvb_folder_prefix(m->folder), name, own))
        name = own;
    if (t == NULL)
        return kvb_fail(err, KVB_E_FORMAT, m->path, "tensor %s is missing", name);
    uint32_t elements, bytes;
    if (!kvb_dtype_block(t->dtype, &elements, &bytes))
        return kvb_fail(err, KVB_E_FORMAT, m->path,
                        "%s has type %s (%u), which cannot be read; convert the model to F16 or Q8_0", name,
                        kvb_dtype_name(t->dtype) ? kvb_dtype_name(t->dtype) : "unknown", t->dtype);
    uint64_t found_rows = t->dims > 1 ? t->shape[1] : 1;
    if (t->dims > 2 || t->shape[0] != cols || found_rows != rows)
        return kvb_fail(err, KVB_E_FORMAT, m->path, "%s has shape %llu x %llu, expected %llu x %llu", name,
                        (unsigned long long)found_rows, (unsigned long long)t->shape[0], (unsigned long long)rows,
                        (unsigned long long)cols);
    return KVB_OK;
}

/* Adds one tensor below the others of a matrix. */
static kvb_status add_part(const kvb_model *m, kvb_weight *w, const char *name, uint64_t rows, uint64_t cols,
                           kvb_error *err)
{
    const kvb_tensor *t = kvb_model_find(m, name);
    kvb_status status = check_tensor(m, t, name, cols, rows, err);
    if (status != KVB_OK)
        return status;
    w->part[w->parts++] = t;
    w->rows += rows;
    w->cols = cols;
    return KVB_OK;
}

static kvb_status add_layer_part(const kvb_model *m, kvb_weight *w, uint32_t layer, const char *suffix, uint64_t rows,
                                 uint64_t cols, kvb_error *err)
{
    char name[64];
    snprintf(name, sizeof name, "blk.%u.%s.weight", layer, suffix);
    return add_part(m, w, name, rows, cols, err);
}

static kvb_status make_resident(kvb_model *m, kvb_weight *w, uint64_t *budget, kvb_error *err)
{
    uint64_t count = w->rows * w->cols, bytes = count * sizeof(float);
    if (bytes > *budget) {
        if (count > m->scratch_floats)
            m->scratch_floats = count;
        return check_finite(m, w, err);
    }
    w->resident = kvb_alloc_array(count, sizeof(float));
    if (w->resident == NULL)
        return kvb_fail_memory(err, "model weights");
    *budget -= bytes;
    expand(w, w->resident);
    return check_finite(m, w, err);
}

/* Vectors are small and always resident. */
static kvb_status load_vector(kvb_model *m, const char *name, uint64_t count, float **out, kvb_error *err)
{
    kvb_weight w = {0};
    uint64_t budget = UINT64_MAX;
    kvb_status status = add_part(m, &w, name, 1, count, err);
    if (status == KVB_OK)
        status = make_resident(m, &w, &budget, err);
    *out = w.resident;
    return status;
}

static kvb_status load_norm(kvb_model *m, uint32_t layer, const char *suffix, uint64_t count, float **out, kvb_error *err)
{
    char name[64] = "output_norm.weight";
    if (suffix != NULL)
        snprintf(name, sizeof name, "blk.%u.%s.weight", layer, suffix);
    kvb_status status = load_vector(m, name, count, out, err);
    for (uint64_t i = 0; status == KVB_OK && i < count; i++)
        (*out)[i] += m->config.norm_offset;
    return status;
}

static kvb_status load_norms(kvb_model *m, uint32_t l, kvb_error *err)
{
    const kvb_architecture *a = m->config.arch;
    const uint32_t e = m->config.embedding, dim = m->config.geometry.head_dim;
    kvb_layer_weights *w = &m->layer[l];
    kvb_status s = load_norm(m, l, "attn_norm", e, &w->attention_norm, err);
    if (s == KVB_OK) s = load_norm(m, l, "ffn_norm", e, &w->ffn_norm, err);
    if (s == KVB_OK && a->qk_norm) s = load_norm(m, l, "attn_q_norm", dim, &w->q_norm, err);
    if (s == KVB_OK && a->qk_norm) s = load_norm(m, l, "attn_k_norm", dim, &w->k_norm, err);
    if (s == KVB_OK && a->post_norms) s = load_norm(m, l, "post_attention_norm", e, &w->attention_post_norm, err);
    if (s == KVB_OK && a->post_norms) s = load_norm(m, l, "post_ffw_norm", e, &w->ffn_post_norm, err);
    return s;
}

/* The three below each other, as their products are. */
static kvb_status load_bias(kvb_model *m, uint32_t l, uint64_t q_rows, uint64_t kv_rows, kvb_error *err)
{
    static const char *const suffixes[] = {"attn_q", "attn_k", "attn_v"};
    kvb_status status = KVB_OK;
    float *bias = kvb_alloc_array(q_rows + 2 * kv_rows, sizeof *bias), *at = bias;
    m->layer[l].qkv_bias = bias;
    if (bias == NULL)
        return kvb_fail_memory(err, "model weights");
    for (size_t i = 0; i < 3 && status == KVB_OK; i++) {
        const uint64_t rows = i == 0 ? q_rows : kv_rows;
        float *part = NULL;
        char name[64];
        snprintf(name, sizeof name, "blk.%u.%s.bias", l, suffixes[i]);
        status = load_vector(m, name, rows, &part, err);
        if (status == KVB_OK)
            memcpy(at, part, rows * sizeof *at);
        at += rows;
        free(part);
    }
    return status;
}

/* The products that read one input: several tensors, or one where the architecture fuses them. */
static kvb_status add_products(kvb_model *m, uint32_t l, uint64_t q_rows, uint64_t kv_rows, kvb_error *err)
{
    const uint64_t embedding = m->config.embedding, ffn = m->config.ffn;
    kvb_layer_weights *w = &m->layer[l];
    if (m->config.arch->fused) {
        kvb_status status = add_layer_part(m, &w->qkv, l, "attn_qkv", q_rows + 2 * kv_rows, embedding, err);
        return status == KVB_OK ? add_layer_part(m, &w->gate_up, l, "ffn_up", 2 * ffn, embedding, err) : status;
    }
    kvb_status s = add_layer_part(m, &w->qkv, l, "attn_q", q_rows, embedding, err);
    if (s == KVB_OK) s = add_layer_part(m, &w->qkv, l, "attn_k", kv_rows, embedding, err);
    if (s == KVB_OK) s = add_layer_part(m, &w->qkv, l, "attn_v", kv_rows, embedding, err);
    if (s == KVB_OK) s = add_layer_part(m, &w->gate_up, l, "ffn_gate", ffn, embedding, err);
    if (s == KVB_OK) s = add_layer_part(m, &w->gate_up, l, "ffn_up", ffn, embedding, err);
    return s;
}

static kvb_status load_layer(kvb_model *m, uint32_t l, uint64_t *budget, kvb_error *err)
{
    const kvb_model_config *c = &m->config;
    kvb_layer_weights *w = &m->layer[l];
    const uint64_t embedding = c->embedding, dim = c->geometry.head_dim;
    const uint64_t q_rows = c->geometry.heads * dim, kv_rows = c->geometry.kv_heads * dim;
    kvb_status s = load_norms(m, l, err);
    if (s == KVB_OK) s = add_products(m, l, q_rows, kv_rows, err);
    if (s == KVB_OK && c->arch->qkv_bias) s = load_bias(m, l, q_rows, kv_rows, err);
    if (s == KVB_OK) s = add_layer_part(m, &w->out, l, "attn_output", embedding, q_rows, err);
    if (s == KVB_OK) s = add_layer_part(m, &w->down, l, "ffn_down", embedding, c->ffn, err);
    if (s == KVB_OK) s = make_resident(m, &w->qkv, budget, err);
    if (s == KVB_OK) s = make_resident(m, &w->out, budget, err);
    if (s == KVB_OK) s = make_resident(m, &w->gate_up, budget, err);
    if (s == KVB_OK) s = make_resident(m, &w->down, budget, err);
    return s;
}

/* A model without output.weight shares the embedding. */
static kvb_status load_ends(kvb_model *m, uint64_t *budget, kvb_error *err)
{
    const kvb_model_config *c = &m->config;
    kvb_status s = load_norm(m, 0, NULL, c->embedding, &m->final_norm, err);
    if (s == KVB_OK) s = add_part(m, &m->embedding, "token_embd.weight", c->vocab, c->embedding, err);
    const char *head = kvb_model_find(m, "output.weight") ? "output.weight" : "token_embd.weight";
    if (s == KVB_OK) s = add_part(m, &m->head, head, c->vocab, c->embedding, err);
    if (s == KVB_OK) s = make_resident(m, &m->head, budget, err);
    if (s == KVB_OK && m->head.part[0] != m->embedding.part[0]) s = check_finite(m, &m->embedding, err);
    return s;
}

/* Which architectures have a tensor. */
typedef enum needed { ALWAYS, SPLIT, FUSED, BIAS, QK_NORM, POST_NORMS } needed;

static bool is_needed(const kvb_architecture *a, needed n)
{
    switch (n) {
    case SPLIT: return !a->fused;
    case FUSED: return a->fused;
    case BIAS: return a->qkv_bias;
    case QK_NORM: return a->qk_norm;
    case POST_NORMS: return a->post_norms;
    default: return true;
    }
}

static bool is_read(const kvb_model *m, const char *name)
{
    static const char *const single[] = {"token_embd.weight", "output.weight", "output_norm.weight",
                                         "rope_freqs.weight"};
    /* The last three hold rotation frequencies that follow from the metadata. */
    static const struct {
        const char *suffix;
        needed by;
    } per_layer[] = {
        {"attn_norm.weight", ALWAYS}, {"attn_q.weight", SPLIT}, {"attn_k.weight", SPLIT}, {"attn_v.weight", SPLIT},
        {"attn_qkv.weight", FUSED}, {"attn_q.bias", BIAS}, {"attn_k.bias", BIAS}, {"attn_v.bias", BIAS},
        {"attn_q_norm.weight", QK_NORM}, {"attn_k_norm.weight", QK_NORM}, {"attn_output.weight", ALWAYS},
        {"post_attention_norm.weight", POST_NORMS}, {"ffn_norm.weight", ALWAYS}, {"ffn_gate.weight", SPLIT},
        {"ffn_up.weight", ALWAYS}, {"ffn_down.weight", ALWAYS}, {"post_ffw_norm.weight", POST_NORMS},
        {"attn_rot_embd", ALWAYS}, {"attn_rot_embd.weight", ALWAYS}, {"rope_freqs.weight", ALWAYS},
    };
    const uint32_t layers = m->config.layers;
    for (size_t i = 0; i < sizeof single / sizeof *single; i++)
        if (strcmp(name, single[i]) == 0)
            return true;
    unsigned long layer = strncmp(name, "blk.", 4) == 0 ? strtoul(name + 4, NULL, 10) : layers;
    for (size_t i = 0; layer < layers && i < sizeof per_layer / sizeof *per_layer; i++) {
        char expected[64];
        snprintf(expected, sizeof expected, "blk.%lu.%s", layer, per_layer[i].suffix);
        if (strcmp(name, expected) == 0)
            return is_needed(m->config.arch, per_layer[i].by);
    }
    return false;
}

static kvb_status refuse_tensor(const kvb_model *m, const char *name, kvb_error *err)
{
    return kvb_fail(err, KVB_E_FORMAT, m->path,
                    "tensor %s belongs to a feature that is not supported: a plain %s model of %u layers has none; use one",
                    name, m->config.arch->name, m->config.layers);
}

/* A bias or a norm that nobody applies would give wrong activations without a word. */
static kvb_status refuse_unread(const kvb_model *m, kvb_error *err)
{
    for (uint64_t i = 0; m->gguf != NULL && i < kvb_gguf_tensor_count(m->gguf); i++)
        if (!is_read(m, kvb_gguf_tensor_at(m->gguf, i)->name))
            return refuse_tensor(m, kvb_gguf_tensor_at(m->gguf, i)->name, err);
    for (size_t i = 0; m->folder != NULL && i < kvb_folder_tensors(m->folder); i++) {
        const char *name = kvb_folder_tensor_at(m->folder, i)->name;
        char gguf[KVB_TENSOR_NAME];
        if (!kvb_folder_gguf_name(m->config.arch, kvb_folder_prefix(m->folder), name, gguf) || !is_read(m, gguf))
            return refuse_tensor(m, name, err);
    }
    return KVB_OK;
}

kvb_status kvb_weights_load(kvb_model *m, uint64_t budget, kvb_error *err)
{
    uint64_t left = budget != 0 ? budget : UINT64_MAX;
    m->layer = kvb_alloc_zeroed(m->config.layers, sizeof *m->layer);
    if (m->layer == NULL)
        return kvb_fail_memory(err, "model weights");
    kvb_status status = refuse_unread(m, err);
    if (status == KVB_OK)
        status = load_ends(m, &left, err);
    for (uint32_t l = 0; l < m->config.layers && status == KVB_OK; l++)
        status = load_layer(m, l, &left, err);
    return status;
}

void kvb_weights_free(kvb_model *m)
{
    for (uint32_t l = 0; m->layer != NULL && l < m->config.layers; l++) {
        free(m->layer[l].qkv.resident);
        free(m->layer[l].out.resident);
        free(m->layer[l].gate_up.resident);
        free(m->layer[l].down.resident);
        float *all[] = {m->layer[l].attention_norm, m->layer[l].ffn_norm, m->layer[l].qkv_bias,
                        m->layer[l].q_norm, m->layer[l].k_norm, m->layer[l].attention_post_norm,
                        m->layer[l].ffn_post_norm};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++)
            free(all[i]);
    }
    free(m->layer);
    free(m->head.resident);
    free(m->embedding.resident);
    free(m->final_norm);
}
