#include "tools/evaluate_impl.h"

#include <math.h>
#include <stdlib.h>

#include "format/base/checked.h"
#include "format/base/fail.h"

kvb_status kvb_evaluation_cancelled(kvb_error *err)
{
    return kvb_fail(err, KVB_E_CANCELLED, "eval", "interrupted; nothing was written");
}

kvb_status kvb_evaluation_advance(kvb_evaluation *e, uint64_t tokens, kvb_error *err)
{
    e->done += tokens;
    return kvb_progress_report(e->progress, "eval (tokens)", e->done, e->total) ? kvb_evaluation_cancelled(err) : KVB_OK;
}

void kvb_evaluation_add(kvb_evaluation *e, size_t pass, uint64_t chunk, uint32_t row, double nll)
{
    e->pass[pass].nll[chunk] += nll;
    if (e->buckets > 0)
        e->pass[pass].bucket[(row + 1) / e->options.bucket] += nll;
}

kvb_status kvb_evaluation_close_chunk(kvb_evaluation *e, uint64_t chunk, kvb_error *err)
{
    const uint32_t targets = e->input->ctx - 1 - e->first;
    for (size_t pass = e->options.exact ? 0 : 1; pass <= e->variants; pass++) {
        double *nll = &e->pass[pass].nll[chunk];
        *nll /= targets;
        if (!isfinite(*nll))
            return kvb_fail(err, KVB_E_CHECK, "eval", "the likelihood of chunk %llu is not a finite number with %s",
                            (unsigned long long)(e->input->skip + chunk),
                            pass > 0 ? "a quantised cache: the book does not fit this model's values"
                                     : "the exact cache: the model file holds bad weights");
    }
    return KVB_OK;
}

/* Chunks differ far more from each other than a variant does from the exact cache on one of them: hence the paired
 * difference. */
static void compare_chunks(const double *nll, const double *exact, uint64_t chunks, kvb_eval_score *score)
{
    double sum = 0, square = 0;
    for (uint64_t c = 0; c < chunks; c++)
        sum += nll[c] - exact[c];
    score->delta = sum / (double)chunks;
    for (uint64_t c = 0; c < chunks; c++)
        square += pow(nll[c] - exact[c] - score->delta, 2);
    score->delta_error = chunks > 1 ? sqrt(square / (double)(chunks - 1) / (double)chunks) : NAN;
}

static void summarise(const kvb_evaluation *e, size_t pass, kvb_eval_score *score)
{
    const kvb_eval_sums *s = &e->pass[pass];
    const uint64_t chunks = e->input->chunks;
    const double targets = (double)chunks * (e->input->ctx - 1 - e->first);
    *score = (kvb_eval_score){NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN, s->seconds, score->bucket};
    if (pass == 0 && !e->options.exact)
        return;
    double sum = 0;
    for (uint64_t c = 0; c < chunks; c++)
        sum += s->nll[c];
    score->ppl = exp(sum / (double)chunks);
    for (uint32_t b = 0; b < e->buckets && score->bucket != NULL; b++) {
        const uint32_t from = b * e->options.bucket, to = from + e->options.bucket;
        const uint32_t first = from > e->first + 1 ? from : e->first + 1, end = to < e->input->ctx ? to : e->input->ctx;
        score->bucket[b] = first < end ? exp(s->bucket[b] / ((double)chunks * (end - first))) : NAN;
    }
    if (pass > 0 && e->variant[pass - 1].stream) {
        score->apart = s->apart / targets;
        score->apart_most = s->apart_most;
        score->attention_apart = e->variant[pass - 1].book != NULL ? s->attention_apart : NAN;
    }
    if (pass > 0 && e->options.exact) {
        score->kl = s->kl / targets;
        score->top1 = s->agree / targets;
        compare_chunks(s->nll, e->pass[0].nll, chunks, score);
    }
}

uint32_t kvb_eval_buckets(const kvb_eval_options *options, uint32_t ctx)
{
    return options->bucket == 0 ? 0 : (ctx - 1) / options->bucket + 1;
}

static kvb_status make_sums(kvb_evaluation *e, kvb_error *err)
{
    const size_t passes = 1 + e->variants;
    e->pass = kvb_alloc_zeroed(passes, sizeof *e->pass);
    bool ok = e->pass != NULL;
    for (size_t i = 0; ok && i < passes; i++)
        ok = (e->pass[i].nll = kvb_alloc_zeroed(e->input->chunks, sizeof *e->pass[i].nll)) != NULL &&
             (e->pass[i].bucket = kvb_alloc_zeroed(e->buckets + 1, sizeof *e->pass[i].bucket)) != NULL;
    return ok ? KVB_OK : kvb_fail_memory(err, "evaluation");
}

static void free_sums(kvb_evaluation *e)
{
    for (size_t i = 0; e->pass != NULL && i < 1 + e->variants; i++) {
        free(e->pass[i].nll);
        free(e->pass[i].bucket);
    }
    free(e->pass);
}

kvb_status kvb_evaluate(const kvb_input *input, const kvb_eval_variant *variants, size_t count,
                        const kvb_eval_options *options, kvb_progress *p, kvb_eval_result *result, kvb_error *err)
{
    kvb_evaluation e = {.input = input, .variant = variants, .variants = count, .options = *options, .progress = p,
                        .buckets = kvb_eval_buckets(options, input->ctx)};
    const uint32_t targets = options->last == 0 || options->last >= input->ctx ? input->ctx - 1 : options->last;
    e.first = input->ctx - 1 - targets;
    e.total = input->chunks * input->ctx * (count + (options->exact ? 1 : 0));
    kvb_status status = make_sums(&e, err);
    if (status == KVB_OK)
        status = kvb_evaluation_advance(&e, 0, err);
    if (status == KVB_OK)
        status = options->device == KVB_DEVICE_CPU ? kvb_evaluate_here(&e, err) : kvb_evaluate_on_device(&e, err);
    if (status == KVB_OK) {
        result->targets = input->chunks * targets;
        summarise(&e, 0, &result->exact);
        for (size_t i = 0; i < count; i++)
            summarise(&e, 1 + i, &result->variant[i]);
    }
    free_sums(&e);
    return status;
}
