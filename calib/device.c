#include "calib/device.h"

#include <string.h>

#include "format/base/fail.h"

#ifdef KVB_CUDA
#include "cuda/calib/cuda_kmeans.h"
#endif

/* "0,2": numbers below KVB_MOST_GPUS, each once. */
static bool parse_list(const char *text, kvb_device *device)
{
    *device = 0;
    for (;; text++) {
        uint32_t number = 0, digits = 0;
        for (; *text >= '0' && *text <= '9' && digits < 3; text++, digits++)
            number = 10 * number + (uint32_t)(*text - '0');
        if (digits == 0 || number >= KVB_MOST_GPUS || (*device >> number & 1) != 0)
            return false;
        *device |= (kvb_device)1 << number;
        if (*text == '\0')
            return true;
        if (*text != ',')
            return false;
    }
}

bool kvb_device_parse(const char *name, kvb_device *device)
{
    *device = strcmp(name, "cuda") == 0 ? KVB_DEVICE_CUDA : strcmp(name, "cuda:all") == 0 ? KVB_DEVICE_ALL : KVB_DEVICE_CPU;
    return *device != KVB_DEVICE_CPU || strcmp(name, "cpu") == 0 || (strncmp(name, "cuda:", 5) == 0 && parse_list(name + 5, device));
}

#ifdef KVB_CUDA
static kvb_status find_gpus(kvb_device device, uint32_t *gpu, uint32_t *count, kvb_error *err)
{
    uint32_t there = 0;
    kvb_status status = KVB_OK;
    if (device == KVB_DEVICE_ALL) {
        status = kvb_cuda_points_devices(&there, err);
        there = there < KVB_MOST_GPUS ? there : KVB_MOST_GPUS;
        device = there > 0 ? ((kvb_device)1 << there) - 1 : KVB_DEVICE_CUDA;
    }
    for (uint32_t i = 0; i < KVB_MOST_GPUS && status == KVB_OK; i++)
        if ((device >> i & 1) != 0) {
            status = kvb_cuda_points_device((int)i, err);
            gpu[(*count)++] = i;
        }
    return status;
}
#else
static kvb_status find_gpus(kvb_device device, uint32_t *gpu, uint32_t *count, kvb_error *err)
{
    (void)device, (void)gpu, (void)count;
    return kvb_fail(err, KVB_E_DEVICE, "--device cuda", "this build has no CUDA: install the CUDA toolkit and build with "
                                                        "`make CUDA=1`, or use --device cpu");
}
#endif

kvb_status kvb_device_gpus(kvb_device device, uint32_t gpu[KVB_MOST_GPUS], uint32_t *count, kvb_error *err)
{
    *count = 0;
    return device == KVB_DEVICE_CPU ? KVB_OK : find_gpus(device, gpu, count, err);
}

kvb_status kvb_device_check(kvb_device device, kvb_error *err)
{
    uint32_t gpu[KVB_MOST_GPUS], count;
    return kvb_device_gpus(device, gpu, &count, err);
}
