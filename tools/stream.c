#include "tools/stream.h"

#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "tools/stream_device.h"

/* Text goes through the layers in pieces: products of many rows at once, attention row by row. */
enum { PIECE = 64 };

static void gather(const float *heads, uint32_t count, uint32_t tokens, uint32_t token, uint32_t dim, float *row)
{
    for (uint32_t h = 0; h < count; h++)
        memcpy(row + (size_t)h * dim, heads + ((size_t)h * tokens + token) * dim, dim * sizeof *row);
}

/* Rows are one token's output, query, key and value, heads side by side. */
static kvb_status attend_token(kvb_cache *cache, const kvb_attention_call *call, uint32_t t, float *rows, float *out,
                               kvb_error *err)
{
    const kvb_layer *g = call->geometry;
    const size_t heads = (size_t)g->heads * g->head_dim;
    float *o = rows, *q = o + heads, *k = q + heads, *v = k + (size_t)g->kv_heads * g->head_dim;
    gather(call->k_pre, g->kv_heads, call->tokens, t, g->head_dim, k);
    gather(call->v, g->kv_heads, call->tokens, t, g->head_dim, v);
    gather(call->q, g->heads, call->tokens, t, g->head_dim, q);
    kvb_status status = kvb_cache_append(cache, call->layer, k, v, err);
    if (status == KVB_OK)
        status = kvb_cache_attend(cache, call->layer, q, o, err);
    for (uint32_t h = 0; h < g->heads && status == KVB_OK; h++)
        memcpy(out + ((size_t)h * call->tokens + t) * g->head_dim, o + (size_t)h * g->head_dim, g->head_dim * sizeof *out);
    return status;
}

kvb_status kvb_attend_through_cache(void *cache, const kvb_attention_call *call, float *out, kvb_error *err)
{
    const kvb_layer *g = call->geometry;
    float *rows = kvb_alloc_array(2 * (g->heads + (size_t)g->kv_heads) * g->head_dim, sizeof *rows);
    kvb_status status = rows != NULL ? KVB_OK : kvb_fail_memory(err, "attention");
    for (uint32_t t = 0; t < call->tokens && status == KVB_OK; t++)
        status = attend_token(cache, call, t, rows, out, err);
    free(rows);
    return status;
}

/* On the CPU `forward` and `cache` (borrowed); on a GPU `device` and `last`. */
struct kvb_stream {
    kvb_forward *forward;
    kvb_cache *cache;
    kvb_device_stream *device;
    float *last; /* [E] */
    uint32_t width, position;
};

kvb_status kvb_stream_create(const kvb_model *model, kvb_cache *cache, kvb_stream **stream, kvb_error *err)
{
    kvb_stream *s = kvb_alloc_zeroed(1, sizeof *s);
    *stream = NULL;
    if (s == NULL)
        return kvb_fail_memory(err, "stream");
    s->width = kvb_model_get_info(model)->embedding;
    s->cache = cache;
    s->position = (uint32_t)kvb_cache_length(cache, 0);
    kvb_status status = kvb_forward_create(model, PIECE, &s->forward, err);
    if (status == KVB_OK)
        *stream = s;
    else
        kvb_stream_destroy(s);
    return status;
}

kvb_status kvb_stream_create_on_device(const kvb_model *model, const kvb_book *book, const kvb_policy *policy, uint64_t seed,
                                       kvb_device device, uint32_t positions, kvb_stream **stream, kvb_error *err)
{
    kvb_stream *s = kvb_alloc_zeroed(1, sizeof *s);
    *stream = NULL;
    if (s == NULL)
        return kvb_fail_memory(err, "stream");
    s->width = kvb_model_get_info(model)->embedding;
    s->last = kvb_alloc_array(s->width, sizeof *s->last);
    kvb_status status = s->last != NULL
                            ? kvb_device_stream_create(model, book, policy, seed, device, PIECE, positions, &s->device, err)
                            : kvb_fail_memory(err, "stream");
    if (status == KVB_OK)
        *stream = s;
    else
        kvb_stream_destroy(s);
    return status;
}

void kvb_stream_destroy(kvb_stream *s)
{
    if (s == NULL)
        return;
    kvb_forward_destroy(s->forward);
    kvb_device_stream_destroy(s->device);
    free(s->last);
    free(s);
}

static kvb_status run_piece(kvb_stream *s, const uint32_t *tokens, uint32_t count, const float **last, kvb_error *err)
{
    const kvb_forward_hooks hooks = {.attend = kvb_attend_through_cache, .attend_user = s->cache};
    const float *hidden = NULL;
    *last = s->last;
    if (s->device != NULL)
        return kvb_device_stream_run(s->device, tokens, count, s->position, s->last, err);
    kvb_status status = kvb_forward_run(s->forward, tokens, count, s->position, &hooks, &hidden, err);
    if (status == KVB_OK)
        *last = hidden + (size_t)(count - 1) * s->width;
    return status;
}

kvb_status kvb_stream_run(kvb_stream *s, const uint32_t *tokens, size_t count, const float **last, kvb_error *err)
{
    uint32_t piece = 0;
    for (size_t done = 0; done < count; done += piece) {
        piece = count - done < PIECE ? (uint32_t)(count - done) : PIECE;
        kvb_status status = run_piece(s, tokens + done, piece, last, err);
        if (status != KVB_OK)
            return status;
        s->position += piece;
    }
    return KVB_OK;
}

kvb_status kvb_stream_logits(kvb_stream *s, const float *hidden, float *logits, kvb_error *err)
{
    if (s->device != NULL)
        return kvb_device_stream_logits(s->device, hidden, logits, err);
    kvb_forward_logits(s->forward, hidden, 1, logits);
    return KVB_OK;
}

uint32_t kvb_stream_position(const kvb_stream *s)
{
    return s->position;
}
