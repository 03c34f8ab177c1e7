/* Where capture and training run. */
#ifndef KVB_CALIB_DEVICE_H
#define KVB_CALIB_DEVICE_H

#include "kvbook/status.h"

typedef enum kvb_device { KVB_DEVICE_CPU = 0, KVB_DEVICE_CUDA = 1 } kvb_device;

/* KVB_E_DEVICE where this build or this machine has none. */
kvb_status kvb_device_check(kvb_device device, kvb_error *err);

#endif
