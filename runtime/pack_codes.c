#include "kvbook/cache.h"

size_t kvb_packed_bytes(uint32_t groups, uint32_t code_bits)
{
    return ((size_t)groups * code_bits + 7) / 8;
}

void kvb_pack_codes(const uint32_t *codes, uint32_t groups, uint32_t code_bits, uint8_t *packed)
{
    uint64_t pending = 0; /* bits not yet written, least significant first */
    uint32_t bits = 0;
    for (uint32_t s = 0; s < groups; s++) {
        pending |= (uint64_t)codes[s] << bits;
        for (bits += code_bits; bits >= 8; bits -= 8) {
            *packed++ = (uint8_t)(pending & 0xFF);
            pending >>= 8;
        }
    }
    if (bits > 0)
        *packed = (uint8_t)(pending & 0xFF);
}

void kvb_unpack_codes(const uint8_t *packed, uint32_t groups, uint32_t code_bits, uint32_t *codes)
{
    const uint64_t mask = ((uint64_t)1 << code_bits) - 1;
    uint64_t pending = 0;
    uint32_t bits = 0;
    if (code_bits == 8) { /* the usual K = 256, read whenever a cache is */
        for (uint32_t s = 0; s < groups; s++)
            codes[s] = packed[s];
        return;
    }
    for (uint32_t s = 0; s < groups; s++) {
        for (; bits < code_bits; bits += 8)
            pending |= (uint64_t)*packed++ << bits;
        codes[s] = (uint32_t)(pending & mask);
        pending >>= code_bits;
        bits -= code_bits;
    }
}
