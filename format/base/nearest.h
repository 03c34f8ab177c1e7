/* The nearest centroid of each of many points: the step that k-means training and cache encoding share.
 * Single-threaded; callers parallelise over ranges of points. Ties go to the lowest index. For a given build (plain,
 * AVX2, AVX-512, chosen at run time) a point's result does not depend on its neighbours or its place in the range.
 *
 * The search computes |c|^2 - 2 x.c in float relative to an origin near the data (the mean of the centroids unless the
 * caller chooses one), so that data far from zero lose no digits. Squares must stay inside the range of float: keep
 * |x - origin| under 1e18. Points that are not finite get some valid index. */
#ifndef KVB_BASE_NEAREST_H
#define KVB_BASE_NEAREST_H

#include <stddef.h>
#include <stdint.h>

typedef struct kvb_nearest kvb_nearest; /* centroids packed for the kernels */

/* A table for K centroids of d channels; NULL if out of memory. 1 <= d <= 256, 1 <= K <= 65536. KVB_ISA=plain|avx2|avx512
 * in the environment asks for a lesser build than the machine's best. */
kvb_nearest *kvb_nearest_create(uint32_t channels, uint32_t centroids);
/* The same with a build by name; NULL also where the machine or the compiler lacks it: for tests. */
kvb_nearest *kvb_nearest_create_named(uint32_t channels, uint32_t centroids, const char *build);
void kvb_nearest_destroy(kvb_nearest *t);
/* Packs new centroids [K][d]. May be called again; not while another thread searches. */
void kvb_nearest_set(kvb_nearest *t, const float *centroids);
/* The same relative to origin [d] instead of the centroids' mean: for points packed once and searched many times. */
void kvb_nearest_set_around(kvb_nearest *t, const float *centroids, const float *origin);
/* "plain", "avx2" or "avx512". */
const char *kvb_nearest_build_name(const kvb_nearest *t);

/* Points i = 0..n-1 at x + i*stride (floats). Writes the index and, where distance is not NULL, the squared Euclidean
 * distance to that centroid of each. Thread-safe for searches. */
void kvb_nearest_find(const kvb_nearest *t, const float *x, size_t stride, size_t n, uint32_t *index, float *distance);

/* Points packed once for many searches: tiles [ceil(n/16)][d][16] of x - origin, the last one filled with zeros. Pack
 * ranges that start at multiples of 16. origin may be NULL for zero and must be the one of kvb_nearest_set_around(). */
size_t kvb_nearest_packed_floats(uint32_t channels, size_t n);
void kvb_nearest_pack(float *packed, uint32_t channels, const float *x, size_t stride, size_t n, const float *origin);
/* Distances are clamped at 0 and right to a few units in the last place of |x - origin|^2. */
void kvb_nearest_find_packed(const kvb_nearest *t, const float *packed, size_t n, uint32_t *index, float *distance);

/* The plain reference that reads like the formula: argmin_k sum_c (x_c - centroid_kc)^2 in double. */
void kvb_nearest_reference(const float *centroids, uint32_t channels, uint32_t count, const float *x, size_t stride,
                           size_t n, uint32_t *index, float *distance);

#endif
