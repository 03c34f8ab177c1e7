/* Sums that do not depend on the order or the grouping in which they are made: fixed point in 128 bits, where adding never rounds.
 * The same lines run on a GPU. */
#ifndef KVB_BASE_EXACT_H
#define KVB_BASE_EXACT_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __CUDACC__
#define KVB_EXACT_FN static __host__ __device__ __forceinline__
#else
#define KVB_EXACT_FN static inline
#endif

/* high + low / 2^64; in a `.kvc` file two I64, low first. */
typedef struct kvb_exact {
    uint64_t low;
    int64_t high;
} kvb_exact;

KVB_EXACT_FN kvb_exact kvb_exact_negate(kvb_exact a)
{
    kvb_exact b;
    b.low = ~a.low + 1;
    b.high = (int64_t)(~(uint64_t)a.high + (b.low == 0));
    return b;
}

/* Rounds towards 0 to a multiple of 2^-64; beyond +-2^62 that, NaN 0. */
KVB_EXACT_FN kvb_exact kvb_exact_of(double x)
{
    const double most = 4611686018427387904.0; /* 2^62 */
    kvb_exact e = {0, 0};
    if (isnan(x))
        return e;
    const double size = fabs(x) < most ? fabs(x) : most, whole = floor(size);
    e.low = (uint64_t)ldexp(size - whole, 64); /* size - whole is exact and below 1 */
    e.high = (int64_t)whole;
    return x < 0.0 ? kvb_exact_negate(e) : e;
}

/* Wraps beyond +-2^63, as integers do. */
KVB_EXACT_FN kvb_exact kvb_exact_add(kvb_exact a, kvb_exact b)
{
    kvb_exact sum;
    sum.low = a.low + b.low;
    sum.high = (int64_t)((uint64_t)a.high + (uint64_t)b.high + (sum.low < a.low));
    return sum;
}

KVB_EXACT_FN double kvb_exact_to_double(kvb_exact a)
{
    if (a.high < 0) {
        const kvb_exact b = kvb_exact_negate(a);
        return -((double)(uint64_t)b.high + ldexp((double)b.low, -64));
    }
    return (double)a.high + ldexp((double)a.low, -64);
}

/* Numbers of the upper triangle of [D][D], row by row; entry (i, j >= i) is number i D - i (i - 1) / 2 + j - i. */
KVB_EXACT_FN size_t kvb_triangle(size_t dim)
{
    return dim * (dim + 1) / 2;
}

#endif
