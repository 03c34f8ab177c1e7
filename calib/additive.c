/* The batch: plain problems go to k-means together, additive ones side by side to as many threads as there are. */
#include "calib/additive.h"

#include <math.h>
#include <omp.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "calib/additive_job.h"
#include "format/base/checked.h"
#include "format/base/fail.h"

typedef struct batch {
    const kvb_kmeans_problem *problems;
    const uint32_t *stages;
    size_t count;
    const kvb_additive_options *options;
    kvb_kmeans_result *results; /* [count] or NULL */
    int threads;
    _Atomic size_t done; /* problems */
    atomic_bool cancelled;
    /* Of the failing problem with the lowest number, so that the report does not depend on the threads. */
    _Atomic size_t failed;
    kvb_status status;
    kvb_error error;
} batch;

void kvb_additive_options_init(kvb_additive_options *options)
{
    *options = (kvb_additive_options){.rounds = 20, .tolerance = 1e-4};
    kvb_kmeans_options_init(&options->kmeans);
}

static void report(batch *b, size_t done)
{
    const kvb_kmeans_options *o = &b->options->kmeans;
    if (o->progress != NULL && o->progress(o->progress_user, "k-means", done, b->count) != 0)
        atomic_store(&b->cancelled, true);
}

/* Of a problem; NULL where none is asked for. */
static double *options_curve(const batch *b, size_t number)
{
    const kvb_kmeans_options *o = &b->options->kmeans;
    return o->curve != NULL && b->results != NULL ? o->curve + number * o->curve_length : NULL;
}

/* --- plain problems --- */

typedef struct plain_part {
    batch *b;
    kvb_kmeans_problem *problem;
    kvb_kmeans_result *result;
    double *curve; /* [count][curve_length], or NULL */
    size_t count;
} plain_part;

static int forward_plain(void *user, const char *step, uint64_t done, uint64_t total)
{
    plain_part *p = user;
    (void)step;
    report(p->b, total > 0 ? (size_t)(done * p->count / total) : 0);
    return atomic_load(&p->b->cancelled);
}

static kvb_status train_plain(plain_part *p, kvb_error *err)
{
    batch *b = p->b;
    kvb_kmeans_options options = b->options->kmeans;
    options.progress = options.progress != NULL ? forward_plain : NULL;
    options.progress_user = p;
    options.curve = p->curve;
    for (size_t i = 0; i < b->count; i++)
        if (b->stages[i] == 1)
            p->problem[p->count++] = b->problems[i];
    if (p->count == 0)
        return KVB_OK;
    kvb_status status = kvb_kmeans_train(p->problem, p->count, &options, p->result, err);
    for (size_t i = 0, at = 0; status == KVB_OK && b->results != NULL && i < b->count; i++)
        if (b->stages[i] == 1) {
            if (p->curve != NULL)
                memcpy(options_curve(b, i), p->curve + at * options.curve_length, options.curve_length * sizeof *p->curve);
            b->results[i] = p->result[at++];
        }
    atomic_fetch_add(&b->done, p->count);
    return status;
}

static kvb_status solve_plain(batch *b, kvb_error *err)
{
    plain_part p = {.b = b};
    p.problem = kvb_alloc_array(b->count, sizeof *p.problem);
    p.result = kvb_alloc_array(b->count, sizeof *p.result);
    const bool curves = options_curve(b, 0) != NULL;
    if (curves)
        p.curve = kvb_alloc_array(b->count, b->options->kmeans.curve_length * sizeof *p.curve);
    kvb_status status = p.problem != NULL && p.result != NULL && (p.curve != NULL || !curves) ? train_plain(&p, err) : kvb_fail_memory(err, "a batch");
    free(p.problem);
    free(p.result);
    free(p.curve);
    return status;
}

/* --- additive problems --- */

typedef struct worker {
    batch *b;
    bool caller; /* the thread that called: it alone may report */
} worker;

static int ask(void *user)
{
    const worker *w = user;
    if (w->caller && !atomic_load(&w->b->cancelled))
        report(w->b, atomic_load(&w->b->done));
    return atomic_load(&w->b->cancelled);
}

static void note_failure(batch *b, size_t number, kvb_status status, const kvb_error *error)
{
#pragma omp critical(kvb_additive_failure)
    if (number < atomic_load(&b->failed)) {
        atomic_store(&b->failed, number);
        b->status = status;
        b->error = *error;
    }
}

/* After a failure, problems of higher numbers need not run; one of a lower number may still fail, and is the one to name. */
static void solve_additive(worker *w, size_t number)
{
    batch *b = w->b;
    kvb_additive_job job = {.problem = &b->problems[number], .options = b->options, .stopped = ask, .stopped_user = w,
                            .number = number, .curve = options_curve(b, number)};
    kvb_error error = {0};
    if (b->stages[number] == 1 || atomic_load(&b->cancelled) || number > atomic_load(&b->failed))
        return;
    kvb_status status = kvb_additive_job_run(&job, b->stages[number], b->results != NULL ? &b->results[number] : NULL,
                                             &error);
    if (status != KVB_OK && status != KVB_E_CANCELLED)
        note_failure(b, number, status, &error);
    atomic_fetch_add(&b->done, 1);
}

static void solve_all_additive(batch *b)
{
#pragma omp parallel num_threads(b->threads)
    {
        worker w = {.b = b, .caller = omp_get_thread_num() == 0};
#pragma omp for schedule(dynamic, 1)
        for (size_t i = 0; i < b->count; i++)
            solve_additive(&w, i);
    }
    if (!atomic_load(&b->cancelled))
        report(b, atomic_load(&b->done));
}

static kvb_status check_options(const batch *b, kvb_error *err)
{
    const kvb_additive_options *o = b->options;
    for (size_t i = 0; o->kmeans.backend == KVB_KMEANS_FAISS && i < b->count; i++)
        if (b->stages[i] > 1)
            return kvb_fail(err, KVB_E_USAGE, "--kmeans faiss", "problem %zu is a sum of %u stages, which FAISS does not train; "
                            "give plain shapes such as 8x256, or leave out --kmeans", i, b->stages[i]);
    if (!(o->tolerance >= 0.0 && o->tolerance < 1.0))
        return kvb_fail(err, KVB_E_USAGE, "additive options", "tolerance %g is outside 0 .. 1", o->tolerance);
    if (o->kmeans.holdout_every == 1 || (o->kmeans.holdout_every != 0 && o->kmeans.holdout_block == 0))
        return kvb_fail(err, KVB_E_USAGE, "additive options", "a hold-out of 1 block of %u points in every %u leaves "
                        "nothing to train on, or means nothing", o->kmeans.holdout_block, o->kmeans.holdout_every);
    return KVB_OK;
}

kvb_status kvb_additive_train(const kvb_kmeans_problem *problems, const uint32_t *stages, size_t count,
                              const kvb_additive_options *options, kvb_kmeans_result *results, kvb_error *err)
{
    const uint32_t asked = options->kmeans.threads;
    batch b = {.problems = problems, .stages = stages, .count = count, .options = options, .results = results,
               .threads = asked != 0 && asked < 4096 ? (int)asked : omp_get_max_threads(), .failed = SIZE_MAX};
    kvb_status status = check_options(&b, err);
    for (size_t i = 0; options_curve(&b, 0) != NULL && i < count * options->kmeans.curve_length; i++)
        options->kmeans.curve[i] = NAN;
    if (status == KVB_OK && count > 0)
        status = solve_plain(&b, err);
    if (status == KVB_OK && atomic_load(&b.done) < count)
        solve_all_additive(&b);
    if (status != KVB_OK)
        return status;
    if (b.status != KVB_OK && err != NULL)
        *err = b.error;
    if (b.status != KVB_OK)
        return b.status;
    if (atomic_load(&b.cancelled))
        return kvb_fail(err, KVB_E_CANCELLED, "training", "cancelled by the progress callback");
    return KVB_OK;
}
