/* The cache's own order of events over a whole sequence at once: a mirror of what it would read, one column of which
 * changes whenever a token becomes codes. One KV head is one task. */
#include <string.h>

#include "format/base/checked.h"
#include "runtime/attend_step.h"
#include "runtime/prefill_work.h"

typedef struct causal_head {
    const kvb_prefill_work *w;
    kvb_prefill_head *h; /* exact_v becomes the mirror of the values */
    kvb_step step;
    kvb_anchor_pool pool;
    float *keys_t; /* [tiles][D][KVB_ATTN_COLS] the mirror of the keys */
    double *score; /* [T] */
    uint32_t g;
} causal_head;

static bool start(causal_head *c)
{
    const kvb_prefill_work *w = c->w;
    c->pool.fraction = w->policy.anchor_fraction;
    if (kvb_step_create(&c->step, w->layer, &w->policy, NULL) != KVB_OK)
        return false;
    c->keys_t = kvb_alloc_array((size_t)w->tiles * KVB_ATTN_COLS * w->layer->head_dim, sizeof *c->keys_t);
    c->score = kvb_alloc_zeroed(w->tokens, sizeof *c->score);
    if (c->keys_t == NULL || c->score == NULL)
        return false;
    kvb_work_transpose(w, c->h->exact_k, c->keys_t);
    return kvb_step_reserve(&c->step, w->policy.window < w->tokens ? w->policy.window : w->tokens);
}

static void finish(causal_head *c)
{
    kvb_step_free(&c->step);
    kvb_pool_free(&c->pool);
    free(c->keys_t);
    free(c->score);
}

static void become_codes(causal_head *c, uint32_t j)
{
    const size_t dim = c->w->layer->head_dim;
    const float *key = c->h->coded_k + j * dim;
    float *column = c->keys_t + j / KVB_ATTN_COLS * KVB_ATTN_COLS * dim + j % KVB_ATTN_COLS;
    for (size_t d = 0; d < dim; d++)
        column[d * KVB_ATTN_COLS] = key[d];
    memcpy(c->h->exact_v + j * dim, c->h->coded_v + j * dim, dim * sizeof(float));
}

static bool age(causal_head *c, uint32_t i)
{
    const kvb_policy *policy = &c->w->policy;
    if (i < policy->window || i - policy->window < policy->sinks)
        return true;
    uint32_t leaver = i - policy->window, loser;
    if (!kvb_pool_reserve(&c->pool))
        return false;
    if (kvb_pool_offer(&c->pool, leaver, (float)c->score[leaver], &loser) != KVB_POOL_NONE)
        become_codes(c, loser);
    return true;
}

/* First token of the window that may become an anchor, at query i. */
static uint32_t recent_first(const kvb_policy *policy, uint32_t i)
{
    uint32_t first = i + 1 > policy->window ? i + 1 - policy->window : 0;
    uint32_t sinks = i + 1 < policy->sinks ? i + 1 : policy->sinks;
    return first > sinks ? first : sinks;
}

static void attend(causal_head *c, uint32_t i)
{
    const kvb_prefill_work *w = c->w;
    const size_t dim = w->layer->head_dim, head_values = (size_t)w->tokens * dim;
    const size_t offset = (size_t)c->g * c->step.rows * head_values + i * dim;
    for (uint32_t r = 0; r < c->step.rows; r++)
        memcpy(c->step.q + r * dim, w->p->q + offset + r * head_values, dim * sizeof(float));
    uint32_t recent = recent_first(&w->policy, i);
    kvb_step_begin(&c->step, i, recent, i + 1 - recent);
    for (uint32_t first = kvb_step_first_tile(&c->step); first <= i; first += KVB_ATTN_COLS) {
        uint32_t cols = i + 1 - first < KVB_ATTN_COLS ? i + 1 - first : KVB_ATTN_COLS;
        kvb_step_tile(&c->step, first, cols, c->keys_t + first * dim, c->h->exact_v + first * dim);
    }
    kvb_step_end(&c->step);
    for (uint32_t r = 0; r < c->step.rows; r++)
        memcpy(w->out + offset + r * head_values, c->step.out + r * dim, dim * sizeof(float));
    for (uint32_t j = recent, many; j <= i; j += many) {
        many = i + 1 - j < KVB_ATTN_COLS ? i + 1 - j : KVB_ATTN_COLS;
        kvb_step_add_scores(&c->step, j, many, c->h->exact_v + j * dim, c->score + j);
    }
}

static void causal_task(void *user, size_t g)
{
    kvb_prefill_work *w = user;
    causal_head c = {.w = w, .h = w->head + g, .g = (uint32_t)g};
    bool good = start(&c);
    for (uint32_t i = 0; good && i < w->tokens; i++) {
        good = age(&c, i);
        if (good)
            attend(&c, i);
    }
    w->failed[g] = !good;
    finish(&c);
}

kvb_status kvb_prefill_causal(kvb_prefill_work *w, kvb_error *err)
{
    return kvb_work_run(w, causal_task, w, w->layer->kv_heads, "attention of a prefill", err);
}
