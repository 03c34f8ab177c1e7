/* Attention of one layer over keys and values of which some are read from codes, and the gradient of what follows with
 * respect to the coded ones. Closed form (as in FlashAttention, arXiv 2205.14135), no automatic differentiation:
 *
 *   S = scale * Q K'^T, P = softmax(S), O' = P V'
 *   dV' = P^T dO',  dS = P * (dO' V'^T - rowsum(dO' * O')),  dK' = scale * dS^T Q
 *
 * Query i sees token j exactly while i < until[j], and from its codes afterwards; gradients flow to coded reads only.
 * Nothing of size T x T is ever held: P is made anew, tile by tile, from the saved log-sum-exp of each row.
 *
 * Every task writes results of its own and sums in a fixed order, so nothing depends on the number of threads. */
#ifndef KVB_CALIB_ATTENTION_GRAD_H
#define KVB_CALIB_ATTENTION_GRAD_H

#include <stdint.h>

#include "kvbook/status.h"

#define KVB_GRAD_EVER UINT32_MAX /* until[j] of a token that is never read from its codes */

/* One layer of one sequence from position 0. Keys are after RoPE. Everything is borrowed. */
typedef struct kvb_grad_layer {
    uint32_t heads, kv_heads, head_dim, tokens; /* H, G, D, T */
    uint32_t sliding_window;                    /* 0: all earlier tokens, else the last so many */
    double scale;                               /* attention_scale */
    const float *q;                             /* [H][T][D] after RoPE, not scaled */
    const float *exact_k, *exact_v;             /* [G][T][D] */
    const float *coded_k, *coded_v;             /* [G][T][D] */
    const uint32_t *until;                      /* [G][T] */
} kvb_grad_layer;

/* Scratch for layers of up to these sizes. */
typedef struct kvb_attn_grad kvb_attn_grad;
/* threads 0: as many as OpenMP gives. KVB_E_MEMORY only. */
kvb_status kvb_attn_grad_create(uint32_t heads, uint32_t kv_heads, uint32_t head_dim, uint32_t tokens, uint32_t threads,
                                kvb_attn_grad **grad, kvb_error *err);
void kvb_attn_grad_destroy(kvb_attn_grad *grad); /* NULL is allowed */

/* out [H][T][D] and lse [H][T], the log-sum-exp of each row's scaled scores. */
void kvb_attn_grad_forward(kvb_attn_grad *grad, const kvb_grad_layer *layer, float *out, float *lse);
/* d_k and d_v [G][T][D] from d_out [H][T][D], after kvb_attn_grad_forward() of the same layer; rows that no query reads
 * from their codes become zero. */
void kvb_attn_grad_backward(kvb_attn_grad *grad, const kvb_grad_layer *layer, const float *out, const float *lse,
                            const float *d_out, float *d_k, float *d_v);

/* Every gradient of the attention, for a loss that reaches what made q, k and v. */
typedef struct kvb_grad_all {
    float *q;                /* [H][T][D] */
    float *exact_k, *exact_v; /* [G][T][D] of keys and values read exactly */
    float *coded_k, *coded_v; /* [G][T][D] of the same read from codes, as kvb_attn_grad_backward() gives them */
} kvb_grad_all;
/* All of them, from d_out [H][T][D] and what kvb_attn_grad_forward() made of the same layer, which may lie far back. */
void kvb_attn_grad_backward_all(kvb_attn_grad *grad, const kvb_grad_layer *layer, const float *out, const float *lse,
                                const float *d_out, const kvb_grad_all *d);

/* The plain references: dense, in double, as the formulas read. lse may be NULL. KVB_E_MEMORY only. */
kvb_status kvb_attn_grad_forward_reference(const kvb_grad_layer *layer, double *out, double *lse, kvb_error *err);
kvb_status kvb_attn_grad_backward_reference(const kvb_grad_layer *layer, const double *d_out, double *d_k, double *d_v,
                                            kvb_error *err);
typedef struct kvb_grad_all_reference {
    double *q, *exact_k, *exact_v, *coded_k, *coded_v;
} kvb_grad_all_reference;
kvb_status kvb_attn_grad_all_reference(const kvb_grad_layer *layer, const double *d_out, const kvb_grad_all_reference *d,
                                       kvb_error *err);

#endif
