#include "model/gguf.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "model/gguf_impl.h"
#include "model/gguf_place.h"

enum { MIN_ENTRY_BYTES = 8 + 1 + 4 + 1, MIN_INFO_BYTES = 8 + 1 + 4 + 8 + 4 + 8, DEFAULT_ALIGNMENT = 32 };

typedef struct reader {
    kvb_gguf *g;
    kvb_cursor c;
    kvb_error *err;
} reader;

static kvb_status bad(const reader *r, uint64_t at, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* A malformed file, with the byte where it shows. */
static kvb_status bad(const reader *r, uint64_t at, const char *format, ...)
{
    char where[300], message[512];
    snprintf(where, sizeof where, "%.220s, byte %llu", r->g->path, (unsigned long long)at);
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    return kvb_fail(r->err, KVB_E_FORMAT, where, "%s", message);
}

static kvb_status truncated(const reader *r, const char *what)
{
    return bad(r, r->c.at, "the file ends (%zu bytes) inside %s: is the download complete?", r->g->size, what);
}

unsigned kvb_gguf_scalar_size(uint32_t type)
{
    switch (type) {
    case KVB_GGUF_U8: case KVB_GGUF_I8: case KVB_GGUF_BOOL: return 1;
    case KVB_GGUF_U16: case KVB_GGUF_I16: return 2;
    case KVB_GGUF_U32: case KVB_GGUF_I32: case KVB_GGUF_F32: return 4;
    case KVB_GGUF_U64: case KVB_GGUF_I64: case KVB_GGUF_F64: return 8;
    default: return 0;
    }
}

int kvb_gguf_compare(const char *a, size_t a_size, const char *b, size_t b_size)
{
    int order = memcmp(a, b, a_size < b_size ? a_size : b_size);
    return order != 0 ? order : (a_size > b_size) - (a_size < b_size);
}

static kvb_status read_string(reader *r, const char *what, const char **bytes, size_t *size)
{
    size_t at = r->c.at;
    uint64_t length = kvb_cursor_u64(&r->c);
    if (r->c.failed)
        return truncated(r, what);
    const uint8_t *here = kvb_cursor_bytes(&r->c, length);
    if (here == NULL)
        return bad(r, at, "%s has %llu bytes, but only %zu are left in the file", what, (unsigned long long)length,
                   r->g->size - at - 8);
    *bytes = (const char *)here;
    *size = (size_t)length;
    return KVB_OK;
}

/* Keys and tensor names: not empty, no NUL inside, so that C strings can name them. */
static kvb_status read_name(reader *r, const char *what, const char **bytes, size_t *size)
{
    size_t at = r->c.at;
    kvb_status status = read_string(r, what, bytes, size);
    if (status != KVB_OK)
        return status;
    if (*size == 0 || *size > 65535 || memchr(*bytes, 0, *size) != NULL)
        return bad(r, at, "%s of %zu bytes is empty, longer than 65535 bytes or has a NUL inside", what, *size);
    return KVB_OK;
}

static kvb_status read_magic(reader *r)
{
    const uint8_t *magic = kvb_cursor_bytes(&r->c, 4);
    if (magic == NULL)
        return truncated(r, "the header");
    if (memcmp(magic, "FUGG", 4) == 0)
        return bad(r, 0, "byte-swapped (big-endian) GGUF is not supported: convert it to little-endian");
    if (memcmp(magic, "tjgg", 4) == 0 || memcmp(magic, "lmgg", 4) == 0 || memcmp(magic, "fmgg", 4) == 0)
        return bad(r, 0, "a GGML file older than GGUF: convert it to GGUF version 3");
    if (memcmp(magic, "GGUF", 4) != 0)
        return bad(r, 0, "not a GGUF file: starts with %02x %02x %02x %02x, expected 47 47 55 46", magic[0], magic[1],
                   magic[2], magic[3]);
    return KVB_OK;
}

static kvb_status read_version(reader *r)
{
    uint32_t version = kvb_cursor_u32(&r->c);
    if (r->c.failed)
        return truncated(r, "the header");
    if (version == 2 || version == 3)
        return KVB_OK;
    if (version != 0 && (version & 0xFFFF) == 0)
        return bad(r, 4, "byte-swapped (big-endian) GGUF is not supported: convert it to little-endian");
    if (version == 1)
        return bad(r, 4, "GGUF version 1 is not supported (2 and 3 are): convert it");
    return bad(r, 4, "GGUF version %u is not known (2 and 3 are): a newer kvbook may read it", version);
}

/* A count is refused before anything is allocated by it where the rest of the file could not hold so many. */
static kvb_status read_count(reader *r, const char *what, size_t least_bytes, size_t *count)
{
    size_t at = r->c.at;
    uint64_t n = kvb_cursor_u64(&r->c);
    if (r->c.failed)
        return truncated(r, "the header");
    uint64_t room = (r->g->size - r->c.at) / least_bytes;
    if (n > room)
        return bad(r, at, "%llu %s, but the file has room for %llu at most", (unsigned long long)n, what,
                   (unsigned long long)room);
    *count = (size_t)n;
    return KVB_OK;
}

static kvb_status read_string_array(reader *r, gguf_entry *e)
{
    if (e->count == 0)
        return KVB_OK;
    e->strings = kvb_alloc_array((size_t)e->count, sizeof *e->strings);
    if (e->strings == NULL)
        return kvb_fail_memory(r->err, "string array of a GGUF file");
    for (uint64_t i = 0; i < e->count; i++) {
        const char *bytes;
        size_t size;
        e->strings[i] = r->c.at;
        kvb_status status = read_string(r, "a string of an array", &bytes, &size);
        if (status != KVB_OK)
            return status;
    }
    return KVB_OK;
}

static kvb_status check_bools(const reader *r, const uint8_t *bytes, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        if (bytes[i] > 1)
            return bad(r, (uint64_t)(bytes + i - r->g->bytes), "a boolean is %u, expected 0 or 1", bytes[i]);
    return KVB_OK;
}

static kvb_status read_scalars(reader *r, uint32_t type, uint64_t count)
{
    uint64_t bytes;
    const uint8_t *here = NULL;
    if (kvb_mul_u64(count, kvb_gguf_scalar_size(type), &bytes))
        here = kvb_cursor_bytes(&r->c, bytes);
    if (here == NULL)
        return bad(r, r->c.at, "%llu values of %u bytes do not fit in the rest of the file", (unsigned long long)count,
                   kvb_gguf_scalar_size(type));
    return type == KVB_GGUF_BOOL ? check_bools(r, here, count) : KVB_OK;
}

static kvb_status read_array(reader *r, gguf_entry *e)
{
    size_t at = r->c.at;
    uint32_t element = kvb_cursor_u32(&r->c);
    if (r->c.failed)
        return truncated(r, "an array");
    if (element == KVB_GGUF_ARRAY)
        return bad(r, at, "an array of arrays is not supported");
    if (element > KVB_GGUF_F64)
        return bad(r, at, "array element type %u is not known (0 to %d are)", element, KVB_GGUF_F64);
    e->element = (kvb_gguf_type)element;
    size_t least = element == KVB_GGUF_STRING ? 8 : kvb_gguf_scalar_size(element), count;
    kvb_status status = read_count(r, "array elements", least, &count);
    if (status != KVB_OK)
        return status;
    e->count = count;
    e->at = r->c.at;
    return element == KVB_GGUF_STRING ? read_string_array(r, e) : read_scalars(r, element, count);
}

static kvb_status read_entry(reader *r, gguf_entry *e)
{
    kvb_status status = read_name(r, "a metadata key", &e->key, &e->key_size);
    if (status != KVB_OK)
        return status;
    size_t at = r->c.at;
    uint32_t type = kvb_cursor_u32(&r->c);
    if (r->c.failed)
        return truncated(r, "the metadata");
    if (type > KVB_GGUF_F64)
        return bad(r, at, "value type %u is not known (0 to %d are)", type, KVB_GGUF_F64);
    e->type = (kvb_gguf_type)type;
    e->at = r->c.at;
    if (type == KVB_GGUF_ARRAY)
        return read_array(r, e);
    const char *bytes;
    size_t size;
    return type == KVB_GGUF_STRING ? read_string(r, "a metadata string", &bytes, &size) : read_scalars(r, type, 1);
}

static int order_entries(const void *a, const void *b)
{
    const gguf_entry *x = a, *y = b;
    return kvb_gguf_compare(x->key, x->key_size, y->key, y->key_size);
}

static kvb_status read_entries(reader *r)
{
    kvb_gguf *g = r->g;
    g->entries = kvb_alloc_zeroed(g->entry_count, sizeof *g->entries);
    if (g->entries == NULL)
        return kvb_fail_memory(r->err, "metadata of a GGUF file");
    for (size_t i = 0; i < g->entry_count; i++) {
        kvb_status status = read_entry(r, &g->entries[i]);
        if (status != KVB_OK)
            return status;
    }
    qsort(g->entries, g->entry_count, sizeof *g->entries, order_entries);
    for (size_t i = 1; i < g->entry_count; i++)
        if (order_entries(&g->entries[i - 1], &g->entries[i]) == 0)
            return bad(r, g->entries[i].at, "metadata key \"%.*s\" is there twice",
                       (int)(g->entries[i].key_size < 64 ? g->entries[i].key_size : 64), g->entries[i].key);
    return KVB_OK;
}

static kvb_status read_alignment(reader *r)
{
    kvb_gguf *g = r->g;
    g->alignment = DEFAULT_ALIGNMENT;
    if (!kvb_gguf_has(g, "general.alignment"))
        return KVB_OK;
    uint64_t value = 0;
    if (!kvb_gguf_get_u64(g, "general.alignment", &value) || value == 0 || value > 1u << 30 ||
        (value & (value - 1)) != 0)
        return bad(r, r->c.at, "general.alignment is %llu or no integer, expected a power of two up to 2^30",
                   (unsigned long long)value);
    g->alignment = value;
    return KVB_OK;
}

static kvb_status read_shape(reader *r, kvb_tensor *t, const char *name, int name_size)
{
    size_t at = r->c.at;
    uint32_t dims = kvb_cursor_u32(&r->c);
    if (r->c.failed)
        return truncated(r, "the tensor list");
    if (dims < 1 || dims > 4)
        return bad(r, at, "tensor \"%.*s\" has %u dimensions, expected 1 to 4", name_size, name, dims);
    t->dims = dims;
    uint64_t elements = 1;
    for (uint32_t i = 0; i < 4; i++) {
        t->shape[i] = i < dims ? kvb_cursor_u64(&r->c) : 1;
        if (r->c.failed)
            return truncated(r, "the tensor list");
        if (t->shape[i] == 0 || !kvb_mul_u64(elements, t->shape[i], &elements) || elements > INT64_MAX)
            return bad(r, at, "tensor \"%.*s\" has no elements or more than 2^63: dimension %u is %llu", name_size,
                       name, i, (unsigned long long)t->shape[i]);
    }
    return KVB_OK;
}

static kvb_status read_info(reader *r, gguf_info *info)
{
    kvb_status status = read_name(r, "a tensor name", &info->name, &info->name_size);
    if (status != KVB_OK)
        return status;
    status = read_shape(r, &info->tensor, info->name, (int)(info->name_size < 64 ? info->name_size : 64));
    if (status != KVB_OK)
        return status;
    info->tensor.dtype = kvb_cursor_u32(&r->c);
    info->offset = kvb_cursor_u64(&r->c);
    return r->c.failed ? truncated(r, "the tensor list") : KVB_OK;
}

static kvb_status read_infos(reader *r)
{
    kvb_gguf *g = r->g;
    gguf_info *infos = kvb_alloc_zeroed(g->tensor_count, sizeof *infos);
    kvb_status status = infos == NULL ? kvb_fail_memory(r->err, "tensor list of a GGUF file") : KVB_OK;
    for (size_t i = 0; status == KVB_OK && i < g->tensor_count; i++)
        status = read_info(r, &infos[i]);
    g->meta_size = r->c.at;
    if (status == KVB_OK)
        status = kvb_gguf_place(g, infos, r->err);
    free(infos);
    return status;
}

static kvb_status read_all(kvb_gguf *g, kvb_error *err)
{
    reader r = {.g = g, .c = kvb_cursor_over(g->bytes, g->size), .err = err};
    kvb_status s = read_magic(&r);
    if (s == KVB_OK) s = read_version(&r);
    if (s == KVB_OK) s = read_count(&r, "tensors", MIN_INFO_BYTES, &g->tensor_count);
    if (s == KVB_OK) s = read_count(&r, "metadata keys", MIN_ENTRY_BYTES, &g->entry_count);
    if (s == KVB_OK) s = read_entries(&r);
    if (s == KVB_OK) s = read_alignment(&r);
    if (s == KVB_OK) s = read_infos(&r);
    return s;
}

/* Takes over `map`, which may be closed where `bytes` are the caller's. */
static kvb_status open_bytes(kvb_mapfile map, const uint8_t *bytes, size_t size, const char *name, kvb_gguf **gguf,
                             kvb_error *err)
{
    kvb_gguf *g = calloc(1, sizeof *g);
    if (g == NULL) {
        kvb_mapfile_close(&map);
        return kvb_fail_memory(err, name);
    }
    *g = (kvb_gguf){.map = map, .bytes = bytes, .size = size, .path = strdup(name)};
    kvb_status status = g->path == NULL ? kvb_fail_memory(err, name) : read_all(g, err);
    if (status != KVB_OK) {
        kvb_gguf_close(g);
        return status;
    }
    *gguf = g;
    return KVB_OK;
}

kvb_status kvb_gguf_open(const char *path, kvb_gguf **gguf, kvb_error *err)
{
    *gguf = NULL;
    kvb_mapfile map;
    kvb_status status = kvb_mapfile_open(&map, path, err);
    return status == KVB_OK ? open_bytes(map, map.bytes, map.size, path, gguf, err) : status;
}

kvb_status kvb_gguf_open_memory(const void *bytes, size_t size, const char *name, kvb_gguf **gguf, kvb_error *err)
{
    *gguf = NULL;
    if (size == 0)
        return kvb_fail(err, KVB_E_FORMAT, name, "is empty (0 bytes)");
    return open_bytes((kvb_mapfile){0}, bytes, size, name, gguf, err);
}

void kvb_gguf_close(kvb_gguf *g)
{
    if (g == NULL)
        return;
    for (size_t i = 0; g->entries != NULL && i < g->entry_count; i++)
        free(g->entries[i].strings);
    free(g->entries);
    free(g->tensors);
    free(g->by_name);
    free(g->names);
    free(g->path);
    kvb_mapfile_close(&g->map);
    free(g);
}
