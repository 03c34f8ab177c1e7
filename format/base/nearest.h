/* The nearest centroid of each of many points: the step that k-means training and cache encoding share.
 * Single-threaded; callers parallelise over ranges of points. Ties go to the lowest index. For a given build (plain,
 * AVX2, AVX-512, chosen at run time) a point's result does not depend on its neighbours or its place in the range. */
#ifndef KVB_BASE_NEAREST_H
#define KVB_BASE_NEAREST_H

#include <stddef.h>
#include <stdint.h>

typedef struct kvb_nearest kvb_nearest; /* centroids packed for the kernels */

/* A table for K centroids of d channels; NULL if out of memory. 1 <= d <= 256, 1 <= K <= 65536. */
kvb_nearest *kvb_nearest_create(uint32_t channels, uint32_t centroids);
void kvb_nearest_destroy(kvb_nearest *t);
/* Packs new centroids [K][d]. May be called again; not while another thread searches. */
void kvb_nearest_set(kvb_nearest *t, const float *centroids);
/* Points i = 0..n-1 at x + i*stride (floats). Writes the index and, where distance is not NULL, the squared Euclidean
 * distance (clamped at 0) of each. Thread-safe for searches. */
void kvb_nearest_find(const kvb_nearest *t, const float *x, size_t stride, size_t n, uint32_t *index, float *distance);
/* The plain reference that reads like the formula: argmin_k sum_c (x_c - centroid_kc)^2 in double. */
void kvb_nearest_reference(const float *centroids, uint32_t channels, uint32_t count, const float *x, size_t stride,
                           size_t n, uint32_t *index, float *distance);

#endif
