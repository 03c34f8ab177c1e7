/* Counter-based random numbers: value i of a stream depends on the key and i alone, never on who asked first, so
 * results do not depend on threads, ranks or shards. Philox would do as well; splitmix64's finaliser over
 * key + counter passes the same uses here and reads in three lines. */
#ifndef KVB_BASE_RNG_H
#define KVB_BASE_RNG_H

#include <stdint.h>

static inline uint64_t kvb_mix64(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/* A stream's key out of a seed and whatever names the stream: layer, head, kind, step. */
static inline uint64_t kvb_rng_key(uint64_t seed, uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
    uint64_t key = kvb_mix64(seed + 0x9E3779B97F4A7C15u);
    key = kvb_mix64(key + 0x9E3779B97F4A7C15u + a);
    key = kvb_mix64(key + 0x9E3779B97F4A7C15u + b);
    key = kvb_mix64(key + 0x9E3779B97F4A7C15u + c);
    return kvb_mix64(key + 0x9E3779B97F4A7C15u + d);
}

static inline uint64_t kvb_rng_u64(uint64_t key, uint64_t counter)
{
    return kvb_mix64(key + (counter + 1) * 0x9E3779B97F4A7C15u);
}

/* Uniform in (0, 1), never 0 and never 1. */
static inline double kvb_rng_unit(uint64_t key, uint64_t counter)
{
    return ((double)(kvb_rng_u64(key, counter) >> 11) + 0.5) * (1.0 / 9007199254740992.0);
}

/* Uniform in 0 .. n-1 for n >= 1 (multiply-shift; the bias is below n / 2^64). */
static inline uint64_t kvb_rng_below(uint64_t key, uint64_t counter, uint64_t n)
{
    __extension__ typedef unsigned __int128 u128;
    return (uint64_t)(((u128)kvb_rng_u64(key, counter) * n) >> 64);
}

#endif
