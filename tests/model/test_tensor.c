/* Dequantisation against golden values of an independent implementation, bit for bit. */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/cursor.h"
#include "model/tensor.h"
#include "tests/support/cm.h"
#include "tests/support/scratch.h"

typedef struct golden {
    kvb_tensor tensor;
    uint32_t count;
    const uint8_t *expected;
} golden;

static uint8_t *file;
static size_t file_size;

static int set_up(void **state)
{
    (void)state;
    file = scratch_read("tests/golden/dequant.bin", &file_size);
    return file == NULL;
}

static int tear_down(void **state)
{
    (void)state;
    free(file);
    return 0;
}

static bool next_golden(kvb_cursor *c, golden *g)
{
    if (c->at == c->size)
        return false;
    *g = (golden){.tensor = {.name = "golden", .dims = 1}};
    g->tensor.dtype = kvb_cursor_u32(c);
    g->tensor.size = kvb_cursor_u32(c);
    g->count = kvb_cursor_u32(c);
    g->tensor.shape[0] = g->count;
    g->tensor.bytes = kvb_cursor_bytes(c, g->tensor.size);
    g->expected = kvb_cursor_bytes(c, 4ull * g->count);
    assert_false(c->failed);
    return true;
}

static void test_golden(void **state)
{
    (void)state;
    kvb_cursor c = kvb_cursor_over(file, file_size);
    golden g;
    unsigned types = 0;
    for (; next_golden(&c, &g); types++) {
        float *out = malloc(4ull * g.count);
        assert_non_null(out);
        kvb_dequantise(&g.tensor, 0, g.count, out);
        for (uint32_t i = 0; i < g.count; i++) {
            float expected;
            memcpy(&expected, g.expected + 4ull * i, 4);
            if (memcmp(&out[i], &expected, 4) != 0 && !(out[i] == 0.0f && expected == 0.0f))
                fail_msg("%s[%u]: %a, expected %a", kvb_dtype_name(g.tensor.dtype), i, (double)out[i],
                         (double)expected);
        }
        free(out);
    }
    assert_int_equal(types, 11);
}

/* Any block-aligned part is the same as that part of the whole. */
static void test_parts(void **state)
{
    (void)state;
    kvb_cursor c = kvb_cursor_over(file, file_size);
    golden g;
    while (next_golden(&c, &g)) {
        uint32_t elements, bytes;
        float out[256], expected[256];
        assert_true(kvb_dtype_block(g.tensor.dtype, &elements, &bytes));
        assert_int_equal((uint64_t)g.count / elements * bytes, g.tensor.size);
        for (uint32_t first = 0; first < g.count; first += elements) {
            kvb_dequantise(&g.tensor, first, elements, out);
            memcpy(expected, g.expected + 4ull * first, 4ull * elements);
            for (uint32_t i = 0; i < elements; i++)
                assert_true(out[i] == expected[i]);
        }
    }
}

/* The bulk path of halves works in pieces of 256. */
static void test_long_halves(void **state)
{
    (void)state;
    uint8_t halves[2 * 1000 + 1];
    float out[1000];
    for (unsigned i = 0; i < 1000; i++) { /* 1 + i / 1024, at an odd address */
        halves[1 + 2 * i] = (uint8_t)i;
        halves[2 + 2 * i] = (uint8_t)(0x3C | i >> 8);
    }
    kvb_tensor t = {.dtype = KVB_DTYPE_F16, .dims = 1, .shape = {1000, 1, 1, 1}, .bytes = halves + 1, .size = 2000};
    kvb_dequantise(&t, 0, 1000, out);
    for (unsigned i = 0; i < 1000; i++)
        assert_true(out[i] == 1.0f + (float)i / 1024.0f);
}

static void test_names(void **state)
{
    (void)state;
    uint32_t elements, bytes;
    assert_string_equal(kvb_dtype_name(KVB_DTYPE_Q4_1), "Q4_1");
    assert_string_equal(kvb_dtype_name(10), "Q2_K");
    assert_string_equal(kvb_dtype_name(39), "MXFP4");
    assert_null(kvb_dtype_name(4)); /* Q4_2, removed from ggml */
    assert_null(kvb_dtype_name(UINT32_MAX));
    assert_false(kvb_dtype_block(10, &elements, &bytes));
    assert_true(kvb_dtype_block(KVB_DTYPE_Q6_K, &elements, &bytes) && elements == 256 && bytes == 210);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_long_halves),
        cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
