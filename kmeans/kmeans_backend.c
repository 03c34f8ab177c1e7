/* Training by another library from the same start, in the same frame: an alternative and a cross-check. */
#include <stdlib.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "kmeans/kmeans_internal.h"

bool kvb_kmeans_has_backend(kvb_kmeans_backend backend)
{
    bool faiss = false, cuda = false;
#ifdef KVB_FAISS
    faiss = true;
#endif
#ifdef KVB_CUDA
    cuda = true;
#endif
    return backend == KVB_KMEANS_OWN || (faiss && backend == KVB_KMEANS_FAISS) || (cuda && backend == KVB_KMEANS_CUDA);
}

#ifdef KVB_FAISS
#include "kmeans/kmeans_faiss.h"

/* Weights whose sum is 2n. FAISS 1.7.3 fills an empty cluster from one drawn with probability (weight - 1) / (n - K), and
 * draws for ever where no cluster weighs more than 1; so one always weighs 2n/K >= 2, also after it was split. */
static void scale_weights(const kvb_kmeans_points *points, float *weights)
{
    double total = 0.0;
    for (size_t i = 0; i < points->count; i++)
        total += kvb_kmeans_weight(points, i);
    for (size_t i = 0; i < points->count; i++)
        weights[i] = (float)(kvb_kmeans_weight(points, i) * (2.0 * (double)points->count / total));
}

kvb_status kvb_kmeans_faiss(kvb_kmeans_job *job, bool weighted, kvb_kmeans_result *result, kvb_error *err)
{
    const kvb_kmeans_points *points = &job->training;
    uint32_t d = job->channels, iterations = job->run->options->iterations;
    char message[160] = "";
    int code = 1;
    if (kvb_kmeans_cancelled(job))
        return kvb_fail(err, KVB_E_CANCELLED, "k-means", "cancelled by the progress callback");
    float *rows = kvb_alloc_array(points->count, d * sizeof *rows);
    float *weights = weighted ? kvb_alloc_array(points->count, sizeof *weights) : NULL;
    if (rows != NULL && (weights != NULL || !weighted)) {
        for (size_t i = 0; i < points->count; i++)
            kvb_kmeans_point_read(points->tiles, i, d, rows + i * d);
        if (weighted)
            scale_weights(points, weights);
        kvb_kmeans_faiss_call call = {
            .points = rows, .weights = weights, .count = points->count, .channels = d, .centroids = job->centroids,
            .iterations = iterations, .threads = job->threads, .seed = (int)(job->problem->seed & 0x7FFFFFFF),
            .table = job->table,
        };
        code = iterations > 0 ? kvb_kmeans_faiss_train(&call, message, sizeof message) : 0;
    }
    free(rows);
    free(weights);
    if (code == 1)
        return kvb_fail_memory(err, "a k-means problem for FAISS");
    if (code != 0)
        return kvb_fail(err, KVB_E_CHECK, "FAISS", "%s", message);
    result->iterations = iterations;
    atomic_fetch_add(&job->run->done, iterations);
    kvb_nearest_set_around(job->search, job->table, NULL);
    return KVB_OK;
}
#else
kvb_status kvb_kmeans_faiss(kvb_kmeans_job *job, bool weighted, kvb_kmeans_result *result, kvb_error *err)
{
    (void)job, (void)weighted, (void)result;
    return kvb_fail(err, KVB_E_USAGE, "k-means options", "this build has no FAISS");
}
#endif
