#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "calib/shape.h"
#include "calib/train_impl.h"
#include "format/base/fail.h"

/* What training itself writes; a capture's META has no say in it. */
static bool is_own(const char *key)
{
    static const char *const own[] = {"recipe", "training", "created"};
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        if (strcmp(key, own[i]) == 0)
            return true;
    return false;
}

/* Only from SOURCE_DATE_EPOCH: a clock would make every run's bytes differ. */
static void put_created(kvb_json_writer *w)
{
    const char *text = getenv("SOURCE_DATE_EPOCH");
    char *end, stamp[32];
    struct tm tm;
    if (text == NULL || *text < '0' || *text > '9')
        return;
    errno = 0;
    long long seconds = strtoll(text, &end, 10);
    time_t at = (time_t)seconds;
    if (errno != 0 || *end != '\0' || gmtime_r(&at, &tm) == NULL ||
        strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%SZ", &tm) == 0)
        return;
    kvb_json_put_string(w, "created", stamp);
}

/* What makes y = forward (x - mean); errors are relative to the variance of y. */
static void put_transform(kvb_json_writer *w, const kvb_recipe_kind *k)
{
    if (k->metric.moment != KVB_METRIC_NONE) {
        kvb_json_begin_object(w, "metric");
        kvb_json_put_string(w, "moment", kvb_metric_moment_name(k->metric.moment));
        kvb_json_put_number(w, "alpha", k->metric.alpha);
        kvb_json_put_number(w, "ridge", k->metric.ridge);
        kvb_json_end_object(w);
    }
    if (k->rotation != KVB_ROTATION_NONE)
        kvb_json_put_string(w, "rotation", kvb_rotation_name(k->rotation));
}

static void put_kind(kvb_json_writer *w, const kvb_recipe *recipe, kvb_kind kind)
{
    static const char *const weightings[] = {"none", "exact-k", "exact-v", "fisher"};
    const kvb_recipe_kind *k = &recipe->kind[kind];
    const kvb_shape *s = &k->shape, *fine = &k->fine;
    char text[KVB_SHAPE_TEXT];
    kvb_json_begin_object(w, kvb_train_kind_name(kind));
    kvb_json_put_string(w, "shape", kvb_shape_text(s->channels, s->centroids, s->stages, text));
    kvb_json_put_u64(w, "channels", s->channels);
    kvb_json_put_u64(w, "centroids", s->centroids);
    kvb_json_put_u64(w, "stages", s->stages);
    if (fine->channels != 0)
        kvb_json_put_string(w, "fine", kvb_shape_text(fine->channels, fine->centroids, fine->stages, text));
    kvb_json_put_string(w, "weights", weightings[k->weights]);
    kvb_json_put_bool(w, "mean", k->mean);
    put_transform(w, k);
    kvb_json_end_object(w);
}

void kvb_train_put_quality(kvb_json_writer *w, const kvb_train_report *report)
{
    kvb_json_begin_object(w, "quality");
    /* Kinds whose numbers are coded one by one train nothing. */
    if (!isnan(report->key_error)) {
        kvb_json_put_number(w, "key_error", report->key_error);
        kvb_json_put_number(w, "key_heldout_error", report->key_heldout_error);
    }
    if (!isnan(report->value_error)) {
        kvb_json_put_number(w, "value_error", report->value_error);
        kvb_json_put_number(w, "value_heldout_error", report->value_heldout_error);
    }
    if (!isnan(report->key_fine_error)) {
        kvb_json_put_number(w, "key_fine_error", report->key_fine_error);
        kvb_json_put_number(w, "value_fine_error", report->value_fine_error);
    }
    kvb_json_put_number(w, "points_per_centroid", report->points_per_centroid);
    kvb_json_end_object(w);
}

void kvb_train_put_clips(kvb_json_writer *w, const kvb_train_report *report)
{
    if (isnan(report->clip_before[KVB_KEY]) && isnan(report->clip_before[KVB_VALUE]))
        return;
    kvb_json_begin_object(w, "clips");
    for (int kind = 0; kind < 2; kind++) {
        if (isnan(report->clip_before[kind]))
            continue;
        kvb_json_begin_object(w, kvb_train_kind_name((kvb_kind)kind));
        kvb_json_put_number(w, "output_error_before", report->clip_before[kind]);
        kvb_json_put_number(w, "output_error", report->clip_after[kind]);
        kvb_json_end_object(w);
    }
    kvb_json_end_object(w);
}

static void put_training(kvb_json_writer *w, const kvb_trainer *t, const kvb_train_report *report, const kvb_layer_scores *scores)
{
    const kvb_recipe *recipe = t->recipe;
    kvb_json_begin_object(w, "training");
    kvb_json_put_number(w, "bits_nominal", kvb_recipe_nominal_bits(recipe));
    put_kind(w, recipe, KVB_KEY);
    put_kind(w, recipe, KVB_VALUE);
    kvb_json_put_u64(w, "rows", t->capture->rows);
    kvb_json_put_u64(w, "seed", t->options->seed);
    kvb_json_begin_object(w, "kmeans");
    kvb_json_put_u64(w, "iterations", recipe->iterations);
    kvb_json_put_string(w, "seeding", kvb_seeding_name(recipe->seeding));
    if (recipe->backend == KVB_KMEANS_FAISS)
        kvb_json_put_string(w, "backend", "faiss");
    kvb_json_put_u64(w, "holdout_every", t->holdout_every);
    kvb_json_put_u64(w, "holdout_block", KVB_HOLDOUT_BLOCK);
    kvb_json_end_object(w);
    kvb_train_put_quality(w, report);
    kvb_train_put_clips(w, report);
    kvb_layer_curves curves;
    if (kvb_train_curves_of(t, &curves))
        kvb_train_put_curves(w, &curves);
    else
        w->failed = true;
    kvb_train_curves_free(&curves);
    kvb_train_put_scores(w, scores->rows > 0 ? kvb_train_context(t->capture) : 0, scores);
    kvb_json_put_string(w, "device", t->options->device != KVB_DEVICE_CPU ? "cuda" : "cpu");
    if (kvb_train_is_part(t->options, t->capture->layers))
        kvb_train_put_part(w, t, scores);
    kvb_json_end_object(w);
}

kvb_status kvb_train_meta_write(const kvb_trainer *t, const kvb_train_report *report, const kvb_layer_scores *scores, char **meta,
                                kvb_error *err)
{
    kvb_json_doc *doc = NULL;
    kvb_json_writer w = {.compact = true};
    const char *given = t->capture->meta_json != NULL ? t->capture->meta_json : "{}";
    *meta = NULL;
    kvb_status status = kvb_json_parse(given, strlen(given), "META of the capture", &doc, err);
    if (status != KVB_OK)
        return status;
    const kvb_json *root = kvb_json_root(doc);
    kvb_json_begin_object(&w, NULL);
    for (size_t i = 0; kvb_json_type_of(root) == KVB_JSON_OBJECT && i < kvb_json_count(root); i++)
        if (!is_own(kvb_json_key_at(root, i)))
            kvb_json_put_value(&w, kvb_json_key_at(root, i), kvb_json_at(root, i));
    kvb_json_put_value(&w, "recipe", kvb_json_root(t->recipe->doc));
    put_training(&w, t, report, scores);
    put_created(&w);
    kvb_json_end_object(&w);
    const char *text = kvb_json_writer_text(&w);
    *meta = text != NULL ? strdup(text) : NULL;
    kvb_json_writer_free(&w);
    kvb_json_free(doc);
    return *meta != NULL ? KVB_OK : kvb_fail_memory(err, "META of the book");
}
