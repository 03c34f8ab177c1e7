/* The distillation loss: how far a student's predictions are from a teacher's, and the gradient with respect to the
 * student's final hidden states. With t = W teacher and s = W student (W: the output matrix) at each of n positions,
 *
 *   loss = 1/n * sum over positions of KL(p || q),  p = softmax(t), q = softmax(s),   dloss/ds = (q - p) / n
 *
 * Logits exist for a block of positions at a time, never for all of them. */
#ifndef KVB_MODEL_DIVERGENCE_H
#define KVB_MODEL_DIVERGENCE_H

#include "model/model.h"

/* Scratch: 2 * 256 * vocab floats, and the output matrix once more if it is not resident. */
typedef struct kvb_divergence kvb_divergence;
kvb_status kvb_divergence_create(const kvb_model *model, kvb_divergence **d, kvb_error *err); /* KVB_E_MEMORY only */
void kvb_divergence_destroy(kvb_divergence *d); /* NULL is allowed */

/* teacher and student [n][E] after the final norm; writes
 * d_student [n][E] where that is not NULL. Returns the loss in nats. The same for any number of threads; exactly 0, as
 * is the gradient, where the two are equal. NaN in gives NaN out. */
double kvb_divergence_run(kvb_divergence *d, const float *teacher, const float *student, uint32_t n, float *d_student);

/* The gradient of sum over positions of log q(y) with respect to hidden [n][E], where y at position i is drawn from the model's own
 * prediction q, by (key, i): what the Fisher information is the second moment of. Uses the same scratch. The same for any
 * number of threads. */
void kvb_divergence_sample(kvb_divergence *d, const float *hidden, uint32_t n, uint64_t key, float *d_hidden);

/* The same with y at position i the text's next token, tokens[i + 1]; the last position has none, and a gradient of 0. */
void kvb_divergence_next(kvb_divergence *d, const float *hidden, const uint32_t *tokens, uint32_t n, float *d_hidden);

#endif
