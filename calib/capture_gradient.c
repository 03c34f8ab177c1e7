#include "calib/capture_gradient.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "calib/capture_rows.h"
#include "calib/text_gradient.h"
#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/half.h"

typedef struct writer {
    const kvb_capture_gradient_job *job;
    uint64_t chunk;
    uint32_t *position; /* [keep] */
    float *row;         /* [D] */
    uint16_t *half;     /* [keep][D] */
} writer;

/* Zeros for a gradient that is not finite; it saturates as keys and values do. */
static void scale_row(const float *from, uint32_t dim, float *row)
{
    bool finite = true;
    for (uint32_t c = 0; c < dim; c++) {
        finite = finite && isfinite(from[c]);
        row[c] = from[c] * KVB_CAPTURE_GRADIENT_SCALE;
    }
    if (!finite)
        memset(row, 0, dim * sizeof *row);
}

static kvb_status write_head(writer *w, const kvb_attention_call *call, uint32_t head, kvb_kvc_part part,
                             const float *gradient, kvb_error *err)
{
    const kvb_capture_gradient_job *j = w->job;
    const uint32_t dim = call->geometry->head_dim;
    for (uint32_t i = 0; i < j->keep; i++) {
        scale_row(gradient + ((size_t)head * call->tokens + w->position[i]) * dim, dim, w->row);
        kvb_half_from_floats(w->half + (size_t)i * dim, w->row, dim);
    }
    const uint64_t row = head * j->layout->rows + w->chunk * j->keep;
    return kvb_sink_write(j->sink, kvb_kvc_offset(j->layout, call->layer, part) + row * dim * sizeof(uint16_t), w->half,
                          (size_t)j->keep * dim * sizeof(uint16_t), err);
}

static kvb_status see(void *user, const kvb_attention_call *call, const float *d_keys, const float *d_values, kvb_error *err)
{
    writer *w = user;
    kvb_status status = KVB_OK;
    for (uint32_t head = 0; !kvb_kvc_is_empty(call->geometry) && status == KVB_OK && head < call->geometry->kv_heads; head++) {
        status = write_head(w, call, head, KVB_KVC_GRADIENT_K, d_keys, err);
        if (status == KVB_OK)
            status = write_head(w, call, head, KVB_KVC_GRADIENT_V, d_values, err);
    }
    return status;
}

static kvb_status run_chunks(writer *w, kvb_text_gradient *gradient, kvb_error *err)
{
    const kvb_capture_gradient_job *j = w->job;
    const kvb_capture_options *o = j->options;
    for (; w->chunk < j->chunks; w->chunk++) {
        if (o->progress != NULL && o->progress(o->progress_user, "gradients", w->chunk, j->chunks) != 0)
            return kvb_fail(err, KVB_E_CANCELLED, "gradients", "stopped at chunk %" PRIu64 " of %" PRIu64, w->chunk, j->chunks);
        kvb_capture_rows_draw(o->seed, o->skip + w->chunk, o->ctx, j->keep, w->position);
        kvb_status status = kvb_text_gradient_run(gradient, j->text, w->chunk, see, w, err);
        if (status != KVB_OK)
            return status;
    }
    if (o->progress != NULL)
        (void)o->progress(o->progress_user, "gradients", j->chunks, j->chunks);
    return KVB_OK;
}

kvb_status kvb_capture_gradients(const kvb_capture_gradient_job *job, kvb_error *err)
{
    writer w = {.job = job};
    kvb_text_gradient *gradient = NULL;
    size_t dim = 0;
    for (uint32_t l = 0; l < job->layout->layers; l++)
        dim = job->layout->layer[l].head_dim > dim ? job->layout->layer[l].head_dim : dim;
    w.position = kvb_alloc_array(job->keep, sizeof *w.position);
    w.row = kvb_alloc_array(dim, sizeof *w.row);
    w.half = kvb_alloc_array(job->keep * dim, sizeof *w.half);
    kvb_status status = w.position != NULL && w.row != NULL && w.half != NULL
                            ? kvb_text_gradient_create(job->model, job->options, KVB_TARGET_NEXT, 0, &gradient, err)
                            : kvb_fail_memory(err, "gradients of the text");
    if (status == KVB_OK)
        status = run_chunks(&w, gradient, err);
    kvb_text_gradient_destroy(gradient);
    free(w.position);
    free(w.row);
    free(w.half);
    return status;
}
