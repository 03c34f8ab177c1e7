/* Writes the gradients of the kept rows of a capture: `gradient_k` and `gradient_v` of spec/kvc-1.md. */
#ifndef KVB_CALIB_CAPTURE_GRADIENT_H
#define KVB_CALIB_CAPTURE_GRADIENT_H

#include "calib/capture_sink.h"

/* A run whose layout has gradients. */
typedef struct kvb_capture_gradient_job {
    const kvb_model *model;
    const kvb_text *text;
    const kvb_capture_options *options;
    uint64_t chunks;
    uint32_t keep; /* rows of a chunk */
    const kvb_kvc_layout *layout;
    kvb_capture_sink *sink;
} kvb_capture_gradient_job;

/* What gradients are multiplied by, so that half floats hold small ones too. */
#define KVB_CAPTURE_GRADIENT_SCALE 256.0f

/* One backward pass a chunk, on the CPU. A row whose gradient is not finite becomes zeros. Progress is reported as "gradients"
 * in chunks. KVB_E_CANCELLED, KVB_E_MEMORY, and what a forward pass or the sink may return. */
kvb_status kvb_capture_gradients(const kvb_capture_gradient_job *job, kvb_error *err);

#endif
