/* What a finished table is worth. */
#include <math.h>
#include <stdlib.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "kmeans/kmeans_internal.h"

/* Sums over points in their order. */
typedef struct moments {
    double weight, squares, sum[KVB_KMEANS_CHANNELS];
} moments;

static moments moments_of(const kvb_kmeans_points *points)
{
    moments m = {0};
    uint32_t d = points->channels;
    for (size_t i = 0; i < points->count; i++) {
        const float *row = points->rows + i * points->row_floats;
        double w = row[d], squares = 0.0;
        if (!(w > 0.0))
            continue;
        for (uint32_t c = 0; c < d; c++) {
            m.sum[c] += row[c];
            squares += (double)row[c] * row[c];
        }
        m.squares += squares / w;
        m.weight += w;
    }
    return m;
}

/* Mean squared distance per channel to `mean`: sum w |y - mean|^2 = squares - 2 mean.sum + weight |mean|^2. No digits are
 * lost because the frame's origin is near the mean. */
static double spread(const moments *m, const double *mean, uint32_t d)
{
    double total = m->squares;
    for (uint32_t c = 0; c < d; c++)
        total += mean[c] * (m->weight * mean[c] - 2.0 * m->sum[c]);
    return fmax(total, 0.0) / m->weight / d;
}

static double error_of(const kvb_kmeans_job *job, const kvb_kmeans_points *points, const uint32_t *codes)
{
    double error = 0.0;
    for (size_t i = 0; i < points->count; i++)
        error += kvb_kmeans_loss(points, i, job->table + (size_t)codes[i] * job->channels);
    return error;
}

static kvb_status count_codes(const kvb_kmeans_job *job, kvb_kmeans_result *result, kvb_error *err)
{
    size_t n = job->training.count;
    size_t *counts = kvb_alloc_zeroed(job->centroids, sizeof *counts);
    if (counts == NULL)
        return kvb_fail_memory(err, "the statistics of a k-means problem");
    for (size_t i = 0; i < n; i++)
        counts[job->codes[i]]++;
    for (uint32_t k = 0; k < job->centroids; k++) {
        if (counts[k] == 0)
            continue;
        double p = (double)counts[k] / (double)n;
        result->used++;
        result->entropy -= p * log2(p);
    }
    free(counts);
    return KVB_OK;
}

static kvb_status measure_heldout(kvb_kmeans_job *job, const moments *training, double unscale,
                                  kvb_kmeans_result *result, kvb_error *err)
{
    const kvb_kmeans_points *points = &job->heldout;
    double mean[KVB_KMEANS_CHANNELS];
    moments m = moments_of(points);
    if (!(m.weight > 0.0))
        return KVB_OK;
    uint32_t *codes = kvb_alloc_array(points->count, sizeof *codes);
    if (codes == NULL)
        return kvb_fail_memory(err, "the statistics of a k-means problem");
    kvb_nearest_find_packed(job->search, points->tiles, points->count, codes, NULL);
    for (uint32_t c = 0; c < job->channels; c++)
        mean[c] = training->sum[c] / training->weight;
    result->heldout_error = error_of(job, points, codes) / m.weight / job->channels * unscale;
    result->heldout_variance = spread(&m, mean, job->channels) * unscale;
    free(codes);
    return KVB_OK;
}

kvb_status kvb_kmeans_measure(kvb_kmeans_job *job, kvb_kmeans_result *result, kvb_error *err)
{
    double mean[KVB_KMEANS_CHANNELS], scale = job->frame.scale, unscale = 1.0 / scale / scale;
    kvb_kmeans_assign(job, false);
    if (atomic_load(&job->run->cancelled)) /* some codes may be those of older centroids */
        return kvb_fail(err, KVB_E_CANCELLED, "k-means", "cancelled by the progress callback");
    moments m = moments_of(&job->training);
    for (uint32_t c = 0; c < job->channels; c++)
        mean[c] = m.sum[c] / m.weight;
    result->train_error = error_of(job, &job->training, job->codes) / m.weight / job->channels * unscale;
    result->variance = spread(&m, mean, job->channels) * unscale;
    kvb_kmeans_curve_finish(job->curve, job->run->options->curve_length, m.squares, m.weight, job->channels, unscale);
    result->points_per_centroid = (double)job->training.count / job->centroids;
    result->heldout_error = NAN;
    result->heldout_variance = NAN;
    kvb_status status = count_codes(job, result, err);
    if (status == KVB_OK && job->heldout.count > 0)
        status = measure_heldout(job, &m, unscale, result, err);
    return status;
}
