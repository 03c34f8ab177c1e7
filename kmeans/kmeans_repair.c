/* Moving centroids to where they do more good. Empty clusters split the cluster with the largest error: the objective can
 * only fall by that, because no other centroid moves. Swaps do the same with the least useful centroids where the split
 * promises to save more than the removal costs. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/rng.h"
#include "kmeans/kmeans_clusters.h"

enum { CHUNK = 48 };

/* A split is taken to save HOPE times what it saves at best in theory, 1 - 2^(-2/d) of the cluster's error: the rounds
 * begin bold, because Lloyd's iterations repair a bad swap but not a missed one, and end sober. Measured on keys and
 * values: 4 to 1 beats any constant. */
static const double HOPE_FIRST = 4.0, HOPE_LAST = 1.0;

kvb_status kvb_kmeans_repair(kvb_kmeans_job *job, uint32_t round, uint32_t *moved, kvb_error *err)
{
    kvb_kmeans_clusters c;
    uint64_t key = kvb_rng_key(job->problem->seed, KVB_STREAM_REPAIR, round, 0, 0);
    kvb_status status = kvb_kmeans_clusters_open(&c, job, err);
    for (uint32_t k = 0; k < job->centroids && status == KVB_OK; k++) {
        if (job->sums[(size_t)k * job->training.row_floats + job->channels] > 0.0)
            continue;
        uint32_t largest = kvb_kmeans_largest(c.share, job->centroids);
        if (!kvb_kmeans_clusters_split(&c, job, largest, k, kvb_rng_unit(key, k)))
            break;
        ++*moved;
    }
    kvb_kmeans_clusters_close(&c);
    return status;
}

static int by_value(const void *a, const void *b)
{
    const kvb_swap_candidate *x = a, *y = b;
    if (x->value < y->value || y->value < x->value)
        return x->value < y->value ? -1 : 1;
    return x->cluster < y->cluster ? -1 : x->cluster > y->cluster;
}

void kvb_kmeans_swap_sort(kvb_swap_candidate *list, size_t count)
{
    qsort(list, count, sizeof *list, by_value);
}

double kvb_kmeans_swap_saving(uint32_t channels, uint32_t round, uint32_t rounds)
{
    double progress = rounds > 1 ? (double)round / (rounds - 1) : 1.0;
    return (HOPE_FIRST + (HOPE_LAST - HOPE_FIRST) * progress) * (1.0 - exp2(-2.0 / channels));
}

/* A search over all centroids but the first `leave_out` of the list. */
static kvb_nearest *search_without(const kvb_kmeans_job *job, const kvb_swap_candidate *list, uint32_t leave_out)
{
    uint32_t d = job->channels, kept = job->centroids - leave_out;
    kvb_nearest *search = kvb_nearest_create(d, kept);
    float *table = kvb_alloc_array(kept, d * sizeof *table);
    for (uint32_t k = 0; k < kept && table != NULL; k++)
        memcpy(table + (size_t)k * d, job->table + (size_t)list[leave_out + k].cluster * d, d * sizeof *table);
    if (search != NULL && table != NULL)
        kvb_nearest_set_around(search, table, NULL);
    if (table == NULL) {
        kvb_nearest_destroy(search);
        search = NULL;
    }
    free(table);
    return search;
}

/* What the error rises by if the centroid goes and its points go to the nearest of the others. */
static double removal_cost(const kvb_kmeans_clusters *c, const kvb_kmeans_job *job, const kvb_nearest *others,
                           uint32_t cluster)
{
    uint32_t d = job->channels, index[CHUNK];
    float rows[CHUNK * KVB_KMEANS_CHANNELS], distance[CHUNK];
    double cost = -c->error[cluster];
    for (size_t m = c->start[cluster]; m < c->start[cluster + 1]; m += CHUNK) {
        size_t n = c->start[cluster + 1] - m < CHUNK ? c->start[cluster + 1] - m : CHUNK;
        for (size_t i = 0; i < n; i++)
            kvb_kmeans_point_read(job->training.tiles, c->member[m + i], d, rows + i * d);
        kvb_nearest_find(others, rows, d, n, index, distance);
        for (size_t i = 0; i < n; i++)
            cost += (double)kvb_kmeans_weight(&job->training, c->member[m + i]) * distance[i];
    }
    return cost;
}

static uint32_t swap_while_it_pays(kvb_kmeans_clusters *c, kvb_kmeans_job *job, const kvb_swap_candidate *list,
                                   uint32_t count, uint64_t key, double saving)
{
    uint32_t moved = 0;
    for (; moved < count; moved++) {
        uint32_t largest = kvb_kmeans_largest(c->share, job->centroids), cluster = list[moved].cluster;
        if (list[moved].value >= saving * c->share[largest] || largest == cluster)
            break;
        if (!kvb_kmeans_clusters_split(c, job, largest, cluster, kvb_rng_unit(key, cluster)))
            break;
    }
    return moved;
}

kvb_status kvb_kmeans_swap(kvb_kmeans_job *job, uint32_t round, uint32_t rounds, uint32_t *moved, kvb_error *err)
{
    uint32_t k = job->centroids, count = k / KVB_SWAP_FRACTION + 1;
    uint64_t key = kvb_rng_key(job->problem->seed, KVB_STREAM_SWAP, round, 0, 0);
    kvb_kmeans_clusters c;
    kvb_nearest *others = NULL;
    if (k < KVB_FEWEST_TO_SWAP)
        return KVB_OK;
    kvb_status status = kvb_kmeans_clusters_open(&c, job, err);
    kvb_swap_candidate *list = kvb_alloc_array(k, sizeof *list);
    if (status != KVB_OK)
        goto out;
    if (list == NULL)
        goto no_memory;
    for (uint32_t i = 0; i < k; i++)
        list[i] = (kvb_swap_candidate){c.error[i], i};
    kvb_kmeans_swap_sort(list, k);
    others = search_without(job, list, count);
    if (others == NULL)
        goto no_memory;
    for (uint32_t i = 0; i < count; i++)
        list[i].value = removal_cost(&c, job, others, list[i].cluster);
    kvb_kmeans_swap_sort(list, count);
    *moved = swap_while_it_pays(&c, job, list, count, key, kvb_kmeans_swap_saving(job->channels, round, rounds));
    goto out;
no_memory:
    status = kvb_fail_memory(err, "the swaps of a k-means problem");
out:
    kvb_nearest_destroy(others);
    free(list);
    kvb_kmeans_clusters_close(&c);
    return status;
}
