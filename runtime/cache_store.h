/* What a cache holds, for the files that implement it.
 *
 * A token of one KV head lives in exactly one place: the sinks, the window (a ring), the anchors, or the codes. The first
 * three hold rows of runtime/row_form.h, keys and values apart. Codes are dense: the slot of a coded token is its rank
 * among the tokens that have left the window, less the anchors before it.
 *
 * Where tokens share scales (channel axis of kvb_scaling) they leave the window in blocks, counted from the first token that is no
 * sink; there are no anchors then. A token that has had its time in the window waits there for the rest of its block. Tokens that the
 * two pools of runtime/token_pool.h hold have their slot among the codes too, with nothing of theirs in it. */
#ifndef KVB_RUNTIME_CACHE_STORE_H
#define KVB_RUNTIME_CACHE_STORE_H

#include "format/base/rope.h"
#include "runtime/anchor_pool.h"
#include "runtime/attend_step.h"
#include "runtime/row_form.h"
#include "runtime/token_pool.h"

typedef struct kvb_cache_head {
    /* All rows by kvb_kind. */
    uint8_t *sinks[2];   /* [sinks], half floats */
    uint8_t *window[2];  /* ring: position p is row p % window_room */
    uint8_t *anchors[2]; /* [anchor_room], in the order of the pool */
    uint8_t *codes[2];   /* kvb_codec_bytes() of `coded` tokens */
    double *score;       /* [window_room] what each token of the window has gained so far */
    kvb_anchor_pool pool;
    kvb_token_pool small;
    uint8_t *small_rows[2]; /* [places + spill of it] in its order, half floats */
    kvb_row_form form;   /* of window and anchors; fine codecs are made with the first token */
    uint32_t coded;    /* rows of codes */
    kvb_codec *codec[2];
    float *waiting;    /* [block][D] scratch, where tokens leave in blocks */
    uint32_t sink_room, window_room, anchor_room, code_room;
} kvb_cache_head;

typedef struct kvb_cache_layer {
    kvb_layer geometry;
    bool has_codes;         /* false: every token stays in the window */
    uint32_t block;         /* tokens that leave the window together: the most that share scales in a head; else 1 */
    kvb_policy policy;      /* as it applies to this layer */
    uint32_t length;        /* tokens */
    uint32_t scored_length; /* the length at which attention last added scores */
    uint32_t rope;          /* index of its table */
    kvb_row_form half;      /* of sinks */
    kvb_cache_head *head;   /* [G] */
    kvb_step step;
} kvb_cache_layer;

struct kvb_cache {
    const kvb_book *book;
    uint64_t seed;
    uint32_t reserve;
    uint32_t layers, ropes;
    kvb_cache_layer *layer; /* [layers] */
    kvb_rope_table *rope;   /* [ropes], shared by layers of the same rotation; each grows with its longest layer */
    float *keys, *values;   /* [KVB_ATTN_COLS][largest D] */
    float *keys_t;          /* [largest D][KVB_ATTN_COLS] */
};

/* Position of the oldest token of the window (the length where it is empty). */
uint32_t kvb_layer_window_first(const kvb_cache_layer *layer, uint32_t length);
/* Tokens kept as sinks. */
uint32_t kvb_layer_sinks(const kvb_cache_layer *layer, uint32_t length);

/* Makes room for the next token of a layer, everywhere: after it kvb_store_append() cannot fail. */
kvb_status kvb_store_reserve(kvb_cache *cache, uint32_t layer, kvb_error *err);
/* Makes room in an empty layer for so many tokens, anchors and rows of codes, for whoever then fills them in. */
kvb_status kvb_store_make_room(kvb_cache *cache, uint32_t layer, uint32_t tokens, uint32_t anchors, uint32_t coded,
                               kvb_error *err);
void kvb_store_append(kvb_cache *cache, uint32_t layer, const float *keys, const float *values);
void kvb_store_free(kvb_cache_head *head);

/* Keys after RoPE and values, [count][D], of tokens first .. first+count-1 as the cache reads them. */
void kvb_store_load(kvb_cache *cache, uint32_t layer, uint32_t head, uint32_t first, uint32_t count, float *keys,
                    float *values);

#endif
