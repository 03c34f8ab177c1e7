/* Included once by each build of kmeans_kernels.h, which defines ADD_SQUARE(sum, x): sum + x*x on a vec16f. The compiler
 * cuts the vectors to what the build's machine has. */
#include <string.h>

#include "kmeans/kmeans_kernels.h"

#define ALWAYS static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 4")

typedef float vec4f __attribute__((vector_size(16)));
typedef double vec4d __attribute__((vector_size(32)));
typedef float vec8f __attribute__((vector_size(32)));
typedef double vec8d __attribute__((vector_size(64)));
typedef float vec16f __attribute__((vector_size(64)));
typedef int32_t vec16i __attribute__((vector_size(64)));

ALWAYS void add4(double *sum, const float *row)
{
    vec4f x;
    vec4d so_far;
    memcpy(&x, row, sizeof x);
    memcpy(&so_far, sum, sizeof so_far);
    so_far += __builtin_convertvector(x, vec4d);
    memcpy(sum, &so_far, sizeof so_far);
}

ALWAYS void add8(double *sum, const float *row)
{
    vec8f x;
    vec8d so_far;
    memcpy(&x, row, sizeof x);
    memcpy(&so_far, sum, sizeof so_far);
    so_far += __builtin_convertvector(x, vec8d);
    memcpy(sum, &so_far, sizeof so_far);
}

ALWAYS void accumulate_rows(const float *rows, size_t n, uint32_t row_floats, const uint32_t *codes, double *sums)
{
    for (size_t i = 0; i < n; i++, rows += row_floats) {
        double *sum = sums + (size_t)codes[i] * row_floats;
        uint32_t k = 0;
        for (; k + 8 <= row_floats; k += 8)
            add8(sum + k, rows + k);
        if (k < row_floats)
            add4(sum + k, rows + k);
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

ALWAYS void candidate_tile(const float *tile, uint32_t d, const float *rows, uint32_t count, const float *nearest,
                           const float *weights, float *const *fresh, size_t at, vec16f *potential)
{
    vec16f distance[KVB_SEED_CANDIDATES], x, low, w;
    UNROLL for (uint32_t j = 0; j < count; j++)
        distance[j] = (vec16f){0};
    for (uint32_t k = 0; k < d; k++) {
        load16(&x, tile + (size_t)k * 16);
        UNROLL for (uint32_t j = 0; j < count; j++) {
            vec16f difference = x - rows[(size_t)j * d + k];
            distance[j] = ADD_SQUARE(distance[j], difference);
        }
    }
    load16(&low, nearest + at);
    load16(&w, weights + at);
    UNROLL for (uint32_t j = 0; j < count; j++) {
        vec16i closer = distance[j] < low;
        vec16f best = (vec16f)(((vec16i)distance[j] & closer) | ((vec16i)low & ~closer));
        memcpy(fresh[j] + at, &best, sizeof best);
        potential[j] += w * best;
    }
}

ALWAYS void candidate_tiles(const float *points, size_t tiles, uint32_t d, const float *rows, uint32_t count,
                            const float *nearest, const float *weights, float *const *fresh, double *potential)
{
    vec16f sums[KVB_SEED_CANDIDATES];
    UNROLL for (uint32_t j = 0; j < count; j++)
        sums[j] = (vec16f){0};
    for (size_t t = 0; t < tiles; t++)
        candidate_tile(points + t * d * 16, d, rows, count, nearest, weights, fresh, t * 16, sums);
    UNROLL for (uint32_t j = 0; j < count; j++) {
        potential[j] = 0.0;
        for (int l = 0; l < 16; l++)
            potential[j] += sums[j][l];
    }
}

static void candidates(const float *points, size_t tiles, uint32_t d, const float *rows, uint32_t count,
                       const float *nearest, const float *weights, float *const *fresh, double *potential)
{
    if (count == 1)
        candidate_tiles(points, tiles, d, rows, 1, nearest, weights, fresh, potential);
    else if (count == 2)
        candidate_tiles(points, tiles, d, rows, 2, nearest, weights, fresh, potential);
    else
        candidate_tiles(points, tiles, d, rows, 4, nearest, weights, fresh, potential);
}

static void weigh(const float *nearest, const float *weights, size_t tiles, double *mass)
{
    enum { TILES = KVB_SEED_BLOCK / 16 };
    for (size_t first = 0; first < tiles; first += TILES, mass++) {
        size_t end = first + TILES < tiles ? first + TILES : tiles;
        vec16f sum = {0}, low, w;
        for (size_t t = first; t < end; t++) {
            load16(&low, nearest + t * 16);
            load16(&w, weights + t * 16);
            sum += low * w;
        }
        *mass = 0.0;
        for (int l = 0; l < 16; l++)
            *mass += sum[l];
    }
}
