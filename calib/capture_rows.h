/* Which tokens of a chunk a capture keeps. */
#ifndef KVB_CALIB_CAPTURE_ROWS_H
#define KVB_CALIB_CAPTURE_ROWS_H

#include <stdint.h>

/* Draws `keep` of the positions 0..ctx-1 without replacement, ascending, by (seed, chunk) alone: every subset is as
 * likely as any other (Knuth, volume 2, algorithm 3.4.2 S). keep <= ctx; all of them where they are equal. */
void kvb_capture_rows_draw(uint64_t seed, uint64_t chunk, uint32_t ctx, uint32_t keep, uint32_t *positions);

#endif
