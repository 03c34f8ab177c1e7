/* How well predicted distributions match the text, and each other: from logits, in blocks of rows. Rows are spread over
 * threads; a row's result does not depend on them. */
#ifndef KVB_TOOLS_SCORE_H
#define KVB_TOOLS_SCORE_H

#include <stddef.h>
#include <stdint.h>

#include "kvbook/status.h"

#include "format/base/kernels.h"

typedef struct kvb_row_score {
    double log_sum; /* log of the sum of exp(logit) */
    double nll;     /* of the target, in nats */
    uint32_t top;   /* the lowest index of the largest logit */
} kvb_row_score;

/* Rows of logits [rows][vocab]; target[r] is a row's right answer. */
void kvb_score_rows(const kvb_kernels *k, const float *logits, uint32_t rows, uint32_t vocab, const uint32_t *target,
                    kvb_row_score *score);

/* KL(exact || other) of each row in nats, from both logits and their scores. */
void kvb_score_divergence(const kvb_kernels *k, const float *exact, const kvb_row_score *exact_score,
                          const float *other, const kvb_row_score *other_score, uint32_t rows, uint32_t vocab,
                          double *kl);

/* The most that two ways of running the same text may be apart. Attention of a coded cache given the same inputs, as a part of
 * its size: the sums are the same, and 0 is what was measured. Log-likelihoods behind an exact cache, mean over targets: it
 * holds half floats where the pass at once does not, and no code can turn over. 0.0006 was measured on SmolLM2-135M at 2048 tokens,
 * 0.0021 on stories260K at 512. */
#define KVB_APART_ATTENTION 1e-4
#define KVB_APART_EXACT 0.01

/* KVB_E_CHECK unless `apart` is at most `most`, which NaN is not; `name` is the book or the cache, `what` is apart. */
kvb_status kvb_check_apart(const char *name, const char *what, double apart, double most, kvb_error *err);

#endif
