/* What the supported architectures differ in, as data. One forward pass and one backward pass read it; no code asks for an
 * architecture by its name. */
#ifndef KVB_MODEL_ARCHITECTURE_H
#define KVB_MODEL_ARCHITECTURE_H

#include <stdbool.h>

#include "kvbook/book.h"

typedef enum kvb_activation {
    KVB_ACTIVATION_SILU,      /* SwiGLU: silu(gate) * up */
    KVB_ACTIVATION_GELU_TANH, /* GeGLU: gelu(gate) * up, gelu in its tanh form */
} kvb_activation;

/* Which layers slide where a file names a window. */
typedef enum kvb_slides {
    KVB_SLIDES_NEVER,
    KVB_SLIDES_ALL,
    KVB_SLIDES_PERIOD, /* all but every full_period-th; a window is needed */
    KVB_SLIDES_UPPER,  /* from max_window_layers on, where use_sliding_window says so; GGUF has neither */
} kvb_slides;

/* What config.json may leave out, because the class that reads it there knows it. 0: must be in the file. */
typedef struct kvb_folder_defaults {
    uint32_t heads, kv_heads, head_dim, context;
    double norm_epsilon, rope_base;
    bool tied; /* tie_word_embeddings */
} kvb_folder_defaults;

enum { KVB_ARCHITECTURE_CLASSES = 2 };

typedef struct kvb_architecture {
    const char *name;                              /* as kvbook prints it, and model_type of config.json */
    const char *gguf;                              /* general.architecture, or NULL: GGUF has it under another name */
    const char *classes[KVB_ARCHITECTURE_CLASSES]; /* "architectures" of config.json */
    kvb_rope_style gguf_rope; /* Hugging Face folders have halves always */
    kvb_activation activation;
    bool qkv_bias;            /* projections of q, k and v add a vector */
    bool qk_norm;             /* RMSNorm over the channels of each head of q and k, before RoPE */
    bool post_norms;          /* RMSNorm of what attention and feed-forward add to the stream */
    bool fused;               /* q, k and v are one tensor, gate and up another */
    bool embedding_scale;     /* embeddings are multiplied by sqrt(E) */
    bool partial_rotary;      /* RoPE may leave the last channels of a head alone */
    bool query_scalar;        /* config.json says what queries are scaled by */
    uint32_t wide_scale_at;   /* GGUF does not: models of so many layers scale by E / H channels, the others by D; 0: none does */
    bool kv_heads_optional;   /* where config.json says nothing, there are as many as query heads */
    kvb_slides slides;
    uint32_t full_period;
    double sliding_rope_base; /* of sliding layers where the file names none; 0: that of full layers */
    float folder_norm_offset; /* what Hugging Face folders leave out of the weights of norms; GGUF has it added */
    kvb_folder_defaults defaults;
} kvb_architecture;

/* NULL for names that are not supported. */
const kvb_architecture *kvb_architecture_of_gguf(const char *name);
const kvb_architecture *kvb_architecture_of_class(const char *name);

/* "llama, qwen2, ..." for errors: GGUF's names, or the classes of Hugging Face. */
void kvb_architecture_list(bool classes, char *text, size_t room);

#endif
