#include <string.h>

#include "model/gguf_impl.h"

static const gguf_entry *find(const kvb_gguf *g, const char *key)
{
    size_t size = strlen(key), low = 0, high = g->entry_count;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        int order = kvb_gguf_compare(key, size, g->entries[mid].key, g->entries[mid].key_size);
        if (order == 0)
            return &g->entries[mid];
        if (order < 0)
            high = mid;
        else
            low = mid + 1;
    }
    return NULL;
}

static const gguf_entry *find_of(const kvb_gguf *g, const char *key, kvb_gguf_type type)
{
    const gguf_entry *e = find(g, key);
    return e != NULL && e->type == type ? e : NULL;
}

bool kvb_gguf_has(const kvb_gguf *g, const char *key)
{
    return find(g, key) != NULL;
}

static kvb_cursor cursor_at(const kvb_gguf *g, uint64_t at)
{
    kvb_cursor c = kvb_cursor_over(g->bytes, g->size);
    kvb_cursor_seek(&c, at);
    return c;
}

static bool signed_value(kvb_cursor *c, kvb_gguf_type type, int64_t *value)
{
    switch (type) {
    case KVB_GGUF_I8: *value = (int8_t)kvb_cursor_u8(c); return true;
    case KVB_GGUF_I16: *value = (int16_t)kvb_cursor_u16(c); return true;
    case KVB_GGUF_I32: *value = (int32_t)kvb_cursor_u32(c); return true;
    case KVB_GGUF_I64: *value = (int64_t)kvb_cursor_u64(c); return true;
    default: return false;
    }
}

static bool unsigned_value(kvb_cursor *c, kvb_gguf_type type, uint64_t *value)
{
    switch (type) {
    case KVB_GGUF_U8: *value = kvb_cursor_u8(c); return true;
    case KVB_GGUF_U16: *value = kvb_cursor_u16(c); return true;
    case KVB_GGUF_U32: *value = kvb_cursor_u32(c); return true;
    case KVB_GGUF_U64: *value = kvb_cursor_u64(c); return true;
    default: return false;
    }
}

static bool u64_at(const kvb_gguf *g, uint64_t at, kvb_gguf_type type, uint64_t *value)
{
    kvb_cursor c = cursor_at(g, at);
    int64_t with_sign;
    if (unsigned_value(&c, type, value))
        return true;
    if (!signed_value(&c, type, &with_sign) || with_sign < 0)
        return false;
    *value = (uint64_t)with_sign;
    return true;
}

static bool f64_at(const kvb_gguf *g, uint64_t at, kvb_gguf_type type, double *value)
{
    kvb_cursor c = cursor_at(g, at);
    int64_t with_sign;
    uint64_t without;
    if (type == KVB_GGUF_F32)
        *value = (double)kvb_cursor_f32(&c);
    else if (type == KVB_GGUF_F64)
        *value = kvb_cursor_f64(&c);
    else if (signed_value(&c, type, &with_sign))
        *value = (double)with_sign;
    else if (unsigned_value(&c, type, &without))
        *value = (double)without;
    else
        return false;
    return true;
}

bool kvb_gguf_get_u64(const kvb_gguf *g, const char *key, uint64_t *value)
{
    const gguf_entry *e = find(g, key);
    return e != NULL && u64_at(g, e->at, e->type, value);
}

bool kvb_gguf_get_f64(const kvb_gguf *g, const char *key, double *value)
{
    const gguf_entry *e = find(g, key);
    return e != NULL && f64_at(g, e->at, e->type, value);
}

bool kvb_gguf_get_bool(const kvb_gguf *g, const char *key, bool *value)
{
    const gguf_entry *e = find_of(g, key, KVB_GGUF_BOOL);
    if (e != NULL)
        *value = g->bytes[e->at] != 0;
    return e != NULL;
}

static void string_at(const kvb_gguf *g, uint64_t at, const char **bytes, uint64_t *size)
{
    kvb_cursor c = cursor_at(g, at);
    *size = kvb_cursor_u64(&c);
    *bytes = (const char *)g->bytes + c.at;
}

bool kvb_gguf_get_string(const kvb_gguf *g, const char *key, const char **bytes, uint64_t *size)
{
    const gguf_entry *e = find_of(g, key, KVB_GGUF_STRING);
    if (e != NULL)
        string_at(g, e->at, bytes, size);
    return e != NULL;
}

bool kvb_gguf_get_array(const kvb_gguf *g, const char *key, kvb_gguf_type *type, uint64_t *count)
{
    const gguf_entry *e = find_of(g, key, KVB_GGUF_ARRAY);
    if (e == NULL)
        return false;
    *type = e->element;
    *count = e->count;
    return true;
}

bool kvb_gguf_array_string(const kvb_gguf *g, const char *key, uint64_t i, const char **bytes, uint64_t *size)
{
    const gguf_entry *e = find_of(g, key, KVB_GGUF_ARRAY);
    if (e == NULL || e->element != KVB_GGUF_STRING || i >= e->count)
        return false;
    string_at(g, e->strings[i], bytes, size);
    return true;
}

bool kvb_gguf_array_u64(const kvb_gguf *g, const char *key, uint64_t i, uint64_t *value)
{
    const gguf_entry *e = find_of(g, key, KVB_GGUF_ARRAY);
    return e != NULL && i < e->count && u64_at(g, e->at + i * kvb_gguf_scalar_size(e->element), e->element, value);
}

bool kvb_gguf_array_f64(const kvb_gguf *g, const char *key, uint64_t i, double *value)
{
    const gguf_entry *e = find_of(g, key, KVB_GGUF_ARRAY);
    return e != NULL && i < e->count && f64_at(g, e->at + i * kvb_gguf_scalar_size(e->element), e->element, value);
}

uint64_t kvb_gguf_tensor_count(const kvb_gguf *g)
{
    return g->tensor_count;
}

const kvb_tensor *kvb_gguf_tensor_at(const kvb_gguf *g, uint64_t i)
{
    return i < g->tensor_count ? &g->tensors[i] : NULL;
}

const kvb_tensor *kvb_gguf_tensor(const kvb_gguf *g, const char *name)
{
    size_t low = 0, high = g->tensor_count;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        int order = strcmp(name, g->by_name[mid]->name);
        if (order == 0)
            return g->by_name[mid];
        if (order < 0)
            high = mid;
        else
            low = mid + 1;
    }
    return NULL;
}

const char *kvb_gguf_path(const kvb_gguf *g)
{
    return g->path;
}

void kvb_gguf_spans(const kvb_gguf *g, const uint8_t **meta, uint64_t *meta_size, const uint8_t **data,
                    uint64_t *data_size)
{
    uint64_t data_at = g->data_at < g->size ? g->data_at : g->size;
    *meta = g->bytes;
    *meta_size = g->meta_size;
    *data = g->bytes + data_at;
    *data_size = g->size - data_at;
}
