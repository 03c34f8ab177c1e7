/* Scoring: perplexity of text under the exact cache and under quantised ones, chunk by chunk, all variants sharing one
 * exact pass. */
#ifndef KVB_TOOLS_EVALUATE_H
#define KVB_TOOLS_EVALUATE_H

#include "kvbook/cache.h"
#include "model/model.h"
#include "model/text.h"
#include "runtime/prefill.h"

/* One way to keep the cache. */
typedef struct kvb_eval_variant {
    const kvb_book *book;
    kvb_policy policy;
    kvb_anchor_protocol protocol;
    uint64_t seed;
} kvb_eval_variant;

typedef struct kvb_eval_options {
    uint32_t ctx;
    uint64_t skip, chunks; /* chunks as kvb_text_chunks gave them */
    int32_t bos;           /* -1: none */
    bool exact;            /* run the exact pass too: needed for kl, top1, and comparison */
    kvb_progress_fn progress; /* in chunk passes: chunks * (variants + exact) */
    void *progress_user;
} kvb_eval_options;

/* Means over all targets (every token of a chunk but its first). */
typedef struct kvb_eval_score {
    uint64_t targets;
    double nll;  /* nats per target; perplexity is exp(nll) */
    double kl;   /* mean KL(exact || variant) in nats; NaN without the exact pass */
    double top1; /* share of targets where both agree on the most likely token; NaN without the exact pass */
    double nll_difference_se; /* standard error over chunks of the mean of (nll - exact nll); NaN under 2 chunks */
    double seconds;           /* spent in this pass */
} kvb_eval_score;

/* scores[0] is the exact pass (targets 0 where it did not run), scores[1 + v] that of variant v. The result does not
 * depend on the number of threads. */
kvb_status kvb_evaluate(const kvb_model *model, const kvb_text *text, const kvb_eval_options *options,
                        const kvb_eval_variant *variants, size_t count, kvb_eval_score *scores, kvb_error *err);

/* Spreads tasks over OpenMP threads, for calls that take a kvb_parallel_fn. */
void kvb_openmp_parallel(void (*task)(void *user, size_t i), void *user, size_t count);

#endif
