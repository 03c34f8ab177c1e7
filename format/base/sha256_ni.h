/* The rounds of sha256.c with the processor's SHA extensions, for x86-64 machines that have them. */
#ifndef KVB_BASE_SHA256_NI_H
#define KVB_BASE_SHA256_NI_H

#include <stddef.h>
#include <stdint.h>

extern const uint32_t kvb_sha256_constant[64];

/* Takes as many leading bytes as it can into the state of sha256.c, and returns how many: a multiple of 64, none of few bytes or
 * where the machine cannot. */
size_t kvb_sha256_ni(uint32_t state[8], const uint8_t *bytes, size_t size);

#endif
