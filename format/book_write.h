/* Building a `.kvb` file. The writer makes the whole image in memory, then writes it atomically, so that a book trained
 * and used in one process goes through the very bytes a file would hold. */
#ifndef KVB_FORMAT_BOOK_WRITE_H
#define KVB_FORMAT_BOOK_WRITE_H

#include <stdbool.h>

#include "kvbook/book.h"

/* How well one codebook does; errors are weighted means of squared distance per channel, relative to the weighted
 * variance of the data about its mean (so a mean-only predictor scores 1). NaN where unknown. */
typedef struct kvb_quality {
    float train_error;
    float heldout_error;
    float usage;   /* share of centroids (rows of all stages) used by at least one training point, 0..1 */
    float entropy; /* bits per code */
} kvb_quality;

/* Codebooks of one (layer, KV head, kind) as trained, in float32. Everything is borrowed until the write call ends. */
typedef struct kvb_book_part {
    uint32_t channels, centroids; /* d, and K of a plain codebook or Km of each stage */
    uint32_t stages;              /* M of an additive codebook; 0 or 1: plain */
    const float *table;           /* [S][M][Km][d]; stored as half floats */
    /* A scalar quantiser instead: `centroids` is its number of levels and `table` the levels [K] or NULL (even ones);
     * channels and stages are not looked at. quality and fine must be NULL. */
    const kvb_scaling *scaling;
    const float *mean;            /* [D] or NULL */
    const float *forward;         /* [D][D] or NULL */
    const float *inverse;         /* [D][D] or NULL */
    const kvb_quality *quality;   /* [S] or NULL */
    /* A second codebook over the same y, or NULL: all parts have one or none. Its own mean, forward, inverse, quality
     * and fine must be NULL. */
    const struct kvb_book_part *fine;
} kvb_book_part;

typedef struct kvb_book_spec {
    uint32_t layers;
    const kvb_layer *layer;    /* [layers] */
    const kvb_book_part *part; /* [layers][max kv_heads][2]: index (layer*part_heads + head)*2 + kind */
    uint32_t part_heads;       /* the largest kv_heads of any layer */
    kvb_policy policy;
    const char *meta_json;     /* the META object, UTF-8 */
    bool compress;             /* zlib over META and optional sections */
} kvb_book_spec;

/* The image of the file; free with free(). KVB_E_USAGE where the spec contradicts itself, KVB_E_CHECK where a value is
 * not finite or does not fit a half float. The same spec gives the same bytes. */
kvb_status kvb_book_build(const kvb_book_spec *spec, uint8_t **image, size_t *size, kvb_error *err);

/* A codebook as a part of a spec: shape, scaling, and a table of its own in floats (free with free()); the rest is left as it is. */
kvb_status kvb_book_part_copy(const kvb_codebook *from, kvb_book_part *part, kvb_error *err);

/* Quality records of a book, [S], or NULL where the file has none. */
const kvb_quality *kvb_book_quality(const kvb_book *book, uint32_t layer, uint32_t head, kvb_kind kind);

/* Size of the file as opened. */
uint64_t kvb_book_file_size(const kvb_book *book);
/* Its bytes, which codebooks that are not compressed point into. */
const uint8_t *kvb_book_bytes(const kvb_book *book, size_t *size);

#endif
