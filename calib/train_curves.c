/* How k-means went, for META: the errors of all heads by iteration, as quartiles. */
#include <math.h>
#include <stdlib.h>

#include "calib/additive.h"
#include "calib/train_impl.h"
#include "format/base/checked.h"

/* A head whose last iteration still took more than this share of its error away could have gone on. */
static const double unsettled_change = 0.01;

uint32_t kvb_train_curve_length(const kvb_recipe *recipe)
{
    kvb_additive_options options;
    kvb_additive_options_init(&options);
    return recipe->iterations > options.rounds ? recipe->iterations : options.rounds;
}

static const float *curve_of(const kvb_trainer *t, uint32_t layer, uint32_t head, int kind)
{
    const float *all = kvb_train_has(t, layer) ? t->result[layer].curve : NULL;
    return all != NULL ? all + (2 * (size_t)head + (size_t)kind) * (kvb_train_curve_length(t->recipe) + 1) : NULL;
}

/* The last point of a curve; 0 where it has none, or only the start. */
static uint32_t end_of(const float *curve, uint32_t length)
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
static size_t collect(const kvb_trainer *t, int kind, uint32_t at, float *value)
{
    const uint32_t length = kvb_train_curve_length(t->recipe);
    size_t count = 0;
    for (uint32_t l = 0; l < t->capture->layers; l++)
        for (uint32_t g = 0; g < t->capture->geometry[l].kv_heads; g++) {
            const float *curve = curve_of(t, l, g, kind);
            const uint32_t end = end_of(curve, length);
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

static void put_quartile(kvb_json_writer *w, const kvb_trainer *t, int kind, const char *key, double share, uint32_t end, float *value)
{
    kvb_json_begin_array(w, key);
    for (uint32_t i = 0; i <= end; i++) {
        const size_t count = collect(t, kind, i, value);
        put_short(w, NULL, (double)value[(size_t)(share * (double)(count - 1) + 0.5)]);
    }
    kvb_json_end_array(w);
}

static void put_unsettled(kvb_json_writer *w, const kvb_trainer *t, int kind)
{
    const uint32_t length = kvb_train_curve_length(t->recipe);
    double worst = unsettled_change;
    uint64_t many = 0, layer = 0, head = 0;
    for (uint32_t l = 0; l < t->capture->layers; l++)
        for (uint32_t g = 0; g < t->capture->geometry[l].kv_heads; g++) {
            const float *curve = curve_of(t, l, g, kind);
            const uint32_t end = end_of(curve, length);
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

static void put_kind(kvb_json_writer *w, const kvb_trainer *t, int kind, float *value)
{
    uint32_t end = 0;
    for (uint32_t l = 0; l < t->capture->layers; l++)
        for (uint32_t g = 0; g < t->capture->geometry[l].kv_heads; g++) {
            const uint32_t own = end_of(curve_of(t, l, g, kind), kvb_train_curve_length(t->recipe));
            end = own > end ? own : end;
        }
    if (end == 0)
        return;
    kvb_json_begin_object(w, kvb_train_kind_name((kvb_kind)kind));
    kvb_json_put_u64(w, "heads", collect(t, kind, 0, value));
    put_quartile(w, t, kind, "least", 0.0, end, value);
    put_quartile(w, t, kind, "quarter", 0.25, end, value);
    put_quartile(w, t, kind, "median", 0.5, end, value);
    put_quartile(w, t, kind, "three_quarters", 0.75, end, value);
    put_quartile(w, t, kind, "most", 1.0, end, value);
    put_unsettled(w, t, kind);
    kvb_json_end_object(w);
}

void kvb_train_put_curves(kvb_json_writer *w, const kvb_trainer *t)
{
    float *value = kvb_alloc_array((size_t)t->capture->layers * t->part_heads, sizeof *value);
    if (value == NULL) {
        w->failed = true;
        return;
    }
    kvb_json_begin_object(w, "curves");
    put_kind(w, t, KVB_KEY, value);
    put_kind(w, t, KVB_VALUE, value);
    kvb_json_end_object(w);
    free(value);
}
