/* Seeding by splitting: one centroid at the mean, then as many more as there are, each in the cluster with the largest
 * error left, and a few of Lloyd's iterations, until there are K (after Linde, Buzo and Gray 1980, who split every cluster
 * once). The rounds' costs double, so all of them together cost about as much as ITERATIONS full iterations. */
#include <string.h>

#include "format/base/fail.h"
#include "format/base/rng.h"
#include "kmeans/kmeans_clusters.h"

enum { STREAM_SPLIT = 6, ITERATIONS = 2 };

/* Job->centroids of them at work, `more` put behind them. */
static kvb_status grow(kvb_kmeans_job *job, uint32_t more, uint64_t key, kvb_error *err)
{
    uint32_t d = job->channels;
    kvb_kmeans_clusters c;
    for (int i = 0; i < ITERATIONS && !kvb_kmeans_cancelled(job); i++)
        kvb_kmeans_step(job);
    if (atomic_load(&job->run->cancelled))
        return kvb_fail(err, KVB_E_CANCELLED, "k-means", "cancelled by the progress callback");
    kvb_status status = kvb_kmeans_clusters_open(&c, job, err);
    for (uint32_t j = 0; j < more && status == KVB_OK; j++) {
        uint32_t largest = kvb_kmeans_largest(c.share, job->centroids), to = job->centroids + j;
        /* No error left: any place will do, repair finds a better one if there is one. */
        if (!kvb_kmeans_clusters_split(&c, job, largest, to, kvb_rng_unit(key, to)))
            memcpy(job->table + (size_t)to * d, job->table, d * sizeof *job->table);
    }
    kvb_kmeans_clusters_close(&c);
    return status;
}

/* One round with `now` centroids and a search of their number in place of the job's. */
static kvb_status round_of(kvb_kmeans_job *job, uint32_t now, uint32_t more, uint64_t key, kvb_error *err)
{
    kvb_nearest *search = job->search;
    uint32_t all = job->centroids;
    kvb_status status;
    job->centroids = now;
    job->search = kvb_nearest_create(job->channels, now);
    status = job->search != NULL ? grow(job, more, key, err) : kvb_fail_memory(err, "the seeding of a k-means problem");
    kvb_nearest_destroy(job->search);
    job->search = search;
    job->centroids = all;
    return status;
}

kvb_status kvb_kmeans_split(kvb_kmeans_job *job, kvb_error *err)
{
    uint64_t key = kvb_rng_key(job->problem->seed, STREAM_SPLIT, 0, 0, 0);
    kvb_status status = KVB_OK;
    memset(job->table, 0, job->channels * sizeof *job->table); /* the frame's origin: the first step moves it */
    for (uint32_t now = 1; now < job->centroids && status == KVB_OK;) {
        uint32_t more = now < job->centroids - now ? now : job->centroids - now;
        status = round_of(job, now, more, key, err);
        now += more;
    }
    return status;
}
