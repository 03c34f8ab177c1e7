/* Exact causal attention in tiles (online softmax, never T x T), and the token scores that need a second pass over the
 * saved log-sum-exp. Shared by the model's forward pass, capture and the runtime. Single-threaded per call: callers
 * parallelise over heads and blocks of queries. */
#ifndef KVB_BASE_ATTENTION_H
#define KVB_BASE_ATTENTION_H

#include "format/base/kernels.h"

enum { KVB_ATTN_ROWS = 64, KVB_ATTN_COLS = 128 }; /* queries and keys of a tile */

/* State of the online softmax of up to KVB_ATTN_ROWS queries of one head. */
typedef struct kvb_attn_state {
    float max[KVB_ATTN_ROWS];
    float sum[KVB_ATTN_ROWS];
} kvb_attn_state;

void kvb_attn_begin(kvb_attn_state *s, uint32_t rows, uint32_t head_dim, float *out);

/* Folds one tile of keys into rows queries: scores [rows][ld] are the SCALED scores (masked ones -INFINITY) and are
 * overwritten by exp(score - running max); out [rows][D] accumulates. v: [cols][D]. */
void kvb_attn_fold(const kvb_kernels *k, kvb_attn_state *s, uint32_t rows, uint32_t cols, float *scores, size_t ld,
                   const float *v, size_t ldv, uint32_t head_dim, float *out);

/* Divides by the sums; lse [rows] = log-sum-exp of the scaled scores, or NULL. */
void kvb_attn_end(const kvb_kernels *k, const kvb_attn_state *s, uint32_t rows, uint32_t head_dim, float *out,
                  float *lse);

/* Transposes [rows][cols] (row stride ld) to [cols][rows_padded]: B operand of a score tile from rows of keys. */
void kvb_transpose(const float *x, size_t ld, uint32_t rows, uint32_t cols, float *out, size_t ld_out);

/* Exact causal attention of queries first..first+rows-1 of one head: q, k, v are [T][D]; out and lse are the rows'.
 * scratch: kvb_attn_scratch_floats(D) floats. sliding_window 0: all earlier tokens. */
size_t kvb_attn_scratch_floats(uint32_t head_dim);
void kvb_attn_exact(const kvb_kernels *k, const float *q, const float *keys, const float *values, uint32_t first,
                    uint32_t rows, uint32_t head_dim, float scale, uint32_t sliding_window, float *out, float *lse,
                    float *scratch);

/* Token weights of AnTKV (arXiv 2506.19505), one query head's share, added to weight_k[T] and weight_v[T] (either may be
 * NULL) for keys in [key_first, key_first + key_count) over all T queries:
 *   weight_k[j] += scale * sum_i A_ij * ||V_j - O_i||_1 * ||Q_i||_2,   weight_v[j] += sum_i A_ij,
 * with A_ij = exp(scale * Q_i.K_j - lse_i) for j <= i. Sums in double. Never holds more than a tile. */
size_t kvb_attn_weights_scratch_floats(uint32_t head_dim);
void kvb_attn_weights(const kvb_kernels *k, const float *q, const float *keys, const float *values, const float *out,
                      const float *lse, uint32_t tokens, uint32_t head_dim, float scale, uint32_t sliding_window,
                      uint32_t key_first, uint32_t key_count, double *weight_k, double *weight_v, float *scratch);

#endif
