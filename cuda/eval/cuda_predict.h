/* What hidden states predict: logits, log-likelihoods of the text and divergences from the exact model, on a GPU. Products are TF32,
 * sums over the vocabulary double; definitions as in tools/score.h. */
#ifndef KVB_CUDA_PREDICT_H
#define KVB_CUDA_PREDICT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kvbook/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct kvb_cuda_predict kvb_cuda_predict;
struct CUstream_st;

typedef struct kvb_cuda_head {
    uint32_t embedding, vocab; /* E, V */
    double norm_epsilon;
    const float *norm;   /* host [E] of the final RMSNorm */
    const float *matrix; /* host [V][E] */
} kvb_cuda_head;

/* One row: `kl` and `agree` beside the exact rows kept before; 0 for those themselves. */
typedef struct kvb_cuda_judged {
    double nll, kl;
    uint32_t agree, unused;
} kvb_cuda_judged;

/* rows: the most that are judged at once. The head's arrays may be forgotten. KVB_E_DEVICE, KVB_E_MEMORY (nothing is left allocated). */
kvb_status kvb_cuda_predict_create(int device, const kvb_cuda_head *head, size_t rows, kvb_cuda_predict **out, kvb_error *err);
void kvb_cuda_predict_destroy(kvb_cuda_predict *p); /* NULL is allowed */
/* Judges rows of the residual stream x [rows][E], in device memory, after all layers: target [rows] (host) holds the right answers. keep:
 * these rows are the exact ones that later calls are compared with, where `compare` says so. Waits for the stream. */
kvb_status kvb_cuda_predict_judge(kvb_cuda_predict *p, const float *x, size_t rows, const uint32_t *target, bool keep, bool compare,
                                  struct CUstream_st *stream, kvb_cuda_judged *judged, kvb_error *err);
/* The hidden state [E] (host), after the final norm, of one row x [E] of the residual stream (device); and its logits [V] (host). Both
 * wait for the stream. */
kvb_status kvb_cuda_predict_hidden(kvb_cuda_predict *p, const float *x, struct CUstream_st *stream, float *hidden, kvb_error *err);
kvb_status kvb_cuda_predict_logits(kvb_cuda_predict *p, const float *hidden, struct CUstream_st *stream, float *logits, kvb_error *err);

#ifdef __cplusplus
}
#endif
#endif
