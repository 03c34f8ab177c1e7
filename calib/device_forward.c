#include "calib/device_forward.h"

#include "format/base/fail.h"
#include "format/base/rope.h"
#include "model/weights.h"

enum { MOST_DIM = 128 }; /* channels of a head */

/* The GPU's forward pass takes all layers' window, RoPE and scale from the first. */
static bool attends_alike(const kvb_layer *a, const kvb_layer *b)
{
    const bool slides = a->kind == KVB_LAYER_SLIDING;
    return slides == (b->kind == KVB_LAYER_SLIDING) && (!slides || a->sliding_window == b->sliding_window) && kvb_rope_same(a, b) &&
           a->attention_scale == b->attention_scale;
}

kvb_status kvb_device_forward_check(const kvb_model *model, kvb_error *err)
{
    const kvb_architecture *arch = model->config.arch;
    const kvb_layer *first = &model->geometry[0];
    if (arch->activation != KVB_ACTIVATION_SILU || arch->post_norms || arch->embedding_scale)
        return kvb_fail(err, KVB_E_USAGE, "--device cuda",
                        "models of the architecture %s do not run on a GPU (%s); use --device cpu", arch->name,
                        arch->post_norms ? "norms behind attention and feed-forward" : "its activation or scaled embeddings");
    if (first->head_dim > MOST_DIM)
        return kvb_fail(err, KVB_E_USAGE, "--device cuda", "heads of %u channels: the GPU runs heads of at most %d; use --device cpu",
                        first->head_dim, MOST_DIM);
    for (uint32_t l = 1; l < model->config.layers; l++)
        if (!attends_alike(first, &model->geometry[l]))
            return kvb_fail(err, KVB_E_USAGE, "--device cuda", "layer %u attends otherwise than layer 0 (window, RoPE or scale): the GPU "
                            "runs models whose layers are alike; use --device cpu", l);
    return KVB_OK;
}

kvb_status kvb_device_forward_gpu(const kvb_model *model, kvb_device device, int *gpu, kvb_error *err)
{
    uint32_t list[KVB_MOST_GPUS], count;
    kvb_status status = kvb_device_forward_check(model, err);
    if (status == KVB_OK)
        status = kvb_device_gpus(device, list, &count, err);
    *gpu = status == KVB_OK ? (int)list[0] : 0;
    return status;
}

#ifdef KVB_CUDA
#include <stdlib.h>

#include "format/base/checked.h"

kvb_cuda_shape kvb_device_shape(const kvb_model *model, const kvb_rope_table *rope, uint32_t ctx, uint64_t sequences)
{
    const kvb_model_config *c = &model->config;
    return (kvb_cuda_shape){
        .embedding = c->embedding, .ffn = c->ffn, .norm_epsilon = c->norm_epsilon, .geometry = model->geometry[0], .ctx = ctx,
        .sequences = sequences, .cosine = rope->cosine, .sine = rope->sine,
    };
}

/* The matrix as float32; scratch is made when first needed and serves the same matrix of every layer. */
static const float *floats_of(const kvb_weight *w, float **scratch)
{
    if (w->resident == NULL && *scratch == NULL)
        *scratch = kvb_alloc_array(w->rows * w->cols, sizeof **scratch);
    return w->resident == NULL && *scratch == NULL ? NULL : kvb_weight_floats(w, *scratch);
}

kvb_status kvb_device_send_weights(kvb_cuda_forward *f, const kvb_model *model, uint32_t layer, kvb_weight_scratch *s, kvb_error *err)
{
    const kvb_layer_weights *w = &model->layer[layer];
    const kvb_cuda_weights weights = {
        .qkv = floats_of(&w->qkv, &s->matrix[0]), .out = floats_of(&w->out, &s->matrix[1]),
        .gate_up = floats_of(&w->gate_up, &s->matrix[2]), .down = floats_of(&w->down, &s->matrix[3]),
        .attention_norm = w->attention_norm, .ffn_norm = w->ffn_norm,
        .qkv_bias = w->qkv_bias, .q_norm = w->q_norm, .k_norm = w->k_norm,
    };
    if (weights.qkv == NULL || weights.out == NULL || weights.gate_up == NULL || weights.down == NULL)
        return kvb_fail_memory(err, "weights of a layer");
    return kvb_cuda_forward_weights(f, &weights, err);
}

void kvb_weight_scratch_free(kvb_weight_scratch *s)
{
    for (int i = 0; i < 4; i++)
        free(s->matrix[i]);
}

kvb_status kvb_device_embed(kvb_cuda_forward *f, const kvb_model *model, uint64_t sequence, const uint32_t *tokens, uint32_t count,
                            float *x, kvb_error *err)
{
    const size_t width = model->config.embedding;
    for (uint32_t t = 0; t < count; t++)
        if (tokens[t] >= model->config.vocab)
            return kvb_fail(err, KVB_E_USAGE, "forward pass", "token %u is id %u of a vocabulary of %u", t, tokens[t],
                            model->config.vocab);
#pragma omp parallel for schedule(static)
    for (uint32_t t = 0; t < count; t++)
        kvb_dequantise(model->embedding.part[0], tokens[t] * width, width, x + t * width);
    return kvb_cuda_forward_put(f, sequence, x, err);
}

kvb_status kvb_device_predict(int gpu, const kvb_model *model, size_t rows, kvb_cuda_predict **out, kvb_error *err)
{
    const kvb_model_config *c = &model->config;
    const kvb_weight *w = &model->head;
    float *scratch = NULL;
    const float *matrix = floats_of(w, &scratch);
    if (matrix == NULL)
        return kvb_fail_memory(err, "the head's weights");
    const kvb_cuda_head head = {c->embedding, c->vocab, c->norm_epsilon, model->final_norm, matrix};
    const kvb_status status = kvb_cuda_predict_create(gpu, &head, rows, out, err);
    free(scratch);
    return status;
}
#endif
