#include <math.h>
#include <stdlib.h>

#include "format/base/grid.h"
#include "format/base/half.h"
#include "tests/support/cm.h"
#include "tests/support/rt_book.h"

enum { D = 32, MOST = D * 2 * 32 };

static kvb_grid grid_of(uint32_t channels, uint32_t stages, kvb_rope_style style, uint32_t rope_dims)
{
    return (kvb_grid){D, channels, stages, 16, style, rope_dims};
}

/* A table whose channel c is c + 1 times larger than the first. */
static void make(const kvb_grid *g, float *table)
{
    rt_normal(table, (size_t)D * g->stages * g->rows, 5);
    for (size_t i = 0; i < (size_t)D * g->stages * g->rows; i++)
        table[i] *= (float)(i / g->channels / g->rows / g->stages * g->channels + i % g->channels + 1);
}

static void test_snapped(void **state)
{
    (void)state;
    const kvb_grid grids[] = {
        grid_of(4, 1, KVB_ROPE_NONE, 0),        grid_of(8, 2, KVB_ROPE_NONE, 0),         grid_of(4, 1, KVB_ROPE_HALF, D),
        grid_of(4, 1, KVB_ROPE_INTERLEAVED, D), grid_of(8, 2, KVB_ROPE_HALF, D / 2),
    };
    for (size_t k = 0; k < 2 * (sizeof grids / sizeof *grids); k++) {
        kvb_grid of = grids[k / 2];
        of.rows = k % 2 ? 32 : 16;
        const kvb_grid *g = &of;
        const size_t all = (size_t)D * g->stages * g->rows;
        const float most = g->stages == 1 && g->rows > 16 ? 127.0f : 63.0f;
        float table[MOST], held[MOST], step[D], again[D];
        make(g, table);
        kvb_grid_steps(g, table, step);
        assert_false(kvb_grid_holds(g, table, step));
        for (size_t i = 0; i < all; i++)
            held[i] = table[i];
        kvb_grid_snap(g, held, step);
        for (size_t i = 0; i < all; i++) {
            const size_t c = i / g->channels / g->rows / g->stages * g->channels + i % g->channels;
            assert_true(fabsf(held[i] - table[i]) <= 0.5001f * step[c]);
            assert_true(fabsf(held[i] / step[c]) <= most + 0.001f);
        }
        /* As a book holds it: half floats, found out without being told the steps. */
        kvb_round_to_half(held, all);
        kvb_grid_steps(g, held, again);
        for (size_t c = 0; c < D; c++)
            assert_true(fabsf(again[c] - step[c]) <= 1e-3f * step[c]);
        assert_true(kvb_grid_holds(g, held, again));
        held[all / 2] += 0.4f * step[all / 2 / g->channels / g->rows / g->stages * g->channels];
        assert_false(kvb_grid_holds(g, held, again));
    }
}

static void test_pairs_share(void **state)
{
    (void)state;
    const kvb_grid half = grid_of(4, 1, KVB_ROPE_HALF, 16), next = grid_of(4, 1, KVB_ROPE_INTERLEAVED, 16);
    float table[MOST], step[D];
    make(&half, table);
    kvb_grid_steps(&half, table, step);
    for (uint32_t c = 0; c < 8; c++)
        assert_true(step[c] == step[c + 8]);
    assert_true(step[16] != step[24]);
    kvb_grid_steps(&next, table, step);
    for (uint32_t c = 0; c < 16; c += 2)
        assert_true(step[c] == step[c + 1]);
    assert_true(step[16] != step[17]);
}

static void test_a_channel_of_zeros(void **state)
{
    (void)state;
    const kvb_grid g = grid_of(4, 1, KVB_ROPE_NONE, 0);
    float table[MOST] = {0}, step[D];
    kvb_grid_steps(&g, table, step);
    assert_true(step[0] == 1.0f && step[D - 1] == 1.0f);
    assert_true(kvb_grid_holds(&g, table, step));
    table[3] = NAN;
    assert_false(kvb_grid_holds(&g, table, step));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_snapped),
        cmocka_unit_test(test_pairs_share),
        cmocka_unit_test(test_a_channel_of_zeros),
    };
    return cmocka_run_group_tests_name("grid", tests, NULL, NULL);
}
