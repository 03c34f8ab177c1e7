#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/fail.h"
#include "format/base/path.h"
#include "tools/calibration.h"
#include "tools/commands.h"
#include "tools/evaluate.h"
#include "tools/identity.h"
#include "tools/output.h"
#include "tools/score.h"
#include "tools/summary.h"
#include "tools/tuning.h"

typedef struct eval_args {
    kvb_common_args common;
    kvb_model_args model;
    kvb_text_args text;
    kvb_strings books;
    kvb_recipe_args recipe;
    kvb_text_args calibration;
    kvb_capture_args capture;
    kvb_tune_args tune;
    kvb_policy_args policy;
    kvb_arg_u64 protocol, decode, by_position;
    kvb_override_args allow;
    bool no_exact, also_bare, json;
} eval_args;


static const kvb_flag flags[] = {
    {"--book", KVB_FLAG_STRINGS, "FILE", "books to score (.kvb); one exact pass serves them all",
     .offset = offsetof(eval_args, books)},
    {"--anchor-protocol", KVB_FLAG_CHOICE, "NAME",
     "anchors chosen as tokens leave the window, as a cache does, or from "
     "the whole chunk at once, as the papers do", .offset = offsetof(eval_args, protocol), .choices = kvb_protocol_names},
    {"--also-bare", KVB_FLAG_BOOL, NULL, "score each book with nothing kept exact first, then with its policy",
     .offset = offsetof(eval_args, also_bare)},
    {"--decode", KVB_FLAG_COUNT, "[N]",
     "score the last N targets of each chunk only (256 where N is left out), twice: at once, and token by token through a cache as "
     "text is generated, the exact one too; exit 1 where the two disagree", .offset = offsetof(eval_args, decode), .least = 1,
     .usual = "256"},
    {"--by-position", KVB_FLAG_COUNT, "N", "perplexity of every N positions of a chunk as well, and its ratio to the exact one",
     .offset = offsetof(eval_args, by_position), .least = 1},
    {"--no-exact", KVB_FLAG_BOOL, NULL, "leave out the exact pass: no ppl_exact, kl and top1",
     .offset = offsetof(eval_args, no_exact)},
    {"--json", KVB_FLAG_BOOL, NULL, "print one JSON object, on one line, for each book",
     .offset = offsetof(eval_args, json)},
};

static const kvb_flag calibration_flags[] = {
    {"--calib-text", KVB_FLAG_STRINGS, "FILE", "text to calibrate --recipe on; not for recipes that learn nothing, as kivi",
     .offset = offsetof(kvb_text_args, text)},
    {"--calib-chunks", KVB_FLAG_COUNT, "N", "chunks of it at most (default: all)",
     .offset = offsetof(kvb_text_args, chunks), .least = 1},
    {"--calib-skip", KVB_FLAG_COUNT, "N", "chunks of it to pass over first", .offset = offsetof(kvb_text_args, skip)},
};

static const kvb_command_spec spec = {
    .name = "eval",
    .summary = "Score a model on text with its KV cache coded by books, beside its exact cache",
    .about = "  kvbook eval --model M.gguf --text test.txt --chunks 8 --book M.kvb\n\n"
             "Without --book and --recipe the exact cache alone is scored. A book's own policy (anchors, window,\n"
             "sinks) holds unless a flag overrides it; --anchors 0 --window 0 --sinks 0 keeps nothing exact.",
    .args_size = sizeof(eval_args),
    .group = {KVB_GROUP(model, "Model", eval_args, model), KVB_GROUP(text, "Text", eval_args, text),
              {"Scoring", flags, sizeof flags / sizeof *flags, 0},
              KVB_GROUP(policy, "What stays exact (default: what the book says)", eval_args, policy),
              KVB_GROUP(override, "Overrides", eval_args, allow),
              KVB_GROUP(recipe, "A recipe calibrated here instead of a book", eval_args, recipe),
              {"Calibration of --recipe", calibration_flags, 3, offsetof(eval_args, calibration)},
              KVB_GROUP(capture, "Where it runs, and capture for --recipe", eval_args, capture),
              KVB_GROUP(tune, "Tuning of --recipe (default: none)", eval_args, tune),
              KVB_GROUP(common, "Common flags", eval_args, common)},
    .groups = 10,
};

/* A run: books in the order asked for, the calibrated recipe last. With --decode each variant is a pair, at once and token by
 * token, and before all stands the exact cache token by token, whose other half is the exact pass. */
typedef struct eval_run {
    const eval_args *args;
    kvb_input input;
    size_t books, count, lead; /* count: variants, of which `lead` have no book; the others are as many of every book */
    kvb_book **book;           /* [books] */
    const char **name;         /* [books] path of the book, or the recipe's name */
    kvb_eval_variant *variant; /* [count] */
    kvb_eval_options options;
    kvb_eval_result result;
    double *bucket;            /* [1 + count][buckets] */
    kvb_recipe recipe;
    double seconds;
} eval_run;

typedef struct idle_flag {
    bool given;
    const char *name;
} idle_flag;

/* Flags that only a recipe or only a cache of codes would heed. */
static kvb_status check_idle_flags(const eval_args *a, kvb_error *err)
{
    const kvb_policy_args *p = &a->policy;
    const bool recipe = a->recipe.recipe != NULL, coded = recipe || a->books.count > 0;
    const idle_flag policy[] = {
        {p->anchors.set, "--anchors"}, {p->score.set, "--anchor-score"}, {p->window.set, "--window"},
        {p->sinks.set, "--sinks"}, {p->exact.set, "--exact"}, {a->protocol.set, "--anchor-protocol"},
    };
    const idle_flag calibration[] = {
        {a->calibration.text.count > 0, "--calib-text"}, {a->calibration.chunks.set, "--calib-chunks"},
        {a->calibration.skip.set, "--calib-skip"}, {a->capture.max_memory.set, "--max-memory"},
        {a->capture.on_nan.set, "--on-nan"}, {a->tune.epochs.set, "--tune"}, {a->tune.batch.set, "--tune-batch"},
        {a->tune.rate.set, "--tune-rate"}, {a->tune.exact.set, "--tune-exact"},
        {a->tune.stream.set, "--tune-stream"}, {a->tune.objective.set, "--tune-objective"},
    };
    for (size_t i = 0; !coded && i < sizeof policy / sizeof *policy; i++)
        if (policy[i].given)
            return kvb_fail(err, KVB_E_USAGE, policy[i].name,
                            "means nothing without --book or --recipe: the exact cache keeps every token");
    for (size_t i = 0; !recipe && i < sizeof calibration / sizeof *calibration; i++)
        if (calibration[i].given)
            return kvb_fail(err, KVB_E_USAGE, calibration[i].name,
                            "means nothing without --recipe: nothing is calibrated here");
    return KVB_OK;
}

/* A GPU scores the cache as it runs there. */
static kvb_status check_device(const eval_args *a, kvb_error *err)
{
    if (a->capture.device.value == KVB_DEVICE_CPU)
        return KVB_OK;
    if (a->decode.set)
        return kvb_fail(err, KVB_E_USAGE, "--decode", "compares two ways of running on the CPU; --device cuda scores token by token in any case");
    if (a->protocol.value == KVB_PROTOCOL_CHUNK)
        return kvb_fail(err, KVB_E_USAGE, "--anchor-protocol", "chunk is scored on the CPU: the GPU's cache chooses anchors as tokens leave "
                                                               "the window");
    return kvb_device_check((kvb_device)a->capture.device.value, err);
}

static kvb_status check_args(const eval_args *a, kvb_error *err)
{
    if (a->recipe.recipe == NULL && (a->recipe.bits.set || a->recipe.allocate || a->recipe.no_allocate || a->recipe.shape_k ||
                                      a->recipe.shape_v))
        return kvb_fail(err, KVB_E_USAGE,
                        a->recipe.allocate ? "--allocate" : a->recipe.no_allocate ? "--no-allocate" : "--bits",
                        "means nothing without --recipe: a book has its own");
    if (a->recipe.recipe == NULL && a->recipe.kmeans.set)
        return kvb_fail(err, KVB_E_USAGE, "--kmeans", "means nothing without --recipe: nothing is trained here");
    if (a->no_exact && a->books.count == 0 && a->recipe.recipe == NULL)
        return kvb_fail(err, KVB_E_USAGE, "--no-exact", "leaves nothing to score: give --book, or drop the flag");
    if (a->also_bare && a->books.count == 0 && a->recipe.recipe == NULL)
        return kvb_fail(err, KVB_E_USAGE, "--also-bare", "means nothing without --book");
    if (a->decode.set && a->protocol.value == KVB_PROTOCOL_CHUNK)
        return kvb_fail(err, KVB_E_USAGE, "--decode", "needs --anchor-protocol causal: a cache cannot know a whole chunk at once");
    kvb_status status = check_device(a, err);
    return status == KVB_OK ? check_idle_flags(a, err) : status;
}

static kvb_status open_books(eval_run *r, kvb_error *err)
{
    kvb_status status = KVB_OK;
    r->books = r->args->books.count + (r->args->recipe.recipe != NULL);
    r->lead = r->args->decode.set && !r->args->no_exact;
    r->count = r->lead + r->books * (r->args->also_bare ? 2 : 1) * (r->args->decode.set ? 2 : 1);
    r->book = calloc(r->books + 1, sizeof *r->book);
    r->name = calloc(r->books + 1, sizeof *r->name);
    r->variant = calloc(r->count + 1, sizeof *r->variant);
    r->result.variant = calloc(r->count + 1, sizeof *r->result.variant);
    if (r->book == NULL || r->name == NULL || r->variant == NULL || r->result.variant == NULL)
        return kvb_fail_memory(err, "eval");
    for (size_t i = 0; i < r->args->books.count && status == KVB_OK; i++) {
        r->name[i] = r->args->books.items[i];
        status = kvb_book_open_with(r->name[i], KVB_OPEN_VERIFIED, &r->book[i], err);
        if (status != KVB_OK)
            break;
        status = kvb_check_book_form(&r->args->policy, r->book[i], r->name[i], err);
    }
    return status;
}

/* The text to calibrate on. A recipe that learns nothing takes the first tokens of what is scored: they leave no trace but in META. */
static kvb_status open_calibration(const eval_run *r, kvb_input *calibration, kvb_progress *p, kvb_error *err)
{
    *calibration = r->input;
    if (r->args->calibration.text.count > 0) {
        calibration->text = (kvb_text){0};
        return kvb_input_load_text(calibration, &r->args->calibration, p, err);
    }
    calibration->chunks = 1;
    return KVB_OK;
}

static kvb_status check_calibration(const eval_run *r, kvb_error *err)
{
    const eval_args *a = r->args;
    if (a->recipe.recipe == NULL || a->calibration.text.count > 0 || (!kvb_recipe_learns(&r->recipe) && !a->tune.epochs.set))
        return KVB_OK;
    return kvb_fail(err, KVB_E_USAGE, "--recipe", "%s needs calibration: give --calib-text, or a book made with `kvbook calibrate` (--book)",
                    a->recipe.recipe);
}

/* The book of --recipe, through the very bytes that a file would hold. */
static kvb_status calibrate(eval_run *r, kvb_progress *p, kvb_error *err)
{
    const eval_args *a = r->args;
    kvb_train_report report;
    uint8_t *image = NULL;
    size_t size = 0, last = r->books - 1;
    kvb_input calibration;
    r->name[last] = a->recipe.recipe;
    kvb_status status = open_calibration(r, &calibration, p, err);
    if (status == KVB_OK)
        status = kvb_run_calibration(&calibration, &r->recipe, &a->capture, a->recipe.seed.value, NULL, p, &image, &size,
                                     &report, err);
    if (status == KVB_OK)
        status = kvb_tune_image(&calibration, &a->tune, a->recipe.seed.value, NULL, p, &image, &size, err);
    if (status == KVB_OK)
        status = kvb_book_open_memory(image, size, r->name[last], &r->book[last], err);
    if (a->calibration.text.count > 0)
        kvb_text_free(&calibration.text);
    free(image);
    return status;
}

static size_t book_of(const eval_run *r, size_t variant)
{
    return (variant - r->lead) / ((r->count - r->lead) / r->books);
}

static void choose_policies(eval_run *r)
{
    const size_t halves = r->args->decode.set ? 2 : 1;
    if (r->lead > 0)
        r->variant[0] = (kvb_eval_variant){.stream = true};
    for (size_t n = 0; n < r->count - r->lead; n++) {
        const size_t i = r->lead + n;
        const kvb_book *book = r->book[book_of(r, i)];
        const bool bare = r->args->also_bare && n / halves % 2 == 0;
        r->variant[i] = (kvb_eval_variant){
            .book = book,
            .policy = bare ? (kvb_policy){0} : kvb_policy_from_args(&r->args->policy, kvb_book_policy(book)),
            .protocol = (kvb_anchor_protocol)r->args->protocol.value,
            .seed = r->args->recipe.seed.value,
            .stream = n % halves == 1,
        };
    }
}

static double bits_at(const kvb_eval_variant *v, uint64_t tokens)
{
    return v == NULL ? KVB_EXACT_BITS : kvb_effective_bits(v->book, &v->policy, tokens);
}

static double nominal_bits(const kvb_eval_variant *v)
{
    return v == NULL || v->book == NULL ? KVB_EXACT_BITS : kvb_summarise_book(v->book).bits_nominal;
}

static void put_bits(kvb_json_writer *w, const eval_run *r, const kvb_eval_variant *v)
{
    kvb_json_put_number(w, "bits_nominal", nominal_bits(v));
    kvb_json_put_number(w, "bits_effective", bits_at(v, r->input.ctx));
    kvb_json_put_u64(w, "bits_effective_ctx", r->input.ctx);
    kvb_put_effective_bits(w, v != NULL ? v->book : NULL, v != NULL ? &v->policy : NULL);
}

static void put_buckets(kvb_json_writer *w, const char *key, const double *bucket, const double *exact, uint32_t buckets)
{
    kvb_json_begin_array(w, key);
    for (uint32_t b = 0; b < buckets; b++)
        kvb_json_put_number(w, NULL, exact != NULL ? bucket[b] / exact[b] : bucket[b]);
    kvb_json_end_array(w);
}

/* What --decode and --by-position ask for. */
static void put_more(kvb_json_writer *w, const eval_run *r, const kvb_eval_score *score, bool stream)
{
    const uint32_t buckets = kvb_eval_buckets(&r->options, r->input.ctx);
    if (r->args->decode.set) {
        kvb_json_put_string(w, "mode", stream ? "decode" : "prefill");
        kvb_json_put_number(w, "attention_apart", stream ? score->attention_apart : NAN);
        kvb_json_put_number(w, "nll_apart", stream ? score->apart : NAN);
        kvb_json_put_number(w, "nll_apart_most", stream ? score->apart_most : NAN);
    }
    if (buckets > 0) {
        kvb_json_put_u64(w, "positions", r->options.bucket);
        put_buckets(w, "ppl_by_position", score->bucket, NULL, buckets);
        if (!r->args->no_exact) {
            put_buckets(w, "ppl_exact_by_position", r->result.exact.bucket, NULL, buckets);
            put_buckets(w, "ppl_ratio_by_position", score->bucket, r->result.exact.bucket, buckets);
        }
    }
}

/* `v` NULL: the exact pass. */
static void put_result(kvb_json_writer *w, const eval_run *r, const kvb_eval_variant *v, const kvb_eval_score *score)
{
    const kvb_eval_score *exact = &r->result.exact;
    const bool coded = v != NULL && v->book != NULL;
    kvb_json_put_u64(w, "schema", 1);
    kvb_json_put_string(w, "model", r->args->model.model);
    kvb_json_begin_array(w, "text");
    for (size_t t = 0; t < r->args->text.text.count; t++)
        kvb_json_put_string(w, NULL, r->args->text.text.items[t]);
    kvb_json_end_array(w);
    kvb_json_put_u64(w, "ctx", r->input.ctx);
    kvb_json_put_u64(w, "skip", r->input.skip);
    kvb_json_put_u64(w, "chunks", r->input.chunks);
    kvb_json_put_u64(w, "targets", r->result.targets);
    kvb_json_put_bool(w, "bos", r->input.bos >= 0);
    kvb_json_put_string(w, "book", coded ? r->name[book_of(r, (size_t)(v - r->variant))] : NULL);
    if (coded)
        kvb_put_policy(w, &v->policy, kvb_protocol_names[v->protocol]);
    kvb_json_put_number(w, "ppl", score->ppl);
    kvb_json_put_number(w, "ppl_exact", exact->ppl);
    kvb_json_put_number(w, "kl", v != NULL ? score->kl : 0);
    kvb_json_put_number(w, "top1", v != NULL ? score->top1 : 1);
    kvb_json_put_number(w, "nll_delta", v != NULL ? score->delta : 0);
    kvb_json_put_number(w, "nll_delta_error", v != NULL ? score->delta_error : 0);
    put_bits(w, r, v);
    put_more(w, r, score, v != NULL && v->stream);
    kvb_json_put_number(w, "seconds", score->seconds + (v != NULL && !r->args->no_exact ? exact->seconds : 0));
    kvb_json_put_number(w, "tokens_per_second", (double)(r->input.chunks * r->input.ctx) / score->seconds);
}

static kvb_status print_object(const eval_run *r, const kvb_eval_variant *v, const kvb_eval_score *score, kvb_error *err)
{
    kvb_json_writer w = {.compact = true};
    kvb_json_begin_object(&w, NULL);
    put_result(&w, r, v, score);
    kvb_json_end_object(&w);
    return kvb_print_json(&w, "eval", err);
}

static kvb_status print_json(const eval_run *r, kvb_error *err)
{
    kvb_status status = r->books == 0 ? print_object(r, NULL, &r->result.exact, err) : KVB_OK;
    for (size_t i = 0; i < r->count && status == KVB_OK; i++)
        status = print_object(r, &r->variant[i], &r->result.variant[i], err);
    return status;
}

/* A number in a column, or a dash where there is none. */
static const char *cell(char text[32], int digits, double value)
{
    if (isfinite(value))
        snprintf(text, 32, "%.*f", digits, value);
    else
        snprintf(text, 32, "-");
    return text;
}

static void print_row(const eval_run *r, const char *name, const kvb_eval_variant *v, const kvb_eval_score *s)
{
    char t[10][32];
    const bool usual = r->input.ctx == KVB_CTX_2K;
    printf("%-28.28s %9s %9s %9s %8s %7s %7s", name, cell(t[0], 4, s->ppl), cell(t[1], 4, s->delta),
           cell(t[2], 4, s->delta_error), cell(t[3], 4, s->kl), cell(t[4], 2, s->top1 * 100), cell(t[5], 3, nominal_bits(v)));
    if (!usual)
        printf(" %7s", cell(t[6], 3, bits_at(v, r->input.ctx)));
    printf(" %7s %7s %9s\n", cell(t[7], 3, bits_at(v, KVB_CTX_2K)), cell(t[8], 3, bits_at(v, KVB_CTX_32K)),
           cell(t[9], 3, bits_at(v, KVB_CTX_128K)));
}

static void print_position_heads(const eval_run *r)
{
    printf("%-17s", "positions");
    if (!r->args->no_exact)
        printf(" %12s", "exact");
    for (size_t i = 0; i < r->count; i++) {
        printf(" %12.12s", r->variant[i].stream ? "by token" : kvb_base_name(r->name[book_of(r, i)]));
        if (!r->args->no_exact)
            printf(" %7s", "ratio");
    }
    putchar('\n');
}

/* Perplexity by position: a line for each part of a chunk, for each cache a column and its ratio to the exact one. */
static void print_positions(const eval_run *r)
{
    char text[32], range[32];
    const double *exact = r->args->no_exact ? NULL : r->result.exact.bucket;
    print_position_heads(r);
    for (uint32_t b = 0; b < kvb_eval_buckets(&r->options, r->input.ctx); b++) {
        const uint32_t from = b * r->options.bucket, to = from + r->options.bucket;
        snprintf(range, sizeof range, "%u-%u", from, (to < r->input.ctx ? to : r->input.ctx) - 1);
        printf("%-17s", range);
        if (exact != NULL)
            printf(" %12s", cell(text, 4, exact[b]));
        for (size_t i = 0; i < r->count; i++) {
            const double ppl = r->result.variant[i].bucket[b];
            printf(" %12s", cell(text, 4, ppl));
            if (exact != NULL)
                printf(" %7s", cell(text, 4, ppl / exact[b]));
        }
        putchar('\n');
    }
}

/* A row of what went token by token, and how far that is from the row above. */
static void print_stream(const eval_run *r, size_t i)
{
    const kvb_eval_score *s = &r->result.variant[i];
    print_row(r, "  token by token", &r->variant[i], s);
    printf("  log-likelihoods differ by %.2g on average, %.2g at most", s->apart, s->apart_most);
    if (r->variant[i].book != NULL)
        printf("; attention given the same inputs by %.2g in the worst layer", s->attention_apart);
    putchar('\n');
}

static void print_heads(const eval_run *r)
{
    char at[32];
    snprintf(at, sizeof at, "@%u", r->input.ctx);
    printf("%llu chunks of %u tokens, %llu targets\n", (unsigned long long)r->input.chunks, r->input.ctx,
           (unsigned long long)r->result.targets);
    printf("%-28s %9s %9s %9s %8s %7s %7s", "cache", "ppl", "dNLL", "+-", "KL", "top1 %", "bits");
    if (r->input.ctx != KVB_CTX_2K)
        printf(" %7s", at);
    printf(" %7s %7s %9s\n", "@2K", "@32K", "@128K");
}

static void print_table(const eval_run *r)
{
    char text[96], took[32];
    print_heads(r);
    if (!r->args->no_exact)
        print_row(r, "exact", NULL, &r->result.exact);
    for (size_t i = 0; i < r->count; i++) {
        const kvb_eval_variant *v = &r->variant[i];
        if (v->stream) {
            print_stream(r, i);
            continue;
        }
        print_row(r, kvb_base_name(r->name[book_of(r, i)]), v, &r->result.variant[i]);
        printf("  %s%s\n", kvb_policy_text(&v->policy, text),
               v->protocol == KVB_PROTOCOL_CHUNK ? ", anchors of the whole chunk" : "");
    }
    if (r->options.bucket > 0)
        print_positions(r);
    printf("bits: nominal, then effective at a context of so many tokens (all bytes held, codebooks included); %s\n",
           kvb_time_text(r->seconds, took));
}

static kvb_status choose_options(eval_run *r, kvb_error *err)
{
    const eval_args *a = r->args;
    if (a->decode.value >= r->input.ctx)
        return kvb_fail(err, KVB_E_USAGE, "--decode", "a chunk of %u tokens has %u targets, expected no more than that",
                        r->input.ctx, r->input.ctx - 1);
    r->options = (kvb_eval_options){.exact = !a->no_exact, .last = (uint32_t)a->decode.value,
                                    .bucket = a->by_position.value < r->input.ctx ? (uint32_t)a->by_position.value
                                                                                  : r->input.ctx,
                                    .device = (kvb_device)a->capture.device.value};
    const uint32_t buckets = kvb_eval_buckets(&r->options, r->input.ctx);
    if (buckets == 0)
        return KVB_OK;
    r->bucket = calloc((1 + r->count) * (size_t)buckets, sizeof *r->bucket);
    if (r->bucket == NULL)
        return kvb_fail_memory(err, "eval");
    r->result.exact.bucket = r->bucket;
    for (size_t i = 0; i < r->count; i++)
        r->result.variant[i].bucket = r->bucket + (1 + i) * buckets;
    return KVB_OK;
}

static kvb_status evaluate(eval_run *r, kvb_progress *p, kvb_error *err)
{
    const eval_args *a = r->args;
    kvb_status status = kvb_input_open(&r->input, &a->model, &a->text, p, err);
    for (size_t i = 0; i < a->books.count && status == KVB_OK; i++)
        status = kvb_check_identity(r->book[i], r->name[i], r->input.model, &a->allow, err);
    if (status == KVB_OK && a->recipe.recipe != NULL)
        status = calibrate(r, p, err);
    if (status != KVB_OK)
        return status;
    choose_policies(r);
    status = choose_options(r, err);
    if (status != KVB_OK)
        return status;
    double start = kvb_seconds();
    status = kvb_evaluate(&r->input, r->variant, r->count, &r->options, p, &r->result, err);
    r->seconds = kvb_seconds() - start;
    return status;
}

static kvb_status check_agreement(const eval_run *r, kvb_error *err)
{
    kvb_status status = KVB_OK;
    for (size_t i = 0; i < r->count && status == KVB_OK; i++) {
        const kvb_eval_score *s = &r->result.variant[i];
        if (!r->variant[i].stream)
            continue;
        if (r->variant[i].book != NULL)
            status = kvb_check_apart(r->name[book_of(r, i)], "given the same inputs, attention (as a part of its size, in the "
                                     "worst layer)", s->attention_apart, KVB_APART_ATTENTION, err);
        else
            status = kvb_check_apart("exact cache", "the mean log-likelihood", s->apart, KVB_APART_EXACT, err);
    }
    return status;
}

static kvb_status run(const void *args, kvb_progress *p, kvb_error *err)
{
    eval_run r = {.args = args};
    kvb_status status = check_args(r.args, err);
    if (status == KVB_OK && r.args->recipe.recipe != NULL)
        status = kvb_recipe_from_args(&r.args->recipe, &r.recipe, err);
    if (status == KVB_OK)
        status = check_calibration(&r, err);
    if (status != KVB_OK) {
        kvb_recipe_free(&r.recipe);
        return status;
    }
    if (r.args->recipe.recipe != NULL) {
        const kvb_policy policy = kvb_policy_from_args(&r.args->policy, r.recipe.policy);
        status = kvb_check_exact_form(&policy, kvb_recipe_has_fine(&r.recipe), r.recipe.name, err);
    }
    if (status == KVB_OK)
        status = open_books(&r, err);
    if (status == KVB_OK)
        status = evaluate(&r, p, err);
    if (status == KVB_OK && r.args->json)
        status = print_json(&r, err);
    else if (status == KVB_OK)
        print_table(&r);
    if (status == KVB_OK)
        status = check_agreement(&r, err);
    for (size_t i = 0; r.book != NULL && i < r.books; i++)
        kvb_book_close(r.book[i]);
    free(r.book);
    free(r.name);
    free(r.variant);
    free(r.result.variant);
    free(r.bucket);
    kvb_input_close(&r.input);
    if (r.args->recipe.recipe != NULL)
        kvb_recipe_free(&r.recipe);
    return status;
}

static const eval_args defaults = {
    .recipe.seed.value = KVB_USUAL_SEED,
    .capture.max_memory.value = KVB_USUAL_MEMORY,
};
const kvb_command kvb_eval_command = {&spec, &defaults, run};
