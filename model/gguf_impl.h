/* What gguf.c (reading and validating) and gguf_query.c (answering) share. */
#ifndef KVB_MODEL_GGUF_IMPL_H
#define KVB_MODEL_GGUF_IMPL_H

#include "format/base/cursor.h"
#include "format/base/mapfile.h"
#include "model/gguf.h"

/* One key of the metadata; everything points into the file. */
typedef struct gguf_entry {
    const char *key;
    size_t key_size;
    kvb_gguf_type type;
    kvb_gguf_type element; /* of an array */
    uint64_t count;        /* of an array */
    uint64_t at;           /* offset of the scalar, string or first element */
    uint64_t *strings;     /* offsets of an array's strings */
} gguf_entry;

struct kvb_gguf {
    kvb_mapfile map; /* not open where the bytes are the caller's */
    const uint8_t *bytes;
    size_t size;
    char *path;
    gguf_entry *entries; /* sorted by key once open */
    size_t entry_count;
    kvb_tensor *tensors; /* in the file's order */
    size_t tensor_count;
    const kvb_tensor **by_name; /* sorted */
    char *names;
    uint64_t alignment;
    uint64_t meta_size, data_at;
};

/* Bytes of a scalar type, 0 for strings, arrays and unknown numbers. */
unsigned kvb_gguf_scalar_size(uint32_t type);
/* Order of two byte strings: by bytes, the shorter first. */
int kvb_gguf_compare(const char *a, size_t a_size, const char *b, size_t b_size);

#endif
