/* k-means over d x K x n, batches and single problems, beside a baseline from the same start with the same iterations. */
#include <cblas.h>
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/json.h"
#include "format/base/rng.h"
#include "kmeans/kmeans_reference.h"
#include "kvbook/kmeans.h"
#include "tools/bench.h"
#include "tools/output.h"

enum { ITERATIONS = 20, FEW = 3, MOST_CELLS = 64 };

typedef struct cell {
    uint32_t count, channels, centroids, points;
    double seconds, baseline_seconds; /* of all `count` problems */
} cell;

typedef struct table {
    cell cells[MOST_CELLS];
    size_t count;
    double peak; /* operations a second */
    int threads;
    bool faiss;
} table;

/* One cell's data. */
typedef struct workload {
    const cell *c;
    float *points, *tables;
    kvb_kmeans_problem *problems;
} workload;

static void workload_close(workload *w)
{
    free(w->points);
    free(w->tables);
    free(w->problems);
}

/* Sums of three uniform numbers; each problem has points of its own and starts from its first K. */
static kvb_status workload_open(workload *w, const cell *c, kvb_error *err)
{
    const size_t each = (size_t)c->points * c->channels, out = (size_t)c->centroids * c->channels;
    uint64_t key = kvb_rng_key(1, c->points, c->channels, c->centroids, 0);
    *w = (workload){.c = c};
    w->points = kvb_alloc_array(c->count, each * sizeof *w->points);
    w->tables = kvb_alloc_array(c->count, out * sizeof *w->tables);
    w->problems = kvb_alloc_array(c->count, sizeof *w->problems);
    if (w->points == NULL || w->tables == NULL || w->problems == NULL)
        return kvb_fail_memory(err, "bench kmeans");
#pragma omp parallel for
    for (size_t i = 0; i < each * c->count; i++)
        w->points[i] = (float)(kvb_rng_unit(key, 3 * i) + kvb_rng_unit(key, 3 * i + 1) + kvb_rng_unit(key, 3 * i + 2));
    for (uint32_t i = 0; i < c->count; i++)
        w->problems[i] = (kvb_kmeans_problem){
            .points = w->points + i * each, .count = c->points, .stride = c->channels, .channels = c->channels,
            .centroids = c->centroids, .initial = w->points + i * each, .seed = i, .table = w->tables + i * out,
        };
    return KVB_OK;
}

/* Seconds of `count` problems handed over `at_once`. */
static kvb_status time_once(const workload *w, kvb_kmeans_backend backend, size_t at_once, double *seconds,
                            kvb_error *err)
{
    kvb_kmeans_options options;
    kvb_status status = KVB_OK;
    kvb_kmeans_options_init(&options);
    options.iterations = ITERATIONS;
    options.swap_rounds = 0;
    options.backend = backend;
    double start = kvb_seconds();
    for (size_t i = 0; i < w->c->count && status == KVB_OK; i += at_once)
        status = kvb_kmeans_train(w->problems + i, at_once, &options, NULL, err);
    *seconds = kvb_seconds() - start;
    return status;
}

/* The fastest of FEW runs, or of one where it takes long. */
static kvb_status time_best(const workload *w, kvb_kmeans_backend backend, size_t at_once, double *best, kvb_error *err)
{
    kvb_status status = KVB_OK;
    double spent = 0.0, seconds = 0.0;
    for (int i = 0; i < FEW && spent < 2.0 && status == KVB_OK; i++) {
        status = time_once(w, backend, at_once, &seconds, err);
        spent += seconds;
        *best = fmin(*best, seconds);
    }
    return status;
}

/* At its best threading: all threads inside one problem, those of OpenBLAS with them, or problems side by side. */
static kvb_status time_faiss(const workload *w, int threads, double *best, kvb_error *err)
{
    *best = INFINITY;
    openblas_set_num_threads(threads);
    kvb_status status = time_best(w, KVB_KMEANS_FAISS, 1, best, err);
    openblas_set_num_threads(1);
    if (status == KVB_OK && w->c->count > 1)
        status = time_best(w, KVB_KMEANS_FAISS, w->c->count, best, err);
    return status;
}

/* One iteration of one problem on one thread, times what there is to do: the whole would take minutes. */
static kvb_status time_reference(const workload *w, double *seconds, kvb_error *err)
{
    const cell *c = w->c;
    const size_t floats = (size_t)c->centroids * c->channels;
    double *centroids = kvb_alloc_array(floats, sizeof *centroids);
    uint32_t *codes = kvb_alloc_array(c->points, sizeof *codes);
    if (centroids != NULL && codes != NULL) {
        for (size_t i = 0; i < floats; i++)
            centroids[i] = w->points[i];
        double start = kvb_seconds();
        kvb_kmeans_reference_assign(w->points, NULL, c->points, c->channels, centroids, c->centroids, codes);
        kvb_kmeans_reference_update(w->points, NULL, c->points, c->channels, centroids, c->centroids, codes);
        *seconds = (kvb_seconds() - start) * ITERATIONS * c->count;
    }
    bool complete = centroids != NULL && codes != NULL;
    free(centroids);
    free(codes);
    return complete ? KVB_OK : kvb_fail_memory(err, "bench kmeans");
}

static kvb_status measure(cell *c, const table *t, kvb_error *err)
{
    workload w;
    c->seconds = INFINITY;
    kvb_status status = workload_open(&w, c, err);
    if (status == KVB_OK)
        status = time_best(&w, KVB_KMEANS_OWN, c->count, &c->seconds, err);
    if (status == KVB_OK)
        status = t->faiss ? time_faiss(&w, t->threads, &c->baseline_seconds, err)
                          : time_reference(&w, &c->baseline_seconds, err);
    workload_close(&w);
    return status;
}

/* n*K*d multiply-adds an iteration, over what the peak allows where a centroid costs 1.2 more a point to compare. */
static double share(const cell *c, const table *t)
{
    double work = 2.0 * ITERATIONS * c->count * (double)c->points * c->centroids * c->channels;
    return work / c->seconds / (t->peak * c->channels / (c->channels + 1.2));
}

static void add(table *t, uint32_t count, uint32_t d, uint32_t k, uint32_t n)
{
    t->cells[t->count++] = (cell){.count = count, .channels = d, .centroids = k, .points = n};
}

static void list_cells(table *t, bool quick)
{
    static const uint32_t channels[] = {2, 4, 8, 16, 32, 64}, centroids[] = {16, 64, 256, 1024};
    if (quick) {
        add(t, 4, 8, 16, 1024);
        add(t, 1, 2, 64, 2048);
        return;
    }
    add(t, 180, 8, 256, 16384);
    add(t, 180, 4, 256, 16384);
    add(t, 180, 4, 64, 16384);
    add(t, 24, 16, 256, 16384);
    add(t, 18, 32, 4096, 16384);
    for (int d = 0; d < 6; d++)
        for (int k = 0; k < 4; k++) {
            add(t, 8, channels[d], centroids[k], 16384);
            add(t, 1, channels[d], centroids[k], 65536);
        }
}

static const char *baseline_name(const table *t)
{
    return t->faiss ? "faiss" : "reference";
}

static void print_row(const cell *c, const table *t)
{
    printf("%5u %3u %6u %7u  %9.4f %10.4f %8.2f %6.1f%%\n", c->count, c->channels, c->centroids, c->points, c->seconds,
           c->baseline_seconds, c->baseline_seconds / c->seconds, 100.0 * share(c, t));
    fflush(stdout);
}

static void put_cell(kvb_json_writer *w, const cell *c, const table *t)
{
    kvb_json_begin_object(w, NULL);
    kvb_json_put_u64(w, "count", c->count);
    kvb_json_put_u64(w, "d", c->channels);
    kvb_json_put_u64(w, "k", c->centroids);
    kvb_json_put_u64(w, "n", c->points);
    kvb_json_put_number(w, "seconds", c->seconds);
    kvb_json_put_string(w, "baseline", baseline_name(t));
    kvb_json_put_number(w, "baseline_seconds", c->baseline_seconds);
    kvb_json_put_number(w, "ratio", c->baseline_seconds / c->seconds);
    if (isfinite(t->peak))
        kvb_json_put_number(w, "share_of_peak", share(c, t));
    else
        kvb_json_put_null(w, "share_of_peak");
    kvb_json_end_object(w);
}

static kvb_status print_json(const table *t, kvb_error *err)
{
    kvb_json_writer w = {0};
    double seconds = 0.0, baseline = 0.0;
    kvb_json_begin_object(&w, NULL);
    kvb_json_put_u64(&w, "schema", 1);
    kvb_json_put_string(&w, "bench", "kmeans");
    kvb_json_put_u64(&w, "threads", (uint64_t)t->threads);
    kvb_json_put_u64(&w, "iterations", ITERATIONS);
    kvb_json_put_number(&w, "peak_gflops", t->peak / 1e9);
    kvb_json_begin_array(&w, "cells");
    for (size_t i = 0; i < t->count; i++) {
        put_cell(&w, &t->cells[i], t);
        seconds += t->cells[i].seconds;
        baseline += t->cells[i].baseline_seconds;
    }
    kvb_json_end_array(&w);
    kvb_json_put_number(&w, "seconds", seconds);
    kvb_json_put_string(&w, "baseline", baseline_name(t));
    kvb_json_put_number(&w, "baseline_seconds", baseline);
    kvb_json_put_number(&w, "ratio", baseline / seconds);
    kvb_json_end_object(&w);
    return kvb_print_json(&w, "bench kmeans", err);
}

kvb_status kvb_bench_kmeans(const kvb_bench_options *options, kvb_progress *p, kvb_error *err)
{
    table t = {.threads = omp_get_max_threads(), .faiss = kvb_kmeans_has_backend(KVB_KMEANS_FAISS)};
    kvb_status status = KVB_OK;
    t.peak = kvb_bench_peak(t.threads);
    list_cells(&t, options->quick);
    if (!options->json)
        printf("%d threads, %d iterations, peak %.1f Gflop/s, baseline %s%s\n"
               "count   d      K       n    seconds   baseline    ratio  share of peak*d/(d+1.2)\n",
               t.threads, ITERATIONS, t.peak / 1e9, baseline_name(&t), t.faiss ? "" : " (one thread)");
    for (size_t i = 0; i < t.count && status == KVB_OK; i++) {
        if (kvb_progress_report(p, "bench", i, t.count) != 0)
            return kvb_fail(err, KVB_E_CANCELLED, "bench", "interrupted");
        status = measure(&t.cells[i], &t, err);
        if (status == KVB_OK && !options->json)
            print_row(&t.cells[i], &t);
    }
    kvb_progress_finish(p);
    return status == KVB_OK && options->json ? print_json(&t, err) : status;
}
