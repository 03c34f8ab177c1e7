/* Reading a file of sections: a header, a table of entries, sections one after the other, as `.kvb` and `.kvp` files are. */
#ifndef KVB_FORMAT_SECTION_READER_H
#define KVB_FORMAT_SECTION_READER_H

#include "format/base/cursor.h"
#include "format/kvb_layout.h"

/* What tells one kind of file from another. */
typedef struct kvb_file_kind {
    const char *magic;     /* KVB_MAGIC_SIZE bytes */
    const char *extension; /* "kvb" */
    const char *owner;     /* what the entry's `head` counts, for errors: "head" */
    const char (*known)[5];
    size_t known_count;
    uint16_t most_codec;
    bool lazy; /* a section's checksum is left to whoever reads it: kvb_section_checksum() */
} kvb_file_kind;

typedef struct kvb_reader {
    const kvb_file_kind *kind;
    const char *name;     /* of the file, for errors */
    const uint8_t *bytes; /* the whole file */
    size_t size;
    struct kvb_book *book; /* what the reader of books fills; others leave it NULL */
    kvb_header header;
    kvb_entry *entry; /* [header.sections] */
    kvb_error *err;
} kvb_reader;

/* A failure at a place of the file ("header", "section table"). */
kvb_status kvb_reader_fail(const kvb_reader *r, const char *place, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* A failure in one section, which is named with what it belongs to. */
kvb_status kvb_section_fail(const kvb_reader *r, const kvb_entry *e, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* "FILE, section 3 (CODE, layer 0, head 1, value)" */
void kvb_section_name(const kvb_reader *r, const kvb_entry *e, char *where, size_t size);

/* section_table.c: header, table, placement of sections, checksums, padding. Allocates r->entry. */
kvb_status kvb_reader_table(kvb_reader *r);
kvb_status kvb_section_checksum(const kvb_reader *r, const kvb_entry *e);

/* section_content.c: the content of one section. */
/* The one section of a type that a file has exactly once. */
kvb_status kvb_section_single(const kvb_reader *r, const char *type, const kvb_entry **found);
/* Compares everything the entry says of itself with what it must say; `want` has the fields type to shape filled. */
kvb_status kvb_section_expect(const kvb_reader *r, const kvb_entry *e, const kvb_entry *want, bool may_compress);
/* That it belongs to no layer: bytes without further structure in the table. */
kvb_status kvb_section_expect_bytes(const kvb_reader *r, const kvb_entry *e, bool may_compress);
/* In place; only for sections that are stored raw. */
const uint8_t *kvb_section_bytes(const kvb_reader *r, const kvb_entry *e);
/* The raw content copied to out[raw_size], inflated where it is compressed. */
kvb_status kvb_section_copy(const kvb_reader *r, const kvb_entry *e, uint8_t *out);
/* KVB_POLICY_SIZE bytes, not checked yet; whether the reserved ones among them are not zero. */
bool kvb_cursor_policy(kvb_cursor *c, kvb_policy *policy);
/* The META section, checked: *meta [*size] and a NUL, the caller's to free, also after a failure. */
kvb_status kvb_section_meta(const kvb_reader *r, char **meta, size_t *size);

#endif
