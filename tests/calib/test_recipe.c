#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "calib/recipe.h"
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
    assert_int_equal(r.kind[KVB_KEY].weights, KVB_WEIGHT_NONE);
    assert_int_equal(r.kind[KVB_VALUE].weights, KVB_WEIGHT_NONE);
    assert_true(r.policy.anchor_fraction == 0.0);
    assert_int_equal(r.policy.window, 0);
    kvb_recipe_free(&r);
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
    {"{\"schema\": 1, \"name\": \"x\", \"values\": {\"shape\": 8}}", "values.shape", "d x K"},
    {"{\"schema\": 1, \"name\": \"x\", \"kmeans\": {\"iterations\": 0}}", "kmeans.iterations", "1 to 1000"},
    {"{\"schema\": 1, \"name\": \"x\", \"kmeans\": {\"iterations\": 1.5}}", "kmeans.iterations", "whole"},
    {"{\"schema\": 1, \"name\": \"x\", \"kmeans\": {\"seeding\": \"kmeans+\"}}", "kmeans.seeding", "kmeans++"},
    {"{\"schema\": 1, \"name\": \"x\", \"cache\": {\"anchors\": 1.5}}", "cache.anchors", "0 to 1"},
    {"{\"schema\": 1, \"name\": \"x\", \"cache\": {\"anchors\": \"1%\"}}", "cache.anchors", "0 to 1"},
    {"{\"schema\": 1, \"name\": \"x\", \"cache\": {\"score\": \"keynorm\"}}", "cache.score", "did you mean \"key-norm\""},
    {"{\"schema\": 1, \"name\": \"x\", \"cache\": {\"window\": -1}}", "cache.window", "whole"},
    {"{\"schema\": 1, \"name\": \"x\", \"about\": 3}", "about", "string"},
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
    assert_int_equal(r.kind[KVB_KEY].fine_channels, 2);
    assert_int_equal(r.kind[KVB_KEY].fine_centroids, 256);
    assert_int_equal(r.kind[KVB_VALUE].fine_channels, 4);
    assert_int_equal(r.kind[KVB_VALUE].fine_centroids, 16);
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
    assert_int_equal(r.kind[KVB_KEY].channels, 16);
    assert_int_equal(r.kind[KVB_KEY].centroids, 4096);
    assert_int_equal(r.kind[KVB_VALUE].channels, 0);
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
    assert_int_equal(r.kind[KVB_KEY].channels, 8);
    assert_int_equal(r.kind[KVB_VALUE].channels, 4);
    assert_int_equal(r.kind[KVB_VALUE].centroids, 16);
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
        assert_int_equal(r.kind[KVB_KEY].channels, 0);
    }
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_built_in), cmocka_unit_test(test_all_built_in_parse), cmocka_unit_test(test_unknown_name),
        cmocka_unit_test(test_fine),
        cmocka_unit_test(test_refused),  cmocka_unit_test(test_file),               cmocka_unit_test(test_bits),
        cmocka_unit_test(test_bad_shapes), cmocka_unit_test(test_distance),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
