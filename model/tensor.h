/* Tensors as a model file stores them, and their conversion to float32. */
#ifndef KVB_MODEL_TENSOR_H
#define KVB_MODEL_TENSOR_H

#include <stddef.h>
#include <stdint.h>

#include "kvbook/status.h"

/* The numbers are ggml's. */
typedef enum kvb_dtype {
    KVB_DTYPE_F32 = 0, KVB_DTYPE_F16 = 1, KVB_DTYPE_Q4_0 = 2, KVB_DTYPE_Q4_1 = 3, KVB_DTYPE_Q5_0 = 6,
    KVB_DTYPE_Q5_1 = 7, KVB_DTYPE_Q8_0 = 8, KVB_DTYPE_Q4_K = 12, KVB_DTYPE_Q5_K = 13, KVB_DTYPE_Q6_K = 14,
    KVB_DTYPE_BF16 = 30,
} kvb_dtype;

/* A row-major matrix or vector inside a mapped file. */
typedef struct kvb_tensor {
    const char *name;
    uint32_t dtype;    /* kvb_dtype, or another number of ggml's that we cannot read */
    uint32_t dims;     /* 1..4 */
    uint64_t shape[4]; /* shape[0] is the fastest: a weight W[out][in] has shape {in, out}, as in GGUF */
    const uint8_t *bytes;
    uint64_t size;
} kvb_tensor;

/* ggml's name of a type ("Q4_1"), also of those we cannot read; "type 99" never appears: unknown gives NULL. */
const char *kvb_dtype_name(uint32_t dtype);
/* Elements and bytes of one block of a type; false for types that we cannot read. */
int kvb_dtype_block(uint32_t dtype, uint32_t *elements, uint32_t *bytes);
/* `count` elements from element `first` (both multiples of the type's block) to float32. The type must be readable. */
void kvb_dequantise(const kvb_tensor *t, uint64_t first, uint64_t count, float *out);

#endif
