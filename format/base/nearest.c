#include "format/base/nearest.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/nearest_internal.h"

/* Points packed at a time by kvb_nearest_find(): a whole number of steps of every build. */
enum { CHUNK_TILES = 3, CHUNK = CHUNK_TILES * KVB_TILE, MAX_CHANNELS = 256, MAX_CENTROIDS = 65536 };

/* Fewer points than this in a tile are cheaper one by one. */
enum { ROW_BY_ROW = 6 };

static const kvb_nearest_build *build_named(const char *name)
{
    if (strcmp(name, "plain") == 0)
        return kvb_nearest_build_plain();
    if (strcmp(name, "avx2") == 0)
        return kvb_nearest_build_avx2();
    if (strcmp(name, "avx512") == 0)
        return kvb_nearest_build_avx512();
    return NULL;
}

static const kvb_nearest_build *build_best(void)
{
    const char *wanted = getenv("KVB_ISA");
    const kvb_nearest_build *build = wanted != NULL ? build_named(wanted) : NULL;
    if (build == NULL)
        build = kvb_nearest_build_avx512();
    if (build == NULL)
        build = kvb_nearest_build_avx2();
    return build != NULL ? build : kvb_nearest_build_plain();
}

static kvb_nearest *create(uint32_t channels, uint32_t centroids, const kvb_nearest_build *build)
{
    if (build == NULL || channels < 1 || channels > MAX_CHANNELS || centroids < 1 || centroids > MAX_CENTROIDS)
        return NULL;
    kvb_nearest *t = calloc(1, sizeof *t);
    if (t == NULL)
        return NULL;
    t->build = build;
    t->channels = channels;
    t->centroids = centroids;
    t->groups = (centroids + KVB_GROUP - 1) / KVB_GROUP;
    t->minus2 = kvb_alloc_zeroed((size_t)t->groups * KVB_GROUP * channels, sizeof(float));
    t->norms = kvb_alloc_zeroed((size_t)t->groups * KVB_GROUP, sizeof(float));
    t->origin = kvb_alloc_zeroed(channels, sizeof(float));
    t->centroid_rows = kvb_alloc_zeroed((size_t)centroids * channels, sizeof(float));
    if (t->minus2 == NULL || t->norms == NULL || t->origin == NULL || t->centroid_rows == NULL) {
        kvb_nearest_destroy(t);
        return NULL;
    }
    return t;
}

kvb_nearest *kvb_nearest_create(uint32_t channels, uint32_t centroids)
{
    return create(channels, centroids, build_best());
}

kvb_nearest *kvb_nearest_create_named(uint32_t channels, uint32_t centroids, const char *build)
{
    return create(channels, centroids, build_named(build));
}

void kvb_nearest_destroy(kvb_nearest *t)
{
    if (t == NULL)
        return;
    free(t->minus2);
    free(t->norms);
    free(t->origin);
    free(t->centroid_rows);
    free(t);
}

const char *kvb_nearest_build_name(const kvb_nearest *t)
{
    return t->build->name;
}

static void pack_centroid(kvb_nearest *t, uint32_t k)
{
    uint32_t d = t->channels, group = k / KVB_GROUP, lane = k % KVB_GROUP;
    const float *row = t->centroid_rows + (size_t)k * d;
    float *minus2 = t->minus2 + (size_t)group * d * KVB_GROUP + lane;
    double norm = 0.0;
    for (uint32_t c = 0; c < d; c++) {
        float v = row[c] - t->origin[c];
        norm += (double)v * v;
        minus2[(size_t)c * KVB_GROUP] = -2.0f * v;
    }
    t->norms[k] = (float)norm;
}

static void pack_centroids(kvb_nearest *t, const float *centroids)
{
    memcpy(t->centroid_rows, centroids, (size_t)t->centroids * t->channels * sizeof(float));
    for (uint32_t k = 0; k < t->centroids; k++)
        pack_centroid(t, k);
    for (uint32_t k = t->centroids; k < t->groups * KVB_GROUP; k++)
        t->norms[k] = INFINITY;
}

void kvb_nearest_set_around(kvb_nearest *t, const float *centroids, const float *origin)
{
    for (uint32_t c = 0; c < t->channels; c++)
        t->origin[c] = origin != NULL ? origin[c] : 0.0f;
    pack_centroids(t, centroids);
}

void kvb_nearest_set(kvb_nearest *t, const float *centroids)
{
    for (uint32_t c = 0; c < t->channels; c++) {
        double sum = 0.0;
        for (uint32_t k = 0; k < t->centroids; k++)
            sum += centroids[(size_t)k * t->channels + c];
        t->origin[c] = (float)(sum / t->centroids);
    }
    pack_centroids(t, centroids);
}

size_t kvb_nearest_packed_floats(uint32_t channels, size_t n)
{
    return (n + KVB_TILE - 1) / KVB_TILE * KVB_TILE * channels;
}

void kvb_nearest_pack(float *packed, uint32_t channels, const float *x, size_t stride, size_t n, const float *origin)
{
    for (size_t first = 0; first < n; first += KVB_TILE, packed += (size_t)channels * KVB_TILE) {
        size_t full = n - first < KVB_TILE ? n - first : KVB_TILE;
        if (full < KVB_TILE)
            memset(packed, 0, (size_t)channels * KVB_TILE * sizeof(float));
        for (size_t l = 0; l < full; l++) {
            const float *row = x + (first + l) * stride;
            for (uint32_t c = 0; c < channels; c++)
                packed[(size_t)c * KVB_TILE + l] = row[c] - (origin != NULL ? origin[c] : 0.0f);
        }
    }
}

void kvb_nearest_find_packed(const kvb_nearest *t, const float *packed, size_t n, uint32_t *index, float *distance)
{
    size_t tiles = n / KVB_TILE, done = tiles * KVB_TILE, left = n - done;
    t->build->tiles(t, packed, tiles, index, distance);
    if (left == 0)
        return;
    uint32_t last_index[KVB_TILE];
    float last_distance[KVB_TILE];
    t->build->tiles(t, packed + done * t->channels, 1, last_index, last_distance);
    memcpy(index + done, last_index, left * sizeof *index);
    if (distance != NULL)
        memcpy(distance + done, last_distance, left * sizeof *distance);
}

static uint32_t find_row(const kvb_nearest *t, const float *x)
{
    float row[MAX_CHANNELS];
    for (uint32_t c = 0; c < t->channels; c++)
        row[c] = x[c] - t->origin[c];
    return t->build->row(t, row);
}

/* Distances of direct differences: |x|^2 + |c|^2 - 2 x.c would lose the small ones to cancellation. */
static float distance_to(const kvb_nearest *t, const float *x, uint32_t k)
{
    const float *row = t->centroid_rows + (size_t)k * t->channels;
    float sum = 0.0f;
    for (uint32_t c = 0; c < t->channels; c++) {
        float difference = x[c] - row[c];
        sum += difference * difference;
    }
    return sum;
}

void kvb_nearest_find(const kvb_nearest *t, const float *x, size_t stride, size_t n, uint32_t *index, float *distance)
{
    float packed[CHUNK * MAX_CHANNELS];
    size_t i = 0;
    for (size_t many; n - i >= ROW_BY_ROW; i += many) {
        many = n - i < CHUNK ? n - i : CHUNK;
        kvb_nearest_pack(packed, t->channels, x + i * stride, stride, many, t->origin);
        kvb_nearest_find_packed(t, packed, many, index + i, NULL);
    }
    for (; i < n; i++)
        index[i] = find_row(t, x + i * stride);
    for (i = 0; i < n && distance != NULL; i++)
        distance[i] = distance_to(t, x + i * stride, index[i]);
}

void kvb_nearest_reference(const float *centroids, uint32_t channels, uint32_t count, const float *x, size_t stride,
                           size_t n, uint32_t *index, float *distance)
{
    for (size_t i = 0; i < n; i++) {
        double best = INFINITY;
        index[i] = 0;
        for (uint32_t k = 0; k < count; k++) {
            double sum = 0.0;
            for (uint32_t c = 0; c < channels; c++) {
                double difference = (double)x[i * stride + c] - centroids[(size_t)k * channels + c];
                sum += difference * difference;
            }
            if (sum < best) {
                best = sum;
                index[i] = k;
            }
        }
        if (distance != NULL)
            distance[i] = (float)best;
    }
}
