#include "calib/train.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "calib/train_impl.h"
#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/rng.h"

/* What one layer's training leaves for the book. */
typedef struct layer_result {
    float *table;         /* all codebooks, one after the other */
    float *mean[2];       /* [G][D] by kind, or NULL */
    kvb_quality *quality; /* [codebooks] in the same order */
} layer_result;

typedef struct trainer {
    const kvb_capture *capture;
    const kvb_recipe *recipe;
    const kvb_train_options *options;
    uint32_t holdout_every;
    kvb_layer *layer;     /* [layers] with the recipe's frame */
    kvb_book_part *part;  /* [layers][part_heads][2] */
    layer_result *result; /* [layers] */
    uint32_t part_heads;
    uint64_t done, total; /* codebooks */
    double error_sum[2], heldout_sum[2];
    uint64_t error_count[2];
} trainer;

/* One layer at work: problems in the order head, kind, group. */
typedef struct layer_job {
    trainer *t;
    uint32_t layer;
    kvb_train_points points[2];
    kvb_kmeans_problem *problem;
    kvb_kmeans_result *result;
    size_t count;
} layer_job;

void kvb_train_options_init(kvb_train_options *options)
{
    *options = (kvb_train_options){.holdout_every = 16};
}

static uint32_t groups_of(const trainer *t, uint32_t layer, int kind)
{
    return t->capture->geometry[layer].head_dim / t->recipe->kind[kind].channels;
}

static bool is_trained(const trainer *t, uint32_t layer)
{
    return t->capture->geometry[layer].kind != KVB_LAYER_UNSUPPORTED;
}

/* Codebooks of a layer. */
static size_t count_books(const trainer *t, uint32_t layer)
{
    return is_trained(t, layer) ? (size_t)t->capture->geometry[layer].kv_heads *
                                      (groups_of(t, layer, KVB_KEY) + groups_of(t, layer, KVB_VALUE))
                                : 0;
}

static kvb_status check_shape(const trainer *t, uint32_t layer, kvb_kind kind, kvb_error *err)
{
    char where[64];
    const kvb_recipe_kind *k = &t->recipe->kind[kind];
    uint32_t dim = t->capture->geometry[layer].head_dim;
    snprintf(where, sizeof where, "layer %u, %s", layer, kvb_train_kind_name(kind));
    if (k->channels == 0 || k->centroids == 0)
        return kvb_fail(err, KVB_E_USAGE, where,
                        "recipe \"%s\" leaves the shape open: give the bits, or a shape d x K", t->recipe->name);
    if (dim > KVB_TRAIN_MOST_DIM)
        return kvb_fail(err, KVB_E_USAGE, where, "heads of %u channels; at most %d are supported", dim,
                        KVB_TRAIN_MOST_DIM);
    if (dim % k->channels != 0)
        return kvb_fail(err, KVB_E_USAGE, where,
                        "groups of %u channels do not divide a head of %u; choose d among its divisors", k->channels,
                        dim);
    if (t->capture->rows < k->centroids)
        return kvb_fail(err, KVB_E_USAGE, where,
                        "%" PRIu64 " rows for %u centroids: expected at least as many rows, and 64 a centroid (%" PRIu64
                        ") for a good book; capture more text or choose a smaller K",
                        t->capture->rows, k->centroids, (uint64_t)64 * k->centroids);
    return KVB_OK;
}

static kvb_status check_all(const trainer *t, kvb_error *err)
{
    if (t->capture->layers == 0 || t->capture->rows == 0)
        return kvb_fail(err, KVB_E_USAGE, "capture", "%u layers and %" PRIu64 " rows: nothing to train on",
                        t->capture->layers, t->capture->rows);
    for (uint32_t l = 0; l < t->capture->layers; l++)
        for (int kind = 0; is_trained(t, l) && kind < 2; kind++) {
            kvb_status status = check_shape(t, l, (kvb_kind)kind, err);
            if (status != KVB_OK)
                return status;
        }
    for (uint32_t l = 0; l < t->capture->layers; l++)
        if (is_trained(t, l))
            return KVB_OK;
    return kvb_fail(err, KVB_E_USAGE, "capture", "no layer of it can be calibrated");
}

/* A hold-out must leave enough to train on: short captures go without. */
static uint32_t choose_holdout(const trainer *t)
{
    uint64_t rows = t->capture->rows, every = t->options->holdout_every;
    uint32_t most = t->recipe->kind[0].centroids > t->recipe->kind[1].centroids ? t->recipe->kind[0].centroids
                                                                                : t->recipe->kind[1].centroids;
    if (every < 2 || rows / KVB_HOLDOUT_BLOCK < every)
        return 0;
    uint64_t held = (rows / KVB_HOLDOUT_BLOCK / every + 1) * KVB_HOLDOUT_BLOCK;
    return rows < most + held ? 0 : (uint32_t)every;
}

static kvb_status create(trainer *t, kvb_error *err)
{
    const kvb_capture *c = t->capture;
    t->holdout_every = choose_holdout(t);
    for (uint32_t l = 0; l < c->layers; l++) {
        t->part_heads = c->geometry[l].kv_heads > t->part_heads ? c->geometry[l].kv_heads : t->part_heads;
        t->total += count_books(t, l);
    }
    t->layer = kvb_alloc_array(c->layers, sizeof *t->layer);
    t->part = kvb_alloc_zeroed((size_t)c->layers * t->part_heads * 2, sizeof *t->part);
    t->result = kvb_alloc_zeroed(c->layers, sizeof *t->result);
    if (t->layer == NULL || t->part == NULL || t->result == NULL)
        return kvb_fail_memory(err, "training");
    for (uint32_t l = 0; l < c->layers; l++) {
        t->layer[l] = c->geometry[l];
        t->layer[l].frame = t->recipe->frame;
        t->layer[l].rope_block = t->recipe->frame == KVB_FRAME_BLOCK ? t->recipe->rope_block : 0;
    }
    return KVB_OK;
}

static void destroy(trainer *t)
{
    for (uint32_t l = 0; t->result != NULL && l < t->capture->layers; l++) {
        free(t->result[l].table);
        free(t->result[l].mean[0]);
        free(t->result[l].mean[1]);
        free(t->result[l].quality);
    }
    free(t->result);
    free(t->part);
    free(t->layer);
}

/* Floats of a layer's tables: G heads of S*K*d = K*D, for K and for V. */
static size_t table_floats(const trainer *t, uint32_t layer)
{
    const kvb_layer *g = &t->capture->geometry[layer];
    return (size_t)g->kv_heads * g->head_dim *
           ((size_t)t->recipe->kind[KVB_KEY].centroids + t->recipe->kind[KVB_VALUE].centroids);
}

/* The group's points inside the captured half floats, or inside the moved copy. */
static kvb_kmeans_problem make_problem(const layer_job *job, uint32_t head, int kind, uint32_t group, float *table)
{
    const trainer *t = job->t;
    const kvb_train_points *p = &job->points[kind];
    const kvb_capture_layer *l = &t->capture->layer[job->layer];
    uint32_t dim = t->capture->geometry[job->layer].head_dim, channels = t->recipe->kind[kind].channels;
    size_t first = head * (size_t)t->capture->rows * dim + (size_t)group * channels;
    const uint16_t *half = (kind == KVB_KEY ? l->keys : l->values) + first;
    return (kvb_kmeans_problem){
        .points = p->moved != NULL ? (const void *)(p->moved + first) : (const void *)half,
        .type = p->moved != NULL ? KVB_POINTS_F32 : KVB_POINTS_F16,
        .count = (size_t)t->capture->rows,
        .stride = dim,
        .channels = channels,
        .centroids = t->recipe->kind[kind].centroids,
        .weights = p->weight != NULL ? p->weight + head * (size_t)t->capture->rows : NULL,
        .seed = kvb_rng_key(t->options->seed, job->layer, head, (uint64_t)kind, group),
        .table = table,
    };
}

static void fill_problems(layer_job *job)
{
    trainer *t = job->t;
    layer_result *r = &t->result[job->layer];
    float *table = r->table;
    uint32_t dim = t->capture->geometry[job->layer].head_dim;
    for (uint32_t head = 0; head < t->capture->geometry[job->layer].kv_heads; head++)
        for (int kind = 0; kind < 2; kind++) {
            const kvb_recipe_kind *k = &t->recipe->kind[kind];
            t->part[((size_t)job->layer * t->part_heads + head) * 2 + (size_t)kind] = (kvb_book_part){
                .channels = k->channels,
                .centroids = k->centroids,
                .table = table,
                .mean = r->mean[kind] != NULL ? r->mean[kind] + (size_t)head * dim : NULL,
                .quality = r->quality + job->count,
            };
            for (uint32_t group = 0; group < groups_of(t, job->layer, kind); group++) {
                job->problem[job->count++] = make_problem(job, head, kind, group, table);
                table += (size_t)k->centroids * k->channels;
            }
        }
}

static int forward_progress(void *user, const char *step, uint64_t done, uint64_t total)
{
    const layer_job *job = user;
    const trainer *t = job->t;
    (void)step;
    uint64_t share = total != 0 ? done * job->count / total : 0;
    return t->options->progress(t->options->progress_user, "train", t->done + share, t->total);
}

static kvb_status solve(layer_job *job, kvb_error *err)
{
    const trainer *t = job->t;
    kvb_kmeans_options options;
    kvb_kmeans_options_init(&options);
    options.iterations = t->recipe->iterations;
    options.seeding = t->recipe->seeding;
    options.backend = t->recipe->backend;
    options.holdout_every = t->holdout_every;
    options.holdout_block = KVB_HOLDOUT_BLOCK;
    options.threads = t->options->threads;
    options.progress = t->options->progress != NULL ? forward_progress : NULL;
    options.progress_user = job;
    kvb_error inner = {0};
    kvb_status status = kvb_kmeans_train(job->problem, job->count, &options, job->result, &inner);
    if (status == KVB_OK)
        return status;
    char where[256];
    snprintf(where, sizeof where, "layer %u: %.200s", job->layer, inner.where);
    return kvb_fail(err, status, where, "%s", inner.message);
}

/* Relative to a predictor that only knows the mean; a group whose rows are all equal has nothing to relate to. */
static kvb_status judge(layer_job *job, kvb_error *err)
{
    trainer *t = job->t;
    size_t i = 0;
    for (uint32_t head = 0; head < t->capture->geometry[job->layer].kv_heads; head++)
        for (int kind = 0; kind < 2; kind++)
            for (uint32_t group = 0; group < groups_of(t, job->layer, kind); group++, i++) {
                const kvb_kmeans_result *r = &job->result[i];
                if (!(r->variance > 0.0)) {
                    char where[128];
                    snprintf(where, sizeof where, "layer %u, KV head %u, %s, group %u", job->layer, head,
                             kvb_train_kind_name((kvb_kind)kind), group);
                    return kvb_fail(err, KVB_E_CHECK, where,
                                    "all rows are equal: expected data that varies; is the capture what it should be?");
                }
                double error = r->train_error / r->variance, heldout = r->heldout_error / r->heldout_variance;
                t->result[job->layer].quality[i] = (kvb_quality){
                    .train_error = (float)error,
                    .heldout_error = (float)heldout,
                    .usage = (float)r->used / (float)t->recipe->kind[kind].centroids,
                    .entropy = (float)r->entropy,
                };
                t->error_sum[kind] += error;
                t->heldout_sum[kind] += heldout;
                t->error_count[kind]++;
            }
    return KVB_OK;
}

static kvb_status make_points(layer_job *job, kvb_error *err)
{
    const trainer *t = job->t;
    for (int kind = 0; kind < 2; kind++) {
        job->points[kind] = (kvb_train_points){.capture = t->capture, .recipe = t->recipe, .layer = job->layer,
                                               .threads = t->options->threads, .kind = (kvb_kind)kind};
        kvb_status status = kvb_train_points_create(&job->points[kind], err);
        if (status != KVB_OK)
            return status;
        t->result[job->layer].mean[kind] = job->points[kind].mean;
        job->points[kind].mean = NULL;
    }
    return KVB_OK;
}

static kvb_status train_layer(trainer *t, uint32_t layer, kvb_error *err)
{
    layer_job job = {.t = t, .layer = layer};
    layer_result *r = &t->result[layer];
    size_t books = count_books(t, layer);
    kvb_status status = make_points(&job, err);
    if (status != KVB_OK)
        goto out;
    r->table = kvb_alloc_array(table_floats(t, layer), sizeof *r->table);
    r->quality = kvb_alloc_zeroed(books, sizeof *r->quality);
    job.problem = kvb_alloc_zeroed(books, sizeof *job.problem);
    job.result = kvb_alloc_zeroed(books, sizeof *job.result);
    if (r->table == NULL || r->quality == NULL || job.problem == NULL || job.result == NULL) {
        status = kvb_fail_memory(err, "training");
        goto out;
    }
    fill_problems(&job);
    status = solve(&job, err);
    if (status == KVB_OK)
        status = judge(&job, err);
out:
    kvb_train_points_free(&job.points[0]);
    kvb_train_points_free(&job.points[1]);
    free(job.problem);
    free(job.result);
    return status;
}

static kvb_status report_progress(const trainer *t, kvb_error *err)
{
    const kvb_train_options *o = t->options;
    if (o->progress == NULL || o->progress(o->progress_user, "train", t->done, t->total) == 0)
        return KVB_OK;
    return kvb_fail(err, KVB_E_CANCELLED, "training", "stopped after %" PRIu64 " of %" PRIu64 " codebooks", t->done,
                    t->total);
}

static kvb_status train_layers(trainer *t, kvb_error *err)
{
    kvb_status status = report_progress(t, err);
    for (uint32_t l = 0; status == KVB_OK && l < t->capture->layers; l++) {
        if (!is_trained(t, l))
            continue;
        status = train_layer(t, l, err);
        if (status != KVB_OK)
            return status;
        t->done += count_books(t, l);
        status = report_progress(t, err);
    }
    return status;
}

static kvb_train_report summarise(const trainer *t)
{
    const kvb_recipe_kind *k = &t->recipe->kind[KVB_KEY], *v = &t->recipe->kind[KVB_VALUE];
    uint32_t most = k->centroids > v->centroids ? k->centroids : v->centroids;
    double rows = (double)t->capture->rows;
    if (t->holdout_every != 0)
        rows -= rows / t->holdout_every;
    return (kvb_train_report){
        .key_error = t->error_sum[KVB_KEY] / (double)t->error_count[KVB_KEY],
        .value_error = t->error_sum[KVB_VALUE] / (double)t->error_count[KVB_VALUE],
        .key_heldout_error = t->heldout_sum[KVB_KEY] / (double)t->error_count[KVB_KEY],
        .value_heldout_error = t->heldout_sum[KVB_VALUE] / (double)t->error_count[KVB_VALUE],
        .points_per_centroid = rows / most,
    };
}

static kvb_status build(const trainer *t, const kvb_train_report *report, uint8_t **image, size_t *size, kvb_error *err)
{
    char *meta = NULL;
    kvb_status status =
        kvb_train_meta_write(t->capture, t->recipe, t->options, report, t->holdout_every, &meta, err);
    if (status != KVB_OK)
        return status;
    kvb_book_spec spec = {
        .layers = t->capture->layers, .layer = t->layer, .part = t->part, .part_heads = t->part_heads,
        .policy = t->recipe->policy, .meta_json = meta, .compress = true,
    };
    status = kvb_book_build(&spec, image, size, err);
    free(meta);
    return status;
}

static double now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + 1e-9 * (double)at.tv_nsec;
}

kvb_status kvb_train_book(const kvb_capture *capture, const kvb_recipe *recipe, const kvb_train_options *options,
                          uint8_t **image, size_t *size, kvb_train_report *report, kvb_error *err)
{
    double start = now();
    trainer t = {.capture = capture, .recipe = recipe, .options = options};
    *image = NULL;
    *size = 0;
    kvb_status status = check_all(&t, err);
    if (status == KVB_OK)
        status = create(&t, err);
    if (status == KVB_OK)
        status = train_layers(&t, err);
    if (status == KVB_OK) {
        kvb_train_report summary = summarise(&t);
        status = build(&t, &summary, image, size, err);
        summary.seconds = now() - start;
        if (report != NULL)
            *report = summary;
    }
    destroy(&t);
    return status;
}
