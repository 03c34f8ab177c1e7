/* The golden books: still written byte for byte, still read, and no damage to them passes unnoticed. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/cm.h"
#include "tests/support/sample_book.h"
#include "tests/support/scratch.h"

static uint8_t *load(const char *name, size_t *size)
{
    char path[512];
    uint8_t *bytes = scratch_read(scratch_path("tests/golden", name, path), size);
    assert_non_null(bytes);
    return bytes;
}

static void expect_written(const sample_book *sample, const char *name)
{
    uint8_t *image;
    size_t size, golden_size;
    uint8_t *golden = load(name, &golden_size);
    assert_int_equal(kvb_book_build(&sample->spec, &image, &size, NULL), KVB_OK);
    assert_int_equal(size, golden_size);
    assert_memory_equal(image, golden, size);
    free(image);
    free(golden);
}

static void test_writer_is_stable(void **state)
{
    (void)state;
    static sample_book sample;
    sample_minimal(&sample);
    expect_written(&sample, "minimal.kvb");
    sample_full(&sample);
    expect_written(&sample, "full.kvb");
    sample_additive(&sample);
    expect_written(&sample, "additive.kvb");
    sample_fine(&sample);
    expect_written(&sample, "fine.kvb");
    sample_scaled(&sample);
    expect_written(&sample, "scaled.kvb");
    sample_outliers(&sample);
    expect_written(&sample, "outliers.kvb");
    sample_groups(&sample);
    expect_written(&sample, "groups.kvb");
    sample_pool(&sample);
    expect_written(&sample, "pool.kvb");
}

static void expect_sample_content(const char *name)
{
    char path[512];
    kvb_book *book;
    kvb_error err = {0};
    if (kvb_book_open(scratch_path("tests/golden", name, path), &book, &err) != KVB_OK)
        fail_msg("%s: %s", err.where, err.message);
    assert_int_equal(kvb_book_layers(book), 3);
    assert_int_equal(kvb_book_layer(book, 1)->rope_block, 16);
    assert_true(kvb_book_layer(book, 0)->rope_factors[3] == 8);
    assert_int_equal(kvb_book_codebook(book, 0, 0, KVB_VALUE)->table[3], 1);
    assert_int_equal(kvb_book_codebook(book, 0, 0, KVB_VALUE)->table[5], 0x8000);
    assert_true(kvb_book_codebook(book, 0, 1, KVB_KEY)->inverse[1] == -0.5f);
    assert_true(kvb_book_quality(book, 0, 0, KVB_KEY)[1].entropy == 1.5f);
    assert_non_null(strstr(kvb_book_meta(book, NULL), "codebook codebook"));
    kvb_book_close(book);
}

static void test_golden_books_open(void **state)
{
    (void)state;
    expect_sample_content("full.kvb");
    expect_sample_content("packed.kvb");
    expect_sample_content("newer-minor.kvb");
    expect_sample_content("fine.kvb");
}

static void test_additive_book_opens(void **state)
{
    (void)state;
    char path[512];
    kvb_book *book;
    assert_int_equal(kvb_book_open(scratch_path("tests/golden", "additive.kvb", path), &book, NULL), KVB_OK);
    const kvb_codebook *k = kvb_book_codebook(book, 0, 0, KVB_KEY), *v = kvb_book_codebook(book, 0, 0, KVB_VALUE);
    assert_true(k->stages == 2 && k->stage_centroids == 4 && k->centroids == 16 && k->code_bits == 4);
    assert_true(v->stages == 3 && v->stage_centroids == 2 && v->centroids == 8 && v->code_bits == 3);
    assert_int_equal(k->groups, 2);
    assert_int_equal(v->groups, 4);
    kvb_book_close(book);
}

static const char *const golden[] = {"minimal.kvb", "additive.kvb", "full.kvb", "packed.kvb", "newer-minor.kvb", "fine.kvb",
                                     "scaled.kvb", "outliers.kvb", "groups.kvb"};

static void expect_damage_seen(const uint8_t *bytes, size_t size, const char *how, size_t at)
{
    kvb_book *book;
    kvb_error err = {0};
    if (kvb_book_open_memory(bytes, size, "golden", &book, &err) != KVB_E_FORMAT)
        fail_msg("%s at byte %zu was not noticed", how, at);
    assert_null(book);
    assert_true(err.where[0] != '\0' && err.message[0] != '\0');
}

static void test_every_truncation(void **state)
{
    (void)state;
    for (size_t g = 0; g < sizeof golden / sizeof *golden; g++) {
        size_t size;
        uint8_t *bytes = load(golden[g], &size);
        for (size_t n = 0; n < size; n++)
            expect_damage_seen(bytes, n, golden[g], n);
        free(bytes);
    }
}

/* Every byte is under a checksum or is padding that must be zero: none may change, in any bit. */
static void test_every_byte_flipped(void **state)
{
    (void)state;
    for (size_t g = 0; g < sizeof golden / sizeof *golden; g++) {
        size_t size;
        uint8_t *bytes = load(golden[g], &size);
        for (size_t i = 0; i < size; i++)
            for (unsigned bit = 0; bit < 8; bit++) {
                bytes[i] ^= (uint8_t)(1u << bit);
                expect_damage_seen(bytes, size, golden[g], i);
                bytes[i] ^= (uint8_t)(1u << bit);
            }
        free(bytes);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_writer_is_stable),
        cmocka_unit_test(test_golden_books_open),
        cmocka_unit_test(test_additive_book_opens),
        cmocka_unit_test(test_every_truncation),
        cmocka_unit_test(test_every_byte_flipped),
    };
    return cmocka_run_group_tests_name("golden", tests, NULL, NULL);
}
