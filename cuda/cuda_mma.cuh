/* Decode attention over codes on tensor cores, for codebooks whose rows fit in shared memory.
 *
 * A warp takes a tile of 32 tokens. Keys: centroids are gathered straight into the A fragments of m16n8k16 (rows are tokens, the
 * order of channels is free as long as the query follows it); the eight columns are four queries turned back by the start of the
 * tile's first block of 16 tokens, and the same four by that of its second, so that one product serves two blocks and a query is
 * turned once for 32 tokens. Values: the transposed product, rows are channels; its A fragments want two tokens in a register, which
 * one byte permutation a register makes of two gathered rows. Weights go from one product to the other through movmatrix.
 * Tables of 16 rows lie in shared memory once for each lane of a phase, so that a gather never meets itself; tables of 256 rows
 * lie there once; tables of 4096 rows stay in memory, where the second-level cache holds them (mma_far_*). Exact tokens (sinks, window, anchors) go through the same products with their rows read from memory.
 *
 * docs/kernels.md has the arithmetic behind this and what was tried. */
#ifndef KVB_CUDA_MMA_CUH
#define KVB_CUDA_MMA_CUH

#include "cuda/cuda_device.cuh"

template <int KIND> struct mma_traits;
template <> struct mma_traits<KVB_MMA_4X16> { enum { CHANNELS = 4, BITS = 4, STAGES = 1, WARPS = 8, BLOCKS = 2 }; };
template <> struct mma_traits<KVB_MMA_ADD_8X16> { enum { CHANNELS = 8, BITS = 4, STAGES = 2, WARPS = 8, BLOCKS = 2 }; };
template <> struct mma_traits<KVB_MMA_8X256> { enum { CHANNELS = 8, BITS = 8, STAGES = 1, WARPS = 16, BLOCKS = 1 }; };
template <> struct mma_traits<KVB_MMA_4X256> { enum { CHANNELS = 4, BITS = 8, STAGES = 1, WARPS = 16, BLOCKS = 1 }; };
template <> struct mma_traits<KVB_MMA_2X256> { enum { CHANNELS = 2, BITS = 8, STAGES = 1, WARPS = 16, BLOCKS = 1 }; };
template <> struct mma_traits<KVB_MMA_16X256> { enum { CHANNELS = 16, BITS = 8, STAGES = 1, WARPS = 16, BLOCKS = 1 }; };
template <> struct mma_traits<KVB_MMA_16X4096> { enum { CHANNELS = 16, BITS = 12, STAGES = 1, WARPS = 8, BLOCKS = 2 }; };
template <> struct mma_traits<KVB_MMA_32X4096> { enum { CHANNELS = 32, BITS = 12, STAGES = 1, WARPS = 8, BLOCKS = 2 }; };

#define KVB_DI static __device__ __forceinline__

KVB_DI uint32_t mma_pack(float a, float b)
{
    const __half2 h = __floats2half2_rn(a, b);
    return *(const uint32_t *)&h;
}
KVB_DI __half2 mma_half2(uint32_t x) { return *(const __half2 *)&x; }
KVB_DI uint32_t mma_word(__half2 x) { return *(const uint32_t *)&x; }
KVB_DI uint32_t mma_prmt(uint32_t a, uint32_t b, uint32_t s)
{
    uint32_t d;
    asm("prmt.b32 %0,%1,%2,%3;" : "=r"(d) : "r"(a), "r"(b), "r"(s));
    return d;
}
KVB_DI uint32_t mma_dp4a(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t d;
    asm("dp4a.u32.u32 %0,%1,%2,%3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
KVB_DI float mma_exp2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0,%1;" : "=f"(y) : "f"(x));
    return y;
}
KVB_DI uint32_t mma_transpose(uint32_t x)
{
    uint32_t y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0,%1;" : "=r"(y) : "r"(x));
    return y;
}
/* c += a (16 x 16, rows) * b (16 x 8, columns) */
KVB_DI void mma_16816(float *c, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/* N 32-bit words of shared memory at `address` + a constant. */
template <int N> KVB_DI void mma_gather(uint32_t *to, uint32_t address)
{
    if (N == 1)
        asm volatile("ld.shared.u32 %0,[%1];" : "=r"(to[0]) : "r"(address));
    else if (N == 2)
        asm volatile("ld.shared.v2.u32 {%0,%1},[%2];" : "=r"(to[0]), "=r"(to[N > 1]) : "r"(address));
    else
#pragma unroll
        for (int i = 0; i < N; i += 4)
            asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3},[%4];"
                         : "=r"(to[i]), "=r"(to[(i + 1) % N]), "=r"(to[(i + 2) % N]), "=r"(to[(i + 3) % N])
                         : "r"(address + 4 * i));
}

/* BYTES: tables of bytes, 128 more than multiples of a step of the channel (64 more in each of two stages). */
template <int KIND, bool HALVES, int DIM, bool BYTES> struct mma_kernel {
    typedef mma_traits<KIND> T;
    enum {
        CH = T::CHANNELS, BITS = T::BITS, STAGES = T::STAGES, WARPS = T::WARPS, BYTE = BYTES,
        ROWS = 1 << BITS,
        UNITS = DIM / CH * STAGES,
        KEY_UNITS = UNITS / 4,   /* of a lane */
        VALUE_UNITS = UNITS / 8,
        STEPS = DIM / 16,        /* products of 16 channels */
        FAR = BITS > 8,          /* tables stay in memory */
        TOKEN_BYTES = UNITS * BITS / 8,
        TILE_BYTES = 32 * TOKEN_BYTES,
        PIECE = !FAR || TOKEN_BYTES % 4 == 0 ? 4 : TOKEN_BYTES % 2 == 0 ? 2 : 1, /* bytes that a lane reads at a time */
        LANE_WORDS = TOKEN_BYTES / PIECE,
        ROW_BYTES = BYTES ? CH : 2 * CH,
        WORDS = CH / 2,          /* of a row as half floats */
        GATHERED = ROW_BYTES / 4, /* words */
        REPEATED = BITS == 4,
        SLOTS = REPEATED ? 128 / ROW_BYTES : 1,
        CODE_BYTES = REPEATED ? 128 : ROW_BYTES, /* from one row to the next */
        UNIT_BYTES = ROWS * CODE_BYTES,
        KEY_BYTES = REPEATED ? KEY_UNITS * UNIT_BYTES : UNITS * UNIT_BYTES,
        VALUE_BYTES = REPEATED ? 32 / SLOTS * VALUE_UNITS * UNIT_BYTES : UNITS * UNIT_BYTES,
        NEAR_BYTES = FAR ? 2 * WARPS * 32 * 2 * UNITS : KEY_BYTES + VALUE_BYTES, /* tables, or the codes of each warp's tile */
        MERGE_PITCH = DIM + 8,
        MERGE_BYTES = WARPS * KVB_COLUMNS * MERGE_PITCH * 4,
        TABLE_BYTES = (int)NEAR_BYTES > (int)MERGE_BYTES ? (int)NEAR_BYTES : (int)MERGE_BYTES,
        PITCH = DIM + 8, /* floats from one query to the next: they lie in other banks */
        QUERY_BYTES = KVB_COLUMNS * PITCH * 4,
        SCALED_BYTES = BYTES ? QUERY_BYTES : 0, /* the queries times the steps of the keys' channels */
        HEAD_BYTES = KEY_BYTES + VALUE_BYTES + (BYTES ? 2 * DIM * 4 : 0), /* tables, and steps of both kinds */
        STEP_BYTES = STEPS * 4 * 8,
        SHARED_BYTES = TABLE_BYTES + QUERY_BYTES + SCALED_BYTES + STEP_BYTES + WARPS * KVB_COLUMNS * 8,
        RESEED = 8, /* tiles after which queries are turned anew from float32 */
        EXACT_WEIGHT = 3 /* work of an exact tile in coded ones */
    };
};

/* The first of the two RoPE pairs that lane t holds of product j. */
template <class M, bool HALVES, int DIM> KVB_DI uint32_t mma_pair(uint32_t j, uint32_t t)
{
    if (!M::FAR)
        return DIM / 8 * t + 2 * j;
    /* 16 bytes of a row, and of those 32 channels further on. */
    return HALVES ? j / 4 * 32 + 8 * t + 2 * (j % 4) : j / 2 * 16 + 4 * t + 2 * (j % 2);
}

/* Bits of unit I of a lane times CODE_BYTES, added to `base`: the address of its row less that of the unit. */
template <class M, int I> KVB_DI uint32_t mma_row_address(const uint32_t *codes, uint32_t base)
{
    if (M::BITS == 8)
        return mma_dp4a(codes[I / 4], (uint32_t)M::CODE_BYTES << (8 * (I % 4)), base);
    /* The compiler makes one mask serve the four nibbles of the same parity. */
    const uint32_t word = codes[I / 8], place = I % 8;
    return place % 2 ? mma_dp4a(word & 0xF0F0F0F0u, 0x08u << (8 * (place / 2)), base)
                     : mma_dp4a(word & 0x0F0F0F0Fu, 0x80u << (8 * (place / 2)), base);
}

template <int I, int N, class F> KVB_DI void mma_each(F f)
{
    if constexpr (I < N) {
        f(std::integral_constant<int, I>());
        mma_each<I + 1, N>(f);
    }
}

/* What a warp carries through its tiles. */
template <int DIM> struct mma_state {
    uint32_t q[DIM / 16][2];
    float sum[DIM / 16][4];
    float most[2], total[2];
};

template <int DIM> KVB_DI void mma_clear(mma_state<DIM> &st)
{
#pragma unroll
    for (int i = 0; i < DIM / 16; i++)
        st.sum[i][0] = st.sum[i][1] = st.sum[i][2] = st.sum[i][3] = 0.0f;
    /* Far under every score, but not so far that the first one overflows against a masked one. */
    st.most[0] = st.most[1] = -1e30f;
    st.total[0] = st.total[1] = 0.0f;
}

/* The query of this lane's column for all products: `turn` of channels as the layout pairs them, at `position`. */
template <class M, bool HALVES, int DIM>
KVB_DI void mma_seed(mma_state<DIM> &st, const kvb_dev_layer &l, const float *q, uint32_t position, bool turn)
{
    const uint32_t t = threadIdx.x & 3;
#pragma unroll
    for (int j = 0; j < DIM / 16; j++) {
        float x[4];
        const uint32_t first = mma_pair<M, HALVES, DIM>((uint32_t)j, t);
        const float2 lower = *(const float2 *)(q + (HALVES ? first : 2 * first));
        const float2 upper = *(const float2 *)(q + (HALVES ? first + DIM / 2 : 2 * first + 2));
        const ulonglong2 turns = turn ? __ldg((const ulonglong2 *)(l.turn + first)) : make_ulonglong2(0, 0);
#pragma unroll
        for (int e = 0; e < 2; e++) {
            float u = HALVES ? (e ? lower.y : lower.x) : (e ? upper.x : lower.x);
            float v = HALVES ? (e ? upper.y : upper.x) : (e ? upper.y : lower.y);
            if (turn) {
                float sine, cosine;
                /* Within half a turn the fast sine and cosine are good to 5e-7. */
                __sincosf(kvb_phase(e ? turns.y : turns.x, position) * 3.14159265358979f, &sine, &cosine);
                const float r = u * cosine + v * sine;
                v = v * cosine - u * sine;
                u = r;
            }
            x[e] = u;
            x[2 + e] = v;
        }
        st.q[j][0] = mma_pack(x[0], x[1]);
        st.q[j][1] = mma_pack(x[2], x[3]);
    }
}

/* Turns the queries on by the 32 positions of a tile. */
template <int DIM> KVB_DI void mma_step(mma_state<DIM> &st, const uint2 *steps)
{
    const uint32_t t = threadIdx.x & 3;
#pragma unroll
    for (int j = 0; j < DIM / 16; j++) {
        const uint2 turn = steps[j * 4 + t];
        const __half2 c = mma_half2(turn.x), s = mma_half2(turn.y), u = mma_half2(st.q[j][0]), v = mma_half2(st.q[j][1]);
        st.q[j][0] = mma_word(__hfma2(v, s, __hmul2(u, c)));
        st.q[j][1] = mma_word(__hfma2(__hneg2(u), s, __hmul2(v, c)));
    }
}

/* The weights of a tile's scores, [product][e]: lanes t = 0, 1 hold tokens of rows 0-7, t = 2, 3 of rows 8-15, of queries
 * 2(t & 1) + e. The maximum that scores are relative to moves only where one would pass 2^8. */
template <int DIM> KVB_DI void mma_softmax(mma_state<DIM> &st, float (*s)[2], uint32_t *weights)
{
    const float far = fmaxf(fmaxf(s[0][0] - st.most[0], s[0][1] - st.most[1]), fmaxf(s[1][0] - st.most[0], s[1][1] - st.most[1]));
    if (__any_sync(~0u, far > 8.0f)) {
        float factor[2];
#pragma unroll
        for (int e = 0; e < 2; e++) {
            float most = fmaxf(s[0][e], s[1][e]);
            for (int k = 2; k < 32; k <<= 1)
                most = fmaxf(most, __shfl_xor_sync(~0u, most, k));
            const float now = most > st.most[e] + 8.0f ? most : st.most[e];
            factor[e] = mma_exp2(st.most[e] - now);
            st.most[e] = now;
            st.total[e] *= factor[e];
        }
#pragma unroll
        for (int i = 0; i < DIM / 16; i++) {
            st.sum[i][0] *= factor[0];
            st.sum[i][1] *= factor[1];
            st.sum[i][2] *= factor[0];
            st.sum[i][3] *= factor[1];
        }
    }
#pragma unroll
    for (int p = 0; p < 2; p++) {
        weights[p] = mma_pack(mma_exp2(s[p][0] - st.most[0]), mma_exp2(s[p][1] - st.most[1]));
        /* What is summed is what is multiplied. */
        const float2 held = __half22float2(mma_half2(weights[p]));
        st.total[0] += held.x;
        st.total[1] += held.y;
    }
}

/* Scores of one lane out of a product: see mma_softmax(). */
KVB_DI void mma_scores(const float *c, bool live, float *s)
{
    const bool upper = threadIdx.x & 2;
    s[0] = live ? (upper ? c[2] : c[0]) : -INFINITY;
    s[1] = live ? (upper ? c[3] : c[1]) : -INFINITY;
}

template <int WORDS> KVB_DI void mma_add_rows(uint32_t *a, const uint32_t *b)
{
#pragma unroll
    for (int e = 0; e < WORDS; e++)
        a[e] = mma_word(__hadd2(mma_half2(a[e]), mma_half2(b[e])));
}

/* Two bytes as half floats: 0x6400 | u is 1024 + u. */
KVB_DI uint32_t mma_widen(uint32_t bytes, uint32_t selector)
{
    return mma_word(__hsub2(mma_half2(mma_prmt(bytes, 0x64646464u, selector)), __half2half2(__ushort_as_half(0x6480))));
}

/* What row I of a lane's codes gathers: words as they lie in the table, the two stages of bytes added (neither passes 127). */
template <class M, int I, int U> KVB_DI void mma_code_row(const uint32_t *codes, uint32_t base, uint32_t *to)
{
    mma_gather<M::GATHERED>(to, mma_row_address<M, I>(codes, base) + U * M::UNIT_BYTES);
    if constexpr (M::BYTE && M::STAGES == 2) {
        uint32_t more[M::GATHERED];
        mma_gather<M::GATHERED>(more, mma_row_address<M, I + 1>(codes, base) + (U + 1) * M::UNIT_BYTES);
#pragma unroll
        for (int i = 0; i < M::GATHERED; i++)
            to[i] += more[i];
    }
}

/* The same as half floats. */
template <class M, int I, int U> KVB_DI void mma_key_row(const uint32_t *codes, uint32_t base, uint32_t *to)
{
    if constexpr (!M::BYTE)
        mma_code_row<M, I, U>(codes, base, to);
    else {
        uint32_t row[M::GATHERED];
        mma_code_row<M, I, U>(codes, base, row);
#pragma unroll
        for (int i = 0; i < M::GATHERED; i++) {
            to[2 * i] = mma_widen(row[i], 0x4140);
            to[2 * i + 1] = mma_widen(row[i], 0x4342);
        }
    }
}

/* One product of 16 tokens' keys: c [4]. codes: the lane's words of the tile; P: which product. */
template <class M, bool HALVES, int DIM, int P>
KVB_DI void mma_keys(const mma_state<DIM> &st, const uint32_t *codes, const uint32_t *base, float *c)
{
    c[0] = c[1] = c[2] = c[3] = 0.0f;
    enum { FIRST = P * 2 * M::KEY_UNITS, HALF = M::KEY_UNITS / 2, EACH = M::BYTE ? M::STAGES : 1 }; /* EACH: units of a row */
    if constexpr (HALVES) {
        mma_each<0, HALF / EACH>([&](auto unit) {
            enum { U = decltype(unit)::value * EACH, STEP = U / M::STAGES * M::WORDS };
            uint32_t row[4][M::WORDS];
            mma_key_row<M, FIRST + U, U>(codes, base[0], row[0]);
            mma_key_row<M, FIRST + M::KEY_UNITS + U, U>(codes, base[0], row[1]);
            mma_key_row<M, FIRST + HALF + U, U>(codes, base[1], row[2]);
            mma_key_row<M, FIRST + M::KEY_UNITS + HALF + U, U>(codes, base[1], row[3]);
#pragma unroll
            for (int e = 0; e < M::WORDS; e++)
                mma_16816(c, row[0][e], row[1][e], row[2][e], row[3][e], st.q[STEP + e][0], st.q[STEP + e][1]);
        });
    } else {
        mma_each<0, M::KEY_UNITS / EACH>([&](auto unit) {
            enum { U = decltype(unit)::value * EACH, STEP = U / M::STAGES * (M::WORDS / 2) };
            uint32_t row[2][M::WORDS];
            mma_key_row<M, FIRST + U, U>(codes, base[0], row[0]);
            mma_key_row<M, FIRST + M::KEY_UNITS + U, U>(codes, base[0], row[1]);
#pragma unroll
            for (int e = 0; e < M::WORDS / 2; e++)
                mma_16816(c, row[0][2 * e], row[1][2 * e], row[0][2 * e + 1], row[1][2 * e + 1], st.q[STEP + e][0],
                          st.q[STEP + e][1]);
        });
    }
}

/* Code u of a token out of what its lane read. */
template <class M> KVB_DI uint32_t mma_far_code(const uint32_t *words, int u)
{
    const int bit = u * M::BITS, at = bit / (8 * M::PIECE), shift = bit % (8 * M::PIECE);
    uint32_t code = words[at] >> shift;
    if (shift + M::BITS > 8 * M::PIECE)
        code |= words[at + 1] << (8 * M::PIECE - shift);
    if (shift + M::BITS > 16 * M::PIECE)
        code |= words[at + 2] << (16 * M::PIECE - shift);
    return code & (M::ROWS - 1);
}

/* Lane i holds the codes of token i: all lanes get to see them at `to` [32][UNITS]. */
template <class M> KVB_DI void mma_far_spread(uint16_t *to, const uint32_t *words)
{
    uint32_t *mine = (uint32_t *)(to + threadIdx.x % 32 * M::UNITS);
#pragma unroll
    for (int u = 0; u < M::UNITS; u += 2)
        mine[u / 2] = mma_far_code<M>(words, u) | mma_far_code<M>(words, u + 1) << 16;
}

/* mma_keys() from tables in memory: the four lanes of a row read 64 bytes side by side. */
template <class M, bool HALVES, int DIM, int P>
KVB_DI void mma_far_keys(const mma_state<DIM> &st, const uint16_t *codes, const __half *table, float *c)
{
    const uint32_t g = threadIdx.x % 32 >> 2, t = threadIdx.x & 3;
    enum { SPANS = DIM / 32 };
    uint4 row[2][SPANS];
#pragma unroll
    for (int r = 0; r < 2; r++)
#pragma unroll
        for (int s = 0; s < SPANS; s++) {
            const uint32_t channel = 32 * s + 8 * t, unit = channel / M::CH, code = codes[(r * 16 + P * 8 + g) * M::UNITS + unit];
            row[r][s] = __ldg((const uint4 *)(table + ((size_t)(unit * M::ROWS + code) * M::CH + channel % M::CH)));
        }
    c[0] = c[1] = c[2] = c[3] = 0.0f;
#pragma unroll
    for (int s = 0; s < (HALVES ? SPANS / 2 : SPANS); s++) {
        const uint4 a = row[0][s], b = row[1][s];
        if constexpr (HALVES) {
            const uint4 x = row[0][s + SPANS / 2], y = row[1][s + SPANS / 2];
            mma_16816(c, a.x, b.x, x.x, y.x, st.q[4 * s][0], st.q[4 * s][1]);
            mma_16816(c, a.y, b.y, x.y, y.y, st.q[4 * s + 1][0], st.q[4 * s + 1][1]);
            mma_16816(c, a.z, b.z, x.z, y.z, st.q[4 * s + 2][0], st.q[4 * s + 2][1]);
            mma_16816(c, a.w, b.w, x.w, y.w, st.q[4 * s + 3][0], st.q[4 * s + 3][1]);
        } else {
            mma_16816(c, a.x, b.x, a.y, b.y, st.q[2 * s][0], st.q[2 * s][1]);
            mma_16816(c, a.z, b.z, a.w, b.w, st.q[2 * s + 1][0], st.q[2 * s + 1][1]);
        }
    }
}

/* Columns 0-3 take the tokens of rows 0-7, columns 4-7 those of rows 8-15. */
KVB_DI void mma_weights(uint32_t weights, uint32_t *b)
{
    const uint32_t x = mma_transpose(weights);
    const bool lower = threadIdx.x % 32 < 16;
    b[0] = lower ? x : 0;
    b[1] = lower ? 0 : x;
}

KVB_DI void mma_fold(float *sum, uint32_t x0, uint32_t x1, uint32_t x2, uint32_t x3, const uint32_t *b)
{
    mma_16816(sum, mma_prmt(x0, x1, 0x5410), mma_prmt(x0, x1, 0x7632), mma_prmt(x2, x3, 0x5410), mma_prmt(x2, x3, 0x7632), b[0],
              b[1]);
}

template <class M, int DIM, int P>
KVB_DI void mma_values(mma_state<DIM> &st, const uint32_t *codes, uint32_t base, uint32_t weights)
{
    uint32_t b[2];
    mma_weights(weights, b);
    enum { FIRST = P * 4 * M::VALUE_UNITS, N = M::VALUE_UNITS };
    mma_each<0, N / M::STAGES>([&](auto group) {
        enum { U = decltype(group)::value * M::STAGES, STEP = decltype(group)::value * M::WORDS };
        uint32_t row[4][M::GATHERED];
        mma_each<0, 4>([&](auto token) {
            enum { I = FIRST + decltype(token)::value * N + U };
            mma_code_row<M, I, U>(codes, base, row[decltype(token)::value]);
            if constexpr (!M::BYTE && M::STAGES == 2) {
                uint32_t more[M::WORDS];
                mma_gather<M::WORDS>(more, mma_row_address<M, I + 1>(codes, base) + (U + 1) * M::UNIT_BYTES);
                mma_add_rows<M::WORDS>(row[decltype(token)::value], more);
            }
        });
#pragma unroll
        for (int e = 0; e < M::GATHERED; e++)
            if constexpr (M::BYTE) {
                /* Channels in pairs of tokens: two bytes of each channel side by side, then widened. */
                const uint32_t x = mma_prmt(row[0][e], row[1][e], 0x5140), y = mma_prmt(row[2][e], row[3][e], 0x5140);
                const uint32_t z = mma_prmt(row[0][e], row[1][e], 0x7362), w = mma_prmt(row[2][e], row[3][e], 0x7362);
                mma_16816(st.sum[STEP + 2 * e], mma_widen(x, 0x4140), mma_widen(x, 0x4342), mma_widen(y, 0x4140),
                          mma_widen(y, 0x4342), b[0], b[1]);
                mma_16816(st.sum[STEP + 2 * e + 1], mma_widen(z, 0x4140), mma_widen(z, 0x4342), mma_widen(w, 0x4140),
                          mma_widen(w, 0x4342), b[0], b[1]);
            } else
                mma_fold(st.sum[STEP + e], row[0][e], row[1][e], row[2][e], row[3][e], b);
    });
}

/* mma_values() from tables in memory. */
template <class M, int DIM, int P>
KVB_DI void mma_far_values(mma_state<DIM> &st, const uint16_t *codes, const __half *table, uint32_t weights)
{
    const uint32_t g = threadIdx.x % 32 >> 2, t = threadIdx.x & 3;
    enum { PIECES = DIM / 64 };
    uint4 row[4][PIECES];
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int s = 0; s < PIECES; s++) {
            const uint32_t channel = DIM / 8 * g + 8 * s, unit = channel / M::CH;
            const uint32_t code = codes[((i / 2) * 16 + P * 8 + 2 * t + i % 2) * M::UNITS + unit];
            row[i][s] = __ldg((const uint4 *)(table + ((size_t)(unit * M::ROWS + code) * M::CH + channel % M::CH)));
        }
    uint32_t b[2];
    mma_weights(weights, b);
#pragma unroll
    for (int s = 0; s < PIECES; s++) {
        mma_fold(st.sum[4 * s], row[0][s].x, row[1][s].x, row[2][s].x, row[3][s].x, b);
        mma_fold(st.sum[4 * s + 1], row[0][s].y, row[1][s].y, row[2][s].y, row[3][s].y, b);
        mma_fold(st.sum[4 * s + 2], row[0][s].z, row[1][s].z, row[2][s].z, row[3][s].z, b);
        mma_fold(st.sum[4 * s + 3], row[0][s].w, row[1][s].w, row[2][s].w, row[3][s].w, b);
    }
}

/* Row `from` .. of 4-byte words of memory. */
template <int N> KVB_DI void mma_read(uint32_t *to, const __half *from)
{
#pragma unroll
    for (int i = 0; i < N; i += 4) {
        const uint4 x = __ldg((const uint4 *)from + i / 4);
        to[i] = x.x;
        to[i + 1] = x.y;
        to[i + 2] = x.z;
        to[i + 3] = x.w;
    }
}

KVB_DI const __half *mma_pointer(const __half *p, uint32_t lane)
{
    return (const __half *)__shfl_sync(~0u, (unsigned long long)p, lane);
}

/* A tile of exact rows: lane i has those of token i, NULL where there is none. Queries: not turned, channels in plain order. */
template <int DIM>
KVB_DI void mma_exact(mma_state<DIM> &st, const __half *key, const __half *value, uint32_t position, const uint32_t *mine)
{
    const uint32_t lane = threadIdx.x % 32, g = lane >> 2, t = lane & 3;
    const __half *some_key = mma_pointer(key, 0), *some_value = mma_pointer(value, 0); /* token 0 of a tile is always there */
    float s[2][2];
#pragma unroll
    for (int p = 0; p < 2; p++) {
        const uint32_t a = p * 8 + g, b = 16 + a;
        const __half *row_a = mma_pointer(key, a), *row_b = mma_pointer(key, b);
        row_a = row_a != NULL ? row_a : some_key;
        row_b = row_b != NULL ? row_b : some_key;
        float c[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int j = 0; j < DIM / 16; j += 2) {
            uint32_t x[4], y[4];
            mma_read<4>(x, row_a + DIM / 4 * t + 4 * j);
            mma_read<4>(y, row_b + DIM / 4 * t + 4 * j);
            mma_16816(c, x[0], y[0], x[1], y[1], st.q[j][0], st.q[j][1]);
            mma_16816(c, x[2], y[2], x[3], y[3], st.q[j + 1][0], st.q[j + 1][1]);
        }
        const uint32_t of_a = __shfl_sync(~0u, position, a), of_b = __shfl_sync(~0u, position, b), own = t & 2 ? of_b : of_a;
        mma_scores(c, true, s[p]);
        s[p][0] = own <= mine[0] ? s[p][0] : -INFINITY;
        s[p][1] = own <= mine[1] ? s[p][1] : -INFINITY;
    }
    uint32_t weights[2];
    mma_softmax<DIM>(st, s, weights);
#pragma unroll
    for (int p = 0; p < 2; p++) {
        uint32_t w[2];
        mma_weights(weights[p], w);
        const __half *row[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            row[i] = mma_pointer(value, (i / 2) * 16 + p * 8 + 2 * t + i % 2);
            row[i] = (row[i] != NULL ? row[i] : some_value) + DIM / 8 * g;
        }
#pragma unroll
        for (int j = 0; j < DIM / 16; j += 4) {
            uint32_t x[4][4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                mma_read<4>(x[i], row[i] + 2 * j);
#pragma unroll
            for (int e = 0; e < 4; e++)
                mma_fold(st.sum[j + e], x[0][e], x[1][e], x[2][e], x[3][e], w);
        }
    }
}

/* What a lane reads of a tile of codes, at p: N words, or pieces of a word. */
template <int N, int PIECE> KVB_DI void mma_codes(uint32_t *to, const uint8_t *p)
{
    if (PIECE < 4 || N % 2 != 0) {
#pragma unroll
        for (int i = 0; i < N; i++)
            to[i] = PIECE == 1 ? __ldg(p + i) : PIECE == 2 ? __ldg((const uint16_t *)p + i) : __ldg((const uint32_t *)p + i);
    } else if (N % 4 != 0) {
#pragma unroll
        for (int i = 0; i < N; i += 2) {
            const uint2 x = __ldg((const uint2 *)p + i / 2);
            to[i] = x.x;
            to[(i + 1) % N] = x.y;
        }
    } else
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            const uint4 x = __ldg((const uint4 *)p + i / 4);
            to[i] = x.x;
            to[(i + 1) % N] = x.y;
            to[(i + 2) % N] = x.z;
            to[(i + 3) % N] = x.w;
        }
}

#endif
