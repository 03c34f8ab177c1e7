#include "calib/row_moments.h"

#include <cblas.h>
#include <math.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"

enum { ROWS = 256 }; /* turned to double at a time */

typedef struct row_job {
    const float *x, *weight;
    size_t n;
    uint32_t dim;
    const double *mean;
    double *sums;  /* [ranges][dim], the total weight behind it; or [ranges][dim][dim] */
    double *block; /* [ranges][ROWS][dim] */
} row_job;

static double weight_of(const row_job *job, size_t i)
{
    return job->weight != NULL ? (double)job->weight[i] : 1.0;
}

static void sum_rows(const row_job *job, size_t range)
{
    double *sum = job->sums + range * (job->dim + 1);
    memset(sum, 0, (job->dim + 1) * sizeof *sum);
    for (size_t i = kvb_moment_range(job->n, range); i < kvb_moment_range(job->n, range + 1); i++) {
        double w = weight_of(job, i);
        const float *x = job->x + i * job->dim;
        for (uint32_t c = 0; c < job->dim; c++)
            sum[c] += w * (double)x[c];
        sum[job->dim] += w;
    }
}

/* Rows sqrt(w) (x - mean), so that the covariance is one symmetric product. */
static void load_block(const row_job *job, size_t first, size_t count, double *block)
{
    for (size_t i = 0; i < count; i++) {
        double root = sqrt(weight_of(job, first + i));
        const float *x = job->x + (first + i) * job->dim;
        for (uint32_t c = 0; c < job->dim; c++)
            block[i * job->dim + c] = root * ((double)x[c] - job->mean[c]);
    }
}

static void sum_products(const row_job *job, size_t range)
{
    size_t square = (size_t)job->dim * job->dim, end = kvb_moment_range(job->n, range + 1);
    double *sum = job->sums + range * square, *block = job->block + range * ROWS * job->dim;
    memset(sum, 0, square * sizeof *sum);
    for (size_t i = kvb_moment_range(job->n, range), many; i < end; i += many) {
        many = end - i < ROWS ? end - i : ROWS;
        load_block(job, i, many, block);
        cblas_dsyrk(CblasRowMajor, CblasUpper, CblasTrans, (blasint)job->dim, (blasint)many, 1.0, block,
                    (blasint)job->dim, 1.0, sum, (blasint)job->dim);
    }
}

/* Returns the total weight. */
static double merge_means(const row_job *job, double *mean)
{
    double total = 0.0;
    memset(mean, 0, job->dim * sizeof *mean);
    for (size_t r = 0; r < KVB_MOMENT_RANGES; r++) {
        const double *sum = job->sums + r * (job->dim + 1);
        for (uint32_t c = 0; c < job->dim; c++)
            mean[c] += sum[c];
        total += sum[job->dim];
    }
    for (uint32_t c = 0; c < job->dim; c++)
        mean[c] /= total;
    return total;
}

static void merge_products(const row_job *job, double total, double *covariance)
{
    size_t dim = job->dim;
    for (size_t i = 0; i < dim; i++)
        for (size_t j = i; j < dim; j++) {
            double sum = 0.0;
            for (size_t r = 0; r < KVB_MOMENT_RANGES; r++)
                sum += job->sums[(r * dim + i) * dim + j];
            covariance[i * dim + j] = covariance[j * dim + i] = sum / total;
        }
}

kvb_status kvb_row_moments(const float *x, size_t n, uint32_t dim, const float *weight, int threads, double *mean,
                           double *covariance, kvb_error *err)
{
    size_t sums = covariance != NULL && dim > 1 ? (size_t)dim * dim : dim + 1;
    row_job job = {.x = x, .weight = weight, .n = n, .dim = dim, .mean = mean};
    job.sums = kvb_alloc_array(KVB_MOMENT_RANGES * sums, sizeof *job.sums);
    job.block = covariance != NULL ? kvb_alloc_array((size_t)KVB_MOMENT_RANGES * ROWS, dim * sizeof *job.block) : NULL;
    if (job.sums == NULL || (covariance != NULL && job.block == NULL)) {
        free(job.sums);
        free(job.block);
        return kvb_fail_memory(err, "moments of the training points");
    }
    openblas_set_num_threads(1); /* as in model/: OpenMP spreads the ranges here */
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (size_t r = 0; r < KVB_MOMENT_RANGES; r++)
        sum_rows(&job, r);
    double total = merge_means(&job, mean);
    if (covariance != NULL) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
        for (size_t r = 0; r < KVB_MOMENT_RANGES; r++)
            sum_products(&job, r);
        merge_products(&job, total, covariance);
    }
    free(job.sums);
    free(job.block);
    return KVB_OK;
}

void kvb_row_moments_reference(const float *x, size_t n, uint32_t dim, const float *weight, double *mean,
                               double *covariance)
{
    double total = 0.0;
    for (size_t i = 0; i < n; i++)
        total += weight != NULL ? (double)weight[i] : 1.0;
    for (uint32_t a = 0; a < dim; a++) {
        mean[a] = 0.0;
        for (size_t i = 0; i < n; i++)
            mean[a] += (weight != NULL ? (double)weight[i] : 1.0) / total * (double)x[i * dim + a];
    }
    for (uint32_t a = 0; a < dim; a++)
        for (uint32_t b = 0; b < dim; b++) {
            double sum = 0.0;
            for (size_t i = 0; i < n; i++)
                sum += (weight != NULL ? (double)weight[i] : 1.0) / total * ((double)x[i * dim + a] - mean[a]) *
                       ((double)x[i * dim + b] - mean[b]);
            covariance[(size_t)a * dim + b] = sum;
        }
}
