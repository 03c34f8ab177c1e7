#include "tests/support/tiny_gguf.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/rng.h"
#include "format/base/utf8.h"
#include "tests/support/gguf_build.h"
#include "tests/support/scratch.h"

enum { SPECIALS = 3, FIRST_MERGED = SPECIALS + 256 };

/* In GPT-2's characters, \304\240 for a space. The order is the rank. */
static const char *const merges[] = {
    "\304\240 t", "h e", "\304\240 a", "i n", "\304\240t he", "r e", "o n", "e r", "\304\240 s", "a t", "\304\240 o",
    "e n", "\304\240 w", "\304\240 c", "n d", "i t", "o r", "i s", "e s", "\304\240 b", "e d", "\304\240 f", "in g",
    "\304\240 p", "o u", "\304\240a nd", "a l", "a r", "\304\240t o", "\304\240 m", "\304\240o f", "\304\240 in",
    "\304\240 d", "\304\240 h", "i c", "l e", "a s", "i on", "v e", "\304\240w as", "s t",
};
enum { MERGES = sizeof merges / sizeof *merges };

tiny_gguf tiny_gguf_default(void)
{
    return (tiny_gguf){.architecture = "llama", .name = "tiny", .pre = "smollm", .layers = 2, .embedding = 64,
                       .heads = 4, .kv_heads = 2, .ffn = 96, .vocab = FIRST_MERGED + MERGES, .context = 256,
                       .rope_base = 10000.0f, .seed = 1};
}

tiny_gguf tiny_gguf_of(const char *architecture)
{
    tiny_gguf t = tiny_gguf_default();
    t.architecture = architecture;
    t.qkv_bias = strcmp(architecture, "qwen2") == 0;
    t.qk_norm = strcmp(architecture, "qwen3") == 0 || strcmp(architecture, "gemma3") == 0;
    t.post_norms = strcmp(architecture, "gemma3") == 0;
    t.fused = strcmp(architecture, "phi3") == 0;
    t.rope_dims = t.fused ? 12 : 0;
    if (t.post_norms) {
        t.layers = 7;
        t.head_dim = 24;
        t.sliding_window = 5;
        t.rope_base = 1e6f;
    }
    return t;
}

static uint32_t head_dim(const tiny_gguf *t)
{
    return t->head_dim != 0 ? t->head_dim : t->embedding / t->heads;
}

static bool is(const char *name, const char *broken)
{
    return broken != NULL && strcmp(name, broken) == 0;
}

static void put_u32(gguf_build *b, const tiny_gguf *t, const char *suffix, uint32_t value)
{
    char key[96];
    snprintf(key, sizeof key, "%s.%s", t->architecture, suffix);
    if (!is(key, t->without_key))
        gguf_build_u32(b, key, value);
}

static void put_f32(gguf_build *b, const tiny_gguf *t, const char *suffix, float value)
{
    char key[96];
    snprintf(key, sizeof key, "%s.%s", t->architecture, suffix);
    if (!is(key, t->without_key))
        gguf_build_f32(b, key, value);
}

static void put_string(gguf_build *b, const tiny_gguf *t, const char *key, const char *value)
{
    if (!is(key, t->without_key))
        gguf_build_string(b, key, value);
}

static void put_geometry(gguf_build *b, const tiny_gguf *t)
{
    put_string(b, t, "general.architecture", t->architecture);
    put_string(b, t, "general.name", t->name);
    put_u32(b, t, "block_count", t->layers);
    put_u32(b, t, "context_length", t->context);
    put_u32(b, t, "embedding_length", t->embedding);
    put_u32(b, t, "feed_forward_length", t->ffn);
    put_u32(b, t, "attention.head_count", t->heads);
    put_u32(b, t, "attention.head_count_kv", t->kv_heads);
    if (t->head_dim != 0) {
        put_u32(b, t, "attention.key_length", t->head_dim);
        put_u32(b, t, "attention.value_length", t->head_dim);
    }
    if (t->sliding_window != 0)
        put_u32(b, t, "attention.sliding_window", t->sliding_window);
    put_u32(b, t, "rope.dimension_count", t->no_rotation ? 0 : t->rope_dims != 0 ? t->rope_dims : head_dim(t));
    put_u32(b, t, "vocab_size", t->vocab);
    if (t->extra_key != NULL)
        put_u32(b, t, t->extra_key, 1);
    put_f32(b, t, "rope.freq_base", t->rope_base);
    put_f32(b, t, "attention.layer_norm_rms_epsilon", 1e-5f);
}

/* GPT-2's character of a byte, written out here again so that the library's own table is tested. */
static void byte_text(unsigned byte, char text[5])
{
    unsigned code = byte, hidden = 0;
    for (unsigned b = 0; b <= byte; b++) {
        bool printable = (b > 0x20 && b < 0x7F) || (b > 0xA0 && b != 0xAD);
        if (!printable && b == byte)
            code = 256 + hidden;
        hidden += !printable;
    }
    text[kvb_utf8_put((uint8_t *)text, code)] = '\0';
}

static void token_text(uint32_t id, char text[32])
{
    static const char *const specials[SPECIALS] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
    if (id < SPECIALS) {
        snprintf(text, 32, "%s", specials[id]);
    } else if (id < FIRST_MERGED) {
        byte_text(id - SPECIALS, text);
    } else if (id < FIRST_MERGED + MERGES) {
        const char *merge = merges[id - FIRST_MERGED], *gap = strchr(merge, ' ');
        snprintf(text, 32, "%.*s%s", (int)(gap - merge), merge, gap + 1);
    } else {
        snprintf(text, 32, "<unused%u>", id);
    }
}

static void put_vocabulary(gguf_build *b, const tiny_gguf *t)
{
    put_string(b, t, "tokenizer.ggml.model", "gpt2");
    put_string(b, t, "tokenizer.ggml.pre", t->pre);
    if (!is("tokenizer.ggml.tokens", t->without_key)) {
        gguf_build_array(b, "tokenizer.ggml.tokens", 8, t->vocab);
        for (uint32_t id = 0; id < t->vocab; id++) {
            char text[32];
            token_text(id, text);
            gguf_bytes_string(&b->entries, text);
        }
    }
    if (!is("tokenizer.ggml.token_type", t->without_key)) {
        gguf_build_array(b, "tokenizer.ggml.token_type", 5, t->vocab);
        for (uint32_t id = 0; id < t->vocab; id++)
            gguf_bytes_u32(&b->entries, id < SPECIALS ? 3 : id < FIRST_MERGED + MERGES ? 1 : 5);
    }
    if (!is("tokenizer.ggml.merges", t->without_key)) {
        gguf_build_array(b, "tokenizer.ggml.merges", 8, MERGES);
        for (unsigned i = 0; i < MERGES; i++)
            gguf_bytes_string(&b->entries, i == 0 && t->first_merge ? t->first_merge : merges[i]);
    }
    gguf_build_u32(b, "tokenizer.ggml.bos_token_id", 0);
    gguf_build_u32(b, "tokenizer.ggml.eos_token_id", 0);
    gguf_build_bool(b, "tokenizer.ggml.add_bos_token", t->wants_bos);
}

/* Values around `mean` with this standard deviation. The stream is keyed by the tensor's name, not by its place. */
static void put_tensor(gguf_build *b, const tiny_gguf *t, const char *name, uint64_t cols, uint64_t rows, float mean,
                       float deviation)
{
    if (is(name, t->without_tensor))
        return;
    uint64_t shape[2] = {cols, rows}, key = t->seed;
    uint32_t dims = rows > 0 ? 2 : 1;
    if (is(name, t->wrong_shape))
        shape[dims - 1]++;
    size_t count = (size_t)(shape[0] * (dims > 1 ? shape[1] : 1));
    float *values = calloc(count, sizeof *values);
    if (values == NULL)
        abort();
    for (const char *c = name; *c != '\0'; c++)
        key = kvb_rng_key(key, (uint8_t)*c, 0, 0, 0);
    for (size_t i = 0; i < count; i++)
        values[i] = mean + deviation * (float)(sqrt(12.0) * (kvb_rng_unit(key, i) - 0.5));
    if (is(name, t->nan_in))
        values[4] = NAN;
    if (is(name, t->iq2_xxs)) {
        memset(values, 0, count * sizeof *values);
        gguf_build_tensor(b, name, 16, 2, (uint64_t[]){256, 1}, values, 66);
    } else {
        gguf_build_tensor(b, name, 0, dims, shape, values, count * sizeof *values);
    }
    free(values);
}

static void put_matrix(gguf_build *b, const tiny_gguf *t, const char *name, uint64_t cols, uint64_t rows, float gain)
{
    put_tensor(b, t, name, cols, rows, 0.0f, gain / sqrtf((float)cols));
}

static void put_vector(gguf_build *b, const tiny_gguf *t, uint32_t layer, const char *suffix, uint32_t count, float mean,
                       float deviation)
{
    char name[64];
    snprintf(name, sizeof name, "blk.%u.%s", layer, suffix);
    put_tensor(b, t, name, count, 0, mean, deviation);
}

static void put_vectors(gguf_build *b, const tiny_gguf *t, uint32_t layer)
{
    const uint32_t e = t->embedding, dim = head_dim(t), kv = dim * t->kv_heads;
    put_vector(b, t, layer, "attn_norm.weight", e, 1.0f, 0.1f);
    put_vector(b, t, layer, "ffn_norm.weight", e, 1.0f, 0.1f);
    if (t->qkv_bias) {
        put_vector(b, t, layer, "attn_q.bias", dim * t->heads, 0.0f, 0.3f);
        put_vector(b, t, layer, "attn_k.bias", kv, 0.0f, 0.3f);
        put_vector(b, t, layer, "attn_v.bias", kv, 0.0f, 0.3f);
    }
    if (t->qk_norm) {
        put_vector(b, t, layer, "attn_q_norm.weight", dim, 1.0f, 0.2f);
        put_vector(b, t, layer, "attn_k_norm.weight", dim, 1.0f, 0.2f);
    }
    if (t->post_norms) {
        put_vector(b, t, layer, "post_attention_norm.weight", e, 1.0f, 0.1f);
        put_vector(b, t, layer, "post_ffw_norm.weight", e, 1.0f, 0.1f);
    }
}

/* The gains keep queries and keys at a deviation over 1, so that attention has something to choose, and what layers add
 * as large as the embedding, so that every layer matters. */
static void put_layer(gguf_build *b, const tiny_gguf *t, uint32_t layer)
{
    const uint32_t e = t->embedding, q = head_dim(t) * t->heads, kv = head_dim(t) * t->kv_heads;
    const struct {
        const char *suffix;
        uint32_t cols, rows;
        float gain;
    } matrices[] = {
        {"attn_q", e, t->fused ? 0 : q, 1.6f},
        {"attn_k", e, t->fused ? 0 : kv, 1.6f},
        {"attn_v", e, t->fused ? 0 : kv, 1.0f},
        {"attn_qkv", e, t->fused ? q + 2 * kv : 0, 1.4f},
        {"attn_output", q, e, 0.6f},
        {"ffn_gate", e, t->fused ? 0 : t->ffn, 1.0f},
        {"ffn_up", e, t->fused ? 2 * t->ffn : t->ffn, 1.0f},
        {"ffn_down", t->ffn, e, 0.5f},
    };
    put_vectors(b, t, layer);
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++) {
        char name[64];
        snprintf(name, sizeof name, "blk.%u.%s.weight", layer, matrices[i].suffix);
        if (matrices[i].rows != 0)
            put_matrix(b, t, name, matrices[i].cols, matrices[i].rows, matrices[i].gain);
    }
}

uint8_t *tiny_gguf_make(const tiny_gguf *t, size_t *size)
{
    gguf_build b = {0};
    put_geometry(&b, t);
    put_vocabulary(&b, t);
    put_matrix(&b, t, "token_embd.weight", t->embedding, t->vocab, 2.0f);
    for (uint32_t layer = 0; layer < t->layers; layer++)
        put_layer(&b, t, layer);
    put_tensor(&b, t, "output_norm.weight", t->embedding, 0, 1.0f, 0.1f);
    if (t->untied)
        put_matrix(&b, t, "output.weight", t->embedding, t->vocab, 2.0f);
    if (t->extra_tensor != NULL)
        put_tensor(&b, t, t->extra_tensor, t->embedding, 0, 0.0f, 1.0f);
    return gguf_build_finish(&b, size);
}

int tiny_gguf_write(const tiny_gguf *t, const char *path)
{
    size_t size;
    uint8_t *bytes = tiny_gguf_make(t, &size);
    int result = scratch_write(path, bytes, size);
    free(bytes);
    return result;
}
