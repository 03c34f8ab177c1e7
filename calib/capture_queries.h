/* The queries of a capture's first chunk: what searching on attention's output needs beside keys and values. */
#ifndef KVB_CALIB_CAPTURE_QUERIES_H
#define KVB_CALIB_CAPTURE_QUERIES_H

#include "calib/capture_sink.h"

typedef struct kvb_capture_queries_job {
    const kvb_model *model;
    const kvb_text *text;
    const kvb_capture_options *options;
    const kvb_kvc_layout *layout; /* its query_rows: the rows kept of a chunk */
    kvb_capture_sink *sink;
} kvb_capture_queries_job;

/* One forward pass over the first chunk, on the CPU, up to the last layer's attention. A query that is not finite becomes zeros. KVB_E_MEMORY, and what
 * a forward pass or the sink may return. */
kvb_status kvb_capture_queries(const kvb_capture_queries_job *job, kvb_error *err);

#endif
