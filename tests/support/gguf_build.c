#include "tests/support/gguf_build.h"

#include <stdlib.h>
#include <string.h>

void gguf_bytes_put(gguf_bytes *b, const void *bytes, size_t size)
{
    if (b->size + size > b->room) {
        b->room = 2 * (b->size + size) + 256;
        b->at = realloc(b->at, b->room);
        if (b->at == NULL)
            abort();
    }
    if (size > 0)
        memcpy(b->at + b->size, bytes, size);
    b->size += size;
}

void gguf_bytes_u32(gguf_bytes *b, uint32_t value)
{
    for (unsigned i = 0; i < 4; i++, value >>= 8)
        gguf_bytes_put(b, &(uint8_t){(uint8_t)value}, 1);
}

void gguf_bytes_u64(gguf_bytes *b, uint64_t value)
{
    gguf_bytes_u32(b, (uint32_t)value);
    gguf_bytes_u32(b, (uint32_t)(value >> 32));
}

void gguf_bytes_string(gguf_bytes *b, const char *text)
{
    gguf_bytes_u64(b, strlen(text));
    gguf_bytes_put(b, text, strlen(text));
}

void gguf_build_key(gguf_build *b, const char *key, uint32_t type)
{
    gguf_bytes_string(&b->entries, key);
    gguf_bytes_u32(&b->entries, type);
    b->entry_count++;
}

void gguf_build_u32(gguf_build *b, const char *key, uint32_t value)
{
    gguf_build_key(b, key, 4);
    gguf_bytes_u32(&b->entries, value);
}

void gguf_build_f32(gguf_build *b, const char *key, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    gguf_build_key(b, key, 6);
    gguf_bytes_u32(&b->entries, bits);
}

void gguf_build_bool(gguf_build *b, const char *key, int value)
{
    gguf_build_key(b, key, 7);
    gguf_bytes_put(&b->entries, &(uint8_t){(uint8_t)value}, 1);
}

void gguf_build_string(gguf_build *b, const char *key, const char *value)
{
    gguf_build_key(b, key, 8);
    gguf_bytes_string(&b->entries, value);
}

void gguf_build_array(gguf_build *b, const char *key, uint32_t element, uint64_t count)
{
    gguf_build_key(b, key, 9);
    gguf_bytes_u32(&b->entries, element);
    gguf_bytes_u64(&b->entries, count);
}

static uint32_t alignment_of(const gguf_build *b)
{
    return b->alignment ? b->alignment : 32;
}

static void pad(gguf_bytes *b, size_t alignment)
{
    while (b->size % alignment != 0)
        gguf_bytes_put(b, "", 1);
}

void gguf_build_info(gguf_build *b, const char *name, uint32_t dtype, uint32_t dims, const uint64_t *shape,
                     uint64_t offset)
{
    gguf_bytes_string(&b->infos, name);
    gguf_bytes_u32(&b->infos, dims);
    for (uint32_t i = 0; i < dims; i++)
        gguf_bytes_u64(&b->infos, shape[i]);
    gguf_bytes_u32(&b->infos, dtype);
    gguf_bytes_u64(&b->infos, offset);
    b->tensor_count++;
}

void gguf_build_tensor(gguf_build *b, const char *name, uint32_t dtype, uint32_t dims, const uint64_t *shape,
                       const void *bytes, size_t size)
{
    pad(&b->data, alignment_of(b));
    gguf_build_info(b, name, dtype, dims, shape, b->data.size);
    gguf_bytes_put(&b->data, bytes, size);
}

uint8_t *gguf_build_finish(gguf_build *b, size_t *size)
{
    gguf_bytes out = {0};
    gguf_bytes_put(&out, "GGUF", 4);
    gguf_bytes_u32(&out, b->version ? b->version : 3);
    gguf_bytes_u64(&out, b->tensor_count + b->extra_tensors);
    gguf_bytes_u64(&out, b->entry_count + b->extra_entries);
    gguf_bytes_put(&out, b->entries.at, b->entries.size);
    gguf_bytes_put(&out, b->infos.at, b->infos.size);
    pad(&out, alignment_of(b));
    gguf_bytes_put(&out, b->data.at, b->data.size);
    free(b->entries.at);
    free(b->infos.at);
    free(b->data.at);
    *b = (gguf_build){0};
    *size = out.size;
    return out.at;
}
