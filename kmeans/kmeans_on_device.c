/* The same algorithm as kmeans_lloyd.c with a GPU's passes (cuda/calib/cuda_kmeans.h) over many problems at a time: seeds, means,
 * and which centroids move where are found here, in the same order and with the same random numbers. */
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/rng.h"
#include "kmeans/kmeans_clusters.h"

#ifdef KVB_CUDA
#include "cuda/calib/cuda_kmeans.h"

enum { MOST_AT_ONCE = 4096 };

/* One problem of a batch. Places are into the batch's arrays. */
typedef struct item {
    size_t number; /* of the problem in the call */
    const kvb_kmeans_problem *problem;
    const kvb_kmeans_range *range;
    kvb_kmeans_frame frame;
    kvb_kmeans_result result;
    size_t table_at, sum_at, row_at; /* [K][d], [K][d+1], [K] */
    size_t point_at;                 /* among all training points */
    uint32_t round, empty;
    double before; /* error of the last iteration */
    bool settled, close, moving; /* close: the last step gained less than the tolerance */
} item;

typedef struct batch {
    kvb_kmeans_run *run;
    int threads;
    item *items;
    size_t count, rows, floats, doubles;
    uint32_t width;
    kvb_cuda_points *points;
    float *tables;          /* all [K][d] */
    double *sums, *errors;  /* all [K][d+1]; all [K] */
    uint32_t *counts;       /* all [K] */
    kvb_swap_candidate *list;   /* all [K] */
    uint32_t *candidates, *found;
    double *cost;           /* [rows] of candidates */
    kvb_cuda_draw *draws;   /* [rows] */
    uint32_t *targets;      /* [rows] centroid that each draw moves */
    float *drawn;           /* [rows][width] */
    size_t *first;          /* [count + 1] */
} batch;

static void batch_free(batch *b)
{
    kvb_cuda_points_close(b->points);
    free(b->tables);
    free(b->sums);
    free(b->errors);
    free(b->counts);
    free(b->list);
    free(b->candidates);
    free(b->found);
    free(b->cost);
    free(b->draws);
    free(b->targets);
    free(b->drawn);
    free(b->first);
}

static kvb_status batch_allocate(batch *b, kvb_error *err)
{
    for (size_t i = 0; i < b->count; i++) {
        item *it = &b->items[i];
        const size_t k = it->problem->centroids, d = it->problem->channels;
        it->table_at = b->floats, it->sum_at = b->doubles, it->row_at = b->rows;
        b->floats += k * d, b->doubles += k * (d + 1), b->rows += k;
    }
    b->tables = kvb_alloc_array(b->floats, sizeof *b->tables);
    b->sums = kvb_alloc_array(b->doubles, sizeof *b->sums);
    b->errors = kvb_alloc_array(b->rows, sizeof *b->errors);
    b->counts = kvb_alloc_array(b->rows, sizeof *b->counts);
    b->list = kvb_alloc_array(b->rows, sizeof *b->list);
    b->candidates = kvb_alloc_array(b->rows, sizeof *b->candidates);
    b->found = kvb_alloc_array(b->rows, sizeof *b->found);
    b->cost = kvb_alloc_array(b->rows, sizeof *b->cost);
    b->draws = kvb_alloc_array(b->rows, sizeof *b->draws);
    b->targets = kvb_alloc_array(b->rows, sizeof *b->targets);
    b->drawn = kvb_alloc_array(b->rows * b->width, sizeof *b->drawn);
    b->first = kvb_alloc_array(b->count + 1, sizeof *b->first);
    bool good = b->tables != NULL && b->sums != NULL && b->errors != NULL && b->counts != NULL && b->list != NULL &&
                b->candidates != NULL && b->found != NULL && b->cost != NULL && b->draws != NULL && b->targets != NULL &&
                b->drawn != NULL && b->first != NULL;
    return good ? KVB_OK : kvb_fail_memory(err, "a batch of k-means problems");
}

/* A job that has the table and the random numbers of an item, but no points of its own. */
static void item_job(const batch *b, const item *it, kvb_kmeans_job *job)
{
    const kvb_kmeans_problem *p = it->problem;
    *job = (kvb_kmeans_job){.run = b->run, .problem = p, .range = it->range, .frame = it->frame, .channels = p->channels,
                            .centroids = p->centroids, .threads = 1, .caller = omp_get_thread_num() == 0,
                            .training.count = it->range->training, .training.channels = p->channels,
                            .table = b->tables + it->table_at};
}

/* Many centroids are seeded in batches over all points, which is work for the GPU. */
static bool seeds_on_device(const batch *b, const item *it)
{
    return it->problem->initial == NULL && b->run->options->seeding == KVB_SEED_PLUSPLUS && it->problem->centroids > KVB_SEED_FEW;
}

/* k-means++ of few centroids looks at a sample only; the other seedings at all points, on the CPU. */
static kvb_status seed_item(const batch *b, item *it, kvb_error *err)
{
    kvb_kmeans_job job, full;
    kvb_status status = KVB_OK;
    item_job(b, it, &job);
    if (b->run->options->seeding == KVB_SEED_PLUSPLUS) {
        kvb_nearest *search = kvb_nearest_create(job.channels, job.centroids);
        if (search == NULL)
            return kvb_fail_memory(err, "the seeding of a k-means problem");
        job.kernels = kvb_kmeans_kernels_for(search);
        kvb_nearest_destroy(search);
        return kvb_kmeans_plus_plus(&job, err);
    }
    full = job;
    full.table = NULL;
    status = kvb_kmeans_points_load(&full.training, &full.frame, it->problem, it->range, b->run->options, false, err);
    if (status == KVB_OK)
        status = kvb_kmeans_job_open(&full, err);
    if (status == KVB_OK)
        status = kvb_kmeans_seed(&full, err);
    if (status == KVB_OK)
        memcpy(job.table, full.table, (size_t)job.centroids * job.channels * sizeof *job.table);
    kvb_kmeans_job_close(&full);
    return status;
}

/* Where one problem starts from, in its frame. */
static kvb_status start_item(const batch *b, item *it, kvb_error *err)
{
    kvb_kmeans_job job;
    kvb_kmeans_frame_choose(&it->frame, it->problem, it->range);
    if (seeds_on_device(b, it))
        return KVB_OK;
    if (it->problem->initial == NULL)
        return seed_item(b, it, err);
    item_job(b, it, &job);
    kvb_kmeans_start_from_initial(&job);
    return KVB_OK;
}

static kvb_status start_all(batch *b, kvb_error *err)
{
    kvb_kmeans_failure failure = {0};
#pragma omp parallel for schedule(dynamic, 1) num_threads(b->threads)
    for (size_t i = 0; i < b->count; i++) {
        kvb_error error = {0};
        kvb_status status = start_item(b, &b->items[i], &error);
        if (status != KVB_OK)
            kvb_kmeans_note_failure(&failure, i, status, &error);
    }
    if (failure.status != KVB_OK && err != NULL)
        *err = failure.error;
    return failure.status;
}

static kvb_cuda_problem device_problem(const item *it)
{
    const kvb_kmeans_problem *p = it->problem;
    kvb_cuda_problem d = {
        .points = p->points, .half = p->type == KVB_POINTS_F16, .count = p->count, .stride = p->stride,
        .channels = p->channels, .centroids = p->centroids, .weights = it->range->weighted ? p->weights : NULL,
        .scale = it->frame.scale, .weight_scale = it->frame.weight_scale, .training = it->range->training,
    };
    memcpy(d.origin, it->frame.origin, sizeof d.origin);
    return d;
}

static kvb_status open_points(batch *b, kvb_error *err)
{
    const kvb_kmeans_options *o = b->run->options;
    kvb_cuda_problem *problems = kvb_alloc_array(b->count, sizeof *problems);
    if (problems == NULL)
        return kvb_fail_memory(err, "a batch of k-means problems");
    for (size_t i = 0; i < b->count; i++)
        problems[i] = device_problem(&b->items[i]);
    kvb_status status =
        kvb_cuda_points_open((int)o->device, problems, b->count, o->holdout_every, o->holdout_block, &b->points, err);
    free(problems);
    return status;
}

/* --- seeding in batches: draws here, distances there --- */

typedef struct seeding {
    batch *b;
    kvb_kmeans_job *job;        /* [count] */
    kvb_kmeans_seeder **seeder; /* [count], NULL where a problem is seeded already */
    float *rows;                /* [count][KVB_CUDA_FEW][width] */
    uint32_t *have;             /* [count] */
    uint32_t *index;            /* of all training points */
    float *distance;
} seeding;

static void seeding_free(seeding *s)
{
    for (size_t i = 0; s->seeder != NULL && i < s->b->count; i++)
        kvb_kmeans_seeder_close(s->seeder[i]);
    free(s->job);
    free(s->seeder);
    free(s->rows);
    free(s->have);
    free(s->index);
    free(s->distance);
}

static kvb_status seeding_allocate(seeding *s, kvb_error *err)
{
    const batch *b = s->b;
    size_t points = 0;
    kvb_status status = KVB_OK;
    for (size_t i = 0; i < b->count; i++)
        points += b->items[i].range->training;
    s->job = kvb_alloc_zeroed(b->count, sizeof *s->job);
    s->seeder = kvb_alloc_zeroed(b->count, sizeof *s->seeder);
    s->rows = kvb_alloc_zeroed(b->count * KVB_CUDA_FEW, b->width * sizeof *s->rows);
    s->have = kvb_alloc_zeroed(b->count, sizeof *s->have);
    s->index = kvb_alloc_array(points, sizeof *s->index);
    s->distance = kvb_alloc_array(points, sizeof *s->distance);
    if (s->job == NULL || s->seeder == NULL || s->rows == NULL || s->have == NULL || s->index == NULL || s->distance == NULL)
        return kvb_fail_memory(err, "the seeding of k-means problems");
    bool lacking = false;
#pragma omp parallel for schedule(dynamic, 1) num_threads(b->threads) reduction(|| : lacking)
    for (size_t i = 0; i < b->count; i++) {
        if (!seeds_on_device(b, &b->items[i]))
            continue;
        item_job(b, &b->items[i], &s->job[i]);
        kvb_nearest *search = kvb_nearest_create(s->job[i].channels, 1);
        lacking = lacking || search == NULL;
        if (search == NULL)
            continue;
        s->job[i].kernels = kvb_kmeans_kernels_for(search);
        kvb_nearest_destroy(search);
        lacking = kvb_kmeans_seeder_open(&s->job[i], &s->seeder[i], NULL) != KVB_OK || lacking;
    }
    if (lacking)
        status = kvb_fail_memory(err, "the seeding of k-means problems");
    return status;
}

/* The next few centroids of every problem; false where none has any left to draw. */
static bool draw_few(seeding *s)
{
    const batch *b = s->b;
    bool any = false;
#pragma omp parallel for schedule(dynamic, 1) num_threads(b->threads) reduction(|| : any)
    for (size_t i = 0; i < b->count; i++) {
        const uint32_t d = b->items[i].problem->channels;
        const float *rows = NULL;
        s->have[i] = s->seeder[i] != NULL ? kvb_kmeans_seeder_draw(s->seeder[i], &rows) : 0;
        for (uint32_t k = 0; k < s->have[i]; k++)
            memcpy(s->rows + (i * KVB_CUDA_FEW + k) * b->width, rows + (size_t)k * d, d * sizeof *rows);
        any = any || s->have[i] > 0;
    }
    return any;
}

static kvb_status meet_few(seeding *s, kvb_error *err)
{
    const batch *b = s->b;
    kvb_status status = kvb_cuda_points_nearest(b->points, s->rows, s->have, s->index, s->distance, err);
    if (status != KVB_OK)
        return status;
#pragma omp parallel for schedule(dynamic, 1) num_threads(b->threads)
    for (size_t i = 0; i < b->count; i++)
        if (s->have[i] > 0)
            kvb_kmeans_seeder_meet(s->seeder[i], s->index + b->items[i].point_at, s->distance + b->items[i].point_at);
    return KVB_OK;
}

static kvb_status seed_on_device(batch *b, kvb_error *err)
{
    seeding s = {.b = b};
    bool any = false;
    size_t points = 0;
    for (size_t i = 0; i < b->count; i++) {
        b->items[i].point_at = points;
        points += b->items[i].range->training;
        any |= seeds_on_device(b, &b->items[i]);
    }
    if (!any)
        return KVB_OK;
    kvb_status status = seeding_allocate(&s, err);
    while (status == KVB_OK && draw_few(&s)) {
        kvb_kmeans_report(b->run);
        if (atomic_load(&b->run->cancelled))
            status = kvb_fail(err, KVB_E_CANCELLED, "k-means seeding", "cancelled by the progress callback");
        else
            status = meet_few(&s, err);
    }
    seeding_free(&s);
    return status;
}

static bool wants_swap(const batch *b, const item *it, uint32_t iteration)
{
    return it->empty == 0 && iteration % 2 == 1 && it->round < kvb_kmeans_swap_rounds(b->run->options) &&
           it->problem->centroids >= KVB_FEWEST_TO_SWAP;
}

/* Candidates of all problems that swap in this iteration, and what their removal costs, into list. */
static kvb_status find_candidates(batch *b, uint32_t iteration, kvb_error *err)
{
    size_t all = 0;
#pragma omp parallel for schedule(dynamic, 1) num_threads(b->threads)
    for (size_t i = 0; i < b->count; i++) {
        const item *it = &b->items[i];
        kvb_swap_candidate *list = b->list + it->row_at;
        for (uint32_t k = 0; k < it->problem->centroids; k++)
            list[k] = (kvb_swap_candidate){b->errors[it->row_at + k], k};
        if (it->moving && wants_swap(b, it, iteration))
            kvb_kmeans_swap_sort(list, it->problem->centroids);
    }
    for (size_t i = 0; i < b->count; i++) {
        const item *it = &b->items[i];
        b->first[i] = all;
        if (it->moving && wants_swap(b, it, iteration))
            for (uint32_t c = 0; c < it->problem->centroids / KVB_SWAP_FRACTION + 1; c++)
                b->candidates[all++] = b->list[it->row_at + c].cluster;
    }
    b->first[b->count] = all;
    kvb_status status = kvb_cuda_points_removal(b->points, b->candidates, b->first, b->cost, err);
    for (size_t i = 0; i < b->count && status == KVB_OK; i++)
        for (size_t c = b->first[i]; c < b->first[i + 1]; c++) {
            kvb_swap_candidate *candidate = &b->list[b->items[i].row_at + (c - b->first[i])];
            candidate->value = b->cost[c] - candidate->value;
        }
    return status;
}

/* Splits the cluster with the largest share for centroid `to`. */
static void add_draw(batch *b, size_t *all, double *share, uint32_t from, uint32_t to, double unit)
{
    b->draws[*all] = (kvb_cuda_draw){from, unit};
    b->targets[(*all)++] = to;
    share[from] *= 0.5;
}

/* As kvb_kmeans_repair() and kvb_kmeans_swap() choose. The errors serve as shares. */
static void plan_item(batch *b, item *it, uint32_t iteration, size_t *all)
{
    const kvb_kmeans_problem *p = it->problem;
    double *share = b->errors + it->row_at;
    const uint32_t rounds = kvb_kmeans_swap_rounds(b->run->options), count = p->centroids / KVB_SWAP_FRACTION + 1;
    kvb_swap_candidate *list = b->list + it->row_at;
    if (it->empty > 0) {
        const uint64_t key = kvb_rng_key(p->seed, KVB_STREAM_REPAIR, iteration, 0, 0);
        for (uint32_t k = 0; k < p->centroids; k++) {
            if (b->sums[it->sum_at + (size_t)k * (p->channels + 1) + p->channels] > 0.0)
                continue;
            const uint32_t from = kvb_kmeans_largest(share, p->centroids);
            if (!(share[from] > 0.0))
                break;
            add_draw(b, all, share, from, k, kvb_rng_unit(key, k));
        }
        return;
    }
    const uint64_t key = kvb_rng_key(p->seed, KVB_STREAM_SWAP, it->round, 0, 0);
    const double saving = kvb_kmeans_swap_saving(p->channels, it->round++, rounds);
    kvb_kmeans_swap_sort(list, count);
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t from = kvb_kmeans_largest(share, p->centroids), to = list[i].cluster;
        if (list[i].value >= saving * share[from] || from == to || !(share[from] > 0.0))
            break;
        add_draw(b, all, share, from, to, kvb_rng_unit(key, to));
    }
}

static void place_draws(batch *b)
{
    for (size_t i = 0; i < b->count; i++) {
        item *it = &b->items[i];
        const uint32_t d = it->problem->channels;
        uint32_t moved = 0;
        for (size_t n = b->first[i]; n < b->first[i + 1]; n++) {
            if (!b->found[n])
                continue;
            memcpy(b->tables + it->table_at + (size_t)b->targets[n] * d, b->drawn + n * b->width, d * sizeof *b->drawn);
            moved++;
        }
        *(it->empty > 0 ? &it->result.repairs : &it->result.swaps) += moved;
        if (moved > 0)
            it->before = INFINITY;
    }
}

/* After the means moved: centroids that are empty, or do little good, go elsewhere. */
static kvb_status relocate(batch *b, uint32_t iteration, kvb_error *err)
{
    size_t all = 0;
    bool any = false;
    for (size_t i = 0; i < b->count; i++) {
        item *it = &b->items[i];
        it->moving = !it->settled && (it->empty > 0 || wants_swap(b, it, iteration));
        any |= it->moving;
    }
    if (!any)
        return KVB_OK;
    kvb_status status = kvb_cuda_points_errors(b->points, KVB_SIDE_TRAINING, b->tables, b->errors, NULL, err);
    if (status == KVB_OK)
        status = find_candidates(b, iteration, err);
    if (status != KVB_OK)
        return status;
    for (size_t i = 0; i < b->count; i++) {
        b->first[i] = all;
        if (b->items[i].moving)
            plan_item(b, &b->items[i], iteration, &all);
    }
    b->first[b->count] = all;
    status = kvb_cuda_points_draw(b->points, b->draws, b->first, b->drawn, b->found, err);
    if (status == KVB_OK)
        place_draws(b);
    return status;
}

/* Where a tolerance asks: the errors of the assignment just made, and which problems are done. */
static kvb_status settle(batch *b, kvb_error *err)
{
    const double tolerance = b->run->options->tolerance;
    if (!(tolerance > 0.0))
        return KVB_OK;
    kvb_status status = kvb_cuda_points_errors(b->points, KVB_SIDE_TRAINING, b->tables, b->errors, NULL, err);
    for (size_t i = 0; i < b->count && status == KVB_OK; i++) {
        item *it = &b->items[i];
        double error = 0.0;
        for (uint32_t k = 0; k < it->problem->centroids; k++)
            error += b->errors[it->row_at + k];
        it->close = isfinite(it->before) && it->before - error <= tolerance * it->before;
        it->before = error;
    }
    return status;
}

static kvb_status iterate(batch *b, uint32_t iteration, kvb_error *err)
{
    kvb_status status = kvb_cuda_points_assign(b->points, KVB_SIDE_TRAINING, b->tables, b->sums, err);
    if (status == KVB_OK)
        status = settle(b, err);
    if (status != KVB_OK)
        return status;
#pragma omp parallel for schedule(dynamic, 1) num_threads(b->threads)
    for (size_t i = 0; i < b->count; i++) {
        item *it = &b->items[i];
        const uint32_t d = it->problem->channels;
        if (!it->settled)
            kvb_kmeans_curve_note(kvb_kmeans_curve_of(b->run->options, it->number), b->run->options->curve_length, iteration,
                                  b->sums + it->sum_at, d + 1, d, it->problem->centroids, b->tables + it->table_at);
        if (!it->settled)
            it->empty = kvb_kmeans_means(b->sums + it->sum_at, d + 1, d, it->problem->centroids, b->tables + it->table_at);
    }
    status = relocate(b, iteration, err);
    for (size_t i = 0; i < b->count && status == KVB_OK; i++) {
        item *it = &b->items[i];
        if (it->settled)
            continue;
        it->result.iterations++;
        atomic_fetch_add(&b->run->done, 1);
        it->settled = it->close && isfinite(it->before); /* no centroid went elsewhere */
    }
    return status;
}

static kvb_status iterate_all(batch *b, kvb_error *err)
{
    kvb_status status = KVB_OK;
    for (uint32_t i = 0; i < b->run->options->iterations && status == KVB_OK; i++) {
        bool all_settled = true;
        kvb_kmeans_report(b->run);
        if (atomic_load(&b->run->cancelled))
            return kvb_fail(err, KVB_E_CANCELLED, "k-means", "cancelled by the progress callback");
        for (size_t n = 0; n < b->count; n++)
            all_settled &= b->items[n].settled;
        if (all_settled)
            break;
        status = iterate(b, i, err);
    }
    return status;
}

/* --- what the tables are worth --- */

/* Weight and mean over all points of a side, out of its sums. */
static double mean_of(const batch *b, const item *it, double *mean)
{
    const uint32_t d = it->problem->channels;
    double weight = 0.0;
    memset(mean, 0, d * sizeof *mean);
    for (uint32_t k = 0; k < it->problem->centroids; k++) {
        const double *sum = b->sums + it->sum_at + (size_t)k * (d + 1);
        for (uint32_t c = 0; c < d; c++)
            mean[c] += sum[c];
        weight += sum[d];
    }
    for (uint32_t c = 0; c < d; c++)
        mean[c] /= weight;
    return weight;
}

static double total_error(const batch *b, const item *it)
{
    double error = 0.0;
    for (uint32_t k = 0; k < it->problem->centroids; k++)
        error += b->errors[it->row_at + k];
    return error;
}

static void count_codes(const batch *b, item *it)
{
    kvb_kmeans_result *r = &it->result;
    r->used = 0;
    for (uint32_t k = 0; k < it->problem->centroids; k++) {
        const double share = (double)b->counts[it->row_at + k] / (double)it->range->training;
        if (b->counts[it->row_at + k] == 0)
            continue;
        r->used++;
        r->entropy -= share * log2(share);
    }
    r->points_per_centroid = (double)it->range->training / it->problem->centroids;
}

/* Errors of one side with the tables, and with the training mean in place of every centroid. */
static kvb_status measure_side(batch *b, kvb_cuda_side side, double (*mean)[KVB_KMEANS_CHANNELS], float *flat, kvb_error *err)
{
    kvb_status status = kvb_cuda_points_assign(b->points, side, b->tables, b->sums, err);
    if (status == KVB_OK)
        status = kvb_cuda_points_errors(b->points, side, b->tables, b->errors, side == KVB_SIDE_TRAINING ? b->counts : NULL, err);
    for (size_t i = 0; i < b->count && status == KVB_OK; i++) {
        item *it = &b->items[i];
        const uint32_t d = it->problem->channels;
        double own[KVB_KMEANS_CHANNELS], *at = side == KVB_SIDE_TRAINING ? mean[i] : own;
        const double weight = mean_of(b, it, at), unscale = 1.0 / it->frame.scale / it->frame.scale;
        const double error = total_error(b, it) / weight / d * unscale; /* NaN without weight */
        *(side == KVB_SIDE_TRAINING ? &it->result.train_error : &it->result.heldout_error) = error;
        it->before = weight;
        for (size_t j = 0; j < (size_t)it->problem->centroids * d; j++)
            flat[it->table_at + j] = (float)mean[i][j % d];
    }
    if (status == KVB_OK)
        status = kvb_cuda_points_errors(b->points, side, flat, b->errors, NULL, err);
    for (size_t i = 0; i < b->count && status == KVB_OK; i++) {
        item *it = &b->items[i];
        const double unscale = 1.0 / it->frame.scale / it->frame.scale;
        *(side == KVB_SIDE_TRAINING ? &it->result.variance : &it->result.heldout_variance) =
            total_error(b, it) / it->before / it->problem->channels * unscale;
        double squares = total_error(b, it); /* about the origin: with those of the mean */
        for (uint32_t c = 0; c < it->problem->channels; c++)
            squares += it->before * mean[i][c] * mean[i][c];
        if (side == KVB_SIDE_TRAINING)
            kvb_kmeans_curve_finish(kvb_kmeans_curve_of(b->run->options, it->number), b->run->options->curve_length, squares,
                                    it->before, it->problem->channels, unscale);
    }
    return status;
}

static kvb_status measure(batch *b, kvb_error *err)
{
    double(*mean)[KVB_KMEANS_CHANNELS] = kvb_alloc_array(b->count, sizeof *mean);
    float *flat = kvb_alloc_array(b->floats, sizeof *flat);
    kvb_status status = mean != NULL && flat != NULL ? KVB_OK : kvb_fail_memory(err, "the statistics of k-means problems");
    bool heldout = false;
    if (status == KVB_OK)
        status = measure_side(b, KVB_SIDE_TRAINING, mean, flat, err);
    for (size_t i = 0; i < b->count && status == KVB_OK; i++) {
        b->items[i].result.heldout_error = b->items[i].result.heldout_variance = NAN;
        count_codes(b, &b->items[i]);
        heldout |= b->items[i].range->training < b->items[i].problem->count;
    }
    if (status == KVB_OK && heldout)
        status = measure_side(b, KVB_SIDE_HELDOUT, mean, flat, err);
    free(mean);
    free(flat);
    return status;
}

static void write_results(const batch *b, kvb_kmeans_result *results)
{
    for (size_t i = 0; i < b->count; i++) {
        const item *it = &b->items[i];
        const kvb_kmeans_job job = {.problem = it->problem, .frame = it->frame, .channels = it->problem->channels,
                                    .centroids = it->problem->centroids, .table = b->tables + it->table_at};
        kvb_kmeans_write_table(&job);
        if (results != NULL)
            results[it->number] = it->result;
        atomic_fetch_add(&b->run->done, b->run->options->iterations - it->result.iterations);
    }
}

static kvb_status solve_batch(kvb_kmeans_run *run, int threads, item *items, size_t count, kvb_kmeans_result *results,
                              kvb_error *err)
{
    batch b = {.run = run, .threads = threads, .items = items, .count = count,
               .width = kvb_cuda_points_width(items[0].problem->channels)};
    kvb_status status = batch_allocate(&b, err);
    if (status == KVB_OK)
        status = start_all(&b, err);
    if (status == KVB_OK)
        status = open_points(&b, err);
    if (status == KVB_OK)
        status = seed_on_device(&b, err);
    if (status == KVB_OK)
        status = iterate_all(&b, err);
    if (status == KVB_OK && results != NULL)
        status = measure(&b, err);
    if (status == KVB_OK)
        write_results(&b, results);
    batch_free(&b);
    return status;
}

/* Problems of one width lie together, otherwise in their order. */
static int by_width(const void *a, const void *b)
{
    const item *x = a, *y = b;
    const uint32_t p = kvb_cuda_points_width(x->problem->channels), q = kvb_cuda_points_width(y->problem->channels);
    if (p != q)
        return p < q ? -1 : 1;
    return x->number < y->number ? -1 : x->number > y->number;
}

/* As many items from the first on as fit on the device together. */
static size_t fitting(const item *items, size_t count, uint64_t room)
{
    uint64_t bytes = 0;
    size_t n = 0;
    for (; n < count && n < MOST_AT_ONCE; n++) {
        const kvb_kmeans_problem *p = items[n].problem;
        const kvb_cuda_problem d = {.count = p->count, .channels = p->channels, .centroids = p->centroids};
        if (kvb_cuda_points_width(p->channels) != kvb_cuda_points_width(items[0].problem->channels))
            break;
        bytes += kvb_cuda_points_bytes(&d) + p->count * (p->channels + 1) * sizeof(float);
        if (n > 0 && bytes > room)
            break;
    }
    return n;
}

kvb_status kvb_kmeans_on_device(const kvb_kmeans_problem *problems, size_t count, kvb_kmeans_run *run,
                                const kvb_kmeans_range *ranges, int threads, kvb_kmeans_result *results, kvb_error *err)
{
    uint64_t room = 0;
    const kvb_kmeans_options *o = run->options;
    kvb_status status = kvb_cuda_points_device((int)o->device, err);
    if (status == KVB_OK)
        status = kvb_cuda_points_room((int)o->device, &room, err);
    if (status != KVB_OK)
        return status;
    item *items = kvb_alloc_zeroed(count, sizeof *items);
    if (items == NULL)
        return kvb_fail_memory(err, "a batch of k-means problems");
    for (size_t i = 0; i < count; i++)
        items[i] = (item){.number = i, .problem = &problems[i], .range = &ranges[i], .before = INFINITY};
    qsort(items, count, sizeof *items, by_width);
    for (size_t at = 0, many; at < count && status == KVB_OK; at += many) {
        many = fitting(items + at, count - at, room / 10 * 8 / (o->device_callers > 1 ? o->device_callers : 1));
        status = solve_batch(run, threads, items + at, many, results, err);
    }
    free(items);
    if (status == KVB_OK)
        kvb_kmeans_report(run);
    return status;
}
#else
kvb_status kvb_kmeans_on_device(const kvb_kmeans_problem *problems, size_t count, kvb_kmeans_run *run,
                                const kvb_kmeans_range *ranges, int threads, kvb_kmeans_result *results, kvb_error *err)
{
    (void)problems, (void)count, (void)run, (void)ranges, (void)threads, (void)results;
    return kvb_fail(err, KVB_E_USAGE, "k-means options", "this build has no CUDA");
}
#endif
