#include "tools/evaluate_impl.h"

#include <math.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "tools/score.h"
#include "tools/stream.h"

enum { BLOCK_ROWS = 256, BLOCK_FLOATS = 1 << 25 };

/* Shapes: T tokens, E channels, V words of the vocabulary, n variants. Pass 0 is the exact one, 1 + i variant i. */
typedef struct evaluator {
    kvb_evaluation *run;
    const kvb_kernels *kernels;
    kvb_forward *forward;
    uint32_t width, vocab, block; /* E, V, rows scored at a time */
    uint32_t *tokens;             /* [T] */
    float *hidden;                /* [1 + n][T][E] */
    float *logits[2];             /* [block][V]: exact, variant */
    kvb_row_score *score[2];      /* [block] */
    double *kl;                   /* [block] */
    double *before;               /* [block] NLL of the pass before */
    uint64_t chunk;
} evaluator;

void kvb_parallel_openmp(void (*task)(void *user, size_t i), void *user, size_t count)
{
#pragma omp parallel for schedule(dynamic)
    for (size_t i = 0; i < count; i++)
        task(user, i);
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
        return kvb_evaluation_cancelled(err);
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
    const kvb_model_info *info = kvb_model_get_info(e->run->input->model);
    if (v->book == NULL)
        return kvb_cache_create_exact(info->layer, info->layers, cache, err);
    kvb_cache_options options;
    kvb_cache_options_init(&options, v->book);
    options.policy = v->policy;
    options.seed = v->seed;
    options.reserve = e->run->input->ctx;
    return kvb_cache_create(v->book, &options, cache, err);
}

static bool is_stream(const evaluator *e, size_t pass)
{
    return pass > 0 && e->run->variant[pass - 1].stream;
}

static float *hidden_of(const evaluator *e, size_t pass)
{
    return e->hidden + pass * e->run->input->ctx * e->width;
}

static kvb_status allocate(evaluator *e, kvb_error *err)
{
    const kvb_model_info *info = kvb_model_get_info(e->run->input->model);
    const uint32_t ctx = e->run->input->ctx;
    const size_t passes = 1 + e->run->variants;
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
    bool ok = e->tokens != NULL && e->hidden != NULL && e->kl != NULL && e->before != NULL;
    for (int i = 0; i < 2; i++) {
        e->logits[i] = kvb_alloc_array((size_t)e->block * e->vocab, sizeof *e->logits[i]);
        e->score[i] = kvb_alloc_array(e->block, sizeof *e->score[i]);
        ok = ok && e->logits[i] != NULL && e->score[i] != NULL;
    }
    if (!ok)
        return kvb_fail(err, KVB_E_MEMORY, "evaluation", "out of memory for chunks of %u tokens; use a smaller --ctx",
                        ctx);
    return kvb_forward_create(e->run->input->model, ctx, &e->forward, err);
}

static void release(evaluator *e)
{
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
        q.variant = &e->run->variant[pass - 1];
        hooks.attend = attend_quantised;
        hooks.attend_user = &q;
    }
    if (pass > 0 && pass < e->run->variants && is_stream(e, pass + 1)) {
        q.apart = &e->run->pass[pass + 1].attention_apart;
        status = make_cache(e, q.variant, &q.mirror, err);
    }
    const float *hidden;
    if (status == KVB_OK)
        status = kvb_forward_run(e->forward, e->tokens, e->run->input->ctx, 0, &hooks, &hidden, err);
    if (status == KVB_OK)
        memcpy(hidden_of(e, pass), hidden, (size_t)e->run->input->ctx * e->width * sizeof *hidden);
    kvb_cache_destroy(q.mirror);
    return status;
}

/* Every token but the last, which predicts nothing of this chunk; those that predict a target one by one. */
static kvb_status stream_tokens(evaluator *e, size_t pass, kvb_stream *stream, kvb_error *err)
{
    const float *last;
    kvb_status status = e->run->first > 0 ? kvb_stream_run(stream, e->tokens, e->run->first, &last, err) : KVB_OK;
    for (uint32_t t = e->run->first; t + 1 < e->run->input->ctx && status == KVB_OK; t++) {
        if (kvb_interrupted())
            return kvb_evaluation_cancelled(err);
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
    kvb_status status = make_cache(e, &e->run->variant[pass - 1], &cache, err);
    if (status == KVB_OK)
        status = kvb_stream_create(e->run->input->model, cache, &stream, err);
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
    e->run->pass[pass].seconds += kvb_seconds() - start;
    return kvb_evaluation_advance(e->run, e->run->input->ctx, err);
}

/* Logits and scores of rows first .. first+rows-1 of one pass. */
static void score_block(evaluator *e, size_t pass, uint32_t first, uint32_t rows)
{
    const int slot = pass > 0;
    double start = kvb_seconds();
    kvb_forward_logits(e->forward, hidden_of(e, pass) + (size_t)first * e->width, rows, e->logits[slot]);
    kvb_score_rows(e->kernels, e->logits[slot], rows, e->vocab, e->tokens + first + 1, e->score[slot]);
    kvb_eval_sums *s = &e->run->pass[pass];
    const bool stream = is_stream(e, pass);
    for (uint32_t r = 0; r < rows; r++) {
        const double nll = e->score[slot][r].nll, apart = fabs(nll - e->before[r]);
        kvb_evaluation_add(e->run, pass, e->chunk, first + r, nll);
        if (stream) {
            s->apart += apart;
            s->apart_most = apart > s->apart_most ? apart : s->apart_most;
        }
        e->before[r] = nll;
    }
    if (pass > 0 && e->run->options.exact) {
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
    const uint32_t end = e->run->input->ctx - 1;
    const size_t first_pass = e->run->options.exact ? 0 : 1;
    for (uint32_t at = e->run->first; at < end; at += e->block)
        for (size_t pass = first_pass; pass <= e->run->variants; pass++)
            score_block(e, pass, at, end - at < e->block ? end - at : e->block);
    return kvb_evaluation_close_chunk(e->run, e->chunk, err);
}

static kvb_status run_chunk(evaluator *e, uint64_t chunk, kvb_error *err)
{
    const kvb_input *in = e->run->input;
    e->chunk = chunk;
    kvb_text_chunk(&in->text, in->ctx, in->skip, chunk, in->bos, e->tokens);
    kvb_status status = KVB_OK;
    for (size_t pass = e->run->options.exact ? 0 : 1; pass <= e->run->variants && status == KVB_OK; pass++)
        status = run_pass(e, pass, err);
    return status == KVB_OK ? score_chunk(e, err) : status;
}

kvb_status kvb_evaluate_here(kvb_evaluation *run, kvb_error *err)
{
    evaluator e = {.run = run, .kernels = kvb_kernels_best()};
    kvb_status status = allocate(&e, err);
    for (uint64_t c = 0; c < run->input->chunks && status == KVB_OK; c++)
        status = run_chunk(&e, c, err);
    release(&e);
    return status;
}
