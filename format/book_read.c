#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/mapfile.h"
#include "format/book_reader.h"

/* Up to this many bytes a book is read whole and checked whole, whatever the flags: that takes under a millisecond. */
#define SMALL_BOOK ((uint64_t)1 << 20)

static const char known_sections[][5] = {"META", "GEOM", "POLC", "ROPE", "CODE", "SCAL", "GRPS", "POOL", "FINE", "MEAN", "XFRM", "qual"};
static const kvb_file_kind book_kind = {.magic = KVB_MAGIC, .extension = "kvb", .owner = "head",
                                        .known = known_sections,
                                        .known_count = sizeof known_sections / sizeof *known_sections,
                                        .most_codec = KVB_CODEC_ZLIB};

/* What grows with the codebooks, and is only ever calculated with or shown: whatever stands there, no index and no size follows.
 * A record of quality is small, but each lies on a page of its own, and touching that costs more than reading it. */
static bool is_bulk(const kvb_entry *e)
{
    static const char bulk[][5] = {"CODE", "FINE", "MEAN", "XFRM", "qual"};
    if (e->codec != KVB_CODEC_RAW)
        return false;
    for (size_t i = 0; i < sizeof bulk / sizeof *bulk; i++)
        if (strcmp(e->type, bulk[i]) == 0)
            return true;
    return false;
}

/* The checksums that kvb_reader_table() left, but for those of bulk. */
static kvb_status check_small_sections(const kvb_reader *r)
{
    kvb_status status = KVB_OK;
    for (uint32_t i = 0; status == KVB_OK && i < r->header.sections; i++)
        if (!is_bulk(&r->entry[i]))
            status = kvb_section_checksum(r, &r->entry[i]);
    return status;
}

kvb_status kvb_book_parse(kvb_book *book, const char *name, bool defer, kvb_error *err)
{
    /* Tables are used as they lie in the file. */
    if (__BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__)
        return kvb_fail(err, KVB_E_FORMAT, name, "books can be read on little-endian machines only");
    kvb_file_kind kind = book_kind;
    kind.lazy = defer;
    kvb_reader r = {.kind = &kind, .name = name, .bytes = book->bytes, .size = book->size, .book = book, .err = err};
    kvb_status status = kvb_reader_table(&r);
    if (status == KVB_OK && defer)
        status = check_small_sections(&r);
    if (status == KVB_OK)
        status = kvb_reader_geometry(&r);
    if (status == KVB_OK)
        status = kvb_reader_codebooks(&r);
    memcpy(book->id, r.header.id, sizeof book->id);
    free(r.entry);
    return status;
}

/* Validates a book whose bytes are in place, and takes ownership of it, also on failure. */
static kvb_status finish(kvb_book *book, const char *name, bool defer, kvb_book **out, kvb_error *err)
{
    book->name = strdup(name);
    kvb_status status = book->name != NULL ? kvb_book_parse(book, name, defer, err) : kvb_fail_memory(err, name);
    if (status != KVB_OK) {
        kvb_book_close(book);
        return status;
    }
    *out = book;
    return KVB_OK;
}

kvb_status kvb_book_adopt(uint8_t *bytes, size_t size, const char *name, bool defer, kvb_book **out, kvb_error *err)
{
    kvb_book *book = calloc(1, sizeof *book);
    if (book == NULL) {
        free(bytes);
        return kvb_fail_memory(err, name);
    }
    book->owned = bytes;
    book->bytes = bytes;
    book->size = size;
    return finish(book, name, defer, out, err);
}

/* A model file named by mistake should not be read to its end before it is refused. */
static kvb_status check_is_book(const char *path, kvb_error *err)
{
    char head[KVB_MAGIC_SIZE];
    size_t got;
    kvb_status status = kvb_read_prefix(path, head, sizeof head, &got, err);
    if (status == KVB_OK && got == 0)
        return kvb_fail(err, KVB_E_FORMAT, path, "is empty (0 bytes)");
    if (status == KVB_OK && got >= 4 && memcmp(head + 1, KVB_MAGIC + 1, 3) != 0)
        return kvb_fail(err, KVB_E_FORMAT, path, "not a .kvb file: the magic 89 4B 56 42 0D 0A 1A 0A is missing");
    return status;
}

static kvb_status open_read(const char *path, kvb_book **book, kvb_error *err)
{
    char *bytes;
    size_t size;
    kvb_status status = kvb_read_file(path, KVB_MAX_FILE, &bytes, &size, err);
    return status == KVB_OK ? kvb_book_adopt((uint8_t *)bytes, size, path, false, book, err) : status;
}

static kvb_status open_mapped(const char *path, kvb_book **out, kvb_error *err)
{
    kvb_book *book = calloc(1, sizeof *book);
    if (book == NULL)
        return kvb_fail_memory(err, path);
    kvb_status status = kvb_mapfile_open(&book->map, path, err);
    if (status != KVB_OK) {
        kvb_book_close(book);
        return status;
    }
    book->bytes = book->map.bytes;
    book->size = book->map.size;
    if (book->size > SMALL_BOOK)
        return finish(book, path, true, out, err);
    kvb_book_close(book);
    return open_read(path, out, err);
}

kvb_status kvb_book_open_with(const char *path, uint32_t flags, kvb_book **book, kvb_error *err)
{
    *book = NULL;
    if ((flags & ~(uint32_t)KVB_OPEN_VERIFIED) != 0)
        return kvb_fail(err, KVB_E_USAGE, path, "flags %08x, expected 0 or KVB_OPEN_VERIFIED", flags);
    kvb_status status = check_is_book(path, err);
    if (status != KVB_OK)
        return status;
    return (flags & KVB_OPEN_VERIFIED) != 0 ? open_read(path, book, err) : open_mapped(path, book, err);
}

kvb_status kvb_book_open(const char *path, kvb_book **book, kvb_error *err)
{
    return kvb_book_open_with(path, 0, book, err);
}

/* A second reading of the same bytes, with nothing left out: what it finds is what opening would have found. */
kvb_status kvb_book_verify(const kvb_book *book, kvb_error *err)
{
    kvb_book *again = calloc(1, sizeof *again);
    if (again == NULL)
        return kvb_fail_memory(err, book->name);
    again->bytes = book->bytes;
    again->size = book->size;
    kvb_status status = kvb_book_parse(again, book->name, false, err);
    kvb_book_close(again);
    return status;
}

kvb_status kvb_book_open_memory(const void *bytes, size_t size, const char *name, kvb_book **book, kvb_error *err)
{
    *book = NULL;
    if (bytes == NULL || size == 0)
        return kvb_fail(err, KVB_E_FORMAT, name, "is empty (0 bytes)");
    uint8_t *copy = kvb_alloc_array(size, 1);
    if (copy == NULL)
        return kvb_fail_memory(err, name);
    memcpy(copy, bytes, size);
    return kvb_book_adopt(copy, size, name, false, book, err);
}

void kvb_book_close(kvb_book *book)
{
    if (book == NULL)
        return;
    for (uint32_t i = 0; i < book->codebooks; i++)
        free(book->own_quality[i]);
    free(book->own_quality);
    free(book->quality);
    free(book->codebook);
    free(book->fine);
    free(book->scaling);
    free(book->first);
    free(book->layer);
    free(book->meta);
    free(book->name);
    free(book->owned);
    kvb_mapfile_close(&book->map);
    free(book);
}

uint32_t kvb_book_layers(const kvb_book *book)
{
    return book->layers;
}

const kvb_layer *kvb_book_layer(const kvb_book *book, uint32_t layer)
{
    return layer < book->layers ? &book->layer[layer] : NULL;
}

/* Index of a codebook, or KVB_NO_CODEBOOKS where there is none. */
static uint32_t slot_of(const kvb_book *book, uint32_t layer, uint32_t head, kvb_kind kind)
{
    if (layer >= book->layers || head >= book->layer[layer].kv_heads || (unsigned)kind > KVB_VALUE ||
        book->first[layer] == KVB_NO_CODEBOOKS)
        return KVB_NO_CODEBOOKS;
    return book->first[layer] + 2 * head + (uint32_t)kind;
}

const kvb_codebook *kvb_book_codebook(const kvb_book *book, uint32_t layer, uint32_t head, kvb_kind kind)
{
    uint32_t slot = slot_of(book, layer, head, kind);
    return slot != KVB_NO_CODEBOOKS ? &book->codebook[slot] : NULL;
}

const kvb_codebook *kvb_book_fine(const kvb_book *book, uint32_t layer, uint32_t head, kvb_kind kind)
{
    uint32_t slot = slot_of(book, layer, head, kind);
    return slot != KVB_NO_CODEBOOKS && book->fine != NULL ? &book->fine[slot] : NULL;
}

const kvb_quality *kvb_book_quality(const kvb_book *book, uint32_t layer, uint32_t head, kvb_kind kind)
{
    uint32_t slot = slot_of(book, layer, head, kind);
    return slot != KVB_NO_CODEBOOKS ? book->quality[slot] : NULL;
}

kvb_policy kvb_book_policy(const kvb_book *book)
{
    return book->policy;
}

const uint8_t *kvb_book_id(const kvb_book *book)
{
    return book->id;
}

const char *kvb_book_meta(const kvb_book *book, size_t *size)
{
    if (size != NULL)
        *size = book->meta_size;
    return book->meta;
}

uint64_t kvb_book_file_size(const kvb_book *book)
{
    return book->size;
}

const uint8_t *kvb_book_bytes(const kvb_book *book, size_t *size)
{
    *size = book->size;
    return book->bytes;
}
