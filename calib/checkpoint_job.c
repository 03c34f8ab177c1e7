#include "calib/checkpoint_job.h"

#include <cblas.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "calib/capture_meta.h"
#include "calib/shape.h"
#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/kernels.h"
#include "format/base/sha256.h"

enum { SHOWN = 60, NAMED = 6 };

/* ---- what a job is */

static void put_text(kvb_json_writer *w, const char *key, const char *format, ...) __attribute__((format(printf, 3, 4)));

static void put_text(kvb_json_writer *w, const char *key, const char *format, ...)
{
    char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    kvb_json_put_string(w, key, text);
}

static void put_shape(kvb_json_writer *w, const char *key, const kvb_shape *s)
{
    char text[KVB_SHAPE_TEXT];
    kvb_json_put_string(w, key, s->channels != 0 ? kvb_shape_text(s->channels, s->centroids, s->stages, text) : "none");
}

/* A recipe's text as one string: two files of the same content are the same recipe. */
static void put_recipe_text(kvb_json_writer *w, const kvb_recipe *recipe)
{
    kvb_json_writer inner = {.compact = true};
    kvb_json_put_value(&inner, NULL, kvb_json_root(recipe->doc));
    const char *text = kvb_json_writer_text(&inner);
    if (text != NULL)
        kvb_json_put_string(w, "recipe", text);
    else
        w->failed = true;
    kvb_json_writer_free(&inner);
}

static void put_ladder(kvb_json_writer *w, const kvb_recipe *recipe)
{
    char all[KVB_RECIPE_LADDER * 24] = "", one[KVB_SHAPE_TEXT];
    for (uint32_t i = 0; i < recipe->ladder_count; i++) {
        const kvb_shape *s = &recipe->ladder[i];
        const size_t used = strlen(all);
        snprintf(all + used, sizeof all - used, "%s%s", i > 0 ? " " : "",
                 kvb_shape_text(s->channels, s->centroids, s->stages, one));
    }
    kvb_json_put_string(w, "allocate", all);
}

void kvb_checkpoint_job_put(kvb_json_writer *w, const kvb_recipe *recipe, uint64_t seed, kvb_device device)
{
    const kvb_policy *p = &recipe->policy;
    kvb_json_put_string(w, "kvbook", KVB_VERSION);
    put_text(w, "processor", "%s, OpenBLAS %s", kvb_kernels_best()->name, openblas_get_corename());
    put_recipe_text(w, recipe);
    put_shape(w, "--k", &recipe->kind[KVB_KEY].shape);
    put_shape(w, "--v", &recipe->kind[KVB_VALUE].shape);
    put_ladder(w, recipe);
    put_text(w, "--bits", "%.17g", recipe->budget);
    put_text(w, "--kmeans", "%s", recipe->backend == KVB_KMEANS_FAISS ? "faiss" : "own");
    put_text(w, "policy", "anchors %.17g by score %d, window %u, sinks %u, form %d", p->anchor_fraction, (int)p->score,
             p->window, p->sinks, (int)p->exact);
    put_text(w, "--seed", "%" PRIu64, seed);
    put_text(w, "--device", "%s", device != KVB_DEVICE_CPU ? "cuda" : "cpu");
}

void kvb_checkpoint_job_put_input(kvb_json_writer *w, const kvb_model *model, const kvb_text *text,
                                  const kvb_capture_options *options, uint64_t chunks)
{
    const kvb_model_info *info = kvb_model_get_info(model);
    kvb_sha256 s;
    uint8_t digest[32];
    kvb_json_put_sha256(w, "model", info->weights_sha256);
    kvb_json_put_sha256(w, "model's metadata", info->meta_sha256);
    kvb_json_put_sha256(w, "tokenizer", kvb_tokenizer_id(kvb_model_tokenizer(model)));
    /* META has the names of the files too, so they count. */
    kvb_sha256_begin(&s);
    for (size_t i = 0; i < text->source_count; i++) {
        kvb_sha256_add(&s, text->sources[i].path, strlen(text->sources[i].path) + 1);
        kvb_sha256_add(&s, text->sources[i].sha256, sizeof text->sources[i].sha256);
    }
    kvb_sha256_end(&s, digest);
    kvb_json_put_sha256(w, "--text", digest);
    put_text(w, "--ctx", "%u", options->ctx);
    put_text(w, "--skip", "%" PRIu64, options->skip);
    put_text(w, "--chunks", "%" PRIu64, chunks);
    put_text(w, "--bos", "%" PRId32, options->bos);
    put_text(w, "rows (--max-memory)", "%" PRIu64, options->max_rows);
    put_text(w, "sensitivity chunks", "%" PRIu64, options->sensitivity_chunks);
    if (options->queries)
        put_text(w, "queries", "yes");
    put_text(w, "gradients", "%s", options->gradients ? "yes" : "no");
    put_text(w, "--on-nan", "%s", options->stop_on_nan ? "stop" : "quarantine");
}

/* One checksum over all that a layer has. */
static uint32_t sum_layer(const kvb_capture *c, uint32_t layer)
{
    const kvb_layer *g = &c->geometry[layer];
    const kvb_capture_layer *l = &c->layer[layer];
    const size_t heads = g->kv_heads, rows = heads * (size_t)c->rows, square = heads * g->head_dim * g->head_dim;
    const struct {
        const void *bytes;
        size_t size;
    } part[] = {
        {l->keys, rows * g->head_dim * sizeof *l->keys},     {l->values, rows * g->head_dim * sizeof *l->values},
        {l->weight_k, rows * sizeof *l->weight_k},           {l->weight_v, rows * sizeof *l->weight_v},
        {l->moment_relative, square * sizeof(float)},        {l->moment_post, square * sizeof(float)},
        {l->sensitivity[KVB_KEY], square * sizeof(float)},   {l->sensitivity[KVB_VALUE], square * sizeof(float)},
        {l->gradient[KVB_KEY], rows * g->head_dim * sizeof(uint16_t)},
        {l->gradient[KVB_VALUE], rows * g->head_dim * sizeof(uint16_t)},
        {l->queries, (size_t)c->query_rows * g->heads * g->head_dim * sizeof(uint16_t)},
    };
    unsigned long sum = crc32_z(0, NULL, 0);
    for (size_t i = 0; i < sizeof part / sizeof *part; i++) {
        const uint8_t there = part[i].bytes != NULL;
        sum = crc32_z(sum, &there, 1);
        if (there)
            sum = crc32_z(sum, part[i].bytes, part[i].size);
    }
    return (uint32_t)sum;
}

void kvb_checkpoint_job_put_capture(kvb_json_writer *w, const kvb_capture *capture)
{
    uint8_t digest[32];
    uint32_t *sum = kvb_alloc_zeroed(capture->layers, sizeof *sum);
    if (sum == NULL) {
        w->failed = true;
        return;
    }
    /* Layers that are loaded one at a time are summed one at a time. */
#pragma omp parallel for schedule(dynamic, 1) if (capture->load == NULL)
    for (uint32_t l = 0; l < capture->layers; l++)
        if (kvb_capture_load(capture, &l, 1, NULL) == KVB_OK)
            sum[l] = sum_layer(capture, l);
        else
            w->failed = true;
    kvb_sha256_of(sum, capture->layers * sizeof *sum, digest);
    kvb_json_put_sha256(w, "capture", digest);
    free(sum);
    const char *meta = capture->meta_json != NULL ? capture->meta_json : "";
    kvb_sha256_of(meta, strlen(meta), digest);
    kvb_json_put_sha256(w, "capture's META", digest);
    put_text(w, "capture's rows", "%" PRIu64, capture->rows);
}

/* ---- what differs */

/* The beginning of a value: hashes and recipes are long. */
static void show(const char *value, char text[SHOWN + 4])
{
    const size_t most = strlen(value) == 64 ? 12 : SHOWN;
    snprintf(text, SHOWN + 4, strlen(value) > most ? "%.*s..." : "%.*s", (int)most, value);
}

typedef struct difference {
    const char *first; /* the name of the first member that differs */
    size_t count;
    char others[128]; /* names of the next ones */
} difference;

static void note(difference *d, const char *key)
{
    const size_t used = strlen(d->others);
    if (d->count++ == 0)
        d->first = key;
    else if (d->count <= NAMED)
        snprintf(d->others + used, sizeof d->others - used, "%s%s", used > 0 ? ", " : "", key);
}

static void compare(const kvb_json *found, const kvb_json *wanted, difference *d)
{
    for (size_t i = 0; i < kvb_json_count(wanted); i++) {
        const char *key = kvb_json_key_at(wanted, i);
        if (strcmp(kvb_json_string(kvb_json_get(found, key), ""), kvb_json_string(kvb_json_at(wanted, i), "")) != 0)
            note(d, key);
    }
    for (size_t i = 0; i < kvb_json_count(found); i++)
        if (kvb_json_get(wanted, kvb_json_key_at(found, i)) == NULL)
            note(d, kvb_json_key_at(found, i));
}

static kvb_status refuse(const char *folder, const kvb_json *found, const kvb_json *wanted, const difference *d, kvb_error *err)
{
    char was[SHOWN + 4], is[SHOWN + 4];
    show(kvb_json_string(kvb_json_get(found, d->first), "nothing"), was);
    show(kvb_json_string(kvb_json_get(wanted, d->first), "nothing"), is);
    return kvb_fail(err, KVB_E_MISMATCH, folder, "cannot go on: %s was \"%s\" and is now \"%s\"%s%s%s; resume with what the job "
                    "began with, or delete the folder to begin anew", d->first, was, is,
                    d->others[0] != '\0' ? " (also different: " : "", d->others, d->others[0] != '\0' ? ")" : "");
}

kvb_status kvb_checkpoint_job_compare(const char *folder, const char *found, size_t size, const char *job, kvb_error *err)
{
    kvb_json_doc *a = NULL, *b = NULL;
    difference d = {0};
    kvb_error inner = {0};
    kvb_status status = kvb_json_parse(found, size, "job.json", &a, &inner);
    if (status != KVB_OK || kvb_json_type_of(kvb_json_root(a)) != KVB_JSON_OBJECT) {
        kvb_json_free(a);
        return kvb_fail(err, KVB_E_FORMAT, folder, "its job.json is damaged (%.200s); delete the folder to begin anew",
                        status != KVB_OK ? inner.message : "no object");
    }
    status = kvb_json_parse(job, strlen(job), "job", &b, err);
    if (status == KVB_OK) {
        compare(kvb_json_root(a), kvb_json_root(b), &d);
        if (d.count > 0)
            status = refuse(folder, kvb_json_root(a), kvb_json_root(b), &d, err);
    }
    kvb_json_free(a);
    kvb_json_free(b);
    return status;
}
