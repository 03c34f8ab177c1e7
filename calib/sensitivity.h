/* How much an error in a key or value changes the model's predictions, through everything that comes after it.
 *
 * With g_j the gradient of log p(y | text), y drawn from the model's own prediction, with respect to token j's key before RoPE
 * (or its value), the Fisher information F = E[g g^T] gives the divergence that an error e costs, to second order:
 * KL = 1/2 e^T F e. One backward pass of a chunk, with one y drawn at each position, gives a g_j for every token, head and
 * layer. Reads by the token's own query and the KVB_SENSITIVITY_WINDOW - 1 after it do not count, since caches keep recent
 * tokens; nor do the tokens of a head with the largest 2 % of |g|, which anchors would keep. */
#ifndef KVB_CALIB_SENSITIVITY_H
#define KVB_CALIB_SENSITIVITY_H

#include "calib/capture.h"
#include "kvbook/book.h"

enum { KVB_SENSITIVITY_WINDOW = 64 };

typedef struct kvb_sensitivity kvb_sensitivity;

/* Over the first `chunks` chunks of the capture's text. Progress is reported as "sensitivity" in chunks. KVB_E_CANCELLED,
 * KVB_E_MEMORY, and what a forward pass may return. Tokens whose gradient is not finite are left out. The same for any
 * number of threads. */
kvb_status kvb_sensitivity_measure(const kvb_model *model, const kvb_text *text, const kvb_capture_options *options,
                                   uint64_t chunks, kvb_sensitivity **sensitivity, kvb_error *err);
void kvb_sensitivity_free(kvb_sensitivity *s); /* NULL is allowed */

/* [G][D][D], symmetric: the sum of g g^T over the counted tokens, over the number of all tokens. */
const float *kvb_sensitivity_get(const kvb_sensitivity *s, uint32_t layer, kvb_kind kind);

#endif
