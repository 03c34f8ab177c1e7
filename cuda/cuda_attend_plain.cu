/* Attention over a cache of any supported shape, as the formula says: tokens are decoded one tile at a time into shared memory,
 * keys brought to where RoPE puts them, and folded into a running softmax in float32. The reference that faster kernels are
 * checked against on the device, and what layers without a faster kernel run on. */
#include "cuda/cuda_device.cuh"

enum { PLAIN_THREADS = 256 };


static __device__ __forceinline__ uint32_t column_row(const kvb_dev_layer &l, const kvb_dev_batch &b, uint32_t sequence,
                                                      uint32_t kv_head, uint32_t index)
{
    return (sequence * b.tokens + index / l.rows) * l.heads + kv_head * l.rows + index % l.rows;
}

/* y [count][D] decoded from codes into `to`, rows `pitch` floats apart. */
static __device__ void decode_tile(const kvb_dev_codebook &c, int is_value, const uint8_t *tile, float *to, uint32_t pitch)
{
    const kvb_shape &s = c.shape;
    const uint32_t groups = s.units / s.stages;
    for (uint32_t i = threadIdx.x; i < KVB_TILE * groups; i += PLAIN_THREADS) {
        const uint32_t token = i / groups, group = i % groups;
        uint32_t code[8];
        for (uint32_t m = 0; m < s.stages; m++)
            code[m] = kvb_tile_unit(&s, is_value, tile, token, group * s.stages + m);
        for (uint32_t e = 0; e < s.channels; e++)
            to[token * pitch + group * s.channels + e] = kvb_decode_channel(c, group, e, code);
    }
    __syncthreads();
}

/* x = inverse * y + mean, row by row, through `spare`. */
static __device__ void transform_back(const kvb_dev_codebook &c, float *x, float *spare, uint32_t pitch)
{
    const uint32_t dim = c.shape.dim;
    if (c.inverse != NULL) {
        for (uint32_t i = threadIdx.x; i < KVB_TILE * dim; i += PLAIN_THREADS) {
            const uint32_t token = i / dim, row = i % dim;
            float sum = 0.0f;
            for (uint32_t j = 0; j < dim; j++)
                sum += c.inverse[(size_t)j * dim + row] * x[token * pitch + j];
            spare[token * pitch + row] = sum;
        }
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < KVB_TILE * dim; i += PLAIN_THREADS)
            x[i / dim * pitch + i % dim] = spare[i / dim * pitch + i % dim];
        __syncthreads();
    }
    if (c.mean != NULL) {
        for (uint32_t i = threadIdx.x; i < KVB_TILE * dim; i += PLAIN_THREADS)
            x[i / dim * pitch + i % dim] += c.mean[i % dim];
        __syncthreads();
    }
}

/* Tokens that are held exactly, in one list: sinks, the window, anchors. */
typedef struct exact_list {
    uint32_t sinks, window, anchors, first; /* first: position of the window's oldest */
} exact_list;

typedef struct plain_shared {
    float maximum[KVB_COLUMNS], sum[KVB_COLUMNS], factor[KVB_COLUMNS];
    float score[KVB_COLUMNS][KVB_TILE];
    uint32_t position[KVB_TILE]; /* UINT32_MAX: nothing here */
} plain_shared;

/* Row `i` of the exact list: where its key and value lie and its position. */
static __device__ bool exact_row(const kvb_dev_cache &c, const kvb_dev_layer &l, const kvb_dev_sequence &s, uint32_t head,
                                 const exact_list &list, uint32_t i, const __half **key, const __half **value,
                                 uint32_t *position)
{
    if (i < list.sinks) {
        const size_t row = kvb_slot_row(c, l.kv_heads, s.slot, head, i, c.sink_count) * l.dim;
        *key = c.sinks[0] + row;
        *value = c.sinks[1] + row;
        *position = i;
        return true;
    }
    i -= list.sinks;
    if (i < list.window) {
        *position = list.first + i;
        const size_t row = kvb_slot_row(c, l.kv_heads, s.slot, head, *position % c.ring_rows, c.ring_rows) * l.dim;
        *key = c.ring[0] + row;
        *value = c.ring[1] + row;
        return true;
    }
    i -= list.window;
    if (i >= list.anchors)
        return false;
    const uint8_t *page = kvb_page(c, s, i / c.page_anchors);
    if (page == NULL)
        return false;
    const kvb_dev_place &p = c.place[head];
    const uint32_t at = i % c.page_anchors;
    *key = (const __half *)(page + p.anchor_keys) + (size_t)at * l.dim;
    *value = (const __half *)(page + p.anchor_values) + (size_t)at * l.dim;
    *position = ((const uint32_t *)(page + p.anchor_position))[at];
    return true;
}

static __device__ void load_exact(const kvb_dev_cache &c, const kvb_dev_layer &l, const kvb_dev_sequence &s, uint32_t head,
                                  const exact_list &list, uint32_t tile, float *keys, float *values, uint32_t pitch,
                                  plain_shared *shared)
{
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (uint32_t token = warp; token < KVB_TILE; token += PLAIN_THREADS / 32) {
        const __half *key, *value;
        uint32_t position = UINT32_MAX;
        const bool there = exact_row(c, l, s, head, list, tile * KVB_TILE + token, &key, &value, &position);
        for (uint32_t d = lane; d < l.dim; d += 32) {
            keys[token * pitch + d] = there ? __half2float(key[d]) : 0.0f;
            values[token * pitch + d] = there ? __half2float(value[d]) : 0.0f;
        }
        if (lane == 0)
            shared->position[token] = there ? position : UINT32_MAX;
    }
    __syncthreads();
}

static __device__ bool load_codes(const kvb_dev_cache &c, const kvb_dev_layer &l, const kvb_dev_sequence &s, uint32_t head,
                                  uint32_t tile, uint32_t first, float *keys, float *values, float *spare, uint32_t pitch,
                                  plain_shared *shared)
{
    const uint32_t at = tile * KVB_TILE % c.page_tokens;
    const uint8_t *page = kvb_page(c, s, tile * KVB_TILE / c.page_tokens);
    if (page == NULL)
        return false;
    const kvb_dev_place &p = c.place[head];
    const kvb_dev_head &h = l.head[head];
    if (threadIdx.x < KVB_TILE) {
        const uint32_t position = tile * KVB_TILE + threadIdx.x;
        const uint32_t anchors = ((const uint32_t *)(page + p.masks))[at / KVB_TILE];
        const bool coded = position >= c.sink_count && position < first && !(anchors >> threadIdx.x & 1);
        shared->position[threadIdx.x] = coded ? position : UINT32_MAX;
    }
    decode_tile(h.code[KVB_KEY], 0, page + p.key_codes + at * h.code_bytes[KVB_KEY], keys, pitch);
    transform_back(h.code[KVB_KEY], keys, spare, pitch);
    for (uint32_t token = threadIdx.x / 32; token < KVB_TILE; token += PLAIN_THREADS / 32)
        kvb_turn_row(l, kvb_frame_rest(l.frame_block, tile * KVB_TILE + token), keys + token * pitch, threadIdx.x % 32, 32);
    decode_tile(h.code[KVB_VALUE], 1, page + p.value_codes + at * h.code_bytes[KVB_VALUE], values, pitch);
    transform_back(h.code[KVB_VALUE], values, spare, pitch);
    return true;
}

/* Scores of the tile, in units of log2, and the running softmax. */
static __device__ void fold_scores(const kvb_dev_layer &l, const float *queries, const float *keys, uint32_t pitch, uint32_t live,
                                   const uint32_t *position_of, plain_shared *shared)
{
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (warp < live) {
        const float *q = queries + warp * l.dim, *k = keys + lane * pitch;
        float x = 0.0f;
        for (uint32_t d = 0; d < l.dim; d++)
            x += q[d] * k[d];
        const uint32_t position = shared->position[lane], mine = position_of[warp];
        if (position == UINT32_MAX || position > mine || (l.sliding != 0 && position + l.sliding <= mine))
            x = -INFINITY;
        float most = x;
        for (int k2 = 16; k2; k2 >>= 1)
            most = fmaxf(most, __shfl_xor_sync(~0u, most, k2));
        const float before = shared->maximum[warp], now = fmaxf(before, most);
        const float p = x == -INFINITY ? 0.0f : exp2f(x - now);
        float sum = p;
        for (int k2 = 16; k2; k2 >>= 1)
            sum += __shfl_xor_sync(~0u, sum, k2);
        shared->score[warp][lane] = p;
        __syncwarp();
        if (lane == 0) {
            const float factor = before == -INFINITY ? 0.0f : exp2f(before - now);
            shared->factor[warp] = now == -INFINITY ? 1.0f : factor;
            shared->sum[warp] = shared->sum[warp] * shared->factor[warp] + sum;
            shared->maximum[warp] = now;
        }
    }
    __syncthreads();
}

__global__ void __launch_bounds__(PLAIN_THREADS) attend_plain(const kvb_dev_layer l, const kvb_dev_cache c,
                                                              const kvb_dev_batch b, const void *q, void *out,
                                                              const kvb_dev_work w, uint32_t column_groups)
{
    extern __shared__ float memory[];
    __shared__ plain_shared shared;
    __shared__ uint32_t position_of[KVB_COLUMNS];
    const uint32_t split = blockIdx.x, head = blockIdx.y, sequence = blockIdx.z / column_groups;
    const uint32_t columns_first = blockIdx.z % column_groups * KVB_COLUMNS, columns = l.rows * b.tokens;
    const uint32_t live = min(columns - columns_first, (uint32_t)KVB_COLUMNS), pitch = l.dim + 1, dim = l.dim;
    const uint32_t group = (sequence * l.kv_heads + head) * column_groups + blockIdx.z % column_groups;
    float *queries = memory, *keys = queries + KVB_COLUMNS * dim, *values = keys + KVB_TILE * pitch;
    float *spare = values + KVB_TILE * pitch, *sums = spare + KVB_TILE * pitch;
    kvb_dev_sequence s = {0, 0, 0, NULL};
    const bool there = kvb_sequence(c, b, sequence, &s);

    for (uint32_t i = threadIdx.x; i < KVB_COLUMNS * dim; i += PLAIN_THREADS) {
        const uint32_t column = i / dim;
        const size_t row = column < live ? column_row(l, b, sequence, head, columns_first + column) : 0;
        queries[i] = column < live ? kvb_load(q, row * dim + i % dim, b.type) * l.scale * 1.4426950408889634f : 0.0f;
        sums[i] = 0.0f;
    }
    if (threadIdx.x < KVB_COLUMNS) {
        shared.maximum[threadIdx.x] = -INFINITY;
        shared.sum[threadIdx.x] = 0.0f;
        position_of[threadIdx.x] = s.before + min(columns_first + threadIdx.x, columns - 1) / l.rows;
    }
    __syncthreads();
    if (there) {
        exact_list list;
        list.first = kvb_window_first(s.tokens, c.window, c.sink_count);
        list.sinks = min(s.tokens, c.sink_count);
        list.window = s.tokens - list.first;
        list.anchors = c.fraction > 0.0 ? c.anchors[kvb_slot_row(c, l.kv_heads, s.slot, head, 0, 1)] : 0;
        const uint32_t coded = list.first > list.sinks ? (list.first + KVB_TILE - 1) / KVB_TILE : 0;
        const uint32_t exact = (list.sinks + list.window + list.anchors + KVB_TILE - 1) / KVB_TILE, all = coded + exact;
        for (uint32_t t = kvb_part(all, split, w.splits); t < kvb_part(all, split + 1, w.splits); t++) {
            if (t >= coded)
                load_exact(c, l, s, head, list, t - coded, keys, values, pitch, &shared);
            else if (!load_codes(c, l, s, head, t, list.first, keys, values, spare, pitch, &shared))
                break;
            fold_scores(l, queries, keys, pitch, live, position_of, &shared);
            for (uint32_t i = threadIdx.x; i < live * dim; i += PLAIN_THREADS) {
                const uint32_t column = i / dim, d = i % dim;
                float x = sums[i] * shared.factor[column];
                for (uint32_t token = 0; token < KVB_TILE; token++)
                    x += shared.score[column][token] * values[token * pitch + d];
                sums[i] = x;
            }
            __syncthreads();
        }
    }
    for (uint32_t i = threadIdx.x; i < KVB_COLUMNS * dim; i += PLAIN_THREADS)
        w.sum[((size_t)group * w.splits + split) * KVB_COLUMNS * dim + i] = sums[i];
    if (threadIdx.x < KVB_COLUMNS)
        w.share[((size_t)group * w.splits + split) * KVB_COLUMNS + threadIdx.x] =
            make_float2(shared.maximum[threadIdx.x], shared.sum[threadIdx.x]);
    kvb_merge_splits(w, l, group, live, out, b.type,
                     [&](uint32_t column) { return column_row(l, b, sequence, head, columns_first + column); });
}

cudaError_t kvb_plain_launch(const kvb_dev_layer *layer, const kvb_dev_cache *cache, const kvb_dev_batch *batch,
                             const void *q, void *out, const kvb_dev_work *work, uint32_t column_groups, cudaStream_t stream)
{
    const size_t bytes = (2 * KVB_COLUMNS * layer->dim + 3 * KVB_TILE * (layer->dim + 1)) * sizeof(float);
    const cudaError_t code =
        cudaFuncSetAttribute(attend_plain, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (code != cudaSuccess)
        return code;
    attend_plain<<<dim3(work->splits, layer->kv_heads, batch->sequences * column_groups), PLAIN_THREADS, bytes, stream>>>(
        *layer, *cache, *batch, q, out, *work, column_groups);
    return cudaGetLastError();
}
