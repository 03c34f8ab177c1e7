/* CRC-32 as zlib and PNG have it: by carry-less products where the machine has them, the rest by zlib. */
#ifndef KVB_BASE_CRC_H
#define KVB_BASE_CRC_H

#include <stddef.h>
#include <stdint.h>
#include <zlib.h>

#include "format/base/crc_clmul.h"

static inline uint32_t kvb_crc_of(const void *bytes, size_t size)
{
    uint32_t crc = 0;
    const size_t done = kvb_crc_clmul(&crc, bytes, size);
    return (uint32_t)crc32_z(crc, (const uint8_t *)bytes + done, size - done);
}

#endif
