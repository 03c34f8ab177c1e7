/* Putting GGUF files together byte by byte, right or wrong, for tests. Out of memory ends the program. */
#ifndef KVB_TESTS_GGUF_BUILD_H
#define KVB_TESTS_GGUF_BUILD_H

#include <stddef.h>
#include <stdint.h>

typedef struct gguf_bytes {
    uint8_t *at;
    size_t size, room;
} gguf_bytes;

/* Zeroed to begin with. The counts in the header are those of the calls made, plus `extra_*`. */
typedef struct gguf_build {
    gguf_bytes entries, infos, data;
    uint64_t entry_count, tensor_count;
    uint64_t extra_entries, extra_tensors;
    uint32_t version;   /* 0: 3 */
    uint32_t alignment; /* 0: 32; what is written must be said with gguf_build_u32("general.alignment") as well */
} gguf_build;

void gguf_bytes_put(gguf_bytes *b, const void *bytes, size_t size);
void gguf_bytes_u32(gguf_bytes *b, uint32_t value);
void gguf_bytes_u64(gguf_bytes *b, uint64_t value);
void gguf_bytes_string(gguf_bytes *b, const char *text);

/* Key and type number; the value is appended to b->entries. */
void gguf_build_key(gguf_build *b, const char *key, uint32_t type);
void gguf_build_u32(gguf_build *b, const char *key, uint32_t value);
void gguf_build_f32(gguf_build *b, const char *key, float value);
void gguf_build_bool(gguf_build *b, const char *key, int value);
void gguf_build_string(gguf_build *b, const char *key, const char *value);
/* Key of an array; `count` elements are appended to b->entries. */
void gguf_build_array(gguf_build *b, const char *key, uint32_t element, uint64_t count);
/* Adds the tensor's bytes at the next aligned place. */
void gguf_build_tensor(gguf_build *b, const char *name, uint32_t dtype, uint32_t dims, const uint64_t *shape,
                       const void *bytes, size_t size);
/* The same without data, at an offset of the caller's. */
void gguf_build_info(gguf_build *b, const char *name, uint32_t dtype, uint32_t dims, const uint64_t *shape,
                     uint64_t offset);
/* The file, to be freed with free(); the builder is emptied. */
uint8_t *gguf_build_finish(gguf_build *b, size_t *size);

#endif
