#include "format/base/fp8.h"

#include <math.h>

enum { MOST = 0x7e, NOT_A_NUMBER = 0x7f };

uint8_t kvb_fp8_from_float(float value)
{
    const unsigned sign = signbit(value) ? 0x80 : 0;
    const float x = fabsf(value);
    int exponent;
    if (isnan(value))
        return (uint8_t)(sign | NOT_A_NUMBER);
    if (x >= 448.0f)
        return (uint8_t)(sign | MOST);
    if (x < 0x1p-6f) /* steps of 2^-9, the last of which is the least normal number */
        return (uint8_t)(sign | (unsigned)rintf(x * 0x1p9f));
    (void)frexpf(x, &exponent); /* x = m 2^exponent, m from 1/2 on */
    /* Eighths of 2^(exponent-1), 8 .. 16: 16 is the next exponent's 8. */
    const unsigned eighths = (unsigned)rintf(ldexpf(x, 4 - exponent));
    return (uint8_t)(sign | ((unsigned)(exponent + 5) * 8 + eighths));
}

float kvb_fp8_to_float(uint8_t byte)
{
    const int exponent = byte >> 3 & 15, mantissa = byte & 7;
    const float x = (byte & 0x7f) == NOT_A_NUMBER ? NAN : exponent == 0 ? ldexpf((float)mantissa, -9) : ldexpf((float)(8 + mantissa), exponent - 10);
    return byte >> 7 != 0 ? -x : x;
}
