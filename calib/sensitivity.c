#include "calib/sensitivity.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "calib/text_gradient.h"
#include "format/base/checked.h"
#include "format/base/fail.h"

/* One token in so many, those with the largest gradients, is left out of each head. */
enum { LEFT_OUT = 50 };

struct kvb_sensitivity {
    uint32_t layers;
    const kvb_layer *layer;
    float **moment[2]; /* by kvb_kind: [layers] -> [G][D][D] */
};

typedef struct measurer {
    kvb_sensitivity *s;
    uint64_t chunk, chunks;
    const kvb_capture_options *options;
    kvb_text_gradient *gradient;
    double *sum;           /* [G][D][D] of the layer and kind at hand */
    double *norm, *sorted; /* [G][T] */
} measurer;

void kvb_sensitivity_free(kvb_sensitivity *s)
{
    if (s == NULL)
        return;
    for (int kind = 0; kind < 2; kind++) {
        for (uint32_t l = 0; s->moment[kind] != NULL && l < s->layers; l++)
            free(s->moment[kind][l]);
        free(s->moment[kind]);
    }
    free(s);
}

const float *kvb_sensitivity_get(const kvb_sensitivity *s, uint32_t layer, kvb_kind kind)
{
    return s->moment[kind][layer];
}

static kvb_status create_result(const kvb_model_info *info, kvb_sensitivity **out, kvb_error *err)
{
    kvb_sensitivity *s = kvb_alloc_zeroed(1, sizeof *s);
    bool good = s != NULL;
    *out = s;
    if (good)
        *s = (kvb_sensitivity){.layers = info->layers, .layer = info->layer};
    for (int kind = 0; good && kind < 2; kind++) {
        s->moment[kind] = kvb_alloc_zeroed(s->layers, sizeof *s->moment[kind]);
        good = s->moment[kind] != NULL;
        for (uint32_t l = 0; good && l < s->layers; l++) {
            const size_t dim = info->layer[l].head_dim;
            s->moment[kind][l] = kvb_alloc_zeroed(info->layer[l].kv_heads * dim, dim * sizeof(float));
            good = s->moment[kind][l] != NULL;
        }
    }
    return good ? KVB_OK : kvb_fail_memory(err, "sensitivities");
}

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* sum of g g^T [D][D] over the head's tokens but for those with the largest |g|, and those whose gradient is not finite. */
static void add_head(const measurer *m, const float *gradient, uint32_t head, uint32_t tokens, uint32_t dim, double *sum)
{
    double *norm = m->norm + (size_t)head * tokens, *sorted = m->sorted + (size_t)head * tokens;
    for (uint32_t j = 0; j < tokens; j++) {
        norm[j] = 0.0;
        for (uint32_t c = 0; c < dim; c++)
            norm[j] += (double)gradient[(size_t)j * dim + c] * (double)gradient[(size_t)j * dim + c];
        if (!isfinite(norm[j]))
            norm[j] = INFINITY;
    }
    memcpy(sorted, norm, tokens * sizeof *norm);
    qsort(sorted, tokens, sizeof *sorted, compare_doubles);
    const double most = sorted[tokens - 1 - tokens / LEFT_OUT];
    for (uint32_t j = 0; j < tokens; j++) {
        const float *g = gradient + (size_t)j * dim;
        if (norm[j] > most || !isfinite(norm[j]))
            continue;
        for (uint32_t a = 0; a < dim; a++)
            for (uint32_t b = 0; b <= a; b++)
                sum[(size_t)a * dim + b] += (double)g[a] * (double)g[b];
    }
}

/* Adds one kind of the layer's gradients [G][T][D] to its moments. */
static void add_layer(measurer *m, const kvb_attention_call *call, kvb_kind kind, const float *gradient)
{
    const uint32_t heads = call->geometry->kv_heads, dim = call->geometry->head_dim, tokens = call->tokens;
    const size_t square = (size_t)dim * dim;
    const double share = 1.0 / ((double)tokens * (double)m->chunks);
    memset(m->sum, 0, heads * square * sizeof *m->sum);
#pragma omp parallel for schedule(dynamic, 1)
    for (uint32_t g = 0; g < heads; g++)
        add_head(m, gradient + (size_t)g * tokens * dim, g, tokens, dim, m->sum + g * square);
    float *moment = m->s->moment[kind][call->layer];
    for (uint32_t g = 0; g < heads; g++)
        for (uint32_t a = 0; a < dim; a++)
            for (uint32_t b = 0; b < dim; b++) {
                const size_t at = a > b ? (size_t)a * dim + b : (size_t)b * dim + a;
                moment[g * square + (size_t)a * dim + b] += (float)(share * m->sum[g * square + at]);
            }
}

static kvb_status go_on(const measurer *m, kvb_error *err)
{
    const kvb_capture_options *o = m->options;
    if (o->progress == NULL || o->progress(o->progress_user, "sensitivity", m->chunk, m->chunks) == 0)
        return KVB_OK;
    return kvb_fail(err, KVB_E_CANCELLED, "sensitivity", "stopped at chunk %" PRIu64 " of %" PRIu64, m->chunk, m->chunks);
}

/* A chunk takes seconds: whoever wants to stop is asked after every layer. */
static kvb_status see(void *user, const kvb_attention_call *call, const float *d_keys, const float *d_values, kvb_error *err)
{
    measurer *m = user;
    kvb_status status = go_on(m, err);
    if (status != KVB_OK)
        return status;
    add_layer(m, call, KVB_KEY, d_keys);
    add_layer(m, call, KVB_VALUE, d_values);
    return KVB_OK;
}

static kvb_status create(measurer *m, const kvb_model *model, const kvb_capture_options *options, kvb_error *err)
{
    const kvb_model_info *info = kvb_model_get_info(model);
    size_t squares = 0, keys = 0;
    for (uint32_t l = 0; l < info->layers; l++) {
        const size_t heads = info->layer[l].kv_heads, dim = info->layer[l].head_dim;
        squares = heads * dim * dim > squares ? heads * dim * dim : squares;
        keys = heads * options->ctx > keys ? heads * options->ctx : keys;
    }
    m->sum = kvb_alloc_array(squares, sizeof *m->sum);
    m->norm = kvb_alloc_array(keys, sizeof *m->norm);
    m->sorted = kvb_alloc_array(keys, sizeof *m->sorted);
    if (m->sum == NULL || m->norm == NULL || m->sorted == NULL)
        return kvb_fail_memory(err, "sensitivities");
    return kvb_text_gradient_create(model, options, KVB_TARGET_DRAWN, KVB_SENSITIVITY_WINDOW, &m->gradient, err);
}

static void destroy(measurer *m)
{
    kvb_text_gradient_destroy(m->gradient);
    free(m->sum);
    free(m->norm);
    free(m->sorted);
}

kvb_status kvb_sensitivity_measure(const kvb_model *model, const kvb_text *text, const kvb_capture_options *options,
                                   uint64_t chunks, kvb_sensitivity **sensitivity, kvb_error *err)
{
    measurer m = {.chunks = chunks, .options = options};
    kvb_status status = create_result(kvb_model_get_info(model), &m.s, err);
    if (status == KVB_OK)
        status = create(&m, model, options, err);
    for (; status == KVB_OK && m.chunk < chunks; m.chunk++) {
        status = go_on(&m, err);
        if (status == KVB_OK)
            status = kvb_text_gradient_run(m.gradient, text, m.chunk, see, &m, err);
    }
    if (status == KVB_OK && options->progress != NULL)
        (void)options->progress(options->progress_user, "sensitivity", chunks, chunks);
    destroy(&m);
    if (status != KVB_OK) {
        kvb_sensitivity_free(m.s);
        m.s = NULL;
    }
    *sensitivity = m.s;
    return status;
}
