#include "runtime/attend_step.h"

#include <math.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"

kvb_status kvb_step_create(kvb_step *s, const kvb_layer *layer, const kvb_policy *policy, kvb_error *err)
{
    const uint32_t rows = layer->heads / layer->kv_heads, dim = layer->head_dim;
    *s = (kvb_step){.kernels = kvb_kernels_best(), .rows = rows, .head_dim = dim};
    s->sliding_window = layer->kind == KVB_LAYER_SLIDING ? layer->sliding_window : 0;
    s->scale = (float)layer->attention_scale;
    s->scores_k = policy->score == KVB_SCORE_EXACT_K;
    s->blocks = (rows + KVB_ATTN_ROWS - 1) / KVB_ATTN_ROWS;
    s->state = kvb_alloc_array(s->blocks, sizeof *s->state);
    s->q = kvb_alloc_array((size_t)rows * dim, sizeof *s->q);
    s->out = kvb_alloc_array((size_t)rows * dim, sizeof *s->out);
    s->scaled = kvb_alloc_array((size_t)rows * dim, sizeof *s->scaled);
    s->lse = kvb_alloc_array(rows, sizeof *s->lse);
    s->q_norm = kvb_alloc_array(rows, sizeof *s->q_norm);
    s->tile = kvb_alloc_array((size_t)rows * KVB_ATTN_COLS, sizeof *s->tile);
    s->distance = kvb_alloc_array((size_t)rows * KVB_ATTN_COLS, sizeof *s->distance);
    s->values_t = kvb_alloc_array((size_t)dim * KVB_ATTN_COLS, sizeof *s->values_t);
    if (s->state != NULL && s->q != NULL && s->out != NULL && s->scaled != NULL && s->lse != NULL &&
        s->q_norm != NULL && s->tile != NULL && s->distance != NULL && s->values_t != NULL)
        return KVB_OK;
    kvb_step_free(s);
    return kvb_fail_memory(err, "scratch of attention");
}

void kvb_step_free(kvb_step *s)
{
    free(s->state);
    free(s->q);
    free(s->out);
    free(s->scaled);
    free(s->lse);
    free(s->q_norm);
    free(s->tile);
    free(s->distance);
    free(s->recent);
    free(s->values_t);
    *s = (kvb_step){0};
}

bool kvb_step_reserve(kvb_step *s, uint32_t recent)
{
    if (recent <= s->recent_room)
        return true;
    uint32_t room = recent < UINT32_MAX / 2 ? 2 * recent : recent;
    float *more = kvb_alloc_array((size_t)s->rows * room, sizeof *more);
    if (more == NULL)
        return false;
    free(s->recent);
    s->recent = more;
    s->recent_room = room;
    return true;
}

static uint32_t block_rows(const kvb_step *s, uint32_t block)
{
    uint32_t left = s->rows - block * KVB_ATTN_ROWS;
    return left < KVB_ATTN_ROWS ? left : KVB_ATTN_ROWS;
}

void kvb_step_begin(kvb_step *s, uint32_t position, uint32_t recent_first, uint32_t recent_count)
{
    const size_t values = (size_t)s->rows * s->head_dim;
    s->position = position;
    s->recent_first = recent_first;
    s->recent_count = recent_count;
    memcpy(s->scaled, s->q, values * sizeof *s->scaled);
    s->kernels->scale(s->scaled, values, s->scale);
    for (uint32_t r = 0; r < s->rows; r++) {
        const float *q = s->q + (size_t)r * s->head_dim;
        s->q_norm[r] = sqrtf(s->kernels->dot(q, q, s->head_dim));
    }
    for (uint32_t b = 0; b < s->blocks; b++)
        kvb_attn_begin(s->state + b, block_rows(s, b), s->head_dim, s->out + (size_t)b * KVB_ATTN_ROWS * s->head_dim);
}

static uint32_t first_visible(const kvb_step *s)
{
    if (s->sliding_window == 0 || s->position < s->sliding_window)
        return 0;
    return s->position + 1 - s->sliding_window;
}

uint32_t kvb_step_first_tile(const kvb_step *s)
{
    return first_visible(s) / KVB_ATTN_COLS * KVB_ATTN_COLS;
}

/* Hides what lies before a sliding window. */
static void mask_hidden(kvb_step *s, uint32_t first, uint32_t cols)
{
    uint32_t visible = first_visible(s);
    for (uint32_t r = 0; r < s->rows; r++)
        for (uint32_t j = 0; j < cols && first + j < visible; j++)
            s->tile[(size_t)r * KVB_ATTN_COLS + j] = -INFINITY;
}

static void keep_recent(kvb_step *s, uint32_t first, uint32_t cols)
{
    if (s->recent_count == 0 || first + cols <= s->recent_first)
        return;
    uint32_t from = first < s->recent_first ? s->recent_first - first : 0;
    for (uint32_t r = 0; r < s->rows; r++)
        memcpy(s->recent + (size_t)r * s->recent_room + (first + from - s->recent_first),
               s->tile + (size_t)r * KVB_ATTN_COLS + from, (cols - from) * sizeof *s->recent);
}

void kvb_step_tile(kvb_step *s, uint32_t first, uint32_t cols, const float *keys_t, const float *values)
{
    const uint32_t dim = s->head_dim;
    s->kernels->gemm(s->rows, KVB_ATTN_COLS, dim, s->scaled, dim, keys_t, KVB_ATTN_COLS, s->tile, KVB_ATTN_COLS, false);
    mask_hidden(s, first, cols);
    keep_recent(s, first, cols);
    for (uint32_t b = 0; b < s->blocks; b++)
        kvb_attn_fold(s->kernels, s->state + b, block_rows(s, b), cols,
                      s->tile + (size_t)b * KVB_ATTN_ROWS * KVB_ATTN_COLS, KVB_ATTN_COLS, values, dim, dim,
                      s->out + (size_t)b * KVB_ATTN_ROWS * dim);
}

void kvb_step_end(kvb_step *s)
{
    for (uint32_t b = 0; b < s->blocks; b++)
        kvb_attn_end(s->kernels, s->state + b, block_rows(s, b), s->head_dim,
                     s->out + (size_t)b * KVB_ATTN_ROWS * s->head_dim, s->lse + (size_t)b * KVB_ATTN_ROWS);
}

void kvb_step_add_scores(kvb_step *s, uint32_t first, uint32_t count, const float *values, double *score)
{
    const uint32_t dim = s->head_dim;
    if (s->scores_k) {
        uint32_t padded = (count + 15) / 16 * 16; /* whole vectors of the widest build */
        kvb_transpose(values, dim, count, dim, s->values_t, padded);
        s->kernels->l1(s->rows, padded, dim, s->out, dim, s->values_t, padded, s->distance, KVB_ATTN_COLS);
    }
    for (uint32_t r = 0; r < s->rows; r++) {
        float *prob = s->tile + (size_t)r * KVB_ATTN_COLS;
        const float *distance = s->distance + (size_t)r * KVB_ATTN_COLS;
        memcpy(prob, s->recent + (size_t)r * s->recent_room + (first - s->recent_first), count * sizeof *prob);
        s->kernels->exp_sum(prob, count, s->lse[r]);
        double weight = (double)s->scale * (double)s->q_norm[r];
        for (uint32_t j = 0; j < count; j++)
            score[j] += s->scores_k ? weight * (double)prob[j] * (double)distance[j] : (double)prob[j];
    }
}
