/* Scoring a model on text with its cache exact and with any number of quantised variants of it, chunk by chunk.
 *
 * Chunks are independent; every token of a chunk but its first is a target. One exact pass serves all variants. The
 * result does not depend on the number of threads. */
#ifndef KVB_TOOLS_EVALUATE_H
#define KVB_TOOLS_EVALUATE_H

#include "runtime/prefill.h"
#include "tools/input.h"

typedef struct kvb_eval_variant {
    const kvb_book *book;
    kvb_policy policy;
    kvb_anchor_protocol protocol;
    uint64_t seed;
} kvb_eval_variant;

typedef struct kvb_eval_score {
    double ppl;      /* exp of the mean negative log-likelihood */
    double kl;       /* mean KL(exact || variant) in nats; NaN without the exact pass */
    double top1;     /* share of targets where both predict the same token; NaN without the exact pass */
    double delta;    /* mean NLL less the exact one's; NaN without the exact pass */
    double delta_error; /* standard error of that over chunks; NaN with fewer than two */
    double seconds;  /* of this variant's passes */
} kvb_eval_score;

typedef struct kvb_eval_result {
    uint64_t targets;
    kvb_eval_score exact;    /* ppl and seconds; NaN where the pass was left out */
    kvb_eval_score *variant; /* [count], the caller's */
} kvb_eval_result;

/* `exact` false leaves out the exact pass. KVB_E_CHECK where a probability comes out as NaN: the chunk is named. */
kvb_status kvb_evaluate(const kvb_input *input, const kvb_eval_variant *variants, size_t count, bool exact,
                        kvb_progress *p, kvb_eval_result *result, kvb_error *err);

/* The prefill's threads: an OpenMP loop. */
void kvb_parallel_openmp(void (*task)(void *user, size_t i), void *user, size_t count);

#endif
