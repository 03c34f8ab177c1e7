/* The inner loops of training, built for plain C, AVX2 and AVX-512 from one text (kmeans_kernels_body.h) without fused
 * multiply-adds, so that all builds give the same bits. Tiles are [d][16] as in format/base/nearest.h. */
#ifndef KVB_KMEANS_KERNELS_H
#define KVB_KMEANS_KERNELS_H

#include <stddef.h>
#include <stdint.h>

enum { KVB_SEED_CANDIDATES = 4, KVB_SEED_BLOCK = 256 };

typedef struct kvb_kmeans_kernels {
    /* sums[codes[i]][0..row_floats) += rows[i][0..row_floats), row_floats a multiple of 4 */
    void (*accumulate)(const float *rows, size_t n, uint32_t row_floats, const uint32_t *codes, double *sums);
    /* Greedy k-means++ over `tiles` tiles of points. For each of `count` candidates [count][d], 1, 2 or 4 of them:
     * fresh[j][i] = the smaller of nearest[i] and the squared distance of point i to candidate j (exactly 0 at the
     * candidate itself); potential[j] = sum of weights[i] * fresh[j][i]. */
    void (*candidates)(const float *points, size_t tiles, uint32_t d, const float *rows, uint32_t count,
                       const float *nearest, const float *weights, float *const *fresh, double *potential);
    /* mass[b] = sum of weights * nearest over block b of KVB_SEED_BLOCK points, the last one possibly shorter */
    void (*weigh)(const float *nearest, const float *weights, size_t tiles, double *mass);
} kvb_kmeans_kernels;

const kvb_kmeans_kernels *kvb_kmeans_kernels_plain(void);
const kvb_kmeans_kernels *kvb_kmeans_kernels_avx2(void); /* NULL where the compiler or the machine lacks it */
const kvb_kmeans_kernels *kvb_kmeans_kernels_avx512(void);

#endif
