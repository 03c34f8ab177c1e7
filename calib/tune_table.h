/* One codebook while it is tuned: its table in float32 with gradients and Adam's moments (arXiv 1412.6980), and the way
 * from vectors to codes to vectors and of gradients back. A group's centroids are sums of one row of each of M stages
 * (M = 1: a plain codebook): a row's gradient is the sum over the tokens that chose it. */
#ifndef KVB_CALIB_TUNE_TABLE_H
#define KVB_CALIB_TUNE_TABLE_H

#include "format/base/kernels.h"
#include "format/base/nearest.h"
#include "kvbook/book.h"

typedef struct kvb_tune_table {
    const kvb_codebook *codebook; /* borrowed: mean, forward and inverse, and the table as it was */
    uint32_t head_dim;            /* D = S*d */
    uint32_t channels, groups;    /* d, S */
    uint32_t centroids;           /* K = Km^M */
    uint32_t stages, rows;        /* M, Km */
    size_t floats;                /* S*M*Km*d */
    float *table;                 /* [S][M][Km][d] */
    float *gradient, *first, *second; /* the same shape; NULL in a table that never moves */
    float *best;                      /* the same shape: what kvb_tune_table_restore() goes back to */
    float *spread;                /* [S][M] standard deviation of a stage's entries: the unit of a step */
    float *forward_t, *inverse_t; /* [D][D] transposes, or NULL */
} kvb_tune_table;

/* KVB_E_MEMORY only; on failure nothing is left to free. */
kvb_status kvb_tune_table_create(const kvb_codebook *codebook, uint32_t head_dim, kvb_tune_table *t, kvb_error *err);
/* One that never moves: the table and the transforms alone. */
kvb_status kvb_tune_table_fix(const kvb_codebook *codebook, uint32_t head_dim, kvb_tune_table *t, kvb_error *err);
void kvb_tune_table_free(kvb_tune_table *t);
/* Takes the table for the best so far; until then it is the codebook's. */
void kvb_tune_table_keep(kvb_tune_table *t);
void kvb_tune_table_restore(kvb_tune_table *t);

/* y [n][D] = forward * (x - mean) of x [n][D], with scratch [n][D]; none may be another. */
void kvb_tune_enter(const kvb_tune_table *t, const kvb_kernels *k, const float *x, size_t n, float *scratch, float *y);
/* codes [n] of group s of y [n][D]. `search` was made for d and K, `centroids` [K][d] is scratch. */
void kvb_tune_encode(const kvb_tune_table *t, uint32_t group, const float *y, size_t n, kvb_nearest *search,
                     float *centroids, uint32_t *codes);
/* x [n][D] = inverse * y' + mean, y' [n][D] being the centroids that codes [S][n] name; y is scratch [n][D]. */
void kvb_tune_decode(const kvb_tune_table *t, const kvb_kernels *k, const uint32_t *codes, size_t n, float *y, float *x);
/* dy [n][D] = inverse^T dx. Copies where there is no inverse; dx and dy must differ. */
void kvb_tune_leave(const kvb_tune_table *t, const kvb_kernels *k, const float *dx, size_t n, float *dy);
/* Adds to the gradient of group s: rows that codes [n] name get their tokens' dy [n][D], in the order of tokens. */
void kvb_tune_scatter(kvb_tune_table *t, uint32_t group, const uint32_t *codes, const float *dy, size_t n);

/* One step of Adam (0.9, 0.99) over rows' gradients, which are then zero again. `rate` is in units of a stage's spread;
 * `step` counts from 1. */
void kvb_tune_step(kvb_tune_table *t, double rate, uint32_t step);

#endif
