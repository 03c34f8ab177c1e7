/* Clips by search: the share of a group's range that its levels cover, chosen by what coding does to attention's output (SKVQ, arXiv
 * 2405.06219). Attention runs over the rows of the first chunk with the queries that the capture kept of it; tokens that a cache would keep
 * exact for a query (sinks, the window) are exact. Keys are tried with exact values, values with exact keys. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "calib/train_impl.h"
#include "format/base/affine.h"
#include "format/base/attention.h"
#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/half.h"
#include "format/base/kernels.h"
#include "format/kvb_layout.h"

enum { MOST_QUERIES = 64, STEPS = 13, ROUNDS = 2 }; /* queries of a head; clips 1, 0.95 .. 0.4 */

/* One KV head of a layer. */
typedef struct clip_job {
    const kvb_train_points *points;
    const kvb_scaling *scaling; /* lists in place, clips not */
    const kvb_layer *geometry;
    const kvb_rope_table *rope;
    const kvb_kernels *kernels;
    kvb_levels levels;
    uint32_t head, dim, n, window, sinks;
    uint32_t rows;          /* R: query heads of this head times the queries of each */
    uint32_t *row;          /* [R] where the query stands */
    size_t ld;              /* n padded */
    float *q;               /* [R][D] times the attention scale */
    float *y;               /* [n][D] what is coded */
    float *keys;            /* [n][D] after RoPE */
    float *values;          /* [n][D] */
    float *inverse_t;       /* [D][D], or NULL: no transform */
    float *decoded, *moved; /* [n][D] */
    float *transposed;      /* [D][ld] */
    float *exact;           /* [R][ld] scores; of values, the shares of the tokens that are coded */
    float *scores;          /* [R][ld] */
    float *out, *tried;     /* [R][D] */
    double norm;            /* of out */
} clip_job;

static float clip_of(uint32_t step)
{
    return 1.0f - 0.05f * (float)step;
}

/* ---- what attention does with exact keys and values */

static uint32_t position_of(const clip_job *j, uint32_t row)
{
    return j->points->capture->row_position[row];
}

static bool sees(const clip_job *j, uint32_t query, uint32_t token)
{
    const uint32_t window = j->geometry->kind == KVB_LAYER_SLIDING ? j->geometry->sliding_window : 0;
    return token == query || (token < query && !kvb_train_points_left_out(j->points, j->head, token) &&
           (window == 0 || position_of(j, query) - position_of(j, token) < window));
}

static bool is_coded(const clip_job *j, uint32_t query, uint32_t token)
{
    return position_of(j, token) >= j->sinks && position_of(j, query) - position_of(j, token) >= j->window;
}

/* scores [R][ld] of keys [n][D] after RoPE. */
static void score(const clip_job *j, const float *keys, float *scores)
{
    kvb_transpose(keys, j->dim, j->n, j->dim, j->transposed, j->ld);
    j->kernels->gemm(j->rows, j->n, j->dim, j->q, j->dim, j->transposed, j->ld, scores, j->ld, false);
}

/* Scores to shares, in place; tokens that a query does not see have -INFINITY. */
static void normalise(const clip_job *j, float *scores)
{
    for (uint32_t r = 0; r < j->rows; r++) {
        float *s = scores + r * j->ld;
        const float most = j->kernels->max(s, j->n), sum = j->kernels->exp_sum(s, j->n, most);
        j->kernels->scale(s, j->n, 1.0f / sum);
    }
}

static void load_queries(const clip_job *j, uint32_t each)
{
    const kvb_capture *c = j->points->capture;
    const uint32_t group = j->geometry->heads / j->geometry->kv_heads;
    for (uint32_t r = 0; r < j->rows; r++) {
        const size_t head = (size_t)j->head * group + r / each;
        j->row[r] = (uint32_t)((uint64_t)(r % each + 1) * j->n / each - 1);
        kvb_half_to_floats(j->q + (size_t)r * j->dim, c->layer[j->points->layer].queries + (head * c->query_rows + j->row[r]) * j->dim, j->dim);
    }
    j->kernels->scale(j->q, (size_t)j->rows * j->dim, (float)j->geometry->attention_scale);
}

static void load_rows(const clip_job *j)
{
    const kvb_capture *c = j->points->capture;
    const kvb_capture_layer *l = &c->layer[j->points->layer];
    const size_t first = (size_t)j->head * c->rows * j->dim, count = (size_t)j->n * j->dim;
    kvb_half_to_floats(j->keys, l->keys + first, count);
    kvb_half_to_floats(j->values, l->values + first, count);
    for (uint32_t i = 0; i < j->n; i++) {
        float *key = j->keys + (size_t)i * j->dim;
        kvb_rope_rotate(j->rope, position_of(j, i), j->dim, key, key);
        kvb_train_points_row(j->points, j->head, i, j->y + (size_t)i * j->dim);
    }
}

static void attend_exactly(clip_job *j)
{
    score(j, j->keys, j->exact);
    for (uint32_t r = 0; r < j->rows; r++)
        for (uint32_t i = 0; i < j->n; i++)
            if (!sees(j, j->row[r], i))
                j->exact[r * j->ld + i] = -INFINITY;
    memcpy(j->scores, j->exact, j->rows * j->ld * sizeof *j->scores);
    normalise(j, j->scores);
    j->kernels->gemm(j->rows, j->dim, j->n, j->scores, j->ld, j->values, j->dim, j->out, j->dim, false);
    j->norm = 0.0;
    for (size_t i = 0; i < (size_t)j->rows * j->dim; i++)
        j->norm += (double)j->out[i] * (double)j->out[i];
    if (j->points->kind == KVB_KEY)
        return;
    memcpy(j->exact, j->scores, j->rows * j->ld * sizeof *j->scores);
    for (uint32_t r = 0; r < j->rows; r++)
        for (uint32_t i = 0; i < j->n; i++)
            if (!is_coded(j, j->row[r], i))
                j->exact[r * j->ld + i] = 0.0f;
}

/* ---- the rows as they are decoded with some clips */

static void code_token(const clip_job *j, const float *clips, const float *y, float *to)
{
    const kvb_scaling *s = j->scaling;
    float in[KVB_TRAIN_MOST_DIM];
    for (uint32_t i = 0; i < j->dim; i++)
        in[i] = y[s->lists > 0 ? s->order[i] : i];
    for (uint32_t g = 0, i = 0; g < kvb_scaling_groups(s, j->dim); g++) {
        const uint32_t end = kvb_scaling_group_end(s, g);
        const kvb_affine a = kvb_affine_measure(s, clips[g], in + i, end - i, 1);
        for (; i < end; i++)
            to[s->lists > 0 ? s->order[i] : i] = a.offset + a.scale * j->levels.level[kvb_levels_code(&j->levels, in[i], a)];
    }
}

/* Tokens that share scales; those of a group that is not whole stay as they are. */
static void code_channels(const clip_job *j, float clip)
{
    const uint32_t group = j->scaling->group;
    uint32_t first = 0;
    while (first < j->n && position_of(j, first) < j->sinks)
        first++;
    memcpy(j->decoded, j->y, (size_t)j->n * j->dim * sizeof *j->y);
    for (; first + group <= j->n; first += group)
        for (uint32_t c = 0; c < j->dim; c++) {
            float *at = j->decoded + (size_t)first * j->dim + c;
            const kvb_affine a = kvb_affine_measure(j->scaling, clip, at, group, j->dim);
            for (uint32_t i = 0; i < group; i++)
                at[(size_t)i * j->dim] = a.offset + a.scale * j->levels.level[kvb_levels_code(&j->levels, at[(size_t)i * j->dim], a)];
        }
}

/* Keys after RoPE, or values, out of what was decoded. */
static const float *undo_space(const clip_job *j)
{
    const kvb_train_points *p = j->points;
    float *x = j->decoded;
    if (p->forward != NULL) {
        j->kernels->gemm(j->n, j->dim, j->dim, j->decoded, j->dim, j->inverse_t, j->dim, j->moved, j->dim, false);
        x = j->moved;
    }
    for (uint32_t i = 0; i < j->n; i++) {
        float *row = x + (size_t)i * j->dim;
        const int64_t turned = p->recipe->frame == KVB_FRAME_PRE ? 0 : kvb_train_turn(p, i);
        for (uint32_t c = 0; p->mean != NULL && c < j->dim; c++)
            row[c] += p->mean[(size_t)j->head * j->dim + c];
        if (p->kind == KVB_KEY)
            kvb_rope_rotate(j->rope, position_of(j, i) - turned, j->dim, row, row);
    }
    return x;
}

static double try_keys(const clip_job *j, const float *keys)
{
    double sum = 0.0;
    score(j, keys, j->scores);
    for (uint32_t r = 0; r < j->rows; r++)
        for (uint32_t i = 0; i < j->n; i++)
            if (j->exact[r * j->ld + i] == -INFINITY || !is_coded(j, j->row[r], i))
                j->scores[r * j->ld + i] = j->exact[r * j->ld + i];
    normalise(j, j->scores);
    j->kernels->gemm(j->rows, j->dim, j->n, j->scores, j->ld, j->values, j->dim, j->tried, j->dim, false);
    for (size_t i = 0; i < (size_t)j->rows * j->dim; i++) {
        const double d = (double)j->tried[i] - (double)j->out[i];
        sum += d * d;
    }
    return sum;
}

static double try_values(const clip_job *j, float *values)
{
    double sum = 0.0;
    for (size_t i = 0; i < (size_t)j->n * j->dim; i++)
        values[i] -= j->values[i];
    j->kernels->gemm(j->rows, j->dim, j->n, j->exact, j->ld, values, j->dim, j->tried, j->dim, false);
    for (size_t i = 0; i < (size_t)j->rows * j->dim; i++)
        sum += (double)j->tried[i] * (double)j->tried[i];
    return sum;
}

/* What coding with these clips does to the output: the sum of squares. */
static double try(const clip_job *j, const float *clips)
{
    for (uint32_t i = 0; j->scaling->axis == KVB_AXIS_TOKEN && i < j->n; i++)
        code_token(j, clips, j->y + (size_t)i * j->dim, j->decoded + (size_t)i * j->dim);
    if (j->scaling->axis == KVB_AXIS_CHANNEL)
        code_channels(j, clips[0]);
    const float *x = undo_space(j);
    return j->points->kind == KVB_KEY ? try_keys(j, x) : try_values(j, (float *)(uintptr_t)x);
}

/* ---- the search */

/* The clip of group g goes on by `step` as long as that helps. */
static void climb(const clip_job *j, uint32_t g, int step, uint32_t *at, float *clips, double *best)
{
    while (step < 0 ? at[g] > 0 : at[g] + 1 < STEPS) {
        clips[g] = clip_of(at[g] + (uint32_t)step);
        const double error = try(j, clips);
        if (!(error < *best))
            break;
        *best = error;
        at[g] += (uint32_t)step;
    }
    clips[g] = clip_of(at[g]);
}

/* From clips of 1: all groups together, then each on its own. Only what helps is kept, so the error never rises. */
static void search(const clip_job *j, float *clips, double *before, double *after)
{
    const uint32_t count = j->scaling->axis == KVB_AXIS_CHANNEL ? 1 : kvb_scaling_groups(j->scaling, j->dim);
    uint32_t at[KVB_TRAIN_MOST_DIM] = {0}, together = 0;
    double best = 0.0, found;
    for (uint32_t step = 0; step < STEPS; step++) {
        for (uint32_t g = 0; g < count; g++)
            clips[g] = clip_of(step);
        const double error = try(j, clips);
        if (step == 0)
            *before = error;
        if (step == 0 || error < best) {
            best = error;
            together = step;
        }
    }
    for (uint32_t g = 0; g < count; g++) {
        at[g] = together;
        clips[g] = clip_of(together);
    }
    for (uint32_t round = 0; count > 1 && round < ROUNDS; round++) {
        found = best;
        for (uint32_t g = 0; g < count; g++) {
            climb(j, g, 1, at, clips, &best);
            climb(j, g, -1, at, clips, &best);
        }
        if (!(best < found))
            break;
    }
    *after = best;
}

static bool make_room(clip_job *j)
{
    const size_t rows = (size_t)j->n * j->dim, queries = (size_t)j->rows * j->dim, scores = j->rows * j->ld;
    j->row = kvb_alloc_array(j->rows, sizeof *j->row);
    j->q = kvb_alloc_array(3 * queries, sizeof *j->q);
    j->y = kvb_alloc_array(5 * rows, sizeof *j->y);
    j->transposed = kvb_alloc_zeroed(j->dim * j->ld, sizeof *j->transposed);
    j->exact = kvb_alloc_zeroed(2 * scores, sizeof *j->exact);
    j->inverse_t = kvb_alloc_array((size_t)j->dim * j->dim, sizeof *j->inverse_t);
    if (j->row == NULL || j->q == NULL || j->y == NULL || j->transposed == NULL || j->exact == NULL || j->inverse_t == NULL)
        return false;
    j->out = j->q + queries;
    j->tried = j->q + 2 * queries;
    j->keys = j->y + rows;
    j->values = j->y + 2 * rows;
    j->decoded = j->y + 3 * rows;
    j->moved = j->y + 4 * rows;
    j->scores = j->exact + scores;
    return true;
}

static void free_room(clip_job *j)
{
    free(j->row);
    free(j->q);
    free(j->y);
    free(j->transposed);
    free(j->exact);
    free(j->inverse_t);
}

/* before and after: the error relative to the output. False if out of memory. */
static bool search_head(clip_job *j, float *clips, double *before, double *after)
{
    const uint32_t each = j->n < MOST_QUERIES ? j->n : MOST_QUERIES;
    j->rows = j->geometry->heads / j->geometry->kv_heads * each;
    const bool memory = make_room(j);
    if (memory) {
        load_queries(j, each);
        load_rows(j);
        if (j->points->inverse != NULL)
            kvb_transpose(j->points->inverse + (size_t)j->head * j->dim * j->dim, j->dim, j->dim, j->dim, j->inverse_t, j->dim);
        attend_exactly(j);
        search(j, clips, before, after);
        *before = j->norm > 0.0 ? *before / j->norm : 0.0;
        *after = j->norm > 0.0 ? *after / j->norm : 0.0;
    }
    free_room(j);
    return memory;
}

static kvb_status check_capture(const kvb_train_points *p, kvb_error *err)
{
    if (p->capture->query_rows > 0 && p->capture->layer[p->layer].queries != NULL)
        return KVB_OK;
    return kvb_train_points_refuse(p, 0, KVB_E_MISMATCH, err, "the capture has no layers.%u.queries, and recipe \"%s\" searches the clips of the %s by "
                                   "them: capture with --queries, or give \"clip\" a number", p->layer, p->recipe->name,
                                   kvb_train_kind_name(p->kind));
}

kvb_status kvb_train_clips(const kvb_train_points *p, const kvb_scaling *scaling, const kvb_levels *levels, float *clips, double *before,
                           double *after, kvb_error *err)
{
    const kvb_layer *g = &p->capture->geometry[p->layer];
    kvb_rope_table rope = {0};
    kvb_status status = check_capture(p, err);
    if (status != KVB_OK)
        return status;
    const uint32_t n = (uint32_t)p->capture->query_rows, last = p->capture->row_position[n - 1], window = p->recipe->policy.window;
    status = kvb_rope_table_create(&rope, g, 0, last + 1, err);
    bool memory = true;
#pragma omp parallel for schedule(dynamic, 1) num_threads(kvb_train_threads(p)) reduction(&& : memory)
    for (uint32_t head = 0; head < (status == KVB_OK ? g->kv_heads : 0); head++) {
        clip_job j = {.points = p, .scaling = &scaling[head], .geometry = g, .rope = &rope, .kernels = kvb_kernels_best(), .levels = *levels,
                      .head = head, .dim = g->head_dim, .n = n, .window = window < last / 2 ? window : last / 2, .sinks = p->recipe->policy.sinks,
                      .ld = kvb_attn_padded(n)};
        memory = search_head(&j, clips + (size_t)head * g->head_dim, &before[head], &after[head]) && memory;
    }
    kvb_rope_table_free(&rope);
    return status == KVB_OK && !memory ? kvb_fail_memory(err, "the search of clips") : status;
}
