#include "format/base/grid.h"

#include <math.h>
#include <stddef.h>

kvb_grid kvb_grid_of(const kvb_layer *layer, kvb_kind kind, uint32_t channels, uint32_t stages, uint32_t rows)
{
    return (kvb_grid){layer->head_dim, channels, stages, rows, kind == KVB_KEY ? layer->rope_style : KVB_ROPE_NONE,
                      layer->rope_dims};
}

static float most_steps(const kvb_grid *g)
{
    return g->stages == 1 && g->rows > 16 ? 127.0f : 63.0f;
}

static size_t numbers(const kvb_grid *g)
{
    return (size_t)g->dim * g->stages * g->rows;
}

/* The channel of number i of a table. */
static uint32_t channel_of(const kvb_grid *g, size_t i)
{
    const size_t group = i / g->channels / g->rows / g->stages;
    return (uint32_t)(group * g->channels + i % g->channels);
}

static uint32_t partner_of(const kvb_grid *g, uint32_t channel)
{
    if (g->style == KVB_ROPE_NONE || channel >= g->rope_dims)
        return channel;
    if (g->style == KVB_ROPE_INTERLEAVED)
        return channel ^ 1u;
    return channel < g->rope_dims / 2 ? channel + g->rope_dims / 2 : channel - g->rope_dims / 2;
}

void kvb_grid_steps(const kvb_grid *g, const float *table, float *step)
{
    for (uint32_t c = 0; c < g->dim; c++)
        step[c] = 0.0f;
    for (size_t i = 0; i < numbers(g); i++) {
        const uint32_t c = channel_of(g, i);
        step[c] = fmaxf(step[c], fabsf(table[i]));
    }
    for (uint32_t c = 0; c < g->dim; c++) {
        const uint32_t other = partner_of(g, c);
        if (other >= c)
            step[c] = step[other] = fmaxf(step[c], step[other]);
    }
    for (uint32_t c = 0; c < g->dim; c++)
        step[c] = step[c] > 0.0f ? step[c] / most_steps(g) : 1.0f;
}

void kvb_grid_snap(const kvb_grid *g, float *table, const float *step)
{
    for (size_t i = 0; i < numbers(g); i++) {
        const float unit = step[channel_of(g, i)];
        table[i] = rintf(table[i] / unit) * unit;
    }
}

bool kvb_grid_holds(const kvb_grid *g, const float *table, const float *step)
{
    /* Half floats are good to 2^-11 of a number: with that of the step itself 0.13 of a step at 127 of them. What came off no grid is 0.25 of one away. */
    for (size_t i = 0; i < numbers(g); i++) {
        const float multiple = table[i] / step[channel_of(g, i)];
        if (!(fabsf(multiple - rintf(multiple)) <= 0.15f) || fabsf(multiple) > most_steps(g) + 0.5f)
            return false;
    }
    return true;
}
