#include <stdbool.h>

#include "format/base/nearest_internal.h"

#if defined(__AVX512F__)
#include <immintrin.h>

#define LANES 16
#define VF __m512
#define VI __m512i
#define V_LOAD(p) _mm512_loadu_ps(p)
#define V_STORE(p, v) _mm512_storeu_ps(p, v)
#define VI_STORE(p, v) _mm512_storeu_si512(p, v)
#define V_SET1(s) _mm512_set1_ps(s)
#define VI_SET1(s) _mm512_set1_epi32((int)(s))
#define V_FMA(x, b, a) _mm512_fmadd_ps(x, b, a)
#define V_NORM(x, a) _mm512_fmadd_ps(x, x, a)
#define V_MIN(low, a) _mm512_min_ps(low, a)
#define V_MAX0(a) _mm512_max_ps(a, _mm512_setzero_ps())
#define V_TRACK(index, a, low, number) \
    ((index) = _mm512_mask_mov_epi32(index, _mm512_cmp_ps_mask(a, low, _CMP_LT_OQ), VI_SET1(number)))
#define V_EQUAL_BITS(a, b) ((uint32_t)_mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ))
#define KERNEL_POINTS 3
#define KERNEL_CENTROIDS 8
#include "format/base/nearest_kernel.h"

const kvb_nearest_build *kvb_nearest_build_avx512(void)
{
    static const kvb_nearest_build build = {"avx512", tiles_all, search_row};
    bool able = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return able ? &build : NULL;
}
#else
const kvb_nearest_build *kvb_nearest_build_avx512(void)
{
    return NULL;
}
#endif
