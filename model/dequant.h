/* One block each of ggml's k-quants to float32, and what every block type reads. */
#ifndef KVB_MODEL_DEQUANT_H
#define KVB_MODEL_DEQUANT_H

#include <stdint.h>

#include "format/base/half.h"

static inline uint16_t kvb_dequant_u16(const uint8_t *b)
{
    return (uint16_t)(b[0] | b[1] << 8);
}

static inline float kvb_dequant_half(const uint8_t *b)
{
    return kvb_half_to_float(kvb_dequant_u16(b));
}

void kvb_dequant_q4_k(const uint8_t *block, float out[256]);
void kvb_dequant_q5_k(const uint8_t *block, float out[256]);
void kvb_dequant_q6_k(const uint8_t *block, float out[256]);

#endif
