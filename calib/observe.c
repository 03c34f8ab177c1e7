#include "calib/observe.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/attention.h"
#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/rng.h"
#include "format/base/rope.h"

enum { MOMENT_ROWS = 128, STREAM_DRAW = 1 };
enum { RELATIVE = 0, POST = 1 };

/* Sums over all queries seen so far. */
typedef struct layer_sums {
    kvb_exact *moment;  /* [2][G][D(D+1)/2] */
    uint64_t *queries;  /* [G] */
    uint32_t rope;      /* the table it shares */
} layer_sums;

struct kvb_observer {
    const kvb_kernels *kernels;
    const kvb_layer *layer;
    uint32_t layers, max_tokens;
    int threads;
    uint64_t seed, chunk_key;
    kvb_rope_table *rope; /* [layers], only those that some layer_sums names are made */
    layer_sums *sums;     /* [layers] */
    float *keys_t, *values_t;      /* [G][D][padded T] */
    float *norm;                   /* [H][T] */
    double *head_weight;           /* [2][H][T] */
    double *head_moment;           /* [2][H][D][D] */
    uint64_t *head_queries;        /* [H] */
    float *weight;                 /* [2][G][T] */
    float *scratch;                /* [threads][scratch_size] */
    size_t scratch_size;
};

/* Everything one call's tasks share. */
typedef struct call_view {
    kvb_observer *o;
    const kvb_attention_call *call;
    const float *out, *lse;
    uint32_t group; /* query heads per KV head */
    size_t ld;      /* padded T */
} call_view;

static size_t size_max(size_t a, size_t b)
{
    return a > b ? a : b;
}

static size_t moment_scratch_floats(uint32_t dim)
{
    return 2 * (size_t)MOMENT_ROWS * dim + (size_t)dim * dim;
}

static kvb_status create_rope(kvb_observer *o, uint32_t l, kvb_error *err)
{
    for (uint32_t earlier = 0; earlier < l; earlier++)
        if (o->sums[earlier].rope == earlier && kvb_rope_same(&o->layer[earlier], &o->layer[l])) {
            o->sums[l].rope = earlier;
            return KVB_OK;
        }
    o->sums[l].rope = l;
    return kvb_rope_table_create(&o->rope[l], &o->layer[l], 0, o->max_tokens, err);
}

static kvb_status create_sums(kvb_observer *o, kvb_error *err)
{
    o->rope = kvb_alloc_zeroed(o->layers, sizeof *o->rope);
    o->sums = kvb_alloc_zeroed(o->layers, sizeof *o->sums);
    if (o->rope == NULL || o->sums == NULL)
        return kvb_fail_memory(err, "capture sums");
    for (uint32_t l = 0; l < o->layers; l++) {
        const kvb_layer *g = &o->layer[l];
        kvb_status status = create_rope(o, l, err);
        if (status != KVB_OK)
            return status;
        o->sums[l].moment = kvb_alloc_zeroed(2 * (size_t)g->kv_heads * kvb_triangle(g->head_dim), sizeof(kvb_exact));
        o->sums[l].queries = kvb_alloc_zeroed(g->kv_heads, sizeof(uint64_t));
        if (o->sums[l].moment == NULL || o->sums[l].queries == NULL)
            return kvb_fail_memory(err, "capture sums");
    }
    return KVB_OK;
}

/* Working memory for the largest layer. */
static kvb_status create_buffers(kvb_observer *o, kvb_error *err)
{
    size_t keys = 0, heads = 0, kv_heads = 0, moments = 0, padded = kvb_attn_padded(o->max_tokens);
    for (uint32_t l = 0; l < o->layers; l++) {
        const kvb_layer *g = &o->layer[l];
        keys = size_max(keys, (size_t)g->kv_heads * g->head_dim);
        heads = size_max(heads, g->heads);
        kv_heads = size_max(kv_heads, g->kv_heads);
        moments = size_max(moments, (size_t)g->heads * g->head_dim * g->head_dim);
        o->scratch_size = size_max(o->scratch_size, kvb_attn_weights_scratch_floats(g->head_dim));
        o->scratch_size = size_max(o->scratch_size, moment_scratch_floats(g->head_dim));
    }
    o->scratch_size = (o->scratch_size + 15) / 16 * 16;
    o->keys_t = kvb_alloc_array(keys * padded, sizeof *o->keys_t);
    o->values_t = kvb_alloc_array(keys * padded, sizeof *o->values_t);
    o->norm = kvb_alloc_array(heads * o->max_tokens, sizeof *o->norm);
    o->head_weight = kvb_alloc_array(2 * heads * o->max_tokens, sizeof *o->head_weight);
    o->head_moment = kvb_alloc_array(2 * moments, sizeof *o->head_moment);
    o->head_queries = kvb_alloc_array(heads, sizeof *o->head_queries);
    o->weight = kvb_alloc_array(2 * kv_heads * o->max_tokens, sizeof *o->weight);
    o->scratch = kvb_alloc_array((size_t)o->threads * o->scratch_size, sizeof *o->scratch);
    if (o->keys_t == NULL || o->values_t == NULL || o->norm == NULL || o->head_weight == NULL ||
        o->head_moment == NULL || o->head_queries == NULL || o->weight == NULL || o->scratch == NULL)
        return kvb_fail_memory(err, "capture buffers");
    return KVB_OK;
}

kvb_status kvb_observer_create(const kvb_layer *layer, uint32_t layers, uint32_t max_tokens, uint64_t seed,
                               kvb_observer **observer, kvb_error *err)
{
    *observer = NULL;
    kvb_observer *o = calloc(1, sizeof *o);
    if (o == NULL)
        return kvb_fail_memory(err, "capture");
    *o = (kvb_observer){.kernels = kvb_kernels_best(), .layer = layer, .layers = layers, .max_tokens = max_tokens,
                        .threads = omp_get_max_threads(), .seed = seed};
    kvb_status status = create_sums(o, err);
    if (status == KVB_OK)
        status = create_buffers(o, err);
    if (status != KVB_OK) {
        kvb_observer_destroy(o);
        return status;
    }
    kvb_observer_begin_chunk(o, 0);
    *observer = o;
    return KVB_OK;
}

void kvb_observer_destroy(kvb_observer *o)
{
    if (o == NULL)
        return;
    for (uint32_t l = 0; l < o->layers; l++) {
        if (o->rope != NULL)
            kvb_rope_table_free(&o->rope[l]);
        if (o->sums != NULL) {
            free(o->sums[l].moment);
            free(o->sums[l].queries);
        }
    }
    free(o->rope);
    free(o->sums);
    free(o->keys_t);
    free(o->values_t);
    free(o->norm);
    free(o->head_weight);
    free(o->head_moment);
    free(o->head_queries);
    free(o->weight);
    free(o->scratch);
    free(o);
}

void kvb_observer_begin_chunk(kvb_observer *o, uint64_t chunk)
{
    o->chunk_key = kvb_rng_key(o->seed, chunk, STREAM_DRAW, 0, 0);
}

uint32_t kvb_observer_draw(const kvb_observer *o, uint32_t position, uint32_t sliding_window)
{
    uint32_t seen = position + 1;
    if (sliding_window != 0 && seen > sliding_window)
        seen = sliding_window;
    return position - (uint32_t)kvb_rng_below(o->chunk_key, position, seen);
}

static float *thread_scratch(const kvb_observer *o)
{
    return o->scratch + (size_t)omp_get_thread_num() * o->scratch_size;
}

/* Norms of one query head; a query that is not finite gets a NaN. */
static void measure_queries(const call_view *v, uint32_t head)
{
    uint32_t dim = v->call->geometry->head_dim, tokens = v->call->tokens;
    const float *q = v->call->q + (size_t)head * tokens * dim;
    float *norm = v->o->norm + (size_t)head * tokens;
    for (uint32_t i = 0; i < tokens; i++) {
        double sum = 0.0;
        for (uint32_t c = 0; c < dim; c++)
            sum += (double)q[(size_t)i * dim + c] * (double)q[(size_t)i * dim + c];
        float length = (float)sqrt(sum);
        norm[i] = isfinite(length) ? length : NAN;
    }
}

static void prepare(const call_view *v)
{
    const kvb_layer *g = v->call->geometry;
    uint32_t tokens = v->call->tokens, dim = g->head_dim;
    size_t rows = (size_t)tokens * dim, columns = (size_t)dim * v->ld;
#pragma omp parallel for schedule(dynamic, 1) num_threads(v->o->threads)
    for (uint32_t task = 0; task < g->heads + 2 * g->kv_heads; task++) {
        if (task < g->heads) {
            measure_queries(v, task);
            continue;
        }
        uint32_t head = (task - g->heads) / 2;
        if ((task - g->heads) % 2 == 0)
            kvb_transpose(v->call->k + head * rows, dim, tokens, dim, v->o->keys_t + head * columns, v->ld);
        else
            kvb_transpose(v->call->v + head * rows, dim, tokens, dim, v->o->values_t + head * columns, v->ld);
    }
}

/* One query head's share of the weights of one block of keys. */
static void weigh_block(const call_view *v, uint32_t head, uint32_t first)
{
    const kvb_layer *g = v->call->geometry;
    kvb_observer *o = v->o;
    uint32_t tokens = v->call->tokens, dim = g->head_dim;
    uint32_t count = tokens - first < KVB_ATTN_COLS ? tokens - first : KVB_ATTN_COLS;
    size_t columns = (size_t)(head / v->group) * dim * v->ld, row = (size_t)head * tokens;
    kvb_attn_head a = {
        .q = v->call->q + row * dim, .keys_t = o->keys_t + columns, .values_t = o->values_t + columns,
        .out = v->out + row * dim, .lse = v->lse + row, .q_norm = o->norm + row, .ld_t = v->ld, .tokens = tokens,
        .head_dim = dim, .scale = (float)g->attention_scale,
        .sliding_window = g->kind == KVB_LAYER_SLIDING ? g->sliding_window : 0,
    };
    double *weight_k = o->head_weight + row + first, *weight_v = weight_k + (size_t)g->heads * tokens;
    memset(weight_k, 0, count * sizeof *weight_k);
    memset(weight_v, 0, count * sizeof *weight_v);
    kvb_attn_weights(o->kernels, &a, first, count, weight_k, weight_v, thread_scratch(o));
}

/* Early keys are seen by most queries, so their blocks come first: the long tasks start before the short ones. */
static void weigh(const call_view *v)
{
    const kvb_layer *g = v->call->geometry;
    uint32_t tokens = v->call->tokens, blocks = (tokens + KVB_ATTN_COLS - 1) / KVB_ATTN_COLS;
#pragma omp parallel for schedule(dynamic, 1) num_threads(v->o->threads)
    for (uint32_t task = 0; task < blocks * g->heads; task++)
        weigh_block(v, task % g->heads, task / g->heads * KVB_ATTN_COLS);
    for (uint32_t kind = 0; kind < 2; kind++)
        for (uint32_t head = 0; head < g->kv_heads; head++)
            for (uint32_t j = 0; j < tokens; j++) {
                double sum = 0.0;
                for (uint32_t h = head * v->group; h < (head + 1) * v->group; h++)
                    sum += v->o->head_weight[((size_t)kind * g->heads + h) * tokens + j];
                v->o->weight[((size_t)kind * g->kv_heads + head) * tokens + j] = (float)sum;
            }
}

/* Copies finite queries of a block, for the relative moment turned back by their drawn positions; others become
 * zeros. */
static uint64_t gather_queries(const call_view *v, uint32_t head, int which, uint32_t first, uint32_t rows, float *x)
{
    const kvb_layer *g = v->call->geometry;
    const kvb_rope_table *rope = &v->o->rope[v->o->sums[v->call->layer].rope];
    uint32_t dim = g->head_dim, window = g->kind == KVB_LAYER_SLIDING ? g->sliding_window : 0;
    uint64_t good = 0;
    for (uint32_t i = 0; i < rows; i++) {
        size_t row = (size_t)head * v->call->tokens + first + i;
        const float *q = v->call->q + row * dim;
        if (isnan(v->o->norm[row])) {
            memset(x + (size_t)i * dim, 0, dim * sizeof *x);
            continue;
        }
        good++;
        if (which == RELATIVE)
            kvb_rope_unrotate(rope, kvb_observer_draw(v->o, first + i, window), dim, q, x + (size_t)i * dim);
        else
            memcpy(x + (size_t)i * dim, q, dim * sizeof *x);
    }
    return good;
}

/* Sum of q q^T over one query head, in blocks of float products added up in double. */
static void sum_moment(const call_view *v, uint32_t head, int which)
{
    const kvb_layer *g = v->call->geometry;
    uint32_t dim = g->head_dim;
    size_t square = (size_t)dim * dim;
    double *sum = v->o->head_moment + ((size_t)which * g->heads + head) * square;
    float *x = thread_scratch(v->o), *x_t = x + (size_t)MOMENT_ROWS * dim, *product = x_t + (size_t)MOMENT_ROWS * dim;
    uint64_t good = 0;
    memset(sum, 0, square * sizeof *sum);
    for (uint32_t first = 0; first < v->call->tokens; first += MOMENT_ROWS) {
        uint32_t left = v->call->tokens - first, rows = left < MOMENT_ROWS ? left : MOMENT_ROWS;
        good += gather_queries(v, head, which, first, rows, x);
        kvb_transpose(x, dim, rows, dim, x_t, MOMENT_ROWS);
        v->o->kernels->gemm(dim, dim, rows, x_t, MOMENT_ROWS, x, dim, product, dim, false);
        for (size_t i = 0; i < square; i++)
            sum[i] += (double)product[i];
    }
    if (which == POST)
        v->o->head_queries[head] = good;
}

static uint64_t add_moments(const call_view *v)
{
    const kvb_layer *g = v->call->geometry;
    layer_sums *sums = &v->o->sums[v->call->layer];
    const size_t square = (size_t)g->head_dim * g->head_dim, triangle = kvb_triangle(g->head_dim);
    uint64_t bad = 0;
#pragma omp parallel for schedule(dynamic, 1) num_threads(v->o->threads)
    for (uint32_t task = 0; task < 2 * g->heads; task++)
        sum_moment(v, task / 2, (int)(task % 2));
    for (uint32_t h = 0; h < g->heads; h++) {
        sums->queries[h / v->group] += v->o->head_queries[h];
        bad += v->call->tokens - v->o->head_queries[h];
        for (size_t which = 0; which < 2; which++)
            kvb_query_sums_add(sums->moment + (which * g->kv_heads + h / v->group) * triangle,
                               v->o->head_moment + (which * g->heads + h) * square, g->head_dim);
    }
    return bad;
}

kvb_status kvb_observer_see(kvb_observer *o, const kvb_attention_call *call, const float *out, const float *lse,
                            kvb_observed *observed, kvb_error *err)
{
    if (call->layer >= o->layers || call->geometry != &o->layer[call->layer] || call->tokens > o->max_tokens ||
        call->position != 0)
        return kvb_fail(err, KVB_E_USAGE, "capture",
                        "layer %u, %u tokens at %u: made for %u layers of one model, %u tokens at 0", call->layer,
                        call->tokens, call->position, o->layers, o->max_tokens);
    call_view v = {.o = o, .call = call, .out = out, .lse = lse, .ld = kvb_attn_padded(call->tokens),
                   .group = call->geometry->heads / call->geometry->kv_heads};
    prepare(&v);
    weigh(&v);
    observed->bad_queries = add_moments(&v);
    observed->weight_k = o->weight;
    observed->weight_v = o->weight + (size_t)call->geometry->kv_heads * call->tokens;
    return KVB_OK;
}

const kvb_exact *kvb_observer_sums(const kvb_observer *o, uint32_t layer, const uint64_t **queries)
{
    *queries = o->sums[layer].queries;
    return o->sums[layer].moment;
}
