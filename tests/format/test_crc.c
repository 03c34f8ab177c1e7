/* The fast checksum is zlib's: every length up to a few vectors, every alignment, and long runs. */
#include <stdlib.h>
#include <zlib.h>

#include "format/base/crc.h"
#include "format/base/rng.h"
#include "tests/support/cm.h"

enum { SIZE = 70000 };

static uint8_t bytes[SIZE];

static int setup(void **state)
{
    (void)state;
    for (size_t i = 0; i < SIZE; i++)
        bytes[i] = (uint8_t)kvb_rng_u64(7, i);
    return 0;
}

static void expect_same(size_t at, size_t size)
{
    assert_int_equal(kvb_crc_of(bytes + at, size), crc32_z(0, bytes + at, size));
}

static void test_every_length(void **state)
{
    (void)state;
    for (size_t at = 0; at < 17; at++)
        for (size_t size = 0; size < 700; size++)
            expect_same(at, size);
    expect_same(0, SIZE);
    expect_same(3, SIZE - 3);
    expect_same(1, 65536);
}

/* "check" of the catalogues of CRCs. */
static void test_known_value(void **state)
{
    (void)state;
    assert_int_equal(kvb_crc_of("123456789", 9), 0xCBF43926);
}

/* It goes on from any checksum, and where the machine can it does take the bytes. */
static void test_goes_on(void **state)
{
    (void)state;
    uint32_t crc = (uint32_t)crc32_z(0, bytes, 100);
    const size_t done = kvb_crc_clmul(&crc, bytes + 100, 1000);
    assert_int_equal(crc, crc32_z(0, bytes, 100 + done));
#ifdef __x86_64__
    assert_int_equal(done, __builtin_cpu_supports("pclmul") ? 992 : 0);
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_length), cmocka_unit_test(test_known_value),
                                       cmocka_unit_test(test_goes_on)};
    return cmocka_run_group_tests_name("crc", tests, setup, NULL);
}
