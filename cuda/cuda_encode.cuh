/* From a token's key or value to what a cache holds: its exact row and its codes. A block makes a tile of tokens of one head and one
 * kind: 64 of a prompt, up to 8 of a step. Both find the same centroid, operation by operation, so that what a token becomes does not
 * depend on how a text was cut into calls. */
#ifndef KVB_CUDA_ENCODE_CUH
#define KVB_CUDA_ENCODE_CUH

#include "cuda/cuda_device.cuh"

enum {
    ENCODE_THREADS = 256, ENCODE_WARPS = ENCODE_THREADS / 32, ENCODE_STEP = 8, ENCODE_PROMPT = 64,
    ENCODE_STAGE = 640, /* floats of centroids that a warp of a prompt's block lays out at a time */
    ENCODE_KEYS = ENCODE_PROMPT * (ENCODE_WARPS - 1)
};

/* A tile in shared memory. Numbers lie channel by channel, so that the lanes of a warp are tokens. */
template <int TOKENS> struct encode_tile {
    enum { PITCH = TOKENS + 4 };
    uint32_t dim;
    float *y;              /* [D][PITCH] */
    uint16_t *unit;        /* [units][TOKENS] */
    float *stage;          /* [ENCODE_WARPS][ENCODE_STAGE], of a prompt */
    unsigned long long *key; /* [ENCODE_KEYS] */
    uint8_t **page;        /* [TOKENS] where the token's page begins, or NULL */
    uint32_t *position;    /* [TOKENS], UINT32_MAX: nothing here */
    uint32_t live;         /* tokens from here on are not there */
};

template <int TOKENS> static __host__ __device__ size_t encode_bytes(uint32_t dim, uint32_t units)
{
    return ENCODE_KEYS * sizeof(unsigned long long) + TOKENS * sizeof(uint8_t *) +
           (size_t)dim * encode_tile<TOKENS>::PITCH * sizeof(float) +
           (TOKENS == ENCODE_PROMPT ? ENCODE_WARPS * ENCODE_STAGE * sizeof(float) : 0) + TOKENS * sizeof(uint32_t) +
           (size_t)units * TOKENS * sizeof(uint16_t);
}

template <int TOKENS> static __device__ encode_tile<TOKENS> encode_place(unsigned char *shared, uint32_t dim)
{
    encode_tile<TOKENS> e;
    e.dim = dim;
    e.live = 0;
    e.y = (float *)shared;
    e.stage = e.y + dim * encode_tile<TOKENS>::PITCH;
    e.key = (unsigned long long *)(e.stage + (TOKENS == ENCODE_PROMPT ? ENCODE_WARPS * ENCODE_STAGE : 0));
    e.page = (uint8_t **)(e.key + ENCODE_KEYS);
    e.position = (uint32_t *)(e.page + TOKENS);
    e.unit = (uint16_t *)(e.position + TOKENS);
    return e;
}

/* Numbers at .. at+3 of x, which lie at a multiple of their size. */
template <int TYPE> static __device__ __forceinline__ float4 encode_four(const void *x, size_t at)
{
    if (TYPE == KVB_CUDA_FLOAT)
        return __ldg((const float4 *)((const float *)x + at));
    const uint2 w = __ldg((const uint2 *)((const uint16_t *)x + at));
    if (TYPE == KVB_CUDA_HALF) {
        const float2 a = __half22float2(*(const __half2 *)&w.x), b = __half22float2(*(const __half2 *)&w.y);
        return make_float4(a.x, a.y, b.x, b.y);
    }
    return make_float4(__uint_as_float(w.x << 16), __uint_as_float(w.x & 0xffff0000u), __uint_as_float(w.y << 16),
                       __uint_as_float(w.y & 0xffff0000u));
}

template <int TYPE, int TOKENS, class Source>
static __device__ uint32_t encode_load_fours(const encode_tile<TOKENS> &e, const void *x, Source source)
{
    enum { AT_ONCE = 4 }; /* loads under way */
    const uint32_t quads = e.dim / 4, all = e.live * quads;
    uint32_t bad = 0;
    for (uint32_t first = threadIdx.x; first < all; first += AT_ONCE * ENCODE_THREADS) {
        float4 v[AT_ONCE];
#pragma unroll
        for (uint32_t k = 0; k < AT_ONCE; k++) {
            const uint32_t i = first + k * ENCODE_THREADS, t = i / quads;
            v[k] = i < all && e.position[t] != UINT32_MAX ? encode_four<TYPE>(x, source(t) + i % quads * 4)
                                                          : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
#pragma unroll
        for (uint32_t k = 0; k < AT_ONCE; k++) {
            const uint32_t i = first + k * ENCODE_THREADS;
            float *to = e.y + i % quads * 4 * e.PITCH + i / quads;
            if (i >= all)
                break;
            to[0] = kvb_hold(v[k].x, &bad);
            to[e.PITCH] = kvb_hold(v[k].y, &bad);
            to[2 * e.PITCH] = kvb_hold(v[k].z, &bad);
            to[3 * e.PITCH] = kvb_hold(v[k].w, &bad);
        }
    }
    return bad;
}

/* y = x as a cache holds it; source(t): where the row of token t begins. */
template <int TOKENS, class Source>
static __device__ void encode_load(const encode_tile<TOKENS> &e, const kvb_dev_cache &cache, const void *x, uint32_t type,
                                   Source source)
{
    uint32_t bad = 0;
    if ((uintptr_t)x % (type == KVB_CUDA_FLOAT ? 16 : 8) != 0)
        for (uint32_t i = threadIdx.x; i < e.live * e.dim; i += ENCODE_THREADS) {
            const uint32_t t = i / e.dim, d = i % e.dim;
            e.y[d * e.PITCH + t] = e.position[t] != UINT32_MAX ? kvb_hold(kvb_load(x, source(t) + d, type), &bad) : 0.0f;
        }
    else if (type == KVB_CUDA_HALF)
        bad = encode_load_fours<KVB_CUDA_HALF>(e, x, source);
    else if (type == KVB_CUDA_BFLOAT)
        bad = encode_load_fours<KVB_CUDA_BFLOAT>(e, x, source);
    else
        bad = encode_load_fours<KVB_CUDA_FLOAT>(e, x, source);
    if (bad)
        atomicOr(cache.flags, KVB_FLAG_FINITE);
    __syncthreads();
}

/* Turns y of token t by by(t) positions. */
template <int TOKENS, class By>
static __device__ void encode_turn(const encode_tile<TOKENS> &e, const kvb_dev_layer &l, By by)
{
    if (l.rope_style == KVB_ROPE_NONE)
        return;
    for (uint32_t i = threadIdx.x; i < l.rope_dims / 2 * TOKENS; i += ENCODE_THREADS) {
        const uint32_t t = i % TOKENS, pair = i / TOKENS;
        const int64_t position = t < e.live && e.position[t] != UINT32_MAX ? by(t) : 0;
        if (position == 0)
            continue;
        uint32_t a, b;
        kvb_pair(l, pair, &a, &b);
        float sine, cosine;
        sincospif(kvb_phase(l.turn[pair], position), &sine, &cosine);
        const float u = e.y[a * e.PITCH + t], v = e.y[b * e.PITCH + t];
        e.y[a * e.PITCH + t] = u * cosine - v * sine;
        e.y[b * e.PITCH + t] = u * sine + v * cosine;
    }
    __syncthreads();
}

template <int TOKENS> static __device__ void encode_add(const encode_tile<TOKENS> &e, const float *mean, float sign)
{
    if (mean == NULL)
        return;
    for (uint32_t i = threadIdx.x; i < e.dim * TOKENS; i += ENCODE_THREADS)
        e.y[i / TOKENS * e.PITCH + i % TOKENS] += sign * mean[i / TOKENS];
    __syncthreads();
}

/* y = matrix * y, token by token. */
template <int TOKENS> static __device__ void encode_matrix(const encode_tile<TOKENS> &e, const float *transposed)
{
    if (transposed == NULL)
        return;
    enum { PART = TOKENS < 16 ? TOKENS : 16, PARTS = TOKENS / PART };
    float sum[PARTS][PART];
#pragma unroll
    for (uint32_t i = 0; i < PARTS; i++) {
        const uint32_t job = threadIdx.x + i * ENCODE_THREADS, row = job % e.dim, first = job / e.dim * PART;
#pragma unroll
        for (uint32_t t = 0; t < PART; t++)
            sum[i][t] = 0.0f;
        if (job >= e.dim * PARTS)
            continue;
        for (uint32_t j = 0; j < e.dim; j++) {
            const float weight = __ldg(transposed + (size_t)j * e.dim + row);
#pragma unroll
            for (uint32_t t = 0; t < PART; t += 4) {
                const float4 y = *(const float4 *)(e.y + j * e.PITCH + first + t);
                sum[i][t] = fmaf(weight, y.x, sum[i][t]);
                sum[i][t + 1] = fmaf(weight, y.y, sum[i][t + 1]);
                sum[i][t + 2] = fmaf(weight, y.z, sum[i][t + 2]);
                sum[i][t + 3] = fmaf(weight, y.w, sum[i][t + 3]);
            }
        }
    }
    __syncthreads();
#pragma unroll
    for (uint32_t i = 0; i < PARTS; i++) {
        const uint32_t job = threadIdx.x + i * ENCODE_THREADS;
        if (job < e.dim * PARTS)
            for (uint32_t t = 0; t < PART; t++)
                e.y[job % e.dim * e.PITCH + job / e.dim * PART + t] = sum[i][t];
    }
    __syncthreads();
}

/* x (+)= N half floats, aligned to themselves or to 16 bytes. */
template <int N> static __device__ __forceinline__ void encode_halves(const __half *from, bool add, float *x)
{
    enum { WORDS = N < 2 ? 1 : N < 8 ? N / 2 : 4 };
#pragma unroll
    for (int at = 0; at < N; at += 2 * WORDS) {
        uint32_t word[4];
        if (N == 1)
            word[0] = __half_as_ushort(__ldg(from));
        else if (N == 2)
            word[0] = __ldg((const uint32_t *)from);
        else if (N == 4) {
            const uint2 w = __ldg((const uint2 *)from);
            word[0] = w.x;
            word[1] = w.y;
        } else {
            const uint4 w = __ldg((const uint4 *)(from + at));
            word[0] = w.x;
            word[1] = w.y;
            word[2] = w.z;
            word[3] = w.w;
        }
#pragma unroll
        for (int i = 0; i < WORDS; i++) {
            const float2 v = __half22float2(*(const __half2 *)&word[i]);
            x[at + 2 * i] = add ? x[at + 2 * i] + v.x : v.x;
            if (N > 1)
                x[at + 2 * i + (N > 1)] = add ? x[at + 2 * i + (N > 1)] + v.y : v.y;
        }
    }
}

/* Where row k of stage m of a group lies. */
static __device__ __forceinline__ const __half *encode_stage_row(const kvb_dev_codebook &c, uint32_t group, uint32_t m, uint32_t k)
{
    const kvb_shape &s = c.shape;
    return c.table + ((size_t)(group * s.stages + m) * s.rows + (k >> (m * s.bits) & (s.rows - 1))) * s.channels;
}

/* Sum k of a group's stages: x [CH]; returns half of its squared length. */
template <int CH> static __device__ __forceinline__ float encode_centroid(const kvb_dev_codebook &c, uint32_t group, uint32_t k, float *x)
{
    for (uint32_t m = 0; m < c.shape.stages; m++)
        encode_halves<CH>(encode_stage_row(c, group, m, k), m > 0, x);
    float norm = 0.0f;
#pragma unroll
    for (int i = 0; i < CH; i++)
        norm = fmaf(x[i], x[i], norm);
    return 0.5f * norm;
}

/* A key whose order is that of (distance, index). */
static __device__ __forceinline__ unsigned long long encode_key(float distance, uint32_t index)
{
    const uint32_t bits = __float_as_uint(distance);
    return (unsigned long long)(bits & 0x80000000u ? ~bits : bits | 0x80000000u) << 32 | index;
}

template <int TOKENS>
static __device__ __forceinline__ void encode_found(const encode_tile<TOKENS> &e, const kvb_shape &s, uint32_t group, uint32_t token,
                                                    uint32_t code)
{
    for (uint32_t m = 0; m < s.stages; m++)
        e.unit[(group * s.stages + m) * TOKENS + token] = (uint16_t)(code >> (m * s.bits) & (s.rows - 1));
}

/* Lanes are tokens; a warp takes a group (or a slice of its K sums) and lays some centroids out at a time. CH: channels. */
template <int CH> static __device__ void encode_scan(const kvb_dev_codebook &c, const encode_tile<ENCODE_PROMPT> &e, uint32_t slices)
{
    enum {
        P = ENCODE_PROMPT / 32, ROW = CH < 4 ? 4 : CH + 4, FIT = ENCODE_STAGE / ROW, CHUNK = FIT >= 32 ? 32 : FIT >= 16 ? 16 : 8
    };
    const kvb_shape &s = c.shape;
    const uint32_t groups = s.units / s.stages, lane = threadIdx.x % 32, all = 1u << (s.bits * s.stages);
    float *stage = e.stage + threadIdx.x / 32 * ENCODE_STAGE;
    for (uint32_t job = threadIdx.x / 32; job < groups * slices; job += ENCODE_WARPS) {
        const uint32_t group = job % groups, from = kvb_part(all, job / groups, slices), to = kvb_part(all, job / groups + 1, slices);
        float y[P][CH], best[P];
        uint32_t code[P];
#pragma unroll
        for (int p = 0; p < P; p++) {
            best[p] = INFINITY;
            code[p] = from;
#pragma unroll
            for (int i = 0; i < CH; i++)
                y[p][i] = e.y[(group * CH + i) * e.PITCH + P * lane + p];
        }
        for (uint32_t first = from; first < to; first += CHUNK) {
            const uint32_t count = min((uint32_t)CHUNK, to - first);
            __syncwarp();
            if (lane < count) {
                float x[CH];
                const float half = encode_centroid<CH>(c, group, first + lane, x);
#pragma unroll
                for (int i = 0; i < CH; i++)
                    stage[lane * ROW + i] = x[i];
                stage[lane * ROW + (CH < 4 ? 3 : CH)] = half;
            }
            __syncwarp();
#pragma unroll(CH <= 8 ? 4 : 1)
            for (uint32_t j = 0; j < count; j++) {
                const float *row = stage + j * ROW;
                float x[ROW];
#pragma unroll
                for (int i = 0; i < (CH < 4 ? 4 : CH); i += 4) {
                    const float4 v = *(const float4 *)(row + i);
                    x[i] = v.x;
                    x[i + 1] = v.y;
                    x[i + 2] = v.z;
                    x[i + 3] = v.w;
                }
                const float half = CH < 4 ? x[3] : row[CH];
#pragma unroll
                for (int p = 0; p < P; p++) {
                    float distance = half;
#pragma unroll
                    for (int i = 0; i < CH; i++)
                        distance = fmaf(-y[p][i], x[i], distance);
                    if (distance < best[p]) {
                        best[p] = distance;
                        code[p] = first + j;
                    }
                }
            }
        }
#pragma unroll
        for (int p = 0; p < P; p++) {
            if (slices == 1)
                encode_found(e, s, group, P * lane + p, code[p]);
            else
                atomicMin(e.key + group * ENCODE_PROMPT + P * lane + p, encode_key(best[p], code[p]));
        }
    }
}

/* Lanes are sums; a warp takes a group of a token, or a slice of its K sums. CH: channels, 0 for any number. */
template <int CH, int TOKENS>
static __device__ void encode_search(const kvb_dev_codebook &c, const encode_tile<TOKENS> &e, uint32_t slices)
{
    const kvb_shape &s = c.shape;
    const uint32_t groups = s.units / s.stages, lane = threadIdx.x % 32, all = 1u << (s.bits * s.stages), jobs = e.live * groups;
    for (uint32_t job = threadIdx.x / 32; job < jobs * slices; job += ENCODE_WARPS) {
        const uint32_t token = job % jobs / groups, group = job % groups, slice = job / jobs;
        const uint32_t from = kvb_part(all, slice, slices), to = kvb_part(all, slice + 1, slices);
        const float *from_y = e.y + group * s.channels * e.PITCH + token;
        unsigned long long best = ~0ull;
        float y[CH != 0 ? CH : 1];
#pragma unroll
        for (int i = 0; i < CH; i++)
            y[i] = from_y[i * e.PITCH];
#pragma unroll(CH != 0 && CH <= 8 ? 4 : 1)
        for (uint32_t k = from + lane; k < to; k += 32) {
            float distance;
            if (CH != 0) {
                float x[CH != 0 ? CH : 1];
                distance = encode_centroid<CH != 0 ? CH : 1>(c, group, k, x);
#pragma unroll
                for (int i = 0; i < CH; i++)
                    distance = fmaf(-y[i], x[i], distance);
            } else {
                float norm = 0.0f, x;
                for (int pass = 0; pass < 2; pass++) {
                    if (pass == 1)
                        distance = 0.5f * norm;
                    for (uint32_t i = 0; i < s.channels; i++) {
                        for (uint32_t m = 0; m < s.stages; m++) {
                            const float v = __half2float(encode_stage_row(c, group, m, k)[i]);
                            x = m == 0 ? v : x + v;
                        }
                        if (pass == 0)
                            norm = fmaf(x, x, norm);
                        else
                            distance = fmaf(-from_y[i * e.PITCH], x, distance);
                    }
                }
            }
            const unsigned long long key = encode_key(distance, k);
            best = key < best ? key : best;
        }
        for (int k = 16; k; k >>= 1) {
            const unsigned long long other = __shfl_xor_sync(~0u, best, k);
            best = other < best ? other : best;
        }
        if (lane == 0 && slices == 1)
            encode_found(e, s, group, token, (uint32_t)best);
        else if (lane == 0)
            atomicMin(e.key + group * TOKENS + token, best);
    }
}

template <int CH, int TOKENS> static __device__ void encode_nearest_of(const kvb_dev_codebook &c, const encode_tile<TOKENS> &e)
{
    const uint32_t groups = c.shape.units / c.shape.stages, jobs = TOKENS == ENCODE_PROMPT && CH != 0 ? groups : e.live * groups;
    const uint32_t slices = jobs >= ENCODE_WARPS ? 1 : ENCODE_WARPS / jobs;
    if (slices > 1) {
        for (uint32_t i = threadIdx.x; i < groups * TOKENS; i += ENCODE_THREADS)
            e.key[i] = ~0ull;
        __syncthreads();
    }
    if constexpr (TOKENS == ENCODE_PROMPT && CH != 0)
        encode_scan<CH>(c, e, slices);
    else
        encode_search<CH>(c, e, slices);
    __syncthreads();
    if (slices > 1) {
        for (uint32_t i = threadIdx.x; i < groups * TOKENS; i += ENCODE_THREADS)
            if (i % TOKENS < e.live)
                encode_found(e, c.shape, i / TOKENS, i % TOKENS, (uint32_t)e.key[i]);
        __syncthreads();
    }
}

/* The nearest of the K sums to each group of y: of |c|^2/2 - y.c, and the lowest index of equal ones. */
template <int TOKENS> static __device__ void encode_nearest(const kvb_dev_codebook &c, const encode_tile<TOKENS> &e)
{
    switch (c.shape.channels) {
    case 1: return encode_nearest_of<1>(c, e);
    case 2: return encode_nearest_of<2>(c, e);
    case 4: return encode_nearest_of<4>(c, e);
    case 8: return encode_nearest_of<8>(c, e);
    case 16: return encode_nearest_of<16>(c, e);
    case 32: return encode_nearest_of<32>(c, e);
    default: return encode_nearest_of<0>(c, e);
    }
}

/* y replaced by what its codes decode to. */
template <int TOKENS> static __device__ void encode_decode(const kvb_dev_codebook &c, const encode_tile<TOKENS> &e)
{
    const kvb_shape &s = c.shape;
    for (uint32_t i = threadIdx.x; i < e.dim * TOKENS; i += ENCODE_THREADS) {
        const uint32_t token = i % TOKENS, d = i / TOKENS, group = d / s.channels;
        if (token >= e.live)
            continue;
        uint32_t code[8];
        for (uint32_t m = 0; m < s.stages; m++)
            code[m] = e.unit[(group * s.stages + m) * TOKENS + token];
        e.y[d * e.PITCH + token] = kvb_decode_channel(c, group, d % s.channels, code);
    }
    __syncthreads();
}

/* y in the coordinates of the codebooks; where what is exact passes through fine codes, what those decode to. */
template <int TOKENS, class Source>
static __device__ void encode_coordinates(const encode_tile<TOKENS> &e, const kvb_dev_layer &l, const kvb_dev_cache &cache,
                                          const kvb_dev_head &h, uint32_t kind, const void *x, uint32_t type, Source source)
{
    const kvb_dev_codebook &c = h.code[kind];
    encode_load(e, cache, x, type, source);
    if (kind == KVB_KEY)
        encode_turn(e, l, [&](uint32_t t) { return (int64_t)e.position[t] - kvb_frame_rest(l.frame_block, e.position[t]); });
    encode_add(e, c.mean, -1.0f);
    encode_matrix(e, c.forward);
    if (cache.fine) {
        encode_nearest(h.fine[kind], e);
        encode_decode(h.fine[kind], e);
    }
}

/* y, as encode_coordinates() left it where there are fine codes, becomes the exact rows: keys after RoPE, and values. Sinks pass
 * through no codes. */
template <int TOKENS, class Source>
static __device__ void encode_exact(const encode_tile<TOKENS> &e, const kvb_dev_layer &l, const kvb_dev_cache &cache,
                                    const kvb_dev_head &h, uint32_t kind, const void *x, uint32_t type, Source source)
{
    const kvb_dev_codebook &c = h.code[kind];
    if (!cache.fine)
        encode_load(e, cache, x, type, source);
    else {
        encode_matrix(e, c.inverse);
        encode_add(e, c.mean, 1.0f);
        uint32_t bad = 0;
        for (uint32_t i = threadIdx.x; i < e.dim * TOKENS; i += ENCODE_THREADS)
            if (i % TOKENS < e.live && e.position[i % TOKENS] < cache.sink_count)
                e.y[i / TOKENS * e.PITCH + i % TOKENS] = kvb_hold(kvb_load(x, source(i % TOKENS) + i / TOKENS, type), &bad);
        __syncthreads();
    }
    if (kind == KVB_KEY)
        encode_turn(e, l, [&](uint32_t t) {
            return (int64_t)(cache.fine && e.position[t] >= cache.sink_count ? kvb_frame_rest(l.frame_block, e.position[t]) : e.position[t]);
        });
}

/* Row of token t, as half floats, by all threads of the block. */
template <int TOKENS> static __device__ void encode_store(const encode_tile<TOKENS> &e, uint32_t t, __half *row)
{
    for (uint32_t d = threadIdx.x; d < e.dim; d += ENCODE_THREADS)
        row[d] = __float2half_rn(e.y[d * e.PITCH + t]);
}

#endif
