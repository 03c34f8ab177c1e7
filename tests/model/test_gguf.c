/* The GGUF reader: what it reads, and every way to refuse a file. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/gguf.h"
#include "tests/support/cm.h"
#include "tests/support/gguf_cases.h"
#include "tests/support/scratch.h"
#include "tests/support/tiny_gguf.h"

static uint8_t *make_case(const char *name, size_t *size)
{
    for (size_t i = 0; i < gguf_case_count; i++)
        if (strcmp(gguf_cases[i].name, name) == 0)
            return gguf_cases[i].make(size);
    fail_msg("no case %s", name);
    return NULL;
}

static kvb_gguf *open_case(const char *name, uint8_t **bytes)
{
    size_t size;
    kvb_gguf *g;
    kvb_error err = {0};
    *bytes = make_case(name, &size);
    if (kvb_gguf_open_memory(*bytes, size, name, &g, &err) != KVB_OK)
        fail_msg("%s: %s", err.where, err.message);
    return g;
}

static void test_scalars(void **state)
{
    (void)state;
    uint8_t *bytes;
    kvb_gguf *g = open_case("good", &bytes);
    uint64_t u = 0;
    double f = 0;
    bool yes = false;
    assert_true(kvb_gguf_has(g, "u32") && !kvb_gguf_has(g, "u3") && !kvb_gguf_has(g, "u322"));
    assert_true(kvb_gguf_get_u64(g, "u32", &u) && u == 4000000000u);
    assert_true(kvb_gguf_get_u64(g, "u16", &u) && u == 513);
    assert_true(kvb_gguf_get_u64(g, "u64", &u) && u == UINT64_MAX);
    assert_true(kvb_gguf_get_f64(g, "f32", &f) && f == 0.5);
    assert_true(kvb_gguf_get_f64(g, "f64", &f) && f == 1.5);
    assert_true(kvb_gguf_get_f64(g, "i64", &f) && f == -1.0);
    assert_true(kvb_gguf_get_f64(g, "i8", &f) && f == -2.0);
    assert_true(kvb_gguf_get_bool(g, "yes", &yes) && yes);
    assert_false(kvb_gguf_get_u64(g, "i64", &u)); /* negative */
    assert_false(kvb_gguf_get_u64(g, "f32", &u));
    assert_false(kvb_gguf_get_u64(g, "names", &u));
    assert_false(kvb_gguf_get_u64(g, "missing", &u));
    assert_false(kvb_gguf_get_bool(g, "u32", &yes));
    assert_false(kvb_gguf_get_f64(g, "yes", &f));
    kvb_gguf_close(g);
    free(bytes);
}

static void test_strings_and_arrays(void **state)
{
    (void)state;
    uint8_t *bytes;
    kvb_gguf *g = open_case("good", &bytes);
    const char *text;
    uint64_t size, count, u;
    double f;
    kvb_gguf_type type;
    assert_true(kvb_gguf_get_string(g, "general.architecture", &text, &size));
    assert_true(size == 4 && memcmp(text, "test", 4) == 0);
    assert_true(kvb_gguf_get_array(g, "names", &type, &count) && type == KVB_GGUF_STRING && count == 3);
    assert_true(kvb_gguf_array_string(g, "names", 2, &text, &size) && size == 5 && memcmp(text, "three", 5) == 0);
    assert_true(kvb_gguf_array_string(g, "names", 1, &text, &size) && size == 0);
    assert_false(kvb_gguf_array_string(g, "names", 3, &text, &size));
    assert_false(kvb_gguf_array_string(g, "numbers", 0, &text, &size));
    assert_true(kvb_gguf_get_array(g, "numbers", &type, &count) && type == KVB_GGUF_I16 && count == 2);
    assert_true(kvb_gguf_array_u64(g, "numbers", 0, &u) && u == 7);
    assert_false(kvb_gguf_array_u64(g, "numbers", 1, &u));
    assert_true(kvb_gguf_array_f64(g, "numbers", 1, &f) && f == -1.0);
    assert_false(kvb_gguf_array_f64(g, "numbers", 2, &f));
    assert_false(kvb_gguf_array_u64(g, "names", 0, &u));
    assert_true(kvb_gguf_get_array(g, "nothing", &type, &count) && count == 0);
    kvb_gguf_close(g);
    free(bytes);
}

static void test_tensors(void **state)
{
    (void)state;
    uint8_t *bytes;
    kvb_gguf *g = open_case("good", &bytes);
    assert_int_equal(kvb_gguf_tensor_count(g), 2);
    const kvb_tensor *t = kvb_gguf_tensor(g, "bias");
    assert_non_null(t);
    assert_ptr_equal(t, kvb_gguf_tensor_at(g, 1));
    assert_null(kvb_gguf_tensor(g, "biases"));
    assert_null(kvb_gguf_tensor_at(g, 2));
    t = kvb_gguf_tensor(g, "weight");
    assert_true(t->dims == 2 && t->shape[0] == 4 && t->shape[1] == 2 && t->shape[2] == 1 && t->size == 32);
    float out[8];
    kvb_dequantise(t, 0, 8, out);
    assert_true(out[2] == -2.0f && out[7] == 7.0f);
    const uint8_t *meta, *data;
    uint64_t meta_size, data_size;
    kvb_gguf_spans(g, &meta, &meta_size, &data, &data_size);
    assert_ptr_equal(meta, bytes);
    assert_ptr_equal(data, t->bytes);
    assert_int_equal(data_size, 48);
    assert_true(data >= meta + meta_size && data < meta + meta_size + 32);
    assert_string_equal(kvb_gguf_path(g), "good");
    kvb_gguf_close(g);
    free(bytes);
}

static void test_foreign_types_open(void **state)
{
    (void)state;
    uint8_t *bytes;
    kvb_gguf *g = open_case("foreign-types", &bytes);
    uint32_t elements, block;
    const kvb_tensor *t = kvb_gguf_tensor(g, "iq2_xxs");
    assert_string_equal(kvb_dtype_name(t->dtype), "IQ2_XXS");
    assert_false(kvb_dtype_block(t->dtype, &elements, &block));
    assert_int_equal(t->size, 66);
    assert_null(kvb_dtype_name(kvb_gguf_tensor(g, "novel")->dtype));
    kvb_gguf_close(g);
    free(bytes);
}

static void test_cases(void **state)
{
    (void)state;
    for (size_t i = 0; i < gguf_case_count; i++) {
        const gguf_case *c = &gguf_cases[i];
        size_t size;
        uint8_t *bytes = c->make(&size);
        kvb_gguf *g = NULL;
        kvb_error err = {0};
        kvb_status status = kvb_gguf_open_memory(bytes, size, c->name, &g, &err);
        if (c->refused == NULL ? status != KVB_OK : status != KVB_E_FORMAT || strstr(err.message, c->refused) == NULL)
            fail_msg("%s: %s, \"%s: %s\"", c->name, kvb_status_name(status), err.where, err.message);
        if (c->refused != NULL)
            assert_true(g == NULL && strstr(err.where, c->name) == err.where);
        kvb_gguf_close(g);
        free(bytes);
    }
}

/* Touches whatever an open file offers, so that a sanitizer sees what an accessor would read. */
static void walk(const kvb_gguf *g)
{
    static const char *const keys[] = {"general.architecture", "u32", "names", "numbers", "f64", "yes"};
    const char *text;
    uint64_t size, sum = 0, u;
    for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) {
        if (kvb_gguf_get_string(g, keys[k], &text, &size))
            for (uint64_t i = 0; i < size; i++)
                sum += (uint8_t)text[i];
        for (uint64_t i = 0; i < 4; i++)
            sum += kvb_gguf_array_u64(g, keys[k], i, &u) || kvb_gguf_array_string(g, keys[k], i, &text, &size);
    }
    for (uint64_t i = 0; i < kvb_gguf_tensor_count(g); i++) {
        const kvb_tensor *t = kvb_gguf_tensor_at(g, i);
        for (uint64_t b = 0; b < t->size; b++)
            sum += t->bytes[b];
    }
    assert_true(sum > 0);
}

static void test_every_truncation(void **state)
{
    (void)state;
    size_t size;
    uint8_t *bytes = make_case("good", &size);
    for (size_t cut = 0; cut < size; cut++) {
        uint8_t *part = malloc(cut + 1); /* of its own, so that a sanitizer sees a read past its end */
        assert_non_null(part);
        memcpy(part, bytes, cut);
        part = realloc(part, cut ? cut : 1);
        kvb_gguf *g = NULL;
        kvb_error err = {0};
        assert_int_equal(kvb_gguf_open_memory(part, cut, "cut", &g, &err), KVB_E_FORMAT);
        assert_null(g);
        assert_true(err.message[0] != '\0');
        free(part);
    }
    free(bytes);
}

static void test_every_flip(void **state)
{
    (void)state;
    size_t size, refused = 0;
    uint8_t *bytes = make_case("good", &size);
    for (size_t at = 0; at < size; at++)
        for (unsigned bit = 0; bit < 8; bit += 7) {
            bytes[at] = (uint8_t)(bytes[at] ^ 1u << bit);
            kvb_gguf *g = NULL;
            kvb_status status = kvb_gguf_open_memory(bytes, size, "flip", &g, NULL);
            if (status == KVB_OK)
                walk(g);
            else
                assert_int_equal(status, KVB_E_FORMAT);
            refused += status != KVB_OK;
            kvb_gguf_close(g);
            bytes[at] = (uint8_t)(bytes[at] ^ 1u << bit);
        }
    assert_true(refused > size / 4);
    free(bytes);
}

static void test_files(void **state)
{
    (void)state;
    char *folder = scratch_create(), path[512];
    kvb_gguf *g;
    kvb_error err;
    assert_non_null(folder);
    scratch_path(folder, "m.gguf", path);
    assert_int_equal(kvb_gguf_open(path, &g, &err), KVB_E_IO);
    assert_int_equal(kvb_gguf_open(folder, &g, &err), KVB_E_IO);
    assert_int_equal(scratch_write(path, "", 0), 0);
    assert_int_equal(kvb_gguf_open(path, &g, &err), KVB_E_FORMAT);
    tiny_gguf tiny = tiny_gguf_default();
    assert_int_equal(tiny_gguf_write(&tiny, path), 0);
    assert_int_equal(kvb_gguf_open(path, &g, &err), KVB_OK);
    assert_int_equal(kvb_gguf_tensor_count(g), 20);
    assert_true(kvb_gguf_tensor(g, "blk.1.ffn_down.weight")->shape[0] == tiny.ffn);
    kvb_gguf_close(g);
    kvb_gguf_close(NULL);
    scratch_remove(folder);
}

static void test_shared_vocabulary_files(void **state)
{
    (void)state;
    kvb_gguf *g;
    kvb_error err;
    uint64_t count;
    kvb_gguf_type type;
    if (kvb_gguf_open("../shared/data/tokenizer/ggml-vocab-gpt-2.gguf", &g, &err) != KVB_OK) {
        printf("SKIP test_gguf: ../shared/data/tokenizer/ggml-vocab-gpt-2.gguf is missing\n");
        skip();
    }
    assert_true(kvb_gguf_get_array(g, "tokenizer.ggml.tokens", &type, &count) && count == 50257);
    assert_int_equal(kvb_gguf_tensor_count(g), 0);
    kvb_gguf_close(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scalars),       cmocka_unit_test(test_strings_and_arrays),
        cmocka_unit_test(test_tensors),       cmocka_unit_test(test_foreign_types_open),
        cmocka_unit_test(test_cases),         cmocka_unit_test(test_every_truncation),
        cmocka_unit_test(test_every_flip),    cmocka_unit_test(test_files),
        cmocka_unit_test(test_shared_vocabulary_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
