#include <stdlib.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "tools/commands.h"
#include "tools/generation.h"
#include "tools/identity.h"
#include "tools/input.h"
#include "tools/pivots.h"
#include "tools/prompt.h"
#include "tools/summary.h"

typedef struct generate_args {
    kvb_common_args common;
    kvb_model_args model;
    const char *prompt, *prompt_file, *book, *packed, *packed_name, *pivots;
    kvb_arg_u64 tokens, seed, device;
    kvb_arg_real temperature;
    kvb_policy_args policy;
    kvb_override_args allow;
    bool bos, no_bos, ignore_eos;
} generate_args;

static const kvb_flag flags[] = {
    {"--prompt", KVB_FLAG_STRING, "TEXT", "text to go on from", .offset = offsetof(generate_args, prompt)},
    {"--prompt-file", KVB_FLAG_STRING, "FILE", "the same from a UTF-8 file",
     .offset = offsetof(generate_args, prompt_file)},
    {"--cache", KVB_FLAG_STRING, "FILE", "go on from a prompt that `kvbook pack` saved (.kvp), before any text given here",
     .offset = offsetof(generate_args, packed)},
    {"--cache-name", KVB_FLAG_STRING, "NAME", "which prompt of that file, where it holds several",
     .offset = offsetof(generate_args, packed_name)},
    {"--pivots", KVB_FLAG_STRING, "FILE", "prompts that `kvbook pack` saved without a book (.kvp): where the prompt given here begins with "
     "the tokens of one, its keys and values stay in the coded cache as they are there", .offset = offsetof(generate_args, pivots)},
    {"--tokens", KVB_FLAG_COUNT, "N", "new tokens at most (default 64)", .offset = offsetof(generate_args, tokens),
     .letter = "-n", .least = 1},
    {"--book", KVB_FLAG_STRING, "FILE", "code the cache with this book (.kvb); without it every token stays exact",
     .offset = offsetof(generate_args, book)},
    {"--temperature", KVB_FLAG_REAL, "T",
     "0 takes the most likely token (default), 1 draws from the model's distribution",
     .offset = offsetof(generate_args, temperature), .most = 100},
    {"--seed", KVB_FLAG_COUNT, "N", "of everything drawn at random (default 1)",
     .offset = offsetof(generate_args, seed)},
    {"--device", KVB_FLAG_DEVICE, "NAME", "where the model and its cache run: cpu (the default), or cuda, with a book",
     .offset = offsetof(generate_args, device), .choices = kvb_device_names},
    {"--ignore-eos", KVB_FLAG_BOOL, NULL, "go on after an end-of-text token",
     .offset = offsetof(generate_args, ignore_eos)},
    {"--bos", KVB_FLAG_BOOL, NULL, "put the beginning-of-sequence token first (default: what the model file asks for)",
     .offset = offsetof(generate_args, bos)},
    {"--no-bos", KVB_FLAG_BOOL, NULL, "do not, whatever the model file asks for",
     .offset = offsetof(generate_args, no_bos)},
};

static const kvb_command_spec spec = {
    .name = "generate",
    .summary = "Continue a prompt token by token through a KV cache, exact or coded by a book",
    .args_size = sizeof(generate_args),
    .group = {KVB_GROUP(model, "Model", generate_args, model),
              {"Generation", flags, sizeof flags / sizeof *flags, 0},
              KVB_GROUP(policy, "What stays exact (default: what the book says)", generate_args, policy),
              KVB_GROUP(override, "Overrides", generate_args, allow),
              KVB_GROUP(common, "Common flags", generate_args, common)},
    .groups = 5,
};

/* A run: what must be released at its end. */
typedef struct generate_run {
    const generate_args *args;
    kvb_progress *progress;
    kvb_model *model;
    kvb_book *book;
    kvb_cache *cache; /* NULL on a GPU, where the stream has its own */
    kvb_stream *stream;
    kvb_cache_file *packed;
    kvb_pivots pivots;
    kvb_prompt prompt;
    kvb_policy policy; /* on a GPU */
    float *hidden; /* where nothing follows the packed prompt */
    uint64_t held; /* tokens of the packed prompt, and how long it took to bring them back */
    double restored;
    uint64_t made;
} generate_run;

/* The packed prompt has its own policy and its own beginning. */
static kvb_status check_packed(const generate_args *a, kvb_error *err)
{
    const char *own = kvb_policy_flag_given(&a->policy);
    if (own == NULL && (a->bos || a->no_bos))
        own = a->bos ? "--bos" : "--no-bos";
    if (own != NULL)
        return kvb_fail(err, KVB_E_USAGE, own, "does not go with --cache: the prompt was packed with a choice of its own");
    if (a->pivots != NULL)
        return kvb_fail(err, KVB_E_USAGE, "--pivots", "does not go with --cache, which the prompt's first tokens come from already");
    if (a->prompt != NULL && a->prompt_file != NULL)
        return kvb_fail(err, KVB_E_USAGE, "--prompt", "expected at most one of --prompt and --prompt-file");
    return KVB_OK;
}

static kvb_prompt_args prompt_args(const generate_args *a)
{
    return (kvb_prompt_args){.model = &a->model, .book = a->book, .policy = &a->policy, .allow = &a->allow};
}

static kvb_status check_device(const generate_args *a, kvb_error *err)
{
    if (a->device.value == KVB_DEVICE_CPU)
        return KVB_OK;
    if (a->packed != NULL || a->pivots != NULL)
        return kvb_fail(err, KVB_E_USAGE, a->packed != NULL ? "--cache" : "--pivots", "does not go with --device cuda: prompts are brought "
                                                                                      "back to the CPU's cache");
    if (a->book == NULL)
        return kvb_fail(err, KVB_E_USAGE, "--device cuda", "needs a --book: the GPU's cache is a coded one");
    return kvb_device_check((kvb_device)a->device.value, err);
}

static kvb_status check_args(const generate_args *a, kvb_error *err)
{
    kvb_status status = check_device(a, err);
    if (status != KVB_OK)
        return status;
    if (a->packed != NULL)
        return check_packed(a, err);
    if (a->packed_name != NULL)
        return kvb_fail(err, KVB_E_USAGE, "--cache-name", "means nothing without --cache");
    if ((a->prompt != NULL) == (a->prompt_file != NULL))
        return kvb_fail(err, KVB_E_USAGE, "--prompt", "expected exactly one of --prompt and --prompt-file, or --cache");
    if (a->pivots != NULL && a->book == NULL)
        return kvb_fail(err, KVB_E_USAGE, "--pivots", "means nothing without --book: every token stays exact");
    const kvb_prompt_args prompt = prompt_args(a);
    return kvb_prompt_check(&prompt, err);
}

/* Ids of the prompt, BOS first where it is wanted: never in the middle. */
static kvb_status encode_prompt(generate_run *r, kvb_error *err)
{
    const generate_args *a = r->args;
    int32_t bos = -1;
    if (a->prompt == NULL && a->prompt_file == NULL)
        return KVB_OK;
    kvb_status status = a->packed == NULL ? kvb_choose_bos(r->model, a->bos, a->no_bos, &bos, err) : KVB_OK;
    return status == KVB_OK ? kvb_prompt_encode(r->model, a->prompt, a->prompt_file, bos, &r->prompt, err) : status;
}

static kvb_status take_hidden(generate_run *r, const kvb_cache_file *file, const char *path, uint32_t prompt, kvb_error *err)
{
    const uint32_t width = kvb_model_get_info(r->model)->embedding;
    const uint32_t count = kvb_cache_file_prompt(file, prompt).hidden_count;
    if (count != width)
        return kvb_fail(err, KVB_E_MISMATCH, path,
                        "has a hidden state of %u numbers, the model needs %u to go on: give it more text with --prompt",
                        count, width);
    r->hidden = kvb_alloc_array(width, sizeof *r->hidden);
    return r->hidden != NULL ? kvb_cache_file_hidden(file, prompt, r->hidden, err)
                             : kvb_fail_memory(err, "generate");
}

/* The cache of the packed prompt, as it was when it was saved. */
static kvb_status take_packed(generate_run *r, kvb_error *err)
{
    const generate_args *a = r->args;
    uint32_t prompt = 0;
    kvb_cache_options options;
    const double start = kvb_seconds();
    kvb_status status =
        kvb_prompt_open_packed(a->packed, a->packed_name, r->model, &a->allow, &r->packed, &prompt, err);
    if (status != KVB_OK)
        return status;
    status = kvb_check_packed_book(r->packed, a->packed, r->book, a->book, err);
    if (status != KVB_OK)
        return status;
    kvb_cache_file_options(r->packed, &options);
    status = kvb_prompt_cache(r->model, r->book, &options, &r->cache, err);
    if (status == KVB_OK)
        status = kvb_cache_file_restore(r->packed, prompt, r->cache, err);
    if (status == KVB_OK && r->prompt.count == 0)
        status = take_hidden(r, r->packed, a->packed, prompt, err);
    r->held = kvb_cache_file_prompt(r->packed, prompt).tokens;
    r->restored = kvb_seconds() - start;
    return status;
}

/* A new cache, which begins with pivots where the prompt does; that is said either way. */
static kvb_status take_new(generate_run *r, kvb_error *err)
{
    const generate_args *a = r->args;
    const kvb_prompt_args args = prompt_args(a);
    kvb_status status = KVB_OK;
    if (a->pivots != NULL)
        status = kvb_pivots_open(a->pivots, r->model, &a->allow, &r->pivots, err);
    if (status == KVB_OK && a->pivots != NULL)
        status = kvb_pivots_match(&r->pivots, r->prompt.ids, r->prompt.count, err);
    if (status == KVB_OK)
        status = kvb_prompt_new_cache(&args, r->model, r->book, a->seed.value, r->pivots.tokens, &r->cache, err);
    if (status != KVB_OK || a->pivots == NULL)
        return status;
    if (r->pivots.tokens == 0)
        kvb_say(r->progress, "no pivots: the prompt begins with none of the prompts in %s", a->pivots);
    else
        kvb_say(r->progress, "%u pivots from %s", r->pivots.tokens, a->pivots);
    if (r->pivots.tokens > 0)
        status = kvb_pivots_put(&r->pivots, r->model, r->cache, err);
    if (status == KVB_OK && r->pivots.tokens > 0 && r->pivots.tokens == r->prompt.count)
        status = take_hidden(r, r->pivots.file, a->pivots, r->pivots.prompt, err);
    return status;
}

/* Prints the token at once: its bytes may be a part of a character only, which the next token completes. */
static int print_token(void *user, uint32_t token)
{
    generate_run *r = user;
    size_t size;
    const char *bytes = kvb_tokenizer_bytes(kvb_model_tokenizer(r->model), token, &size);
    fwrite(bytes, 1, size, stdout);
    r->made++;
    return fflush(stdout) != 0 || kvb_interrupted();
}

static void say_cache(const generate_run *r, double seconds)
{
    kvb_cache_bytes b = r->cache != NULL ? kvb_cache_count_bytes(r->cache)
                                         : kvb_cache_predict_bytes(r->book, &r->policy, kvb_stream_position(r->stream));
    char size[32], took[32];
    if (r->held > 0)
        kvb_say(r->progress, "%llu tokens came with %s in %.1f ms", (unsigned long long)r->held, r->args->packed,
                1e3 * r->restored);
    kvb_say(r->progress, "%zu prompt tokens, %llu new ones in %s; cache %s, %.3f bits an element", r->prompt.count,
            (unsigned long long)r->made, kvb_time_text(seconds, took), kvb_size_text(b.total, size),
            b.elements > 0 ? 8.0 * (double)b.total / (double)b.elements : 0.0);
}

/* The cache, on the CPU or on a GPU, and what runs through it. */
static kvb_status start(generate_run *r, kvb_error *err)
{
    const generate_args *a = r->args;
    if (a->device.value != KVB_DEVICE_CPU) {
        const uint64_t context = kvb_model_get_info(r->model)->context, asked = r->prompt.count + a->tokens.value;
        r->policy = kvb_policy_from_args(&a->policy, kvb_book_policy(r->book));
        return kvb_stream_create_on_device(r->model, r->book, &r->policy, a->seed.value, (kvb_device)a->device.value,
                                           (uint32_t)(asked < context ? asked : context), &r->stream, err);
    }
    kvb_status status = a->packed != NULL ? take_packed(r, err) : take_new(r, err);
    return status == KVB_OK ? kvb_stream_create(r->model, r->cache, &r->stream, err) : status;
}

static kvb_status generate(generate_run *r, kvb_error *err)
{
    const generate_args *a = r->args;
    const kvb_prompt_args args = prompt_args(a);
    kvb_status status = kvb_prompt_open(&args, r->progress, &r->model, &r->book, err);
    if (status == KVB_OK)
        status = encode_prompt(r, err);
    if (status == KVB_OK)
        status = start(r, err);
    if (status != KVB_OK)
        return status;
    const kvb_generation_options options = {.most = a->tokens.value, .temperature = a->temperature.value,
                                            .seed = a->seed.value, .ignore_eos = a->ignore_eos,
                                            .hidden = r->hidden};
    double start = kvb_seconds();
    status = kvb_generate(r->model, r->stream, r->prompt.ids + r->pivots.tokens, r->prompt.count - r->pivots.tokens, &options, print_token, r, err);
    if (r->made > 0)
        putchar('\n');
    if (status == KVB_OK && kvb_interrupted())
        return kvb_fail(err, KVB_E_CANCELLED, "generate", "interrupted after %llu tokens", (unsigned long long)r->made);
    if (status == KVB_OK)
        say_cache(r, kvb_seconds() - start);
    return status;
}

static kvb_status run(const void *args, kvb_progress *p, kvb_error *err)
{
    generate_run r = {.args = args, .progress = p};
    kvb_status status = check_args(r.args, err);
    if (status == KVB_OK)
        status = generate(&r, err);
    free(r.prompt.ids);
    free(r.hidden);
    kvb_cache_file_close(r.packed);
    kvb_pivots_close(&r.pivots);
    kvb_stream_destroy(r.stream);
    kvb_cache_destroy(r.cache);
    kvb_model_close(r.model);
    kvb_book_close(r.book);
    return status;
}

static const generate_args defaults = {.tokens.value = 64, .seed.value = 1};
const kvb_command kvb_generate_command = {&spec, &defaults, run};
