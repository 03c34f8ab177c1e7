/* A decoder-only transformer (model/architecture.h lists which), in float32 on the CPU, with a seam at attention.
 *
 * Shapes: T tokens of one sequence, E channels, H query heads, G KV heads, D channels a head. Everything outside a
 * call's own arguments is immutable after kvb_model_open(); one kvb_forward per sequence, one thread team each. */
#ifndef KVB_MODEL_MODEL_H
#define KVB_MODEL_MODEL_H

#include "kvbook/book.h"
#include "model/tokenizer.h"

typedef struct kvb_model kvb_model;

typedef struct kvb_model_info {
    const char *path;
    const char *name;         /* general.name, or the file's name */
    const char *architecture; /* "llama", ... */
    uint32_t layers, embedding, vocab, context; /* context: what the model was trained for */
    const kvb_layer *layer;   /* [layers]; frame is KVB_FRAME_PRE */
    uint8_t meta_sha256[32], weights_sha256[32];
} kvb_model_info;

/* How to open a model: a GGUF file, a llama2.c checkpoint (version 0 header; told apart by their first bytes) or a Hugging Face
 * folder (config.json, safetensors, tokenizer.json). tokenizer_path: NULL for the model's own vocabulary, or llama2.c's
 * tokenizer.bin. */
typedef struct kvb_model_options {
    const char *tokenizer_path;
    uint64_t max_weight_bytes; /* float32 weights held at most; above it layers are expanded when used. 0: no limit */
} kvb_model_options;

kvb_status kvb_model_open(const char *path, const kvb_model_options *options, kvb_model **model, kvb_error *err);
void kvb_model_close(kvb_model *model);
const kvb_model_info *kvb_model_get_info(const kvb_model *model);
const kvb_tokenizer *kvb_model_tokenizer(const kvb_model *model);

/* Copies a layer's output projection W_O, which maps its heads' outputs side by side to the residual stream: w [E][H*D]. */
void kvb_model_output_weights(const kvb_model *model, uint32_t layer, float *w);

/* What a layer hands to its attention. Observers may read all of it and change nothing. */
typedef struct kvb_attention_call {
    uint32_t layer;
    const kvb_layer *geometry;
    uint32_t tokens;       /* T of this call */
    uint32_t position;     /* of the first token */
    const float *q;        /* [H][T][D] after RoPE, not scaled */
    const float *k_pre;    /* [G][T][D] before RoPE */
    const float *k;        /* [G][T][D] after RoPE */
    const float *v;        /* [G][T][D] */
} kvb_attention_call;

/* Replaces exact causal attention over the call's own tokens: writes out [H][T][D]. */
typedef kvb_status (*kvb_attend_fn)(void *user, const kvb_attention_call *call, float *out, kvb_error *err);
/* Sees a finished attention: out [H][T][D] and, if asked for, lse [H][T] = log sum exp of the scaled scores of a row. */
typedef kvb_status (*kvb_observe_fn)(void *user, const kvb_attention_call *call, const float *out, const float *lse,
                                     kvb_error *err);

typedef struct kvb_forward_hooks {
    kvb_attend_fn attend;   /* NULL: exact attention */
    void *attend_user;
    kvb_observe_fn observe; /* NULL: nobody watches; needs attend == NULL */
    void *observe_user;
} kvb_forward_hooks;

/* Scratch for sequences of up to max_tokens. */
typedef struct kvb_forward kvb_forward;
kvb_status kvb_forward_create(const kvb_model *model, uint32_t max_tokens, kvb_forward **f, kvb_error *err);
void kvb_forward_destroy(kvb_forward *f);

/* Runs T tokens at positions position.. of one sequence; exact attention sees this call's tokens only, so position is
 * 0 unless `attend` keeps a cache. *hidden: [T][E] after the final norm, owned by `f` until the next call. */
kvb_status kvb_forward_run(kvb_forward *f, const uint32_t *tokens, uint32_t count, uint32_t position,
                           const kvb_forward_hooks *hooks, const float **hidden, kvb_error *err);

/* logits [n][vocab] of n rows of `hidden` [n][E]. */
void kvb_forward_logits(const kvb_forward *f, const float *hidden, uint32_t n, float *logits);

#endif
