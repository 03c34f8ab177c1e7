/* Second moments of queries as sums that do not depend on the order or the grouping in which they are made: fixed point in
 * 128 bits, where adding never rounds. Captures of parts of a text add up to the capture of the whole, to the bit. */
#ifndef KVB_CALIB_QUERY_SUMS_H
#define KVB_CALIB_QUERY_SUMS_H

#include "kvbook/book.h"

/* high + low / 2^64; in a `.kvc` file two I64, low first. */
typedef struct kvb_exact {
    uint64_t low;
    int64_t high;
} kvb_exact;

/* Rounds towards 0 to a multiple of 2^-64; beyond +-2^62 that, NaN 0. */
kvb_exact kvb_exact_of(double x);
/* Wraps beyond +-2^63, as integers do. */
kvb_exact kvb_exact_add(kvb_exact a, kvb_exact b);
double kvb_exact_to_double(kvb_exact a);

/* Numbers of the upper triangle of [D][D], row by row. */
static inline size_t kvb_triangle(size_t dim)
{
    return dim * (dim + 1) / 2;
}

/* Adds the symmetric part of m [D][D] to sums [D(D+1)/2]. */
void kvb_query_sums_add(kvb_exact *sums, const double *m, uint32_t dim);
/* mean [D][D] over so many queries, symmetric; zeros for none. */
void kvb_query_sums_mean(const kvb_exact *sums, uint64_t queries, uint32_t dim, float *mean);
/* The same for all heads of a layer, mean [G][D][D]: sums [2][G][D(D+1)/2], relative (which 0) or post (1), queries [G]. */
void kvb_query_means(const kvb_layer *layer, const kvb_exact *sums, const uint64_t *queries, uint32_t which, float *mean);

#endif
