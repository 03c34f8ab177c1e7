/* How a token that is not (yet) codes is held: as half floats, or as codes of the book's fine codebooks.
 *
 * A row is the key or the value of one token of one KV head. Half floats hold a key as it is before RoPE; fine codes
 * hold it in the layer's frame, the one that its codebooks were trained in. What a row loads is the token's value from
 * then on: attention reads it, and its coarse codes are made from it. */
#ifndef KVB_RUNTIME_ROW_FORM_H
#define KVB_RUNTIME_ROW_FORM_H

#include "runtime/codec.h"
#include "runtime/rope_frame.h"

/* One KV head; both kinds have a codec or none has. Codecs are scratch too: one thread at a time. */
typedef struct kvb_row_form {
    kvb_codec *codec[2]; /* by kvb_kind: fine codes; NULL: half floats */
    uint32_t head_dim;   /* D */
} kvb_row_form;

/* The book's fine codebooks of one head. On failure nothing is left to free. */
kvb_status kvb_row_form_create(const kvb_book *book, uint32_t layer, uint32_t head, kvb_row_form *form, kvb_error *err);
void kvb_row_form_free(kvb_row_form *form); /* of a zeroed one is allowed */

/* Bytes of a row: 2*D, or those of its packed codes. */
size_t kvb_row_bytes(const kvb_row_form *form, kvb_kind kind);
/* Bytes of a key and a value together in a form, without making one. The codebooks may be NULL for half floats. */
uint64_t kvb_row_pair_bytes(kvb_exact_form exact, uint32_t head_dim, const kvb_codebook *fine_keys,
                            const kvb_codebook *fine_values);

/* Stores x [D], a key before RoPE at `position` or a value. It is rounded to half floats in either form, so that a number
 * beyond their range is one thing everywhere. x is scratch afterwards. */
void kvb_row_store(const kvb_row_form *form, kvb_kind kind, const kvb_layer *layer, const kvb_rope_table *rope,
                   uint32_t position, float *x, uint8_t *row);
/* n rows that follow each other -> x [n][D], keys as the form holds them. Cannot fail. */
void kvb_row_load(const kvb_row_form *form, kvb_kind kind, const uint8_t *rows, size_t n, float *x);

/* Moves a key that was loaded, in place: to after RoPE, to the layer's frame, or to before RoPE. */
void kvb_row_key_finish(const kvb_row_form *form, const kvb_layer *layer, const kvb_rope_table *rope,
                        uint32_t position, float *key);
void kvb_row_key_to_frame(const kvb_row_form *form, const kvb_layer *layer, const kvb_rope_table *rope,
                          uint32_t position, float *key);
void kvb_row_key_to_start(const kvb_row_form *form, const kvb_layer *layer, const kvb_rope_table *rope,
                          uint32_t position, float *key);

#endif
