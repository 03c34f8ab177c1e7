#include "format/base/kernels_isa.h"

#define KERNEL_NAME "plain"
#define LANES 4
#define MR 4
#define NV 2
#define VMAX(a, b) vector_max(a, b)

typedef float max_vec __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t max_ivec __attribute__((vector_size(16), aligned(4), may_alias));

static inline max_vec vector_max(max_vec a, max_vec b)
{
    max_ivec keep = a > b;
    return (max_vec)((keep & (max_ivec)a) | (~keep & (max_ivec)b));
}

#include "format/base/kernels_impl.h"

const kvb_kernels *kvb_kernels_plain(void)
{
    return &table;
}
