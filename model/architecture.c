#include "model/architecture.h"

#include <stdio.h>
#include <string.h>

/* llama.cpp pairs neighbouring channels in its `llama` (its converter reorders rows of q and k), halves elsewhere. Mistral is
 * a Llama in GGUF, which drops the sliding window of version 0.1. It knows the one size of Gemma 3 whose queries are scaled by
 * E / H channels by its 62 layers. */
static const kvb_architecture known[] = {
    {.name = "llama", .gguf = "llama", .classes = {"LlamaForCausalLM"}, .gguf_rope = KVB_ROPE_INTERLEAVED,
     .kv_heads_optional = true, .defaults = {.rope_base = 10000.0}},
    {.name = "mistral", .classes = {"MistralForCausalLM"}, .slides = KVB_SLIDES_ALL, .defaults = {.rope_base = 10000.0}},
    {.name = "qwen2", .gguf = "qwen2", .classes = {"Qwen2ForCausalLM"}, .gguf_rope = KVB_ROPE_HALF, .qkv_bias = true,
     .slides = KVB_SLIDES_UPPER, .defaults = {.rope_base = 10000.0}},
    {.name = "qwen3", .gguf = "qwen3", .classes = {"Qwen3ForCausalLM"}, .gguf_rope = KVB_ROPE_HALF, .qk_norm = true,
     .slides = KVB_SLIDES_UPPER, .defaults = {.rope_base = 10000.0, .head_dim = 128}},
    {.name = "gemma3", .gguf = "gemma3", .classes = {"Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"},
     .gguf_rope = KVB_ROPE_HALF, .activation = KVB_ACTIVATION_GELU_TANH, .qk_norm = true, .post_norms = true,
     .embedding_scale = true, .query_scalar = true, .wide_scale_at = 62, .slides = KVB_SLIDES_PERIOD,
     .full_period = 6, .sliding_rope_base = 10000.0, .folder_norm_offset = 1.0f,
     .defaults = {.heads = 8, .kv_heads = 4, .head_dim = 256, .context = 131072, .norm_epsilon = 1e-6, .rope_base = 1e6,
                  .tied = true}},
    {.name = "phi3", .gguf = "phi3", .classes = {"Phi3ForCausalLM"}, .gguf_rope = KVB_ROPE_HALF, .fused = true,
     .partial_rotary = true, .kv_heads_optional = true, .slides = KVB_SLIDES_ALL, .defaults = {.rope_base = 10000.0}},
};

enum { COUNT = sizeof known / sizeof *known };

const kvb_architecture *kvb_architecture_of_gguf(const char *name)
{
    for (size_t i = 0; i < COUNT; i++)
        if (known[i].gguf != NULL && strcmp(known[i].gguf, name) == 0)
            return &known[i];
    return NULL;
}

const kvb_architecture *kvb_architecture_of_class(const char *name)
{
    for (size_t i = 0; i < COUNT; i++)
        for (size_t c = 0; c < KVB_ARCHITECTURE_CLASSES && known[i].classes[c] != NULL; c++)
            if (strcmp(known[i].classes[c], name) == 0)
                return &known[i];
    return NULL;
}

static void append(char *text, size_t room, const char *name)
{
    const size_t used = strlen(text);
    if (name != NULL)
        snprintf(text + used, room - used, "%s%s", used > 0 ? ", " : "", name);
}

void kvb_architecture_list(bool classes, char *text, size_t room)
{
    text[0] = '\0';
    for (size_t i = 0; i < COUNT; i++) {
        if (!classes)
            append(text, room, known[i].gguf);
        for (size_t c = 0; classes && c < KVB_ARCHITECTURE_CLASSES; c++)
            append(text, room, known[i].classes[c]);
    }
}
