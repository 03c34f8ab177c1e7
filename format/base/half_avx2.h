/* The F16C half of half.c. Each call converts as many leading values as it can and returns how many: none where the
 * machine or the compiler lacks F16C. The results are those of the scalar functions, bit for bit. */
#ifndef KVB_BASE_HALF_AVX2_H
#define KVB_BASE_HALF_AVX2_H

#include <stddef.h>
#include <stdint.h>

size_t kvb_half_from_floats_f16c(uint16_t *half, const float *values, size_t count);
size_t kvb_half_to_floats_f16c(float *values, const uint16_t *half, size_t count);

#endif
