/* e4m3: all 256 bytes against the formula, and rounding halfway between them. */
#include <math.h>

#include "format/base/fp8.h"
#include "tests/support/cm.h"

static void test_values(void **state)
{
    (void)state;
    assert_true(kvb_fp8_to_float(0x38) == 1.0f && kvb_fp8_to_float(0x7e) == 448.0f && kvb_fp8_to_float(0x01) == 0x1p-9f);
    assert_true(kvb_fp8_to_float(0x08) == 0x1p-6f && kvb_fp8_to_float(0xbc) == -1.5f && isnan(kvb_fp8_to_float(0x7f)));
    for (unsigned b = 0; b < 256; b++) {
        const int e = (int)(b >> 3 & 15), m = (int)(b & 7);
        const double value = (e == 0 ? m / 8.0 * 0x1p-6 : (1 + m / 8.0) * ldexp(1.0, e - 7)) * (b & 0x80 ? -1 : 1);
        if ((b & 0x7f) == 0x7f)
            continue;
        assert_true((double)kvb_fp8_to_float((uint8_t)b) == value);
        assert_int_equal(kvb_fp8_from_float((float)value), b); /* also the two zeros */
    }
}

static void test_rounding(void **state)
{
    (void)state;
    for (unsigned b = 0; b + 1 < 0x7f; b++) {
        const float low = kvb_fp8_to_float((uint8_t)b), high = kvb_fp8_to_float((uint8_t)(b + 1)), middle = 0.5f * (low + high);
        assert_int_equal(kvb_fp8_from_float(middle), b % 2 == 0 ? b : b + 1);
        assert_int_equal(kvb_fp8_from_float(nextafterf(middle, 0.0f)), b);
        assert_int_equal(kvb_fp8_from_float(nextafterf(middle, 1e9f)), b + 1);
        assert_int_equal(kvb_fp8_from_float(-nextafterf(middle, 1e9f)), (b + 1) | 0x80);
    }
    assert_int_equal(kvb_fp8_from_float(447.9f), 0x7e);
    assert_int_equal(kvb_fp8_from_float(1e30f), 0x7e);
    assert_int_equal(kvb_fp8_from_float(-INFINITY), 0xfe);
    assert_int_equal(kvb_fp8_from_float(NAN) & 0x7f, 0x7f);
    assert_int_equal(kvb_fp8_from_float(1e-30f), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_values), cmocka_unit_test(test_rounding)};
    return cmocka_run_group_tests_name("fp8", tests, NULL, NULL);
}
