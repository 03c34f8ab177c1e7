/* The passes of k-means over a batch of problems. W: channels rounded up to 2, 4, 8, 16, 32 or 64, the rest zeros. */
#ifndef KVB_CUDA_KMEANS_KERNELS_CUH
#define KVB_CUDA_KMEANS_KERNELS_CUH

#include <cuda_fp16.h>
#include <math_constants.h>
#include <stdint.h>

/* One problem of one side, in device memory. Offsets are in rows of what they lead to. */
typedef struct kvb_dev_problem {
    const void *raw;
    const float *raw_weight;
    size_t stride;
    uint32_t half, count, channels, centroids;
    uint32_t chunk, chunks;        /* points of a warp's share of the sort, and how many shares */
    size_t point_at;               /* into y, w, code, order, loss */
    size_t table_at;               /* into tables of [K][W], norms, errors; start has one more a problem */
    size_t start_at, offset_at;    /* into start [K+1] and offset [chunks][K] */
    size_t sum_at;                 /* into sums, in doubles */
    float scale, weight_scale, origin[64];
} kvb_dev_problem;

typedef struct kvb_dev_points {
    const kvb_dev_problem *problem;
    float *y;         /* [n][W] */
    float *w;         /* [n] */
    uint32_t *code;   /* [n] */
    uint32_t *order;  /* [n] points by code, in their order within one */
    float *loss;      /* [n] by place in order */
    uint32_t *start;  /* [K+1] */
    uint32_t *offset; /* [chunks][K] */
    float *table;     /* [K][W] */
    float *norm;      /* [K] |c|^2 / 2 */
    float *alive;     /* [K] the same, infinite for candidates of a removal */
    double *error;    /* [K] */
} kvb_dev_points;

enum { KVB_KM_THREADS = 128, KVB_KM_TILE = 4096 /* floats of centroids in shared memory */ };

template <int W> struct kvb_km {
    static const int points = W <= 4 ? 16 : 64 / W;        /* a thread's */
    static const int centroids = KVB_KM_TILE / W;          /* of a tile */
    static const int vector = W < 4 ? W : 4;
    static const int piece = W < 8 ? W : 8;                /* channels that one lane sums up */
    static const int lanes = W / (W < 8 ? W : 8);          /* that share a point */
};

/* The row of a point of one side. */
static __device__ __forceinline__ size_t kvb_km_row(size_t i, uint32_t every, uint32_t block, bool heldout)
{
    if (every == 0)
        return i;
    const size_t period = (size_t)every * block, kept = period - block;
    return heldout ? i / block * period + kept + i % block : i / kept * period + i % kept;
}

/* x * scale - origin rounded twice, as the CPU does it. */
template <int W>
__global__ void kvb_km_load(kvb_dev_points b, uint32_t every, uint32_t block, bool heldout)
{
    const kvb_dev_problem &p = b.problem[blockIdx.y];
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < p.count; i += (size_t)gridDim.x * blockDim.x) {
        const size_t row = kvb_km_row(i, every, block, heldout);
        float *y = b.y + (p.point_at + i) * W;
        for (uint32_t c = 0; c < W; c++) {
            float x = 0.0f;
            if (c < p.channels) {
                x = p.half ? __half2float(((const __half *)p.raw)[row * p.stride + c])
                           : ((const float *)p.raw)[row * p.stride + c];
                x = __fsub_rn(__fmul_rn(x, p.scale), p.origin[c]);
            }
            y[c] = x;
        }
        b.w[p.point_at + i] = p.raw_weight != NULL ? p.raw_weight[row] * p.weight_scale : 1.0f;
    }
}

/* compact: all [K][d] */
template <int W>
__global__ void kvb_km_table(kvb_dev_points b, const float *compact)
{
    const kvb_dev_problem &p = b.problem[blockIdx.y];
    const float *from = compact + (p.sum_at - p.table_at); /* sums have one more a row */
    for (uint32_t k = blockIdx.x * blockDim.x + threadIdx.x; k < p.centroids; k += gridDim.x * blockDim.x) {
        float norm = 0.0f;
        for (uint32_t c = 0; c < W; c++) {
            const float x = c < p.channels ? from[(size_t)k * p.channels + c] : 0.0f;
            b.table[(p.table_at + k) * W + c] = x;
            norm += x * x;
        }
        b.norm[p.table_at + k] = 0.5f * norm;
    }
}

template <int W> struct kvb_km_tile {
    alignas(16) float row[kvb_km<W>::centroids * W];
    float norm[kvb_km<W>::centroids];
};

/* One tile of centroids, those past K infinitely far; every thread of the block takes part. */
template <int W>
static __device__ __forceinline__ uint32_t kvb_km_fetch(kvb_km_tile<W> &tile, const float *table, const float *norm, uint32_t base,
                                                        uint32_t centroids)
{
    const uint32_t many = min((uint32_t)kvb_km<W>::centroids, centroids - base);
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < many * W; i += blockDim.x)
        tile.row[i] = table[(size_t)base * W + i];
    for (uint32_t i = threadIdx.x; i < many; i += blockDim.x)
        tile.norm[i] = norm[base + i];
    __syncthreads();
    return many;
}

/* acc[r] = |c|^2/2 - x_r.c */
template <int W, int R>
static __device__ __forceinline__ void kvb_km_scores(const kvb_km_tile<W> &tile, uint32_t j, const float (&x)[R][W], float (&acc)[R])
{
    const float norm = tile.norm[j];
#pragma unroll
    for (int r = 0; r < R; r++)
        acc[r] = norm;
    if constexpr (W < 4) {
        const float2 c = ((const float2 *)tile.row)[j];
#pragma unroll
        for (int r = 0; r < R; r++)
            acc[r] = fmaf(-x[r][0], c.x, fmaf(-x[r][1], c.y, acc[r]));
    } else {
#pragma unroll
        for (int v = 0; v < W / 4; v++) {
            const float4 c = ((const float4 *)tile.row)[j * (W / 4) + v];
#pragma unroll
            for (int r = 0; r < R; r++) {
                acc[r] = fmaf(-x[r][4 * v], c.x, acc[r]);
                acc[r] = fmaf(-x[r][4 * v + 1], c.y, acc[r]);
                acc[r] = fmaf(-x[r][4 * v + 2], c.z, acc[r]);
                acc[r] = fmaf(-x[r][4 * v + 3], c.w, acc[r]);
                }
    }
    }
}

/* Nearest centroids. A thread holds `points` points in registers; centroids come by broadcast from shared memory. */
template <int W>
__global__ void __launch_bounds__(KVB_KM_THREADS) kvb_km_assign(kvb_dev_points b)
{
    const int R = kvb_km<W>::points;
    __shared__ kvb_km_tile<W> tile;
    const kvb_dev_problem &p = b.problem[blockIdx.y];
    const uint32_t first = blockIdx.x * KVB_KM_THREADS * R + threadIdx.x;
    if (blockIdx.x * KVB_KM_THREADS * R >= p.count)
        return;
    float x[R][W], best[R];
    uint32_t code[R];
#pragma unroll
    for (int r = 0; r < R; r++) {
        const uint32_t i = min(first + r * KVB_KM_THREADS, p.count - 1);
#pragma unroll
        for (int c = 0; c < W; c++)
            x[r][c] = b.y[(p.point_at + i) * W + c];
        best[r] = CUDART_INF_F;
        code[r] = 0;
    }
    for (uint32_t base = 0; base < p.centroids; base += kvb_km<W>::centroids) {
        const uint32_t many = kvb_km_fetch<W>(tile, b.table + p.table_at * W, b.norm + p.table_at, base, p.centroids);
#pragma unroll 2
        for (uint32_t j = 0; j < many; j++) {
            float acc[R];
            kvb_km_scores<W, R>(tile, j, x, acc);
#pragma unroll
            for (int r = 0; r < R; r++)
                if (acc[r] < best[r]) {
                    best[r] = acc[r];
                    code[r] = base + j;
                }
        }
    }
#pragma unroll
    for (int r = 0; r < R; r++)
        if (first + r * KVB_KM_THREADS < p.count)
            b.code[p.point_at + first + r * KVB_KM_THREADS] = code[r];
}

/* |c|^2 / 2 of the few centroids [problems][few][W] of a seeding. */
template <int W>
__global__ void kvb_km_few_norms(const float *rows, uint32_t few, size_t problems, float *norm)
{
    for (size_t k = blockIdx.x * (size_t)blockDim.x + threadIdx.x; k < problems * few; k += (size_t)gridDim.x * blockDim.x) {
        float sum = 0.0f;
        for (int c = 0; c < W; c++)
            sum += rows[k * W + c] * rows[k * W + c];
        norm[k] = 0.5f * sum;
    }
}

/* The nearest of a problem's few centroids, into code, and its squared distance, into loss. */
template <int W>
__global__ void __launch_bounds__(KVB_KM_THREADS)
    kvb_km_few_nearest(kvb_dev_points b, const float *rows, const float *norm, uint32_t few, const uint32_t *have)
{
    const int R = kvb_km<W>::points;
    __shared__ kvb_km_tile<W> tile;
    const kvb_dev_problem &p = b.problem[blockIdx.y];
    const uint32_t first = blockIdx.x * KVB_KM_THREADS * R + threadIdx.x, centroids = have[blockIdx.y];
    const float *table = rows + (size_t)blockIdx.y * few * W;
    if (blockIdx.x * KVB_KM_THREADS * R >= p.count || centroids == 0)
        return;
    float x[R][W], best[R];
    uint32_t code[R];
#pragma unroll
    for (int r = 0; r < R; r++) {
        const uint32_t i = min(first + r * KVB_KM_THREADS, p.count - 1);
#pragma unroll
        for (int c = 0; c < W; c++)
            x[r][c] = b.y[(p.point_at + i) * W + c];
        best[r] = CUDART_INF_F;
        code[r] = 0;
    }
    for (uint32_t base = 0; base < centroids; base += kvb_km<W>::centroids) {
        const uint32_t many = kvb_km_fetch<W>(tile, table, norm + (size_t)blockIdx.y * few, base, centroids);
        for (uint32_t j = 0; j < many; j++) {
            float acc[R];
            kvb_km_scores<W, R>(tile, j, x, acc);
#pragma unroll
            for (int r = 0; r < R; r++)
                if (acc[r] < best[r]) {
                    best[r] = acc[r];
                    code[r] = base + j;
                }
        }
    }
#pragma unroll
    for (int r = 0; r < R; r++) {
        const uint32_t i = first + r * KVB_KM_THREADS;
        float square = 0.0f;
        if (i >= p.count)
            continue;
#pragma unroll
        for (int c = 0; c < W; c++) {
            const float off = x[r][c] - table[(size_t)code[r] * W + c];
            square += off * off;
        }
        b.code[p.point_at + i] = code[r];
        b.loss[p.point_at + i] = square;
    }
}

/* Walks a warp's chunk 32 points at a time. place(i, code, rank): rank among earlier points of the chunk with that code.
 * counter [K] is the warp's own. */
template <typename F>
static __device__ __forceinline__ void kvb_km_walk(const kvb_dev_points &b, const kvb_dev_problem &p, uint32_t chunk,
                                                   uint32_t *counter, F place)
{
    const uint32_t lane = threadIdx.x % 32, end = min(p.count, (chunk + 1) * p.chunk);
    for (uint32_t at = chunk * p.chunk; at < end; at += 32) {
        const uint32_t i = at + lane;
        const bool here = i < end;
        const uint32_t code = here ? b.code[p.point_at + i] : 0xffffffffu;
        const uint32_t mates = __match_any_sync(0xffffffffu, code), before = __popc(mates & ((1u << lane) - 1));
        uint32_t counted = 0;
        if (here)
            counted = counter[code];
        __syncwarp();
        if (here && before == 0)
            counter[code] = counted + __popc(mates);
        __syncwarp();
        if (here)
            place(i, counted + before);
    }
}

/* offset[chunk][k] = points of code k in the chunk */
static __global__ void kvb_km_count(kvb_dev_points b)
{
    const kvb_dev_problem &p = b.problem[blockIdx.y];
    const uint32_t chunk = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (chunk >= p.chunks)
        return;
    uint32_t *counter = b.offset + p.offset_at + (size_t)chunk * p.centroids;
    for (uint32_t k = threadIdx.x % 32; k < p.centroids; k += 32)
        counter[k] = 0;
    __syncwarp();
    kvb_km_walk(b, p, chunk, counter, [](uint32_t, uint32_t) {});
}

/* start[k], and offset[chunk][k] becomes the place of the chunk's first point of code k. One block a problem. */
static __global__ void __launch_bounds__(256) kvb_km_scan(kvb_dev_points b)
{
    __shared__ uint32_t part[256];
    const kvb_dev_problem &p = b.problem[blockIdx.x];
    uint32_t *start = b.start + p.start_at, *offset = b.offset + p.offset_at, before = 0;
    for (uint32_t base = 0; base < p.centroids; base += 256) {
        const uint32_t k = base + threadIdx.x;
        uint32_t total = 0;
        for (uint32_t c = 0; k < p.centroids && c < p.chunks; c++)
            total += offset[(size_t)c * p.centroids + k];
        part[threadIdx.x] = total;
        __syncthreads();
        for (uint32_t step = 1; step < 256; step *= 2) {
            const uint32_t add = threadIdx.x >= step ? part[threadIdx.x - step] : 0;
            __syncthreads();
            part[threadIdx.x] += add;
            __syncthreads();
        }
        uint32_t at = before + part[threadIdx.x] - total;
        before += part[255];
        if (k < p.centroids)
            start[k] = at;
        for (uint32_t c = 0; k < p.centroids && c < p.chunks; c++) {
            const uint32_t many = offset[(size_t)c * p.centroids + k];
            offset[(size_t)c * p.centroids + k] = at;
            at += many;
        }
        __syncthreads();
    }
    if (threadIdx.x == 0)
        start[p.centroids] = p.count;
}

static __global__ void kvb_km_sort(kvb_dev_points b)
{
    const kvb_dev_problem &p = b.problem[blockIdx.y];
    const uint32_t chunk = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (chunk >= p.chunks)
        return;
    uint32_t *order = b.order + p.point_at;
    kvb_km_walk(b, p, chunk, b.offset + p.offset_at + (size_t)chunk * p.centroids,
                [order](uint32_t i, uint32_t place) { order[place] = i; });
}

static __device__ __forceinline__ double kvb_km_warp_sum(double x, int least)
{
    for (int step = 16; step >= least; step /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

/* A warp a cluster: sums [K][d+1] of w*y, then w. A point's channels are shared by `lanes` lanes. */
template <int W>
__global__ void kvb_km_sums(kvb_dev_points b, double *sums)
{
    const int PIECE = kvb_km<W>::piece, LANES = kvb_km<W>::lanes;
    const kvb_dev_problem &p = b.problem[blockIdx.y];
    const uint32_t k = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (k >= p.centroids)
        return;
    const uint32_t *start = b.start + p.start_at, part = lane % LANES;
    double sum[PIECE] = {0}, weight = 0;
    for (uint32_t m = start[k] + lane / LANES; m < start[k + 1]; m += 32 / LANES) {
        const size_t i = p.point_at + b.order[p.point_at + m];
        const float w = b.w[i];
        weight += w;
#pragma unroll
        for (int c = 0; c < PIECE; c++)
            sum[c] += w * b.y[i * W + part * PIECE + c];
    }
    double *to = sums + p.sum_at + (size_t)k * (p.channels + 1);
#pragma unroll
    for (int c = 0; c < PIECE; c++) {
        const double total = kvb_km_warp_sum(sum[c], LANES);
        const uint32_t channel = part * PIECE + c;
        if (lane < LANES && channel < p.channels)
            to[channel] = total;
    }
    weight = kvb_km_warp_sum(weight, LANES);
    if (lane == 0)
        to[p.channels] = weight;
}

template <int W>
static __device__ __forceinline__ double kvb_km_square(const float *y, const float *c)
{
    double square = 0;
#pragma unroll 8
    for (int i = 0; i < W; i++) {
        const double off = (double)y[i] - (double)c[i];
        square += off * off;
    }
    return square;
}

/* A warp a cluster: losses of its points in their order, and their sum. */
template <int W>
__global__ void kvb_km_errors(kvb_dev_points b)
{
    const kvb_dev_problem &p = b.problem[blockIdx.y];
    const uint32_t k = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (k >= p.centroids)
        return;
    const uint32_t *start = b.start + p.start_at;
    double error = 0;
    for (uint32_t m = start[k] + lane; m < start[k + 1]; m += 32) {
        const size_t i = p.point_at + b.order[p.point_at + m];
        const double loss = b.w[i] * kvb_km_square<W>(b.y + i * W, b.table + (p.table_at + k) * W);
        b.loss[p.point_at + m] = (float)loss;
        error += loss;
    }
    error = kvb_km_warp_sum(error, 1);
    if (lane == 0)
        b.error[p.table_at + k] = error;
}

static __global__ void kvb_km_mask(kvb_dev_points b, const uint32_t *candidate, const size_t *first, bool remove)
{
    const kvb_dev_problem &p = b.problem[blockIdx.x];
    if (remove)
        for (size_t i = first[blockIdx.x] + threadIdx.x; i < first[blockIdx.x + 1]; i += blockDim.x)
            b.alive[p.table_at + candidate[i]] = CUDART_INF_F;
    else
        for (uint32_t k = threadIdx.x; k < p.centroids; k += blockDim.x)
            b.alive[p.table_at + k] = b.norm[p.table_at + k];
}

/* A block a candidate: what its points cost with the nearest centroid that stays. */
template <int W>
__global__ void __launch_bounds__(KVB_KM_THREADS)
    kvb_km_removal(kvb_dev_points b, const uint32_t *candidate, const size_t *first, double *cost)
{
    __shared__ kvb_km_tile<W> tile;
    __shared__ double part[KVB_KM_THREADS];
    const kvb_dev_problem &p = b.problem[blockIdx.y];
    const size_t at = first[blockIdx.y] + blockIdx.x;
    if (at >= first[blockIdx.y + 1])
        return;
    const uint32_t *start = b.start + p.start_at, cluster = candidate[at];
    const float *table = b.table + p.table_at * W;
    double sum = 0;
    for (uint32_t m = start[cluster]; m < start[cluster + 1]; m += KVB_KM_THREADS) {
        const bool here = m + threadIdx.x < start[cluster + 1];
        const size_t i = p.point_at + b.order[p.point_at + (here ? m + threadIdx.x : m)];
        float x[1][W], best = CUDART_INF_F;
        uint32_t code = 0;
#pragma unroll
        for (int c = 0; c < W; c++)
            x[0][c] = b.y[i * W + c];
        for (uint32_t base = 0; base < p.centroids; base += kvb_km<W>::centroids) {
            const uint32_t many = kvb_km_fetch<W>(tile, table, b.alive + p.table_at, base, p.centroids);
#pragma unroll 4
            for (uint32_t j = 0; j < many; j++) {
                float acc[1];
                kvb_km_scores<W, 1>(tile, j, x, acc);
                if (acc[0] < best) {
                    best = acc[0];
                    code = base + j;
                }
            }
        }
        if (here)
            sum += b.w[i] * kvb_km_square<W>(b.y + i * W, table + (size_t)code * W);
    }
    part[threadIdx.x] = sum;
    for (int step = KVB_KM_THREADS / 2; step > 0; step /= 2) {
        __syncthreads();
        if (threadIdx.x < step)
            part[threadIdx.x] += part[threadIdx.x + step];
    }
    if (threadIdx.x == 0)
        cost[at] = part[0];
}

typedef struct kvb_dev_draw {
    uint32_t cluster;
    double unit;
} kvb_dev_draw;

/* A warp a problem: its draws one after the other. */
template <int W>
__global__ void kvb_km_draw(kvb_dev_points b, const kvb_dev_draw *draw, const size_t *first, float *y, uint32_t *found)
{
    const kvb_dev_problem &p = b.problem[blockIdx.x];
    const uint32_t lane = threadIdx.x, *start = b.start + p.start_at;
    for (size_t at = first[blockIdx.x]; at < first[blockIdx.x + 1]; at++) {
        const uint32_t cluster = draw[at].cluster;
        double target = draw[at].unit * b.error[p.table_at + cluster];
        uint32_t place = 0xffffffffu;
        for (uint32_t m = start[cluster]; m < start[cluster + 1]; m += 32) {
            const float loss = m + lane < start[cluster + 1] ? b.loss[p.point_at + m + lane] : 0.0f;
            double sum = loss;
            for (int step = 1; step < 32; step *= 2) {
                const double below = __shfl_up_sync(0xffffffffu, sum, step);
                if (lane >= step)
                    sum += below;
            }
            const uint32_t some = __ballot_sync(0xffffffffu, loss > 0.0f);
            const uint32_t past = __ballot_sync(0xffffffffu, loss > 0.0f && target - sum < 0.0);
            if (past != 0) {
                place = m + __ffs(past) - 1;
                break;
            }
            if (some != 0)
                place = m + 31 - __clz(some);
            target -= __shfl_sync(0xffffffffu, sum, 31);
        }
        if (place != 0xffffffffu)
            for (uint32_t c = lane; c < W; c += 32)
                y[at * W + c] = b.y[(p.point_at + b.order[p.point_at + place]) * W + c];
        if (lane == 0) {
            found[at] = place != 0xffffffffu;
            if (place != 0xffffffffu) {
                b.error[p.table_at + cluster] -= b.loss[p.point_at + place];
                b.loss[p.point_at + place] = 0.0f;
            }
        }
        __syncwarp();
    }
}

#endif
