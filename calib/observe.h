/* What one attention call tells about its tokens: their weights, and the second moments of the queries. The arithmetic
 * of capture, without files, text or sampling. Reads the call, changes nothing.
 *
 * Queries are taken as the model hands them over, in both the weights' ||Q_i||_2 and the moments: not multiplied by
 * attention_scale (the weights carry it as their leading factor, the moments not at all).
 *
 * The results depend on the inputs alone, not on the number of threads: every task writes sums of its own, which are
 * then added in a fixed order, in double. */
#ifndef KVB_CALIB_OBSERVE_H
#define KVB_CALIB_OBSERVE_H

#include "calib/query_sums.h"
#include "model/model.h"

typedef struct kvb_observer kvb_observer;

/* Weights of one call, valid until the next one. */
typedef struct kvb_observed {
    const float *weight_k; /* [G][T] */
    const float *weight_v; /* [G][T] */
    uint64_t bad_queries;  /* queries with a NaN or infinity, left out of the moments */
} kvb_observed;

/* For calls of at most max_tokens whose geometry points into `layer`, which must outlive the observer. */
kvb_status kvb_observer_create(const kvb_layer *layer, uint32_t layers, uint32_t max_tokens, uint64_t seed,
                               kvb_observer **observer, kvb_error *err);
void kvb_observer_destroy(kvb_observer *observer);

/* Names the chunk whose calls follow: the key positions of moment_relative are drawn by (seed, chunk, query position),
 * the same in all layers and heads. */
void kvb_observer_begin_chunk(kvb_observer *observer, uint64_t chunk);

/* Position drawn for the query at `position`: uniform over those it can see (0..position, or the sliding window). */
uint32_t kvb_observer_draw(const kvb_observer *observer, uint32_t position, uint32_t sliding_window);

/* out [H][T][D] and lse [H][T] as kvb_observe_fn gives them; call->position must be 0. */
kvb_status kvb_observer_see(kvb_observer *observer, const kvb_attention_call *call, const float *out, const float *lse,
                            kvb_observed *observed, kvb_error *err);

/* Sums so far of a layer, the observer's: [2][G][D(D+1)/2], relative before post, over queries [G]. Exact over the calls, so that
 * chunks may come in any order and from several observers. */
const kvb_exact *kvb_observer_sums(const kvb_observer *observer, uint32_t layer, const uint64_t **queries);

#endif
