/* One layer of a training job: its points, the k-means problems of its groups, and how well they came out. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "calib/additive.h"
#include "calib/train_impl.h"
#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/grid.h"
#include "format/base/rng.h"

/* Points a centroid, or row of a stage, beyond which more of them change nothing worth the time; and the least sample. */
enum { SAMPLE_PER_ROW = 1024, SAMPLE_LEAST = 16384, SAMPLE_STEPS = 24 };

/* One layer at work: problems in the order head, kind, group; first of the codebooks, then of the fine ones. */
typedef struct layer_job {
    kvb_trainer *t;
    uint32_t layer;
    bool fine;
    kvb_train_points points[2];
    kvb_kmeans_problem *problem;
    uint32_t *stages; /* of each problem: 1 for a plain codebook */
    kvb_kmeans_result *result;
    double *curve;    /* [count][curve length] */
    float *sampled[2][SAMPLE_STEPS]; /* [G][rows / step] weights of every 2^i-th row, where used */
    float **own;      /* [count] weights of a problem's own, or NULL */
    size_t count;
} layer_job;

size_t kvb_train_count(const kvb_trainer *t, uint32_t layer, bool fine)
{
    size_t count = 0;
    if (!kvb_train_has(t, layer) || (fine && !kvb_recipe_has_fine(t->recipe)))
        return 0;
    for (uint32_t head = 0; head < t->capture->geometry[layer].kv_heads; head++)
        count += kvb_train_groups(t, layer, head, KVB_KEY, fine) + kvb_train_groups(t, layer, head, KVB_VALUE, fine);
    return count;
}

/* Rows of a group's table: K, or M*Km. */
static size_t table_rows(const kvb_shape *shape)
{
    return (size_t)shape->stages * shape->centroids;
}

size_t kvb_train_table_floats(const kvb_trainer *t, uint32_t layer, bool fine)
{
    const kvb_layer *g = &t->capture->geometry[layer];
    size_t rows = 0;
    for (uint32_t i = 0; i < 2 * g->kv_heads; i++) {
        const kvb_shape shape = kvb_train_shape(t, layer, i / 2, i % 2, fine);
        rows += kvb_train_groups(t, layer, i / 2, i % 2, fine) > 0 ? table_rows(&shape) : 0;
    }
    return rows * g->head_dim;
}

kvb_kmeans_problem kvb_train_problem(const kvb_trainer *t, const kvb_train_points *points, uint32_t head,
                                     const kvb_shape *shape, uint32_t group)
{
    const kvb_capture_layer *l = &t->capture->layer[points->layer];
    uint32_t dim = t->capture->geometry[points->layer].head_dim;
    size_t first = head * (size_t)t->capture->rows * dim + (size_t)group * shape->channels;
    const uint16_t *half = (points->kind == KVB_KEY ? l->keys : l->values) + first;
    return (kvb_kmeans_problem){
        .points = points->moved != NULL ? (const void *)(points->moved + first) : (const void *)half,
        .type = points->moved != NULL ? KVB_POINTS_F32 : KVB_POINTS_F16,
        .count = (size_t)t->capture->rows,
        .stride = dim,
        .channels = shape->channels,
        .centroids = shape->centroids,
        .weights = points->weight != NULL ? points->weight + head * (size_t)t->capture->rows : NULL,
    };
}

/* log2 of the step between the rows that a shape is trained on. */
static uint32_t sample_step(const kvb_trainer *t, const kvb_shape *shape)
{
    uint64_t wanted = (uint64_t)SAMPLE_PER_ROW * shape->stages * shape->centroids;
    uint32_t step = 0;
    wanted = wanted > SAMPLE_LEAST ? wanted : SAMPLE_LEAST;
    while (step + 1 < SAMPLE_STEPS && t->capture->rows >> (step + 1) >= wanted)
        step++;
    return step;
}

/* Makes sure that the weights of an even sample are there. */
static kvb_status sample_weights(layer_job *job, int kind, uint32_t step, kvb_error *err)
{
    const size_t n = job->t->capture->rows, rows = n >> step, heads = job->t->capture->geometry[job->layer].kv_heads;
    const float *weight = job->points[kind].weight;
    if (step == 0 || weight == NULL || job->points[kind].gradient != NULL || job->sampled[kind][step] != NULL)
        return KVB_OK;
    float *to = kvb_alloc_array(heads * rows, sizeof *to);
    if ((job->sampled[kind][step] = to) == NULL)
        return kvb_fail_memory(err, "training weights");
    for (size_t head = 0; head < heads; head++)
        for (size_t i = 0; i < rows; i++)
            to[head * rows + i] = weight[head * n + (i << step)];
    return KVB_OK;
}

static kvb_status thin_out(const layer_job *job, uint32_t head, int kind, uint32_t group, uint32_t step,
                           kvb_kmeans_problem *problem, kvb_error *err)
{
    problem->count >>= step;
    problem->stride <<= step;
    if (job->points[kind].gradient != NULL) {
        float *own = kvb_alloc_array(problem->count, sizeof *own);
        if (own == NULL)
            return kvb_fail_memory(err, "training weights");
        kvb_train_fisher_group(&job->points[kind], head, problem->channels, group, (size_t)1 << step, problem->count, own);
        free(job->own[job->count]);
        problem->weights = job->own[job->count] = own;
        return KVB_OK;
    }
    if (step > 0 && problem->weights != NULL)
        problem->weights = job->sampled[kind][step] + head * problem->count;
    return KVB_OK;
}

/* Where the codebook of a head and kind goes in the book. */
static kvb_book_part *part_of(const kvb_trainer *t, uint32_t layer, bool fine, uint32_t head, int kind)
{
    kvb_layer_result *r = &t->result[layer];
    return fine ? &r->fine[head * 2 + (uint32_t)kind] : &t->part[kvb_train_item(t, layer, head, kind)];
}

/* Means, transforms and quality stand with the coarse codebook; the fine one hangs on to it. `first` codebooks of the layer lie
 * before it. */
static void describe_part(const kvb_trainer *t, uint32_t layer, bool fine, uint32_t head, int kind, float *table, size_t first)
{
    const kvb_layer_result *r = &t->result[layer];
    const kvb_shape shape = kvb_train_shape(t, layer, head, kind, fine);
    const uint32_t dim = t->capture->geometry[layer].head_dim;
    kvb_book_part *part = part_of(t, layer, fine, head, kind);
    *part = (kvb_book_part){
        .channels = shape.channels, .centroids = shape.centroids, .stages = shape.stages, .table = table,
    };
    if (fine) {
        t->part[kvb_train_item(t, layer, head, kind)].fine = part;
        return;
    }
    if (t->recipe->kind[kind].scale.used) {
        part->scaling = &r->scaling[kind][head];
        part->table = r->levels[kind];
    }
    part->mean = r->mean[kind] != NULL ? r->mean[kind] + (size_t)head * dim : NULL;
    part->forward = r->forward[kind] != NULL ? r->forward[kind] + (size_t)head * dim * dim : NULL;
    part->inverse = r->inverse[kind] != NULL ? r->inverse[kind] + (size_t)head * dim * dim : NULL;
    part->quality = part->scaling == NULL ? r->quality + first : NULL;
}

void kvb_train_describe(const kvb_trainer *t, uint32_t layer, bool fine)
{
    float *table = fine ? t->result[layer].fine_table : t->result[layer].table;
    size_t first = 0;
    for (uint32_t i = 0; i < 2 * t->capture->geometry[layer].kv_heads; i++) {
        const kvb_shape shape = kvb_train_shape(t, layer, i / 2, (int)(i % 2), fine);
        const uint32_t groups = kvb_train_groups(t, layer, i / 2, (int)(i % 2), fine);
        describe_part(t, layer, fine, i / 2, (int)(i % 2), table, first);
        table += groups * table_rows(&shape) * shape.channels;
        first += groups;
    }
}

static kvb_status fill_problems(layer_job *job, float *table, kvb_error *err)
{
    const kvb_trainer *t = job->t;
    job->count = 0;
    for (uint32_t head = 0; head < t->capture->geometry[job->layer].kv_heads; head++)
        for (int kind = 0; kind < 2; kind++) {
            const kvb_shape shape = kvb_train_shape(t, job->layer, head, kind, job->fine);
            const uint32_t step = sample_step(t, &shape);
            kvb_status status = sample_weights(job, kind, step, err);
            if (status != KVB_OK)
                return status;
            describe_part(t, job->layer, job->fine, head, kind, table, job->count);
            for (uint32_t group = 0; group < kvb_train_groups(t, job->layer, head, kind, job->fine); group++) {
                kvb_kmeans_problem *problem = &job->problem[job->count];
                *problem = kvb_train_problem(t, &job->points[kind], head, &shape, group);
                status = thin_out(job, head, kind, group, step, problem, err);
                if (status != KVB_OK)
                    return status;
                problem->seed = kvb_rng_key(t->options->seed, job->layer, head, (uint64_t)kind + (job->fine ? 2 : 0), group);
                problem->table = table;
                job->stages[job->count++] = shape.stages;
                table += table_rows(&shape) * shape.channels;
            }
        }
    return KVB_OK;
}

static int forward_progress(void *user, const char *step, uint64_t done, uint64_t total)
{
    const layer_job *job = user;
    const kvb_trainer *t = job->t;
    (void)step;
    uint64_t share = total != 0 ? done * job->count / total : 0;
    uint64_t before = t->done + (job->fine ? kvb_train_count(t, job->layer, false) : 0);
    return t->options->progress(t->options->progress_user, "train", before + share, t->total);
}

static kvb_status solve(layer_job *job, kvb_error *err)
{
    const kvb_trainer *t = job->t;
    if (job->count == 0)
        return KVB_OK;
    kvb_additive_options options;
    kvb_additive_options_init(&options);
    options.kmeans.iterations = t->recipe->iterations;
    options.kmeans.seeding = t->recipe->seeding;
    options.kmeans.curve = job->curve;
    options.kmeans.curve_length = kvb_train_curve_length(t->recipe);
    options.kmeans.backend = t->recipe->backend;
    if (t->recipe->backend == KVB_KMEANS_OWN && t->options->device != KVB_DEVICE_CPU) {
        options.kmeans.backend = KVB_KMEANS_CUDA;
        options.kmeans.device = t->gpu;
        options.kmeans.device_callers = t->gpu_lanes;
    }
    options.kmeans.holdout_every = t->holdout_every;
    options.kmeans.holdout_block = KVB_HOLDOUT_BLOCK;
    options.kmeans.threads = t->options->threads;
    options.kmeans.progress = t->options->progress != NULL ? forward_progress : NULL;
    options.kmeans.progress_user = job;
    kvb_error inner = {0};
    kvb_status status = kvb_additive_train(job->problem, job->stages, job->count, &options, job->result, &inner);
    if (status == KVB_OK)
        return status;
    char where[256];
    snprintf(where, sizeof where, "layer %u: %.200s", job->layer, inner.where);
    return kvb_fail(err, status, where, "%s", inner.message);
}

/* What the variance of a head's groups must exceed. After a rotation a group can be left with the rounding of float32
 * alone, where the rows vary in fewer directions than there are groups. */
static double least_variance(const layer_job *job, const kvb_kmeans_result *result, uint32_t groups, int kind)
{
    double most = 0.0;
    if (job->t->result[job->layer].forward[kind] == NULL)
        return 0.0;
    for (uint32_t group = 0; group < groups; group++)
        most = result[group].variance > most ? result[group].variance : most;
    return 1e-10 * most;
}

static kvb_status refuse_group(const layer_job *job, uint32_t head, int kind, uint32_t group, kvb_error *err)
{
    char where[128];
    snprintf(where, sizeof where, "layer %u, KV head %u, %s, %sgroup %u", job->layer, head,
             kvb_train_kind_name((kvb_kind)kind), job->fine ? "fine " : "", group);
    if (job->t->result[job->layer].forward[kind] != NULL)
        return kvb_fail(err, KVB_E_CHECK, where, "all rows are equal but for rounding: they vary in fewer directions than "
                                                 "there are groups; choose a larger d, or \"rotation\": \"none\"");
    return kvb_fail(err, KVB_E_CHECK, where,
                    "all rows are equal: expected data that varies; is the capture what it should be?");
}

/* Relative to a predictor that only knows the mean; a group whose rows are all equal has nothing to relate to. */
static kvb_status judge_head(layer_job *job, size_t first, uint32_t head, int kind, kvb_error *err)
{
    kvb_trainer *t = job->t;
    kvb_layer_sums *sums = &t->result[job->layer].sums;
    const kvb_shape shape = kvb_train_shape(t, job->layer, head, kind, job->fine);
    const uint32_t groups = kvb_train_groups(t, job->layer, head, kind, job->fine);
    const double least = least_variance(job, job->result + first, groups, kind);
    for (uint32_t group = 0; group < groups; group++) {
        const kvb_kmeans_result *r = &job->result[first + group];
        if (!(r->variance > least))
            return refuse_group(job, head, kind, group, err);
        double error = r->train_error / r->variance, heldout = r->heldout_error / r->heldout_variance;
        if (job->fine) {
            sums->fine[kind] += error;
            sums->fine_count[kind]++;
            continue;
        }
        t->result[job->layer].quality[first + group] = (kvb_quality){
            .train_error = (float)error,
            .heldout_error = (float)heldout,
            .usage = (float)r->used / (float)table_rows(&shape),
            .entropy = (float)r->entropy,
        };
        sums->error[kind] += error;
        sums->heldout[kind] += heldout;
        sums->count[kind]++;
    }
    return KVB_OK;
}

/* The head's curve, its groups found good; NaN past its end. */
static void draw_curve(const layer_job *job, size_t first, uint32_t head, int kind)
{
    const uint32_t groups = kvb_train_groups(job->t, job->layer, head, kind, false), length = kvb_train_curve_length(job->t->recipe);
    float *to = job->t->result[job->layer].curve + (2 * (size_t)head + (size_t)kind) * (length + 1);
    uint32_t longest = 0;
    for (uint32_t g = 0; g < groups; g++)
        longest = job->result[first + g].iterations > longest ? job->result[first + g].iterations : longest;
    for (uint32_t i = 0; i <= length; i++) {
        double sum = i <= longest ? 0.0 : NAN;
        for (uint32_t g = 0; g < groups; g++) {
            const kvb_kmeans_result *r = &job->result[first + g];
            sum += (i < r->iterations ? job->curve[(first + g) * length + i] : r->train_error) / r->variance;
        }
        to[i] = (float)(sum / groups);
    }
}

static kvb_status judge(layer_job *job, kvb_error *err)
{
    size_t first = 0;
    kvb_status status = KVB_OK;
    for (uint32_t i = 0; status == KVB_OK && i < 2 * job->t->capture->geometry[job->layer].kv_heads; i++) {
        status = judge_head(job, first, i / 2, i % 2, err);
        if (status == KVB_OK && !job->fine)
            draw_curve(job, first, i / 2, i % 2);
        first += kvb_train_groups(job->t, job->layer, i / 2, i % 2, job->fine);
    }
    return status;
}

kvb_status kvb_train_points_of(const kvb_trainer *t, uint32_t layer, kvb_kind kind, kvb_train_points *points,
                               kvb_error *err)
{
    *points = (kvb_train_points){.capture = t->capture, .recipe = t->recipe, .layer = layer,
                                 .threads = t->options->threads, .kind = kind, .seed = t->options->seed};
    return kvb_train_points_create(points, err);
}

static kvb_status make_points(layer_job *job, kvb_error *err)
{
    const kvb_trainer *t = job->t;
    for (int kind = 0; kind < 2; kind++) {
        kvb_status status = kvb_train_points_of(t, job->layer, (kvb_kind)kind, &job->points[kind], err);
        if (status != KVB_OK)
            return status;
        kvb_layer_result *r = &t->result[job->layer];
        r->mean[kind] = job->points[kind].mean;
        r->forward[kind] = job->points[kind].forward;
        r->inverse[kind] = job->points[kind].inverse;
        job->points[kind].mean = job->points[kind].forward = job->points[kind].inverse = NULL;
    }
    return KVB_OK;
}

static kvb_status train_tables(layer_job *job, float *table, kvb_error *err)
{
    kvb_status status = fill_problems(job, table, err);
    if (status == KVB_OK)
        status = solve(job, err);
    return status == KVB_OK ? judge(job, err) : status;
}

/* Rounds the layer's coarse centroids to multiples of steps of their channels. The errors judged above are those before: rounding
 * adds a part in a thousand of an error of 1 bit. */
static kvb_status snap_tables(const kvb_trainer *t, uint32_t layer, float *table, kvb_error *err)
{
    const kvb_layer *g = &t->capture->geometry[layer];
    float *step = kvb_alloc_array(g->head_dim, sizeof *step);
    if (step == NULL)
        return kvb_fail_memory(err, "training");
    for (uint32_t i = 0; i < 2 * g->kv_heads; i++) {
        if (kvb_train_groups(t, layer, i / 2, (int)(i % 2), false) == 0)
            continue;
        const kvb_shape shape = kvb_train_shape(t, layer, i / 2, (int)(i % 2), false);
        const kvb_grid grid = kvb_grid_of(g, (kvb_kind)(i % 2), shape.channels, shape.stages, shape.centroids);
        kvb_grid_steps(&grid, table, step);
        kvb_grid_snap(&grid, table, step);
        table += table_rows(&shape) * g->head_dim;
    }
    free(step);
    return KVB_OK;
}

/* The same points and weights again, in groups of the fine shapes. */
static kvb_status train_fine(layer_job *job, kvb_error *err)
{
    kvb_layer_result *r = &job->t->result[job->layer];
    if (!kvb_recipe_has_fine(job->t->recipe))
        return KVB_OK;
    r->fine = kvb_alloc_zeroed((size_t)2 * job->t->capture->geometry[job->layer].kv_heads, sizeof *r->fine);
    r->fine_table = kvb_alloc_array(kvb_train_table_floats(job->t, job->layer, true), sizeof *r->fine_table);
    if (r->fine == NULL || r->fine_table == NULL)
        return kvb_fail_memory(err, "training");
    job->fine = true;
    return train_tables(job, r->fine_table, err);
}

kvb_status kvb_train_layer(kvb_trainer *t, uint32_t layer, kvb_error *err)
{
    layer_job job = {.t = t, .layer = layer};
    kvb_layer_result *r = &t->result[layer];
    size_t books = kvb_train_count(t, layer, false), fine = kvb_train_count(t, layer, true);
    size_t most = books > fine ? books : fine;
    kvb_status status = kvb_train_scale(t, layer, err);
    if (status == KVB_OK)
        status = kvb_train_count_scores(t, layer, err);
    if (status == KVB_OK)
        status = make_points(&job, err);
    if (status != KVB_OK)
        goto out;
    most = most > 0 ? most : 1; /* numbers with scales have no codebooks */
    r->table = kvb_alloc_array(kvb_train_table_floats(t, layer, false) + 1, sizeof *r->table);
    r->quality = kvb_alloc_zeroed(books + 1, sizeof *r->quality);
    job.problem = kvb_alloc_zeroed(most, sizeof *job.problem);
    job.stages = kvb_alloc_zeroed(most, sizeof *job.stages);
    job.result = kvb_alloc_zeroed(most, sizeof *job.result);
    job.own = kvb_alloc_zeroed(most, sizeof *job.own);
    job.curve = kvb_alloc_array(most, kvb_train_curve_length(t->recipe) * sizeof *job.curve);
    r->curve = kvb_alloc_array((size_t)2 * t->capture->geometry[layer].kv_heads,
                               (kvb_train_curve_length(t->recipe) + 1) * sizeof *r->curve);
    if (job.curve == NULL || r->curve == NULL || job.own == NULL || r->table == NULL || r->quality == NULL || job.problem == NULL || job.stages == NULL || job.result == NULL) {
        status = kvb_fail_memory(err, "training");
        goto out;
    }
    status = train_tables(&job, r->table, err);
    if (status == KVB_OK && t->recipe->int8)
        status = snap_tables(t, layer, r->table, err);
    if (status == KVB_OK)
        status = train_fine(&job, err);
out:
    kvb_train_points_free(&job.points[0]);
    kvb_train_points_free(&job.points[1]);
    for (int i = 0; i < 2 * SAMPLE_STEPS; i++)
        free(job.sampled[i / SAMPLE_STEPS][i % SAMPLE_STEPS]);
    for (size_t i = 0; job.own != NULL && i < most; i++)
        free(job.own[i]);
    free(job.own);
    free(job.problem);
    free(job.stages);
    free(job.result);
    free(job.curve);
    return status;
}
