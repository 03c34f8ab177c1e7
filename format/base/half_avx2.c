#include "format/base/half_avx2.h"

#if defined(__x86_64__) && defined(__F16C__) && defined(__AVX2__)
#include <immintrin.h>
#include <stdbool.h>

/* Every machine with AVX2 and FMA has F16C, whose own name clang before 15 does not know. */
static bool machine_has_f16c(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

/* Finite values beyond the largest half become it; the conversion alone would make them infinities. */
static __m256 saturate(__m256 x)
{
    const __m256 sign_bit = _mm256_set1_ps(-0.0f);
    const __m256 largest = _mm256_set1_ps(65504.0f);
    __m256 magnitude = _mm256_andnot_ps(sign_bit, x);
    __m256 over = _mm256_and_ps(_mm256_cmp_ps(magnitude, largest, _CMP_GT_OQ),
                                _mm256_cmp_ps(magnitude, _mm256_set1_ps(__builtin_inff()), _CMP_LT_OQ));
    return _mm256_blendv_ps(x, _mm256_or_ps(largest, _mm256_and_ps(sign_bit, x)), over);
}

size_t kvb_half_from_floats_f16c(uint16_t *half, const float *values, size_t count)
{
    size_t i = 0;
    if (count < 8 || !machine_has_f16c())
        return 0;
    for (; i + 8 <= count; i += 8) {
        __m128i h = _mm256_cvtps_ph(saturate(_mm256_loadu_ps(values + i)), _MM_FROUND_TO_NEAREST_INT);
        _mm_storeu_si128((__m128i *)(void *)(half + i), h);
    }
    return i;
}

size_t kvb_half_to_floats_f16c(float *values, const uint16_t *half, size_t count)
{
    size_t i = 0;
    if (count < 8 || !machine_has_f16c())
        return 0;
    for (; i + 8 <= count; i += 8)
        _mm256_storeu_ps(values + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(half + i))));
    return i;
}

#else

size_t kvb_half_from_floats_f16c(uint16_t *half, const float *values, size_t count)
{
    (void)half, (void)values, (void)count;
    return 0;
}

size_t kvb_half_to_floats_f16c(float *values, const uint16_t *half, size_t count)
{
    (void)half, (void)values, (void)count;
    return 0;
}
#endif
