/* CRC-32 by folding, after Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction" (Intel,
 * 2009), in bit-reflected form. The bytes are a polynomial over GF(2); what stands n bits before other bytes may be replaced
 * by its product with x^n mod P added to them. */
#include "format/base/crc_clmul.h"

enum { LEAST = 64 };

#ifdef __x86_64__
#include <immintrin.h>

#define CLMUL __attribute__((target("pclmul,sse4.1")))

static inline CLMUL __m128i load(const uint8_t *p)
{
    return _mm_loadu_si128((const __m128i *)(const void *)p);
}

/* Moves `x` to where `next` stands: by[0], by[1] are x^(n+32), x^(n-32) mod P, reflected, for a distance of n bits. */
static inline CLMUL __m128i fold(__m128i x, __m128i by, __m128i next)
{
    const __m128i low = _mm_clmulepi64_si128(x, by, 0x00), high = _mm_clmulepi64_si128(x, by, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

/* 128 bits mod P: folded to 64, to 32, then Barrett's reduction. */
static CLMUL uint32_t reduce(__m128i x, __m128i by)
{
    const __m128i low32 = _mm_setr_epi32(-1, 0, -1, 0), by64 = _mm_set_epi64x(0, 0x163cd6124);
    const __m128i barrett = _mm_set_epi64x(0x1f7011641, 0x1db710641); /* floor(x^64 / P), P */
    x = _mm_xor_si128(_mm_srli_si128(x, 8), _mm_clmulepi64_si128(x, by, 0x10));
    x = _mm_xor_si128(_mm_srli_si128(x, 4), _mm_clmulepi64_si128(_mm_and_si128(x, low32), by64, 0x00));
    __m128i q = _mm_clmulepi64_si128(_mm_and_si128(x, low32), barrett, 0x10);
    q = _mm_clmulepi64_si128(_mm_and_si128(q, low32), barrett, 0x00);
    return (uint32_t)_mm_extract_epi32(_mm_xor_si128(x, q), 1);
}

static CLMUL uint32_t fold_all(uint32_t crc, const uint8_t *bytes, size_t size)
{
    const __m128i by512 = _mm_set_epi64x(0x1c6e41596, 0x154442bd4), by128 = _mm_set_epi64x(0xccaa009e, 0x1751997d0);
    __m128i x[4];
    size_t at = LEAST;
    for (int i = 0; i < 4; i++)
        x[i] = load(bytes + 16 * i);
    x[0] = _mm_xor_si128(x[0], _mm_cvtsi32_si128((int)~crc));
    for (; at + LEAST <= size; at += LEAST)
        for (int i = 0; i < 4; i++)
            x[i] = fold(x[i], by512, load(bytes + at + 16 * i));
    for (int i = 1; i < 4; i++)
        x[i] = fold(x[i - 1], by128, x[i]);
    for (; at < size; at += 16)
        x[3] = fold(x[3], by128, load(bytes + at));
    return ~reduce(x[3], by128);
}

size_t kvb_crc_clmul(uint32_t *crc, const uint8_t *bytes, size_t size)
{
    if (size < LEAST || !__builtin_cpu_supports("pclmul") || !__builtin_cpu_supports("sse4.1"))
        return 0;
    size -= size % 16;
    *crc = fold_all(*crc, bytes, size);
    return size;
}

#else

size_t kvb_crc_clmul(uint32_t *crc, const uint8_t *bytes, size_t size)
{
    (void)crc, (void)bytes, (void)size;
    return 0;
}
#endif
