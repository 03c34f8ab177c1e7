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

/* Transposes x [rows][cols] (row stride ld) to out [cols][ld_out], zero from `rows` on: ld_out >= rows. */
void kvb_transpose(const float *x, size_t ld, uint32_t rows, uint32_t cols, float *out, size_t ld_out);

/* Exact causal attention of queries first..first+rows-1 (at most KVB_ATTN_ROWS) of one head. q and values are [T][D];
 * keys_t is the transpose [D][ld_t] of the keys, ld_t >= T rounded up to a multiple of KVB_ATTN_COLS, the padding zero.
 * out [rows][D] and lse [rows] (or NULL) are the rows' own. scratch: kvb_attn_scratch_floats(D) floats.
 * sliding_window 0: all earlier tokens, else the last so many, the query's own included. */
size_t kvb_attn_scratch_floats(uint32_t head_dim);
void kvb_attn_exact(const kvb_kernels *k, const float *q, const float *keys_t, size_t ld_t, const float *values,
                    uint32_t first, uint32_t rows, uint32_t head_dim, float scale, uint32_t sliding_window, float *out,
                    float *lse, float *scratch);

/* The padded row length that keys_t and values_t need for T tokens. */
size_t kvb_attn_padded(uint32_t tokens);

/* Token weights of AnTKV (arXiv 2506.19505): adds one query head's share for the keys key_first ..
 * key_first + key_count - 1 (at most KVB_ATTN_COLS) over all T queries to weight_k and weight_v [key_count]:
 *   weight_k[j] += scale * sum_i A_ij * ||V_j - O_i||_1 * ||Q_i||_2,   weight_v[j] += sum_i A_ij,
 * with A_ij = exp(scale * Q_i.K_j - lse_i) for j <= i. key_first is a multiple of KVB_ATTN_COLS. q and out are [T][D],
 * lse and q_norm (||Q_i||_2) [T], keys_t and values_t [D][ld_t] as above. Never holds more than a tile. */
typedef struct kvb_attn_head {
    const float *q, *keys_t, *values_t, *out, *lse, *q_norm;
    size_t ld_t;
    uint32_t tokens, head_dim, sliding_window;
    float scale;
} kvb_attn_head;
size_t kvb_attn_weights_scratch_floats(uint32_t head_dim);
void kvb_attn_weights(const kvb_kernels *k, const kvb_attn_head *head, uint32_t key_first, uint32_t key_count,
                      double *weight_k, double *weight_v, float *scratch);

#endif
