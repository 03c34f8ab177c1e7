/* The model's parameters: where they are in the file and, where the budget allows, expanded to float32 once. */
#ifndef KVB_MODEL_WEIGHTS_H
#define KVB_MODEL_WEIGHTS_H

#include <stdbool.h>

#include "format/base/mapfile.h"
#include "model/architecture.h"
#include "model/folder.h"
#include "model/model.h"

/* A matrix [rows][cols] made of up to three tensors of the file, one below the other, so that products that read the
 * same input are one product. */
typedef struct kvb_weight {
    const kvb_tensor *part[3];
    uint32_t parts;
    uint64_t rows, cols;
    float *resident; /* NULL: expanded into scratch when used */
} kvb_weight;

typedef struct kvb_layer_weights {
    kvb_weight qkv;     /* [(H + 2G) D][E] */
    kvb_weight out;     /* [E][H D] */
    kvb_weight gate_up; /* [2F][E] */
    kvb_weight down;    /* [E][F] */
    float *attention_norm, *ffn_norm; /* [E] */
    /* NULL where the architecture has none: */
    float *qkv_bias;                            /* [(H + 2G) D] */
    float *q_norm, *k_norm;                     /* [D] */
    float *attention_post_norm, *ffn_post_norm; /* [E] */
} kvb_layer_weights;

/* What a model file says, whatever its format. */
typedef struct kvb_model_config {
    uint32_t layers, embedding, ffn, vocab, context;
    const kvb_architecture *arch;
    double norm_epsilon;
    float norm_offset;     /* added to the weights of norms as the file has them */
    float embedding_scale;
    kvb_layer geometry;    /* of full layers; heads, kv_heads and head_dim are the same in every layer */
    kvb_layer sliding;     /* of sliding layers, where there are any */
    float *rope_factors;   /* of full layers, or NULL */
    float *sliding_factors;
    char name[128], architecture[32];
} kvb_model_config;

struct kvb_model {
    char *path;
    kvb_gguf *gguf;           /* a GGUF model, or */
    kvb_mapfile llama2c;      /* a llama2.c checkpoint with */
    kvb_tensor *tensors;      /* its tensors under GGUF names, or */
    kvb_folder *folder;       /* a Hugging Face folder with its tensors under their own names */
    size_t tensor_count;
    bool tied;                /* an output matrix in the folder is not looked at */
    kvb_model_config config;
    kvb_layer *geometry;      /* [L] */
    kvb_model_info info;
    kvb_tokenizer *tokenizer;
    kvb_layer_weights *layer; /* [L] */
    kvb_weight embedding, head;
    float *final_norm;
    uint64_t scratch_floats;  /* of the largest matrix that is not resident */
};

/* The tensor of that name, or NULL. */
const kvb_tensor *kvb_model_find(const kvb_model *m, const char *name);

/* Finds and checks every tensor; expands to float32 up to `budget` bytes (0: no limit). KVB_E_FORMAT for tensors that are
 * missing, of another shape or type, or hold NaN or infinity, and for tensors of a GGUF file that nobody here reads. */
kvb_status kvb_weights_load(kvb_model *m, uint64_t budget, kvb_error *err);
void kvb_weights_free(kvb_model *m);

/* The matrix as float32: resident, or expanded into scratch. */
const float *kvb_weight_floats(const kvb_weight *w, float *scratch);

/* Fills config, geometry and, where the file is no GGUF, the tensor list. */
kvb_status kvb_config_from_gguf(kvb_model *m, kvb_error *err);
kvb_status kvb_config_from_llama2c(kvb_model *m, kvb_error *err);
kvb_status kvb_config_from_folder(kvb_model *m, kvb_error *err);

/* What readers of configurations share. First the ranges: no geometry passes that a .kvb file could not hold, as capture
 * would find out only at its end. */
kvb_status kvb_config_check(const kvb_model *m, kvb_error *err);
/* Of these the sizes alone, before RoPE is known. */
kvb_status kvb_config_check_heads(const kvb_model *m, kvb_error *err);
/* Then geometry [layers] out of config.geometry and config.sliding; slides[l] names sliding layers, NULL: none. */
kvb_status kvb_config_lay_out(kvb_model *m, const bool *slides, kvb_error *err);
/* The same where the architecture alone says which layers slide; finishes config.sliding. */
kvb_status kvb_config_lay_out_sliding(kvb_model *m, uint32_t window, kvb_error *err);

#endif
