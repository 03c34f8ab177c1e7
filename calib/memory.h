/* What a calibration takes at its peak, from sizes alone: the same on every machine, for any number of threads, because the rows that
 * are kept depend on it. */
#ifndef KVB_CALIB_MEMORY_H
#define KVB_CALIB_MEMORY_H

#include "calib/capture.h"

/* Bytes whatever the number of rows: the process, the model's weights, the tokens, and one chunk's pass through the model, with a
 * backward pass where sensitivities are measured or gradients captured. */
uint64_t kvb_memory_fixed(const kvb_model *model, const kvb_text *text, uint32_t ctx, bool backward);
/* Bytes that one more row takes: captured, and moved and cut into points while its widest layer is trained. */
uint64_t kvb_memory_row(const kvb_layer *geometry, uint32_t layers, bool gradients);

#endif
