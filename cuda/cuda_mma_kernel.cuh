/* The kernel around cuda_mma.cuh: who does which tiles, tables into shared memory, the merge. */
#ifndef KVB_CUDA_MMA_KERNEL_CUH
#define KVB_CUDA_MMA_KERNEL_CUH

#include <string.h>
#include <type_traits>
#include <vector>

#include "cuda/cuda_mma.cuh"

/* Copies 16 bytes to shared memory without passing through registers, so that nothing waits for them here. */
KVB_DI void mma_copy(uint32_t to, const void *from)
{
    asm volatile("cp.async.cg.shared.global [%0],[%1],16;" ::"r"(to), "l"(from));
}

/* The same of many bytes, a multiple of 16, by all threads of the block. Ends when the caller waits for its copies. */
KVB_DI void mma_copy_all(void *to, const void *from, uint32_t bytes)
{
    const uint32_t origin = (uint32_t)__cvta_generic_to_shared(to);
    for (uint32_t i = threadIdx.x * 16; i < bytes; i += blockDim.x * 16)
        mma_copy(origin + i, (const char *)from + i);
}

/* Tables of one head as mma_tables() laid them out. */
template <class M> KVB_DI void mma_load_tables(unsigned char *shared, const uint8_t *tables)
{
    mma_copy_all(shared, tables, M::KEY_BYTES);
    mma_copy_all(shared + M::KEY_BYTES, tables + M::KEY_BYTES, M::VALUE_BYTES);
}

/* Keys' rows of 16-row tables, once for each lane of a phase. */
template <class M, bool HALVES> static void mma_repeat_keys(const uint8_t *key, uint8_t *to)
{
    for (uint32_t i = 0; i < M::KEY_BYTES / M::ROW_BYTES; i++) {
        const uint32_t t = i % M::SLOTS & 3, code = i / M::SLOTS % 16, j = i / M::SLOTS / 16, half = M::KEY_UNITS / 2;
        const uint32_t unit = !HALVES ? t * M::KEY_UNITS + j : j < half ? t * half + j : M::UNITS / 2 + t * half + j - half;
        memcpy(to + i * M::ROW_BYTES, key + (unit * 16 + code) * M::ROW_BYTES, M::ROW_BYTES);
    }
}

/* The tables of one head as they lie in shared memory: `key` and `value` are rows of ROW_BYTES, [unit][row]. Rows of 16-row tables
 * once for each lane of a phase (see mma_kernel::SLOTS), with the units that lane gathers from. */
template <class M, bool HALVES> static void mma_tables(const uint8_t *key, const uint8_t *value, uint8_t *to)
{
    if constexpr (!M::REPEATED) {
        memcpy(to, key, M::KEY_BYTES);
        memcpy(to + M::KEY_BYTES, value, M::VALUE_BYTES);
    } else {
        mma_repeat_keys<M, HALVES>(key, to);
        for (uint32_t i = 0; i < M::VALUE_BYTES / M::ROW_BYTES; i++) {
            const uint32_t slot = i % M::SLOTS, code = i / M::SLOTS % 16, j = i / M::SLOTS / 16 % M::VALUE_UNITS;
            const uint32_t g = (i / M::SLOTS / 16 / M::VALUE_UNITS * M::SLOTS + slot) / 4;
            memcpy(to + M::KEY_BYTES + i * M::ROW_BYTES, value + ((g * M::VALUE_UNITS + j) * 16 + code) * M::ROW_BYTES, M::ROW_BYTES);
        }
    }
}

/* The columns of a block: output rows and positions. */
typedef struct mma_columns {
    uint32_t sequence, head, first, live;
} mma_columns;

KVB_DI uint32_t mma_row(const kvb_dev_layer &l, const kvb_dev_batch &b, const mma_columns &c, uint32_t column)
{
    const uint32_t index = c.first + column;
    return (c.sequence * b.tokens + index / l.rows) * l.heads + c.head * l.rows + index % l.rows;
}

/* Where a warp reads: codes and masks of one tile after another. The page of the next tiles is looked up when a page is begun, so
 * that no load waits for another. */
typedef struct mma_reader {
    const uint8_t *keys, *values;
    const uint32_t *masks;
    uint32_t tile, last; /* the tile that is read next, and the last page index that holds a tile of this warp */
    int32_t following;   /* page after this one */
    uint32_t hidden;     /* ~0 where the page lies outside the cache: the first page is read in its place, and none of it used */
} mma_reader;

KVB_DI int32_t mma_look_up(const kvb_dev_cache &c, const kvb_dev_sequence &s, uint32_t index, uint32_t last)
{
    return __ldg(s.page + (index < last ? index : last));
}

/* Where a page begins; the first page, and `hidden` and a flag, where it lies outside. */
KVB_DI const uint8_t *mma_page(const kvb_dev_cache &c, int32_t page, uint32_t *hidden)
{
    const bool inside = page >= 0 && page < (int32_t)c.page_count;
    if (!inside)
        atomicOr(c.flags, KVB_FLAG_PLACE);
    *hidden = inside ? 0 : ~0u;
    return c.pages + (size_t)(inside ? page : 0) * c.page_bytes;
}

KVB_DI void mma_enter_page(mma_reader &r, const kvb_dev_cache &c, const kvb_dev_sequence &s, const kvb_dev_place &p, int32_t page,
                           uint32_t tile_bytes)
{
    const uint32_t at = r.tile & (c.page_tokens / KVB_TILE - 1);
    const uint8_t *base = mma_page(c, page, &r.hidden);
    r.keys = base + p.key_codes + at * tile_bytes + threadIdx.x % 32 * (tile_bytes / 32);
    r.values = base + p.value_codes + at * tile_bytes + threadIdx.x % 32 * (tile_bytes / 32);
    r.masks = (const uint32_t *)(base + p.masks) + at;
}

/* Moves on to the next tile. */
template <class M> KVB_DI void mma_next_tile(mma_reader &r, const kvb_dev_cache &c, const kvb_dev_sequence &s, const kvb_dev_place &p)
{
    enum { BYTES = M::TILE_BYTES };
    r.tile++;
    if ((r.tile & (c.page_tokens / KVB_TILE - 1)) != 0) {
        r.keys += BYTES;
        r.values += BYTES;
        r.masks++;
        return;
    }
    mma_enter_page(r, c, s, p, r.following, BYTES);
    r.following = mma_look_up(c, s, (r.tile >> c.page_shift) + 1, r.last);
}

/* Reads a tile and moves on. */
template <class M>
KVB_DI void mma_read_tile(mma_reader &r, const kvb_dev_cache &c, const kvb_dev_sequence &s, const kvb_dev_place &p, uint32_t *keys,
                          uint32_t *values, uint32_t *mask, uint32_t *hidden)
{
    mma_codes<M::LANE_WORDS, M::PIECE>(keys, r.keys);
    mma_codes<M::LANE_WORDS, M::PIECE>(values, r.values);
    *mask = __ldg(r.masks); /* not combined with anything here: that would wait for it */
    *hidden = r.hidden;
    mma_next_tile<M>(r, c, s, p);
}

/* Tokens of a tile that are not to be read as codes: anchors, sinks, the window. */
KVB_DI uint32_t mma_edges(uint32_t mask, uint32_t begin, uint32_t sinks, uint32_t first)
{
    if (begin < sinks)
        mask |= sinks - begin >= 32 ? ~0u : (1u << (sinks - begin)) - 1;
    if (begin + KVB_TILE > first)
        mask |= first <= begin ? ~0u : ~0u << (first - begin);
    return mask;
}

/* Exact token i of the list sinks, window, anchors. */
KVB_DI void mma_exact_row(const kvb_dev_cache &c, const kvb_dev_layer &l, const kvb_dev_sequence &s, uint32_t head, uint32_t sinks,
                          uint32_t first, uint32_t anchors, uint32_t i, const __half **key, const __half **value, uint32_t *position)
{
    *key = *value = NULL;
    *position = UINT32_MAX;
    if (i < sinks) {
        const size_t row = kvb_slot_row(c, l.kv_heads, s.slot, head, i, c.sink_count) * l.dim;
        *key = c.sinks[0] + row;
        *value = c.sinks[1] + row;
        *position = i;
    } else if ((i -= sinks) < s.tokens - first) {
        const size_t row = kvb_slot_row(c, l.kv_heads, s.slot, head, (first + i) % c.ring_rows, c.ring_rows) * l.dim;
        *key = c.ring[0] + row;
        *value = c.ring[1] + row;
        *position = first + i;
    } else if ((i -= s.tokens - first) < anchors) {
        const uint8_t *page = kvb_page(c, s, i / c.page_anchors);
        if (page == NULL)
            return;
        const kvb_dev_place &p = c.place[head];
        const uint32_t at = i % c.page_anchors;
        *key = (const __half *)(page + p.anchor_keys) + (size_t)at * l.dim;
        *value = (const __half *)(page + p.anchor_values) + (size_t)at * l.dim;
        *position = 0; /* every query sees it */
    }
}

/* What a warp needs to know of its sequence: positions [sinks, first) are codes or anchors, in `coded` tiles; the others, and the
 * anchors, are rows in `exact` tiles. */
typedef struct mma_extent {
    uint32_t first, sinks, anchors, coded, exact;
} mma_extent;

KVB_DI mma_columns mma_columns_of(const kvb_dev_layer &l, const kvb_dev_batch &b, uint32_t column_groups)
{
    const uint32_t from = blockIdx.z % column_groups * KVB_COLUMNS;
    return {blockIdx.z / column_groups, blockIdx.y, from, min(l.rows * b.tokens - from, (uint32_t)KVB_COLUMNS)};
}

KVB_DI mma_extent mma_extent_of(const kvb_dev_cache &c, const kvb_dev_layer &l, const kvb_dev_sequence &s, uint32_t head, bool there)
{
    mma_extent x = {kvb_window_first(s.tokens, c.window, c.sink_count), min(s.tokens, c.sink_count), 0, 0, 0};
    if (there && c.fraction > 0.0)
        x.anchors = c.anchors[kvb_slot_row(c, l.kv_heads, s.slot, head, 0, 1)];
    if (there && x.first > x.sinks)
        x.coded = (x.first + KVB_TILE - 1) / KVB_TILE;
    if (there)
        x.exact = (x.sinks + s.tokens - x.first + x.anchors + KVB_TILE - 1) / KVB_TILE;
    return x;
}

/* A warp's share of its sequence, of `work` that counts a tile of exact rows as WEIGHT tiles of codes, which come first. */
typedef struct mma_share {
    kvb_dev_sequence sequence;
    mma_extent extent;
    uint32_t from, to;
} mma_share;

template <int WEIGHT>
KVB_DI mma_share mma_share_of(const kvb_dev_cache &c, const kvb_dev_layer &l, const kvb_dev_batch &b, const kvb_dev_work &w,
                              const mma_columns &columns, uint32_t warp, uint32_t warps)
{
    mma_share m;
    m.sequence = {0, 0, 0, NULL};
    const bool there = kvb_sequence(c, b, columns.sequence, &m.sequence);
    m.extent = mma_extent_of(c, l, m.sequence, columns.head, there);
    const uint32_t work = m.extent.coded + WEIGHT * m.extent.exact, part = blockIdx.x * warps + warp, parts = w.splits * warps;
    m.from = kvb_part(work, part, parts);
    m.to = kvb_part(work, part + 1, parts);
    return m;
}

/* The queries of all columns, on their way to shared memory: sent for first, as nothing else has to be known for that. */
template <int DIM, int WARPS> struct mma_queries {
    enum { THREADS = WARPS * 32, ALL = KVB_COLUMNS * DIM, EACH = ALL > THREADS ? ALL / THREADS : 1 };
    float x[EACH];
};

/* Columns that are not live repeat one that is. */
template <int DIM, int WARPS>
KVB_DI void mma_load_queries(mma_queries<DIM, WARPS> &to, const void *q, const kvb_dev_layer &l, const kvb_dev_batch &b, const mma_columns &columns)
{
    typedef mma_queries<DIM, WARPS> Q;
    size_t at[Q::EACH];
#pragma unroll
    for (int i = 0; i < Q::EACH; i++) {
        const uint32_t n = min(threadIdx.x + i * Q::THREADS, Q::ALL - 1u);
        at[i] = (size_t)mma_row(l, b, columns, min(n / DIM, columns.live - 1)) * DIM + n % DIM;
    }
    kvb_load_all<Q::EACH>(q, at, b.type, to.x);
}

/* Times the scale of scores in base 2. */
template <class M, int DIM, int WARPS>
KVB_DI void mma_put_queries(const mma_queries<DIM, WARPS> &from, const kvb_dev_layer &l, float *queries)
{
    typedef mma_queries<DIM, WARPS> Q;
#pragma unroll
    for (int i = 0; i < Q::EACH; i++) {
        const uint32_t n = threadIdx.x + i * Q::THREADS;
        if (n < Q::ALL)
            queries[n / DIM * M::PITCH + n % DIM] = from.x[i] * l.scale * 1.4426950408889634f;
    }
}

/* The constants by which a query is turned on by a tile. */
template <class M, bool HALVES, int DIM> KVB_DI void mma_put_steps(const kvb_dev_layer &l, uint2 *steps)
{
    for (uint32_t i = threadIdx.x; i < M::STEPS * 4; i += blockDim.x) {
        const uint32_t pair = mma_pair<M, HALVES, DIM>(i / 4, i % 4);
        float sine[2], cosine[2];
        for (int e = 0; e < 2; e++)
            sincospif(kvb_phase(l.turn[pair + e], KVB_TILE), &sine[e], &cosine[e]);
        steps[i] = make_uint2(mma_pack(cosine[0], cosine[1]), mma_pack(sine[0], sine[1]));
    }
}

/* The tiles of exact tokens of a share: queries as they are, channels in plain order. */
template <class M, int WEIGHT, int DIM>
KVB_DI void mma_exact_tiles(mma_state<DIM> &st, const kvb_dev_cache &c, const kvb_dev_layer &l, const kvb_dev_batch &b, const mma_share &share,
                            const mma_columns &columns, const float *queries)
{
    const kvb_dev_sequence &s = share.sequence;
    const mma_extent &x = share.extent;
    const uint32_t past = share.from > x.coded ? share.from - x.coded : 0, end = share.to > x.coded ? share.to - x.coded : 0;
    const uint32_t e_end = min((end + WEIGHT - 1) / WEIGHT, x.exact);
    uint32_t e = (past + WEIGHT - 1) / WEIGHT;
    if (e >= e_end)
        return;
    const uint32_t lane = threadIdx.x % 32, t = lane & 3;
    const float *row = queries + (lane >> 2 & 3) * M::PITCH + DIM / 4 * t;
#pragma unroll
    for (int j = 0; j < DIM / 16; j++) {
        st.q[j][0] = mma_pack(row[4 * j], row[4 * j + 1]);
        st.q[j][1] = mma_pack(row[4 * j + 2], row[4 * j + 3]);
    }
    const uint32_t last = l.rows * b.tokens - 1;
    const uint32_t mine[2] = {s.before + min(columns.first + 2 * (t & 1), last) / l.rows,
                              s.before + min(columns.first + 2 * (t & 1) + 1, last) / l.rows};
    for (; e < e_end; e++) {
        const __half *key, *value;
        uint32_t position;
        mma_exact_row(c, l, s, columns.head, x.sinks, x.first, x.anchors, e * KVB_TILE + lane, &key, &value, &position);
        if (!__any_sync(~0u, key != NULL) || __shfl_sync(~0u, key == NULL, 0))
            continue;
        mma_exact<DIM>(st, key, value, position, mine);
    }
}

/* Rows' sums over lanes, then over warps, through `shared` (the tables' room); then over all splits. */
template <class M, int DIM, int WARPS>
KVB_DI void mma_finish(mma_state<DIM> &st, unsigned char *shared, float2 *shares, const kvb_dev_layer &l, const kvb_dev_batch &b,
                       const mma_columns &columns, const kvb_dev_work &w, uint32_t column_groups, void *out)
{
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, t = lane & 3;
    const uint32_t group = (columns.sequence * l.kv_heads + columns.head) * column_groups + blockIdx.z % column_groups;
#pragma unroll
    for (int i = 0; i < 2; i++)
        for (int k = 2; k < 32; k <<= 1)
            st.total[i] += __shfl_xor_sync(~0u, st.total[i], k);
    if (lane < 2) {
        shares[warp * KVB_COLUMNS + 2 * lane] = make_float2(st.most[0], st.total[0]);
        shares[warp * KVB_COLUMNS + 2 * lane + 1] = make_float2(st.most[1], st.total[1]);
    }
    __syncthreads();
    /* [column][channel of an eighth][eighth]: the lanes of a store lie side by side. */
    float *sums = (float *)shared + warp * (KVB_COLUMNS * M::MERGE_PITCH);
#pragma unroll
    for (int i = 0; i < DIM / 16; i++)
#pragma unroll
        for (int r = 0; r < 4; r++) {
            float x = st.sum[i][r];
            x += __shfl_xor_sync(~0u, x, 2);
            if (t < 2)
                sums[(2 * t + (r & 1)) * M::MERGE_PITCH + (2 * i + (r >> 1)) * 8 + (lane >> 2)] = x;
        }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < KVB_COLUMNS * DIM; i += blockDim.x) {
        const uint32_t column = i / DIM;
        float most = -1e30f, total = 0.0f, x = 0.0f;
        for (uint32_t k = 0; k < WARPS; k++)
            most = fmaxf(most, shares[k * KVB_COLUMNS + column].x);
        for (uint32_t k = 0; k < WARPS; k++) {
            const float2 share = shares[k * KVB_COLUMNS + column];
            const float factor = share.y > 0.0f ? mma_exp2(share.x - most) : 0.0f;
            total += factor * share.y;
            x += factor * ((const float *)shared)[(k * KVB_COLUMNS + column) * M::MERGE_PITCH + i % DIM];
        }
        const uint32_t channel = i % 8 * (DIM / 8) + i % DIM / 8;
        w.sum[(((size_t)group * w.splits + blockIdx.x) * KVB_COLUMNS + column) * DIM + channel] = x;
        if (i % DIM == 0)
            w.share[((size_t)group * w.splits + blockIdx.x) * KVB_COLUMNS + column] = make_float2(most, total);
    }
    kvb_merge_splits(w, l, group, columns.live, out, b.type, [&](uint32_t column) { return mma_row(l, b, columns, column); });
}

template <int KIND, bool HALVES, int DIM, bool BYTES>
__global__ void __launch_bounds__(mma_traits<KIND>::WARPS * 32, DIM > 128 ? 1 : mma_traits<KIND>::BLOCKS)
    attend_mma(const kvb_dev_layer l, const kvb_dev_cache c, const kvb_dev_batch b, const void *q, void *out, const kvb_dev_work w,
               uint32_t column_groups)
{
    typedef mma_kernel<KIND, HALVES, DIM, BYTES> M;
    extern __shared__ __align__(2048) unsigned char shared[];
    float *queries = (float *)(shared + M::TABLE_BYTES);
    float *scaled = BYTES ? queries + M::QUERY_BYTES / 4 : queries; /* as the tables of keys want them */
    uint2 *steps = (uint2 *)(shared + M::TABLE_BYTES + M::QUERY_BYTES + M::SCALED_BYTES);
    float2 *shares = (float2 *)(shared + M::TABLE_BYTES + M::QUERY_BYTES + M::SCALED_BYTES + M::STEP_BYTES);
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, t = lane & 3;
    const mma_columns columns = mma_columns_of(l, b, column_groups);
    mma_queries<DIM, M::WARPS> loaded;
    mma_load_queries(loaded, q, l, b, columns);
    const uint8_t *tables = l.mma_tables + (size_t)columns.head * M::HEAD_BYTES;
    const float *table_steps = (const float *)(tables + M::KEY_BYTES + M::VALUE_BYTES); /* [kind][D], of bytes */
    if constexpr (!M::FAR)
        mma_load_tables<M>(shared, tables);
    const kvb_dev_place place = c.place[columns.head];
    const mma_share share = mma_share_of<M::EXACT_WEIGHT>(c, l, b, w, columns, warp, M::WARPS);
    const kvb_dev_sequence &s = share.sequence;
    const mma_extent &x = share.extent;
    const uint32_t tile_bytes = M::TILE_BYTES;
    const bool turns = l.frame_block != 0 && l.rope_style != KVB_ROPE_NONE;

    uint32_t tile = min(share.from, x.coded), tile_end = min(share.to, x.coded);
    uint32_t next_keys[M::LANE_WORDS], next_values[M::LANE_WORDS], next_mask = 0, next_hidden = 0;
    mma_reader reader = {NULL, NULL, NULL, tile, 0, 0, 0};
    if (tile < tile_end) {
        reader.last = (tile_end - 1) >> c.page_shift;
        mma_enter_page(reader, c, s, place, mma_look_up(c, s, tile >> c.page_shift, reader.last), tile_bytes);
        reader.following = mma_look_up(c, s, (tile >> c.page_shift) + 1, reader.last);
        mma_read_tile<M>(reader, c, s, place, next_keys, next_values, &next_mask, &next_hidden);
    }
    mma_put_queries<M>(loaded, l, queries);
    if constexpr (BYTES) {
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < KVB_COLUMNS * DIM; i += blockDim.x)
            scaled[i / DIM * M::PITCH + i % DIM] = queries[i / DIM * M::PITCH + i % DIM] * __ldg(table_steps + i % DIM);
    }
    if (turns)
        mma_put_steps<M, HALVES, DIM>(l, steps);
    mma_state<DIM> st;
    mma_clear(st);
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();

    const uint32_t origin = (uint32_t)__cvta_generic_to_shared(shared);
    uint32_t key_base[2], value_base;
    if (M::REPEATED) {
        key_base[0] = origin + lane % M::SLOTS * M::ROW_BYTES;
        key_base[1] = key_base[0] + M::KEY_UNITS / 2 * M::UNIT_BYTES;
        value_base = origin + M::KEY_BYTES + lane / M::SLOTS * (M::VALUE_UNITS * M::UNIT_BYTES) + lane % M::SLOTS * M::ROW_BYTES;
    } else {
        key_base[0] = origin + t * (HALVES ? M::KEY_UNITS / 2 : M::KEY_UNITS) * M::UNIT_BYTES;
        key_base[1] = key_base[0] + M::UNITS / 2 * M::UNIT_BYTES;
        value_base = origin + M::KEY_BYTES + (lane >> 2) * M::VALUE_UNITS * M::UNIT_BYTES;
    }
    uint16_t *far_keys = (uint16_t *)shared + warp * 32 * M::UNITS, *far_values = far_keys + M::WARPS * 32 * M::UNITS;
    const uint32_t own = t & 2 ? 16 + (lane >> 2) : lane >> 2; /* the token of the tile's first product that this lane scores */
    uint32_t since = 0;
    for (; tile < tile_end; tile++) {
        uint32_t keys[M::LANE_WORDS], values[M::LANE_WORDS];
#pragma unroll
        for (int i = 0; i < M::LANE_WORDS; i++) {
            keys[i] = next_keys[i];
            values[i] = next_values[i];
        }
        uint32_t mask = next_mask | next_hidden;
        if (tile + 1 < tile_end)
            mma_read_tile<M>(reader, c, s, place, next_keys, next_values, &next_mask, &next_hidden);
        if (tile * KVB_TILE < x.sinks || (tile + 1) * KVB_TILE > x.first)
            mask = mma_edges(mask, tile * KVB_TILE, x.sinks, x.first);
        if (since == 0)
            mma_seed<M, HALVES, DIM>(st, l, scaled + (lane >> 2 & 3) * M::PITCH, tile * KVB_TILE + (lane >> 4) * 16, turns);
        else if (turns)
            mma_step<DIM>(st, steps);
        since = turns && since + 1 == M::RESEED ? 0 : since + 1;
        float y[4], scores[2][2];
        uint32_t weights[2];
        if constexpr (M::FAR) {
            mma_far_spread<M>(far_keys, keys);
            mma_far_spread<M>(far_values, values);
            __syncwarp();
            mma_far_keys<M, HALVES, DIM, 0>(st, far_keys, (const __half *)tables, y);
            mma_scores(y, !(mask >> own & 1), scores[0]);
            mma_far_keys<M, HALVES, DIM, 1>(st, far_keys, (const __half *)tables, y);
            mma_scores(y, !(mask >> (own + 8) & 1), scores[1]);
            mma_softmax<DIM>(st, scores, weights);
            mma_far_values<M, DIM, 0>(st, far_values, (const __half *)(tables + M::KEY_BYTES), weights[0]);
            mma_far_values<M, DIM, 1>(st, far_values, (const __half *)(tables + M::KEY_BYTES), weights[1]);
            __syncwarp();
        } else {
            mma_keys<M, HALVES, DIM, 0>(st, keys, key_base, y);
            mma_scores(y, !(mask >> own & 1), scores[0]);
            mma_keys<M, HALVES, DIM, 1>(st, keys, key_base, y);
            mma_scores(y, !(mask >> (own + 8) & 1), scores[1]);
            mma_softmax<DIM>(st, scores, weights);
            mma_values<M, DIM, 0>(st, values, value_base, weights[0]);
            mma_values<M, DIM, 1>(st, values, value_base, weights[1]);
        }
    }
    if constexpr (BYTES) {
#pragma unroll
        for (int i = 0; i < DIM / 16; i++) {
            const float2 step = __ldg((const float2 *)(table_steps + DIM + DIM / 8 * (lane >> 2) + 2 * i));
            st.sum[i][0] *= step.x;
            st.sum[i][1] *= step.x;
            st.sum[i][2] *= step.y;
            st.sum[i][3] *= step.y;
        }
    }
    mma_exact_tiles<M, M::EXACT_WEIGHT>(st, c, l, b, share, columns, queries);
    mma_finish<M, DIM, M::WARPS>(st, shared, shares, l, b, columns, w, column_groups, out);
}

template <int KIND, bool HALVES, int DIM, bool BYTES>
static cudaError_t mma_start(const kvb_dev_layer *layer, const kvb_dev_cache *cache, const kvb_dev_batch *batch, const void *q,
                             void *out, const kvb_dev_work *work, uint32_t column_groups, cudaStream_t stream)
{
    typedef mma_kernel<KIND, HALVES, DIM, BYTES> M;
    attend_mma<KIND, HALVES, DIM, BYTES><<<dim3(work->splits, layer->kv_heads, batch->sequences * column_groups), M::WARPS * 32,
                                    M::SHARED_BYTES, stream>>>(*layer, *cache, *batch, q, out, *work, column_groups);
    return cudaGetLastError();
}

/* Readies the device for a kernel: blocks that fit on a multiprocessor at a time, 0 where it cannot run. */
static int mma_ready(const void *kernel, int threads, size_t shared_bytes)
{
    int blocks = 0;
    if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes) != cudaSuccess ||
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes) != cudaSuccess) {
        cudaGetLastError();
        return 0;
    }
    return blocks;
}

template <int KIND, bool HALVES, int DIM, bool BYTES> static int mma_resident(void)
{
    typedef mma_kernel<KIND, HALVES, DIM, BYTES> M;
    return mma_ready((const void *)attend_mma<KIND, HALVES, DIM, BYTES>, M::WARPS * 32, M::SHARED_BYTES);
}

#endif
