#include "tools/calibration.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "calib/memory.h"
#include "calib/shape.h"
#include "calib/team_capture.h"
#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/rng.h"
#include "format/kvb_layout.h"
#include "tools/identity.h"

enum { PROBE_TOKENS = 512, PROBE_POINTS = 8192, PROBE_PROBLEMS = 4 };

static uint64_t codebooks_of(const kvb_model_info *info)
{
    uint64_t count = 0;
    for (uint32_t l = 0; l < info->layers; l++)
        count += info->layer[l].kind == KVB_LAYER_UNSUPPORTED ? 0 : 2 * (uint64_t)info->layer[l].kv_heads;
    return count;
}

static uint64_t book_bytes_of(const kvb_model_info *info, const kvb_recipe *recipe)
{
    uint64_t bytes = 0;
    for (uint32_t l = 0; l < info->layers; l++)
        for (int kind = 0; kind < 2 && info->layer[l].kind != KVB_LAYER_UNSUPPORTED; kind++) {
            const kvb_recipe_kind *k = &recipe->kind[kind];
            uint64_t channels = info->layer[l].head_dim, channel = (k->mean ? 4 : 0);
            channel += 2 * (uint64_t)(k->shape.stages * k->shape.centroids + k->fine.stages * k->fine.centroids);
            channel += kvb_recipe_has_transform(k) ? 8 * channels : 0; /* a row of the transform and one of its inverse */
            bytes += info->layer[l].kv_heads * channels * channel;
        }
    return bytes;
}

void kvb_plan_calibration(const kvb_input *input, const kvb_recipe *recipe, uint64_t max_memory,
                          kvb_calibration_plan *plan)
{
    const kvb_model_info *info = kvb_model_get_info(input->model);
    const bool gradients = kvb_recipe_wants_gradients(recipe);
    const uint64_t row_bytes = kvb_memory_row(info->layer, info->layers, gradients), tokens = input->chunks * input->ctx;
    const uint64_t queries = kvb_recipe_wants_queries(recipe) ? input->ctx * kvb_capture_query_bytes(info->layer, info->layers) : 0;
    const uint64_t fixed = kvb_memory_fixed(input->model, &input->text, input->ctx, gradients || recipe->ladder_count > 0) + queries;
    const uint64_t fit = max_memory > fixed ? (max_memory - fixed) / row_bytes : 0;
    /* Every chunk gives the same number of rows. */
    uint64_t rows = fit < tokens ? fit / input->chunks * input->chunks : tokens;
    *plan = (kvb_calibration_plan){
        .tokens = tokens, .rows = rows, .row_bytes = row_bytes, .fixed_bytes = fixed, .max_memory = max_memory,
        .capture_bytes = rows * kvb_capture_row_bytes(info->layer, info->layers, gradients) + (rows < tokens ? rows / input->chunks : input->ctx) *
                                 (queries / input->ctx),
        .codebooks = codebooks_of(info), .book_bytes = book_bytes_of(info, recipe),
        .bits = kvb_recipe_nominal_bits(recipe),
    };
}

/* One shape against the model's heads and the rows there will be. */
static kvb_status check_planned(const kvb_model_info *info, uint64_t rows, uint32_t channels, uint32_t centroids,
                                const char *where, kvb_error *err)
{
    for (uint32_t l = 0; l < info->layers; l++)
        if (info->layer[l].kind != KVB_LAYER_UNSUPPORTED && info->layer[l].head_dim % channels != 0)
            return kvb_fail(err, KVB_E_USAGE, where,
                            "groups of %u channels do not divide a head of %u (layer %u of the model); choose d among "
                            "its divisors",
                            channels, info->layer[l].head_dim, l);
    if (rows < centroids)
        return kvb_fail(err, KVB_E_USAGE, where,
                        "%llu tokens for %u centroids: expected at least as many, and 64 a centroid (%llu) for a good "
                        "book; give more text or --max-memory, or choose a smaller K",
                        (unsigned long long)rows, centroids, 64ull * centroids);
    return KVB_OK;
}

kvb_status kvb_check_plan(const kvb_input *input, const kvb_recipe *recipe, const kvb_calibration_plan *plan,
                          kvb_error *err)
{
    const kvb_model_info *info = kvb_model_get_info(input->model);
    kvb_recipe fitted = *recipe;
    char need[32], budget[32];
    if (plan->rows == 0)
        return kvb_fail(err, KVB_E_MEMORY, "--max-memory",
                        "%s is too little for model, text, one chunk's pass and a row of each of %llu chunks, about %s; give more, or a "
                        "shorter --ctx", kvb_size_text(plan->max_memory, budget), (unsigned long long)input->chunks,
                        kvb_size_text(plan->fixed_bytes + input->chunks * plan->row_bytes, need));
    kvb_status status = kvb_recipe_fit(&fitted, info->layer, info->layers, err);
    for (int kind = 0; status == KVB_OK && kind < 2; kind++) {
        const kvb_recipe_kind *k = &fitted.kind[kind];
        status = check_planned(info, plan->rows, k->shape.channels, k->shape.centroids,
                               kind == KVB_KEY ? "shape of the keys" : "shape of the values", err);
        if (status == KVB_OK && kvb_recipe_has_fine(recipe))
            status = check_planned(info, plan->rows, k->fine.channels, k->fine.centroids,
                                   kind == KVB_KEY ? "fine shape of the keys" : "fine shape of the values", err);
    }
    return status;
}

kvb_capture_options kvb_capture_options_for(const kvb_input *input, const kvb_capture_args *capture, uint64_t seed,
                                            uint64_t max_rows, kvb_progress *p)
{
    return (kvb_capture_options){
        .ctx = input->ctx, .skip = input->skip, .chunks = input->chunks, .bos = input->bos, .seed = seed,
        .max_rows = max_rows, .stop_on_nan = capture->on_nan.value == KVB_ON_NAN_STOP, .progress = kvb_progress_report, .progress_user = p,
        .device = (kvb_device)capture->device.value,
    };
}

/* Seconds of one Lloyd iteration over PROBE_POINTS points in each of PROBE_PROBLEMS problems of one shape. */
static kvb_status probe_kmeans(uint32_t channels, uint32_t centroids, double *seconds, kvb_error *err)
{
    const size_t values = (size_t)PROBE_POINTS * channels;
    kvb_kmeans_problem problem[PROBE_PROBLEMS];
    kvb_kmeans_options options;
    kvb_status status = KVB_OK;
    float *points = kvb_alloc_array(values, sizeof *points);
    float *tables = kvb_alloc_array((size_t)PROBE_PROBLEMS * centroids * channels, sizeof *tables);
    if (points == NULL || tables == NULL) {
        status = kvb_fail_memory(err, "time estimate");
        goto out;
    }
    for (size_t i = 0; i < values; i++)
        points[i] = (float)kvb_rng_unit(1, i);
    uint32_t k = centroids < PROBE_POINTS ? centroids : PROBE_POINTS;
    for (int i = 0; i < PROBE_PROBLEMS; i++)
        problem[i] = (kvb_kmeans_problem){
            .points = points, .type = KVB_POINTS_F32, .count = PROBE_POINTS, .stride = channels, .channels = channels,
            .centroids = k, .initial = points, .seed = 1, .table = tables + (size_t)i * centroids * channels,
        };
    kvb_kmeans_options_init(&options);
    options.iterations = 1;
    double start = kvb_seconds();
    status = kvb_kmeans_train(problem, PROBE_PROBLEMS, &options, NULL, err);
    *seconds = (kvb_seconds() - start) * centroids / k;
out:
    free(points);
    free(tables);
    return status;
}

static kvb_status probe_capture(const kvb_input *input, bool gradients, double *seconds, kvb_error *err)
{
    kvb_capture_options options = kvb_capture_options_for(input, &(kvb_capture_args){.on_nan.value = KVB_ON_NAN_QUARANTINE}, 1, 0, NULL);
    kvb_capture_store *store = NULL;
    options.ctx = input->ctx < PROBE_TOKENS ? input->ctx : PROBE_TOKENS;
    options.skip = 0;
    options.chunks = 1;
    options.gradients = gradients;
    options.progress = NULL;
    double start = kvb_seconds();
    kvb_status status = kvb_capture_run(input->model, &input->text, &options, &store, err);
    *seconds = (kvb_seconds() - start) / options.ctx;
    kvb_capture_close(store);
    return status;
}

/* Additive training searches all sums of its stages in each round. */
static kvb_status probe_shape(const kvb_shape *shape, double *seconds, kvb_error *err)
{
    return probe_kmeans(shape->channels, 1u << kvb_shape_bits(shape->centroids, shape->stages), seconds, err);
}

kvb_status kvb_estimate_calibration(const kvb_input *input, const kvb_recipe *recipe, const kvb_calibration_plan *plan,
                                    double *seconds, kvb_error *err)
{
    double token, total;
    kvb_status status = probe_capture(input, kvb_recipe_wants_gradients(recipe), &token, err);
    if (status != KVB_OK)
        return status;
    total = token * (double)plan->tokens;
    const uint32_t dim = kvb_model_get_info(input->model)->layer[0].head_dim;
    const double heads = (double)plan->codebooks / 2 * dim;
    for (int kind = 0; kind < 2 && status == KVB_OK; kind++) {
        const kvb_shape *shape = &recipe->kind[kind].shape, *other = &recipe->kind[kind].fine;
        double probe = 0, fine = 0;
        status = probe_shape(shape, &probe, err);
        if (status == KVB_OK && other->channels != 0)
            status = probe_shape(other, &fine, err);
        probe = heads / shape->channels * probe + (fine > 0 ? heads / other->channels * fine : 0);
        /* Seeding and the last assignment cost about as much as two more iterations. */
        total += probe / PROBE_PROBLEMS * (recipe->iterations + 2) * (double)plan->rows / PROBE_POINTS;
    }
    *seconds = total;
    return status;
}

static void say_result(kvb_progress *p, const kvb_train_report *r)
{
    char heldout[80] = "";
    if (isfinite(r->key_heldout_error) && isfinite(r->value_heldout_error))
        snprintf(heldout, sizeof heldout, "; held out: keys %.4f, values %.4f", r->key_heldout_error,
                 r->value_heldout_error);
    for (int kind = 0; kind < 2; kind++)
        if (!isnan(r->clip_before[kind]))
            kvb_say(p, "clips of %s: error of attention's output %.4f, without them %.4f", kind == KVB_KEY ? "keys" : "values", r->clip_after[kind],
                    r->clip_before[kind]);
    if (isnan(r->key_error) && isnan(r->value_error)) {
        kvb_say(p, "no codebooks to train: numbers are coded one by one");
        return;
    }
    kvb_say(p, "relative error: keys %.4f, values %.4f%s", r->key_error, r->value_error, heldout);
    if (r->points_per_centroid < KVB_KMEANS_FEW_POINTS)
        kvb_warn(p, "%.0f points per centroid: under 64 the codebooks fit the sample, not the model; give more text",
                 r->points_per_centroid);
}

void kvb_warn_of_capture(const kvb_capture *capture, kvb_progress *p)
{
    kvb_json_doc *doc = NULL;
    if (capture->meta_json == NULL ||
        kvb_json_parse(capture->meta_json, strlen(capture->meta_json), "META", &doc, NULL) != KVB_OK)
        return;
    const kvb_json *meta = kvb_json_root(doc);
    double quarantined = kvb_json_number(kvb_meta_find(meta, "capture.quarantined"), 0);
    double saturated = kvb_json_number(kvb_meta_find(meta, "capture.saturated"), 0);
    double queries = kvb_json_number(kvb_meta_find(meta, "capture.bad_queries"), 0);
    if (quarantined > 0)
        kvb_warn(p, "%.0f rows of a head held a NaN or infinity and were left out", quarantined);
    if (saturated > 0)
        kvb_warn(p, "%.0f elements of keys and values were beyond 65504 and are kept as that", saturated);
    if (queries > 0)
        kvb_warn(p, "%.0f queries held a NaN or infinity and were left out of the moments", queries);
    kvb_json_free(doc);
}

const char *kvb_checkpoint_folder_of(const kvb_checkpoint_args *a, const char *output, char usual[KVB_FOLDER_TEXT])
{
    if (a->folder != NULL || !a->resume)
        return a->folder;
    snprintf(usual, KVB_FOLDER_TEXT, "%s.ckpt", output); /* no path is that long: opening the output has shown it */
    return usual;
}

kvb_status kvb_begin_checkpoint(const kvb_checkpoint_args *a, const char *output, const kvb_json_writer *job, kvb_progress *p,
                                kvb_checkpoint **checkpoint, kvb_error *err)
{
    char usual[KVB_FOLDER_TEXT];
    const char *folder = kvb_checkpoint_folder_of(a, output, usual), *text = kvb_json_writer_text(job);
    *checkpoint = NULL;
    if (folder == NULL)
        return KVB_OK;
    if (text == NULL)
        return kvb_fail_memory(err, "checkpoint");
    kvb_status status = kvb_checkpoint_open(folder, text, a->resume, checkpoint, err);
    if (status == KVB_OK && kvb_checkpoint_resumes(*checkpoint))
        kvb_say(p, "going on from %s", folder);
    return status;
}

kvb_status kvb_end_checkpoint(kvb_checkpoint *checkpoint, kvb_status status, kvb_progress *p)
{
    if (status == KVB_OK || !kvb_checkpoint_has_results(checkpoint)) {
        kvb_checkpoint_remove(checkpoint);
        return status;
    }
    kvb_warn(p, "what is done is kept in %s: the same command with --resume goes on from it", kvb_checkpoint_folder(checkpoint));
    kvb_checkpoint_close(checkpoint);
    return status;
}

static kvb_status train_together(const kvb_team *team, const kvb_capture *capture, const kvb_recipe *recipe, uint64_t seed,
                                 kvb_device device, kvb_layer_range layers, kvb_checkpoint *checkpoint, kvb_progress *p, uint8_t **image, size_t *size,
                                 kvb_train_report *report, kvb_error *err)
{
    kvb_train_options options;
    kvb_train_options_init(&options);
    options.team = team;
    options.checkpoint = checkpoint;
    options.seed = seed;
    options.device = device;
    options.first_layer = layers.first;
    options.layer_count = layers.count;
    options.progress = kvb_progress_report;
    options.progress_user = p;
    kvb_status status = kvb_train_book(capture, recipe, &options, image, size, report, err);
    if (status == KVB_OK && kvb_team_rank(team) == 0)
        say_result(p, report);
    return status;
}

kvb_status kvb_run_training(const kvb_capture *capture, const kvb_recipe *recipe, uint64_t seed, kvb_device device,
                            kvb_layer_range layers, kvb_checkpoint *checkpoint, kvb_progress *p, uint8_t **image, size_t *size, kvb_train_report *report, kvb_error *err)
{
    return train_together(NULL, capture, recipe, seed, device, layers, checkpoint, p, image, size, report, err);
}

/* What recipes want of a capture beyond keys, values and token weights. */
static kvb_capture_options calibration_options(const kvb_input *input, const kvb_recipe *const *recipe, size_t recipes,
                                               const kvb_capture_args *capture, uint64_t seed,
                                               const kvb_calibration_plan *plan, kvb_progress *p)
{
    kvb_capture_options options = kvb_capture_options_for(input, capture, seed, plan->rows < plan->tokens ? plan->rows : 0, p);
    for (size_t i = 0; i < recipes; i++) {
        if (recipe[i]->ladder_count > 0)
            options.sensitivity_chunks = KVB_USUAL_SENSITIVITY;
        options.gradients = options.gradients || kvb_recipe_wants_gradients(recipe[i]);
        options.queries = options.queries || kvb_recipe_wants_queries(recipe[i]);
    }
    return options;
}

kvb_capture_options kvb_calibration_options(const kvb_input *input, const kvb_recipe *recipe, const kvb_capture_args *capture,
                                            uint64_t seed, kvb_progress *p)
{
    kvb_calibration_plan plan;
    kvb_plan_calibration(input, recipe, capture->max_memory.value, &plan);
    return calibration_options(input, &recipe, 1, capture, seed, &plan, p);
}

/* With a checkpoint the capture goes through a file there, which a resumed job finds. */
static kvb_status capture_for(const kvb_input *input, const kvb_capture_options *options, const kvb_checkpoint *checkpoint,
                              kvb_capture_store **store, kvb_error *err)
{
    if (checkpoint == NULL)
        return kvb_capture_run(input->model, &input->text, options, store, err);
    kvb_status status = KVB_OK;
    if (!kvb_checkpoint_has_capture(checkpoint))
        status = kvb_capture_run_to_file(input->model, &input->text, options, kvb_checkpoint_capture(checkpoint), err);
    return status == KVB_OK ? kvb_capture_open(kvb_checkpoint_capture(checkpoint), store, err) : status;
}

/* What would refuse any of the recipes, before hours of capture. */
static kvb_status plan_all(const kvb_input *input, const kvb_recipe *const *recipe, size_t recipes, uint64_t memory,
                           kvb_calibration_plan *plan, kvb_error *err)
{
    kvb_status status = KVB_OK;
    size_t dearest = 0;
    for (size_t i = 0; i < recipes; i++)
        if (kvb_recipe_wants_gradients(recipe[i]))
            dearest = i; /* its rows take the most memory */
    kvb_plan_calibration(input, recipe[dearest], memory, plan);
    for (size_t i = 0; i < recipes && status == KVB_OK; i++) {
        status = kvb_check_plan(input, recipe[i], plan, err);
    }
    return status;
}

/* What a capture for all of these recipes keeps; says so where it is not all. */
static kvb_status prepare_capture(const kvb_input *input, const kvb_recipe *const *recipe, size_t recipes,
                                  const kvb_capture_args *capture, uint64_t seed, kvb_progress *p, kvb_capture_options *options,
                                  kvb_error *err)
{
    kvb_calibration_plan plan = {0};
    char need[32], budget[32];
    const uint64_t memory = capture->max_memory.value;
    kvb_status status = plan_all(input, recipe, recipes, memory, &plan, err);
    if (status == KVB_OK)
        status = kvb_device_check((kvb_device)capture->device.value, err);
    if (status != KVB_OK)
        return status;
    if (plan.rows < plan.tokens)
        kvb_say(p, "sampling %llu of %llu tokens: all would take %s, --max-memory is %s", (unsigned long long)plan.rows,
                (unsigned long long)plan.tokens, kvb_size_text(plan.fixed_bytes + plan.tokens * plan.row_bytes, need),
                kvb_size_text(memory, budget));
    *options = calibration_options(input, recipe, recipes, capture, seed, &plan, p);
    return KVB_OK;
}

kvb_status kvb_run_capture(const kvb_input *input, const kvb_recipe *const *recipe, size_t recipes,
                           const kvb_capture_args *capture, uint64_t seed, const kvb_checkpoint *checkpoint, kvb_progress *p,
                           kvb_capture_store **store, kvb_error *err)
{
    kvb_capture_options options;
    *store = NULL;
    kvb_status status = prepare_capture(input, recipe, recipes, capture, seed, p, &options, err);
    if (status == KVB_OK)
        status = capture_for(input, &options, checkpoint, store, err);
    if (status == KVB_OK)
        kvb_warn_of_capture(kvb_capture_view(*store), p);
    return status;
}

/* "A/B", or with another character between. */
static bool parse_two(const char *text, char between, uint64_t *first, uint64_t *second)
{
    char word[24] = "";
    const char *end = strchr(text, between);
    if (end == NULL || (size_t)(end - text) >= sizeof word)
        return false;
    memcpy(word, text, (size_t)(end - text));
    return kvb_parse_count(word, first) && kvb_parse_count(end + 1, second);
}

kvb_status kvb_shard_parse(const char *text, kvb_shard *shard, kvb_error *err)
{
    uint64_t i, n;
    *shard = (kvb_shard){0, 1};
    if (text == NULL)
        return KVB_OK;
    if (!parse_two(text, '/', &i, &n) || i < 1 || i > n)
        return kvb_fail(err, KVB_E_USAGE, "--shard", "found \"%.40s\", expected I/N with I from 1 to N, such as 1/8", text);
    *shard = (kvb_shard){i - 1, n};
    return KVB_OK;
}

kvb_status kvb_layer_range_parse(const char *text, kvb_layer_range *range, kvb_error *err)
{
    uint64_t first, last;
    *range = KVB_ALL_LAYERS;
    if (text == NULL)
        return KVB_OK;
    const bool one = strchr(text, '-') == NULL && kvb_parse_count(text, &first);
    if (one)
        last = first;
    if (!(one || parse_two(text, '-', &first, &last)) || first > last || last >= KVB_MAX_LAYERS)
        return kvb_fail(err, KVB_E_USAGE, "--layers", "found \"%.40s\", expected A-B with A up to B, counted from 0, such as 0-15", text);
    *range = (kvb_layer_range){(uint32_t)first, (uint32_t)(last - first + 1)};
    return KVB_OK;
}

/* A file's counts are in its META alone; opening it reads little more. */
kvb_status kvb_capture_shard(const kvb_input *input, kvb_capture_options *options, const kvb_shard *shard, const char *path,
                             kvb_progress *p, kvb_error *err)
{
    kvb_capture_store *store = NULL;
    kvb_status status = shard->count > 1 ? kvb_capture_part(options, shard->index, shard->count, err) : KVB_OK;
    if (status == KVB_OK)
        status = kvb_capture_run_to_file(input->model, &input->text, options, path, err);
    if (status == KVB_OK)
        status = kvb_capture_open(path, &store, err);
    if (status != KVB_OK)
        return status;
    kvb_warn_of_capture(kvb_capture_view(store), p);
    if (shard->count > 1)
        kvb_say(p, "wrote %s: chunks %llu to %llu, part %llu of %llu", path, (unsigned long long)options->skip,
                (unsigned long long)(options->skip + options->chunks - 1), (unsigned long long)shard->index + 1,
                (unsigned long long)shard->count);
    else
        kvb_say(p, "wrote %s", path);
    kvb_capture_close(store);
    return KVB_OK;
}

kvb_status kvb_calibration_shard(const kvb_input *input, const kvb_recipe *recipe, const kvb_capture_args *capture, uint64_t seed,
                                 const kvb_shard *shard, const char *path, kvb_progress *p, kvb_error *err)
{
    kvb_capture_options options;
    kvb_status status = prepare_capture(input, &recipe, 1, capture, seed, p, &options, err);
    return status == KVB_OK ? kvb_capture_shard(input, &options, shard, path, p, err) : status;
}

kvb_status kvb_run_calibration(const kvb_input *input, const kvb_recipe *recipe, const kvb_capture_args *capture,
                               uint64_t seed, kvb_checkpoint *checkpoint, kvb_progress *p, uint8_t **image, size_t *size,
                               kvb_train_report *report, kvb_error *err)
{
    kvb_capture_store *store = NULL;
    *image = NULL;
    kvb_status status = kvb_run_capture(input, &recipe, 1, capture, seed, checkpoint, p, &store, err);
    if (status == KVB_OK)
        status = kvb_run_training(kvb_capture_view(store), recipe, seed, (kvb_device)capture->device.value, KVB_ALL_LAYERS, checkpoint,
                                  p, image, size, report, err);
    kvb_capture_close(store);
    return status;
}

/* This process's part; in a file where there is a checkpoint, which a resumed job of as many processes finds. */
static kvb_status capture_part(const kvb_input *input, const kvb_capture_options *options, const char *folder, bool resumes,
                               kvb_capture_store **store, kvb_error *err)
{
    struct stat st;
    if (folder == NULL)
        return kvb_capture_run(input->model, &input->text, options, store, err);
    char *path = kvb_checkpoint_part(folder, options->skip, options->chunks);
    if (path == NULL)
        return kvb_fail_memory(err, folder);
    kvb_status status = KVB_OK;
    if (!resumes || stat(path, &st) != 0)
        status = kvb_capture_run_to_file(input->model, &input->text, options, path, err);
    if (status == KVB_OK)
        status = kvb_capture_open(path, store, err);
    free(path);
    return status;
}

kvb_status kvb_run_team_calibration(const kvb_team *team, const kvb_input *input, const kvb_recipe *recipe,
                                    const kvb_capture_args *capture, uint64_t seed, const char *folder, kvb_checkpoint *checkpoint,
                                    kvb_progress *p, uint8_t **image, size_t *size, kvb_train_report *report, kvb_error *err)
{
    kvb_capture_store *store = NULL;
    kvb_team_capture *whole = NULL;
    kvb_capture_options options;
    bool resumes = kvb_checkpoint_resumes(checkpoint);
    *image = NULL;
    kvb_status status = prepare_capture(input, &recipe, 1, capture, seed, p, &options, err);
    if (status == KVB_OK)
        status = kvb_capture_part(&options, team->rank, team->size, err);
    status = kvb_team_agree(team, status, err);
    if (status == KVB_OK)
        status = kvb_team_share(team, &resumes, sizeof resumes, err);
    if (status == KVB_OK)
        status = kvb_team_agree(team, capture_part(input, &options, folder, resumes, &store, err), err);
    if (status == KVB_OK)
        status = kvb_team_capture_create(team, kvb_capture_view(store), &whole, err);
    if (status == KVB_OK) {
        kvb_warn_of_capture(kvb_team_capture_view(whole), p);
        status = train_together(team, kvb_team_capture_view(whole), recipe, seed, (kvb_device)capture->device.value, KVB_ALL_LAYERS, checkpoint, p, image,
                                size, report, err);
    }
    kvb_team_capture_free(whole);
    kvb_capture_close(store);
    return kvb_team_agree(team, status, err);
}
