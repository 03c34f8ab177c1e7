/* One layer's step of tuning: its keys and values through codes, attention over them, the error of its output behind the
 * output projection, and the gradient of that error with respect to the centroids.
 *
 *   error = ||(O' - O) W_O||^2 = sum over tokens of (o' - o) M (o' - o)^T,   M = W_O^T W_O,   dO' = 2 (O' - O) M
 *
 * The results do not depend on the number of threads. */
#ifndef KVB_CALIB_TUNE_LAYER_H
#define KVB_CALIB_TUNE_LAYER_H

#include "calib/tune_table.h"
#include "model/backward.h"
#include "model/model.h"

/* What stays of a layer between chunks. */
typedef struct kvb_tune_layer {
    const kvb_layer *geometry; /* the book's, with its frame */
    kvb_tune_table *table;     /* [G][2] by kvb_kind; NULL where the layer has no codes */
    kvb_tune_table *fine;      /* [G][2] those that never move; NULL: what is read exactly is half floats */
    float *gram;               /* [H*D][H*D] M, or NULL */
} kvb_tune_layer;

/* How many of `table` there are. */
static inline uint32_t kvb_tune_tables(const kvb_tune_layer *layer)
{
    return layer->table != NULL ? layer->geometry->kv_heads * 2 : 0;
}

/* `model` may be NULL: then there is no gram, and kvb_tune_norm(), _forward() and _backward() are not to be called.
 * `fine`: with the book's fine codebooks, where it has any. KVB_E_MEMORY only. A layer without codes leaves table NULL. */
kvb_status kvb_tune_layer_create(const kvb_model *model, const kvb_book *book, uint32_t index, bool fine,
                                 kvb_tune_layer *layer, kvb_error *err);
void kvb_tune_layer_free(kvb_tune_layer *layer);

/* One attention call with what the exact cache made of it. */
typedef struct kvb_tune_call {
    const kvb_attention_call *call; /* from position 0 */
    const float *target;            /* [H][T][D] exact output */
    const uint8_t *kept;            /* [G][T] tokens that stay exact for ever, or NULL */
    uint32_t window;                /* queries i < j + window read token j exactly */
    uint32_t sinks;                 /* first tokens that stay half floats where others go through fine codes */
    bool unrounded;                 /* keys and values are not rounded to half floats: the derivative is then exact */
} kvb_tune_call;

/* What the way back of a call needs of its way there: 4 bytes a code and a query. */
typedef struct kvb_tune_memo {
    uint32_t *codes, *fine_codes; /* [groups of all tables][T] */
    float *lse;                   /* [H][T] */
} kvb_tune_memo;
kvb_status kvb_tune_memo_create(const kvb_tune_layer *layer, uint32_t max_tokens, kvb_tune_memo *memo, kvb_error *err);
void kvb_tune_memo_free(kvb_tune_memo *memo); /* of a zeroed one is allowed */

/* Scratch for calls of up to max_tokens in any layer of the book. */
typedef struct kvb_tune_work kvb_tune_work;
kvb_status kvb_tune_work_create(const kvb_book *book, uint32_t max_tokens, kvb_tune_work **work, kvb_error *err);
void kvb_tune_work_destroy(kvb_tune_work *work); /* NULL is allowed */

/* ||O W_O||^2 of the exact output. */
double kvb_tune_norm(kvb_tune_work *work, const kvb_tune_layer *layer, const kvb_tune_call *call);
/* ||(O' - O) W_O||^2; 0 and exact attention where the layer has no codes. KVB_E_MEMORY only. */
kvb_status kvb_tune_forward(kvb_tune_work *work, const kvb_tune_layer *layer, const kvb_tune_call *call, double *error,
                            kvb_error *err);
/* O' [H][T][D] of the last kvb_tune_forward() or kvb_tune_attend(). */
const float *kvb_tune_output(const kvb_tune_work *work);
/* Adds the gradient of factor * error to the tables', after kvb_tune_forward() of the same call. */
void kvb_tune_backward(kvb_tune_work *work, kvb_tune_layer *layer, const kvb_tune_call *call, double factor);

/* O' alone, for whoever has another loss: call->target is not read. Fills `memo`, which may be NULL for one that lasts until
 * the next call. What is read exactly, and what codes are made of, is what runtime/prefill.h makes of keys and values: half
 * floats, then fine codes where the layer has them. KVB_E_MEMORY only. */
kvb_status kvb_tune_attend(kvb_tune_work *work, const kvb_tune_layer *layer, const kvb_tune_call *call,
                           kvb_tune_memo *memo, kvb_error *err);
/* From such a loss, with kvb_tune_attend()'s memo of the same call: adds to the tables' gradients and writes d_q, and d_k and
 * d_v of exact reads, for which half floats and fine codes count as if nothing were rounded. */
kvb_status kvb_tune_attend_backward(kvb_tune_work *work, kvb_tune_layer *layer, const kvb_tune_call *call,
                                    const kvb_tune_memo *memo, const kvb_attention_gradient *gradient, kvb_error *err);

#endif
