/* Attention of the newest token over everything the cache holds. */
#include <string.h>

#include "format/base/fail.h"
#include "runtime/cache_store.h"

static void attend_tiles(kvb_cache *cache, uint32_t layer, uint32_t g)
{
    kvb_cache_layer *l = cache->layer + layer;
    const uint32_t dim = l->geometry.head_dim;
    for (uint32_t first = kvb_step_first_tile(&l->step); first < l->length; first += KVB_ATTN_COLS) {
        uint32_t cols = l->length - first < KVB_ATTN_COLS ? l->length - first : KVB_ATTN_COLS;
        kvb_store_load(cache, layer, g, first, cols, cache->keys, cache->values);
        kvb_transpose(cache->keys, dim, cols, dim, cache->keys_t, KVB_ATTN_COLS);
        kvb_step_tile(&l->step, first, cols, cache->keys_t, cache->values);
    }
    kvb_step_end(&l->step);
}

/* Stretches of the window that are contiguous in the ring. */
static void add_window_scores(kvb_cache *cache, kvb_cache_layer *l, kvb_cache_head *head)
{
    for (uint32_t p = l->step.recent_first, many; p < l->length; p += many) {
        uint32_t at = p % head->window_room;
        many = l->length - p < KVB_ATTN_COLS ? l->length - p : KVB_ATTN_COLS;
        many = many < head->window_room - at ? many : head->window_room - at;
        kvb_row_load(&head->form, KVB_VALUE, head->window[KVB_VALUE] + at * kvb_row_bytes(&head->form, KVB_VALUE), many,
                     cache->values);
        kvb_step_add_scores(&l->step, p, many, cache->values, head->score + at);
    }
}

static void attend_head(kvb_cache *cache, uint32_t layer, uint32_t g, uint32_t recent_first, const float *q, float *out)
{
    kvb_cache_layer *l = cache->layer + layer;
    const size_t values = (size_t)l->step.rows * l->geometry.head_dim;
    memcpy(l->step.q, q + g * values, values * sizeof *q);
    kvb_step_begin(&l->step, l->length - 1, recent_first, l->length - recent_first);
    attend_tiles(cache, layer, g);
    memcpy(out + g * values, l->step.out, values * sizeof *out);
    add_window_scores(cache, l, l->head + g);
}

kvb_status kvb_cache_attend(kvb_cache *cache, uint32_t layer, const float *q, float *out, kvb_error *err)
{
    if (cache == NULL || layer >= cache->layers || q == NULL || out == NULL)
        return kvb_fail(err, KVB_E_USAGE, "kvb_cache_attend", "found layer %u of %u%s", layer,
                        cache != NULL ? cache->layers : 0, q == NULL || out == NULL ? ", and a NULL pointer" : "");
    kvb_cache_layer *l = cache->layer + layer;
    const size_t values = (size_t)l->geometry.heads * l->geometry.head_dim, bad = kvb_first_bad_value(q, values);
    if (l->length == 0)
        return kvb_fail(err, KVB_E_USAGE, "kvb_cache_attend", "layer %u is empty: append its token first", layer);
    if (bad < values)
        return kvb_fail(err, KVB_E_CHECK, "q", "layer %u, position %u, head %zu, channel %zu is %g, expected a finite "
                        "value", layer, l->length - 1, bad / l->geometry.head_dim, bad % l->geometry.head_dim,
                        (double)q[bad]);
    uint32_t recent_first = l->length; /* no token gains anything */
    if (kvb_policy_scores_attention(&l->policy) && l->scored_length != l->length)
        recent_first = kvb_layer_window_first(l, l->length);
    if (!kvb_step_reserve(&l->step, l->length - recent_first))
        return kvb_fail_memory(err, "scores of the window");
    for (uint32_t g = 0; g < l->geometry.kv_heads; g++)
        attend_head(cache, layer, g, recent_first, q, out);
    l->scored_length = l->length;
    return KVB_OK;
}
