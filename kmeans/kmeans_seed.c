/* Where Lloyd's iterations start from. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/rng.h"
#include "kmeans/kmeans_internal.h"

/* Streams of random numbers of one problem. */
enum { STREAM_SAMPLE = 1, STREAM_DRAW = 2 };

/* Greedy k-means++ looks at POINTS_A_CENTROID points a centroid with several candidates a step rather than at all points
 * with one: that costs between one and two of Lloyd's iterations either way. */
enum { POINTS_A_CENTROID = 16 };

typedef struct seeding {
    kvb_kmeans_job *job;
    size_t count, tiles; /* points of the sample */
    uint32_t candidates; /* tried for each centroid: 1, 2 or 4 */
    uint64_t key;
    float *points;       /* [tiles][d][16] */
    float *weights;      /* [16*tiles], zeros past count */
    float *nearest;      /* [16*tiles] squared distance to the nearest centroid so far */
    float *fresh[KVB_SEED_CANDIDATES];
    double *mass;        /* of blocks of KVB_SEED_BLOCK points: sum of weight * nearest */
    size_t blocks;
} seeding;

static void seeding_close(seeding *s)
{
    free(s->points);
    free(s->weights);
    free(s->nearest);
    for (uint32_t j = 0; j < KVB_SEED_CANDIDATES; j++)
        free(s->fresh[j]);
    free(s->mass);
}

static kvb_status seeding_open(seeding *s, kvb_kmeans_job *job, size_t count, uint32_t candidates, kvb_error *err)
{
    *s = (seeding){.job = job, .count = count, .tiles = (count + 15) / 16, .candidates = candidates};
    s->key = job->problem->seed;
    s->blocks = (s->tiles * 16 + KVB_SEED_BLOCK - 1) / KVB_SEED_BLOCK;
    s->points = kvb_alloc_zeroed(s->tiles * 16, job->channels * sizeof(float));
    s->weights = kvb_alloc_zeroed(s->tiles * 16, sizeof(float));
    s->nearest = kvb_alloc_zeroed(s->tiles * 16, sizeof(float));
    s->mass = kvb_alloc_zeroed(s->blocks, sizeof(double));
    bool complete = s->points != NULL && s->weights != NULL && s->nearest != NULL && s->mass != NULL;
    for (uint32_t j = 0; j < candidates; j++) {
        s->fresh[j] = kvb_alloc_zeroed(s->tiles * 16, sizeof(float));
        complete = complete && s->fresh[j] != NULL;
    }
    return complete ? KVB_OK : kvb_fail_memory(err, "the seeding of a k-means problem");
}

static void tile_copy(float *to, size_t at, const float *from, size_t i, uint32_t d)
{
    to += at / 16 * 16 * d + at % 16;
    from += i / 16 * 16 * d + i % 16;
    for (uint32_t c = 0; c < d; c++)
        to[(size_t)c * 16] = from[(size_t)c * 16];
}

static void point_read(const float *tiles, size_t i, uint32_t d, float *y)
{
    const float *from = tiles + i / 16 * 16 * d + i % 16;
    for (uint32_t c = 0; c < d; c++)
        y[c] = from[(size_t)c * 16];
}

/* One point out of each of `count` equal strata. */
static void take_sample(seeding *s)
{
    const kvb_kmeans_points *all = &s->job->training;
    uint64_t key = kvb_rng_key(s->key, STREAM_SAMPLE, 0, 0, 0);
    size_t n = all->count, m = s->count;
    for (size_t i = 0; i < m; i++) {
        __extension__ typedef unsigned __int128 u128;
        size_t first = (size_t)((u128)i * n / m), end = (size_t)((u128)(i + 1) * n / m);
        size_t from = first + (size_t)kvb_rng_below(key, i, end - first);
        tile_copy(s->points, i, all->tiles, from, all->channels);
        s->weights[i] = kvb_kmeans_weight(all, from);
    }
}

/* The first point at which the running sum of weight * nearest passes `target`; points without mass are passed over. */
static size_t find_mass(const seeding *s, double target)
{
    size_t b = 0, found = SIZE_MAX;
    while (b + 1 < s->blocks && target >= s->mass[b])
        target -= s->mass[b++];
    size_t first = b * KVB_SEED_BLOCK, end = first + KVB_SEED_BLOCK < s->count ? first + KVB_SEED_BLOCK : s->count;
    for (size_t i = first; i < end; i++) {
        double mass = (double)s->weights[i] * s->nearest[i];
        if (mass > 0.0)
            found = i;
        target -= mass;
        if (target < 0.0 && found != SIZE_MAX)
            return found;
    }
    for (size_t i = 0; i < s->count && found == SIZE_MAX; i++)
        if (s->weights[i] > 0.0f && s->nearest[i] > 0.0f)
            found = i;
    return found;
}

static double weigh(seeding *s)
{
    double total = 0.0;
    s->job->kernels->weigh(s->nearest, s->weights, s->tiles, s->mass);
    for (size_t b = 0; b < s->blocks; b++)
        total += s->mass[b];
    return total;
}

/* Draws candidates by mass, takes the one that leaves the least; false where no point has mass. */
static bool next_centroid(seeding *s, uint32_t k)
{
    uint32_t d = s->job->channels, best = 0;
    float rows[KVB_SEED_CANDIDATES * KVB_KMEANS_CHANNELS];
    double potential[KVB_SEED_CANDIDATES], total = weigh(s);
    uint64_t key = kvb_rng_key(s->key, STREAM_DRAW, 0, 0, 0);
    for (uint32_t j = 0; j < s->candidates; j++) {
        uint64_t draw = (uint64_t)k * KVB_SEED_CANDIDATES + j;
        size_t i = find_mass(s, kvb_rng_unit(key, draw) * total);
        if (i == SIZE_MAX)
            return false;
        point_read(s->points, i, d, rows + (size_t)j * d);
    }
    if (k == 0)
        for (size_t i = 0; i < s->tiles * 16; i++)
            s->nearest[i] = FLT_MAX; /* from here on it is a distance */
    s->job->kernels->candidates(s->points, s->tiles, d, rows, s->candidates, s->nearest, s->weights, s->fresh,
                                potential);
    for (uint32_t j = 1; j < s->candidates; j++)
        if (potential[j] < potential[best])
            best = j;
    memcpy(s->job->table + (size_t)k * d, rows + (size_t)best * d, d * sizeof(float));
    float *old = s->nearest;
    s->nearest = s->fresh[best];
    s->fresh[best] = old;
    return true;
}

/* Fewer distinct points than centroids: the rest repeat what there is. */
static void fill_rest(kvb_kmeans_job *job, uint32_t from)
{
    for (uint32_t k = from; k < job->centroids; k++)
        if (from == 0)
            memset(job->table + (size_t)k * job->channels, 0, job->channels * sizeof(float));
        else
            memcpy(job->table + (size_t)k * job->channels, job->table + (size_t)(k % from) * job->channels,
                   job->channels * sizeof(float));
}

static kvb_status plus_plus(seeding *s, kvb_error *err)
{
    take_sample(s);
    for (size_t i = 0; i < s->tiles * 16; i++)
        s->nearest[i] = i < s->count ? 1.0f : 0.0f; /* the first one is drawn by weight alone */
    uint32_t found = 0, candidates = s->candidates;
    s->candidates = 1;
    for (; found < s->job->centroids; found++) {
        if (found % 64 == 0 && kvb_kmeans_cancelled(s->job))
            return kvb_fail(err, KVB_E_CANCELLED, "k-means seeding", "cancelled by the progress callback");
        if (!next_centroid(s, found))
            break;
        s->candidates = candidates;
    }
    fill_rest(s->job, found);
    return KVB_OK;
}

static kvb_status seed_plus_plus(kvb_kmeans_job *job, kvb_error *err)
{
    size_t n = job->training.count, m = (size_t)job->centroids * POINTS_A_CENTROID;
    if (m > n)
        m = n;
    uint32_t candidates = n / m >= 4 ? 4 : n / m >= 2 ? 2 : 1;
    seeding s;
    kvb_status status = seeding_open(&s, job, m, candidates, err);
    if (status == KVB_OK)
        status = plus_plus(&s, err);
    seeding_close(&s);
    return status;
}

/* By weight without replacement (Efraimidis and Spirakis 2006): the K largest of log(u) / w, kept as a heap. */
typedef struct draw {
    double rank;
    size_t point;
} draw;

static bool before(draw a, draw b)
{
    return a.rank < b.rank || (!(b.rank < a.rank) && a.point > b.point);
}

static void sift_down(draw *heap, size_t n, size_t at)
{
    for (size_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && before(heap[child + 1], heap[child]))
            child++;
        if (!before(heap[child], heap[at]))
            return;
        draw swap = heap[at];
        heap[at] = heap[child];
        heap[child] = swap;
    }
}

static int by_point(const void *a, const void *b)
{
    const draw *x = a, *y = b;
    return x->point < y->point ? -1 : x->point > y->point;
}

static draw draw_of(const kvb_kmeans_job *job, uint64_t key, size_t i)
{
    double w = kvb_kmeans_weight(&job->training, i);
    return (draw){w > 0.0 ? log(kvb_rng_unit(key, i)) / w : -INFINITY, i};
}

static kvb_status seed_random(kvb_kmeans_job *job, kvb_error *err)
{
    size_t n = job->training.count, k = job->centroids;
    uint64_t key = kvb_rng_key(job->problem->seed, STREAM_DRAW, 0, 0, 0);
    draw *heap = kvb_alloc_array(k, sizeof *heap);
    if (heap == NULL)
        return kvb_fail_memory(err, "the seeding of a k-means problem");
    for (size_t i = 0; i < k; i++)
        heap[i] = draw_of(job, key, i);
    for (size_t i = k; i-- > 0;)
        sift_down(heap, k, i);
    for (size_t i = k; i < n; i++) {
        draw d = draw_of(job, key, i);
        if (before(d, heap[0]))
            continue;
        heap[0] = d;
        sift_down(heap, k, 0);
    }
    qsort(heap, k, sizeof *heap, by_point);
    for (size_t i = 0; i < k; i++)
        point_read(job->training.tiles, heap[i].point, job->channels, job->table + i * job->channels);
    free(heap);
    return KVB_OK;
}

kvb_status kvb_kmeans_seed(kvb_kmeans_job *job, kvb_error *err)
{
    return job->run->options->seeding == KVB_SEED_RANDOM ? seed_random(job, err) : seed_plus_plus(job, err);
}
