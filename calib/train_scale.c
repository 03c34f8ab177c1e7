/* Kinds that are coded number by number: no codebooks, but what the book must say of levels and scales. */
#include <math.h>
#include <stdio.h>

#include "calib/train_impl.h"
#include "format/base/checked.h"
#include "format/base/fail.h"

/* Share of a normal distribution below x, and its density. */
static double below(double x) { return 0.5 * erfc(-x * 0.7071067811865476); }
static double density(double x) { return 0.3989422804014327 * exp(-0.5 * x * x); }

/* Lloyd-Max levels of a normal distribution (Max 1960): each is the mean of the stretch that is nearer to it than to the others.
 * Alternated until nothing moves; symmetric by construction. */
static void normal_levels(float *level, uint32_t count)
{
    enum { MOST_LEVELS = 256, ROUNDS = 20000 };
    double x[MOST_LEVELS];
    for (uint32_t k = 0; k < count; k++)
        x[k] = 3.0 * (2.0 * k + 1.0 - count) / count;
    double moved = 1.0;
    for (int round = 0; round < ROUNDS && moved > 1e-10; round++) {
        moved = 0.0;
        for (uint32_t k = 0; k < count / 2; k++) {
            const double low = k > 0 ? 0.5 * (x[k - 1] + x[k]) : -INFINITY, high = 0.5 * (x[k] + x[k + 1]);
            const double mean = ((k > 0 ? density(low) : 0.0) - density(high)) / (below(high) - (k > 0 ? below(low) : 0.0));
            moved = fmax(moved, fabs(mean - x[k]));
            x[k] = mean;
            x[count - 1 - k] = -mean;
        }
    }
    for (uint32_t k = 0; k < count; k++)
        level[k] = (float)x[k];
}

kvb_status kvb_train_scale(kvb_trainer *t, uint32_t layer, kvb_error *err)
{
    kvb_layer_result *r = &t->result[layer];
    const uint32_t dim = t->capture->geometry[layer].head_dim;
    for (int kind = 0; kind < 2; kind++) {
        const kvb_recipe_scale *s = &t->recipe->kind[kind].scale;
        if (!s->used)
            continue;
        r->scaling[kind] = s->scaling;
        if (s->scaling.axis == KVB_AXIS_TOKEN && (s->scaling.group == 0 || s->scaling.group > dim))
            r->scaling[kind].group = dim;
        if (s->scaling.axis == KVB_AXIS_TOKEN && dim % r->scaling[kind].group != 0) {
            char where[64];
            snprintf(where, sizeof where, "layer %u, %s", layer, kvb_train_kind_name((kvb_kind)kind));
            return kvb_fail(err, KVB_E_USAGE, where, "a scale for every %u channels does not divide a head of %u: choose a divisor",
                            s->scaling.group, dim);
        }
        const uint32_t count = kvb_train_shape(t, layer, 0, kind, false).centroids;
        if (s->levels != KVB_LEVELS_NORMAL)
            continue;
        r->levels[kind] = kvb_alloc_array(count, sizeof(float));
        if (r->levels[kind] == NULL)
            return kvb_fail_memory(err, "levels");
        normal_levels(r->levels[kind], count);
    }
    return KVB_OK;
}
