/* Opening a `.kvc` file: a safetensors file with the tensors and metadata of spec/kvc-1.md. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calib/capture_sink.h"
#include "calib/suggest.h"
#include "format/base/fail.h"
#include "format/base/json.h"

enum { MOST_META_BYTES = 1 << 20 };

typedef struct kvc_reader {
    const kvb_safetensors *file;
    const char *path;
    kvb_capture_store *store;
    bool newer_minor; /* unknown tensors are then a later version's */
    kvb_error *err;
} kvc_reader;

static kvb_status refuse(const kvc_reader *r, const char *place, const char *what)
{
    char where[256];
    snprintf(where, sizeof where, "%.160s: %.80s", r->path, place);
    return kvb_fail(r->err, KVB_E_FORMAT, where, "%s", what);
}

static kvb_status check_version(kvc_reader *r)
{
    char what[160];
    const char *version = kvb_safetensors_metadata(r->file, "kvc.version");
    if (version == NULL)
        return refuse(r, "kvc.version", "missing: a safetensors file, but no capture");
    if (version[0] != '1' || (version[1] != '\0' && version[1] != '.')) {
        snprintf(what, sizeof what,
                 "found version \"%.20s\", expected 1: use the kvbook that wrote it, or capture again", version);
        return refuse(r, "kvc.version", what);
    }
    const char *minor = version[1] == '.' ? version + 2 : "0";
    if (minor[0] == '\0' || minor[strspn(minor, "0123456789")] != '\0')
        return refuse(r, "kvc.version", "expected 1 or 1.N");
    r->newer_minor = strcmp(minor, "0") != 0;
    return KVB_OK;
}

static void print_shape(const uint64_t *shape, uint32_t dims, char text[100])
{
    size_t used = 1;
    snprintf(text, 100, "[");
    for (uint32_t i = 0; i < dims && used < 90; i++)
        used += (size_t)snprintf(text + used, 100 - used, "%s%llu", i ? ", " : "", (unsigned long long)shape[i]);
    snprintf(text + (used < 98 ? used : 98), 2, "]");
}

static kvb_status check_tensor(const kvc_reader *r, const kvb_st_tensor *t, kvb_st_dtype dtype, const uint64_t *shape,
                               uint32_t dims)
{
    char what[300], found[100], expected[100];
    if (t->dtype != dtype) {
        snprintf(what, sizeof what, "dtype %s, expected %s", kvb_st_dtype_name(t->dtype), kvb_st_dtype_name(dtype));
        return refuse(r, t->name, what);
    }
    if (t->dims != dims || memcmp(t->shape, shape, dims * sizeof *shape) != 0) {
        print_shape(t->shape, t->dims, found);
        print_shape(shape, dims, expected);
        snprintf(what, sizeof what, "shape %s, expected %s", found, expected);
        return refuse(r, t->name, what);
    }
    if (t->offset % kvb_st_dtype_bytes(dtype) != 0)
        return refuse(r, t->name, "is not aligned to its type in the file; write wide types before "
                                  "narrow ones, after a header padded to a multiple of 8");
    return KVB_OK;
}

static kvb_st_dtype dtype_of(kvb_kvc_part part)
{
    const uint32_t element = kvb_kvc_element(part);
    return element == 2 ? KVB_ST_F16 : element == 4 ? KVB_ST_F32 : KVB_ST_I64;
}

/* A part of a layer, or NULL where it is missing and `required` is false. */
static kvb_status read_part(const kvc_reader *r, uint32_t layer, kvb_kvc_part part, bool required, const void **data)
{
    char name[KVB_KVC_NAME_SIZE];
    uint64_t shape[3];
    const kvb_st_tensor *t = kvb_safetensors_find(r->file, kvb_kvc_name(layer, part, name));
    *data = NULL;
    if (t == NULL)
        return required ? refuse(r, name, "missing; a capture has keys and values of every layer") : KVB_OK;
    uint32_t dims = kvb_kvc_shape(&r->store->geometry[layer], r->store->view.rows, r->store->view.query_rows, part, shape);
    kvb_status status = check_tensor(r, t, dtype_of(part), shape, dims);
    if (status == KVB_OK)
        *data = t->bytes;
    return status;
}

/* n, out of the keys of the first layer that has any. */
static kvb_status find_rows(kvc_reader *r)
{
    char name[KVB_KVC_NAME_SIZE];
    for (uint32_t l = 0; l < r->store->view.layers; l++) {
        if (kvb_kvc_is_empty(&r->store->geometry[l]))
            continue;
        const kvb_st_tensor *t = kvb_safetensors_find(r->file, kvb_kvc_name(l, KVB_KVC_KEYS, name));
        if (t == NULL)
            return refuse(r, name, "missing; a capture has keys and values of every layer");
        if (t->dims != 3 || t->shape[1] == 0)
            return refuse(r, name, "expected the shape [KV heads, rows, head size] with at least one row");
        r->store->view.rows = t->shape[1];
        return KVB_OK;
    }
    return refuse(r, "kvc.geometry", "no layer that can be calibrated");
}

/* Rows of the queries, out of the first layer that has any: all layers must then have as many. */
static kvb_status find_query_rows(kvc_reader *r)
{
    char name[KVB_KVC_NAME_SIZE];
    for (uint32_t l = 0; l < r->store->view.layers; l++) {
        const kvb_st_tensor *t = kvb_safetensors_find(r->file, kvb_kvc_name(l, KVB_KVC_QUERIES, name));
        if (t == NULL)
            continue;
        if (t->dims != 3 || t->shape[1] == 0 || t->shape[1] > r->store->view.rows)
            return refuse(r, name, "expected the shape [query heads, rows of the first chunk, head size] with at least one row");
        r->store->view.query_rows = t->shape[1];
        return KVB_OK;
    }
    return KVB_OK;
}

/* Of one chunk, whose keys they meet. */
static kvb_status check_query_rows(const kvc_reader *r)
{
    const kvb_capture *c = &r->store->view;
    if (c->query_rows == 0)
        return KVB_OK;
    if (c->row_chunk == NULL)
        return refuse(r, "row_chunk", "missing; queries are of the rows of the first chunk");
    return c->row_chunk[c->query_rows - 1] == c->row_chunk[0] ? KVB_OK
                                                               : refuse(r, "row_chunk", "there are queries of rows beyond the first chunk");
}

static kvb_status read_layer(const kvc_reader *r, uint32_t layer)
{
    kvb_capture_layer *to = &r->store->layer[layer];
    const void *data[KVB_KVC_PARTS];
    char name[KVB_KVC_NAME_SIZE];
    if (kvb_kvc_is_empty(&r->store->geometry[layer]))
        return KVB_OK;
    for (kvb_kvc_part part = 0; part < KVB_KVC_PARTS; part++) {
        bool required = part == KVB_KVC_KEYS || part == KVB_KVC_VALUES;
        kvb_status status = read_part(r, layer, part, required, &data[part]);
        if (status != KVB_OK)
            return status;
    }
    if ((data[KVB_KVC_QUERY_SUMS] == NULL) != (data[KVB_KVC_QUERY_COUNT] == NULL))
        return refuse(r, kvb_kvc_name(layer, KVB_KVC_QUERY_SUMS, name), "expected with query_count; both or neither");
    *to = (kvb_capture_layer){
        .keys = data[KVB_KVC_KEYS],
        .values = data[KVB_KVC_VALUES],
        .weight_k = data[KVB_KVC_WEIGHT_K],
        .weight_v = data[KVB_KVC_WEIGHT_V],
        .moment_relative = data[KVB_KVC_MOMENT_RELATIVE],
        .moment_post = data[KVB_KVC_MOMENT_POST],
        .query_sums = data[KVB_KVC_QUERY_SUMS],
        .query_count = data[KVB_KVC_QUERY_COUNT],
        .sensitivity = {data[KVB_KVC_SENSITIVITY_K], data[KVB_KVC_SENSITIVITY_V]},
        .gradient = {data[KVB_KVC_GRADIENT_K], data[KVB_KVC_GRADIENT_V]},
        .queries = data[KVB_KVC_QUERIES],
    };
    return KVB_OK;
}

static kvb_status read_places(const kvc_reader *r)
{
    const kvb_st_tensor *chunk = kvb_safetensors_find(r->file, "row_chunk");
    const kvb_st_tensor *position = kvb_safetensors_find(r->file, "row_position");
    kvb_capture *c = &r->store->view;
    if ((chunk == NULL) != (position == NULL))
        return refuse(r, chunk == NULL ? "row_chunk" : "row_position", "missing; both or neither are expected");
    if (chunk == NULL)
        return KVB_OK;
    const kvb_st_tensor *both[] = {chunk, position};
    for (int i = 0; i < 2; i++) {
        /* I32 for engines without unsigned integers; negative numbers are caught below as too large. */
        kvb_st_dtype dtype = both[i]->dtype == KVB_ST_I32 ? KVB_ST_I32 : KVB_ST_U32;
        kvb_status status = check_tensor(r, both[i], dtype, &c->rows, 1);
        if (status != KVB_OK)
            return status;
    }
    const uint32_t *n = (const uint32_t *)(const void *)chunk->bytes;
    const uint32_t *p = (const uint32_t *)(const void *)position->bytes;
    for (uint64_t i = 0; i < c->rows; i++) {
        char what[120];
        bool ascending = i == 0 || n[i] > n[i - 1] || (n[i] == n[i - 1] && p[i] > p[i - 1]);
        if (ascending && n[i] <= INT32_MAX && p[i] <= INT32_MAX)
            continue;
        snprintf(what, sizeof what, "row %llu: chunk %u, position %u: expected ascending order and numbers below 2^31",
                 (unsigned long long)i, n[i], p[i]);
        return refuse(r, "row_position", what);
    }
    c->row_chunk = n;
    c->row_position = p;
    return KVB_OK;
}

static bool is_known(const kvc_reader *r, const char *name)
{
    char known[KVB_KVC_NAME_SIZE];
    char *end;
    if (strcmp(name, "row_chunk") == 0 || strcmp(name, "row_position") == 0 || strncmp(name, "x.", 2) == 0)
        return true;
    if (strncmp(name, "layers.", 7) != 0)
        return false;
    unsigned long layer = strtoul(name + 7, &end, 10);
    if (layer >= r->store->view.layers || kvb_kvc_is_empty(&r->store->geometry[layer]))
        return false;
    for (kvb_kvc_part part = 0; part < KVB_KVC_PARTS; part++)
        if (strcmp(name, kvb_kvc_name((uint32_t)layer, part, known)) == 0)
            return true;
    return false;
}

/* A misspelt weight would otherwise pass for a missing one. */
static kvb_status check_names(const kvc_reader *r)
{
    char what[200];
    for (size_t i = 0; !r->newer_minor && i < kvb_safetensors_count(r->file); i++) {
        const char *name = kvb_safetensors_at(r->file, i)->name, *dot = strrchr(name, '.');
        if (is_known(r, name))
            continue;
        const char *nearest = kvb_suggest(dot != NULL ? dot + 1 : name, kvb_kvc_part_names, KVB_KVC_PARTS);
        snprintf(what, sizeof what,
                 "unknown tensor (layers 0 to %u; nearest name \"%s\"); names of your own begin with x.",
                 r->store->view.layers - 1, nearest);
        return refuse(r, name, what);
    }
    return KVB_OK;
}

static kvb_status read_meta(const kvc_reader *r, const char **meta)
{
    kvb_json_doc *doc = NULL;
    *meta = kvb_safetensors_metadata(r->file, "kvc.meta");
    if (*meta == NULL) {
        *meta = "{}";
        return KVB_OK;
    }
    size_t size = strlen(*meta);
    if (size > MOST_META_BYTES)
        return refuse(r, "kvc.meta", "longer than 1 MiB");
    kvb_status status = kvb_json_parse(*meta, size, r->path, &doc, r->err);
    if (status == KVB_OK && kvb_json_type_of(kvb_json_root(doc)) != KVB_JSON_OBJECT)
        status = refuse(r, "kvc.meta", "expected a JSON object");
    kvb_json_free(doc);
    return status;
}

static kvb_status create_store(kvc_reader *r)
{
    const char *meta, *geometry_json = kvb_safetensors_metadata(r->file, "kvc.geometry");
    kvb_layer *geometry = NULL;
    uint32_t layers = 0;
    if (geometry_json == NULL)
        return refuse(r, "kvc.geometry", "missing");
    kvb_status status = read_meta(r, &meta);
    if (status == KVB_OK)
        status = kvb_kvc_geometry_read(geometry_json, r->path, &geometry, &layers, r->err);
    if (status == KVB_OK)
        status = kvb_store_create(geometry, layers, meta, &r->store, r->err);
    kvb_kvc_geometry_free(geometry, layers);
    return status;
}

static kvb_status read_all(kvc_reader *r)
{
    kvb_status status = check_version(r);
    if (status == KVB_OK)
        status = create_store(r);
    if (status == KVB_OK)
        status = find_rows(r);
    if (status == KVB_OK)
        status = check_names(r);
    if (status == KVB_OK)
        status = find_query_rows(r);
    for (uint32_t l = 0; status == KVB_OK && l < r->store->view.layers; l++)
        status = read_layer(r, l);
    if (status == KVB_OK)
        status = read_places(r);
    return status == KVB_OK ? check_query_rows(r) : status;
}

/* Takes over `file`. */
static kvb_status open_over(kvb_safetensors *file, const char *path, kvb_capture_store **store, kvb_error *err)
{
    kvc_reader r = {.file = file, .path = path, .err = err};
    kvb_status status = read_all(&r);
    if (status != KVB_OK) {
        kvb_capture_close(r.store);
        kvb_safetensors_close(file);
        return status;
    }
    r.store->file = file;
    *store = r.store;
    return KVB_OK;
}

kvb_status kvb_capture_open(const char *path, kvb_capture_store **store, kvb_error *err)
{
    kvb_safetensors *file;
    *store = NULL;
    kvb_status status = kvb_safetensors_open(path, &file, err);
    return status == KVB_OK ? open_over(file, path, store, err) : status;
}

kvb_status kvb_capture_open_memory(const void *bytes, size_t size, const char *name, kvb_capture_store **store,
                                   kvb_error *err)
{
    kvb_safetensors *file;
    *store = NULL;
    kvb_status status = kvb_safetensors_open_memory(bytes, size, name, &file, err);
    return status == KVB_OK ? open_over(file, name, store, err) : status;
}
