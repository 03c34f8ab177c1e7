#include "calib/distill.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "calib/tune_impl.h"
#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/rng.h"
#include "model/backward.h"
#include "model/divergence.h"

typedef struct distiller {
    const kvb_model *model;
    const kvb_text *text;
    const kvb_book *book;
    const kvb_tune_options *o;
    kvb_tune_report *report;
    uint32_t layers, width;
    uint64_t chunks, trained; /* all of them; those not held out */
    uint64_t *order;          /* [trained] chunk numbers, in the order of the epoch */
    kvb_tune_layer *layer;    /* [layers] */
    kvb_tune_work *work;
    kvb_forward *exact;
    kvb_backward *student;
    kvb_divergence *divergence;
    uint32_t *tokens;         /* [T] */
    float *teacher, *d_hidden; /* [T][E] */
    uint8_t **kept;           /* [chunks][layers] -> [G][T], NULL where not known yet */
    uint64_t chunk;           /* at hand */
    uint64_t done, total;     /* chunks */
} distiller;

void kvb_distill_options_init(kvb_tune_options *o)
{
    kvb_tune_options_init(o);
    o->epochs = 1;
    o->holdout_every = 16;
}

static double now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + 1e-9 * (double)at.tv_nsec;
}

static bool is_held_out(const distiller *t, uint64_t chunk)
{
    const uint64_t every = t->chunks < t->o->holdout_every ? t->chunks : t->o->holdout_every;
    return chunk % every == every - 1;
}

static kvb_status report_progress(distiller *t, kvb_error *err)
{
    if (t->o->progress == NULL || t->o->progress(t->o->progress_user, "tune", t->done, t->total) == 0)
        return KVB_OK;
    return kvb_fail(err, KVB_E_CANCELLED, "tuning", "stopped after %" PRIu64 " of %" PRIu64 " passes over a chunk", t->done,
                    t->total);
}

/* ---- one chunk */

/* Which tokens stay exact for ever depends on the exact model alone, so it is asked for once. */
static kvb_status see_exact(void *user, const kvb_attention_call *call, const float *out, const float *lse,
                            kvb_error *err)
{
    distiller *t = user;
    uint8_t **kept = &t->kept[t->chunk * t->layers + call->layer];
    (void)out, (void)lse;
    if (*kept != NULL || t->o->keep == NULL || t->layer[call->layer].table == NULL)
        return KVB_OK;
    if ((*kept = kvb_alloc_zeroed((size_t)call->geometry->kv_heads * call->tokens, 1)) == NULL)
        return kvb_fail_memory(err, "tuning");
    return t->o->keep(t->o->keep_user, call, *kept, err);
}

static kvb_tune_call call_of(const distiller *t, const kvb_attention_call *call)
{
    return (kvb_tune_call){.call = call, .kept = t->kept[t->chunk * t->layers + call->layer], .window = t->o->window};
}

static kvb_status attend(void *user, const kvb_attention_call *call, float *out, kvb_error *err)
{
    distiller *t = user;
    const kvb_tune_call c = call_of(t, call);
    kvb_status status = kvb_tune_attend(t->work, &t->layer[call->layer], &c, err);
    if (status == KVB_OK)
        memcpy(out, kvb_tune_output(t->work),
               (size_t)call->geometry->heads * call->tokens * call->geometry->head_dim * sizeof *out);
    return status;
}

/* Codes and probabilities are made again: keeping them for all layers would take more memory than the tape. */
static kvb_status attend_backward(void *user, const kvb_attention_call *call, const kvb_attention_gradient *g,
                                  kvb_error *err)
{
    distiller *t = user;
    kvb_tune_layer *layer = &t->layer[call->layer];
    const kvb_tune_call c = call_of(t, call);
    kvb_status status = kvb_tune_attend(t->work, layer, &c, err);
    if (status == KVB_OK)
        kvb_tune_attend_backward(t->work, layer, &c, g->d_out, g->d_q, g->d_k, g->d_v);
    return status;
}

static kvb_status check_finite(const distiller *t, double kl, kvb_error *err)
{
    char where[64];
    if (isfinite(kl))
        return KVB_OK;
    snprintf(where, sizeof where, "chunk %" PRIu64, t->o->skip + t->chunk);
    return kvb_fail(err, KVB_E_CHECK, where,
                    "the KL of the model with the coded cache is not a finite number; check the model and the book, or tune "
                    "with a smaller rate");
}

static kvb_status run_exact(distiller *t, kvb_error *err)
{
    const float *hidden;
    const kvb_forward_hooks hooks = {.observe = see_exact, .observe_user = t};
    kvb_status status = kvb_forward_run(t->exact, t->tokens, t->o->ctx, 0, &hooks, &hidden, err);
    if (status == KVB_OK)
        memcpy(t->teacher, hidden, (size_t)t->o->ctx * t->width * sizeof *hidden);
    return status;
}

/* Adds the chunk's KL to *sum; where `factor` is not 0, adds the gradient of factor * KL to the tables'. */
static kvb_status run_chunk(distiller *t, uint64_t chunk, double factor, double *sum, kvb_error *err)
{
    const float *hidden;
    const kvb_forward_hooks hooks = {.attend = attend, .attend_user = t};
    const size_t values = (size_t)t->o->ctx * t->width;
    t->chunk = chunk;
    kvb_text_chunk(t->text, t->o->ctx, t->o->skip, chunk, t->o->bos, t->tokens);
    kvb_status status = run_exact(t, err);
    if (status == KVB_OK)
        status = kvb_backward_forward(t->student, t->tokens, t->o->ctx, &hooks, &hidden, err);
    if (status != KVB_OK)
        return status;
    const bool wanted = factor > 0.0;
    const double kl = kvb_divergence_run(t->divergence, t->teacher, hidden, t->o->ctx, wanted ? t->d_hidden : NULL);
    *sum += kl;
    status = check_finite(t, kl, err);
    for (size_t i = 0; wanted && i < values; i++)
        t->d_hidden[i] *= (float)factor;
    if (status == KVB_OK && wanted)
        status = kvb_backward_run(t->student, t->d_hidden, attend_backward, t, NULL, err);
    t->done++;
    return status == KVB_OK ? report_progress(t, err) : status;
}

/* ---- measuring and training */

static kvb_status measure(distiller *t, double *mean, kvb_error *err)
{
    kvb_status status = KVB_OK;
    double sum = 0.0;
    for (uint64_t c = 0; c < t->chunks && status == KVB_OK; c++)
        if (is_held_out(t, c))
            status = run_chunk(t, c, 0.0, &sum, err);
    *mean = sum / (double)t->report->heldout_chunks;
    return status;
}

/* A new order each epoch (Fisher-Yates), by the seed and the epoch alone. */
static void shuffle(distiller *t, uint32_t epoch)
{
    uint64_t n = 0;
    const uint64_t key = kvb_rng_key(t->o->seed, epoch, 0, 0, 0x74756e65);
    for (uint64_t c = 0; c < t->chunks; c++)
        if (!is_held_out(t, c))
            t->order[n++] = c;
    for (uint64_t i = n; i > 1; i--) {
        const uint64_t j = kvb_rng_below(key, i, i), saved = t->order[i - 1];
        t->order[i - 1] = t->order[j];
        t->order[j] = saved;
    }
}

static void step_tables(distiller *t, uint32_t step, uint64_t steps)
{
    const double rate = t->o->rate * 0.5 * (1.0 + cos(acos(-1.0) * (double)(step - 1) / (double)steps));
    for (uint32_t l = 0; l < t->layers; l++) {
        kvb_tune_layer *layer = &t->layer[l];
        const uint32_t tables = layer->table != NULL ? layer->geometry->kv_heads * 2 : 0;
#pragma omp parallel for schedule(dynamic, 1)
        for (uint32_t i = 0; i < tables; i++)
            kvb_tune_step(&layer->table[i], rate, step);
    }
}

/* `*mean`: the KL of the epoch's chunks, each as its step met it. */
static kvb_status run_epoch(distiller *t, uint64_t steps, double *mean, kvb_error *err)
{
    const uint64_t batch = t->o->batch;
    double sum = 0.0;
    for (uint64_t first = 0; first < t->trained; first += batch) {
        const uint64_t count = t->trained - first < batch ? t->trained - first : batch;
        for (uint64_t i = 0; i < count; i++) {
            kvb_status status = run_chunk(t, t->order[first + i], 1.0 / (double)count, &sum, err);
            if (status != KVB_OK)
                return status;
        }
        step_tables(t, (uint32_t)++t->report->steps, steps);
    }
    *mean = sum / (double)t->trained;
    return KVB_OK;
}

static kvb_status train(distiller *t, kvb_error *err)
{
    const uint64_t batch = t->o->batch, steps = (t->trained + batch - 1) / batch * t->o->epochs;
    const double start = now();
    kvb_status status = KVB_OK;
    for (uint32_t epoch = 0; epoch < t->o->epochs && status == KVB_OK; epoch++) {
        shuffle(t, epoch);
        status = run_epoch(t, steps, &t->report->kl.train_last, err);
        if (epoch == 0)
            t->report->kl.train_first = t->report->kl.train_last;
    }
    t->report->pass_seconds = (now() - start) / (double)(t->trained * t->o->epochs);
    return status;
}

static void judge(distiller *t)
{
    kvb_tune_kl *kl = &t->report->kl;
    kl->accepted = kl->heldout_after < kl->heldout_before;
    for (uint32_t l = 0; !kl->accepted && l < t->layers; l++)
        for (uint32_t i = 0; t->layer[l].table != NULL && i < t->layer[l].geometry->kv_heads * 2; i++)
            kvb_tune_table_reset(&t->layer[l].table[i]);
}

/* ---- around it */

static kvb_status count_chunks(distiller *t, kvb_error *err)
{
    kvb_status status = kvb_text_chunks(t->text, t->o->ctx, t->o->skip, t->o->chunks, &t->chunks, err);
    if (status != KVB_OK)
        return status;
    if (t->chunks < 2)
        return kvb_fail(err, KVB_E_USAGE, "tuning",
                        "found one chunk of %u tokens, expected at least two: one is held out; give more text or chunks",
                        t->o->ctx);
    for (uint64_t c = 0; c < t->chunks; c++)
        t->trained += !is_held_out(t, c);
    t->report->chunks = t->chunks;
    t->report->heldout_chunks = t->chunks - t->trained;
    t->total = 2 * t->report->heldout_chunks + t->o->epochs * t->trained;
    return KVB_OK;
}

static kvb_status create(distiller *t, kvb_error *err)
{
    const size_t values = (size_t)t->o->ctx * t->width;
    t->layer = kvb_alloc_zeroed(t->layers, sizeof *t->layer);
    t->order = kvb_alloc_array(t->trained, sizeof *t->order);
    t->tokens = kvb_alloc_array(t->o->ctx, sizeof *t->tokens);
    t->kept = kvb_alloc_zeroed(t->chunks * t->layers, sizeof *t->kept);
    t->teacher = kvb_alloc_array(values, sizeof *t->teacher);
    t->d_hidden = kvb_alloc_array(values, sizeof *t->d_hidden);
    if (t->layer == NULL || t->order == NULL || t->tokens == NULL || t->kept == NULL || t->teacher == NULL ||
        t->d_hidden == NULL)
        return kvb_fail_memory(err, "tuning");
    kvb_status status = kvb_tune_work_create(t->book, t->o->ctx, &t->work, err);
    for (uint32_t l = 0; l < t->layers && status == KVB_OK; l++)
        status = kvb_tune_layer_create(t->model, t->book, l, &t->layer[l], err);
    if (status == KVB_OK) status = kvb_forward_create(t->model, t->o->ctx, &t->exact, err);
    if (status == KVB_OK) status = kvb_backward_create(t->model, t->o->ctx, 0, &t->student, err);
    if (status == KVB_OK) status = kvb_divergence_create(t->model, &t->divergence, err);
    return status;
}

static void destroy(distiller *t)
{
    for (uint32_t l = 0; t->layer != NULL && l < t->layers; l++)
        kvb_tune_layer_free(&t->layer[l]);
    for (size_t i = 0; t->kept != NULL && i < t->chunks * t->layers; i++)
        free(t->kept[i]);
    kvb_tune_work_destroy(t->work);
    kvb_forward_destroy(t->exact);
    kvb_backward_destroy(t->student);
    kvb_divergence_destroy(t->divergence);
    free(t->layer);
    free(t->order);
    free(t->tokens);
    free(t->kept);
    free(t->teacher);
    free(t->d_hidden);
}

static kvb_status run(distiller *t, kvb_error *err)
{
    kvb_status status = report_progress(t, err);
    if (status == KVB_OK)
        status = measure(t, &t->report->kl.heldout_before, err);
    if (status == KVB_OK)
        status = train(t, err);
    if (status == KVB_OK)
        status = measure(t, &t->report->kl.heldout_after, err);
    if (status == KVB_OK)
        judge(t);
    return status;
}

kvb_status kvb_distill_book(const kvb_model *model, const kvb_text *text, const kvb_book *book,
                            const kvb_tune_options *options, uint8_t **image, size_t *size, kvb_tune_report *report,
                            kvb_error *err)
{
    const double start = now();
    kvb_tune_report summary = {.kl.used = true};
    distiller t = {.model = model, .text = text, .book = book, .o = options, .report = &summary,
                   .layers = kvb_book_layers(book), .width = kvb_model_get_info(model)->embedding};
    *image = NULL;
    *size = 0;
    kvb_status status = kvb_tune_check(model, book, options, err);
    if (status == KVB_OK)
        status = count_chunks(&t, err);
    if (status == KVB_OK)
        status = create(&t, err);
    if (status == KVB_OK)
        status = run(&t, err);
    if (status == KVB_OK)
        status = kvb_tune_build(book, t.layer, text, options, &summary, image, size, err);
    destroy(&t);
    summary.seconds = now() - start;
    if (status == KVB_OK && report != NULL)
        *report = summary;
    return status;
}
