#include "calib/capture_device.h"

#include "format/base/fail.h"

#ifdef KVB_CUDA
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calib/capture_rows.h"
#include "cuda/calib/cuda_forward.h"
#include "format/base/checked.h"
#include "format/base/rope.h"
#include "model/weights.h"

enum { DEVICE = 0, HALF_MAGNITUDE = 0x7fff, HALF_MOST = 0x7bff };

typedef struct device_run {
    const kvb_capture_device_job *job;
    const kvb_model_config *config;
    const kvb_layer *g; /* of every layer */
    size_t ctx, rows;   /* rows: chunks * ctx, of the forward pass */
    kvb_cuda_forward *forward;
    kvb_rope_table rope;
    uint32_t *position;  /* [chunks][keep] */
    uint32_t *drawn;     /* [chunks][ctx] */
    float *weights[4];   /* matrices that are not resident */
    kvb_cuda_seen seen;
    uint16_t *half;      /* [chunks * keep][D] */
    float *row_weight;   /* [chunks * keep] */
    kvb_exact *sums;     /* [2][G][D(D+1)/2] */
    uint64_t *queries;   /* [G] */
} device_run;

static void run_free(device_run *r)
{
    kvb_cuda_forward_destroy(r->forward);
    kvb_rope_table_free(&r->rope);
    for (int i = 0; i < 4; i++)
        free(r->weights[i]);
    free(r->position);
    free(r->drawn);
    free(r->seen.keys);
    free(r->seen.values);
    free(r->seen.bad_keys);
    free(r->seen.bad_values);
    free(r->seen.weight_k);
    free(r->seen.weight_v);
    free(r->seen.moment);
    free(r->seen.bad_queries);
    free(r->half);
    free(r->row_weight);
    free(r->sums);
    free(r->queries);
}

static bool allocate(device_run *r)
{
    const size_t heads = r->g->kv_heads, dim = r->g->head_dim, all = heads * r->rows, kept = r->job->chunks * r->job->keep;
    r->position = kvb_alloc_array(kept, sizeof *r->position);
    r->drawn = kvb_alloc_array(r->rows, sizeof *r->drawn);
    r->seen.keys = kvb_alloc_array(all, dim * sizeof *r->seen.keys);
    r->seen.values = kvb_alloc_array(all, dim * sizeof *r->seen.values);
    r->seen.bad_keys = kvb_alloc_array(all, 1);
    r->seen.bad_values = kvb_alloc_array(all, 1);
    r->seen.weight_k = kvb_alloc_array(all, sizeof *r->seen.weight_k);
    r->seen.weight_v = kvb_alloc_array(all, sizeof *r->seen.weight_v);
    r->seen.moment = kvb_alloc_array(2 * heads * dim, dim * sizeof *r->seen.moment);
    r->seen.bad_queries = kvb_alloc_array(r->g->heads, sizeof *r->seen.bad_queries);
    r->half = kvb_alloc_array(kept, dim * sizeof *r->half);
    r->row_weight = kvb_alloc_array(kept, sizeof *r->row_weight);
    r->sums = kvb_alloc_array(2 * heads * kvb_triangle(dim), sizeof *r->sums);
    r->queries = kvb_alloc_array(heads, sizeof *r->queries);
    return r->position && r->drawn && r->seen.keys && r->seen.values && r->seen.bad_keys && r->seen.bad_values &&
           r->seen.weight_k && r->seen.weight_v && r->seen.moment && r->seen.bad_queries && r->half && r->row_weight && r->sums &&
           r->queries;
}

/* Rows that are kept, where they came from, and the positions that queries are turned back by. */
static kvb_status choose_places(device_run *r, kvb_error *err)
{
    const kvb_capture_device_job *j = r->job;
    const uint32_t window = r->g->kind == KVB_LAYER_SLIDING ? r->g->sliding_window : 0;
    kvb_status status = KVB_OK;
    uint32_t *number = kvb_alloc_array(j->keep, sizeof *number);
    if (number == NULL)
        return kvb_fail_memory(err, "capture");
    for (uint64_t c = 0; c < j->chunks && status == KVB_OK; c++) {
        const uint64_t chunk = j->options->skip + c, at = c * j->keep * sizeof(uint32_t);
        uint32_t *position = r->position + c * j->keep;
        kvb_capture_rows_draw(j->options->seed, chunk, j->options->ctx, j->keep, position);
        for (uint32_t i = 0; i < j->keep; i++)
            number[i] = (uint32_t)chunk;
        kvb_observer_begin_chunk(j->observer, chunk);
        for (uint32_t p = 0; p < r->ctx; p++)
            r->drawn[c * r->ctx + p] = kvb_observer_draw(j->observer, p, window);
        status = kvb_sink_write(j->sink, j->layout->row_chunk + at, number, j->keep * sizeof *number, err);
        if (status == KVB_OK)
            status = kvb_sink_write(j->sink, j->layout->row_position + at, position, j->keep * sizeof *position, err);
    }
    free(number);
    return status;
}

static kvb_status start_forward(device_run *r, kvb_error *err)
{
    kvb_status status = kvb_rope_table_create(&r->rope, r->g, 0, (uint32_t)r->ctx, err);
    if (status != KVB_OK)
        return status;
    const kvb_cuda_shape shape = {
        .embedding = r->config->embedding, .ffn = r->config->ffn, .norm_epsilon = r->config->norm_epsilon, .geometry = *r->g,
        .ctx = (uint32_t)r->ctx, .sequences = r->job->chunks, .cosine = r->rope.cosine, .sine = r->rope.sine, .drawn = r->drawn,
    };
    return kvb_cuda_forward_create(DEVICE, &shape, &r->forward, err);
}

static kvb_status embed(device_run *r, kvb_error *err)
{
    const kvb_capture_options *o = r->job->options;
    const size_t width = r->config->embedding;
    const kvb_tensor *e = r->job->model->embedding.part[0];
    kvb_status status = KVB_OK;
    uint32_t *tokens = kvb_alloc_array(r->ctx, sizeof *tokens);
    float *x = kvb_alloc_array(r->ctx, width * sizeof *x);
    if (tokens == NULL || x == NULL)
        status = kvb_fail_memory(err, "embeddings");
    for (uint64_t c = 0; c < r->job->chunks && status == KVB_OK; c++) {
        kvb_text_chunk(r->job->text, o->ctx, o->skip, c, o->bos, tokens);
        for (size_t t = 0; t < r->ctx && status == KVB_OK; t++)
            if (tokens[t] >= r->config->vocab)
                status = kvb_fail(err, KVB_E_USAGE, "forward pass", "token %zu is id %u of a vocabulary of %u", t, tokens[t],
                                  r->config->vocab);
        if (status != KVB_OK)
            break;
#pragma omp parallel for schedule(static)
        for (size_t t = 0; t < r->ctx; t++)
            kvb_dequantise(e, tokens[t] * width, width, x + t * width);
        status = kvb_cuda_forward_put(r->forward, c, x, err);
    }
    free(tokens);
    free(x);
    return status;
}

/* The matrix as float32; scratch is made when first needed and serves the same matrix of every layer. */
static const float *floats_of(const kvb_weight *w, float **scratch)
{
    if (w->resident == NULL && *scratch == NULL)
        *scratch = kvb_alloc_array(w->rows * w->cols, sizeof **scratch);
    return w->resident == NULL && *scratch == NULL ? NULL : kvb_weight_floats(w, *scratch);
}

static kvb_status run_layer(device_run *r, uint32_t layer, kvb_error *err)
{
    const kvb_layer_weights *w = &r->job->model->layer[layer];
    const kvb_cuda_weights weights = {
        .qkv = floats_of(&w->qkv, &r->weights[0]), .out = floats_of(&w->out, &r->weights[1]),
        .gate_up = floats_of(&w->gate_up, &r->weights[2]), .down = floats_of(&w->down, &r->weights[3]),
        .attention_norm = w->attention_norm, .ffn_norm = w->ffn_norm,
    };
    if (weights.qkv == NULL || weights.out == NULL || weights.gate_up == NULL || weights.down == NULL)
        return kvb_fail_memory(err, "weights of a layer");
    const bool empty = kvb_kvc_is_empty(&r->job->layout->layer[layer]);
    return kvb_cuda_forward_layer(r->forward, &weights, empty ? NULL : &r->seen, err);
}

static kvb_status refuse_row(const device_run *r, uint32_t layer, uint32_t head, size_t row, const char *what, kvb_error *err)
{
    char where[256];
    snprintf(where, sizeof where, "%.120s: layer %u, KV head %u, chunk %" PRIu64 ", token %zu",
             kvb_model_get_info(r->job->model)->path, layer, head, r->job->options->skip + row / r->ctx, row % r->ctx);
    return kvb_fail(err, KVB_E_CHECK, where,
                    "the %s there holds a NaN or infinity; expected finite numbers. Check the model file, or let the run count "
                    "and leave out such rows (--on-nan quarantine)",
                    what);
}

/* Marks in bad_keys the rows of a head whose key, value or weights are not finite, or fails at the first. */
static kvb_status find_bad(device_run *r, uint32_t layer, uint32_t head, kvb_error *err)
{
    static const char *const what[] = {"key", "value", "token weight"};
    const size_t first = head * r->rows;
    for (int pass = 0; pass < 3; pass++)
        for (size_t i = 0; i < r->rows; i++) {
            const bool bad = pass == 0   ? r->seen.bad_keys[first + i]
                             : pass == 1 ? r->seen.bad_values[first + i]
                                         : !isfinite(r->seen.weight_k[first + i]) || !isfinite(r->seen.weight_v[first + i]);
            if (bad && r->job->options->stop_on_nan)
                return refuse_row(r, layer, head, i, what[pass], err);
            r->seen.bad_keys[first + i] |= bad;
        }
    return KVB_OK;
}

/* The row of the forward pass that kept row i is. */
static size_t row_of(const device_run *r, size_t i)
{
    return i / r->job->keep * r->ctx + r->position[i];
}

static kvb_status write_rows(device_run *r, uint32_t layer, uint32_t head, kvb_kvc_part part, kvb_error *err)
{
    const size_t dim = r->g->head_dim, kept = r->job->chunks * r->job->keep, first = head * r->rows;
    const bool keys = part == KVB_KVC_KEYS;
    const uint16_t *from = (keys ? r->seen.keys : r->seen.values) + first * dim;
    const bool saturated = (keys ? r->seen.saturated_keys : r->seen.saturated_values) != 0;
    uint64_t most = 0;
#pragma omp parallel for schedule(static) reduction(+ : most)
    for (size_t i = 0; i < kept; i++) {
        const size_t row = row_of(r, i);
        if (r->seen.bad_keys[first + row]) {
            memset(r->half + i * dim, 0, dim * sizeof *r->half);
            continue;
        }
        memcpy(r->half + i * dim, from + row * dim, dim * sizeof *r->half);
        for (size_t c = 0; saturated && c < dim; c++)
            most += (r->half[i * dim + c] & HALF_MAGNITUDE) == HALF_MOST;
    }
    r->job->counts->saturated += most;
    return kvb_sink_write(r->job->sink, kvb_kvc_offset(r->job->layout, layer, part) + head * kept * dim * sizeof *r->half, r->half,
                          kept * dim * sizeof *r->half, err);
}

static kvb_status write_weights(device_run *r, uint32_t layer, uint32_t head, kvb_kvc_part part, kvb_error *err)
{
    const size_t kept = r->job->chunks * r->job->keep, first = head * r->rows;
    const float *from = (part == KVB_KVC_WEIGHT_K ? r->seen.weight_k : r->seen.weight_v) + first;
    for (size_t i = 0; i < kept; i++)
        r->row_weight[i] = r->seen.bad_keys[first + row_of(r, i)] ? 0.0f : from[row_of(r, i)];
    return kvb_sink_write(r->job->sink, kvb_kvc_offset(r->job->layout, layer, part) + head * kept * sizeof *r->row_weight,
                          r->row_weight, kept * sizeof *r->row_weight, err);
}

static kvb_status write_head(device_run *r, uint32_t layer, uint32_t head, kvb_error *err)
{
    kvb_status status = find_bad(r, layer, head, err);
    for (size_t i = 0; status == KVB_OK && i < r->job->chunks * r->job->keep; i++)
        r->job->counts->quarantined += r->seen.bad_keys[head * r->rows + row_of(r, i)];
    if (status == KVB_OK)
        status = write_rows(r, layer, head, KVB_KVC_KEYS, err);
    if (status == KVB_OK)
        status = write_rows(r, layer, head, KVB_KVC_VALUES, err);
    if (status == KVB_OK)
        status = write_weights(r, layer, head, KVB_KVC_WEIGHT_K, err);
    if (status == KVB_OK)
        status = write_weights(r, layer, head, KVB_KVC_WEIGHT_V, err);
    return status;
}

/* Sums of a whole run: parts of it add up to the same but for the rounding of each. */
static kvb_status write_moments(device_run *r, uint32_t layer, kvb_error *err)
{
    const size_t dim = r->g->head_dim, square = dim * dim, heads = r->g->kv_heads, group = r->g->heads / heads;
    memset(r->sums, 0, 2 * heads * kvb_triangle(dim) * sizeof *r->sums);
    for (size_t i = 0; i < 2 * heads; i++)
        kvb_query_sums_add(r->sums + i * kvb_triangle(dim), r->seen.moment + i * square, r->g->head_dim);
    for (size_t head = 0; head < heads; head++) {
        r->queries[head] = group * r->rows;
        for (size_t h = head * group; h < (head + 1) * group; h++) {
            r->queries[head] -= r->seen.bad_queries[h];
            r->job->counts->bad_queries += r->seen.bad_queries[h];
        }
    }
    return kvb_sink_write_moments(r->job->sink, layer, r->sums, r->queries, err);
}

static kvb_status run_layers(device_run *r, kvb_error *err)
{
    const kvb_capture_options *o = r->job->options;
    kvb_status status = KVB_OK;
    for (uint32_t l = 0; l < r->config->layers && status == KVB_OK; l++) {
        if (o->progress != NULL && o->progress(o->progress_user, "capture", l, r->config->layers) != 0)
            return kvb_fail(err, KVB_E_CANCELLED, "capture", "stopped at layer %u of %u", l, r->config->layers);
        status = run_layer(r, l, err);
        if (status != KVB_OK || kvb_kvc_is_empty(&r->job->layout->layer[l]))
            continue;
        for (uint32_t head = 0; head < r->g->kv_heads && status == KVB_OK; head++)
            status = write_head(r, l, head, err);
        if (status == KVB_OK)
            status = write_moments(r, l, err);
    }
    if (status == KVB_OK && o->progress != NULL)
        (void)o->progress(o->progress_user, "capture", r->config->layers, r->config->layers);
    return status;
}

kvb_status kvb_capture_on_device(const kvb_capture_device_job *job, kvb_error *err)
{
    const kvb_model_config *config = &job->model->config;
    device_run r = {.job = job, .config = config, .g = &config->geometry, .ctx = job->options->ctx,
                    .rows = job->chunks * job->options->ctx};
    kvb_status status = allocate(&r) ? KVB_OK : kvb_fail_memory(err, "capture");
    if (status == KVB_OK)
        status = choose_places(&r, err);
    if (status == KVB_OK)
        status = start_forward(&r, err);
    if (status == KVB_OK)
        status = embed(&r, err);
    if (status == KVB_OK)
        status = run_layers(&r, err);
    run_free(&r);
    return status;
}
#else
kvb_status kvb_capture_on_device(const kvb_capture_device_job *job, kvb_error *err)
{
    (void)job;
    return kvb_fail(err, KVB_E_DEVICE, "--device cuda", "this build has no CUDA");
}
#endif
