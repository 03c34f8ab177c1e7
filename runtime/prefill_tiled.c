/* Attention in tiles with until[] known. A tile of keys that every query of the block reads the same way costs what
 * exact attention costs; only a tile that some read exactly and some from codes is folded in twice, each time with the
 * other's entries masked. */
#include <math.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "runtime/prefill_work.h"

/* One KV head ready for tiles; `settled` is how its tokens are read once all that will ever be coded are. */
typedef struct tiled_head {
    float *exact_t, *settled_t; /* [tiles][D][KVB_ATTN_COLS] */
    float *settled_v;           /* [T][D]; borrowed from the mirror */
    uint32_t *first_change;     /* [tiles] the first query that reads a token of the tile from its codes */
    uint32_t *last_change;      /* [tiles] the last such change but for tokens that are exact for ever; 0 if none */
} tiled_head;

typedef struct tiled {
    kvb_prefill_work *w;
    tiled_head *head; /* [G] */
    uint32_t blocks;  /* of KVB_ATTN_ROWS queries */
} tiled;

/* Which entries of a tile a pass reads. */
typedef enum tile_pass { PASS_ALL, PASS_EXACT, PASS_CODED } tile_pass;

typedef struct block {
    const kvb_prefill_work *w;
    const kvb_kernels *k;
    const uint32_t *until;
    uint32_t first, rows; /* queries */
    uint32_t sliding;
    float *scaled, *scores, *out;
    kvb_attn_state state;
} block;

static void find_changes(const kvb_prefill_work *w, const uint32_t *until, tiled_head *t)
{
    for (uint32_t tile = 0; tile < w->tiles; tile++) {
        uint32_t first = KVB_UNTIL_EVER, last = 0;
        for (uint32_t j = tile * KVB_ATTN_COLS; j < (tile + 1) * KVB_ATTN_COLS && j < w->tokens; j++) {
            first = until[j] < first ? until[j] : first;
            last = until[j] != KVB_UNTIL_EVER && until[j] > last ? until[j] : last;
        }
        t->first_change[tile] = first;
        t->last_change[tile] = last;
    }
}

static bool settle_head(const kvb_prefill_work *w, uint32_t g, tiled_head *t)
{
    const size_t dim = w->layer->head_dim, padded = (size_t)w->tiles * KVB_ATTN_COLS * dim;
    kvb_prefill_head *h = w->head + g;
    t->exact_t = kvb_alloc_array(padded, sizeof(float));
    t->first_change = kvb_alloc_array(w->tiles, sizeof(uint32_t));
    t->last_change = kvb_alloc_array(w->tiles, sizeof(uint32_t));
    if (t->exact_t == NULL || t->first_change == NULL || t->last_change == NULL)
        return false;
    kvb_work_transpose(w, h->exact_k, t->exact_t);
    find_changes(w, h->until, t);
    if (!w->has_codes)
        return true;
    if ((t->settled_t = kvb_alloc_array(padded, sizeof(float))) == NULL)
        return false;
    for (uint32_t j = 0; j < w->tokens; j++)
        if (h->until[j] == KVB_UNTIL_EVER) {
            memcpy(h->coded_k + j * dim, h->exact_k + j * dim, dim * sizeof(float));
            memcpy(h->coded_v + j * dim, h->exact_v + j * dim, dim * sizeof(float));
        }
    kvb_work_transpose(w, h->coded_k, t->settled_t);
    t->settled_v = h->coded_v;
    return true;
}

static void settle_task(void *user, size_t g)
{
    tiled *t = user;
    t->w->failed[g] = !settle_head(t->w, (uint32_t)g, t->head + g);
}

static bool sees(const block *b, uint32_t query, uint32_t key, tile_pass pass)
{
    if (key > query || (b->sliding != 0 && query - key >= b->sliding))
        return false;
    return pass == PASS_ALL || (query < b->until[key]) == (pass == PASS_EXACT);
}

static void mask_tile(block *b, uint32_t first, uint32_t cols, tile_pass pass)
{
    for (uint32_t i = 0; i < b->rows; i++)
        for (uint32_t j = 0; j < cols; j++)
            if (!sees(b, b->first + i, first + j, pass))
                b->scores[(size_t)i * KVB_ATTN_COLS + j] = -INFINITY;
}

static void fold_tile(block *b, uint32_t first, uint32_t cols, const float *keys_t, const float *values, tile_pass pass)
{
    const uint32_t dim = b->w->layer->head_dim, last = b->first + b->rows - 1;
    b->k->gemm(b->rows, KVB_ATTN_COLS, dim, b->scaled, dim, keys_t + (size_t)first * dim, KVB_ATTN_COLS, b->scores,
               KVB_ATTN_COLS, false);
    if (pass != PASS_ALL || first + cols > b->first + 1 || (b->sliding != 0 && last - first >= b->sliding))
        mask_tile(b, first, cols, pass);
    kvb_attn_fold(b->k, &b->state, b->rows, cols, b->scores, KVB_ATTN_COLS, values + (size_t)first * dim, dim, dim,
                  b->out);
}

static void attend_block(block *b, const kvb_prefill_head *h, const tiled_head *t)
{
    const uint32_t dim = b->w->layer->head_dim, end = b->first + b->rows;
    uint32_t low = b->sliding != 0 && b->first >= b->sliding ? b->first + 1 - b->sliding : 0;
    kvb_attn_begin(&b->state, b->rows, dim, b->out);
    for (uint32_t tile = low / KVB_ATTN_COLS; tile * KVB_ATTN_COLS < end; tile++) {
        uint32_t first = tile * KVB_ATTN_COLS, cols = end - first < KVB_ATTN_COLS ? end - first : KVB_ATTN_COLS;
        if (t->first_change[tile] >= end) {
            fold_tile(b, first, cols, t->exact_t, h->exact_v, PASS_ALL);
        } else if (t->last_change[tile] <= b->first) {
            fold_tile(b, first, cols, t->settled_t, t->settled_v, PASS_ALL);
        } else {
            fold_tile(b, first, cols, t->exact_t, h->exact_v, PASS_EXACT);
            fold_tile(b, first, cols, t->settled_t, t->settled_v, PASS_CODED);
        }
    }
    kvb_attn_end(b->k, &b->state, b->rows, dim, b->out, NULL);
}

static void block_task(void *user, size_t i)
{
    const tiled *t = user;
    const kvb_prefill_work *w = t->w;
    const kvb_layer *l = w->layer;
    const uint32_t head = (uint32_t)(i / t->blocks), g = head / (l->heads / l->kv_heads);
    const size_t dim = l->head_dim, at = (i % t->blocks) * KVB_ATTN_ROWS;
    block b = {.w = w, .k = kvb_kernels_best(), .until = w->head[g].until, .first = (uint32_t)at};
    b.rows = w->tokens - b.first < KVB_ATTN_ROWS ? w->tokens - b.first : KVB_ATTN_ROWS;
    b.sliding = l->kind == KVB_LAYER_SLIDING ? l->sliding_window : 0;
    b.scaled = kvb_alloc_array(KVB_ATTN_ROWS * (dim + KVB_ATTN_COLS), sizeof(float));
    if (b.scaled == NULL) {
        w->failed[i] = 1;
        return;
    }
    b.scores = b.scaled + KVB_ATTN_ROWS * dim;
    size_t offset = ((size_t)head * w->tokens + at) * dim;
    b.out = w->out + offset;
    memcpy(b.scaled, w->p->q + offset, b.rows * dim * sizeof(float));
    b.k->scale(b.scaled, b.rows * dim, (float)l->attention_scale);
    attend_block(&b, w->head + g, t->head + g);
    free(b.scaled);
}

kvb_status kvb_prefill_tiled(kvb_prefill_work *w, kvb_error *err)
{
    const uint32_t heads = w->layer->kv_heads;
    tiled t = {.w = w, .blocks = (w->tokens + KVB_ATTN_ROWS - 1) / KVB_ATTN_ROWS};
    t.head = kvb_alloc_zeroed(heads, sizeof *t.head);
    if (t.head == NULL)
        return kvb_fail_memory(err, "prefill");
    kvb_status status = kvb_work_run(w, settle_task, &t, heads, "tiles of a prefill", err);
    if (status == KVB_OK)
        status = kvb_work_run(w, block_task, &t, (size_t)w->layer->heads * t.blocks, "attention of a prefill", err);
    for (uint32_t g = 0; g < heads; g++) {
        free(t.head[g].exact_t);
        free(t.head[g].settled_t);
        free(t.head[g].first_change);
        free(t.head[g].last_change);
    }
    free(t.head);
    return status;
}
