#include "calib/recipe.h"
#include "calib/recipe_read.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calib/shape.h"
#include "calib/suggest.h"
#include "format/base/fail.h"
#include "format/base/mapfile.h"

enum { RECIPE_MOST_BYTES = 1 << 20, MOST_ITERATIONS = 1000 };

static const char *const weightings[] = {"none", "exact-k", "exact-v", "fisher"};
static const char *const scores[] = {"exact-k", "exact-v", "key-norm", "first-n", "random"};
static const char *const forms[] = {"half", "fine"}; /* by kvb_exact_form */
static const char *const seedings[] = {"kmeans++", "random", "split"};
static const char *const rotations[] = {"none", "pca", "balanced-pca", "random"};
static const char *const moments[] = {"relative", "post"}; /* from KVB_METRIC_RELATIVE on */

static kvb_status read_frame(const recipe_reader *r, const kvb_json *v)
{
    static const char *const known[] = {"pre", "post", "block:16"};
    if (v == NULL)
        return KVB_OK;
    const char *text = kvb_json_string(v, "");
    if (strncmp(text, "block:", 6) == 0) {
        char *end;
        unsigned long block = strtoul(text + 6, &end, 10);
        if (text[6] < '1' || text[6] > '9' || *end != '\0' || block > 65536)
            return kvb_recipe_refuse(r, "keys.frame", "expected block:B with B from 1 to 65536, such as \"block:16\"");
        r->recipe->frame = KVB_FRAME_BLOCK;
        r->recipe->rope_block = (uint32_t)block;
        return KVB_OK;
    }
    uint32_t index = 0;
    kvb_status status = kvb_recipe_read_word(r, "keys.frame", v, known, COUNT(known), &index);
    if (status == KVB_OK)
        r->recipe->frame = index == 0 ? KVB_FRAME_PRE : KVB_FRAME_POST;
    return status;
}

/* After the frame, which says which moment is meant where none is named. */
static kvb_status read_metric(const recipe_reader *r, const kvb_json *object)
{
    static const char *const members[] = {"moment", "alpha", "ridge"};
    kvb_recipe_metric *metric = &r->recipe->kind[KVB_KEY].metric;
    kvb_status status = kvb_recipe_check_members(r, "keys.metric", object, members, COUNT(members));
    if (status != KVB_OK || object == NULL)
        return status;
    uint32_t moment = r->recipe->frame == KVB_FRAME_POST ? 1 : 0;
    *metric = (kvb_recipe_metric){.alpha = 0.5, .ridge = 1e-3};
    status = kvb_recipe_read_word(r, "keys.metric.moment", kvb_json_get(object, "moment"), moments, COUNT(moments), &moment);
    metric->moment = (kvb_metric_moment)(KVB_METRIC_RELATIVE + moment);
    if (status == KVB_OK)
        status = kvb_recipe_read_number(r, "keys.metric.alpha", kvb_json_get(object, "alpha"), 0.0, 2.0, &metric->alpha);
    if (status == KVB_OK)
        status = kvb_recipe_read_number(r, "keys.metric.ridge", kvb_json_get(object, "ridge"), 1e-9, 1e3, &metric->ridge);
    return status;
}

/* What happens to the rows before their channels are grouped, but for the keys' metric. */
static kvb_status read_space(const recipe_reader *r, const char *name, const kvb_json *object, kvb_recipe_kind *k)
{
    char place[32];
    uint32_t rotation = k->rotation;
    snprintf(place, sizeof place, "%s.mean", name);
    kvb_status status = kvb_recipe_read_bool(r, place, kvb_json_get(object, "mean"), &k->mean);
    if (status != KVB_OK)
        return status;
    snprintf(place, sizeof place, "%s.rotation", name);
    status = kvb_recipe_read_word(r, place, kvb_json_get(object, "rotation"), rotations, COUNT(rotations), &rotation);
    k->rotation = (kvb_rotation)rotation;
    return status;
}

static kvb_status read_shape(const recipe_reader *r, const char *name, const kvb_json *text, kvb_shape *shape)
{
    const char *problem = text != NULL ? kvb_shape_parse(kvb_json_string(text, ""), shape) : NULL;
    return problem == NULL ? KVB_OK : kvb_recipe_refuse(r, name, "%s", problem);
}

static kvb_status read_kind(const recipe_reader *r, kvb_kind kind, const kvb_json *object)
{
    static const char *const members[] = {"weights", "mean", "shape", "fine", "rotation", "scale", "frame", "metric"};
    const char *name = kind == KVB_KEY ? "keys" : "values";
    kvb_recipe_kind *k = &r->recipe->kind[kind];
    char place[32];
    if (kind == KVB_VALUE && kvb_json_get(object, "metric") != NULL)
        return kvb_recipe_refuse(r, "values.metric", "values have no metric: a query never meets them; expected it in \"keys\"");
    kvb_status status = kvb_recipe_check_members(r, name, object, members, kind == KVB_KEY ? 8 : 6);
    if (status != KVB_OK || object == NULL)
        return status;
    uint32_t weights = k->weights;
    snprintf(place, sizeof place, "%s.weights", name);
    status = kvb_recipe_read_word(r, place, kvb_json_get(object, "weights"), weightings, COUNT(weightings), &weights);
    if (status != KVB_OK)
        return status;
    k->weights = (kvb_weighting)weights;
    status = read_space(r, name, object, k);
    snprintf(place, sizeof place, "%s.shape", name);
    if (status == KVB_OK)
        status = read_shape(r, place, kvb_json_get(object, "shape"), &k->shape);
    snprintf(place, sizeof place, "%s.fine", name);
    if (status == KVB_OK)
        status = read_shape(r, place, kvb_json_get(object, "fine"), &k->fine);
    return status == KVB_OK ? kvb_recipe_read_scale(r, name, kvb_json_get(object, "scale"), &k->scale) : status;
}

const char *kvb_seeding_name(kvb_kmeans_seeding seeding)
{
    return (size_t)seeding < COUNT(seedings) ? seedings[seeding] : "?";
}

static kvb_status read_kmeans(const recipe_reader *r, const kvb_json *object)
{
    static const char *const members[] = {"iterations", "seeding"};
    kvb_status status = kvb_recipe_check_members(r, "kmeans", object, members, COUNT(members));
    if (status != KVB_OK)
        return status;
    status = kvb_recipe_read_u32(r, "kmeans.iterations", kvb_json_get(object, "iterations"), 1, MOST_ITERATIONS,
                      &r->recipe->iterations);
    if (status != KVB_OK)
        return status;
    uint32_t seeding = r->recipe->seeding;
    status = kvb_recipe_read_word(r, "kmeans.seeding", kvb_json_get(object, "seeding"), seedings, COUNT(seedings), &seeding);
    r->recipe->seeding = (kvb_kmeans_seeding)seeding;
    return status;
}

/* Groups that the transforms balance: the widest of the ladder, which the others divide. */
static void widen_shapes(kvb_recipe *recipe)
{
    for (uint32_t i = 0; i < recipe->ladder_count; i++)
        for (int kind = 0; kind < 2; kind++)
            if (recipe->ladder[i].channels > recipe->kind[kind].shape.channels)
                recipe->kind[kind].shape = recipe->ladder[i];
}

/* A shape of the ladder: dearer than the one before, of groups that divide its widest. */
static kvb_status add_rung(const recipe_reader *r, const kvb_json *text)
{
    kvb_recipe *recipe = r->recipe;
    if (recipe->ladder_count == KVB_RECIPE_LADDER)
        return kvb_recipe_refuse(r, "allocate.shapes", "more than %d shapes", KVB_RECIPE_LADDER);
    kvb_shape *rung = &recipe->ladder[recipe->ladder_count];
    kvb_status status = read_shape(r, "allocate.shapes", text, rung);
    if (status != KVB_OK)
        return status;
    for (uint32_t i = 0; i < recipe->ladder_count; i++) {
        const kvb_shape *other = &recipe->ladder[i];
        if (kvb_shape_rate(other) >= kvb_shape_rate(rung))
            return kvb_recipe_refuse(r, "allocate.shapes", "expected ascending bits: \"%s\" has %g, one before it %g",
                          kvb_json_string(text, ""), kvb_shape_rate(rung), kvb_shape_rate(other));
        if (other->channels % rung->channels != 0 && rung->channels % other->channels != 0)
            return kvb_recipe_refuse(r, "allocate.shapes", "groups of %u and %u channels do not divide each other", other->channels,
                          rung->channels);
    }
    recipe->ladder_count++;
    return KVB_OK;
}

static kvb_status read_allocate(const recipe_reader *r, const kvb_json *object)
{
    static const char *const members[] = {"shapes"};
    kvb_status status = kvb_recipe_check_members(r, "allocate", object, members, COUNT(members));
    if (status != KVB_OK || object == NULL)
        return status;
    const kvb_json *shapes = kvb_json_get(object, "shapes");
    if (kvb_json_type_of(shapes) != KVB_JSON_ARRAY || kvb_json_count(shapes) < 2)
        return kvb_recipe_refuse(r, "allocate.shapes", "expected a list of two shapes or more, such as [\"16x256\", \"8x256\"]");
    for (size_t i = 0; status == KVB_OK && i < kvb_json_count(shapes); i++)
        status = add_rung(r, kvb_json_at(shapes, i));
    widen_shapes(r->recipe);
    return status;
}

static kvb_status read_cache(const recipe_reader *r, const kvb_json *object)
{
    static const char *const members[] = {"anchors", "score", "window", "sinks", "exact"};
    kvb_policy *p = &r->recipe->policy;
    kvb_status status = kvb_recipe_check_members(r, "cache", object, members, COUNT(members));
    if (status != KVB_OK)
        return status;
    const kvb_json *anchors = kvb_json_get(object, "anchors");
    if (anchors != NULL) {
        p->anchor_fraction = kvb_json_number(anchors, -1.0);
        if (!(p->anchor_fraction >= 0.0 && p->anchor_fraction <= 1.0))
            return kvb_recipe_refuse(r, "cache.anchors", "expected a fraction of the tokens, 0 to 1");
    }
    uint32_t score = p->score;
    status = kvb_recipe_read_word(r, "cache.score", kvb_json_get(object, "score"), scores, COUNT(scores), &score);
    p->score = (kvb_anchor_score)score;
    if (status == KVB_OK)
        status = kvb_recipe_read_u32(r, "cache.window", kvb_json_get(object, "window"), 0, 1u << 30, &p->window);
    if (status == KVB_OK)
        status = kvb_recipe_read_u32(r, "cache.sinks", kvb_json_get(object, "sinks"), 0, 1u << 30, &p->sinks);
    uint32_t form = p->exact;
    if (status == KVB_OK)
        status = kvb_recipe_read_word(r, "cache.exact", kvb_json_get(object, "exact"), forms, COUNT(forms), &form);
    p->exact = (kvb_exact_form)form;
    return status;
}

/* Members that only make sense together. */
static kvb_status check_fine(const recipe_reader *r)
{
    const kvb_recipe_kind *k = r->recipe->kind;
    if ((k[KVB_KEY].fine.channels != 0) != (k[KVB_VALUE].fine.channels != 0))
        return kvb_recipe_refuse(r, k[KVB_KEY].fine.channels != 0 ? "values.fine" : "keys.fine",
                      "missing; keys and values have a fine shape both or neither");
    if (r->recipe->policy.exact == KVB_EXACT_FINE && !kvb_recipe_has_fine(r->recipe))
        return kvb_recipe_refuse(r, "cache.exact", "\"fine\" needs a fine shape for keys and values, such as \"fine\": \"2x256\"");
    return KVB_OK;
}

/* What a kind with scales cannot have beside them. */
static kvb_status check_scale(const recipe_reader *r)
{
    const kvb_recipe *p = r->recipe;
    for (int kind = 0; kind < 2; kind++) {
        const char *name = kind == KVB_KEY ? "keys.scale" : "values.scale";
        const kvb_recipe_kind *k = &p->kind[kind];
        if (!k->scale.used)
            continue;
        if (p->ladder_count > 0 || k->fine.channels != 0)
            return kvb_recipe_refuse(r, name, "contradicts \"%s\": numbers with scales have no codebooks",
                                     p->ladder_count > 0 ? "allocate" : "fine");
        if (k->shape.channels > 1 || k->shape.stages > 1)
            return kvb_recipe_refuse(r, name, "contradicts a shape of %u channels: numbers are coded one by one, as 1xK", k->shape.channels);
        if (k->weights != KVB_WEIGHT_NONE && k->scale.levels != KVB_LEVELS_TRAINED)
            return kvb_recipe_refuse(r, name, "contradicts weights: no levels are trained; expected \"weights\": \"none\"");
        if (k->scale.scaling.axis == KVB_AXIS_CHANNEL && k->scale.scaling.group > 1 && p->policy.anchor_fraction > 0.0)
            return kvb_recipe_refuse(r, "cache.anchors", "contradicts %s along channels: a token that shares scales with its neighbours "
                                     "cannot stay behind", name);
    }
    return KVB_OK;
}

static kvb_status read_texts(const recipe_reader *r, const kvb_json *root)
{
    uint64_t schema;
    if (!kvb_json_u64(kvb_json_get(root, "schema"), &schema))
        return kvb_recipe_refuse(r, "schema", "missing; expected \"schema\": 1");
    if (schema != 1)
        return kvb_recipe_refuse(r, "schema", "found %llu, expected 1: a newer kvbook wrote this recipe",
                      (unsigned long long)schema);
    const char *name = kvb_json_string(kvb_json_get(root, "name"), "");
    if (name[0] == '\0' || strlen(name) >= sizeof r->recipe->name)
        return kvb_recipe_refuse(r, "name", "expected a string of 1 to %zu bytes", sizeof r->recipe->name - 1);
    memcpy(r->recipe->name, name, strlen(name) + 1);
    static const char *const texts[] = {"source", "about"};
    for (size_t i = 0; i < COUNT(texts); i++) {
        const kvb_json *v = kvb_json_get(root, texts[i]);
        if (v != NULL && kvb_json_type_of(v) != KVB_JSON_STRING)
            return kvb_recipe_refuse(r, texts[i], "expected a string");
    }
    return KVB_OK;
}

static kvb_status read_centroids(const recipe_reader *r, const kvb_json *v)
{
    static const char *const known[] = {"half", "int8"};
    uint32_t index = 0;
    kvb_status status = kvb_recipe_read_word(r, "centroids", v, known, COUNT(known), &index);
    r->recipe->int8 = index == 1;
    return status;
}

static kvb_status read_recipe(const recipe_reader *r)
{
    static const char *const members[] = {"schema", "name", "source", "about", "keys", "values", "allocate", "centroids", "kmeans", "cache"};
    const kvb_json *root = kvb_json_root(r->recipe->doc);
    kvb_status status = kvb_json_type_of(root) == KVB_JSON_OBJECT
                            ? kvb_recipe_check_members(r, "recipe", root, members, COUNT(members))
                            : kvb_recipe_refuse(r, "recipe", "expected one JSON object");
    if (status == KVB_OK)
        status = read_texts(r, root);
    if (status == KVB_OK)
        status = read_kind(r, KVB_KEY, kvb_json_get(root, "keys"));
    if (status == KVB_OK)
        status = read_kind(r, KVB_VALUE, kvb_json_get(root, "values"));
    if (status == KVB_OK)
        status = read_frame(r, kvb_json_get(kvb_json_get(root, "keys"), "frame"));
    if (status == KVB_OK)
        status = read_metric(r, kvb_json_get(kvb_json_get(root, "keys"), "metric"));
    if (status == KVB_OK)
        status = read_allocate(r, kvb_json_get(root, "allocate"));
    if (status == KVB_OK)
        status = read_centroids(r, kvb_json_get(root, "centroids"));
    if (status == KVB_OK)
        status = read_kmeans(r, kvb_json_get(root, "kmeans"));
    if (status == KVB_OK)
        status = read_cache(r, kvb_json_get(root, "cache"));
    if (status == KVB_OK)
        status = check_fine(r);
    return status == KVB_OK ? check_scale(r) : status;
}

static bool is_path(const char *name)
{
    size_t n = strlen(name);
    return strchr(name, '/') != NULL || (n > 5 && strcmp(name + n - 5, ".json") == 0);
}

static const char *built_in(const char *name)
{
    for (size_t i = 0; i < kvb_recipe_text_count; i++)
        if (strcmp(name, kvb_recipe_texts[i].name) == 0)
            return kvb_recipe_texts[i].json;
    return NULL;
}

static kvb_status refuse_name(const char *name, kvb_error *err)
{
    const char *known[64];
    char list[300], word[64];
    size_t count = kvb_recipe_text_count < COUNT(known) ? kvb_recipe_text_count : COUNT(known);
    for (size_t i = 0; i < count; i++)
        known[i] = kvb_recipe_texts[i].name;
    return kvb_fail(err, KVB_E_USAGE, "recipe",
                    "unknown recipe \"%s\"; did you mean \"%s\"? Known: %s; a recipe file's name holds '/' or ends "
                    "in .json",
                    kvb_recipe_quoted(name, word, sizeof word), kvb_suggest(name, known, count),
                    kvb_join_words(known, count, list, sizeof list));
}

kvb_status kvb_recipe_parse(const char *text, size_t size, const char *file, kvb_recipe *recipe, kvb_error *err)
{
    *recipe = (kvb_recipe){.frame = KVB_FRAME_PRE, .iterations = 15, .seeding = KVB_SEED_PLUSPLUS};
    recipe_reader reader = {file, recipe, err};
    kvb_status status = kvb_json_parse(text, size, file, &recipe->doc, err);
    if (status == KVB_OK)
        status = read_recipe(&reader);
    if (status != KVB_OK)
        kvb_recipe_free(recipe);
    return status;
}

kvb_status kvb_recipe_load(const char *name, kvb_recipe *recipe, kvb_error *err)
{
    char *bytes;
    size_t size;
    *recipe = (kvb_recipe){0};
    if (!is_path(name)) {
        const char *text = built_in(name);
        return text == NULL ? refuse_name(name, err) : kvb_recipe_parse(text, strlen(text), name, recipe, err);
    }
    kvb_status status = kvb_read_file(name, RECIPE_MOST_BYTES, &bytes, &size, err);
    if (status != KVB_OK)
        return status;
    status = kvb_recipe_parse(bytes, size, name, recipe, err);
    free(bytes);
    return status;
}

void kvb_recipe_free(kvb_recipe *recipe)
{
    kvb_json_free(recipe->doc);
    *recipe = (kvb_recipe){0};
}

void kvb_recipe_fix_shapes(kvb_recipe *recipe)
{
    recipe->ladder_count = 0;
    for (int kind = 0; kind < 2; kind++)
        recipe->kind[kind].shape = (kvb_shape){0};
}

kvb_status kvb_recipe_allocate(kvb_recipe *recipe, kvb_error *err)
{
    kvb_recipe best;
    if (recipe->ladder_count > 0)
        return KVB_OK;
    if (recipe->kind[KVB_KEY].scale.used || recipe->kind[KVB_VALUE].scale.used)
        return kvb_fail(err, KVB_E_USAGE, "--allocate", "recipe \"%s\" codes numbers one by one: there are no codebooks to deal bits out over",
                        recipe->name);
    kvb_status status = kvb_recipe_load("best", &best, err);
    if (status != KVB_OK)
        return status;
    kvb_recipe_fix_shapes(recipe);
    memcpy(recipe->ladder, best.ladder, sizeof recipe->ladder);
    recipe->ladder_count = best.ladder_count;
    kvb_recipe_free(&best);
    widen_shapes(recipe);
    return KVB_OK;
}

static kvb_status set_budget(kvb_recipe *recipe, double bits, kvb_error *err)
{
    const double least = kvb_shape_rate(&recipe->ladder[0]);
    const double most = kvb_shape_rate(&recipe->ladder[recipe->ladder_count - 1]);
    if (!(bits >= least && bits <= most))
        return kvb_fail(err, KVB_E_USAGE, "bits", "found %g; the shapes of recipe \"%s\" that fit the heads have %g to %g bits",
                        bits, recipe->name, least, most);
    recipe->budget = bits;
    return KVB_OK;
}

/* What divides every head of the supported layers. */
static uint32_t common_channels(const kvb_layer *layer, uint32_t layers)
{
    uint32_t common = 0;
    for (uint32_t l = 0; l < layers; l++)
        for (uint32_t a = layer[l].kind != KVB_LAYER_UNSUPPORTED ? layer[l].head_dim : 0; a != 0;) {
            const uint32_t rest = common % a; /* Euclid */
            common = a;
            a = rest;
        }
    return common;
}

kvb_status kvb_recipe_fit(kvb_recipe *recipe, const kvb_layer *layer, uint32_t layers, kvb_error *err)
{
    const uint32_t common = common_channels(layer, layers);
    uint32_t left = 0;
    if (recipe->ladder_count == 0)
        return KVB_OK;
    for (uint32_t i = 0; i < recipe->ladder_count; i++)
        if (common % recipe->ladder[i].channels == 0)
            recipe->ladder[left++] = recipe->ladder[i];
    if (left < 2)
        return kvb_fail(err, KVB_E_USAGE, "allocate.shapes",
                        "of recipe \"%s\"'s shapes %u have groups that divide heads of %u channels, expected two or more",
                        recipe->name, left, common);
    recipe->ladder_count = left;
    for (int kind = 0; kind < 2; kind++)
        if (common % recipe->kind[kind].shape.channels != 0)
            recipe->kind[kind].shape = recipe->ladder[0];
    widen_shapes(recipe);
    return set_budget(recipe, recipe->budget, err);
}

kvb_status kvb_recipe_set_bits(kvb_recipe *recipe, double bits, kvb_error *err)
{
    static const struct {
        double bits;
        kvb_shape shape;
    } usual[] = {{0.375, {32, 4096, 1}}, {0.5, {16, 256, 1}}, {0.75, {16, 4096, 1}}, {1, {8, 256, 1}},
                 {2, {4, 256, 1}},       {3, {4, 4096, 1}},   {4, {2, 256, 1}}};
    if (recipe->ladder_count > 0)
        return set_budget(recipe, bits, err);
    bool done[2];
    for (int kind = 0; kind < 2; kind++) {
        kvb_recipe_kind *k = &recipe->kind[kind];
        done[kind] = k->scale.used && bits >= 1.0 && bits <= 8.0 && bits == floor(bits);
        if (done[kind])
            k->shape = (kvb_shape){1, 1u << (uint32_t)bits, 1};
        for (size_t i = 0; i < COUNT(usual) && !k->scale.used; i++)
            if (bits == usual[i].bits) {
                k->shape = usual[i].shape;
                done[kind] = true;
            }
        if (!done[kind] && k->scale.used)
            return kvb_fail(err, KVB_E_USAGE, "bits", "found %g; recipe \"%s\" codes numbers one by one: expected a whole number from 1 to 8",
                            bits, recipe->name);
    }
    if (done[KVB_KEY] && done[KVB_VALUE])
        return KVB_OK;
    return kvb_fail(err, KVB_E_USAGE, "bits",
                    "no usual shape for %g bits; known: 0.375, 0.5, 0.75, 1, 2, 3, 4; give shapes (d x K) for others",
                    bits);
}

kvb_status kvb_recipe_set_shape(kvb_recipe *recipe, kvb_kind kind, const char *shape, kvb_error *err)
{
    char word[64];
    const char *problem = kvb_shape_parse(shape, &recipe->kind[kind].shape);
    if (problem == NULL && recipe->kind[kind].scale.used && recipe->kind[kind].shape.channels != 1)
        problem = "this recipe codes numbers one by one: expected 1xK";
    if (problem == NULL)
        return KVB_OK;
    return kvb_fail(err, KVB_E_USAGE, kind == KVB_KEY ? "shape of the keys" : "shape of the values",
                    "found \"%s\": %s", kvb_recipe_quoted(shape, word, sizeof word), problem);
}

uint32_t kvb_recipe_scaled_bits(const kvb_recipe_kind *kind, uint32_t layer, uint32_t layers)
{
    const kvb_recipe_scale *s = &kind->scale;
    const double from = s->then_layer < 1.0 ? s->then_layer * layers : s->then_layer;
    return s->then_bits > 0 && layer >= from ? s->then_bits : kvb_shape_bits(kind->shape.centroids, 1);
}

bool kvb_recipe_wants_gradients(const kvb_recipe *recipe)
{
    return recipe->kind[KVB_KEY].weights == KVB_WEIGHT_FISHER || recipe->kind[KVB_VALUE].weights == KVB_WEIGHT_FISHER;
}

bool kvb_recipe_wants_queries(const kvb_recipe *recipe)
{
    return recipe->kind[KVB_KEY].scale.search || recipe->kind[KVB_VALUE].scale.search;
}

bool kvb_recipe_learns(const kvb_recipe *recipe)
{
    for (int kind = 0; kind < 2; kind++) {
        const kvb_recipe_kind *k = &recipe->kind[kind];
        if (!k->scale.used || k->scale.scaling.form == KVB_SCALE_FIXED || k->scale.levels == KVB_LEVELS_TRAINED || k->mean ||
            k->scale.search || k->scale.list_size > 0 ||
            k->metric.moment != KVB_METRIC_NONE || (k->rotation != KVB_ROTATION_NONE && k->rotation != KVB_ROTATION_RANDOM))
            return true;
    }
    return recipe->ladder_count > 0 || kvb_recipe_has_fine(recipe);
}

bool kvb_recipe_has_fine(const kvb_recipe *recipe)
{
    return recipe->kind[KVB_KEY].fine.channels != 0 && recipe->kind[KVB_VALUE].fine.channels != 0;
}

double kvb_recipe_nominal_bits(const kvb_recipe *recipe)
{
    double sum = 0.0;
    if (recipe->ladder_count > 0)
        return recipe->budget;
    for (int kind = 0; kind < 2; kind++)
        sum += kvb_shape_rate(&recipe->kind[kind].shape);
    return sum / 2.0;
}

const char *kvb_rotation_name(kvb_rotation rotation)
{
    return rotations[rotation];
}

const char *kvb_metric_moment_name(kvb_metric_moment moment)
{
    return moment == KVB_METRIC_NONE ? "none" : moments[moment - KVB_METRIC_RELATIVE];
}
