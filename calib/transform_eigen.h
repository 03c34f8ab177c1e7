/* Eigenvectors of symmetric matrices, by LAPACK. */
#ifndef KVB_CALIB_TRANSFORM_EIGEN_H
#define KVB_CALIB_TRANSFORM_EIGEN_H

#include <stddef.h>

#include "kvbook/status.h"

/* Replaces the symmetric matrix [n][n] by its eigenvectors as rows, the largest eigenvalue first, each with its component
 * of largest magnitude (the first of equals) positive; value [n] descending. KVB_E_MEMORY, or KVB_E_CHECK where the
 * iteration does not converge. */
kvb_status kvb_eigen_symmetric(double *matrix, size_t n, double *value, kvb_error *err);

#endif
