/* A quantised KV cache on a GPU: the cache of kvbook/cache.h for many sequences at once, in pages.
 *
 * An engine uploads a book once, makes one cache for all its sequences, and then, for every step and layer and on its own
 * stream, appends the new tokens' keys and values and asks for the attention of their queries. Neither call allocates,
 * synchronises or reads anything back, so a step can be captured in a CUDA graph. What is kept exact, how tokens age out of the
 * window and which become anchors is the CPU cache's definition (kvbook/cache.h).
 *
 * Differences from the CPU cache, all of them here:
 *  - Tokens of the window and anchors are held as half floats of the key after RoPE and of the value, also where the policy
 *    says fine codes (KVB_EXACT_FINE): they are the values that the fine codes decode to.
 *  - Tokens are encoded as they arrive; a token's codes stay in its page while it is exact. So codes take the bytes of all
 *    tokens.
 *  - With n > 1 new tokens in a step all n queries see the window of the last one (and no token after themselves).
 *  - Layers that the book does not support belong in the engine's own cache: calls refuse them.
 *
 * Pages: codes and anchors of `page_tokens` tokens of all KV heads of one layer. One page table serves all layers: page i of a
 * sequence holds positions i*page_tokens and on. The window, the sinks and the running scores live in a slot of the sequence.
 * A sequence whose length is 0 starts anew in its slot and pages, whatever they held.
 *
 * What lies in device memory (lengths, page tables, slots) is checked there: a number outside is not followed, what it names is
 * left out, and kvb_cuda_cache_check() tells. A value that is not finite is stored as 0 and told likewise.
 *
 * Calls on one cache must be ordered by the caller (one stream, or events). */
#ifndef KVBOOK_CUDA_H
#define KVBOOK_CUDA_H

#include "kvbook/cache.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct kvb_cuda_book kvb_cuda_book;
typedef struct kvb_cuda_cache kvb_cuda_cache;
struct CUstream_st; /* cudaStream_t points to it */

enum {
    KVB_CUDA_MOST_TOKENS = 8, /* new tokens of a sequence in one step; a prompt goes through kvb_cuda_prefill() */
    KVB_CUDA_MOST_DIM = 256,  /* D */
};

/* Element type of keys, values, queries and outputs. */
typedef enum kvb_cuda_type { KVB_CUDA_HALF = 0, KVB_CUDA_BFLOAT = 1, KVB_CUDA_FLOAT = 2 } kvb_cuda_type;

/* Copies codebooks, means and transforms to `device`. `book` must outlive the result. KVB_E_DEVICE where there is no such
 * device or it is older than compute capability 8.0; KVB_E_MEMORY; KVB_E_USAGE for a layer with head dimension over 256 or not a
 * multiple of 16, and for codebooks of more than 65536 sums, which only the CPU encodes. */
KVB_API kvb_status kvb_cuda_book_create(const kvb_book *book, int device, kvb_cuda_book **out, kvb_error *err);
KVB_API void kvb_cuda_book_destroy(kvb_cuda_book *book); /* NULL is allowed */
/* The kernel that decodes a layer: "mma 4x16", or "plain" and in words why no faster one fits. */
KVB_API const char *kvb_cuda_book_kernel(const kvb_cuda_book *book, uint32_t layer);

typedef struct kvb_cuda_cache_options {
    uint32_t struct_size;    /* set by the init function */
    kvb_policy policy;
    uint64_t seed;           /* of KVB_SCORE_RANDOM */
    uint32_t slots;          /* sequences held at once */
    uint32_t pages;          /* pages in all */
    uint32_t page_tokens;    /* a power of two from 32; 256 by default */
    uint32_t sequence_pages; /* entries of a row of the page table: the longest sequence, in pages */
} kvb_cuda_cache_options;

KVB_API void kvb_cuda_cache_options_init(kvb_cuda_cache_options *options, const kvb_cuda_book *book);
/* All device memory that the cache will ever use. KVB_E_MEMORY (with the bytes asked for) leaves nothing allocated. */
KVB_API kvb_status kvb_cuda_cache_create(const kvb_cuda_book *book, const kvb_cuda_cache_options *options,
                                         kvb_cuda_cache **out, kvb_error *err);
KVB_API void kvb_cuda_cache_destroy(kvb_cuda_cache *cache); /* NULL is allowed */
/* Device bytes, without the book: `page` of one page over all layers, `slot` of one slot, `total` of everything. */
typedef struct kvb_cuda_cache_size { uint64_t page, slot, total; } kvb_cuda_cache_size;
KVB_API kvb_cuda_cache_size kvb_cuda_cache_bytes(const kvb_cuda_cache *cache);

/* One step: the same for all layers. Pointers are to device memory. */
typedef struct kvb_cuda_batch {
    uint32_t sequences;    /* B */
    uint32_t tokens;       /* n: new tokens of each sequence */
    uint32_t longest;      /* host's bound of length + tokens, for the size of launches; 0: as long as a sequence can be */
    kvb_cuda_type type;
    const int32_t *length; /* [B] tokens before this step */
    const int32_t *slot;   /* [B]; NULL: sequence i is in slot i */
    const int32_t *page;   /* [B][sequence_pages] */
} kvb_cuda_batch;

/* Appends n <= KVB_CUDA_MOST_TOKENS tokens: keys [B][n][G][D] before RoPE, values [B][n][G][D]. KVB_E_USAGE for arguments that
 * make no sense; KVB_E_DEVICE where a launch fails. */
KVB_API kvb_status kvb_cuda_append(kvb_cuda_cache *cache, uint32_t layer, const kvb_cuda_batch *batch, const void *keys,
                                   const void *values, struct CUstream_st *stream, kvb_error *err);
/* Attention of the tokens appended last (the same batch): q [B][n][H][D] after RoPE, out [B][n][H][D]. Adds to the scores of
 * the window. */
KVB_API kvb_status kvb_cuda_attend(kvb_cuda_cache *cache, uint32_t layer, const kvb_cuda_batch *batch, const void *q,
                                   void *out, struct CUstream_st *stream, kvb_error *err);
/* The same without adding to the scores: for queries that are asked twice, and for timing. */
KVB_API kvb_status kvb_cuda_attend_only(kvb_cuda_cache *cache, uint32_t layer, const kvb_cuda_batch *batch, const void *q,
                                        void *out, struct CUstream_st *stream, kvb_error *err);
/* A prompt: n tokens (any number that the pages hold) of sequences whose length is 0. The engine computes their attention
 * itself, exactly, and passes q and out [B][n][H][D] and the natural logarithm of each row's sum, lse [B][H][n], from which the
 * anchors' scores follow: every token is scored by the queries that saw it in the window. NULL for all three where the policy's
 * scores do not come from attention. */
KVB_API kvb_status kvb_cuda_prefill(kvb_cuda_cache *cache, uint32_t layer, const kvb_cuda_batch *batch, const void *keys,
                                    const void *values, const void *q, const void *out, const float *lse,
                                    struct CUstream_st *stream, kvb_error *err);

/* Waits for `stream` and tells what went wrong on the device since the last check: KVB_E_USAGE for a length, page or slot outside
 * the cache, KVB_E_CHECK for values that were not finite, KVB_E_DEVICE for a failed kernel. */
KVB_API kvb_status kvb_cuda_cache_check(kvb_cuda_cache *cache, struct CUstream_st *stream, kvb_error *err);

/* Runs every layer on the plain kernel from now on, which the fast ones are checked against. For tests. */
KVB_API void kvb_cuda_cache_plain(kvb_cuda_cache *cache);

/* What the cache reads of a token, as kvb_cache_read() but the key is as attention sees it, after RoPE; waits for the device. page: the sequence's row of the page table, in host
 * memory. For tests and tools. */
KVB_API kvb_status kvb_cuda_cache_read(const kvb_cuda_cache *cache, uint32_t layer, uint32_t slot, const int32_t *page,
                                       uint32_t length, uint32_t head, uint32_t position, float *key, float *value, int *exact,
                                       kvb_error *err);

#ifdef __cplusplus
}
#endif
#endif
