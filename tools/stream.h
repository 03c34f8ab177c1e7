/* A model running over text through a KV cache, exact or quantised: every token is appended to the cache and attends
 * through it, so that what a token sees does not depend on how the text is cut into calls. */
#ifndef KVB_TOOLS_STREAM_H
#define KVB_TOOLS_STREAM_H

#include "calib/device.h"
#include "kvbook/cache.h"
#include "model/model.h"

/* The hook of a forward pass that appends the call's tokens to a kvb_cache and lets each attend through it. */
kvb_status kvb_attend_through_cache(void *cache, const kvb_attention_call *call, float *out, kvb_error *err);

typedef struct kvb_stream kvb_stream;

/* `cache` has the model's geometry and like the model must outlive the stream, which goes on after the tokens it holds. */
kvb_status kvb_stream_create(const kvb_model *model, kvb_cache *cache, kvb_stream **stream, kvb_error *err);
/* The same from the beginning of a text, with model and cache on the first of the GPUs named; positions: tokens at most. KVB_E_USAGE for a
 * model or a book that does not run there. */
kvb_status kvb_stream_create_on_device(const kvb_model *model, const kvb_book *book, const kvb_policy *policy, uint64_t seed,
                                       kvb_device device, uint32_t positions, kvb_stream **stream, kvb_error *err);
void kvb_stream_destroy(kvb_stream *stream); /* NULL is allowed */

/* Runs tokens [count], at least one, at the next positions: *last [E] is the hidden state after the last of them, the stream's
 * until its next call. Several tokens share the model's matrix products; one at a time is how text is generated. */
kvb_status kvb_stream_run(kvb_stream *stream, const uint32_t *tokens, size_t count, const float **last, kvb_error *err);

/* Logits [V] of a hidden state [E]. */
kvb_status kvb_stream_logits(kvb_stream *stream, const float *hidden, float *logits, kvb_error *err);

/* Tokens run so far, with those that the cache held before. */
uint32_t kvb_stream_position(const kvb_stream *stream);

#endif
