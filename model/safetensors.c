#include "model/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/cursor.h"
#include "format/base/fail.h"
#include "format/base/json.h"
#include "format/base/mapfile.h"

enum { MOST_HEADER_BYTES = 100000000, LENGTH_BYTES = 8 };

struct kvb_safetensors {
    kvb_mapfile map; /* not open where the bytes are the caller's */
    const uint8_t *bytes;
    size_t size;
    uint64_t data_at; /* where the data section begins */
    char *name;
    kvb_json_doc *header; /* owns the names */
    const kvb_json *metadata;
    kvb_st_tensor *tensor; /* by name */
    size_t count;
};

static const struct {
    const char *name;
    uint32_t bytes;
} dtypes[] = {
    [KVB_ST_BOOL] = {"BOOL", 1},       [KVB_ST_U8] = {"U8", 1},           [KVB_ST_I8] = {"I8", 1},
    [KVB_ST_F8_E5M2] = {"F8_E5M2", 1}, [KVB_ST_F8_E4M3] = {"F8_E4M3", 1}, [KVB_ST_I16] = {"I16", 2},
    [KVB_ST_U16] = {"U16", 2},         [KVB_ST_F16] = {"F16", 2},         [KVB_ST_BF16] = {"BF16", 2},
    [KVB_ST_I32] = {"I32", 4},         [KVB_ST_U32] = {"U32", 4},         [KVB_ST_F32] = {"F32", 4},
    [KVB_ST_F64] = {"F64", 8},         [KVB_ST_I64] = {"I64", 8},         [KVB_ST_U64] = {"U64", 8},
};

const char *kvb_st_dtype_name(kvb_st_dtype dtype)
{
    return dtypes[dtype].name;
}

uint32_t kvb_st_dtype_bytes(kvb_st_dtype dtype)
{
    return dtypes[dtype].bytes;
}

static kvb_status refuse_tensor(const kvb_safetensors *st, const char *tensor, const char *what, kvb_error *err)
{
    char where[256];
    snprintf(where, sizeof where, "%s: tensor %.100s", st->name, tensor);
    return kvb_fail(err, KVB_E_FORMAT, where, "%s", what);
}

static kvb_status read_dtype(const kvb_safetensors *st, const kvb_json *v, kvb_st_tensor *t, kvb_error *err)
{
    char what[128];
    const char *name = kvb_json_string(v, NULL);
    if (name == NULL)
        return refuse_tensor(st, t->name, "no string \"dtype\"", err);
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++)
        if (strcmp(name, dtypes[i].name) == 0) {
            t->dtype = (kvb_st_dtype)i;
            return KVB_OK;
        }
    snprintf(what, sizeof what, "unknown dtype \"%.32s\"; expected one of the safetensors format, such as F16", name);
    return refuse_tensor(st, t->name, what, err);
}

/* Reads the shape; *bytes becomes what an array of that shape takes. */
static kvb_status read_shape(const kvb_safetensors *st, const kvb_json *v, kvb_st_tensor *t, uint64_t *bytes,
                             kvb_error *err)
{
    size_t dims = kvb_json_count(v);
    if (kvb_json_type_of(v) != KVB_JSON_ARRAY || dims > KVB_ST_MOST_DIMS)
        return refuse_tensor(st, t->name, "\"shape\" is no list of at most 8 sizes", err);
    t->dims = (uint32_t)dims;
    *bytes = dtypes[t->dtype].bytes;
    bool fits = true, empty = false;
    for (size_t i = 0; i < dims; i++) {
        if (!kvb_json_u64(kvb_json_at(v, i), &t->shape[i]))
            return refuse_tensor(st, t->name, "\"shape\" holds something that is no whole number", err);
        empty = empty || t->shape[i] == 0;
        fits = fits && kvb_mul_u64(*bytes, t->shape[i], bytes);
    }
    if (!fits && !empty)
        return refuse_tensor(st, t->name, "\"shape\" times \"dtype\" exceeds 2^64 bytes", err);
    if (empty)
        *bytes = 0;
    return KVB_OK;
}

static kvb_status read_offsets(const kvb_safetensors *st, const kvb_json *v, kvb_st_tensor *t, uint64_t bytes,
                               kvb_error *err)
{
    char what[200];
    uint64_t begin, end, data_size = st->size - st->data_at;
    if (kvb_json_type_of(v) != KVB_JSON_ARRAY || kvb_json_count(v) != 2 || !kvb_json_u64(kvb_json_at(v, 0), &begin) ||
        !kvb_json_u64(kvb_json_at(v, 1), &end))
        return refuse_tensor(st, t->name, "\"data_offsets\" is no pair of whole numbers", err);
    if (begin > end || end > data_size) {
        snprintf(what, sizeof what,
                 "data_offsets [%llu, %llu] are outside the %llu bytes of data (is the file cut off?)",
                 (unsigned long long)begin, (unsigned long long)end, (unsigned long long)data_size);
        return refuse_tensor(st, t->name, what, err);
    }
    if (end - begin != bytes) {
        snprintf(what, sizeof what, "data_offsets span %llu bytes, but shape and dtype need %llu",
                 (unsigned long long)(end - begin), (unsigned long long)bytes);
        return refuse_tensor(st, t->name, what, err);
    }
    t->offset = st->data_at + begin;
    t->bytes = st->bytes + t->offset;
    t->size = bytes;
    return KVB_OK;
}

static kvb_status read_tensor(const kvb_safetensors *st, const char *name, const kvb_json *v, kvb_st_tensor *t,
                              kvb_error *err)
{
    uint64_t bytes = 0;
    *t = (kvb_st_tensor){.name = name};
    if (kvb_json_type_of(v) != KVB_JSON_OBJECT || kvb_json_count(v) != 3)
        return refuse_tensor(st, name, "expected an object of exactly dtype, shape and data_offsets", err);
    kvb_status status = read_dtype(st, kvb_json_get(v, "dtype"), t, err);
    if (status == KVB_OK)
        status = read_shape(st, kvb_json_get(v, "shape"), t, &bytes, err);
    if (status == KVB_OK)
        status = read_offsets(st, kvb_json_get(v, "data_offsets"), t, bytes, err);
    return status;
}

static kvb_status read_metadata(kvb_safetensors *st, const kvb_json *v, kvb_error *err)
{
    if (kvb_json_type_of(v) != KVB_JSON_OBJECT)
        return kvb_fail(err, KVB_E_FORMAT, st->name, "__metadata__ is no object");
    for (size_t i = 0; i < kvb_json_count(v); i++)
        if (kvb_json_type_of(kvb_json_at(v, i)) != KVB_JSON_STRING)
            return kvb_fail(err, KVB_E_FORMAT, st->name,
                            "__metadata__ \"%.64s\" is no string; the format knows no other", kvb_json_key_at(v, i));
    st->metadata = v;
    return KVB_OK;
}

static int by_offset(const void *a, const void *b)
{
    const kvb_st_tensor *x = a, *y = b;
    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    return x->size < y->size ? -1 : x->size > y->size;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const kvb_st_tensor *)a)->name, ((const kvb_st_tensor *)b)->name);
}

/* Every byte of the data section belongs to exactly one array. */
static kvb_status check_cover(kvb_safetensors *st, kvb_error *err)
{
    uint64_t at = st->data_at;
    char what[160];
    if (st->count > 0)
        qsort(st->tensor, st->count, sizeof *st->tensor, by_offset);
    for (size_t i = 0; i < st->count; i++) {
        const kvb_st_tensor *t = &st->tensor[i];
        if (t->offset != at) {
            snprintf(what, sizeof what, "begins at byte %llu of the data, where %llu was expected: the arrays %s",
                     (unsigned long long)(t->offset - st->data_at), (unsigned long long)(at - st->data_at),
                     t->offset < at ? "overlap" : "leave a hole");
            return refuse_tensor(st, t->name, what, err);
        }
        at += t->size;
    }
    if (at != st->size)
        return kvb_fail(err, KVB_E_FORMAT, st->name, "%llu bytes follow the last array",
                        (unsigned long long)(st->size - at));
    return KVB_OK;
}

static kvb_status read_members(kvb_safetensors *st, kvb_error *err)
{
    const kvb_json *root = kvb_json_root(st->header);
    if (kvb_json_type_of(root) != KVB_JSON_OBJECT)
        return kvb_fail(err, KVB_E_FORMAT, st->name, "the header is no JSON object");
    size_t members = kvb_json_count(root);
    st->tensor = kvb_alloc_zeroed(members, sizeof *st->tensor);
    if (st->tensor == NULL)
        return kvb_fail_memory(err, st->name);
    for (size_t i = 0; i < members; i++) {
        const char *name = kvb_json_key_at(root, i);
        kvb_status status;
        if (strcmp(name, "__metadata__") == 0)
            status = read_metadata(st, kvb_json_at(root, i), err);
        else
            status = read_tensor(st, name, kvb_json_at(root, i), &st->tensor[st->count++], err);
        if (status != KVB_OK)
            return status;
    }
    kvb_status status = check_cover(st, err);
    if (status == KVB_OK && st->count > 0)
        qsort(st->tensor, st->count, sizeof *st->tensor, by_name);
    return status;
}

static kvb_status read_header(kvb_safetensors *st, kvb_error *err)
{
    kvb_cursor c = kvb_cursor_over(st->bytes, st->size);
    uint64_t length = kvb_cursor_u64(&c);
    if (c.failed)
        return kvb_fail(err, KVB_E_FORMAT, st->name, "%zu bytes are too few for a safetensors file", st->size);
    if (length > MOST_HEADER_BYTES || length > st->size - LENGTH_BYTES)
        return kvb_fail(err, KVB_E_FORMAT, st->name,
                        "the header says it has %llu bytes; expected at most %d and at most the file's %zu "
                        "(no safetensors file, or cut off)",
                        (unsigned long long)length, MOST_HEADER_BYTES, st->size);
    const char *text = (const char *)st->bytes + LENGTH_BYTES;
    if (length == 0 || text[0] != '{')
        return kvb_fail(err, KVB_E_FORMAT, st->name, "the header does not begin with '{' at byte 8");
    st->data_at = LENGTH_BYTES + length;
    kvb_status status = kvb_json_parse(text, (size_t)length, st->name, &st->header, err);
    return status == KVB_OK ? read_members(st, err) : status;
}

/* Takes over `map`. */
static kvb_status open_over(kvb_mapfile map, const uint8_t *bytes, size_t size, const char *name, kvb_safetensors **out,
                            kvb_error *err)
{
    kvb_status status = KVB_E_MEMORY;
    kvb_safetensors *st = calloc(1, sizeof *st);
    *out = NULL;
    if (st == NULL) {
        kvb_mapfile_close(&map);
        return kvb_fail_memory(err, name);
    }
    st->map = map;
    st->bytes = bytes;
    st->size = size;
    st->name = strdup(name);
    status = st->name != NULL ? read_header(st, err) : kvb_fail_memory(err, name);
    if (status == KVB_OK)
        *out = st;
    else
        kvb_safetensors_close(st);
    return status;
}

kvb_status kvb_safetensors_open(const char *path, kvb_safetensors **st, kvb_error *err)
{
    kvb_mapfile map = {0};
    *st = NULL;
    kvb_status status = kvb_mapfile_open(&map, path, err);
    return status == KVB_OK ? open_over(map, map.bytes, map.size, path, st, err) : status;
}

kvb_status kvb_safetensors_open_memory(const void *bytes, size_t size, const char *name, kvb_safetensors **st,
                                       kvb_error *err)
{
    return open_over((kvb_mapfile){0}, bytes, size, name, st, err);
}

void kvb_safetensors_close(kvb_safetensors *st)
{
    if (st == NULL)
        return;
    kvb_json_free(st->header);
    kvb_mapfile_close(&st->map);
    free(st->tensor);
    free(st->name);
    free(st);
}

size_t kvb_safetensors_count(const kvb_safetensors *st)
{
    return st->count;
}

const kvb_st_tensor *kvb_safetensors_at(const kvb_safetensors *st, size_t i)
{
    return i < st->count ? &st->tensor[i] : NULL;
}

const kvb_st_tensor *kvb_safetensors_find(const kvb_safetensors *st, const char *name)
{
    kvb_st_tensor key = {.name = name};
    return st->count == 0 ? NULL : bsearch(&key, st->tensor, st->count, sizeof key, by_name);
}

const char *kvb_safetensors_metadata(const kvb_safetensors *st, const char *key)
{
    return kvb_json_string(kvb_json_get(st->metadata, key), NULL);
}

const char *kvb_safetensors_path(const kvb_safetensors *st)
{
    return st->name;
}
