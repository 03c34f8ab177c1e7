/* Reading a book: the `.kvb` file with the codebooks of one model's KV cache.
 *
 * Words and shapes: L layers; per layer H query heads, G KV heads (H a multiple of G), head dimension D. A head's D
 * channels are cut into S groups of d channels (S * d = D); each group has a codebook of K centroids, so a token's key
 * or value is S codes of log2 K bits. An additive codebook stores M stages of Km rows instead and its K = Km^M centroids
 * are the sums of one row of each stage.
 *
 * A book is immutable once open and may be shared by any number of threads. Geometry and structure are validated at open;
 * accessors cannot fail on indices inside the geometry. Pointers live until kvb_book_close(). */
#ifndef KVBOOK_BOOK_H
#define KVBOOK_BOOK_H

#include <stddef.h>

#include "kvbook/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct kvb_book kvb_book;

typedef enum kvb_kind { KVB_KEY = 0, KVB_VALUE = 1 } kvb_kind;

/* Where a key stands relative to its rotary position embedding when it is encoded. */
typedef enum kvb_rope_frame {
    KVB_FRAME_PRE = 0,   /* before RoPE */
    KVB_FRAME_POST = 1,  /* after RoPE at its absolute position */
    KVB_FRAME_BLOCK = 2, /* after RoPE at (position mod rope_block) */
} kvb_rope_frame;

/* Which channels form a rotary pair. */
typedef enum kvb_rope_style {
    KVB_ROPE_NONE = 0,        /* the model has no rotary embedding */
    KVB_ROPE_INTERLEAVED = 1, /* channels (2i, 2i+1) */
    KVB_ROPE_HALF = 2,        /* channels (i, i + rope_dims/2), "NeoX" */
} kvb_rope_style;

typedef enum kvb_layer_kind {
    KVB_LAYER_FULL = 0,        /* full causal attention: has codebooks */
    KVB_LAYER_SLIDING = 1,     /* sliding-window attention: has codebooks */
    KVB_LAYER_UNSUPPORTED = 2, /* kept exact; META says why */
} kvb_layer_kind;

/* Geometry of one layer. */
typedef struct kvb_layer {
    uint32_t heads;    /* H */
    uint32_t kv_heads; /* G */
    uint32_t head_dim; /* D */
    kvb_layer_kind kind;
    uint32_t sliding_window; /* tokens; 0 where kind is not KVB_LAYER_SLIDING */
    kvb_rope_frame frame;
    uint32_t rope_block; /* B of KVB_FRAME_BLOCK, else 0 */
    kvb_rope_style rope_style;
    uint32_t rope_dims;         /* channels that rotate; the rest pass through */
    double rope_base;           /* theta: channel pair i turns by position * rope_base^(-2i/rope_dims) / factor[i] */
    const float *rope_factors;  /* [rope_dims/2], or NULL for all ones */
    double attention_scale;     /* what q.k is multiplied by, usually 1/sqrt(D) */
} kvb_layer;

/* Which numbers of y share one scale. */
typedef enum kvb_scale_axis {
    KVB_AXIS_CHANNEL = 0, /* one channel of `group` tokens that follow each other, counted from the first that is no sink */
    KVB_AXIS_TOKEN = 1,   /* one token's `group` channels that follow each other */
} kvb_scale_axis;

/* How offset and scale follow from the numbers of a group. */
typedef enum kvb_scale_form {
    KVB_SCALE_RANGE = 0,  /* offset (min + max) / 2, scale clip * (max - min) / 2 */
    KVB_SCALE_ABSMAX = 1, /* offset 0, scale clip * max |y| */
    KVB_SCALE_RMS = 2,    /* offset 0, scale clip * sqrt(mean y^2) */
    KVB_SCALE_FIXED = 3,  /* the book's, of each channel: nothing is found while coding, a token is coded alone */
} kvb_scale_form;

/* As what a cache keeps the offsets and scales that are found while coding. */
typedef enum kvb_scale_store {
    KVB_STORE_HALF = 0, /* half floats */
    KVB_STORE_FP8 = 1,  /* a byte each: e4m3, the largest 448 */
} kvb_scale_store;

/* A scalar quantiser whose scales are found while coding: each number of y becomes the code of a level, and
 * y' = offset + scale * level, offset and scale being those of its group, kept beside the codes.
 *
 * Along a token the groups may be lists of channels in place of neighbours: group i is order[end[i-1]] .. order[end[i] - 1]. */
typedef struct kvb_scaling {
    kvb_scale_axis axis;
    kvb_scale_form form;
    uint32_t group; /* tokens (a power of two, 2 .. 1024; 1 of KVB_SCALE_FIXED) or channels (a divisor of D) */
    float clip;
    uint32_t outliers;     /* numbers of each token held as half floats; none where tokens share scales, or with KVB_SCALE_RMS */
    const uint16_t *fixed; /* KVB_SCALE_FIXED: [2][D] half floats, the channels' offsets and then their positive scales; else NULL */
    kvb_scale_store store; /* of what is found while coding: KVB_STORE_HALF with KVB_SCALE_FIXED */
    uint32_t lists;        /* groups of a token that are lists of channels, `group` being D then; 0: neighbours */
    const uint16_t *order; /* [D] a permutation of the channels, group after group; NULL without lists */
    const uint16_t *end;   /* [lists] ascending, the last D; NULL without lists */
    const float *clips;    /* for each group of a token one in place of `clip`, or NULL */
    uint32_t pool;         /* keys of tokens that share scales: so many tokens with the smallest sums of absolute keys are held exactly.. */
    uint32_t spill;        /* ..and so many that smaller ones took the place of; then the pools stay as they are. Both 0: none */
} kvb_scaling;

/* Codebooks of one (layer, KV head, K or V). A vector x of D channels is encoded as
 * y = forward * (x - mean), cut into S groups, each replaced by its nearest centroid; decoded as inverse * y' + mean.
 * mean, forward and inverse are NULL where the book has none (zero, identity).
 *
 * With M stages, code k = c_0 + c_1 Km + c_2 Km^2 ... names row c_m of each stage m, and its centroid is
 * ((row of stage 0 + row of stage 1) + row of stage 2) ..., each row widened to float and added in float in that order.
 * A plain codebook is the case M = 1.
 *
 * With a scaling d = 1, S = D, M = 1, and the table holds the K levels in ascending order, or is NULL: K levels spread
 * evenly from -1 to 1. */
typedef struct kvb_codebook {
    uint32_t channels;         /* d */
    uint32_t centroids;        /* K = Km^M, a power of two: the codes are 0 .. K-1 */
    uint32_t groups;           /* S */
    uint32_t code_bits;        /* log2 K */
    const uint16_t *table;     /* [S][M][Km][d] IEEE half floats, 256-byte aligned in the file; with a scaling [K] or NULL */
    const float *mean;         /* [D] */
    const float *forward;      /* [D][D] row-major, y_i = sum_j forward[i][j] * (x_j - mean_j) */
    const float *inverse;      /* [D][D] row-major */
    uint32_t stages;           /* M: 1 for a plain codebook, 2..8 for an additive one */
    uint32_t stage_centroids;  /* Km, a power of two; K where M is 1 */
    const kvb_scaling *scaling; /* NULL: vectors are coded as they are */
} kvb_codebook;

/* How a token's importance is estimated when anchors are chosen (AnTKV, arXiv 2506.19505). */
typedef enum kvb_anchor_score {
    KVB_SCORE_EXACT_K = 0,  /* (1/sqrt D) sum_i A_ij ||V_j - O_i||_1 ||Q_i||_2 */
    KVB_SCORE_EXACT_V = 1,  /* attention mass: sum_i A_ij */
    KVB_SCORE_KEY_NORM = 2, /* -||K_j||_2: keys of small norm attract attention */
    KVB_SCORE_FIRST_N = 3,  /* the earliest tokens */
    KVB_SCORE_RANDOM = 4,   /* keyed by (seed, layer, head, position) */
} kvb_anchor_score;

/* How a cache holds the tokens of its window and its anchors. Sinks are half floats in either form. */
typedef enum kvb_exact_form {
    KVB_EXACT_HALF = 0, /* half floats */
    KVB_EXACT_FINE = 1, /* codes of the book's fine codebooks; layers without codebooks keep half floats */
} kvb_exact_form;

/* What a cache keeps exact. */
typedef struct kvb_policy {
    double anchor_fraction; /* 0 .. 1: of the tokens that have left the window */
    kvb_anchor_score score;
    uint32_t window; /* most recent tokens, the current one included; 0 keeps none, not even the current one */
    uint32_t sinks;  /* first tokens */
    kvb_exact_form exact;
} kvb_policy;

/* How a file is opened. */
typedef enum kvb_open_flag {
    KVB_OPEN_VERIFIED = 1, /* read into memory, not mapped, and every byte checked */
} kvb_open_flag;

/* Opens a file. On failure *book is NULL.
 * KVB_E_IO if it cannot be read, KVB_E_FORMAT if something in it is wrong (the error names the place).
 *
 * A file of up to 1 MiB is read and checked whole. A larger one is mapped, privately and read-only, so that opening takes
 * milliseconds whatever its size. Checked then: header, table, identity, the place and shape of every section, that none is
 * missing, and the content of all but CODE, FINE, MEAN, XFRM and uncompressed qual sections. What these hold is only calculated
 * with or shown: damage in them makes wrong numbers (kvb_book_quality()'s too), never a wrong index or address. kvb_book_verify() checks them too; call it once before a book that
 * may be damaged, or comes from a stranger, serves.
 *
 * While a book is mapped its file must not change. One that is cut short ends the process with SIGBUS when a missing page is
 * touched, one that is written over shows the new bytes. Replace files by rename(), as kvbook does: an open book keeps the old
 * one. Where others may write to the file, open it with KVB_OPEN_VERIFIED. */
KVB_API kvb_status kvb_book_open(const char *path, kvb_book **book, kvb_error *err);

/* The same with KVB_OPEN_* flags: with KVB_OPEN_VERIFIED everything is checked and the book stays what it is whatever becomes of
 * the file, for the price of its size in memory and the time to read it. KVB_E_USAGE for flags that there are not. */
KVB_API kvb_status kvb_book_open_with(const char *path, uint32_t flags, kvb_book **book, kvb_error *err);

/* Checks every byte of an open book: all checksums, every number finite, no codebook without variation, transforms that undo each
 * other. KVB_E_FORMAT with the error that opening with KVB_OPEN_VERIFIED gives; the book stays open in either case. */
KVB_API kvb_status kvb_book_verify(const kvb_book *book, kvb_error *err);

/* Opens and fully checks bytes in memory, which are copied. `name` stands for the path in errors. */
KVB_API kvb_status kvb_book_open_memory(const void *bytes, size_t size, const char *name, kvb_book **book,
                                        kvb_error *err);

/* Frees the book; NULL is allowed. */
KVB_API void kvb_book_close(kvb_book *book);

KVB_API uint32_t kvb_book_layers(const kvb_book *book);
KVB_API const kvb_layer *kvb_book_layer(const kvb_book *book, uint32_t layer);

/* NULL where the layer is KVB_LAYER_UNSUPPORTED or an index is outside the geometry. */
KVB_API const kvb_codebook *kvb_book_codebook(const kvb_book *book, uint32_t layer, uint32_t head, kvb_kind kind);

/* The fine codebook, which codes the same y (mean, forward and inverse are the same) with more bits: for tokens that
 * KVB_EXACT_FINE keeps. NULL for every codebook of a book without fine ones. */
KVB_API const kvb_codebook *kvb_book_fine(const kvb_book *book, uint32_t layer, uint32_t head, kvb_kind kind);

/* What the recipe of the book keeps exact. */
KVB_API kvb_policy kvb_book_policy(const kvb_book *book);

/* The identity: SHA-256 over the section table with its checksums. 32 bytes. */
KVB_API const uint8_t *kvb_book_id(const kvb_book *book);

/* The META section: UTF-8 JSON, NUL-terminated; *size excludes the NUL and may be NULL. */
KVB_API const char *kvb_book_meta(const kvb_book *book, size_t *size);

#ifdef __cplusplus
}
#endif
#endif
