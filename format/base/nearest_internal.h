/* What nearest.c shares with its builds for plain C, AVX2 and AVX-512.
 *
 * Points live in vector lanes: 16 of them make a tile [d][16], so one broadcast of a centroid's channel serves a whole
 * register of points. |x - c|^2 = |x|^2 + (|c|^2 - 2 x.c), and only the part in brackets depends on the centroid:
 * accumulators start at |c|^2 and take d fused multiply-adds with -2c. Every build adds the channels in ascending order,
 * so a value is the same whichever loop computes it. */
#ifndef KVB_BASE_NEAREST_INTERNAL_H
#define KVB_BASE_NEAREST_INTERNAL_H

#include "format/base/nearest.h"

enum { KVB_TILE = 16, KVB_GROUP = 16 };

typedef struct kvb_nearest_build {
    const char *name;
    /* Tiles of 16 packed points: index[16*tiles], distance[16*tiles]. */
    void (*tiles)(const kvb_nearest *t, const float *packed, size_t tiles, uint32_t *index, float *distance);
    /* One row of d floats, already relative to the origin: for the few points that do not fill a tile. */
    uint32_t (*row)(const kvb_nearest *t, const float *x);
} kvb_nearest_build;

struct kvb_nearest {
    const kvb_nearest_build *build;
    uint32_t channels, centroids;
    uint32_t groups;       /* of 16 centroids */
    float *minus2;         /* [groups][d][16]: -2 (c - origin), zeros past K */
    float *norms;          /* [groups][16]: |c - origin|^2, infinity past K */
    float *origin;         /* [d] */
    float *centroid_rows;  /* [K][d] as given */
};

const kvb_nearest_build *kvb_nearest_build_plain(void);
const kvb_nearest_build *kvb_nearest_build_avx2(void);   /* NULL where the compiler could not build it */
const kvb_nearest_build *kvb_nearest_build_avx512(void);

#endif
