/* Writing the shell of a file of sections: little-endian numbers, table entries, the header. */
#ifndef KVB_FORMAT_SECTION_WRITE_H
#define KVB_FORMAT_SECTION_WRITE_H

#include "format/kvb_layout.h"

/* Stores the low `width` bytes of a value, least significant first; returns what follows them. */
uint8_t *kvb_store_le(uint8_t *at, uint64_t value, unsigned width);
uint8_t *kvb_store_f64(uint8_t *at, double value);

uint32_t kvb_crc_of(const uint8_t *bytes, size_t size);

/* KVB_ENTRY_SIZE bytes; returns what follows them. */
uint8_t *kvb_store_entry(uint8_t *at, const kvb_entry *e);

/* KVB_POLICY_SIZE bytes, as in a POLC section. */
uint8_t *kvb_store_policy(uint8_t *at, const kvb_policy *policy);

/* KVB_HEADER_SIZE bytes of a file whose table of `sections` entries follows the header. */
void kvb_store_header(uint8_t *at, const char *magic, uint64_t file_size, uint32_t sections, const uint8_t *table);

#endif
