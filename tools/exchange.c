#include "tools/exchange.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/json.h"
#include "format/base/mapfile.h"
#include "format/base/outfile.h"
#include "format/base/sha256.h"
#include "format/book_write.h"
#include "format/kvb_layout.h"
#include "model/gguf.h"
#include "model/gguf_write.h"
#include "model/npz.h"
#include "model/safetensors.h"

enum { NAME_SIZE = 64, MOST_DIMS = 4, GGML_I8 = 24, GGML_I16 = 25 };
static const uint64_t most_bytes = (uint64_t)16 << 30; /* of a book */

/* An array that stands in the book. */
typedef struct array {
    char name[NAME_SIZE];
    const char *dtype;
    uint32_t dims;
    uint64_t shape[MOST_DIMS], size, offset; /* offset: in the book */
} array;

typedef struct arrays {
    array *list;
    size_t count, room;
    const uint8_t *book;
    size_t book_size;
    bool failed; /* out of memory */
} arrays;

static const char metadata_name[] = "__metadata__", rest_name[] = "book.rest";
static const char *const kinds[] = {"key", "value"};

/* ---- what a book has */

/* Keeps an array whose bytes lie in the book as they are; others (compressed ones) are the rest's. */
static void add(arrays *a, const void *bytes, const char *dtype, uint32_t element, uint32_t dims, const uint64_t *shape, const char *name)
{
    const uintptr_t at = (uintptr_t)bytes, begin = (uintptr_t)a->book;
    uint64_t size = element;
    for (uint32_t i = 0; i < dims; i++)
        size *= shape[i];
    if (bytes == NULL || size == 0 || at < begin || at - begin > a->book_size || size > a->book_size - (at - begin))
        return;
    if (a->count == a->room) {
        const size_t room = 2 * a->room + 64;
        array *grown = realloc(a->list, room * sizeof *grown);
        if (grown == NULL) {
            a->failed = true;
            return;
        }
        a->list = grown;
        a->room = room;
    }
    array *to = &a->list[a->count++];
    *to = (array){.dtype = dtype, .dims = dims, .size = size, .offset = at - begin};
    snprintf(to->name, sizeof to->name, "%s", name);
    memcpy(to->shape, shape, dims * sizeof *shape);
}

static void add_codebook(arrays *a, const kvb_codebook *c, uint32_t dim, const char *owner)
{
    char name[NAME_SIZE];
    if (c == NULL)
        return;
    const uint64_t table[] = {c->groups, c->stages, c->stage_centroids, c->channels}, levels[] = {c->centroids};
    const uint64_t row[] = {dim}, square[] = {dim, dim}, scales[] = {2, dim};
    snprintf(name, sizeof name, "%s.%s", owner, c->scaling != NULL ? "levels" : "table");
    add(a, c->table, "F16", 2, c->scaling != NULL ? 1 : 4, c->scaling != NULL ? levels : table, name);
    snprintf(name, sizeof name, "%s.mean", owner);
    add(a, c->mean, "F32", 4, 1, row, name);
    snprintf(name, sizeof name, "%s.forward", owner);
    add(a, c->forward, "F32", 4, 2, square, name);
    snprintf(name, sizeof name, "%s.inverse", owner);
    add(a, c->inverse, "F32", 4, 2, square, name);
    snprintf(name, sizeof name, "%s.fixed", owner);
    add(a, c->scaling != NULL ? c->scaling->fixed : NULL, "F16", 2, 2, scales, name);
    if (c->scaling == NULL)
        return;
    const uint64_t lists[] = {c->scaling->lists}, clips[] = {kvb_scaling_groups(c->scaling, dim)};
    snprintf(name, sizeof name, "%s.clips", owner);
    add(a, c->scaling->clips, "F32", 4, 1, clips, name);
    snprintf(name, sizeof name, "%s.order", owner);
    add(a, c->scaling->order, "U16", 2, 1, row, name);
    snprintf(name, sizeof name, "%s.list_ends", owner);
    add(a, c->scaling->end, "U16", 2, 1, lists, name);
}

static int by_offset(const void *x, const void *y)
{
    const array *a = x, *b = y;
    return a->offset < b->offset ? -1 : a->offset > b->offset;
}

/* In the order of the book, without what lies in another. */
static void put_in_order(arrays *a)
{
    size_t kept = 0;
    if (a->count > 0)
        qsort(a->list, a->count, sizeof *a->list, by_offset);
    for (size_t i = 0; i < a->count; i++)
        if (kept == 0 || a->list[i].offset >= a->list[kept - 1].offset + a->list[kept - 1].size)
            a->list[kept++] = a->list[i];
    a->count = kept;
}

static void collect(const kvb_book *book, arrays *a)
{
    char owner[NAME_SIZE];
    for (uint32_t l = 0; l < kvb_book_layers(book); l++) {
        const kvb_layer *layer = kvb_book_layer(book, l);
        for (uint32_t i = 0; i < 2 * layer->kv_heads; i++) {
            snprintf(owner, sizeof owner, "layers.%u.heads.%u.%s", l, i / 2, kinds[i % 2]);
            add_codebook(a, kvb_book_codebook(book, l, i / 2, (kvb_kind)(i % 2)), layer->head_dim, owner);
            snprintf(owner, sizeof owner, "layers.%u.heads.%u.%s.fine", l, i / 2, kinds[i % 2]);
            add_codebook(a, kvb_book_fine(book, l, i / 2, (kvb_kind)(i % 2)), layer->head_dim, owner);
        }
    }
    put_in_order(a);
}

/* ---- writing */

static void put_tensor(kvb_json_writer *w, const char *name, const char *dtype, uint32_t dims, const uint64_t *shape, uint64_t begin,
                       uint64_t size)
{
    kvb_json_begin_object(w, name);
    kvb_json_put_string(w, "dtype", dtype);
    kvb_json_begin_array(w, "shape");
    for (uint32_t i = 0; i < dims; i++)
        kvb_json_put_u64(w, NULL, shape[i]);
    kvb_json_end_array(w);
    kvb_json_begin_array(w, "data_offsets");
    kvb_json_put_u64(w, NULL, begin);
    kvb_json_put_u64(w, NULL, begin + size);
    kvb_json_end_array(w);
    kvb_json_end_object(w);
}

static void put_metadata(kvb_json_writer *w, const char *key, const kvb_book *book, const arrays *a)
{
    kvb_json_writer places = {.compact = true};
    char size[24];
    snprintf(size, sizeof size, "%zu", a->book_size);
    kvb_json_begin_object(&places, NULL);
    for (size_t i = 0; i < a->count; i++)
        kvb_json_put_u64(&places, a->list[i].name, a->list[i].offset);
    kvb_json_end_object(&places);
    kvb_json_begin_object(w, key);
    kvb_json_put_string(w, "kvbook.exchange", "1");
    kvb_json_put_sha256(w, "kvbook.id", kvb_book_id(book));
    kvb_json_put_string(w, "kvbook.size", size);
    kvb_json_put_string(w, "kvbook.places", kvb_json_writer_text(&places));
    kvb_json_put_string(w, "kvbook.meta", kvb_book_meta(book, NULL));
    kvb_json_end_object(w);
    kvb_json_writer_free(&places);
}

/* The header: eight bytes of length, JSON, spaces up to a multiple of eight. */
static kvb_status write_header(kvb_outfile *out, const kvb_book *book, const arrays *a, uint64_t rest, kvb_error *err)
{
    kvb_json_writer w = {.compact = true};
    uint64_t at = 0;
    kvb_json_begin_object(&w, NULL);
    put_metadata(&w, metadata_name, book, a);
    for (size_t i = 0; i < a->count; at += a->list[i++].size)
        put_tensor(&w, a->list[i].name, a->list[i].dtype, a->list[i].dims, a->list[i].shape, at, a->list[i].size);
    put_tensor(&w, rest_name, "U8", 1, &rest, at, rest);
    kvb_json_end_object(&w);
    const char *text = kvb_json_writer_text(&w);
    kvb_status status = text != NULL ? KVB_OK : kvb_fail_memory(err, "export");
    if (status == KVB_OK) {
        const uint64_t length = (strlen(text) + 7) / 8 * 8;
        uint8_t prefix[8];
        for (int i = 0; i < 8; i++)
            prefix[i] = (uint8_t)(length >> (8 * i));
        status = kvb_outfile_write(out, prefix, sizeof prefix, err);
        if (status == KVB_OK)
            status = kvb_outfile_write(out, text, strlen(text), err);
        if (status == KVB_OK)
            status = kvb_outfile_write(out, "       ", length - strlen(text), err);
    }
    kvb_json_writer_free(&w);
    return status;
}

static uint64_t size_of_rest(const arrays *a)
{
    uint64_t rest = a->book_size;
    for (size_t i = 0; i < a->count; i++)
        rest -= a->list[i].size;
    return rest;
}

/* The bytes that no array has, in the order of the book. */
static kvb_status write_rest(kvb_outfile *out, const arrays *a, kvb_error *err)
{
    uint64_t at = 0;
    kvb_status status = KVB_OK;
    for (size_t i = 0; status == KVB_OK && i <= a->count; i++) {
        const uint64_t end = i < a->count ? a->list[i].offset : a->book_size;
        status = kvb_outfile_write(out, a->book + at, (size_t)(end - at), err);
        at = i < a->count ? end + a->list[i].size : end;
    }
    return status;
}

static kvb_status write_safetensors(kvb_outfile *out, const kvb_book *book, const arrays *a, kvb_error *err)
{
    kvb_status status = write_header(out, book, a, size_of_rest(a), err);
    for (size_t i = 0; status == KVB_OK && i < a->count; i++)
        status = kvb_outfile_write(out, a->book + a->list[i].offset, (size_t)a->list[i].size, err);
    return status == KVB_OK ? write_rest(out, a, err) : status;
}

/* As a GGUF file tells of it: ggml's number of the type, and the fastest dimension first. */
static kvb_tensor tensor_of(const array *a)
{
    kvb_tensor t = {.name = a->name, .dims = a->dims, .shape = {1, 1, 1, 1}, .size = a->size};
    static const struct { const char *name; uint32_t type; } types[] = {
        {"F16", KVB_DTYPE_F16}, {"F32", KVB_DTYPE_F32}, {"U16", GGML_I16}, {"U8", GGML_I8},
    };
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (strcmp(a->dtype, types[i].name) == 0)
            t.dtype = types[i].type;
    for (uint32_t i = 0; i < a->dims; i++)
        t.shape[i] = a->shape[a->dims - 1 - i];
    return t;
}

static kvb_status write_gguf_data(kvb_outfile *out, const arrays *a, kvb_error *err)
{
    kvb_status status = KVB_OK;
    for (size_t i = 0; status == KVB_OK && i < a->count; i++) {
        status = kvb_outfile_write(out, a->book + a->list[i].offset, (size_t)a->list[i].size, err);
        if (status == KVB_OK)
            status = kvb_gguf_write_pad(out, a->list[i].size, err);
    }
    if (status == KVB_OK)
        status = write_rest(out, a, err);
    return status == KVB_OK ? kvb_gguf_write_pad(out, size_of_rest(a), err) : status;
}

/* The same arrays as tensors, and the metadata as strings. */
static kvb_status write_gguf(kvb_outfile *out, const kvb_book *book, const arrays *a, kvb_error *err)
{
    kvb_json_writer w = {.compact = true};
    kvb_json_doc *doc = NULL;
    array rest = {.dtype = "U8", .dims = 1, .shape = {size_of_rest(a)}, .size = size_of_rest(a)};
    kvb_tensor *tensor = kvb_alloc_array(a->count + 1, sizeof *tensor);
    put_metadata(&w, NULL, book, a);
    const char *text = kvb_json_writer_text(&w);
    kvb_status status = text == NULL || tensor == NULL ? kvb_fail_memory(err, "export")
                                                       : kvb_json_parse(text, strlen(text), "export", &doc, err);
    if (status == KVB_OK) {
        snprintf(rest.name, sizeof rest.name, "%s", rest_name);
        for (size_t i = 0; i <= a->count; i++)
            tensor[i] = tensor_of(i < a->count ? &a->list[i] : &rest);
        status = kvb_gguf_write_head(out, kvb_json_root(doc), tensor, a->count + 1, err);
    }
    if (status == KVB_OK)
        status = write_gguf_data(out, a, err);
    kvb_json_free(doc);
    kvb_json_writer_free(&w);
    free(tensor);
    return status;
}

/* As numpy spells a type of safetensors. */
static const char *numpy_type(const char *dtype)
{
    return strcmp(dtype, "F16") == 0 ? "<f2" : strcmp(dtype, "F32") == 0 ? "<f4" : strcmp(dtype, "U16") == 0 ? "<u2" : "|u1";
}

static kvb_status add_rest(kvb_npz_writer *npz, const arrays *a, kvb_error *err)
{
    const uint64_t size = size_of_rest(a);
    uint8_t *rest = kvb_alloc_array(size, 1), *to = rest;
    uint64_t at = 0;
    if (rest == NULL)
        return kvb_fail_memory(err, "export");
    for (size_t i = 0; i <= a->count; i++) {
        const uint64_t end = i < a->count ? a->list[i].offset : a->book_size;
        memcpy(to, a->book + at, (size_t)(end - at));
        to += end - at;
        at = i < a->count ? end + a->list[i].size : end;
    }
    kvb_status status = kvb_npz_add(npz, rest_name, "|u1", 1, &size, rest, size, err);
    free(rest);
    return status;
}

/* The same arrays, and the metadata as the bytes of a JSON object. */
static kvb_status write_npz(kvb_npz_writer *npz, const kvb_book *book, const arrays *a, kvb_error *err)
{
    kvb_json_writer w = {.compact = true};
    put_metadata(&w, NULL, book, a);
    const char *text = kvb_json_writer_text(&w);
    const uint64_t length = text != NULL ? strlen(text) : 0;
    kvb_status status = text == NULL ? kvb_fail_memory(err, "export")
                                     : kvb_npz_add(npz, metadata_name, "|u1", 1, &length, text, length, err);
    kvb_json_writer_free(&w);
    for (size_t i = 0; status == KVB_OK && i < a->count; i++) {
        const array *one = &a->list[i];
        status = kvb_npz_add(npz, one->name, numpy_type(one->dtype), one->dims, one->shape, a->book + one->offset, one->size, err);
    }
    if (status == KVB_OK)
        status = add_rest(npz, a, err);
    return status == KVB_OK ? kvb_npz_finish(npz, err) : status;
}

static bool ends_with(const char *path, const char *end)
{
    const size_t length = strlen(path), tail = strlen(end);
    return length > tail && strcmp(path + length - tail, end) == 0;
}

kvb_status kvb_exchange_write(const kvb_book *book, const char *path, kvb_error *err)
{
    arrays a = {0};
    kvb_outfile *out = NULL;
    if (!ends_with(path, ".npz") && !ends_with(path, ".safetensors") && !ends_with(path, ".gguf"))
        return kvb_fail(err, KVB_E_USAGE, path, "cannot tell the form to write: expected a name that ends in .safetensors, .npz or .gguf");
    a.book = kvb_book_bytes(book, &a.book_size);
    collect(book, &a);
    kvb_status status = a.failed ? kvb_fail_memory(err, "export") : kvb_outfile_open(path, &out, err);
    kvb_npz_writer npz = {.out = out, .path = path};
    if (status == KVB_OK)
        status = ends_with(path, ".npz")    ? write_npz(&npz, book, &a, err)
                 : ends_with(path, ".gguf") ? write_gguf(out, book, &a, err)
                                            : write_safetensors(out, book, &a, err);
    kvb_npz_writer_free(&npz);
    if (status == KVB_OK)
        status = kvb_outfile_commit(out, err);
    else
        kvb_outfile_abandon(out);
    free(a.list);
    return status;
}

/* ---- reading */

typedef struct importer {
    const char *path;
    kvb_safetensors *safetensors; /* or else one of the two below, and metadata */
    kvb_gguf *gguf;
    char *bytes; /* of npz */
    kvb_npz *npz;
    kvb_json_doc *metadata;
    kvb_json_doc *places;
    arrays a; /* name, size and offset alone; book_size is the book's */
    uint8_t *image;
    kvb_error *err;
} importer;

static kvb_status refuse(const importer *im, const char *what)
{
    return kvb_fail(im->err, KVB_E_FORMAT, im->path, "%s", what);
}

/* The bytes of an array of either form, none where there is none of that name. */
typedef struct span {
    const uint8_t *bytes;
    uint64_t size;
} span;

static span find(const importer *im, const char *name)
{
    if (im->safetensors != NULL) {
        const kvb_st_tensor *t = kvb_safetensors_find(im->safetensors, name);
        return t != NULL ? (span){t->bytes, t->size} : (span){NULL, 0};
    }
    if (im->gguf != NULL) {
        const kvb_tensor *t = kvb_gguf_tensor(im->gguf, name);
        return t != NULL ? (span){t->bytes, t->size} : (span){NULL, 0};
    }
    const kvb_npz_array *a = kvb_npz_find(im->npz, name);
    return a != NULL ? (span){a->bytes, a->size} : (span){NULL, 0};
}

static const char *metadata(const importer *im, const char *key)
{
    if (im->safetensors != NULL)
        return kvb_safetensors_metadata(im->safetensors, key);
    return kvb_json_string(kvb_json_get(kvb_json_root(im->metadata), key), NULL);
}

/* Without the metadata, which only NPZ counts as an array. */
static size_t count_arrays(const importer *im)
{
    if (im->gguf != NULL)
        return kvb_gguf_tensor_count(im->gguf);
    return im->safetensors != NULL ? kvb_safetensors_count(im->safetensors) : kvb_npz_count(im->npz) - 1;
}

static kvb_status open_npz(importer *im)
{
    size_t size = 0;
    kvb_status status = kvb_read_file(im->path, UINT32_MAX, &im->bytes, &size, im->err);
    if (status == KVB_OK)
        status = kvb_npz_open_memory(im->bytes, size, im->path, &im->npz, im->err);
    if (status != KVB_OK)
        return status;
    const span text = find(im, metadata_name);
    if (text.bytes == NULL)
        return refuse(im, "an NPZ file, but no exported book: it has no array __metadata__");
    return kvb_json_parse((const char *)text.bytes, (size_t)text.size, im->path, &im->metadata, im->err);
}

/* Our strings of the file's metadata as an object. */
static kvb_status read_strings(importer *im)
{
    static const char *const keys[] = {"kvbook.exchange", "kvbook.id", "kvbook.size", "kvbook.places"};
    kvb_json_writer w = {.compact = true};
    kvb_json_begin_object(&w, NULL);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const char *bytes;
        uint64_t size;
        if (!kvb_gguf_get_string(im->gguf, keys[i], &bytes, &size))
            continue;
        char *text = strndup(bytes, size);
        w.failed |= text == NULL;
        kvb_json_put_string(&w, keys[i], text);
        free(text);
    }
    kvb_json_end_object(&w);
    const char *object = kvb_json_writer_text(&w);
    kvb_status status = object != NULL ? kvb_json_parse(object, strlen(object), im->path, &im->metadata, im->err)
                                       : kvb_fail_memory(im->err, "import");
    kvb_json_writer_free(&w);
    return status;
}

static kvb_status open_gguf(importer *im)
{
    kvb_status status = kvb_gguf_open(im->path, &im->gguf, im->err);
    return status == KVB_OK ? read_strings(im) : status;
}

/* Zip files begin with PK; a safetensors file that did would have a header of petabytes. */
static kvb_status open_file(importer *im)
{
    char head[4];
    size_t got = 0;
    kvb_status status = kvb_read_prefix(im->path, head, sizeof head, &got, im->err);
    if (status != KVB_OK)
        return status;
    if (got == sizeof head && memcmp(head, "PK\3\4", sizeof head) == 0)
        return open_npz(im);
    if (got == sizeof head && memcmp(head, "GGUF", sizeof head) == 0)
        return open_gguf(im);
    return kvb_safetensors_open(im->path, &im->safetensors, im->err);
}

static kvb_status read_metadata(importer *im)
{
    const char *version = metadata(im, "kvbook.exchange"), *size = metadata(im, "kvbook.size"), *places = metadata(im, "kvbook.places");
    char *end = NULL;
    if (version == NULL)
        return refuse(im, "holds arrays, but no exported book: its metadata has no kvbook.exchange");
    if (strcmp(version, "1") != 0)
        return refuse(im, "exported by a newer kvbook: kvbook.exchange is not 1");
    const unsigned long long bytes = size != NULL && size[0] >= '0' && size[0] <= '9' ? strtoull(size, &end, 10) : 0;
    if (bytes == 0 || bytes > most_bytes || *end != '\0')
        return refuse(im, "kvbook.size: expected the bytes of a book, 1 to 16 GiB");
    if (places == NULL)
        return refuse(im, "kvbook.places is missing");
    im->a.book_size = (size_t)bytes;
    return kvb_json_parse(places, strlen(places), im->path, &im->places, im->err);
}

/* Where each array goes, checked: inside the book, none over another, the rest filling the gaps. */
static kvb_status read_places(importer *im, span rest)
{
    const kvb_json *root = kvb_json_root(im->places);
    const size_t count = kvb_json_type_of(root) == KVB_JSON_OBJECT ? kvb_json_count(root) : 0;
    uint64_t gaps = im->a.book_size, end = 0;
    if (kvb_json_type_of(root) != KVB_JSON_OBJECT)
        return refuse(im, "kvbook.places: expected an object");
    if (count + 1 != count_arrays(im))
        return refuse(im, "kvbook.places: expected a place for each array but book.rest");
    im->a.list = kvb_alloc_zeroed(count + 1, sizeof *im->a.list);
    if (im->a.list == NULL)
        return kvb_fail_memory(im->err, "import");
    for (size_t i = 0; i < count; i++) {
        array *to = &im->a.list[i];
        const char *name = kvb_json_key_at(root, i);
        const span found = find(im, name);
        const bool of_book = found.bytes != NULL && strcmp(name, rest_name) != 0 && strcmp(name, metadata_name) != 0;
        if (!of_book || !kvb_json_u64(kvb_json_at(root, i), &to->offset))
            return kvb_fail(im->err, KVB_E_FORMAT, im->path, "kvbook.places: \"%.60s\" has no array, or no place", name);
        if (to->offset > im->a.book_size || found.size > im->a.book_size - to->offset || strlen(name) >= NAME_SIZE)
            return kvb_fail(im->err, KVB_E_FORMAT, im->path, "\"%.60s\" lies outside the book", name);
        snprintf(to->name, sizeof to->name, "%s", name);
        to->size = found.size;
    }
    im->a.count = count;
    if (count > 0)
        qsort(im->a.list, count, sizeof *im->a.list, by_offset);
    for (size_t i = 0; i < count; i++) {
        if (im->a.list[i].offset < end)
            return kvb_fail(im->err, KVB_E_FORMAT, im->path, "\"%.60s\" lies over another array", im->a.list[i].name);
        end = im->a.list[i].offset + im->a.list[i].size;
        gaps -= im->a.list[i].size;
    }
    return rest.size == gaps ? KVB_OK : refuse(im, "book.rest: expected the bytes of the book that no other array has");
}

static void fill(importer *im, span rest)
{
    const uint8_t *from = rest.bytes;
    uint64_t at = 0;
    for (size_t i = 0; i <= im->a.count; i++) {
        const array *one = i < im->a.count ? &im->a.list[i] : NULL;
        const uint64_t end = one != NULL ? one->offset : im->a.book_size;
        memcpy(im->image + at, from, (size_t)(end - at));
        from += end - at;
        at = end;
        if (one != NULL) {
            memcpy(im->image + at, find(im, one->name).bytes, (size_t)one->size);
            at += one->size;
        }
    }
}

/* The book that came of it is one, and the one that was exported. */
static kvb_status check_book(const importer *im)
{
    kvb_book *book = NULL;
    kvb_error inner = {0};
    char hex[65];
    kvb_status status = kvb_book_open_memory(im->image, im->a.book_size, im->path, &book, &inner);
    if (status != KVB_OK)
        return kvb_fail(im->err, status, inner.where, "%s; were arrays changed after the export?", inner.message);
    const char *id = metadata(im, "kvbook.id");
    kvb_sha256_hex(kvb_book_id(book), hex);
    kvb_book_close(book);
    return id != NULL && strcmp(id, hex) == 0 ? KVB_OK : refuse(im, "kvbook.id is not the identity of the book that the arrays make");
}

static kvb_status read_all(importer *im)
{
    kvb_status status = open_file(im);
    if (status == KVB_OK)
        status = read_metadata(im);
    if (status != KVB_OK)
        return status;
    const span rest = find(im, rest_name);
    if (rest.bytes == NULL)
        return refuse(im, "the array book.rest is missing");
    status = read_places(im, rest);
    if (status != KVB_OK)
        return status;
    im->image = kvb_alloc_array(im->a.book_size, 1);
    if (im->image == NULL)
        return kvb_fail_memory(im->err, "import");
    fill(im, rest);
    return check_book(im);
}

kvb_status kvb_exchange_read(const char *path, uint8_t **image, size_t *size, kvb_error *err)
{
    importer im = {.path = path, .err = err};
    kvb_status status = read_all(&im);
    *image = status == KVB_OK ? im.image : NULL;
    *size = im.a.book_size;
    if (status != KVB_OK)
        free(im.image);
    free(im.a.list);
    kvb_json_free(im.places);
    kvb_json_free(im.metadata);
    kvb_safetensors_close(im.safetensors);
    kvb_gguf_close(im.gguf);
    kvb_npz_close(im.npz);
    free(im.bytes);
    return status;
}
