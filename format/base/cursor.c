#include "format/base/cursor.h"

#include <string.h>

kvb_cursor kvb_cursor_over(const void *bytes, size_t size)
{
    return (kvb_cursor){.bytes = bytes, .size = size};
}

const uint8_t *kvb_cursor_bytes(kvb_cursor *c, uint64_t count)
{
    if (c->failed || count > c->size - c->at) {
        c->failed = true;
        return NULL;
    }
    const uint8_t *here = c->bytes + c->at;
    c->at += (size_t)count;
    return here;
}

static inline uint64_t read_le(kvb_cursor *c, unsigned width)
{
    const uint8_t *b = kvb_cursor_bytes(c, width);
    uint64_t value = 0;
    if (b == NULL)
        return 0;
    for (unsigned i = 0; i < width; i++) /* a constant where this is inlined: one load */
        value |= (uint64_t)b[i] << (8 * i);
    return value;
}

uint8_t kvb_cursor_u8(kvb_cursor *c)
{
    return (uint8_t)read_le(c, 1);
}

uint16_t kvb_cursor_u16(kvb_cursor *c)
{
    return (uint16_t)read_le(c, 2);
}

uint32_t kvb_cursor_u32(kvb_cursor *c)
{
    return (uint32_t)read_le(c, 4);
}

uint64_t kvb_cursor_u64(kvb_cursor *c)
{
    return read_le(c, 8);
}

float kvb_cursor_f32(kvb_cursor *c)
{
    uint32_t bits = kvb_cursor_u32(c);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

double kvb_cursor_f64(kvb_cursor *c)
{
    uint64_t bits = kvb_cursor_u64(c);
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

void kvb_cursor_seek(kvb_cursor *c, uint64_t offset)
{
    if (c->failed || offset > c->size)
        c->failed = true;
    else
        c->at = (size_t)offset;
}
