#include "model/weights.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"

const kvb_tensor *kvb_model_find(const kvb_model *m, const char *name)
{
    if (m->gguf != NULL)
        return kvb_gguf_tensor(m->gguf, name);
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

/* Norm vectors are small and always resident. */
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

static kvb_status load_layer(kvb_model *m, uint32_t l, uint64_t *budget, kvb_error *err)
{
    const kvb_model_config *c = &m->config;
    kvb_layer_weights *w = &m->layer[l];
    const uint64_t embedding = c->embedding, ffn = c->ffn, dim = c->geometry.head_dim;
    const uint64_t q_rows = c->geometry.heads * dim, kv_rows = c->geometry.kv_heads * dim;
    char norm[64], ffn_norm[64];
    snprintf(norm, sizeof norm, "blk.%u.attn_norm.weight", l);
    snprintf(ffn_norm, sizeof ffn_norm, "blk.%u.ffn_norm.weight", l);
    kvb_status s = load_vector(m, norm, embedding, &w->attention_norm, err);
    if (s == KVB_OK) s = load_vector(m, ffn_norm, embedding, &w->ffn_norm, err);
    if (s == KVB_OK) s = add_layer_part(m, &w->qkv, l, "attn_q", q_rows, embedding, err);
    if (s == KVB_OK) s = add_layer_part(m, &w->qkv, l, "attn_k", kv_rows, embedding, err);
    if (s == KVB_OK) s = add_layer_part(m, &w->qkv, l, "attn_v", kv_rows, embedding, err);
    if (s == KVB_OK) s = add_layer_part(m, &w->out, l, "attn_output", embedding, q_rows, err);
    if (s == KVB_OK) s = add_layer_part(m, &w->gate_up, l, "ffn_gate", ffn, embedding, err);
    if (s == KVB_OK) s = add_layer_part(m, &w->gate_up, l, "ffn_up", ffn, embedding, err);
    if (s == KVB_OK) s = add_layer_part(m, &w->down, l, "ffn_down", embedding, ffn, err);
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
    kvb_status s = load_vector(m, "output_norm.weight", c->embedding, &m->final_norm, err);
    if (s == KVB_OK) s = add_part(m, &m->embedding, "token_embd.weight", c->vocab, c->embedding, err);
    const char *head = kvb_model_find(m, "output.weight") ? "output.weight" : "token_embd.weight";
    if (s == KVB_OK) s = add_part(m, &m->head, head, c->vocab, c->embedding, err);
    if (s == KVB_OK) s = make_resident(m, &m->head, budget, err);
    if (s == KVB_OK && m->head.part[0] != m->embedding.part[0]) s = check_finite(m, &m->embedding, err);
    return s;
}

static bool is_read(const char *name, uint32_t layers)
{
    static const char *const single[] = {"token_embd.weight", "output.weight", "output_norm.weight",
                                         "rope_freqs.weight"};
    /* The last three hold rotation frequencies that follow from the metadata. */
    static const char *const per_layer[] = {
        "attn_norm.weight", "attn_q.weight",   "attn_k.weight",        "attn_v.weight", "attn_output.weight",
        "ffn_norm.weight",  "ffn_gate.weight", "ffn_up.weight",        "ffn_down.weight",
        "attn_rot_embd",    "attn_rot_embd.weight", "rope_freqs.weight",
    };
    for (size_t i = 0; i < sizeof single / sizeof *single; i++)
        if (strcmp(name, single[i]) == 0)
            return true;
    unsigned long layer = strncmp(name, "blk.", 4) == 0 ? strtoul(name + 4, NULL, 10) : layers;
    for (size_t i = 0; layer < layers && i < sizeof per_layer / sizeof *per_layer; i++) {
        char expected[64];
        snprintf(expected, sizeof expected, "blk.%lu.%s", layer, per_layer[i]);
        if (strcmp(name, expected) == 0)
            return true;
    }
    return false;
}

/* A bias or a norm that nobody applies would give wrong activations without a word. */
static kvb_status refuse_unread(const kvb_model *m, kvb_error *err)
{
    for (uint64_t i = 0; m->gguf != NULL && i < kvb_gguf_tensor_count(m->gguf); i++) {
        const char *name = kvb_gguf_tensor_at(m->gguf, i)->name;
        if (!is_read(name, m->config.layers))
            return kvb_fail(err, KVB_E_FORMAT, m->path,
                            "tensor %s belongs to an architecture feature that is not supported; use a plain Llama "
                            "model of %u layers", name, m->config.layers);
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
        free(m->layer[l].attention_norm);
        free(m->layer[l].ffn_norm);
    }
    free(m->layer);
    free(m->head.resident);
    free(m->embedding.resident);
    free(m->final_norm);
}
