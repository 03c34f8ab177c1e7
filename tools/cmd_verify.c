#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/kvb_layout.h"
#include "tools/commands.h"
#include "tools/findings.h"
#include "tools/identity.h"
#include "tools/input.h"
#include "tools/output.h"
#include "tools/packed.h"
#include "tools/prompt.h"
#include "tools/summary.h"
#include "tools/verify_capture.h"

/* A codebook that uses fewer of its centroids is one that training gave up on. */
#define LEAST_USAGE 0.5f

typedef struct verify_args {
    kvb_common_args common;
    kvb_strings books;
    const char *model, *tokenizer, *book;
    bool json;
} verify_args;

static const kvb_flag flags[] = {
    {"--model", KVB_FLAG_STRING, "FILE", "also check that the book belongs to this model",
     .offset = offsetof(verify_args, model)},
    {"--tokenizer", KVB_FLAG_STRING, "FILE", "llama2.c's tokenizer.bin of that model",
     .offset = offsetof(verify_args, tokenizer)},
    {"--book", KVB_FLAG_STRING, "FILE", "of packed caches: also check that they go on with this book",
     .offset = offsetof(verify_args, book)},
    {"--json", KVB_FLAG_BOOL, NULL, "print one JSON object", .offset = offsetof(verify_args, json)},
};

static const kvb_command_spec spec = {
    .name = "verify",
    .operands = "BOOK.kvb|CACHE.kvp|CAPTURE.kvc",
    .summary = "Prove that a book is whole and worth something, or that packed caches or a capture are whole",
    .about = "Reads the whole file (checksums, geometry, every number finite), then checks each codebook: at\n"
             "least half of its centroids differ, its quality is on record, at least half of the centroids are used,\n"
             "and its error on training and held-out data is below that of predicting the mean. Exits with 1 and\n"
             "names each failed check. Of fine codebooks, which have no quality records, the first check is made.\n"
             "Of packed caches (.kvp) every byte is read and checked. A capture (.kvc) has no checksums: its structure and\n"
             "geometry are checked, every number is finite, no weight is negative and no head's weights are all 0.",
    .args_size = sizeof(verify_args),
    .operands_offset = offsetof(verify_args, books),
    .group = {{"Flags", flags, sizeof flags / sizeof *flags, 0}, KVB_GROUP(common, "Common flags", verify_args, common)},
    .groups = 2,
};

/* A centroid as qsort sees it. */
typedef struct centroid {
    const uint16_t *row;
    size_t bytes;
} centroid;

/* Where the checks stand, and what they found so far. */
typedef struct verification {
    const kvb_book *book;
    centroid *order;       /* [KVB_MAX_CENTROIDS] scratch */
    kvb_findings found;
    uint64_t unknown;      /* codebooks without quality records */
} verification;

typedef struct codebook_place {
    uint32_t layer, head, group;
    kvb_kind kind;
    bool fine;
} codebook_place;

static void count_check(verification *v, bool good, const codebook_place *at, const char *check, double found,
                        const char *expected)
{
    char text[200];
    v->found.checks++;
    if (good)
        return;
    snprintf(text, sizeof text, "%s: layer %u, KV head %u, %s, %sgroup %u: found %.4g, expected %s", check, at->layer,
             at->head, at->kind == KVB_KEY ? "keys" : "values", at->fine ? "fine " : "", at->group, found, expected);
    kvb_findings_failed(&v->found, text);
}

static int compare_centroids(const void *a, const void *b)
{
    const centroid *x = a, *y = b;
    return memcmp(x->row, y->row, x->bytes);
}

/* How many rows of a stage (the centroids of a plain codebook) differ from each other. Sorted, since a hostile book may
 * hold 65536. */
static uint32_t count_distinct_rows(const uint16_t *rows, const kvb_codebook *c, centroid *order)
{
    uint32_t distinct = 1;
    for (uint32_t k = 0; k < c->stage_centroids; k++)
        order[k] = (centroid){rows + (size_t)k * c->channels, c->channels * sizeof *rows};
    qsort(order, c->stage_centroids, sizeof *order, compare_centroids);
    for (uint32_t k = 1; k < c->stage_centroids; k++)
        distinct += compare_centroids(&order[k - 1], &order[k]) != 0;
    return distinct;
}

/* Of the group's worst stage. */
static uint32_t count_distinct(const kvb_codebook *c, uint32_t group, centroid *order)
{
    const size_t stage = (size_t)c->stage_centroids * c->channels;
    uint32_t least = c->stage_centroids;
    for (uint32_t m = 0; m < c->stages; m++) {
        uint32_t found = count_distinct_rows(c->table + ((size_t)group * c->stages + m) * stage, c, order);
        least = found < least ? found : least;
    }
    return least;
}

static void check_group(verification *v, const kvb_codebook *c, const kvb_quality *q, const codebook_place *at)
{
    uint32_t distinct = count_distinct(c, at->group, v->order);
    count_check(v, distinct > 1 && distinct >= c->stage_centroids / 2, at, "distinct", distinct,
                "at least half of the centroids (and two) to differ");
    if (q == NULL)
        return;
    count_check(v, q->train_error < 1.0f, at, "training error", (double)q->train_error,
                "less than 1, the error of predicting the mean");
    if (!isnan(q->heldout_error))
        count_check(v, q->heldout_error < 1.0f, at, "held-out error", (double)q->heldout_error,
                    "less than 1, the error of predicting the mean");
    count_check(v, q->usage >= LEAST_USAGE, at, "centroid usage", (double)q->usage, "at least 0.5 of the centroids");
}

static void check_codebook(verification *v, uint32_t layer, uint32_t head, kvb_kind kind)
{
    const kvb_codebook *c = kvb_book_codebook(v->book, layer, head, kind);
    if (c == NULL)
        return;
    /* A scalar quantiser: opening the book checked its levels, and nothing was trained. */
    if (c->scaling != NULL) {
        v->found.checks++;
        return;
    }
    const kvb_quality *q = kvb_book_quality(v->book, layer, head, kind);
    v->unknown += q == NULL;
    count_check(v, q != NULL, &(codebook_place){layer, head, 0, kind, false}, "quality", 0,
                "a quality record of each group");
    for (uint32_t s = 0; s < c->groups; s++)
        check_group(v, c, q != NULL ? &q[s] : NULL, &(codebook_place){layer, head, s, kind, false});
    const kvb_codebook *fine = kvb_book_fine(v->book, layer, head, kind);
    for (uint32_t s = 0; fine != NULL && s < fine->groups; s++)
        check_group(v, fine, NULL, &(codebook_place){layer, head, s, kind, true});
}

static void check_book(verification *v)
{
    for (uint32_t l = 0; l < kvb_book_layers(v->book); l++)
        for (uint32_t h = 0; h < kvb_book_layer(v->book, l)->kv_heads; h++)
            for (int kind = 0; kind < 2; kind++)
                check_codebook(v, l, h, (kvb_kind)kind);
}

static kvb_status check_model(const verify_args *a, const kvb_book *book, kvb_progress *p, kvb_error *err)
{
    const kvb_model_args files = {.model = a->model, .tokenizer = a->tokenizer};
    const kvb_override_args strict = {0};
    kvb_model *model;
    kvb_status status = kvb_open_model(&files, p, &model, err);
    if (status != KVB_OK)
        return status;
    status = kvb_check_identity(book, a->books.items[0], model, &strict, err);
    kvb_model_close(model);
    return status;
}

static kvb_status print_json(const char *path, verification *v, kvb_error *err)
{
    kvb_json_writer w = {0};
    v->found.json = &w;
    kvb_json_begin_object(&w, NULL);
    kvb_json_put_u64(&w, "schema", 1);
    kvb_json_put_string(&w, "book", path);
    kvb_json_begin_array(&w, "failed");
    check_book(v);
    kvb_json_end_array(&w);
    kvb_findings_put_counts(&v->found);
    kvb_json_put_u64(&w, "without_quality", v->unknown);
    kvb_findings_put_ok(&v->found);
    kvb_json_end_object(&w);
    return kvb_print_json(&w, "verify", err);
}

static void print_text(const char *path, verification *v)
{
    check_book(v);
    kvb_findings_print_rest(&v->found);
    if (v->unknown > 0)
        printf("%llu codebooks carry no quality records: their errors and usage are unknown\n",
               (unsigned long long)v->unknown);
    kvb_findings_print_summary(&v->found, path);
}

static kvb_status run(const void *args, kvb_progress *p, kvb_error *err)
{
    const verify_args *a = args;
    if (a->books.count != 1)
        return kvb_fail(err, KVB_E_USAGE, "verify", "found %zu files, expected one book (.kvb), file of packed caches (.kvp) or capture (.kvc)",
                        a->books.count);
    if (a->tokenizer != NULL && a->model == NULL)
        return kvb_fail(err, KVB_E_USAGE, "--tokenizer", "means nothing without --model");
    if (kvb_is_cache_file(a->books.items[0]))
        return kvb_verify_packed(a->books.items[0], a->model, a->tokenizer, a->book, a->json, p, err);
    if (kvb_is_capture_file(a->books.items[0])) {
        if (a->model != NULL || a->book != NULL)
            return kvb_fail(err, KVB_E_USAGE, a->model != NULL ? "--model" : "--book",
                            "means nothing for a capture; the book trained from it is what belongs to a model");
        return kvb_verify_capture(a->books.items[0], a->json, err);
    }
    if (a->book != NULL)
        return kvb_fail(err, KVB_E_USAGE, "--book", "means nothing for a book; it goes with packed caches (.kvp)");
    kvb_book *book;
    kvb_status status = kvb_book_open_with(a->books.items[0], KVB_OPEN_VERIFIED, &book, err);
    if (status != KVB_OK)
        return status;
    verification v = {.book = book, .order = kvb_alloc_array(KVB_MAX_CENTROIDS, sizeof *v.order)};
    if (v.order == NULL)
        status = kvb_fail_memory(err, "verify");
    else if (a->json)
        status = print_json(a->books.items[0], &v, err);
    else
        print_text(a->books.items[0], &v);
    if (status == KVB_OK)
        status = kvb_findings_status(&v.found, a->books.items[0], "calibrate again on more or other text", err);
    if (status == KVB_OK && a->model != NULL)
        status = check_model(a, book, p, err);
    free(v.order);
    kvb_book_close(book);
    return status;
}

static const verify_args defaults;
const kvb_command kvb_verify_command = {&spec, &defaults, run};
