/* Weighted mean and covariance of rows, in double. */
#ifndef KVB_CALIB_ROW_MOMENTS_H
#define KVB_CALIB_ROW_MOMENTS_H

#include "kvbook/status.h"

#include <stddef.h>
#include <stdint.h>

/* Rows are cut into so many ranges whatever the number of threads, each with sums of its own, added in order. */
enum { KVB_MOMENT_RANGES = 32 };

/* First row of a range; that of range KVB_MOMENT_RANGES is n. */
static inline size_t kvb_moment_range(size_t n, size_t range)
{
    return n / KVB_MOMENT_RANGES * range + n % KVB_MOMENT_RANGES * range / KVB_MOMENT_RANGES;
}

/* x [n][dim]; weight [n], not all zero, or NULL for ones. mean [dim]; covariance [dim][dim] about the mean, symmetric to
 * the bit, or NULL where nobody asks for it. The result does not depend on `threads`. KVB_E_MEMORY only. */
kvb_status kvb_row_moments(const float *x, size_t n, uint32_t dim, const float *weight, int threads, double *mean,
                           double *covariance, kvb_error *err);
/* The same as the formulas say it, for tests. */
void kvb_row_moments_reference(const float *x, size_t n, uint32_t dim, const float *weight, double *mean,
                               double *covariance);

#endif
