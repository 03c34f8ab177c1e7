/* The inner loops of training, built for plain C, AVX2 and AVX-512 from one text (kmeans_kernels_body.h) without fused
 * multiply-adds, so that all builds give the same bits. Tiles are [d][16] as in format/base/nearest.h. */
#ifndef KVB_KMEANS_KERNELS_H
#define KVB_KMEANS_KERNELS_H

#include <stddef.h>
#include <stdint.h>

enum { KVB_SEED_CANDIDATES = 4 };

typedef struct kvb_kmeans_kernels {
    /* sums[codes[i]][0..row_floats) += rows[i][0..row_floats), row_floats a multiple of 4 */
    void (*accumulate)(const float *rows, size_t n, uint32_t row_floats, const uint32_t *codes, double *sums);
    /* For `tiles` tiles and KVB_SEED_CANDIDATES candidates [candidate][d]: fresh[candidate][16*tiles], the smaller of
     * nearest[] and the squared distance to the candidate; potential[candidate] += sum of weight * fresh.
     * The spacing of `fresh` is `capacity`. */
    void (*candidates)(const float *tiles_of_points, size_t tiles, uint32_t d, const float *candidates,
                       const float *nearest, const float *weights, float *fresh, size_t capacity, double *potential);
} kvb_kmeans_kernels;

const kvb_kmeans_kernels *kvb_kmeans_kernels_plain(void);
const kvb_kmeans_kernels *kvb_kmeans_kernels_avx2(void); /* NULL where the compiler or the machine lacks it */
const kvb_kmeans_kernels *kvb_kmeans_kernels_avx512(void);

#endif
