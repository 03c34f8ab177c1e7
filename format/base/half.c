#include "format/base/half.h"

#include <string.h>

#include "format/base/half_avx2.h"

static uint32_t float_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float bits_float(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Drops the low `shift` bits, rounding to nearest, ties to even. */
static uint32_t round_shift(uint32_t x, unsigned shift)
{
    uint32_t half = 1u << (shift - 1);
    uint32_t odd = (x >> shift) & 1;
    return (x + half - 1 + odd) >> shift;
}

uint16_t kvb_half_from_float(float value)
{
    uint32_t bits = float_bits(value);
    uint32_t sign = (bits >> 16) & 0x8000;
    uint32_t magnitude = bits & 0x7FFFFFFF;
    if (magnitude > 0x7F800000) /* NaN: quiet, the top of its payload kept, as the hardware does */
        return (uint16_t)(sign | 0x7E00 | ((magnitude >> 13) & 0x3FF));
    if (magnitude == 0x7F800000)
        return (uint16_t)(sign | 0x7C00);
    if (magnitude > 0x477FE000) /* 65504 */
        return (uint16_t)(sign | 0x7BFF);
    if (magnitude >= 0x38800000) /* 2^-14: normal; the exponent's bias changes from 127 to 15 */
        return (uint16_t)(sign | round_shift(magnitude - 0x38000000, 13));
    if (magnitude < 0x33000000) /* under half of the smallest denormal, 2^-25 */
        return (uint16_t)sign;
    uint32_t mantissa = (magnitude & 0x7FFFFF) | 0x800000;
    return (uint16_t)(sign | round_shift(mantissa, 126 - (magnitude >> 23)));
}

float kvb_half_to_float(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    uint32_t exponent = (half >> 10) & 31;
    uint32_t mantissa = half & 0x3FF;
    if (exponent == 31)
        return bits_float(sign | 0x7F800000 | (mantissa ? 0x400000 : 0) | mantissa << 13);
    if (exponent > 0)
        return bits_float(sign | (exponent + 112) << 23 | mantissa << 13);
    /* A denormal is mantissa * 2^-24, which float32 holds exactly. */
    float magnitude = (float)mantissa * 0x1p-24f;
    return bits_float(sign | float_bits(magnitude));
}

float kvb_bfloat_to_float(uint16_t bfloat)
{
    return bits_float((uint32_t)bfloat << 16);
}

void kvb_half_from_floats(uint16_t *half, const float *values, size_t count)
{
    size_t done = kvb_half_from_floats_f16c(half, values, count);
    for (size_t i = done; i < count; i++)
        half[i] = kvb_half_from_float(values[i]);
}

void kvb_half_to_floats(float *values, const uint16_t *half, size_t count)
{
    size_t done = kvb_half_to_floats_f16c(values, half, count);
    for (size_t i = done; i < count; i++)
        values[i] = kvb_half_to_float(half[i]);
}

void kvb_round_to_half(float *x, size_t count)
{
    uint16_t half[256];
    for (size_t i = 0, many; i < count; i += many) {
        many = count - i < 256 ? count - i : 256;
        kvb_half_from_floats(half, x + i, many);
        kvb_half_to_floats(x + i, half, many);
    }
}

/* Whole runs are asked first, without a branch in them: a book is checked at the rate of the memory. */
size_t kvb_half_first_bad(const uint16_t *half, size_t count)
{
    enum { RUN = 1024 };
    size_t i = 0;
    for (; i + RUN <= count; i += RUN) {
        uint16_t any = 0;
        for (size_t j = 0; j < RUN; j++)
            any |= (uint16_t)(((half[i + j] & 0x7C00) + 0x0400) & 0x8000);
        if (any != 0)
            break;
    }
    while (i < count && (half[i] & 0x7C00) != 0x7C00)
        i++;
    return i;
}
