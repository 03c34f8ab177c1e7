/* A model on a GPU with its quantised cache there: the stream of kvbook generate --device cuda. Private to tools/stream.c. */
#ifndef KVB_TOOLS_STREAM_DEVICE_H
#define KVB_TOOLS_STREAM_DEVICE_H

#include "calib/device.h"
#include "kvbook/book.h"
#include "model/model.h"

typedef struct kvb_device_stream kvb_device_stream;

/* piece: tokens of a call at most; positions: of all calls. */
kvb_status kvb_device_stream_create(const kvb_model *model, const kvb_book *book, const kvb_policy *policy, uint64_t seed, kvb_device device,
                                    uint32_t piece, uint32_t positions, kvb_device_stream **stream, kvb_error *err);
void kvb_device_stream_destroy(kvb_device_stream *stream); /* NULL is allowed */
/* Tokens from `position` on: hidden [E] after the last of them. */
kvb_status kvb_device_stream_run(kvb_device_stream *stream, const uint32_t *tokens, uint32_t count, uint32_t position, float *hidden,
                                 kvb_error *err);
kvb_status kvb_device_stream_logits(kvb_device_stream *stream, const float *hidden, float *logits, kvb_error *err);

#endif
