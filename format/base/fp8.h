/* FP8 in its form e4m3 (OCP OFP8): 1 sign, 4 exponent bits with a bias of 7, 3 mantissa bits; no infinities, 0x7f and 0xff are NaN, the
 * largest number is 448, the smallest above zero 2^-9. Round to nearest even. */
#ifndef KVB_BASE_FP8_H
#define KVB_BASE_FP8_H

#include <stdint.h>

/* What is beyond the range saturates at +-448, also infinities; NaN stays NaN. */
uint8_t kvb_fp8_from_float(float value);
float kvb_fp8_to_float(uint8_t byte);

#endif
