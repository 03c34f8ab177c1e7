/* Where Lloyd's iterations start from: by weight alone, k-means++ (kmeans_plusplus.c) or splitting (kmeans_split.c). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/rng.h"
#include "kmeans/kmeans_internal.h"

enum { STREAM_RANDOM = 4 };

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
    uint64_t key = kvb_rng_key(job->problem->seed, STREAM_RANDOM, 0, 0, 0);
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
        kvb_kmeans_point_read(job->training.tiles, heap[i].point, job->channels, job->table + i * job->channels);
    free(heap);
    return KVB_OK;
}

kvb_status kvb_kmeans_seed(kvb_kmeans_job *job, kvb_error *err)
{
    switch (job->run->options->seeding) {
    case KVB_SEED_RANDOM: return seed_random(job, err);
    case KVB_SEED_SPLIT: return kvb_kmeans_split(job, err);
    default: return kvb_kmeans_plus_plus(job, err);
    }
}
