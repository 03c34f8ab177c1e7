#include "calib/capture.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calib/capture_device.h"
#include "calib/capture_gradient.h"
#include "calib/capture_meta.h"
#include "calib/capture_queries.h"
#include "calib/capture_rows.h"
#include "calib/capture_sink.h"
#include "calib/device_forward.h"
#include "calib/observe.h"
#include "calib/sensitivity.h"
#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/half.h"

/* A run from its first chunk to its last. */
typedef struct capture_run {
    const kvb_model *model;
    const kvb_text *text;
    const kvb_capture_options *options;
    const kvb_layer *layer;
    uint32_t layers;
    uint64_t chunks, chunk; /* how many; the current one */
    uint32_t keep;          /* rows of a chunk */
    kvb_kvc_layout layout;
    kvb_capture_sink *sink;
    kvb_observer *observer;
    kvb_forward *forward;
    uint32_t *tokens;       /* [ctx] */
    uint32_t *position;     /* [keep] rows of this chunk */
    uint32_t *chunk_number; /* [keep] */
    uint16_t *row_half;     /* [keep][D] */
    float *row_weight;      /* [keep] */
    bool *bad;              /* [ctx] of the head at hand */
    kvb_capture_counts counts;
} capture_run;

/* The call at hand and what was seen of it. */
typedef struct head_view {
    const kvb_attention_call *call;
    const kvb_observed *observed;
    uint32_t head;
} head_view;

/* Magnitudes as bit patterns, which order as the numbers do: one pass tells NaN, infinity and saturation. */
enum { INFINITY_BITS = 0x7f800000, HALF_MOST_BITS = 0x477fe000 /* 65504 */ };

static uint32_t magnitude_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits & 0x7fffffff;
}

static uint32_t largest_bits(const float *x, uint32_t n)
{
    uint32_t most = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t bits = magnitude_bits(x[i]);
        most = bits > most ? bits : most;
    }
    return most;
}

static bool row_is_finite(const float *x, uint32_t n)
{
    return largest_bits(x, n) < INFINITY_BITS;
}

static uint64_t count_saturated(const float *x, uint32_t n)
{
    uint64_t count = 0;
    if (largest_bits(x, n) <= HALF_MOST_BITS)
        return 0;
    for (uint32_t i = 0; i < n; i++)
        count += magnitude_bits(x[i]) > HALF_MOST_BITS;
    return count;
}

static kvb_status refuse_value(const capture_run *r, const head_view *v, const char *what, uint32_t position,
                               kvb_error *err)
{
    char where[256];
    snprintf(where, sizeof where, "%.120s: layer %u, KV head %u, chunk %" PRIu64 ", token %u",
             kvb_model_get_info(r->model)->path, v->call->layer, v->head, r->options->skip + r->chunk, position);
    return kvb_fail(err, KVB_E_CHECK, where,
                    "the %s there holds a NaN or infinity; expected finite numbers. Check the model file, or let the "
                    "run count and leave out such rows (--on-nan quarantine)",
                    what);
}

/* Marks the tokens whose key, value or weights are not finite, or fails at the first. Keys and values come first: one
 * bad value spoils the weights of all tokens before it. */
static kvb_status find_bad(capture_run *r, const head_view *v, kvb_error *err)
{
    uint32_t tokens = v->call->tokens, dim = v->call->geometry->head_dim;
    size_t first = (size_t)v->head * tokens;
    for (int pass = 0; pass < 3; pass++)
        for (uint32_t i = 0; i < tokens; i++) {
            size_t row = first + i;
            bool good = pass == 0   ? row_is_finite(v->call->k_pre + row * dim, dim)
                        : pass == 1 ? row_is_finite(v->call->v + row * dim, dim)
                                    : isfinite(v->observed->weight_k[row]) && isfinite(v->observed->weight_v[row]);
            if (!good && r->options->stop_on_nan)
                return refuse_value(r, v, pass == 0 ? "key" : pass == 1 ? "value" : "token weight", i, err);
            r->bad[i] = (pass != 0 && r->bad[i]) || !good;
        }
    return KVB_OK;
}

/* Kept rows of one head's keys or values as half floats. */
static kvb_status write_rows(capture_run *r, const head_view *v, kvb_kvc_part part, kvb_error *err)
{
    const kvb_attention_call *call = v->call;
    uint32_t dim = call->geometry->head_dim;
    const float *x = (part == KVB_KVC_KEYS ? call->k_pre : call->v) + (size_t)v->head * call->tokens * dim;
    for (uint32_t i = 0; i < r->keep; i++) {
        const float *row = x + (size_t)r->position[i] * dim;
        uint16_t *half = r->row_half + (size_t)i * dim;
        if (r->bad[r->position[i]]) {
            memset(half, 0, dim * sizeof *half);
            continue;
        }
        r->counts.saturated += count_saturated(row, dim);
        kvb_half_from_floats(half, row, dim);
    }
    uint64_t row = v->head * r->layout.rows + r->chunk * r->keep;
    return kvb_sink_write(r->sink, kvb_kvc_offset(&r->layout, call->layer, part) + row * dim * sizeof(uint16_t),
                          r->row_half, (size_t)r->keep * dim * sizeof(uint16_t), err);
}

static kvb_status write_weights(capture_run *r, const head_view *v, kvb_kvc_part part, kvb_error *err)
{
    const float *weight = part == KVB_KVC_WEIGHT_K ? v->observed->weight_k : v->observed->weight_v;
    for (uint32_t i = 0; i < r->keep; i++) {
        uint32_t p = r->position[i];
        r->row_weight[i] = r->bad[p] ? 0.0f : weight[(size_t)v->head * v->call->tokens + p];
    }
    uint64_t row = v->head * r->layout.rows + r->chunk * r->keep;
    return kvb_sink_write(r->sink, kvb_kvc_offset(&r->layout, v->call->layer, part) + row * sizeof(float),
                          r->row_weight, r->keep * sizeof(float), err);
}

static kvb_status keep_head(capture_run *r, const head_view *v, kvb_error *err)
{
    kvb_status status = find_bad(r, v, err);
    for (uint32_t i = 0; status == KVB_OK && i < r->keep; i++)
        r->counts.quarantined += r->bad[r->position[i]];
    if (status == KVB_OK)
        status = write_rows(r, v, KVB_KVC_KEYS, err);
    if (status == KVB_OK)
        status = write_rows(r, v, KVB_KVC_VALUES, err);
    if (status == KVB_OK)
        status = write_weights(r, v, KVB_KVC_WEIGHT_K, err);
    if (status == KVB_OK)
        status = write_weights(r, v, KVB_KVC_WEIGHT_V, err);
    return status;
}

static kvb_status observe(void *user, const kvb_attention_call *call, const float *out, const float *lse,
                          kvb_error *err)
{
    capture_run *r = user;
    kvb_observed observed;
    if (kvb_kvc_is_empty(call->geometry))
        return KVB_OK;
    kvb_status status = kvb_observer_see(r->observer, call, out, lse, &observed, err);
    if (status != KVB_OK)
        return status;
    r->counts.bad_queries += observed.bad_queries;
    for (uint32_t g = 0; status == KVB_OK && g < call->geometry->kv_heads; g++)
        status = keep_head(r, &(head_view){call, &observed, g}, err);
    return status;
}

/* Where the kept rows of the chunk came from. */
static kvb_status write_places(capture_run *r, kvb_error *err)
{
    uint64_t number = r->options->skip + r->chunk, at = r->chunk * r->keep * sizeof(uint32_t);
    size_t size = r->keep * sizeof(uint32_t);
    kvb_capture_rows_draw(r->options->seed, number, r->options->ctx, r->keep, r->position);
    for (uint32_t i = 0; i < r->keep; i++)
        r->chunk_number[i] = (uint32_t)number;
    kvb_status status = kvb_sink_write(r->sink, r->layout.row_chunk + at, r->chunk_number, size, err);
    return status == KVB_OK ? kvb_sink_write(r->sink, r->layout.row_position + at, r->position, size, err) : status;
}

static kvb_status run_chunk(capture_run *r, kvb_error *err)
{
    const kvb_capture_options *o = r->options;
    const float *hidden;
    kvb_forward_hooks hooks = {.observe = observe, .observe_user = r};
    kvb_text_chunk(r->text, o->ctx, o->skip, r->chunk, o->bos, r->tokens);
    kvb_observer_begin_chunk(r->observer, o->skip + r->chunk);
    kvb_status status = write_places(r, err);
    return status == KVB_OK ? kvb_forward_run(r->forward, r->tokens, o->ctx, 0, &hooks, &hidden, err) : status;
}

static kvb_status run_chunks(capture_run *r, kvb_error *err)
{
    const kvb_capture_options *o = r->options;
    for (r->chunk = 0; r->chunk < r->chunks; r->chunk++) {
        if (o->progress != NULL && o->progress(o->progress_user, "capture", r->chunk, r->chunks) != 0)
            return kvb_fail(err, KVB_E_CANCELLED, "capture", "stopped at chunk %" PRIu64 " of %" PRIu64, r->chunk,
                            r->chunks);
        kvb_status status = run_chunk(r, err);
        if (status != KVB_OK)
            return status;
    }
    if (o->progress != NULL)
        (void)o->progress(o->progress_user, "capture", r->chunks, r->chunks);
    return KVB_OK;
}

static kvb_status write_moments(capture_run *r, kvb_error *err)
{
    kvb_status status = KVB_OK;
    for (uint32_t l = 0; status == KVB_OK && l < r->layers; l++) {
        const uint64_t *queries;
        const kvb_exact *sums = kvb_observer_sums(r->observer, l, &queries);
        if (!kvb_kvc_is_empty(&r->layer[l]))
            status = kvb_sink_write_moments(r->sink, l, sums, queries, err);
    }
    return status;
}

static kvb_status write_sensitivities(capture_run *r, kvb_error *err)
{
    kvb_sensitivity *s = NULL;
    const uint64_t wanted = r->options->sensitivity_chunks, there = r->options->whole_chunks != 0 ? r->options->whole_chunks : r->chunks;
    if (wanted == 0)
        return KVB_OK;
    kvb_status status = kvb_sensitivity_measure(r->model, r->text, r->options, wanted < there ? wanted : there, &s, err);
    for (uint32_t l = 0; status == KVB_OK && l < r->layers; l++)
        for (int kind = 0; status == KVB_OK && kind < 2 && !kvb_kvc_is_empty(&r->layer[l]); kind++) {
            const size_t count = (size_t)r->layer[l].kv_heads * r->layer[l].head_dim * r->layer[l].head_dim;
            status = kvb_sink_write(r->sink, kvb_kvc_offset(&r->layout, l, KVB_KVC_SENSITIVITY_K + (kvb_kvc_part)kind),
                                    kvb_sensitivity_get(s, l, (kvb_kind)kind), count * sizeof(float), err);
        }
    kvb_sensitivity_free(s);
    return status;
}

static kvb_status choose_rows(capture_run *r, kvb_error *err)
{
    const kvb_capture_options *o = r->options;
    kvb_status status = kvb_text_chunks(r->text, o->ctx, o->skip, o->chunks, &r->chunks, err);
    if (status != KVB_OK)
        return status;
    if (o->skip > UINT32_MAX || r->chunks > UINT32_MAX - o->skip)
        return kvb_fail(err, KVB_E_USAGE, "capture", "chunk numbers beyond 2^32 - 1");
    r->keep = o->ctx;
    if (o->max_rows != 0 && o->max_rows / r->chunks < o->ctx)
        r->keep = (uint32_t)(o->max_rows / r->chunks);
    if (r->keep == 0)
        return kvb_fail(err, KVB_E_USAGE, "capture", "%" PRIu64 " rows cannot be shared out over %" PRIu64
                        " chunks; keep at least one row of each", o->max_rows, r->chunks);
    r->counts.rows = r->chunks * r->keep;
    return KVB_OK;
}

static kvb_status create_row_buffers(capture_run *r, kvb_error *err)
{
    size_t dim = 0, keep = r->keep, ctx = r->options->ctx;
    for (uint32_t l = 0; l < r->layers; l++)
        dim = r->layer[l].head_dim > dim ? r->layer[l].head_dim : dim;
    r->tokens = kvb_alloc_array(ctx, sizeof *r->tokens);
    r->position = kvb_alloc_array(keep, sizeof *r->position);
    r->chunk_number = kvb_alloc_array(keep, sizeof *r->chunk_number);
    r->row_half = kvb_alloc_array(keep * dim, sizeof *r->row_half);
    r->row_weight = kvb_alloc_array(keep, sizeof *r->row_weight);
    r->bad = kvb_alloc_array(ctx, sizeof *r->bad);
    if (r->tokens == NULL || r->position == NULL || r->chunk_number == NULL || r->row_half == NULL ||
        r->row_weight == NULL || r->bad == NULL)
        return kvb_fail_memory(err, "capture");
    return KVB_OK;
}

static uint32_t extras_of(const kvb_capture_options *o)
{
    return (o->sensitivity_chunks > 0 ? (uint32_t)KVB_KVC_SENSITIVITIES : 0) | (o->gradients ? (uint32_t)KVB_KVC_GRADIENTS : 0) |
           (o->queries ? (uint32_t)KVB_KVC_WITH_QUERIES : 0);
}

static kvb_status set_up(capture_run *r, const char *path, kvb_error *err)
{
    kvb_status status = choose_rows(r, err);
    if (status == KVB_OK)
        status = create_row_buffers(r, err);
    if (status == KVB_OK)
        status = kvb_kvc_layout_create(r->layer, r->layers, r->counts.rows, r->keep, extras_of(r->options), &r->layout, err);
    if (status == KVB_OK)
        status = kvb_observer_create(r->layer, r->layers, r->options->ctx, r->options->seed, &r->observer, err);
    if (status == KVB_OK)
        status = kvb_forward_create(r->model, r->options->ctx, &r->forward, err);
    if (status != KVB_OK || path == NULL)
        return status == KVB_OK ? kvb_sink_to_memory(&r->layout, &r->sink, err) : status;
    char *meta = kvb_capture_meta_write(r->model, r->text, r->options, r->chunks, &r->counts);
    status = meta != NULL ? kvb_sink_to_file(&r->layout, path, meta, &r->sink, err) : kvb_fail_memory(err, path);
    free(meta);
    return status;
}

static kvb_status finish(capture_run *r, kvb_capture_store **store, kvb_error *err)
{
    char *meta = kvb_capture_meta_write(r->model, r->text, r->options, r->chunks, &r->counts);
    if (meta == NULL)
        return kvb_fail_memory(err, "capture");
    kvb_status status = kvb_sink_finish(r->sink, meta, store, err);
    r->sink = NULL;
    free(meta);
    return status;
}

static void tear_down(capture_run *r)
{
    kvb_sink_abandon(r->sink);
    kvb_forward_destroy(r->forward);
    kvb_observer_destroy(r->observer);
    kvb_kvc_layout_free(&r->layout);
    free(r->tokens);
    free(r->position);
    free(r->chunk_number);
    free(r->row_half);
    free(r->row_weight);
    free(r->bad);
}

static kvb_status run_on_device(capture_run *r, kvb_error *err)
{
    const kvb_capture_device_job job = {
        .model = r->model, .text = r->text, .options = r->options, .chunks = r->chunks, .keep = r->keep,
        .layout = &r->layout, .sink = r->sink, .observer = r->observer, .counts = &r->counts,
    };
    return kvb_capture_on_device(&job, err);
}

static kvb_status write_gradients(capture_run *r, kvb_error *err)
{
    const kvb_capture_gradient_job job = {.model = r->model, .text = r->text, .options = r->options, .chunks = r->chunks,
                                          .keep = r->keep, .layout = &r->layout, .sink = r->sink};
    return kvb_capture_gradients(&job, err);
}

static kvb_status write_queries(capture_run *r, kvb_error *err)
{
    const kvb_capture_queries_job job = {.model = r->model, .text = r->text, .options = r->options, .layout = &r->layout, .sink = r->sink};
    return kvb_capture_queries(&job, err);
}

static kvb_status run_here(capture_run *r, kvb_error *err)
{
    kvb_status status = run_chunks(r, err);
    return status == KVB_OK ? write_moments(r, err) : status;
}

/* To memory where path is NULL. */
static kvb_status run(const kvb_model *model, const kvb_text *text, const kvb_capture_options *options,
                      const char *path, kvb_capture_store **store, kvb_error *err)
{
    const kvb_model_info *info = kvb_model_get_info(model);
    capture_run r = {.model = model, .text = text, .options = options, .layer = info->layer, .layers = info->layers};
    *store = NULL;
    kvb_status status = kvb_device_check(options->device, err);
    if (status == KVB_OK && options->device != KVB_DEVICE_CPU)
        status = kvb_device_forward_check(model, err);
    if (status == KVB_OK)
        status = set_up(&r, path, err);
    if (status == KVB_OK)
        status = options->device != KVB_DEVICE_CPU ? run_on_device(&r, err) : run_here(&r, err);
    if (status == KVB_OK)
        status = write_sensitivities(&r, err);
    if (status == KVB_OK && options->gradients)
        status = write_gradients(&r, err);
    if (status == KVB_OK && options->queries)
        status = write_queries(&r, err);
    if (status == KVB_OK)
        status = finish(&r, store, err);
    tear_down(&r);
    return status;
}

kvb_status kvb_capture_part(kvb_capture_options *o, uint64_t i, uint64_t n, kvb_error *err)
{
    const uint64_t whole = o->chunks, first = kvb_capture_part_begin(whole, i, n);
    if (o->max_rows != 0 && o->max_rows < whole)
        return kvb_fail(err, KVB_E_USAGE, "capture", "%" PRIu64 " rows of %" PRIu64 " chunks; keep at least one row of each",
                        o->max_rows, whole);
    if (whole < n)
        return kvb_fail(err, KVB_E_USAGE, "capture", "%" PRIu64 " chunks for %" PRIu64 " parts: expected at least one each; choose "
                        "fewer parts, or give more text", whole, n);
    o->chunks = kvb_capture_part_begin(whole, i + 1, n) - first;
    o->max_rows = o->max_rows / whole * o->chunks; /* the same number of every chunk, whoever runs it */
    o->skip += first;
    o->whole_chunks = i == 0 ? whole : 0;
    o->sensitivity_chunks = i == 0 ? o->sensitivity_chunks : 0;
    o->queries = i == 0 && o->queries;
    return KVB_OK;
}

kvb_status kvb_capture_run(const kvb_model *model, const kvb_text *text, const kvb_capture_options *options,
                           kvb_capture_store **store, kvb_error *err)
{
    return run(model, text, options, NULL, store, err);
}

kvb_status kvb_capture_run_to_file(const kvb_model *model, const kvb_text *text, const kvb_capture_options *options,
                                   const char *path, kvb_error *err)
{
    kvb_capture_store *none;
    return run(model, text, options, path, &none, err);
}
