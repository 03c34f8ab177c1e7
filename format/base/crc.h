/* CRC-32 as zlib and PNG have it. */
#ifndef KVB_BASE_CRC_H
#define KVB_BASE_CRC_H

#include <stddef.h>
#include <stdint.h>
#include <zlib.h>

static inline uint32_t kvb_crc_of(const void *bytes, size_t size)
{
    return (uint32_t)crc32_z(0, bytes, size);
}

#endif
