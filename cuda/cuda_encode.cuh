/* From a token's key or value to what a cache holds: its exact row and its codes. A block makes ENCODE_TOKENS tokens of one head
 * and one kind at a time. */
#ifndef KVB_CUDA_ENCODE_CUH
#define KVB_CUDA_ENCODE_CUH

#include "cuda/cuda_device.cuh"

enum { ENCODE_TOKENS = 8, ENCODE_THREADS = 256, ENCODE_MOST_UNITS = 1024 };

typedef struct encode_shared {
    float y[ENCODE_TOKENS][KVB_CUDA_MOST_DIM];     /* in the codebook's coordinates */
    float row[ENCODE_TOKENS][KVB_CUDA_MOST_DIM];   /* the exact row: a key after RoPE, or a value */
    float spare[ENCODE_TOKENS][KVB_CUDA_MOST_DIM];
    uint16_t unit[ENCODE_TOKENS][ENCODE_MOST_UNITS];
    uint32_t position[ENCODE_TOKENS];              /* UINT32_MAX: nothing here */
} encode_shared;

/* to = matrix * from, token by token. */
static __device__ void encode_matrix(const float *transposed, uint32_t dim, const float (*from)[KVB_CUDA_MOST_DIM],
                                     float (*to)[KVB_CUDA_MOST_DIM])
{
    for (uint32_t row = threadIdx.x; row < dim; row += ENCODE_THREADS) {
        float sum[ENCODE_TOKENS] = {0.0f};
        for (uint32_t j = 0; j < dim; j++) {
            const float weight = transposed[(size_t)j * dim + row];
#pragma unroll
            for (uint32_t t = 0; t < ENCODE_TOKENS; t++)
                sum[t] += weight * from[t][j];
        }
#pragma unroll
        for (uint32_t t = 0; t < ENCODE_TOKENS; t++)
            to[t][row] = sum[t];
    }
    __syncthreads();
}

static __device__ void encode_add(const float *mean, float sign, uint32_t dim, float (*x)[KVB_CUDA_MOST_DIM])
{
    if (mean == NULL)
        return;
    for (uint32_t i = threadIdx.x; i < ENCODE_TOKENS * dim; i += ENCODE_THREADS)
        x[i / dim][i % dim] += sign * mean[i % dim];
    __syncthreads();
}

/* The nearest of the K sums to each group of y, a warp a group; the lowest index of equal ones. */
static __device__ void encode_nearest(const kvb_dev_codebook &c, encode_shared *sh)
{
    const kvb_shape &s = c.shape;
    const uint32_t groups = s.units / s.stages, lane = threadIdx.x % 32, all = 1u << (s.bits * s.stages);
    for (uint32_t i = threadIdx.x / 32; i < ENCODE_TOKENS * groups; i += ENCODE_THREADS / 32) {
        const uint32_t token = i / groups, group = i % groups;
        const float *y = sh->y[token] + group * s.channels;
        float best = INFINITY;
        uint32_t code = 0;
        for (uint32_t k = lane; k < all; k += 32) {
            float distance = 0.0f;
            for (uint32_t e = 0; e < s.channels; e++) {
                float sum = 0.0f;
                for (uint32_t m = 0; m < s.stages; m++) {
                    const uint32_t row = k >> (m * s.bits) & (s.rows - 1);
                    const float x = __half2float(c.table[((size_t)(group * s.stages + m) * s.rows + row) * s.channels + e]);
                    sum = m == 0 ? x : sum + x;
                }
                distance += (y[e] - sum) * (y[e] - sum);
            }
            if (distance < best) {
                best = distance;
                code = k;
            }
        }
        for (int k = 16; k; k >>= 1) {
            const float other = __shfl_xor_sync(~0u, best, k);
            const uint32_t its = __shfl_xor_sync(~0u, code, k);
            if (other < best || (other == best && its < code)) {
                best = other;
                code = its;
            }
        }
        if (lane < s.stages)
            sh->unit[token][group * s.stages + lane] = (uint16_t)(code >> (lane * s.bits) & (s.rows - 1));
    }
    __syncthreads();
}

/* y replaced by what its codes decode to. */
static __device__ void encode_decode(const kvb_dev_codebook &c, encode_shared *sh)
{
    const kvb_shape &s = c.shape;
    for (uint32_t i = threadIdx.x; i < ENCODE_TOKENS * s.dim; i += ENCODE_THREADS) {
        const uint32_t token = i / s.dim, d = i % s.dim, group = d / s.channels;
        uint32_t code[8];
        for (uint32_t m = 0; m < s.stages; m++)
            code[m] = sh->unit[token][group * s.stages + m];
        sh->y[token][d] = kvb_decode_channel(c, group, d % s.channels, code);
    }
    __syncthreads();
}

/* Fills y and row of the tokens whose positions are set; source(t) is the row of x that token t has. */
template <class Source>
static __device__ void encode_rows(const kvb_dev_layer &l, const kvb_dev_cache &cache, const kvb_dev_head &h, uint32_t kind,
                                   const void *x, uint32_t type, Source source, encode_shared *sh)
{
    const uint32_t dim = l.dim, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const kvb_dev_codebook &c = h.code[kind];
    uint32_t bad = 0;
    for (uint32_t t = warp; t < ENCODE_TOKENS; t += ENCODE_THREADS / 32) {
        const bool there = sh->position[t] != UINT32_MAX;
        for (uint32_t d = lane; d < dim; d += 32)
            sh->y[t][d] = sh->row[t][d] = there ? kvb_hold(kvb_load(x, source(t) + d, type), &bad) : 0.0f;
    }
    if (bad)
        atomicOr(cache.flags, KVB_FLAG_FINITE);
    __syncthreads();
    if (kind == KVB_KEY)
        for (uint32_t t = warp; t < ENCODE_TOKENS; t += ENCODE_THREADS / 32)
            if (sh->position[t] != UINT32_MAX) {
                const uint32_t rest = kvb_frame_rest(l.frame_block, sh->position[t]);
                kvb_turn_row(l, sh->position[t] - rest, sh->y[t], lane, 32);
                kvb_turn_row(l, sh->position[t], sh->row[t], lane, 32);
            }
    __syncthreads();
    encode_add(c.mean, -1.0f, dim, sh->y);
    if (c.forward != NULL) {
        encode_matrix(c.forward, dim, sh->y, sh->spare);
        for (uint32_t i = threadIdx.x; i < ENCODE_TOKENS * dim; i += ENCODE_THREADS)
            sh->y[i / dim][i % dim] = sh->spare[i / dim][i % dim];
        __syncthreads();
    }
    if (!cache.fine)
        return;
    /* What is exact passes through fine codes, but for the sinks; the coarse codes are made from what they decode to. */
    encode_nearest(h.fine[kind], sh);
    encode_decode(h.fine[kind], sh);
    float(*back)[KVB_CUDA_MOST_DIM] = sh->y;
    if (c.inverse != NULL) {
        encode_matrix(c.inverse, dim, sh->y, sh->spare);
        back = sh->spare;
    }
    for (uint32_t t = warp; t < ENCODE_TOKENS; t += ENCODE_THREADS / 32) {
        const uint32_t position = sh->position[t];
        if (position == UINT32_MAX || position < cache.sink_count)
            continue;
        for (uint32_t d = lane; d < dim; d += 32)
            sh->row[t][d] = back[t][d] + (c.mean != NULL ? c.mean[d] : 0.0f);
        __syncwarp();
        if (kind == KVB_KEY)
            kvb_turn_row(l, kvb_frame_rest(l.frame_block, position), sh->row[t], lane, 32);
    }
    __syncthreads();
}

#endif
