/* Included once by each build of kmeans_kernels.h; the compiler cuts the vectors to what the build's machine has. */
#include <string.h>

#include "kmeans/kmeans_kernels.h"

#define ALWAYS static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 4")

typedef float vec4f __attribute__((vector_size(16)));
typedef double vec4d __attribute__((vector_size(32)));
typedef float vec16f __attribute__((vector_size(64)));
typedef int32_t vec16i __attribute__((vector_size(64)));

ALWAYS void accumulate_rows(const float *rows, size_t n, uint32_t row_floats, const uint32_t *codes, double *sums)
{
    for (size_t i = 0; i < n; i++, rows += row_floats) {
        double *sum = sums + (size_t)codes[i] * row_floats;
        for (uint32_t k = 0; k < row_floats; k += 4) {
            vec4f row;
            vec4d so_far;
            memcpy(&row, rows + k, sizeof row);
            memcpy(&so_far, sum + k, sizeof so_far);
            so_far += __builtin_convertvector(row, vec4d);
            memcpy(sum + k, &so_far, sizeof so_far);
        }
    }
}

static void accumulate(const float *rows, size_t n, uint32_t row_floats, const uint32_t *codes, double *sums)
{
    switch (row_floats) {
    case 4: accumulate_rows(rows, n, 4, codes, sums); break;
    case 8: accumulate_rows(rows, n, 8, codes, sums); break;
    case 12: accumulate_rows(rows, n, 12, codes, sums); break;
    case 20: accumulate_rows(rows, n, 20, codes, sums); break;
    default: accumulate_rows(rows, n, row_floats, codes, sums); break;
    }
}

ALWAYS void load16(vec16f *v, const float *p)
{
    memcpy(v, p, sizeof *v);
}

ALWAYS void candidate_tile(const float *tile, uint32_t d, const float *candidates, const float *nearest,
                           const float *weights, float *fresh, size_t capacity, vec16f *potential)
{
    vec16f distance[KVB_SEED_CANDIDATES], x, low, w;
    UNROLL for (int j = 0; j < KVB_SEED_CANDIDATES; j++)
        distance[j] = (vec16f){0};
    for (uint32_t k = 0; k < d; k++) {
        load16(&x, tile + (size_t)k * 16);
        UNROLL for (int j = 0; j < KVB_SEED_CANDIDATES; j++) {
            vec16f difference = x - candidates[(size_t)j * d + k];
            distance[j] += difference * difference;
        }
    }
    load16(&low, nearest);
    load16(&w, weights);
    UNROLL for (int j = 0; j < KVB_SEED_CANDIDATES; j++) {
        vec16i closer = distance[j] < low;
        vec16f best = (vec16f)(((vec16i)distance[j] & closer) | ((vec16i)low & ~closer));
        memcpy(fresh + (size_t)j * capacity, &best, sizeof best);
        potential[j] += w * best;
    }
}

ALWAYS void candidate_tiles(const float *points, size_t tiles, uint32_t d, const float *candidates,
                            const float *nearest, const float *weights, float *fresh, size_t capacity,
                            double *potential)
{
    vec16f sums[KVB_SEED_CANDIDATES] = {{0}};
    for (size_t t = 0; t < tiles; t++)
        candidate_tile(points + t * d * 16, d, candidates, nearest + t * 16, weights + t * 16, fresh + t * 16,
                       capacity, sums);
    for (int j = 0; j < KVB_SEED_CANDIDATES; j++)
        for (int l = 0; l < 16; l++)
            potential[j] += sums[j][l];
}

static void candidates(const float *points, size_t tiles, uint32_t d, const float *candidate_rows,
                       const float *nearest, const float *weights, float *fresh, size_t capacity, double *potential)
{
    switch (d) {
    case 2: candidate_tiles(points, tiles, 2, candidate_rows, nearest, weights, fresh, capacity, potential); break;
    case 4: candidate_tiles(points, tiles, 4, candidate_rows, nearest, weights, fresh, capacity, potential); break;
    case 8: candidate_tiles(points, tiles, 8, candidate_rows, nearest, weights, fresh, capacity, potential); break;
    default: candidate_tiles(points, tiles, d, candidate_rows, nearest, weights, fresh, capacity, potential); break;
    }
}
