#include <stdlib.h>
#include <string.h>

#include "format/base/sha256.h"
#include "tests/support/cm.h"

static void expect(const void *bytes, size_t size, const char *expected)
{
    uint8_t digest[32];
    char hex[65];
    kvb_sha256_of(bytes, size, digest);
    kvb_sha256_hex(digest, hex);
    assert_string_equal(hex, expected);
}

/* The examples of FIPS 180-4 and of NIST's test vectors. */
static void test_known_digests(void **state)
{
    (void)state;
    expect("", 0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    expect("abc", 3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    expect("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 56,
           "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    char *million = malloc(1000000);
    assert_non_null(million);
    memset(million, 'a', 1000000);
    expect(million, 1000000, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    free(million);
}

/* However the bytes arrive, and at every length around the block size, the digest is that of the whole. */
static void test_pieces(void **state)
{
    (void)state;
    uint8_t bytes[200], whole[32], pieces[32];
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)(i * 7 + 3);
    for (size_t size = 0; size <= sizeof bytes; size++) {
        kvb_sha256_of(bytes, size, whole);
        for (size_t cut = 0; cut <= size; cut++) {
            kvb_sha256 s;
            kvb_sha256_begin(&s);
            kvb_sha256_add(&s, bytes, cut);
            kvb_sha256_add(&s, bytes + cut, size - cut);
            kvb_sha256_end(&s, pieces);
            assert_memory_equal(whole, pieces, 32);
        }
    }
}

/* The processor's own rounds, which take long inputs, against those that take what comes in small pieces. */
static void test_long_inputs(void **state)
{
    enum { MOST = (1 << 16) + 400 };
    (void)state;
    uint8_t *bytes = malloc(MOST), whole[32], pieces[32];
    assert_non_null(bytes);
    for (size_t i = 0; i < MOST; i++)
        bytes[i] = (uint8_t)(i * i >> 3 ^ i);
    for (size_t size = (1 << 16) - 70; size <= MOST; size += 37) {
        kvb_sha256 s;
        kvb_sha256_begin(&s);
        for (size_t at = 0; at < size; at += 1000)
            kvb_sha256_add(&s, bytes + at, size - at < 1000 ? size - at : 1000);
        kvb_sha256_end(&s, pieces);
        kvb_sha256_of(bytes, size, whole);
        assert_memory_equal(whole, pieces, 32);
    }
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_digests),
        cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_long_inputs),
    };
    return cmocka_run_group_tests_name("sha256", tests, NULL, NULL);
}
