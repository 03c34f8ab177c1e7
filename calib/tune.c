#include "calib/tune.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calib/tune_run.h"
#include "format/base/checked.h"
#include "format/base/fail.h"

/* Sums of one layer over the chunks of a measurement. */
typedef struct error_sum {
    double error, norm;
} error_sum;

typedef struct tuner {
    kvb_tune_run run;
    kvb_forward *forward;
    double *norm;       /* [chunks][layers], NaN where not known yet */
    float *target;      /* [layers][target_size] exact outputs of the chunk at hand; NULL for the exact stream */
    size_t target_size; /* H*T*D of the largest layer */
    error_sum *sum;     /* [layers] of the measurement under way */
    double factor;      /* of its gradient; 0: only its error is wanted */
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

/* ---- one chunk */

static kvb_status add_error(tuner *t, uint32_t layer, double error, double norm, kvb_error *err)
{
    char where[64];
    t->sum[layer].error += error;
    t->sum[layer].norm += norm;
    if (isfinite(error) && isfinite(norm))
        return KVB_OK;
    snprintf(where, sizeof where, "layer %u, chunk %" PRIu64, layer, t->run.o->skip + t->run.chunk);
    return kvb_fail(err, KVB_E_CHECK, where,
                    "the error of the attention output is not a finite number; check the model and the book, or tune with "
                    "a smaller rate");
}

static double *norm_of(tuner *t, uint32_t layer)
{
    return &t->norm[t->run.chunk * t->run.layers + layer];
}

/* One call of a layer with codes, from the stream that the options name. */
static kvb_status tune_call(tuner *t, const kvb_tune_call *c, kvb_error *err)
{
    kvb_tune_layer *layer = &t->run.layer[c->call->layer];
    const double norm = *norm_of(t, c->call->layer);
    double error;
    kvb_status status = kvb_tune_forward(t->run.work, layer, c, &error, err);
    if (status == KVB_OK && layer->table != NULL)
        status = add_error(t, c->call->layer, error, norm, err);
    if (status == KVB_OK && layer->table != NULL && t->factor > 0.0 && norm > 0.0)
        kvb_tune_backward(t->run.work, layer, c, t->factor / norm);
    return status;
}

static size_t output_bytes(const kvb_attention_call *call)
{
    return (size_t)call->geometry->heads * call->tokens * call->geometry->head_dim * sizeof(float);
}

/* The exact stream: what the error relates to and which tokens stay exact; then the call itself, or its target kept. */
static kvb_status see_exact(void *user, const kvb_attention_call *call, const float *out, const float *lse,
                            kvb_error *err)
{
    tuner *t = user;
    (void)lse;
    if (t->run.layer[call->layer].table == NULL)
        return KVB_OK;
    kvb_status status = kvb_tune_find_kept(&t->run, call, err);
    if (status != KVB_OK)
        return status;
    kvb_tune_call c = kvb_tune_call_of(&t->run, call);
    c.target = out;
    if (isnan(*norm_of(t, call->layer)))
        *norm_of(t, call->layer) = kvb_tune_norm(t->run.work, &t->run.layer[call->layer], &c);
    if (t->target == NULL)
        return tune_call(t, &c, err);
    memcpy(t->target + call->layer * t->target_size, out, output_bytes(call));
    return KVB_OK;
}

/* The stream whose layers read codes. */
static kvb_status attend_coded(void *user, const kvb_attention_call *call, float *out, kvb_error *err)
{
    tuner *t = user;
    kvb_tune_call c = kvb_tune_call_of(&t->run, call);
    c.target = t->target + call->layer * t->target_size;
    kvb_status status = tune_call(t, &c, err);
    if (status == KVB_OK)
        memcpy(out, kvb_tune_output(t->run.work), output_bytes(call));
    return status;
}

static kvb_status run_chunk(void *user, uint64_t chunk, double factor, kvb_error *err)
{
    tuner *t = user;
    const float *hidden;
    const kvb_forward_hooks exact = {.observe = see_exact, .observe_user = t};
    const kvb_forward_hooks coded = {.attend = attend_coded, .attend_user = t};
    const uint32_t ctx = t->run.o->ctx;
    t->factor = factor;
    kvb_tune_take(&t->run, chunk);
    kvb_status status = kvb_forward_run(t->forward, t->run.tokens, ctx, 0, &exact, &hidden, err);
    if (status == KVB_OK && t->target != NULL)
        status = kvb_forward_run(t->forward, t->run.tokens, ctx, 0, &coded, &hidden, err);
    return status == KVB_OK ? kvb_tune_passed(&t->run, 1, err) : status;
}

/* ---- measuring */

/* As many of the chunks trained on as are held out, spread evenly. */
static kvb_status measure(tuner *t, bool heldout, bool after, kvb_error *err)
{
    kvb_status status = KVB_OK;
    const uint64_t measured = t->run.report.measured_chunks, trained = t->run.trained;
    memset(t->sum, 0, t->run.layers * sizeof *t->sum);
    for (uint64_t c = 0, seen = 0; c < t->run.chunks && status == KVB_OK; c++) {
        if (kvb_tune_is_held_out(&t->run, c) != heldout)
            continue;
        const bool wanted = heldout || seen * measured / trained != (seen + 1) * measured / trained;
        seen++;
        if (wanted)
            status = run_chunk(t, c, 0.0, err);
    }
    for (uint32_t l = 0; l < t->run.layers && status == KVB_OK; l++) {
        kvb_tune_layer_report *r = &t->run.report.layer[l];
        const double ratio = t->sum[l].norm > 0.0 ? t->sum[l].error / t->sum[l].norm : 0.0;
        double *before = heldout ? &r->heldout_before : &r->train_before;
        double *then = heldout ? &r->heldout_after : &r->train_after;
        *(after ? then : before) = ratio;
        r->coded = t->run.layer[l].table != NULL;
    }
    return status;
}

/* ---- training */

static kvb_status train(tuner *t, kvb_error *err)
{
    kvb_status status = KVB_OK;
    for (uint32_t epoch = t->run.mark.epochs; epoch < t->run.o->epochs && status == KVB_OK; epoch++)
        status = kvb_tune_epoch(&t->run, epoch, run_chunk, t, err);
    t->run.report.pass_seconds = t->run.trained_seconds / (double)(t->run.trained * t->run.o->epochs);
    return status;
}

/* Layers that did not get better on chunks that nobody trained on keep the centroids they came with. */
static void judge(tuner *t)
{
    for (uint32_t l = 0; l < t->run.layers; l++) {
        kvb_tune_layer_report *r = &t->run.report.layer[l];
        r->accepted = r->coded && r->heldout_after < r->heldout_before;
        if (!r->accepted)
            kvb_tune_restore_layer(&t->run, l);
    }
}

/* ---- around it */

static kvb_status create_target(tuner *t, kvb_error *err)
{
    if (t->run.o->stream != KVB_TUNE_CODED)
        return KVB_OK;
    for (uint32_t l = 0; l < t->run.layers; l++) {
        const kvb_layer *g = kvb_book_layer(t->run.book, l);
        const size_t size = (size_t)g->heads * g->head_dim * t->run.o->ctx;
        t->target_size = size > t->target_size ? size : t->target_size;
    }
    if ((t->target = kvb_alloc_array(t->run.layers, t->target_size * sizeof(float))) == NULL)
        return kvb_fail(err, KVB_E_MEMORY, "tuning", "out of memory for the outputs of %u layers over %u tokens; use a "
                        "smaller --ctx, or the exact stream", t->run.layers, t->run.o->ctx);
    return KVB_OK;
}

static kvb_status create(tuner *t, kvb_error *err)
{
    kvb_tune_report *r = &t->run.report;
    const size_t cells = t->run.chunks * t->run.layers;
    r->measured_chunks = r->heldout_chunks < t->run.trained ? r->heldout_chunks : t->run.trained;
    t->run.total = 2 * (r->heldout_chunks + r->measured_chunks) + t->run.o->epochs * t->run.trained;
    t->norm = kvb_alloc_array(cells, sizeof *t->norm);
    t->sum = kvb_alloc_zeroed(t->run.layers, sizeof *t->sum);
    r->layers = t->run.layers;
    r->layer = kvb_alloc_zeroed(t->run.layers, sizeof *r->layer);
    if (t->norm == NULL || t->sum == NULL || r->layer == NULL)
        return kvb_fail_memory(err, "tuning");
    for (size_t i = 0; i < cells; i++)
        t->norm[i] = NAN;
    kvb_status status = create_target(t, err);
    return status == KVB_OK ? kvb_forward_create(t->run.model, t->run.o->ctx, &t->forward, err) : status;
}

static kvb_status measure_before(tuner *t, kvb_error *err)
{
    kvb_status status = measure(t, true, false, err);
    if (status == KVB_OK)
        status = measure(t, false, false, err);
    return status == KVB_OK ? kvb_tune_reached(&t->run, 0, err) : status;
}

static kvb_status run(tuner *t, kvb_error *err)
{
    kvb_status status = kvb_tune_resume(&t->run, err);
    if (status == KVB_OK)
        status = kvb_tune_passed(&t->run, 0, err);
    if (status == KVB_OK && !t->run.marked)
        status = measure_before(t, err);
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
    tuner t = {0};
    kvb_status status = kvb_tune_begin(&t.run, model, text, book, options, true, err);
    if (status == KVB_OK)
        status = create(&t, err);
    if (status == KVB_OK)
        status = run(&t, err);
    kvb_forward_destroy(t.forward);
    free(t.norm);
    free(t.target);
    free(t.sum);
    return kvb_tune_finish(&t.run, status, image, size, report, err);
}
