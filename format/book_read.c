#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/mapfile.h"
#include "format/book_reader.h"

static const char known_sections[][5] = {"META", "GEOM", "POLC", "ROPE", "CODE", "SCAL", "GRPS", "POOL", "FINE", "MEAN", "XFRM", "qual"};
static const kvb_file_kind book_kind = {.magic = KVB_MAGIC, .extension = "kvb", .owner = "head",
                                        .known = known_sections,
                                        .known_count = sizeof known_sections / sizeof *known_sections,
                                        .most_codec = KVB_CODEC_ZLIB};

kvb_status kvb_book_parse(kvb_book *book, const char *name, kvb_error *err)
{
    /* Tables are used as they lie in the file. */
    if (__BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__)
        return kvb_fail(err, KVB_E_FORMAT, name, "books can be read on little-endian machines only");
    kvb_reader r = {.kind = &book_kind, .name = name, .bytes = book->bytes, .size = book->size, .book = book,
                    .err = err};
    kvb_status status = kvb_reader_table(&r);
    if (status == KVB_OK)
        status = kvb_reader_geometry(&r);
    if (status == KVB_OK)
        status = kvb_reader_codebooks(&r);
    memcpy(book->id, r.header.id, sizeof book->id);
    free(r.entry);
    return status;
}

/* Takes ownership of `bytes`, also on failure. */
static kvb_status adopt(uint8_t *bytes, size_t size, const char *name, kvb_book **out, kvb_error *err)
{
    kvb_book *book = calloc(1, sizeof *book);
    if (book == NULL) {
        free(bytes);
        return kvb_fail_memory(err, name);
    }
    book->owned = bytes;
    book->bytes = bytes;
    book->size = size;
    kvb_status status = kvb_book_parse(book, name, err);
    if (status != KVB_OK) {
        kvb_book_close(book);
        return status;
    }
    *out = book;
    return KVB_OK;
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

/* Read, not mapped: a book is small beside its model, "immutable once open" must hold when somebody copies another book
 * over the file, and a file cut short under a mapping would kill the process. */
kvb_status kvb_book_open(const char *path, kvb_book **book, kvb_error *err)
{
    *book = NULL;
    char *bytes;
    size_t size;
    kvb_status status = check_is_book(path, err);
    if (status == KVB_OK)
        status = kvb_read_file(path, KVB_MAX_FILE, &bytes, &size, err);
    return status == KVB_OK ? adopt((uint8_t *)bytes, size, path, book, err) : status;
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
    return adopt(copy, size, name, book, err);
}

void kvb_book_close(kvb_book *book)
{
    if (book == NULL)
        return;
    for (uint32_t i = 0; i < book->codebooks; i++)
        free(book->quality[i]);
    free(book->quality);
    free(book->codebook);
    free(book->fine);
    free(book->scaling);
    free(book->first);
    free(book->layer);
    free(book->meta);
    free(book->owned);
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
