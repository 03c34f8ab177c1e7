/* GGUF files, versions 2 and 3: metadata and tensors over a memory map. Everything is validated at open: counts, string
 * lengths, types, alignment, offsets and sizes inside the file, no duplicate names or keys. */
#ifndef KVB_MODEL_GGUF_H
#define KVB_MODEL_GGUF_H

#include <stdbool.h>

#include "model/tensor.h"

typedef struct kvb_gguf kvb_gguf;

typedef enum kvb_gguf_type {
    KVB_GGUF_U8, KVB_GGUF_I8, KVB_GGUF_U16, KVB_GGUF_I16, KVB_GGUF_U32, KVB_GGUF_I32, KVB_GGUF_F32, KVB_GGUF_BOOL,
    KVB_GGUF_STRING, KVB_GGUF_ARRAY, KVB_GGUF_U64, KVB_GGUF_I64, KVB_GGUF_F64,
} kvb_gguf_type;

/* KVB_E_IO where the file cannot be read, KVB_E_FORMAT where anything in it is wrong. Tensor types that we cannot read
 * are no error here: whoever uses such a tensor says so. */
kvb_status kvb_gguf_open(const char *path, kvb_gguf **gguf, kvb_error *err);
/* The same over bytes that outlive it; `name` stands for the path. */
kvb_status kvb_gguf_open_memory(const void *bytes, size_t size, const char *name, kvb_gguf **gguf, kvb_error *err);
/* NULL is allowed. */
void kvb_gguf_close(kvb_gguf *gguf);

bool kvb_gguf_has(const kvb_gguf *g, const char *key);
/* Scalars of any integer (or float) type; false where the key is missing, of another type or out of range. */
bool kvb_gguf_get_u64(const kvb_gguf *g, const char *key, uint64_t *value);
bool kvb_gguf_get_f64(const kvb_gguf *g, const char *key, double *value);
bool kvb_gguf_get_bool(const kvb_gguf *g, const char *key, bool *value);
/* A string in place: not NUL-terminated. */
bool kvb_gguf_get_string(const kvb_gguf *g, const char *key, const char **bytes, uint64_t *size);
/* Arrays: length and element type; then elements by index (constant time for strings too). */
bool kvb_gguf_get_array(const kvb_gguf *g, const char *key, kvb_gguf_type *type, uint64_t *count);
bool kvb_gguf_array_string(const kvb_gguf *g, const char *key, uint64_t i, const char **bytes, uint64_t *size);
bool kvb_gguf_array_u64(const kvb_gguf *g, const char *key, uint64_t i, uint64_t *value);
bool kvb_gguf_array_f64(const kvb_gguf *g, const char *key, uint64_t i, double *value);

uint64_t kvb_gguf_tensor_count(const kvb_gguf *g);
const kvb_tensor *kvb_gguf_tensor_at(const kvb_gguf *g, uint64_t i);
/* NULL where there is none. Binary search or hash, not a scan. */
const kvb_tensor *kvb_gguf_tensor(const kvb_gguf *g, const char *name);

const char *kvb_gguf_path(const kvb_gguf *g);
/* The metadata block (header to the end of the tensor infos) and the tensor data, for identity hashes. */
void kvb_gguf_spans(const kvb_gguf *g, const uint8_t **meta, uint64_t *meta_size, const uint8_t **data,
                    uint64_t *data_size);

#endif
