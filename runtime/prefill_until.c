/* Until which query each token is read exactly, where that is known before the attention. */
#include <math.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "runtime/prefill_work.h"

/* The last token of a block takes all of it along. */
static uint32_t leaves_at(const kvb_prefill_work *w, uint32_t position)
{
    const uint64_t sinks = w->policy.sinks, last = sinks + (position - sinks) / w->block * w->block + w->block - 1;
    const uint64_t leaves = last + w->policy.window;
    return leaves < KVB_UNTIL_EVER ? (uint32_t)leaves : KVB_UNTIL_EVER;
}

static void fill_window_and_sinks(const kvb_prefill_work *w, const kvb_prefill_head *head)
{
    uint32_t *until = head->until;
    for (uint32_t j = 0; j < w->tokens; j++)
        until[j] = j < w->policy.sinks ? KVB_UNTIL_EVER : leaves_at(w, j);
    /* Small tokens go from the window into their pools. */
    for (uint32_t i = 0; i < head->small.count; i++)
        until[head->small.position[i]] = KVB_UNTIL_EVER;
}

/* Plays the pool of one head through the sequence: scores are known at once, so no attention is needed. */
static bool replay_pool(const kvb_prefill_work *w, kvb_prefill_head *h)
{
    const uint32_t window = w->policy.window;
    kvb_anchor_pool pool = {.fraction = w->policy.anchor_fraction};
    bool good = true;
    for (uint32_t i = window; good && i < w->tokens; i++) {
        uint32_t j = i - window, loser;
        if (j < w->policy.sinks)
            continue;
        if (!(good = kvb_pool_reserve(&pool)))
            break;
        uint32_t gone = kvb_pool_offer(&pool, j, h->static_score[j], &loser);
        h->until[j] = KVB_UNTIL_EVER;
        if (gone != KVB_POOL_NONE)
            h->until[loser] = i;
    }
    kvb_pool_free(&pool);
    return good;
}

static void replay_task(void *user, size_t g)
{
    kvb_prefill_work *w = user;
    w->failed[g] = !replay_pool(w, w->head + g);
}

/* Scores of a query head's share under exact attention, of the whole chunk at once. */
typedef struct chunk_scores {
    kvb_prefill_work *w;
    double *share; /* [H][T] */
} chunk_scores;

/* Exact attention of one query head, then its token weights. `buffer`: see share_floats(). */
static void head_share(const kvb_prefill_work *w, uint32_t head, float *buffer, double *share)
{
    const kvb_kernels *k = kvb_kernels_best();
    const kvb_layer *l = w->layer;
    const uint32_t dim = l->head_dim, tokens = w->tokens, g = head / (l->heads / l->kv_heads);
    const size_t ld = kvb_attn_padded(tokens), values = (size_t)tokens * dim;
    float *keys_t = buffer, *values_t = keys_t + ld * dim, *out = values_t + ld * dim;
    float *lse = out + values, *q_norm = lse + tokens, *scratch = q_norm + tokens;
    const float *q = w->p->q + head * values, *v = w->p->v + g * values;
    const uint32_t sliding = l->kind == KVB_LAYER_SLIDING ? l->sliding_window : 0;
    const float scale = (float)l->attention_scale;
    kvb_transpose(w->p->k + g * values, dim, tokens, dim, keys_t, ld);
    kvb_transpose(v, dim, tokens, dim, values_t, ld);
    for (uint32_t i = 0; i < tokens; i += KVB_ATTN_ROWS)
        kvb_attn_exact(k, q, keys_t, ld, v, i, tokens - i < KVB_ATTN_ROWS ? tokens - i : KVB_ATTN_ROWS, dim, scale,
                       sliding, out + (size_t)i * dim, lse + i, scratch);
    for (uint32_t i = 0; i < tokens; i++)
        q_norm[i] = sqrtf(k->dot(q + (size_t)i * dim, q + (size_t)i * dim, dim));
    const kvb_attn_head h = {q, keys_t, values_t, out, lse, q_norm, ld, tokens, dim, sliding, scale};
    const bool exact_k = w->policy.score == KVB_SCORE_EXACT_K;
    for (uint32_t j = 0; j < tokens; j += KVB_ATTN_COLS)
        kvb_attn_weights(k, &h, j, tokens - j < KVB_ATTN_COLS ? tokens - j : KVB_ATTN_COLS, exact_k ? share + j : NULL,
                         exact_k ? NULL : share + j, scratch);
}

static size_t share_floats(const kvb_prefill_work *w)
{
    const uint32_t dim = w->layer->head_dim;
    return 2 * kvb_attn_padded(w->tokens) * dim + (size_t)w->tokens * (dim + 2) + kvb_attn_weights_scratch_floats(dim);
}

static void share_task(void *user, size_t head)
{
    chunk_scores *c = user;
    float *buffer = kvb_alloc_array(share_floats(c->w), sizeof *buffer);
    c->w->failed[head] = buffer == NULL;
    if (buffer != NULL)
        head_share(c->w, (uint32_t)head, buffer, c->share + head * c->w->tokens);
    free(buffer);
}

/* Tokens in the order of their scores. */
typedef struct ranked {
    double score;
    uint32_t position;
} ranked;

static int by_score(const void *a, const void *b)
{
    const ranked *x = a, *y = b;
    if (x->score > y->score || x->score < y->score)
        return x->score > y->score ? -1 : 1;
    return x->position < y->position ? -1 : x->position > y->position;
}

static void keep_best(const kvb_prefill_work *w, ranked *order, uint32_t *until)
{
    uint64_t count = kvb_pool_capacity(w->policy.anchor_fraction, w->tokens);
    qsort(order, w->tokens, sizeof *order, by_score);
    for (uint64_t i = 0; i < count; i++)
        until[order[i].position] = KVB_UNTIL_EVER;
}

/* One KV head: the shares of its query heads in their order, or the static scores. */
static void rank_head(const kvb_prefill_work *w, const double *share, uint32_t g, ranked *order)
{
    const uint32_t group = w->layer->heads / w->layer->kv_heads;
    for (uint32_t j = 0; j < w->tokens; j++) {
        double score = share == NULL ? (double)w->head[g].static_score[j] : 0.0;
        for (uint32_t r = 0; share != NULL && r < group; r++)
            score += share[(size_t)(g * group + r) * w->tokens + j];
        order[j] = (ranked){score, j};
    }
}

static kvb_status chunk_until(kvb_prefill_work *w, kvb_error *err)
{
    const bool attention = w->policy.score == KVB_SCORE_EXACT_K || w->policy.score == KVB_SCORE_EXACT_V;
    kvb_status status = KVB_OK;
    chunk_scores c = {.w = w};
    ranked *order = kvb_alloc_array(w->tokens, sizeof *order);
    if (attention)
        c.share = kvb_alloc_zeroed((size_t)w->layer->heads * w->tokens, sizeof *c.share);
    if (order == NULL || (attention && c.share == NULL))
        status = kvb_fail_memory(err, "anchor scores of a chunk");
    if (status == KVB_OK && attention)
        status = kvb_work_run(w, share_task, &c, w->layer->heads, "anchor scores of a chunk", err);
    for (uint32_t g = 0; status == KVB_OK && g < w->layer->kv_heads; g++) {
        rank_head(w, c.share, g, order);
        keep_best(w, order, w->head[g].until);
    }
    free(order);
    free(c.share);
    return status;
}

kvb_status kvb_prefill_until(kvb_prefill_work *w, kvb_error *err)
{
    for (uint32_t g = 0; g < w->layer->kv_heads; g++)
        fill_window_and_sinks(w, w->head + g);
    if (!(w->policy.anchor_fraction > 0.0))
        return KVB_OK;
    if (w->p->protocol == KVB_PROTOCOL_CHUNK)
        return chunk_until(w, err);
    return kvb_work_run(w, replay_task, w, w->layer->kv_heads, "anchors of a prefill", err);
}
