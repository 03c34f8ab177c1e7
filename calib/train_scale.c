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

/* The recipe's scaling as it is for heads of D channels. */
static kvb_status fit(const kvb_trainer *t, uint32_t layer, int kind, kvb_scaling *scaling, kvb_error *err)
{
    const uint32_t dim = t->capture->geometry[layer].head_dim;
    const kvb_recipe_scale *s = &t->recipe->kind[kind].scale;
    const char *problem = NULL;
    *scaling = s->scaling;
    if (s->scaling.axis == KVB_AXIS_TOKEN && (s->scaling.group == 0 || s->scaling.group > dim))
        scaling->group = dim;
    scaling->outliers = (uint32_t)ceil(s->outliers * dim);
    if (scaling->axis == KVB_AXIS_TOKEN && dim % scaling->group != 0)
        problem = "does not divide a head";
    else if (scaling->outliers >= (scaling->form == KVB_SCALE_FIXED ? dim : scaling->group) && scaling->outliers > 0)
        problem = "leaves no number that is no outlier in a head";
    if (problem == NULL)
        return KVB_OK;
    char where[64];
    snprintf(where, sizeof where, "layer %u, %s", layer, kvb_train_kind_name((kvb_kind)kind));
    return kvb_fail(err, KVB_E_USAGE, where, "a scale for every %u channels with %u outliers of a token %s of %u: choose a divisor, and "
                    "fewer outliers than it", scaling->group, scaling->outliers, problem, dim);
}

static kvb_status scale_kind(kvb_trainer *t, uint32_t layer, int kind, kvb_error *err)
{
    kvb_layer_result *r = &t->result[layer];
    const kvb_recipe_scale *s = &t->recipe->kind[kind].scale;
    const uint32_t heads = t->capture->geometry[layer].kv_heads, dim = t->capture->geometry[layer].head_dim;
    const uint32_t count = kvb_train_shape(t, layer, 0, kind, false).centroids;
    const bool fixed = s->scaling.form == KVB_SCALE_FIXED, levels = s->levels != KVB_LEVELS_EVEN;
    kvb_scaling scaling;
    kvb_status status = fit(t, layer, kind, &scaling, err);
    if (status != KVB_OK)
        return status;
    /* A layer out of a checkpoint, or from another process, brings what calibration found. */
    const bool known = (fixed || levels) && (r->fixed[kind] != NULL) == fixed && (r->levels[kind] != NULL) == levels;
    r->scaling[kind] = kvb_alloc_array(heads, sizeof *r->scaling[kind]);
    if (!known) {
        r->fixed[kind] = fixed ? kvb_alloc_array((size_t)heads * 2 * dim, sizeof(uint16_t)) : NULL;
        r->levels[kind] = levels ? kvb_alloc_array(count, sizeof(float)) : NULL;
    }
    if (r->scaling[kind] == NULL || (fixed && r->fixed[kind] == NULL) || (levels && r->levels[kind] == NULL))
        return kvb_fail_memory(err, "levels");
    for (uint32_t head = 0; head < heads; head++) {
        r->scaling[kind][head] = scaling;
        r->scaling[kind][head].fixed = fixed ? r->fixed[kind] + (size_t)head * 2 * dim : NULL;
    }
    if (known)
        return KVB_OK;
    if (s->levels == KVB_LEVELS_NORMAL)
        normal_levels(r->levels[kind], count);
    if (!fixed && s->levels != KVB_LEVELS_TRAINED)
        return KVB_OK;
    return kvb_train_levels(t, layer, (kvb_kind)kind, &scaling, r->fixed[kind],
                            s->levels == KVB_LEVELS_TRAINED ? r->levels[kind] : NULL, count, err);
}

kvb_status kvb_train_scale(kvb_trainer *t, uint32_t layer, kvb_error *err)
{
    kvb_status status = KVB_OK;
    for (int kind = 0; status == KVB_OK && kind < 2; kind++)
        if (t->recipe->kind[kind].scale.used)
            status = scale_kind(t, layer, kind, err);
    return status;
}
