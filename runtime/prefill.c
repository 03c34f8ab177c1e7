#include "runtime/prefill.h"

#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "runtime/codec.h"
#include "runtime/prefill_work.h"

static kvb_status check_finite(const kvb_prefill *p, const char *what, const float *x, uint32_t heads, kvb_error *err)
{
    const size_t dim = kvb_book_layer(p->book, p->layer)->head_dim, values = (size_t)heads * p->tokens * dim;
    size_t bad = kvb_first_bad_value(x, values);
    if (bad == values)
        return KVB_OK;
    return kvb_fail(err, KVB_E_CHECK, what, "layer %u, head %zu, position %zu, channel %zu is %g, expected a finite "
                    "value", p->layer, bad / dim / p->tokens, bad / dim % p->tokens, bad % dim, (double)x[bad]);
}

static kvb_status check(const kvb_prefill *p, const float *out, kvb_error *err)
{
    if (p == NULL || p->book == NULL || p->policy == NULL || p->q == NULL || p->k_pre == NULL || p->k == NULL ||
        p->v == NULL || out == NULL)
        return kvb_fail(err, KVB_E_USAGE, "kvb_prefill_attend", "found a NULL pointer");
    if (p->layer >= kvb_book_layers(p->book) || p->tokens == 0 || p->tokens >= UINT32_MAX - KVB_ATTN_COLS)
        return kvb_fail(err, KVB_E_USAGE, "kvb_prefill_attend", "found layer %u of %u and %u tokens", p->layer,
                        kvb_book_layers(p->book), p->tokens);
    if ((unsigned)p->protocol > KVB_PROTOCOL_CHUNK)
        return kvb_fail(err, KVB_E_USAGE, "protocol", "found %u, expected a kvb_anchor_protocol",
                        (unsigned)p->protocol);
    const kvb_layer *layer = kvb_book_layer(p->book, p->layer);
    kvb_status status = kvb_policy_check(p->book, p->policy, err);
    if (status == KVB_OK)
        status = check_finite(p, "q", p->q, layer->heads, err);
    if (status == KVB_OK)
        status = check_finite(p, "k_pre", p->k_pre, layer->kv_heads, err);
    return status != KVB_OK ? status : check_finite(p, "v", p->v, layer->kv_heads, err);
}

static void run_here(void (*task)(void *user, size_t i), void *user, size_t count)
{
    for (size_t i = 0; i < count; i++)
        task(user, i);
}

kvb_status kvb_work_run(kvb_prefill_work *w, void (*task)(void *user, size_t i), void *user, size_t count,
                        const char *what, kvb_error *err)
{
    if (count > w->failed_room) {
        free(w->failed);
        w->failed_room = 0;
        if ((w->failed = kvb_alloc_zeroed(count, 1)) == NULL)
            return kvb_fail_memory(err, what);
        w->failed_room = count;
    }
    memset(w->failed, 0, count);
    (w->parallel != NULL ? w->parallel : run_here)(task, user, count);
    return memchr(w->failed, 1, count) == NULL ? KVB_OK : kvb_fail_memory(err, what);
}

void kvb_work_transpose(const kvb_prefill_work *w, const float *x, float *tiles)
{
    const uint32_t dim = w->layer->head_dim;
    for (uint32_t t = 0; t < w->tiles; t++) {
        uint32_t first = t * KVB_ATTN_COLS, left = w->tokens - first;
        kvb_transpose(x + (size_t)first * dim, dim, left < KVB_ATTN_COLS ? left : KVB_ATTN_COLS, dim,
                      tiles + (size_t)first * dim, KVB_ATTN_COLS);
    }
}

static kvb_status start(kvb_prefill_work *w, kvb_error *err)
{
    w->block = w->has_codes ? kvb_layer_block(w->p->book, w->p->layer) : 1;
    const uint32_t heads = w->layer->kv_heads;
    w->fine_from = w->policy.exact == KVB_EXACT_FINE && w->policy.sinks < w->tokens ? w->policy.sinks : w->tokens;
    kvb_status status = kvb_rope_table_create(&w->rope, w->layer, 0, w->tokens, err);
    if (status != KVB_OK)
        return status;
    w->head = kvb_alloc_zeroed(heads, sizeof *w->head);
    for (uint32_t g = 0; w->head != NULL && g < heads; g++)
        if ((w->head[g].until = kvb_alloc_array(w->tokens, sizeof(uint32_t))) == NULL)
            return kvb_fail_memory(err, "prefill");
    return w->head != NULL ? KVB_OK : kvb_fail_memory(err, "prefill");
}

static void finish(kvb_prefill_work *w)
{
    for (uint32_t g = 0; w->head != NULL && g < w->layer->kv_heads; g++) {
        kvb_prefill_head *h = w->head + g;
        free(h->exact_k);
        free(h->coded_k);
        free(h->exact_v);
        free(h->coded_v);
        free(h->static_score);
        free(h->until);
        kvb_token_pool_free(&h->small);
    }
    free(w->head);
    free(w->failed);
    kvb_rope_table_free(&w->rope);
}

kvb_status kvb_prefill_attend(const kvb_prefill *p, kvb_parallel_fn parallel, float *out, kvb_error *err)
{
    kvb_status status = check(p, out, err);
    if (status != KVB_OK)
        return status;
    kvb_prefill_work w = {.p = p, .parallel = parallel, .out = out, .tokens = p->tokens, .policy = *p->policy};
    w.layer = kvb_book_layer(p->book, p->layer);
    w.tiles = (p->tokens + KVB_ATTN_COLS - 1) / KVB_ATTN_COLS;
    w.has_codes = kvb_book_codebook(p->book, p->layer, 0, KVB_KEY) != NULL;
    if (!w.has_codes)
        w.policy = (kvb_policy){.window = UINT32_MAX};
    status = start(&w, err);
    if (status == KVB_OK)
        status = kvb_prefill_mirror(&w, err);
    if (status != KVB_OK)
        goto out;
    if (p->protocol == KVB_PROTOCOL_CAUSAL && kvb_policy_scores_attention(&w.policy)) {
        status = kvb_prefill_causal(&w, err);
    } else {
        status = kvb_prefill_until(&w, err);
        if (status == KVB_OK)
            status = kvb_prefill_tiled(&w, err);
    }
out:
    finish(&w);
    return status;
}

kvb_status kvb_prefill_kept(const kvb_prefill *p, kvb_parallel_fn parallel, uint8_t *kept, kvb_error *err)
{
    float none;
    kvb_status status = check(p, &none, err);
    if (status != KVB_OK)
        return status;
    kvb_prefill chunk = *p;
    chunk.protocol = KVB_PROTOCOL_CHUNK;
    kvb_prefill_work w = {.p = &chunk, .parallel = parallel, .tokens = p->tokens, .policy = *p->policy};
    w.layer = kvb_book_layer(p->book, p->layer);
    w.tiles = (p->tokens + KVB_ATTN_COLS - 1) / KVB_ATTN_COLS;
    w.policy.window = 0;
    status = start(&w, err);
    if (status == KVB_OK)
        status = kvb_prefill_mirror(&w, err);
    if (status == KVB_OK)
        status = kvb_prefill_until(&w, err);
    for (uint32_t g = 0; status == KVB_OK && g < w.layer->kv_heads; g++)
        for (uint32_t j = 0; j < w.tokens; j++)
            kept[(size_t)g * w.tokens + j] = w.head[g].until[j] == KVB_UNTIL_EVER;
    finish(&w);
    return status;
}
