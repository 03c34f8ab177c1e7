/* A bounds-checked little-endian reader over bytes in memory. The first read past the end sets `failed`, and from
 * then on every read gives zero: check once after a run of reads. */
#ifndef KVB_BASE_CURSOR_H
#define KVB_BASE_CURSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct kvb_cursor {
    const uint8_t *bytes;
    size_t size;
    size_t at;
    bool failed;
} kvb_cursor;

kvb_cursor kvb_cursor_over(const void *bytes, size_t size);
uint8_t kvb_cursor_u8(kvb_cursor *c);
uint16_t kvb_cursor_u16(kvb_cursor *c);
uint32_t kvb_cursor_u32(kvb_cursor *c);
uint64_t kvb_cursor_u64(kvb_cursor *c);
float kvb_cursor_f32(kvb_cursor *c);
double kvb_cursor_f64(kvb_cursor *c);
/* `count` bytes in place, or NULL (and failed) where fewer are left. */
const uint8_t *kvb_cursor_bytes(kvb_cursor *c, uint64_t count);
/* Moves to an absolute offset, which may be `size` itself. */
void kvb_cursor_seek(kvb_cursor *c, uint64_t offset);

#endif
