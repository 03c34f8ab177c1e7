#include "tools/generation.h"

#include <math.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/rng.h"

/* The prompt goes through the layers in pieces: products of many rows at once, attention row by row. */
enum { PIECE = 64 };

typedef struct cached_attention {
    kvb_cache *cache;
    float *rows; /* [(2H + 2G) D]: one token's output, query, key and value, heads side by side */
} cached_attention;

static void gather(const float *heads, uint32_t count, uint32_t tokens, uint32_t token, uint32_t dim, float *row)
{
    for (uint32_t h = 0; h < count; h++)
        memcpy(row + (size_t)h * dim, heads + ((size_t)h * tokens + token) * dim, dim * sizeof *row);
}

static kvb_status attend_through_cache(void *user, const kvb_attention_call *call, float *out, kvb_error *err)
{
    cached_attention *a = user;
    const kvb_layer *g = call->geometry;
    const size_t heads = (size_t)g->heads * g->head_dim;
    float *o = a->rows, *q = o + heads, *k = q + heads, *v = k + (size_t)g->kv_heads * g->head_dim;
    for (uint32_t t = 0; t < call->tokens; t++) {
        gather(call->k_pre, g->kv_heads, call->tokens, t, g->head_dim, k);
        gather(call->v, g->kv_heads, call->tokens, t, g->head_dim, v);
        gather(call->q, g->heads, call->tokens, t, g->head_dim, q);
        kvb_status status = kvb_cache_append(a->cache, call->layer, k, v, err);
        if (status == KVB_OK)
            status = kvb_cache_attend(a->cache, call->layer, q, o, err);
        if (status != KVB_OK)
            return status;
        for (uint32_t h = 0; h < g->heads; h++)
            memcpy(out + ((size_t)h * call->tokens + t) * g->head_dim, o + (size_t)h * g->head_dim,
                   g->head_dim * sizeof *out);
    }
    return KVB_OK;
}

static uint32_t most_likely(const float *logits, uint32_t n)
{
    uint32_t best = 0;
    for (uint32_t v = 1; v < n; v++)
        if (logits[v] > logits[best])
            best = v;
    return best;
}

static uint32_t choose(const float *logits, uint32_t n, const kvb_generation_options *o, uint64_t step)
{
    uint32_t best = most_likely(logits, n), last = best;
    if (o->temperature <= 0.0)
        return best;
    double sum = 0.0, most = (double)logits[best];
    for (uint32_t v = 0; v < n; v++)
        sum += exp(((double)logits[v] - most) / o->temperature);
    double left = sum * kvb_rng_unit(kvb_rng_key(o->seed, 0, 0, 0, 0), step);
    for (uint32_t v = 0; v < n; v++) {
        double p = exp(((double)logits[v] - most) / o->temperature);
        if (p > 0.0)
            last = v;
        if ((left -= p) < 0.0)
            break;
    }
    return last;
}

typedef struct generation {
    kvb_forward *forward;
    kvb_forward_hooks hooks;
    float *logits;
    uint32_t width, vocab;
    uint32_t position;
} generation;

/* Among NaN no token is the most likely: without this the first of the vocabulary would look like an answer. */
static kvb_status check_logits(const generation *g, kvb_error *err)
{
    for (uint32_t v = 0; v < g->vocab; v++)
        if (!isfinite(g->logits[v]))
            return kvb_fail(err, KVB_E_CHECK, "generate",
                            "the logit of token %u after %u tokens is %g, expected a finite number: the model file holds bad "
                            "weights",
                            v, g->position, (double)g->logits[v]);
    return KVB_OK;
}

/* Runs tokens at the next positions and leaves the logits after the last of them. */
static kvb_status advance(generation *g, const uint32_t *tokens, size_t count, kvb_error *err)
{
    const float *hidden = NULL;
    uint32_t piece = 0;
    for (size_t done = 0; done < count; done += piece) {
        piece = count - done < PIECE ? (uint32_t)(count - done) : PIECE;
        kvb_status status = kvb_forward_run(g->forward, tokens + done, piece, g->position, &g->hooks, &hidden, err);
        if (status != KVB_OK)
            return status;
        g->position += piece;
    }
    kvb_forward_logits(g->forward, hidden + (size_t)(piece - 1) * g->width, 1, g->logits);
    return check_logits(g, err);
}

static kvb_status run(generation *g, const kvb_model *model, const uint32_t *prompt, size_t prompt_count,
                      const kvb_generation_options *o, kvb_token_fn token, void *user, kvb_error *err)
{
    int32_t eos = o->ignore_eos ? -1 : kvb_tokenizer_eos(kvb_model_tokenizer(model));
    kvb_status status = advance(g, prompt, prompt_count, err);
    for (uint64_t i = 0; i < o->most && status == KVB_OK; i++) {
        uint32_t next = choose(g->logits, g->vocab, o, i);
        if ((eos >= 0 && next == (uint32_t)eos) || token(user, next) != 0)
            break;
        if (i + 1 < o->most)
            status = advance(g, &next, 1, err);
    }
    return status;
}

kvb_status kvb_generate(const kvb_model *model, kvb_cache *cache, const uint32_t *prompt, size_t prompt_count,
                        const kvb_generation_options *options, kvb_token_fn token, void *user, kvb_error *err)
{
    const kvb_model_info *info = kvb_model_get_info(model);
    const kvb_layer *layer = info->layer;
    if (prompt_count == 0)
        return kvb_fail(err, KVB_E_USAGE, "generate", "the prompt has no tokens");
    if (prompt_count > info->context || options->most > info->context - prompt_count)
        return kvb_fail(err, KVB_E_USAGE, "generate", "%zu prompt tokens and %llu new ones exceed the model's %u",
                        prompt_count, (unsigned long long)options->most, info->context);
    cached_attention a = {cache, kvb_alloc_array(2 * (layer->heads + (size_t)layer->kv_heads) * layer->head_dim,
                                                 sizeof(float))};
    generation g = {.hooks = {.attend = attend_through_cache, .attend_user = &a},
                    .logits = kvb_alloc_array(info->vocab, sizeof(float)),
                    .width = info->embedding, .vocab = info->vocab};
    kvb_status status = a.rows && g.logits ? KVB_OK : kvb_fail_memory(err, "generate");
    if (status == KVB_OK)
        status = kvb_forward_create(model, PIECE, &g.forward, err);
    if (status == KVB_OK)
        status = run(&g, model, prompt, prompt_count, options, token, user, err);
    kvb_forward_destroy(g.forward);
    free(g.logits);
    free(a.rows);
    return status;
}
