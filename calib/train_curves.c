/* How k-means went, for META: the errors of all heads by iteration, as quartiles. */
#include <math.h>
#include <stdlib.h>

#include "calib/additive.h"
#include "calib/train_impl.h"
#include "format/base/checked.h"

/* A head whose last iteration still took more than this share of its error away could have gone on. */
static const double unsettled_change = 0.01;

enum { FIGURES = 5 };

uint32_t kvb_train_curve_length(const kvb_recipe *recipe)
{
    kvb_additive_options options;
    kvb_additive_options_init(&options);
    return recipe->iterations > options.rounds ? recipe->iterations : options.rounds;
}

static const float *curve_of(const kvb_layer_curves *c, uint32_t layer, uint32_t head, int kind)
{
    return c->curve[layer] != NULL ? c->curve[layer] + (2 * (size_t)head + (size_t)kind) * (c->length + 1) : NULL;
}

uint32_t kvb_train_curve_end(const float *curve, uint32_t length)
{
    uint32_t end = 0;
    while (curve != NULL && end < length && isfinite(curve[end]) && isfinite(curve[end + 1]))
        end++;
    return end;
}

static int ascending(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Errors of all heads before iteration `at`, of shorter curves their last; how many there are. */
static size_t collect(const kvb_layer_curves *c, int kind, uint32_t at, float *value)
{
    size_t count = 0;
    for (uint32_t l = 0; l < c->layers; l++)
        for (uint32_t g = 0; g < c->heads[l]; g++) {
            const float *curve = curve_of(c, l, g, kind);
            const uint32_t end = kvb_train_curve_end(curve, c->length);
            if (end > 0)
                value[count++] = curve[at < end ? at : end];
        }
    qsort(value, count, sizeof *value, ascending);
    return count;
}

/* Four digits are more than a picture shows. */
static void put_short(kvb_json_writer *w, const char *key, double value)
{
    const double unit = value > 0 ? fmin(pow(10, floor(log10(value)) - 3), 1) : 1;
    kvb_json_put_number(w, key, round(value / unit) / round(1 / unit));
}

/* Points 0 .. end: the least of the heads, their quartiles and the most. value [heads] and figure [end + 1][FIGURES] are scratch. */
static void put_quartiles(kvb_json_writer *w, const kvb_layer_curves *c, int kind, uint32_t end, float *value, float *figure)
{
    static const char *const name[FIGURES] = {"least", "quarter", "median", "three_quarters", "most"};
    size_t count = 0;
    for (uint32_t i = 0; i <= end; i++) {
        count = collect(c, kind, i, value);
        for (int k = 0; k < FIGURES; k++)
            figure[(size_t)i * FIGURES + (size_t)k] = value[(size_t)((double)k / (FIGURES - 1) * (double)(count - 1) + 0.5)];
    }
    kvb_json_put_u64(w, "heads", count);
    for (int k = 0; k < FIGURES; k++) {
        kvb_json_begin_array(w, name[k]);
        for (uint32_t i = 0; i <= end; i++)
            put_short(w, NULL, (double)figure[(size_t)i * FIGURES + (size_t)k]);
        kvb_json_end_array(w);
    }
}

static void put_unsettled(kvb_json_writer *w, const kvb_layer_curves *c, int kind)
{
    double worst = unsettled_change;
    uint64_t many = 0, layer = 0, head = 0;
    for (uint32_t l = 0; l < c->layers; l++)
        for (uint32_t g = 0; g < c->heads[l]; g++) {
            const float *curve = curve_of(c, l, g, kind);
            const uint32_t end = kvb_train_curve_end(curve, c->length);
            const double change = end > 0 ? 1.0 - (double)curve[end] / (double)curve[end - 1] : 0.0;
            many += change > unsettled_change;
            if (change > worst)
                worst = change, layer = l, head = g;
        }
    kvb_json_put_u64(w, "unsettled", many);
    if (many == 0)
        return;
    kvb_json_begin_object(w, "worst");
    kvb_json_put_u64(w, "layer", layer);
    kvb_json_put_u64(w, "head", head);
    put_short(w, "change", worst);
    kvb_json_end_object(w);
}

static void put_kind(kvb_json_writer *w, const kvb_layer_curves *c, int kind, float *value, float *figure)
{
    uint32_t end = 0;
    for (uint32_t l = 0; l < c->layers; l++)
        for (uint32_t g = 0; g < c->heads[l]; g++) {
            const uint32_t own = kvb_train_curve_end(curve_of(c, l, g, kind), c->length);
            end = own > end ? own : end;
        }
    if (end == 0)
        return;
    kvb_json_begin_object(w, kvb_train_kind_name((kvb_kind)kind));
    put_quartiles(w, c, kind, end, value, figure);
    put_unsettled(w, c, kind);
    kvb_json_end_object(w);
}

void kvb_train_put_curves(kvb_json_writer *w, const kvb_layer_curves *c)
{
    size_t heads = 0;
    for (uint32_t l = 0; l < c->layers; l++)
        heads += c->heads[l];
    float *value = kvb_alloc_array(heads + FIGURES * ((size_t)c->length + 1), sizeof *value);
    if (value == NULL) {
        w->failed = true;
        return;
    }
    kvb_json_begin_object(w, "curves");
    put_kind(w, c, KVB_KEY, value, value + heads);
    put_kind(w, c, KVB_VALUE, value, value + heads);
    kvb_json_end_object(w);
    free(value);
}

bool kvb_train_curves_create(uint32_t layers, uint32_t length, kvb_layer_curves *c)
{
    *c = (kvb_layer_curves){.layers = layers, .length = length, .heads = kvb_alloc_zeroed(layers, sizeof *c->heads),
                            .curve = kvb_alloc_zeroed(layers, sizeof *c->curve)};
    return c->heads != NULL && c->curve != NULL;
}

void kvb_train_curves_free(kvb_layer_curves *c)
{
    free(c->heads);
    free(c->curve);
    *c = (kvb_layer_curves){0};
}

bool kvb_train_curves_of(const kvb_trainer *t, kvb_layer_curves *c)
{
    if (!kvb_train_curves_create(t->capture->layers, kvb_train_curve_length(t->recipe), c))
        return false;
    for (uint32_t l = 0; l < c->layers; l++) {
        c->heads[l] = t->capture->geometry[l].kv_heads;
        c->curve[l] = kvb_train_has(t, l) ? t->result[l].curve : NULL;
    }
    return true;
}
