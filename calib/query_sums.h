/* Second moments of queries as sums that do not depend on the order or the grouping in which they are made: fixed point in
 * 128 bits, where adding never rounds. Captures of parts of a text add up to the capture of the whole, to the bit. */
#ifndef KVB_CALIB_QUERY_SUMS_H
#define KVB_CALIB_QUERY_SUMS_H

#include "format/base/exact.h"
#include "kvbook/book.h"

/* Adds the symmetric part of m [D][D] to sums [D(D+1)/2]. */
void kvb_query_sums_add(kvb_exact *sums, const double *m, uint32_t dim);
/* mean [D][D] over so many queries, symmetric; zeros for none. */
void kvb_query_sums_mean(const kvb_exact *sums, uint64_t queries, uint32_t dim, float *mean);
/* The same for all heads of a layer, mean [G][D][D]: sums [2][G][D(D+1)/2], relative (which 0) or post (1), queries [G]. */
void kvb_query_means(const kvb_layer *layer, const kvb_exact *sums, const uint64_t *queries, uint32_t which, float *mean);

#endif
