/* How calls of CUDA fail in calibration and scoring. */
#ifndef KVB_CUDA_TRY_CUH
#define KVB_CUDA_TRY_CUH

#include <cuda_runtime.h>

extern "C" {
#include "format/base/fail.h"
}

/* hint: what to do where device memory runs out. */
static inline kvb_status kvb_cuda_fail(kvb_error *err, const char *what, const char *hint, cudaError_t code)
{
    (void)cudaGetLastError();
    if (code == cudaErrorMemoryAllocation)
        return kvb_fail(err, KVB_E_MEMORY, "GPU", "%s: out of device memory; %s", what, hint);
    return kvb_fail(err, KVB_E_DEVICE, "GPU", "%s: %s", what, cudaGetErrorString(code));
}

/* Makes the call unless something failed before; memory_hint is the file's. */
#define TRY(status, err, what, call)                                           \
    do {                                                                       \
        if ((status) == KVB_OK) {                                              \
            const cudaError_t code_ = (call);                                  \
            if (code_ != cudaSuccess)                                          \
                (status) = kvb_cuda_fail((err), (what), memory_hint, code_);   \
        }                                                                      \
    } while (0)

#endif
