#include "calib/capture.h"
#include "tools/calibration.h"
#include "tools/commands.h"

typedef struct capture_args {
    kvb_common_args common;
    kvb_model_args model;
    kvb_text_args text;
    const char *output, *shard;
    kvb_arg_u64 max_rows, seed, sensitivity, on_nan, device;
    bool fisher, queries, dry_run;
} capture_args;

static const kvb_flag flags[] = {
    {"--output", KVB_FLAG_STRING, "FILE", "the capture to write (.kvc)", .offset = offsetof(capture_args, output),
     .letter = "-o", .required = true},
    {"--max-rows", KVB_FLAG_COUNT, "N", "keep so many tokens at most, the same number of each chunk (default: all)",
     .offset = offsetof(capture_args, max_rows), .least = 1},
    {"--seed", KVB_FLAG_COUNT, "N", "of the tokens and key positions that are drawn (default 1)",
     .offset = offsetof(capture_args, seed)},
    {"--sensitivity", KVB_FLAG_COUNT, "N", "chunks on which to measure what errors do to the model's predictions, for recipes "
     "that deal out bits by it (default 8; 0: none)", .offset = offsetof(capture_args, sensitivity)},
    {"--fisher", KVB_FLAG_BOOL, NULL, "keep each token's gradients of the text's loss too, for recipes with \"weights\": \"fisher\": "
     "twice the size, and a backward pass", .offset = offsetof(capture_args, fisher)},
    {"--queries", KVB_FLAG_BOOL, NULL, "keep the queries of the first chunk too, for recipes with \"clip\": \"search\"",
     .offset = offsetof(capture_args, queries)},
    {"--shard", KVB_FLAG_STRING, "I/N", KVB_SHARD_HELP, .offset = offsetof(capture_args, shard)},
    {"--on-nan", KVB_FLAG_CHOICE, "WHAT", KVB_ON_NAN_HELP, .offset = offsetof(capture_args, on_nan), .choices = kvb_on_nan_choices},
    {"--device", KVB_FLAG_DEVICE, "NAME", "where the model runs: cpu (the default), cuda, cuda:all or cuda:0,1",
     .offset = offsetof(capture_args, device), .choices = kvb_device_names},
    {"--dry-run", KVB_FLAG_BOOL, NULL, "print how large the capture would be",
     .offset = offsetof(capture_args, dry_run)},
};

static const kvb_command_spec spec = {
    .name = "capture",
    .summary = "Run a model over text and keep its keys, values and token weights in a file",
    .about = "The model computes what it always does; the capture only watches. spec/kvc-1.md describes the file,\n"
             "so that another engine can write one.",
    .args_size = sizeof(capture_args),
    .group = {KVB_GROUP(model, "Model", capture_args, model), KVB_GROUP(text, "Text", capture_args, text),
              {"Capture", flags, sizeof flags / sizeof *flags, 0},
              KVB_GROUP(common, "Common flags", capture_args, common)},
    .groups = 4,
};

static void print_plan(const kvb_input *in, const capture_args *a)
{
    const kvb_model_info *info = kvb_model_get_info(in->model);
    char size[32];
    uint64_t tokens = in->chunks * in->ctx, rows = tokens;
    if (a->max_rows.set && a->max_rows.value < tokens)
        rows = a->max_rows.value / in->chunks * in->chunks;
    const uint64_t queries = a->queries ? rows / in->chunks * kvb_capture_query_bytes(info->layer, info->layers) : 0;
    printf("%llu chunks of %u tokens, %llu rows kept, %s\n", (unsigned long long)in->chunks, in->ctx,
           (unsigned long long)rows, kvb_size_text(rows * kvb_capture_row_bytes(info->layer, info->layers, a->fisher) + queries, size));
}

static kvb_status capture(const kvb_input *in, const capture_args *a, kvb_progress *p, kvb_error *err)
{
    kvb_shard shard;
    kvb_capture_options options = kvb_capture_options_for(in, &(kvb_capture_args){.on_nan = a->on_nan, .device = a->device},
                                                          a->seed.value, a->max_rows.value, p);
    options.sensitivity_chunks = a->sensitivity.value;
    options.gradients = a->fisher;
    options.queries = a->queries;
    kvb_status status = kvb_shard_parse(a->shard, &shard, err);
    return status == KVB_OK ? kvb_capture_shard(in, &options, &shard, a->output, p, err) : status;
}

static kvb_status run(const void *args, kvb_progress *p, kvb_error *err)
{
    const capture_args *a = args;
    const char *inputs[] = {a->model.model, a->model.tokenizer};
    kvb_input in = {0};
    kvb_shard shard;
    kvb_status status = kvb_shard_parse(a->shard, &shard, err);
    if (status == KVB_OK)
        status = kvb_check_output(a->output, inputs, 2, err);
    if (status == KVB_OK)
        status = kvb_check_output(a->output, a->text.text.items, a->text.text.count, err);
    if (status == KVB_OK)
        status = kvb_input_open(&in, &a->model, &a->text, p, err);
    if (status != KVB_OK)
        return status;
    if (a->dry_run)
        print_plan(&in, a);
    else
        status = capture(&in, a, p, err);
    kvb_input_close(&in);
    return status;
}

static const capture_args defaults = {.seed.value = KVB_USUAL_SEED, .sensitivity.value = KVB_USUAL_SENSITIVITY};
const kvb_command kvb_capture_command = {&spec, &defaults, run};
