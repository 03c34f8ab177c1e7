#include "calib/transform.h"

#include <cblas.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "calib/transform_eigen.h"
#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/rng.h"

/* What the reader of a book lets pass is 0.01 on every sum of a row. */
#define MOST_RESIDUAL 1e-3

typedef struct transform_job {
    const kvb_transform_request *r;
    size_t dim;
    double *map, *unmap;   /* [D][D] T and its inverse */
    double *rotation;      /* [D][D] columns of U as rows, in the order of the groups */
    double *scratch, *old; /* [D][D] */
    double *value;         /* [D] */
    uint32_t *order;       /* [D] */
} transform_job;

/* c = a b, or a b^T */
static void multiply(size_t n, const double *a, const double *b, bool transposed, double *c)
{
    cblas_dgemm(CblasRowMajor, CblasNoTrans, transposed ? CblasTrans : CblasNoTrans, (blasint)n, (blasint)n, (blasint)n,
                1.0, a, (blasint)n, b, (blasint)n, 0.0, c, (blasint)n);
}

static void set_identity(double *matrix, size_t n)
{
    memset(matrix, 0, n * n * sizeof *matrix);
    for (size_t i = 0; i < n; i++)
        matrix[i * n + i] = 1.0;
}

static bool all_finite(const double *x, size_t count)
{
    size_t i = 0;
    while (i < count && isfinite(x[i]))
        i++;
    return i == count;
}

/* The moment made symmetric and scaled to a mean diagonal of 1: the metric's strength must not depend on how large a
 * model's queries are. */
static kvb_status load_moment(const transform_job *job, double *m, kvb_error *err)
{
    size_t n = job->dim;
    const float *moment = job->r->moment;
    double trace = 0.0;
    for (size_t i = 0; i < n; i++) {
        trace += (double)moment[i * n + i];
        for (size_t j = 0; j < n; j++)
            m[i * n + j] = 0.5 * ((double)moment[i * n + j] + (double)moment[j * n + i]);
    }
    if (!all_finite(m, n * n))
        return kvb_fail(err, KVB_E_CHECK, "", "the moment of the queries holds a NaN or infinity; expected finite "
                                              "numbers: capture again");
    if (!(trace > 0.0))
        return kvb_fail(err, KVB_E_CHECK, "", "the moment of the queries has a trace of %g; expected a positive one: "
                                              "did the capture see any query?", trace);
    for (size_t i = 0; i < n * n; i++)
        m[i] *= (double)n / trace;
    return KVB_OK;
}

/* to = sum over eigenvectors v of value^power v v^T; vectors are rows. */
static void compose(const transform_job *job, const double *vectors, double power, double *to)
{
    size_t n = job->dim;
    /* Symmetric: scaled rows, transposed, times rows. */
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++)
            job->scratch[j * n + i] = vectors[i * n + j] * pow(job->value[i], power);
    multiply(n, job->scratch, vectors, false, to);
}

static kvb_status make_map(transform_job *job, kvb_error *err)
{
    const kvb_transform_request *r = job->r;
    kvb_status status = KVB_OK;
    set_identity(job->map, job->dim);
    set_identity(job->unmap, job->dim);
    if (r->moment == NULL)
        return KVB_OK;
    status = load_moment(job, job->old, err);
    if (status == KVB_OK && r->alpha > 0.0)
        status = kvb_eigen_symmetric(job->old, job->dim, job->value, err);
    if (status != KVB_OK || !(r->alpha > 0.0))
        return status;
    for (size_t i = 0; i < job->dim; i++)
        job->value[i] = (job->value[i] > 0.0 ? job->value[i] : 0.0) + r->ridge;
    compose(job, job->old, 0.5 * r->alpha, job->map);
    compose(job, job->old, -0.5 * r->alpha, job->unmap);
    return KVB_OK;
}

void kvb_transform_deal(const double *value, uint32_t dim, uint32_t channels, uint32_t *order)
{
    uint32_t groups = dim / channels;
    /* Products as sums of logarithms; what is nearly zero counts as the same small share of the largest. */
    double least = value[0] > 0.0 ? 1e-9 * value[0] : 1.0;
    double product[KVB_TRANSFORM_MOST_DIM] = {0};
    for (uint32_t round = 0; round < channels; round++) {
        bool served[KVB_TRANSFORM_MOST_DIM] = {false};
        for (uint32_t i = round * groups; i < (round + 1) * groups; i++) {
            uint32_t best = groups;
            for (uint32_t g = 0; g < groups; g++)
                if (!served[g] && (best == groups || product[g] < product[best]))
                    best = g;
            served[best] = true;
            order[best * channels + round] = i;
            product[best] += log(value[i] > least ? value[i] : least);
        }
    }
}

/* Rows of `vectors`, in the order of the groups. */
static void arrange(const transform_job *job, const double *vectors)
{
    for (size_t p = 0; p < job->dim; p++)
        memcpy(job->rotation + p * job->dim, vectors + job->order[p] * job->dim, job->dim * sizeof *vectors);
}

static kvb_status rotate_by_pca(transform_job *job, kvb_error *err)
{
    const kvb_transform_request *r = job->r;
    size_t n = job->dim;
    if (!all_finite(r->covariance, n * n))
        return kvb_fail(err, KVB_E_CHECK, "", "the covariance of the rows holds a NaN or infinity; expected finite "
                                              "numbers");
    multiply(n, job->map, r->covariance, false, job->scratch);
    multiply(n, job->scratch, job->map, true, job->old);
    for (size_t i = 0; i < n; i++) /* symmetric but for rounding */
        for (size_t j = 0; j < i; j++)
            job->old[i * n + j] = job->old[j * n + i] = 0.5 * (job->old[i * n + j] + job->old[j * n + i]);
    kvb_status status = kvb_eigen_symmetric(job->old, n, job->value, err);
    if (status != KVB_OK)
        return status;
    for (uint32_t p = 0; p < r->dim; p++)
        job->order[p] = p;
    if (r->rotation == KVB_ROTATION_BALANCED_PCA)
        kvb_transform_deal(job->value, r->dim, r->channels, job->order);
    arrange(job, job->old);
    return KVB_OK;
}

static double normal(uint64_t key, uint64_t i)
{
    double radius = sqrt(-2.0 * log(kvb_rng_unit(key, 2 * i)));
    return radius * cos(6.283185307179586 * kvb_rng_unit(key, 2 * i + 1));
}

/* Normal rows, made orthogonal one after the other; twice, since once loses digits (Kahan's "twice is enough"). */
static void rotate_at_random(transform_job *job)
{
    size_t n = job->dim;
    double *q = job->rotation;
    for (size_t i = 0; i < n * n; i++)
        q[i] = normal(job->r->seed, i);
    for (size_t i = 0; i < n; i++) {
        for (size_t k = 0; k < 2 * i; k++) {
            double along = cblas_ddot((blasint)n, q + i * n, 1, q + k % i * n, 1);
            cblas_daxpy((blasint)n, -along, q + k % i * n, 1, q + i * n, 1);
        }
        cblas_dscal((blasint)n, 1.0 / cblas_dnrm2((blasint)n, q + i * n, 1), q + i * n, 1);
    }
}

static kvb_status make_rotation(transform_job *job, kvb_error *err)
{
    switch (job->r->rotation) {
    case KVB_ROTATION_PCA:
    case KVB_ROTATION_BALANCED_PCA: return rotate_by_pca(job, err);
    case KVB_ROTATION_RANDOM: rotate_at_random(job); return KVB_OK;
    case KVB_ROTATION_NONE: break;
    }
    set_identity(job->rotation, job->dim);
    return KVB_OK;
}

/* Largest sum of a row of |inverse forward - 1|, of the matrices as rounded. */
static double residual_of(const transform_job *job, const float *forward, const float *inverse)
{
    size_t n = job->dim;
    double most = 0.0;
    for (size_t i = 0; i < n * n; i++) {
        job->map[i] = (double)forward[i];
        job->unmap[i] = (double)inverse[i];
    }
    multiply(n, job->unmap, job->map, false, job->scratch);
    for (size_t i = 0; i < n; i++) {
        double sum = 0.0;
        for (size_t j = 0; j < n; j++)
            sum += fabs(job->scratch[i * n + j] - (i == j ? 1.0 : 0.0));
        most = sum > most ? sum : most;
    }
    return most;
}

/* forward = U^T T, inverse = T^-1 U */
static kvb_status write_out(const transform_job *job, float *forward, float *inverse, kvb_error *err)
{
    size_t n = job->dim;
    multiply(n, job->rotation, job->map, false, job->scratch);
    for (size_t i = 0; i < n * n; i++)
        forward[i] = (float)job->scratch[i];
    multiply(n, job->unmap, job->rotation, true, job->scratch);
    for (size_t i = 0; i < n * n; i++)
        inverse[i] = (float)job->scratch[i];
    double residual = residual_of(job, forward, inverse);
    if (residual <= MOST_RESIDUAL)
        return KVB_OK;
    return kvb_fail(err, KVB_E_CHECK, "",
                    "the transform and its inverse, rounded to float32, miss the identity by %g; expected at most %g: "
                    "choose a larger ridge or a smaller alpha for the metric (found %g and %g)",
                    residual, MOST_RESIDUAL, job->r->ridge, job->r->alpha);
}

kvb_status kvb_transform_make(const kvb_transform_request *request, float *forward, float *inverse, kvb_error *err)
{
    size_t n = request->dim, square = n * n;
    transform_job job = {.r = request, .dim = n};
    double *memory = kvb_alloc_array(5 * square + n, sizeof *memory);
    job.order = kvb_alloc_array(n, sizeof *job.order);
    kvb_status status = memory == NULL || job.order == NULL ? kvb_fail_memory(err, "transform") : KVB_OK;
    if (status == KVB_OK) {
        job.map = memory;
        job.unmap = memory + square;
        job.rotation = memory + 2 * square;
        job.scratch = memory + 3 * square;
        job.old = memory + 4 * square;
        job.value = memory + 5 * square;
        openblas_set_num_threads(1); /* as in model/: its own threads would change sums with their number */
        status = make_map(&job, err);
    }
    if (status == KVB_OK)
        status = make_rotation(&job, err);
    if (status == KVB_OK)
        status = write_out(&job, forward, inverse, err);
    free(memory);
    free(job.order);
    return status;
}
