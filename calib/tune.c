#include "calib/tune.h"

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

/* Sums of one layer over the chunks of a measurement. */
typedef struct error_sum {
    double error, norm;
} error_sum;

typedef struct tuner {
    const kvb_model *model;
    const kvb_text *text;
    const kvb_book *book;
    const kvb_tune_options *o;
    kvb_tune_report *report;
    uint32_t layers;
    uint64_t chunks, trained; /* all of them; those not held out */
    uint64_t *order;          /* [trained] chunk numbers, in the order of the epoch */
    kvb_tune_layer *layer;    /* [layers] */
    kvb_tune_work *work;
    kvb_forward *forward;
    uint32_t *tokens;         /* [ctx] */
    double *norm;             /* [chunks][layers], NaN where not known yet */
    uint8_t **kept;           /* [chunks][layers] -> [G][T], NULL where not known yet */
    float *target;            /* [layers][target_size] exact outputs of the chunk at hand; NULL for the exact stream */
    size_t target_size;       /* H*T*D of the largest layer */
    error_sum *sum;           /* [layers] of the measurement under way */
    uint64_t chunk;           /* at hand */
    double factor;            /* of its gradient; 0: only its error is wanted */
    uint64_t done, total;     /* passes */
} tuner;

void kvb_tune_options_init(kvb_tune_options *o)
{
    *o = (kvb_tune_options){.struct_size = sizeof *o, .bos = -1, .epochs = 3, .batch = 2, .rate = 0.02,
                            .holdout_every = 8};
}

void kvb_tune_report_free(kvb_tune_report *report)
{
    free(report->layer);
    *report = (kvb_tune_report){0};
}

static double now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + 1e-9 * (double)at.tv_nsec;
}

static bool is_held_out(const tuner *t, uint64_t chunk)
{
    const uint64_t every = t->chunks < t->o->holdout_every ? t->chunks : t->o->holdout_every;
    return chunk % every == every - 1;
}

/* ---- one chunk */

/* Which tokens stay exact for ever depends on the exact model alone, so it is asked for once. */
static kvb_status find_kept(tuner *t, const kvb_attention_call *call, const uint8_t **kept, kvb_error *err)
{
    uint8_t **cached = &t->kept[t->chunk * t->layers + call->layer];
    *kept = *cached;
    if (*cached != NULL || t->o->keep == NULL)
        return KVB_OK;
    if ((*cached = kvb_alloc_zeroed((size_t)call->geometry->kv_heads * call->tokens, 1)) == NULL)
        return kvb_fail_memory(err, "tuning");
    *kept = *cached;
    return t->o->keep(t->o->keep_user, call, *cached, err);
}

static kvb_status add_error(tuner *t, uint32_t layer, double error, double norm, kvb_error *err)
{
    char where[64];
    t->sum[layer].error += error;
    t->sum[layer].norm += norm;
    if (isfinite(error) && isfinite(norm))
        return KVB_OK;
    snprintf(where, sizeof where, "layer %u, chunk %" PRIu64, layer, t->o->skip + t->chunk);
    return kvb_fail(err, KVB_E_CHECK, where,
                    "the error of the attention output is not a finite number; check the model and the book, or tune with "
                    "a smaller rate");
}

/* One call of a layer with codes, from the stream that the options name. */
static kvb_status tune_call(tuner *t, const kvb_tune_call *c, kvb_error *err)
{
    kvb_tune_layer *layer = &t->layer[c->call->layer];
    const double norm = t->norm[t->chunk * t->layers + c->call->layer];
    double error;
    kvb_status status = kvb_tune_forward(t->work, layer, c, &error, err);
    if (status == KVB_OK && layer->table != NULL)
        status = add_error(t, c->call->layer, error, norm, err);
    if (status == KVB_OK && layer->table != NULL && t->factor > 0.0 && norm > 0.0)
        kvb_tune_backward(t->work, layer, c, t->factor / norm);
    return status;
}

/* The exact stream: what the error relates to and which tokens stay exact; then the call itself, or its target kept. */
static kvb_status see_exact(void *user, const kvb_attention_call *call, const float *out, const float *lse,
                            kvb_error *err)
{
    tuner *t = user;
    double *norm = &t->norm[t->chunk * t->layers + call->layer];
    kvb_tune_call c = {.call = call, .target = out, .window = t->o->window};
    (void)lse;
    if (t->layer[call->layer].table == NULL)
        return KVB_OK;
    kvb_status status = find_kept(t, call, &c.kept, err);
    if (status != KVB_OK)
        return status;
    if (isnan(*norm))
        *norm = kvb_tune_norm(t->work, &t->layer[call->layer], &c);
    if (t->target == NULL)
        return tune_call(t, &c, err);
    memcpy(t->target + call->layer * t->target_size, out,
           (size_t)call->geometry->heads * call->tokens * call->geometry->head_dim * sizeof *out);
    return KVB_OK;
}

/* The stream whose layers read codes. */
static kvb_status attend_coded(void *user, const kvb_attention_call *call, float *out, kvb_error *err)
{
    tuner *t = user;
    const kvb_tune_call c = {.call = call, .target = t->target + call->layer * t->target_size,
                             .kept = t->kept[t->chunk * t->layers + call->layer], .window = t->o->window};
    kvb_status status = tune_call(t, &c, err);
    if (status == KVB_OK)
        memcpy(out, kvb_tune_output(t->work),
               (size_t)call->geometry->heads * call->tokens * call->geometry->head_dim * sizeof *out);
    return status;
}

static kvb_status report_progress(tuner *t, kvb_error *err)
{
    if (t->o->progress == NULL || t->o->progress(t->o->progress_user, "tune", t->done, t->total) == 0)
        return KVB_OK;
    return kvb_fail(err, KVB_E_CANCELLED, "tuning", "stopped after %" PRIu64 " of %" PRIu64 " passes over a chunk",
                    t->done, t->total);
}

static kvb_status run_chunk(tuner *t, uint64_t chunk, double factor, kvb_error *err)
{
    const float *hidden;
    const kvb_forward_hooks exact = {.observe = see_exact, .observe_user = t};
    const kvb_forward_hooks coded = {.attend = attend_coded, .attend_user = t};
    t->chunk = chunk;
    t->factor = factor;
    kvb_text_chunk(t->text, t->o->ctx, t->o->skip, chunk, t->o->bos, t->tokens);
    kvb_status status = kvb_forward_run(t->forward, t->tokens, t->o->ctx, 0, &exact, &hidden, err);
    if (status == KVB_OK && t->target != NULL)
        status = kvb_forward_run(t->forward, t->tokens, t->o->ctx, 0, &coded, &hidden, err);
    t->done++;
    return status == KVB_OK ? report_progress(t, err) : status;
}

/* ---- measuring */

/* As many of the chunks trained on as are held out, spread evenly. */
static kvb_status measure(tuner *t, bool heldout, bool after, kvb_error *err)
{
    kvb_status status = KVB_OK;
    const uint64_t measured = t->report->measured_chunks;
    memset(t->sum, 0, t->layers * sizeof *t->sum);
    for (uint64_t c = 0, seen = 0; c < t->chunks && status == KVB_OK; c++) {
        if (is_held_out(t, c) != heldout)
            continue;
        const bool wanted = heldout || seen * measured / t->trained != (seen + 1) * measured / t->trained;
        seen++;
        if (wanted)
            status = run_chunk(t, c, 0.0, err);
    }
    for (uint32_t l = 0; l < t->layers && status == KVB_OK; l++) {
        kvb_tune_layer_report *r = &t->report->layer[l];
        const double ratio = t->sum[l].norm > 0.0 ? t->sum[l].error / t->sum[l].norm : 0.0;
        double *before = heldout ? &r->heldout_before : &r->train_before;
        double *then = heldout ? &r->heldout_after : &r->train_after;
        *(after ? then : before) = ratio;
        r->coded = t->layer[l].table != NULL;
    }
    return status;
}

/* ---- training */

/* A new order each epoch (Fisher-Yates), by the seed and the epoch alone. */
static void shuffle(tuner *t, uint32_t epoch)
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

static void step_tables(tuner *t, uint32_t step, uint64_t steps)
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

static kvb_status train(tuner *t, kvb_error *err)
{
    const uint64_t batch = t->o->batch, steps = (t->trained + batch - 1) / batch * t->o->epochs;
    double start = now();
    uint32_t step = 0;
    for (uint32_t epoch = 0; epoch < t->o->epochs; epoch++) {
        shuffle(t, epoch);
        for (uint64_t first = 0; first < t->trained; first += batch) {
            const uint64_t count = t->trained - first < batch ? t->trained - first : batch;
            for (uint64_t i = 0; i < count; i++) {
                kvb_status status = run_chunk(t, t->order[first + i], 1.0 / (double)count, err);
                if (status != KVB_OK)
                    return status;
            }
            step_tables(t, ++step, steps);
        }
    }
    t->report->steps = step;
    t->report->pass_seconds = (now() - start) / (double)(t->trained * t->o->epochs);
    return KVB_OK;
}

/* Layers that did not get better on chunks that nobody trained on keep the centroids they came with. */
static void judge(tuner *t)
{
    for (uint32_t l = 0; l < t->layers; l++) {
        kvb_tune_layer_report *r = &t->report->layer[l];
        r->accepted = r->coded && r->heldout_after < r->heldout_before;
        for (uint32_t i = 0; r->coded && !r->accepted && i < t->layer[l].geometry->kv_heads * 2; i++)
            kvb_tune_table_reset(&t->layer[l].table[i]);
    }
}

/* ---- around it */

static kvb_status check_options(const tuner *t, kvb_error *err)
{
    const kvb_tune_options *o = t->o;
    if (o->struct_size != sizeof *o)
        return kvb_fail(err, KVB_E_USAGE, "tuning", "options of %u bytes, expected %zu: call kvb_tune_options_init()",
                        o->struct_size, sizeof *o);
    if (o->epochs == 0 || o->batch == 0 || o->holdout_every < 2 || o->ctx == 0 || !(o->rate > 0.0))
        return kvb_fail(err, KVB_E_USAGE, "tuning",
                        "found %u epochs, batch %u, one chunk in %u held out, ctx %u, rate %g; expected at least 1, 1, 2, "
                        "1 and a rate over 0", o->epochs, o->batch, o->holdout_every, o->ctx, o->rate);
    return KVB_OK;
}

static bool same_shape(const kvb_layer *a, const kvb_layer *b)
{
    return a->heads == b->heads && a->kv_heads == b->kv_heads && a->head_dim == b->head_dim;
}

static kvb_status check_geometry(const tuner *t, kvb_error *err)
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

kvb_status kvb_tune_check(const kvb_model *model, const kvb_book *book, const kvb_tune_options *options, kvb_error *err)
{
    const tuner t = {.model = model, .book = book, .o = options, .layers = kvb_book_layers(book)};
    kvb_status status = check_options(&t, err);
    return status == KVB_OK ? check_geometry(&t, err) : status;
}

static kvb_status count_chunks(tuner *t, kvb_error *err)
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
    const uint64_t heldout = t->chunks - t->trained;
    t->report->chunks = t->chunks;
    t->report->heldout_chunks = heldout;
    t->report->measured_chunks = heldout < t->trained ? heldout : t->trained;
    t->total = 2 * (heldout + t->report->measured_chunks) + t->o->epochs * t->trained;
    return KVB_OK;
}

static kvb_status create(tuner *t, kvb_error *err)
{
    const size_t cells = t->chunks * t->layers;
    t->layer = kvb_alloc_zeroed(t->layers, sizeof *t->layer);
    t->order = kvb_alloc_array(t->trained, sizeof *t->order);
    t->tokens = kvb_alloc_array(t->o->ctx, sizeof *t->tokens);
    t->norm = kvb_alloc_array(cells, sizeof *t->norm);
    t->kept = kvb_alloc_zeroed(cells, sizeof *t->kept);
    t->sum = kvb_alloc_array(t->layers, sizeof *t->sum);
    t->report->layers = t->layers;
    t->report->layer = kvb_alloc_zeroed(t->layers, sizeof *t->report->layer);
    if (t->layer == NULL || t->order == NULL || t->tokens == NULL || t->norm == NULL || t->kept == NULL ||
        t->sum == NULL || t->report->layer == NULL)
        return kvb_fail_memory(err, "tuning");
    for (size_t i = 0; i < cells; i++)
        t->norm[i] = NAN;
    for (uint32_t l = 0; l < t->layers; l++) {
        const kvb_layer *g = kvb_book_layer(t->book, l);
        const size_t size = (size_t)g->heads * g->head_dim * t->o->ctx;
        t->target_size = size > t->target_size ? size : t->target_size;
    }
    if (t->o->stream == KVB_TUNE_CODED)
        t->target = kvb_alloc_array(t->layers, t->target_size * sizeof(float));
    if (t->o->stream == KVB_TUNE_CODED && t->target == NULL)
        return kvb_fail(err, KVB_E_MEMORY, "tuning", "out of memory for the outputs of %u layers over %u tokens; use a "
                        "smaller --ctx, or the exact stream", t->layers, t->o->ctx);
    memset(t->sum, 0, t->layers * sizeof *t->sum);
    kvb_status status = kvb_tune_work_create(t->book, t->o->ctx, &t->work, err);
    for (uint32_t l = 0; l < t->layers && status == KVB_OK; l++)
        status = kvb_tune_layer_create(t->model, t->book, l, &t->layer[l], err);
    return status == KVB_OK ? kvb_forward_create(t->model, t->o->ctx, &t->forward, err) : status;
}

static void destroy(tuner *t)
{
    for (uint32_t l = 0; t->layer != NULL && l < t->layers; l++)
        kvb_tune_layer_free(&t->layer[l]);
    for (size_t i = 0; t->kept != NULL && i < t->chunks * t->layers; i++)
        free(t->kept[i]);
    kvb_tune_work_destroy(t->work);
    kvb_forward_destroy(t->forward);
    free(t->layer);
    free(t->order);
    free(t->tokens);
    free(t->norm);
    free(t->target);
    free(t->kept);
    free(t->sum);
}

static kvb_status run(tuner *t, kvb_error *err)
{
    kvb_status status = report_progress(t, err);
    if (status == KVB_OK)
        status = measure(t, true, false, err);
    if (status == KVB_OK)
        status = measure(t, false, false, err);
    if (status == KVB_OK)
        status = train(t, err);
    if (status == KVB_OK)
        status = measure(t, true, true, err);
    if (status == KVB_OK)
        status = measure(t, false, true, err);
    if (status == KVB_OK)
        judge(t);
    return status;
}

kvb_status kvb_tune_book(const kvb_model *model, const kvb_text *text, const kvb_book *book,
                         const kvb_tune_options *options, uint8_t **image, size_t *size, kvb_tune_report *report,
                         kvb_error *err)
{
    const double start = now();
    kvb_tune_report summary = {0};
    tuner t = {.model = model, .text = text, .book = book, .o = options, .report = &summary,
               .layers = kvb_book_layers(book)};
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
    else
        kvb_tune_report_free(&summary);
    return status;
}
