/* Codes as bit strings. */
#include <string.h>

#include "format/base/rng.h"
#include "kvbook/cache.h"
#include "tests/support/cm.h"

static void known_bytes(void **state)
{
    (void)state;
    uint8_t packed[3] = {0};
    kvb_pack_codes((uint32_t[]){0x5, 0x3, 0x7, 0x1, 0x6, 0x2}, 6, 3, packed);
    /* 101 011 111 001 110 010, each least significant bit first */
    assert_int_equal(packed[0], 0xDD);
    assert_int_equal(packed[1], 0x63);
    assert_int_equal(packed[2], 0x01);
    assert_int_equal(kvb_packed_bytes(6, 3), 3);
    assert_int_equal(kvb_packed_bytes(4, 12), 6);
    assert_int_equal(kvb_packed_bytes(1, 1), 1);
}

static void every_width_comes_back(void **state)
{
    (void)state;
    uint32_t codes[97], back[97];
    uint8_t packed[200];
    for (uint32_t bits = 1; bits <= 16; bits++)
        for (uint32_t groups = 1; groups <= 97; groups++) {
            for (uint32_t s = 0; s < groups; s++)
                codes[s] = (uint32_t)kvb_rng_below(bits, s, (uint64_t)1 << bits);
            memset(packed, 0xA5, sizeof packed);
            size_t bytes = kvb_packed_bytes(groups, bits);
            kvb_pack_codes(codes, groups, bits, packed);
            kvb_unpack_codes(packed, groups, bits, back);
            assert_memory_equal(codes, back, groups * sizeof *codes);
            assert_int_equal(packed[bytes], 0xA5);
        }
}

static void bits_after_the_last_code_are_zero(void **state)
{
    (void)state;
    uint8_t packed = 0xFF;
    kvb_pack_codes((uint32_t[]){7}, 1, 3, &packed);
    assert_int_equal(packed, 7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_bytes),
        cmocka_unit_test(every_width_comes_back),
        cmocka_unit_test(bits_after_the_last_code_are_zero),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
