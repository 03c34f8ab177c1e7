#include "format/base/sha256_ni.h"

/* The machine is asked each time, since a library keeps no globals, and under a hypervisor asking takes as long as some KiB. */
enum { LEAST = 1 << 16 };

#ifdef __x86_64__
#include <cpuid.h>
#include <immintrin.h>

#define SHA __attribute__((target("sha,sse4.1,ssse3")))

static SHA void compress(__m128i *abef, __m128i *cdgh, const uint8_t block[64])
{
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203), abef_before = *abef, cdgh_before = *cdgh;
    __m128i w[4]; /* words 4*i to 4*i + 3 at i % 4 */
    for (unsigned i = 0; i < 16; i++) {
        __m128i *now = &w[i % 4];
        if (i < 4) {
            *now = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(const void *)(block + 16 * i)), swap);
        } else {
            const __m128i last = w[(i + 3) % 4], seventh = _mm_alignr_epi8(last, w[(i + 2) % 4], 4);
            *now = _mm_sha256msg2_epu32(_mm_add_epi32(_mm_sha256msg1_epu32(*now, w[(i + 1) % 4]), seventh), last);
        }
        const __m128i m = _mm_add_epi32(*now, _mm_loadu_si128((const __m128i *)(const void *)(kvb_sha256_constant + 4 * i)));
        *cdgh = _mm_sha256rnds2_epu32(*cdgh, *abef, m);
        *abef = _mm_sha256rnds2_epu32(*abef, *cdgh, _mm_shuffle_epi32(m, 0x0e));
    }
    *abef = _mm_add_epi32(*abef, abef_before);
    *cdgh = _mm_add_epi32(*cdgh, cdgh_before);
}

static SHA void compress_all(uint32_t state[8], const uint8_t *bytes, size_t size)
{
    __m128i *const low = (__m128i *)(void *)state, *const high = low + 1;
    const __m128i badc = _mm_shuffle_epi32(_mm_loadu_si128(low), 0xb1), hgfe = _mm_shuffle_epi32(_mm_loadu_si128(high), 0x1b);
    __m128i abef = _mm_alignr_epi8(badc, hgfe, 8), cdgh = _mm_blend_epi16(hgfe, badc, 0xf0);
    for (size_t at = 0; at < size; at += 64)
        compress(&abef, &cdgh, bytes + at);
    const __m128i feba = _mm_shuffle_epi32(abef, 0x1b), dchg = _mm_shuffle_epi32(cdgh, 0xb1);
    _mm_storeu_si128(low, _mm_blend_epi16(feba, dchg, 0xf0));
    _mm_storeu_si128(high, _mm_alignr_epi8(dchg, feba, 8));
}

static int is_able(void)
{
    unsigned a, b, c, d;
    return __builtin_cpu_supports("sse4.1") && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b >> 29 & 1) != 0;
}

size_t kvb_sha256_ni(uint32_t state[8], const uint8_t *bytes, size_t size)
{
    if (size < LEAST || !is_able())
        return 0;
    size -= size % 64;
    compress_all(state, bytes, size);
    return size;
}

#else

size_t kvb_sha256_ni(uint32_t state[8], const uint8_t *bytes, size_t size)
{
    (void)state, (void)bytes, (void)size;
    return 0;
}
#endif
