#define ADD_SQUARE(sum, x) ((sum) + (x) * (x))
#include "kmeans/kmeans_kernels_body.h"

const kvb_kmeans_kernels *kvb_kmeans_kernels_plain(void)
{
    static const kvb_kmeans_kernels kernels = {accumulate, candidates, weigh};
    return &kernels;
}
