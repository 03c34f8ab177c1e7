/* A quantised KV cache on the CPU: encode, append, age out of the window, pick anchors, attend.
 *
 * Words: at position p the cache holds tokens 0..p. With window w, the w most recent tokens are exact (the current one
 * is the first of them); the first `sinks` tokens are exact for ever. A token that leaves the window is scored: the
 * ceil(anchor_fraction * n) best of the n tokens that have left so far (sinks not counted) stay exact as anchors, the
 * rest are codes. An anchor that falls out of the best becomes codes and stays so; of equal scores the earlier token
 * stays. With KVB_EXACT_HALF exact tokens are stored as IEEE half floats of the key before RoPE and of the value, and it
 * is these that are encoded. With KVB_EXACT_FINE tokens of the window and anchors are stored as codes of the book's fine
 * codebooks, made from the half floats (the key in the layer's frame): what these decode to is the token's value from
 * its own query on, and it is that which is encoded when it leaves. Sinks stay half floats.
 *
 * KVB_SCORE_EXACT_K and KVB_SCORE_EXACT_V sum over the queries that saw the token in the window, its own included,
 * under the cache's own attention. With window 0 there are none, and every token scores 0. A token that has left cannot
 * come back, so when ceil(anchor_fraction * n) grows, the place goes to the token that leaves just then, whatever its
 * score.
 *
 * Layers that the book does not support, and every layer of a cache without a book, keep all tokens in the window. A
 * sliding layer attends to its sliding window but keeps every token. Search structures for encoding are made when a
 * layer's first token leaves the window (fine ones with its first token); they take 8 bytes a channel of every centroid (4
 * times the bytes of plain codebooks; of additive ones, of all their sums) and are not counted below.
 *
 * A cache belongs to one thread at a time; different caches may share a book. A failing call leaves it as it was. */
#ifndef KVBOOK_CACHE_H
#define KVBOOK_CACHE_H

#include "kvbook/book.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct kvb_cache kvb_cache;

typedef struct kvb_cache_options {
    uint32_t struct_size; /* set by the init function */
    kvb_policy policy;
    uint64_t seed;     /* of KVB_SCORE_RANDOM */
    uint32_t reserve;  /* tokens of a layer to make room for at once when one more does not fit; 0 lets room double */
} kvb_cache_options;

/* The book's own policy, or with a NULL book: nothing coded, everything exact. */
KVB_API void kvb_cache_options_init(kvb_cache_options *options, const kvb_book *book);

/* `book` must outlive the cache. KVB_E_USAGE for a policy out of range, or for fine codes of a book that has none. */
KVB_API kvb_status kvb_cache_create(const kvb_book *book, const kvb_cache_options *options, kvb_cache **cache,
                                    kvb_error *err);
/* A cache without a book: every token exact (as half floats). `layer` is copied, but rope_factors must outlive it. */
KVB_API kvb_status kvb_cache_create_exact(const kvb_layer *layer, uint32_t layers, kvb_cache **cache, kvb_error *err);
KVB_API void kvb_cache_destroy(kvb_cache *cache);

/* Appends the next token of a layer: keys [G][D] before RoPE, values [G][D]. Its position is the layer's length. Finite
 * values beyond the range of half floats are stored as +-65504; KVB_E_CHECK for NaN and infinity. */
KVB_API kvb_status kvb_cache_append(kvb_cache *cache, uint32_t layer, const float *keys, const float *values,
                                    kvb_error *err);
/* Attention of the newest token's query: q [H][D] after RoPE, out [H][D]. The first call after an append also adds to
 * the scores of the window; a token appended without one adds nothing. */
KVB_API kvb_status kvb_cache_attend(kvb_cache *cache, uint32_t layer, const float *q, float *out, kvb_error *err);

KVB_API uint64_t kvb_cache_length(const kvb_cache *cache, uint32_t layer);

/* Bytes that a cache holds for its tokens, counted exactly (not capacity reserved), over all layers. Not counted: what an
 * engine has anyway or may compute at any time, namely the cosines and sines of RoPE and the search structures for
 * encoding. */
typedef struct kvb_cache_bytes {
    uint64_t codes;     /* packed codes of tokens that are neither sinks, in the window, nor anchors */
    uint64_t anchors;   /* half floats, or fine codes, of the three kinds of exact tokens */
    uint64_t window;
    uint64_t sinks;
    uint64_t index;     /* position and score of each anchor; running score of each token of the window, where attention
                           gives it */
    uint64_t codebooks; /* tables, means and transforms of the whole book, once; fine tables where the policy uses
                           them */
    uint64_t total;
    uint64_t elements; /* K and V elements represented: bits = 8 * total / elements */
} kvb_cache_bytes;
KVB_API kvb_cache_bytes kvb_cache_count_bytes(const kvb_cache *cache);
/* The same for a cache of `tokens` tokens in each layer, without making one. book may not be NULL. */
KVB_API kvb_cache_bytes kvb_cache_predict_bytes(const kvb_book *book, const kvb_policy *policy, uint64_t tokens);

/* What a layer's cache reads of a token: writes key [D] (before RoPE) and value [D] of head g at `position`, and tells
 * whether it is exact. For tests and tools. */
KVB_API kvb_status kvb_cache_read(const kvb_cache *cache, uint32_t layer, uint32_t head, uint64_t position, float *key,
                                  float *value, int *exact, kvb_error *err);

/* Encodes n rows [D] (row i at x + i*stride floats) of one head with a codebook: codes [n][S], each < K. Keys are
 * given in the layer's frame. A row's codes do not depend on the others. KVB_E_CHECK for NaN and infinity. Makes its
 * search structures anew on each call: encode many rows at once. */
KVB_API kvb_status kvb_encode(const kvb_codebook *codebook, uint32_t head_dim, const float *x, size_t stride, size_t n,
                              uint32_t *codes, kvb_error *err);
/* Decodes n rows of codes to x [n][D]. KVB_E_USAGE for a code that is not less than K. */
KVB_API kvb_status kvb_decode(const kvb_codebook *codebook, uint32_t head_dim, const uint32_t *codes, size_t n,
                              float *x, kvb_error *err);
/* Codes as bit strings: code i at bits [i*b, (i+1)*b), least significant bit first. Bytes for S codes of b bits are
 * kvb_packed_bytes(S, b) = ceil(S*b/8): every token starts on a byte. */
KVB_API size_t kvb_packed_bytes(uint32_t groups, uint32_t code_bits);
KVB_API void kvb_pack_codes(const uint32_t *codes, uint32_t groups, uint32_t code_bits, uint8_t *packed);
KVB_API void kvb_unpack_codes(const uint8_t *packed, uint32_t groups, uint32_t code_bits, uint32_t *codes);

#ifdef __cplusplus
}
#endif
#endif
