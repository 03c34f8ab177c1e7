/* Y = X W^T and its gradient with respect to X in tiles over OpenMP, each tile one single-threaded call of OpenBLAS. The tiling depends on the shapes
 * alone, so the result does not depend on the number of threads. */
#ifndef KVB_MODEL_LINEAR_H
#define KVB_MODEL_LINEAR_H

#include <stdbool.h>
#include <stdint.h>

/* x [m][k] with row stride ldx, w [n][k], y [m][n] with row stride ldy; adds to y where `accumulate`. */
void kvb_linear(const float *x, uint64_t ldx, const float *w, uint64_t m, uint64_t n, uint64_t k, bool accumulate,
                float *y, uint64_t ldy);

/* dX = dY W: dy [m][n] with row stride lddy, w [n][k], dx [m][k] with row stride lddx; adds to dx where `accumulate`. */
void kvb_linear_backward(const float *dy, uint64_t lddy, const float *w, uint64_t m, uint64_t n, uint64_t k,
                         bool accumulate, float *dx, uint64_t lddx);

#endif
