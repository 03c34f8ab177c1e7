/* What a cache holds of a saved prompt: the sizes of its rows, and the rows themselves, which saving and restoring pass over in
 * one order. */
#include <string.h>

#include "format/base/fail.h"
#include "runtime/saved_cache.h"

static const kvb_policy everything_exact = {.anchor_fraction = 0.0, .window = UINT32_MAX};

kvb_policy kvb_saved_policy_of(const kvb_cache *cache)
{
    for (uint32_t i = 0; i < cache->layers; i++)
        if (cache->layer[i].has_codes)
            return cache->layer[i].policy;
    return everything_exact;
}

bool kvb_saved_same_policy(const kvb_policy *a, const kvb_policy *b)
{
    return memcmp(&a->anchor_fraction, &b->anchor_fraction, sizeof a->anchor_fraction) == 0 && a->score == b->score &&
           a->window == b->window && a->sinks == b->sinks && a->exact == b->exact;
}

static uint32_t packed_bytes_of(const kvb_codebook *c)
{
    return c != NULL ? (uint32_t)kvb_packed_bytes(c->groups, c->code_bits) : 0;
}

kvb_status kvb_saved_check_codes(const kvb_cache *cache, kvb_error *err)
{
    for (uint32_t i = 0; i < cache->layers; i++)
        for (uint32_t h = 0; cache->layer[i].has_codes && h < 2 * cache->layer[i].geometry.kv_heads; h++)
            if (kvb_book_codebook(cache->book, i, h / 2, (kvb_kind)(h % 2))->scaling != NULL)
                return kvb_fail(err, KVB_E_USAGE, "cache", "layer %u codes numbers one by one, with scales of their own, which a file of "
                                "caches cannot hold yet: use a book of codebooks", i);
    return KVB_OK;
}

kvb_saved_rows kvb_saved_rows_of(const kvb_cache *cache, uint32_t layer, uint32_t g)
{
    const kvb_cache_layer *l = cache->layer + layer;
    kvb_saved_rows rows = {{0}, {0}};
    for (int kind = 0; kind < 2; kind++) {
        rows.kept[kind] = l->geometry.head_dim * (uint32_t)sizeof(uint16_t);
        if (!l->has_codes)
            continue;
        rows.code[kind] = packed_bytes_of(kvb_book_codebook(cache->book, layer, g, (kvb_kind)kind));
        if (l->policy.exact == KVB_EXACT_FINE)
            rows.kept[kind] = packed_bytes_of(kvb_book_fine(cache->book, layer, g, (kvb_kind)kind));
    }
    return rows;
}

/* --- the rows --- */

static void pass(kvb_saved_stream *s, void *memory, size_t size)
{
    if (size == 0)
        return;
    if (s->to != NULL) {
        memcpy(s->to, memory, size);
        s->to += size;
    } else {
        memcpy(memory, s->from, size);
        s->from += size;
    }
}

/* The window is a ring: position p is row p % window_room. */
static void pass_window(kvb_saved_stream *s, const kvb_cache_head *head, void *ring, size_t row, uint32_t first, uint32_t count)
{
    for (uint32_t p = first; p < first + count; p++)
        pass(s, (uint8_t *)ring + p % head->window_room * row, row);
}

static void pass_kept(kvb_saved_stream *s, const kvb_cache_layer *l, const kvb_cache_head *head, const kvb_saved_counts *n,
                      uint32_t tokens)
{
    for (int kind = 0; kind < 2; kind++)
        pass(s, head->sinks[kind], n->sinks * kvb_row_bytes(&l->half, (kvb_kind)kind));
    for (int kind = 0; kind < 2; kind++)
        pass_window(s, head, head->window[kind], kvb_row_bytes(&head->form, (kvb_kind)kind), tokens - n->window, n->window);
    for (int kind = 0; kind < 2; kind++)
        pass(s, head->anchors[kind], n->anchors * kvb_row_bytes(&head->form, (kvb_kind)kind));
}

static void pass_head(kvb_saved_stream *s, const kvb_cache_layer *l, const kvb_cache_head *head, kvb_saved_section section,
                      const kvb_saved_counts *n, uint32_t tokens)
{
    switch (section) {
    case KVB_SAVED_KEPT: pass_kept(s, l, head, n, tokens); break;
    case KVB_SAVED_CODE:
        for (int kind = 0; n->coded != 0 && kind < 2; kind++)
            pass(s, head->codes[kind], n->coded * head->codec[kind]->packed_bytes);
        break;
    case KVB_SAVED_ANCH:
        pass(s, head->pool.position, n->anchors * sizeof(uint32_t));
        pass(s, head->pool.score, n->anchors * sizeof(float));
        break;
    case KVB_SAVED_GAIN: pass_window(s, head, head->score, sizeof(double), tokens - n->window, n->window); break;
    }
}

void kvb_saved_pass(const kvb_cache_layer *l, kvb_saved_section section, const kvb_saved_counts *n, uint32_t tokens,
                    kvb_saved_stream *s)
{
    for (uint32_t g = 0; g < l->geometry.kv_heads; g++)
        pass_head(s, l, l->head + g, section, n, tokens);
}
