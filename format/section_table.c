/* The outer shell of a file: header, section table, where sections lie, checksums. After this, every section is inside
 * the file, none overlaps another, and all bytes are what the writer wrote (but for sections whose checksum is left to
 * whoever reads them). */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/crc.h"
#include "format/base/cursor.h"
#include "format/base/fail.h"
#include "format/base/sha256.h"
#include "format/section_reader.h"

kvb_status kvb_reader_fail(const kvb_reader *r, const char *place, const char *format, ...)
{
    char where[256], message[400];
    snprintf(where, sizeof where, "%s, %s", r->name, place);
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    return kvb_fail(r->err, KVB_E_FORMAT, where, "%s", message);
}

void kvb_section_name(const kvb_reader *r, const kvb_entry *e, char *where, size_t size)
{
    char layer[32] = "", head[32] = "";
    const char *kind = e->kind == KVB_KEY ? ", key" : e->kind == KVB_VALUE ? ", value" : "";
    if (e->layer != KVB_SHARED)
        snprintf(layer, sizeof layer, ", layer %u", e->layer);
    if (e->head != KVB_SHARED)
        snprintf(head, sizeof head, ", %s %u", r->kind->owner, e->head);
    snprintf(where, size, "%s, section %zu (%s%s%s%s)", r->name, (size_t)(e - r->entry), e->type, layer, head, kind);
}

kvb_status kvb_section_fail(const kvb_reader *r, const kvb_entry *e, const char *format, ...)
{
    char where[256], message[400];
    kvb_section_name(r, e, where, sizeof where);
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    return kvb_fail(r->err, KVB_E_FORMAT, where, "%s", message);
}

/* What text-mode transfers make of the magic's line ends. */
static kvb_status check_magic(const kvb_reader *r)
{
    const uint8_t *b = r->bytes;
    size_t size = r->size;
    const char *magic = r->kind->magic;
    if (size >= KVB_MAGIC_SIZE && memcmp(b, magic, KVB_MAGIC_SIZE) == 0)
        return KVB_OK;
    if (size >= 6 && memcmp(b, magic, 4) == 0 && (b[4] == '\r' || b[4] == '\n'))
        return kvb_reader_fail(r, "byte 4", "the line ends in the magic were changed: a transfer in text mode damaged "
                                            "the file; copy it again in binary mode");
    if (size >= 4 && (b[0] & 0x7F) == 0x09 && memcmp(b + 1, magic + 1, 3) == 0)
        return kvb_reader_fail(r, "byte 0", "the magic is damaged, as by a transfer in text mode; copy it again");
    return kvb_reader_fail(r, "byte 0", "not a .%s file: the magic 89 4B 56 %02X 0D 0A 1A 0A is missing",
                           r->kind->extension, (unsigned)magic[3]);
}

/* What must be known before anything else in the header can be believed. */
static kvb_status check_version(const kvb_reader *r)
{
    kvb_cursor c = kvb_cursor_over(r->bytes, r->size);
    kvb_cursor_seek(&c, KVB_ORDER_OFFSET);
    uint32_t order = kvb_cursor_u32(&c);
    if (c.failed || r->size < KVB_HEADER_SIZE)
        return kvb_reader_fail(r, "header", "the file ends after %zu bytes, a header has %d", r->size,
                               KVB_HEADER_SIZE);
    if (order == 0x04030201)
        return kvb_reader_fail(r, "header byte 48", "the byte order is reversed: the writer did not write "
                                                    "little-endian, as the format demands");
    if (order != KVB_BYTE_ORDER)
        return kvb_reader_fail(r, "header byte 48", "byte-order tag %08x, expected %08x", order,
                               (unsigned)KVB_BYTE_ORDER);
    if (r->header.major != KVB_FILE_MAJOR)
        return kvb_reader_fail(r, "header byte 8", "format version %u.%u, this reader knows version %d; use a matching "
                               "version of kvbook", r->header.major, r->header.minor, KVB_FILE_MAJOR);
    return KVB_OK;
}

static void parse_header(kvb_reader *r)
{
    kvb_cursor c = kvb_cursor_over(r->bytes, r->size);
    kvb_header *h = &r->header;
    kvb_cursor_seek(&c, KVB_MAGIC_SIZE);
    h->major = kvb_cursor_u16(&c);
    h->minor = kvb_cursor_u16(&c);
    h->header_size = kvb_cursor_u32(&c);
    h->file_size = kvb_cursor_u64(&c);
    h->incompatible = kvb_cursor_u32(&c);
    h->compatible = kvb_cursor_u32(&c);
    h->table_offset = kvb_cursor_u64(&c);
    h->sections = kvb_cursor_u32(&c);
    h->entry_size = kvb_cursor_u32(&c);
    kvb_cursor_u32(&c); /* byte order, looked at already */
    h->table_crc = kvb_cursor_u32(&c);
    const uint8_t *id = kvb_cursor_bytes(&c, sizeof h->id);
    if (id != NULL)
        memcpy(h->id, id, sizeof h->id);
}

static bool is_newer(const kvb_reader *r)
{
    return r->header.minor > KVB_FILE_MINOR;
}

static bool all_zero(const uint8_t *bytes, uint64_t size)
{
    uint8_t any = 0;
    for (uint64_t i = 0; i < size; i++)
        any |= bytes[i];
    return any == 0;
}

/* Fixed in this minor version; a newer one may have grown by whole words. */
static bool size_is_good(const kvb_reader *r, uint32_t size, uint32_t known, uint32_t limit)
{
    return is_newer(r) ? size >= known && size <= limit && size % 8 == 0 : size == known;
}

static kvb_status check_header_bytes(const kvb_reader *r)
{
    const kvb_header *h = &r->header;
    const uint8_t *b = r->bytes;
    if (!size_is_good(r, h->header_size, KVB_HEADER_SIZE, KVB_MAX_HEADER))
        return kvb_reader_fail(r, "header byte 12", "header size %u, expected %d", h->header_size, KVB_HEADER_SIZE);
    if (h->header_size > r->size)
        return kvb_reader_fail(r, "header byte 12", "header size %u, the file has %zu bytes", h->header_size,
                               r->size);
    uint32_t end = h->header_size - 4;
    kvb_cursor c = kvb_cursor_over(b, r->size);
    kvb_cursor_seek(&c, end);
    uint32_t stored = kvb_cursor_u32(&c), found = kvb_crc_of(b, end);
    if (stored != found)
        return kvb_reader_fail(r, "header", "checksum %08x, the bytes give %08x: the file is damaged", stored, found);
    if (!is_newer(r) && !all_zero(b + 88, end - 88))
        return kvb_reader_fail(r, "header byte 88", "reserved bytes are not zero");
    return KVB_OK;
}

static kvb_status check_header(const kvb_reader *r)
{
    const kvb_header *h = &r->header;
    if (h->file_size != r->size)
        return kvb_reader_fail(r, "header byte 16", "the file should have %llu bytes and has %zu: it was cut short or "
                               "something was appended", (unsigned long long)h->file_size, r->size);
    if (h->file_size > KVB_MAX_FILE)
        return kvb_reader_fail(r, "header byte 16", "%llu bytes, the limit is 16 GiB", (unsigned long long)h->file_size);
    if (h->incompatible != 0)
        return kvb_reader_fail(r, "header byte 24", "unknown incompatible flags %08x: a newer version of kvbook is "
                               "needed", h->incompatible);
    if (h->table_offset != h->header_size)
        return kvb_reader_fail(r, "header byte 32", "section table at %llu, expected at %u, after the header",
                               (unsigned long long)h->table_offset, h->header_size);
    if (h->sections < 1 || h->sections > KVB_MAX_SECTIONS)
        return kvb_reader_fail(r, "header byte 40", "%u sections, expected 1..%d", h->sections, KVB_MAX_SECTIONS);
    if (!size_is_good(r, h->entry_size, KVB_ENTRY_SIZE, KVB_MAX_ENTRY))
        return kvb_reader_fail(r, "header byte 44", "table entries of %u bytes, expected %d", h->entry_size,
                               KVB_ENTRY_SIZE);
    return KVB_OK;
}

/* At most 2^20 * 4096 bytes: the product cannot wrap. */
static uint64_t table_size(const kvb_header *h)
{
    return (uint64_t)h->sections * h->entry_size;
}

static kvb_status check_table_bytes(const kvb_reader *r)
{
    const kvb_header *h = &r->header;
    uint64_t size = table_size(h);
    if (size > r->size - h->table_offset)
        return kvb_reader_fail(r, "section table", "%u entries of %u bytes do not fit in the file", h->sections,
                               h->entry_size);
    const uint8_t *table = r->bytes + h->table_offset;
    uint32_t found = kvb_crc_of(table, (size_t)size);
    if (found != h->table_crc)
        return kvb_reader_fail(r, "section table", "checksum %08x, the bytes give %08x: the file is damaged",
                               h->table_crc, found);
    uint8_t id[32];
    kvb_sha256_of(table, (size_t)size, id);
    if (memcmp(id, h->id, sizeof id) != 0)
        return kvb_reader_fail(r, "header byte 56", "the identity is not the SHA-256 of the section table");
    return KVB_OK;
}

static void parse_entry(kvb_cursor *c, kvb_entry *e)
{
    const uint8_t *type = kvb_cursor_bytes(c, 4);
    if (type != NULL)
        memcpy(e->type, type, 4);
    e->codec = kvb_cursor_u16(c);
    e->dtype = kvb_cursor_u16(c);
    e->kind = kvb_cursor_u32(c);
    e->layer = kvb_cursor_u32(c);
    e->head = kvb_cursor_u32(c);
    e->first_group = kvb_cursor_u32(c);
    e->groups = kvb_cursor_u32(c);
    e->channels = kvb_cursor_u32(c);
    e->centroids = kvb_cursor_u32(c);
    e->dims = kvb_cursor_u32(c);
    for (unsigned i = 0; i < 4; i++)
        e->shape[i] = kvb_cursor_u32(c);
    e->offset = kvb_cursor_u64(c);
    e->stored_size = kvb_cursor_u64(c);
    e->raw_size = kvb_cursor_u64(c);
    e->stored_crc = kvb_cursor_u32(c);
    e->raw_crc = kvb_cursor_u32(c);
}

static bool is_letter(char c)
{
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

static bool type_is_name(const char *type)
{
    for (unsigned i = 0; i < 4; i++)
        if (!is_letter(type[i]) && !(i > 0 && type[i] >= '0' && type[i] <= '9'))
            return false;
    return true;
}

static bool type_is_known(const kvb_reader *r, const char *type)
{
    for (size_t i = 0; i < r->kind->known_count; i++)
        if (memcmp(type, r->kind->known[i], 4) == 0)
            return true;
    return false;
}

static kvb_status check_entry(const kvb_reader *r, kvb_entry *e)
{
    if (!type_is_name(e->type)) {
        memcpy(e->type, "????", 4);
        return kvb_section_fail(r, e, "the section's type is not four letters or digits");
    }
    bool known = type_is_known(r, e->type);
    if (!known && e->type[0] < 'a')
        return kvb_section_fail(r, e, "unknown section type that a reader must know: a newer version of kvbook is "
                                "needed");
    if (e->codec > r->kind->most_codec && (known || !is_newer(r)))
        return kvb_section_fail(r, e, "unknown codec %u, expected 0 (raw) or 1 (zlib)%s", e->codec,
                                r->kind->most_codec > KVB_CODEC_ZLIB ? " or 2 (zlib of planes)" : "");
    if (kvb_element_size(e->dtype) == 0 && (known || !is_newer(r)))
        return kvb_section_fail(r, e, "unknown dtype %u, expected 0..2", e->dtype);
    if (e->codec == KVB_CODEC_RAW && (e->stored_size != e->raw_size || e->stored_crc != e->raw_crc))
        return kvb_section_fail(r, e, "stored raw, but its stored and raw sizes or checksums differ");
    return KVB_OK;
}

/* Sections stand one after the other, each at the next multiple of 256, so that no byte of the file is unaccounted for.
 * *end is where the section before ended. */
static kvb_status check_place(const kvb_reader *r, const kvb_entry *e, uint64_t *end)
{
    uint64_t expected = 0, after = 0;
    if (e->offset % KVB_SECTION_ALIGN != 0)
        return kvb_section_fail(r, e, "offset %llu is not a multiple of %d", (unsigned long long)e->offset,
                                KVB_SECTION_ALIGN);
    if (!kvb_align_u64(*end, KVB_SECTION_ALIGN, &expected) || e->offset != expected)
        return kvb_section_fail(r, e, "offset %llu, expected %llu: sections must follow each other in the table's order "
                                "without overlap or gap", (unsigned long long)e->offset, (unsigned long long)expected);
    if (e->stored_size == 0 || !kvb_add_u64(e->offset, e->stored_size, &after) || after > r->size)
        return kvb_section_fail(r, e, "%llu bytes at %llu, the file has %zu", (unsigned long long)e->stored_size,
                                (unsigned long long)e->offset, r->size);
    if (!all_zero(r->bytes + *end, e->offset - *end))
        return kvb_section_fail(r, e, "the padding before it is not zero");
    *end = after;
    return KVB_OK;
}

kvb_status kvb_section_checksum(const kvb_reader *r, const kvb_entry *e)
{
    uint32_t found = kvb_crc_of(r->bytes + e->offset, (size_t)e->stored_size);
    if (found != e->stored_crc)
        return kvb_section_fail(r, e, "checksum %08x, the bytes give %08x: the file is damaged", e->stored_crc, found);
    return KVB_OK;
}

static kvb_status read_entries(kvb_reader *r)
{
    const kvb_header *h = &r->header;
    r->entry = kvb_alloc_zeroed(h->sections, sizeof *r->entry);
    if (r->entry == NULL)
        return kvb_fail_memory(r->err, r->name);
    for (uint32_t i = 0; i < h->sections; i++) {
        const uint8_t *row = r->bytes + h->table_offset + (uint64_t)i * h->entry_size;
        kvb_cursor c = kvb_cursor_over(row, h->entry_size);
        parse_entry(&c, &r->entry[i]);
        kvb_status status = check_entry(r, &r->entry[i]);
        if (status != KVB_OK)
            return status;
        if (!is_newer(r) && !all_zero(row + 88, 8))
            return kvb_section_fail(r, &r->entry[i], "reserved bytes of its table entry are not zero");
    }
    return KVB_OK;
}

static kvb_status check_sections(const kvb_reader *r)
{
    uint64_t end = r->header.table_offset + table_size(&r->header);
    kvb_status status = KVB_OK;
    for (uint32_t i = 0; status == KVB_OK && i < r->header.sections; i++)
        status = check_place(r, &r->entry[i], &end);
    if (status == KVB_OK && end != r->size)
        return kvb_reader_fail(r, "end", "%llu bytes follow the last section",
                               (unsigned long long)(r->size - end));
    for (uint32_t i = 0; status == KVB_OK && !r->kind->lazy && i < r->header.sections; i++)
        status = kvb_section_checksum(r, &r->entry[i]);
    return status;
}

kvb_status kvb_reader_table(kvb_reader *r)
{
    kvb_status status = check_magic(r);
    if (status != KVB_OK)
        return status;
    parse_header(r);
    status = check_version(r);
    if (status == KVB_OK && r->header.file_size != r->size)
        return check_header(r); /* the likeliest damage deserves the clearest words, checksum or not */
    if (status == KVB_OK)
        status = check_header_bytes(r);
    if (status == KVB_OK)
        status = check_header(r);
    if (status == KVB_OK)
        status = check_table_bytes(r);
    if (status == KVB_OK)
        status = read_entries(r);
    if (status == KVB_OK)
        status = check_sections(r);
    return status;
}
