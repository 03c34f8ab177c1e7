/* Everything wrong with an input is found before any work starts. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "format/base/fail.h"
#include "format/base/half.h"
#include "kmeans/kmeans_internal.h"

typedef struct place {
    char text[64];
} place;

static place place_of(size_t problem)
{
    place p;
    snprintf(p.text, sizeof p.text, "k-means problem %zu", problem);
    return p;
}

bool kvb_kmeans_held_out(const kvb_kmeans_options *options, size_t point)
{
    size_t every = options->holdout_every, block = options->holdout_block;
    return every != 0 && point / block % every == every - 1;
}

static size_t count_training(const kvb_kmeans_options *options, size_t count)
{
    if (options->holdout_every == 0)
        return count;
    size_t block = options->holdout_block, period = block * options->holdout_every;
    size_t rest = count % period, kept = period - block;
    return count / period * kept + (rest < kept ? rest : kept);
}

static kvb_status check_sizes(const kvb_kmeans_problem *p, const char *where, const kvb_kmeans_options *options,
                              size_t training, kvb_error *err)
{
    if (p->points == NULL || p->table == NULL)
        return kvb_fail(err, KVB_E_USAGE, where, "%s is NULL", p->points == NULL ? "points" : "table");
    if (p->type != KVB_POINTS_F32 && p->type != KVB_POINTS_F16)
        return kvb_fail(err, KVB_E_USAGE, where, "unknown type of points %d: use KVB_POINTS_F32 or KVB_POINTS_F16",
                        (int)p->type);
    if (p->channels < 1 || p->channels > KVB_KMEANS_CHANNELS)
        return kvb_fail(err, KVB_E_USAGE, where, "%u channels: 1 to %d are supported", p->channels,
                        KVB_KMEANS_CHANNELS);
    if (p->centroids < 1 || p->centroids > KVB_KMEANS_CENTROIDS)
        return kvb_fail(err, KVB_E_USAGE, where, "%u centroids: 1 to %d are supported", p->centroids,
                        KVB_KMEANS_CENTROIDS);
    if (p->stride < p->channels)
        return kvb_fail(err, KVB_E_USAGE, where, "stride %zu is smaller than the %u channels of a point", p->stride,
                        p->channels);
    if (p->count > SIZE_MAX / 1024 / p->stride)
        return kvb_fail(err, KVB_E_USAGE, where, "%zu points with stride %zu do not fit in memory", p->count,
                        p->stride);
    if (training < p->centroids && options->holdout_every != 0)
        return kvb_fail(err, KVB_E_USAGE, where,
                        "%zu of %zu points are left for training after the hold-out, fewer than the %u centroids: use "
                        "more points, fewer centroids or no hold-out", training, p->count, p->centroids);
    if (training < p->centroids)
        return kvb_fail(err, KVB_E_USAGE, where, "%zu points are fewer than the %u centroids: use more points or "
                        "fewer centroids", p->count, p->centroids);
    return KVB_OK;
}

static uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits & 0x7FFFFFFFu;
}

static float float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

enum { INFINITE_BITS = 0x7F800000 };

/* The order of |x| is the order of its bits, and infinity and NaN come last. */
static uint32_t largest_bits(const float *x, size_t n)
{
    uint32_t largest = 0;
    for (size_t i = 0; i < n; i++)
        largest = bits_of(x[i]) > largest ? bits_of(x[i]) : largest;
    return largest;
}

void kvb_kmeans_row_read(const kvb_kmeans_problem *p, size_t row, float *x)
{
    if (p->type == KVB_POINTS_F32)
        memcpy(x, (const float *)p->points + row * p->stride, p->channels * sizeof *x);
    else
        kvb_half_to_floats(x, (const uint16_t *)p->points + row * p->stride, p->channels);
}

static uint32_t row_bits(const kvb_kmeans_problem *p, size_t row)
{
    float x[KVB_KMEANS_CHANNELS];
    if (p->type == KVB_POINTS_F32)
        return largest_bits((const float *)p->points + row * p->stride, p->channels);
    kvb_kmeans_row_read(p, row, x);
    return largest_bits(x, p->channels);
}

static kvb_status check_points(const kvb_kmeans_problem *p, const char *where, kvb_kmeans_range *range,
                               kvb_error *err)
{
    uint32_t largest = 0;
    for (size_t i = 0; i < p->count; i++) {
        uint32_t bits = row_bits(p, i);
        if (bits >= INFINITE_BITS)
            return kvb_fail(err, KVB_E_CHECK, where, "point %zu holds %s: remove the point or repair its source", i,
                            bits == INFINITE_BITS ? "an infinity" : "a NaN");
        largest = bits > largest ? bits : largest;
    }
    range->largest = float_of(largest);
    return KVB_OK;
}

static kvb_status check_weights(const kvb_kmeans_problem *p, const char *where, const kvb_kmeans_options *options,
                                kvb_kmeans_range *range, kvb_error *err)
{
    float largest = 0.0f, first = p->weights[0];
    bool differ = false;
    for (size_t i = 0; i < p->count; i++) {
        float w = p->weights[i];
        if (!(w >= 0.0f) || !isfinite(w))
            return kvb_fail(err, KVB_E_CHECK, where, "weight %zu is %g: weights are finite and not negative", i,
                            (double)w);
        differ = differ || w < first || w > first;
        if (w > largest && !kvb_kmeans_held_out(options, i))
            largest = w;
    }
    if (!(largest > 0.0f))
        return kvb_fail(err, KVB_E_CHECK, where, "the weights of all %zu training points are zero: at least one must "
                        "be positive; pass NULL for equal weights", range->training);
    range->largest_weight = largest;
    range->weighted = differ;
    return KVB_OK;
}

static kvb_status check_initial(const kvb_kmeans_problem *p, const char *where, kvb_error *err)
{
    for (size_t k = 0; k < p->centroids; k++)
        if (largest_bits(p->initial + k * p->channels, p->channels) >= INFINITE_BITS)
            return kvb_fail(err, KVB_E_CHECK, where, "initial centroid %zu is not finite", k);
    return KVB_OK;
}

kvb_status kvb_kmeans_check(const kvb_kmeans_problem *problem, size_t number, const kvb_kmeans_options *options,
                            kvb_kmeans_range *range, kvb_error *err)
{
    place where = place_of(number);
    *range = (kvb_kmeans_range){.largest_weight = 1.0f, .training = count_training(options, problem->count)};
    kvb_status status = check_sizes(problem, where.text, options, range->training, err);
    if (status == KVB_OK)
        status = check_points(problem, where.text, range, err);
    if (status == KVB_OK && problem->weights != NULL)
        status = check_weights(problem, where.text, options, range, err);
    if (status == KVB_OK && problem->initial != NULL)
        status = check_initial(problem, where.text, err);
    return status;
}
