/* Books of random codebooks in any shape, random rows, and RoPE in double, for the tests of the runtime. */
#ifndef KVB_TESTS_RT_BOOK_H
#define KVB_TESTS_RT_BOOK_H

#include <stdbool.h>
#include <stddef.h>

#include "kvbook/cache.h"

typedef struct rt_shape {
    uint32_t layers, heads, kv_heads, head_dim, channels, centroids; /* centroids: of each stage */
    kvb_rope_frame frame;
    uint32_t rope_block;
    kvb_rope_style rope_style;
    uint32_t rope_dims;
    uint32_t sliding;  /* window of sliding layers; 0: full attention */
    bool transform;    /* means and a linear transform */
    bool key_transform; /* means, and a linear transform of keys alone */
    uint32_t other_channels, other_stages; /* of every third codebook; 0: one shape for all */
    bool last_exact;   /* the last layer is KVB_LAYER_UNSUPPORTED */
    uint64_t seed;
    uint32_t stages;   /* of additive codebooks; 0: plain */
    uint32_t fine_channels, fine_centroids; /* of fine codebooks; 0: none */
    bool grid;         /* centroids are multiples of steps (format/base/grid.h) */
    kvb_scaling scaling[2]; /* by kind: numbers coded one by one, `centroids` even levels; group 0: codebooks */
} rt_shape;

/* NULL if anything fails; the error is printed. */
kvb_book *rt_book_make(const rt_shape *shape, const kvb_policy *policy);

/* Whether every coarse codebook of a book is multiples of steps. */
bool rt_book_on_grid(const kvb_book *book);

/* Standard normal values of a stream. */
void rt_normal(float *x, size_t count, uint64_t key);

/* x [D] rotated by `position` as the layer says. */
void rt_rotate(const kvb_layer *layer, double position, const float *x, double *out);

/* Random q (after RoPE), keys before and after RoPE, values of one layer, all [heads][T][D]. */
typedef struct rt_rows {
    uint32_t tokens;
    float *q, *k_pre, *k, *v;
} rt_rows;
bool rt_rows_make(rt_rows *rows, const kvb_layer *layer, uint32_t tokens, uint64_t key);
void rt_rows_free(rt_rows *rows);
/* Copies token t of x [heads][T][D] to [heads][D]. */
void rt_rows_take(const float *x, uint32_t heads, uint32_t tokens, uint32_t head_dim, uint32_t t, float *out);

/* Attention in double, as the formula: query q [D] over `count` keys (after RoPE) and values [count][D], of which a
 * sliding layer sees the last. Writes out [D] and the probabilities [count]. */
void rt_attend(const kvb_layer *layer, const float *q, const double *keys, const float *values, uint32_t count,
               double *out, double *probs);

/* Appends and attends token by token: out [H][T][D]. */
kvb_status rt_run_cache(kvb_cache *cache, const kvb_layer *geometry, uint32_t layer, const rt_rows *rows, float *out,
                        kvb_error *err);

#endif
