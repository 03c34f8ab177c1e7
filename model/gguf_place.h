/* From the tensor list of a GGUF file to tensors in place. */
#ifndef KVB_MODEL_GGUF_PLACE_H
#define KVB_MODEL_GGUF_PLACE_H

#include "model/gguf_impl.h"

/* A tensor as the list has it: not yet known to lie inside the file. */
typedef struct gguf_info {
    const char *name;
    size_t name_size;
    kvb_tensor tensor; /* dtype, dims, shape */
    uint64_t offset;   /* from the start of the data */
} gguf_info;

/* Checks names, offsets and sizes of infos[g->tensor_count] and fills g->tensors, by_name, names and data_at. */
kvb_status kvb_gguf_place(kvb_gguf *g, const gguf_info *infos, kvb_error *err);

#endif
