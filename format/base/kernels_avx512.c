#include "format/base/kernels_isa.h"

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#include <immintrin.h>
#define KERNEL_NAME "avx512"
#define LANES 16
#define MR 6
#define NV 4
#define VMAX(a, b) ((vec)_mm512_max_ps((__m512)(a), (__m512)(b)))
#include "format/base/kernels_impl.h"

const kvb_kernels *kvb_kernels_avx512(void)
{
    return &table;
}
#else
const kvb_kernels *kvb_kernels_avx512(void)
{
    return NULL;
}
#endif
