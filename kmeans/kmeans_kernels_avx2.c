#include "kmeans/kmeans_kernels.h"

#if defined(__AVX2__)
#define ADD_SQUARE(sum, x) ((sum) + (x) * (x))
#include "kmeans/kmeans_kernels_body.h"

const kvb_kmeans_kernels *kvb_kmeans_kernels_avx2(void)
{
    static const kvb_kmeans_kernels kernels = {accumulate, candidates, weigh};
    return __builtin_cpu_supports("avx2") ? &kernels : NULL;
}
#else
const kvb_kmeans_kernels *kvb_kmeans_kernels_avx2(void)
{
    return NULL;
}
#endif
