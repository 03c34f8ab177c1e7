#include "tools/evaluate_impl.h"

#include "calib/device_forward.h"
#include "format/base/fail.h"

#ifdef KVB_CUDA
#include <stdlib.h>

#include "cuda/eval/cuda_lockstep.h"
#include "format/base/checked.h"
#include "format/base/rope.h"
#include "model/weights.h"

/* Tokens that go through side by side at most: what they take of the device grows with them, launches with the chunks' length. */
enum { MOST_TOKENS = 1 << 17 };

/* Some chunks on their way through all passes. Rows are tokens, chunk after chunk. */
typedef struct side_by_side {
    kvb_evaluation *run;
    const kvb_model *model;
    int gpu;
    uint64_t first, chunks; /* chunks at work */
    size_t rows;
    kvb_cuda_forward *forward;
    kvb_cuda_predict *predict;
    kvb_rope_table rope;
    kvb_weight_scratch weights;
    uint32_t *tokens, *target; /* [rows] */
    float *x;                  /* [T][E] */
    kvb_cuda_judged *judged;   /* [rows] */
} side_by_side;

/* What serves all chunks, however many go through at a time; rows is the most. */
static kvb_status start(side_by_side *s, size_t rows, kvb_error *err)
{
    const uint32_t ctx = s->run->input->ctx;
    s->tokens = kvb_alloc_array(rows, sizeof *s->tokens);
    s->target = kvb_alloc_zeroed(rows, sizeof *s->target);
    s->judged = kvb_alloc_array(rows, sizeof *s->judged);
    s->x = kvb_alloc_array((size_t)ctx * s->model->config.embedding, sizeof *s->x);
    if (s->tokens == NULL || s->target == NULL || s->judged == NULL || s->x == NULL)
        return kvb_fail_memory(err, "evaluation");
    kvb_status status = kvb_rope_table_create(&s->rope, &s->model->geometry[0], 0, ctx, err);
    return status == KVB_OK ? kvb_device_predict(s->gpu, s->model, rows, &s->predict, err) : status;
}

/* The next chunks; the last ones may be fewer, and then have a forward pass of their own. */
static kvb_status take_chunks(side_by_side *s, uint64_t first, uint64_t chunks, kvb_error *err)
{
    const kvb_input *in = s->run->input;
    const uint32_t ctx = in->ctx;
    const bool fits = s->forward != NULL && s->chunks == chunks;
    s->first = first;
    s->chunks = chunks;
    s->rows = chunks * ctx;
    for (uint64_t c = 0; c < chunks; c++) {
        kvb_text_chunk(&in->text, ctx, in->skip, first + c, in->bos, s->tokens + c * ctx);
        for (uint32_t t = 0; t + 1 < ctx; t++)
            s->target[c * ctx + t] = s->tokens[c * ctx + t + 1];
    }
    if (fits)
        return KVB_OK;
    kvb_cuda_shape shape = kvb_device_shape(s->model, &s->rope, ctx, chunks);
    shape.handed = true;
    kvb_cuda_forward_destroy(s->forward);
    return kvb_cuda_forward_create(s->gpu, &shape, &s->forward, err);
}

static void finish(side_by_side *s)
{
    kvb_cuda_forward_destroy(s->forward);
    kvb_cuda_predict_destroy(s->predict);
    kvb_rope_table_free(&s->rope);
    kvb_weight_scratch_free(&s->weights);
    free(s->tokens);
    free(s->target);
    free(s->judged);
    free(s->x);
}

/* All layers, those that have codes through the cache, where there is one; the weights of the next come while a layer runs. */
static kvb_status run_layers(side_by_side *s, const kvb_book *book, kvb_cuda_lockstep *cache, kvb_error *err)
{
    const uint32_t layers = s->model->config.layers;
    kvb_status status = KVB_OK;
    for (uint64_t c = 0; c < s->chunks && status == KVB_OK; c++)
        status = kvb_device_embed(s->forward, s->model, c, s->tokens + c * s->run->input->ctx, s->run->input->ctx, s->x, err);
    if (status == KVB_OK)
        status = kvb_device_send_weights(s->forward, s->model, 0, &s->weights, err);
    for (uint32_t l = 0; l < layers && status == KVB_OK; l++) {
        if (kvb_interrupted())
            return kvb_evaluation_cancelled(err);
        if (cache != NULL && kvb_book_codebook(book, l, 0, KVB_KEY) != NULL)
            status = kvb_cuda_forward_layer_by(s->forward, l, kvb_cuda_lockstep_attend, cache, err);
        else
            status = kvb_cuda_forward_layer(s->forward, false, err);
        if (status == KVB_OK && l + 1 < layers)
            status = kvb_device_send_weights(s->forward, s->model, l + 1, &s->weights, err);
    }
    return status;
}

static kvb_status judge(side_by_side *s, size_t pass, kvb_cuda_lockstep *cache, kvb_error *err)
{
    struct CUstream_st *stream;
    const float *x = kvb_cuda_forward_rows(s->forward, &stream);
    kvb_status status = cache != NULL ? kvb_cuda_lockstep_check(cache, stream, err) : KVB_OK;
    if (status == KVB_OK)
        status = kvb_cuda_predict_judge(s->predict, x, s->rows, s->target, pass == 0, pass > 0 && s->run->options.exact, stream,
                                        s->judged, err);
    return status;
}

/* Rows first .. T - 2 of each chunk predict targets. */
static void add_up(const side_by_side *s, size_t pass)
{
    const uint32_t ctx = s->run->input->ctx;
    kvb_eval_sums *sums = &s->run->pass[pass];
    for (uint64_t c = 0; c < s->chunks; c++)
        for (uint32_t t = s->run->first; t + 1 < ctx; t++) {
            const kvb_cuda_judged *j = &s->judged[c * ctx + t];
            kvb_evaluation_add(s->run, pass, s->first + c, t, j->nll);
            sums->kl += j->kl;
            sums->agree += j->agree;
        }
}

static kvb_status run_pass(side_by_side *s, size_t pass, kvb_error *err)
{
    const double start = kvb_seconds();
    const kvb_eval_variant *v = pass > 0 ? &s->run->variant[pass - 1] : NULL;
    kvb_cuda_lockstep *cache = NULL;
    kvb_status status = KVB_OK;
    if (v != NULL)
        status = kvb_cuda_lockstep_create(s->gpu, v->book, &v->policy, v->seed, (uint32_t)s->chunks, s->run->input->ctx, &cache, err);
    if (status == KVB_OK)
        status = run_layers(s, v != NULL ? v->book : NULL, cache, err);
    if (status == KVB_OK)
        status = judge(s, pass, cache, err);
    kvb_cuda_lockstep_destroy(cache);
    if (status != KVB_OK)
        return status;
    add_up(s, pass);
    s->run->pass[pass].seconds += kvb_seconds() - start;
    return kvb_evaluation_advance(s->run, s->rows, err);
}

static kvb_status run_chunks(side_by_side *s, kvb_error *err)
{
    kvb_status status = KVB_OK;
    for (size_t pass = s->run->options.exact ? 0 : 1; pass <= s->run->variants && status == KVB_OK; pass++)
        status = run_pass(s, pass, err);
    for (uint64_t c = 0; c < s->chunks && status == KVB_OK; c++)
        status = kvb_evaluation_close_chunk(s->run, s->first + c, err);
    return status;
}

static kvb_status run_all(kvb_evaluation *run, int gpu, kvb_error *err)
{
    const uint64_t chunks = run->input->chunks, ctx = run->input->ctx, room = ctx < MOST_TOKENS ? MOST_TOKENS / ctx : 1;
    const uint64_t most = chunks < room ? chunks : room;
    side_by_side s = {.run = run, .model = run->input->model, .gpu = gpu};
    kvb_status status = start(&s, most * ctx, err);
    for (uint64_t first = 0; first < chunks && status == KVB_OK; first += most) {
        status = take_chunks(&s, first, chunks - first < most ? chunks - first : most, err);
        if (status == KVB_OK)
            status = run_chunks(&s, err);
    }
    finish(&s);
    return status;
}
#else
static kvb_status run_all(kvb_evaluation *run, int gpu, kvb_error *err)
{
    (void)run;
    (void)gpu;
    return kvb_fail(err, KVB_E_DEVICE, "--device cuda", "this build has no CUDA");
}
#endif

kvb_status kvb_evaluate_on_device(kvb_evaluation *run, kvb_error *err)
{
    int gpu;
    kvb_status status = kvb_device_forward_gpu(run->input->model, run->options.device, &gpu, err);
    return status == KVB_OK ? run_all(run, gpu, err) : status;
}
