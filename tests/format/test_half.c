#include <math.h>
#include <string.h>

#include "format/base/half.h"
#include "tests/support/cm.h"

static float from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t to_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static void test_known_values(void **state)
{
    (void)state;
    static const struct {
        float value;
        uint16_t half;
    } pairs[] = {
        {0.0f, 0x0000}, {-0.0f, 0x8000}, {1.0f, 0x3C00}, {-2.0f, 0xC000}, {65504.0f, 0x7BFF},
        {0x1p-14f, 0x0400}, {0x1p-24f, 0x0001}, {0x1.ff8p-15f, 0x03FF}, {1.0f / 3, 0x3555},
        {0x1p-25f, 0x0000}, {0x1.000002p-25f, 0x0001}, {-0x1.8p-24f, 0x8002}, {0x1.002p0f, 0x3C00},
        {0x1.006p0f, 0x3C02}, {0x1.ffep-15f, 0x0400}, {65505.0f, 0x7BFF}, {1e9f, 0x7BFF}, {-3e38f, 0xFBFF},
        {HUGE_VALF, 0x7C00}, {-HUGE_VALF, 0xFC00}, {1e-40f, 0x0000},
    };
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
        assert_int_equal(kvb_half_from_float(pairs[i].value), pairs[i].half);
}

/* Every half value survives the way to float32 and back; NaN stay NaN, made quiet. */
static void test_every_half(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float value = kvb_half_to_float((uint16_t)h);
        uint16_t back = kvb_half_from_float(value);
        if (isnan(value))
            assert_int_equal(back, h | 0x0200);
        else
            assert_int_equal(back, h);
    }
}

/* The rounding, against the definition: no other half is nearer, and a tie goes to the even one. */
static void test_nearest(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x7BFF; h++) {
        double low = (double)kvb_half_to_float((uint16_t)h), high = (double)kvb_half_to_float((uint16_t)(h + 1));
        float middle = (float)((low + high) / 2);
        assert_int_equal(kvb_half_from_float(middle), h & 1 ? h + 1 : h);
        assert_int_equal(kvb_half_from_float(nextafterf(middle, 0.0f)), h);
        assert_int_equal(kvb_half_from_float(nextafterf(middle, 1e9f)), h + 1);
    }
}

/* The vector code gives the scalar bits, on any length and for all sorts of values. */
static void test_bulk(void **state)
{
    (void)state;
    enum { N = 4099 };
    static float values[N], bulk[N];
    static uint16_t halves[N];
    for (uint32_t round = 0; round < 64; round++) {
        for (uint32_t i = 0; i < N; i++)
            values[i] = from_bits((round * N + i) * 2654435761u);
        kvb_half_from_floats(halves, values, N);
        for (uint32_t i = 0; i < N; i++)
            assert_int_equal(halves[i], kvb_half_from_float(values[i]));
        for (uint32_t i = 0; i < N; i++)
            halves[i] = (uint16_t)(round * N + i);
        kvb_half_to_floats(bulk, halves, N);
        for (uint32_t i = 0; i < N; i++)
            assert_int_equal(to_bits(bulk[i]), to_bits(kvb_half_to_float(halves[i])));
    }
    for (size_t n = 0; n < 20; n++) {
        memset(halves, 0xAA, sizeof halves);
        kvb_half_from_floats(halves, values, n);
        assert_int_equal(halves[n], 0xAAAA);
    }
}

static void test_bfloat(void **state)
{
    (void)state;
    assert_true(kvb_bfloat_to_float(0x3F80) == 1.0f);
    assert_true(kvb_bfloat_to_float(0xC0A0) == -5.0f);
    assert_true(isinf(kvb_bfloat_to_float(0x7F80)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_values), cmocka_unit_test(test_every_half), cmocka_unit_test(test_nearest),
        cmocka_unit_test(test_bulk),         cmocka_unit_test(test_bfloat),
    };
    return cmocka_run_group_tests_name("half", tests, NULL, NULL);
}
