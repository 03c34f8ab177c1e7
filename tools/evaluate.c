#include "tools/evaluate.h"

#include <math.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "tools/score.h"
#include "tools/stream.h"

enum { BLOCK_ROWS = 256, BLOCK_FLOATS = 1 << 25 };

/* What one pass over all chunks adds up to; per chunk, so that errors can be estimated and sums have one order. */
typedef struct pass_sums {
    double *nll; /* [chunks] means over a chunk's targets */
    double kl, agree, seconds;
    double apart, apart_most, attention_apart;
    double *bucket; /* [buckets] sums of NLL over chunks */
} pass_sums;

/* Shapes: T tokens, E channels, V words of the vocabulary, n variants. Pass 0 is the exact one, 1 + i variant i. */
typedef struct evaluator {
    const kvb_input *input;
    const kvb_eval_variant *variant; /* [n] */
    size_t variants;
    kvb_eval_options options;
    uint32_t first, buckets; /* row of the first target's prediction; parts of a chunk that are scored apart */
    kvb_progress *progress;
    const kvb_kernels *kernels;
    kvb_forward *forward;
    uint32_t width, vocab, block; /* E, V, rows scored at a time */
    uint32_t *tokens;             /* [T] */
    float *hidden;                /* [1 + n][T][E] */
    float *logits[2];             /* [block][V]: exact, variant */
    kvb_row_score *score[2];      /* [block] */
    double *kl;                   /* [block] */
    double *before;               /* [block] NLL of the pass before */
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

/* What the attention hook reads. */
typedef struct quantised {
    const kvb_eval_variant *variant;
    kvb_cache *mirror; /* attends to the same token by token; or NULL */
    double *apart;     /* the most of any layer */
} quantised;

/* ||O' - O|| / ||O|| where O' [H][T][D] comes from the mirror. */
static kvb_status compare_attention(const quantised *q, const kvb_attention_call *call, const float *out, kvb_error *err)
{
    const size_t n = (size_t)call->geometry->heads * call->tokens * call->geometry->head_dim;
    float *other = kvb_alloc_array(n, sizeof *other);
    kvb_status status = other != NULL ? kvb_attend_through_cache(q->mirror, call, other, err)
                                      : kvb_fail_memory(err, "attention");
    double difference = 0, size = 0;
    for (size_t i = 0; i < n && status == KVB_OK; i++) {
        difference += pow((double)other[i] - (double)out[i], 2);
        size += (double)out[i] * (double)out[i];
    }
    const double apart = size > 0 ? sqrt(difference / size) : sqrt(difference);
    if (!(apart <= *q->apart))
        *q->apart = apart;
    free(other);
    return status;
}

static kvb_status attend_quantised(void *user, const kvb_attention_call *call, float *out, kvb_error *err)
{
    const quantised *q = user;
    const kvb_eval_variant *variant = q->variant;
    if (kvb_interrupted())
        return cancelled(err);
    const kvb_prefill p = {
        .book = variant->book, .layer = call->layer, .tokens = call->tokens, .policy = &variant->policy,
        .protocol = variant->protocol, .seed = variant->seed, .q = call->q, .k_pre = call->k_pre, .k = call->k,
        .v = call->v,
    };
    kvb_status status = kvb_prefill_attend(&p, kvb_parallel_openmp, out, err);
    return status == KVB_OK && q->mirror != NULL ? compare_attention(q, call, out, err) : status;
}

static kvb_status make_cache(const evaluator *e, const kvb_eval_variant *v, kvb_cache **cache, kvb_error *err)
{
    const kvb_model_info *info = kvb_model_get_info(e->input->model);
    if (v->book == NULL)
        return kvb_cache_create_exact(info->layer, info->layers, cache, err);
    kvb_cache_options options;
    kvb_cache_options_init(&options, v->book);
    options.policy = v->policy;
    options.seed = v->seed;
    options.reserve = e->input->ctx;
    return kvb_cache_create(v->book, &options, cache, err);
}

static bool is_stream(const evaluator *e, size_t pass)
{
    return pass > 0 && e->variant[pass - 1].stream;
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
    e->before = kvb_alloc_array(e->block, sizeof *e->before);
    e->pass = kvb_alloc_zeroed(passes, sizeof *e->pass);
    bool ok = e->tokens != NULL && e->hidden != NULL && e->kl != NULL && e->before != NULL && e->pass != NULL;
    for (int i = 0; i < 2; i++) {
        e->logits[i] = kvb_alloc_array((size_t)e->block * e->vocab, sizeof *e->logits[i]);
        e->score[i] = kvb_alloc_array(e->block, sizeof *e->score[i]);
        ok = ok && e->logits[i] != NULL && e->score[i] != NULL;
    }
    for (size_t i = 0; ok && i < passes; i++)
        ok = (e->pass[i].nll = kvb_alloc_zeroed(e->input->chunks, sizeof *e->pass[i].nll)) != NULL &&
             (e->pass[i].bucket = kvb_alloc_zeroed(e->buckets + 1, sizeof *e->pass[i].bucket)) != NULL;
    if (!ok)
        return kvb_fail(err, KVB_E_MEMORY, "evaluation", "out of memory for chunks of %u tokens; use a smaller --ctx",
                        ctx);
    return kvb_forward_create(e->input->model, ctx, &e->forward, err);
}

static void release(evaluator *e)
{
    for (size_t i = 0; e->pass != NULL && i < 1 + e->variants; i++) {
        free(e->pass[i].nll);
        free(e->pass[i].bucket);
    }
    free(e->pass);
    free(e->tokens);
    free(e->hidden);
    free(e->kl);
    free(e->before);
    for (int i = 0; i < 2; i++) {
        free(e->logits[i]);
        free(e->score[i]);
    }
    kvb_forward_destroy(e->forward);
}

static kvb_status run_at_once(evaluator *e, size_t pass, kvb_error *err)
{
    kvb_forward_hooks hooks = {0};
    quantised q = {0};
    kvb_status status = KVB_OK;
    if (pass > 0) {
        q.variant = &e->variant[pass - 1];
        hooks.attend = attend_quantised;
        hooks.attend_user = &q;
    }
    if (pass > 0 && pass < e->variants && is_stream(e, pass + 1)) {
        q.apart = &e->pass[pass + 1].attention_apart;
        status = make_cache(e, q.variant, &q.mirror, err);
    }
    const float *hidden;
    if (status == KVB_OK)
        status = kvb_forward_run(e->forward, e->tokens, e->input->ctx, 0, &hooks, &hidden, err);
    if (status == KVB_OK)
        memcpy(hidden_of(e, pass), hidden, (size_t)e->input->ctx * e->width * sizeof *hidden);
    kvb_cache_destroy(q.mirror);
    return status;
}

/* Every token but the last, which predicts nothing of this chunk; those that predict a target one by one. */
static kvb_status stream_tokens(evaluator *e, size_t pass, kvb_stream *stream, kvb_error *err)
{
    const float *last;
    kvb_status status = e->first > 0 ? kvb_stream_run(stream, e->tokens, e->first, &last, err) : KVB_OK;
    for (uint32_t t = e->first; t + 1 < e->input->ctx && status == KVB_OK; t++) {
        if (kvb_interrupted())
            return cancelled(err);
        status = kvb_stream_run(stream, e->tokens + t, 1, &last, err);
        if (status == KVB_OK)
            memcpy(hidden_of(e, pass) + (size_t)t * e->width, last, e->width * sizeof *last);
    }
    return status;
}

static kvb_status run_stream(evaluator *e, size_t pass, kvb_error *err)
{
    kvb_cache *cache = NULL;
    kvb_stream *stream = NULL;
    kvb_status status = make_cache(e, &e->variant[pass - 1], &cache, err);
    if (status == KVB_OK)
        status = kvb_stream_create(e->input->model, cache, &stream, err);
    if (status == KVB_OK)
        status = stream_tokens(e, pass, stream, err);
    kvb_stream_destroy(stream);
    kvb_cache_destroy(cache);
    return status;
}

static kvb_status run_pass(evaluator *e, size_t pass, kvb_error *err)
{
    double start = kvb_seconds();
    kvb_status status = is_stream(e, pass) ? run_stream(e, pass, err) : run_at_once(e, pass, err);
    if (status != KVB_OK)
        return status;
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
    const bool stream = is_stream(e, pass);
    for (uint32_t r = 0; r < rows; r++) {
        const double nll = e->score[slot][r].nll, apart = fabs(nll - e->before[r]);
        s->nll[e->chunk] += nll;
        if (e->buckets > 0)
            s->bucket[(first + r + 1) / e->options.bucket] += nll;
        if (stream) {
            s->apart += apart;
            s->apart_most = apart > s->apart_most ? apart : s->apart_most;
        }
        e->before[r] = nll;
    }
    if (pass > 0 && e->options.exact) {
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
    const uint32_t end = e->input->ctx - 1, targets = end - e->first;
    const size_t first_pass = e->options.exact ? 0 : 1;
    for (uint32_t at = e->first; at < end; at += e->block)
        for (size_t pass = first_pass; pass <= e->variants; pass++)
            score_block(e, pass, at, end - at < e->block ? end - at : e->block);
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
    for (size_t pass = e->options.exact ? 0 : 1; pass <= e->variants && status == KVB_OK; pass++)
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

static void summarise(const evaluator *e, size_t pass, kvb_eval_score *score)
{
    const pass_sums *s = &e->pass[pass];
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
    if (is_stream(e, pass)) {
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

kvb_status kvb_evaluate(const kvb_input *input, const kvb_eval_variant *variants, size_t count,
                        const kvb_eval_options *options, kvb_progress *p, kvb_eval_result *result, kvb_error *err)
{
    evaluator e = {.input = input, .variant = variants, .variants = count, .options = *options, .progress = p,
                   .kernels = kvb_kernels_best(), .buckets = kvb_eval_buckets(options, input->ctx)};
    const uint32_t targets = options->last == 0 || options->last >= input->ctx ? input->ctx - 1 : options->last;
    e.first = input->ctx - 1 - targets;
    e.total = input->chunks * input->ctx * (count + (options->exact ? 1 : 0));
    kvb_status status = allocate(&e, err);
    if (status == KVB_OK && kvb_progress_report(p, "eval (tokens)", 0, e.total))
        status = cancelled(err);
    for (uint64_t c = 0; c < input->chunks && status == KVB_OK; c++)
        status = run_chunk(&e, c, err);
    if (status == KVB_OK) {
        result->targets = input->chunks * targets;
        summarise(&e, 0, &result->exact);
        for (size_t i = 0; i < count; i++)
            summarise(&e, 1 + i, &result->variant[i]);
    }
    release(&e);
    return status;
}
