#include "runtime/anchor_pool.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/fail.h"
#include "format/base/rng.h"
#include "runtime/scaled.h"

void kvb_pool_free(kvb_anchor_pool *pool)
{
    free(pool->position);
    free(pool->score);
    pool->position = NULL;
    pool->score = NULL;
    pool->count = pool->room = 0;
}

uint64_t kvb_pool_capacity(double fraction, uint64_t left)
{
    /* 0.07 * 100 is 7.000000000000001 in double: seven anchors are meant, not eight. */
    double exact = fraction * (double)left;
    uint64_t capacity = (uint64_t)ceil(exact * (1.0 - 1e-12));
    return capacity < left ? capacity : left;
}

bool kvb_pool_make_room(kvb_anchor_pool *pool, uint32_t anchors)
{
    if (anchors <= pool->room)
        return true;
    uint32_t room = pool->room < 8 ? 8 : pool->room < UINT32_MAX / 2 ? 2 * pool->room : UINT32_MAX;
    room = room < anchors ? anchors : room;
    uint32_t *position = realloc(pool->position, room * sizeof *position);
    if (position == NULL)
        return false;
    pool->position = position;
    float *score = realloc(pool->score, room * sizeof *score);
    if (score == NULL)
        return false;
    pool->score = score;
    pool->room = room;
    return true;
}

bool kvb_pool_reserve(kvb_anchor_pool *pool)
{
    return kvb_pool_make_room(pool, pool->count + 1);
}

/* The last of the lowest scores. */
static uint32_t weakest(const kvb_anchor_pool *pool)
{
    uint32_t at = 0;
    for (uint32_t i = 1; i < pool->count; i++)
        if (pool->score[i] <= pool->score[at])
            at = i;
    return at;
}

static void drop(kvb_anchor_pool *pool, uint32_t at)
{
    size_t after = pool->count - at - 1;
    memmove(pool->position + at, pool->position + at + 1, after * sizeof *pool->position);
    memmove(pool->score + at, pool->score + at + 1, after * sizeof *pool->score);
    pool->count--;
}

uint32_t kvb_pool_offer(kvb_anchor_pool *pool, uint32_t position, float score, uint32_t *loser)
{
    uint64_t capacity = kvb_pool_capacity(pool->fraction, ++pool->left);
    uint32_t gone = KVB_POOL_NONE;
    *loser = position;
    if (pool->count >= capacity) {
        gone = pool->count;
        if (pool->count == 0)
            return gone;
        uint32_t at = weakest(pool);
        if (score <= pool->score[at])
            return gone;
        gone = at;
        *loser = pool->position[at];
        drop(pool, at);
    }
    pool->position[pool->count] = position;
    pool->score[pool->count++] = score;
    return gone;
}

uint32_t kvb_pool_rank(const kvb_anchor_pool *pool, uint64_t position)
{
    uint32_t low = 0, high = pool->count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (pool->position[middle] < position)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

bool kvb_policy_scores_attention(const kvb_policy *policy)
{
    return policy->anchor_fraction > 0.0 && policy->window > 0 &&
           (policy->score == KVB_SCORE_EXACT_K || policy->score == KVB_SCORE_EXACT_V);
}

static double norm(const float *x, uint32_t n)
{
    double sum = 0.0;
    for (uint32_t i = 0; i < n; i++)
        sum += (double)x[i] * x[i];
    return sqrt(sum);
}

float kvb_anchor_static_score(kvb_anchor_score score, uint64_t seed, uint32_t layer, uint32_t head, uint32_t position,
                              const float *key, uint32_t head_dim)
{
    switch (score) {
    case KVB_SCORE_KEY_NORM: return (float)-norm(key, head_dim);
    case KVB_SCORE_FIRST_N: return -(float)position;
    case KVB_SCORE_RANDOM: return (float)kvb_rng_unit(kvb_rng_key(seed, layer, head, 0, 0), position);
    case KVB_SCORE_EXACT_K:
    case KVB_SCORE_EXACT_V: break;
    }
    return 0.0f;
}

static bool has_fine(const kvb_book *book)
{
    for (uint32_t i = 0; i < kvb_book_layers(book); i++)
        if (kvb_book_fine(book, i, 0, KVB_KEY) != NULL)
            return true;
    return false;
}

kvb_status kvb_policy_check(const kvb_book *book, const kvb_policy *policy, kvb_error *err)
{
    if (!(policy->anchor_fraction >= 0.0 && policy->anchor_fraction <= 1.0))
        return kvb_fail(err, KVB_E_USAGE, "policy.anchor_fraction", "found %g, expected 0 .. 1 (1%% is 0.01)",
                        policy->anchor_fraction);
    if ((unsigned)policy->score > KVB_SCORE_RANDOM)
        return kvb_fail(err, KVB_E_USAGE, "policy.score", "found %u, expected a kvb_anchor_score (0 .. %u)",
                        (unsigned)policy->score, (unsigned)KVB_SCORE_RANDOM);
    if ((unsigned)policy->exact > KVB_EXACT_FINE)
        return kvb_fail(err, KVB_E_USAGE, "policy.exact", "found %u, expected a kvb_exact_form (0 .. %u)",
                        (unsigned)policy->exact, (unsigned)KVB_EXACT_FINE);
    for (uint32_t i = 0; policy->anchor_fraction > 0.0 && i < kvb_book_layers(book); i++)
        if (kvb_layer_block(book, i) > 1)
            return kvb_fail(err, KVB_E_USAGE, "policy.anchor_fraction", "found %g, but in layer %u tokens share scales: one of them "
                            "cannot stay behind as an anchor; expected 0", policy->anchor_fraction, i);
    if (policy->exact == KVB_EXACT_FINE && !has_fine(book))
        return kvb_fail(err, KVB_E_USAGE, "policy.exact", "found fine codes, but the book has no fine codebooks: train "
                        "it with a recipe that says \"fine\", or keep half floats");
    return KVB_OK;
}
