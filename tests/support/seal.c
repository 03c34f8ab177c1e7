#include "tests/support/seal.h"

#include <string.h>
#include <zlib.h>

#include "format/base/sha256.h"

static uint64_t get(const uint8_t *b, unsigned width)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < width; i++)
        value |= (uint64_t)b[i] << (8 * i);
    return value;
}

static void put_u32(uint8_t *b, uint32_t value)
{
    for (unsigned i = 0; i < 4; i++)
        b[i] = (uint8_t)(value >> (8 * i));
}

static uint32_t crc_of(const uint8_t *b, uint64_t size)
{
    return (uint32_t)crc32_z(0, b, (z_size_t)size);
}

static void seal_section(uint8_t *bytes, size_t size, uint8_t *entry)
{
    uint64_t offset = get(entry + 56, 8), stored = get(entry + 64, 8);
    if (offset > size || stored > size - offset)
        return;
    put_u32(entry + 80, crc_of(bytes + offset, stored));
    if (get(entry + 4, 2) == 0)
        put_u32(entry + 84, (uint32_t)get(entry + 80, 4));
}

void seal_book(uint8_t *bytes, size_t size)
{
    if (size < 128)
        return;
    uint64_t header = get(bytes + 12, 4), sections = get(bytes + 40, 4), stride = get(bytes + 44, 4);
    if (header < 128 || header > size || stride < 96 || sections > (size - header) / stride)
        return;
    for (uint64_t i = 0; i < sections; i++)
        seal_section(bytes, size, bytes + header + i * stride);
    put_u32(bytes + 52, crc_of(bytes + header, sections * stride));
    kvb_sha256_of(bytes + header, (size_t)(sections * stride), bytes + 56);
    put_u32(bytes + header - 4, crc_of(bytes, header - 4));
}
