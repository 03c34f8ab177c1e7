/* Tensor names of Hugging Face folders in GGUF's words, which the weights are looked up by. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/folder.h"

/* Where a name stands: which architectures have it. */
typedef enum place { ANY, WITH_POST_NORMS, WITHOUT_POST_NORMS } place;

static const struct {
    const char *name, *gguf;
    place place;
} per_layer[] = {
    {"input_layernorm", "attn_norm", ANY},
    {"self_attn.q_proj", "attn_q", ANY},
    {"self_attn.k_proj", "attn_k", ANY},
    {"self_attn.v_proj", "attn_v", ANY},
    {"self_attn.qkv_proj", "attn_qkv", ANY},
    {"self_attn.q_norm", "attn_q_norm", ANY},
    {"self_attn.k_norm", "attn_k_norm", ANY},
    {"self_attn.o_proj", "attn_output", ANY},
    {"post_attention_layernorm", "ffn_norm", WITHOUT_POST_NORMS},
    {"post_attention_layernorm", "post_attention_norm", WITH_POST_NORMS},
    {"pre_feedforward_layernorm", "ffn_norm", WITH_POST_NORMS},
    {"post_feedforward_layernorm", "post_ffw_norm", WITH_POST_NORMS},
    {"mlp.gate_proj", "ffn_gate", ANY},
    {"mlp.up_proj", "ffn_up", ANY},
    {"mlp.gate_up_proj", "ffn_up", ANY},
    {"mlp.down_proj", "ffn_down", ANY},
};

static const char *const prefixes[] = {"model.", "language_model.model.", "model.language_model.", ""};

const char *kvb_folder_prefix(const kvb_folder *f)
{
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
        char name[KVB_TENSOR_NAME];
        snprintf(name, sizeof name, "%sembed_tokens.weight", prefixes[i]);
        if (kvb_folder_tensor(f, name) != NULL)
            return prefixes[i];
    }
    return prefixes[0];
}

/* The output matrix stands beside the model, not in it. */
static const char *head_name(const char *prefix)
{
    return strcmp(prefix, "language_model.model.") == 0 ? "language_model.lm_head.weight" : "lm_head.weight";
}

static bool is_placed(const kvb_architecture *a, size_t i)
{
    if (a->fused != (strcmp(per_layer[i].name, "mlp.gate_up_proj") == 0) && strcmp(per_layer[i].gguf, "ffn_up") == 0)
        return false;
    return per_layer[i].place == ANY || (per_layer[i].place == WITH_POST_NORMS) == a->post_norms;
}

/* "N.rest" to both; false where there is no number. */
static bool split_layer(const char *text, unsigned long *layer, const char **rest)
{
    char *end;
    if (text[0] < '0' || text[0] > '9' || (text[0] == '0' && text[1] != '.'))
        return false;
    *layer = strtoul(text, &end, 10);
    *rest = end + 1;
    return *end == '.' && *layer < 1u << 20;
}

/* Whether `rest` is `stem`.KIND; *kind is what follows the stem ("weight", "bias"). */
static bool has_stem(const char *rest, const char *stem, const char **kind)
{
    const size_t size = strlen(stem);
    if (strncmp(rest, stem, size) != 0 || rest[size] != '.')
        return false;
    *kind = rest + size + 1;
    return strcmp(*kind, "weight") == 0 || strcmp(*kind, "bias") == 0;
}

bool kvb_folder_name(const kvb_architecture *a, const char *prefix, const char *gguf, char name[KVB_TENSOR_NAME])
{
    unsigned long layer;
    const char *rest, *kind;
    if (strcmp(gguf, "output.weight") == 0) {
        snprintf(name, KVB_TENSOR_NAME, "%s", head_name(prefix));
        return true;
    }
    if (strcmp(gguf, "token_embd.weight") == 0 || strcmp(gguf, "output_norm.weight") == 0) {
        snprintf(name, KVB_TENSOR_NAME, "%s%s", prefix, gguf[0] == 't' ? "embed_tokens.weight" : "norm.weight");
        return true;
    }
    if (strncmp(gguf, "blk.", 4) != 0 || !split_layer(gguf + 4, &layer, &rest))
        return false;
    for (size_t i = 0; i < sizeof per_layer / sizeof *per_layer; i++) {
        if (!is_placed(a, i) || !has_stem(rest, per_layer[i].gguf, &kind))
            continue;
        snprintf(name, KVB_TENSOR_NAME, "%slayers.%lu.%s.%s", prefix, layer, per_layer[i].name, kind);
        return true;
    }
    return false;
}

bool kvb_folder_gguf_name(const kvb_architecture *a, const char *prefix, const char *name, char gguf[KVB_TENSOR_NAME])
{
    unsigned long layer;
    const char *rest, *kind;
    const size_t skip = strlen(prefix);
    if (strcmp(name, head_name(prefix)) == 0) {
        snprintf(gguf, KVB_TENSOR_NAME, "output.weight");
        return true;
    }
    if (strncmp(name, prefix, skip) != 0)
        return false;
    name += skip;
    if (strcmp(name, "embed_tokens.weight") == 0 || strcmp(name, "norm.weight") == 0) {
        snprintf(gguf, KVB_TENSOR_NAME, "%s", name[0] == 'e' ? "token_embd.weight" : "output_norm.weight");
        return true;
    }
    if (strncmp(name, "layers.", 7) != 0 || !split_layer(name + 7, &layer, &rest))
        return false;
    for (size_t i = 0; i < sizeof per_layer / sizeof *per_layer; i++) {
        if (!is_placed(a, i) || !has_stem(rest, per_layer[i].name, &kind))
            continue;
        snprintf(gguf, KVB_TENSOR_NAME, "blk.%lu.%s.%s", layer, per_layer[i].gguf, kind);
        return true;
    }
    return false;
}

bool kvb_folder_is_beside(const char *name)
{
    static const char *const parts[] = {"vision_tower.", "multi_modal_projector.", "model.vision_tower.",
                                        "model.multi_modal_projector."};
    static const char tail[] = "rotary_emb.inv_freq";
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (strncmp(name, parts[i], strlen(parts[i])) == 0)
            return true;
    const size_t size = strlen(name);
    return size >= sizeof tail - 1 && strcmp(name + size - (sizeof tail - 1), tail) == 0;
}
