/* Attention of a whole sequence as a cache would have computed it token by token: what `eval` scores.
 *
 * One primitive covers every policy: token j of KV head g is read exactly by query i while i < until[g][j], and from
 * its codes afterwards. Window: until = j + w. Sinks and lasting anchors: KVB_UNTIL_EVER. */
#ifndef KVB_RUNTIME_PREFILL_H
#define KVB_RUNTIME_PREFILL_H

#include "kvbook/cache.h"

#define KVB_UNTIL_EVER UINT32_MAX

typedef enum kvb_anchor_protocol {
    KVB_PROTOCOL_CAUSAL = 0, /* as the cache does it: anchors chosen as tokens leave the window */
    KVB_PROTOCOL_CHUNK = 1,  /* the papers': the best of the whole chunk by exact attention, from the start */
} kvb_anchor_protocol;

/* One layer of one sequence of T tokens from position 0. Rows are [T][D] of each head. */
typedef struct kvb_prefill {
    const kvb_book *book;
    uint32_t layer;
    uint32_t tokens;
    const kvb_policy *policy;
    kvb_anchor_protocol protocol;
    uint64_t seed;
    const float *q;     /* [H][T][D] after RoPE */
    const float *k_pre; /* [G][T][D] */
    const float *k;     /* [G][T][D] after RoPE */
    const float *v;     /* [G][T][D] */
} kvb_prefill;

/* How the caller spreads independent tasks over threads: calls task(user, i) for every i < count, in any order and on
 * any thread, and returns when all are done. The runtime itself knows no threading library. */
typedef void (*kvb_parallel_fn)(void (*task)(void *user, size_t i), void *user, size_t count);

/* Writes out [H][T][D]. `parallel` NULL runs on the calling thread. The result does not depend on it.
 *
 * Exact tokens are rounded to half floats, as a cache stores them, and rotated here, so `k` serves only the scores of
 * KVB_PROTOCOL_CHUNK; there the ceil(anchor_fraction * T) best of all T tokens become anchors, sinks among them or
 * not. KVB_PROTOCOL_CAUSAL gives what a cache gives token by token. Holds four copies of the layer's keys and values
 * in float32 (up to six with their tiles). KVB_E_CHECK for NaN and infinity in q, k_pre or v. */
kvb_status kvb_prefill_attend(const kvb_prefill *p, kvb_parallel_fn parallel, float *out, kvb_error *err);

/* Which tokens the policy keeps exact for ever where anchors come from the whole chunk (KVB_PROTOCOL_CHUNK, whatever
 * p->protocol says): kept [G][T], 1 or 0. No codes are read. */
kvb_status kvb_prefill_kept(const kvb_prefill *p, kvb_parallel_fn parallel, uint8_t *kept, kvb_error *err);

#endif
