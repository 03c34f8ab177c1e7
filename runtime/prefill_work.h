/* What the parts of the prefill share: a layer's keys and values as the cache would read them, exact and from codes. */
#ifndef KVB_RUNTIME_PREFILL_WORK_H
#define KVB_RUNTIME_PREFILL_WORK_H

#include "format/base/attention.h"
#include "format/base/rope.h"
#include "runtime/anchor_pool.h"
#include "runtime/prefill.h"
#include "runtime/token_pool.h"

/* One KV head. Row-major [T][D]; keys are after RoPE. `exact` went through the rows of a cache (runtime/row_form.h). */
typedef struct kvb_prefill_head {
    float *exact_k, *coded_k, *exact_v, *coded_v; /* coded ones NULL where the layer has no codes */
    float *static_score;                          /* [T], NULL where scores come from attention */
    uint32_t *until;                              /* [T] */
    kvb_token_pool small;                         /* as it is once every whole block has been coded */
} kvb_prefill_head;

typedef struct kvb_prefill_work {
    const kvb_prefill *p;
    const kvb_layer *layer;
    kvb_policy policy; /* as it applies to this layer */
    bool has_codes;
    uint32_t block;         /* tokens that leave the window together */
    uint32_t fine_from;     /* tokens from here on go through fine codes: the sinks, or T where the form is half floats */
    uint32_t tokens, tiles; /* T, and tiles of KVB_ATTN_COLS keys */
    kvb_rope_table rope;
    kvb_prefill_head *head; /* [G] */
    kvb_parallel_fn parallel;
    float *out;             /* [H][T][D] */
    unsigned char *failed;  /* one flag for each task that is running: out of memory */
    size_t failed_room;
} kvb_prefill_work;

/* Runs tasks over threads; a task that runs out of memory sets w->failed[i]. */
kvb_status kvb_work_run(kvb_prefill_work *w, void (*task)(void *user, size_t i), void *user, size_t count,
                        const char *what, kvb_error *err);

/* x [rows][D], row-major, to tiles [w->tiles][D][KVB_ATTN_COLS], zero after the last row. */
void kvb_work_transpose(const kvb_prefill_work *w, const float *x, float *tiles);

/* prefill_mirror.c: fills exact, coded and static_score of every head. */
kvb_status kvb_prefill_mirror(kvb_prefill_work *w, kvb_error *err);
/* prefill_until.c: fills until[]: for KVB_PROTOCOL_CHUNK, or where scores do not come from attention. */
kvb_status kvb_prefill_until(kvb_prefill_work *w, kvb_error *err);
/* prefill_tiled.c: attention with until[] known. */
kvb_status kvb_prefill_tiled(kvb_prefill_work *w, kvb_error *err);
/* prefill_causal.c: token by token, as the cache does it; needs no until[]. */
kvb_status kvb_prefill_causal(kvb_prefill_work *w, kvb_error *err);

#endif
