/* What happens between the matrix products of a layer. Rows are tokens; M of them are at work, whole sequences of T. qkv rows are
 * [q heads | k heads | v heads] of D channels. */
#ifndef KVB_CUDA_FORWARD_KERNELS_CUH
#define KVB_CUDA_FORWARD_KERNELS_CUH

#include <cuda_fp16.h>
#include <math_constants.h>
#include <stdint.h>

#include "format/base/exact.h"

typedef struct kvb_dev_work_layer {
    uint32_t heads, kv_heads, dim, tokens, sequences; /* H, G, D, T, sequences at work */
    uint32_t rope_style, rope_dims, window;           /* window 0: all earlier tokens */
    float scale;
    const float *cosine, *sine; /* [T][rope_dims/2] */
    const uint32_t *drawn;      /* [sequences at work][T] */
    float *qkv;                 /* [M][(H+2G)D]; keys turned in place after they were kept */
    float *q_back;              /* [M][HD] queries turned back by drawn positions */
    float *out;                 /* [M][HD] attention */
    float *lse, *norm;          /* [M][H] */
    float *weight;              /* [2][H][M] */
} kvb_dev_work_layer;

/* To the nearest TF32: tensor cores would cut the rest off, which shrinks every product a little. */
static __device__ __forceinline__ float kvb_tf32(float x)
{
    uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return __uint_as_float(bits);
}

static __global__ void kvb_round_tf32(float *x, size_t count)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count; i += (size_t)gridDim.x * blockDim.x)
        x[i] = kvb_tf32(x[i]);
}

/* The sum of x over a block of 256 threads, in a fixed order. */
template <typename T> static __device__ __forceinline__ T kvb_block_sum(T x)
{
    __shared__ T part[8];
    for (int step = 16; step > 0; step /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, step);
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = x;
    __syncthreads();
    T sum = 0;
    for (int w = 0; w < 8; w++)
        sum += part[w];
    __syncthreads();
    return sum;
}

/* RMSNorm (arXiv 1910.07467) of a row by a block. */
static __global__ void __launch_bounds__(256) kvb_rms_norm(const float *x, const float *weight, uint32_t width, double epsilon, float *y)
{
    const float *row = x + (size_t)blockIdx.x * width;
    float square = 0.0f;
    for (uint32_t c = threadIdx.x; c < width; c += 256)
        square += row[c] * row[c];
    const float factor = (float)(1.0 / sqrt((double)kvb_block_sum(square) / width + epsilon));
    for (uint32_t c = threadIdx.x; c < width; c += 256)
        y[(size_t)blockIdx.x * width + c] = kvb_tf32(row[c] * factor * weight[c]);
}

/* SwiGLU: gate_up [M][2F] to its first half. */
static __global__ void kvb_swiglu(const float *gate_up, uint32_t ffn, size_t rows, float *y)
{
    const size_t count = rows * ffn;
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count; i += (size_t)gridDim.x * blockDim.x) {
        const float *row = gate_up + i / ffn * 2 * ffn;
        const float gate = row[i % ffn];
        y[i] = kvb_tf32(gate / (1.0f + expf(-gate)) * row[ffn + i % ffn]);
    }
}

/* What stands between the product and the heads as they are before RoPE: a bias, then RMSNorm over each head of q and k. A block a
 * token, a warp a head at a time. bias [(H+2G)D] or NULL; q_norm, k_norm [D] or NULL. */
static __global__ void __launch_bounds__(256) kvb_finish_heads(kvb_dev_work_layer w, const float *bias, const float *q_norm,
                                                               const float *k_norm, double epsilon)
{
    const uint32_t lane = threadIdx.x % 32, heads = w.heads + 2 * w.kv_heads;
    for (uint32_t head = threadIdx.x / 32; head < heads; head += 8) {
        float *x = w.qkv + ((size_t)blockIdx.x * heads + head) * w.dim, square = 0.0f;
        const float *norm = head < w.heads ? q_norm : head < w.heads + w.kv_heads ? k_norm : nullptr;
        for (uint32_t c = lane; c < w.dim; c += 32) {
            if (bias != nullptr)
                x[c] += bias[head * w.dim + c];
            square += x[c] * x[c];
        }
        if (norm == nullptr)
            continue;
        for (int far = 16; far > 0; far /= 2)
            square += __shfl_xor_sync(0xffffffffu, square, far);
        const float factor = (float)(1.0 / sqrt((double)square / w.dim + epsilon));
        for (uint32_t c = lane; c < w.dim; c += 32)
            x[c] = x[c] * factor * norm[c];
    }
}

/* Keys or values [M][D] of every KV head as half floats, and which rows hold a NaN or infinity, to where the head's rows of all
 * sequences lie. first: the row of the first token at work; all: rows of a head. */
static __global__ void kvb_keep_rows(kvb_dev_work_layer w, bool values, size_t first, size_t all, __half *to, uint8_t *bad,
                                     unsigned long long *saturated)
{
    const size_t rows = (size_t)w.sequences * w.tokens, width = (w.heads + 2 * w.kv_heads) * (size_t)w.dim;
    const size_t from = (w.heads + (values ? w.kv_heads : 0)) * (size_t)w.dim, count = rows * w.kv_heads * w.dim;
    unsigned long long many = 0;
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count; i += (size_t)gridDim.x * blockDim.x) {
        const size_t c = i % w.dim, row = i / w.dim % rows, head = i / w.dim / rows;
        float x = w.qkv[row * width + from + head * w.dim + c];
        if (!isfinite(x))
            bad[head * all + first + row] = 1; /* from several threads, but the same */
        if (fabsf(x) > 65504.0f) {
            many++;
            x = copysignf(65504.0f, x);
        }
        to[(head * all + first + row) * w.dim + c] = __float2half_rn(x);
    }
    if (many != 0)
        atomicAdd(saturated, many); /* of integers: the order means nothing */
}

/* RoPE of queries and keys in place; queries are turned back into q_back as well, and their lengths taken, NaN where one is not
 * finite: such a query counts nothing. A block a token, a warp a head at a time. */
static __global__ void __launch_bounds__(256) kvb_turn(kvb_dev_work_layer w, bool observed)
{
    const size_t row = blockIdx.x, width = (w.heads + 2 * w.kv_heads) * (size_t)w.dim;
    const uint32_t position = row % w.tokens, lane = threadIdx.x % 32, pairs = w.rope_style == 0 ? 0 : w.rope_dims / 2;
    const uint32_t step = w.rope_style == 1 ? 2 : 1, partner = w.rope_style == 1 ? 1 : pairs;
    for (uint32_t head = threadIdx.x / 32; head < w.heads + w.kv_heads; head += 8) {
        float *x = w.qkv + row * width + (size_t)head * w.dim;
        const bool query = head < w.heads && observed;
        float square = 0.0f;
        for (uint32_t i = lane; i < pairs; i += 32) {
            const float c = w.cosine[(size_t)position * pairs + i], s = w.sine[(size_t)position * pairs + i];
            const float a = x[i * step], b = x[i * step + partner];
            x[i * step] = a * c - b * s;
            x[i * step + partner] = a * s + b * c;
        }
        __syncwarp();
        if (!query)
            continue;
        for (uint32_t c = lane; c < w.dim; c += 32)
            square += x[c] * x[c];
        for (int far = 16; far > 0; far /= 2)
            square += __shfl_xor_sync(0xffffffffu, square, far);
        const bool good = isfinite(square);
        if (lane == 0)
            w.norm[row * w.heads + head] = good ? sqrtf(square) : CUDART_NAN_F;
        float *to = w.q_back + row * w.heads * w.dim + (size_t)head * w.dim;
        const size_t back = w.drawn[row];
        for (uint32_t i = lane; i < pairs; i += 32) {
            const float c = w.cosine[back * pairs + i], s = w.sine[back * pairs + i];
            const float a = x[i * step], b = x[i * step + partner];
            to[i * step] = good ? a * c + b * s : 0.0f;
            to[i * step + partner] = good ? b * c - a * s : 0.0f;
        }
        for (uint32_t c = 2 * pairs + lane; c < w.dim; c += 32)
            to[c] = good ? x[c] : 0.0f;
    }
}

/* width channels of each row of qkv, from channel `from` on, to [T][sequences][width] */
static __global__ void kvb_take_heads(kvb_dev_work_layer w, size_t from, size_t width, uint32_t sequence, uint32_t sequences, float *to)
{
    const size_t row_width = (w.heads + 2 * w.kv_heads) * (size_t)w.dim, count = w.tokens * width;
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count; i += (size_t)gridDim.x * blockDim.x)
        to[(i / width * sequences + sequence) * width + i % width] = w.qkv[i / width * row_width + from + i % width];
}

/* The other way, of outputs: from [T][sequences][HD]. */
static __global__ void kvb_put_heads(kvb_dev_work_layer w, const float *from, uint32_t sequence, uint32_t sequences)
{
    const size_t width = (size_t)w.heads * w.dim, count = w.tokens * width;
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count; i += (size_t)gridDim.x * blockDim.x)
        w.out[i] = from[(i / width * sequences + sequence) * width + i % width];
}

/* Queries of a head as the moments want them: those that are not finite are zeros. [M][HD] */
static __global__ void kvb_good_queries(kvb_dev_work_layer w, float *to, unsigned long long *bad)
{
    const size_t rows = (size_t)w.sequences * w.tokens, width = (w.heads + 2 * w.kv_heads) * (size_t)w.dim;
    const size_t row_width = (size_t)w.heads * w.dim, count = rows * row_width;
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count; i += (size_t)gridDim.x * blockDim.x) {
        const size_t row = i / row_width, c = i % row_width;
        const bool good = !isnan(w.norm[row * w.heads + c / w.dim]);
        to[i] = good ? w.qkv[row * width + c] : 0.0f;
        if (!good && c % w.dim == 0)
            atomicAdd(bad + c / w.dim, 1ull);
    }
}

/* sums [G][D(D+1)/2] += the symmetric parts of the products [H][D][D] of each group's heads. */
static __global__ void kvb_add_moments(const float *product, uint32_t heads, uint32_t kv_heads, uint32_t dim, kvb_exact *sums)
{
    const size_t square = (size_t)dim * dim, group = heads / kv_heads, triangle = kvb_triangle(dim);
    for (size_t n = blockIdx.x * (size_t)blockDim.x + threadIdx.x; n < kv_heads * square; n += (size_t)gridDim.x * blockDim.x) {
        const size_t head = n / square, i = n % square / dim, j = n % dim;
        if (j < i)
            continue;
        kvb_exact *to = sums + head * triangle + i * (2 * dim - i + 1) / 2 + (j - i), sum = *to;
        for (size_t h = head * group; h < (head + 1) * group; h++)
            sum = kvb_exact_add(sum, kvb_exact_of(0.5 * ((double)product[h * square + i * dim + j] + product[h * square + j * dim + i])));
        *to = sum;
    }
}

/* to [G][all] at row `first`: the weights [H][M] of each group's heads added up in their order. */
static __global__ void kvb_add_weights(kvb_dev_work_layer w, const float *weight, size_t first, size_t all, float *to)
{
    const size_t rows = (size_t)w.sequences * w.tokens, group = w.heads / w.kv_heads;
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < rows * w.kv_heads; i += (size_t)gridDim.x * blockDim.x) {
        double sum = 0.0;
        for (size_t h = i / rows * group; h < (i / rows + 1) * group; h++)
            sum += weight[h * rows + i % rows];
        to[i / rows * all + first + i % rows] = (float)sum;
    }
}

/* --- attention: tiles of 64 queries and 64 keys, 256 threads, each 4 x 4 of the scores --- */

enum { KVB_TILE_ROWS = 64, KVB_TILE_LD = 68 /* floats; a row stays aligned to 16 bytes */ };

/* x [64 rows from `first`][D] of one head, transposed to t [D][LD]; zeros past the sequence and past D. */
template <int D>
static __device__ __forceinline__ void kvb_tile_across(const float *x, size_t ld, uint32_t first, uint32_t tokens, uint32_t dim, float *t)
{
    for (uint32_t i = threadIdx.x; i < 64 * D; i += 256) {
        /* a warp takes 8 channels of 4 rows: whole sectors on this side, all banks on the other */
        const uint32_t c = i % 8 + i / 512 * 8, r = i / 8 % 64;
        t[c * KVB_TILE_LD + r] = first + r < tokens && c < dim ? x[(size_t)(first + r) * ld + c] : 0.0f;
    }
}

template <int D>
static __device__ __forceinline__ void kvb_tile_along(const float *x, size_t ld, uint32_t first, uint32_t tokens, uint32_t dim, float *t)
{
    for (uint32_t i = threadIdx.x; i < 64 * D; i += 256) {
        const uint32_t c = i % D, r = i / D;
        t[r * D + c] = first + r < tokens && c < dim ? x[(size_t)(first + r) * ld + c] : 0.0f;
    }
}

/* s[a][b] = q_{4y+a} . k_{4x+b} */
template <int D>
static __device__ __forceinline__ void kvb_tile_scores(const float *q, const float *k, uint32_t y, uint32_t x, float (&s)[4][4])
{
#pragma unroll
    for (int a = 0; a < 4; a++)
#pragma unroll
        for (int b = 0; b < 4; b++)
            s[a][b] = 0.0f;
#pragma unroll 8
    for (int c = 0; c < D; c++) {
        const float4 u = *(const float4 *)(q + c * KVB_TILE_LD + 4 * y), v = *(const float4 *)(k + c * KVB_TILE_LD + 4 * x);
        const float qa[4] = {u.x, u.y, u.z, u.w}, kb[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int a = 0; a < 4; a++)
#pragma unroll
            for (int b = 0; b < 4; b++)
                s[a][b] = fmaf(qa[a], kb[b], s[a][b]);
    }
}

static __device__ __forceinline__ bool kvb_sees(uint32_t query, uint32_t key, uint32_t tokens, uint32_t window)
{
    return key <= query && query < tokens && (window == 0 || query - key < window);
}

template <int D> __host__ __device__ constexpr size_t kvb_attend_bytes()
{
    const size_t across = (size_t)D * KVB_TILE_LD, along = (size_t)64 * D, scores = 64 * KVB_TILE_LD;
    return sizeof(float) * (across + (across > along ? across : along) + scores);
}

/* Exact causal attention with an online softmax. Grid: tiles of queries, heads, sequences. */
template <int D>
__global__ void __launch_bounds__(256) kvb_attend_tiles(kvb_dev_work_layer w)
{
    extern __shared__ float4 shared4[];
    float *q = (float *)shared4, *kv = q + D * KVB_TILE_LD, *p = (float *)((char *)shared4 + kvb_attend_bytes<D>()) - 64 * KVB_TILE_LD;
    constexpr int COLUMNS = D < 64 ? 1 : D / 64;
    const uint32_t x = threadIdx.x % 16, y = threadIdx.x / 16, first = (gridDim.x - 1 - blockIdx.x) * 64, head = blockIdx.y;
    const size_t width = (w.heads + 2 * w.kv_heads) * (size_t)w.dim, start = (size_t)blockIdx.z * w.tokens;
    const uint32_t kv_head = head / (w.heads / w.kv_heads);
    const float *rows = w.qkv + start * width, *keys = rows + (w.heads + kv_head) * (size_t)w.dim;
    const float *values = keys + (size_t)w.kv_heads * w.dim;
    const bool mine = 4 * x < D;
    float out[4][COLUMNS][4] = {}, most[4], sum[4] = {};
#pragma unroll
    for (int a = 0; a < 4; a++)
        most[a] = -CUDART_INF_F;
    kvb_tile_across<D>(rows + (size_t)head * w.dim, width, first, w.tokens, w.dim, q);
    const uint32_t least = w.window != 0 && first + 1 > w.window ? (first + 1 - w.window) / 64 * 64 : 0;
    for (uint32_t key = least; key <= first; key += 64) {
        float s[4][4];
        __syncthreads();
        kvb_tile_across<D>(keys, width, key, w.tokens, w.dim, kv);
        __syncthreads();
        kvb_tile_scores<D>(q, kv, y, x, s);
        __syncthreads();
        kvb_tile_along<D>(values, width, key, w.tokens, w.dim, kv);
#pragma unroll
        for (int a = 0; a < 4; a++) {
            float top = most[a], part = 0.0f;
#pragma unroll
            for (int b = 0; b < 4; b++) {
                s[a][b] = kvb_sees(first + 4 * y + a, key + 4 * x + b, w.tokens, w.window) ? s[a][b] * w.scale : -CUDART_INF_F;
                top = fmaxf(top, s[a][b]);
            }
            for (int far = 8; far > 0; far /= 2)
                top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, far, 16));
            const float old = top == -CUDART_INF_F ? 1.0f : expf(most[a] - top);
#pragma unroll
            for (int b = 0; b < 4; b++) {
                const float e = top == -CUDART_INF_F ? 0.0f : expf(s[a][b] - top);
                part += e;
                p[(4 * x + b) * KVB_TILE_LD + 4 * y + a] = e;
            }
            for (int far = 8; far > 0; far /= 2)
                part += __shfl_xor_sync(0xffffffffu, part, far, 16);
            sum[a] = sum[a] * old + part;
            most[a] = top;
#pragma unroll
            for (int j = 0; j < COLUMNS; j++)
#pragma unroll
                for (int c = 0; c < 4; c++)
                    out[a][j][c] *= old;
        }
        __syncthreads();
        if (mine)
#pragma unroll 4
            for (int k = 0; k < 64; k++) {
                const float4 u = *(const float4 *)(p + k * KVB_TILE_LD + 4 * y);
                const float pa[4] = {u.x, u.y, u.z, u.w};
#pragma unroll
                for (int j = 0; j < COLUMNS; j++) {
                    const float4 v = *(const float4 *)(kv + k * D + 64 * j + 4 * x);
                    const float vc[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
                    for (int a = 0; a < 4; a++)
#pragma unroll
                        for (int c = 0; c < 4; c++)
                            out[a][j][c] = fmaf(pa[a], vc[c], out[a][j][c]);
                }
            }
    }
#pragma unroll
    for (int a = 0; a < 4; a++) {
        const uint32_t query = first + 4 * y + a;
        if (query >= w.tokens)
            continue;
        const size_t row = start + query;
        if (x == 0)
            w.lse[row * w.heads + head] = most[a] + logf(sum[a]);
#pragma unroll
        for (int j = 0; j < COLUMNS; j++)
#pragma unroll
            for (int c = 0; c < 4; c++)
                if (mine && 64 * j + 4 * x + c < w.dim)
                    w.out[(row * w.heads + head) * w.dim + 64 * j + 4 * x + c] = out[a][j][c] / sum[a];
    }
}

template <int D> __host__ __device__ constexpr size_t kvb_weigh_bytes()
{
    return sizeof(float) * (3 * (size_t)D * KVB_TILE_LD + 32 * 64);
}

/* Token weights of one head's tile of keys over all queries (format/base/attention.h): A from the saved log-sum-exp, then
 * ||V_j - O_i||_1 by tiles. Grid: tiles of keys, heads, sequences. */
template <int D>
__global__ void __launch_bounds__(256) kvb_weigh_tiles(kvb_dev_work_layer w)
{
    extern __shared__ float4 shared4[];
    float *k = (float *)shared4, *v = k + D * KVB_TILE_LD, *qo = v + D * KVB_TILE_LD, *part = qo + D * KVB_TILE_LD;
    const uint32_t x = threadIdx.x % 16, y = threadIdx.x / 16, first = blockIdx.x * 64, head = blockIdx.y;
    const size_t width = (w.heads + 2 * w.kv_heads) * (size_t)w.dim, start = (size_t)blockIdx.z * w.tokens;
    const uint32_t kv_head = head / (w.heads / w.kv_heads);
    const float *rows = w.qkv + start * width, *keys = rows + (w.heads + kv_head) * (size_t)w.dim;
    const float *values = keys + (size_t)w.kv_heads * w.dim;
    const float *out = w.out + (start * w.heads + head) * w.dim;
    float weight_k[4] = {}, weight_v[4] = {};
    kvb_tile_across<D>(keys, width, first, w.tokens, w.dim, k);
    kvb_tile_across<D>(values, width, first, w.tokens, w.dim, v);
    for (uint32_t query = first; query < w.tokens; query += 64) {
        float s[4][4], apart[4][4] = {};
        if (w.window != 0 && query > first + 63 + w.window)
            break;
        __syncthreads();
        kvb_tile_across<D>(rows + (size_t)head * w.dim, width, query, w.tokens, w.dim, qo);
        __syncthreads();
        kvb_tile_scores<D>(qo, k, y, x, s);
        __syncthreads();
        kvb_tile_across<D>(out, (size_t)w.heads * w.dim, query, w.tokens, w.dim, qo);
        __syncthreads();
#pragma unroll 8
        for (int c = 0; c < D; c++) {
            const float4 u = *(const float4 *)(qo + c * KVB_TILE_LD + 4 * y), z = *(const float4 *)(v + c * KVB_TILE_LD + 4 * x);
            const float oa[4] = {u.x, u.y, u.z, u.w}, vb[4] = {z.x, z.y, z.z, z.w};
#pragma unroll
            for (int a = 0; a < 4; a++)
#pragma unroll
                for (int b = 0; b < 4; b++)
                    apart[a][b] += fabsf(vb[b] - oa[a]);
        }
#pragma unroll
        for (int a = 0; a < 4; a++) {
            const uint32_t i = min(query + 4 * y + a, w.tokens - 1);
            const float lse = w.lse[(start + i) * w.heads + head], norm = w.norm[(start + i) * w.heads + head];
#pragma unroll
            for (int b = 0; b < 4; b++) {
                if (!kvb_sees(query + 4 * y + a, first + 4 * x + b, w.tokens, w.window))
                    continue;
                const float share = expf(s[a][b] * w.scale - lse);
                weight_k[b] += share * apart[a][b] * norm;
                weight_v[b] += share;
            }
        }
    }
    __syncthreads();
#pragma unroll
    for (int b = 0; b < 4; b++) {
        part[y * 64 + 4 * x + b] = weight_k[b];
        part[(16 + y) * 64 + 4 * x + b] = weight_v[b];
    }
    __syncthreads();
    const uint32_t kind = threadIdx.x / 64, key = threadIdx.x % 64;
    if (kind < 2 && first + key < w.tokens) {
        double sum = 0.0;
        for (int r = 0; r < 16; r++)
            sum += part[(16 * kind + r) * 64 + key];
        const size_t all = (size_t)w.sequences * w.tokens;
        w.weight[(kind * w.heads + head) * all + start + first + key] = (float)(kind == 0 ? sum * w.scale : sum);
    }
}

#endif
