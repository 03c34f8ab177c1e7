/* META: what a capture, and the book trained from it, say of where they come from. */
#ifndef KVB_CALIB_CAPTURE_META_H
#define KVB_CALIB_CAPTURE_META_H

#include "calib/capture.h"
#include "format/base/json.h"

#ifndef KVB_VERSION
#define KVB_VERSION "0.1.0"
#endif

/* What a run counted. */
typedef struct kvb_capture_counts {
    uint64_t rows;
    uint64_t saturated;     /* elements of K and V beyond +-65504, stored as that */
    uint64_t quarantined;   /* rows of one head and layer with a NaN or infinity, stored as zeros with weights 0 */
    uint64_t bad_queries;   /* left out of the moments */
} kvb_capture_counts;

/* NULL if out of memory; free with free(). */
char *kvb_capture_meta_write(const kvb_model *model, const kvb_text *text, const kvb_capture_options *options,
                             uint64_t chunks, const kvb_capture_counts *counts);

/* "model" and "tokenizer": names and hashes, which tell whether two files belong together. */
void kvb_meta_put_model(kvb_json_writer *w, const kvb_model *model);

/* "text": the sources and how they were cut into chunks. */
void kvb_meta_put_text(kvb_json_writer *w, const kvb_text *text, const kvb_capture_options *options, uint64_t chunks);

#endif
