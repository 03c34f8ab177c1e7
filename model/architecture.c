#include "model/architecture.h"

#include <stdio.h>
#include <string.h>

/* llama.cpp pairs neighbouring channels in its `llama` (its converter reorders rows of q and k), halves elsewhere. Mistral is
 * a Llama in GGUF, which drops the sliding window of version 0.1. */
static const kvb_architecture known[] = {
    {.name = "llama", .gguf = "llama", .classes = {"LlamaForCausalLM"}, .gguf_rope = KVB_ROPE_INTERLEAVED},
    {.name = "mistral", .classes = {"MistralForCausalLM"}, .slides = true},
    {.name = "qwen2", .gguf = "qwen2", .classes = {"Qwen2ForCausalLM"}, .gguf_rope = KVB_ROPE_HALF, .qkv_bias = true,
     .slides = true},
    {.name = "qwen3", .gguf = "qwen3", .classes = {"Qwen3ForCausalLM"}, .gguf_rope = KVB_ROPE_HALF, .qk_norm = true,
     .slides = true},
    {.name = "gemma3", .gguf = "gemma3", .classes = {"Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"},
     .gguf_rope = KVB_ROPE_HALF, .activation = KVB_ACTIVATION_GELU_TANH, .qk_norm = true, .post_norms = true,
     .embedding_scale = true, .slides = true, .full_period = 6, .sliding_rope_base = 10000.0, .folder_norm_offset = 1.0f},
    {.name = "phi3", .gguf = "phi3", .classes = {"Phi3ForCausalLM"}, .gguf_rope = KVB_ROPE_HALF, .fused = true,
     .partial_rotary = true, .slides = true},
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
