/* Every allocation of the format layer fails once: the call says so, frees what it had and leaves no file behind. The
 * Makefile links this program with --wrap for the allocating functions. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/json.h"
#include "format/base/outfile.h"
#include "tests/support/cm.h"
#include "tests/support/sample_book.h"
#include "tests/support/scratch.h"

static long left = -1; /* allocations until the one that fails; negative: none fails */

static int fails(void)
{
    return left >= 0 && left-- == 0;
}

void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_malloc(size_t size)
{
    return fails() ? NULL : __real_malloc(size);
}

void *__real_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size)
{
    return fails() ? NULL : __real_calloc(count, size);
}

void *__real_realloc(void *memory, size_t size);
void *__wrap_realloc(void *memory, size_t size);
void *__wrap_realloc(void *memory, size_t size)
{
    return fails() ? NULL : __real_realloc(memory, size);
}

void *__real_aligned_alloc(size_t alignment, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
    return fails() ? NULL : __real_aligned_alloc(alignment, size);
}

static sample_book sample;
static char *folder, path[512];

static kvb_status build(kvb_error *err)
{
    uint8_t *image;
    size_t size;
    kvb_status status = kvb_book_build(&sample.spec, &image, &size, err);
    free(image);
    return status;
}

static kvb_status open_book(kvb_error *err)
{
    kvb_book *book;
    kvb_status status = kvb_book_open("tests/golden/packed.kvb", &book, err);
    kvb_book_close(book);
    return status;
}

static kvb_status parse_json(kvb_error *err)
{
    kvb_json_doc *doc;
    static const char text[] = "{\"a\":[1,2,{\"b\":\"c\"}],\"d\":{\"e\":[],\"f\":null}}";
    kvb_status status = kvb_json_parse(text, sizeof text - 1, "text", &doc, err);
    kvb_json_free(doc);
    return status;
}

static kvb_status write_file(kvb_error *err)
{
    kvb_outfile *out;
    kvb_status status = kvb_outfile_open(path, &out, err);
    if (status != KVB_OK)
        return status;
    status = kvb_outfile_write(out, "new", 3, err);
    if (status == KVB_OK)
        return kvb_outfile_commit(out, err);
    kvb_outfile_abandon(out);
    return status;
}

/* Calls until nothing fails any more; returns how many allocations there were. */
static long fail_each(kvb_status (*call)(kvb_error *err))
{
    for (long n = 0; n < 10000; n++) {
        kvb_error err = {0};
        left = n;
        kvb_status status = call(&err);
        long unused = left;
        left = -1;
        if (status == KVB_OK && unused >= 0)
            return n;
        if (status != KVB_E_MEMORY)
            fail_msg("allocation %ld failed and the call said %s: %s", n, kvb_status_name(status), err.message);
        assert_int_equal(err.code, KVB_E_MEMORY);
    }
    fail_msg("never done");
    return 0;
}

static void test_build(void **state)
{
    (void)state;
    sample_full(&sample);
    sample.spec.compress = true;
    assert_true(fail_each(build) > 10);
}

static void test_open(void **state)
{
    (void)state;
    assert_true(fail_each(open_book) > 8);
}

static void test_json(void **state)
{
    (void)state;
    assert_true(fail_each(parse_json) > 3);
}

/* The writer's failure is sticky, and shows as a missing text. */
static void test_json_writer(void **state)
{
    (void)state;
    kvb_json_writer w = {0};
    left = 0;
    kvb_json_begin_object(&w, NULL);
    left = -1;
    kvb_json_put_bool(&w, "a", true);
    kvb_json_end_object(&w);
    assert_null(kvb_json_writer_text(&w));
    kvb_json_writer_free(&w);
}

static void test_outfile(void **state)
{
    (void)state;
    folder = scratch_create();
    assert_non_null(folder);
    scratch_path(folder, "book", path);
    assert_true(fail_each(write_file) >= 2);
    assert_int_equal(scratch_count(folder), 1);
    scratch_remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_build),       cmocka_unit_test(test_open),    cmocka_unit_test(test_json),
        cmocka_unit_test(test_json_writer), cmocka_unit_test(test_outfile),
    };
    return cmocka_run_group_tests_name("format memory", tests, NULL, NULL);
}
