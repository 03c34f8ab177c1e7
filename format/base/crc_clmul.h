/* The vector half of crc.h, for x86-64 machines that multiply without carries. */
#ifndef KVB_BASE_CRC_CLMUL_H
#define KVB_BASE_CRC_CLMUL_H

#include <stddef.h>
#include <stdint.h>

/* Takes as many leading bytes as it can into *crc, a checksum as crc32_z() gives and takes it, and returns how many: a
 * multiple of 16, none of few bytes or where the machine cannot. The result is zlib's, bit for bit. */
size_t kvb_crc_clmul(uint32_t *crc, const uint8_t *bytes, size_t size);

#endif
