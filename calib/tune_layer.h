/* One layer's step of tuning: its keys and values through codes, attention over them, the error of its output behind the
 * output projection, and the gradient of that error with respect to the centroids.
 *
 *   error = ||(O' - O) W_O||^2 = sum over tokens of (o' - o) M (o' - o)^T,   M = W_O^T W_O,   dO' = 2 (O' - O) M
 *
 * The results do not depend on the number of threads. */
#ifndef KVB_CALIB_TUNE_LAYER_H
#define KVB_CALIB_TUNE_LAYER_H

#include "calib/tune_table.h"
#include "model/model.h"

/* What stays of a layer between chunks. */
typedef struct kvb_tune_layer {
    const kvb_layer *geometry; /* the book's, with its frame */
    kvb_tune_table *table;     /* [G][2] by kvb_kind; NULL where the layer has no codes */
    float *gram;               /* [H*D][H*D] M */
} kvb_tune_layer;

/* KVB_E_MEMORY only. A layer without codes leaves table NULL. */
kvb_status kvb_tune_layer_create(const kvb_model *model, const kvb_book *book, uint32_t index, kvb_tune_layer *layer,
                                 kvb_error *err);
void kvb_tune_layer_free(kvb_tune_layer *layer);

/* One attention call with what the exact cache made of it. */
typedef struct kvb_tune_call {
    const kvb_attention_call *call; /* from position 0 */
    const float *target;            /* [H][T][D] exact output */
    const uint8_t *kept;            /* [G][T] tokens that stay exact for ever, or NULL */
    uint32_t window;                /* queries i < j + window read token j exactly */
} kvb_tune_call;

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

/* O' alone, for whoever has another loss: call->target is not read. KVB_E_MEMORY only. */
kvb_status kvb_tune_attend(kvb_tune_work *work, const kvb_tune_layer *layer, const kvb_tune_call *call, kvb_error *err);
/* From d_out [H][T][D] of such a loss, after kvb_tune_attend() of the same call: adds to the tables' gradients, and writes
 * d_q [H][T][D] and the gradients d_k and d_v [G][T][D] of exact reads. */
void kvb_tune_attend_backward(kvb_tune_work *work, kvb_tune_layer *layer, const kvb_tune_call *call, const float *d_out,
                              float *d_q, float *d_k, float *d_v);

#endif
