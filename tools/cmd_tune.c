#include <stdlib.h>

#include "format/base/fail.h"
#include "format/base/outfile.h"
#include "tools/calibration.h"
#include "tools/commands.h"
#include "tools/identity.h"
#include "tools/tuning.h"

typedef struct tune_args {
    kvb_common_args common;
    kvb_strings books;
    kvb_model_args model;
    kvb_text_args text;
    kvb_tune_args tune;
    kvb_override_args allow;
    kvb_arg_u64 seed;
    const char *output;
} tune_args;

static const kvb_flag flags[] = {
    {"--output", KVB_FLAG_STRING, "FILE", "the book to write (.kvb)", .offset = offsetof(tune_args, output),
     .letter = "-o", .required = true},
    {"--seed", KVB_FLAG_COUNT, "N", "of the order of chunks (default 1)", .offset = offsetof(tune_args, seed)},
};

static const kvb_command_spec spec = {
    .name = "tune",
    .operands = "BOOK.kvb",
    .summary = "Tune a book's centroids so that its model predicts what it did without codes",
    .about = "  kvbook tune M.kvb --model M.gguf --text train.txt --chunks 64 -o tuned.kvb\n\n"
             "One chunk in 16 is held out (of --tune-objective attention one in 8, for each layer); where those do not get\n"
             "better the book keeps its centroids. -v prints more, META keeps the errors.",
    .args_size = sizeof(tune_args),
    .operands_offset = offsetof(tune_args, books),
    .group = {KVB_GROUP(model, "Model", tune_args, model), KVB_GROUP(text, "Text", tune_args, text),
              KVB_GROUP(tune, "Tuning (default: one pass for kl, 3 for attention)", tune_args, tune),
              KVB_GROUP(override, "Overrides", tune_args, allow), {"Output", flags, sizeof flags / sizeof *flags, 0},
              KVB_GROUP(common, "Common flags", tune_args, common)},
    .groups = 6,
};

static kvb_status tune(const tune_args *a, const kvb_input *in, const kvb_book *book, kvb_progress *p, kvb_error *err)
{
    uint8_t *image = NULL;
    size_t size = 0;
    char bytes[32];
    kvb_status status = kvb_check_identity(book, a->books.items[0], in->model, &a->allow, err);
    if (status == KVB_OK)
        status = kvb_run_tuning(in, book, &a->tune, a->seed.value, NULL, p, &image, &size, err);
    if (status == KVB_OK)
        status = kvb_write_file(a->output, image, size, err);
    if (status == KVB_OK)
        kvb_say(p, "wrote %s: %s", a->output, kvb_size_text(size, bytes));
    free(image);
    return status;
}

static kvb_status run(const void *args, kvb_progress *p, kvb_error *err)
{
    const tune_args *a = args;
    const char *inputs[] = {a->model.model, a->model.tokenizer};
    kvb_input in = {0};
    kvb_book *book = NULL;
    if (a->books.count != 1)
        return kvb_fail(err, KVB_E_USAGE, "tune", "found %zu books, expected one", a->books.count);
    if (a->tune.epochs.set && a->tune.epochs.value == 0)
        return kvb_fail(err, KVB_E_USAGE, "--tune", "found 0 epochs, expected at least 1");
    kvb_status status = kvb_check_output(a->output, inputs, 2, err);
    if (status == KVB_OK)
        status = kvb_check_output(a->output, a->text.text.items, a->text.text.count, err);
    if (status == KVB_OK)
        status = kvb_check_output(a->output, a->books.items, 1, err);
    if (status == KVB_OK)
        status = kvb_book_open_with(a->books.items[0], KVB_OPEN_VERIFIED, &book, err);
    if (status == KVB_OK)
        status = kvb_input_open(&in, &a->model, &a->text, p, err);
    if (status == KVB_OK)
        status = tune(a, &in, book, p, err);
    kvb_input_close(&in);
    kvb_book_close(book);
    return status;
}

static const tune_args defaults = {.seed.value = KVB_USUAL_SEED};
const kvb_command kvb_tune_command = {&spec, &defaults, run};
