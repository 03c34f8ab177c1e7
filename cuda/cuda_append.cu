/* Appending: tokens are encoded into their pages and kept exactly in the window; those that leave it are offered to the anchors. */
#include "cuda/cuda_encode.cuh"

enum { AGE_THREADS = 256 };

/* Values of KVB_LAYOUT_UNITS_*: bytes hold a unit of two tokens that follow each other. Whoever has both writes it; at the edges of
 * what a block appends the other half may be another block's. */
template <int TOKENS> static __device__ void put_units(const encode_tile<TOKENS> &e, const kvb_shape &s, uint32_t codes_at, uint32_t page_tokens)
{
    const uint32_t bytes = kvb_shape_row_bytes(&s);
    for (uint32_t at = threadIdx.x; at < s.units * TOKENS; at += ENCODE_THREADS) {
        const uint32_t t = at % TOKENS, u = at / TOKENS;
        if (t >= e.live || e.page[t] == NULL)
            continue;
        const uint32_t position = e.position[t], odd = position % 2, other = odd ? t - 1 : t + 1; /* of one page, as that holds whole tiles */
        const bool both = other < e.live;
        if (both && odd)
            continue;
        uint8_t *tile = e.page[t] + codes_at + (size_t)(position % page_tokens / KVB_TILE) * KVB_TILE * bytes;
        const uint32_t bit = kvb_lane_value_bit(&s, position % KVB_TILE, u), unit = e.unit[u * TOKENS + t];
        if (both) {
            tile[bit / 8] = (uint8_t)(unit | (uint32_t)e.unit[u * TOKENS + other] << 4);
        } else {
            uint32_t *word = (uint32_t *)tile + bit / 32;
            atomicAnd(word, ~(15u << bit % 32));
            atomicOr(word, unit << bit % 32);
        }
    }
}

/* Codes of a tile into the pages. Threads write whole bytes, so other lane layouts need what a token has in a lane to be whole bytes. */
template <int TOKENS>
static __device__ void put_codes(const encode_tile<TOKENS> &e, const kvb_shape &s, uint32_t kind, uint32_t codes_at, uint32_t page_tokens)
{
    if (kvb_layout_by_unit(s.layout, kind == KVB_VALUE)) {
        put_units(e, s, codes_at, page_tokens);
        return;
    }
    const uint32_t bytes = kvb_shape_row_bytes(&s);
    for (uint32_t at = threadIdx.x; at < bytes * TOKENS; at += ENCODE_THREADS) {
        const uint32_t t = at % TOKENS, i = at / TOKENS;
        if (t >= e.live || e.page[t] == NULL)
            continue;
        const uint32_t token = e.position[t] % KVB_TILE;
        uint8_t *tile = e.page[t] + codes_at + (size_t)(e.position[t] % page_tokens / KVB_TILE) * KVB_TILE * bytes;
        uint32_t value = 0;
        if (s.layout == KVB_LAYOUT_ROWS) {
            for (uint32_t bit = i * 8, u; bit < i * 8 + 8 && (u = bit / s.bits) < s.units; bit = (u + 1) * s.bits) {
                const uint32_t unit = e.unit[u * TOKENS + t];
                value |= bit == u * s.bits ? unit << (bit - i * 8) : unit >> (bit - u * s.bits);
            }
            tile[token * bytes + i] = (uint8_t)value;
            continue;
        }
        /* Byte i of the token: the units whose bits it holds follow each other, whatever the lane. */
        const uint32_t per_byte = 8 / s.bits, per_lane = s.units / (kind == KVB_KEY ? 4 : 8);
        uint32_t first = i * per_byte;
        if (kind == KVB_KEY && kvb_layout_halves(s.layout)) {
            /* Lane by lane: the first half of a lane's units is of the lower channels. */
            const uint32_t t_of = first / per_lane, j = first % per_lane, half = per_lane / 2;
            first = j < half ? t_of * half + j : s.units / 2 + t_of * half + (j - half);
        }
        for (uint32_t n = 0; n < per_byte; n++)
            value |= (uint32_t)e.unit[(first + n) * TOKENS + t] << (n * s.bits);
        const uint32_t bit = kind == KVB_KEY ? kvb_lane_key_bit(&s, token, first) : kvb_lane_value_bit(&s, token, first);
        tile[bit / 8] = (uint8_t)value;
    }
}

/* The exact row that a sequence of s.tokens tokens keeps of `position` outside its codes, or NULL. */
static __device__ __forceinline__ __half *exact_row(const kvb_dev_layer &l, const kvb_dev_cache &c, const kvb_dev_sequence &s, uint32_t head,
                                                    uint32_t kind, uint32_t position)
{
    if (position < c.sink_count)
        return c.sinks[kind] + kvb_slot_row(c, l.kv_heads, s.slot, head, position, c.sink_count) * l.dim;
    if (position + c.ring_rows < s.tokens)
        return NULL;
    return c.ring[kind] + kvb_slot_row(c, l.kv_heads, s.slot, head, position % c.ring_rows, c.ring_rows) * l.dim;
}

template <int TOKENS>
__global__ void __launch_bounds__(ENCODE_THREADS, 2) append_tokens(const kvb_dev_layer l, const kvb_dev_cache c, const kvb_dev_batch b,
                                                                   const void *keys, const void *values, bool fresh)
{
    extern __shared__ __align__(16) unsigned char memory[];
    const uint32_t head = blockIdx.y, kind = blockIdx.z % 2, sequence = blockIdx.z / 2, from = blockIdx.x * TOKENS;
    kvb_dev_sequence s;
    if (!kvb_sequence(c, b, sequence, &s))
        return;
    if (fresh && s.before != 0) {
        atomicOr(c.flags, KVB_FLAG_NOT_EMPTY);
        return;
    }
    encode_tile<TOKENS> e = encode_place<TOKENS>(memory, l.dim);
    e.live = min((uint32_t)TOKENS, b.tokens - from);
    const kvb_dev_place place = c.place[head];
    for (uint32_t t = threadIdx.x; t < e.live; t += ENCODE_THREADS) {
        const uint32_t position = s.before + from + t;
        e.position[t] = position;
        e.page[t] = kvb_page(c, s, position / c.page_tokens);
        if (kind != KVB_KEY || e.page[t] == NULL)
            continue;
        if (position % KVB_TILE == 0)
            ((uint32_t *)(e.page[t] + place.masks))[position % c.page_tokens / KVB_TILE] = 0;
        if (position >= c.sink_count && position + c.ring_rows >= s.tokens)
            c.score[kvb_slot_row(c, l.kv_heads, s.slot, head, position % c.ring_rows, c.ring_rows)] = 0.0;
    }
    __syncthreads();
    const kvb_dev_head &h = l.head[head];
    const void *x = kind == KVB_KEY ? keys : values;
    const auto source = [&](uint32_t t) { return (((size_t)sequence * b.tokens + from + t) * l.kv_heads + head) * l.dim; };
    encode_coordinates(e, l, c, h, kind, x, b.type, source);
    encode_nearest(h.code[kind], e);
    put_codes(e, h.code[kind].shape, kind, kind == KVB_KEY ? place.key_codes : place.value_codes, c.page_tokens);
    if (s.before + from >= c.sink_count && s.before + from + e.live + c.ring_rows <= s.tokens)
        return; /* nothing here stays exact */
    __syncthreads();
    encode_exact(e, l, c, h, kind, x, b.type, source);
    for (uint32_t t = 0; t < e.live; t++) {
        __half *row = e.page[t] != NULL ? exact_row(l, c, s, head, kind, e.position[t]) : NULL;
        if (row != NULL)
            encode_store(e, t, row);
    }
}

/* The anchors of one head of one sequence, as a pool that tokens are offered to. */
typedef struct dev_pool {
    const kvb_dev_cache *c;
    const kvb_dev_sequence *s;
    kvb_dev_place place;
} dev_pool;

static __device__ __forceinline__ uint32_t *pool_position(const dev_pool &p, uint32_t i)
{
    uint8_t *page = kvb_page(*p.c, *p.s, i / p.c->page_anchors);
    return page == NULL ? NULL : (uint32_t *)(page + p.place.anchor_position) + i % p.c->page_anchors;
}

static __device__ __forceinline__ float *pool_score(const dev_pool &p, uint32_t i)
{
    uint8_t *page = kvb_page(*p.c, *p.s, i / p.c->page_anchors);
    return page == NULL ? NULL : (float *)(page + p.place.anchor_score) + i % p.c->page_anchors;
}

static __device__ __forceinline__ void pool_mask(const dev_pool &p, uint32_t position, bool anchor)
{
    uint8_t *page = kvb_page(*p.c, *p.s, position / p.c->page_tokens);
    if (page == NULL)
        return;
    uint32_t *word = (uint32_t *)(page + p.place.masks) + position % p.c->page_tokens / KVB_TILE;
    const uint32_t bit = 1u << position % KVB_TILE;
    *word = anchor ? *word | bit : *word & ~bit;
}

typedef struct pool_weakest {
    float score;
    uint32_t position, at;
} pool_weakest;

static __device__ __forceinline__ bool pool_weaker(const pool_weakest &a, const pool_weakest &b)
{
    return a.score < b.score || (a.score == b.score && a.position > b.position && a.at != UINT32_MAX);
}

/* The weakest of what the threads of a block hold. */
static __device__ pool_weakest weakest_of_block(pool_weakest w, pool_weakest *best)
{
    for (int k = 16; k; k >>= 1) {
        const pool_weakest x = {__shfl_xor_sync(~0u, w.score, k), __shfl_xor_sync(~0u, w.position, k),
                                __shfl_xor_sync(~0u, w.at, k)};
        if (x.at != UINT32_MAX && (w.at == UINT32_MAX || pool_weaker(x, w)))
            w = x;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        best[threadIdx.x / 32] = w;
    __syncthreads();
    w = best[0];
    for (uint32_t i = 1; i < AGE_THREADS / 32; i++)
        if (best[i].at != UINT32_MAX && (w.at == UINT32_MAX || pool_weaker(best[i], w)))
            w = best[i];
    __syncthreads();
    return w;
}

/* The lowest score of `count` anchors, the latest of equal ones, found by all threads of the block. */
static __device__ pool_weakest find_weakest(const dev_pool &p, uint32_t count)
{
    __shared__ pool_weakest best[AGE_THREADS / 32];
    pool_weakest w = {INFINITY, 0, UINT32_MAX};
    for (uint32_t i = threadIdx.x; i < count; i += AGE_THREADS) {
        const float *score = pool_score(p, i);
        const uint32_t *position = pool_position(p, i);
        if (score == NULL || position == NULL)
            continue;
        const pool_weakest x = {*score, *position, i};
        if (w.at == UINT32_MAX || pool_weaker(x, w))
            w = x;
    }
    return weakest_of_block(w, best);
}

/* The score of a token that attention does not score, by all threads of the block; key: its exact row. */
static __device__ float static_score(const kvb_dev_layer &l, const kvb_dev_cache &c, uint32_t head, uint32_t position,
                                     const __half *key)
{
    __shared__ double norm;
    if (c.score_kind == KVB_SCORE_FIRST_N)
        return -(float)position;
    if (c.score_kind == KVB_SCORE_RANDOM)
        return kvb_random_score(c, l.index, head, position);
    if (c.score_kind != KVB_SCORE_KEY_NORM)
        return 0.0f;
    __syncthreads();
    if (threadIdx.x < 32) {
        double sum = 0.0;
        for (uint32_t d = threadIdx.x; d < l.dim; d += 32)
            sum += (double)__half2float(key[d]) * (double)__half2float(key[d]);
        for (int k = 16; k; k >>= 1)
            sum += __shfl_xor_sync(~0u, sum, k);
        norm = sqrt(sum);
    }
    __syncthreads();
    return -(float)norm;
}

/* Offers a token; returns the place it gets, or UINT32_MAX. `weakest` is known from the call before where its place is set. */
static __device__ uint32_t pool_offer(const dev_pool &p, uint32_t *count, pool_weakest *weakest, uint32_t position, float score)
{
    const uint32_t capacity = kvb_anchor_capacity(p.c->fraction, position - p.c->sink_count + 1);
    uint32_t at = *count;
    if (*count >= capacity) {
        if (*count == 0)
            return UINT32_MAX;
        if (weakest->at == UINT32_MAX)
            *weakest = find_weakest(p, *count);
        if (weakest->at == UINT32_MAX || score <= weakest->score)
            return UINT32_MAX;
        at = weakest->at;
        __syncthreads();
        if (threadIdx.x == 0)
            pool_mask(p, weakest->position, false);
    } else
        ++*count;
    weakest->at = UINT32_MAX;
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t *where = pool_position(p, at);
        float *mark = pool_score(p, at);
        if (where != NULL && mark != NULL) {
            *where = position;
            *mark = score;
            pool_mask(p, position, true);
        }
    }
    __syncthreads();
    return at;
}

__global__ void __launch_bounds__(AGE_THREADS) age_tokens(const kvb_dev_layer l, const kvb_dev_cache c, const kvb_dev_batch b)
{
    const uint32_t head = blockIdx.x, sequence = blockIdx.y;
    kvb_dev_sequence s;
    if (!kvb_sequence(c, b, sequence, &s))
        return;
    uint32_t *stored = c.anchors + kvb_slot_row(c, l.kv_heads, s.slot, head, 0, 1);
    uint32_t count = s.before == 0 ? 0 : *stored;
    const dev_pool pool = {&c, &s, c.place[head]};
    pool_weakest weakest = {0.0f, 0, UINT32_MAX};
    const uint32_t end = kvb_window_first(s.tokens, c.window, c.sink_count);
    uint32_t position = kvb_window_first(s.before, c.window, c.sink_count);
    /* While the sequence is shorter than its sinks the window begins behind them. */
    position = position < c.sink_count ? c.sink_count : position;
    for (; position < end; position++) {
        const size_t row = kvb_slot_row(c, l.kv_heads, s.slot, head, position % c.ring_rows, c.ring_rows);
        const float score = c.scores_attention ? (float)c.score[row]
                                               : static_score(l, c, head, position, c.ring[KVB_KEY] + row * l.dim);
        const uint32_t at = pool_offer(pool, &count, &weakest, position, score);
        uint8_t *page = at == UINT32_MAX ? NULL : kvb_page(c, s, at / c.page_anchors);
        if (page == NULL)
            continue;
        const size_t to = (size_t)(at % c.page_anchors) * l.dim;
        for (uint32_t d = threadIdx.x; d < l.dim; d += AGE_THREADS) {
            ((__half *)(page + pool.place.anchor_keys))[to + d] = c.ring[KVB_KEY][row * l.dim + d];
            ((__half *)(page + pool.place.anchor_values))[to + d] = c.ring[KVB_VALUE][row * l.dim + d];
        }
    }
    __syncthreads();
    if (threadIdx.x == 0)
        *stored = count;
}

/* The anchors of a prompt in shared memory, while they are chosen. */
typedef struct chosen {
    float *score;
    uint32_t *position, count;
    pool_weakest weakest; /* of count > 0 */
} chosen;

/* The weakest of all, by all threads of the block. */
static __device__ void chosen_weakest(chosen *c)
{
    __shared__ pool_weakest best[AGE_THREADS / 32];
    pool_weakest w = {INFINITY, 0, UINT32_MAX};
    for (uint32_t i = threadIdx.x; i < c->count; i += AGE_THREADS) {
        const pool_weakest x = {c->score[i], c->position[i], i};
        if (w.at == UINT32_MAX || pool_weaker(x, w))
            w = x;
    }
    c->weakest = weakest_of_block(w, best);
}

/* The first of the tokens from `position` on, one a thread, that would get a place; AGE_THREADS: none. */
static __device__ uint32_t chosen_next(const chosen &c, const kvb_dev_cache &cache, uint32_t position, uint32_t end, const float *score)
{
    __shared__ uint32_t first[AGE_THREADS / 32];
    const uint32_t p = position + threadIdx.x;
    const bool taken = p < end && (c.count < kvb_anchor_capacity(cache.fraction, p - cache.sink_count + 1) ||
                                   (c.count > 0 && score[p] > c.weakest.score));
    const uint32_t ballot = __ballot_sync(~0u, taken);
    if (threadIdx.x % 32 == 0)
        first[threadIdx.x / 32] = ballot != 0 ? threadIdx.x + (uint32_t)__ffs((int)ballot) - 1 : AGE_THREADS;
    __syncthreads();
    uint32_t least = AGE_THREADS;
    for (uint32_t i = 0; i < AGE_THREADS / 32; i++)
        least = min(least, first[i]);
    __syncthreads();
    return least;
}

/* Which tokens of a prompt become anchors, in the order in which they leave the window; scores [B][G][n]. As if each was offered to a
 * pool (pool_offer()), but those that get no place are passed over many at a time. Shared memory: room for all anchors. */
__global__ void __launch_bounds__(AGE_THREADS) select_anchors(const kvb_dev_layer l, const kvb_dev_cache c,
                                                              const kvb_dev_batch b, const float *scores,
                                                              uint32_t first_sequence, uint32_t room)
{
    extern __shared__ __align__(16) unsigned char memory[];
    const uint32_t head = blockIdx.x, sequence = first_sequence + blockIdx.y;
    kvb_dev_sequence s;
    if (!kvb_sequence(c, b, sequence, &s) || s.before != 0)
        return;
    const uint32_t end = kvb_window_first(s.tokens, c.window, c.sink_count);
    const float *score = scores + ((size_t)blockIdx.y * l.kv_heads + head) * b.tokens;
    chosen pool = {(float *)memory, (uint32_t *)memory + room, 0, {INFINITY, 0, UINT32_MAX}};
    for (uint32_t position = c.sink_count; position < end;) {
        const uint32_t next = chosen_next(pool, c, position, end, score);
        position += next;
        if (next == AGE_THREADS)
            continue;
        const bool grows = pool.count < kvb_anchor_capacity(c.fraction, position - c.sink_count + 1);
        const pool_weakest mine = {score[position], position, grows ? pool.count : pool.weakest.at};
        if (threadIdx.x == 0) {
            pool.score[mine.at] = mine.score;
            pool.position[mine.at] = mine.position;
        }
        __syncthreads();
        if (!grows)
            chosen_weakest(&pool);
        else if (pool.count++ == 0 || pool_weaker(mine, pool.weakest))
            pool.weakest = mine;
        position++;
    }
    const dev_pool pages = {&c, &s, c.place[head]};
    for (uint32_t i = threadIdx.x; i < pool.count; i += AGE_THREADS) {
        uint32_t *where = pool_position(pages, i);
        float *mark = pool_score(pages, i);
        uint8_t *page = kvb_page(c, s, pool.position[i] / c.page_tokens);
        if (where == NULL || mark == NULL || page == NULL)
            continue;
        *where = pool.position[i];
        *mark = pool.score[i];
        atomicOr((uint32_t *)(page + pages.place.masks) + pool.position[i] % c.page_tokens / KVB_TILE, 1u << pool.position[i] % KVB_TILE);
    }
    if (threadIdx.x == 0)
        c.anchors[kvb_slot_row(c, l.kv_heads, s.slot, head, 0, 1)] = pool.count;
}

/* The same where shared memory has no room for all anchors: one token after another. */
__global__ void __launch_bounds__(AGE_THREADS) offer_anchors(const kvb_dev_layer l, const kvb_dev_cache c, const kvb_dev_batch b,
                                                             const float *scores, uint32_t first_sequence)
{
    const uint32_t head = blockIdx.x, sequence = first_sequence + blockIdx.y;
    kvb_dev_sequence s;
    if (!kvb_sequence(c, b, sequence, &s) || s.before != 0)
        return;
    uint32_t count = 0;
    const dev_pool pool = {&c, &s, c.place[head]};
    pool_weakest weakest = {0.0f, 0, UINT32_MAX};
    const uint32_t end = kvb_window_first(s.tokens, c.window, c.sink_count);
    const float *score = scores + ((size_t)blockIdx.y * l.kv_heads + head) * b.tokens;
    for (uint32_t position = c.sink_count; position < end; position++)
        pool_offer(pool, &count, &weakest, position, score[position]);
    if (threadIdx.x == 0)
        c.anchors[kvb_slot_row(c, l.kv_heads, s.slot, head, 0, 1)] = count;
}

/* The exact rows of the anchors that a prompt got. */
__global__ void __launch_bounds__(ENCODE_THREADS) copy_anchors(const kvb_dev_layer l, const kvb_dev_cache c,
                                                               const kvb_dev_batch b, const void *keys, const void *values)
{
    extern __shared__ __align__(16) unsigned char memory[];
    const uint32_t head = blockIdx.y, kind = blockIdx.z % 2, sequence = blockIdx.z / 2, from = blockIdx.x * ENCODE_STEP;
    kvb_dev_sequence s;
    if (!kvb_sequence(c, b, sequence, &s) || s.before != 0)
        return;
    const uint32_t count = c.anchors[kvb_slot_row(c, l.kv_heads, s.slot, head, 0, 1)];
    if (from >= count)
        return;
    encode_tile<ENCODE_STEP> e = encode_place<ENCODE_STEP>(memory, l.dim);
    e.live = min((uint32_t)ENCODE_STEP, count - from);
    const dev_pool pool = {&c, &s, c.place[head]};
    if (threadIdx.x < e.live) {
        const uint32_t *position = pool_position(pool, from + threadIdx.x);
        e.position[threadIdx.x] = position != NULL ? *position : UINT32_MAX;
        e.page[threadIdx.x] = position != NULL ? kvb_page(c, s, (from + threadIdx.x) / c.page_anchors) : NULL;
    }
    __syncthreads();
    const void *x = kind == KVB_KEY ? keys : values;
    const auto source = [&](uint32_t t) { return (((size_t)sequence * b.tokens + e.position[t]) * l.kv_heads + head) * l.dim; };
    if (c.fine)
        encode_coordinates(e, l, c, l.head[head], kind, x, b.type, source);
    encode_exact(e, l, c, l.head[head], kind, x, b.type, source);
    for (uint32_t t = 0; t < e.live; t++)
        if (e.page[t] != NULL)
            encode_store(e, t, (__half *)(e.page[t] + (kind == KVB_KEY ? pool.place.anchor_keys : pool.place.anchor_values)) +
                                   (size_t)((from + t) % c.page_anchors) * l.dim);
}

cudaError_t kvb_append_prepare(kvb_dev_layer *l, uint32_t units)
{
    enum { OWN = 1024 }; /* shared memory that select_anchors() and the driver take beside the pool */
    int device = 0, most = 0;
    cudaError_t code = cudaGetDevice(&device);
    if (code == cudaSuccess)
        code = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    l->step_bytes = (uint32_t)encode_bytes<ENCODE_STEP>(l->dim, units);
    l->prompt_bytes = (uint32_t)encode_bytes<ENCODE_PROMPT>(l->dim, units);
    if (l->prompt_bytes > (uint32_t)most)
        l->prompt_bytes = 0;
    l->select_room = (uint32_t)(most - OWN) / 8;
    const struct { const void *kernel; int bytes; } kernels[] = {
        {(const void *)append_tokens<ENCODE_STEP>, most},
        {(const void *)append_tokens<ENCODE_PROMPT>, most},
        {(const void *)copy_anchors, most},
        {(const void *)select_anchors, most - OWN},
    };
    for (const auto &k : kernels)
        if (code == cudaSuccess)
            code = cudaFuncSetAttribute(k.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, k.bytes);
    return code;
}

template <int TOKENS>
static cudaError_t launch_tiles(const kvb_dev_layer *l, const kvb_dev_cache *c, const kvb_dev_batch *b, const void *keys,
                                const void *values, bool fresh, uint32_t bytes, cudaStream_t stream)
{
    const dim3 grid((b->tokens + TOKENS - 1) / TOKENS, l->kv_heads, 2 * b->sequences);
    append_tokens<TOKENS><<<grid, ENCODE_THREADS, bytes, stream>>>(*l, *c, *b, keys, values, fresh);
    return cudaGetLastError();
}

static cudaError_t launch_append(const kvb_dev_layer *l, const kvb_dev_cache *c, const kvb_dev_batch *b, const void *keys,
                                 const void *values, bool fresh, cudaStream_t stream)
{
    return b->tokens > ENCODE_STEP && l->prompt_bytes != 0
               ? launch_tiles<ENCODE_PROMPT>(l, c, b, keys, values, fresh, l->prompt_bytes, stream)
               : launch_tiles<ENCODE_STEP>(l, c, b, keys, values, fresh, l->step_bytes, stream);
}

cudaError_t kvb_append_launch(const kvb_dev_layer *l, const kvb_dev_cache *c, const kvb_dev_batch *b, const void *keys,
                              const void *values, cudaStream_t stream)
{
    cudaError_t code = launch_append(l, c, b, keys, values, false, stream);
    if (code != cudaSuccess || !(c->fraction > 0.0))
        return code;
    age_tokens<<<dim3(l->kv_heads, b->sequences), AGE_THREADS, 0, stream>>>(*l, *c, *b);
    return cudaGetLastError();
}

cudaError_t kvb_prefill_launch(const kvb_dev_layer *l, const kvb_dev_cache *c, const kvb_dev_batch *b, const void *keys,
                               const void *values, const void *q, const void *out, const float *lse, float *scores,
                               size_t scores_room, cudaStream_t stream)
{
    cudaError_t code = launch_append(l, c, b, keys, values, true, stream);
    if (code != cudaSuccess || !(c->fraction > 0.0))
        return code;
    const size_t each = (size_t)l->kv_heads * b->tokens;
    const uint32_t at_once = (uint32_t)(scores_room / each);
    for (uint32_t first = 0; first < b->sequences && code == cudaSuccess; first += at_once) {
        const uint32_t some = b->sequences - first < at_once ? b->sequences - first : at_once;
        code = kvb_prompt_score_launch(l, c, b, keys, values, q, out, lse, scores, first, some, stream);
        if (code != cudaSuccess)
            return code;
        const uint32_t room = kvb_anchor_capacity(c->fraction, b->tokens);
        if (room <= l->select_room)
            select_anchors<<<dim3(l->kv_heads, some), AGE_THREADS, room * 8, stream>>>(*l, *c, *b, scores, first, room);
        else
            offer_anchors<<<dim3(l->kv_heads, some), AGE_THREADS, 0, stream>>>(*l, *c, *b, scores, first);
        code = cudaGetLastError();
    }
    const uint32_t most = kvb_anchor_capacity(c->fraction, b->tokens);
    if (code != cudaSuccess || most == 0)
        return code;
    copy_anchors<<<dim3((most + ENCODE_STEP - 1) / ENCODE_STEP, l->kv_heads, 2 * b->sequences), ENCODE_THREADS, l->step_bytes,
                   stream>>>(*l, *c, *b, keys, values);
    return cudaGetLastError();
}
