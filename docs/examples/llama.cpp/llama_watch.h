/* llama.cpp from outside: runs a model over chunks of a text and shows each layer's attention to a function, which may put its own
 * in place of it. Nothing in llama.cpp is changed: `cb_eval` of its context is called for each tensor of the graph. */
#ifndef LLAMA_WATCH_H
#define LLAMA_WATCH_H

#include <stdint.h>

#include "llama.h"

/* One layer's attention for n tokens that follow each other: L layers, H query heads, G KV heads, D channels. */
typedef struct watch_step {
    uint32_t layer, tokens, heads, kv_heads, head_dim;
    int rope_mode;             /* GGML_ROPE_TYPE_*, as the node of the graph has it */
    uint32_t rope_dims;
    float rope_base, rope_scale; /* rope_scale 1 unless the context is stretched linearly */
    int rope_factors;          /* whether the model has factors of its own (Llama 3) */
    const float *keys;         /* [n][G][D] before RoPE */
    const float *values;       /* [n][G][D] */
    const float *rotated_keys; /* [n][G][D] after RoPE */
    const float *queries;      /* [n][H][D] after RoPE */
    float *out;                /* [n][H][D] what llama.cpp's attention gave */
} watch_step;

typedef enum watch_answer { WATCH_STOP, WATCH_GO_ON, WATCH_WRITE_BACK } watch_answer; /* WRITE_BACK: `out` was changed */
typedef watch_answer (*watch_attention)(void *user, const watch_step *step);

typedef struct watch {
    struct llama_model *model;
    struct llama_context *context;
    uint32_t ctx; /* tokens of a chunk */
    llama_token *tokens;
    uint32_t chunks; /* whole chunks in the text */
    watch_attention attention;
    void *user;
    watch_step step; /* of the layer under way */
    float *rows[5];  /* keys, values, rotated keys, queries, out.. */
    unsigned seen;   /* ..and which of them this layer had */
    int failed;
} watch;

/* Loads a model and tokenises a text; `type` is that of llama.cpp's own cache. 0, or 1 with a message printed. */
int watch_open(watch *w, const char *model, const char *text, uint32_t ctx, enum ggml_type type, watch_attention attention, void *user);
/* Runs chunk i from an empty cache. The logits of all its tokens are llama_get_logits_ith(). 0, or 1 with a message printed. */
int watch_run(watch *w, uint32_t chunk);
void watch_close(watch *w);

#endif
