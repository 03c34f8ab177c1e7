#include "calib/capture_queries.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "calib/capture_rows.h"
#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/half.h"

typedef struct writer {
    const kvb_capture_queries_job *job;
    uint32_t keep;
    uint32_t *tokens, *position; /* [ctx], [keep] */
    uint16_t *half;              /* [keep][D] */
} writer;

static void put_row(const float *q, uint32_t dim, uint16_t *half)
{
    bool finite = true;
    for (uint32_t c = 0; c < dim; c++)
        finite = finite && isfinite(q[c]);
    if (finite)
        kvb_half_from_floats(half, q, dim);
    else
        memset(half, 0, dim * sizeof *half);
}

static kvb_status observe(void *user, const kvb_attention_call *call, const float *out, const float *lse, kvb_error *err)
{
    writer *w = user;
    const kvb_capture_queries_job *j = w->job;
    const uint32_t dim = call->geometry->head_dim;
    const size_t size = (size_t)w->keep * dim * sizeof *w->half;
    kvb_status status = KVB_OK;
    (void)out;
    (void)lse;
    for (uint32_t head = 0; !kvb_kvc_is_empty(call->geometry) && status == KVB_OK && head < call->geometry->heads; head++) {
        for (uint32_t i = 0; i < w->keep; i++)
            put_row(call->q + ((size_t)head * call->tokens + w->position[i]) * dim, dim, w->half + (size_t)i * dim);
        status = kvb_sink_write(j->sink, kvb_kvc_offset(j->layout, call->layer, KVB_KVC_QUERIES) + head * size, w->half, size, err);
    }
    return status;
}

static kvb_status run(writer *w, kvb_error *err)
{
    const kvb_capture_queries_job *j = w->job;
    const kvb_capture_options *o = j->options;
    const kvb_forward_hooks hooks = {.observe = observe, .observe_user = w};
    const float *hidden;
    kvb_forward *forward = NULL;
    kvb_status status = kvb_forward_create(j->model, o->ctx, &forward, err);
    if (status == KVB_OK) {
        kvb_capture_rows_draw(o->seed, o->skip, o->ctx, w->keep, w->position);
        kvb_text_chunk(j->text, o->ctx, o->skip, 0, o->bos, w->tokens);
        status = kvb_forward_run(forward, w->tokens, o->ctx, 0, &hooks, &hidden, err);
    }
    kvb_forward_destroy(forward);
    return status;
}

kvb_status kvb_capture_queries(const kvb_capture_queries_job *job, kvb_error *err)
{
    writer w = {.job = job, .keep = (uint32_t)job->layout->query_rows};
    size_t dim = 0;
    for (uint32_t l = 0; l < job->layout->layers; l++)
        dim = job->layout->layer[l].head_dim > dim ? job->layout->layer[l].head_dim : dim;
    w.tokens = kvb_alloc_array(job->options->ctx, sizeof *w.tokens);
    w.position = kvb_alloc_array(w.keep, sizeof *w.position);
    w.half = kvb_alloc_array(w.keep * dim, sizeof *w.half);
    const bool memory = w.tokens != NULL && w.position != NULL && w.half != NULL;
    kvb_status status = memory ? run(&w, err) : kvb_fail_memory(err, "queries of the text");
    free(w.tokens);
    free(w.position);
    free(w.half);
    return status;
}
