#include "calib/attention_grad.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/attention.h"
#include "format/base/checked.h"
#include "format/base/fail.h"

enum { ROWS = KVB_ATTN_ROWS, COLS = KVB_ATTN_COLS };

/* Tiles are blocks of their own, [D][COLS] or [D][ROWS], so that their rows lie close: a stride of a whole sequence
 * would put all of them into the same cache sets. "Settled" is how a token is read once all that will ever be coded is:
 * tokens that stay exact for ever hold their exact rows there. */
struct kvb_attn_grad {
    const kvb_kernels *kernels;
    uint32_t threads;
    float *exact_t, *settled_t;    /* [G][tiles][D][COLS] */
    float *settled_k, *settled_v;  /* [G][T][D] */
    uint32_t *first_change;        /* [G][tiles] the first query that reads a token of the tile from its codes */
    uint32_t *last_change;         /* [G][tiles] the last such change; 0 if none */
    float *q_t, *d_out_t;          /* [H][blocks][D][ROWS], q scaled */
    float *delta;                  /* [H][blocks * ROWS] rowsum(dO' * O') */
    float *scratch;                /* [threads][task_floats()] */
};

static uint32_t pieces(uint32_t count, uint32_t size)
{
    return (count + size - 1) / size;
}

static uint32_t at_most(uint32_t value, uint32_t most)
{
    return value < most ? value : most;
}

static size_t task_floats(uint32_t head_dim)
{
    return (size_t)ROWS * (2 * COLS + head_dim) + (size_t)COLS * head_dim;
}

static float *floats(uint64_t count)
{
    return kvb_alloc_array(count, sizeof(float));
}

kvb_status kvb_attn_grad_create(uint32_t heads, uint32_t kv_heads, uint32_t head_dim, uint32_t tokens, uint32_t threads,
                                kvb_attn_grad **grad, kvb_error *err)
{
    const size_t tiles = pieces(tokens, COLS), blocks = pieces(tokens, ROWS), dim = head_dim;
    const size_t padded = kv_heads * tiles * COLS * dim, queries = heads * blocks * ROWS;
    kvb_attn_grad *a = kvb_alloc_zeroed(1, sizeof *a);
    *grad = a;
    if (a == NULL)
        return kvb_fail_memory(err, "attention gradients");
    a->kernels = kvb_kernels_best();
    a->threads = threads != 0 ? threads : (uint32_t)omp_get_max_threads();
    a->exact_t = floats(padded);
    a->settled_t = floats(padded);
    a->settled_k = floats((size_t)kv_heads * tokens * dim);
    a->settled_v = floats((size_t)kv_heads * tokens * dim);
    a->first_change = kvb_alloc_array(kv_heads * tiles, sizeof *a->first_change);
    a->last_change = kvb_alloc_array(kv_heads * tiles, sizeof *a->last_change);
    a->q_t = floats(queries * dim);
    a->d_out_t = floats(queries * dim);
    a->delta = floats(queries);
    a->scratch = floats(a->threads * task_floats(head_dim));
    if (a->exact_t != NULL && a->settled_t != NULL && a->settled_k != NULL && a->settled_v != NULL &&
        a->first_change != NULL && a->last_change != NULL && a->q_t != NULL && a->d_out_t != NULL && a->delta != NULL &&
        a->scratch != NULL)
        return KVB_OK;
    kvb_attn_grad_destroy(a);
    *grad = NULL;
    return kvb_fail_memory(err, "attention gradients");
}

void kvb_attn_grad_destroy(kvb_attn_grad *a)
{
    if (a == NULL)
        return;
    float *all[] = {a->exact_t, a->settled_t, a->settled_k, a->settled_v, a->q_t, a->d_out_t, a->delta, a->scratch};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    free(a->first_change);
    free(a->last_change);
    free(a);
}

static float *my_scratch(const kvb_attn_grad *a, uint32_t head_dim)
{
    return a->scratch + (size_t)omp_get_thread_num() * task_floats(head_dim);
}

static void find_changes(const kvb_attn_grad *a, const kvb_grad_layer *l, uint32_t g)
{
    const uint32_t tiles = pieces(l->tokens, COLS);
    const uint32_t *until = l->until + (size_t)g * l->tokens;
    for (uint32_t tile = 0; tile < tiles; tile++) {
        uint32_t first = KVB_GRAD_EVER, last = 0;
        for (uint32_t j = tile * COLS; j < (tile + 1) * COLS && j < l->tokens; j++) {
            first = until[j] < first ? until[j] : first;
            last = until[j] != KVB_GRAD_EVER && until[j] > last ? until[j] : last;
        }
        a->first_change[(size_t)g * tiles + tile] = first;
        a->last_change[(size_t)g * tiles + tile] = last;
    }
}

static void settle_head(const kvb_attn_grad *a, const kvb_grad_layer *l, uint32_t g)
{
    const uint32_t tiles = pieces(l->tokens, COLS);
    const size_t dim = l->head_dim, head = (size_t)g * l->tokens;
    for (size_t row = head; row < head + l->tokens; row++) {
        const bool coded = l->until[row] != KVB_GRAD_EVER;
        memcpy(a->settled_k + row * dim, (coded ? l->coded_k : l->exact_k) + row * dim, dim * sizeof(float));
        memcpy(a->settled_v + row * dim, (coded ? l->coded_v : l->exact_v) + row * dim, dim * sizeof(float));
    }
    for (uint32_t tile = 0; tile < tiles; tile++) {
        const uint32_t first = tile * COLS, rows = at_most(l->tokens - first, COLS);
        const size_t from = (head + first) * dim, to = ((size_t)g * tiles + tile) * COLS * dim;
        kvb_transpose(l->exact_k + from, dim, rows, l->head_dim, a->exact_t + to, COLS);
        kvb_transpose(a->settled_k + from, dim, rows, l->head_dim, a->settled_t + to, COLS);
    }
    find_changes(a, l, g);
}

/* ---- forward */

/* Which entries of a tile a pass reads. */
typedef enum tile_pass { PASS_ALL, PASS_EXACT, PASS_CODED } tile_pass;

typedef struct query_block {
    const kvb_attn_grad *a;
    const kvb_grad_layer *l;
    uint32_t g, first, rows; /* KV head; queries */
    float *scaled, *scores, *out;
    kvb_attn_state state;
} query_block;

static bool reads(const kvb_grad_layer *l, uint32_t g, uint32_t query, uint32_t key, tile_pass pass)
{
    if (key > query || (l->sliding_window != 0 && query - key >= l->sliding_window))
        return false;
    return pass == PASS_ALL || (query < l->until[(size_t)g * l->tokens + key]) == (pass == PASS_EXACT);
}

static void fold_tile(query_block *b, uint32_t tile, tile_pass pass, bool exact)
{
    const kvb_grad_layer *l = b->l;
    const uint32_t dim = l->head_dim, first = tile * COLS, end = b->first + b->rows;
    const uint32_t cols = at_most(end - first, COLS);
    const float *keys = (exact ? b->a->exact_t : b->a->settled_t) +
                        ((size_t)b->g * pieces(l->tokens, COLS) + tile) * COLS * dim;
    const float *values = (exact ? l->exact_v : b->a->settled_v) + ((size_t)b->g * l->tokens + first) * dim;
    const kvb_kernels *k = b->a->kernels;
    k->gemm(b->rows, COLS, dim, b->scaled, dim, keys, COLS, b->scores, COLS, false);
    const bool slides = l->sliding_window != 0 && end - 1 - first >= l->sliding_window;
    if (pass != PASS_ALL || first + cols > b->first + 1 || slides)
        for (uint32_t i = 0; i < b->rows; i++)
            for (uint32_t j = 0; j < cols; j++)
                if (!reads(l, b->g, b->first + i, first + j, pass))
                    b->scores[(size_t)i * COLS + j] = -INFINITY;
    kvb_attn_fold(k, &b->state, b->rows, cols, b->scores, COLS, values, dim, dim, b->out);
}

/* A tile that all queries of the block read alike is folded once, a mixed one twice, each time without the other's. */
static void attend_block(query_block *b, float *lse)
{
    const kvb_grad_layer *l = b->l;
    const uint32_t end = b->first + b->rows, window = l->sliding_window, tiles = pieces(l->tokens, COLS);
    const uint32_t low = window != 0 && b->first >= window ? b->first + 1 - window : 0;
    const uint32_t *first_change = b->a->first_change + (size_t)b->g * tiles;
    const uint32_t *last_change = b->a->last_change + (size_t)b->g * tiles;
    kvb_attn_begin(&b->state, b->rows, l->head_dim, b->out);
    for (uint32_t tile = low / COLS; tile * COLS < end; tile++) {
        if (first_change[tile] >= end) {
            fold_tile(b, tile, PASS_ALL, true);
        } else if (last_change[tile] <= b->first) {
            fold_tile(b, tile, PASS_ALL, false);
        } else {
            fold_tile(b, tile, PASS_EXACT, true);
            fold_tile(b, tile, PASS_CODED, false);
        }
    }
    kvb_attn_end(b->a->kernels, &b->state, b->rows, l->head_dim, b->out, lse);
}

static void forward_task(const kvb_attn_grad *a, const kvb_grad_layer *l, uint32_t head, uint32_t first, float *out,
                         float *lse)
{
    const size_t dim = l->head_dim, row = (size_t)head * l->tokens + first;
    float *scratch = my_scratch(a, l->head_dim);
    query_block b = {.a = a, .l = l, .g = head / (l->heads / l->kv_heads), .first = first,
                     .rows = at_most(l->tokens - first, ROWS), .scaled = scratch, .scores = scratch + ROWS * dim,
                     .out = out + row * dim};
    memcpy(b.scaled, l->q + row * dim, b.rows * dim * sizeof(float));
    a->kernels->scale(b.scaled, b.rows * dim, (float)l->scale);
    attend_block(&b, lse + row);
}

void kvb_attn_grad_forward(kvb_attn_grad *a, const kvb_grad_layer *l, float *out, float *lse)
{
    const uint32_t blocks = pieces(l->tokens, ROWS);
#pragma omp parallel num_threads((int)a->threads)
    {
#pragma omp for schedule(dynamic, 1)
        for (uint32_t g = 0; g < l->kv_heads; g++)
            settle_head(a, l, g);
        /* The longest rows first, so that threads end together. */
#pragma omp for schedule(dynamic, 1)
        for (uint32_t task = 0; task < blocks * l->heads; task++)
            forward_task(a, l, task % l->heads, (blocks - 1 - task / l->heads) * ROWS, out, lse);
    }
}

/* ---- backward */

/* Queries of a head in transposed blocks, and what the softmax takes off their scores' gradients. */
static void prepare_queries(const kvb_attn_grad *a, const kvb_grad_layer *l, uint32_t head, const float *out,
                            const float *d_out)
{
    const uint32_t blocks = pieces(l->tokens, ROWS);
    const size_t dim = l->head_dim;
    for (uint32_t block = 0; block < blocks; block++) {
        const uint32_t first = block * ROWS, rows = at_most(l->tokens - first, ROWS);
        const size_t row = (size_t)head * l->tokens + first, to = ((size_t)head * blocks + block) * ROWS;
        kvb_transpose(l->q + row * dim, dim, rows, l->head_dim, a->q_t + to * dim, ROWS);
        a->kernels->scale(a->q_t + to * dim, ROWS * dim, (float)l->scale);
        kvb_transpose(d_out + row * dim, dim, rows, l->head_dim, a->d_out_t + to * dim, ROWS);
        for (uint32_t i = 0; i < ROWS; i++)
            a->delta[to + i] = i < rows ? a->kernels->dot(d_out + (row + i) * dim, out + (row + i) * dim, dim) : 0.0f;
    }
}

/* One tile of keys and the gradients of its rows. */
typedef struct key_tile {
    const kvb_attn_grad *a;
    const kvb_grad_layer *l;
    uint32_t g, first, cols;
    float *prob, *d_score; /* [cols][ROWS]: keys down, queries across */
    float *d_k, *d_v;      /* [cols][D] */
} key_tile;

/* c[cols][ROWS] = rows(keys or values) * tile^T - shift, the shift being one number a query. */
static void shifted_product(const key_tile *t, const float *rows, const float *tile, const float *shift, float *c)
{
    for (uint32_t i = 0; i < ROWS; i++)
        c[i] = -shift[i];
    for (uint32_t j = 1; j < t->cols; j++)
        memcpy(c + (size_t)j * ROWS, c, ROWS * sizeof *c);
    t->a->kernels->gemm(t->cols, ROWS, t->l->head_dim, rows, t->l->head_dim, tile, ROWS, c, ROWS, true);
}

static bool block_is_plain(const key_tile *t, uint32_t first, uint32_t rows)
{
    const kvb_grad_layer *l = t->l;
    const uint32_t changed = t->a->last_change[(size_t)t->g * pieces(l->tokens, COLS) + t->first / COLS];
    return first >= t->first + t->cols - 1 && first >= changed &&
           (l->sliding_window == 0 || first + rows - 1 - t->first < l->sliding_window);
}

/* Which of the two ways a query reads a key a block adds: exactly before the key is coded, or as it stays. */
static bool adds(const key_tile *t, uint32_t query, uint32_t key, bool exact)
{
    const bool ever = t->l->until[(size_t)t->g * t->l->tokens + key] == KVB_GRAD_EVER;
    if (ever)
        return !exact && reads(t->l, t->g, query, key, PASS_ALL);
    return reads(t->l, t->g, query, key, exact ? PASS_EXACT : PASS_CODED);
}

static void add_block(const key_tile *t, uint32_t head, uint32_t block, const float *lse, const float *d_out, bool exact)
{
    const kvb_grad_layer *l = t->l;
    const uint32_t first = block * ROWS, rows = at_most(l->tokens - first, ROWS), dim = l->head_dim;
    const size_t row = (size_t)head * l->tokens + first, at = ((size_t)head * pieces(l->tokens, ROWS) + block) * ROWS;
    const size_t key = ((size_t)t->g * l->tokens + t->first) * dim;
    const kvb_kernels *k = t->a->kernels;
    float shift[ROWS] = {0};
    memcpy(shift, lse + row, rows * sizeof *shift);
    shifted_product(t, (exact ? l->exact_k : t->a->settled_k) + key, t->a->q_t + at * dim, shift, t->prob);
    shifted_product(t, (exact ? l->exact_v : t->a->settled_v) + key, t->a->d_out_t + at * dim, t->a->delta + at, t->d_score);
    k->exp_sum(t->prob, (size_t)t->cols * ROWS, 0.0f);
    if (exact || !block_is_plain(t, first, rows))
        for (uint32_t j = 0; j < t->cols; j++)
            for (uint32_t i = 0; i < rows; i++)
                if (!adds(t, first + i, t->first + j, exact))
                    t->prob[(size_t)j * ROWS + i] = 0.0f;
    const size_t count = (size_t)t->cols * ROWS;
#pragma omp simd
    for (size_t i = 0; i < count; i++)
        t->d_score[i] *= t->prob[i];
    k->gemm(t->cols, dim, rows, t->prob, ROWS, d_out + row * dim, dim, t->d_v, dim, true);
    k->gemm(t->cols, dim, rows, t->d_score, ROWS, l->q + row * dim, dim, t->d_k, dim, true);
}

static void backward_task(const kvb_attn_grad *a, const kvb_grad_layer *l, uint32_t g, uint32_t tile, const float *lse,
                          const float *d_out, float *d_k, float *d_v)
{
    const size_t dim = l->head_dim, row = (size_t)g * l->tokens + tile * COLS;
    const uint32_t group = l->heads / l->kv_heads, first = tile * COLS;
    const uint32_t change = a->first_change[(size_t)g * pieces(l->tokens, COLS) + tile];
    float *scratch = my_scratch(a, l->head_dim);
    key_tile t = {.a = a, .l = l, .g = g, .first = first, .cols = at_most(l->tokens - first, COLS), .prob = scratch,
                  .d_score = scratch + ROWS * COLS, .d_k = d_k + row * dim, .d_v = d_v + row * dim};
    uint32_t end = l->tokens;
    if (l->sliding_window != 0)
        end = at_most(end, first + t.cols - 1 + l->sliding_window);
    memset(t.d_k, 0, t.cols * dim * sizeof(float));
    memset(t.d_v, 0, t.cols * dim * sizeof(float));
    const uint32_t start = (change > first ? change : first) / ROWS;
    for (uint32_t head = g * group; head < (g + 1) * group; head++)
        for (uint32_t block = start; change != KVB_GRAD_EVER && block * ROWS < end; block++)
            add_block(&t, head, block, lse, d_out, false);
    a->kernels->scale(t.d_k, t.cols * dim, (float)l->scale);
    for (uint32_t j = 0; j < t.cols; j++)
        if (l->until[row + j] == KVB_GRAD_EVER) {
            memset(t.d_k + j * dim, 0, dim * sizeof(float));
            memset(t.d_v + j * dim, 0, dim * sizeof(float));
        }
}

void kvb_attn_grad_backward(kvb_attn_grad *a, const kvb_grad_layer *l, const float *out, const float *lse,
                            const float *d_out, float *d_k, float *d_v)
{
    const uint32_t tiles = pieces(l->tokens, COLS);
#pragma omp parallel num_threads((int)a->threads)
    {
#pragma omp for schedule(dynamic, 1)
        for (uint32_t h = 0; h < l->heads; h++)
            prepare_queries(a, l, h, out, d_out);
        /* Early keys are seen by most queries: the long tasks start first. */
#pragma omp for schedule(dynamic, 1)
        for (uint32_t task = 0; task < tiles * l->kv_heads; task++)
            backward_task(a, l, task % l->kv_heads, task / l->kv_heads, lse, d_out, d_k, d_v);
    }
}

/* ---- all gradients */

static key_tile key_tile_of(const kvb_attn_grad *a, const kvb_grad_layer *l, uint32_t g, uint32_t tile, float *d_k,
                            float *d_v)
{
    const size_t row = ((size_t)g * l->tokens + tile * COLS) * l->head_dim;
    float *scratch = my_scratch(a, l->head_dim);
    return (key_tile){.a = a, .l = l, .g = g, .first = tile * COLS, .cols = at_most(l->tokens - tile * COLS, COLS),
                      .prob = scratch, .d_score = scratch + ROWS * COLS, .d_k = d_k + row, .d_v = d_v + row};
}

/* The queries before `end` in one of the two ways. */
static void add_queries(const key_tile *t, uint32_t end, const float *lse, const float *d_out, bool exact)
{
    const uint32_t group = t->l->heads / t->l->kv_heads;
    const size_t size = (size_t)t->cols * t->l->head_dim;
    memset(t->d_k, 0, size * sizeof(float));
    memset(t->d_v, 0, size * sizeof(float));
    for (uint32_t head = t->g * group; head < (t->g + 1) * group; head++)
        for (uint32_t block = t->first / ROWS; block * ROWS < end; block++)
            add_block(t, head, block, lse, d_out, exact);
    t->a->kernels->scale(t->d_k, size, (float)t->l->scale);
}

/* Keys that stay exact for ever are settled as such: what the settled rows got is theirs. */
static void move_rows(const key_tile *settled, const key_tile *exact)
{
    const size_t dim = settled->l->head_dim, bytes = dim * sizeof(float);
    for (uint32_t j = 0; j < settled->cols; j++) {
        if (settled->l->until[(size_t)settled->g * settled->l->tokens + settled->first + j] != KVB_GRAD_EVER)
            continue;
        memcpy(exact->d_k + j * dim, settled->d_k + j * dim, bytes);
        memcpy(exact->d_v + j * dim, settled->d_v + j * dim, bytes);
        memset(settled->d_k + j * dim, 0, bytes);
        memset(settled->d_v + j * dim, 0, bytes);
    }
}

static void all_keys_task(const kvb_attn_grad *a, const kvb_grad_layer *l, uint32_t g, uint32_t tile, const float *lse,
                          const float *d_out, const kvb_grad_all *d)
{
    const key_tile settled = key_tile_of(a, l, g, tile, d->coded_k, d->coded_v);
    const key_tile exact = key_tile_of(a, l, g, tile, d->exact_k, d->exact_v);
    const uint32_t changed = at_most(a->last_change[(size_t)g * pieces(l->tokens, COLS) + tile], l->tokens);
    uint32_t end = l->tokens;
    if (l->sliding_window != 0)
        end = at_most(end, settled.first + settled.cols - 1 + l->sliding_window);
    add_queries(&settled, end, lse, d_out, false);
    add_queries(&exact, at_most(end, changed), lse, d_out, true);
    move_rows(&settled, &exact);
}

/* A block of queries, and the gradient of its rows. */
typedef struct query_gradient {
    const kvb_attn_grad *a;
    const kvb_grad_layer *l;
    uint32_t g, first, rows;
    const float *lse, *delta, *d_out; /* [rows] and [rows][D] */
    float *scaled, *prob, *d_score, *values_t;
    float *d_q; /* [rows][D] */
} query_gradient;

static void add_tile(const query_gradient *b, uint32_t tile, tile_pass pass, bool exact)
{
    const kvb_grad_layer *l = b->l;
    const kvb_kernels *k = b->a->kernels;
    const uint32_t dim = l->head_dim, first = tile * COLS, cols = at_most(b->first + b->rows - first, COLS);
    const size_t row = ((size_t)b->g * l->tokens + first) * dim;
    const float *keys_t = (exact ? b->a->exact_t : b->a->settled_t) +
                          ((size_t)b->g * pieces(l->tokens, COLS) + tile) * COLS * dim;
    k->gemm(b->rows, COLS, dim, b->scaled, dim, keys_t, COLS, b->prob, COLS, false);
    kvb_transpose((exact ? l->exact_v : b->a->settled_v) + row, dim, cols, dim, b->values_t, COLS);
    k->gemm(b->rows, COLS, dim, b->d_out, dim, b->values_t, COLS, b->d_score, COLS, false);
    for (uint32_t i = 0; i < b->rows; i++) {
        float *p = b->prob + (size_t)i * COLS, *d_s = b->d_score + (size_t)i * COLS;
        k->exp_sum(p, cols, b->lse[i]);
        for (uint32_t j = 0; j < cols; j++)
            d_s[j] = reads(l, b->g, b->first + i, first + j, pass) ? p[j] * (d_s[j] - b->delta[i]) : 0.0f;
    }
    k->gemm(b->rows, dim, cols, b->d_score, COLS, (exact ? l->exact_k : b->a->settled_k) + row, dim, b->d_q, dim, true);
}

/* Tiles are passed as in attend_block(). */
static void add_tiles(const query_gradient *b)
{
    const kvb_grad_layer *l = b->l;
    const uint32_t end = b->first + b->rows, window = l->sliding_window, tiles = pieces(l->tokens, COLS);
    const uint32_t low = window != 0 && b->first >= window ? b->first + 1 - window : 0;
    const uint32_t *first_change = b->a->first_change + (size_t)b->g * tiles;
    const uint32_t *last_change = b->a->last_change + (size_t)b->g * tiles;
    for (uint32_t tile = low / COLS; tile * COLS < end; tile++) {
        if (first_change[tile] >= end) {
            add_tile(b, tile, PASS_ALL, true);
        } else if (last_change[tile] <= b->first) {
            add_tile(b, tile, PASS_ALL, false);
        } else {
            add_tile(b, tile, PASS_EXACT, true);
            add_tile(b, tile, PASS_CODED, false);
        }
    }
}

static void query_task(const kvb_attn_grad *a, const kvb_grad_layer *l, uint32_t head, uint32_t block, const float *lse,
                       const float *d_out, float *d_q)
{
    const uint32_t dim = l->head_dim, first = block * ROWS;
    const size_t row = (size_t)head * l->tokens + first;
    float *scratch = my_scratch(a, dim);
    query_gradient b = {.a = a, .l = l, .g = head / (l->heads / l->kv_heads), .first = first,
                        .rows = at_most(l->tokens - first, ROWS), .lse = lse + row,
                        .delta = a->delta + ((size_t)head * pieces(l->tokens, ROWS) + block) * ROWS,
                        .d_out = d_out + row * dim, .scaled = scratch, .prob = scratch + ROWS * dim,
                        .d_score = scratch + ROWS * (dim + COLS), .values_t = scratch + ROWS * (dim + 2 * COLS),
                        .d_q = d_q + row * dim};
    const size_t size = (size_t)b.rows * dim;
    memcpy(b.scaled, l->q + row * dim, size * sizeof(float));
    a->kernels->scale(b.scaled, size, (float)l->scale);
    memset(b.d_q, 0, size * sizeof(float));
    add_tiles(&b);
    a->kernels->scale(b.d_q, size, (float)l->scale);
}

void kvb_attn_grad_backward_all(kvb_attn_grad *a, const kvb_grad_layer *l, const float *out, const float *lse,
                                const float *d_out, const kvb_grad_all *d)
{
    const uint32_t tiles = pieces(l->tokens, COLS), blocks = pieces(l->tokens, ROWS);
#pragma omp parallel num_threads((int)a->threads)
    {
#pragma omp for schedule(dynamic, 1)
        for (uint32_t g = 0; g < l->kv_heads; g++)
            settle_head(a, l, g);
#pragma omp for schedule(dynamic, 1)
        for (uint32_t h = 0; h < l->heads; h++)
            prepare_queries(a, l, h, out, d_out);
#pragma omp for schedule(dynamic, 1) nowait
        for (uint32_t task = 0; task < tiles * l->kv_heads; task++)
            all_keys_task(a, l, task % l->kv_heads, task / l->kv_heads, lse, d_out, d);
#pragma omp for schedule(dynamic, 1)
        for (uint32_t task = 0; task < blocks * l->heads; task++)
            query_task(a, l, task % l->heads, blocks - 1 - task / l->heads, lse, d_out, d->q);
    }
}
