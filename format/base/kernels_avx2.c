#include "format/base/kernels_isa.h"

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#define KERNEL_NAME "avx2"
#define LANES 8
#define MR 6
#define NV 2
#define VMAX(a, b) ((vec)_mm256_max_ps((__m256)(a), (__m256)(b)))
#include "format/base/kernels_impl.h"

const kvb_kernels *kvb_kernels_avx2(void)
{
    return &table;
}
#else
const kvb_kernels *kvb_kernels_avx2(void)
{
    return NULL;
}
#endif
