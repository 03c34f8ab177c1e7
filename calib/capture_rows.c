#include "calib/capture_rows.h"

#include "format/base/rng.h"

enum { STREAM_ROWS = 2 };

void kvb_capture_rows_draw(uint64_t seed, uint64_t chunk, uint32_t ctx, uint32_t keep, uint32_t *positions)
{
    uint64_t key = kvb_rng_key(seed, chunk, STREAM_ROWS, 0, 0);
    uint32_t found = 0;
    for (uint32_t p = 0; p < ctx && found < keep; p++)
        if (kvb_rng_below(key, p, ctx - p) < keep - found)
            positions[found++] = p;
}
