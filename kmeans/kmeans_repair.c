/* Empty clusters. Each in turn splits the cluster with the largest error: the empty centroid moves to a point of it,
 * drawn with a probability proportional to weight times squared distance. The objective can only fall by that, because
 * no other centroid moves. Rare, so plain code. */
#include <stdlib.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/rng.h"
#include "kmeans/kmeans_internal.h"

enum { STREAM_REPAIR = 3 };

typedef struct clusters {
    double *error;  /* [K] sum of the errors of the points not yet taken */
    double *share;  /* [K] the same over the number of times the cluster was split, plus one */
    size_t *start;  /* [K + 1] where the points of a cluster begin in `member` */
    size_t *member; /* [n] */
    float *loss;    /* [n] weight times squared distance to the cluster's mean */
} clusters;

static void clusters_free(clusters *c)
{
    free(c->error);
    free(c->share);
    free(c->start);
    free(c->member);
    free(c->loss);
}

static kvb_status clusters_alloc(clusters *c, size_t k, size_t n, kvb_error *err)
{
    c->error = kvb_alloc_zeroed(k, sizeof *c->error);
    c->share = kvb_alloc_zeroed(k, sizeof *c->share);
    c->start = kvb_alloc_zeroed(k + 1, sizeof *c->start);
    c->member = kvb_alloc_array(n, sizeof *c->member);
    c->loss = kvb_alloc_array(n, sizeof *c->loss);
    if (c->error == NULL || c->share == NULL || c->start == NULL || c->member == NULL || c->loss == NULL)
        return kvb_fail_memory(err, "the repair of empty k-means clusters");
    return KVB_OK;
}

/* w * |y - c|^2 out of the row (w*y, w) */
double kvb_kmeans_loss(const kvb_kmeans_points *points, size_t i, const float *centroid)
{
    const float *row = points->rows + i * points->row_floats;
    double w = row[points->channels], sum = 0.0;
    if (!(w > 0.0))
        return 0.0;
    for (uint32_t c = 0; c < points->channels; c++) {
        double difference = row[c] - w * centroid[c];
        sum += difference * difference;
    }
    return sum / w;
}

static void clusters_fill(clusters *c, const kvb_kmeans_job *job)
{
    size_t n = job->training.count, k = job->centroids;
    for (size_t i = 0; i < n; i++) {
        uint32_t code = job->codes[i];
        c->loss[i] = (float)kvb_kmeans_loss(&job->training, i, job->table + (size_t)code * job->channels);
        c->error[code] += c->loss[i];
        c->start[code]++;
    }
    size_t total = 0;
    for (size_t j = 0; j <= k; j++) {
        size_t here = j < k ? c->start[j] : 0;
        c->start[j] = total;
        total += here;
    }
    for (size_t i = 0; i < n; i++)
        c->member[c->start[job->codes[i]]++] = i;
    for (size_t j = k; j > 0; j--)
        c->start[j] = c->start[j - 1];
    c->start[0] = 0;
    for (size_t j = 0; j < k; j++)
        c->share[j] = c->error[j];
}

static size_t draw_member(const clusters *c, uint32_t cluster, double unit)
{
    double target = unit * c->error[cluster];
    size_t found = SIZE_MAX;
    for (size_t m = c->start[cluster]; m < c->start[cluster + 1]; m++) {
        size_t i = c->member[m];
        if (!(c->loss[i] > 0.0f))
            continue;
        found = i;
        target -= c->loss[i];
        if (target < 0.0)
            break;
    }
    return found;
}

static void place_at(kvb_kmeans_job *job, uint32_t k, size_t point)
{
    uint32_t d = job->channels;
    const float *from = job->training.tiles + point / 16 * 16 * d + point % 16;
    for (uint32_t c = 0; c < d; c++)
        job->table[(size_t)k * d + c] = from[(size_t)c * 16];
}

/* False where no cluster has an error left to split. */
static bool split_largest(clusters *c, kvb_kmeans_job *job, uint32_t empty, uint64_t key)
{
    uint32_t largest = 0;
    for (uint32_t k = 1; k < job->centroids; k++)
        if (c->share[k] > c->share[largest])
            largest = k;
    size_t point = c->share[largest] > 0.0 ? draw_member(c, largest, kvb_rng_unit(key, empty)) : SIZE_MAX;
    if (point == SIZE_MAX)
        return false;
    place_at(job, empty, point);
    c->error[largest] -= c->loss[point];
    c->loss[point] = 0.0f;
    c->share[largest] *= 0.5;
    return true;
}

kvb_status kvb_kmeans_repair(kvb_kmeans_job *job, uint32_t round, uint32_t *moved, kvb_error *err)
{
    clusters c = {0};
    uint64_t key = kvb_rng_key(job->problem->seed, STREAM_REPAIR, round, 0, 0);
    kvb_status status = clusters_alloc(&c, job->centroids, job->training.count, err);
    if (status != KVB_OK)
        goto out;
    clusters_fill(&c, job);
    for (uint32_t k = 0; k < job->centroids; k++) {
        if (job->sums[(size_t)k * job->training.row_floats + job->channels] > 0.0)
            continue;
        if (!split_largest(&c, job, k, key))
            break;
        ++*moved;
    }
out:
    clusters_free(&c);
    return status;
}
