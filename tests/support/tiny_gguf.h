/* A tiny Llama (or another architecture's model) as a GGUF file with a byte-level BPE vocabulary: random but always the same weights, so that tests of
 * models need no download. Single things can be broken. */
#ifndef KVB_TESTS_TINY_GGUF_H
#define KVB_TESTS_TINY_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct tiny_gguf {
    const char *architecture, *name, *pre;
    uint32_t layers, embedding, heads, kv_heads, ffn, vocab, context;
    uint32_t head_dim;       /* 0: embedding / heads */
    uint32_t rope_dims;      /* 0: all of a head's channels */
    uint32_t sliding_window; /* 0: the file says nothing */
    float rope_base;
    uint64_t seed;
    bool qkv_bias, qk_norm, post_norms, fused; /* tensors that other architectures have */
    bool untied;       /* with an output.weight of its own */
    bool no_rotation;  /* RoPE over 0 channels */
    bool wants_bos;    /* tokenizer.ggml.add_bos_token */
    /* To break something: NULL or false leaves it whole. */
    const char *without_key;    /* this metadata key is left out */
    const char *extra_key;      /* this key, without its architecture, is added with the value 1 */
    const char *without_tensor; /* so is this tensor */
    const char *extra_tensor;   /* a vector of this name is added */
    const char *wrong_shape;    /* this tensor has one row (or element) more */
    const char *nan_in;         /* this tensor's fifth element is NaN */
    const char *iq2_xxs;        /* this tensor says it has a type that kvbook cannot read; its bytes are zero */
    const char *first_merge;    /* in place of the right one */
} tiny_gguf;

/* L=2, E=64, H=4, G=2 (D=16), F=96, 300 tokens, context 256, RoPE base 10000, output tied to the embedding.
 * Tokens: 0 <|endoftext|> (BOS and EOS), 1 <|im_start|>, 2 <|im_end|>, 3..258 the bytes, then merged ones. */
tiny_gguf tiny_gguf_default(void);
/* The same as a model of another architecture, by its name in GGUF: gemma3 gets heads of 24 channels, a window of 5 and 7
 * layers, phi3 RoPE over 12 of 16 channels. */
tiny_gguf tiny_gguf_of(const char *architecture);
/* The file's bytes; free with free(). */
uint8_t *tiny_gguf_make(const tiny_gguf *t, size_t *size);
/* Writes it; 0 if all is well. */
int tiny_gguf_write(const tiny_gguf *t, const char *path);

#endif
