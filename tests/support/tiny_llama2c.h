/* A tiny llama2.c checkpoint with random weights, and its tokenizer, for tests of the forward pass. */
#ifndef KVB_TESTS_TINY_LLAMA2C_H
#define KVB_TESTS_TINY_LLAMA2C_H

#include <stdbool.h>
#include <stdint.h>

typedef struct tiny_llama2c {
    uint32_t embedding, ffn, layers, heads, kv_heads, vocab, context;
    bool shared; /* the classifier is the embedding */
    uint64_t seed;
    uint64_t nan_at; /* index of a weight that becomes NaN, or UINT64_MAX */
} tiny_llama2c;

/* E=48, F=80, L=3, H=6, G=2 (D=8), 272 tokens, context 320. */
tiny_llama2c tiny_llama2c_default(void);
/* Number of float32 weights in the file. */
uint64_t tiny_llama2c_floats(const tiny_llama2c *t);
/* Writes both files; false if that fails. Either path may be NULL. */
bool tiny_llama2c_write(const tiny_llama2c *t, const char *model_path, const char *tokenizer_path);

#endif
