/* Kinds that are coded number by number: no codebooks, but what the book must say of levels and scales. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "calib/train_impl.h"
#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/half.h"

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
    if (layer < s->pool_layer)
        scaling->pool = scaling->spill = 0;
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

/* What a kind's scales take from calibration, for a layer: which arrays there are, and their sizes. */
typedef struct learned {
    bool fixed, levels, lists, clips;
    uint32_t heads, dim, count; /* count: of levels */
} learned;

static learned learned_of(const kvb_trainer *t, uint32_t layer, int kind)
{
    const kvb_recipe_scale *s = &t->recipe->kind[kind].scale;
    const kvb_layer *g = &t->capture->geometry[layer];
    return (learned){.fixed = s->scaling.form == KVB_SCALE_FIXED, .levels = s->levels != KVB_LEVELS_EVEN, .lists = s->list_size > 0,
                     .clips = s->search, .heads = g->kv_heads, .dim = g->head_dim, .count = kvb_train_shape(t, layer, 0, kind, false).centroids};
}

/* A layer out of a checkpoint, or from another process, brings what calibration found. */
static bool is_known(const kvb_layer_result *r, int kind, const learned *is)
{
    return (is->fixed || is->levels || is->lists || is->clips) && (r->fixed[kind] != NULL) == is->fixed &&
           (r->levels[kind] != NULL) == is->levels && (r->lists[kind] != NULL) == is->lists && (r->clips[kind] != NULL) == is->clips;
}

static bool make_room(kvb_layer_result *r, int kind, const learned *is)
{
    r->fixed[kind] = is->fixed ? kvb_alloc_array((size_t)is->heads * 2 * is->dim, sizeof(uint16_t)) : NULL;
    r->levels[kind] = is->levels ? kvb_alloc_array(is->count, sizeof(float)) : NULL;
    r->lists[kind] = is->lists ? kvb_alloc_array(is->heads * KVB_LISTS_SIZE(is->dim), sizeof(uint16_t)) : NULL;
    r->clips[kind] = is->clips ? kvb_alloc_array((size_t)is->heads * is->dim, sizeof(float)) : NULL;
    return (r->fixed[kind] != NULL) == is->fixed && (r->levels[kind] != NULL) == is->levels && (r->lists[kind] != NULL) == is->lists &&
           (r->clips[kind] != NULL) == is->clips;
}

/* The scalings of the heads point into what was found; a clip that all groups of a head share is the scaling's own. */
static void point_heads(kvb_layer_result *r, int kind, const learned *is, const kvb_scaling *scaling)
{
    for (uint32_t head = 0; head < is->heads; head++) {
        kvb_scaling *s = &r->scaling[kind][head];
        *s = *scaling;
        s->fixed = is->fixed ? r->fixed[kind] + (size_t)head * 2 * is->dim : NULL;
        if (is->lists) {
            const uint16_t *lists = r->lists[kind] + head * KVB_LISTS_SIZE(is->dim);
            s->lists = lists[0];
            s->order = lists + 1;
            s->end = lists + 1 + is->dim;
        }
        const float *clips = is->clips ? r->clips[kind] + (size_t)head * is->dim : NULL;
        s->clips = scaling->axis == KVB_AXIS_TOKEN ? clips : NULL;
        if (clips != NULL && scaling->axis == KVB_AXIS_CHANNEL)
            s->clip = clips[0];
    }
}

static kvb_status search_clips(kvb_trainer *t, const kvb_train_points *p, const learned *is, kvb_error *err)
{
    kvb_layer_result *r = &t->result[p->layer];
    const int kind = (int)p->kind;
    kvb_levels levels;
    uint16_t table[KVB_AFFINE_MOST_LEVELS];
    double *errors = kvb_alloc_array(2 * (size_t)is->heads, sizeof *errors);
    if (errors == NULL)
        return kvb_fail_memory(err, "clips");
    for (uint32_t k = 0; is->levels && k < is->count; k++)
        table[k] = kvb_half_from_float(r->levels[kind][k]);
    for (size_t i = 0; i < (size_t)is->heads * is->dim; i++)
        r->clips[kind][i] = 1.0f;
    kvb_levels_init(&levels, is->count, is->levels ? table : NULL);
    kvb_status status = kvb_train_clips(p, r->scaling[kind], &levels, r->clips[kind], errors, errors + is->heads, err);
    for (uint32_t head = 0; status == KVB_OK && head < is->heads; head++) {
        r->sums.clip_before[kind] += errors[head];
        r->sums.clip_after[kind] += errors[is->heads + head];
        r->sums.clip_count[kind]++;
    }
    free(errors);
    return status;
}

/* Lists of channels, then clips. */
static kvb_status find_groups(kvb_trainer *t, uint32_t layer, int kind, const learned *is, const kvb_scaling *scaling, kvb_error *err)
{
    kvb_layer_result *r = &t->result[layer];
    kvb_train_points points;
    kvb_status status = kvb_train_points_of(t, layer, (kvb_kind)kind, &points, err);
    if (status != KVB_OK)
        return status;
    if (is->lists)
        status = kvb_train_lists(t, &points, t->recipe->kind[kind].scale.list_size, r->lists[kind], err);
    if (status == KVB_OK) {
        point_heads(r, kind, is, scaling);
        status = is->clips ? search_clips(t, &points, is, err) : KVB_OK;
    }
    kvb_train_points_free(&points);
    return status;
}

static kvb_status learn(kvb_trainer *t, uint32_t layer, int kind, const learned *is, const kvb_scaling *scaling, kvb_error *err)
{
    kvb_layer_result *r = &t->result[layer];
    const kvb_recipe_levels levels = t->recipe->kind[kind].scale.levels;
    kvb_status status = make_room(r, kind, is) ? KVB_OK : kvb_fail_memory(err, "scales");
    if (status == KVB_OK && levels == KVB_LEVELS_NORMAL)
        normal_levels(r->levels[kind], is->count);
    if (status == KVB_OK && (is->fixed || levels == KVB_LEVELS_TRAINED))
        status = kvb_train_levels(t, layer, (kvb_kind)kind, scaling, r->fixed[kind], levels == KVB_LEVELS_TRAINED ? r->levels[kind] : NULL,
                                  is->count, err);
    if (status == KVB_OK && (is->lists || is->clips))
        status = find_groups(t, layer, kind, is, scaling, err);
    return status;
}

static kvb_status scale_kind(kvb_trainer *t, uint32_t layer, int kind, kvb_error *err)
{
    kvb_layer_result *r = &t->result[layer];
    const learned is = learned_of(t, layer, kind);
    kvb_scaling scaling;
    kvb_status status = fit(t, layer, kind, &scaling, err);
    if (status != KVB_OK)
        return status;
    r->scaling[kind] = kvb_alloc_array(is.heads, sizeof *r->scaling[kind]);
    if (r->scaling[kind] == NULL)
        return kvb_fail_memory(err, "scales");
    if (!is_known(r, kind, &is))
        status = learn(t, layer, kind, &is, &scaling, err);
    if (status == KVB_OK)
        point_heads(r, kind, &is, &scaling);
    return status;
}

kvb_status kvb_train_scale(kvb_trainer *t, uint32_t layer, kvb_error *err)
{
    kvb_status status = KVB_OK;
    for (int kind = 0; status == KVB_OK && kind < 2; kind++)
        if (t->recipe->kind[kind].scale.used)
            status = scale_kind(t, layer, kind, err);
    return status;
}
