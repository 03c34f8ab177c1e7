#include <stdlib.h>
#include <string.h>

#include "calib/capture_meta.h"
#include "format/base/fail.h"
#include "format/base/path.h"
#include "tools/commands.h"
#include "tools/identity.h"
#include "tools/input.h"
#include "tools/prompt.h"
#include "tools/stream.h"
#include "tools/summary.h"

enum { STRETCH = 512, MOST_INPUTS = 64 }; /* STRETCH: tokens between two looks at progress, a multiple of a stream's piece */

typedef struct pack_args {
    kvb_common_args common;
    kvb_model_args model;
    kvb_strings text, names;
    const char *book, *output;
    kvb_arg_u64 seed;
    kvb_policy_args policy;
    kvb_override_args allow;
    bool bos, no_bos, zlib;
} pack_args;

static const kvb_flag flags[] = {
    {"--text", KVB_FLAG_STRINGS, "FILE", "UTF-8 text of a prompt; each file is a prompt of its own",
     .offset = offsetof(pack_args, text), .required = true},
    {"--output", KVB_FLAG_STRING, "FILE", "the packed caches to write (.kvp)", .offset = offsetof(pack_args, output),
     .letter = "-o", .required = true},
    {"--book", KVB_FLAG_STRING, "FILE", "code the caches with this book (.kvb); without it every token stays exact",
     .offset = offsetof(pack_args, book)},
    {"--name", KVB_FLAG_STRINGS, "NAME", "what the prompts are called, one name a file (default: the files' names without "
     "folder and extension)", .offset = offsetof(pack_args, names)},
    {"--zlib", KVB_FLAG_BOOL, NULL, "compress what gets smaller by it", .offset = offsetof(pack_args, zlib)},
    {"--seed", KVB_FLAG_COUNT, "N", "of anchors drawn at random (default 1)", .offset = offsetof(pack_args, seed)},
    {"--bos", KVB_FLAG_BOOL, NULL, "put the beginning-of-sequence token first (default: what the model file asks for)",
     .offset = offsetof(pack_args, bos)},
    {"--no-bos", KVB_FLAG_BOOL, NULL, "do not, whatever the model file asks for", .offset = offsetof(pack_args, no_bos)},
};

static const kvb_command_spec spec = {
    .name = "pack",
    .summary = "Run prompts once and save their caches, for `generate --cache` to go on from",
    .args_size = sizeof(pack_args),
    .group = {KVB_GROUP(model, "Model", pack_args, model),
              {"Prompts", flags, sizeof flags / sizeof *flags, 0},
              KVB_GROUP(policy, "What stays exact (default: what the book says)", pack_args, policy),
              KVB_GROUP(override, "Overrides", pack_args, allow),
              KVB_GROUP(common, "Common flags", pack_args, common)},
    .groups = 5,
};

typedef struct pack_run {
    const pack_args *args;
    kvb_progress *progress;
    kvb_model *model;
    kvb_book *book;
    kvb_cache_writer *writer;
} pack_run;

static kvb_prompt_args prompt_args(const pack_args *a)
{
    return (kvb_prompt_args){.model = &a->model, .book = a->book, .policy = &a->policy, .allow = &a->allow};
}

static kvb_status check_args(const pack_args *a, kvb_error *err)
{
    const char *inputs[MOST_INPUTS + 2] = {a->model.model, a->book};
    const kvb_prompt_args prompt = prompt_args(a);
    kvb_status status = kvb_prompt_check(&prompt, err);
    if (status != KVB_OK)
        return status;
    if (a->bos && a->no_bos)
        return kvb_fail(err, KVB_E_USAGE, "--bos", "given together with --no-bos: choose one");
    if (a->text.count > MOST_INPUTS)
        return kvb_fail(err, KVB_E_USAGE, "--text", "found %zu files, expected at most %d", a->text.count, MOST_INPUTS);
    if (a->names.count != 0 && a->names.count != a->text.count)
        return kvb_fail(err, KVB_E_USAGE, "--name", "found %zu names for %zu files, expected one each", a->names.count,
                        a->text.count);
    for (size_t i = 0; i < a->text.count; i++)
        inputs[2 + i] = a->text.items[i];
    return kvb_check_output(a->output, inputs, 2 + a->text.count, err);
}

/* Where the caches come from. NULL if out of memory; free with free(). */
static char *write_meta(const pack_run *r)
{
    kvb_json_writer w = {.compact = true};
    kvb_json_begin_object(&w, NULL);
    kvb_json_put_string(&w, "tool", "kvbook");
    kvb_json_put_string(&w, "version", KVB_VERSION);
    kvb_meta_put_model(&w, r->model);
    if (r->book != NULL) {
        kvb_json_begin_object(&w, "book");
        kvb_json_put_string(&w, "name", kvb_base_name(r->args->book));
        kvb_json_put_number(&w, "bits_nominal", kvb_summarise_book(r->book).bits_nominal);
        kvb_json_end_object(&w);
    }
    kvb_json_end_object(&w);
    const char *text = kvb_json_writer_text(&w);
    char *copy = text != NULL ? strdup(text) : NULL;
    kvb_json_writer_free(&w);
    return copy;
}

static kvb_status make_writer(pack_run *r, kvb_error *err)
{
    kvb_cache_writer_options options;
    char *meta = write_meta(r);
    if (meta == NULL)
        return kvb_fail_memory(err, "pack");
    kvb_cache_writer_options_init(&options);
    options.meta_json = meta;
    options.compress = r->args->zlib;
    kvb_status status = kvb_cache_writer_create(&options, &r->writer, err);
    free(meta);
    return status;
}

/* "folder/system.txt" -> "system" */
static void name_of_file(const char *path, char name[KVB_PROMPT_NAME_MOST + 1])
{
    const char *base = kvb_base_name(path), *dot = strrchr(base, '.');
    const size_t length = dot != NULL && dot != base ? (size_t)(dot - base) : strlen(base);
    snprintf(name, KVB_PROMPT_NAME_MOST + 1, "%.*s", (int)(length < KVB_PROMPT_NAME_MOST ? length : KVB_PROMPT_NAME_MOST),
             base);
}

/* Runs the ids through the cache; *hidden is the state after the last. */
static kvb_status run_prompt(pack_run *r, kvb_stream *stream, const kvb_prompt *prompt, const char *name,
                             const float **hidden, kvb_error *err)
{
    char step[64];
    kvb_status status = KVB_OK;
    snprintf(step, sizeof step, "prompt %.48s", name);
    for (size_t done = 0; done < prompt->count && status == KVB_OK; done += STRETCH) {
        const size_t count = prompt->count - done < STRETCH ? prompt->count - done : STRETCH;
        status = kvb_stream_run(stream, prompt->ids + done, count, hidden, err);
        if (status == KVB_OK && kvb_progress_report(r->progress, step, done + count, prompt->count) != 0)
            status = kvb_fail(err, KVB_E_CANCELLED, "pack", "interrupted; nothing was written");
    }
    kvb_progress_finish(r->progress);
    return status;
}

static kvb_status save_prompt(pack_run *r, kvb_cache *cache, const kvb_prompt *prompt, const char *name, kvb_error *err)
{
    const kvb_model_info *info = kvb_model_get_info(r->model);
    kvb_stream *stream;
    kvb_saved_prompt saved;
    kvb_saved_prompt_init(&saved);
    kvb_status status = kvb_stream_create(r->model, cache, &stream, err);
    if (status != KVB_OK)
        return status;
    saved.name = name;
    saved.ids = prompt->ids;
    saved.hidden_count = info->embedding;
    status = run_prompt(r, stream, prompt, name, &saved.hidden, err);
    if (status == KVB_OK)
        status = kvb_cache_writer_add(r->writer, cache, &saved, err);
    kvb_stream_destroy(stream);
    return status;
}

static void say_prompt(const pack_run *r, const char *name, const kvb_cache *cache, size_t tokens, double seconds)
{
    const kvb_cache_bytes b = kvb_cache_count_bytes(cache);
    char size[32], took[32];
    const uint64_t held = b.total - b.codebooks;
    kvb_say(r->progress, "%s: %zu tokens in %s; cache %s, %.3f bits an element without the book", name, tokens,
            kvb_time_text(seconds, took), kvb_size_text(held, size), 8.0 * (double)held / (double)b.elements);
}

static kvb_status pack_prompt(pack_run *r, size_t i, int32_t bos, kvb_error *err)
{
    const pack_args *a = r->args;
    const uint32_t context = kvb_model_get_info(r->model)->context;
    char name[KVB_PROMPT_NAME_MOST + 1];
    kvb_prompt prompt;
    kvb_cache *cache = NULL;
    const kvb_prompt_args args = prompt_args(a);
    const double start = kvb_seconds();
    name_of_file(a->text.items[i], name);
    kvb_status status = kvb_prompt_encode(r->model, NULL, a->text.items[i], bos, &prompt, err);
    if (status == KVB_OK && (prompt.count == 0 || prompt.count > context))
        status = kvb_fail(err, KVB_E_USAGE, a->text.items[i], "has %zu tokens, expected 1..%u, the model's context",
                          prompt.count, context);
    if (status == KVB_OK)
        status = kvb_prompt_new_cache(&args, r->model, r->book, a->seed.value, 0, &cache, err);
    if (status == KVB_OK)
        status = save_prompt(r, cache, &prompt, a->names.count > 0 ? a->names.items[i] : name, err);
    if (status == KVB_OK)
        say_prompt(r, a->names.count > 0 ? a->names.items[i] : name, cache, prompt.count, kvb_seconds() - start);
    kvb_cache_destroy(cache);
    free(prompt.ids);
    return status;
}

static kvb_status pack(pack_run *r, kvb_error *err)
{
    const pack_args *a = r->args;
    int32_t bos = -1;
    const kvb_prompt_args args = prompt_args(a);
    kvb_status status = kvb_prompt_open(&args, r->progress, &r->model, &r->book, err);
    if (status == KVB_OK)
        status = kvb_choose_bos(r->model, a->bos, a->no_bos, &bos, err);
    if (status == KVB_OK)
        status = make_writer(r, err);
    for (size_t i = 0; i < a->text.count && status == KVB_OK; i++)
        status = pack_prompt(r, i, bos, err);
    if (status == KVB_OK) {
        status = kvb_cache_writer_commit(r->writer, a->output, err);
        r->writer = NULL;
    }
    if (status == KVB_OK)
        kvb_say(r->progress, "wrote %s", a->output);
    return status;
}

static kvb_status run(const void *args, kvb_progress *p, kvb_error *err)
{
    pack_run r = {.args = args, .progress = p};
    kvb_status status = check_args(r.args, err);
    if (status == KVB_OK)
        status = pack(&r, err);
    kvb_cache_writer_abandon(r.writer);
    kvb_model_close(r.model);
    kvb_book_close(r.book);
    return status;
}

static const pack_args defaults = {.seed.value = 1};
const kvb_command kvb_pack_command = {&spec, &defaults, run};
