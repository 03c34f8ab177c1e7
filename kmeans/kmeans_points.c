/* From the caller's rows to the working frame. */
#include <math.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "kmeans/kmeans_internal.h"

/* Enough for an origin near the mean; it need not be the mean. */
enum { ORIGIN_SAMPLE = 1024 };

/* The power of two that brings a positive value into [0.5, 1), as far as a float's exponent goes. */
static float power_to_one(float value)
{
    int exponent = 0;
    if (!(value > 0.0f))
        return 1.0f;
    frexpf(value, &exponent);
    if (exponent > 126)
        exponent = 126;
    if (exponent < -126)
        exponent = -126;
    return ldexpf(1.0f, -exponent);
}

void kvb_kmeans_frame_choose(kvb_kmeans_frame *frame, const kvb_kmeans_problem *problem,
                             const kvb_kmeans_range *range)
{
    double sum[KVB_KMEANS_CHANNELS] = {0};
    float x[KVB_KMEANS_CHANNELS];
    size_t n = problem->count, taken = n < ORIGIN_SAMPLE ? n : ORIGIN_SAMPLE;
    frame->channels = problem->channels;
    frame->scale = power_to_one(range->largest);
    frame->weight_scale = power_to_one(range->largest_weight);
    for (size_t i = 0; i < taken; i++) {
        kvb_kmeans_row_read(problem, i * (n / taken), x);
        for (uint32_t c = 0; c < frame->channels; c++)
            sum[c] += (double)x[c] * frame->scale;
    }
    for (uint32_t c = 0; c < frame->channels; c++)
        frame->origin[c] = (float)(sum[c] / (double)taken);
}

static float weight_at(const kvb_kmeans_problem *problem, const kvb_kmeans_range *range,
                       const kvb_kmeans_frame *frame, size_t i)
{
    return range->weighted ? problem->weights[i] * frame->weight_scale : 1.0f;
}

/* The row of training point i: the last block of each period is held out. */
static size_t training_row(const kvb_kmeans_options *options, size_t i)
{
    const size_t block = options->holdout_block, period = block * options->holdout_every;
    return options->holdout_every == 0 ? i : i / (period - block) * period + i % (period - block);
}

float kvb_kmeans_training_point(const kvb_kmeans_job *job, size_t i, float *y)
{
    const size_t row = training_row(job->run->options, i);
    float half[KVB_KMEANS_CHANNELS];
    const float *x = half;
    if (job->problem->type == KVB_POINTS_F32)
        x = (const float *)job->problem->points + row * job->problem->stride;
    else
        kvb_kmeans_row_read(job->problem, row, half);
    for (uint32_t c = 0; c < job->channels; c++)
        y[(size_t)c * 16] = x[c] * job->frame.scale - job->frame.origin[c];
    return weight_at(job->problem, job->range, &job->frame, row);
}

static void put_point(kvb_kmeans_points *points, const kvb_kmeans_frame *frame, size_t at, const float *x, float w)
{
    uint32_t d = points->channels;
    float *tile = points->tiles + at / 16 * 16 * d + at % 16;
    float *row = points->rows + at * points->row_floats;
    for (uint32_t c = 0; c < d; c++) {
        float y = x[c] * frame->scale - frame->origin[c];
        tile[(size_t)c * 16] = y;
        row[c] = w * y;
    }
    row[d] = w;
    for (uint32_t c = d + 1; c < points->row_floats; c++)
        row[c] = 0.0f;
}

static kvb_status points_alloc(kvb_kmeans_points *points, uint32_t d, size_t count, kvb_error *err)
{
    points->channels = d;
    points->row_floats = (d + 4) / 4 * 4;
    points->count = count;
    points->tiles = kvb_alloc_array(kvb_nearest_packed_floats(d, count), sizeof(float));
    points->rows = kvb_alloc_array(count, points->row_floats * sizeof(float));
    if (points->tiles == NULL || points->rows == NULL)
        return kvb_fail_memory(err, "the points of a k-means problem");
    if (count % 16 != 0)
        memset(points->tiles + count / 16 * 16 * d, 0, 16 * d * sizeof(float));
    return KVB_OK;
}

kvb_status kvb_kmeans_points_load(kvb_kmeans_points *points, const kvb_kmeans_frame *frame,
                                  const kvb_kmeans_problem *problem, const kvb_kmeans_range *range,
                                  const kvb_kmeans_options *options, bool heldout, kvb_error *err)
{
    size_t count = heldout ? problem->count - range->training : range->training, at = 0;
    float half[KVB_KMEANS_CHANNELS];
    kvb_status status = points_alloc(points, problem->channels, count, err);
    for (size_t i = 0; i < problem->count && status == KVB_OK; i++) {
        if (kvb_kmeans_held_out(options, i) != heldout)
            continue;
        const float *x = half;
        if (problem->type == KVB_POINTS_F32)
            x = (const float *)problem->points + i * problem->stride;
        else
            kvb_kmeans_row_read(problem, i, half);
        put_point(points, frame, at++, x, weight_at(problem, range, frame, i));
    }
    return status;
}

void kvb_kmeans_points_free(kvb_kmeans_points *points)
{
    free(points->tiles);
    free(points->rows);
    *points = (kvb_kmeans_points){0};
}
