#include "tools/score.h"

#include <math.h>
#include <string.h>

#include "format/base/fail.h"

/* Single precision sums this many terms; double takes over from there. */
enum { SCORE_PIECE = 256 };

static uint32_t piece_size(uint32_t at, uint32_t vocab)
{
    return vocab - at < SCORE_PIECE ? vocab - at : SCORE_PIECE;
}

static uint32_t index_of(const float *x, uint32_t n, float value)
{
    uint32_t i = 0;
    while (i + 1 < n && x[i] != value)
        i++;
    return i;
}

static kvb_row_score score_row(const kvb_kernels *k, const float *logits, uint32_t vocab, uint32_t target)
{
    float piece[SCORE_PIECE], most = k->max(logits, vocab);
    double sum = 0;
    for (uint32_t i = 0; i < vocab; i += SCORE_PIECE) {
        uint32_t n = piece_size(i, vocab);
        memcpy(piece, logits + i, n * sizeof *piece);
        sum += (double)k->exp_sum(piece, n, most);
    }
    kvb_row_score s = {.log_sum = (double)most + log(sum), .top = index_of(logits, vocab, most)};
    s.nll = s.log_sum - (double)logits[target];
    return s;
}

void kvb_score_rows(const kvb_kernels *k, const float *logits, uint32_t rows, uint32_t vocab, const uint32_t *target,
                    kvb_row_score *score)
{
#pragma omp parallel for schedule(static)
    for (uint32_t r = 0; r < rows; r++)
        score[r] = score_row(k, logits + (size_t)r * vocab, vocab, target[r]);
}

/* KL(p || q) = sum p (log p - log q) = sum p (exact - other) - log_sum(exact) + log_sum(other). The sum is divided by
 * the sum of the very p that weighted it, so that equal rows give 0 exactly. */
static double divergence(const kvb_kernels *k, const float *exact, const kvb_row_score *p, const float *other,
                         const kvb_row_score *q, uint32_t vocab)
{
    float weight[SCORE_PIECE], difference[SCORE_PIECE], most = exact[p->top];
    double sum = 0, weighted = 0;
    for (uint32_t i = 0; i < vocab; i += SCORE_PIECE) {
        uint32_t n = piece_size(i, vocab);
        memcpy(weight, exact + i, n * sizeof *weight);
        for (uint32_t j = 0; j < n; j++)
            difference[j] = exact[i + j] - other[i + j];
        sum += (double)k->exp_sum(weight, n, most);
        weighted += (double)k->dot(weight, difference, n);
    }
    double kl = weighted / sum - p->log_sum + q->log_sum;
    /* Rounding may leave a hair under zero, which no divergence is; a NaN must stay one. */
    return kl < 0 ? 0 : kl;
}

void kvb_score_divergence(const kvb_kernels *k, const float *exact, const kvb_row_score *exact_score,
                          const float *other, const kvb_row_score *other_score, uint32_t rows, uint32_t vocab,
                          double *kl)
{
#pragma omp parallel for schedule(static)
    for (uint32_t r = 0; r < rows; r++) {
        size_t at = (size_t)r * vocab;
        kl[r] = divergence(k, exact + at, &exact_score[r], other + at, &other_score[r], vocab);
    }
}

kvb_status kvb_check_apart(const char *name, const char *what, double apart, double most, kvb_error *err)
{
    if (apart <= most)
        return KVB_OK;
    return kvb_fail(err, KVB_E_CHECK, "--decode",
                    "%s: %s token by token differs from that of a pass over the whole chunk by %g, expected %g at most: the cache "
                    "and eval no longer compute the same; please report it", name, what, apart, most);
}
