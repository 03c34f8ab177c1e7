/* The points of each cluster and their errors: what repair and swap decide by. Plain code: it runs rarely. */
#include <stdlib.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "kmeans/kmeans_clusters.h"

void kvb_kmeans_clusters_close(kvb_kmeans_clusters *c)
{
    free(c->error);
    free(c->share);
    free(c->start);
    free(c->member);
    free(c->loss);
}

static kvb_status clusters_alloc(kvb_kmeans_clusters *c, size_t k, size_t n, kvb_error *err)
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

static void clusters_fill(kvb_kmeans_clusters *c, const kvb_kmeans_job *job)
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

static size_t draw_member(const kvb_kmeans_clusters *c, uint32_t cluster, double unit)
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

kvb_status kvb_kmeans_clusters_open(kvb_kmeans_clusters *c, const kvb_kmeans_job *job, kvb_error *err)
{
    *c = (kvb_kmeans_clusters){0};
    kvb_status status = clusters_alloc(c, job->centroids, job->training.count, err);
    if (status == KVB_OK)
        clusters_fill(c, job);
    return status;
}

uint32_t kvb_kmeans_largest(const double *share, uint32_t centroids)
{
    uint32_t largest = 0;
    for (uint32_t k = 1; k < centroids; k++)
        if (share[k] > share[largest])
            largest = k;
    return largest;
}

bool kvb_kmeans_clusters_split(kvb_kmeans_clusters *c, kvb_kmeans_job *job, uint32_t from, uint32_t to, double unit)
{
    size_t point = c->share[from] > 0.0 ? draw_member(c, from, unit) : SIZE_MAX;
    if (point == SIZE_MAX)
        return false;
    kvb_kmeans_point_read(job->training.tiles, point, job->channels, job->table + (size_t)to * job->channels);
    c->error[from] -= c->loss[point];
    c->loss[point] = 0.0f;
    c->share[from] *= 0.5;
    return true;
}
