/* What the files of training share. */
#ifndef KVB_CALIB_TRAIN_IMPL_H
#define KVB_CALIB_TRAIN_IMPL_H

#include "calib/train.h"
#include "format/book_write.h"

enum { KVB_HOLDOUT_BLOCK = 256, KVB_TRAIN_MOST_DIM = KVB_TRANSFORM_MOST_DIM };

/* Points and weights of one layer and kind, ready for k-means. */
typedef struct kvb_train_points {
    const kvb_capture *capture;
    const kvb_recipe *recipe;
    uint32_t layer, threads;
    kvb_kind kind;
    uint64_t seed;
    float *moved;   /* [G][n][D] after RoPE, mean removal and transform; NULL: the capture's half floats as they are */
    float *weight;  /* [G][n] with mean 1 in each head; NULL: all ones */
    float *mean;    /* [G][D], or NULL */
    float *forward; /* [G][D][D], or NULL: no transform */
    float *inverse; /* [G][D][D], NULL where forward is */
} kvb_train_points;

/* Checks and prepares; `points` has its members up to the seed filled in. On failure nothing is left to free. */
kvb_status kvb_train_points_create(kvb_train_points *points, kvb_error *err);
void kvb_train_points_free(kvb_train_points *points);

/* Fills moved, mean, forward and inverse as the recipe says; weight is there. kvb_train_points_free() frees what a
 * failure leaves. */
kvb_status kvb_train_points_move(kvb_train_points *points, kvb_error *err);

/* A failure of one head: "layer 3, KV head 1, keys". */
kvb_status kvb_train_points_refuse(const kvb_train_points *points, uint32_t head, kvb_status status, kvb_error *err,
                                   const char *format, ...) __attribute__((format(printf, 5, 6)));

/* META of the book: the capture's, the recipe and how it was trained. NULL if out of memory; free with free().
 * KVB_E_FORMAT only where the capture's own META cannot be parsed. */
kvb_status kvb_train_meta_write(const kvb_capture *capture, const kvb_recipe *recipe, const kvb_train_options *options,
                                const kvb_train_report *report, uint32_t holdout_every, char **meta, kvb_error *err);

/* "keys" or "values" */
static inline const char *kvb_train_kind_name(kvb_kind kind)
{
    return kind == KVB_KEY ? "keys" : "values";
}

#endif
