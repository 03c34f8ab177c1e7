/* Decode attention over 4x16 codes whose values are bytes: the values' tables lie in registers.
 *
 * Sixteen bytes are four registers, and a byte permutation picks those of four tokens at a time: of entries 0-7 and of 8-15, each of
 * which gives 0 for the tokens of the other (a selector with its top bit set repeats the sign, and no entry is negative), so two
 * integer products add up what one table would. Weights are 16-bit integers, whose two bytes are columns of the product.
 * The tables of 128 channels take 64 registers, which leaves room for two warps a quadrant: what hides latencies is that a warp takes
 * two tiles at a time, and folds the two before while it scores these. Codes come through a ring in shared memory.
 *
 * Keys are gathered as half floats, four channels at a time: the two registers of a row are rows g and g + 8 of the product, so that
 * they need not be moved. Even columns hold queries' first two channels of each four, odd columns the other two; of the product the
 * quarters count that match. A query is turned on by half floats from block to block, and by float32 every RESEED tiles. */
#ifndef KVB_CUDA_MMA_SELECT_CUH
#define KVB_CUDA_MMA_SELECT_CUH

#include "cuda/cuda_mma_kernel.cuh"

/* An entry of a table in registers is a multiple of the channel's step plus this, so that none is negative: see format/base/grid.h. */
enum { SELECT_ZERO = 63 };

/* ALL_WARPS: of a block, 8 or 4; so many blocks that 8 warps fit a multiprocessor. */
template <bool HALVES, int DIM, int ALL_WARPS> struct select_kernel {
    typedef mma_kernel<KVB_MMA_4X16, HALVES, DIM, false> Key;
    enum {
        WARPS = ALL_WARPS,
        AT_ONCE = 2,         /* tiles of a warp */
        UNITS = DIM / 32,    /* of values that a lane folds: an eighth of the channels */
        CHANNELS = 4 * UNITS,
        PRODUCTS = CHANNELS / 2, /* two rows of a lane each */
        STEPS = Key::KEY_UNITS / 2, /* products of a key: two units of a lane each */
        RESEED = 8,          /* tiles after which queries are turned on in float32 */
        EXACT_WEIGHT = 6,    /* work of a tile of exact rows in tiles of codes */
        FLUSH = 256,         /* tiles of each warp after which integer sums become floats: 2^31 hold 512 of all weights at their largest */
        RING = 8, AHEAD = 6, /* tiles: of a warp's ring in shared memory, and how far it reads ahead */
        SLOT_BYTES = 2 * Key::TILE_BYTES + 128, /* keys, values, the mask for each lane */
        RING_BYTES = WARPS * RING * SLOT_BYTES,
        TURNED_BYTES = WARPS * STEPS * 32 * 16,
        STRIDE_BYTES = STEPS * 8 * 16,
        KEY_BYTES = Key::KEY_BYTES,
        VALUE_BYTES = DIM * 16, /* [D][16] */
        HEAD_BYTES = KEY_BYTES + VALUE_BYTES + DIM * 4, /* and the values' steps */
        MERGE_BYTES = WARPS * KVB_COLUMNS * Key::MERGE_PITCH * 4,
        SUM_BYTES = WARPS * PRODUCTS * 2 * 32 * 4,
        WORK_BYTES = (int)KEY_BYTES + (int)SUM_BYTES + (int)RING_BYTES + (int)TURNED_BYTES + (int)STRIDE_BYTES,
        TABLE_BYTES = (int)WORK_BYTES > (int)MERGE_BYTES ? (int)WORK_BYTES : (int)MERGE_BYTES,
        SHARED_BYTES = TABLE_BYTES + Key::QUERY_BYTES + WARPS * KVB_COLUMNS * 8,
    };
};

/* c += a (16 x 32 bytes, rows) * b (32 x 8 bytes, columns) */
KVB_DI void select_16832(int *c, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/* The query of this lane's column, lane / 8, for one block of 16 tokens: [product][unit of two], two channels of each four. */
template <class P> struct select_query {
    uint32_t q[P::STEPS][2];
};

/* The first channel of what lane 4g + t holds of a product's unit. */
template <class P, bool HALVES, int DIM> KVB_DI uint32_t select_channel(int step, int unit)
{
    const uint32_t t = threadIdx.x & 3, odd = threadIdx.x >> 2 & 1;
    const uint32_t of_lane = HALVES ? unit * (DIM / 8) + t * P::STEPS : t * 2 * P::STEPS + unit * P::STEPS;
    return 4 * (of_lane + step) + 2 * odd;
}

/* How a lane's query turns: turns a position of its RoPE pairs, two of each product. */
template <class P> struct select_turns {
    uint64_t of[P::STEPS][2];
};

template <class P, bool HALVES, int DIM> KVB_DI void select_load_turns(select_turns<P> &to, const kvb_dev_layer &l, bool turn)
{
#pragma unroll
    for (int i = 0; i < P::STEPS; i++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const uint32_t c = select_channel<P, HALVES, DIM>(i, HALVES ? 0 : e);
            to.of[i][e] = turn ? __ldg(l.turn + (HALVES ? c + e : c / 2)) : 0;
        }
}

/* Cosines (x, y) and sines (z, w) of a product's two pairs at a position. Within half a turn the fast ones are good to 5e-7. */
template <class P> KVB_DI float4 select_angles(const select_turns<P> &turns, int step, uint32_t position)
{
    float4 x;
    __sincosf(kvb_phase(turns.of[step][0], position) * 3.14159265358979f, &x.z, &x.x);
    __sincosf(kvb_phase(turns.of[step][1], position) * 3.14159265358979f, &x.w, &x.y);
    return x;
}

/* Two channels of each of a product's two units (x, y; z, w) turned back by angles. */
template <bool HALVES> KVB_DI float4 select_turn(float4 q, float4 a)
{
    if (HALVES)
        return make_float4(q.x * a.x + q.z * a.z, q.y * a.y + q.w * a.w, q.z * a.x - q.x * a.z, q.w * a.y - q.y * a.w);
    return make_float4(q.x * a.x + q.y * a.z, q.y * a.x - q.x * a.z, q.z * a.y + q.w * a.w, q.w * a.y - q.z * a.w);
}

/* The half floats that turn a lane's query on by a block: [product][unit], cosines and sines of its two channels. */
template <class P, bool HALVES> KVB_DI void select_make_steps(const select_turns<P> &turns, uint32_t (*steps)[2][2])
{
#pragma unroll
    for (int i = 0; i < P::STEPS; i++) {
        const float4 a = select_angles<P>(turns, i, 16);
        steps[i][0][0] = HALVES ? mma_pack(a.x, a.y) : mma_pack(a.x, a.x);
        steps[i][0][1] = HALVES ? mma_pack(a.z, a.w) : mma_pack(a.z, -a.z);
        steps[i][1][0] = mma_pack(a.y, a.y);
        steps[i][1][1] = mma_pack(a.w, -a.w);
    }
}

/* The query from `turned` [product][32 lanes], which is turned on by `stride` [product][8 kinds of lanes]. */
template <class P, bool HALVES> KVB_DI void select_seed(select_query<P> &to, float4 *turned, const float4 *stride)
{
#pragma unroll
    for (int i = 0; i < P::STEPS; i++) {
        const float4 x = turned[i * 32];
        to.q[i][0] = mma_pack(x.x, x.y);
        to.q[i][1] = mma_pack(x.z, x.w);
        turned[i * 32] = select_turn<HALVES>(x, stride[i * 8]);
    }
}

template <class P, bool HALVES> KVB_DI void select_step(select_query<P> &to, const uint32_t (*steps)[2][2])
{
#pragma unroll
    for (int i = 0; i < P::STEPS; i++) {
        const __half2 u = mma_half2(to.q[i][0]), v = mma_half2(to.q[i][1]);
        const __half2 c = mma_half2(steps[i][0][0]), s = mma_half2(steps[i][0][1]);
        if (HALVES) {
            to.q[i][0] = mma_word(__hfma2(v, s, __hmul2(u, c)));
            to.q[i][1] = mma_word(__hfma2(__hneg2(u), s, __hmul2(v, c)));
        } else {
            to.q[i][0] = mma_word(__hfma2(__lowhigh2highlow(u), s, __hmul2(u, c)));
            to.q[i][1] = mma_word(__hfma2(__lowhigh2highlow(v), mma_half2(steps[i][1][1]), __hmul2(v, mma_half2(steps[i][1][0]))));
        }
    }
}

/* The scores of this lane's tokens of block B of a tile. `between` is called after each product, for others' work to hide what that takes. */
template <class P, int B, class F>
KVB_DI void select_scores(const select_query<P> &q, const uint32_t *codes, uint32_t base, float (*scores)[2], F between)
{
    typedef typename P::Key M;
    enum { FIRST = B * M::KEY_UNITS, SECOND = FIRST + 2 * M::KEY_UNITS };
    float c[4] = {0.0f, 0.0f, 0.0f, 0.0f}, d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    mma_each<0, P::STEPS>([&](auto step) {
        enum { I = decltype(step)::value, J = P::STEPS + I };
        uint32_t x[2], y[2], z[2], w[2];
        mma_gather<2>(x, mma_row_address<M, FIRST + I>(codes, base) + I * M::UNIT_BYTES);
        mma_gather<2>(y, mma_row_address<M, FIRST + J>(codes, base) + J * M::UNIT_BYTES);
        mma_gather<2>(z, mma_row_address<M, SECOND + I>(codes, base) + I * M::UNIT_BYTES);
        mma_gather<2>(w, mma_row_address<M, SECOND + J>(codes, base) + J * M::UNIT_BYTES);
        mma_16816(c, x[0], x[1], y[0], y[1], q.q[I][0], q.q[I][1]);
        mma_16816(d, z[0], z[1], w[0], w[1], q.q[I][0], q.q[I][1]);
        between(step);
    });
    scores[0][B] = c[0] + c[3];
    scores[1][B] = d[0] + d[3];
}

/* What a lane carries. Lane 4g + t scores tokens g and g + 8 of both blocks of a tile for query t, and folds channels of eighth g. */
template <class P> struct select_state {
    uint32_t table[P::CHANNELS][4];
    int sum[P::PRODUCTS][4]; /* rows g, g + 8; columns: the high and the low byte of query t's weights */
    float most;              /* weights are 2^(score - most), up to 2^16 */
    float total;             /* of the weights, flushed */
    uint32_t held;           /* the same since then */
};

/* The weights of a tile, which are integers, as columns of the fold: byte `lane / 4 % 2` (0: high) of query lane / 8, of the lane's
 * four tokens of each block. */
template <class P> KVB_DI void select_weigh(select_state<P> &st, const float (*s)[2], uint32_t *b)
{
    uint32_t w[2][2];
#pragma unroll
    for (int p = 0; p < 2; p++)
#pragma unroll
        for (int e = 0; e < 2; e++)
            w[p][e] = __float_as_uint(mma_exp2(s[p][e] - st.most) + 8388608.0f); /* the integer is in the low bits */
    st.held += w[0][0] + w[0][1] + w[1][0] + w[1][1] - 4 * 0x4B000000u;
    const bool odd = threadIdx.x & 4;
    const uint32_t x = mma_transpose(mma_prmt(w[0][0], w[0][1], 0x5410)), y = mma_transpose(mma_prmt(w[1][0], w[1][1], 0x5410));
    const uint32_t keep = mma_prmt(x, y, odd ? 0x6420 : 0x7531), send = mma_prmt(x, y, odd ? 0x7531 : 0x6420);
    const uint32_t got = __shfl_xor_sync(~0u, send, 4);
    b[0] = odd ? got : keep;
    b[1] = odd ? keep : got;
}

/* Folds channels 2J, 2J + 1 of unit U of a tile: `codes` [UNITS] of eight tokens each. */
template <class P, int U, int J> KVB_DI void select_fold(select_state<P> &st, const uint32_t *codes, const uint32_t *b)
{
    const uint32_t low = codes[U], high = low ^ 0x88888888u, low2 = low >> 16, high2 = high >> 16;
    const uint32_t *x = st.table[4 * U + 2 * J], *y = st.table[4 * U + 2 * J + 1];
    int *sum = st.sum[2 * U + J];
    select_16832(sum, mma_prmt(x[0], x[1], low), mma_prmt(y[0], y[1], low), mma_prmt(x[0], x[1], low2), mma_prmt(y[0], y[1], low2), b[0],
               b[1]);
    select_16832(sum, mma_prmt(x[2], x[3], high), mma_prmt(y[2], y[3], high), mma_prmt(x[2], x[3], high2), mma_prmt(y[2], y[3], high2),
               b[0], b[1]);
}

/* Integer sums into floats [PRODUCTS][2][32 lanes], times `factor`. */
template <class P> KVB_DI void select_flush(select_state<P> &st, float *sums, float factor)
{
#pragma unroll
    for (int i = 0; i < P::PRODUCTS; i++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float *at = sums + (2 * i + r) * 32;
            *at = (*at + ((float)st.sum[i][2 * r] * 256.0f + (float)st.sum[i][2 * r + 1])) * factor;
            st.sum[i][2 * r] = st.sum[i][2 * r + 1] = 0;
        }
    st.total = (st.total + (float)st.held) * factor;
    st.held = 0;
}

/* The larger; NaN if one is. */
KVB_DI float select_max(float a, float b)
{
    float c;
    asm("max.NaN.f32 %0,%1,%2;" : "=f"(c) : "f"(a), "f"(b));
    return c;
}

KVB_DI float select_most(const float (*s)[2])
{
    return select_max(select_max(s[0][0], s[0][1]), select_max(s[1][0], s[1][1]));
}

/* Raises the maximum that weights are relative to where a score, at most `most` in this lane, has passed it too far. */
template <class P> KVB_DI void select_raise(select_state<P> &st, float most, float *sums)
{
    for (int k = 4; k < 32; k <<= 1)
        most = select_max(most, __shfl_xor_sync(~0u, most, k));
    /* A fourth of the largest weight: the next scores have room to grow. What is not finite makes sums that are not numbers. */
    const float raised = most - 14.0f, now = most <= st.most + 15.99f ? st.most : raised - raised == 0.0f ? raised : NAN;
    select_flush(st, sums, mma_exp2(st.most - now));
    st.most = now;
}

/* Masks of a page that is not there: none of its tokens counts. */
static __device__ const uint32_t select_nothing = ~0u;

template <int BYTES> KVB_DI void select_copy(uint32_t to, const void *from)
{
    if (BYTES == 16)
        mma_copy(to, from);
    else
        asm volatile("cp.async.ca.shared.global [%0],[%1],%2;" ::"r"(to), "l"(from), "n"(BYTES));
}

template <int N> KVB_DI void select_words(uint32_t *to, const unsigned char *from)
{
    mma_gather<N>(to, (uint32_t)__cvta_generic_to_shared(from));
}

/* Sends for the next tiles of a warp, as many as are left of AT_ONCE; each lane gets to see what it sent for. */
template <class P>
KVB_DI void select_fetch(mma_reader &r, const kvb_dev_cache &c, const kvb_dev_sequence &s, const kvb_dev_place &p, uint32_t end, uint32_t to)
{
    typedef typename P::Key M;
    const uint32_t lane = threadIdx.x % 32;
    enum { WORD_BYTES = 4 * M::LANE_WORDS };
#pragma unroll
    for (int a = 0; a < P::AT_ONCE; a++)
        if (r.tile < end) {
            select_copy<WORD_BYTES>(to + a * P::SLOT_BYTES + lane * WORD_BYTES, r.keys);
            select_copy<WORD_BYTES>(to + a * P::SLOT_BYTES + M::TILE_BYTES + lane * WORD_BYTES, r.values);
            select_copy<4>(to + a * P::SLOT_BYTES + 2 * M::TILE_BYTES + lane * 4, r.hidden ? &select_nothing : r.masks);
            mma_next_tile<M>(r, c, s, p);
        }
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <bool HALVES, int DIM, int ALL_WARPS>
__global__ void __launch_bounds__(ALL_WARPS * 32, 8 / ALL_WARPS)
    attend_select(const kvb_dev_layer l, const kvb_dev_cache c, const kvb_dev_batch b, const void *q, void *out, const kvb_dev_work w,
                uint32_t column_groups)
{
    typedef select_kernel<HALVES, DIM, ALL_WARPS> P;
    typedef typename P::Key M;
    extern __shared__ __align__(2048) unsigned char shared[];
    /* The same in all lanes, which the compiler cannot know. */
    const uint32_t warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32, t = lane & 3;
    float *sums = (float *)(shared + P::KEY_BYTES) + warp * (P::PRODUCTS * 2 * 32) + lane;
    float *queries = (float *)(shared + P::TABLE_BYTES);
    float2 *shares = (float2 *)(shared + P::TABLE_BYTES + M::QUERY_BYTES);
    float4 *turned = (float4 *)(shared + P::KEY_BYTES + P::SUM_BYTES) + warp * P::STEPS * 32 + lane;
    float4 *stride = (float4 *)(shared + P::KEY_BYTES + P::SUM_BYTES + P::TURNED_BYTES) + lane % 8;
    unsigned char *ring = shared + P::KEY_BYTES + P::SUM_BYTES + P::TURNED_BYTES + P::STRIDE_BYTES + warp * (P::RING * P::SLOT_BYTES);
    const mma_columns columns = mma_columns_of(l, b, column_groups);
    mma_queries<DIM, P::WARPS> loaded;
    mma_load_queries(loaded, q, l, b, columns);
    const uint8_t *tables = l.mma_tables + (size_t)columns.head * P::HEAD_BYTES;
    mma_copy_all(shared, tables, P::KEY_BYTES);
    const bool turns = l.frame_block != 0 && l.rope_style != KVB_ROPE_NONE;
    select_turns<P> turn_of;
    select_load_turns<P, HALVES, DIM>(turn_of, l, turns);
    const uint32_t channel = DIM / 8 * (lane >> 2); /* the first that this lane folds */
    select_state<P> st;
#pragma unroll
    for (int i = 0; i < P::CHANNELS; i++) {
        const uint4 x = __ldg((const uint4 *)(tables + P::KEY_BYTES) + channel + i);
        st.table[i][0] = x.x;
        st.table[i][1] = x.y;
        st.table[i][2] = x.z;
        st.table[i][3] = x.w;
    }
    const kvb_dev_place place = c.place[columns.head];
    const mma_share share = mma_share_of<P::EXACT_WEIGHT>(c, l, b, w, columns, warp, P::WARPS);
    const kvb_dev_sequence &s = share.sequence;
    const mma_extent &x = share.extent;
    uint32_t tile = min(share.from, x.coded);
    const uint32_t tile_end = min(share.to, x.coded);

    mma_reader reader = {NULL, NULL, NULL, tile, 0, 0, 0};
    if (tile < tile_end) {
        reader.last = (tile_end - 1) >> c.page_shift;
        mma_enter_page(reader, c, s, place, mma_look_up(c, s, tile >> c.page_shift, reader.last), M::TILE_BYTES);
        reader.following = mma_look_up(c, s, (tile >> c.page_shift) + 1, reader.last);
    }
    asm volatile("cp.async.commit_group;" ::: "memory"); /* the tables */
    const uint32_t ring_at = (uint32_t)__cvta_generic_to_shared(ring);
#pragma unroll
    for (int a = 0; a < P::AHEAD; a += P::AT_ONCE)
        select_fetch<P>(reader, c, s, place, tile_end, ring_at + a * P::SLOT_BYTES);
    mma_put_queries<M>(loaded, l, queries);
#pragma unroll
    for (int i = 0; i < P::PRODUCTS; i++) {
        st.sum[i][0] = st.sum[i][1] = st.sum[i][2] = st.sum[i][3] = 0;
        sums[2 * i * 32] = sums[(2 * i + 1) * 32] = 0.0f;
    }
    st.most = -1e30f; /* far under every score, but not so far that the first one overflows against a masked one */
    st.total = 0.0f;
    st.held = 0;
    asm volatile("cp.async.wait_group %0;" ::"n"(P::AHEAD / P::AT_ONCE) : "memory"); /* the tables are there */
    __syncthreads();

    const uint32_t key_base = (uint32_t)__cvta_generic_to_shared(shared) + lane % M::SLOTS * M::ROW_BYTES;
    select_query<P> query;
    uint32_t steps[P::STEPS][2][2];
    select_make_steps<P, HALVES>(turn_of, steps);
#pragma unroll
    for (int i = 0; i < P::STEPS; i++) {
        const float *row = queries + (lane >> 3) * M::PITCH;
        const float2 u = *(const float2 *)(row + select_channel<P, HALVES, DIM>(i, 0));
        const float2 v = *(const float2 *)(row + select_channel<P, HALVES, DIM>(i, 1));
        turned[i * 32] = select_turn<HALVES>(make_float4(u.x, u.y, v.x, v.y), select_angles<P>(turn_of, i, tile * KVB_TILE));
        if (threadIdx.x < 8)
            stride[i * 8] = select_angles<P>(turn_of, i, P::RESEED * KVB_TILE);
    }
    __syncthreads();
    uint32_t before[P::AT_ONCE][M::LANE_WORDS] = {}, weights[P::AT_ONCE][2] = {}; /* the tiles before, folded while the next are scored */
    uint32_t since = 0, flush = 0, slot = 0, free_slot = P::AHEAD;
    for (; tile < tile_end; tile += P::AT_ONCE) {
        select_fetch<P>(reader, c, s, place, tile_end, ring_at + free_slot * P::SLOT_BYTES);
        free_slot = free_slot + P::AT_ONCE == P::RING ? 0 : free_slot + P::AT_ONCE;
        asm volatile("cp.async.wait_group %0;" ::"n"(P::AHEAD / P::AT_ONCE) : "memory");
        const unsigned char *now = ring + slot * P::SLOT_BYTES;
        slot = slot + P::AT_ONCE == P::RING ? 0 : slot + P::AT_ONCE;
        uint32_t keys[P::AT_ONCE][M::LANE_WORDS], mask[P::AT_ONCE];
#pragma unroll
        for (int a = 0; a < P::AT_ONCE; a++) {
            select_words<M::LANE_WORDS>(keys[a], now + a * P::SLOT_BYTES + lane * (4 * M::LANE_WORDS));
            mask[a] = *(const uint32_t *)(now + a * P::SLOT_BYTES + 2 * M::TILE_BYTES + lane * 4);
        }
        float scores[P::AT_ONCE][2][2], most = -INFINITY; /* [tile][product][block] */
        if (since == 0)
            select_seed<P, HALVES>(query, turned, stride);
        else
            select_step<P, HALVES>(query, steps);
        since = since + P::AT_ONCE == P::RESEED ? 0 : since + P::AT_ONCE;
        mma_each<0, P::AT_ONCE>([&](auto which) {
            enum { A = decltype(which)::value };
            if (A > 0)
                select_step<P, HALVES>(query, steps);
            select_scores<P, 0>(query, keys[A], key_base, scores[A], [&](auto step) {
                enum { I = decltype(step)::value };
                select_fold<P, I / 2, I % 2>(st, before[A], weights[A]);
            });
            select_step<P, HALVES>(query, steps);
            select_scores<P, 1>(query, keys[A], key_base, scores[A], [&](auto step) {
                enum { I = decltype(step)::value + P::STEPS };
                select_fold<P, I / 2, I % 2>(st, before[A], weights[A]);
            });
        });
#pragma unroll
        for (uint32_t a = 0; a < P::AT_ONCE; a++) {
            uint32_t dead = tile + a < tile_end ? mask[a] : ~0u;
            if ((tile + a) * KVB_TILE < x.sinks || (tile + a + 1) * KVB_TILE > x.first)
                dead = mma_edges(dead, (tile + a) * KVB_TILE, x.sinks, x.first);
            if (dead != 0) {
#pragma unroll
                for (int i = 0; i < 4; i++)
                    if (dead >> ((lane >> 2) + 8 * i) & 1)
                        scores[a][i & 1][i >> 1] = -INFINITY;
            }
            most = select_max(most, select_most(scores[a]));
            select_words<M::LANE_WORDS>(before[a], now + a * P::SLOT_BYTES + M::TILE_BYTES + lane * (4 * M::LANE_WORDS));
        }
        flush += P::AT_ONCE;
        if (__any_sync(~0u, !(most <= st.most + 15.99f)) || flush == P::FLUSH) {
            select_raise(st, most, sums);
            flush = 0;
        }
#pragma unroll
        for (uint32_t a = 0; a < P::AT_ONCE; a++)
            select_weigh(st, scores[a], weights[a]);
    }
    mma_each<0, P::AT_ONCE * P::PRODUCTS>([&](auto piece) {
        enum { A = decltype(piece)::value / P::PRODUCTS, I = decltype(piece)::value % P::PRODUCTS };
        select_fold<P, I / 2, I % 2>(st, before[A], weights[A]);
    });
    select_flush(st, sums, 1.0f);
    /* As a warp of cuda_mma.cuh has it: columns are queries. */
    mma_state<DIM> rows;
    float total = st.total;
    for (int k = 4; k < 32; k <<= 1)
        total += __shfl_xor_sync(~0u, total, k);
#pragma unroll
    for (int e = 0; e < 2; e++) {
        const uint32_t from_lane = lane & ~3u | 2 * (t & 1) | e;
        const float all = __shfl_sync(~0u, total, from_lane);
        rows.most[e] = __shfl_sync(~0u, st.most, from_lane);
        rows.total[e] = lane < 2 ? all : 0.0f;
    }
    const float *table_steps = (const float *)(tables + P::KEY_BYTES + P::VALUE_BYTES) + channel;
#pragma unroll
    for (int i = 0; i < P::PRODUCTS; i++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float value = __ldg(table_steps + 2 * i + r) * (sums[(2 * i + r) * 32] - SELECT_ZERO * total);
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const float routed = __shfl_sync(~0u, value, lane & ~3u | 2 * (t & 1) | e);
                rows.sum[i][2 * r + e] = t < 2 ? routed : 0.0f;
            }
        }
    mma_exact_tiles<M, P::EXACT_WEIGHT>(rows, c, l, b, share, columns, queries);
    mma_finish<M, DIM, P::WARPS>(rows, shared, shares, l, b, columns, w, column_groups, out);
}

/* Blocks of which there are more than multiprocessors go in halves: one half's loads at its start pass while the other computes. */
enum { SELECT_MANY_BLOCKS = 256 };

template <bool HALVES, int DIM>
static cudaError_t select_start(const kvb_dev_layer *layer, const kvb_dev_cache *cache, const kvb_dev_batch *batch, const void *q,
                                void *out, const kvb_dev_work *work, uint32_t column_groups, cudaStream_t stream)
{
    const dim3 blocks(work->splits, layer->kv_heads, batch->sequences * column_groups);
    if ((uint64_t)blocks.x * blocks.y * blocks.z < SELECT_MANY_BLOCKS)
        attend_select<HALVES, DIM, 8><<<blocks, 256, select_kernel<HALVES, DIM, 8>::SHARED_BYTES, stream>>>(*layer, *cache, *batch, q, out,
                                                                                                          *work, column_groups);
    else
        attend_select<HALVES, DIM, 4><<<blocks, 128, select_kernel<HALVES, DIM, 4>::SHARED_BYTES, stream>>>(*layer, *cache, *batch, q, out,
                                                                                                          *work, column_groups);
    return cudaGetLastError();
}

template <bool HALVES, int DIM> static int select_resident(void)
{
    const int whole = mma_ready((const void *)attend_select<HALVES, DIM, 8>, 256, select_kernel<HALVES, DIM, 8>::SHARED_BYTES);
    const int halves = mma_ready((const void *)attend_select<HALVES, DIM, 4>, 128, select_kernel<HALVES, DIM, 4>::SHARED_BYTES);
    return halves > 0 ? whole : 0;
}

/* The tables of one head: keys [unit][16][4] of half floats as mma_tables() wants them, values [D][16] of entries. */
template <bool HALVES, int DIM> static void select_tables(const uint8_t *key, const uint8_t *value, uint8_t *to)
{
    typedef select_kernel<HALVES, DIM, 8> P;
    mma_repeat_keys<typename P::Key, HALVES>(key, to);
    for (uint32_t i = 0; i < P::VALUE_BYTES; i++)
        to[P::KEY_BYTES + i] = value[(i / 64 * 16 + i % 16) * 4 + i / 16 % 4];
}

#endif
