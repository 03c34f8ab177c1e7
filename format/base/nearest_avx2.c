#include "format/base/nearest_internal.h"

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

#define LANES 8
#define VF __m256
#define VI __m256i
#define V_LOAD(p) _mm256_loadu_ps(p)
#define V_STORE(p, v) _mm256_storeu_ps(p, v)
#define VI_STORE(p, v) _mm256_storeu_si256((__m256i *)(void *)(p), v)
#define V_SET1(s) _mm256_set1_ps(s)
#define VI_SET1(s) _mm256_set1_epi32((int)(s))
#define V_FMA(x, b, a) _mm256_fmadd_ps(x, b, a)
#define V_NORM(x, a) _mm256_fmadd_ps(x, x, a)
#define V_MIN(low, a) _mm256_min_ps(low, a)
#define V_MAX0(a) _mm256_max_ps(a, _mm256_setzero_ps())
#define V_TRACK(index, a, low, number)                                                                       \
    ((index) = _mm256_blendv_epi8(index, VI_SET1(number), _mm256_castps_si256(_mm256_cmp_ps(a, low, _CMP_LT_OQ))))
#define V_EQUAL_BITS(a, b) ((uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)))
#define KERNEL_POINTS 2
#define KERNEL_CENTROIDS 4
#include "format/base/nearest_kernel.h"

const kvb_nearest_build *kvb_nearest_build_avx2(void)
{
    static const kvb_nearest_build build = {"avx2", tiles_all, search_row};
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &build : NULL;
}
#else
const kvb_nearest_build *kvb_nearest_build_avx2(void)
{
    return NULL;
}
#endif
