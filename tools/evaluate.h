/* Scoring a model on text with its cache exact and with any number of quantised variants of it, chunk by chunk.
 *
 * Chunks are independent; every token of a chunk but its first is a target, or its last so many. One exact pass serves all
 * variants. The result does not depend on the number of threads.
 *
 * A variant is one pass over the whole chunk at once (runtime/prefill), or, as a stream, goes through a kvb_cache as text is
 * generated: what stands before the targets in pieces, then one token after the other. */
#ifndef KVB_TOOLS_EVALUATE_H
#define KVB_TOOLS_EVALUATE_H

#include "calib/device.h"
#include "runtime/prefill.h"
#include "tools/input.h"

typedef struct kvb_eval_variant {
    const kvb_book *book; /* NULL: the exact cache, of half floats, as a stream */
    kvb_policy policy;
    kvb_anchor_protocol protocol;
    uint64_t seed;
    /* Token by token, protocol causal; the pass before (the exact one where there is no book) is the same at once. With a book
     * the queries, keys and values of each layer go through a cache there as well, and the outputs are compared: what the passes
     * predict differs more than that, for a code that rounding turns over in one layer moves every layer after it. */
    bool stream;
} kvb_eval_variant;

typedef struct kvb_eval_options {
    bool exact;      /* with a pass of the exact cache */
    uint32_t last;   /* targets of each chunk, its last ones; 0: all */
    uint32_t bucket; /* targets at so many positions at a time are scored apart as well; 0: not */
    /* On a GPU (the first of those named) many chunks go through the GPU's cache side by side, token by token, as text is generated:
     * no streams, protocol causal. Products there are TF32, so scores are near the CPU's and not theirs. */
    kvb_device device;
} kvb_eval_options;

typedef struct kvb_eval_score {
    double ppl;      /* exp of the mean negative log-likelihood */
    double kl;       /* mean KL(exact || variant) in nats; NaN without the exact pass */
    double top1;     /* share of targets where both predict the same token; NaN without the exact pass */
    double delta;    /* mean NLL less the exact one's; NaN without the exact pass */
    double delta_error; /* standard error of that over chunks; NaN with fewer than two */
    double apart;      /* of a stream: |log-likelihood less that of the pass before|, mean over targets; NaN otherwise */
    double apart_most; /* and its largest */
    double attention_apart; /* of a stream with a book: ||O' - O|| / ||O|| of attention given the same inputs, the worst layer;
                             * NaN otherwise */
    double seconds;  /* of this variant's passes */
    double *bucket;  /* [buckets] perplexity by position, the caller's; NULL: not wanted */
} kvb_eval_score;

typedef struct kvb_eval_result {
    uint64_t targets;
    kvb_eval_score exact;    /* ppl and seconds; NaN where the pass was left out */
    kvb_eval_score *variant; /* [count], the caller's */
} kvb_eval_result;

/* Buckets of a chunk of ctx tokens: bucket i holds the targets at positions [i*bucket, (i+1)*bucket). */
uint32_t kvb_eval_buckets(const kvb_eval_options *options, uint32_t ctx);

/* KVB_E_CHECK where a probability comes out as NaN: the chunk is named. On a GPU KVB_E_USAGE for a model, book or variant that it does
 * not run. */
kvb_status kvb_evaluate(const kvb_input *input, const kvb_eval_variant *variants, size_t count,
                        const kvb_eval_options *options, kvb_progress *p, kvb_eval_result *result, kvb_error *err);

/* The prefill's threads: an OpenMP loop. */
void kvb_parallel_openmp(void (*task)(void *user, size_t i), void *user, size_t count);

#endif
