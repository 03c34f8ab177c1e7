#include "calib/tune_run.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/rng.h"

double kvb_tune_wall_seconds(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + 1e-9 * (double)at.tv_nsec;
}

bool kvb_tune_is_held_out(const kvb_tune_run *t, uint64_t chunk)
{
    const uint64_t every = t->chunks < t->o->holdout_every ? t->chunks : t->o->holdout_every;
    return chunk % every == every - 1;
}

void kvb_tune_take(kvb_tune_run *t, uint64_t chunk)
{
    t->chunk = chunk;
    kvb_text_chunk(t->text, t->o->ctx, t->o->skip, chunk, t->o->bos, t->tokens);
}

kvb_status kvb_tune_passed(kvb_tune_run *t, uint32_t done, kvb_error *err)
{
    t->done += done;
    if (t->o->progress == NULL || t->o->progress(t->o->progress_user, "tune", t->done, t->total) == 0)
        return KVB_OK;
    return kvb_fail(err, KVB_E_CANCELLED, "tuning", "stopped after %" PRIu64 " of %" PRIu64 " passes over a chunk", t->done,
                    t->total);
}

/* ---- one call */

kvb_status kvb_tune_find_kept(kvb_tune_run *t, const kvb_attention_call *call, kvb_error *err)
{
    uint8_t **kept = &t->kept[t->chunk * t->layers + call->layer];
    if (*kept != NULL || t->o->keep == NULL || t->layer[call->layer].table == NULL)
        return KVB_OK;
    if ((*kept = kvb_alloc_zeroed((size_t)call->geometry->kv_heads * call->tokens, 1)) == NULL)
        return kvb_fail_memory(err, "tuning");
    return t->o->keep(t->o->keep_user, call, *kept, err);
}

kvb_tune_call kvb_tune_call_of(const kvb_tune_run *t, const kvb_attention_call *call)
{
    return (kvb_tune_call){.call = call, .kept = t->kept[t->chunk * t->layers + call->layer], .window = t->o->window,
                           .sinks = t->o->sinks};
}

/* ---- an epoch */

/* A new order each epoch (Fisher-Yates), by the seed and the epoch alone. */
static void shuffle(kvb_tune_run *t, uint32_t epoch)
{
    uint64_t n = 0;
    const uint64_t key = kvb_rng_key(t->o->seed, epoch, 0, 0, 0x74756e65);
    for (uint64_t c = 0; c < t->chunks; c++)
        if (!kvb_tune_is_held_out(t, c))
            t->order[n++] = c;
    for (uint64_t i = n; i > 1; i--) {
        const uint64_t j = kvb_rng_below(key, i, i), saved = t->order[i - 1];
        t->order[i - 1] = t->order[j];
        t->order[j] = saved;
    }
}

static void step_tables(kvb_tune_run *t, uint32_t step, uint64_t steps)
{
    const double rate = t->o->rate * 0.5 * (1.0 + cos(acos(-1.0) * (double)(step - 1) / (double)steps));
    for (uint32_t l = 0; l < t->layers; l++) {
        kvb_tune_layer *layer = &t->layer[l];
        const uint32_t tables = kvb_tune_tables(layer);
#pragma omp parallel for schedule(dynamic, 1)
        for (uint32_t i = 0; i < tables; i++)
            kvb_tune_step(&layer->table[i], rate, step);
    }
}

uint64_t kvb_tune_steps(const kvb_tune_run *t)
{
    return (t->trained + t->o->batch - 1) / t->o->batch;
}

static kvb_status run_epoch(kvb_tune_run *t, uint32_t epoch, kvb_tune_chunk_fn chunk, void *user, kvb_error *err)
{
    const uint64_t batch = t->o->batch, each = kvb_tune_steps(t), steps = each * t->o->epochs;
    const uint64_t begun = t->report.steps - epoch * each; /* in a run that was interrupted */
    shuffle(t, epoch);
    if (begun == 0)
        t->sum = 0.0;
    for (uint64_t first = begun * batch; first < t->trained; first += batch) {
        const uint64_t count = t->trained - first < batch ? t->trained - first : batch;
        for (uint64_t i = 0; i < count; i++) {
            kvb_status status = chunk(user, t->order[first + i], 1.0 / (double)count, err);
            if (status != KVB_OK)
                return status;
        }
        step_tables(t, (uint32_t)++t->report.steps, steps);
        kvb_status status = kvb_tune_reached(t, epoch, err);
        if (status != KVB_OK)
            return status;
    }
    return KVB_OK;
}

kvb_status kvb_tune_epoch(kvb_tune_run *t, uint32_t epoch, kvb_tune_chunk_fn chunk, void *user, kvb_error *err)
{
    const double start = kvb_tune_wall_seconds();
    kvb_status status = run_epoch(t, epoch, chunk, user, err);
    t->trained_seconds += kvb_tune_wall_seconds() - start;
    return status;
}

void kvb_tune_keep_layer(kvb_tune_run *t, uint32_t l)
{
    for (uint32_t i = 0; i < kvb_tune_tables(&t->layer[l]); i++)
        kvb_tune_table_keep(&t->layer[l].table[i]);
}

void kvb_tune_restore_layer(kvb_tune_run *t, uint32_t l)
{
    for (uint32_t i = 0; i < kvb_tune_tables(&t->layer[l]); i++)
        kvb_tune_table_restore(&t->layer[l].table[i]);
}

/* ---- around it */

/* The first layer with codebooks, or 0. */
static uint32_t first_coded(const kvb_book *book)
{
    uint32_t l = 0;
    while (l < kvb_book_layers(book) && kvb_book_codebook(book, l, 0, KVB_KEY) == NULL)
        l++;
    return l < kvb_book_layers(book) ? l : 0;
}

static kvb_status check_options(const kvb_tune_run *t, kvb_error *err)
{
    const kvb_tune_options *o = t->o;
    if (o->struct_size != sizeof *o)
        return kvb_fail(err, KVB_E_USAGE, "tuning", "options of %u bytes, expected %zu: call kvb_tune_options_init()",
                        o->struct_size, sizeof *o);
    if (o->epochs == 0 || o->batch == 0 || o->holdout_every < 2 || o->ctx == 0 || !(o->rate > 0.0))
        return kvb_fail(err, KVB_E_USAGE, "tuning",
                        "found %u epochs, batch %u, one chunk in %u held out, ctx %u, rate %g; expected at least 1, 1, 2, "
                        "1 and a rate over 0", o->epochs, o->batch, o->holdout_every, o->ctx, o->rate);
    for (uint32_t l = 0; l < kvb_book_layers(t->book); l++)
        for (int kind = 0; kind < 2; kind++) {
            const kvb_codebook *c = kvb_book_codebook(t->book, l, 0, (kvb_kind)kind);
            if (c != NULL && c->scaling != NULL)
                return kvb_fail(err, KVB_E_USAGE, "tuning", "the book codes numbers one by one: it has no centroids to tune");
        }
    if (o->exact == KVB_EXACT_FINE && kvb_book_fine(t->book, first_coded(t->book), 0, KVB_KEY) == NULL)
        return kvb_fail(err, KVB_E_USAGE, "tuning",
                        "exact tokens are to be fine codes, but the book has no fine codebooks; tune with half floats");
    return KVB_OK;
}

static bool same_shape(const kvb_layer *a, const kvb_layer *b)
{
    return a->heads == b->heads && a->kv_heads == b->kv_heads && a->head_dim == b->head_dim;
}

static kvb_status check_geometry(const kvb_tune_run *t, kvb_error *err)
{
    const kvb_model_info *info = kvb_model_get_info(t->model);
    char where[64];
    if (info->layers != t->layers)
        return kvb_fail(err, KVB_E_MISMATCH, "book", "has %u layers, the model %u; tune a book made for this model",
                        t->layers, info->layers);
    for (uint32_t l = 0; l < t->layers; l++) {
        const kvb_layer *a = kvb_book_layer(t->book, l), *b = &info->layer[l];
        if (same_shape(a, b))
            continue;
        snprintf(where, sizeof where, "book, layer %u", l);
        return kvb_fail(err, KVB_E_MISMATCH, where,
                        "%u heads, %u KV heads of %u channels; the model has %u, %u and %u; tune a book made for this model",
                        a->heads, a->kv_heads, a->head_dim, b->heads, b->kv_heads, b->head_dim);
    }
    return KVB_OK;
}

static kvb_status count_chunks(kvb_tune_run *t, kvb_error *err)
{
    kvb_status status = kvb_text_chunks(t->text, t->o->ctx, t->o->skip, t->o->chunks, &t->chunks, err);
    if (status != KVB_OK)
        return status;
    if (t->chunks < 2)
        return kvb_fail(err, KVB_E_USAGE, "tuning",
                        "found one chunk of %u tokens, expected at least two: one is held out; give more text or chunks",
                        t->o->ctx);
    for (uint64_t c = 0; c < t->chunks; c++)
        t->trained += !kvb_tune_is_held_out(t, c);
    t->report.chunks = t->chunks;
    t->report.heldout_chunks = t->chunks - t->trained;
    return KVB_OK;
}

static kvb_status create(kvb_tune_run *t, bool grams, kvb_error *err)
{
    t->layer = kvb_alloc_zeroed(t->layers, sizeof *t->layer);
    t->order = kvb_alloc_array(t->trained, sizeof *t->order);
    t->tokens = kvb_alloc_array(t->o->ctx, sizeof *t->tokens);
    t->kept = kvb_alloc_zeroed(t->chunks * t->layers, sizeof *t->kept);
    if (t->layer == NULL || t->order == NULL || t->tokens == NULL || t->kept == NULL)
        return kvb_fail_memory(err, "tuning");
    kvb_status status = kvb_tune_work_create(t->book, t->o->ctx, &t->work, err);
    for (uint32_t l = 0; l < t->layers && status == KVB_OK; l++)
        status = kvb_tune_layer_create(grams ? t->model : NULL, t->book, l, t->o->exact == KVB_EXACT_FINE, &t->layer[l], err);
    return status;
}

kvb_status kvb_tune_begin(kvb_tune_run *t, const kvb_model *model, const kvb_text *text, const kvb_book *book,
                          const kvb_tune_options *options, bool grams, kvb_error *err)
{
    *t = (kvb_tune_run){.model = model, .text = text, .book = book, .o = options, .layers = kvb_book_layers(book),
                        .start = kvb_tune_wall_seconds()};
    kvb_status status = check_options(t, err);
    if (status == KVB_OK) status = check_geometry(t, err);
    if (status == KVB_OK) status = count_chunks(t, err);
    return status == KVB_OK ? create(t, grams, err) : status;
}

kvb_status kvb_tune_finish(kvb_tune_run *t, kvb_status status, uint8_t **image, size_t *size, kvb_tune_report *report,
                           kvb_error *err)
{
    *image = NULL;
    *size = 0;
    if (status == KVB_E_CANCELLED)
        (void)kvb_tune_save(t, NULL); /* what is said is that it was stopped; an older state does as well, only later */
    if (status == KVB_OK)
        status = kvb_tune_build(t->book, t->layer, t->text, t->o, &t->report, image, size, err);
    for (uint32_t l = 0; t->layer != NULL && l < t->layers; l++)
        kvb_tune_layer_free(&t->layer[l]);
    for (size_t i = 0; t->kept != NULL && i < t->chunks * t->layers; i++)
        free(t->kept[i]);
    kvb_tune_work_destroy(t->work);
    free(t->layer);
    free(t->order);
    free(t->tokens);
    free(t->kept);
    t->report.seconds = kvb_tune_wall_seconds() - t->start;
    if (status == KVB_OK && report != NULL)
        *report = t->report;
    else
        kvb_tune_report_free(&t->report);
    return status;
}
