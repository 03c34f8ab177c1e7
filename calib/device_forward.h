/* A model on its way into a GPU's forward pass (cuda/calib/cuda_forward.h): what capture, eval and generate share. */
#ifndef KVB_CALIB_DEVICE_FORWARD_H
#define KVB_CALIB_DEVICE_FORWARD_H

#include "calib/device.h"
#include "model/model.h"

/* Whether the GPU's forward pass runs this model, in any build. KVB_E_USAGE names what it cannot do. */
kvb_status kvb_device_forward_check(const kvb_model *model, kvb_error *err);
/* The same, and the first of the device's GPUs. KVB_E_DEVICE where this build or this machine lacks one of them. */
kvb_status kvb_device_forward_gpu(const kvb_model *model, kvb_device device, int *gpu, kvb_error *err);

#ifdef KVB_CUDA
#include "cuda/calib/cuda_forward.h"
#include "cuda/eval/cuda_predict.h"
#include "format/base/rope.h"

/* Room for matrices that are not held as float32; one serves all layers. Begins as zeros. */
typedef struct kvb_weight_scratch {
    float *matrix[4];
} kvb_weight_scratch;

/* What a forward pass is made from, but for what only some want; `rope` [ctx positions or more] is borrowed. */
kvb_cuda_shape kvb_device_shape(const kvb_model *model, const kvb_rope_table *rope, uint32_t ctx, uint64_t sequences);
void kvb_weight_scratch_free(kvb_weight_scratch *s);
kvb_status kvb_device_send_weights(kvb_cuda_forward *f, const kvb_model *model, uint32_t layer, kvb_weight_scratch *s, kvb_error *err);
/* The embeddings of a sequence's tokens that are at work; x [count][E] is scratch. KVB_E_USAGE for an id outside the vocabulary. */
kvb_status kvb_device_embed(kvb_cuda_forward *f, const kvb_model *model, uint64_t sequence, const uint32_t *tokens, uint32_t count,
                            float *x, kvb_error *err);
/* The model's head, for so many rows at once. */
kvb_status kvb_device_predict(int gpu, const kvb_model *model, size_t rows, kvb_cuda_predict **out, kvb_error *err);
#endif

#endif
