#include "tools/tuning.h"

#include <stdio.h>
#include <stdlib.h>

#include "calib/distill.h"
#include "runtime/prefill.h"
#include "tools/evaluate.h"

typedef struct keeper {
    const kvb_book *book;
    kvb_policy policy;
    uint64_t seed;
} keeper;

static kvb_status keep(void *user, const kvb_attention_call *call, uint8_t *kept, kvb_error *err)
{
    const keeper *k = user;
    const kvb_prefill p = {
        .book = k->book, .layer = call->layer, .tokens = call->tokens, .policy = &k->policy,
        .protocol = KVB_PROTOCOL_CHUNK, .seed = k->seed, .q = call->q, .k_pre = call->k_pre, .k = call->k, .v = call->v,
    };
    return kvb_prefill_kept(&p, kvb_parallel_openmp, kept, err);
}

static void say_resumed(kvb_progress *p, const kvb_tune_report *r)
{
    if (r->resumed > 0)
        kvb_say(p, "went on after step %llu of %llu", (unsigned long long)r->resumed, (unsigned long long)r->steps);
}

static void say_layers(kvb_progress *p, const kvb_tune_report *r)
{
    for (uint32_t l = 0; l < r->layers; l++) {
        const kvb_tune_layer_report *e = &r->layer[l];
        if (e->coded)
            kvb_say_more(p, "layer %u: error of the attention output %.5f -> %.5f, held out %.5f -> %.5f%s", l,
                         e->train_before, e->train_after, e->heldout_before, e->heldout_after,
                         e->accepted ? "" : ": kept as it was");
    }
}

static void say_kl(kvb_progress *p, const kvb_tune_report *r)
{
    kvb_say(p, "tuned in %llu steps, %.2f s a chunk: KL %.4f in the first epoch, %.4f in the last, held out %.4f -> %.4f%s",
            (unsigned long long)r->steps, r->pass_seconds, r->kl.train_first, r->kl.train_last, r->kl.heldout_before,
            r->kl.heldout_after, r->kl.accepted ? "" : ": the book stays as it was");
    kvb_say_more(p, "processor seconds of a chunk: teacher %.2f, student %.2f, loss %.2f, backward %.2f", r->kl.teacher_seconds,
                 r->kl.student_seconds, r->kl.loss_seconds, r->kl.backward_seconds);
}

static void say_result(kvb_progress *p, const kvb_tune_report *r)
{
    double before = 0, after = 0, heldout_before = 0, heldout_after = 0;
    uint32_t coded = 0, accepted = 0;
    for (uint32_t l = 0; l < r->layers; l++) {
        const kvb_tune_layer_report *e = &r->layer[l];
        coded += e->coded;
        accepted += e->accepted;
        before += e->train_before;
        after += e->train_after;
        heldout_before += e->heldout_before;
        heldout_after += e->heldout_after;
    }
    if (coded == 0)
        return;
    say_layers(p, r);
    kvb_say(p, "tuned %u of %u layers in %llu steps, %.2f s a chunk: error of the attention output %.4f -> %.4f, held out "
            "%.4f -> %.4f", accepted, coded, (unsigned long long)r->steps, r->pass_seconds, before / coded, after / coded,
            heldout_before / coded, heldout_after / coded);
}

kvb_status kvb_run_tuning(const kvb_input *input, const kvb_book *book, const kvb_tune_args *args, uint64_t seed,
                          kvb_checkpoint *checkpoint, kvb_progress *p, uint8_t **image, size_t *size, kvb_error *err)
{
    kvb_tune_options options;
    kvb_tune_report report;
    keeper k = {.book = book, .policy = kvb_book_policy(book), .seed = seed};
    const bool to_end = args->objective.value == KVB_TUNE_PREDICTIONS;
    (to_end ? kvb_distill_options_init : kvb_tune_options_init)(&options);
    options.ctx = input->ctx;
    options.skip = input->skip;
    options.chunks = input->chunks;
    options.bos = input->bos;
    options.seed = seed;
    if (args->epochs.set)
        options.epochs = (uint32_t)args->epochs.value;
    options.stream = (kvb_tune_stream)args->stream.value;
    if (args->batch.set)
        options.batch = (uint32_t)args->batch.value;
    if (args->rate.set)
        options.rate = args->rate.value;
    if (args->exact.value == KVB_TUNE_EXACT_POLICY) {
        options.window = k.policy.window;
        options.keep = k.policy.anchor_fraction > 0.0 || k.policy.sinks > 0 ? keep : NULL;
        options.keep_user = &k;
        options.exact = k.policy.exact;
        options.sinks = k.policy.sinks;
    }
    options.checkpoint = checkpoint;
    options.progress = kvb_progress_report;
    options.progress_user = p;
    kvb_status status = (to_end ? kvb_distill_book : kvb_tune_book)(input->model, &input->text, book, &options, image, size,
                                                                    &report, err);
    if (status != KVB_OK)
        return status;
    say_resumed(p, &report);
    (to_end ? say_kl : say_result)(p, &report);
    kvb_tune_report_free(&report);
    return KVB_OK;
}

kvb_status kvb_tune_image(const kvb_input *input, const kvb_tune_args *args, uint64_t seed, kvb_checkpoint *checkpoint,
                          kvb_progress *p, uint8_t **image, size_t *size, kvb_error *err)
{
    kvb_book *book = NULL;
    if (args->epochs.value == 0)
        return KVB_OK;
    kvb_status status = kvb_book_open_memory(*image, *size, "calibrated book", &book, err);
    free(*image);
    *image = NULL;
    if (status == KVB_OK)
        status = kvb_run_tuning(input, book, args, seed, checkpoint, p, image, size, err);
    kvb_book_close(book);
    return status;
}

void kvb_tune_job_put(kvb_json_writer *w, const kvb_tune_args *a)
{
    char text[160];
    const bool to_end = a->objective.value == KVB_TUNE_PREDICTIONS;
    kvb_tune_options usual;
    (to_end ? kvb_distill_options_init : kvb_tune_options_init)(&usual);
    if (a->epochs.value == 0)
        return;
    snprintf(text, sizeof text, "%u of %s, batch %u, rate %.17g, stream %u, exact %u", (unsigned)a->epochs.value,
             to_end ? "kl" : "attention", a->batch.set ? (unsigned)a->batch.value : usual.batch, a->rate.set ? a->rate.value : usual.rate,
             (unsigned)a->stream.value, (unsigned)a->exact.value);
    kvb_json_put_string(w, "--tune", text);
}
