/* What a cache holds, in bytes: counted from its structures, or predicted from a policy. */
#include "format/kvb_layout.h"
#include "runtime/cache_store.h"

/* Tokens of one KV head by where they live. */
typedef struct token_counts {
    uint64_t sinks, window, anchors, coded;
} token_counts;

/* An anchor's place in the index is its position and its score; a token of the window carries its score so far. */
enum { INDEX_ANCHOR = sizeof(uint32_t) + sizeof(float), INDEX_WINDOW = sizeof(double) };

/* Tokens that share scales are coded in whole blocks. */
static uint64_t coded_bytes(const kvb_codebook *c, uint32_t head_dim, uint64_t tokens)
{
    return tokens / kvb_codebook_block(c) * kvb_codebook_block_bytes(c, head_dim);
}

/* `row`: bytes of a key and a value in the window or as an anchor. */
static void add_head(kvb_cache_bytes *b, const token_counts *n, uint32_t head_dim, uint64_t row,
                     const kvb_policy *policy, const kvb_codebook *keys, const kvb_codebook *values)
{
    b->sinks += n->sinks * kvb_row_pair_bytes(KVB_EXACT_HALF, head_dim, NULL, NULL);
    b->window += n->window * row;
    b->anchors += n->anchors * row;
    b->index += n->anchors * INDEX_ANCHOR;
    if (kvb_policy_scores_attention(policy))
        b->index += n->window * INDEX_WINDOW;
    if (n->coded > 0) {
        const uint64_t small = kvb_token_pool_room(keys); /* the pools have room for all their tokens from the first block on */
        b->anchors += small * kvb_row_pair_bytes(KVB_EXACT_HALF, head_dim, NULL, NULL);
        b->index += small * INDEX_ANCHOR;
    }
    if (keys != NULL && values != NULL)
        b->codes += coded_bytes(keys, head_dim, n->coded) + coded_bytes(values, head_dim, n->coded);
    b->elements += (n->sinks + n->window + n->anchors + n->coded) * 2 * head_dim;
}

/* Levels, fixed scales, lists of channels and clips. */
static uint64_t scaling_bytes(const kvb_codebook *c)
{
    const kvb_scaling *s = c->scaling;
    const uint64_t halves = (c->table != NULL ? c->centroids : 0) + (s->fixed != NULL ? 2 * c->groups : 0) +
                            (s->lists > 0 ? c->groups + s->lists : 0);
    return halves * sizeof(uint16_t) + (s->clips != NULL ? kvb_scaling_groups(s, c->groups) * sizeof(float) : 0);
}

static uint64_t table_bytes(const kvb_codebook *c)
{
    if (c != NULL && c->scaling != NULL)
        return scaling_bytes(c);
    return c != NULL ? (uint64_t)c->groups * c->channels * c->stages * c->stage_centroids * sizeof(uint16_t) : 0;
}

static uint64_t codebook_bytes(const kvb_codebook *c)
{
    if (c == NULL)
        return 0;
    const uint64_t dim = (uint64_t)c->groups * c->channels, matrix = dim * dim * sizeof(float);
    return table_bytes(c) + (c->mean != NULL ? dim * sizeof(float) : 0) +
           (c->forward != NULL ? matrix : 0) + (c->inverse != NULL ? matrix : 0);
}

/* Fine codebooks share the means and transforms of the others, and count where a cache uses them. */
static uint64_t book_bytes(const kvb_book *book, bool fine)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; book != NULL && i < kvb_book_layers(book); i++)
        for (uint32_t g = 0; g < kvb_book_layer(book, i)->kv_heads; g++)
            sum += codebook_bytes(kvb_book_codebook(book, i, g, KVB_KEY)) +
                   codebook_bytes(kvb_book_codebook(book, i, g, KVB_VALUE)) +
                   (fine ? table_bytes(kvb_book_fine(book, i, g, KVB_KEY)) +
                               table_bytes(kvb_book_fine(book, i, g, KVB_VALUE))
                         : 0);
    return sum;
}

static void finish(kvb_cache_bytes *b, const kvb_book *book, bool fine)
{
    b->codebooks = book_bytes(book, fine);
    b->total = b->codes + b->anchors + b->window + b->sinks + b->index + b->codebooks;
}

kvb_cache_bytes kvb_cache_count_bytes(const kvb_cache *cache)
{
    kvb_cache_bytes b = {0};
    bool fine = false;
    for (uint32_t i = 0; cache != NULL && i < cache->layers; i++) {
        const kvb_cache_layer *l = cache->layer + i;
        fine |= l->policy.exact == KVB_EXACT_FINE;
        for (uint32_t g = 0; g < l->geometry.kv_heads; g++) {
            const kvb_cache_head *h = l->head + g;
            token_counts n = {.anchors = h->pool.count, .coded = h->coded};
            n.sinks = kvb_layer_sinks(l, l->length);
            n.window = l->length - kvb_layer_window_first(l, l->length);
            add_head(&b, &n, l->geometry.head_dim,
                     kvb_row_bytes(&h->form, KVB_KEY) + kvb_row_bytes(&h->form, KVB_VALUE), &l->policy,
                     h->codec[KVB_KEY] ? h->codec[KVB_KEY]->codebook : NULL,
                     h->codec[KVB_VALUE] ? h->codec[KVB_VALUE]->codebook : NULL);
        }
    }
    if (cache != NULL)
        finish(&b, cache->book, fine);
    return b;
}

static token_counts predict_tokens(const kvb_policy *policy, uint32_t block, uint64_t tokens)
{
    token_counts n = {.sinks = tokens < policy->sinks ? tokens : policy->sinks};
    n.window = tokens - n.sinks < policy->window ? tokens - n.sinks : policy->window;
    uint64_t left = (tokens - n.sinks - n.window) / block * block;
    n.window = tokens - n.sinks - left;
    n.anchors = kvb_pool_capacity(policy->anchor_fraction, left);
    n.coded = left - n.anchors;
    return n;
}

kvb_cache_bytes kvb_cache_predict_bytes(const kvb_book *book, const kvb_policy *policy, uint64_t tokens)
{
    kvb_cache_bytes b = {0};
    const kvb_policy exact = {.window = UINT32_MAX};
    for (uint32_t i = 0; book != NULL && policy != NULL && i < kvb_book_layers(book); i++) {
        const kvb_layer *layer = kvb_book_layer(book, i);
        for (uint32_t g = 0; g < layer->kv_heads; g++) {
            const kvb_codebook *keys = kvb_book_codebook(book, i, g, KVB_KEY);
            const kvb_policy *applied = keys != NULL ? policy : &exact;
            token_counts n = predict_tokens(applied, keys != NULL ? kvb_layer_block(book, i) : 1, tokens);
            const uint64_t row = kvb_row_pair_bytes(applied->exact, layer->head_dim, kvb_book_fine(book, i, g, KVB_KEY),
                                                    kvb_book_fine(book, i, g, KVB_VALUE));
            add_head(&b, &n, layer->head_dim, row, applied, keys, kvb_book_codebook(book, i, g, KVB_VALUE));
        }
    }
    finish(&b, book, policy != NULL && policy->exact == KVB_EXACT_FINE);
    return b;
}
