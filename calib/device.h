/* Where capture and training run. */
#ifndef KVB_CALIB_DEVICE_H
#define KVB_CALIB_DEVICE_H

#include <stdbool.h>
#include <stdint.h>

#include "kvbook/status.h"

/* The CPU is 0; else GPUs by their bits, or all there are. */
typedef uint64_t kvb_device;
#define KVB_DEVICE_CPU ((kvb_device)0)
#define KVB_DEVICE_CUDA ((kvb_device)1) /* the first GPU */
#define KVB_DEVICE_ALL UINT64_MAX
enum { KVB_MOST_GPUS = 63 };

/* "cpu", "cuda", "cuda:all", "cuda:1" or "cuda:0,2"; false for anything else. */
bool kvb_device_parse(const char *name, kvb_device *device);
/* Its GPUs, ascending; none for the CPU. KVB_E_DEVICE where this build or this machine lacks one of them. */
kvb_status kvb_device_gpus(kvb_device device, uint32_t gpu[KVB_MOST_GPUS], uint32_t *count, kvb_error *err);
/* The same answer without the list. */
kvb_status kvb_device_check(kvb_device device, kvb_error *err);

#endif
