/* What the forward pass shares with the backward pass; of no use to anyone else. */
#ifndef KVB_MODEL_FORWARD_IMPL_H
#define KVB_MODEL_FORWARD_IMPL_H

#include "format/base/kernels.h"
#include "format/base/rope.h"
#include "model/weights.h"

/* Below so many rows, waking a team of threads costs more than the rows. */
enum { KVB_SHARED_ROWS = 8 };

/* What one layer's pass leaves for the way back. The products may be NULL: the backward pass makes them again. */
typedef struct kvb_tape_layer {
    float *x;       /* [T][E] the residual stream as the layer finds it */
    float *mid;     /* [T][E] the same between attention and feed-forward */
    float *out;     /* [H][T][D] attention output */
    float *qkv;     /* [T][(H+2G)D] before RoPE, or NULL */
    float *gate_up; /* [T][2F] before the activation, or NULL */
    float *attended, *fed; /* [T][E] what attention and feed-forward give, before their post norms; NULL without these */
} kvb_tape_layer;

/* Shapes: T tokens of the call, E channels, F hidden channels, H query heads, G KV heads, D channels of a head. */
struct kvb_forward {
    const kvb_model *model;
    const kvb_kernels *kernels;
    uint32_t max_tokens;
    float *x;       /* [T][E] the residual stream */
    float *norm;    /* [T][E] */
    float *wide;    /* [T][max((H+2G)D, 2F)] */
    float *mixed;   /* [T][HD] attention output, heads side by side */
    float *q;       /* [H][T][D] */
    float *k_pre;   /* [G][T][D] */
    float *k;       /* [G][T][D] */
    float *v;       /* [G][T][D] */
    float *k_t;     /* [G][D][T padded] */
    float *out;     /* [H][T][D] */
    float *lse;     /* [H][T] */
    float *weights; /* one matrix that is not resident */
    float *scratch; /* [threads][attention scratch] */
    int threads;
    const kvb_tape_layer *tape; /* [L] to be filled, or NULL */
    kvb_rope_table *rope; /* [L], made for the first of the layers that turn alike */
    uint32_t *rope_of;    /* [L] */
    uint32_t positions;   /* that the tables cover */
};

/* Scratch per thread, and RoPE tables that cover the call's positions. */
kvb_status kvb_forward_prepare(kvb_forward *f, uint32_t count, uint32_t position, kvb_error *err);
/* KVB_E_USAGE for no tokens, more than max_tokens, or ids outside the vocabulary. */
kvb_status kvb_forward_check(const kvb_forward *f, const uint32_t *tokens, uint32_t count, kvb_error *err);
/* qkv [T][(H+2G)D] of the residual stream x [T][E]; overwrites f->norm. */
void kvb_forward_qkv(kvb_forward *f, const float *x, uint32_t count, const kvb_layer_weights *w, float *qkv);
/* f->q, f->k_pre, f->k and f->v from rows of [q | k | v]. */
void kvb_forward_split(kvb_forward *f, uint32_t layer, const float *qkv, uint32_t count, uint32_t position);
/* gate_up [T][2F] of the residual stream x [T][E]; overwrites f->norm. */
void kvb_forward_gate_up(kvb_forward *f, const float *x, uint32_t count, const kvb_layer_weights *w, float *gate_up);

#endif
