/* Weighted Lloyd k-means as the formulas say it, in double, for tests. */
#ifndef KVB_KMEANS_REFERENCE_H
#define KVB_KMEANS_REFERENCE_H

#include <stddef.h>
#include <stdint.h>

/* codes[i] = argmin_k |x_i - c_k|^2, the lowest k on ties; returns sum_i w_i |x_i - c_codes[i]|^2. x is [n][d], weights
 * [n] or NULL for ones, table [K][d]. */
double kvb_kmeans_reference_assign(const float *x, const float *weights, size_t n, uint32_t d, const double *table,
                                   uint32_t centroids, uint32_t *codes);
/* c_k = sum_{i: codes[i] = k} w_i x_i / sum_{i: codes[i] = k} w_i; a centroid without weight stays. */
void kvb_kmeans_reference_update(const float *x, const float *weights, size_t n, uint32_t d, double *table,
                                 uint32_t centroids, const uint32_t *codes);

#endif
