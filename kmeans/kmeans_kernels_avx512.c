#include "kmeans/kmeans_kernels.h"

#if defined(__AVX512F__)
#include "kmeans/kmeans_kernels_body.h"

const kvb_kmeans_kernels *kvb_kmeans_kernels_avx512(void)
{
    static const kvb_kmeans_kernels kernels = {accumulate, candidates};
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") ? &kernels : NULL;
}
#else
const kvb_kmeans_kernels *kvb_kmeans_kernels_avx512(void)
{
    return NULL;
}
#endif
