#include "runtime/token_pool.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/kvb_layout.h"

uint32_t kvb_token_pool_room(const kvb_codebook *keys)
{
    return keys != NULL && keys->scaling != NULL ? keys->scaling->pool + keys->scaling->spill : 0;
}

bool kvb_token_pool_create(const kvb_codebook *keys, kvb_token_pool *pool)
{
    const uint32_t room = kvb_token_pool_room(keys);
    *pool = (kvb_token_pool){0};
    if (room == 0)
        return true;
    pool->position = kvb_alloc_array(room, sizeof *pool->position);
    pool->size = kvb_alloc_array(room, sizeof *pool->size);
    if (pool->position == NULL || pool->size == NULL) {
        kvb_token_pool_free(pool);
        return false;
    }
    pool->places = keys->scaling->pool;
    pool->spill = keys->scaling->spill;
    return true;
}

void kvb_token_pool_free(kvb_token_pool *pool)
{
    free(pool->position);
    free(pool->size);
    *pool = (kvb_token_pool){0};
}

uint32_t kvb_token_pool_find(const kvb_token_pool *pool, uint32_t position)
{
    uint32_t i = 0;
    while (i < pool->count && pool->position[i] != position)
        i++;
    return i;
}

/* The largest of the pool, the later of equals. */
static uint32_t largest(const kvb_token_pool *pool)
{
    uint32_t best = pool->count;
    for (uint32_t i = 0; i < pool->count; i++)
        if (isfinite(pool->size[i]) && (best == pool->count || pool->size[i] >= pool->size[best]))
            best = i;
    return best;
}

/* Sum of absolute values; beyond every float it counts as the largest one, so that infinite stays a mark. */
static float size_of(const float *key, uint32_t head_dim)
{
    float sum = 0.0f;
    for (uint32_t i = 0; i < head_dim; i++)
        sum += fabsf(key[i]);
    return isfinite(sum) ? sum : 3.4028234e38f;
}

/* The token is admitted, or there is no place for it. */
static bool admit(kvb_token_pool *pool, uint32_t position, float size)
{
    if (pool->count - pool->spilled == pool->places) {
        const uint32_t loser = largest(pool);
        if (!(size < pool->size[loser]))
            return false;
        pool->size[loser] = INFINITY;
        pool->spilled++;
    }
    pool->position[pool->count] = position;
    pool->size[pool->count++] = size;
    return true;
}

void kvb_token_pool_offer(kvb_token_pool *pool, uint32_t first, uint32_t count, uint32_t head_dim, const float *keys)
{
    float size[KVB_MAX_TOKEN_GROUP];
    if (pool->spilled == pool->spill)
        return;
    for (uint32_t i = 0; i < count; i++)
        size[i] = size_of(keys + (size_t)i * head_dim, head_dim);
    /* Smallest first, the earlier of equals: none can displace one of its own group, so the group keeps count - places or more. */
    for (bool more = true; more && pool->spilled < pool->spill;) {
        uint32_t best = 0;
        for (uint32_t i = 1; i < count; i++)
            best = size[i] < size[best] ? i : best;
        more = isfinite(size[best]) && admit(pool, first + best, size[best]);
        size[best] = INFINITY; /* it has been offered */
    }
}

void kvb_token_pool_replace(const kvb_token_pool *pool, uint32_t first, uint32_t count, uint32_t head_dim, float *rows)
{
    bool gone[KVB_MAX_TOKEN_GROUP] = {false};
    uint32_t stay = count;
    for (uint32_t i = 0; i < pool->count; i++)
        if (pool->position[i] >= first && pool->position[i] - first < count) {
            gone[pool->position[i] - first] = true;
            stay--;
        }
    for (uint32_t c = 0; stay < count && c < head_dim; c++) {
        double sum = 0.0;
        for (uint32_t t = 0; t < count; t++)
            sum += gone[t] ? 0.0 : (double)rows[(size_t)t * head_dim + c];
        for (uint32_t t = 0; t < count; t++)
            if (gone[t])
                rows[(size_t)t * head_dim + c] = (float)(sum / stay);
    }
}
