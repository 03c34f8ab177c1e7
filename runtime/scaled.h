/* Scalar quantisers whose scales are found while coding (kvb_scaling in kvbook/book.h).
 *
 * Tokens are coded in blocks: as many as share a scale, or one. A block's bytes are its offsets and scales as half floats or e4m3,
 * then a row of packed codes for each token, which starts on a byte, then the token's outliers, ascending: the channel in one byte (in
 * two where D > 256) and the number as a half float, little-endian. With the channel axis there is a pair for each
 * channel, with the token axis for each group of each token, tokens first; forms without an offset store the scale alone.
 * Offset and scale are rounded to what they are stored as before the codes are chosen. Where groups are lists of channels, a token's codes
 * stand in the order of the lists. */
#ifndef KVB_RUNTIME_SCALED_H
#define KVB_RUNTIME_SCALED_H

#include "format/base/affine.h"
#include "kvbook/cache.h"

/* Tokens that a codebook codes together: 1, but for scales along the channel axis. */
uint32_t kvb_codebook_block(const kvb_codebook *codebook);
/* Tokens of a layer that leave the window together: the most of its heads' codebooks, a multiple of each. */
uint32_t kvb_layer_block(const kvb_book *book, uint32_t layer);
/* Bytes of a block of any codebook: of a codebook without scaling, those of a token's codes. */
size_t kvb_codebook_block_bytes(const kvb_codebook *codebook, uint32_t head_dim);
/* Bytes of the offsets and scales in it. */
size_t kvb_scaled_head_bytes(const kvb_codebook *codebook, uint32_t head_dim);

/* A quantiser made ready: plain data, fit for any thread. */
typedef struct kvb_scaled {
    const kvb_codebook *codebook;
    uint32_t head_dim;
    kvb_levels levels;
} kvb_scaled;
void kvb_scaled_init(kvb_scaled *s, const kvb_codebook *codebook, uint32_t head_dim);

/* Codes a block y [block][D]; `codes` is scratch of [D]. */
void kvb_scaled_encode(const kvb_scaled *s, const float *y, uint8_t *bytes, uint32_t *codes);
/* Tokens first .. first+count-1 of a block to y [count][D]. */
void kvb_scaled_decode(const kvb_scaled *s, const uint8_t *bytes, uint32_t first, uint32_t count, float *y,
                       uint32_t *codes);

#endif
