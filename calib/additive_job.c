#include "calib/additive_job.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/half.h"
#include "format/base/rng.h"

/* Points searched before their moments are added up, a whole number of tiles of 16; and the share of the mean weight of a
 * code by which rows are held to where they are. */
enum { CHUNK = 768 };
static const double ridge_share = 1e-3;

static kvb_status fail_job(const kvb_additive_job *job, kvb_status status, kvb_error *err, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

static kvb_status fail_job(const kvb_additive_job *job, kvb_status status, kvb_error *err, const char *format, ...)
{
    char where[64], message[300];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    snprintf(where, sizeof where, "additive problem %zu", job->number);
    return kvb_fail(err, status, where, "%s", message);
}

/* --- points --- */

/* The rule of kvb_kmeans_train(): of every holdout_every runs of holdout_block points the last is held out. */
static bool is_held_out(const kvb_additive_job *job, size_t point)
{
    const kvb_kmeans_options *o = &job->options->kmeans;
    return o->holdout_every != 0 && point / o->holdout_block % o->holdout_every == o->holdout_every - 1;
}

static void read_row(const kvb_kmeans_problem *p, size_t row, float *x)
{
    if (p->type == KVB_POINTS_F32)
        memcpy(x, (const float *)p->points + row * p->stride, p->channels * sizeof *x);
    else
        kvb_half_to_floats(x, (const uint16_t *)p->points + row * p->stride, p->channels);
}

static kvb_status check_sizes(kvb_additive_job *job, uint32_t stages, kvb_error *err)
{
    const kvb_kmeans_problem *p = job->problem;
    if (p->points == NULL || p->table == NULL || p->initial != NULL || p->stride < p->channels)
        return fail_job(job, KVB_E_USAGE, err, "expected points, a table, no initial centroids and a stride of at least "
                        "the %u channels", p->channels);
    if (!kvb_additive_shape_of(stages, p->centroids, p->channels, &job->shape))
        return fail_job(job, KVB_E_USAGE, err, "%u stages of %u rows of %u channels: expected 2 to %d stages of a power "
                        "of two rows, at most %d sums, and 1 to %d channels", stages, p->centroids, p->channels,
                        KVB_ADDITIVE_STAGES, KVB_ADDITIVE_CODES, KVB_ADDITIVE_CHANNELS);
    return KVB_OK;
}

/* The power of two that brings a positive value into [0.5, 1). */
static double power_to_one(float value)
{
    int exponent = 0;
    if (value > 0.0f)
        frexp((double)value, &exponent);
    return ldexp(1.0, -exponent);
}

/* Looks at every value once: refuses what is not finite, counts the sides of the hold-out, finds the scales. */
static kvb_status survey(kvb_additive_job *job, kvb_error *err)
{
    const kvb_kmeans_problem *p = job->problem;
    float x[KVB_ADDITIVE_CHANNELS], largest = 0.0f, heaviest = 0.0f;
    for (size_t i = 0; i < p->count; i++) {
        float w = p->weights != NULL ? p->weights[i] : 1.0f;
        bool held = is_held_out(job, i);
        if (!(w >= 0.0f) || !isfinite(w))
            return fail_job(job, KVB_E_CHECK, err, "weight %zu is %g: weights are finite and not negative", i, (double)w);
        read_row(p, i, x);
        for (uint32_t c = 0; c < p->channels; c++) {
            if (!isfinite(x[c]))
                return fail_job(job, KVB_E_CHECK, err, "point %zu holds a NaN or an infinity: remove the point or repair "
                                "its source", i);
            largest = fmaxf(largest, fabsf(x[c]));
        }
        heaviest = held ? heaviest : fmaxf(heaviest, w);
        (held ? &job->heldout : &job->training)->room++;
    }
    if (job->training.room < p->centroids)
        return fail_job(job, KVB_E_USAGE, err, "%zu of %zu points are for training, fewer than the %u rows of a stage: use "
                        "more points or smaller stages", job->training.room, p->count, p->centroids);
    if (!(heaviest > 0.0f))
        return fail_job(job, KVB_E_CHECK, err, "the weights of all %zu training points are zero: at least one must be "
                        "positive; pass NULL for equal weights", job->training.room);
    job->scale = power_to_one(largest);
    job->weight_scale = power_to_one(heaviest);
    return KVB_OK;
}

/* The training points' mean, unweighted: any place near them will do. */
static void choose_origin(kvb_additive_job *job)
{
    double sum[KVB_ADDITIVE_CHANNELS] = {0};
    float x[KVB_ADDITIVE_CHANNELS];
    const uint32_t d = job->shape.channels;
    for (size_t i = 0; i < job->problem->count; i++) {
        if (is_held_out(job, i))
            continue;
        read_row(job->problem, i, x);
        for (uint32_t c = 0; c < d; c++)
            sum[c] += (double)x[c] * job->scale;
    }
    for (uint32_t c = 0; c < d; c++)
        job->origin[c] = (float)(sum[c] / (double)job->training.room);
}

static bool reserve_points(kvb_additive_points *points, uint32_t d)
{
    points->rows = kvb_alloc_array(points->room, d * sizeof(float));
    points->weights = kvb_alloc_array(points->room, sizeof(float));
    return points->rows != NULL && points->weights != NULL;
}

static void load_points(kvb_additive_job *job)
{
    const kvb_kmeans_problem *p = job->problem;
    const uint32_t d = job->shape.channels;
    for (size_t i = 0; i < p->count; i++) {
        kvb_additive_points *to = is_held_out(job, i) ? &job->heldout : &job->training;
        float *y = to->rows + to->count * d;
        double w = (p->weights != NULL ? (double)p->weights[i] : 1.0) * job->weight_scale;
        read_row(p, i, y);
        for (uint32_t c = 0; c < d; c++)
            y[c] = (float)((double)y[c] * job->scale - (double)job->origin[c]);
        to->weights[to->count++] = (float)w;
        to->weight += w;
    }
}

static kvb_status take_points(kvb_additive_job *job, uint32_t stages, kvb_error *err)
{
    kvb_status status = check_sizes(job, stages, err);
    if (status == KVB_OK)
        status = survey(job, err);
    if (status != KVB_OK)
        return status;
    const uint32_t d = job->shape.channels;
    choose_origin(job);
    if (!reserve_points(&job->training, d) || (job->heldout.room > 0 && !reserve_points(&job->heldout, d)))
        return kvb_fail_memory(err, "the points of an additive problem");
    load_points(job);
    return KVB_OK;
}

static kvb_status reserve_tables(kvb_additive_job *job, kvb_error *err)
{
    const kvb_additive_shape *s = &job->shape;
    const size_t n = job->training.count;
    job->search = kvb_nearest_create(s->channels, s->codes);
    job->table = kvb_alloc_array((size_t)s->stages * s->rows, s->channels * sizeof(float));
    job->sums = kvb_alloc_array(s->codes, s->channels * sizeof(float));
    job->tiles = kvb_alloc_array(kvb_nearest_packed_floats(s->channels, n), sizeof(float));
    job->codes = kvb_alloc_array(n, sizeof(uint32_t));
    job->moments = kvb_alloc_array(s->codes, (s->channels + 1) * sizeof(double));
    job->scratch = kvb_alloc_array(kvb_additive_scratch(s), sizeof(double));
    if (job->search == NULL || job->table == NULL || job->sums == NULL || job->tiles == NULL || job->codes == NULL ||
        job->moments == NULL || job->scratch == NULL)
        return kvb_fail_memory(err, "an additive problem");
    kvb_nearest_pack(job->tiles, s->channels, job->training.rows, s->channels, n, NULL);
    return KVB_OK;
}

static void free_job(kvb_additive_job *job)
{
    free(job->training.rows);
    free(job->training.weights);
    free(job->heldout.rows);
    free(job->heldout.weights);
    kvb_nearest_destroy(job->search);
    free(job->table);
    free(job->sums);
    free(job->tiles);
    free(job->codes);
    free(job->moments);
    free(job->scratch);
}

/* --- the greedy start --- */

static int forward_stop(void *user, const char *step, uint64_t done, uint64_t total)
{
    const kvb_additive_job *job = user;
    (void)step;
    (void)done;
    (void)total;
    return job->stopped(job->stopped_user);
}

static kvb_status start_stage(kvb_additive_job *job, uint32_t stage, float *rest, kvb_kmeans_result *result,
                              kvb_error *err)
{
    const kvb_additive_shape *s = &job->shape;
    kvb_kmeans_options options = job->options->kmeans;
    kvb_kmeans_result own = {0};
    options.threads = 1;
    options.backend = KVB_KMEANS_OWN; /* one small problem at a time is no work for a GPU */
    options.curve = NULL;
    options.holdout_every = 0; /* held-out points are not among these */
    options.progress = forward_stop;
    options.progress_user = job;
    const kvb_kmeans_problem problem = {
        .points = rest, .type = KVB_POINTS_F32, .count = job->training.count, .stride = s->channels,
        .channels = s->channels, .centroids = s->rows, .weights = job->training.weights,
        .seed = kvb_rng_key(job->problem->seed, stage, 0, 0, 0),
        .table = job->table + (size_t)stage * s->rows * s->channels,
    };
    kvb_error inner = {0};
    kvb_status status = kvb_kmeans_train(&problem, 1, &options, &own, &inner);
    if (status != KVB_OK)
        return fail_job(job, status, err, "stage %u: %s", stage, inner.message);
    if (stage == 0)
        result->variance = own.variance;
    result->repairs += own.repairs;
    result->swaps += own.swaps;
    return KVB_OK;
}

/* Takes the nearest row of a stage off each point. */
static kvb_status subtract_stage(kvb_additive_job *job, uint32_t stage, float *rest, kvb_error *err)
{
    const uint32_t d = job->shape.channels;
    const float *rows = job->table + (size_t)stage * job->shape.rows * d;
    kvb_nearest *search = kvb_nearest_create(d, job->shape.rows);
    if (search == NULL)
        return kvb_fail_memory(err, "an additive problem");
    kvb_nearest_set(search, rows);
    kvb_nearest_find(search, rest, d, job->training.count, job->codes, NULL);
    kvb_nearest_destroy(search);
    for (size_t i = 0; i < job->training.count; i++)
        for (uint32_t c = 0; c < d; c++)
            rest[i * d + c] -= rows[(size_t)job->codes[i] * d + c];
    return KVB_OK;
}

static kvb_status start(kvb_additive_job *job, kvb_kmeans_result *result, kvb_error *err)
{
    const size_t values = job->training.count * job->shape.channels;
    float *rest = kvb_alloc_array(values, sizeof *rest);
    if (rest == NULL)
        return kvb_fail_memory(err, "an additive problem");
    memcpy(rest, job->training.rows, values * sizeof *rest);
    kvb_status status = KVB_OK;
    for (uint32_t m = 0; status == KVB_OK && m < job->shape.stages; m++) {
        status = start_stage(job, m, rest, result, err);
        if (status == KVB_OK && m + 1 < job->shape.stages)
            status = subtract_stage(job, m, rest, err);
    }
    free(rest);
    return status;
}

/* --- rounds --- */

static void add_moments(kvb_additive_job *job, size_t first, size_t n)
{
    const uint32_t d = job->shape.channels;
    for (size_t i = first; i < first + n; i++) {
        const float *x = job->training.rows + i * d;
        double *to = job->moments + (size_t)job->codes[i] * (d + 1), w = (double)job->training.weights[i];
        for (uint32_t c = 0; c < d; c++)
            to[c] += w * (double)x[c];
        to[d] += w;
    }
}

/* Codes of all training points for the rows as they are, and their moments; the weighted error. */
static double assign(kvb_additive_job *job)
{
    const kvb_additive_shape *s = &job->shape;
    float distance[CHUNK];
    double error = 0.0;
    kvb_additive_expand(s, job->table, job->sums);
    kvb_nearest_set_around(job->search, job->sums, NULL);
    memset(job->moments, 0, (size_t)s->codes * (s->channels + 1) * sizeof *job->moments);
    for (size_t first = 0, n; first < job->training.count; first += n) {
        n = job->training.count - first < CHUNK ? job->training.count - first : CHUNK;
        kvb_nearest_find_packed(job->search, job->tiles + first * s->channels, n, job->codes + first, distance);
        add_moments(job, first, n);
        for (size_t i = 0; i < n; i++)
            error += (double)job->training.weights[first + i] * (double)distance[i];
    }
    return error;
}

static kvb_status run_rounds(kvb_additive_job *job, kvb_kmeans_result *result, kvb_error *err)
{
    const double ridge = ridge_share * job->training.weight / job->shape.codes;
    double before = INFINITY;
    for (uint32_t round = 0; round < job->options->rounds; round++) {
        if (job->stopped(job->stopped_user) != 0)
            return fail_job(job, KVB_E_CANCELLED, err, "cancelled by the progress callback");
        double error = assign(job);
        if (isfinite(before) && before - error <= job->options->tolerance * before)
            break;
        if (!kvb_additive_update(&job->shape, job->moments, ridge, job->table, job->scratch))
            break; /* rows are as good as double can make them */
        before = error;
        if (job->curve != NULL && result->iterations < job->options->kmeans.curve_length)
            job->curve[result->iterations] = error / job->training.weight / job->shape.channels / job->scale / job->scale;
        result->iterations++;
    }
    return KVB_OK;
}

/* --- what it is worth --- */

static double error_of(const kvb_additive_job *job, const kvb_additive_points *points, const uint32_t *codes)
{
    const uint32_t d = job->shape.channels;
    double error = 0.0;
    for (size_t i = 0; i < points->count; i++) {
        const float *x = points->rows + i * d, *y = job->sums + (size_t)codes[i] * d;
        double square = 0.0;
        for (uint32_t c = 0; c < d; c++)
            square += ((double)x[c] - (double)y[c]) * ((double)x[c] - (double)y[c]);
        error += (double)points->weights[i] * square;
    }
    return error / points->weight / d;
}

/* Share of each code and each row among the training points, unweighted. */
static kvb_status count_codes(const kvb_additive_job *job, kvb_kmeans_result *result, kvb_error *err)
{
    const kvb_additive_shape *s = &job->shape;
    const size_t n = job->training.count;
    size_t *codes = kvb_alloc_zeroed(s->codes, sizeof *codes);
    bool *rows = kvb_alloc_zeroed((size_t)s->stages * s->rows, sizeof *rows);
    bool good = codes != NULL && rows != NULL;
    for (size_t i = 0; good && i < n; i++)
        codes[job->codes[i]]++;
    for (uint32_t k = 0; good && k < s->codes; k++) {
        double share = (double)codes[k] / (double)n;
        if (codes[k] == 0)
            continue;
        result->entropy -= share * log2(share);
        for (uint32_t m = 0, left = k; m < s->stages; m++, left /= s->rows)
            rows[m * s->rows + left % s->rows] = true;
    }
    for (uint32_t i = 0; good && i < s->stages * s->rows; i++)
        result->used += rows[i];
    free(codes);
    free(rows);
    return good ? KVB_OK : kvb_fail_memory(err, "the statistics of an additive problem");
}

/* Mean squared distance per channel of the held-out points to the training points' weighted mean. */
static double spread_of_heldout(const kvb_additive_job *job)
{
    const uint32_t d = job->shape.channels;
    double mean[KVB_ADDITIVE_CHANNELS] = {0}, spread = 0.0;
    for (size_t i = 0; i < job->training.count; i++)
        for (uint32_t c = 0; c < d; c++)
            mean[c] += (double)job->training.weights[i] * (double)job->training.rows[i * d + c] / job->training.weight;
    for (size_t i = 0; i < job->heldout.count; i++)
        for (uint32_t c = 0; c < d; c++) {
            double off = (double)job->heldout.rows[i * d + c] - mean[c];
            spread += (double)job->heldout.weights[i] * off * off;
        }
    return spread / job->heldout.weight / d;
}

static kvb_status measure(kvb_additive_job *job, kvb_kmeans_result *result, kvb_error *err)
{
    const double unscale = 1.0 / job->scale / job->scale;
    assign(job);
    result->train_error = error_of(job, &job->training, job->codes) * unscale;
    result->variance *= unscale;
    result->heldout_error = result->heldout_variance = NAN;
    kvb_status status = count_codes(job, result, err);
    if (status != KVB_OK || !(job->heldout.weight > 0.0))
        return status;
    uint32_t *codes = kvb_alloc_array(job->heldout.count, sizeof *codes);
    if (codes == NULL)
        return kvb_fail_memory(err, "the statistics of an additive problem");
    kvb_nearest_find(job->search, job->heldout.rows, job->shape.channels, job->heldout.count, codes, NULL);
    result->heldout_error = error_of(job, &job->heldout, codes) * unscale;
    result->heldout_variance = spread_of_heldout(job) * unscale;
    free(codes);
    return KVB_OK;
}

/* Out of the frame: the origin belongs to stage 0. */
static void write_table(const kvb_additive_job *job)
{
    const kvb_additive_shape *s = &job->shape;
    const size_t stage = (size_t)s->rows * s->channels;
    for (size_t i = 0; i < s->stages * stage; i++) {
        double origin = i < stage ? (double)job->origin[i % s->channels] : 0.0;
        job->problem->table[i] = (float)(((double)job->table[i] + origin) / job->scale);
    }
}

kvb_status kvb_additive_job_run(kvb_additive_job *job, uint32_t stages, kvb_kmeans_result *result, kvb_error *err)
{
    kvb_kmeans_result own = {0};
    kvb_status status = take_points(job, stages, err);
    if (status == KVB_OK)
        status = reserve_tables(job, err);
    if (status == KVB_OK)
        status = start(job, &own, err);
    if (status == KVB_OK)
        status = run_rounds(job, &own, err);
    if (status == KVB_OK && result != NULL)
        status = measure(job, &own, err);
    if (status == KVB_OK)
        write_table(job);
    if (status == KVB_OK && result != NULL)
        *result = own;
    free_job(job);
    return status;
}
