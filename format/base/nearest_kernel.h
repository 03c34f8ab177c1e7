/* The search itself, included once by each build after it has defined
 *   VF, VI            vectors of LANES floats and of as many 32-bit integers
 *   V_LOAD V_STORE VI_STORE V_SET1 VI_SET1 V_FMA(x, b, a) V_MIN(low, a)
 *   V_TRACK(index, a, low, number)   index lanes become `number` where a < low
 *   V_NORM(x, a)      a + x*x
 *   KERNEL_POINTS     vectors of points in one step; KERNEL_POINTS * LANES is a multiple of 16
 *   KERNEL_CENTROIDS  centroids in one step, a divisor of 16
 * Steps of KERNEL_POINTS x KERNEL_CENTROIDS accumulators fill the register file; a running minimum per group of 16
 * centroids costs one operation a centroid, and only the winning group is evaluated again to learn the index. */
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "format/base/nearest_internal.h"

#define ALWAYS static inline __attribute__((always_inline))

/* The points do not change from group to group, but the registers belong to the accumulators: without this the compiler
 * would load all points once and spill them. */
#define KEEP_IN_MEMORY(pointer) __asm__("" : "+r"(pointer))

/* Sanitizers check every load: unrolled, that is minutes of compiling for nothing. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define UNROLL
#define UNROLL_CHANNELS
#else
#define UNROLL _Pragma("GCC unroll 16")
#define UNROLL_CHANNELS _Pragma("GCC unroll 2")
#endif

/* Tracking the index centroid by centroid costs two operations more for each; evaluating the winning group again costs
 * about 2 d operations and some bookkeeping a point. Measured, they meet near 2 d groups. */
ALWAYS bool tracks_directly(const kvb_nearest *t, uint32_t d)
{
    return t->groups <= 2 * d + 2;
}

/* Where vector p of a step starts: tiles are [d][16]. */
ALWAYS size_t vector_at(uint32_t p, uint32_t d)
{
    return (size_t)(p * LANES / KVB_TILE) * d * KVB_TILE + p * LANES % KVB_TILE;
}

/* acc[c][p] = |c|^2 - 2 x.c for KERNEL_CENTROIDS centroids and `points` vectors of points */
ALWAYS void step(const float *x, const float *minus2, const float *norms, uint32_t d, uint32_t points,
                 VF acc[KERNEL_CENTROIDS][KERNEL_POINTS])
{
    UNROLL for (uint32_t c = 0; c < KERNEL_CENTROIDS; c++) {
        VF norm = V_SET1(norms[c]);
        UNROLL for (uint32_t p = 0; p < points; p++)
            acc[c][p] = norm;
    }
    UNROLL_CHANNELS for (uint32_t k = 0; k < d; k++) {
        VF xs[KERNEL_POINTS];
        KEEP_IN_MEMORY(x);
        UNROLL for (uint32_t p = 0; p < points; p++)
            xs[p] = V_LOAD(x + vector_at(p, d) + (size_t)k * KVB_TILE);
        UNROLL for (uint32_t c = 0; c < KERNEL_CENTROIDS; c++) {
            VF b = V_SET1(minus2[(size_t)k * KVB_GROUP + c]);
            UNROLL for (uint32_t p = 0; p < points; p++)
                acc[c][p] = V_FMA(xs[p], b, acc[c][p]);
        }
    }
}

/* low[p] and group[p]: the smallest value and the first centroid of the group it is in */
ALWAYS void scan_groups(const kvb_nearest *t, const float *x, uint32_t d, uint32_t points, VF *low, VI *group)
{
    for (uint32_t g = 0; g < t->groups; g++) {
        const float *minus2 = t->minus2 + (size_t)g * d * KVB_GROUP, *norms = t->norms + (size_t)g * KVB_GROUP;
        VF best[KERNEL_POINTS];
        UNROLL for (uint32_t p = 0; p < points; p++)
            best[p] = low[p];
        UNROLL for (uint32_t b = 0; b < KVB_GROUP; b += KERNEL_CENTROIDS) {
            VF acc[KERNEL_CENTROIDS][KERNEL_POINTS];
            step(x, minus2 + b, norms + b, d, points, acc);
            UNROLL for (uint32_t c = 0; c < KERNEL_CENTROIDS; c++)
                UNROLL for (uint32_t p = 0; p < points; p++)
                    best[p] = V_MIN(best[p], acc[c][p]);
        }
        UNROLL for (uint32_t p = 0; p < points; p++) {
            V_TRACK(group[p], best[p], low[p], g * KVB_GROUP);
            low[p] = best[p];
        }
    }
}

/* The same with the index of the centroid itself */
ALWAYS void scan_centroids(const kvb_nearest *t, const float *x, uint32_t d, uint32_t points, VF *low, VI *index)
{
    for (uint32_t g = 0; g < t->groups; g++) {
        const float *minus2 = t->minus2 + (size_t)g * d * KVB_GROUP, *norms = t->norms + (size_t)g * KVB_GROUP;
        UNROLL for (uint32_t b = 0; b < KVB_GROUP; b += KERNEL_CENTROIDS) {
            VF acc[KERNEL_CENTROIDS][KERNEL_POINTS];
            step(x, minus2 + b, norms + b, d, points, acc);
            UNROLL for (uint32_t c = 0; c < KERNEL_CENTROIDS; c++)
                UNROLL for (uint32_t p = 0; p < points; p++) {
                    V_TRACK(index[p], acc[c][p], low[p], g * KVB_GROUP + b + c);
                    low[p] = V_MIN(low[p], acc[c][p]);
                }
        }
    }
}

/* The lowest index in the group at `first` whose value is `low`. The values repeat bit for bit, so one always is,
 * unless they are not numbers: then the group's first centroid stands. */
ALWAYS uint32_t index_in_group(const kvb_nearest *t, const float *x, size_t stride, uint32_t d, uint32_t first,
                               float low)
{
    const float *minus2 = t->minus2 + (size_t)first * d, *norms = t->norms + first;
    VF acc[KVB_GROUP / LANES];
    UNROLL for (uint32_t v = 0; v < KVB_GROUP / LANES; v++)
        acc[v] = V_LOAD(norms + v * LANES);
    UNROLL_CHANNELS for (uint32_t k = 0; k < d; k++) {
        VF b = V_SET1(x[k * stride]);
        UNROLL for (uint32_t v = 0; v < KVB_GROUP / LANES; v++)
            acc[v] = V_FMA(b, V_LOAD(minus2 + (size_t)k * KVB_GROUP + v * LANES), acc[v]);
    }
    uint32_t hits = 0;
    UNROLL for (uint32_t v = 0; v < KVB_GROUP / LANES; v++)
        hits |= V_EQUAL_BITS(acc[v], V_SET1(low)) << (v * LANES);
    const uint32_t found = first + (hits != 0 ? (uint32_t)__builtin_ctz(hits) : 0);
    return found < t->centroids ? found : first; /* the padding is as far as what is not a number */
}

ALWAYS void finish(const float *x, uint32_t d, uint32_t points, const VF *low, float *distance)
{
    for (uint32_t p = 0; p < points; p++) {
        VF norm = V_SET1(0.0f);
        for (uint32_t k = 0; k < d; k++)
            norm = V_NORM(V_LOAD(x + vector_at(p, d) + (size_t)k * KVB_TILE), norm);
        V_STORE(distance + p * LANES, V_MAX0(norm + low[p]));
    }
}

ALWAYS void search(const kvb_nearest *t, const float *x, uint32_t d, uint32_t points, uint32_t *index,
                   float *distance)
{
    VF low[KERNEL_POINTS];
    VI where[KERNEL_POINTS];
    UNROLL for (uint32_t p = 0; p < points; p++) {
        low[p] = V_SET1(INFINITY);
        where[p] = VI_SET1(0);
    }
    if (tracks_directly(t, d))
        scan_centroids(t, x, d, points, low, where);
    else
        scan_groups(t, x, d, points, low, where);
    UNROLL for (uint32_t p = 0; p < points; p++)
        VI_STORE(index + p * LANES, where[p]);
    if (!tracks_directly(t, d))
        for (uint32_t p = 0; p < points; p++) {
            float lows[LANES];
            V_STORE(lows, low[p]);
            for (uint32_t l = 0; l < LANES; l++) {
                uint32_t *at = index + p * LANES + l;
                *at = index_in_group(t, x + vector_at(p, d) + l, KVB_TILE, d, *at, lows[l]);
            }
        }
    if (distance != NULL)
        finish(x, d, points, low, distance);
}

ALWAYS void search_tiles(const kvb_nearest *t, const float *x, size_t tiles, uint32_t d, uint32_t *index,
                         float *distance)
{
    enum { STEP = KERNEL_POINTS * LANES / KVB_TILE, ONE = KVB_TILE / LANES };
    size_t i = 0;
    for (; i + STEP <= tiles; i += STEP)
        search(t, x + i * d * KVB_TILE, d, KERNEL_POINTS, index + i * KVB_TILE,
               distance != NULL ? distance + i * KVB_TILE : NULL);
    for (; i < tiles; i++)
        search(t, x + i * d * KVB_TILE, d, ONE, index + i * KVB_TILE,
               distance != NULL ? distance + i * KVB_TILE : NULL);
}

#define SEARCH_TILES(d)                                                                                               \
    static void tiles_##d(const kvb_nearest *t, const float *x, size_t tiles, uint32_t *index, float *distance)       \
    {                                                                                                                 \
        search_tiles(t, x, tiles, d, index, distance);                                                                \
    }
SEARCH_TILES(2)
SEARCH_TILES(4)
SEARCH_TILES(8)
SEARCH_TILES(16)
SEARCH_TILES(32)

static void tiles_any(const kvb_nearest *t, const float *x, size_t tiles, uint32_t *index, float *distance)
{
    search_tiles(t, x, tiles, t->channels, index, distance);
}

static void tiles_all(const kvb_nearest *t, const float *x, size_t tiles, uint32_t *index, float *distance)
{
    switch (t->channels) {
    case 2: tiles_2(t, x, tiles, index, distance); break;
    case 4: tiles_4(t, x, tiles, index, distance); break;
    case 8: tiles_8(t, x, tiles, index, distance); break;
    case 16: tiles_16(t, x, tiles, index, distance); break;
    case 32: tiles_32(t, x, tiles, index, distance); break;
    default: tiles_any(t, x, tiles, index, distance); break;
    }
}

/* One point against all centroids, centroids in lanes: each lane keeps its lowest value and the group it came from. */
static uint32_t search_row(const kvb_nearest *t, const float *x)
{
    enum { VECTORS = KVB_GROUP / LANES };
    uint32_t d = t->channels;
    VF low[VECTORS];
    VI group[VECTORS];
    UNROLL for (uint32_t v = 0; v < VECTORS; v++) {
        low[v] = V_SET1(INFINITY);
        group[v] = VI_SET1(0);
    }
    for (uint32_t g = 0; g < t->groups; g++) {
        const float *minus2 = t->minus2 + (size_t)g * d * KVB_GROUP, *norms = t->norms + (size_t)g * KVB_GROUP;
        UNROLL for (uint32_t v = 0; v < VECTORS; v++) {
            VF acc = V_LOAD(norms + v * LANES);
            for (uint32_t k = 0; k < d; k++)
                acc = V_FMA(V_SET1(x[k]), V_LOAD(minus2 + (size_t)k * KVB_GROUP + v * LANES), acc);
            V_TRACK(group[v], acc, low[v], g * KVB_GROUP);
            low[v] = V_MIN(low[v], acc);
        }
    }
    float lows[KVB_GROUP];
    uint32_t groups[KVB_GROUP];
    UNROLL for (uint32_t v = 0; v < VECTORS; v++) {
        V_STORE(lows + v * LANES, low[v]);
        VI_STORE(groups + v * LANES, group[v]);
    }
    uint32_t best = 0, lane = 0;
    for (uint32_t l = 0; l < KVB_GROUP; l++)
        if (l == 0 || lows[l] < lows[lane] || (lows[l] == lows[lane] && groups[l] + l < best)) {
            lane = l;
            best = groups[l] + l;
        }
    return best < t->centroids ? best : 0;
}
