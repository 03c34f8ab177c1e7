/* Size arithmetic that cannot wrap unnoticed, and allocation on top of it. */
#ifndef KVB_BASE_CHECKED_H
#define KVB_BASE_CHECKED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

static inline bool kvb_add_u64(uint64_t a, uint64_t b, uint64_t *sum)
{
    return !__builtin_add_overflow(a, b, sum);
}

static inline bool kvb_mul_u64(uint64_t a, uint64_t b, uint64_t *product)
{
    return !__builtin_mul_overflow(a, b, product);
}

/* Rounds up to a multiple of `alignment`, a power of two; false if that wraps. */
static inline bool kvb_align_u64(uint64_t value, uint64_t alignment, uint64_t *aligned)
{
    uint64_t sum;
    if (!kvb_add_u64(value, alignment - 1, &sum))
        return false;
    *aligned = sum & ~(alignment - 1);
    return true;
}

/* Uninitialised array of `count` items, aligned to 64 bytes; NULL where it does not fit. Free with free(). */
static inline void *kvb_alloc_array(size_t count, size_t item)
{
    size_t bytes;
    if (__builtin_mul_overflow(count, item, &bytes) || bytes > SIZE_MAX - 63)
        return NULL;
    bytes = (bytes + 63) & ~(size_t)63;
    return aligned_alloc(64, bytes ? bytes : 64);
}

/* The same, zeroed. */
void *kvb_alloc_zeroed(size_t count, size_t item);

#endif
