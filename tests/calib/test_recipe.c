#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calib/recipe.h"
#include "calib/shape.h"
#include "calib/suggest.h"
#include "tests/support/cm.h"
#include "tests/support/scratch.h"

static void test_built_in(void **state)
{
    (void)state;
    kvb_recipe r;
    assert_int_equal(kvb_recipe_load("antkv", &r, NULL), KVB_OK);
    assert_string_equal(r.name, "antkv");
    assert_int_equal(r.frame, KVB_FRAME_PRE);
    assert_int_equal(r.kind[KVB_KEY].weights, KVB_WEIGHT_EXACT_K);
    assert_int_equal(r.kind[KVB_VALUE].weights, KVB_WEIGHT_EXACT_V);
    assert_int_equal(r.iterations, 15);
    assert_true(r.policy.anchor_fraction == 0.01);
    assert_int_equal(r.policy.score, KVB_SCORE_EXACT_K);
    assert_int_equal(r.policy.window, 32);
    assert_int_equal(r.policy.sinks, 0);
    kvb_recipe_free(&r);
    assert_int_equal(kvb_recipe_load("cq", &r, NULL), KVB_OK);
    assert_int_equal(r.kind[KVB_KEY].weights, KVB_WEIGHT_FISHER);
    assert_int_equal(r.kind[KVB_VALUE].weights, KVB_WEIGHT_FISHER);
    assert_true(r.policy.anchor_fraction == 0.0);
    assert_int_equal(r.policy.window, 0);
    kvb_recipe_free(&r);
}

static void test_transforms(void **state)
{
    (void)state;
    static const struct {
        const char *keys;
        kvb_rotation rotation;
        kvb_recipe_metric metric;
    } cases[] = {
        {"{}", KVB_ROTATION_NONE, {KVB_METRIC_NONE, 0, 0}},
        {"{\"rotation\": \"pca\", \"metric\": {}}", KVB_ROTATION_PCA, {KVB_METRIC_RELATIVE, 0.5, 1e-3}},
        {"{\"rotation\": \"random\", \"frame\": \"post\", \"metric\": {\"alpha\": 1}}", KVB_ROTATION_RANDOM,
         {KVB_METRIC_POST, 1.0, 1e-3}},
        {"{\"frame\": \"block:4\", \"metric\": {\"ridge\": 0.25}}", KVB_ROTATION_NONE, {KVB_METRIC_RELATIVE, 0.5, 0.25}},
        {"{\"rotation\": \"balanced-pca\", \"metric\": {\"moment\": \"post\"}}", KVB_ROTATION_BALANCED_PCA,
         {KVB_METRIC_POST, 0.5, 1e-3}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char json[200];
        kvb_recipe r;
        snprintf(json, sizeof json, "{\"schema\": 1, \"name\": \"x\", \"keys\": %s}", cases[i].keys);
        assert_int_equal(kvb_recipe_parse(json, strlen(json), "a.json", &r, NULL), KVB_OK);
        assert_int_equal(r.kind[KVB_KEY].rotation, cases[i].rotation);
        assert_int_equal(r.kind[KVB_KEY].metric.moment, cases[i].metric.moment);
        assert_true(r.kind[KVB_KEY].metric.alpha == cases[i].metric.alpha);
        assert_true(r.kind[KVB_KEY].metric.ridge == cases[i].metric.ridge);
        assert_int_equal(r.kind[KVB_VALUE].rotation, KVB_ROTATION_NONE);
        kvb_recipe_free(&r);
    }
    assert_string_equal(kvb_rotation_name(KVB_ROTATION_BALANCED_PCA), "balanced-pca");
    assert_string_equal(kvb_metric_moment_name(KVB_METRIC_POST), "post");
}

static void test_best(void **state)
{
    (void)state;
    kvb_recipe r;
    for (int fast = 0; fast < 2; fast++) {
        assert_int_equal(kvb_recipe_load(fast != 0 ? "best-fast" : "best", &r, NULL), KVB_OK);
        assert_int_equal(r.frame, fast != 0 ? KVB_FRAME_BLOCK : KVB_FRAME_PRE);
        assert_int_equal(r.kind[KVB_KEY].rotation, KVB_ROTATION_BALANCED_PCA);
        assert_int_equal(r.kind[KVB_KEY].metric.moment, KVB_METRIC_RELATIVE);
        assert_int_equal(r.kind[KVB_KEY].shape.channels, 16); /* the widest of the ladder */
        assert_true(r.ladder_count == 10 && r.budget == 0.0 && kvb_recipe_has_fine(&r));
        assert_true(r.kind[KVB_KEY].mean && !r.kind[KVB_VALUE].mean);
        assert_int_equal(r.kind[KVB_VALUE].rotation, KVB_ROTATION_NONE);
        assert_int_equal(r.kind[KVB_VALUE].weights, KVB_WEIGHT_EXACT_V);
        assert_true(r.policy.anchor_fraction == 0.02 && r.policy.window == 192 && r.policy.exact == KVB_EXACT_FINE);
        assert_int_equal(kvb_recipe_set_bits(&r, 1.7, NULL), KVB_OK);
        assert_true(kvb_recipe_nominal_bits(&r) == 1.7);
        assert_int_equal(kvb_recipe_set_bits(&r, 8.5, NULL), KVB_E_USAGE);
        kvb_layer layer[2] = {{.head_dim = 64}, {.head_dim = 24}};
        assert_int_equal(kvb_recipe_fit(&r, layer, 1, NULL), KVB_OK);
        assert_int_equal(r.ladder_count, 10);
        assert_int_equal(kvb_recipe_fit(&r, layer, 2, NULL), KVB_OK); /* groups of 8 and less */
        assert_true(r.ladder_count == 7 && r.kind[KVB_KEY].shape.channels == 8 && r.kind[KVB_VALUE].shape.channels == 8);
        layer[1].head_dim = 1;
        assert_int_equal(kvb_recipe_fit(&r, layer, 2, NULL), KVB_E_USAGE); /* one shape is no choice */
        kvb_recipe_fix_shapes(&r);
        assert_int_equal(r.ladder_count, 0);
        assert_int_equal(r.kind[KVB_KEY].shape.channels, 0);
        kvb_recipe_free(&r);
    }
}

static void test_all_built_in_parse(void **state)
{
    (void)state;
    assert_true(kvb_recipe_text_count >= 2);
    for (size_t i = 0; i < kvb_recipe_text_count; i++) {
        kvb_recipe r;
        assert_int_equal(kvb_recipe_load(kvb_recipe_texts[i].name, &r, NULL), KVB_OK);
        assert_string_equal(r.name, kvb_recipe_texts[i].name);
        kvb_recipe_free(&r);
    }
}

static void test_unknown_name(void **state)
{
    (void)state;
    kvb_recipe r;
    kvb_error err;
    assert_int_equal(kvb_recipe_load("antvk", &r, &err), KVB_E_USAGE);
    assert_non_null(strstr(err.message, "did you mean \"antkv\""));
    assert_int_equal(kvb_recipe_load("nowhere/antkv.json", &r, &err), KVB_E_IO);
    kvb_recipe_free(&r);
}

typedef struct bad_recipe {
    const char *json, *place, *part;
} bad_recipe;

static const bad_recipe bad_recipes[] = {
    {"[]", "recipe", "object"},
    {"{}", "schema", "missing"},
    {"{\"schema\": 2, \"name\": \"x\"}", "schema", "found 2"},
    {"{\"schema\": 1}", "name", "1 to 63"},
    {"{\"schema\": 1, \"name\": \"\"}", "name", "1 to 63"},
    {"{\"schema\": 1, \"name\": \"0123456789012345678901234567890123456789012345678901234567890123\"}", "name", "1 to 63"},
    {"{\"schema\": 1, \"name\": \"x\", \"keyz\": {}}", "recipe", "did you mean \"keys\""},
    {"{\"schema\": 1, \"name\": \"x\", \"keys\": []}", "keys", "object"},
    {"{\"schema\": 1, \"name\": \"x\", \"keys\": {\"wieghts\": \"none\"}}", "keys", "did you mean \"weights\""},
    {"{\"schema\": 1, \"name\": \"x\", \"keys\": {\"weights\": \"exact_k\"}}", "keys.weights", "did you mean \"exact-k\""},
    {"{\"schema\": 1, \"name\": \"x\", \"keys\": {\"weights\": 1}}", "keys.weights", "string"},
    {"{\"schema\": 1, \"name\": \"x\", \"keys\": {\"frame\": \"prr\"}}", "keys.frame", "did you mean \"pre\""},
    {"{\"schema\": 1, \"name\": \"x\", \"keys\": {\"frame\": \"block:0\"}}", "keys.frame", "block:B"},
    {"{\"schema\": 1, \"name\": \"x\", \"keys\": {\"frame\": \"block:16x\"}}", "keys.frame", "block:B"},
    {"{\"schema\": 1, \"name\": \"x\", \"keys\": {\"frame\": \"block:99999999999999999999\"}}", "keys.frame", "block:B"},
    {"{\"schema\": 1, \"name\": \"x\", \"values\": {\"frame\": \"pre\"}}", "values", "unknown key"},
    {"{\"schema\": 1, \"name\": \"x\", \"keys\": {\"mean\": 1}}", "keys.mean", "true or false"},
    {"{\"schema\": 1, \"name\": \"x\", \"values\": {\"shape\": \"8x255\"}}", "values.shape", "power of two"},
    {"{\"schema\": 1, \"name\": \"x\", \"values\": {\"shape\": \"add:8x16+32\"}}", "values.shape", "same number"},
    {"{\"schema\": 1, \"name\": \"x\", \"values\": {\"shape\": 8}}", "values.shape", "d x K"},
    {"{\"schema\": 1, \"name\": \"x\", \"kmeans\": {\"iterations\": 0}}", "kmeans.iterations", "1 to 1000"},
    {"{\"schema\": 1, \"name\": \"x\", \"kmeans\": {\"iterations\": 1.5}}", "kmeans.iterations", "whole"},
    {"{\"schema\": 1, \"name\": \"x\", \"kmeans\": {\"seeding\": \"kmeans+\"}}", "kmeans.seeding", "kmeans++"},
    {"{\"schema\": 1, \"name\": \"x\", \"cache\": {\"anchors\": 1.5}}", "cache.anchors", "0 to 1"},
    {"{\"schema\": 1, \"name\": \"x\", \"cache\": {\"anchors\": \"1%\"}}", "cache.anchors", "0 to 1"},
    {"{\"schema\": 1, \"name\": \"x\", \"cache\": {\"score\": \"keynorm\"}}", "cache.score", "did you mean \"key-norm\""},
    {"{\"schema\": 1, \"name\": \"x\", \"cache\": {\"window\": -1}}", "cache.window", "whole"},
    {"{\"schema\": 1, \"name\": \"x\", \"about\": 3}", "about", "string"},
    {"{\"schema\": 1, \"name\": \"x\", \"keys\": {\"rotation\": \"balanced\"}}", "keys.rotation", "did you mean \"balanced-pca\""},
    {"{\"schema\": 1, \"name\": \"x\", \"values\": {\"rotation\": true}}", "values.rotation", "none, pca, balanced-pca, random"},
    {"{\"schema\": 1, \"name\": \"x\", \"values\": {\"metric\": {}}}", "values.metric", "values have no metric"},
    {"{\"schema\": 1, \"name\": \"x\", \"keys\": {\"metric\": \"relative\"}}", "keys.metric", "object"},
    {"{\"schema\": 1, \"name\": \"x\", \"keys\": {\"metric\": {\"alhpa\": 1}}}", "keys.metric", "did you mean \"alpha\""},
    {"{\"schema\": 1, \"name\": \"x\", \"keys\": {\"metric\": {\"alpha\": 2.5}}}", "keys.metric.alpha", "from 0 to 2"},
    {"{\"schema\": 1, \"name\": \"x\", \"keys\": {\"metric\": {\"alpha\": \"half\"}}}", "keys.metric.alpha", "number"},
    {"{\"schema\": 1, \"name\": \"x\", \"keys\": {\"metric\": {\"ridge\": 0}}}", "keys.metric.ridge", "from 1e-09"},
    {"{\"schema\": 1, \"name\": \"x\", \"keys\": {\"metric\": {\"moment\": \"pre\"}}}", "keys.metric.moment", "relative, post"},
    {"{\"schema\": 1, \"name\": \"x\", \"cache\": {\"exact\": \"fin\"}}", "cache.exact", "did you mean \"fine\""},
    {"{\"schema\": 1, \"name\": \"x\", \"cache\": {\"exact\": \"fine\"}}", "cache.exact", "needs a fine shape"},
    {"{\"schema\": 1, \"name\": \"x\", \"keys\": {\"fine\": \"2x256\"}}", "values.fine", "both or neither"},
    {"{\"schema\": 1, \"name\": \"x\", \"values\": {\"fine\": \"2x256\"}}", "keys.fine", "both or neither"},
    {"{\"schema\": 1, \"name\": \"x\", \"keys\": {\"fine\": \"2x255\"}}", "keys.fine", "power of two"},
    {"{\"schema\": 1, \"name\": \"x\", \"keys\": {\"fine\": 2}}", "keys.fine", "d x K"},
};

static void test_fine(void **state)
{
    (void)state;
    static const char text[] = "{\"schema\":1,\"name\":\"x\",\"keys\":{\"fine\":\"2x256\"},\"values\":{\"fine\":\"4x16\","
                               "\"shape\":\"8x32\"},\"cache\":{\"exact\":\"fine\"}}";
    kvb_recipe r;
    kvb_error err = {0};
    assert_int_equal(kvb_recipe_parse(text, strlen(text), "a.json", &r, &err), KVB_OK);
    assert_true(kvb_recipe_has_fine(&r) && r.policy.exact == KVB_EXACT_FINE);
    assert_int_equal(kvb_recipe_set_bits(&r, 1, &err), KVB_OK);
    assert_int_equal(r.kind[KVB_KEY].fine.channels, 2);
    assert_int_equal(r.kind[KVB_KEY].fine.centroids, 256);
    assert_int_equal(r.kind[KVB_VALUE].fine.channels, 4);
    assert_int_equal(r.kind[KVB_VALUE].fine.centroids, 16);
    assert_true(kvb_recipe_nominal_bits(&r) == 1);
    kvb_recipe_free(&r);
    assert_int_equal(kvb_recipe_load("antkv", &r, &err), KVB_OK);
    assert_true(!kvb_recipe_has_fine(&r) && r.policy.exact == KVB_EXACT_HALF);
    kvb_recipe_free(&r);
}

static void test_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof bad_recipes / sizeof *bad_recipes; i++) {
        const bad_recipe *b = &bad_recipes[i];
        kvb_recipe r;
        kvb_error err = {0};
        assert_int_equal(kvb_recipe_parse(b->json, strlen(b->json), "a.json", &r, &err), KVB_E_FORMAT);
        assert_ptr_equal(strstr(err.where, "a.json: "), err.where);
        assert_string_equal(err.where + 8, b->place);
        assert_non_null(strstr(err.message, b->part));
        assert_null(r.doc);
    }
    kvb_recipe r;
    kvb_error err;
    assert_int_equal(kvb_recipe_parse("{\"schema\": 1,", 13, "a.json", &r, &err), KVB_E_FORMAT);
}

static void test_file(void **state)
{
    (void)state;
    static const char json[] = "{\"schema\": 1, \"name\": \"mine\", \"keys\": {\"frame\": \"block:16\", \"mean\": true, "
                               "\"shape\": \"16x4096\"}, \"cache\": {\"sinks\": 4, \"score\": \"first-n\"}}";
    char *folder = scratch_create(), path[512];
    kvb_recipe r;
    scratch_path(folder, "mine.json", path);
    assert_int_equal(scratch_write(path, json, sizeof json - 1), 0);
    assert_int_equal(kvb_recipe_load(path, &r, NULL), KVB_OK);
    assert_int_equal(r.frame, KVB_FRAME_BLOCK);
    assert_int_equal(r.rope_block, 16);
    assert_true(r.kind[KVB_KEY].mean && !r.kind[KVB_VALUE].mean);
    assert_int_equal(r.kind[KVB_KEY].shape.channels, 16);
    assert_int_equal(r.kind[KVB_KEY].shape.centroids, 4096);
    assert_int_equal(r.kind[KVB_VALUE].shape.channels, 0);
    assert_int_equal(r.policy.sinks, 4);
    assert_int_equal(r.policy.score, KVB_SCORE_FIRST_N);
    assert_non_null(kvb_json_get(kvb_json_root(r.doc), "cache"));
    kvb_recipe_free(&r);
    scratch_remove(folder);
}

static void test_bits(void **state)
{
    (void)state;
    static const double all[] = {0.375, 0.5, 0.75, 1, 2, 3, 4};
    kvb_recipe r;
    kvb_error err;
    assert_int_equal(kvb_recipe_load("cq", &r, NULL), KVB_OK);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        assert_int_equal(kvb_recipe_set_bits(&r, all[i], NULL), KVB_OK);
        assert_true(fabs(kvb_recipe_nominal_bits(&r) - all[i]) < 1e-12);
    }
    assert_int_equal(kvb_recipe_set_bits(&r, 1.5, &err), KVB_E_USAGE);
    assert_non_null(strstr(err.message, "0.375, 0.5, 0.75, 1, 2, 3, 4"));
    assert_int_equal(kvb_recipe_set_bits(&r, NAN, &err), KVB_E_USAGE);
    assert_int_equal(kvb_recipe_set_bits(&r, 1, NULL), KVB_OK);
    assert_int_equal(kvb_recipe_set_shape(&r, KVB_VALUE, "4x16", NULL), KVB_OK);
    assert_int_equal(r.kind[KVB_KEY].shape.channels, 8);
    assert_int_equal(r.kind[KVB_VALUE].shape.channels, 4);
    assert_int_equal(r.kind[KVB_VALUE].shape.centroids, 16);
    assert_int_equal(kvb_recipe_set_shape(&r, KVB_KEY, "4x256", NULL), KVB_OK);
    assert_true(kvb_recipe_nominal_bits(&r) == 1.5);
    kvb_recipe_free(&r);
}

static void test_bad_shapes(void **state)
{
    (void)state;
    static const char *const bad[] = {"", "8", "8x", "x256", "8x256x", "8X256", " 8x256", "-8x256", "8x+256", "0x256",
                                      "8x0", "8x1", "8x3", "65x256", "8x131072", "8x99999999999999999999999"};
    kvb_recipe r;
    kvb_error err;
    assert_int_equal(kvb_recipe_load("cq", &r, NULL), KVB_OK);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(kvb_recipe_set_shape(&r, KVB_KEY, bad[i], &err), KVB_E_USAGE);
        assert_int_equal(r.kind[KVB_KEY].shape.channels, 0);
    }
    kvb_recipe_free(&r);
}

static void test_additive_shapes(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint32_t channels, centroids, stages;
        double bits;
    } good[] = {{"add:8x16+16", 8, 16, 2, 1}, {"add:4x4+4+4", 4, 4, 3, 1.5}, {"add:64x256+256", 64, 256, 2, 0.25},
                {"add:16x2+2+2+2+2+2+2+2", 16, 2, 8, 0.5}, {"8x16", 8, 16, 1, 0.5}};
    static const struct {
        const char *text, *part;
    } bad[] = {{"add:8x16", "2 to 8 stages"},          {"8x16+16", "begins with add:"},
               {"add:8x16+8", "same number"},          {"add:8x16+", "after each +"},
               {"add:8x12+12", "power of two"},        {"add:8x16+16+16+16+16", "over 65536"},
               {"add:8x512+512", "over 65536"},        {"add:8x2+2+2+2+2+2+2+2+2", "at most 8"},
               {"add:65x16+16", "1 to 64"},            {"add:8x1+1", "power of two"},
               {"add:8x16+16x", "expected d x"},       {"add:8", "expected d x"},
               {"add:", "expected d x"},               {"add:x16+16", "expected d x"},
               {"add:8x+16", "expected d x"},          {"add: 8x16+16", "expected d x"},
               {"add:8x99999999999999999999999+99999999999999999999999", "power of two"}};
    kvb_recipe r;
    kvb_error err;
    char text[KVB_SHAPE_TEXT];
    assert_int_equal(kvb_recipe_load("cq", &r, NULL), KVB_OK);
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_int_equal(kvb_recipe_set_shape(&r, KVB_KEY, good[i].text, NULL), KVB_OK);
        assert_int_equal(kvb_recipe_set_shape(&r, KVB_VALUE, good[i].text, NULL), KVB_OK);
        const kvb_shape *k = &r.kind[KVB_KEY].shape;
        assert_true(k->channels == good[i].channels && k->centroids == good[i].centroids && k->stages == good[i].stages);
        assert_true(fabs(kvb_recipe_nominal_bits(&r) - good[i].bits) < 1e-12);
        assert_string_equal(kvb_shape_text(k->channels, k->centroids, k->stages, text), good[i].text);
    }
    assert_int_equal(kvb_recipe_set_shape(&r, KVB_KEY, "add:8x16+16", NULL), KVB_OK);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(kvb_recipe_set_shape(&r, KVB_KEY, bad[i].text, &err), KVB_E_USAGE);
        if (strstr(err.message, bad[i].part) == NULL)
            fail_msg("%s: %s", bad[i].text, err.message);
        assert_int_equal(r.kind[KVB_KEY].shape.channels, 8); /* as it was */
        assert_int_equal(r.kind[KVB_KEY].shape.stages, 2);
    }
    assert_int_equal(kvb_recipe_set_bits(&r, 1, NULL), KVB_OK);
    assert_int_equal(r.kind[KVB_KEY].shape.stages, 1);
    kvb_recipe_free(&r);
}

static void test_distance(void **state)
{
    (void)state;
    static const char *const known[] = {"weights", "mean", "frame"};
    char list[12];
    assert_int_equal(kvb_edit_distance("", ""), 0);
    assert_int_equal(kvb_edit_distance("", "abc"), 3);
    assert_int_equal(kvb_edit_distance("kitten", "sitting"), 3);
    assert_int_equal(kvb_edit_distance("abc", "abc"), 0);
    assert_string_equal(kvb_suggest("maen", known, 3), "mean");
    assert_null(kvb_suggest("x", known, 0));
    assert_string_equal(kvb_join_words(known, 3, list, sizeof list), "weights, me");
}

static void test_allocate(void **state)
{
    (void)state;
    static const char text[] = "{\"schema\": 1, \"name\": \"x\", \"keys\": {\"shape\": \"32x16\"}, \"values\": {\"shape\": \"4x16\"}}";
    kvb_recipe r, best;
    assert_int_equal(kvb_recipe_parse(text, strlen(text), "a.json", &r, NULL), KVB_OK);
    assert_int_equal(kvb_recipe_load("best", &best, NULL), KVB_OK);
    assert_int_equal(kvb_recipe_allocate(&r, NULL), KVB_OK);
    assert_int_equal(r.ladder_count, best.ladder_count);
    assert_memory_equal(r.ladder, best.ladder, sizeof r.ladder);
    for (int kind = 0; kind < 2; kind++) /* the ladder's widest: its own shapes, wider or narrower, give way */
        assert_int_equal(r.kind[kind].shape.channels, best.kind[kind].shape.channels);
    assert_int_equal(kvb_recipe_set_bits(&r, 1.3, NULL), KVB_OK);
    assert_true(kvb_recipe_nominal_bits(&r) == 1.3);
    kvb_recipe_free(&best);
    kvb_recipe_free(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_built_in), cmocka_unit_test(test_all_built_in_parse), cmocka_unit_test(test_unknown_name),
        cmocka_unit_test(test_fine),
        cmocka_unit_test(test_refused),  cmocka_unit_test(test_file),               cmocka_unit_test(test_bits),
        cmocka_unit_test(test_bad_shapes), cmocka_unit_test(test_additive_shapes), cmocka_unit_test(test_distance),           cmocka_unit_test(test_transforms),
        cmocka_unit_test(test_best), cmocka_unit_test(test_allocate),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
