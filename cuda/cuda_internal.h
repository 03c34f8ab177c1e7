/* What the files of the CUDA runtime share: the device's view of a book and a cache, and how calls fail. */
#ifndef KVB_CUDA_INTERNAL_H
#define KVB_CUDA_INTERNAL_H

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <vector>

#include "cuda/cuda_math.h"
#include "kvbook/cuda.h"

/* One (layer, head, kind). Pointers are to device memory; mean, forward and inverse NULL where the book has none. The matrices
 * are transposed, so that the threads that make neighbouring rows read neighbouring numbers. */
typedef struct kvb_dev_codebook {
    kvb_shape shape;
    const __half *table; /* [S][M][Km][d] */
    const float *mean, *forward, *inverse;
} kvb_dev_codebook;

typedef struct kvb_dev_head {
    kvb_dev_codebook code[2], fine[2]; /* by kvb_kind; fine has no table where the book has none */
    uint32_t code_bytes[2];            /* of one token */
} kvb_dev_head;

/* A layer as kernels see it, passed by value. */
typedef struct kvb_dev_layer {
    uint32_t index, heads, kv_heads, rows, dim; /* H, G, R = H/G, D */
    uint32_t sliding;                           /* 0: full attention */
    uint32_t frame_block;                       /* 0 post, 1 pre, B block */
    uint32_t rope_style, rope_dims;
    float scale;
    const uint64_t *turn;     /* [rope_dims/2] */
    const kvb_dev_head *head; /* [G] */
    const uint8_t *mma_tables; /* [G] what the fast kernel wants of a head: tables, or the inverse [D][D] of the keys' transform; or NULL */
    uint32_t step_bytes, prompt_bytes; /* shared memory that encoding takes; prompt_bytes 0: more than there is, prompts go as steps */
    uint32_t select_room;              /* anchors that a prompt can choose in shared memory */
} kvb_dev_layer;

typedef enum kvb_mma_shape {
    KVB_MMA_NONE = 0, KVB_MMA_4X16, KVB_MMA_8X256, KVB_MMA_ADD_8X16, KVB_MMA_4X256, KVB_MMA_2X256, KVB_MMA_16X256,
    KVB_MMA_16X4096, KVB_MMA_32X4096,
    KVB_MMA_TILE, /* any mixture of shapes: cuda_tile.cu */
} kvb_mma_shape;

/* A fast kernel. halves: RoPE pairs are (i, i + D/2); bytes: its tables are multiples of steps of their channels. */
typedef struct kvb_mma_choice {
    kvb_mma_shape kind;
    bool halves, bytes;
} kvb_mma_choice;

typedef struct kvb_host_layer {
    kvb_dev_layer dev;
    bool has_codes;
    kvb_mma_choice mma;
    int mma_resident; /* its blocks that fit on a multiprocessor at a time */
    char kernel[120];
    void *memory; /* one allocation */
    kvb_dev_head *host_head; /* [G] with device pointers */
} kvb_host_layer;

struct kvb_cuda_book {
    const kvb_book *book;
    int device, multiprocessors;
    uint32_t layers;
    kvb_host_layer *layer;
};

/* Where things lie in a page of one layer, for each head: offsets in bytes. Anchors of a page: as many as its share of all. */
typedef struct kvb_dev_place {
    uint32_t key_codes, value_codes, masks, anchor_keys, anchor_values, anchor_position, anchor_score;
} kvb_dev_place;

typedef struct kvb_dev_cache {
    uint8_t *pages;             /* [pages][page_bytes] */
    const kvb_dev_place *place; /* [G] */
    uint32_t page_bytes, page_count, page_tokens, page_anchors, sequence_pages, slots;
    uint32_t page_shift; /* log2 of the tiles of a page */
    __half *ring[2];  /* [slots][G][ring_rows][D]: position p is row p % ring_rows */
    __half *sinks[2]; /* [slots][G][sinks][D] */
    double *score;    /* [slots][G][ring_rows] */
    uint32_t *anchors; /* [slots][G] count */
    uint32_t ring_rows, window, sink_count;
    double fraction;
    uint32_t score_kind, scores_attention, fine;
    uint64_t seed;
    uint32_t *flags;  /* what went wrong: KVB_FLAG_* */
} kvb_dev_cache;

enum { KVB_FLAG_PLACE = 1, KVB_FLAG_FINITE = 2, KVB_FLAG_NOT_EMPTY = 4 };

typedef struct kvb_dev_batch {
    uint32_t sequences, tokens, type;
    const int32_t *length, *slot, *page;
} kvb_dev_batch;

/* Partial sums of attention: of every split, four columns (queries) at a time. */
enum { KVB_COLUMNS = 4, KVB_MOST_SPLITS = 64 };
typedef struct kvb_dev_work {
    float *sum;      /* [groups of columns][splits][KVB_COLUMNS][D] */
    float2 *share;   /* [groups][splits][KVB_COLUMNS] maximum (base 2) and sum */
    uint32_t *done;  /* [groups] splits that are through; zero between launches */
    float *out;      /* [B][n][H][D] for the scores */
    float *lse;      /* [B][n][H] base 2 */
    uint32_t splits;
} kvb_dev_work;

typedef struct kvb_cache_layer_memory {
    kvb_dev_cache dev;
    void *memory;
    uint32_t slot_bytes;
} kvb_cache_layer_memory;

struct kvb_cuda_cache {
    const kvb_cuda_book *book;
    kvb_cuda_cache_options options;
    kvb_cache_layer_memory *layer; /* [layers] */
    void *work_memory;
    kvb_dev_work work;
    uint32_t most_groups; /* column groups times splits that fit */
    uint64_t score_room;  /* floats of work.sum for the scores of a prompt */
    bool plain_only;      /* for tests: the plain kernel everywhere */
    uint32_t *flags;
    uint64_t total;
};

extern "C" {
#include "format/base/fail.h"
#include "format/base/grid.h"
#include "format/base/half.h"
}

kvb_status kvb_cuda_fail(kvb_error *err, const char *what, cudaError_t code);
#define KVB_CUDA_TRY(status, err, what, call)                          \
    do {                                                               \
        if ((status) == KVB_OK) {                                      \
            const cudaError_t code_ = (call);                          \
            if (code_ != cudaSuccess)                                  \
                (status) = kvb_cuda_fail((err), (what), code_);        \
        }                                                              \
    } while (0)

/* cuda_mma_shapes.cu: tables in the order of the fast kernels, and their launch. */
kvb_mma_shape kvb_mma_shape_of(const kvb_shape *shape);
uint32_t kvb_mma_layout(kvb_mma_choice choice);
/* Appends the tables of one head to `to`; by kind: tables [S][M][Km][d] of half floats, and steps [D] (NULL without bytes). */
void kvb_mma_put_tables(kvb_mma_choice choice, const kvb_shape *shape, const uint16_t *const table[2], const float *const step[2],
                        std::vector<uint8_t> &to);
cudaError_t kvb_mma_launch(kvb_mma_choice choice, const kvb_dev_layer *layer, const kvb_dev_cache *cache,
                           const kvb_dev_batch *batch, const void *q, void *out, const kvb_dev_work *work,
                           uint32_t column_groups, cudaStream_t stream);
/* Readies the device for the kernel: blocks that fit on a multiprocessor at a time, 0 where it cannot run. */
int kvb_mma_residency(kvb_mma_choice choice, uint32_t dim);
/* The same of the kernel that takes any mixture of shapes; halves: RoPE pairs are (i, i + D/2). */
int kvb_tile_residency(uint32_t dim, bool halves);
cudaError_t kvb_tile_launch(bool halves, const kvb_dev_layer *layer, const kvb_dev_cache *cache, const kvb_dev_batch *batch,
                            const void *q, void *out, const kvb_dev_work *work, uint32_t column_groups, cudaStream_t stream);
/* Readies the device for encoding a layer whose codes have up to `units` indices a token, and fills in the shared memory it takes. */
cudaError_t kvb_append_prepare(kvb_dev_layer *layer, uint32_t units);
cudaError_t kvb_append_launch(const kvb_dev_layer *layer, const kvb_dev_cache *cache, const kvb_dev_batch *batch,
                              const void *keys, const void *values, cudaStream_t stream);
/* scores: room for scores_room floats, at least G*n. */
cudaError_t kvb_prefill_launch(const kvb_dev_layer *layer, const kvb_dev_cache *cache, const kvb_dev_batch *batch,
                               const void *keys, const void *values, const void *q, const void *out, const float *lse,
                               float *scores, size_t scores_room, cudaStream_t stream);
cudaError_t kvb_score_launch(const kvb_dev_layer *layer, const kvb_dev_cache *cache, const kvb_dev_batch *batch,
                             const void *q, const float *out, const float *lse, cudaStream_t stream);
/* Scores [sequences][G][n] of the tokens of prompts. */
cudaError_t kvb_prompt_score_launch(const kvb_dev_layer *layer, const kvb_dev_cache *cache, const kvb_dev_batch *batch,
                                    const void *keys, const void *values, const void *q, const void *out, const float *lse,
                                    float *scores, uint32_t first_sequence, uint32_t sequences, cudaStream_t stream);
cudaError_t kvb_plain_launch(const kvb_dev_layer *layer, const kvb_dev_cache *cache, const kvb_dev_batch *batch,
                             const void *q, void *out, const kvb_dev_work *work, uint32_t column_groups,
                             cudaStream_t stream);

#endif
