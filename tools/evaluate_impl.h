/* One evaluation: what its passes add up to, wherever they run. Private to tools/evaluate*.c. */
#ifndef KVB_TOOLS_EVALUATE_IMPL_H
#define KVB_TOOLS_EVALUATE_IMPL_H

#include "tools/evaluate.h"

/* What one pass over all chunks adds up to; per chunk, so that errors can be estimated and sums have one order. */
typedef struct kvb_eval_sums {
    double *nll; /* [chunks] sums over a chunk's targets, means once it is closed */
    double kl, agree, seconds;
    double apart, apart_most, attention_apart;
    double *bucket; /* [buckets] sums of NLL over chunks */
} kvb_eval_sums;

/* Pass 0 is the exact one, 1 + i variant i. */
typedef struct kvb_evaluation {
    const kvb_input *input;
    const kvb_eval_variant *variant; /* [variants] */
    size_t variants;
    kvb_eval_options options;
    uint32_t first, buckets; /* row of the first target's prediction; parts of a chunk that are scored apart */
    kvb_progress *progress;
    uint64_t done, total; /* tokens, for the progress line */
    kvb_eval_sums *pass;  /* [1 + variants] */
} kvb_evaluation;

/* Row r of a chunk predicts its token r + 1 with this likelihood. */
void kvb_evaluation_add(kvb_evaluation *run, size_t pass, uint64_t chunk, uint32_t row, double nll);
/* All rows of all passes are there. KVB_E_CHECK where the likelihood is no number. */
kvb_status kvb_evaluation_close_chunk(kvb_evaluation *run, uint64_t chunk, kvb_error *err);
/* KVB_E_CANCELLED where somebody interrupts. */
kvb_status kvb_evaluation_advance(kvb_evaluation *run, uint64_t tokens, kvb_error *err);
kvb_status kvb_evaluation_cancelled(kvb_error *err);

/* The passes themselves, chunk after chunk on the CPU, and many chunks side by side on a GPU. */
kvb_status kvb_evaluate_here(kvb_evaluation *run, kvb_error *err);
kvb_status kvb_evaluate_on_device(kvb_evaluation *run, kvb_error *err);

#endif
