/* One codebook made ready for use: centroids packed for the nearest-centroid search, transforms transposed for the
 * kernels, and scratch for a block of rows. Belongs to one thread at a time. */
#ifndef KVB_RUNTIME_CODEC_H
#define KVB_RUNTIME_CODEC_H

#include "format/base/kernels.h"
#include "format/base/nearest.h"
#include "kvbook/cache.h"
#include "runtime/scaled.h"

enum { KVB_CODEC_ROWS = 64 }; /* rows encoded or decoded at a time */

typedef struct kvb_codec {
    const kvb_codebook *codebook;
    const kvb_kernels *kernels;
    uint32_t head_dim;   /* D = S*d */
    uint32_t block;      /* tokens that are coded together: 1, but where tokens share scales */
    size_t packed_bytes; /* of the codes of a block, with its scales */
    kvb_scaled *scaled;  /* of a scalar quantiser; NULL: centroids */
    float *together;     /* [block][D] y of a block, where tokens share scales */
    kvb_nearest **group; /* [S]; NULL in a codec that only decodes */
    float *forward_t;    /* [D][D] transpose of the forward transform, or NULL */
    float *inverse_t;    /* [D][D] transpose of the inverse transform, or NULL */
    float *rows;         /* [KVB_CODEC_ROWS][D]: y of the rows to encode; a stage of the rows being decoded */
    float *turned;       /* [KVB_CODEC_ROWS][D], NULL where there is no transform */
    uint16_t *halves;    /* [KVB_CODEC_ROWS][D] */
    uint32_t *codes;     /* [KVB_CODEC_ROWS][S] */
    uint32_t *index;     /* [KVB_CODEC_ROWS] */
} kvb_codec;

/* `encodes` false leaves out the search structures, which take 8 bytes a channel of each of the K centroids of a group,
 * sums of stages included. */
kvb_status kvb_codec_create(const kvb_codebook *codebook, uint32_t head_dim, bool encodes, kvb_codec **codec,
                            kvb_error *err);
void kvb_codec_destroy(kvb_codec *c); /* NULL is allowed */

/* None can fail. Row i of x is at x + i*stride; a row's codes do not depend on its neighbours. Codebooks only: what a scalar
 * quantiser makes of a row lies in its scales too. */
void kvb_codec_encode(kvb_codec *c, const float *x, size_t stride, size_t n, uint32_t *codes);
void kvb_codec_decode(kvb_codec *c, const uint32_t *codes, size_t n, float *x);

/* Bytes of `tokens` packed tokens, a multiple of the block. */
static inline size_t kvb_codec_bytes(const kvb_codec *c, size_t tokens)
{
    return tokens / c->block * c->packed_bytes;
}
/* To packed codes: n rows, a multiple of the block. */
void kvb_codec_encode_packed(kvb_codec *c, const float *x, size_t stride, size_t n, uint8_t *packed);
/* Rows first .. first+n-1 of those packed at `packed`. */
void kvb_codec_decode_packed(kvb_codec *c, const uint8_t *packed, size_t first, size_t n, float *x);

/* All K centroids [K][d] of a group as floats; `rows` is scratch for the M*Km rows of its stages, as wide. */
void kvb_codebook_expand(const kvb_codebook *b, uint32_t group, float *table, float *rows);

/* Index of the first value that is not finite, or `count`. */
size_t kvb_first_bad_value(const float *x, size_t count);

#endif
