/* Writing a GGUF file, version 3: strings as metadata, then tensors as their bytes stand. */
#ifndef KVB_MODEL_GGUF_WRITE_H
#define KVB_MODEL_GGUF_WRITE_H

#include "format/base/json.h"
#include "format/base/outfile.h"
#include "model/tensor.h"

/* Header, the members of `strings` (a JSON object of strings) as metadata, and what the file says of the tensors: of each name, dtype, dims,
 * shape (the fastest first) and size. Their bytes
 * follow in this order, each with kvb_gguf_write_pad() after it. KVB_E_USAGE where dims are not 1..4. */
kvb_status kvb_gguf_write_head(kvb_outfile *out, const kvb_json *strings, const kvb_tensor *tensor, uint64_t tensors, kvb_error *err);
/* Zeros after `size` bytes of a tensor, up to where the next one begins. */
kvb_status kvb_gguf_write_pad(kvb_outfile *out, uint64_t size, kvb_error *err);

#endif
