/* Text token by token through a KV cache, exact or quantised. */
#ifndef KVB_TOOLS_GENERATION_H
#define KVB_TOOLS_GENERATION_H

#include "tools/stream.h"

typedef struct kvb_generation_options {
    uint64_t most;      /* tokens to make at most; the end-of-text token ends earlier */
    double temperature; /* 0: the most likely token */
    uint64_t seed;
    bool ignore_eos;
    const float *hidden; /* [E] the state after the last token in the cache: needed where there is no prompt */
} kvb_generation_options;

/* Sees each new token; return non-zero to stop. */
typedef int (*kvb_token_fn)(void *user, uint32_t token);

/* Runs the prompt (at least one token, unless options->hidden says how a cache that is not empty goes on) and then the new
 * tokens one at a time through the stream, after the tokens its cache holds. Every position attends through the cache, prompt included, so that what a token sees does not depend
 * on where the prompt ends. KVB_E_USAGE where all tokens together exceed the model's context. */
kvb_status kvb_generate(const kvb_model *model, kvb_stream *stream, const uint32_t *prompt, size_t prompt_count,
                        const kvb_generation_options *options, kvb_token_fn token, void *user, kvb_error *err);

#endif
