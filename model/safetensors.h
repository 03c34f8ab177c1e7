/* safetensors files: named arrays behind a JSON header (spec of huggingface/safetensors). A checked reader over a
 * memory map: everything in the header is validated at open, array contents are never touched.
 *
 * Refused: a header over 100 MB or not starting with '{'; anything but UTF-8 JSON; duplicate names; unknown or missing
 * members; unknown dtypes; a size that is not shape times dtype; arrays that overlap, leave a hole or do not end where
 * the file ends; metadata that are not strings. Shared by any number of threads once open. */
#ifndef KVB_MODEL_SAFETENSORS_H
#define KVB_MODEL_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "kvbook/status.h"

typedef struct kvb_safetensors kvb_safetensors;

typedef enum kvb_st_dtype {
    KVB_ST_BOOL, KVB_ST_U8, KVB_ST_I8, KVB_ST_F8_E5M2, KVB_ST_F8_E4M3, KVB_ST_I16, KVB_ST_U16, KVB_ST_F16, KVB_ST_BF16,
    KVB_ST_I32, KVB_ST_U32, KVB_ST_F32, KVB_ST_F64, KVB_ST_I64, KVB_ST_U64,
} kvb_st_dtype;

enum { KVB_ST_MOST_DIMS = 8 };

typedef struct kvb_st_tensor {
    const char *name;
    kvb_st_dtype dtype;
    uint32_t dims;                     /* 0 for a scalar */
    uint64_t shape[KVB_ST_MOST_DIMS];  /* slowest first: [G, n, D] is {G, n, D} */
    const uint8_t *bytes;              /* in the map; aligned only if the writer aligned it */
    uint64_t size;
    uint64_t offset;                   /* in the file */
} kvb_st_tensor;

kvb_status kvb_safetensors_open(const char *path, kvb_safetensors **st, kvb_error *err);
/* The same over bytes that outlive the reader; `name` stands for the path in errors. */
kvb_status kvb_safetensors_open_memory(const void *bytes, size_t size, const char *name, kvb_safetensors **st,
                                       kvb_error *err);
void kvb_safetensors_close(kvb_safetensors *st);

size_t kvb_safetensors_count(const kvb_safetensors *st);
/* In order of name. */
const kvb_st_tensor *kvb_safetensors_at(const kvb_safetensors *st, size_t i);
/* NULL where there is none. */
const kvb_st_tensor *kvb_safetensors_find(const kvb_safetensors *st, const char *name);
/* A value of __metadata__, or NULL. */
const char *kvb_safetensors_metadata(const kvb_safetensors *st, const char *key);
const char *kvb_safetensors_path(const kvb_safetensors *st);

/* "F16" and so on, and the bytes of one element. */
const char *kvb_st_dtype_name(kvb_st_dtype dtype);
uint32_t kvb_st_dtype_bytes(kvb_st_dtype dtype);

#endif
