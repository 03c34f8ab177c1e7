#include <stdlib.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/outfile.h"
#include "tools/calibration.h"
#include "tools/captures.h"
#include "tools/commands.h"

typedef struct train_args {
    kvb_common_args common;
    kvb_strings captures;
    kvb_recipe_args recipe;
    kvb_policy_args policy;
    kvb_checkpoint_args checkpoint;
    const char *output, *layers;
    kvb_arg_u64 device;
    bool dry_run;
} train_args;

static const kvb_flag flags[] = {
    {"--output", KVB_FLAG_STRING, "FILE", "the book to write (.kvb)", .offset = offsetof(train_args, output),
     .letter = "-o", .required = true},
    {"--layers", KVB_FLAG_STRING, "A-B", "train these layers alone, counted from 0; `kvbook merge` joins the books of all",
     .offset = offsetof(train_args, layers)},
    {"--device", KVB_FLAG_DEVICE, "NAME", "where k-means trains: cpu (the default), cuda, cuda:all or cuda:0,1",
     .offset = offsetof(train_args, device), .choices = kvb_device_names},
    {"--dry-run", KVB_FLAG_BOOL, NULL, "print rows, bits and sizes, and stop", .offset = offsetof(train_args, dry_run)},
};

static const kvb_command_spec spec = {
    .name = "train",
    .operands = "CAPTURE.kvc...",
    .summary = "Train a book from a capture, or from captures of the parts of a text",
    .args_size = sizeof(train_args),
    .operands_offset = offsetof(train_args, captures),
    .group = {KVB_GROUP(recipe, "Recipe", train_args, recipe),
              KVB_GROUP(policy, "What the book asks a cache to keep exact (default: what the recipe says)", train_args,
                        policy),
              KVB_GROUP(checkpoint, "A job that may be killed", train_args, checkpoint),
              {"Output", flags, sizeof flags / sizeof *flags, 0},
              KVB_GROUP(common, "Common flags", train_args, common)},
    .groups = 5,
    .elsewhere = "--tune",
    .instead = "tuning runs the model over text, and a capture holds neither: train the book, then `kvbook tune BOOK.kvb --model M "
               "--text F`; or `kvbook calibrate --tune N`",
};

static kvb_status begin(const train_args *a, const kvb_recipe *recipe, const kvb_capture *capture, kvb_progress *p,
                        kvb_checkpoint **checkpoint, kvb_error *err)
{
    kvb_json_writer job = {0};
    kvb_json_begin_object(&job, NULL);
    /* Reads the whole capture, so only where it is wanted. */
    if (a->checkpoint.folder != NULL || a->checkpoint.resume) {
        kvb_checkpoint_job_put(&job, recipe, a->recipe.seed.value, (kvb_device)a->device.value);
        kvb_checkpoint_job_put_capture(&job, capture);
    }
    kvb_json_end_object(&job);
    kvb_status status = kvb_begin_checkpoint(&a->checkpoint, a->output, &job, p, checkpoint, err);
    kvb_json_writer_free(&job);
    return status;
}

static kvb_status train(const train_args *a, const kvb_recipe *recipe, const kvb_capture *capture, kvb_layer_range layers,
                        kvb_progress *p, kvb_error *err)
{
    uint8_t *image = NULL;
    size_t size = 0;
    kvb_train_report report;
    kvb_checkpoint *checkpoint;
    kvb_status status = begin(a, recipe, capture, p, &checkpoint, err);
    if (status != KVB_OK)
        return status;
    status = kvb_run_training(capture, recipe, a->recipe.seed.value, (kvb_device)a->device.value, layers, checkpoint, p, &image,
                              &size, &report, err);
    if (status == KVB_OK)
        status = kvb_write_file(a->output, image, size, err);
    status = kvb_end_checkpoint(checkpoint, status, p);
    char text[32];
    if (status == KVB_OK)
        kvb_say(p, "wrote %s: %s, %g bits, recipe %s", a->output, kvb_size_text(size, text),
                kvb_recipe_nominal_bits(recipe), recipe->name);
    free(image);
    return status;
}

static kvb_status run(const void *args, kvb_progress *p, kvb_error *err)
{
    const train_args *a = args;
    kvb_opened_captures captures = {0};
    kvb_recipe recipe;
    kvb_layer_range layers;
    if (a->captures.count == 0)
        return kvb_fail(err, KVB_E_USAGE, "train", "found no captures, expected at least one; `kvbook capture` makes them");
    kvb_status status = kvb_device_check((kvb_device)a->device.value, err);
    if (status == KVB_OK)
        status = kvb_layer_range_parse(a->layers, &layers, err);
    if (status == KVB_OK)
        status = kvb_recipe_from_args(&a->recipe, &recipe, err);
    if (status != KVB_OK)
        return status;
    recipe.policy = kvb_policy_from_args(&a->policy, recipe.policy);
    status = kvb_check_exact_form(&recipe.policy, kvb_recipe_has_fine(&recipe), recipe.name, err);
    if (status == KVB_OK)
        status = kvb_check_output(a->output, a->captures.items, a->captures.count, err);
    if (status == KVB_OK)
        status = kvb_captures_open(&a->captures, &captures, err);
    if (status == KVB_OK && a->dry_run)
        printf("%llu rows, %u layers, recipe %s at %g bits\n", (unsigned long long)kvb_captures_view(&captures)->rows,
               kvb_captures_view(&captures)->layers, recipe.name, kvb_recipe_nominal_bits(&recipe));
    else if (status == KVB_OK)
        status = train(a, &recipe, kvb_captures_view(&captures), layers, p, err);
    kvb_captures_close(&captures);
    kvb_recipe_free(&recipe);
    return status;
}

static const train_args defaults = {.recipe.seed.value = KVB_USUAL_SEED};
const kvb_command kvb_train_command = {&spec, &defaults, run};
