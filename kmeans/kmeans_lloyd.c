/* Lloyd's iterations over one problem. Points are cut into segments whose number depends on the problem alone; each has
 * its own sums in double, which are added in the order of the segments. */
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "kmeans/kmeans_internal.h"

/* Points searched before they are added up: their codes stay in the nearest cache, and it is a whole number of tiles. */
enum { CHUNK = 768, MOST_SEGMENTS = 64, SEGMENT_POINTS = 8192 };

void kvb_kmeans_report(kvb_kmeans_run *run)
{
    const kvb_kmeans_options *options = run->options;
    if (options->progress != NULL &&
        options->progress(options->progress_user, "k-means", atomic_load(&run->done), run->total) != 0)
        atomic_store(&run->cancelled, true);
}

bool kvb_kmeans_cancelled(kvb_kmeans_job *job)
{
    if (job->caller && !atomic_load(&job->run->cancelled))
        kvb_kmeans_report(job->run);
    return atomic_load(&job->run->cancelled);
}

static size_t segments_of(size_t points, uint32_t centroids)
{
    size_t segments = points / SEGMENT_POINTS;
    if (segments > 2 * points / centroids) /* the sums must not outgrow the points */
        segments = 2 * points / centroids;
    return segments < 1 ? 1 : segments > MOST_SEGMENTS ? MOST_SEGMENTS : segments;
}

/* The first point of segment s; segments begin at a tile. */
static size_t segment_start(const kvb_kmeans_job *job, size_t s)
{
    size_t tiles = (job->training.count + 15) / 16, start = tiles * s / job->segments * 16;
    return start < job->training.count ? start : job->training.count;
}

const kvb_kmeans_kernels *kvb_kmeans_kernels_for(const kvb_nearest *search)
{
    const kvb_kmeans_kernels *kernels = NULL;
    if (strcmp(kvb_nearest_build_name(search), "avx512") == 0)
        kernels = kvb_kmeans_kernels_avx512();
    else if (strcmp(kvb_nearest_build_name(search), "avx2") == 0)
        kernels = kvb_kmeans_kernels_avx2();
    return kernels != NULL ? kernels : kvb_kmeans_kernels_plain();
}

kvb_status kvb_kmeans_job_open(kvb_kmeans_job *job, kvb_error *err)
{
    size_t n = job->training.count, row_floats = job->training.row_floats, k = job->centroids;
    job->segments = segments_of(n, job->centroids);
    job->search = kvb_nearest_create(job->channels, job->centroids);
    job->table = kvb_alloc_array(k, job->channels * sizeof(float));
    job->codes = kvb_alloc_array(n, sizeof(uint32_t));
    job->sums = kvb_alloc_array(job->segments * k, row_floats * sizeof(double));
    job->errors = kvb_alloc_array(job->segments, sizeof(double));
    if (job->run->options->tolerance > 0.0)
        job->distances = kvb_alloc_array(n, sizeof(float));
    if (job->search == NULL || job->table == NULL || job->codes == NULL || job->sums == NULL ||
        job->errors == NULL || (job->run->options->tolerance > 0.0 && job->distances == NULL))
        return kvb_fail_memory(err, "a k-means problem");
    job->kernels = kvb_kmeans_kernels_for(job->search);
    return KVB_OK;
}

void kvb_kmeans_job_close(kvb_kmeans_job *job)
{
    kvb_kmeans_points_free(&job->training);
    kvb_kmeans_points_free(&job->heldout);
    kvb_nearest_destroy(job->search);
    free(job->table);
    free(job->codes);
    free(job->distances);
    free(job->sums);
    free(job->errors);
}

static void assign_chunk(kvb_kmeans_job *job, size_t first, size_t n, double *sums, double *error)
{
    const kvb_kmeans_points *points = &job->training;
    float *distances = job->distances != NULL ? job->distances + first : NULL;
    kvb_nearest_find_packed(job->search, points->tiles + first * points->channels, n, job->codes + first, distances);
    if (sums != NULL)
        job->kernels->accumulate(points->rows + first * points->row_floats, n, points->row_floats,
                                 job->codes + first, sums);
    for (size_t i = 0; i < n && distances != NULL; i++)
        *error += (double)kvb_kmeans_weight(points, first + i) * distances[i];
}

static void assign_segment(kvb_kmeans_job *job, size_t s, bool with_sums)
{
    size_t size = (size_t)job->centroids * job->training.row_floats, end = segment_start(job, s + 1);
    double *sums = with_sums ? job->sums + s * size : NULL;
    if (with_sums)
        memset(sums, 0, size * sizeof *sums);
    job->errors[s] = 0.0;
    for (size_t first = segment_start(job, s); first < end; first += CHUNK) {
        if (atomic_load_explicit(&job->run->cancelled, memory_order_relaxed))
            return;
        assign_chunk(job, first, end - first < CHUNK ? end - first : CHUNK, sums, &job->errors[s]);
    }
}

void kvb_kmeans_assign(kvb_kmeans_job *job, bool with_sums)
{
    kvb_nearest_set_around(job->search, job->table, NULL);
    if (job->threads > 1 && job->segments > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(job->threads)
        for (size_t s = 0; s < job->segments; s++)
            assign_segment(job, s, with_sums);
    } else {
        for (size_t s = 0; s < job->segments; s++)
            assign_segment(job, s, with_sums);
    }
}

/* Adds the segments up into the first. */
static double merge(kvb_kmeans_job *job)
{
    size_t size = (size_t)job->centroids * job->training.row_floats;
    double error = job->errors[0];
    for (size_t s = 1; s < job->segments; s++) {
        const double *sums = job->sums + s * size;
        for (size_t i = 0; i < size; i++)
            job->sums[i] += sums[i];
        error += job->errors[s];
    }
    return error;
}

uint32_t kvb_kmeans_means(const double *sums, size_t stride, uint32_t channels, uint32_t centroids, float *table)
{
    uint32_t empty = 0;
    for (uint32_t k = 0; k < centroids; k++) {
        const double *sum = sums + k * stride;
        if (!(sum[channels] > 0.0)) {
            empty++;
            continue;
        }
        for (uint32_t c = 0; c < channels; c++)
            table[(size_t)k * channels + c] = (float)(sum[c] / sum[channels]);
    }
    return empty;
}

void kvb_kmeans_curve_note(double *curve, uint32_t length, uint32_t iteration, const double *sums, size_t stride, uint32_t channels,
                           uint32_t centroids, const float *table)
{
    double gain = 0.0;
    if (curve == NULL || iteration >= length)
        return;
    for (uint32_t k = 0; k < centroids; k++)
        for (uint32_t c = 0; c < channels; c++) {
            const double y = (double)table[(size_t)k * channels + c];
            gain += y * (2.0 * sums[k * stride + c] - sums[k * stride + channels] * y);
        }
    curve[iteration] = gain;
}

void kvb_kmeans_curve_finish(double *curve, uint32_t length, double squares, double weight, uint32_t channels, double unscale)
{
    for (uint32_t i = 0; curve != NULL && i < length; i++)
        if (!isnan(curve[i]))
            curve[i] = fmax(squares - curve[i], 0.0) / weight / channels * unscale;
}

static uint32_t update(kvb_kmeans_job *job)
{
    return kvb_kmeans_means(job->sums, job->training.row_floats, job->channels, job->centroids, job->table);
}

void kvb_kmeans_step(kvb_kmeans_job *job)
{
    kvb_kmeans_assign(job, true);
    if (atomic_load(&job->run->cancelled)) /* some codes may never have been written */
        return;
    merge(job);
    update(job);
}

uint32_t kvb_kmeans_swap_rounds(const kvb_kmeans_options *options)
{
    uint32_t possible = options->iterations >= 5 ? (options->iterations - 3) / 2 : 0;
    return options->swap_rounds < possible ? options->swap_rounds : possible;
}

/* After the means moved: centroids that are empty, or do little good, go elsewhere. */
static kvb_status relocate(kvb_kmeans_job *job, uint32_t iteration, uint32_t empty, uint32_t *round,
                           kvb_kmeans_result *result, uint32_t *moved, kvb_error *err)
{
    kvb_status status = KVB_OK;
    uint32_t repaired = 0, swapped = 0, rounds = kvb_kmeans_swap_rounds(job->run->options);
    if (empty > 0)
        status = kvb_kmeans_repair(job, iteration, &repaired, err);
    else if (iteration % 2 == 1 && *round < rounds)
        status = kvb_kmeans_swap(job, (*round)++, rounds, &swapped, err);
    result->repairs += repaired;
    result->swaps += swapped;
    *moved = repaired + swapped;
    return status;
}

kvb_status kvb_kmeans_lloyd(kvb_kmeans_job *job, kvb_kmeans_result *result, kvb_error *err)
{
    const kvb_kmeans_options *options = job->run->options;
    double before = INFINITY;
    uint32_t round = 0;
    for (uint32_t i = 0; i < options->iterations; i++) {
        if (kvb_kmeans_cancelled(job))
            break;
        kvb_kmeans_assign(job, true);
        if (atomic_load(&job->run->cancelled)) /* some codes may never have been written */
            break;
        double error = merge(job);
        kvb_kmeans_curve_note(job->curve, options->curve_length, i, job->sums, job->training.row_floats, job->channels,
                              job->centroids, job->table);
        uint32_t moved = 0, empty = update(job);
        kvb_status status = relocate(job, i, empty, &round, result, &moved, err);
        if (status != KVB_OK)
            return status;
        result->iterations++;
        atomic_fetch_add(&job->run->done, 1);
        if (options->tolerance > 0.0 && moved == 0 && isfinite(before) && before - error <= options->tolerance * before)
            break;
        before = moved == 0 ? error : INFINITY;
    }
    if (atomic_load(&job->run->cancelled))
        return kvb_fail(err, KVB_E_CANCELLED, "k-means", "cancelled by the progress callback");
    return KVB_OK;
}
