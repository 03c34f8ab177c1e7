/* Which of the tokens that have left the window stay exact: the one primitive behind the cache and the prefill, so that
 * both choose the same anchors. */
#ifndef KVB_RUNTIME_ANCHOR_POOL_H
#define KVB_RUNTIME_ANCHOR_POOL_H

#include <stdbool.h>

#include "kvbook/cache.h"

#define KVB_POOL_NONE UINT32_MAX

/* Anchors of one KV head, ascending by position. Zeroed, with `fraction` set, is an empty pool. */
typedef struct kvb_anchor_pool {
    double fraction;
    uint64_t left; /* tokens that have left the window */
    uint32_t count, room;
    uint32_t *position; /* [room] */
    float *score;       /* [room] */
} kvb_anchor_pool;

void kvb_pool_free(kvb_anchor_pool *pool);

/* ceil(fraction * left), where a product that is a whole number but for rounding counts as that number. */
uint64_t kvb_pool_capacity(double fraction, uint64_t left);

/* Makes room for one more anchor; false if out of memory. */
bool kvb_pool_reserve(kvb_anchor_pool *pool);
/* Makes room for `anchors` in all. */
bool kvb_pool_make_room(kvb_anchor_pool *pool, uint32_t anchors);

/* Offers a token that leaves the window, later than all before it; needs kvb_pool_reserve(). The lowest score loses its
 * place, the later token of equal ones. Returns the index the loser had among the anchors, the old count if it is the
 * offered token itself, and its position in *loser; or KVB_POOL_NONE where there is room for all. */
uint32_t kvb_pool_offer(kvb_anchor_pool *pool, uint32_t position, float score, uint32_t *loser);

/* Anchors at positions before `position`. */
uint32_t kvb_pool_rank(const kvb_anchor_pool *pool, uint64_t position);

/* Whether a policy's scores come from attention: otherwise kvb_anchor_static_score() gives them. */
bool kvb_policy_scores_attention(const kvb_policy *policy);

/* The score of a token by its key as it is held (its norm is the same in every frame) and its place; 0 where scores come
 * from attention. */
float kvb_anchor_static_score(kvb_anchor_score score, uint64_t seed, uint32_t layer, uint32_t head, uint32_t position,
                              const float *key, uint32_t head_dim);

/* KVB_E_USAGE for a number out of range and for fine codes of a book without fine codebooks. */
kvb_status kvb_policy_check(const kvb_book *book, const kvb_policy *policy, kvb_error *err);

#endif
