#include "tests/support/rt_book.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/grid.h"
#include "format/base/half.h"
#include "format/base/rng.h"
#include "format/book_write.h"

void rt_normal(float *x, size_t count, uint64_t key)
{
    for (size_t i = 0; i < count; i++) {
        double radius = sqrt(-2.0 * log(kvb_rng_unit(key, 2 * i)));
        x[i] = (float)(radius * cos(6.283185307179586 * kvb_rng_unit(key, 2 * i + 1)));
    }
}

void rt_rotate(const kvb_layer *layer, double position, const float *x, double *out)
{
    for (uint32_t i = 0; i < layer->head_dim; i++)
        out[i] = (double)x[i];
    if (layer->rope_style == KVB_ROPE_NONE)
        return;
    for (uint32_t i = 0; i < layer->rope_dims / 2; i++) {
        uint32_t a = layer->rope_style == KVB_ROPE_INTERLEAVED ? 2 * i : i;
        uint32_t b = layer->rope_style == KVB_ROPE_INTERLEAVED ? a + 1 : i + layer->rope_dims / 2;
        double angle = position * pow(layer->rope_base, -2.0 * i / layer->rope_dims);
        out[a] = (double)x[a] * cos(angle) - (double)x[b] * sin(angle);
        out[b] = (double)x[a] * sin(angle) + (double)x[b] * cos(angle);
    }
}

static kvb_layer make_layer(const rt_shape *s)
{
    return (kvb_layer){.heads = s->heads, .kv_heads = s->kv_heads, .head_dim = s->head_dim,
                       .kind = s->sliding != 0 ? KVB_LAYER_SLIDING : KVB_LAYER_FULL, .sliding_window = s->sliding,
                       .frame = s->frame, .rope_block = s->frame == KVB_FRAME_BLOCK ? s->rope_block : 0,
                       .rope_style = s->rope_style, .rope_dims = s->rope_style != KVB_ROPE_NONE ? s->rope_dims : 0,
                       .rope_base = s->rope_style != KVB_ROPE_NONE ? 10000.0 : 0.0,
                       .attention_scale = 1.0 / sqrt((double)s->head_dim)};
}

/* A reflection with its rows scaled, which is not symmetric, and its inverse. */
static void make_transform(uint32_t dim, uint64_t key, float *forward, float *inverse)
{
    float *direction = malloc(dim * sizeof *direction);
    if (direction == NULL)
        abort();
    rt_normal(direction, dim, key);
    double square = 0.0;
    for (uint32_t i = 0; i < dim; i++)
        square += (double)direction[i] * (double)direction[i];
    for (uint32_t i = 0; i < dim; i++)
        for (uint32_t j = 0; j < dim; j++) {
            double h = (i == j) - 2.0 * (double)direction[i] * (double)direction[j] / square;
            forward[(size_t)i * dim + j] = (float)(h * (0.5 + (double)i / dim));
            inverse[(size_t)i * dim + j] = (float)(h / (0.5 + (double)j / dim));
        }
    free(direction);
}

/* Floats of one head's table. */
static size_t table_floats(const rt_shape *s)
{
    const uint32_t most = s->stages > s->other_stages ? s->stages : s->other_stages;
    return (size_t)s->head_dim * s->centroids * (most > 0 ? most : 1);
}

static size_t fine_floats(const rt_shape *s)
{
    return (size_t)s->head_dim * s->fine_centroids;
}

static void make_fine(const rt_shape *s, kvb_book_part *part, kvb_book_part *fine, float *memory, uint64_t key)
{
    if (s->fine_channels == 0)
        return;
    *fine = (kvb_book_part){.channels = s->fine_channels, .centroids = s->fine_centroids, .table = memory};
    rt_normal(memory, fine_floats(s), key + 7);
    part->fine = fine;
}

/* A table on a grid of bytes. */
static void snap(const rt_shape *s, kvb_kind kind, float *table)
{
    const kvb_layer layer = make_layer(s);
    const kvb_grid grid = kvb_grid_of(&layer, kind, s->channels, s->stages > 0 ? s->stages : 1, s->centroids);
    float *step = kvb_alloc_array(s->head_dim, sizeof *step);
    if (step == NULL)
        abort();
    kvb_grid_steps(&grid, table, step);
    kvb_grid_snap(&grid, table, step);
    free(step);
}

static void make_part(const rt_shape *s, const kvb_scaling *scaling, kvb_book_part *part, float *memory, uint64_t key)
{
    const size_t dim = s->head_dim, table = table_floats(s);
    *part = (kvb_book_part){.channels = s->channels, .centroids = s->centroids, .stages = s->stages, .table = memory};
    rt_normal(memory, table, key);
    if (s->grid)
        snap(s, scaling == &s->scaling[0] ? KVB_KEY : KVB_VALUE, memory);
    if (scaling->group != 0) {
        part->scaling = scaling;
        part->table = NULL;
    }
    if (!s->transform && !s->key_transform)
        return;
    float *mean = memory + table, *forward = mean + dim, *inverse = forward + dim * dim;
    rt_normal(mean, dim, key + 1);
    part->mean = mean;
    if (!s->transform && scaling != &s->scaling[KVB_KEY])
        return;
    make_transform(s->head_dim, key + 2, forward, inverse);
    part->forward = forward;
    part->inverse = inverse;
}

static kvb_book *build(const kvb_book_spec *spec)
{
    kvb_error err = {0};
    uint8_t *image = NULL;
    size_t size = 0;
    kvb_book *book = NULL;
    if (kvb_book_build(spec, &image, &size, &err) != KVB_OK ||
        kvb_book_open_memory(image, size, "random book", &book, &err) != KVB_OK)
        fprintf(stderr, "random book: %s: %s\n", err.where, err.message);
    free(image);
    return book;
}

kvb_book *rt_book_make(const rt_shape *s, const kvb_policy *policy)
{
    const size_t dim = s->head_dim, floats = table_floats(s) + (s->transform || s->key_transform ? dim + 2 * dim * dim : 0);
    const size_t parts = (size_t)s->layers * s->kv_heads * 2;
    kvb_layer *layer = calloc(s->layers, sizeof *layer);
    kvb_book_part *part = calloc(2 * parts, sizeof *part);
    float *memory = kvb_alloc_array(parts * (floats + fine_floats(s)), sizeof *memory);
    kvb_book *book = NULL;
    if (layer != NULL && part != NULL && memory != NULL) {
        for (size_t i = 0; i < parts; i++) {
            make_part(s, &s->scaling[i % 2], part + i, memory + i * floats, kvb_rng_key(s->seed, i, 1, 2, 3));
            if (s->other_channels != 0 && i % 3 == 1) {
                part[i].channels = s->other_channels;
                part[i].stages = s->other_stages;
            }
            make_fine(s, part + i, part + parts + i, memory + parts * floats + i * fine_floats(s),
                      kvb_rng_key(s->seed, i, 1, 2, 3));
        }
        for (uint32_t i = 0; i < s->layers; i++)
            layer[i] = make_layer(s);
        if (s->last_exact) {
            layer[s->layers - 1].kind = KVB_LAYER_UNSUPPORTED;
            layer[s->layers - 1].sliding_window = 0;
            memset(part + (size_t)(s->layers - 1) * s->kv_heads * 2, 0, (size_t)s->kv_heads * 2 * sizeof *part);
        }
        book = build(&(kvb_book_spec){.layers = s->layers, .layer = layer, .part = part, .part_heads = s->kv_heads,
                                      .policy = *policy, .meta_json = "{\"tool\":\"test\"}"});
    }
    free(layer);
    free(part);
    free(memory);
    return book;
}

bool rt_book_on_grid(const kvb_book *book)
{
    bool holds = true;
    for (uint32_t l = 0; l < kvb_book_layers(book); l++) {
        const kvb_layer *layer = kvb_book_layer(book, l);
        for (uint32_t i = 0; i < 2 * layer->kv_heads && layer->kind != KVB_LAYER_UNSUPPORTED; i++) {
            const kvb_codebook *c = kvb_book_codebook(book, l, i / 2, (kvb_kind)(i % 2));
            const kvb_grid grid = kvb_grid_of(layer, (kvb_kind)(i % 2), c->channels, c->stages, c->stage_centroids);
            const size_t floats = (size_t)layer->head_dim * c->stages * c->stage_centroids;
            float *table = kvb_alloc_array(floats, sizeof *table), *step = kvb_alloc_array(layer->head_dim, sizeof *step);
            if (table == NULL || step == NULL)
                abort();
            kvb_half_to_floats(table, c->table, floats);
            kvb_grid_steps(&grid, table, step);
            holds = holds && kvb_grid_holds(&grid, table, step);
            free(table);
            free(step);
        }
    }
    return holds;
}

bool rt_rows_make(rt_rows *rows, const kvb_layer *l, uint32_t tokens, uint64_t key)
{
    const size_t dim = l->head_dim, kv = (size_t)l->kv_heads * tokens * dim, qs = (size_t)l->heads * tokens * dim;
    double *turned = malloc(dim * sizeof *turned);
    *rows = (rt_rows){.tokens = tokens, .q = malloc(qs * sizeof(float)), .k_pre = malloc(kv * sizeof(float)),
                      .k = malloc(kv * sizeof(float)), .v = malloc(kv * sizeof(float))};
    bool good = turned != NULL && rows->q != NULL && rows->k_pre != NULL && rows->k != NULL && rows->v != NULL;
    if (good) {
        rt_normal(rows->q, qs, key);
        rt_normal(rows->k_pre, kv, key + 1);
        rt_normal(rows->v, kv, key + 2);
        for (size_t row = 0; row < kv / dim; row++) {
            rt_rotate(l, (double)(row % tokens), rows->k_pre + row * dim, turned);
            for (size_t c = 0; c < dim; c++)
                rows->k[row * dim + c] = (float)turned[c];
        }
    }
    free(turned);
    return good;
}

void rt_rows_free(rt_rows *rows)
{
    free(rows->q);
    free(rows->k_pre);
    free(rows->k);
    free(rows->v);
}

void rt_rows_take(const float *x, uint32_t heads, uint32_t tokens, uint32_t head_dim, uint32_t t, float *out)
{
    for (uint32_t h = 0; h < heads; h++)
        memcpy(out + (size_t)h * head_dim, x + ((size_t)h * tokens + t) * head_dim, head_dim * sizeof *out);
}

void rt_attend(const kvb_layer *layer, const float *q, const double *keys, const float *values, uint32_t count,
               double *out, double *probs)
{
    const uint32_t dim = layer->head_dim;
    double most = -INFINITY, sum = 0.0;
    uint32_t low = layer->sliding_window != 0 && count > layer->sliding_window ? count - layer->sliding_window : 0;
    for (uint32_t j = low; j < count; j++) {
        probs[j] = 0.0;
        for (uint32_t c = 0; c < dim; c++)
            probs[j] += (double)q[c] * keys[(size_t)j * dim + c] * layer->attention_scale;
        most = probs[j] > most ? probs[j] : most;
    }
    for (uint32_t j = 0; j < count; j++)
        sum += probs[j] = j < low ? 0.0 : exp(probs[j] - most);
    for (uint32_t c = 0; c < dim; c++)
        out[c] = 0.0;
    for (uint32_t j = 0; j < count; j++) {
        probs[j] /= sum;
        for (uint32_t c = 0; c < dim; c++)
            out[c] += probs[j] * (double)values[(size_t)j * dim + c];
    }
}

kvb_status rt_run_cache(kvb_cache *cache, const kvb_layer *g, uint32_t layer, const rt_rows *rows, float *out,
                        kvb_error *err)
{
    const size_t kv = (size_t)g->kv_heads * g->head_dim, qs = (size_t)g->heads * g->head_dim;
    float *memory = malloc((2 * kv + 2 * qs) * sizeof *memory);
    float *key = memory, *value = key + kv, *q = value + kv, *o = q + qs;
    kvb_status status = memory != NULL ? KVB_OK : KVB_E_MEMORY;
    for (uint32_t t = 0; status == KVB_OK && t < rows->tokens; t++) {
        rt_rows_take(rows->k_pre, g->kv_heads, rows->tokens, g->head_dim, t, key);
        rt_rows_take(rows->v, g->kv_heads, rows->tokens, g->head_dim, t, value);
        rt_rows_take(rows->q, g->heads, rows->tokens, g->head_dim, t, q);
        status = kvb_cache_append(cache, layer, key, value, err);
        if (status == KVB_OK)
            status = kvb_cache_attend(cache, layer, q, o, err);
        for (uint32_t h = 0; h < g->heads; h++)
            memcpy(out + ((size_t)h * rows->tokens + t) * g->head_dim, o + (size_t)h * g->head_dim,
                   g->head_dim * sizeof *out);
    }
    free(memory);
    return status;
}
