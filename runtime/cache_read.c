/* Reading tokens back: which place each lives in, and its key in the frame asked for. */
#include "format/base/fail.h"
#include "runtime/cache_store.h"

/* Where a token lives. */
typedef struct place {
    const kvb_row_form *form; /* of a row; NULL: its codes are at `at` */
    uint8_t *const *rows;     /* by kvb_kind */
    uint32_t at, count;       /* the row, and how many rows of the tokens after it follow it, itself included */
} place;

/* `rank` is the number of anchors before the position. */
static place find_place(const kvb_cache_layer *l, const kvb_cache_head *head, uint32_t position, uint32_t rank)
{
    uint32_t sinks = kvb_layer_sinks(l, l->length);
    if (position < sinks)
        return (place){&l->half, head->sinks, position, sinks - position};
    if (position >= kvb_layer_window_first(l, l->length)) {
        uint32_t at = position % head->window_room, left = l->length - position;
        return (place){&head->form, head->window, at, left < head->window_room - at ? left : head->window_room - at};
    }
    const uint32_t small = kvb_token_pool_find(&head->small, position);
    if (small < head->small.count)
        return (place){&l->half, head->small_rows, small, 1};
    if (rank < head->pool.count && head->pool.position[rank] == position)
        return (place){&head->form, head->anchors, rank, 1};
    return (place){.at = position - sinks - rank};
}

static void load_row(const place *p, kvb_kind kind, uint32_t count, float *x)
{
    kvb_row_load(p->form, kind, p->rows[kind] + p->at * kvb_row_bytes(p->form, kind), count, x);
}

/* The first position after a coded token that is not read from codes; `rank` anchors lie before that token. */
static uint32_t end_of_codes(const kvb_cache_layer *l, const kvb_cache_head *head, uint32_t position, uint32_t rank)
{
    uint32_t end = kvb_layer_window_first(l, l->length);
    if (rank < head->pool.count && head->pool.position[rank] < end)
        end = head->pool.position[rank];
    for (uint32_t i = 0; i < head->small.count; i++)
        if (head->small.position[i] > position && head->small.position[i] < end)
            end = head->small.position[i];
    return end;
}

static void load_rows(const kvb_cache_layer *l, const kvb_rope_table *rope, const place *p, uint32_t position,
                      uint32_t count, float *keys, float *values)
{
    load_row(p, KVB_KEY, count, keys);
    load_row(p, KVB_VALUE, count, values);
    for (uint32_t i = 0; i < count; i++)
        kvb_row_key_finish(p->form, &l->geometry, rope, position + i, keys + (size_t)i * l->geometry.head_dim);
}

static void load_coded(const kvb_cache_layer *l, const kvb_rope_table *rope, const kvb_cache_head *head, uint32_t slot,
                       uint32_t position, uint32_t count, float *keys, float *values)
{
    const uint32_t dim = l->geometry.head_dim;
    kvb_codec *const *codec = head->codec;
    kvb_codec_decode_packed(codec[KVB_KEY], head->codes[KVB_KEY], slot, count, keys);
    kvb_codec_decode_packed(codec[KVB_VALUE], head->codes[KVB_VALUE], slot, count, values);
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
    uint32_t rank = kvb_pool_rank(&head->pool, first);
    for (uint32_t p = first, many; p < first + count; p += many) {
        const place at = find_place(l, head, p, rank);
        float *key = keys + (size_t)(p - first) * dim, *value = values + (size_t)(p - first) * dim;
        many = at.form != NULL ? at.count : end_of_codes(l, head, p, rank) - p;
        if (many > first + count - p)
            many = first + count - p;
        if (at.form == NULL) {
            load_coded(l, rope, head, at.at, p, many, key, value);
            continue;
        }
        load_rows(l, rope, &at, p, many, key, value);
        rank += rank < head->pool.count && head->pool.position[rank] == p;
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
    if (position >= l->length || key == NULL || value == NULL)
        return kvb_fail(err, KVB_E_USAGE, "kvb_cache_read", "found position %llu%s, layer %u has %u tokens",
                        (unsigned long long)position, key == NULL || value == NULL ? " and a NULL pointer" : "", layer,
                        l->length);
    const uint32_t p = (uint32_t)position;
    const place at = find_place(l, h, p, kvb_pool_rank(&h->pool, p));
    if (exact != NULL)
        *exact = at.form != NULL;
    if (at.form != NULL) {
        load_row(&at, KVB_KEY, 1, key);
        load_row(&at, KVB_VALUE, 1, value);
        kvb_row_key_to_start(at.form, &l->geometry, cache->rope + l->rope, p, key);
        return KVB_OK;
    }
    for (int kind = 0; kind < 2; kind++)
        kvb_codec_decode_packed(h->codec[kind], h->codes[kind], at.at, 1, kind == KVB_KEY ? key : value);
    kvb_frame_leave(&l->geometry, cache->rope + l->rope, p, key);
    return KVB_OK;
}
