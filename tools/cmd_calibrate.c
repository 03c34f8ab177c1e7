#include <stdlib.h>

#include "calib/shape.h"
#include "calib/team.h"
#include "format/base/fail.h"
#include "format/base/outfile.h"
#include "tools/calibration.h"
#include "tools/commands.h"
#include "tools/tuning.h"

typedef struct calibrate_args {
    kvb_common_args common;
    kvb_model_args model;
    kvb_text_args text;
    kvb_recipe_args recipe;
    kvb_policy_args policy;
    kvb_capture_args capture;
    kvb_tune_args tune;
    kvb_checkpoint_args checkpoint;
    const char *output, *shard;
    bool dry_run;
} calibrate_args;

static const kvb_flag flags[] = {
    {"--shard", KVB_FLAG_STRING, "I/N", KVB_SHARD_HELP "; the output is then a capture (.kvc)",
     .offset = offsetof(calibrate_args, shard)},
    {"--output", KVB_FLAG_STRING, "FILE", "the book to write (.kvb)", .offset = offsetof(calibrate_args, output),
     .letter = "-o", .required = true},
    {"--dry-run", KVB_FLAG_BOOL, NULL, "print rows, bits, sizes, memory and an estimate of the time, and stop",
     .offset = offsetof(calibrate_args, dry_run)},
};

static const kvb_command_spec spec = {
    .name = "calibrate",
    .summary = "Run a model over text and train a book from what its cache held (capture and train in one)",
    .about = "  kvbook calibrate --model M.gguf --text train.txt --chunks 64 --recipe antkv --bits 1 -o M.kvb",
    .args_size = sizeof(calibrate_args),
    .group = {KVB_GROUP(model, "Model", calibrate_args, model), KVB_GROUP(text, "Text", calibrate_args, text),
              KVB_GROUP(recipe, "Recipe", calibrate_args, recipe),
              KVB_GROUP(policy, "What the book asks a cache to keep exact (default: what the recipe says)",
                        calibrate_args, policy),
              KVB_GROUP(capture, "Capture", calibrate_args, capture),
              KVB_GROUP(tune, "Tuning (default: none)", calibrate_args, tune),
              KVB_GROUP(checkpoint, "A job that may be killed", calibrate_args, checkpoint),
              {"Output", flags, sizeof flags / sizeof *flags, 0},
              KVB_GROUP(common, "Common flags", calibrate_args, common)},
    .groups = 9,
};

static kvb_status print_plan(const calibrate_args *a, const kvb_input *in, const kvb_recipe *recipe, kvb_error *err)
{
    kvb_calibration_plan plan;
    double seconds;
    char text[32], shape[2][KVB_SHAPE_TEXT];
    kvb_plan_calibration(in, recipe, a->capture.max_memory.value, &plan);
    kvb_status status = kvb_check_plan(in, recipe, &plan, err);
    if (status == KVB_OK)
        status = kvb_estimate_calibration(in, recipe, &plan, &seconds, err);
    if (status != KVB_OK)
        return status;
    printf("tokens          %llu (%llu chunks of %u)\n", (unsigned long long)plan.tokens,
           (unsigned long long)in->chunks, in->ctx);
    printf("rows            %llu%s\n", (unsigned long long)plan.rows,
           plan.rows < plan.tokens ? " (sampled: --max-memory)" : "");
    for (int kind = 0; kind < 2; kind++)
        kvb_shape_text(recipe->kind[kind].shape.channels, recipe->kind[kind].shape.centroids,
                       recipe->kind[kind].shape.stages, shape[kind]);
    printf("bits            %g (keys %s, values %s)\n", plan.bits, shape[KVB_KEY], shape[KVB_VALUE]);
    printf("codebooks       %llu\n", (unsigned long long)plan.codebooks);
    printf("book            about %s\n", kvb_size_text(plan.book_bytes, text));
    printf("capture         %s\n", kvb_size_text(plan.capture_bytes, text));
    printf("memory          %s at most\n", kvb_size_text(plan.fixed_bytes + plan.rows * plan.row_bytes, text));
    printf("time            about %s\n", kvb_time_text(seconds, text));
    return KVB_OK;
}

static kvb_status begin(const calibrate_args *a, const kvb_input *in, const kvb_recipe *recipe, kvb_progress *p,
                        kvb_checkpoint **checkpoint, kvb_error *err)
{
    kvb_json_writer job = {0};
    const kvb_capture_options options = kvb_calibration_options(in, recipe, &a->capture, a->recipe.seed.value, p);
    kvb_json_begin_object(&job, NULL);
    kvb_checkpoint_job_put(&job, recipe, a->recipe.seed.value, options.device);
    kvb_checkpoint_job_put_input(&job, in->model, &in->text, &options, in->chunks);
    kvb_tune_job_put(&job, &a->tune);
    kvb_json_end_object(&job);
    kvb_status status = kvb_begin_checkpoint(&a->checkpoint, a->output, &job, p, checkpoint, err);
    kvb_json_writer_free(&job);
    return status;
}

/* What the first process does with the image. */
static kvb_status finish(const calibrate_args *a, const kvb_input *in, const kvb_recipe *recipe, kvb_checkpoint *checkpoint,
                         kvb_progress *p, double start, uint8_t **image, size_t size, kvb_error *err)
{
    char bytes[32], took[32];
    kvb_status status = kvb_tune_image(in, &a->tune, a->recipe.seed.value, checkpoint, p, image, &size, err);
    if (status == KVB_OK)
        status = kvb_write_file(a->output, *image, size, err);
    if (status == KVB_OK)
        kvb_say(p, "wrote %s: %s, %g bits, recipe %s, in %s", a->output, kvb_size_text(size, bytes),
                kvb_recipe_nominal_bits(recipe), recipe->name, kvb_time_text(kvb_seconds() - start, took));
    return status;
}

static kvb_status calibrate(const calibrate_args *a, const kvb_team *team, const kvb_input *in, const kvb_recipe *recipe,
                            kvb_progress *p, kvb_error *err)
{
    uint8_t *image = NULL;
    size_t size = 0;
    kvb_train_report report;
    const double start = kvb_seconds();
    char usual[KVB_FOLDER_TEXT];
    kvb_checkpoint *checkpoint = NULL;
    kvb_status status = kvb_team_agree(team, team->rank == 0 ? begin(a, in, recipe, p, &checkpoint, err) : KVB_OK, err);
    if (status != KVB_OK)
        return status;
    if (team->size > 1)
        status = kvb_run_team_calibration(team, in, recipe, &a->capture, a->recipe.seed.value,
                                          kvb_checkpoint_folder_of(&a->checkpoint, a->output, usual), checkpoint, p, &image, &size,
                                          &report, err);
    else
        status = kvb_run_calibration(in, recipe, &a->capture, a->recipe.seed.value, checkpoint, p, &image, &size, &report, err);
    if (status == KVB_OK && team->rank == 0)
        status = finish(a, in, recipe, checkpoint, p, start, &image, size, err);
    status = kvb_end_checkpoint(checkpoint, kvb_team_agree(team, status, err), p);
    free(image);
    return status;
}

/* A part of the text makes no book, so what comes after the capture has no place here. */
static kvb_status check_shard(const calibrate_args *a, const kvb_team *team, kvb_shard *shard, kvb_error *err)
{
    kvb_status status = kvb_shard_parse(a->shard, shard, err);
    if (status == KVB_OK && a->shard != NULL && (a->tune.epochs.value > 0 || a->checkpoint.folder != NULL || a->checkpoint.resume))
        return kvb_fail(err, KVB_E_USAGE, "--shard", "given together with --tune, --checkpoint or --resume: a part is captured only; "
                        "give them to the commands that go on from the parts (train, tune)");
    if (status == KVB_OK && a->shard != NULL && team->size > 1)
        return kvb_fail(err, KVB_E_USAGE, "--shard", "given to one of %u processes, which share out the text by themselves", team->size);
    return status;
}

/* What can be said before hours of work. The first process alone tries the output. */
static kvb_status prepare(const calibrate_args *a, const kvb_team *team, kvb_recipe *recipe, kvb_input *in, kvb_progress *p,
                          kvb_error *err)
{
    const char *inputs[] = {a->model.model, a->model.tokenizer};
    kvb_status status = kvb_recipe_from_args(&a->recipe, recipe, err);
    if (status != KVB_OK)
        return status;
    recipe->policy = kvb_policy_from_args(&a->policy, recipe->policy);
    status = kvb_check_exact_form(&recipe->policy, kvb_recipe_has_fine(recipe), recipe->name, err);
    if (status == KVB_OK && team->rank == 0)
        status = kvb_check_output(a->output, inputs, 2, err);
    if (status == KVB_OK && team->rank == 0)
        status = kvb_check_output(a->output, a->text.text.items, a->text.text.count, err);
    return status == KVB_OK ? kvb_input_open(in, &a->model, &a->text, p, err) : status;
}

static kvb_status run_together(const calibrate_args *a, const kvb_team *team, kvb_progress *p, kvb_error *err)
{
    kvb_input in = {0};
    kvb_recipe recipe = {0};
    kvb_shard shard;
    kvb_status status = check_shard(a, team, &shard, err);
    if (status == KVB_OK)
        status = prepare(a, team, &recipe, &in, p, err);
    status = kvb_team_agree(team, status, err);
    if (status == KVB_OK && a->dry_run)
        status = team->rank == 0 ? print_plan(a, &in, &recipe, err) : KVB_OK;
    else if (status == KVB_OK && a->shard != NULL)
        status = kvb_calibration_shard(&in, &recipe, &a->capture, a->recipe.seed.value, &shard, a->output, p, err);
    else if (status == KVB_OK)
        status = calibrate(a, team, &in, &recipe, p, err);
    kvb_input_close(&in);
    kvb_recipe_free(&recipe);
    return status;
}

static kvb_status run(const void *args, kvb_progress *p, kvb_error *err)
{
    kvb_team team;
    kvb_status status = kvb_team_begin(&team, err);
    if (status != KVB_OK)
        return status;
    p->mute = team.rank > 0;
    p->silent |= p->mute;
    status = run_together(args, &team, p, err);
    kvb_team_end(&team);
    return status;
}

static const calibrate_args defaults = {
    .recipe.seed.value = KVB_USUAL_SEED,
    .capture.max_memory.value = KVB_USUAL_MEMORY,
};
const kvb_command kvb_calibrate_command = {&spec, &defaults, run};
