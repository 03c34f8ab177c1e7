/* The safetensors reader on files put together by hand: one accepted, many refused. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/safetensors.h"
#include "tests/support/cm.h"
#include "tests/support/scratch.h"

typedef struct image {
    uint8_t bytes[4096];
    size_t size;
} image;

/* Length, header and `data` bytes counting up. */
static image make(const char *header, size_t data)
{
    image i = {.size = 8 + strlen(header) + data};
    uint64_t length = strlen(header);
    for (int b = 0; b < 8; b++)
        i.bytes[b] = (uint8_t)(length >> (8 * b));
    memcpy(i.bytes + 8, header, length);
    for (size_t d = 0; d < data; d++)
        i.bytes[8 + length + d] = (uint8_t)d;
    return i;
}

static const char good[] = "{\"__metadata__\":{\"made\":\"by hand\"},"
                           "\"b\":{\"dtype\":\"F16\",\"shape\":[2,3],\"data_offsets\":[4,16]},"
                           "\"a\":{\"dtype\":\"U32\",\"shape\":[],\"data_offsets\":[0,4]},"
                           "\"empty\":{\"dtype\":\"F64\",\"shape\":[0,18446744073709551615,9],\"data_offsets\":[16,16]}}  ";

static void test_good(void **state)
{
    (void)state;
    kvb_safetensors *st;
    image i = make(good, 16);
    assert_int_equal(kvb_safetensors_open_memory(i.bytes, i.size, "m", &st, NULL), KVB_OK);
    assert_int_equal(kvb_safetensors_count(st), 3);
    assert_string_equal(kvb_safetensors_metadata(st, "made"), "by hand");
    assert_null(kvb_safetensors_metadata(st, "other"));
    const kvb_st_tensor *b = kvb_safetensors_find(st, "b");
    assert_int_equal(b->dtype, KVB_ST_F16);
    assert_int_equal(b->dims, 2);
    assert_int_equal(b->shape[1], 3);
    assert_int_equal(b->size, 12);
    assert_int_equal(b->bytes[0], 4);
    assert_int_equal(b->offset, i.size - 12);
    assert_string_equal(kvb_safetensors_at(st, 0)->name, "a");
    assert_int_equal(kvb_safetensors_find(st, "empty")->size, 0);
    assert_null(kvb_safetensors_find(st, "c"));
    assert_null(kvb_safetensors_at(st, 3));
    kvb_safetensors_close(st);
}

typedef struct bad_header {
    const char *header;
    size_t data;
    const char *part;
} bad_header;

#define ONE(body) "{\"a\":{" body "}}"

static const bad_header bad_headers[] = {
    {"", 0, "begin with"},
    {" {}", 0, "begin with"},
    {"[]", 0, "begin with"},
    {"{}", 1, "1 bytes follow"},
    {"{} x", 0, ""},
    {"{\"a\":1}", 0, "exactly dtype"},
    {"{\"\xff\":1}", 0, ""},
    {"{\"__metadata__\":[]}", 0, "no object"},
    {"{\"__metadata__\":{\"n\":1}}", 0, "no string"},
    {ONE("\"dtype\":\"U8\",\"shape\":[1]"), 1, "exactly dtype"},
    {ONE("\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"x\":1"), 1, "exactly dtype"},
    {ONE("\"dtype\":\"U8\",\"shape\":[1],\"data_offset\":[0,1]"), 1, "data_offsets"},
    {ONE("\"dtype\":\"Q4\",\"shape\":[1],\"data_offsets\":[0,1]"), 1, "unknown dtype \"Q4\""},
    {ONE("\"dtype\":4,\"shape\":[1],\"data_offsets\":[0,1]"), 1, "no string"},
    {ONE("\"dtype\":\"U8\",\"shape\":1,\"data_offsets\":[0,1]"), 1, "shape"},
    {ONE("\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,1]"), 1, "at most 8"},
    {ONE("\"dtype\":\"U8\",\"shape\":[-1],\"data_offsets\":[0,1]"), 1, "whole"},
    {ONE("\"dtype\":\"U8\",\"shape\":[1.5],\"data_offsets\":[0,1]"), 1, "whole"},
    {ONE("\"dtype\":\"U8\",\"shape\":[1e400],\"data_offsets\":[0,1]"), 1, ""},
    {ONE("\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]"), 0, "2^64"},
    {ONE("\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]"), 0, "2^64"},
    {ONE("\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,1]"), 1, "need 2"},
    {ONE("\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[0,1]"), 1, "need 2"},
    {ONE("\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]"), 1, "pair"},
    {ONE("\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,0]"), 1, "outside"},
    {ONE("\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]"), 1, "outside"},
    {ONE("\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[18446744073709551615,0]"), 1, "outside"},
    {ONE("\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]"), 2, "leave a hole"},
    {ONE("\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]"), 2, "1 bytes follow"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},\"b\":{\"dtype\":\"U8\",\"shape\":[2],"
     "\"data_offsets\":[1,3]}}", 3, "overlap"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"b\":{\"dtype\":\"U8\",\"shape\":[1],"
     "\"data_offsets\":[2,3]}}", 3, "leave a hole"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"a\":{\"dtype\":\"U8\",\"shape\":[1],"
     "\"data_offsets\":[0,1]}}", 1, ""},
};

static void test_bad_headers(void **state)
{
    (void)state;
    for (size_t n = 0; n < sizeof bad_headers / sizeof *bad_headers; n++) {
        kvb_safetensors *st;
        kvb_error err = {0};
        image i = make(bad_headers[n].header, bad_headers[n].data);
        kvb_status status = kvb_safetensors_open_memory(i.bytes, i.size, "m", &st, &err);
        if (status != KVB_E_FORMAT || strstr(err.message, bad_headers[n].part) == NULL)
            print_error("%s: %s: %s\n", bad_headers[n].header, kvb_status_name(status), err.message);
        assert_int_equal(status, KVB_E_FORMAT);
        assert_null(st);
        assert_non_null(strstr(err.message, bad_headers[n].part));
        assert_memory_equal(err.where, "m", 1);
    }
}

static void test_truncations(void **state)
{
    (void)state;
    image i = make(good, 16);
    for (size_t size = 0; size < i.size; size++) {
        kvb_safetensors *st;
        uint8_t *copy = malloc(size != 0 ? size : 1); /* of its own, so that a sanitizer sees any step beyond */
        memcpy(copy, i.bytes, size);
        assert_int_equal(kvb_safetensors_open_memory(copy, size, "m", &st, NULL), KVB_E_FORMAT);
        free(copy);
    }
}

static void test_lengths(void **state)
{
    (void)state;
    static const uint64_t lengths[] = {100000001, UINT32_MAX, INT64_MAX, UINT64_MAX, UINT64_MAX - 7};
    for (size_t n = 0; n < sizeof lengths / sizeof *lengths; n++) {
        kvb_safetensors *st;
        kvb_error err;
        image i = make(good, 16);
        for (int b = 0; b < 8; b++)
            i.bytes[b] = (uint8_t)(lengths[n] >> (8 * b));
        assert_int_equal(kvb_safetensors_open_memory(i.bytes, i.size, "m", &st, &err), KVB_E_FORMAT);
        assert_non_null(strstr(err.message, "header says"));
    }
}

/* Whatever is flipped in the header, the reader refuses or gives arrays inside the file. */
static void test_flips(void **state)
{
    (void)state;
    for (size_t at = 0; at < 8 + strlen(good); at++)
        for (int bit = 0; bit < 8; bit++) {
            kvb_safetensors *st;
            image i = make(good, 16);
            i.bytes[at] ^= (uint8_t)(1 << bit);
            if (kvb_safetensors_open_memory(i.bytes, i.size, "m", &st, NULL) != KVB_OK)
                continue;
            for (size_t n = 0; n < kvb_safetensors_count(st); n++) {
                const kvb_st_tensor *t = kvb_safetensors_at(st, n);
                assert_true(t->offset + t->size <= i.size);
            }
            kvb_safetensors_close(st);
        }
}

static void test_files(void **state)
{
    (void)state;
    char *folder = scratch_create(), path[512];
    kvb_safetensors *st;
    image i = make(good, 16);
    scratch_path(folder, "a.safetensors", path);
    assert_int_equal(kvb_safetensors_open(path, &st, NULL), KVB_E_IO);
    assert_int_equal(scratch_write(path, i.bytes, i.size), 0);
    assert_int_equal(kvb_safetensors_open(path, &st, NULL), KVB_OK);
    assert_string_equal(kvb_safetensors_path(st), path);
    kvb_safetensors_close(st);
    assert_int_equal(scratch_write(path, "", 0), 0);
    assert_int_equal(kvb_safetensors_open(path, &st, NULL), KVB_E_FORMAT);
    kvb_safetensors_close(NULL);
    scratch_remove(folder);
}

static void test_dtypes(void **state)
{
    (void)state;
    assert_string_equal(kvb_st_dtype_name(KVB_ST_BF16), "BF16");
    assert_int_equal(kvb_st_dtype_bytes(KVB_ST_F64), 8);
    for (int d = KVB_ST_BOOL; d <= KVB_ST_U64; d++) {
        char header[128];
        kvb_safetensors *st;
        uint32_t bytes = kvb_st_dtype_bytes((kvb_st_dtype)d);
        snprintf(header, sizeof header, ONE("\"dtype\":\"%s\",\"shape\":[3],\"data_offsets\":[0,%u]"),
                 kvb_st_dtype_name((kvb_st_dtype)d), 3 * bytes);
        image i = make(header, 3 * (size_t)bytes);
        assert_int_equal(kvb_safetensors_open_memory(i.bytes, i.size, "m", &st, NULL), KVB_OK);
        assert_int_equal(kvb_safetensors_at(st, 0)->dtype, d);
        kvb_safetensors_close(st);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),    cmocka_unit_test(test_bad_headers), cmocka_unit_test(test_truncations),
        cmocka_unit_test(test_lengths), cmocka_unit_test(test_flips),       cmocka_unit_test(test_files),
        cmocka_unit_test(test_dtypes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
