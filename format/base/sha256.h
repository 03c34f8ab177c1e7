/* SHA-256 (FIPS 180-4). */
#ifndef KVB_BASE_SHA256_H
#define KVB_BASE_SHA256_H

#include <stddef.h>
#include <stdint.h>

typedef struct kvb_sha256 {
    uint32_t state[8];
    uint64_t length; /* bytes so far */
    uint8_t block[64];
} kvb_sha256;

void kvb_sha256_begin(kvb_sha256 *s);
void kvb_sha256_add(kvb_sha256 *s, const void *bytes, size_t size);
void kvb_sha256_end(kvb_sha256 *s, uint8_t digest[32]);
void kvb_sha256_of(const void *bytes, size_t size, uint8_t digest[32]);
/* Lower-case hexadecimal with a NUL. */
void kvb_sha256_hex(const uint8_t digest[32], char hex[65]);

#endif
