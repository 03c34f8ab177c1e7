/* Decode attention for books of any mixture of shapes, on tensor cores: heads with shapes of their own, means, a transform of the keys,
 * keys coded before RoPE.
 *
 * A warp decodes a tile of 32 tokens into shared memory, a lane a token. Keys are then multiplied by the inverse of their transform
 * (matrix fragments of 16 tokens times the whole matrix, 32 channels of the result at a time), get their mean, are turned by the place in
 * their block of 16 positions where they were coded before RoPE, and go on as fragments into the product with the queries, which are
 * turned back by the start of the block as in cuda_mma.cuh. Rows 0-7 of a product are of the tile's first block, rows 8-15 of its
 * second. Values are folded out of the same room once the keys are through.
 *
 * Channels lie in their own order: product j of a lane 4g + t has channels 16j + 2t, +1, +8, +9, and what RoPE turns them with (pairs
 * i, i + D/2) is product j + D/32 of the same lane. */
#ifndef KVB_CUDA_TILE_CUH
#define KVB_CUDA_TILE_CUH

#include "cuda/cuda_mma_kernel.cuh"

template <int DIM> struct tile_kernel {
    enum {
        WARPS = 8,
        PITCH = DIM + 8, /* of queries, in floats, as mma_kernel has it; of rows of half floats as well: neighbours lie in other banks */
        ROW_BYTES = 2 * PITCH,
        STAGES = 3,      /* of a table that has a place in shared memory, at most */
        TABLE_BYTES = STAGES * DIM * 16 * 2,
        MATRIX_BYTES = DIM * ROW_BYTES,
        TURN_PITCH = DIM / 2 * 8 + 64, /* bytes */
        TURN_BYTES = 16 * TURN_PITCH,  /* cosine and sine of each pair at the 16 places of a block */
        MEAN_BYTES = 2 * DIM * 4,
        TILE_BYTES = 32 * ROW_BYTES,   /* of each warp */
        MERGE_PITCH = DIM + 8,
        MERGE_BYTES = WARPS * KVB_COLUMNS * MERGE_PITCH * 4,
        QUERY_BYTES = KVB_COLUMNS * PITCH * 4,
        STEP_BYTES = DIM / 16 * 2 * 4 * 8,
        SHARE_BYTES = WARPS * KVB_COLUMNS * 8,
        SHARED_BYTES = WARPS * TILE_BYTES + MATRIX_BYTES + 2 * TABLE_BYTES + TURN_BYTES + MEAN_BYTES + QUERY_BYTES + STEP_BYTES + SHARE_BYTES,
        RESEED = 8,
        EXACT_WEIGHT = 2 /* work of an exact tile in coded ones */
    };
    static_assert((int)MERGE_BYTES <= WARPS * (int)TILE_BYTES, "sums are merged in the tiles' room");
};

/* How a head's table is decoded. */
enum tile_form { TILE_ANY = 0, TILE_16X1, TILE_16X2, TILE_16X3, TILE_8X2, TILE_8X3, TILE_4X1, TILE_4X2, TILE_4X3, TILE_2X2, TILE_2X3, TILE_1X2 };

KVB_DI tile_form tile_form_of(const kvb_shape &s)
{
    if (s.rows != 16)
        return TILE_ANY;
    switch (s.channels * 4 + s.stages) {
    case 65: return TILE_16X1;
    case 66: return TILE_16X2;
    case 67: return TILE_16X3;
    case 34: return TILE_8X2;
    case 35: return TILE_8X3;
    case 17: return TILE_4X1;
    case 18: return TILE_4X2;
    case 19: return TILE_4X3;
    case 10: return TILE_2X2;
    case 11: return TILE_2X3;
    case 6: return TILE_1X2;
    default: return TILE_ANY;
    }
}

/* BYTES bytes of memory, aligned to the largest power of two that divides BYTES. */
template <int BYTES> KVB_DI void tile_words(uint32_t *to, const uint8_t *p)
{
    if constexpr (BYTES % 4 == 0)
        mma_codes<BYTES / 4, 4>(to, p);
    else {
#pragma unroll
        for (int i = 0; i < BYTES / 2; i++) {
            const uint32_t x = __ldg((const uint16_t *)p + i);
            to[i / 2] = i % 2 ? to[i / 2] | x << 16 : x;
        }
    }
}

KVB_DI void tile_store(uint32_t to, const uint32_t *x)
{
    asm volatile("st.shared.v4.u32 [%0],{%1,%2,%3,%4};" ::"r"(to), "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]));
}

/* WORDS words of a row of CH half floats; of a row of one number, its 16 bits. */
template <int CH, int WORDS> KVB_DI void tile_gather(uint32_t *to, uint32_t address)
{
    if (CH == 1) {
        uint16_t x;
        asm volatile("ld.shared.u16 %0,[%1];" : "=h"(x) : "r"(address));
        to[0] = x;
    } else
        mma_gather<WORDS>(to, address);
}

/* The token whose codes begin at `row` as half floats at `to`; `table`: [group][stage][16][CH] in shared memory. */
template <int DIM, int CH, int STAGES> KVB_DI void tile_decode(const uint8_t *row, uint32_t table, uint32_t to)
{
    enum {
        GROUPS = DIM / CH, PIECE = GROUPS < 16 ? GROUPS : 16, BYTES = PIECE * STAGES / 2, ROW = 2 * CH,
        WORDS = CH >= 8 ? 4 : CH == 1 ? 1 : CH / 2, /* of what a group adds to 16 bytes */
        EACH = CH >= 8 ? 1 : 8 / CH                 /* groups of 16 bytes */
    };
#pragma unroll 1
    for (int piece = 0; piece < GROUPS / PIECE; piece++, row += BYTES, table += PIECE * STAGES * 16 * ROW, to += PIECE * ROW) {
        uint32_t words[(BYTES + 3) / 4];
        tile_words<BYTES>(words, row);
#pragma unroll
        for (int first = 0; first < PIECE; first += EACH)
#pragma unroll
            for (int part = 0; part < (CH > 8 ? CH / 8 : 1); part++) {
                uint32_t x[8];
#pragma unroll
                for (int e = 0; e < EACH; e++) {
                    uint32_t *mine = x + e * (CH == 1 ? 1 : CH / 2 < 4 ? CH / 2 : 0);
#pragma unroll
                    for (int m = 0; m < STAGES; m++) {
                        const int unit = (first + e) * STAGES + m, place = unit % 8;
                        const uint32_t code = (place % 2 ? words[unit / 8] >> 4 : words[unit / 8]) & 0x0F0F0F0Fu;
                        uint32_t got[4];
                        tile_gather<CH, WORDS>(got, mma_dp4a(code, (uint32_t)ROW << (8 * (place / 2)), table) + unit * 16 * ROW + part * 16);
#pragma unroll
                        for (int i = 0; i < WORDS; i++)
                            mine[i] = m == 0 ? got[i] : mma_word(__hadd2(mma_half2(mine[i]), mma_half2(got[i])));
                    }
                }
                if (CH == 1)
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        x[i] = mma_prmt(x[2 * i], x[2 * i + 1], 0x5410);
                tile_store(to + first * ROW + part * 16, x);
            }
    }
}

/* The same of any shape, its table in memory. */
static __device__ __noinline__ void tile_decode_any(const kvb_dev_codebook &c, const uint8_t *row, __half *to)
{
    const kvb_shape &s = c.shape;
    for (uint32_t group = 0; group < s.units / s.stages; group++) {
        for (uint32_t m = 0; m < s.stages; m++) {
            const uint32_t unit = group * s.stages + m;
            const __half *from = c.table + ((size_t)unit * s.rows + kvb_row_unit(row, unit, s.bits)) * s.channels;
            for (uint32_t e = 0; e < s.channels; e++)
                to[group * s.channels + e] = m == 0 ? __ldg(from + e) : __hadd(to[group * s.channels + e], __ldg(from + e));
        }
    }
}

template <int DIM>
KVB_DI void tile_decode_form(tile_form form, const kvb_dev_codebook &c, const uint8_t *row, uint32_t table, __half *to)
{
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(to);
    switch (form) {
    case TILE_16X1: tile_decode<DIM, 16, 1>(row, table, at); break;
    case TILE_16X2: tile_decode<DIM, 16, 2>(row, table, at); break;
    case TILE_16X3: tile_decode<DIM, 16, 3>(row, table, at); break;
    case TILE_8X2: tile_decode<DIM, 8, 2>(row, table, at); break;
    case TILE_8X3: tile_decode<DIM, 8, 3>(row, table, at); break;
    case TILE_4X1: tile_decode<DIM, 4, 1>(row, table, at); break;
    case TILE_4X2: tile_decode<DIM, 4, 2>(row, table, at); break;
    case TILE_4X3: tile_decode<DIM, 4, 3>(row, table, at); break;
    case TILE_2X2: tile_decode<DIM, 2, 2>(row, table, at); break;
    case TILE_2X3: tile_decode<DIM, 2, 3>(row, table, at); break;
    case TILE_1X2: tile_decode<DIM, 1, 2>(row, table, at); break;
    default: tile_decode_any(c, row, to);
    }
}

KVB_DI void tile_fragment(uint32_t *a, uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3]) : "r"(address));
}
KVB_DI void tile_fragment_turned(uint32_t *a, uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3]) : "r"(address));
}

/* Two channels of a lane turned by cosines (x, z) and sines (y, w): u and v are what RoPE turns together. */
template <bool HALVES> KVB_DI void tile_turn(float *u, float *v, float4 a)
{
    if (HALVES) {
        const float x = u[0] * a.x - v[0] * a.y, y = u[1] * a.z - v[1] * a.w;
        v[0] = u[0] * a.y + v[0] * a.x;
        v[1] = u[1] * a.w + v[1] * a.z;
        u[0] = x;
        u[1] = y;
    } else { /* each is a pair by itself */
        const float x = u[0] * a.x - u[1] * a.y, y = v[0] * a.z - v[1] * a.w;
        u[1] = u[0] * a.y + u[1] * a.x;
        v[1] = v[0] * a.w + v[1] * a.z;
        u[0] = x;
        v[0] = y;
    }
}

/* What the lanes of a block need to know of their layer's keys. */
struct tile_keys {
    const unsigned char *turns; /* tile_kernel::TURN_PITCH */
    const float *mean;          /* [D] */
    uint32_t matrix;            /* shared address of [D][PITCH] half floats */
    bool has_matrix, turned;
};

/* The first pair that lane 4g + t turns of (product j, half h): of halves the first of two, of interleaved pairs the only one. */
template <bool HALVES> KVB_DI uint32_t tile_pair(uint32_t j, uint32_t h, uint32_t t)
{
    return HALVES ? 16 * j + 8 * h + 2 * t : 8 * j + 4 * h + t;
}

/* Cosines and sines of what tile_turn() turns: of halves two pairs side by side; else one pair of each half of a product. */
template <bool HALVES> KVB_DI float4 tile_angles(const unsigned char *row, int j, int h)
{
    const uint32_t t = threadIdx.x & 3;
    if (HALVES)
        return *(const float4 *)(row + 8 * tile_pair<HALVES>(j, h, t));
    const float2 x = *(const float2 *)(row + 8 * tile_pair<HALVES>(j, 0, t)), y = *(const float2 *)(row + 8 * tile_pair<HALVES>(j, 1, t));
    return make_float4(x.x, x.y, y.x, y.y);
}

/* The query of this lane's column turned back by `position`, as B fragments. */
template <bool HALVES, int DIM>
KVB_DI void tile_seed(mma_state<DIM> &st, const kvb_dev_layer &l, const float *q, uint32_t position, bool turn)
{
    const uint32_t t = threadIdx.x & 3;
    const auto angles = [&](uint32_t pair, float *cosine, float *sine) {
        /* Within half a turn the fast sine and cosine are good to 5e-7. Back: the sine's sign. */
        __sincosf(-kvb_phase(turn ? __ldg(l.turn + pair) : 0, position) * 3.14159265358979f, sine, cosine);
    };
#pragma unroll
    for (int j = 0; j < (HALVES ? DIM / 32 : DIM / 16); j++) {
        float x[2][2], y[2][2]; /* [half]: of this product, of its partner */
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float2 u = *(const float2 *)(q + 16 * j + 8 * h + 2 * t);
            x[h][0] = u.x;
            x[h][1] = u.y;
            if (HALVES) {
                const float2 v = *(const float2 *)(q + DIM / 2 + 16 * j + 8 * h + 2 * t);
                y[h][0] = v.x;
                y[h][1] = v.y;
                float4 a;
                angles(tile_pair<HALVES>(j, h, t), &a.x, &a.y);
                angles(tile_pair<HALVES>(j, h, t) + 1, &a.z, &a.w);
                tile_turn<true>(x[h], y[h], a);
                st.q[j + DIM / 32][h] = mma_pack(y[h][0], y[h][1]);
            }
        }
        if (!HALVES) {
            float4 a;
            angles(tile_pair<HALVES>(j, 0, t), &a.x, &a.y);
            angles(tile_pair<HALVES>(j, 1, t), &a.z, &a.w);
            tile_turn<false>(x[0], x[1], a);
        }
        st.q[j][0] = mma_pack(x[0][0], x[0][1]);
        st.q[j][1] = mma_pack(x[1][0], x[1][1]);
    }
}

/* The constants that turn queries on by a tile: of halves [product][half][t] cosines and sines of two pairs, else of a pair, twice. */
template <bool HALVES, int DIM> KVB_DI void tile_put_steps(const kvb_dev_layer &l, uint2 *steps)
{
    for (uint32_t i = threadIdx.x; i < (HALVES ? DIM / 32 : DIM / 16) * 8; i += blockDim.x) {
        const uint32_t j = i / 8, h = i / 4 % 2, pair = tile_pair<HALVES>(j, h, i % 4);
        float sine[2], cosine[2];
        for (uint32_t e = 0; e < 2; e++)
            sincospif(kvb_phase(l.turn[HALVES ? pair + e : pair], KVB_TILE), &sine[e], &cosine[e]);
        steps[i] = make_uint2(mma_pack(cosine[0], cosine[1]), HALVES ? mma_pack(sine[0], sine[1]) : mma_pack(sine[0], -sine[0]));
    }
}

template <bool HALVES, int DIM> KVB_DI void tile_step(mma_state<DIM> &st, const uint2 *steps)
{
    const uint32_t t = threadIdx.x & 3;
#pragma unroll
    for (int i = 0; i < (HALVES ? DIM / 32 : DIM / 16) * 2; i++) {
        const uint2 turn = steps[i * 4 + t];
        const __half2 c = mma_half2(turn.x), s = mma_half2(turn.y), u = mma_half2(st.q[i / 2][i % 2]);
        if (HALVES) {
            const __half2 v = mma_half2(st.q[i / 2 + DIM / 32][i % 2]);
            st.q[i / 2][i % 2] = mma_word(__hfma2(v, s, __hmul2(u, c)));
            st.q[i / 2 + DIM / 32][i % 2] = mma_word(__hfma2(__hneg2(u), s, __hmul2(v, c)));
        } else
            st.q[i / 2][i % 2] = mma_word(__hfma2(__lowhigh2highlow(u), s, __hmul2(u, c)));
    }
}

/* Scores y[2][4] of both products of a tile that lies at shared address `tile`. */
template <bool HALVES, int DIM>
KVB_DI void tile_scores(const mma_state<DIM> &st, const tile_keys &k, uint32_t tile, float (*y)[4])
{
    typedef tile_kernel<DIM> M;
    const uint32_t lane = threadIdx.x % 32, g = lane >> 2, t = lane & 3;
    uint32_t a[2][DIM / 16][4];
#pragma unroll
    for (int p = 0; p < 2; p++) {
        const uint32_t row = tile + (8 * p + lane % 8 + (lane >> 3 & 1) * 16) * M::ROW_BYTES + (lane >> 4) * 16;
        y[p][0] = y[p][1] = y[p][2] = y[p][3] = 0.0f;
#pragma unroll
        for (int j = 0; j < DIM / 16; j++)
            tile_fragment(a[p][j], row + 32 * j);
    }
    const uint32_t matrix = k.matrix + (lane % 8 + (lane >> 4) * 8) * M::ROW_BYTES + (lane >> 3 & 1) * 16;
#pragma unroll
    for (int c = 0; c < DIM / 32; c++) { /* products c and c + D/32 of the queries */
        float x[2][2][2][4];             /* [p][which][half][rows g, g + 8 by two channels] */
#pragma unroll
        for (int w = 0; w < 2; w++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const float2 mean = *(const float2 *)(k.mean + w * (DIM / 2) + 16 * c + 8 * h + 2 * t);
#pragma unroll
                for (int p = 0; p < 2; p++) {
                    x[p][w][h][0] = x[p][w][h][2] = mean.x;
                    x[p][w][h][1] = x[p][w][h][3] = mean.y;
                }
            }
        if (k.has_matrix) {
#pragma unroll
            for (int j = 0; j < DIM / 16; j++)
#pragma unroll
                for (int w = 0; w < 2; w++) {
                    uint32_t b[4];
                    tile_fragment(b, matrix + (w * (DIM / 2) + 16 * c) * M::ROW_BYTES + 32 * j);
#pragma unroll
                    for (int p = 0; p < 2; p++) {
                        mma_16816(x[p][w][0], a[p][j][0], a[p][j][1], a[p][j][2], a[p][j][3], b[0], b[1]);
                        mma_16816(x[p][w][1], a[p][j][0], a[p][j][1], a[p][j][2], a[p][j][3], b[2], b[3]);
                    }
                }
        } else {
#pragma unroll
            for (int p = 0; p < 2; p++)
#pragma unroll
                for (int w = 0; w < 2; w++)
#pragma unroll
                    for (int r = 0; r < 4; r++) {
                        const float2 v = __half22float2(mma_half2(a[p][c + w * (DIM / 32)][r]));
                        x[p][w][r >> 1][2 * (r & 1)] += v.x;
                        x[p][w][r >> 1][2 * (r & 1) + 1] += v.y;
                    }
        }
#pragma unroll
        for (int p = 0; p < 2; p++) {
            if (k.turned) {
                const unsigned char *row = k.turns + (8 * p + g) * M::TURN_PITCH;
                if (HALVES) {
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        const float4 angle = tile_angles<HALVES>(row, c, h);
                        tile_turn<HALVES>(x[p][0][h], x[p][1][h], angle);
                        tile_turn<HALVES>(x[p][0][h] + 2, x[p][1][h] + 2, angle);
                    }
                } else {
#pragma unroll
                    for (int w = 0; w < 2; w++) {
                        const float4 angle = tile_angles<HALVES>(row, c + w * (DIM / 32), 0);
                        tile_turn<HALVES>(x[p][w][0], x[p][w][1], angle);
                        tile_turn<HALVES>(x[p][w][0] + 2, x[p][w][1] + 2, angle);
                    }
                }
            }
#pragma unroll
            for (int w = 0; w < 2; w++) {
                const int j = c + w * (DIM / 32);
                mma_16816(y[p], mma_pack(x[p][w][0][0], x[p][w][0][1]), mma_pack(x[p][w][0][2], x[p][w][0][3]),
                          mma_pack(x[p][w][1][0], x[p][w][1][1]), mma_pack(x[p][w][1][2], x[p][w][1][3]), st.q[j][0], st.q[j][1]);
            }
        }
    }
}

/* Folds the values of a tile at shared address `tile`: rows of sum[i] are channels 16i + g and 16i + 8 + g. */
template <int DIM> KVB_DI void tile_fold(mma_state<DIM> &st, uint32_t tile, const uint32_t *weights)
{
    typedef tile_kernel<DIM> M;
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int p = 0; p < 2; p++) {
        const uint32_t row = tile + (8 * p + lane % 8 + (lane >> 4) * 16) * M::ROW_BYTES + (lane >> 3 & 1) * 16;
        uint32_t b[2];
        mma_weights(weights[p], b);
#pragma unroll
        for (int i = 0; i < DIM / 16; i++) {
            uint32_t a[4];
            tile_fragment_turned(a, row + 32 * i);
            mma_16816(st.sum[i], a[0], a[1], a[2], a[3], b[0], b[1]);
        }
    }
}

/* Gives sums of codes their mean, and brings rows from tile_fold()'s order to that of mma_exact(): g D/8 + 2i and + 1. `room`: of a warp. */
template <int DIM> KVB_DI void tile_close(mma_state<DIM> &st, const float *mean, float *room)
{
    const uint32_t lane = threadIdx.x % 32, g = lane >> 2, t = lane & 3;
    float total[2] = {st.total[0], st.total[1]};
#pragma unroll
    for (int e = 0; e < 2; e++)
        for (int k = 2; k < 32; k <<= 1)
            total[e] += __shfl_xor_sync(~0u, total[e], k);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < DIM / 16; i++)
#pragma unroll
        for (int r = 0; r < 4; r++)
            room[(2 * t + (r & 1)) * DIM + 16 * i + 8 * (r >> 1) + g] = st.sum[i][r];
    __syncwarp();
#pragma unroll
    for (int i = 0; i < DIM / 16; i++)
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const uint32_t channel = g * (DIM / 8) + 2 * i + (r >> 1);
            st.sum[i][r] = room[(2 * t + (r & 1)) * DIM + channel] + (t < 2 ? mean[channel] * total[r & 1] : 0.0f);
        }
    __syncwarp();
}

#endif
