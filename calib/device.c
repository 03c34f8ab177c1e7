#include "calib/device.h"

#include "format/base/fail.h"

#ifdef KVB_CUDA
#include "cuda/calib/cuda_kmeans.h"
#endif

kvb_status kvb_device_check(kvb_device device, kvb_error *err)
{
    if (device == KVB_DEVICE_CPU)
        return KVB_OK;
#ifdef KVB_CUDA
    return kvb_cuda_points_device(0, err);
#else
    return kvb_fail(err, KVB_E_DEVICE, "--device cuda", "this build has no CUDA: install the CUDA toolkit and build with "
                                                        "`make CUDA=1`, or use --device cpu");
#endif
}
