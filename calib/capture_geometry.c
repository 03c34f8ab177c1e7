/* Geometry of a model's layers as JSON, as it stands in a capture's header. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calib/capture_layout.h"
#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/json.h"

/* The limits of the book format: what could not be trained is not read. */
enum { MOST_LAYERS = 1024, MOST_HEADS = 1024, MOST_HEAD_DIM = 1024 };

static const char *const layer_kinds[] = {"full", "sliding", "unsupported"};
static const char *const rope_styles[] = {"none", "interleaved", "half"};

static void put_geometry(kvb_json_writer *w, const kvb_layer *g)
{
    kvb_json_begin_object(w, NULL);
    kvb_json_put_u64(w, "heads", g->heads);
    kvb_json_put_u64(w, "kv_heads", g->kv_heads);
    kvb_json_put_u64(w, "head_dim", g->head_dim);
    kvb_json_put_string(w, "kind", layer_kinds[g->kind]);
    if (g->kind == KVB_LAYER_SLIDING)
        kvb_json_put_u64(w, "sliding_window", g->sliding_window);
    kvb_json_put_string(w, "rope_style", rope_styles[g->rope_style]);
    if (g->rope_style != KVB_ROPE_NONE) {
        kvb_json_put_u64(w, "rope_dims", g->rope_dims);
        kvb_json_put_number(w, "rope_base", g->rope_base);
    }
    if (g->rope_style != KVB_ROPE_NONE && g->rope_factors != NULL) {
        kvb_json_begin_array(w, "rope_factors");
        for (uint32_t i = 0; i < g->rope_dims / 2; i++)
            kvb_json_put_number(w, NULL, (double)g->rope_factors[i]);
        kvb_json_end_array(w);
    }
    kvb_json_put_number(w, "attention_scale", g->attention_scale);
    kvb_json_end_object(w);
}

char *kvb_kvc_geometry_write(const kvb_layer *layer, uint32_t layers)
{
    kvb_json_writer w = {.compact = true};
    kvb_json_begin_array(&w, NULL);
    for (uint32_t i = 0; i < layers; i++)
        put_geometry(&w, &layer[i]);
    kvb_json_end_array(&w);
    const char *text = kvb_json_writer_text(&w);
    char *copy = text != NULL ? strdup(text) : NULL;
    kvb_json_writer_free(&w);
    return copy;
}

void kvb_kvc_geometry_free(kvb_layer *layer, uint32_t layers)
{
    if (layer == NULL)
        return;
    for (uint32_t i = 0; i < layers; i++)
        free((void *)(uintptr_t)layer[i].rope_factors);
    free(layer);
}

kvb_layer *kvb_kvc_geometry_copy(const kvb_layer *layer, uint32_t layers)
{
    kvb_layer *copy = kvb_alloc_zeroed(layers, sizeof *copy);
    if (copy == NULL)
        return NULL;
    for (uint32_t i = 0; i < layers; i++) {
        copy[i] = layer[i];
        copy[i].rope_factors = NULL;
        if (layer[i].rope_factors == NULL)
            continue;
        float *factors = kvb_alloc_array(layer[i].rope_dims / 2, sizeof *factors);
        if (factors == NULL) {
            kvb_kvc_geometry_free(copy, i);
            return NULL;
        }
        memcpy(factors, layer[i].rope_factors, layer[i].rope_dims / 2 * sizeof *factors);
        copy[i].rope_factors = factors;
    }
    return copy;
}

typedef struct geometry_reader {
    const char *file;
    uint32_t layer;
    kvb_error *err;
} geometry_reader;

static kvb_status refuse(const geometry_reader *r, const char *key, const char *expected)
{
    char where[256];
    snprintf(where, sizeof where, "%s: kvc.geometry: layer %u: %s", r->file, r->layer, key);
    return kvb_fail(r->err, KVB_E_FORMAT, where, "expected %s", expected);
}

static kvb_status read_count(const geometry_reader *r, const kvb_json *v, const char *key, uint32_t least,
                             uint32_t most, uint32_t *value)
{
    char expected[64];
    uint64_t number;
    if (kvb_json_u64(kvb_json_get(v, key), &number) && number >= least && number <= most) {
        *value = (uint32_t)number;
        return KVB_OK;
    }
    snprintf(expected, sizeof expected, "a whole number from %u to %u", least, most);
    return refuse(r, key, expected);
}

static bool word_index(const kvb_json *v, const char *const *words, uint32_t count, uint32_t *index)
{
    const char *text = kvb_json_string(v, "");
    for (uint32_t i = 0; i < count; i++)
        if (strcmp(text, words[i]) == 0) {
            *index = i;
            return true;
        }
    return false;
}

static kvb_status read_factors(const geometry_reader *r, const kvb_json *v, kvb_layer *g)
{
    if (v == NULL)
        return KVB_OK;
    uint32_t pairs = g->rope_dims / 2;
    if (kvb_json_type_of(v) != KVB_JSON_ARRAY || kvb_json_count(v) != pairs)
        return refuse(r, "rope_factors", "a list of rope_dims/2 numbers");
    float *factors = kvb_alloc_array(pairs, sizeof *factors);
    if (factors == NULL)
        return kvb_fail_memory(r->err, r->file);
    g->rope_factors = factors;
    for (uint32_t i = 0; i < pairs; i++) {
        factors[i] = (float)kvb_json_number(kvb_json_at(v, i), 0.0);
        if (!isnormal(factors[i]) || factors[i] < 0.0f)
            return refuse(r, "rope_factors", "positive numbers");
    }
    return KVB_OK;
}

static kvb_status read_rope(const geometry_reader *r, const kvb_json *v, kvb_layer *g)
{
    uint32_t style;
    if (!word_index(kvb_json_get(v, "rope_style"), rope_styles, 3, &style))
        return refuse(r, "rope_style", "\"none\", \"interleaved\" or \"half\"");
    g->rope_style = (kvb_rope_style)style;
    if (g->rope_style == KVB_ROPE_NONE)
        return KVB_OK;
    kvb_status status = read_count(r, v, "rope_dims", 2, g->head_dim, &g->rope_dims);
    if (status != KVB_OK)
        return status;
    if (g->rope_dims % 2 != 0)
        return refuse(r, "rope_dims", "an even number: channels rotate in pairs");
    g->rope_base = kvb_json_number(kvb_json_get(v, "rope_base"), 0.0);
    if (!isnormal(g->rope_base) || g->rope_base < 0.0)
        return refuse(r, "rope_base", "a positive number");
    return read_factors(r, kvb_json_get(v, "rope_factors"), g);
}

static kvb_status read_layer(const geometry_reader *r, const kvb_json *v, kvb_layer *g)
{
    uint32_t kind;
    if (kvb_json_type_of(v) != KVB_JSON_OBJECT)
        return refuse(r, "entry", "an object");
    kvb_status status = read_count(r, v, "heads", 1, MOST_HEADS, &g->heads);
    if (status == KVB_OK)
        status = read_count(r, v, "kv_heads", 1, g->heads, &g->kv_heads);
    if (status == KVB_OK)
        status = read_count(r, v, "head_dim", 1, MOST_HEAD_DIM, &g->head_dim);
    if (status != KVB_OK)
        return status;
    if (g->heads % g->kv_heads != 0)
        return refuse(r, "kv_heads", "a divisor of heads");
    if (!word_index(kvb_json_get(v, "kind"), layer_kinds, 3, &kind))
        return refuse(r, "kind", "\"full\", \"sliding\" or \"unsupported\"");
    g->kind = (kvb_layer_kind)kind;
    if (g->kind == KVB_LAYER_SLIDING)
        status = read_count(r, v, "sliding_window", 1, INT32_MAX, &g->sliding_window);
    if (status != KVB_OK)
        return status;
    g->attention_scale = kvb_json_number(kvb_json_get(v, "attention_scale"), 0.0);
    if (!isnormal(g->attention_scale) || g->attention_scale < 0.0)
        return refuse(r, "attention_scale", "a positive number");
    return read_rope(r, v, g);
}

kvb_status kvb_kvc_geometry_read(const char *text, const char *file, kvb_layer **layer, uint32_t *layers,
                                 kvb_error *err)
{
    geometry_reader r = {.file = file, .err = err};
    kvb_json_doc *doc = NULL;
    *layer = NULL;
    kvb_status status = kvb_json_parse(text, strlen(text), file, &doc, err);
    if (status != KVB_OK)
        return status;
    const kvb_json *root = kvb_json_root(doc);
    size_t count = kvb_json_count(root);
    if (kvb_json_type_of(root) != KVB_JSON_ARRAY || count == 0 || count > MOST_LAYERS) {
        status = kvb_fail(err, KVB_E_FORMAT, file, "kvc.geometry: expected a list of 1 to %d layers", MOST_LAYERS);
        goto out;
    }
    *layer = kvb_alloc_zeroed(count, sizeof **layer);
    if (*layer == NULL) {
        status = kvb_fail_memory(err, file);
        goto out;
    }
    *layers = (uint32_t)count;
    for (; status == KVB_OK && r.layer < count; r.layer++)
        status = read_layer(&r, kvb_json_at(root, r.layer), &(*layer)[r.layer]);
    if (status != KVB_OK) {
        kvb_kvc_geometry_free(*layer, (uint32_t)count);
        *layer = NULL;
    }
out:
    kvb_json_free(doc);
    return status;
}
