/* Which models the GPU's forward pass runs; asked in every build. */
#include <stdio.h>
#include <string.h>

#include "calib/device_forward.h"
#include "model/weights.h"
#include "tests/support/cm.h"
#include "tests/support/scratch.h"
#include "tests/support/tiny_gguf.h"


static kvb_model *open_tiny(const char *architecture)
{
    char path[512];
    kvb_model *model = NULL;
    kvb_error err = {0};
    char *folder = scratch_create();
    const tiny_gguf t = tiny_gguf_of(architecture);
    scratch_path(folder, "m.gguf", path);
    assert_int_equal(tiny_gguf_write(&t, path), 0);
    if (kvb_model_open(path, NULL, &model, &err) != KVB_OK)
        fail_msg("%s: %s", err.where, err.message);
    scratch_remove(folder);
    return model;
}

static void expect_refused(const kvb_model *m, const char *why)
{
    kvb_error err = {0};
    assert_int_equal(kvb_device_forward_check(m, &err), KVB_E_USAGE);
    assert_string_equal(err.where, "--device cuda");
    if (strstr(err.message, why) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", err.message, why);
}

static void test_architectures(void **state)
{
    (void)state;
    static const char *const good[] = {"llama", "qwen2", "qwen3", "phi3"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        kvb_error err = {0};
        kvb_model *m = open_tiny(good[i]);
        if (kvb_device_forward_check(m, &err) != KVB_OK)
            fail_msg("%s: %s", good[i], err.message);
        kvb_model_close(m);
    }
    kvb_model *gemma = open_tiny("gemma3");
    expect_refused(gemma, "gemma3");
    kvb_model_close(gemma);
}

static void test_layers(void **state)
{
    (void)state;
    kvb_model *m = open_tiny("llama");
    kvb_layer *last = &m->geometry[m->config.layers - 1];
    const kvb_layer whole = *last;
    last->kind = KVB_LAYER_SLIDING;
    last->sliding_window = 5;
    expect_refused(m, "layer 1 attends otherwise");
    m->geometry[0].kind = KVB_LAYER_SLIDING;
    m->geometry[0].sliding_window = 5;
    assert_int_equal(kvb_device_forward_check(m, NULL), KVB_OK);
    last->sliding_window = 6;
    expect_refused(m, "layer 1 attends otherwise");
    m->geometry[0] = *last = whole;
    last->rope_base *= 2;
    expect_refused(m, "layer 1 attends otherwise");
    *last = whole;
    last->attention_scale *= 2;
    expect_refused(m, "layer 1 attends otherwise");
    *last = whole;
    m->geometry[0].head_dim = last->head_dim = 256;
    expect_refused(m, "heads of 256 channels");
    m->geometry[0].head_dim = last->head_dim = whole.head_dim;
    assert_int_equal(kvb_device_forward_check(m, NULL), KVB_OK);
    kvb_model_close(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_architectures),
        cmocka_unit_test(test_layers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
