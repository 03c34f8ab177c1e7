/* A Llama, or a model of any architecture, in double, as the formulas read: the forward pass from embedded tokens, with keys and values that can be pushed
 * aside, and the distillation loss. For finite differences. Out of memory ends the program. */
#ifndef KVB_TESTS_PLAIN_LLAMA_H
#define KVB_TESTS_PLAIN_LLAMA_H

#include "model/backward.h"
#include "model/weights.h"

/* What one run depends on beside the weights, which must be resident. */
typedef struct plain_llama {
    const kvb_model *model;
    uint32_t count;
    double *embedded;          /* [T][E] */
    double *shift_k, *shift_v; /* [L][G][T][D] added to keys after RoPE and to values before they are read */
    size_t layer_floats;       /* G*T*D */
} plain_llama;

/* The embedded tokens; shifts are standard normal times `spread`. */
plain_llama plain_llama_make(const kvb_model *model, const uint32_t *ids, uint32_t count, double spread);
void plain_llama_free(plain_llama *p);
/* hidden [T][E] after the final norm. */
void plain_llama_hidden(const plain_llama *p, double *hidden);
/* mean over n positions of KL(softmax(W teacher) || softmax(W student)) */
double plain_divergence(const kvb_model *model, const double *teacher, const double *student, uint32_t n);

/* Causal attention over k + shift_k and v + shift_v, of plain_llama *user's model. */
kvb_status plain_attend(void *user, const kvb_attention_call *call, float *out, kvb_error *err);
/* Its gradient; d_q, d_k and d_v as formulas. */
kvb_status plain_attend_backward(void *user, const kvb_attention_call *call, const kvb_attention_gradient *gradient,
                                 kvb_error *err);

#endif
