#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "format/base/fail.h"
#include "format/base/outfile.h"
#include "tools/commands.h"
#include "tools/compare.h"

typedef struct compare_args {
    kvb_common_args common;
    kvb_model_args model;
    kvb_text_args text, calibration;
    kvb_policy_args policy;
    kvb_capture_args capture;
    kvb_arg_u64 protocol, seed;
    const char *recipes, *bits, *output;
} compare_args;

static const kvb_flag flags[] = {
    {"--recipes", KVB_FLAG_STRING, "A,B,...", "names or files of recipes, with commas between them", .required = true,
     .offset = offsetof(compare_args, recipes)},
    {"--bits", KVB_FLAG_STRING, "N,N,...", "rates to have each recipe at, such as 4,2,1,0.375; a rate that a recipe has no form for is left "
     "out with the reason", .required = true, .offset = offsetof(compare_args, bits)},
    {"--output", KVB_FLAG_STRING, "FILE.json", "the table; FILE.md and FILE.svg are written beside it, and a folder FILE.books keeps books "
     "and scores", .offset = offsetof(compare_args, output), .letter = "-o", .required = true},
    {"--anchor-protocol", KVB_FLAG_CHOICE, "NAME", "anchors chosen as tokens leave the window, as a cache does, or from the whole chunk at "
     "once, as the papers do", .offset = offsetof(compare_args, protocol), .choices = kvb_protocol_names},
    {"--seed", KVB_FLAG_COUNT, "N", "seed of training (default 1)", .offset = offsetof(compare_args, seed)},
};

static const kvb_flag calibration_flags[] = {
    {"--calib-text", KVB_FLAG_STRINGS, "FILE", "text to calibrate on (default: the chunks of --text after those that are scored)",
     .offset = offsetof(kvb_text_args, text)},
    {"--calib-chunks", KVB_FLAG_COUNT, "N", "chunks of it at most (default: all)",
     .offset = offsetof(kvb_text_args, chunks), .least = 1},
    {"--calib-skip", KVB_FLAG_COUNT, "N", "chunks of it to pass over first", .offset = offsetof(kvb_text_args, skip)},
};

static const kvb_command_spec spec = {
    .name = "compare",
    .summary = "Calibrate several recipes at several rates, score them all, and put them into one table",
    .about = "  kvbook compare --model M.gguf --text test.txt --chunks 8 --calib-text train.txt \\\n"
             "      --recipes antkv,cq,best --bits 4,2,1 -o table.json\n\n"
             "Writes table.json, table.md and table.svg, and prints the Markdown. An interrupted run goes on where it was; a\n"
             "later one with more chunks, recipes or rates does only what is new. Without --calib-text the chunks of --text\n"
             "after the scored ones are calibrated on; without --chunks as well, one half is scored and the other calibrated on.\n"
             "Where no recipe learns from text, none is taken for it.",
    .args_size = sizeof(compare_args),
    .group = {KVB_GROUP(model, "Model", compare_args, model), KVB_GROUP(text, "Text to score", compare_args, text),
              {"Calibration", calibration_flags, 3, offsetof(compare_args, calibration)},
              KVB_GROUP(capture, "Capture", compare_args, capture),
              KVB_GROUP(policy, "What stays exact (default: what each recipe says)", compare_args, policy),
              {"Comparison", flags, sizeof flags / sizeof *flags, 0},
              KVB_GROUP(common, "Common flags", compare_args, common)},
    .groups = 7,
};

/* Where everything goes. */
typedef struct compare_paths {
    char *stem, *markdown, *picture, *folder;
} compare_paths;

static kvb_status name_outputs(const char *output, compare_paths *paths, kvb_error *err)
{
    const size_t length = strlen(output), tail = strlen(".json");
    if (length <= tail || strcmp(output + length - tail, ".json") != 0 || output[length - tail - 1] == '/')
        return kvb_fail(err, KVB_E_USAGE, "--output", "found \"%.100s\", expected a name that ends in .json: the other files are named after it",
                        output);
    paths->stem = strndup(output, length - tail);
    if (paths->stem == NULL || asprintf(&paths->markdown, "%s.md", paths->stem) < 0 || asprintf(&paths->picture, "%s.svg", paths->stem) < 0 ||
        asprintf(&paths->folder, "%s.books", paths->stem) < 0)
        return kvb_fail_memory(err, "compare");
    return KVB_OK;
}

static void free_paths(compare_paths *paths)
{
    free(paths->stem);
    free(paths->markdown);
    free(paths->picture);
    free(paths->folder);
}

static kvb_status check_outputs(const compare_args *a, const compare_paths *paths, kvb_error *err)
{
    const char *outputs[] = {a->output, paths->markdown, paths->picture};
    const char *models[] = {a->model.model, a->model.tokenizer};
    kvb_status status = KVB_OK;
    for (size_t i = 0; i < sizeof outputs / sizeof *outputs && status == KVB_OK; i++) {
        status = kvb_check_output(outputs[i], models, 2, err);
        if (status == KVB_OK)
            status = kvb_check_output(outputs[i], a->text.text.items, a->text.text.count, err);
        if (status == KVB_OK)
            status = kvb_check_output(outputs[i], a->calibration.text.items, a->calibration.text.count, err);
    }
    return status;
}

static kvb_status make_folder(const char *path, kvb_error *err)
{
    struct stat st;
    if (mkdir(path, 0777) == 0)
        return KVB_OK;
    const int why = errno;
    if (why != EEXIST)
        return kvb_fail(err, KVB_E_IO, path, "the folder for books cannot be made: %s", strerror(why));
    if (stat(path, &st) != 0 || !S_ISDIR(st.st_mode))
        return kvb_fail(err, KVB_E_IO, path, "is no folder, expected one for books; move it away or give another --output");
    return KVB_OK;
}

/* What is left of --text behind the scored chunks. */
static kvb_status share_text(const compare_args *a, kvb_input *in, kvb_input *calibration, kvb_error *err)
{
    if (!a->text.chunks.set)
        in->chunks = (in->chunks + 1) / 2;
    uint64_t all, passed = in->chunks + a->calibration.skip.value;
    kvb_status status = kvb_text_chunks(&in->text, in->ctx, in->skip, 0, &all, err);
    if (status != KVB_OK)
        return status;
    if (all <= passed)
        return kvb_fail(err, KVB_E_USAGE, "--calib-text", "missing: of the %llu chunks of --text none is left to calibrate on; give a text, or "
                        "fewer --chunks", (unsigned long long)all);
    *calibration = *in;
    calibration->skip = in->skip + passed;
    calibration->chunks = all - passed;
    if (a->calibration.chunks.set && a->calibration.chunks.value < calibration->chunks)
        calibration->chunks = a->calibration.chunks.value;
    return KVB_OK;
}

static bool any_learns(const kvb_compare_grid *grid)
{
    for (size_t i = 0; i < grid->count; i++)
        if (!grid->cell[i].refused && kvb_recipe_learns(&grid->cell[i].recipe))
            return true;
    return false;
}

/* Recipes that learn nothing take the first tokens of what is scored: they leave no trace but in META. */
static kvb_status open_texts(const compare_args *a, bool learns, kvb_input *in, kvb_input *calibration, kvb_progress *p, kvb_error *err)
{
    kvb_status status = kvb_input_open(in, &a->model, &a->text, p, err);
    if (status != KVB_OK)
        return status;
    if (a->calibration.text.count == 0 && learns)
        return share_text(a, in, calibration, err);
    *calibration = *in;
    calibration->chunks = 1;
    if (a->calibration.text.count == 0)
        return KVB_OK;
    calibration->text = (kvb_text){0};
    return kvb_input_load_text(calibration, &a->calibration, p, err);
}

static kvb_status write_text(const char *path, const char *text, kvb_progress *p, kvb_error *err)
{
    kvb_status status = kvb_write_file(path, text, strlen(text), err);
    if (status == KVB_OK)
        kvb_say(p, "wrote %s", path);
    return status;
}

static kvb_status write_all(const compare_args *a, const compare_paths *paths, const kvb_compare_job *job, const kvb_compare_grid *grid,
                            kvb_progress *p, kvb_error *err)
{
    char *json = NULL, *markdown = NULL, *picture = NULL;
    kvb_status status = kvb_compare_json(job, grid, &json, err);
    if (status == KVB_OK)
        status = kvb_compare_markdown(job, grid, &markdown, err);
    if (status == KVB_OK)
        status = kvb_compare_picture(job, grid, &picture, err);
    if (status == KVB_OK)
        status = write_text(paths->markdown, markdown, p, err);
    if (status == KVB_OK)
        status = write_text(paths->picture, picture, p, err);
    if (status == KVB_OK)
        status = write_text(a->output, json, p, err);
    if (status == KVB_OK)
        fputs(markdown, stdout);
    free(json);
    free(markdown);
    free(picture);
    return status;
}

static kvb_status compare(const compare_args *a, const compare_paths *paths, kvb_compare_job *job, kvb_compare_grid *grid,
                          kvb_progress *p, kvb_error *err)
{
    kvb_status status = kvb_compare_fit(job, grid, err);
    if (status == KVB_OK)
        status = make_folder(paths->folder, err);
    if (status == KVB_OK)
        status = kvb_compare_books(job, grid, p, err);
    if (status == KVB_OK)
        status = kvb_compare_score(job, grid, p, err);
    return status == KVB_OK ? write_all(a, paths, job, grid, p, err) : status;
}

static kvb_status run(const void *args, kvb_progress *p, kvb_error *err)
{
    const compare_args *a = args;
    const bool own_text = a->calibration.text.count > 0;
    const kvb_strings *calib = own_text ? &a->calibration.text : &a->text.text;
    kvb_compare_grid grid = {0};
    compare_paths paths = {0};
    kvb_input in = {0}, calibration = {0};
    kvb_status status = kvb_compare_parse(a->recipes, a->bits, &grid, err);
    if (status == KVB_OK)
        status = name_outputs(a->output, &paths, err);
    if (status == KVB_OK)
        status = check_outputs(a, &paths, err);
    if (status == KVB_OK)
        status = open_texts(a, any_learns(&grid), &in, &calibration, p, err);
    kvb_compare_job job = {
        .input = &in, .calibration = &calibration, .text = a->text.text.items, .texts = a->text.text.count, .calib_text = calib->items,
        .calib_texts = own_text || any_learns(&grid) ? calib->count : 0, .capture = &a->capture, .policy = &a->policy,
        .protocol = (kvb_anchor_protocol)a->protocol.value, .seed = a->seed.value, .folder = paths.folder,
    };
    if (status == KVB_OK)
        status = compare(a, &paths, &job, &grid, p, err);
    if (own_text)
        kvb_text_free(&calibration.text);
    kvb_input_close(&in);
    kvb_compare_free(&grid);
    free_paths(&paths);
    return status;
}

static const compare_args defaults = {
    .seed.value = KVB_USUAL_SEED,
    .capture.max_memory.value = KVB_USUAL_MEMORY,
};
const kvb_command kvb_compare_command = {&spec, &defaults, run};
