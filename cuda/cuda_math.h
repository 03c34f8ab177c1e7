/* The inner math that kernels and tests of the CPU share: where codes lie, what they decode to, how partial sums merge. Every
 * function here runs on a CPU as well, and `make check` runs it there. */
#ifndef KVB_CUDA_MATH_H
#define KVB_CUDA_MATH_H

#include <math.h>
#include <stdint.h>

#ifdef __CUDACC__
#include <cuda_fp16.h>
#define KVB_HD __host__ __device__ __forceinline__
#else
#define KVB_HD static inline
#endif

enum { KVB_TILE = 32 }; /* tokens that a warp decodes at a time */

/* How the codes of a tile of 32 tokens lie: one row of packed bits after another (kvb_pack_codes()), or ordered by the lane of
 * a warp that will read them into fragments of a matrix product. */
enum {
    KVB_LAYOUT_ROWS = 0, KVB_LAYOUT_LANES_HALF = 1, KVB_LAYOUT_LANES_QUARTER = 2,
    KVB_LAYOUT_UNITS_HALF = 3, KVB_LAYOUT_UNITS_QUARTER = 4, /* of values, a unit's codes of eight tokens lie side by side */
};

KVB_HD int kvb_layout_halves(uint32_t layout) { return layout == KVB_LAYOUT_LANES_HALF || layout == KVB_LAYOUT_UNITS_HALF; }
/* Whether a token's codes of a lane are not side by side. */
KVB_HD int kvb_layout_by_unit(uint32_t layout, int is_value) { return is_value && layout >= KVB_LAYOUT_UNITS_HALF; }

/* Codes of one (layer, head, kind). A unit is one index: stage m of group s is unit s*M + m, and K = Km^M makes the packed
 * codes of a token its units one after another, log2 Km bits each. */
typedef struct kvb_shape {
    uint32_t dim;      /* D */
    uint32_t channels; /* d */
    uint32_t stages;   /* M */
    uint32_t rows;     /* Km */
    uint32_t bits;     /* log2 Km */
    uint32_t units;    /* S*M */
    uint32_t layout;
} kvb_shape;

KVB_HD uint32_t kvb_shape_row_bytes(const kvb_shape *s) { return (s->units * s->bits + 7) / 8; }

/* Unit u of a packed row. */
KVB_HD uint32_t kvb_row_unit(const uint8_t *row, uint32_t u, uint32_t bits)
{
    const uint32_t at = u * bits, byte = at / 8, shift = at % 8;
    uint32_t word = row[byte];
    if (shift + bits > 8)
        word |= (uint32_t)row[byte + 1] << 8;
    if (shift + bits > 16)
        word |= (uint32_t)row[byte + 2] << 16;
    return (word >> shift) & ((1u << bits) - 1u);
}

/* A token of a tile in the fragments of m16n8k16: product `mt` of two, row 0 .. 15. Rows 0-7 are of the tile's first 16
 * tokens, rows 8-15 of its last 16, so that each half of the columns can hold the queries of one block of 16. */
typedef struct kvb_frag_place { uint32_t product, row; } kvb_frag_place;
KVB_HD kvb_frag_place kvb_frag_of_token(uint32_t token)
{
    kvb_frag_place p = {(token % 16) / 8, (token / 16) * 8 + token % 8};
    return p;
}

/* Bit at which unit u of a token lies in the 32*row_bytes bytes of a tile of keys, in a lane layout. Lane 4g + t owns row g
 * (and g + 8) of each product and a quarter of the channels: of KVB_LAYOUT_LANES_QUARTER the t-th; of KVB_LAYOUT_LANES_HALF the t-th
 * eighth of the first half and of the second, so that RoPE pairs (i, i + D/2) meet in a lane. */
KVB_HD uint32_t kvb_lane_key_bit(const kvb_shape *s, uint32_t token, uint32_t unit)
{
    const kvb_frag_place p = kvb_frag_of_token(token);
    const uint32_t per_lane = s->units / 4, half = per_lane / 2;
    uint32_t t, j;
    if (kvb_layout_halves(s->layout)) {
        const uint32_t upper = unit >= s->units / 2, in_half = unit - upper * (s->units / 2);
        t = in_half / half;
        j = upper * half + in_half % half;
    } else {
        t = unit / per_lane;
        j = unit % per_lane;
    }
    const uint32_t lane = 4 * (p.row % 8) + t, index = (p.product * 2 + p.row / 8) * per_lane + j;
    return lane * (s->units * s->bits) + index * s->bits;
}

/* The same of values: lane 4g + t owns tokens 2t, 2t+1 of each 8 rows and the g-th eighth of the channels. */
KVB_HD uint32_t kvb_lane_value_bit(const kvb_shape *s, uint32_t token, uint32_t unit)
{
    const kvb_frag_place p = kvb_frag_of_token(token);
    const uint32_t per_lane = s->units / 8, g = unit / per_lane, j = unit % per_lane, t = (p.row % 8) / 2;
    const uint32_t which = (p.row / 8) * 2 + p.row % 2, lane = 4 * g + t;
    const uint32_t index = kvb_layout_by_unit(s->layout, 1) ? j * 8 + (p.row / 8) * 4 + p.product * 2 + p.row % 2
                                                            : (p.product * 4 + which) * per_lane + j;
    return lane * (s->units * s->bits) + index * s->bits;
}

/* Unit u of token `token` of a tile. */
KVB_HD uint32_t kvb_tile_unit(const kvb_shape *s, int is_value, const uint8_t *tile, uint32_t token, uint32_t unit)
{
    if (s->layout == KVB_LAYOUT_ROWS)
        return kvb_row_unit(tile + token * kvb_shape_row_bytes(s), unit, s->bits);
    const uint32_t bit = is_value ? kvb_lane_value_bit(s, token, unit) : kvb_lane_key_bit(s, token, unit);
    return (uint32_t)(tile[bit / 8] >> (bit % 8)) & ((1u << s->bits) - 1u);
}

/* Angle of a RoPE pair: `turn` is turns a position in units of 2^-64, so that the product with a position wraps as the angle
 * does and loses nothing however long the context. In units of half a turn, -1 .. 1. */
KVB_HD float kvb_phase(uint64_t turn, int64_t position)
{
    const uint64_t phase = turn * (uint64_t)position;
    return (float)(int32_t)(uint32_t)(phase >> 32) * 4.656612873077393e-10f;
}

/* turns a position = base^(-2i/dims) / (2 pi factor) */
static inline uint64_t kvb_turn(double base, uint32_t pair, uint32_t dims, double factor)
{
    const double turns = pow(base, -2.0 * pair / dims) / factor / 6.283185307179586;
    const double whole = floor(turns), part = turns - whole;
    return (uint64_t)(part * 18446744073709551616.0);
}

/* Anchors of `left` tokens that have left the window: ceil(fraction * left), as kvb_pool_capacity(). */
KVB_HD uint32_t kvb_anchor_capacity(double fraction, uint32_t left)
{
    const double exact = fraction * (double)left;
    const uint32_t capacity = (uint32_t)ceil(exact * (1.0 - 1e-12));
    return capacity < left ? capacity : left;
}

/* First position of the window of a sequence of `length` tokens; positions from `sinks` to there are codes or anchors. */
KVB_HD uint32_t kvb_window_first(uint32_t length, uint32_t window, uint32_t sinks)
{
    const uint32_t first = length > window ? length - window : 0, kept = length < sinks ? length : sinks;
    return first > kept ? first : kept;
}

/* The position, in blocks of the frame, that a key's rotation still lacks. */
KVB_HD uint32_t kvb_frame_rest(uint32_t frame_block, uint32_t position)
{
    return frame_block == 0 ? 0 : position / frame_block * frame_block;
}

/* Share of tiles [from, to) of part i of n, of `total`. */
KVB_HD uint32_t kvb_part(uint32_t total, uint32_t i, uint32_t n) { return (uint32_t)((uint64_t)total * i / n); }

/* Softmax sums over two sets of tokens, relative to their maxima (base 2): weight of a set at the common maximum. */
KVB_HD float kvb_merge_weight(float maximum, float common) { return exp2f(maximum - common); }

#endif
