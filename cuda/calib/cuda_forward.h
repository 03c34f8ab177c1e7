/* The forward pass of a Llama-like model over many sequences on a GPU, one layer at a time, with what capture wants of each
 * layer: keys before RoPE, values, token weights and second moments of the queries (calib/observe.h has the definitions).
 *
 * All sequences start at position 0 and have `ctx` tokens; the residual stream of all of them stays on the device while the
 * layers' weights pass through. Matrix products run on tensor cores with operands rounded to TF32 and sums in float32; attention
 * and token weights are float32, sums over queries are exact sums of each sequence's. A sequence goes through by itself, by kernels
 * that do not depend on how many there are: what it leaves depends on the weights and its tokens alone, and no float is added
 * atomically. So sequences may be split over devices and processes in any way.
 *
 * Copies run beside the kernels, in streams of their own:
 *
 *   kvb_cuda_forward_weights(f, layer 0)
 *   for each layer l: kvb_cuda_forward_layer(f, observed)      starts it
 *                     kvb_cuda_forward_weights(f, layer l + 1) while l runs
 *                     kvb_cuda_forward_seen(f, &seen)          of layer l - 1, while l runs; at the end of layer l itself
 *
 * A handle serves one thread; several may be at work in one process. */
#ifndef KVB_CUDA_FORWARD_H
#define KVB_CUDA_FORWARD_H

#include <stdbool.h>

#include "format/base/exact.h"
#include "kvbook/book.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct kvb_cuda_forward kvb_cuda_forward;

typedef struct kvb_cuda_shape {
    uint32_t embedding, ffn;   /* E, F */
    double norm_epsilon;
    kvb_layer geometry;        /* of every layer; D at most 128 */
    uint32_t ctx;              /* T */
    uint64_t sequences;
    uint32_t positions;         /* rows of the rotary tables where they are more than T; or 0 */
    const float *cosine, *sine; /* [positions][rope_dims/2] */
    const uint32_t *drawn;      /* [sequences][T]: positions that queries are turned back by for the relative moment; NULL: nobody observes */
    bool handed;                /* for kvb_cuda_forward_layer_by() */
    uint32_t resident;          /* so many layers' weights come once and stay; 0: a layer's weights come when its turn has come, in each pass */
} kvb_cuda_shape;

/* Host float32 matrices of one layer, as in model/weights.h. */
typedef struct kvb_cuda_weights {
    const float *qkv;     /* [(H + 2G) D][E] */
    const float *out;     /* [E][H D] */
    const float *gate_up; /* [2F][E] */
    const float *down;    /* [E][F] */
    const float *attention_norm, *ffn_norm; /* [E] */
    const float *qkv_bias;          /* [(H + 2G) D], or NULL */
    const float *q_norm, *k_norm;   /* [D] of RMSNorm over each head's channels before RoPE, both or neither NULL */
} kvb_cuda_weights;

/* What one layer leaves, in the handle's host memory until the next call for it. n = sequences * T; row r of every head is token
 * r % T of sequence r / T. */
typedef struct kvb_cuda_seen {
    const uint16_t *keys, *values;  /* [G][n][D] half floats: magnitudes beyond 65504 become that */
    const uint8_t *bad_keys, *bad_values; /* [G][n] 1 where a row holds a NaN or infinity */
    const float *weight_k, *weight_v; /* [G][n] */
    const kvb_exact *sums;          /* [2][G][D(D+1)/2] of q q^T over all queries: turned back, then as rotated */
    const uint64_t *bad_queries;    /* [H] left out of the sums */
    uint64_t saturated_keys, saturated_values; /* elements beyond 65504, of all rows */
} kvb_cuda_seen;

/* shape and its arrays may be forgotten. KVB_E_DEVICE, KVB_E_MEMORY (nothing is left allocated), KVB_E_USAGE for heads of more than 128 channels. */
kvb_status kvb_cuda_forward_create(int device, const kvb_cuda_shape *shape, kvb_cuda_forward **out, kvb_error *err);
void kvb_cuda_forward_destroy(kvb_cuda_forward *f); /* NULL is allowed */
/* The embeddings [T][E] of one sequence, before the first layer; of those tokens that are at work. */
kvb_status kvb_cuda_forward_put(kvb_cuda_forward *f, uint64_t sequence, const float *x, kvb_error *err);
/* Begins to copy the next layer's weights; the host matrices may be forgotten afterwards. KVB_E_USAGE where two layers' weights are
 * waiting already. */
kvb_status kvb_cuda_forward_weights(kvb_cuda_forward *f, const kvb_cuda_weights *weights, kvb_error *err);
/* Begins the next layer over all sequences, with the weights that came next. */
kvb_status kvb_cuda_forward_layer(kvb_cuda_forward *f, bool observed, kvb_error *err);

/* A layer's queries after RoPE, keys before it and values of all sequences, and where the outputs go, in device memory: */
typedef struct kvb_cuda_handed {
    uint32_t position, tokens; /* of every sequence: the first one's place, and how many (T) */
    float *q;                  /* [T][sequences][H][D] */
    float *k, *v;              /* [T][sequences][G][D] */
    float *out;                /* [T][sequences][H][D] */
} kvb_cuda_handed;

struct CUstream_st; /* cudaStream_t points to it */
typedef kvb_status (*kvb_cuda_attend_fn)(void *user, uint32_t layer, const kvb_cuda_handed *handed, struct CUstream_st *stream, kvb_error *err);

/* The next layer over all sequences, with the attention of `attend`, which queues its work on the stream. */
kvb_status kvb_cuda_forward_layer_by(kvb_cuda_forward *f, uint32_t layer, kvb_cuda_attend_fn attend, void *user, kvb_error *err);
/* From now on `tokens` <= ctx of each sequence are at work, the first at `position`; attention to those before them is `attend`'s. */
kvb_status kvb_cuda_forward_place(kvb_cuda_forward *f, uint32_t position, uint32_t tokens, kvb_error *err);
/* The residual stream [sequences][ctx][E] in device memory, and the stream that works on it. */
const float *kvb_cuda_forward_rows(const kvb_cuda_forward *f, struct CUstream_st **stream);
/* Waits for the oldest observed layer that was not asked for yet, of the last two. */
kvb_status kvb_cuda_forward_seen(kvb_cuda_forward *f, kvb_cuda_seen *seen, kvb_error *err);
/* The residual stream [T][E] of one sequence after the layers so far. */
kvb_status kvb_cuda_forward_get(kvb_cuda_forward *f, uint64_t sequence, float *x, kvb_error *err);

#ifdef __cplusplus
}
#endif
#endif
