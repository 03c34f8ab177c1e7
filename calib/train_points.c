#include <inttypes.h>
#include <math.h>
#include <omp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calib/train_impl.h"
#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/half.h"

static const kvb_layer *geometry(const kvb_train_points *p)
{
    return &p->capture->geometry[p->layer];
}

static const uint16_t *captured(const kvb_train_points *p)
{
    const kvb_capture_layer *l = &p->capture->layer[p->layer];
    return p->kind == KVB_KEY ? l->keys : l->values;
}

kvb_status kvb_train_points_refuse(const kvb_train_points *p, uint32_t head, kvb_status status, kvb_error *err,
                                   const char *format, ...)
{
    char where[128], message[400];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    snprintf(where, sizeof where, "layer %u, KV head %u, %s", p->layer, head, kvb_train_kind_name(p->kind));
    return kvb_fail(err, status, where, "%s", message);
}

static kvb_status check_finite(const kvb_train_points *p, kvb_error *err)
{
    const kvb_layer *g = geometry(p);
    const kvb_capture *c = p->capture;
    uint64_t size = c->rows * g->head_dim;
    uint64_t found = UINT64_MAX; /* over all heads */
#pragma omp parallel for schedule(dynamic, 1) reduction(min : found)
    for (uint32_t head = 0; head < g->kv_heads; head++) {
        const uint64_t at = kvb_half_first_bad(captured(p) + head * size, size);
        if (at < size && head * size + at < found)
            found = head * size + at;
    }
    if (found == UINT64_MAX)
        return KVB_OK;
    const uint64_t bad = found % size, row = bad / g->head_dim;
    char place[80] = "";
    if (c->row_chunk != NULL)
        snprintf(place, sizeof place, " (chunk %u, token %u)", c->row_chunk[row], c->row_position[row]);
    return kvb_train_points_refuse(p, (uint32_t)(found / size), KVB_E_CHECK, err,
                  "row %" PRIu64 "%s, channel %" PRIu64 " is a NaN or infinity; expected finite numbers: capture "
                  "again, or let the capture leave such rows out",
                  row, place, bad % g->head_dim);
}

/* The capture's weights that the recipe asks for; NULL and OK where it asks for none. */
static kvb_status choose_weights(const kvb_train_points *p, const float **weights, kvb_error *err)
{
    kvb_weighting wanted = p->recipe->kind[p->kind].weights;
    const kvb_capture_layer *l = &p->capture->layer[p->layer];
    *weights = wanted == KVB_WEIGHT_EXACT_K ? l->weight_k : wanted == KVB_WEIGHT_EXACT_V ? l->weight_v : NULL;
    if (wanted == KVB_WEIGHT_NONE || wanted == KVB_WEIGHT_FISHER || *weights != NULL)
        return KVB_OK;
    return kvb_train_points_refuse(p, 0, KVB_E_MISMATCH, err,
                  "the capture has no layers.%u.%s, and recipe \"%s\" weights the %s by it: use a capture with "
                  "weights, or a recipe with \"weights\": \"none\"",
                  p->layer, wanted == KVB_WEIGHT_EXACT_K ? "weight_k" : "weight_v", p->recipe->name,
                  kvb_train_kind_name(p->kind));
}

/* Rows that the capture left out have two weights of 0; without weighting the others count 1 each. */
static bool is_left_out(const kvb_capture_layer *l, size_t row)
{
    return l->weight_k != NULL && l->weight_v != NULL && l->weight_k[row] == 0.0f && l->weight_v[row] == 0.0f;
}

int kvb_train_threads(const kvb_train_points *p)
{
    return p->threads != 0 ? (int)p->threads : omp_get_max_threads();
}

kvb_status kvb_train_points_solve(const kvb_train_points *p, uint32_t head, const kvb_kmeans_problem *problem, kvb_error *err)
{
    kvb_kmeans_options options;
    kvb_error inner = {0};
    kvb_kmeans_options_init(&options);
    options.iterations = p->recipe->iterations;
    options.seeding = p->recipe->seeding;
    options.threads = p->threads;
    const kvb_status status = kvb_kmeans_train(problem, 1, &options, NULL, &inner);
    return status == KVB_OK ? KVB_OK : kvb_train_points_refuse(p, head, status, err, "%s", inner.message);
}

void kvb_train_points_row(const kvb_train_points *p, uint32_t head, size_t row, float *y)
{
    const uint32_t dim = geometry(p)->head_dim;
    const size_t at = (head * (size_t)p->capture->rows + row) * dim;
    if (p->moved != NULL)
        memcpy(y, p->moved + at, dim * sizeof *y);
    else
        kvb_half_to_floats(y, captured(p) + at, dim);
}

bool kvb_train_points_left_out(const kvb_train_points *p, uint32_t head, size_t row)
{
    return p->weight != NULL && !(p->weight[head * (size_t)p->capture->rows + row] > 0.0f);
}

bool kvb_train_points_counts(const kvb_train_points *p, uint32_t head, size_t row)
{
    const uint32_t *position = p->capture->row_position;
    return (position == NULL || position[row] >= p->recipe->policy.sinks) && !kvb_train_points_left_out(p, head, row);
}

static bool any_left_out(const kvb_train_points *p)
{
    size_t count = geometry(p)->kv_heads * (size_t)p->capture->rows;
    for (size_t i = 0; i < count; i++)
        if (is_left_out(&p->capture->layer[p->layer], i))
            return true;
    return false;
}

/* `from` may be p->weight itself. */
static kvb_status normalise_head(const kvb_train_points *p, uint32_t head, const float *from, kvb_error *err)
{
    uint64_t n = p->capture->rows;
    float *to = p->weight + head * n;
    double sum = 0.0;
    for (uint64_t i = 0; i < n; i++) {
        const bool out = is_left_out(&p->capture->layer[p->layer], head * n + i);
        float w = out ? 0.0f : from != NULL ? from[head * n + i] : 1.0f;
        if (!(w >= 0.0f) || !isfinite(w))
            return kvb_train_points_refuse(p, head, KVB_E_CHECK, err,
                          "row %" PRIu64 " has a weight of %g; expected finite numbers from 0 on", i, (double)w);
        to[i] = w;
        sum += (double)w;
    }
    if (!(sum > 0.0))
        return kvb_train_points_refuse(p, head, KVB_E_CHECK, err, "all %" PRIu64 " weights are 0: nothing to train on", n);
    double scale = (double)n / sum;
    for (uint64_t i = 0; i < n; i++)
        to[i] = (float)((double)to[i] * scale);
    return KVB_OK;
}

static kvb_status prepare_weights(kvb_train_points *p, kvb_error *err)
{
    const float *from;
    const bool fisher = p->recipe->kind[p->kind].weights == KVB_WEIGHT_FISHER;
    kvb_status status = choose_weights(p, &from, err);
    if (status != KVB_OK || (from == NULL && !fisher && !any_left_out(p)))
        return status;
    p->weight = kvb_alloc_array((size_t)geometry(p)->kv_heads * p->capture->rows, sizeof *p->weight);
    if (p->weight == NULL)
        return kvb_fail_memory(err, "training weights");
    if (fisher)
        status = kvb_train_fisher_rows(p, p->weight, err);
    from = fisher ? p->weight : from;
    for (uint32_t head = 0; status == KVB_OK && head < geometry(p)->kv_heads; head++)
        status = normalise_head(p, head, from, err);
    return status;
}

kvb_status kvb_train_points_create(kvb_train_points *points, kvb_error *err)
{
    points->moved = points->weight = points->gradient = points->mean = points->forward = points->inverse = NULL;
    kvb_status status = check_finite(points, err);
    if (status == KVB_OK)
        status = prepare_weights(points, err);
    if (status == KVB_OK)
        status = kvb_train_points_move(points, err);
    if (status != KVB_OK)
        kvb_train_points_free(points);
    return status;
}

void kvb_train_points_free(kvb_train_points *points)
{
    free(points->moved);
    free(points->weight);
    free(points->gradient);
    free(points->mean);
    free(points->forward);
    free(points->inverse);
    points->moved = points->weight = points->gradient = points->mean = points->forward = points->inverse = NULL;
}
