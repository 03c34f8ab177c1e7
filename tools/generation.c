#include "tools/generation.h"

#include <math.h>
#include <stdlib.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/rng.h"

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
    kvb_stream *stream;
    float *logits;
    uint32_t vocab;
} generation;

/* Among NaN no token is the most likely: without this the first of the vocabulary would look like an answer. */
static kvb_status check_logits(const generation *g, kvb_error *err)
{
    for (uint32_t v = 0; v < g->vocab; v++)
        if (!isfinite(g->logits[v]))
            return kvb_fail(err, KVB_E_CHECK, "generate",
                            "the logit of token %u after %u tokens is %g, expected a finite number: the model file holds bad "
                            "weights",
                            v, kvb_stream_position(g->stream), (double)g->logits[v]);
    return KVB_OK;
}

/* Runs tokens at the next positions and leaves the logits after the last of them. */
static kvb_status advance(generation *g, const uint32_t *tokens, size_t count, kvb_error *err)
{
    const float *hidden;
    kvb_status status = kvb_stream_run(g->stream, tokens, count, &hidden, err);
    if (status != KVB_OK)
        return status;
    status = kvb_stream_logits(g->stream, hidden, g->logits, err);
    return status == KVB_OK ? check_logits(g, err) : status;
}

static kvb_status run(generation *g, const kvb_model *model, const uint32_t *prompt, size_t prompt_count,
                      const kvb_generation_options *o, kvb_token_fn token, void *user, kvb_error *err)
{
    int32_t eos = o->ignore_eos ? -1 : kvb_tokenizer_eos(kvb_model_tokenizer(model));
    kvb_status status = KVB_OK;
    if (prompt_count > 0) {
        status = advance(g, prompt, prompt_count, err);
    } else {
        status = kvb_stream_logits(g->stream, o->hidden, g->logits, err);
        if (status == KVB_OK)
            status = check_logits(g, err);
    }
    for (uint64_t i = 0; i < o->most && status == KVB_OK; i++) {
        uint32_t next = choose(g->logits, g->vocab, o, i);
        if ((eos >= 0 && next == (uint32_t)eos) || token(user, next) != 0)
            break;
        if (i + 1 < o->most)
            status = advance(g, &next, 1, err);
    }
    return status;
}

kvb_status kvb_generate(const kvb_model *model, kvb_stream *stream, const uint32_t *prompt, size_t prompt_count,
                        const kvb_generation_options *options, kvb_token_fn token, void *user, kvb_error *err)
{
    const kvb_model_info *info = kvb_model_get_info(model);
    const uint64_t held = kvb_stream_position(stream);
    if (prompt_count == 0 && (held == 0 || options->hidden == NULL))
        return kvb_fail(err, KVB_E_USAGE, "generate", "the prompt has no tokens");
    if (held > info->context || prompt_count > info->context - held ||
        options->most > info->context - held - prompt_count)
        return kvb_fail(err, KVB_E_USAGE, "generate", "%llu prompt tokens and %llu new ones exceed the model's %u",
                        (unsigned long long)(held + prompt_count), (unsigned long long)options->most, info->context);
    generation g = {.stream = stream, .logits = kvb_alloc_array(info->vocab, sizeof(float)), .vocab = info->vocab};
    kvb_status status = g.logits != NULL ? run(&g, model, prompt, prompt_count, options, token, user, err)
                                         : kvb_fail_memory(err, "generate");
    free(g.logits);
    return status;
}
