#include "format/base/rope.h"

#include <math.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"

bool kvb_rope_same(const kvb_layer *a, const kvb_layer *b)
{
    if (a->rope_style != b->rope_style)
        return false;
    if (a->rope_style == KVB_ROPE_NONE)
        return true;
    if (a->rope_dims != b->rope_dims || fabs(a->rope_base - b->rope_base) > 0.0)
        return false;
    if (a->rope_factors == NULL || b->rope_factors == NULL)
        return a->rope_factors == b->rope_factors;
    return memcmp(a->rope_factors, b->rope_factors, a->rope_dims / 2 * sizeof *a->rope_factors) == 0;
}

kvb_status kvb_rope_table_create(kvb_rope_table *t, const kvb_layer *layer, int64_t first, uint32_t count,
                                 kvb_error *err)
{
    *t = (kvb_rope_table){.style = layer->rope_style, .dims = layer->rope_dims, .first = first, .count = count};
    if (t->style == KVB_ROPE_NONE)
        return KVB_OK;
    uint32_t pairs = t->dims / 2;
    t->cosine = kvb_alloc_array((size_t)count * pairs, sizeof *t->cosine);
    t->sine = kvb_alloc_array((size_t)count * pairs, sizeof *t->sine);
    if (t->cosine == NULL || t->sine == NULL) {
        kvb_rope_table_free(t);
        return kvb_fail_memory(err, "rotary table");
    }
    for (uint32_t i = 0; i < pairs; i++) {
        double frequency = pow(layer->rope_base, -2.0 * i / t->dims);
        if (layer->rope_factors != NULL)
            frequency /= (double)layer->rope_factors[i];
        for (uint32_t p = 0; p < count; p++) {
            double angle = (double)(first + p) * frequency;
            t->cosine[(size_t)p * pairs + i] = (float)cos(angle);
            t->sine[(size_t)p * pairs + i] = (float)sin(angle);
        }
    }
    return KVB_OK;
}

void kvb_rope_table_free(kvb_rope_table *t)
{
    free(t->cosine);
    free(t->sine);
    t->cosine = t->sine = NULL;
}

/* `sign` is +1 to rotate and -1 to undo it. */
static void turn(const kvb_rope_table *t, int64_t position, uint32_t head_dim, float sign, const float *x, float *out)
{
    if (t->style == KVB_ROPE_NONE) {
        memmove(out, x, head_dim * sizeof *out);
        return;
    }
    uint32_t pairs = t->dims / 2;
    const float *c = t->cosine + (size_t)(position - t->first) * pairs;
    const float *s = t->sine + (size_t)(position - t->first) * pairs;
    uint32_t step = t->style == KVB_ROPE_INTERLEAVED ? 2 : 1, partner = step == 2 ? 1 : pairs;
    for (uint32_t i = 0; i < pairs; i++) {
        float a = x[i * step], b = x[i * step + partner];
        out[i * step] = a * c[i] - b * (sign * s[i]);
        out[i * step + partner] = a * (sign * s[i]) + b * c[i];
    }
    if (out != x)
        memcpy(out + t->dims, x + t->dims, (head_dim - t->dims) * sizeof *out);
}

void kvb_rope_rotate(const kvb_rope_table *t, int64_t position, uint32_t head_dim, const float *x, float *out)
{
    turn(t, position, head_dim, 1.0f, x, out);
}

void kvb_rope_unrotate(const kvb_rope_table *t, int64_t position, uint32_t head_dim, const float *x, float *out)
{
    turn(t, position, head_dim, -1.0f, x, out);
}
