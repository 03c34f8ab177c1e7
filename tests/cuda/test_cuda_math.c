/* The inner math of the CUDA kernels, on a CPU: where codes lie, angles, anchors. */
#include "tests/support/cm.h"

#include <stdlib.h>
#include <string.h>

#include "cuda/cuda_math.h"
#include "kvbook/cache.h"
#include "runtime/anchor_pool.h"

static kvb_shape shape(uint32_t dim, uint32_t channels, uint32_t bits, uint32_t stages, uint32_t layout)
{
    return (kvb_shape){dim, channels, stages, 1u << bits, bits, dim / channels * stages, layout};
}

/* Every shape and layout that a fast kernel reads. */
static const kvb_shape *next_shape(size_t i)
{
    static kvb_shape s;
    static const struct { uint32_t channels, bits, stages; } kinds[] = {{4, 4, 1}, {8, 4, 2}, {8, 8, 1}, {4, 8, 1}, {2, 8, 1}, {16, 8, 1}};
    const size_t kind = i % 6, dim = i / 6 % 3, layout = i / 18;
    if (layout > 3)
        return NULL;
    s = shape(64u << dim, kinds[kind].channels, kinds[kind].bits, kinds[kind].stages, (uint32_t)layout + 1);
    return &s;
}

/* Whether the lanes of a warp can share the channels of a head so. */
static int fits(const kvb_shape *s)
{
    if (s->layout >= KVB_LAYOUT_UNITS_HALF && (s->channels != 4 || s->bits != 4))
        return 0;
    return s->channels <= s->dim / 8 && (kvb_layout_halves(s->layout) || s->channels >= 4);
}

static void test_lane_layouts_hold_every_bit_once(void **state)
{
    (void)state;
    const kvb_shape *s;
    for (size_t i = 0; (s = next_shape(i)) != NULL; i++)
        for (int value = 0; value < 2; value++) {
            if (!fits(s))
                continue;
            const uint32_t bits = KVB_TILE * s->units * s->bits;
            unsigned char *seen = calloc(bits, 1);
            assert_non_null(seen);
            for (uint32_t token = 0; token < KVB_TILE; token++)
                for (uint32_t unit = 0; unit < s->units; unit++) {
                    const uint32_t at = value ? kvb_lane_value_bit(s, token, unit) : kvb_lane_key_bit(s, token, unit);
                    assert_true(at % s->bits == 0 && at + s->bits <= bits && !seen[at]);
                    seen[at] = 1;
                }
            free(seen);
        }
}

/* A lane finds the channels that its fragments need, and RoPE pairs (i, i + D/2) in one lane. */
static void test_lanes_own_their_channels(void **state)
{
    (void)state;
    const kvb_shape *s;
    for (size_t i = 0; (s = next_shape(i)) != NULL; i++) {
        if (!fits(s))
            continue;
        for (uint32_t token = 0; token < KVB_TILE; token++)
            for (uint32_t unit = 0; unit < s->units; unit++) {
                const uint32_t channel = unit / s->stages * s->channels, lane_bits = s->units * s->bits;
                const kvb_frag_place p = kvb_frag_of_token(token);
                const uint32_t key_lane = kvb_lane_key_bit(s, token, unit) / lane_bits;
                const uint32_t t = kvb_layout_halves(s->layout) ? channel % (s->dim / 2) / (s->dim / 8) : channel / (s->dim / 4);
                assert_int_equal(key_lane, 4 * (p.row % 8) + t);
                const uint32_t value_lane = kvb_lane_value_bit(s, token, unit) / lane_bits;
                assert_int_equal(value_lane, 4 * (channel / (s->dim / 8)) + p.row % 8 / 2);
            }
    }
}

static void test_fragments_hold_every_token_once(void **state)
{
    (void)state;
    unsigned seen[2][16] = {{0}};
    for (uint32_t token = 0; token < KVB_TILE; token++) {
        const kvb_frag_place p = kvb_frag_of_token(token);
        assert_true(p.product < 2 && p.row < 16);
        seen[p.product][p.row]++;
        assert_int_equal(p.row / 8, token / 16); /* the two blocks of 16 have rows of their own */
    }
    for (int i = 0; i < 32; i++)
        assert_int_equal(seen[i / 16][i % 16], 1);
}

static void test_rows_are_packed_codes(void **state)
{
    (void)state;
    static const struct { uint32_t bits, stages; } kinds[] = {{1, 1}, {3, 1}, {4, 2}, {5, 1}, {8, 1}, {12, 1}, {8, 2}, {16, 1}};
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        const kvb_shape s = shape(64, 8, kinds[k].bits, kinds[k].stages, KVB_LAYOUT_ROWS);
        const uint32_t groups = 8, bytes = (uint32_t)kvb_packed_bytes(groups, s.bits * s.stages);
        assert_int_equal(bytes, kvb_shape_row_bytes(&s));
        uint8_t *tile = calloc(KVB_TILE, bytes);
        uint32_t code[8];
        assert_non_null(tile);
        for (uint32_t token = 0; token < KVB_TILE; token++) {
            for (uint32_t g = 0; g < groups; g++)
                code[g] = (uint32_t)((token * 2654435761u + g * 40503u) & ((1ull << (s.bits * s.stages)) - 1));
            kvb_pack_codes(code, groups, s.bits * s.stages, tile + token * bytes);
            for (uint32_t u = 0; u < s.units; u++)
                assert_int_equal(kvb_tile_unit(&s, 0, tile, token, u),
                                 code[u / s.stages] >> (u % s.stages * s.bits) & (s.rows - 1));
        }
        free(tile);
    }
}

static void test_phase_is_the_angle(void **state)
{
    (void)state;
    static const double bases[] = {10000.0, 500000.0, 1000000.0};
    for (size_t k = 0; k < 3; k++)
        for (uint32_t pair = 0; pair < 64; pair += 7)
            for (int64_t position = -5; position < 40000000; position = position * 3 + 11) {
                /* turn() is rounded to 2^-64 of a turn; the reference holds it to long double's 2^-64. */
                const long double turns = powl((long double)bases[k], -2.0L * pair / 128) / 3.0L / 6.28318530717958647692528676655900577L;
                long double expected = 2.0L * (turns * (long double)position);
                expected -= 2.0L * floorl((expected + 1.0L) / 2.0L);
                double apart = fabs((double)kvb_phase(kvb_turn(bases[k], pair, 128, 3.0), position) - (double)expected);
                apart = apart > 1.0 ? 2.0 - apart : apart;
                assert_true(apart < 2e-7 + 1e-15 * fabs((double)position));
            }
}

static void test_anchors_as_the_pool_counts_them(void **state)
{
    (void)state;
    static const double fractions[] = {0.0, 0.01, 0.02, 0.07, 0.1, 1.0 / 3.0, 1.0};
    for (size_t k = 0; k < sizeof fractions / sizeof *fractions; k++)
        for (uint32_t left = 0; left < 5000; left++)
            assert_int_equal(kvb_anchor_capacity(fractions[k], left), kvb_pool_capacity(fractions[k], left));
}

static void test_window_begins_behind_sinks(void **state)
{
    (void)state;
    assert_int_equal(kvb_window_first(0, 32, 4), 0);
    assert_int_equal(kvb_window_first(3, 32, 4), 3);
    assert_int_equal(kvb_window_first(10, 32, 4), 4);
    assert_int_equal(kvb_window_first(100, 32, 4), 68);
    assert_int_equal(kvb_window_first(100, 0, 4), 100);
    assert_int_equal(kvb_window_first(100, 0, 0), 100);
}

static void test_rotation_that_a_key_lacks(void **state)
{
    (void)state;
    assert_int_equal(kvb_frame_rest(0, 77), 0);   /* coded after RoPE */
    assert_int_equal(kvb_frame_rest(1, 77), 77);  /* before */
    assert_int_equal(kvb_frame_rest(16, 77), 64); /* by its place in a block */
}

static void test_parts_cover_everything_once(void **state)
{
    (void)state;
    for (uint32_t n = 1; n < 70; n++) {
        assert_int_equal(kvb_part(4097, 0, n), 0);
        for (uint32_t i = 0; i < n; i++)
            assert_true(kvb_part(4097, i, n) <= kvb_part(4097, i + 1, n));
        assert_int_equal(kvb_part(4097, n, n), 4097);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lane_layouts_hold_every_bit_once), cmocka_unit_test(test_lanes_own_their_channels),
        cmocka_unit_test(test_fragments_hold_every_token_once),  cmocka_unit_test(test_rows_are_packed_codes),
        cmocka_unit_test(test_phase_is_the_angle),               cmocka_unit_test(test_anchors_as_the_pool_counts_them),
        cmocka_unit_test(test_window_begins_behind_sinks),       cmocka_unit_test(test_rotation_that_a_key_lacks),
        cmocka_unit_test(test_parts_cover_everything_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
