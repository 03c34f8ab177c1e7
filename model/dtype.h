/* Every tensor type of ggml by number: also those that we only know by name and size. */
#ifndef KVB_MODEL_DTYPE_H
#define KVB_MODEL_DTYPE_H

#include <stdbool.h>
#include <stdint.h>

typedef struct kvb_dtype_info {
    uint32_t dtype;
    const char *name;
    uint16_t elements, bytes; /* of a block */
    bool readable;            /* kvb_dequantise() knows it */
} kvb_dtype_info;

/* NULL for numbers that are none of ggml's. */
const kvb_dtype_info *kvb_dtype_find(uint32_t dtype);

#endif
