/* Making, filling and unmaking a cache. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "runtime/cache_store.h"

enum { MAX_HEAD_DIM = 1024, MAX_HEADS = 1024, MAX_LAYERS = 1024 };

static const kvb_policy everything_exact = {.anchor_fraction = 0.0, .window = UINT32_MAX};

void kvb_cache_options_init(kvb_cache_options *options, const kvb_book *book)
{
    *options = (kvb_cache_options){.struct_size = sizeof *options};
    options->policy = book != NULL ? kvb_book_policy(book) : everything_exact;
}

/* Layers of one rotation share a table: at long contexts a table for each would outweigh the codes. */
static void assign_rope(kvb_cache *cache, uint32_t layer)
{
    for (uint32_t i = 0; i < layer; i++)
        if (kvb_rope_same(&cache->layer[i].geometry, &cache->layer[layer].geometry)) {
            cache->layer[layer].rope = cache->layer[i].rope;
            return;
        }
    cache->layer[layer].rope = cache->ropes++;
}

static kvb_status init_layer(kvb_cache *cache, uint32_t layer, const kvb_layer *geometry, const kvb_policy *policy,
                             kvb_error *err)
{
    kvb_cache_layer *l = cache->layer + layer;
    l->geometry = *geometry;
    l->has_codes = cache->book != NULL && kvb_book_codebook(cache->book, layer, 0, KVB_KEY) != NULL;
    l->policy = l->has_codes ? *policy : everything_exact;
    l->block = l->has_codes ? kvb_layer_block(cache->book, layer) : 1;
    assign_rope(cache, layer);
    l->head = kvb_alloc_zeroed(geometry->kv_heads, sizeof *l->head);
    if (l->head == NULL)
        return kvb_fail_memory(err, "heads of the cache");
    l->half.head_dim = geometry->head_dim;
    for (uint32_t g = 0; g < geometry->kv_heads; g++) {
        l->head[g].pool.fraction = l->policy.anchor_fraction;
        l->head[g].form = l->half;
    }
    return kvb_step_create(&l->step, geometry, &l->policy, err);
}

static kvb_status create_scratch(kvb_cache *cache, kvb_error *err)
{
    size_t dim = 1;
    for (uint32_t i = 0; i < cache->layers; i++)
        if (cache->layer[i].geometry.head_dim > dim)
            dim = cache->layer[i].geometry.head_dim;
    cache->keys = kvb_alloc_array(KVB_ATTN_COLS * dim, sizeof(float));
    cache->values = kvb_alloc_array(KVB_ATTN_COLS * dim, sizeof(float));
    cache->keys_t = kvb_alloc_array(KVB_ATTN_COLS * dim, sizeof(float));
    if (cache->keys == NULL || cache->values == NULL || cache->keys_t == NULL)
        return kvb_fail_memory(err, "scratch of the cache");
    return KVB_OK;
}

/* A cache over `layers` layers; geometry comes from the book, or from `exact` where there is none. */
static kvb_status create(const kvb_book *book, const kvb_layer *exact, uint32_t layers,
                         const kvb_cache_options *options, kvb_cache **cache, kvb_error *err)
{
    kvb_status status = KVB_OK;
    kvb_cache *c = calloc(1, sizeof *c);
    if (c == NULL)
        return kvb_fail_memory(err, "cache");
    c->book = book;
    c->seed = options->seed;
    c->reserve = options->reserve;
    c->layer = kvb_alloc_zeroed(layers, sizeof *c->layer);
    c->rope = kvb_alloc_zeroed(layers, sizeof *c->rope);
    if (c->layer == NULL || c->rope == NULL) {
        status = kvb_fail_memory(err, "layers of the cache");
        goto out;
    }
    c->layers = layers;
    for (uint32_t i = 0; status == KVB_OK && i < layers; i++)
        status = init_layer(c, i, exact != NULL ? exact + i : kvb_book_layer(book, i), &options->policy, err);
    if (status == KVB_OK)
        status = create_scratch(c, err);
out:
    if (status != KVB_OK) {
        kvb_cache_destroy(c);
        c = NULL;
    }
    *cache = c;
    return status;
}

kvb_status kvb_cache_create(const kvb_book *book, const kvb_cache_options *options, kvb_cache **cache, kvb_error *err)
{
    if (cache == NULL)
        return kvb_fail(err, KVB_E_USAGE, "cache", "found NULL, expected where to put the cache");
    *cache = NULL;
    if (book == NULL)
        return kvb_fail(err, KVB_E_USAGE, "book", "found NULL: kvb_cache_create_exact() makes a cache without a book");
    if (options == NULL || options->struct_size < sizeof *options)
        return kvb_fail(err, KVB_E_USAGE, "options", "found %u bytes, expected at least %zu: call "
                        "kvb_cache_options_init() first", options != NULL ? options->struct_size : 0, sizeof *options);
    kvb_status status = kvb_policy_check(book, &options->policy, err);
    return status != KVB_OK ? status : create(book, NULL, kvb_book_layers(book), options, cache, err);
}

static kvb_status check_geometry(const kvb_layer *layer, uint32_t index, kvb_error *err)
{
    char where[64];
    snprintf(where, sizeof where, "layer %u", index);
    if (layer->kv_heads == 0 || layer->heads == 0 || layer->heads > MAX_HEADS || layer->heads % layer->kv_heads != 0)
        return kvb_fail(err, KVB_E_USAGE, where, "found %u query heads and %u KV heads, expected 1 .. %d query heads, "
                        "a multiple of the KV heads", layer->heads, layer->kv_heads, MAX_HEADS);
    if (layer->head_dim == 0 || layer->head_dim > MAX_HEAD_DIM)
        return kvb_fail(err, KVB_E_USAGE, where, "found head size %u, expected 1 .. %d", layer->head_dim, MAX_HEAD_DIM);
    if (layer->rope_style != KVB_ROPE_NONE && (layer->rope_dims == 0 || layer->rope_dims > layer->head_dim ||
                                               layer->rope_dims % 2 != 0 || !(layer->rope_base > 0.0)))
        return kvb_fail(err, KVB_E_USAGE, where, "found %u rotary channels of %u at base %g, expected an even number "
                        "of them and a positive base", layer->rope_dims, layer->head_dim, layer->rope_base);
    if (!isfinite(layer->attention_scale) || (layer->kind == KVB_LAYER_SLIDING && layer->sliding_window == 0))
        return kvb_fail(err, KVB_E_USAGE, where, "found attention scale %g and sliding window %u, expected a finite "
                        "scale and a window of at least 1", layer->attention_scale, layer->sliding_window);
    return KVB_OK;
}

kvb_status kvb_cache_create_exact(const kvb_layer *layer, uint32_t layers, kvb_cache **cache, kvb_error *err)
{
    if (cache == NULL)
        return kvb_fail(err, KVB_E_USAGE, "cache", "found NULL, expected where to put the cache");
    *cache = NULL;
    if (layer == NULL || layers == 0 || layers > MAX_LAYERS)
        return kvb_fail(err, KVB_E_USAGE, "layers", "found %u, expected 1 .. %d and their geometry",
                        layer != NULL ? layers : 0, MAX_LAYERS);
    kvb_cache_options options;
    kvb_status status = KVB_OK;
    kvb_cache_options_init(&options, NULL);
    for (uint32_t i = 0; status == KVB_OK && i < layers; i++)
        status = check_geometry(layer + i, i, err);
    return status != KVB_OK ? status : create(NULL, layer, layers, &options, cache, err);
}

void kvb_cache_destroy(kvb_cache *cache)
{
    if (cache == NULL)
        return;
    for (uint32_t i = 0; i < cache->layers; i++) {
        kvb_cache_layer *l = cache->layer + i;
        for (uint32_t g = 0; l->head != NULL && g < l->geometry.kv_heads; g++)
            kvb_store_free(l->head + g);
        free(l->head);
        kvb_step_free(&l->step);
    }
    for (uint32_t i = 0; i < cache->ropes; i++)
        kvb_rope_table_free(cache->rope + i);
    free(cache->layer);
    free(cache->rope);
    free(cache->keys);
    free(cache->values);
    free(cache->keys_t);
    free(cache);
}

uint64_t kvb_cache_length(const kvb_cache *cache, uint32_t layer)
{
    return cache != NULL && layer < cache->layers ? cache->layer[layer].length : 0;
}

static kvb_status check_finite(const kvb_cache_layer *l, uint32_t layer, const char *what, const float *x,
                               kvb_error *err)
{
    const uint32_t dim = l->geometry.head_dim;
    size_t values = (size_t)l->geometry.kv_heads * dim, bad = kvb_first_bad_value(x, values);
    if (bad == values)
        return KVB_OK;
    return kvb_fail(err, KVB_E_CHECK, what, "layer %u, position %u, KV head %zu, channel %zu is %g: append finite "
                    "values only", layer, l->length, bad / dim, bad % dim, (double)x[bad]);
}

kvb_status kvb_cache_append(kvb_cache *cache, uint32_t layer, const float *keys, const float *values, kvb_error *err)
{
    if (cache == NULL || keys == NULL || values == NULL || layer >= cache->layers)
        return kvb_fail(err, KVB_E_USAGE, "kvb_cache_append", "found layer %u of %u%s", layer,
                        cache != NULL ? cache->layers : 0,
                        cache == NULL || keys == NULL || values == NULL ? ", and a NULL pointer" : "");
    kvb_cache_layer *l = cache->layer + layer;
    if (l->length >= UINT32_MAX - 1)
        return kvb_fail(err, KVB_E_USAGE, "kvb_cache_append", "layer %u is full at %u tokens", layer, l->length);
    kvb_status status = check_finite(l, layer, "keys", keys, err);
    if (status == KVB_OK)
        status = check_finite(l, layer, "values", values, err);
    if (status == KVB_OK)
        status = kvb_store_reserve(cache, layer, err);
    if (status == KVB_OK)
        kvb_store_append(cache, layer, keys, values);
    return status;
}
