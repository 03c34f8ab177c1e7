#include "kmeans/kmeans_kernels.h"

#include <stdbool.h>

#if defined(__AVX512F__)
#include <immintrin.h>

#define ADD_SQUARE(sum, x) ((vec16f)_mm512_fmadd_ps((__m512)(x), (__m512)(x), (__m512)(sum)))
#include "kmeans/kmeans_kernels_body.h"

const kvb_kmeans_kernels *kvb_kmeans_kernels_avx512(void)
{
    static const kvb_kmeans_kernels kernels = {accumulate, candidates, weigh};
    bool able = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return able ? &kernels : NULL;
}
#else
const kvb_kmeans_kernels *kvb_kmeans_kernels_avx512(void)
{
    return NULL;
}
#endif
