#include "format/base/attention.h"

#include <math.h>
#include <string.h>

void kvb_attn_begin(kvb_attn_state *s, uint32_t rows, uint32_t head_dim, float *out)
{
    for (uint32_t i = 0; i < rows; i++) {
        s->max[i] = -INFINITY;
        s->sum[i] = 0.0f;
    }
    memset(out, 0, (size_t)rows * head_dim * sizeof *out);
}

/* Raises a row's running maximum to that of the tile and rescales what it has gathered so far. */
static void raise_max(const kvb_kernels *k, kvb_attn_state *s, uint32_t i, float tile_max, uint32_t head_dim,
                      float *out)
{
    if (!(tile_max > s->max[i]))
        return;
    if (s->sum[i] > 0.0f) {
        float shrink = expf(s->max[i] - tile_max);
        s->sum[i] *= shrink;
        k->scale(out, head_dim, shrink);
    }
    s->max[i] = tile_max;
}

void kvb_attn_fold(const kvb_kernels *k, kvb_attn_state *s, uint32_t rows, uint32_t cols, float *scores, size_t ld,
                   const float *v, size_t ldv, uint32_t head_dim, float *out)
{
    for (uint32_t i = 0; i < rows; i++) {
        float *row = scores + i * ld;
        raise_max(k, s, i, k->max(row, cols), head_dim, out + (size_t)i * head_dim);
        if (s->max[i] == -INFINITY)
            memset(row, 0, cols * sizeof *row);
        else
            s->sum[i] += k->exp_sum(row, cols, s->max[i]);
    }
    k->gemm(rows, head_dim, cols, scores, ld, v, ldv, out, head_dim, true);
}

void kvb_attn_end(const kvb_kernels *k, const kvb_attn_state *s, uint32_t rows, uint32_t head_dim, float *out,
                  float *lse)
{
    for (uint32_t i = 0; i < rows; i++) {
        k->scale(out + (size_t)i * head_dim, head_dim, 1.0f / s->sum[i]);
        if (lse != NULL)
            lse[i] = s->max[i] + logf(s->sum[i]);
    }
}

void kvb_transpose(const float *x, size_t ld, uint32_t rows, uint32_t cols, float *out, size_t ld_out)
{
    enum { BLOCK = 16 };
    for (uint32_t r0 = 0; r0 < rows; r0 += BLOCK)
        for (uint32_t c = 0; c < cols; c++)
            for (uint32_t r = r0; r < r0 + BLOCK && r < rows; r++)
                out[c * ld_out + r] = x[r * ld + c];
    for (uint32_t c = 0; c < cols; c++)
        memset(out + c * ld_out + rows, 0, (ld_out - rows) * sizeof *out);
}

size_t kvb_attn_padded(uint32_t tokens)
{
    return ((size_t)tokens + KVB_ATTN_COLS - 1) / KVB_ATTN_COLS * KVB_ATTN_COLS;
}

size_t kvb_attn_scratch_floats(uint32_t head_dim)
{
    return (size_t)KVB_ATTN_ROWS * (KVB_ATTN_COLS + head_dim);
}

/* Puts -infinity (or 0, for probabilities) where a query may not look: later keys, and those outside the window. */
static void mask_tile(float *scores, uint32_t first_query, uint32_t rows, uint32_t first_key, uint32_t cols,
                      uint32_t sliding_window, float masked)
{
    for (uint32_t i = 0; i < rows; i++) {
        uint32_t query = first_query + i;
        uint32_t low = sliding_window != 0 && query + 1 > sliding_window ? query + 1 - sliding_window : 0;
        float *row = scores + (size_t)i * KVB_ATTN_COLS;
        for (uint32_t j = 0; j < cols; j++)
            if (first_key + j > query || first_key + j < low)
                row[j] = masked;
    }
}

static bool tile_needs_mask(uint32_t first_query, uint32_t rows, uint32_t first_key, uint32_t cols,
                            uint32_t sliding_window)
{
    uint32_t last_query = first_query + rows - 1;
    return first_key + cols - 1 > first_query || (sliding_window != 0 && first_key + sliding_window <= last_query);
}

static void scale_rows(const kvb_kernels *k, const float *q, size_t count, float scale, float *out)
{
    memcpy(out, q, count * sizeof *out);
    k->scale(out, count, scale);
}

static uint32_t at_most(uint32_t value, uint32_t most)
{
    return value < most ? value : most;
}

void kvb_attn_exact(const kvb_kernels *k, const float *q, const float *keys_t, size_t ld_t, const float *values,
                    uint32_t first, uint32_t rows, uint32_t head_dim, float scale, uint32_t sliding_window, float *out,
                    float *lse, float *scratch)
{
    float *scores = scratch, *scaled = scratch + KVB_ATTN_ROWS * KVB_ATTN_COLS;
    kvb_attn_state state;
    scale_rows(k, q + (size_t)first * head_dim, (size_t)rows * head_dim, scale, scaled);
    kvb_attn_begin(&state, rows, head_dim, out);
    uint32_t end = first + rows;
    uint32_t low = sliding_window != 0 && first + 1 > sliding_window ? first + 1 - sliding_window : 0;
    for (uint32_t key = low / KVB_ATTN_COLS * KVB_ATTN_COLS; key < end; key += KVB_ATTN_COLS) {
        uint32_t cols = at_most(end - key, KVB_ATTN_COLS);
        k->gemm(rows, KVB_ATTN_COLS, head_dim, scaled, head_dim, keys_t + key, ld_t, scores, KVB_ATTN_COLS, false);
        if (tile_needs_mask(first, rows, key, cols, sliding_window))
            mask_tile(scores, first, rows, key, cols, sliding_window, -INFINITY);
        kvb_attn_fold(k, &state, rows, cols, scores, KVB_ATTN_COLS, values + (size_t)key * head_dim, head_dim,
                      head_dim, out);
    }
    kvb_attn_end(k, &state, rows, head_dim, out, lse);
}

size_t kvb_attn_weights_scratch_floats(uint32_t head_dim)
{
    return kvb_attn_scratch_floats(head_dim) + (size_t)(KVB_ATTN_ROWS + 2) * KVB_ATTN_COLS;
}

/* One tile's share of both weights: column sums over its queries. */
static void add_tile_weights(const kvb_kernels *k, const kvb_attn_head *h, uint32_t first, uint32_t rows,
                             uint32_t cols, const float *prob, const float *distance, float *sums, double *weight_k,
                             double *weight_v)
{
    float *sum_k = sums, *sum_v = sums + KVB_ATTN_COLS;
    memset(sums, 0, 2 * KVB_ATTN_COLS * sizeof *sums);
    for (uint32_t i = 0; i < rows; i++) {
        const float *p = prob + (size_t)i * KVB_ATTN_COLS;
        k->axpy(sum_v, p, cols, 1.0f);
        if (distance != NULL)
            k->axpy_product(sum_k, p, distance + (size_t)i * KVB_ATTN_COLS, cols, h->scale * h->q_norm[first + i]);
    }
    for (uint32_t j = 0; j < cols; j++) {
        if (weight_k != NULL)
            weight_k[j] += (double)sum_k[j];
        if (weight_v != NULL)
            weight_v[j] += (double)sum_v[j];
    }
}

void kvb_attn_weights(const kvb_kernels *k, const kvb_attn_head *h, uint32_t key_first, uint32_t key_count,
                      double *weight_k, double *weight_v, float *scratch)
{
    const uint32_t dim = h->head_dim;
    float *prob = scratch, *scaled = prob + KVB_ATTN_ROWS * KVB_ATTN_COLS;
    float *distance = scaled + (size_t)KVB_ATTN_ROWS * dim, *sums = distance + KVB_ATTN_ROWS * KVB_ATTN_COLS;
    uint32_t end = h->tokens;
    if (h->sliding_window != 0)
        end = at_most(end, key_first + key_count - 1 + h->sliding_window);
    for (uint32_t first = key_first; first < end; first += KVB_ATTN_ROWS) {
        uint32_t rows = at_most(end - first, KVB_ATTN_ROWS);
        scale_rows(k, h->q + (size_t)first * dim, (size_t)rows * dim, h->scale, scaled);
        k->gemm(rows, KVB_ATTN_COLS, dim, scaled, dim, h->keys_t + key_first, h->ld_t, prob, KVB_ATTN_COLS, false);
        for (uint32_t i = 0; i < rows; i++)
            k->exp_sum(prob + (size_t)i * KVB_ATTN_COLS, key_count, h->lse[first + i]);
        if (tile_needs_mask(first, rows, key_first, key_count, h->sliding_window))
            mask_tile(prob, first, rows, key_first, key_count, h->sliding_window, 0.0f);
        if (weight_k != NULL)
            k->l1(rows, KVB_ATTN_COLS, dim, h->out + (size_t)first * dim, dim, h->values_t + key_first, h->ld_t,
                  distance, KVB_ATTN_COLS);
        add_tile_weights(k, h, first, rows, key_count, prob, weight_k != NULL ? distance : NULL, sums, weight_k,
                         weight_v);
    }
}
