/* Writing the shell of a file of sections: little-endian numbers, table entries, the header. */
#ifndef KVB_FORMAT_SECTION_WRITE_H
#define KVB_FORMAT_SECTION_WRITE_H

#include "format/kvb_layout.h"

/* Stores the low `width` bytes of a value, least significant first; returns what follows them. */
uint8_t *kvb_store_le(uint8_t *at, uint64_t value, unsigned width);
uint8_t *kvb_store_f64(uint8_t *at, double value);

/* Sizes and checksums of a section stored raw. */
void kvb_entry_raw(kvb_entry *e, const void *bytes, size_t size);
/* Those of the stored bytes, where they are a form of the raw ones. */
void kvb_entry_packed(kvb_entry *e, kvb_codec_id codec, const void *bytes, size_t size);
/* What zlib makes of the bytes at a level: allocated, *packed_size; NULL if out of memory. */
uint8_t *kvb_deflate(const void *bytes, size_t size, int level, size_t *packed_size);
/* Puts the section behind *end, which moves; false where the file would have over KVB_MAX_FILE bytes. */
bool kvb_entry_place(kvb_entry *e, uint64_t *end);

/* KVB_ENTRY_SIZE bytes; returns what follows them. */
uint8_t *kvb_store_entry(uint8_t *at, const kvb_entry *e);

/* KVB_POLICY_SIZE bytes, as in a POLC section. */
uint8_t *kvb_store_policy(uint8_t *at, const kvb_policy *policy);

/* KVB_HEADER_SIZE bytes of a file whose table of `sections` entries follows the header. */
void kvb_store_header(uint8_t *at, const char *magic, uint64_t file_size, uint32_t sections, const uint8_t *table);

#endif
