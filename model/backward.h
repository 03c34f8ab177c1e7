/* The backward pass of the forward pass: from the gradient of the final hidden states to the gradient of every layer's
 * attention output, which is where codebooks are tuned, and of the embedded tokens. Weights get no gradient: of a product
 * y = x W^T only dx = dy W is made. Attention is the caller's, both ways.
 *
 * Memory, in floats, for T tokens of a model of L layers (E channels, F hidden channels, H and G heads of D channels):
 *
 *   tape      L * T * (2E + HD)  and, where they are kept, the products L * T * ((H + 2G)D + 2F)
 *   scratch   twice the forward pass's, about T * (5E + 4F + 6HD + 9GD)
 *
 * SmolLM2-135M, T = 2048: 425 MB of tape, 991 MB of products, 110 MB of scratch. */
#ifndef KVB_MODEL_BACKWARD_H
#define KVB_MODEL_BACKWARD_H

#include "model/model.h"

/* The gradient at one attention. All [heads][T][D] as in kvb_attention_call. */
typedef struct kvb_attention_gradient {
    const float *out;   /* [H][T][D] what the student's attention gave */
    const float *d_out; /* [H][T][D] */
    float *d_q;         /* [H][T][D] with respect to q after RoPE */
    float *d_k, *d_v;   /* [G][T][D] with respect to keys after RoPE and values that were read exactly */
} kvb_attention_gradient;

/* Writes all of d_q, d_k and d_v. Gradients of keys and values that were read from codes are the caller's to collect. Layers
 * come from the last to the first. */
typedef kvb_status (*kvb_attend_backward_fn)(void *user, const kvb_attention_call *call,
                                             const kvb_attention_gradient *gradient, kvb_error *err);

/* One sequence at a time, one thread team. */
typedef struct kvb_backward kvb_backward;

/* max_product_bytes: products kept at most; layers above it make theirs again on the way back, which gives the same bits
 * and costs two products more. 0: no limit. KVB_E_MEMORY only. */
kvb_status kvb_backward_create(const kvb_model *model, uint32_t max_tokens, uint64_t max_product_bytes, kvb_backward **b,
                               kvb_error *err);
void kvb_backward_destroy(kvb_backward *b); /* NULL is allowed */

/* The forward pass from position 0 as kvb_forward_run() makes it, keeping what the way back needs. *hidden [T][E] after the
 * final norm is owned by `b` until the next call. */
kvb_status kvb_backward_forward(kvb_backward *b, const uint32_t *tokens, uint32_t count, const kvb_forward_hooks *hooks,
                                const float **hidden, kvb_error *err);

/* From d_hidden [T][E] of the last kvb_backward_forward(), which may be followed by any number of these. d_embedded [T][E]:
 * gradient with respect to the embedded tokens, or NULL. What `attend` returns is returned. KVB_E_USAGE where no forward
 * pass went before. The same for any number of threads. */
kvb_status kvb_backward_run(kvb_backward *b, const float *d_hidden, kvb_attend_backward_fn attend, void *user,
                            float *d_embedded, kvb_error *err);

#endif
