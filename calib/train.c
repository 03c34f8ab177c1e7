#include "calib/train.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "calib/train_impl.h"
#include "format/base/checked.h"
#include "format/base/fail.h"

void kvb_train_options_init(kvb_train_options *options)
{
    *options = (kvb_train_options){.holdout_every = 16};
}

static uint64_t count_all(const kvb_trainer *t, uint32_t layer)
{
    return kvb_train_count(t, layer, false) + kvb_train_count(t, layer, true);
}

/* The largest K, or rows of a stage, of the recipe's codebooks. */
static uint32_t most_centroids(const kvb_trainer *t)
{
    uint32_t most = 0;
    for (int i = 0; i < 4; i++) {
        const kvb_recipe_kind *k = &t->recipe->kind[i % 2];
        const uint32_t centroids = i > 1 ? k->fine.centroids : k->shape.centroids;
        most = centroids > most ? centroids : most;
    }
    for (uint32_t i = 0; i < t->recipe->ladder_count; i++)
        most = t->recipe->ladder[i].centroids > most ? t->recipe->ladder[i].centroids : most;
    return most;
}

static kvb_status check_shape(const kvb_trainer *t, uint32_t layer, kvb_kind kind, bool fine,
                              const kvb_shape *k, kvb_error *err)
{
    char where[64];
    uint32_t dim = t->capture->geometry[layer].head_dim;
    snprintf(where, sizeof where, "layer %u, %s%s", layer, kvb_train_kind_name(kind), fine ? " (fine)" : "");
    if (k->channels == 0 || k->centroids == 0)
        return kvb_fail(err, KVB_E_USAGE, where,
                        "recipe \"%s\" leaves the shape open: give the bits, or a shape such as 8x256", t->recipe->name);
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

static kvb_status check_all(const kvb_trainer *t, kvb_error *err)
{
    if (t->capture->layers == 0 || t->capture->rows == 0)
        return kvb_fail(err, KVB_E_USAGE, "capture", "%u layers and %" PRIu64 " rows: nothing to train on",
                        t->capture->layers, t->capture->rows);
    for (uint32_t l = 0; l < t->capture->layers; l++)
        for (int i = 0; kvb_train_has(t, l) && i < (kvb_recipe_has_fine(t->recipe) ? 4 : 2); i++) {
            const kvb_recipe_kind *k = &t->recipe->kind[i % 2];
            kvb_status status = check_shape(t, l, (kvb_kind)(i % 2), i > 1, i > 1 ? &k->fine : &k->shape, err);
            for (uint32_t s = 0; status == KVB_OK && s < t->recipe->ladder_count; s++)
                status = check_shape(t, l, (kvb_kind)(i % 2), false, &t->recipe->ladder[s], err);
            if (status != KVB_OK)
                return status;
        }
    const kvb_train_options *o = t->options;
    if (o->first_layer >= t->capture->layers || o->layer_count > t->capture->layers - o->first_layer)
        return kvb_fail(err, KVB_E_USAGE, "--layers", "layers %u to %u, the capture has 0 to %u", o->first_layer,
                        o->first_layer + o->layer_count - 1, t->capture->layers - 1);
    for (uint32_t l = 0; l < t->capture->layers; l++)
        if (kvb_train_wants(t, l))
            return KVB_OK;
    return kvb_fail(err, KVB_E_USAGE, "capture", "no layer of it that was asked for can be calibrated");
}

/* A hold-out must leave enough to train on: short captures go without. */
static uint32_t choose_holdout(const kvb_trainer *t)
{
    uint64_t rows = t->capture->rows, every = t->options->holdout_every;
    uint32_t most = most_centroids(t);
    if (every < 2 || rows / KVB_HOLDOUT_BLOCK < every)
        return 0;
    uint64_t held = (rows / KVB_HOLDOUT_BLOCK / every + 1) * KVB_HOLDOUT_BLOCK;
    return rows < most + held ? 0 : (uint32_t)every;
}

static kvb_status create(kvb_trainer *t, kvb_error *err)
{
    const kvb_capture *c = t->capture;
    t->holdout_every = choose_holdout(t);
    for (uint32_t l = 0; l < c->layers; l++) {
        t->part_heads = c->geometry[l].kv_heads > t->part_heads ? c->geometry[l].kv_heads : t->part_heads;
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
        if (kvb_train_has(t, l) && !kvb_train_wants(t, l)) {
            t->layer[l].kind = KVB_LAYER_UNSUPPORTED;
            t->layer[l].sliding_window = 0;
        }
    }
    return KVB_OK;
}

void kvb_train_free_layer(kvb_layer_result *r)
{
    free(r->table);
    for (int kind = 0; kind < 2; kind++) {
        free(r->mean[kind]);
        free(r->forward[kind]);
        free(r->inverse[kind]);
        free(r->levels[kind]);
        free(r->fixed[kind]);
        free(r->lists[kind]);
        free(r->clips[kind]);
        free(r->scaling[kind]);
    }
    free(r->quality);
    free(r->curve);
    free(r->fine_table);
    free(r->fine);
    *r = (kvb_layer_result){0};
}

static void destroy(kvb_trainer *t)
{
    for (uint32_t l = 0; t->result != NULL && l < t->capture->layers; l++)
        kvb_train_free_layer(&t->result[l]);
    free(t->result);
    free(t->part);
    free(t->chosen);
    free(t->layer);
}

static kvb_status report_progress(const kvb_trainer *t, kvb_error *err)
{
    const kvb_train_options *o = t->options;
    if (o->progress == NULL || o->progress(o->progress_user, "train", t->done, t->total) == 0)
        return KVB_OK;
    return kvb_fail(err, KVB_E_CANCELLED, "training", "stopped after %" PRIu64 " of %" PRIu64 " codebooks", t->done,
                    t->total);
}

/* A layer that another process trained, on its way to the first. */
static kvb_status deliver(kvb_trainer *t, uint32_t from, uint32_t layer, kvb_error *err)
{
    const kvb_team *team = t->options->team;
    kvb_record record = {0};
    kvb_status status = KVB_OK;
    if (kvb_team_rank(team) == from) {
        kvb_train_pack_layer(t, layer, &record);
        kvb_train_free_layer(&t->result[layer]);
    }
    status = kvb_team_send(team, from, &record, err);
    if (status == KVB_OK && kvb_team_rank(team) == 0) {
        kvb_saved saved = {.file = (char *)record.bytes, .cursor = kvb_cursor_over((char *)record.bytes, record.size)};
        return kvb_train_unpack_layer(t, layer, &saved, "a layer of another process", err);
    }
    kvb_record_free(&record);
    return status;
}

/* One layer for each process of the team, or for each lane of a process alone; fewer at the end. */
static kvb_status train_round(kvb_trainer *t, const uint32_t *layer, uint32_t count, kvb_error *err)
{
    const kvb_team *team = t->options->team;
    const uint32_t rank = kvb_team_rank(team);
    kvb_status status = kvb_capture_load(t->capture, layer, count, err);
    if (status == KVB_OK && kvb_team_size(team) == 1)
        status = kvb_train_lanes(t, layer, count, err);
    else if (status == KVB_OK && rank < count)
        status = kvb_train_layer(t, layer[rank], err);
    status = kvb_team_agree(team, status, err);
    for (uint32_t i = 0; status == KVB_OK && i < count; i++) {
        if (i > 0 && kvb_team_size(team) > 1)
            status = deliver(t, i, layer[i], err);
        if (status == KVB_OK && rank == 0)
            status = kvb_train_save_layer(t, layer[i], err);
        t->done += count_all(t, layer[i]);
    }
    if (status == KVB_OK)
        status = report_progress(t, err);
    return kvb_team_agree(team, status, err);
}

/* The layers that no checkpoint has, the same list in all processes. */
static kvb_status find_layers(kvb_trainer *t, uint32_t *layer, uint32_t *count, kvb_error *err)
{
    kvb_status status = KVB_OK;
    *count = 0;
    for (uint32_t l = 0; status == KVB_OK && l < t->capture->layers; l++) {
        bool there = false;
        if (!kvb_train_wants(t, l))
            continue;
        status = kvb_train_load_layer(t, l, &there, err);
        if (!there)
            layer[(*count)++] = l;
        else
            t->done += count_all(t, l);
    }
    status = kvb_team_agree(t->options->team, status, err);
    if (status == KVB_OK)
        status = kvb_team_share(t->options->team, count, sizeof *count, err);
    return status == KVB_OK ? kvb_team_share(t->options->team, layer, *count * sizeof *layer, err) : status;
}

static kvb_status train_layers(kvb_trainer *t, kvb_error *err)
{
    uint32_t count = 0, at_once = 1, *layer = kvb_alloc_array(t->capture->layers, sizeof *layer);
    kvb_status status = kvb_team_agree(t->options->team, layer != NULL ? KVB_OK : kvb_fail_memory(err, "training"), err);
    if (status == KVB_OK)
        status = kvb_team_agree(t->options->team, kvb_train_choose_lanes(t, &at_once, err), err);
    if (status == KVB_OK)
        status = find_layers(t, layer, &count, err);
    at_once = kvb_team_size(t->options->team) > 1 ? kvb_team_size(t->options->team) : at_once;
    if (status == KVB_OK)
        status = kvb_team_agree(t->options->team, report_progress(t, err), err);
    for (uint32_t i = 0; status == KVB_OK && i < count; i += at_once)
        status = train_round(t, layer + i, count - i < at_once ? count - i : at_once, err);
    free(layer);
    return status;
}

static double over(double sum, uint64_t count)
{
    return sum / (double)count;
}

void kvb_train_add_sums(kvb_layer_sums *all, const kvb_layer_sums *one)
{
    for (int kind = 0; kind < 2; kind++) {
        all->error[kind] += one->error[kind];
        all->heldout[kind] += one->heldout[kind];
        all->fine[kind] += one->fine[kind];
        all->clip_before[kind] += one->clip_before[kind];
        all->clip_after[kind] += one->clip_after[kind];
        all->clip_count[kind] += one->clip_count[kind];
        all->count[kind] += one->count[kind];
        all->fine_count[kind] += one->fine_count[kind];
    }
}

kvb_train_report kvb_train_report_of(const kvb_layer_sums *all, double points_per_centroid)
{
    return (kvb_train_report){
        .key_error = over(all->error[KVB_KEY], all->count[KVB_KEY]),
        .value_error = over(all->error[KVB_VALUE], all->count[KVB_VALUE]),
        .key_heldout_error = over(all->heldout[KVB_KEY], all->count[KVB_KEY]),
        .value_heldout_error = over(all->heldout[KVB_VALUE], all->count[KVB_VALUE]),
        .points_per_centroid = points_per_centroid,
        .key_fine_error = over(all->fine[KVB_KEY], all->fine_count[KVB_KEY]),
        .value_fine_error = over(all->fine[KVB_VALUE], all->fine_count[KVB_VALUE]),
        .clip_before = {over(all->clip_before[KVB_KEY], all->clip_count[KVB_KEY]), over(all->clip_before[KVB_VALUE], all->clip_count[KVB_VALUE])},
        .clip_after = {over(all->clip_after[KVB_KEY], all->clip_count[KVB_KEY]), over(all->clip_after[KVB_VALUE], all->clip_count[KVB_VALUE])},
    };
}

/* Layer by layer, whichever process trained it, and whenever. */
static kvb_train_report summarise(const kvb_trainer *t)
{
    kvb_layer_sums all = {0};
    for (uint32_t l = 0; l < t->capture->layers; l++)
        kvb_train_add_sums(&all, &t->result[l].sums);
    double rows = (double)t->capture->rows;
    if (t->holdout_every != 0)
        rows -= rows / t->holdout_every;
    return kvb_train_report_of(&all, rows / most_centroids(t));
}

static kvb_status build(const kvb_trainer *t, const kvb_train_report *report, uint8_t **image, size_t *size, kvb_error *err)
{
    char *meta = NULL;
    const kvb_layer_scores scores = kvb_train_sum_scores(t);
    kvb_status status = kvb_train_meta_write(t, report, &scores, &meta, err);
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

/* By the recipe's ladder, if it has one; the first process knows what a checkpoint has of it. */
static kvb_status choose_shapes(kvb_trainer *t, kvb_error *err)
{
    const kvb_team *team = t->options->team;
    bool chosen = false;
    kvb_status status = kvb_team_agree(team, kvb_train_load_choice(t, &chosen, err), err);
    if (status == KVB_OK)
        status = kvb_team_share(team, &chosen, sizeof chosen, err);
    if (status != KVB_OK)
        return status;
    if (!chosen) {
        status = kvb_train_allocate(t, err);
        return kvb_team_agree(team, status == KVB_OK ? kvb_train_save_choice(t, err) : status, err);
    }
    const size_t bytes = (size_t)t->capture->layers * t->part_heads * 2 * sizeof *t->chosen;
    if (t->chosen == NULL)
        t->chosen = kvb_alloc_array(bytes, 1);
    status = kvb_team_agree(team, t->chosen != NULL ? KVB_OK : kvb_fail_memory(err, "training"), err);
    return status == KVB_OK ? kvb_team_share(team, t->chosen, bytes, err) : status;
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
    kvb_recipe fitted = *recipe;
    kvb_trainer t = {.capture = capture, .recipe = &fitted, .options = options};
    *image = NULL;
    *size = 0;
    kvb_status status = kvb_recipe_fit(&fitted, capture->geometry, capture->layers, err);
    if (status == KVB_OK)
        status = check_all(&t, err);
    if (status == KVB_OK)
        status = create(&t, err);
    status = kvb_team_agree(options->team, status, err);
    if (status == KVB_OK)
        status = choose_shapes(&t, err);
    for (uint32_t l = 0; status == KVB_OK && l < capture->layers; l++)
        t.total += kvb_train_wants(&t, l) ? count_all(&t, l) : 0;
    if (status == KVB_OK)
        status = train_layers(&t, err);
    if (status == KVB_OK && kvb_team_rank(options->team) == 0) {
        kvb_train_report summary = summarise(&t);
        status = build(&t, &summary, image, size, err);
        summary.seconds = now() - start;
        if (report != NULL)
            *report = summary;
    }
    destroy(&t);
    return status;
}
