/* The builds of kvb_kernels: each gives its table, or NULL where the compiler did not target it. */
#ifndef KVB_BASE_KERNELS_ISA_H
#define KVB_BASE_KERNELS_ISA_H

#include "format/base/kernels.h"

const kvb_kernels *kvb_kernels_plain(void);
const kvb_kernels *kvb_kernels_avx2(void);
const kvb_kernels *kvb_kernels_avx512(void);

#endif
