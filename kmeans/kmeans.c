/* The batch: check everything, then share the problems out to threads. */
#include <math.h>
#include <omp.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "kmeans/kmeans_internal.h"

void kvb_kmeans_options_init_sized(kvb_kmeans_options *options, size_t size)
{
    const size_t known = size < sizeof *options ? size : sizeof *options;
    const kvb_kmeans_options usual = {
        .struct_size = (uint32_t)known,
        .iterations = 15,
        .holdout_block = 256,
        .swap_rounds = 6,
    };
    memcpy(options, &usual, known);
}

/* In parentheses the name is no macro. */
void(kvb_kmeans_options_init)(kvb_kmeans_options *options)
{
    kvb_kmeans_options_init_sized(options, offsetof(kvb_kmeans_options, swap_rounds));
}

/* A caller compiled against an older header passes a shorter struct: what it lacks keeps its default. */
static kvb_status read_options(kvb_kmeans_options *own, const kvb_kmeans_options *given, kvb_error *err)
{
    kvb_kmeans_options_init(own);
    if (given == NULL)
        return KVB_OK;
    if (given->struct_size < sizeof given->struct_size || given->struct_size > 4096)
        return kvb_fail(err, KVB_E_USAGE, "k-means options", "struct_size is %u: call kvb_kmeans_options_init() first",
                        given->struct_size);
    memcpy(own, given, given->struct_size < sizeof *own ? given->struct_size : sizeof *own);
    if (own->seeding != KVB_SEED_PLUSPLUS && own->seeding != KVB_SEED_RANDOM && own->seeding != KVB_SEED_SPLIT)
        return kvb_fail(err, KVB_E_USAGE, "k-means options", "unknown seeding %d", (int)own->seeding);
    if (!kvb_kmeans_has_backend(own->backend))
        return kvb_fail(err, KVB_E_USAGE, "k-means options",
                        own->backend == KVB_KMEANS_FAISS
                            ? "this build has no FAISS: install libfaiss-dev and build with `make FAISS=1`"
                        : own->backend == KVB_KMEANS_CUDA
                            ? "this build has no CUDA: install the CUDA toolkit and build with `make CUDA=1`"
                            : "unknown backend");
    if (!(own->tolerance >= 0.0 && own->tolerance < 1.0))
        return kvb_fail(err, KVB_E_USAGE, "k-means options", "tolerance %g is outside 0 .. 1", own->tolerance);
    if (own->holdout_every == 1)
        return kvb_fail(err, KVB_E_USAGE, "k-means options",
                        "holdout_every 1 would hold every point out: use 0 for none or 2 and more");
    if (own->holdout_every != 0 && own->holdout_block == 0)
        return kvb_fail(err, KVB_E_USAGE, "k-means options", "holdout_block is 0 but holdout_every is %u",
                        own->holdout_every);
    return KVB_OK;
}

typedef struct batch {
    const kvb_kmeans_problem *problems;
    size_t count;
    kvb_kmeans_run *run;
    kvb_kmeans_range *ranges;   /* [count] */
    kvb_kmeans_result *results; /* [count] or NULL */
    kvb_kmeans_failure failure;
} batch;

void kvb_kmeans_note_failure(kvb_kmeans_failure *f, size_t number, kvb_status status, const kvb_error *error)
{
#pragma omp critical(kvb_kmeans_failure)
    if (f->status == KVB_OK || number < f->number)
        *f = (kvb_kmeans_failure){number, status, *error};
}

void kvb_kmeans_start_from_initial(kvb_kmeans_job *job)
{
    uint32_t d = job->channels;
    for (size_t i = 0; i < (size_t)job->centroids * d; i++) {
        float y = job->problem->initial[i] * job->frame.scale - job->frame.origin[i % d];
        job->table[i] = fminf(fmaxf(y, -1e15f), 1e15f); /* beyond any point, and its square is finite */
    }
}

void kvb_kmeans_write_table(const kvb_kmeans_job *job)
{
    uint32_t d = job->channels;
    for (size_t i = 0; i < (size_t)job->centroids * d; i++)
        job->problem->table[i] =
            (float)(((double)job->table[i] + job->frame.origin[i % d]) / job->frame.scale);
}

static kvb_status job_run(kvb_kmeans_job *job, const kvb_kmeans_range *range, kvb_kmeans_result *result,
                          kvb_error *err)
{
    const kvb_kmeans_options *options = job->run->options;
    kvb_kmeans_result own = {0};
    kvb_kmeans_frame_choose(&job->frame, job->problem, range);
    kvb_status status =
        kvb_kmeans_points_load(&job->training, &job->frame, job->problem, range, options, false, err);
    if (status == KVB_OK && result != NULL && range->training < job->problem->count)
        status = kvb_kmeans_points_load(&job->heldout, &job->frame, job->problem, range, options, true, err);
    if (status == KVB_OK)
        status = kvb_kmeans_job_open(job, err);
    if (status == KVB_OK && job->problem->initial != NULL)
        kvb_kmeans_start_from_initial(job);
    else if (status == KVB_OK)
        status = kvb_kmeans_seed(job, err);
    if (status == KVB_OK)
        status = options->backend == KVB_KMEANS_FAISS ? kvb_kmeans_faiss(job, range->weighted, &own, err)
                                                      : kvb_kmeans_lloyd(job, &own, err);
    if (status == KVB_OK && result != NULL)
        status = kvb_kmeans_measure(job, &own, err);
    if (status == KVB_OK)
        kvb_kmeans_write_table(job);
    if (status == KVB_OK && result != NULL)
        *result = own;
    atomic_fetch_add(&job->run->done, options->iterations - own.iterations);
    return status;
}

static void solve(batch *b, size_t number, int threads, bool caller)
{
    const kvb_kmeans_problem *problem = &b->problems[number];
    kvb_kmeans_job job = {
        .run = b->run,
        .problem = problem,
        .channels = problem->channels,
        .centroids = problem->centroids,
        .threads = threads,
        .caller = caller,
        .curve = kvb_kmeans_curve_of(b->run->options, number),
    };
    kvb_error error;
    if (atomic_load(&b->run->cancelled))
        return;
    kvb_status status = job_run(&job, &b->ranges[number], b->results != NULL ? &b->results[number] : NULL, &error);
    kvb_kmeans_job_close(&job);
    if (status == KVB_OK || status == KVB_E_CANCELLED)
        return;
    kvb_kmeans_note_failure(&b->failure, number, status, &error);
    atomic_store(&b->run->cancelled, true); /* the others need not finish */
}

static void check_all(batch *b, int threads)
{
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (size_t i = 0; i < b->count; i++) {
        kvb_error error;
        kvb_status status = kvb_kmeans_check(&b->problems[i], i, b->run->options, &b->ranges[i], &error);
        if (status != KVB_OK)
            kvb_kmeans_note_failure(&b->failure, i, status, &error);
    }
}

/* As many problems as fill all threads run side by side; all threads work together on each of the rest. */
static void solve_all(batch *b, int threads)
{
    size_t side_by_side = threads > 1 ? b->count / (size_t)threads * (size_t)threads : b->count;
#pragma omp parallel num_threads(threads)
    {
        bool caller = omp_get_thread_num() == 0;
#pragma omp for schedule(dynamic, 1)
        for (size_t i = 0; i < side_by_side; i++)
            solve(b, i, 1, caller);
    }
    for (size_t i = side_by_side; i < b->count; i++)
        solve(b, i, threads, true);
    /* The calling thread may have been the idle one: say at least once how far it all is. */
    if (b->failure.status == KVB_OK && !atomic_load(&b->run->cancelled))
        kvb_kmeans_report(b->run);
}

kvb_status kvb_kmeans_train(const kvb_kmeans_problem *problems, size_t count, const kvb_kmeans_options *options,
                            kvb_kmeans_result *results, kvb_error *err)
{
    kvb_kmeans_options own;
    kvb_status status = read_options(&own, options, err);
    if (status != KVB_OK || count == 0)
        return status;
    if (problems == NULL)
        return kvb_fail(err, KVB_E_USAGE, "k-means", "problems is NULL but count is %zu", count);
    if (results == NULL)
        own.curve = NULL; /* errors are not measured */
    for (size_t i = 0; own.curve != NULL && i < count * own.curve_length; i++)
        own.curve[i] = NAN;
    int threads = own.threads != 0 && own.threads < 4096 ? (int)own.threads : omp_get_max_threads();
    kvb_kmeans_run run = {.options = &own, .total = (uint64_t)count * own.iterations};
    batch b = {.problems = problems, .count = count, .run = &run, .results = results};
    b.ranges = kvb_alloc_array(count, sizeof *b.ranges);
    if (b.ranges == NULL)
        return kvb_fail_memory(err, "a batch of k-means problems");
    check_all(&b, threads);
    if (b.failure.status == KVB_OK && own.backend == KVB_KMEANS_CUDA)
        b.failure.status = kvb_kmeans_on_device(problems, count, &run, b.ranges, threads, results, &b.failure.error);
    else if (b.failure.status == KVB_OK)
        solve_all(&b, threads);
    free(b.ranges);
    if (b.failure.status == KVB_OK && atomic_load(&run.cancelled))
        return kvb_fail(err, KVB_E_CANCELLED, "k-means", "cancelled by the progress callback");
    if (b.failure.status != KVB_OK && err != NULL)
        *err = b.failure.error;
    return b.failure.status;
}
