#include "model/npz.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "format/base/checked.h"
#include "format/base/crc.h"
#include "format/base/cursor.h"
#include "format/base/fail.h"

/* APPNOTE.TXT of zip: signatures and sizes of its three records, and a date that is always the same, 1980-01-01. */
enum { LOCAL = 0x04034b50, CENTRAL = 0x02014b50, END = 0x06054b50, LOCAL_SIZE = 30, CENTRAL_SIZE = 46, END_SIZE = 22, DATE = 0x21 };
enum { VERSION = 20, MOST_MEMBERS = 65534, HEADER_SIZE = 256, SUFFIX = 4 };
static const char magic[] = "\x93NUMPY";

/* ---- writing */

typedef struct record {
    uint8_t bytes[CENTRAL_SIZE];
    size_t size;
} record;

static void put(record *r, uint32_t value, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        r->bytes[r->size++] = (uint8_t)(value >> (8 * i));
}

/* What the local header and the directory have in common, from the version that a reader needs to the length of the name. */
static void put_member(record *r, const kvb_npz_member *m)
{
    put(r, VERSION, 2);
    put(r, 0, 2); /* flags */
    put(r, 0, 2); /* method: stored */
    put(r, 0, 2); /* time */
    put(r, DATE, 2);
    put(r, m->crc, 4);
    put(r, m->size, 4);
    put(r, m->size, 4);
    put(r, (uint32_t)strlen(m->name) + SUFFIX, 2);
    put(r, 0, 2); /* extra fields */
}

static kvb_status write_bytes(kvb_npz_writer *w, const void *bytes, uint64_t size, kvb_error *err)
{
    w->at += size;
    return kvb_outfile_write(w->out, bytes, (size_t)size, err);
}

static kvb_status write_record(kvb_npz_writer *w, const record *r, const char *name, kvb_error *err)
{
    kvb_status status = write_bytes(w, r->bytes, r->size, err);
    if (status == KVB_OK && name != NULL)
        status = write_bytes(w, name, strlen(name), err);
    return status == KVB_OK && name != NULL ? write_bytes(w, ".npy", SUFFIX, err) : status;
}

/* numpy's header, version 1.0: padded with spaces to a multiple of 64 that ends in a line feed. */
static size_t array_header(char to[HEADER_SIZE], const char *descr, uint32_t dims, const uint64_t *shape)
{
    char text[HEADER_SIZE], list[128] = "";
    size_t at = 0;
    for (uint32_t i = 0; i < dims; i++)
        at += (size_t)snprintf(list + at, sizeof list - at, i == 0 ? "%" PRIu64 "," : " %" PRIu64 ",", shape[i]);
    const int length = snprintf(text, sizeof text, "{'descr': '%s', 'fortran_order': False, 'shape': (%s), }", descr, list);
    const size_t prefix = sizeof magic - 1 + 4, total = (prefix + (size_t)length + 1 + 63) / 64 * 64;
    memset(to, ' ', total);
    memcpy(to, magic, sizeof magic - 1);
    memcpy(to + sizeof magic - 1, "\x01\x00", 2);
    to[prefix - 2] = (char)((total - prefix) & 0xff);
    to[prefix - 1] = (char)((total - prefix) >> 8);
    memcpy(to + prefix, text, (size_t)length);
    to[total - 1] = '\n';
    return total;
}

static kvb_status grow(kvb_npz_writer *w, kvb_error *err)
{
    const size_t room = 2 * w->room + 64;
    if (w->count < w->room)
        return KVB_OK;
    kvb_npz_member *grown = realloc(w->member, room * sizeof *grown);
    if (grown == NULL)
        return kvb_fail_memory(err, w->path);
    w->member = grown;
    w->room = room;
    return KVB_OK;
}

kvb_status kvb_npz_add(kvb_npz_writer *w, const char *name, const char *descr, uint32_t dims, const uint64_t *shape, const void *bytes,
                       uint64_t size, kvb_error *err)
{
    char head[HEADER_SIZE];
    record r = {.size = 0};
    kvb_status status = grow(w, err);
    if (status != KVB_OK)
        return status;
    const size_t head_size = array_header(head, descr, dims, shape);
    /* Room for the directory, too, which has a record for each member. */
    const uint64_t directory = (w->count + 1) * (CENTRAL_SIZE + KVB_NPZ_NAME + SUFFIX) + END_SIZE;
    if (w->count == MOST_MEMBERS || size > UINT32_MAX || w->at + size + HEADER_SIZE + LOCAL_SIZE + KVB_NPZ_NAME + directory > UINT32_MAX)
        return kvb_fail(err, KVB_E_USAGE, w->path, "more than an NPZ file holds (4 GiB, 65534 arrays): export to .safetensors");
    kvb_npz_member *m = &w->member[w->count++];
    *m = (kvb_npz_member){.size = (uint32_t)(head_size + size), .offset = (uint32_t)w->at};
    snprintf(m->name, sizeof m->name, "%s", name);
    m->crc = (uint32_t)crc32_z(crc32_z(0, (const uint8_t *)head, head_size), bytes, (size_t)size);
    put(&r, LOCAL, 4);
    put_member(&r, m);
    status = write_record(w, &r, m->name, err);
    if (status == KVB_OK)
        status = write_bytes(w, head, head_size, err);
    return status == KVB_OK ? write_bytes(w, bytes, size, err) : status;
}

kvb_status kvb_npz_finish(kvb_npz_writer *w, kvb_error *err)
{
    const uint64_t begin = w->at;
    kvb_status status = KVB_OK;
    for (size_t i = 0; status == KVB_OK && i < w->count; i++) {
        record r = {.size = 0};
        put(&r, CENTRAL, 4);
        put(&r, VERSION, 2);
        put_member(&r, &w->member[i]);
        put(&r, 0, 4); /* comment, disk */
        put(&r, 0, 2); /* attributes */
        put(&r, 0, 4);
        put(&r, w->member[i].offset, 4);
        status = write_record(w, &r, w->member[i].name, err);
    }
    record r = {.size = 0};
    put(&r, END, 4);
    put(&r, 0, 4); /* disks */
    put(&r, (uint32_t)w->count, 2);
    put(&r, (uint32_t)w->count, 2);
    put(&r, (uint32_t)(w->at - begin), 4);
    put(&r, (uint32_t)begin, 4);
    put(&r, 0, 2); /* comment */
    return status == KVB_OK ? write_record(w, &r, NULL, err) : status;
}

void kvb_npz_writer_free(kvb_npz_writer *w)
{
    free(w->member);
}

/* ---- reading */

struct kvb_npz {
    kvb_npz_array *array; /* [count] in order of name */
    size_t count;
};

typedef struct reader {
    const uint8_t *bytes;
    size_t size;
    const char *path;
    kvb_npz *npz;
    uint64_t directory; /* where it begins: members end before it */
    uint64_t total;     /* bytes of the members so far */
    kvb_error *err;
} reader;

static kvb_status refuse(const reader *r, const char *what)
{
    return kvb_fail(r->err, KVB_E_FORMAT, r->path, "%s", what);
}

static kvb_status refuse_member(const reader *r, size_t i, const char *what)
{
    return kvb_fail(r->err, KVB_E_FORMAT, r->path, "array %zu of the archive: %s", i + 1, what);
}

/* The last record of the file; an archive with a comment after it is none of numpy's. */
static kvb_status read_end(reader *r, size_t *count)
{
    kvb_cursor c = kvb_cursor_over(r->bytes, r->size);
    kvb_cursor_seek(&c, r->size < END_SIZE ? 0 : r->size - END_SIZE);
    const uint32_t signature = kvb_cursor_u32(&c), disks = kvb_cursor_u32(&c);
    const uint16_t here = kvb_cursor_u16(&c), all = kvb_cursor_u16(&c);
    const uint32_t size = kvb_cursor_u32(&c), begin = kvb_cursor_u32(&c);
    const uint16_t comment = kvb_cursor_u16(&c);
    if (c.failed || signature != END || disks != 0 || comment != 0)
        return refuse(r, "does not end in the directory of an NPZ file; was it cut short?");
    if (all > MOST_MEMBERS || here != all || (uint64_t)begin + size + END_SIZE != r->size || (uint64_t)all * CENTRAL_SIZE > size)
        return refuse(r, "the directory of the NPZ file does not lie where its end says, or is that of a file over 4 GiB");
    r->directory = begin;
    *count = all;
    return KVB_OK;
}

/* Past numpy's header; Fortran's order would put the numbers elsewhere. */
static kvb_status read_array(const reader *r, size_t i, kvb_cursor c, kvb_npz_array *to)
{
    static const char order[] = "'fortran_order': False";
    const uint8_t *begin = kvb_cursor_bytes(&c, sizeof magic - 1);
    const uint16_t version = kvb_cursor_u16(&c);
    const uint32_t length = version == 1 ? kvb_cursor_u16(&c) : kvb_cursor_u32(&c);
    const uint8_t *text = kvb_cursor_bytes(&c, length);
    if (begin == NULL || memcmp(begin, magic, sizeof magic - 1) != 0 || version < 1 || version > 3 || text == NULL)
        return refuse_member(r, i, "no array in numpy's form");
    bool found = false;
    for (size_t at = 0; !found && at + sizeof order - 1 <= length; at++)
        found = memcmp(text + at, order, sizeof order - 1) == 0;
    if (!found)
        return refuse_member(r, i, "not in C's order: save it with numpy.ascontiguousarray");
    to->bytes = c.bytes + c.at;
    to->size = c.size - c.at;
    return KVB_OK;
}

static kvb_status read_member(reader *r, size_t i, uint64_t offset, uint32_t size, uint32_t crc, kvb_npz_array *to)
{
    kvb_cursor c = kvb_cursor_over(r->bytes, (size_t)r->directory);
    kvb_cursor_seek(&c, offset);
    const uint32_t signature = kvb_cursor_u32(&c);
    kvb_cursor_bytes(&c, 22);
    const uint16_t name = kvb_cursor_u16(&c), extra = kvb_cursor_u16(&c);
    kvb_cursor_bytes(&c, (uint64_t)name + extra);
    const uint8_t *bytes = kvb_cursor_bytes(&c, size);
    if (bytes == NULL || c.failed || signature != LOCAL)
        return refuse_member(r, i, "lies outside the file");
    /* Members that lie over each other could add up to far more than the file. */
    r->total += size;
    if (r->total > r->directory)
        return refuse_member(r, i, "lies over another");
    if (kvb_crc_of(bytes, size) != crc)
        return refuse_member(r, i, "its checksum does not match: the file is damaged");
    return read_array(r, i, kvb_cursor_over(bytes, size), to);
}

static kvb_status read_entry(reader *r, size_t i, kvb_cursor *c, kvb_npz_array *to)
{
    const uint32_t signature = kvb_cursor_u32(c);
    kvb_cursor_bytes(c, 4);
    const uint16_t flags = kvb_cursor_u16(c), method = kvb_cursor_u16(c);
    kvb_cursor_bytes(c, 4);
    const uint32_t crc = kvb_cursor_u32(c), stored = kvb_cursor_u32(c), size = kvb_cursor_u32(c);
    const uint16_t length = kvb_cursor_u16(c), extra = kvb_cursor_u16(c), comment = kvb_cursor_u16(c);
    kvb_cursor_bytes(c, 8);
    const uint32_t offset = kvb_cursor_u32(c);
    const uint8_t *name = kvb_cursor_bytes(c, length);
    kvb_cursor_bytes(c, (uint64_t)extra + comment);
    if (c->failed || signature != CENTRAL || name == NULL)
        return refuse(r, "the directory of the NPZ file is damaged");
    if (method != 0 || (flags & 1) != 0 || stored != size)
        return refuse_member(r, i, "compressed or encrypted: save with numpy.savez, not savez_compressed");
    if (length <= SUFFIX || length - SUFFIX >= KVB_NPZ_NAME || memcmp(name + length - SUFFIX, ".npy", SUFFIX) != 0 ||
        memchr(name, 0, length) != NULL)
        return refuse_member(r, i, "expected a name of at most 63 bytes and .npy");
    memcpy(to->name, name, length - SUFFIX);
    return read_member(r, i, offset, size, crc, to);
}

static int by_name(const void *x, const void *y)
{
    return strcmp(((const kvb_npz_array *)x)->name, ((const kvb_npz_array *)y)->name);
}

static kvb_status read_directory(reader *r)
{
    size_t count = 0;
    kvb_status status = read_end(r, &count);
    if (status != KVB_OK)
        return status;
    r->npz->array = kvb_alloc_zeroed(count + 1, sizeof *r->npz->array);
    if (r->npz->array == NULL)
        return kvb_fail_memory(r->err, r->path);
    kvb_cursor c = kvb_cursor_over(r->bytes, r->size - END_SIZE);
    kvb_cursor_seek(&c, r->directory);
    for (size_t i = 0; status == KVB_OK && i < count; i++)
        status = read_entry(r, i, &c, &r->npz->array[i]);
    if (status == KVB_OK && c.at != c.size)
        return refuse(r, "the directory of the NPZ file is damaged");
    if (status != KVB_OK)
        return status;
    r->npz->count = count;
    qsort(r->npz->array, count, sizeof *r->npz->array, by_name);
    for (size_t i = 1; i < count; i++)
        if (by_name(&r->npz->array[i - 1], &r->npz->array[i]) == 0)
            return refuse(r, "two arrays have the same name");
    return KVB_OK;
}

kvb_status kvb_npz_open_memory(const void *bytes, size_t size, const char *name, kvb_npz **npz, kvb_error *err)
{
    reader r = {.bytes = bytes, .size = size, .path = name, .err = err};
    *npz = NULL;
    r.npz = calloc(1, sizeof *r.npz);
    if (r.npz == NULL)
        return kvb_fail_memory(err, name);
    kvb_status status = read_directory(&r);
    if (status == KVB_OK)
        *npz = r.npz;
    else
        kvb_npz_close(r.npz);
    return status;
}

void kvb_npz_close(kvb_npz *npz)
{
    if (npz == NULL)
        return;
    free(npz->array);
    free(npz);
}

size_t kvb_npz_count(const kvb_npz *npz)
{
    return npz->count;
}

const kvb_npz_array *kvb_npz_find(const kvb_npz *npz, const char *name)
{
    kvb_npz_array key = {.size = 0};
    if (strlen(name) >= sizeof key.name)
        return NULL;
    snprintf(key.name, sizeof key.name, "%s", name);
    return bsearch(&key, npz->array, npz->count, sizeof key, by_name);
}
