/* Tokens of one KV head that are held exactly because their keys are small (kvb_scaling.pool, arXiv 2505.10938): such a key widens the
 * ranges of the channels it shares with its group. The one primitive behind the cache and the prefill, so that both hold the same.
 *
 * When a group of tokens that share scales is coded, those with the smallest sum of absolute keys compete with the pool's: a smaller
 * one takes the place of the largest, which moves to the second pool (its codes hold nothing). Tokens never leave the two pools, and once the
 * second is full nothing enters any more. In the codes the mean of the tokens that stay in the group stands for each that left it. */
#ifndef KVB_RUNTIME_TOKEN_POOL_H
#define KVB_RUNTIME_TOKEN_POOL_H

#include <stdbool.h>

#include "kvbook/cache.h"

/* Zeroed is an empty pool without places. Entries are in the order in which they came. */
typedef struct kvb_token_pool {
    uint32_t places, spill; /* of the pool, and of the second pool */
    uint32_t count;         /* tokens in both */
    uint32_t spilled;       /* of them in the second pool */
    uint32_t *position;     /* [places + spill] */
    float *size;            /* [places + spill] sum of absolute keys; infinite in the second pool, where none is displaced */
} kvb_token_pool;

/* The two pools of a head with these keys; none where they ask for none. False if out of memory. */
bool kvb_token_pool_create(const kvb_codebook *keys, kvb_token_pool *pool);
void kvb_token_pool_free(kvb_token_pool *pool);
/* Tokens for which a cache makes room: 0 where the keys ask for no pool. */
uint32_t kvb_token_pool_room(const kvb_codebook *keys);

/* Offers `count` tokens from `first` on, that share scales and are about to be coded; keys [count][D] as they would be coded. */
void kvb_token_pool_offer(kvb_token_pool *pool, uint32_t first, uint32_t count, uint32_t head_dim, const float *keys);
/* Puts into rows [count][D] of a group, keys or values, the mean of the others in place of those that the pools hold. */
void kvb_token_pool_replace(const kvb_token_pool *pool, uint32_t first, uint32_t count, uint32_t head_dim, float *rows);
/* The entry of a position, or `count` of the pool. */
uint32_t kvb_token_pool_find(const kvb_token_pool *pool, uint32_t position);

#endif
