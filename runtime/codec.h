/* One codebook made ready for use: centroids packed for the nearest-centroid search, transforms transposed for the
 * kernels, and scratch for a block of rows. Belongs to one thread at a time. */
#ifndef KVB_RUNTIME_CODEC_H
#define KVB_RUNTIME_CODEC_H

#include "format/base/kernels.h"
#include "format/base/nearest.h"
#include "kvbook/cache.h"

enum { KVB_CODEC_ROWS = 64 }; /* rows encoded or decoded at a time */

typedef struct kvb_codec {
    const kvb_codebook *codebook;
    const kvb_kernels *kernels;
    uint32_t head_dim;   /* D = S*d */
    size_t packed_bytes; /* of one row of codes */
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

/* Neither can fail. Row i of x is at x + i*stride; a row's codes do not depend on its neighbours. */
void kvb_codec_encode(kvb_codec *c, const float *x, size_t stride, size_t n, uint32_t *codes);
void kvb_codec_decode(kvb_codec *c, const uint32_t *codes, size_t n, float *x);

/* The same to and from packed codes [n][packed_bytes]. */
void kvb_codec_encode_packed(kvb_codec *c, const float *x, size_t stride, size_t n, uint8_t *packed);
void kvb_codec_decode_packed(kvb_codec *c, const uint8_t *packed, size_t n, float *x);

/* Index of the first value that is not finite, or `count`. */
size_t kvb_first_bad_value(const float *x, size_t count);

#endif
