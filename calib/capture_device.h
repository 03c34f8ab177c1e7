/* Capture with the forward pass on a GPU: all chunks go through one layer, then through the next. Private to capture. */
#ifndef KVB_CALIB_CAPTURE_DEVICE_H
#define KVB_CALIB_CAPTURE_DEVICE_H

#include "calib/capture_meta.h"
#include "calib/capture_sink.h"
#include "calib/observe.h"

typedef struct kvb_capture_device_job {
    const kvb_model *model;
    const kvb_text *text;
    const kvb_capture_options *options;
    uint64_t chunks;
    uint32_t keep; /* rows of a chunk */
    const kvb_kvc_layout *layout;
    kvb_capture_sink *sink;
    kvb_observer *observer; /* draws the positions of the relative moment */
    kvb_capture_counts *counts;
} kvb_capture_device_job;

/* Writes all parts but the sensitivities. The model is one that passes kvb_device_forward_check(). */
kvb_status kvb_capture_on_device(const kvb_capture_device_job *job, kvb_error *err);

#endif
