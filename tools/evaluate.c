#include "tools/evaluate.h"

#include <math.h>
#include <string.h>
#include <time.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/kernels.h"

/* Logits are made and read a block of rows at a time: 128 rows of a vocabulary of 49,152 are 25 MB. */
enum { ROW_BLOCK = 128 };

typedef struct evaluation {
    const kvb_model *model;
    const kvb_eval_options *options;
    const kvb_eval_variant *variants;
    size_t variant_count;
    kvb_eval_score *scores;
    const kvb_kernels *kernels;
    uint32_t width, vocab;
    kvb_forward *forward;
    uint32_t *ids;        /* [ctx] */
    float *exact_hidden;  /* [ctx][E] */
    float *exact_logits;  /* [ROW_BLOCK][vocab], turned into probabilities */
    float *logits;        /* [ROW_BLOCK][vocab] */
    double *chunk_nll;    /* [1 + variants] of the current chunk: sums */
    double *difference;   /* [variants][2]: sum and sum of squares over chunks of the mean difference */
    uint64_t done, total;
} evaluation;

/* One row's share of the scores. */
typedef struct row_score {
    double nll, kl;
    uint32_t agrees;
} row_score;

static double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void kvb_openmp_parallel(void (*task)(void *user, size_t i), void *user, size_t count)
{
#pragma omp parallel for schedule(dynamic)
    for (size_t i = 0; i < count; i++)
        task(user, i);
}

/* Turns logits into exp(logit - max); returns log-sum-exp. */
static double soften(const kvb_kernels *k, float *logits, uint32_t n, float *most)
{
    *most = k->max(logits, n);
    return (double)*most + log((double)k->exp_sum(logits, n, *most));
}

/* Sum over the vocabulary of p * (log p - log q), from the exact row's exponentials p' = exp(x - max) and the variant's
 * logits y: sum p (x - y) - lse_x + lse_y, where x = log p' + max. Entries under 1e-30 of the largest are nothing. */
static double divergence(const float *exact, double exact_lse, float exact_max, const float *logits, double lse,
                         uint32_t n)
{
    double sum = 0.0, mass = exp((double)exact_max - exact_lse);
    for (uint32_t v = 0; v < n; v++) {
        if (exact[v] < 1e-12f)
            continue;
        double p = (double)exact[v] * mass;
        sum += p * (log((double)exact[v]) + (double)exact_max - exact_lse - ((double)logits[v] - lse));
    }
    return sum > 0.0 ? sum : 0.0;
}

static uint32_t argmax(const float *x, uint32_t n, float most)
{
    for (uint32_t v = 0; v < n; v++)
        if (x[v] == most)
            return v;
    return n;
}

static kvb_status attend_variant(void *user, const kvb_attention_call *call, float *out, kvb_error *err)
{
    const kvb_eval_variant *v = user;
    kvb_prefill p = {v->book, call->layer, call->tokens, &v->policy, v->protocol, v->seed,
                     call->q,  call->k_pre, call->k,      call->v};
    return kvb_prefill_attend(&p, kvb_openmp_parallel, out, err);
}

/* Negative log-likelihoods of a block of rows whose logits are exact: leaves exponentials, their lse and max. */
static void score_exact_rows(const evaluation *e, uint32_t first, uint32_t rows, double *lse, float *most,
                             row_score *row)
{
#pragma omp parallel for schedule(static)
    for (uint32_t r = 0; r < rows; r++) {
        float *x = e->exact_logits + (size_t)r * e->vocab;
        double target = (double)x[e->ids[first + r + 1]];
        lse[r] = soften(e->kernels, x, e->vocab, &most[r]);
        row[r] = (row_score){.nll = lse[r] - target, .agrees = 1};
    }
}

static void score_variant_rows(const evaluation *e, uint32_t first, uint32_t rows, const double *lse,
                               const float *most, row_score *row)
{
#pragma omp parallel
    {
        float *copy = kvb_alloc_array(e->vocab, sizeof *copy);
#pragma omp for schedule(static)
        for (uint32_t r = 0; r < rows; r++) {
            const float *x = e->logits + (size_t)r * e->vocab, *exact = e->exact_logits + (size_t)r * e->vocab;
            float largest;
            if (copy == NULL) {
                row[r].nll = NAN;
                continue;
            }
            memcpy(copy, x, e->vocab * sizeof *copy);
            double own = soften(e->kernels, copy, e->vocab, &largest);
            row[r] = (row_score){.nll = own - (double)x[e->ids[first + r + 1]]};
            if (!e->options->exact)
                continue;
            row[r].kl = divergence(exact, lse[r], most[r], x, own, e->vocab);
            row[r].agrees = argmax(exact, e->vocab, 1.0f) == argmax(x, e->vocab, largest);
        }
        free(copy);
    }
}

/* Sums in row order, whatever thread made a row. */
static void add_rows(kvb_eval_score *score, double *chunk_nll, const row_score *row, uint32_t rows)
{
    for (uint32_t r = 0; r < rows; r++) {
        score->nll += row[r].nll;
        score->kl += row[r].kl;
        score->top1 += row[r].agrees;
        *chunk_nll += row[r].nll;
    }
    score->targets += rows;
}

/* Scores the hidden states of one pass; which = 0 for the exact one. */
static void score_pass(evaluation *e, size_t which, const float *hidden)
{
    double lse[ROW_BLOCK];
    float most[ROW_BLOCK];
    row_score row[ROW_BLOCK];
    uint32_t targets = e->options->ctx - 1;
    for (uint32_t first = 0; first < targets; first += ROW_BLOCK) {
        uint32_t rows = targets - first < ROW_BLOCK ? targets - first : ROW_BLOCK;
        if (e->options->exact) {
            kvb_forward_logits(e->forward, e->exact_hidden + (size_t)first * e->width, rows, e->exact_logits);
            score_exact_rows(e, first, rows, lse, most, row);
        }
        if (which > 0) {
            kvb_forward_logits(e->forward, hidden + (size_t)first * e->width, rows, e->logits);
            score_variant_rows(e, first, rows, lse, most, row);
        }
        add_rows(&e->scores[which], &e->chunk_nll[which], row, rows);
    }
}

static kvb_status report(evaluation *e, kvb_error *err)
{
    e->done++;
    if (e->options->progress != NULL &&
        e->options->progress(e->options->progress_user, "evaluate", e->done, e->total) != 0)
        return kvb_fail(err, KVB_E_CANCELLED, "evaluate", "stopped after %llu of %llu passes",
                        (unsigned long long)e->done, (unsigned long long)e->total);
    return KVB_OK;
}

static kvb_status run_pass(evaluation *e, size_t which, kvb_error *err)
{
    const float *hidden;
    kvb_forward_hooks hooks = {0};
    double start = seconds_now();
    if (which > 0) {
        hooks.attend = attend_variant;
        hooks.attend_user = (void *)(uintptr_t)&e->variants[which - 1];
    }
    kvb_status status = kvb_forward_run(e->forward, e->ids, e->options->ctx, 0, &hooks, &hidden, err);
    if (status != KVB_OK)
        return status;
    if (which == 0)
        memcpy(e->exact_hidden, hidden, (size_t)e->options->ctx * e->width * sizeof *hidden);
    score_pass(e, which, hidden);
    e->scores[which].seconds += seconds_now() - start;
    if (!isfinite(e->chunk_nll[which]))
        return kvb_fail(err, KVB_E_CHECK, "evaluate", "the likelihood is not a number: the model or the book gives NaN");
    return report(e, err);
}

static kvb_status run_chunk(evaluation *e, kvb_error *err)
{
    kvb_status status = KVB_OK;
    memset(e->chunk_nll, 0, (1 + e->variant_count) * sizeof *e->chunk_nll);
    if (e->options->exact)
        status = run_pass(e, 0, err);
    for (size_t v = 0; v < e->variant_count && status == KVB_OK; v++) {
        status = run_pass(e, 1 + v, err);
        double difference = (e->chunk_nll[1 + v] - e->chunk_nll[0]) / (e->options->ctx - 1);
        e->difference[2 * v] += difference;
        e->difference[2 * v + 1] += difference * difference;
    }
    return status;
}

/* From sums to means. */
static void finish(evaluation *e)
{
    for (size_t i = 0; i <= e->variant_count; i++) {
        kvb_eval_score *s = &e->scores[i];
        double n = (double)s->targets, chunks = (double)e->options->chunks;
        bool compared = i > 0 && e->options->exact;
        s->nll /= n;
        s->kl = compared ? s->kl / n : NAN;
        s->top1 = compared ? s->top1 / n : NAN;
        s->nll_difference_se = NAN;
        if (compared && e->options->chunks > 1) {
            double mean = e->difference[2 * (i - 1)] / chunks;
            double variance = (e->difference[2 * (i - 1) + 1] - chunks * mean * mean) / (chunks - 1.0);
            s->nll_difference_se = sqrt(variance > 0.0 ? variance / chunks : 0.0);
        }
    }
}

static kvb_status allocate(evaluation *e, kvb_error *err)
{
    size_t block = (size_t)ROW_BLOCK * e->vocab;
    e->ids = kvb_alloc_array(e->options->ctx, sizeof *e->ids);
    e->logits = kvb_alloc_array(e->variant_count > 0 ? block : 0, sizeof *e->logits);
    e->exact_logits = kvb_alloc_array(e->options->exact ? block : 0, sizeof *e->exact_logits);
    e->exact_hidden = kvb_alloc_array(e->options->exact ? (size_t)e->options->ctx * e->width : 0, sizeof(float));
    e->chunk_nll = kvb_alloc_zeroed(1 + e->variant_count, sizeof *e->chunk_nll);
    e->difference = kvb_alloc_zeroed(2 * e->variant_count, sizeof *e->difference);
    if (!e->ids || !e->logits || !e->exact_logits || !e->exact_hidden || !e->chunk_nll || !e->difference)
        return kvb_fail_memory(err, "evaluate");
    return kvb_forward_create(e->model, e->options->ctx, &e->forward, err);
}

static void release(evaluation *e)
{
    void *all[] = {e->ids, e->logits, e->exact_logits, e->exact_hidden, e->chunk_nll, e->difference};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    kvb_forward_destroy(e->forward);
}

kvb_status kvb_evaluate(const kvb_model *model, const kvb_text *text, const kvb_eval_options *options,
                        const kvb_eval_variant *variants, size_t count, kvb_eval_score *scores, kvb_error *err)
{
    const kvb_model_info *info = kvb_model_get_info(model);
    evaluation e = {.model = model, .options = options, .variants = variants, .variant_count = count,
                    .scores = scores, .kernels = kvb_kernels_best(), .width = info->embedding, .vocab = info->vocab};
    if (options->ctx < 2)
        return kvb_fail(err, KVB_E_USAGE, "evaluate", "chunks of %u tokens have no targets", options->ctx);
    e.total = options->chunks * (count + (options->exact ? 1 : 0));
    memset(scores, 0, (1 + count) * sizeof *scores);
    kvb_status status = allocate(&e, err);
    for (uint64_t c = 0; c < options->chunks && status == KVB_OK; c++) {
        kvb_text_chunk(text, options->ctx, options->skip, c, options->bos, e.ids);
        status = run_chunk(&e, err);
    }
    if (status == KVB_OK)
        finish(&e);
    release(&e);
    return status;
}
