#include "format/section_write.h"

#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/crc.h"
#include "format/base/sha256.h"

uint8_t *kvb_store_le(uint8_t *at, uint64_t value, unsigned width)
{
    for (unsigned i = 0; i < width; i++)
        *at++ = (uint8_t)(value >> (8 * i));
    return at;
}

uint8_t *kvb_store_f64(uint8_t *at, double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return kvb_store_le(at, bits, 8);
}

void kvb_entry_raw(kvb_entry *e, const void *bytes, size_t size)
{
    e->stored_size = e->raw_size = size;
    e->stored_crc = e->raw_crc = kvb_crc_of(bytes, size);
}

void kvb_entry_packed(kvb_entry *e, kvb_codec_id codec, const void *bytes, size_t size)
{
    e->codec = (uint16_t)codec;
    e->stored_size = size;
    e->stored_crc = kvb_crc_of(bytes, size);
}

uint8_t *kvb_deflate(const void *bytes, size_t size, int level, size_t *packed_size)
{
    uLongf length = compressBound((uLong)size);
    uint8_t *packed = kvb_alloc_array(length, 1);
    if (packed != NULL && compress2(packed, &length, bytes, (uLong)size, level) != Z_OK) {
        free(packed);
        packed = NULL;
    }
    *packed_size = length;
    return packed;
}

bool kvb_entry_place(kvb_entry *e, uint64_t *end)
{
    return kvb_align_u64(*end, KVB_SECTION_ALIGN, &e->offset) && kvb_add_u64(e->offset, e->stored_size, end) &&
           *end <= KVB_MAX_FILE;
}

uint8_t *kvb_store_entry(uint8_t *at, const kvb_entry *e)
{
    memcpy(at, e->type, 4);
    at = kvb_store_le(at + 4, e->codec, 2);
    at = kvb_store_le(at, e->dtype, 2);
    at = kvb_store_le(at, e->kind, 4);
    at = kvb_store_le(at, e->layer, 4);
    at = kvb_store_le(at, e->head, 4);
    at = kvb_store_le(at, e->first_group, 4);
    at = kvb_store_le(at, e->groups, 4);
    at = kvb_store_le(at, e->channels, 4);
    at = kvb_store_le(at, e->centroids, 4);
    at = kvb_store_le(at, e->dims, 4);
    for (unsigned i = 0; i < 4; i++)
        at = kvb_store_le(at, e->shape[i], 4);
    at = kvb_store_le(at, e->offset, 8);
    at = kvb_store_le(at, e->stored_size, 8);
    at = kvb_store_le(at, e->raw_size, 8);
    at = kvb_store_le(at, e->stored_crc, 4);
    at = kvb_store_le(at, e->raw_crc, 4);
    return kvb_store_le(at, 0, 8);
}

uint8_t *kvb_store_policy(uint8_t *at, const kvb_policy *policy)
{
    at = kvb_store_f64(at, policy->anchor_fraction);
    at = kvb_store_le(at, policy->score, 4);
    at = kvb_store_le(at, policy->window, 4);
    at = kvb_store_le(at, policy->sinks, 4);
    at = kvb_store_le(at, policy->exact, 4);
    return kvb_store_le(at, 0, 8);
}

void kvb_store_header(uint8_t *header, const char *magic, uint64_t file_size, uint32_t sections, const uint8_t *table)
{
    const size_t table_size = (size_t)sections * KVB_ENTRY_SIZE;
    uint8_t *at = header;
    memset(header, 0, KVB_HEADER_SIZE);
    memcpy(at, magic, KVB_MAGIC_SIZE);
    at = kvb_store_le(at + KVB_MAGIC_SIZE, KVB_FILE_MAJOR, 2);
    at = kvb_store_le(at, KVB_FILE_MINOR, 2);
    at = kvb_store_le(at, KVB_HEADER_SIZE, 4);
    at = kvb_store_le(at, file_size, 8);
    at = kvb_store_le(at, 0, 8); /* incompatible and compatible flags */
    at = kvb_store_le(at, KVB_HEADER_SIZE, 8);
    at = kvb_store_le(at, sections, 4);
    at = kvb_store_le(at, KVB_ENTRY_SIZE, 4);
    at = kvb_store_le(at, KVB_BYTE_ORDER, 4);
    at = kvb_store_le(at, kvb_crc_of(table, table_size), 4);
    kvb_sha256_of(table, table_size, at);
    kvb_store_le(header + KVB_HEADER_SIZE - 4, kvb_crc_of(header, KVB_HEADER_SIZE - 4), 4);
}
