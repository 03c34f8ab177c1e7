#include "calib/capture_device.h"

#include "format/base/fail.h"

#ifdef KVB_CUDA
#include <inttypes.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calib/capture_rows.h"
#include "calib/device_forward.h"
#include "calib/lanes.h"
#include "format/base/checked.h"
#include "format/base/rope.h"
#include "model/weights.h"

enum { HALF_MAGNITUDE = 0x7fff, HALF_MOST = 0x7bff };

struct device_run;

/* The chunks of one GPU, in a host thread of their own. Rows are counted from the first of them. */
typedef struct share {
    struct device_run *run;
    uint32_t gpu;
    uint64_t first, chunks;
    size_t rows;         /* chunks * ctx, of the forward pass */
    const uint32_t *position; /* [chunks][keep] of the run's */
    kvb_cuda_forward *forward;
    kvb_weight_scratch weights;
    kvb_cuda_seen seen;
    uint8_t *bad;        /* [G][rows]: key, value or weights are not finite */
    uint16_t *half;      /* [chunks * keep][D] */
    float *row_weight;   /* [chunks * keep] */
    kvb_exact *sums;     /* [layers][2][G][D(D+1)/2] */
    uint64_t *bad_queries; /* [layers][H] */
    kvb_capture_counts counts;
} share;

typedef struct device_run {
    const kvb_capture_device_job *job;
    const kvb_model_config *config;
    const kvb_layer *g; /* of every layer */
    size_t ctx;
    kvb_rope_table rope;
    uint32_t *position;  /* [chunks][keep] */
    uint32_t *drawn;     /* [chunks][ctx] */
    share share[KVB_MOST_GPUS];
    uint32_t shares;
    atomic_bool stop;    /* somebody failed: nobody need go on */
} device_run;

static size_t sum_count(const device_run *r)
{
    return 2 * r->g->kv_heads * kvb_triangle(r->g->head_dim);
}

static void share_free(share *s)
{
    kvb_cuda_forward_destroy(s->forward);
    kvb_weight_scratch_free(&s->weights);
    free(s->bad);
    free(s->half);
    free(s->row_weight);
    free(s->sums);
    free(s->bad_queries);
}

static void run_free(device_run *r)
{
    for (uint32_t i = 0; i < r->shares; i++)
        share_free(&r->share[i]);
    kvb_rope_table_free(&r->rope);
    free(r->position);
    free(r->drawn);
}

static bool allocate_share(share *s)
{
    const device_run *r = s->run;
    const size_t kept = s->chunks * r->job->keep;
    s->bad = kvb_alloc_array(r->g->kv_heads * s->rows, sizeof *s->bad);
    s->half = kvb_alloc_array(kept, r->g->head_dim * sizeof *s->half);
    s->row_weight = kvb_alloc_array(kept, sizeof *s->row_weight);
    s->sums = kvb_alloc_zeroed(r->config->layers * sum_count(r), sizeof *s->sums);
    s->bad_queries = kvb_alloc_zeroed((size_t)r->config->layers * r->g->heads, sizeof *s->bad_queries);
    return s->bad && s->half && s->row_weight && s->sums && s->bad_queries;
}

/* The chunks, shared out evenly over as many GPUs as have at least one. */
static kvb_status allocate(device_run *r, kvb_error *err)
{
    const uint64_t chunks = r->job->chunks;
    uint32_t gpu[KVB_MOST_GPUS], gpus = 0;
    kvb_status status = kvb_device_gpus(r->job->options->device, gpu, &gpus, err);
    if (status != KVB_OK)
        return status;
    r->position = kvb_alloc_array(chunks * r->job->keep, sizeof *r->position);
    r->drawn = kvb_alloc_array(chunks * r->ctx, sizeof *r->drawn);
    bool good = r->position != NULL && r->drawn != NULL;
    gpus = gpus < chunks ? gpus : (uint32_t)chunks;
    for (uint32_t i = 0; i < gpus && good; i++) {
        const uint64_t first = kvb_capture_part_begin(chunks, i, gpus), many = kvb_capture_part_begin(chunks, i + 1, gpus) - first;
        r->share[i] = (share){.run = r, .gpu = gpu[i], .first = first, .chunks = many, .rows = many * r->ctx,
                              .position = r->position + first * r->job->keep};
        r->shares++;
        good = allocate_share(&r->share[i]);
    }
    return good ? KVB_OK : kvb_fail_memory(err, "capture");
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

static kvb_status start_forward(share *s, kvb_error *err)
{
    const device_run *r = s->run;
    kvb_cuda_shape shape = kvb_device_shape(r->job->model, &r->rope, (uint32_t)r->ctx, s->chunks);
    shape.drawn = r->drawn + s->first * r->ctx;
    return kvb_cuda_forward_create((int)s->gpu, &shape, &s->forward, err);
}

static kvb_status embed(share *s, kvb_error *err)
{
    const device_run *r = s->run;
    const kvb_capture_options *o = r->job->options;
    const size_t width = r->config->embedding;
    kvb_status status = KVB_OK;
    uint32_t *tokens = kvb_alloc_array(r->ctx, sizeof *tokens);
    float *x = kvb_alloc_array(r->ctx, width * sizeof *x);
    if (tokens == NULL || x == NULL)
        status = kvb_fail_memory(err, "embeddings");
    for (uint64_t c = 0; c < s->chunks && status == KVB_OK; c++) {
        kvb_text_chunk(r->job->text, o->ctx, o->skip, s->first + c, o->bos, tokens);
        status = kvb_device_embed(s->forward, r->job->model, c, tokens, (uint32_t)r->ctx, x, err);
    }
    free(tokens);
    free(x);
    return status;
}

static kvb_status refuse_row(const share *s, uint32_t layer, uint32_t head, size_t row, const char *what, kvb_error *err)
{
    const device_run *r = s->run;
    char where[256];
    snprintf(where, sizeof where, "%.120s: layer %u, KV head %u, chunk %" PRIu64 ", token %zu",
             kvb_model_get_info(r->job->model)->path, layer, head, r->job->options->skip + s->first + row / r->ctx, row % r->ctx);
    return kvb_fail(err, KVB_E_CHECK, where,
                    "the %s there holds a NaN or infinity; expected finite numbers. Check the model file, or let the run count "
                    "and leave out such rows (--on-nan quarantine)",
                    what);
}

/* Marks the rows of a head whose key, value or weights are not finite, or fails at the first. */
static kvb_status find_bad(share *s, uint32_t layer, uint32_t head, kvb_error *err)
{
    static const char *const what[] = {"key", "value", "token weight"};
    const size_t first = head * s->rows;
    const kvb_cuda_seen *seen = &s->seen;
    memset(s->bad + first, 0, s->rows);
    for (int pass = 0; pass < 3; pass++)
        for (size_t i = 0; i < s->rows; i++) {
            const bool bad = pass == 0   ? seen->bad_keys[first + i]
                             : pass == 1 ? seen->bad_values[first + i]
                                         : !isfinite(seen->weight_k[first + i]) || !isfinite(seen->weight_v[first + i]);
            if (bad && s->run->job->options->stop_on_nan)
                return refuse_row(s, layer, head, i, what[pass], err);
            s->bad[first + i] |= bad;
        }
    return KVB_OK;
}

/* The row of the forward pass that kept row i is. */
static size_t row_of(const share *s, size_t i)
{
    return i / s->run->job->keep * s->run->ctx + s->position[i];
}

/* The place in a part [G][rows] of all chunks' kept rows where those of a head and this share begin. */
static uint64_t place_of(const share *s, uint32_t layer, uint32_t head, kvb_kvc_part part, size_t row_bytes)
{
    const kvb_capture_device_job *j = s->run->job;
    return kvb_kvc_offset(j->layout, layer, part) + (head * j->chunks + s->first) * j->keep * row_bytes;
}

static kvb_status write_rows(share *s, uint32_t layer, uint32_t head, kvb_kvc_part part, kvb_error *err)
{
    const size_t dim = s->run->g->head_dim, kept = s->chunks * s->run->job->keep, first = head * s->rows;
    const bool keys = part == KVB_KVC_KEYS;
    const uint16_t *from = (keys ? s->seen.keys : s->seen.values) + first * dim;
    const bool saturated = (keys ? s->seen.saturated_keys : s->seen.saturated_values) != 0;
    uint64_t most = 0;
#pragma omp parallel for schedule(static) reduction(+ : most)
    for (size_t i = 0; i < kept; i++) {
        const size_t row = row_of(s, i);
        if (s->bad[first + row]) {
            memset(s->half + i * dim, 0, dim * sizeof *s->half);
            continue;
        }
        memcpy(s->half + i * dim, from + row * dim, dim * sizeof *s->half);
        for (size_t c = 0; saturated && c < dim; c++)
            most += (s->half[i * dim + c] & HALF_MAGNITUDE) == HALF_MOST;
    }
    s->counts.saturated += most;
    return kvb_sink_write(s->run->job->sink, place_of(s, layer, head, part, dim * sizeof *s->half), s->half,
                          kept * dim * sizeof *s->half, err);
}

static kvb_status write_weights(share *s, uint32_t layer, uint32_t head, kvb_kvc_part part, kvb_error *err)
{
    const size_t kept = s->chunks * s->run->job->keep, first = head * s->rows;
    const float *from = (part == KVB_KVC_WEIGHT_K ? s->seen.weight_k : s->seen.weight_v) + first;
    for (size_t i = 0; i < kept; i++)
        s->row_weight[i] = s->bad[first + row_of(s, i)] ? 0.0f : from[row_of(s, i)];
    return kvb_sink_write(s->run->job->sink, place_of(s, layer, head, part, sizeof *s->row_weight), s->row_weight,
                          kept * sizeof *s->row_weight, err);
}

static kvb_status write_head(share *s, uint32_t layer, uint32_t head, kvb_error *err)
{
    kvb_status status = find_bad(s, layer, head, err);
    for (size_t i = 0; status == KVB_OK && i < s->chunks * s->run->job->keep; i++)
        s->counts.quarantined += s->bad[head * s->rows + row_of(s, i)];
    if (status == KVB_OK)
        status = write_rows(s, layer, head, KVB_KVC_KEYS, err);
    if (status == KVB_OK)
        status = write_rows(s, layer, head, KVB_KVC_VALUES, err);
    if (status == KVB_OK)
        status = write_weights(s, layer, head, KVB_KVC_WEIGHT_K, err);
    if (status == KVB_OK)
        status = write_weights(s, layer, head, KVB_KVC_WEIGHT_V, err);
    return status;
}

static bool is_observed(const device_run *r, uint32_t layer)
{
    return !kvb_kvc_is_empty(&r->job->layout->layer[layer]);
}

/* What a layer left, if anybody asked: rows to the sink, sums to be added up when all shares are there. */
static kvb_status take_layer(share *s, uint32_t layer, kvb_error *err)
{
    const device_run *r = s->run;
    if (!is_observed(r, layer))
        return KVB_OK;
    kvb_status status = kvb_cuda_forward_seen(s->forward, &s->seen, err);
    for (uint32_t head = 0; head < r->g->kv_heads && status == KVB_OK; head++)
        status = write_head(s, layer, head, err);
    if (status != KVB_OK)
        return status;
    memcpy(s->sums + layer * sum_count(r), s->seen.sums, sum_count(r) * sizeof *s->sums);
    memcpy(s->bad_queries + (size_t)layer * r->g->heads, s->seen.bad_queries, r->g->heads * sizeof *s->bad_queries);
    return KVB_OK;
}

/* The first share speaks for all. */
static kvb_status report(const share *s, uint32_t layer, kvb_error *err)
{
    const kvb_capture_options *o = s->run->job->options;
    const uint32_t layers = s->run->config->layers;
    if (s != &s->run->share[0] || o->progress == NULL || o->progress(o->progress_user, "capture", layer, layers) == 0)
        return KVB_OK;
    return kvb_fail(err, KVB_E_CANCELLED, "capture", "stopped at layer %u of %u", layer, layers);
}

/* While a layer runs, the weights of the next are on their way and what the one before left is written. */
static kvb_status run_layers(share *s, kvb_error *err)
{
    const uint32_t layers = s->run->config->layers;
    kvb_status status = layers > 0 ? kvb_device_send_weights(s->forward, s->run->job->model, 0, &s->weights, err) : KVB_OK;
    for (uint32_t l = 0; l < layers && status == KVB_OK && !atomic_load(&s->run->stop); l++) {
        status = report(s, l, err);
        if (status == KVB_OK)
            status = kvb_cuda_forward_layer(s->forward, is_observed(s->run, l), err);
        if (status == KVB_OK && l + 1 < layers)
            status = kvb_device_send_weights(s->forward, s->run->job->model, l + 1, &s->weights, err);
        if (status == KVB_OK && l > 0)
            status = take_layer(s, l - 1, err);
    }
    if (status == KVB_OK && layers > 0 && !atomic_load(&s->run->stop))
        status = take_layer(s, layers - 1, err);
    return status;
}

static kvb_status run_share(void *user, uint32_t lane, kvb_error *err)
{
    device_run *r = user;
    share *s = &r->share[lane];
    kvb_status status = start_forward(s, err);
    if (status == KVB_OK)
        status = embed(s, err);
    if (status == KVB_OK)
        status = run_layers(s, err);
    if (status != KVB_OK)
        atomic_store(&r->stop, true);
    kvb_cuda_forward_destroy(s->forward); /* device memory, as soon as nobody needs it */
    s->forward = NULL;
    return status;
}

/* Sums never round, so how chunks were shared out does not show. */
static kvb_status write_moments(device_run *r, uint32_t layer, kvb_exact *sums, uint64_t *queries, kvb_error *err)
{
    const size_t heads = r->g->kv_heads, group = r->g->heads / heads, count = sum_count(r);
    memset(sums, 0, count * sizeof *sums);
    for (size_t head = 0; head < heads; head++)
        queries[head] = group * r->job->chunks * r->ctx;
    for (uint32_t i = 0; i < r->shares; i++) {
        const share *s = &r->share[i];
        for (size_t n = 0; n < count; n++)
            sums[n] = kvb_exact_add(sums[n], s->sums[layer * count + n]);
        for (size_t h = 0; h < r->g->heads; h++) {
            queries[h / group] -= s->bad_queries[(size_t)layer * r->g->heads + h];
            r->job->counts->bad_queries += s->bad_queries[(size_t)layer * r->g->heads + h];
        }
    }
    return kvb_sink_write_moments(r->job->sink, layer, sums, queries, err);
}

static kvb_status bring_together(device_run *r, kvb_error *err)
{
    const kvb_capture_options *o = r->job->options;
    kvb_status status = KVB_OK;
    kvb_exact *sums = kvb_alloc_array(sum_count(r), sizeof *sums);
    uint64_t *queries = kvb_alloc_array(r->g->kv_heads, sizeof *queries);
    if (sums == NULL || queries == NULL)
        status = kvb_fail_memory(err, "query moments");
    for (uint32_t i = 0; i < r->shares; i++) {
        r->job->counts->saturated += r->share[i].counts.saturated;
        r->job->counts->quarantined += r->share[i].counts.quarantined;
    }
    for (uint32_t l = 0; l < r->config->layers && status == KVB_OK; l++)
        if (is_observed(r, l))
            status = write_moments(r, l, sums, queries, err);
    if (status == KVB_OK && o->progress != NULL)
        (void)o->progress(o->progress_user, "capture", r->config->layers, r->config->layers);
    free(sums);
    free(queries);
    return status;
}

kvb_status kvb_capture_on_device(const kvb_capture_device_job *job, kvb_error *err)
{
    const kvb_model_config *config = &job->model->config;
    device_run r = {.job = job, .config = config, .g = &job->model->geometry[0], .ctx = job->options->ctx};
    kvb_status status = allocate(&r, err);
    if (status == KVB_OK)
        status = choose_places(&r, err);
    if (status == KVB_OK)
        status = kvb_rope_table_create(&r.rope, r.g, 0, (uint32_t)r.ctx, err);
    if (status == KVB_OK)
        status = kvb_lanes_run(r.shares, run_share, &r, err);
    if (status == KVB_OK)
        status = bring_together(&r, err);
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
