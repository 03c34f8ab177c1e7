#include "calib/distill.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "calib/tune_run.h"
#include "format/base/checked.h"
#include "format/base/fail.h"
#include "model/backward.h"
#include "model/divergence.h"

typedef struct distiller {
    kvb_tune_run run;
    uint32_t width;
    kvb_forward *exact;
    kvb_backward *student;
    kvb_divergence *divergence;
    kvb_tune_memo *memo;      /* [layers] of the chunk at hand */
    float **teacher;          /* [chunks] -> [T][E], NULL where not known yet or beyond the memory allowed */
    uint64_t teacher_left;    /* bytes */
    float *spare;             /* [T][E] of the chunk at hand, where it is not kept */
    float *d_hidden;          /* [T][E] */
} distiller;

void kvb_distill_options_init(kvb_tune_options *o)
{
    kvb_tune_options_init(o);
    o->epochs = 1;
    o->rate = 0.05;
    o->holdout_every = 16;
    o->teacher_bytes = (uint64_t)512 << 20;
}

static double processor_seconds(void)
{
    struct timespec at;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &at);
    return (double)at.tv_sec + 1e-9 * (double)at.tv_nsec;
}

/* ---- one chunk */

static kvb_status see_exact(void *user, const kvb_attention_call *call, const float *out, const float *lse,
                            kvb_error *err)
{
    (void)out, (void)lse;
    return kvb_tune_find_kept(user, call, err);
}

static kvb_status attend(void *user, const kvb_attention_call *call, float *out, kvb_error *err)
{
    distiller *t = user;
    const kvb_tune_call c = kvb_tune_call_of(&t->run, call);
    kvb_status status = kvb_tune_attend(t->run.work, &t->run.layer[call->layer], &c, &t->memo[call->layer], err);
    if (status == KVB_OK)
        memcpy(out, kvb_tune_output(t->run.work),
               (size_t)call->geometry->heads * call->tokens * call->geometry->head_dim * sizeof *out);
    return status;
}

static kvb_status attend_backward(void *user, const kvb_attention_call *call, const kvb_attention_gradient *g,
                                  kvb_error *err)
{
    distiller *t = user;
    const kvb_tune_call c = kvb_tune_call_of(&t->run, call);
    return kvb_tune_attend_backward(t->run.work, &t->run.layer[call->layer], &c, &t->memo[call->layer], g, err);
}

static kvb_status check_finite(const distiller *t, double kl, kvb_error *err)
{
    char where[64];
    if (isfinite(kl))
        return KVB_OK;
    snprintf(where, sizeof where, "chunk %" PRIu64, t->run.o->skip + t->run.chunk);
    return kvb_fail(err, KVB_E_CHECK, where,
                    "the KL of the model with the coded cache is not a finite number; check the model and the book, or tune "
                    "with a smaller rate");
}

/* What the exact model makes of the chunk at hand, the first time and wherever there was no room to keep it. */
static kvb_status run_teacher(distiller *t, const float **teacher, kvb_error *err)
{
    const size_t bytes = (size_t)t->run.o->ctx * t->width * sizeof(float);
    const float *hidden;
    const kvb_forward_hooks hooks = {.observe = see_exact, .observe_user = &t->run};
    float **kept = &t->teacher[t->run.chunk], *to = *kept;
    *teacher = to;
    if (to != NULL)
        return KVB_OK;
    kvb_status status = kvb_forward_run(t->exact, t->run.tokens, t->run.o->ctx, 0, &hooks, &hidden, err);
    if (status != KVB_OK)
        return status;
    if (bytes <= t->teacher_left && (to = *kept = kvb_alloc_array(bytes, 1)) != NULL)
        t->teacher_left -= bytes;
    *teacher = memcpy(to != NULL ? to : t->spare, hidden, bytes);
    return KVB_OK;
}

/* Adds the seconds since *at to *part. */
static void clock_part(double *part, double *at)
{
    const double now = processor_seconds();
    *part += now - *at;
    *at = now;
}

/* Adds the chunk's KL to the run's sum; where `factor` is not 0, adds the gradient of factor * KL to the tables'. */
static kvb_status run_chunk(void *user, uint64_t chunk, double factor, kvb_error *err)
{
    distiller *t = user;
    const float *hidden, *teacher;
    const kvb_forward_hooks hooks = {.attend = attend, .attend_user = t};
    const uint32_t ctx = t->run.o->ctx;
    const bool wanted = factor > 0.0;
    kvb_tune_kl parts = {0};
    double at = processor_seconds();
    kvb_tune_take(&t->run, chunk);
    kvb_status status = run_teacher(t, &teacher, err);
    clock_part(&parts.teacher_seconds, &at);
    if (status == KVB_OK)
        status = kvb_backward_forward(t->student, t->run.tokens, ctx, &hooks, &hidden, err);
    clock_part(&parts.student_seconds, &at);
    if (status != KVB_OK)
        return status;
    const double kl = kvb_divergence_run(t->divergence, teacher, hidden, ctx, wanted ? t->d_hidden : NULL);
    t->run.sum += kl;
    status = check_finite(t, kl, err);
    for (size_t i = 0; wanted && i < (size_t)ctx * t->width; i++)
        t->d_hidden[i] *= (float)factor;
    clock_part(&parts.loss_seconds, &at);
    if (status == KVB_OK && wanted)
        status = kvb_backward_run(t->student, t->d_hidden, attend_backward, t, NULL, err);
    clock_part(&parts.backward_seconds, &at);
    if (wanted) {
        t->run.report.kl.teacher_seconds += parts.teacher_seconds;
        t->run.report.kl.student_seconds += parts.student_seconds;
        t->run.report.kl.loss_seconds += parts.loss_seconds;
        t->run.report.kl.backward_seconds += parts.backward_seconds;
    }
    return status == KVB_OK ? kvb_tune_passed(&t->run, 1, err) : status;
}

/* ---- measuring and training */

static kvb_status measure(distiller *t, double *mean, kvb_error *err)
{
    kvb_status status = KVB_OK;
    t->run.sum = 0.0;
    for (uint64_t c = 0; c < t->run.chunks && status == KVB_OK; c++)
        if (kvb_tune_is_held_out(&t->run, c))
            status = run_chunk(t, c, 0.0, err);
    *mean = t->run.sum / (double)t->run.report.heldout_chunks;
    return status;
}

/* Takes what the last epoch made where it is the best so far on chunks that nobody trained on. */
static void judge(distiller *t, uint32_t epoch, double heldout)
{
    kvb_tune_kl *kl = &t->run.report.kl;
    const double best = kl->accepted ? kl->heldout_after : kl->heldout_before;
    if (heldout < best) {
        for (uint32_t l = 0; l < t->run.layers; l++)
            kvb_tune_keep_layer(&t->run, l);
        kl->accepted = true;
        kl->best_epoch = epoch + 1;
    }
    /* Of a tuning that never got better the report tells the last state. */
    if (heldout < best || !kl->accepted)
        kl->heldout_after = heldout;
}

static kvb_status measure_before(distiller *t, kvb_error *err)
{
    kvb_status status = measure(t, &t->run.report.kl.heldout_before, err);
    return status == KVB_OK ? kvb_tune_reached(&t->run, 0, err) : status;
}

static kvb_status train(distiller *t, kvb_error *err)
{
    kvb_tune_report *r = &t->run.report;
    const uint64_t passes = t->run.trained * t->run.o->epochs;
    double heldout = 0.0;
    kvb_status status = KVB_OK;
    for (uint32_t epoch = t->run.mark.epochs; epoch < t->run.o->epochs && status == KVB_OK; epoch++) {
        status = kvb_tune_epoch(&t->run, epoch, run_chunk, t, err);
        if (status != KVB_OK)
            return status;
        r->kl.train_last = t->run.sum / (double)t->run.trained;
        if (epoch == 0)
            r->kl.train_first = r->kl.train_last;
        status = measure(t, &heldout, err);
        if (status != KVB_OK)
            return status;
        judge(t, epoch, heldout);
        status = kvb_tune_reached(&t->run, epoch + 1, err);
    }
    if (status != KVB_OK)
        return status;
    for (uint32_t l = 0; l < t->run.layers; l++)
        kvb_tune_restore_layer(&t->run, l);
    double *parts[] = {&t->run.trained_seconds, &r->kl.teacher_seconds, &r->kl.student_seconds, &r->kl.loss_seconds,
                       &r->kl.backward_seconds};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        *parts[i] /= (double)passes;
    r->pass_seconds = t->run.trained_seconds;
    return status;
}

/* ---- around it */

static kvb_status create(distiller *t, kvb_error *err)
{
    const kvb_tune_options *o = t->run.o;
    const size_t values = (size_t)o->ctx * t->width;
    t->run.report.kl.used = true;
    t->run.total = (1 + o->epochs) * t->run.report.heldout_chunks + o->epochs * t->run.trained;
    t->teacher_left = o->teacher_bytes;
    t->teacher = kvb_alloc_zeroed(t->run.chunks, sizeof *t->teacher);
    t->spare = kvb_alloc_array(values, sizeof *t->spare);
    t->d_hidden = kvb_alloc_array(values, sizeof *t->d_hidden);
    t->memo = kvb_alloc_zeroed(t->run.layers, sizeof *t->memo);
    if (t->teacher == NULL || t->spare == NULL || t->d_hidden == NULL || t->memo == NULL)
        return kvb_fail_memory(err, "tuning");
    kvb_status status = kvb_forward_create(t->run.model, o->ctx, &t->exact, err);
    for (uint32_t l = 0; l < t->run.layers && status == KVB_OK; l++)
        status = kvb_tune_memo_create(&t->run.layer[l], o->ctx, &t->memo[l], err);
    if (status == KVB_OK)
        status = kvb_backward_create(t->run.model, o->ctx, 0, &t->student, err);
    return status == KVB_OK ? kvb_divergence_create(t->run.model, &t->divergence, err) : status;
}

static void destroy(distiller *t)
{
    for (uint64_t c = 0; t->teacher != NULL && c < t->run.chunks; c++)
        free(t->teacher[c]);
    for (uint32_t l = 0; t->memo != NULL && l < t->run.layers; l++)
        kvb_tune_memo_free(&t->memo[l]);
    kvb_forward_destroy(t->exact);
    kvb_backward_destroy(t->student);
    kvb_divergence_destroy(t->divergence);
    free(t->teacher);
    free(t->spare);
    free(t->d_hidden);
    free(t->memo);
}

kvb_status kvb_distill_book(const kvb_model *model, const kvb_text *text, const kvb_book *book,
                            const kvb_tune_options *options, uint8_t **image, size_t *size, kvb_tune_report *report,
                            kvb_error *err)
{
    distiller t = {.width = kvb_model_get_info(model)->embedding};
    kvb_status status = kvb_tune_begin(&t.run, model, text, book, options, false, err);
    if (status == KVB_OK)
        status = create(&t, err);
    if (status == KVB_OK)
        status = kvb_tune_resume(&t.run, err);
    if (status == KVB_OK)
        status = kvb_tune_passed(&t.run, 0, err);
    if (status == KVB_OK && !t.run.marked)
        status = measure_before(&t, err);
    if (status == KVB_OK)
        status = train(&t, err);
    destroy(&t);
    return kvb_tune_finish(&t.run, status, image, size, report, err);
}
