/* How much attention gives to each token of the window (AnTKV, arXiv 2506.19505): the scores that choose the anchors. Nothing of
 * size T x T is held: a token is scored by the queries that see it in the window, from their saved log-sum-exps. */
#include "cuda/cuda_encode.cuh"

enum { SCORE_THREADS = 256 };

static __device__ __forceinline__ float warp_sum(float x)
{
    for (int k = 16; k; k >>= 1)
        x += __shfl_xor_sync(~0u, x, k);
    return x;
}

/* After attention of a step: every token of the window gains scale * sum A_ij ||V_j - O_i||_1 ||Q_i||_2, or sum A_ij. A warp
 * a token, queries in order. */
__global__ void __launch_bounds__(SCORE_THREADS) score_window(const kvb_dev_layer l, const kvb_dev_cache c,
                                                              const kvb_dev_batch b, const void *q, const float *out,
                                                              const float *lse)
{
    const uint32_t head = blockIdx.y, sequence = blockIdx.z, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    kvb_dev_sequence s;
    if (!kvb_sequence(c, b, sequence, &s))
        return;
    const uint32_t first = kvb_window_first(s.tokens, c.window, c.sink_count);
    const uint32_t position = first + blockIdx.x * (SCORE_THREADS / 32) + warp;
    if (position >= s.tokens)
        return;
    const size_t row = kvb_slot_row(c, l.kv_heads, s.slot, head, position % c.ring_rows, c.ring_rows);
    const __half *key = c.ring[KVB_KEY] + row * l.dim, *value = c.ring[KVB_VALUE] + row * l.dim;
    double total = 0.0;
    for (uint32_t column = 0; column < l.rows * b.tokens; column++) {
        const uint32_t query = column / l.rows, mine = s.before + query;
        if (position > mine || (l.sliding != 0 && position + l.sliding <= mine))
            continue;
        const uint32_t at = (sequence * b.tokens + query) * l.heads + head * l.rows + column % l.rows;
        float product = 0.0f, square = 0.0f, distance = 0.0f;
        for (uint32_t d = lane; d < l.dim; d += 32) {
            const float x = kvb_load(q, (size_t)at * l.dim + d, b.type);
            product += x * __half2float(key[d]);
            square += x * x;
            distance += fabsf(__half2float(value[d]) - out[(size_t)at * l.dim + d]);
        }
        const float a = exp2f(warp_sum(product) * l.scale * 1.4426950408889634f - lse[at]);
        const float length = sqrtf(warp_sum(square)), far = warp_sum(distance);
        total += c.score_kind == KVB_SCORE_EXACT_K ? (double)l.scale * length * a * far : (double)a;
    }
    if (lane == 0)
        c.score[row] += total;
}

cudaError_t kvb_score_launch(const kvb_dev_layer *l, const kvb_dev_cache *c, const kvb_dev_batch *b, const void *q,
                             const float *out, const float *lse, cudaStream_t stream)
{
    /* The window is never longer than this; blocks behind its end return at once. */
    const uint32_t most = c->window;
    score_window<<<dim3((most + SCORE_THREADS / 32 - 1) / (SCORE_THREADS / 32), l->kv_heads, b->sequences), SCORE_THREADS, 0,
                   stream>>>(*l, *c, *b, q, out, lse);
    return cudaGetLastError();
}

/* A prompt: 32 tokens a block, a lane a token, a warp every eighth query row. The running sums of tokens that are still in the
 * window at the end are left in the slot. */
__global__ void __launch_bounds__(SCORE_THREADS) score_prompt(const kvb_dev_layer l, const kvb_dev_cache c,
                                                              const kvb_dev_batch b, const void *keys, const void *values,
                                                              const void *q, const void *out, const float *lse, float *scores,
                                                              uint32_t first_sequence)
{
    extern __shared__ float memory[];
    __shared__ double part[SCORE_THREADS / 32][32];
    const uint32_t head = blockIdx.y, sequence = first_sequence + blockIdx.z, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t pitch = l.dim + 1, from = blockIdx.x * 32, mine = from + lane;
    float *key = memory, *value = key + 32 * pitch, *rows = value + 32 * pitch + warp * 2 * l.dim;
    kvb_dev_sequence s;
    if (!kvb_sequence(c, b, sequence, &s) || s.before != 0)
        return;
    uint32_t bad = 0;
    for (uint32_t t = warp; t < 32; t += SCORE_THREADS / 32) {
        const size_t at = (((size_t)sequence * b.tokens + min(from + t, b.tokens - 1)) * l.kv_heads + head) * l.dim;
        for (uint32_t d = lane; d < l.dim; d += 32) {
            key[t * pitch + d] = kvb_hold(kvb_load(keys, at + d, b.type), &bad);
            value[t * pitch + d] = kvb_hold(kvb_load(values, at + d, b.type), &bad);
        }
        __syncwarp();
        kvb_turn_row(l, from + t, key + t * pitch, lane, 32);
    }
    __syncthreads();
    double total = 0.0;
    if (!c.scores_attention) {
        /* What the token itself decides: all of them at once. */
        double norm = 0.0;
        for (uint32_t d = 0; d < l.dim && c.score_kind == KVB_SCORE_KEY_NORM; d++)
            norm += (double)key[lane * pitch + d] * (double)key[lane * pitch + d];
        total = c.score_kind == KVB_SCORE_KEY_NORM ? -sqrt(norm) : c.score_kind == KVB_SCORE_FIRST_N ? -(double)mine : 0.0;
        if (warp == 0 && mine < b.tokens)
            scores[((size_t)blockIdx.z * l.kv_heads + head) * b.tokens + mine] =
                c.score_kind == KVB_SCORE_RANDOM ? kvb_random_score(c, l.index, head, mine) : (float)total;
        return;
    }
    const uint32_t end = min(from + 31 + c.window, b.tokens), queries = (end - from) * l.rows;
    for (uint32_t i = warp; i < queries; i += SCORE_THREADS / 32) {
        const uint32_t query = from + i / l.rows, h = head * l.rows + i % l.rows;
        const size_t at = (((size_t)sequence * b.tokens + query) * l.heads + h) * l.dim;
        float square = 0.0f;
        for (uint32_t d = lane; d < l.dim; d += 32) {
            const float x = kvb_load(q, at + d, b.type);
            square += x * x;
            rows[d] = x;
            rows[l.dim + d] = kvb_load(out, at + d, b.type);
        }
        const float length = sqrtf(warp_sum(square));
        __syncwarp();
        float product = 0.0f, distance = 0.0f;
        for (uint32_t d = 0; d < l.dim; d++) {
            product += rows[d] * key[lane * pitch + d];
            distance += fabsf(value[lane * pitch + d] - rows[l.dim + d]);
        }
        const float sum = lse[((size_t)sequence * l.heads + h) * b.tokens + query];
        const float a = exp2f((product * l.scale - sum) * 1.4426950408889634f);
        const bool sees = mine <= query && query < mine + c.window && (l.sliding == 0 || mine + l.sliding > query);
        if (sees)
            total += c.score_kind == KVB_SCORE_EXACT_K ? (double)l.scale * length * a * distance : (double)a;
        __syncwarp();
    }
    part[warp][lane] = total;
    __syncthreads();
    if (warp != 0 || mine >= b.tokens)
        return;
    total = 0.0;
    for (uint32_t i = 0; i < SCORE_THREADS / 32; i++)
        total += part[i][lane];
    scores[((size_t)blockIdx.z * l.kv_heads + head) * b.tokens + mine] = (float)total;
    if (mine >= kvb_window_first(s.tokens, c.window, c.sink_count))
        c.score[kvb_slot_row(c, l.kv_heads, s.slot, head, mine % c.ring_rows, c.ring_rows)] = total;
}

cudaError_t kvb_prompt_score_launch(const kvb_dev_layer *l, const kvb_dev_cache *c, const kvb_dev_batch *b, const void *keys,
                                    const void *values, const void *q, const void *out, const float *lse, float *scores,
                                    uint32_t first_sequence, uint32_t sequences, cudaStream_t stream)
{
    const size_t bytes = (64 * (size_t)(l->dim + 1) + SCORE_THREADS / 32 * 2 * (size_t)l->dim) * sizeof(float);
    const cudaError_t code =
        cudaFuncSetAttribute(score_prompt, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (code != cudaSuccess)
        return code;
    score_prompt<<<dim3((b->tokens + 31) / 32, l->kv_heads, sequences), SCORE_THREADS, bytes, stream>>>(
        *l, *c, *b, keys, values, q, out, lse, scores, first_sequence);
    return cudaGetLastError();
}
