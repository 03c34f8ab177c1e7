/* Reading tokens back: which place each lives in, and its key in the frame asked for. */
#include "format/base/fail.h"
#include "format/base/half.h"
#include "runtime/cache_store.h"
#include "runtime/rope_frame.h"

/* The row of an exact token, or NULL where it is coded; then *slot is the place of its codes. `rank` is the number of
 * anchors before it. */
static const uint16_t *find_exact(const kvb_cache_layer *l, const kvb_cache_head *head, uint32_t position,
                                  uint32_t rank, uint32_t *slot)
{
    const size_t values = (size_t)2 * l->geometry.head_dim;
    uint32_t sinks = kvb_layer_sinks(l, l->length);
    if (position < sinks)
        return head->sinks + position * values;
    if (position >= kvb_layer_window_first(l, l->length))
        return head->window + position % head->window_room * values;
    if (rank < head->pool.count && head->pool.position[rank] == position)
        return head->anchors + rank * values;
    *slot = position - sinks - rank;
    return NULL;
}

/* The first position after a coded token that is not coded; `rank` anchors lie before that token. */
static uint32_t end_of_codes(const kvb_cache_layer *l, const kvb_cache_head *head, uint32_t rank)
{
    uint32_t end = kvb_layer_window_first(l, l->length);
    if (rank < head->pool.count && head->pool.position[rank] < end)
        end = head->pool.position[rank];
    return end;
}

static void load_exact(const kvb_cache_layer *l, const kvb_rope_table *rope, const uint16_t *row, uint32_t position,
                       float *key, float *value)
{
    const uint32_t dim = l->geometry.head_dim;
    kvb_half_to_floats(key, row, dim);
    kvb_half_to_floats(value, row + dim, dim);
    kvb_rope_rotate(rope, position, dim, key, key);
}

static void load_coded(const kvb_cache_layer *l, const kvb_rope_table *rope, const kvb_cache_head *head, uint32_t slot,
                       uint32_t position, uint32_t count, float *keys, float *values)
{
    const uint32_t dim = l->geometry.head_dim;
    kvb_codec *const *codec = head->codec;
    kvb_codec_decode_packed(codec[KVB_KEY], head->codes[KVB_KEY] + slot * codec[KVB_KEY]->packed_bytes, count, keys);
    kvb_codec_decode_packed(codec[KVB_VALUE], head->codes[KVB_VALUE] + slot * codec[KVB_VALUE]->packed_bytes, count,
                            values);
    for (uint32_t i = 0; i < count; i++)
        kvb_frame_finish(&l->geometry, rope, position + i, keys + (size_t)i * dim);
}

void kvb_store_load(kvb_cache *cache, uint32_t layer, uint32_t g, uint32_t first, uint32_t count, float *keys,
                    float *values)
{
    const kvb_cache_layer *l = cache->layer + layer;
    const kvb_cache_head *head = l->head + g;
    const kvb_rope_table *rope = cache->rope + l->rope;
    const uint32_t dim = l->geometry.head_dim;
    uint32_t rank = kvb_pool_rank(&head->pool, first), slot = 0;
    for (uint32_t p = first, many; p < first + count; p += many) {
        const uint16_t *row = find_exact(l, head, p, rank, &slot);
        float *key = keys + (size_t)(p - first) * dim, *value = values + (size_t)(p - first) * dim;
        many = 1;
        if (row != NULL) {
            load_exact(l, rope, row, p, key, value);
            rank += rank < head->pool.count && head->pool.position[rank] == p;
            continue;
        }
        many = end_of_codes(l, head, rank) - p;
        if (many > first + count - p)
            many = first + count - p;
        load_coded(l, rope, head, slot, p, many, key, value);
    }
}

kvb_status kvb_cache_read(const kvb_cache *cache, uint32_t layer, uint32_t head, uint64_t position, float *key,
                          float *value, int *exact, kvb_error *err)
{
    if (cache == NULL || layer >= cache->layers || head >= cache->layer[layer].geometry.kv_heads)
        return kvb_fail(err, KVB_E_USAGE, "kvb_cache_read", "found layer %u, KV head %u: outside the cache", layer,
                        head);
    const kvb_cache_layer *l = cache->layer + layer;
    const kvb_cache_head *h = l->head + head;
    const uint32_t dim = l->geometry.head_dim;
    if (position >= l->length || key == NULL || value == NULL)
        return kvb_fail(err, KVB_E_USAGE, "kvb_cache_read", "found position %llu%s, layer %u has %u tokens",
                        (unsigned long long)position, key == NULL || value == NULL ? " and a NULL pointer" : "", layer,
                        l->length);
    uint32_t slot = 0, at = (uint32_t)position;
    const uint16_t *row = find_exact(l, h, at, kvb_pool_rank(&h->pool, at), &slot);
    if (exact != NULL)
        *exact = row != NULL;
    if (row != NULL) {
        kvb_half_to_floats(key, row, dim);
        kvb_half_to_floats(value, row + dim, dim);
        return KVB_OK;
    }
    for (int kind = 0; kind < 2; kind++)
        kvb_codec_decode_packed(h->codec[kind], h->codes[kind] + slot * h->codec[kind]->packed_bytes, 1,
                                kind == KVB_KEY ? key : value);
    kvb_frame_leave(&l->geometry, cache->rope + l->rope, at, key);
    return KVB_OK;
}
