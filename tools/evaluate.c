#include "tools/evaluate.h"

#include <math.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "tools/score.h"

enum { BLOCK_ROWS = 256, BLOCK_FLOATS = 1 << 25 };

/* What one pass over all chunks adds up to; per chunk, so that errors can be estimated and sums have one order. */
typedef struct pass_sums {
    double *nll; /* [chunks] means over a chunk's targets */
    double kl, agree, seconds;
} pass_sums;

/* Shapes: T tokens, E channels, V words of the vocabulary, n variants. Pass 0 is the exact one, 1 + i variant i. */
typedef struct evaluator {
    const kvb_input *input;
    const kvb_eval_variant *variant; /* [n] */
    size_t variants;
    kvb_eval_variant current; /* what the attention hook reads */
    bool exact;
    kvb_progress *progress;
    const kvb_kernels *kernels;
    kvb_forward *forward;
    uint32_t width, vocab, block; /* E, V, rows scored at a time */
    uint32_t *tokens;             /* [T] */
    float *hidden;                /* [1 + n][T][E] */
    float *logits[2];             /* [block][V]: exact, variant */
    kvb_row_score *score[2];      /* [block] */
    double *kl;                   /* [block] */
    pass_sums *pass;              /* [1 + n] */
    uint64_t chunk, done, total;  /* tokens, for the progress line */
} evaluator;


void kvb_parallel_openmp(void (*task)(void *user, size_t i), void *user, size_t count)
{
#pragma omp parallel for schedule(dynamic)
    for (size_t i = 0; i < count; i++)
        task(user, i);
}

static kvb_status cancelled(kvb_error *err)
{
    return kvb_fail(err, KVB_E_CANCELLED, "eval", "interrupted; nothing was written");
}

static kvb_status attend_quantised(void *user, const kvb_attention_call *call, float *out, kvb_error *err)
{
    const kvb_eval_variant *variant = user;
    if (kvb_interrupted())
        return cancelled(err);
    const kvb_prefill p = {
        .book = variant->book, .layer = call->layer, .tokens = call->tokens, .policy = &variant->policy,
        .protocol = variant->protocol, .seed = variant->seed, .q = call->q, .k_pre = call->k_pre, .k = call->k,
        .v = call->v,
    };
    return kvb_prefill_attend(&p, kvb_parallel_openmp, out, err);
}

static float *hidden_of(const evaluator *e, size_t pass)
{
    return e->hidden + pass * e->input->ctx * e->width;
}

static kvb_status allocate(evaluator *e, kvb_error *err)
{
    const kvb_model_info *info = kvb_model_get_info(e->input->model);
    const uint32_t ctx = e->input->ctx;
    const size_t passes = 1 + e->variants;
    e->width = info->embedding;
    e->vocab = info->vocab;
    /* A matter of the vocabulary alone: products must be cut the same way whatever the machine. */
    e->block = BLOCK_FLOATS / e->vocab < BLOCK_ROWS ? BLOCK_FLOATS / e->vocab : BLOCK_ROWS;
    e->block = e->block == 0 ? 1 : e->block;
    uint64_t floats, rows = (uint64_t)ctx * e->width;
    if (!kvb_mul_u64(rows, passes, &floats))
        return kvb_fail_memory(err, "hidden states");
    e->tokens = kvb_alloc_array(ctx, sizeof *e->tokens);
    e->hidden = kvb_alloc_array(floats, sizeof *e->hidden);
    e->kl = kvb_alloc_array(e->block, sizeof *e->kl);
    e->pass = kvb_alloc_zeroed(passes, sizeof *e->pass);
    bool ok = e->tokens != NULL && e->hidden != NULL && e->kl != NULL && e->pass != NULL;
    for (int i = 0; i < 2; i++) {
        e->logits[i] = kvb_alloc_array((size_t)e->block * e->vocab, sizeof *e->logits[i]);
        e->score[i] = kvb_alloc_array(e->block, sizeof *e->score[i]);
        ok = ok && e->logits[i] != NULL && e->score[i] != NULL;
    }
    for (size_t i = 0; ok && i < passes; i++)
        ok = (e->pass[i].nll = kvb_alloc_zeroed(e->input->chunks, sizeof *e->pass[i].nll)) != NULL;
    if (!ok)
        return kvb_fail(err, KVB_E_MEMORY, "evaluation", "out of memory for chunks of %u tokens; use a smaller --ctx",
                        ctx);
    return kvb_forward_create(e->input->model, ctx, &e->forward, err);
}

static void release(evaluator *e)
{
    for (size_t i = 0; e->pass != NULL && i < 1 + e->variants; i++)
        free(e->pass[i].nll);
    free(e->pass);
    free(e->tokens);
    free(e->hidden);
    free(e->kl);
    for (int i = 0; i < 2; i++) {
        free(e->logits[i]);
        free(e->score[i]);
    }
    kvb_forward_destroy(e->forward);
}

static kvb_status run_pass(evaluator *e, size_t pass, kvb_error *err)
{
    kvb_forward_hooks hooks = {0};
    double start = kvb_seconds();
    if (pass > 0) {
        e->current = e->variant[pass - 1];
        hooks.attend = attend_quantised;
        hooks.attend_user = &e->current;
    }
    const float *hidden;
    kvb_status status = kvb_forward_run(e->forward, e->tokens, e->input->ctx, 0, &hooks, &hidden, err);
    if (status != KVB_OK)
        return status;
    memcpy(hidden_of(e, pass), hidden, (size_t)e->input->ctx * e->width * sizeof *hidden);
    e->pass[pass].seconds += kvb_seconds() - start;
    e->done += e->input->ctx;
    return kvb_progress_report(e->progress, "eval (tokens)", e->done, e->total) ? cancelled(err) : KVB_OK;
}

/* Logits and scores of rows first .. first+rows-1 of one pass. */
static void score_block(evaluator *e, size_t pass, uint32_t first, uint32_t rows)
{
    const int slot = pass > 0;
    double start = kvb_seconds();
    kvb_forward_logits(e->forward, hidden_of(e, pass) + (size_t)first * e->width, rows, e->logits[slot]);
    kvb_score_rows(e->kernels, e->logits[slot], rows, e->vocab, e->tokens + first + 1, e->score[slot]);
    pass_sums *s = &e->pass[pass];
    for (uint32_t r = 0; r < rows; r++)
        s->nll[e->chunk] += e->score[slot][r].nll;
    if (pass > 0 && e->exact) {
        kvb_score_divergence(e->kernels, e->logits[0], e->score[0], e->logits[1], e->score[1], rows, e->vocab, e->kl);
        for (uint32_t r = 0; r < rows; r++) {
            s->kl += e->kl[r];
            s->agree += e->score[0][r].top == e->score[1][r].top;
        }
    }
    s->seconds += kvb_seconds() - start;
}

/* The last token predicts nothing of this chunk. */
static kvb_status score_chunk(evaluator *e, kvb_error *err)
{
    const uint32_t targets = e->input->ctx - 1;
    const size_t first_pass = e->exact ? 0 : 1;
    for (uint32_t at = 0; at < targets; at += e->block)
        for (size_t pass = first_pass; pass <= e->variants; pass++)
            score_block(e, pass, at, targets - at < e->block ? targets - at : e->block);
    for (size_t pass = first_pass; pass <= e->variants; pass++) {
        double *nll = &e->pass[pass].nll[e->chunk];
        *nll /= targets;
        if (!isfinite(*nll))
            return kvb_fail(err, KVB_E_CHECK, "eval", "the likelihood of chunk %llu is not a finite number with %s",
                            (unsigned long long)(e->input->skip + e->chunk),
                            pass > 0 ? "a quantised cache: the book does not fit this model's values"
                                     : "the exact cache: the model file holds bad weights");
    }
    return KVB_OK;
}

static kvb_status run_chunk(evaluator *e, uint64_t chunk, kvb_error *err)
{
    const kvb_input *in = e->input;
    e->chunk = chunk;
    kvb_text_chunk(&in->text, in->ctx, in->skip, chunk, in->bos, e->tokens);
    kvb_status status = KVB_OK;
    for (size_t pass = e->exact ? 0 : 1; pass <= e->variants && status == KVB_OK; pass++)
        status = run_pass(e, pass, err);
    return status == KVB_OK ? score_chunk(e, err) : status;
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

static kvb_eval_score summarise(const evaluator *e, size_t pass)
{
    const pass_sums *s = &e->pass[pass];
    const uint64_t chunks = e->input->chunks;
    const double targets = (double)chunks * (e->input->ctx - 1);
    kvb_eval_score score = {NAN, NAN, NAN, NAN, NAN, s->seconds};
    if (pass == 0 && !e->exact)
        return score;
    double sum = 0;
    for (uint64_t c = 0; c < chunks; c++)
        sum += s->nll[c];
    score.ppl = exp(sum / (double)chunks);
    if (pass > 0 && e->exact) {
        score.kl = s->kl / targets;
        score.top1 = s->agree / targets;
        compare_chunks(s->nll, e->pass[0].nll, chunks, &score);
    }
    return score;
}

kvb_status kvb_evaluate(const kvb_input *input, const kvb_eval_variant *variants, size_t count, bool exact,
                        kvb_progress *p, kvb_eval_result *result, kvb_error *err)
{
    evaluator e = {.input = input, .variant = variants, .variants = count, .exact = exact, .progress = p,
                   .kernels = kvb_kernels_best()};
    e.total = input->chunks * input->ctx * (count + (exact ? 1 : 0));
    kvb_status status = allocate(&e, err);
    if (status == KVB_OK && kvb_progress_report(p, "eval (tokens)", 0, e.total))
        status = cancelled(err);
    for (uint64_t c = 0; c < input->chunks && status == KVB_OK; c++)
        status = run_chunk(&e, c, err);
    if (status == KVB_OK) {
        result->targets = input->chunks * (input->ctx - 1);
        result->exact = summarise(&e, 0);
        for (size_t i = 0; i < count; i++)
            result->variant[i] = summarise(&e, 1 + i);
    }
    release(&e);
    return status;
}
