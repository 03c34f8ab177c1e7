/* Where tokens live: making room, appending, and ageing out of the window into anchors or codes. */
#include "runtime/cache_store.h"

#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"

uint32_t kvb_layer_sinks(const kvb_cache_layer *layer, uint32_t length)
{
    return length < layer->policy.sinks ? length : layer->policy.sinks;
}

uint32_t kvb_layer_window_first(const kvb_cache_layer *layer, uint32_t length)
{
    uint32_t first = length > layer->policy.window ? length - layer->policy.window : 0;
    uint32_t sinks = kvb_layer_sinks(layer, length);
    return first > sinks ? sinks + (first - sinks) / layer->block * layer->block : sinks;
}

void kvb_store_free(kvb_cache_head *head)
{
    free(head->score);
    free(head->waiting);
    kvb_pool_free(&head->pool);
    kvb_token_pool_free(&head->small);
    kvb_row_form_free(&head->form);
    for (int kind = 0; kind < 2; kind++) {
        free(head->sinks[kind]);
        free(head->window[kind]);
        free(head->anchors[kind]);
        free(head->small_rows[kind]);
        free(head->codes[kind]);
        kvb_codec_destroy(head->codec[kind]);
    }
}

static uint32_t larger_room(uint32_t room, uint32_t least, uint32_t reserve, uint32_t most)
{
    uint64_t want = (uint64_t)room * 2;
    want = want < 16 ? 16 : want;
    want = want < reserve ? reserve : want;
    want = want < least ? least : want;
    return want < most ? (uint32_t)want : most;
}

static bool grow(void **rows, uint32_t room, size_t row_bytes)
{
    size_t bytes;
    if (__builtin_mul_overflow((size_t)room, row_bytes, &bytes))
        return false;
    void *more = realloc(*rows, bytes != 0 ? bytes : 1);
    if (more != NULL)
        *rows = more;
    return more != NULL;
}

/* Rows of keys and of values. A failure in between leaves more room than is told, which does no harm. */
static bool grow_rows(const kvb_row_form *form, uint8_t *rows[2], uint32_t room)
{
    return grow((void **)&rows[KVB_KEY], room, kvb_row_bytes(form, KVB_KEY)) &&
           grow((void **)&rows[KVB_VALUE], room, kvb_row_bytes(form, KVB_VALUE));
}

/* A ring of another size keeps position p at row p % room. */
static bool grow_window(const kvb_cache_layer *layer, kvb_cache_head *head, uint32_t room)
{
    uint8_t *window[2] = {kvb_alloc_array(room, kvb_row_bytes(&head->form, KVB_KEY)),
                          kvb_alloc_array(room, kvb_row_bytes(&head->form, KVB_VALUE))};
    double *score = kvb_alloc_array(room, sizeof *score);
    if (window[0] == NULL || window[1] == NULL || score == NULL) {
        free(window[0]);
        free(window[1]);
        free(score);
        return false;
    }
    const uint32_t first = kvb_layer_window_first(layer, layer->length);
    for (uint32_t p = first; p < layer->length; p++)
        score[p % room] = head->score[p % head->window_room];
    for (int kind = 0; kind < 2; kind++) {
        const size_t bytes = kvb_row_bytes(&head->form, (kvb_kind)kind);
        for (uint32_t p = first; p < layer->length; p++)
            memcpy(window[kind] + p % room * bytes, head->window[kind] + p % head->window_room * bytes, bytes);
        free(head->window[kind]);
        head->window[kind] = window[kind];
    }
    free(head->score);
    head->score = score;
    head->window_room = room;
    return true;
}

static bool reserve_small(const kvb_cache_layer *layer, kvb_cache_head *head)
{
    const kvb_codebook *keys = head->codec[KVB_KEY]->codebook;
    if (head->small.places > 0 || kvb_token_pool_room(keys) == 0)
        return true;
    return grow_rows(&layer->half, head->small_rows, kvb_token_pool_room(keys)) && kvb_token_pool_create(keys, &head->small);
}

static kvb_status reserve_codecs(const kvb_cache *cache, uint32_t layer, uint32_t g, kvb_error *err)
{
    kvb_cache_layer *l = cache->layer + layer;
    for (int kind = 0; kind < 2; kind++) {
        if (l->head[g].codec[kind] != NULL)
            continue;
        const kvb_codebook *codebook = kvb_book_codebook(cache->book, layer, g, (kvb_kind)kind);
        kvb_status status =
            kvb_codec_create(codebook, l->geometry.head_dim, true, &l->head[g].codec[kind], err);
        if (status != KVB_OK)
            return status;
    }
    if (l->block > 1 && l->head[g].waiting == NULL) {
        l->head[g].waiting = kvb_alloc_array((size_t)l->block * l->geometry.head_dim, sizeof(float));
        if (l->head[g].waiting == NULL)
            return kvb_fail_memory(err, "a block of tokens");
    }
    return reserve_small(l, l->head + g) ? KVB_OK : kvb_fail_memory(err, "pools of small tokens");
}

/* Room for what a token that leaves the window needs: one more anchor, one more row of codes. */
static bool reserve_leaving(const kvb_cache *cache, const kvb_cache_layer *layer, kvb_cache_head *head)
{
    if (layer->policy.anchor_fraction > 0.0 && !kvb_pool_reserve(&head->pool))
        return false;
    if (head->anchor_room < head->pool.room) {
        if (!grow_rows(&head->form, head->anchors, head->pool.room))
            return false;
        head->anchor_room = head->pool.room;
    }
    if (head->coded < head->code_room)
        return true;
    /* Whole blocks: the layer's is a multiple of each codec's. */
    uint32_t room = larger_room(head->code_room / layer->block, head->coded / layer->block + 1, cache->reserve / layer->block,
                                UINT32_MAX / layer->block) * layer->block;
    for (int kind = 0; kind < 2; kind++)
        if (!grow((void **)&head->codes[kind], room / head->codec[kind]->block, head->codec[kind]->packed_bytes))
            return false;
    head->code_room = room;
    return true;
}

/* Position of the first token that leaves the window when the next one comes, or UINT32_MAX; a block of them leaves. */
static uint32_t next_to_leave(const kvb_cache_layer *layer)
{
    const uint32_t now = kvb_layer_window_first(layer, layer->length);
    if (!layer->has_codes || layer->length < layer->policy.sinks ||
        kvb_layer_window_first(layer, layer->length + 1) <= now)
        return UINT32_MAX;
    return now;
}

static bool reserve_exact(const kvb_cache *cache, const kvb_cache_layer *layer, kvb_cache_head *head)
{
    const uint32_t length = layer->length;
    if (length < layer->policy.sinks) {
        if (length < head->sink_room)
            return true;
        uint32_t room = larger_room(head->sink_room, length + 1, 0, layer->policy.sinks);
        if (!grow_rows(&layer->half, head->sinks, room))
            return false;
        head->sink_room = room;
        return true;
    }
    /* A window of no tokens still has one row, through which each token passes, and the rest of a block waits behind it. */
    const uint32_t wait = layer->block - 1, window = layer->policy.window != 0 ? layer->policy.window : 1;
    uint32_t most = window < UINT32_MAX - wait ? window + wait : UINT32_MAX;
    uint32_t need = length + 1 - kvb_layer_window_first(layer, length);
    need = need < most ? need : most;
    if (head->window_room >= (need != 0 ? need : 1))
        return true;
    return grow_window(layer, head, larger_room(head->window_room, need, cache->reserve, most));
}

static kvb_status reserve_form(const kvb_cache *cache, uint32_t layer, kvb_cache_head *head, uint32_t g,
                               kvb_error *err)
{
    if (cache->layer[layer].policy.exact == KVB_EXACT_HALF || head->form.codec[KVB_KEY] != NULL)
        return KVB_OK;
    kvb_row_form form;
    kvb_status status = kvb_row_form_create(cache->book, layer, g, &form, err);
    if (status == KVB_OK)
        head->form = form;
    return status;
}

/* Positions 0 .. length. */
static kvb_status reserve_rope(kvb_cache *cache, const kvb_cache_layer *layer, uint32_t length, kvb_error *err)
{
    kvb_rope_table *table = cache->rope + layer->rope, longer;
    if (length < table->count)
        return KVB_OK;
    uint32_t count = larger_room(table->count, length < 256 ? 256 : length + 1, cache->reserve, UINT32_MAX);
    kvb_status status = kvb_rope_table_create(&longer, &layer->geometry, 0, count, err);
    if (status != KVB_OK)
        return status;
    kvb_rope_table_free(table);
    *table = longer;
    return KVB_OK;
}

kvb_status kvb_store_reserve(kvb_cache *cache, uint32_t layer, kvb_error *err)
{
    kvb_cache_layer *l = cache->layer + layer;
    kvb_status status = reserve_rope(cache, l, l->length, err);
    bool leaving = next_to_leave(l) != UINT32_MAX;
    for (uint32_t g = 0; status == KVB_OK && g < l->geometry.kv_heads; g++) {
        status = reserve_form(cache, layer, l->head + g, g, err);
        if (status == KVB_OK && leaving)
            status = reserve_codecs(cache, layer, g, err);
        if (status == KVB_OK && ((leaving && !reserve_leaving(cache, l, l->head + g)) ||
                                 !reserve_exact(cache, l, l->head + g)))
            status = kvb_fail_memory(err, "a token of the cache");
    }
    return status;
}

static bool make_room(const kvb_cache *cache, const kvb_cache_layer *l, kvb_cache_head *head, uint32_t tokens,
                      uint32_t anchors, uint32_t coded)
{
    const uint32_t sinks = kvb_layer_sinks(l, tokens), window = tokens - kvb_layer_window_first(l, tokens);
    const uint32_t most = l->policy.window != 0 ? l->policy.window : 1;
    if (!grow_rows(&l->half, head->sinks, sinks) || !kvb_pool_make_room(&head->pool, anchors) ||
        !grow_rows(&head->form, head->anchors, head->pool.room))
        return false;
    head->sink_room = sinks;
    head->anchor_room = head->pool.room;
    if (coded > 0 && (!grow((void **)&head->codes[KVB_KEY], coded, head->codec[KVB_KEY]->packed_bytes) ||
                      !grow((void **)&head->codes[KVB_VALUE], coded, head->codec[KVB_VALUE]->packed_bytes)))
        return false;
    head->code_room = coded;
    return grow_window(l, head, larger_room(head->window_room, window != 0 ? window : 1, cache->reserve, most));
}

kvb_status kvb_store_make_room(kvb_cache *cache, uint32_t layer, uint32_t tokens, uint32_t anchors, uint32_t coded,
                               kvb_error *err)
{
    kvb_cache_layer *l = cache->layer + layer;
    kvb_status status = reserve_rope(cache, l, tokens, err);
    for (uint32_t g = 0; status == KVB_OK && g < l->geometry.kv_heads; g++) {
        status = reserve_form(cache, layer, l->head + g, g, err);
        if (status == KVB_OK && anchors + coded > 0)
            status = reserve_codecs(cache, layer, g, err);
        if (status == KVB_OK && !make_room(cache, l, l->head + g, tokens, anchors, coded))
            status = kvb_fail_memory(err, "a saved cache");
    }
    return status;
}

/* Codes of the row at `at` of the window or the anchors go to `slot`; those of later tokens move up. */
static void insert_codes(kvb_cache *cache, uint32_t layer, kvb_cache_head *head, uint8_t *const rows[2], uint32_t at,
                         uint32_t position, uint32_t slot)
{
    const kvb_cache_layer *l = cache->layer + layer;
    const uint32_t dim = l->geometry.head_dim;
    float *x = cache->keys;
    for (int kind = 0; kind < 2; kind++) {
        kvb_codec *codec = head->codec[kind];
        const size_t bytes = codec->packed_bytes;
        kvb_row_load(&head->form, (kvb_kind)kind, rows[kind] + at * kvb_row_bytes(&head->form, (kvb_kind)kind), 1, x);
        if (kind == KVB_KEY)
            kvb_row_key_to_frame(&head->form, &l->geometry, cache->rope + l->rope, position, x);
        uint8_t *to = head->codes[kind] + slot * bytes;
        memmove(to + bytes, to, (head->coded - slot) * bytes);
        kvb_codec_encode_packed(codec, x, dim, 1, to);
    }
    head->coded++;
}

static float leaving_score(kvb_cache *cache, uint32_t layer, uint32_t g, uint32_t position)
{
    const kvb_cache_layer *l = cache->layer + layer;
    const kvb_cache_head *head = l->head + g;
    const uint32_t at = position % head->window_room;
    if (kvb_policy_scores_attention(&l->policy))
        return (float)head->score[at];
    kvb_row_load(&head->form, KVB_KEY, head->window[KVB_KEY] + at * kvb_row_bytes(&head->form, KVB_KEY), 1,
                 cache->keys);
    return kvb_anchor_static_score(l->policy.score, cache->seed, layer, g, position, cache->keys,
                                   l->geometry.head_dim);
}

/* The anchor at `at` of `count` goes, those after it move down. */
static void drop_anchor(kvb_cache_head *head, uint32_t at, uint32_t count)
{
    for (int kind = 0; kind < 2; kind++) {
        const size_t bytes = kvb_row_bytes(&head->form, (kvb_kind)kind);
        uint8_t *lost = head->anchors[kind] + at * bytes;
        memmove(lost, lost + bytes, (count - at - 1) * bytes);
    }
}

/* The rows of a block as they are coded, to `waiting`. */
static void gather_block(kvb_cache *cache, uint32_t layer, kvb_cache_head *head, uint32_t first, kvb_kind kind)
{
    const kvb_cache_layer *l = cache->layer + layer;
    for (uint32_t i = 0; i < l->block; i++) {
        const uint32_t p = first + i;
        float *x = head->waiting + (size_t)i * l->geometry.head_dim;
        kvb_row_load(&head->form, kind, head->window[kind] + p % head->window_room * kvb_row_bytes(&head->form, kind), 1, x);
        if (kind == KVB_KEY)
            kvb_row_key_to_frame(&head->form, &l->geometry, cache->rope + l->rope, p, x);
    }
}

/* Entries `from` and on of the pools of small tokens take their rows along from the window. */
static void take_small(kvb_cache_head *head, uint32_t from)
{
    for (int kind = 0; kind < 2; kind++) {
        const size_t bytes = kvb_row_bytes(&head->form, (kvb_kind)kind);
        for (uint32_t i = from; i < head->small.count; i++)
            memcpy(head->small_rows[kind] + i * bytes, head->window[kind] + head->small.position[i] % head->window_room * bytes, bytes);
    }
}

/* A block of tokens becomes codes, but for those that the pools of small tokens take out of it. */
static void leave_in_block(kvb_cache *cache, uint32_t layer, uint32_t g, uint32_t first)
{
    const kvb_cache_layer *l = cache->layer + layer;
    kvb_cache_head *head = l->head + g;
    const uint32_t dim = l->geometry.head_dim, group = head->codec[KVB_KEY]->block, held = head->small.count;
    for (int kind = 0; kind < 2; kind++) {
        gather_block(cache, layer, head, first, (kvb_kind)kind);
        for (uint32_t i = 0; head->small.places > 0 && i < l->block; i += group) {
            float *rows = head->waiting + (size_t)i * dim;
            if (kind == KVB_KEY)
                kvb_token_pool_offer(&head->small, first + i, group, dim, rows);
            kvb_token_pool_replace(&head->small, first + i, group, dim, rows);
        }
        kvb_codec_encode_packed(head->codec[kind], head->waiting, dim, l->block,
                                head->codes[kind] + kvb_codec_bytes(head->codec[kind], head->coded));
    }
    take_small(head, held);
    head->coded += l->block;
    head->pool.left += l->block;
}

/* The token enters the anchors, and the one that loses its place there becomes codes, or it becomes codes itself. */
static void leave_window(kvb_cache *cache, uint32_t layer, uint32_t g, uint32_t position)
{
    const kvb_cache_layer *l = cache->layer + layer;
    kvb_cache_head *head = l->head + g;
    const uint32_t at = position % head->window_room;
    uint32_t loser, before = head->pool.count;
    uint32_t gone = kvb_pool_offer(&head->pool, position, leaving_score(cache, layer, g, position), &loser);
    if (gone == before) {
        insert_codes(cache, layer, head, head->window, at, position, head->coded);
        return;
    }
    if (gone != KVB_POOL_NONE) {
        insert_codes(cache, layer, head, head->anchors, gone, loser,
                     loser - l->policy.sinks - kvb_pool_rank(&head->pool, loser));
        drop_anchor(head, gone, before);
    }
    for (int kind = 0; kind < 2; kind++) {
        const size_t bytes = kvb_row_bytes(&head->form, (kvb_kind)kind);
        memcpy(head->anchors[kind] + (head->pool.count - 1) * bytes, head->window[kind] + at * bytes, bytes);
    }
}

static void leave(kvb_cache *cache, uint32_t layer, uint32_t g, uint32_t first)
{
    if (cache->layer[layer].block > 1)
        leave_in_block(cache, layer, g, first);
    else
        leave_window(cache, layer, g, first);
}

static void put_token(kvb_cache *cache, const kvb_cache_layer *l, const kvb_row_form *form, uint8_t *const rows[2],
                      uint32_t at, uint32_t position, const float *const x[2])
{
    for (int kind = 0; kind < 2; kind++) {
        memcpy(cache->keys, x[kind], l->geometry.head_dim * sizeof(float));
        kvb_row_store(form, (kvb_kind)kind, &l->geometry, cache->rope + l->rope, position, cache->keys,
                      rows[kind] + at * kvb_row_bytes(form, (kvb_kind)kind));
    }
}

void kvb_store_append(kvb_cache *cache, uint32_t layer, const float *keys, const float *values)
{
    kvb_cache_layer *l = cache->layer + layer;
    const uint32_t dim = l->geometry.head_dim, p = l->length, leaver = next_to_leave(l);
    for (uint32_t g = 0; g < l->geometry.kv_heads; g++) {
        kvb_cache_head *head = l->head + g;
        const float *const x[2] = {keys + (size_t)g * dim, values + (size_t)g * dim};
        const bool now = leaver != UINT32_MAX && l->policy.window == 0; /* the token that comes leaves at once */
        if (leaver != UINT32_MAX && !now)
            leave(cache, layer, g, leaver);
        if (p < l->policy.sinks) {
            put_token(cache, l, &l->half, head->sinks, p, p, x);
            continue;
        }
        put_token(cache, l, &head->form, head->window, p % head->window_room, p, x);
        head->score[p % head->window_room] = 0.0;
        if (now)
            leave(cache, layer, g, leaver);
    }
    l->length++;
}
