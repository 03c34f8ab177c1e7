#include "tools/stream_device.h"

#include "calib/device_forward.h"
#include "format/base/fail.h"

#ifdef KVB_CUDA
#include <stdlib.h>

#include "cuda/eval/cuda_lockstep.h"
#include "format/base/checked.h"
#include "format/base/rope.h"
#include "model/weights.h"

struct kvb_device_stream {
    const kvb_model *model;
    const kvb_book *book;
    kvb_cuda_forward *forward;
    kvb_cuda_lockstep *cache;
    kvb_cuda_predict *predict;
    kvb_rope_table rope;
    float *x; /* [piece][E] */
};

/* A layer that the book leaves alone would need a cache of half floats, which the GPU runtime leaves to engines. */
static kvb_status check_book(const kvb_model *model, const kvb_book *book, kvb_error *err)
{
    for (uint32_t l = 0; l < model->config.layers; l++)
        if (kvb_book_codebook(book, l, 0, KVB_KEY) == NULL)
            return kvb_fail(err, KVB_E_USAGE, "--device cuda", "layer %u has no codebooks: the GPU's cache holds coded layers only; use "
                            "--device cpu", l);
    return KVB_OK;
}

/* All weights, to stay there. */
static kvb_status send_weights(kvb_device_stream *s, kvb_error *err)
{
    kvb_weight_scratch scratch = {0};
    kvb_status status = KVB_OK;
    for (uint32_t l = 0; l < s->model->config.layers && status == KVB_OK; l++)
        status = kvb_device_send_weights(s->forward, s->model, l, &scratch, err);
    kvb_weight_scratch_free(&scratch);
    return status;
}

static kvb_status start(kvb_device_stream *s, int gpu, uint32_t piece, uint32_t positions, const kvb_policy *policy, uint64_t seed,
                        kvb_error *err)
{
    kvb_status status = kvb_rope_table_create(&s->rope, &s->model->geometry[0], 0, positions > piece ? positions : piece, err);
    if (status != KVB_OK)
        return status;
    kvb_cuda_shape shape = kvb_device_shape(s->model, &s->rope, piece, 1);
    shape.positions = positions;
    shape.handed = true;
    shape.resident = s->model->config.layers;
    s->x = kvb_alloc_array((size_t)piece * s->model->config.embedding, sizeof *s->x);
    status = s->x != NULL ? kvb_cuda_forward_create(gpu, &shape, &s->forward, err) : kvb_fail_memory(err, "generate");
    if (status == KVB_OK)
        status = send_weights(s, err);
    if (status == KVB_OK)
        status = kvb_device_predict(gpu, s->model, 1, &s->predict, err);
    return status == KVB_OK ? kvb_cuda_lockstep_create(gpu, s->book, policy, seed, 1, positions, &s->cache, err) : status;
}

kvb_status kvb_device_stream_create(const kvb_model *model, const kvb_book *book, const kvb_policy *policy, uint64_t seed, kvb_device device,
                                    uint32_t piece, uint32_t positions, kvb_device_stream **stream, kvb_error *err)
{
    int gpu;
    *stream = NULL;
    kvb_status status = kvb_device_forward_gpu(model, device, &gpu, err);
    if (status == KVB_OK)
        status = check_book(model, book, err);
    if (status != KVB_OK)
        return status;
    kvb_device_stream *s = kvb_alloc_zeroed(1, sizeof *s);
    if (s == NULL)
        return kvb_fail_memory(err, "generate");
    s->model = model;
    s->book = book;
    status = start(s, gpu, piece, positions, policy, seed, err);
    if (status == KVB_OK)
        *stream = s;
    else
        kvb_device_stream_destroy(s);
    return status;
}

void kvb_device_stream_destroy(kvb_device_stream *s)
{
    if (s == NULL)
        return;
    kvb_cuda_lockstep_destroy(s->cache);
    kvb_cuda_predict_destroy(s->predict);
    kvb_cuda_forward_destroy(s->forward);
    kvb_rope_table_free(&s->rope);
    free(s->x);
    free(s);
}

kvb_status kvb_device_stream_run(kvb_device_stream *s, const uint32_t *tokens, uint32_t count, uint32_t position, float *hidden,
                                 kvb_error *err)
{
    struct CUstream_st *stream;
    const float *x = kvb_cuda_forward_rows(s->forward, &stream);
    kvb_status status = kvb_cuda_forward_place(s->forward, position, count, err);
    if (status == KVB_OK)
        status = kvb_device_embed(s->forward, s->model, 0, tokens, count, s->x, err);
    for (uint32_t l = 0; l < s->model->config.layers && status == KVB_OK; l++)
        status = kvb_cuda_forward_layer_by(s->forward, l, kvb_cuda_lockstep_attend, s->cache, err);
    if (status == KVB_OK)
        status = kvb_cuda_lockstep_check(s->cache, stream, err);
    return status == KVB_OK ? kvb_cuda_predict_hidden(s->predict, x + (size_t)(count - 1) * s->model->config.embedding, stream, hidden, err)
                            : status;
}

kvb_status kvb_device_stream_logits(kvb_device_stream *s, const float *hidden, float *logits, kvb_error *err)
{
    struct CUstream_st *stream;
    (void)kvb_cuda_forward_rows(s->forward, &stream);
    return kvb_cuda_predict_logits(s->predict, hidden, stream, logits, err);
}
#else
kvb_status kvb_device_stream_create(const kvb_model *model, const kvb_book *book, const kvb_policy *policy, uint64_t seed, kvb_device device,
                                    uint32_t piece, uint32_t positions, kvb_device_stream **stream, kvb_error *err)
{
    (void)book, (void)policy, (void)seed, (void)piece, (void)positions;
    *stream = NULL;
    int gpu;
    return kvb_device_forward_gpu(model, device, &gpu, err);
}

void kvb_device_stream_destroy(kvb_device_stream *s)
{
    (void)s;
}

kvb_status kvb_device_stream_run(kvb_device_stream *s, const uint32_t *tokens, uint32_t count, uint32_t position, float *hidden,
                                 kvb_error *err)
{
    (void)s, (void)tokens, (void)count, (void)position, (void)hidden;
    return kvb_fail(err, KVB_E_DEVICE, "--device cuda", "this build has no CUDA");
}

kvb_status kvb_device_stream_logits(kvb_device_stream *s, const float *hidden, float *logits, kvb_error *err)
{
    (void)s, (void)hidden, (void)logits;
    return kvb_fail(err, KVB_E_DEVICE, "--device cuda", "this build has no CUDA");
}
#endif
