/* IEEE half and bfloat16 conversion, round to nearest even. To half: finite values beyond the range saturate at
 * +-65504 (an outlier must not become an infinity), infinities and NaN stay what they are. */
#ifndef KVB_BASE_HALF_H
#define KVB_BASE_HALF_H

#include <stddef.h>
#include <stdint.h>

uint16_t kvb_half_from_float(float value);
float kvb_half_to_float(uint16_t half);
float kvb_bfloat_to_float(uint16_t bfloat);

/* Bulk, with F16C where the machine has it; the same results as the scalar ones. */
void kvb_half_from_floats(uint16_t *half, const float *values, size_t count);
void kvb_half_to_floats(float *values, const uint16_t *half, size_t count);
/* The first that is infinite or NaN, or `count`. */
size_t kvb_half_first_bad(const uint16_t *half, size_t count);
/* x rounded to half floats, in place. */
void kvb_round_to_half(float *x, size_t count);

#endif
