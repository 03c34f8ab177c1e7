/* Small device functions that the kernels of the runtime share. */
#ifndef KVB_CUDA_DEVICE_CUH
#define KVB_CUDA_DEVICE_CUH

#include "cuda/cuda_internal.h"

static __device__ __forceinline__ float kvb_load(const void *x, size_t at, uint32_t type)
{
    if (type == KVB_CUDA_HALF)
        return __half2float(((const __half *)x)[at]);
    if (type == KVB_CUDA_BFLOAT)
        return __bfloat162float(((const __nv_bfloat16 *)x)[at]);
    return ((const float *)x)[at];
}

/* The same of N numbers, loads of all under way before the first is used. */
template <int N> static __device__ __forceinline__ void kvb_load_all(const void *x, const size_t *at, uint32_t type, float *to)
{
    if (type == KVB_CUDA_FLOAT) {
#pragma unroll
        for (int i = 0; i < N; i++)
            to[i] = __ldg((const float *)x + at[i]);
        return;
    }
    uint16_t bits[N];
#pragma unroll
    for (int i = 0; i < N; i++)
        bits[i] = __ldg((const uint16_t *)x + at[i]);
#pragma unroll
    for (int i = 0; i < N; i++)
        to[i] = type == KVB_CUDA_HALF ? __half2float(__ushort_as_half(bits[i])) : __uint_as_float((uint32_t)bits[i] << 16);
}

static __device__ __forceinline__ void kvb_store(void *x, size_t at, uint32_t type, float value)
{
    if (type == KVB_CUDA_HALF)
        ((__half *)x)[at] = __float2half_rn(value);
    else if (type == KVB_CUDA_BFLOAT)
        ((__nv_bfloat16 *)x)[at] = __float2bfloat16_rn(value);
    else
        ((float *)x)[at] = value;
}

/* A value as a cache holds it: rounded to a half float, saturating; what is not finite is 0 and told. */
static __device__ __forceinline__ float kvb_hold(float value, uint32_t *bad)
{
    if (!isfinite(value)) {
        *bad = 1;
        return 0.0f;
    }
    return __half2float(__float2half_rn(fminf(fmaxf(value, -65504.0f), 65504.0f)));
}

/* Where a sequence of a batch lives. `tokens` is its length with the new ones; false (and a flag) where a number is outside. */
typedef struct kvb_dev_sequence {
    uint32_t slot, before, tokens;
    const int32_t *page;
} kvb_dev_sequence;

static __device__ __forceinline__ bool kvb_sequence(const kvb_dev_cache &c, const kvb_dev_batch &b, uint32_t i,
                                                    kvb_dev_sequence *s)
{
    const int32_t slot = b.slot != NULL ? b.slot[i] : (int32_t)i, length = b.length[i];
    s->page = b.page + (size_t)i * c.sequence_pages;
    const int64_t most = (int64_t)c.sequence_pages * c.page_tokens;
    if (slot < 0 || slot >= (int32_t)c.slots || length < 0 || (int64_t)length + b.tokens > most) {
        atomicOr(c.flags, KVB_FLAG_PLACE);
        return false;
    }
    s->slot = (uint32_t)slot;
    s->before = (uint32_t)length;
    s->tokens = (uint32_t)length + b.tokens;
    return true;
}

/* The bytes of one head in page `index` of a sequence; NULL (and a flag) where the table points outside. */
static __device__ __forceinline__ uint8_t *kvb_page(const kvb_dev_cache &c, const kvb_dev_sequence &s, uint32_t index)
{
    const int32_t page = index < c.sequence_pages ? s.page[index] : -1;
    if (page < 0 || page >= (int32_t)c.page_count) {
        atomicOr(c.flags, KVB_FLAG_PLACE);
        return NULL;
    }
    return c.pages + (size_t)page * c.page_bytes;
}

static __device__ __forceinline__ size_t kvb_slot_row(const kvb_dev_cache &c, uint32_t kv_heads, uint32_t slot, uint32_t head,
                                                      uint32_t row, uint32_t rows)
{
    return ((size_t)slot * kv_heads + head) * rows + row;
}

/* The channels of RoPE pair i. */
static __device__ __forceinline__ void kvb_pair(const kvb_dev_layer &l, uint32_t i, uint32_t *a, uint32_t *b)
{
    *a = l.rope_style == KVB_ROPE_INTERLEAVED ? 2 * i : i;
    *b = l.rope_style == KVB_ROPE_INTERLEAVED ? 2 * i + 1 : i + l.rope_dims / 2;
}

/* x [D] in shared memory turned by `position` by the threads of a group, which must wait before and after. */
static __device__ __forceinline__ void kvb_turn_row(const kvb_dev_layer &l, int64_t position, float *x, uint32_t thread,
                                                    uint32_t threads)
{
    if (l.rope_style == KVB_ROPE_NONE || position == 0)
        return;
    for (uint32_t i = thread; i < l.rope_dims / 2; i += threads) {
        uint32_t a, b;
        kvb_pair(l, i, &a, &b);
        float sine, cosine;
        sincospif(kvb_phase(l.turn[i], position), &sine, &cosine);
        const float u = x[a], v = x[b];
        x[a] = u * cosine - v * sine;
        x[b] = u * sine + v * cosine;
    }
}

/* Channel i of what group s of codes decodes to, codes being those of unit s*M and on. */
static __device__ __forceinline__ float kvb_decode_channel(const kvb_dev_codebook &c, uint32_t group, uint32_t channel,
                                                           const uint32_t *codes)
{
    const kvb_shape &s = c.shape;
    float sum = 0.0f;
    for (uint32_t m = 0; m < s.stages; m++) {
        const float row = __half2float(c.table[((size_t)(group * s.stages + m) * s.rows + codes[m]) * s.channels + channel]);
        sum = m == 0 ? row : sum + row;
    }
    return sum;
}

static __device__ __forceinline__ uint64_t kvb_dev_mix64(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

/* kvb_rng_unit() of format/base/rng.h, keyed by (seed, layer, head). */
static __device__ __forceinline__ float kvb_random_score(const kvb_dev_cache &c, uint32_t layer, uint32_t head, uint32_t position)
{
    const uint64_t step = 0x9E3779B97F4A7C15ull;
    uint64_t key = kvb_dev_mix64(c.seed + step);
    key = kvb_dev_mix64(key + step + layer);
    key = kvb_dev_mix64(key + step + head);
    key = kvb_dev_mix64(key + step);
    key = kvb_dev_mix64(key + step);
    const uint64_t bits = kvb_dev_mix64(key + ((uint64_t)position + 1) * step);
    return (float)(((double)(bits >> 11) + 0.5) * (1.0 / 9007199254740992.0));
}

/* The threads of a block that are done last merge what all splits left: see kvb_dev_work. `group` names the column group,
 * `live` tells how many of its columns are real, and column c's output row is at row(c). Called by all threads of every block. */
template <class Row>
static __device__ void kvb_merge_splits(const kvb_dev_work &w, const kvb_dev_layer &l, uint32_t group, uint32_t live, void *out,
                                        uint32_t type, Row row)
{
    __shared__ uint32_t last;
    __shared__ float weight[KVB_COLUMNS][KVB_MOST_SPLITS];
    __syncthreads();
    if (threadIdx.x == 0) { /* its fences stand for the block: what the others wrote came before the barrier, what they read comes after */
        __threadfence();
        last = atomicAdd(&w.done[group], 1) == w.splits - 1;
        if (last)
            w.done[group] = 0;
        __threadfence();
    }
    __syncthreads();
    if (!last)
        return;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (warp < live) {
        const float2 *share = w.share + (size_t)group * w.splits * KVB_COLUMNS + warp;
        float2 a = make_float2(-INFINITY, 0.0f), b = a;
        if (lane < w.splits)
            a = __ldcg(share + lane * KVB_COLUMNS);
        if (lane + 32 < w.splits)
            b = __ldcg(share + (lane + 32) * KVB_COLUMNS);
        float most = fmaxf(a.x, b.x);
        for (int k = 16; k; k >>= 1)
            most = fmaxf(most, __shfl_xor_sync(~0u, most, k));
        const float wa = a.y > 0.0f ? exp2f(a.x - most) : 0.0f, wb = b.y > 0.0f ? exp2f(b.x - most) : 0.0f;
        float sum = wa * a.y + wb * b.y;
        for (int k = 16; k; k >>= 1)
            sum += __shfl_xor_sync(~0u, sum, k);
        const float unit = sum > 0.0f ? 1.0f / sum : 0.0f;
        weight[warp][lane] = wa * unit;
        weight[warp][lane + 32] = wb * unit;
        if (lane == 0 && w.lse != NULL)
            w.lse[row(warp)] = most + log2f(sum);
    }
    __syncthreads();
    /* Threads take four channels of a column each, and every PARTS-th split, so that all loads are under way at once. */
    enum { PARTS = 2, AT_ONCE = 8 };
    __shared__ float4 part[KVB_COLUMNS * KVB_CUDA_MOST_DIM / 4];
    const float4 *sum = (const float4 *)(w.sum + (size_t)group * w.splits * KVB_COLUMNS * l.dim);
    const uint32_t quads = l.dim / 4, each = KVB_COLUMNS * quads, half = blockDim.x / PARTS, mine = threadIdx.x / half;
    for (uint32_t first = 0; first < live * quads; first += half) {
        const uint32_t i = first + threadIdx.x % half, column = i / quads;
        const bool real = i < live * quads;
        float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        for (uint32_t split = mine; real && split < w.splits; split += PARTS * AT_ONCE) {
            float4 y[AT_ONCE];
#pragma unroll
            for (uint32_t k = 0; k < AT_ONCE; k++)
                if (split + k * PARTS < w.splits)
                    y[k] = __ldcg(sum + (size_t)(split + k * PARTS) * each + i);
#pragma unroll
            for (uint32_t k = 0; k < AT_ONCE; k++)
                if (split + k * PARTS < w.splits) {
                    const float f = weight[column][split + k * PARTS];
                    x.x += f * y[k].x;
                    x.y += f * y[k].y;
                    x.z += f * y[k].z;
                    x.w += f * y[k].w;
                }
        }
        if (mine == 1 && real)
            part[i] = x;
        __syncthreads();
        if (mine == 0 && real) {
            const float4 y = part[i];
            const float all[4] = {x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w};
            const size_t at = (size_t)row(column) * l.dim + i % quads * 4;
            for (uint32_t e = 0; e < 4; e++) {
                kvb_store(out, at + e, type, all[e]);
                if (w.out != NULL)
                    w.out[at + e] = all[e];
            }
        }
        __syncthreads();
    }
}

#endif
