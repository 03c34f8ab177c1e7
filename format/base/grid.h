/* Codebooks on a grid: every centroid a small multiple of a step of its channel. A decoder can then hold bytes instead of half
 * floats, and lose nothing. Multiples run from -127 to 127; in each stage of an additive codebook from -63 to 63, so that the sum of two
 * stages is a byte as well, and in tables of up to 16 rows too, so that a byte permutation can pick entries out of registers. The two channels of a RoPE pair have one step: a query can be turned after it was scaled. */
#ifndef KVB_BASE_GRID_H
#define KVB_BASE_GRID_H

#include <stdbool.h>
#include <stdint.h>

#include "kvbook/book.h"

typedef struct kvb_grid {
    uint32_t dim, channels, stages, rows; /* D, d, M, Km: tables are [D/d][M][Km][d] */
    kvb_rope_style style;                 /* which channels are pairs; KVB_ROPE_NONE: none are */
    uint32_t rope_dims;
} kvb_grid;

/* The grid of codebooks of d channels, M stages of Km rows, of one kind of a layer. */
kvb_grid kvb_grid_of(const kvb_layer *layer, kvb_kind kind, uint32_t channels, uint32_t stages, uint32_t rows);
/* The steps [D] that just hold the largest centroid of each channel (or pair); 1 where all are 0. */
void kvb_grid_steps(const kvb_grid *g, const float *table, float *step);
/* Rounds a table to multiples of steps. */
void kvb_grid_snap(const kvb_grid *g, float *table, const float *step);
/* Whether a table is multiples of steps, but for the rounding of half floats. */
bool kvb_grid_holds(const kvb_grid *g, const float *table, const float *step);

#endif
