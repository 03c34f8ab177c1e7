/* The gradient of a loss over a chunk of text with respect to every key before RoPE and every value of every layer, by one
 * backward pass. What sensitivities (calib/sensitivity.h) and Fisher weights are made of. */
#ifndef KVB_CALIB_TEXT_GRADIENT_H
#define KVB_CALIB_TEXT_GRADIENT_H

#include "calib/capture.h"

/* Which token's log-probability is differentiated at each position. */
typedef enum kvb_gradient_target {
    KVB_TARGET_NEXT = 0,  /* the text's next one, but at a chunk's last position */
    KVB_TARGET_DRAWN = 1, /* one drawn from the model's own prediction, by the seed and the chunk's number */
} kvb_gradient_target;

typedef struct kvb_text_gradient kvb_text_gradient;

/* For chunks of options->ctx tokens. Reads of a token by its own query and the window - 1 after it do not count; window 0: all
 * reads count. KVB_E_MEMORY only. */
kvb_status kvb_text_gradient_create(const kvb_model *model, const kvb_capture_options *options, kvb_gradient_target target,
                                    uint32_t window, kvb_text_gradient **gradient, kvb_error *err);
void kvb_text_gradient_destroy(kvb_text_gradient *gradient); /* NULL is allowed */

/* One layer's gradients of the sum of log-probabilities, [G][T][D]; layers come from the last to the first. What it returns
 * other than KVB_OK ends the run. */
typedef kvb_status (*kvb_gradient_fn)(void *user, const kvb_attention_call *call, const float *d_keys, const float *d_values,
                                      kvb_error *err);

/* Runs one chunk, counted from options->skip. Returns what a forward pass or `see` may return. The same for any number of
 * threads. */
kvb_status kvb_text_gradient_run(kvb_text_gradient *gradient, const kvb_text *text, uint64_t chunk, kvb_gradient_fn see,
                                 void *user, kvb_error *err);

#endif
