/* The k-quants: super-blocks of 256 elements, whose sub-blocks have scales of 6 or 8 bits times one half float. */
#include "model/dequant.h"

/* Eight 6-bit scales and eight 6-bit minima in 12 bytes: the first four of each in bytes 0..7, low six bits; the
 * others' low four bits in bytes 8..11 and their high two bits on top of bytes 0..7. */
static void unpack_scale(const uint8_t *s, unsigned i, unsigned *scale, unsigned *min)
{
    if (i < 4) {
        *scale = s[i] & 63u;
        *min = s[i + 4] & 63u;
    } else {
        *scale = (s[i + 4] & 15u) | (s[i - 4] >> 6u) << 4u;
        *min = (s[i + 4] >> 4u) | (s[i] >> 6u) << 4u;
    }
}

void kvb_dequant_q4_k(const uint8_t *block, float out[256])
{
    float d = kvb_dequant_half(block), d_min = kvb_dequant_half(block + 2);
    const uint8_t *q = block + 16;
    for (unsigned part = 0; part < 8; part++) {
        unsigned scale, min, shift = part % 2 * 4;
        unpack_scale(block + 4, part, &scale, &min);
        float factor = d * (float)scale, offset = d_min * (float)min;
        for (unsigned i = 0; i < 32; i++)
            out[part * 32 + i] = factor * (float)(q[part / 2 * 32 + i] >> shift & 15) - offset;
    }
}

void kvb_dequant_q5_k(const uint8_t *block, float out[256])
{
    float d = kvb_dequant_half(block), d_min = kvb_dequant_half(block + 2);
    const uint8_t *high = block + 16, *q = block + 48;
    for (unsigned part = 0; part < 8; part++) {
        unsigned scale, min, shift = part % 2 * 4;
        unpack_scale(block + 4, part, &scale, &min);
        float factor = d * (float)scale, offset = d_min * (float)min;
        for (unsigned i = 0; i < 32; i++) {
            unsigned value = ((unsigned)q[part / 2 * 32 + i] >> shift & 15u) | ((unsigned)high[i] >> part & 1u) << 4u;
            out[part * 32 + i] = factor * (float)value - offset;
        }
    }
}

/* Each half of 128 elements: 64 bytes of low nibbles, 32 bytes of high bit pairs, 8 scales of 16 elements each. */
void kvb_dequant_q6_k(const uint8_t *block, float out[256])
{
    float d = kvb_dequant_half(block + 208);
    for (unsigned i = 0; i < 256; i++) {
        unsigned half = i / 128, quarter = i / 32 % 4, lane = i % 32;
        unsigned low = (unsigned)block[half * 64 + quarter % 2 * 32 + lane] >> (quarter / 2 * 4) & 15u;
        unsigned high = (unsigned)block[128 + half * 32 + lane] >> (quarter * 2) & 3u;
        float scale = d * (float)(int8_t)block[192 + i / 16];
        out[i] = scale * (float)((int)(low | high << 4u) - 32);
    }
}
