#include "format/base/affine.h"

#include <math.h>

#include "format/base/fp8.h"
#include "format/base/half.h"

static float rounded(const kvb_scaling *s, float x)
{
    return s->store == KVB_STORE_FP8 ? kvb_fp8_to_float(kvb_fp8_from_float(x)) : kvb_half_to_float(kvb_half_from_float(x));
}

kvb_affine kvb_affine_measure(const kvb_scaling *s, float clip, const float *at, uint32_t count, size_t stride)
{
    float least = at[0], most = at[0];
    double square = 0.0;
    for (uint32_t i = 0; i < count; i++) {
        const float x = at[i * stride];
        least = x < least ? x : least;
        most = x > most ? x : most;
        square += (double)x * (double)x;
    }
    switch (s->form) {
    case KVB_SCALE_RANGE:
        return (kvb_affine){rounded(s, 0.5f * least + 0.5f * most), rounded(s, clip * (0.5f * most - 0.5f * least))};
    case KVB_SCALE_ABSMAX: return (kvb_affine){0.0f, rounded(s, clip * fmaxf(-least, most))};
    case KVB_SCALE_RMS:
    case KVB_SCALE_FIXED: break;
    }
    return (kvb_affine){0.0f, rounded(s, clip * (float)sqrt(square / count))};
}

void kvb_levels_init(kvb_levels *l, uint32_t count, const uint16_t *table)
{
    l->count = count;
    for (uint32_t k = 0; k < count; k++)
        l->level[k] = table != NULL ? kvb_half_to_float(table[k]) : (float)(2.0 * k / (count - 1) - 1.0);
    for (uint32_t k = 0; k + 1 < count; k++)
        l->bound[k] = 0.5f * (l->level[k] + l->level[k + 1]);
}

/* As many as there are bounds below it. */
uint32_t kvb_levels_code(const kvb_levels *l, float x, kvb_affine a)
{
    const float t = a.scale > 0.0f ? (x - a.offset) / a.scale : 0.0f;
    uint32_t low = 0, high = l->count - 1;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (t > l->bound[middle])
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}
