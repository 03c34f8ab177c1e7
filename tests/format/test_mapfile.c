#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "format/base/mapfile.h"
#include "tests/support/cm.h"
#include "tests/support/scratch.h"

static int set_up(void **state)
{
    *state = scratch_create();
    return *state == NULL;
}

static int tear_down(void **state)
{
    scratch_remove(*state);
    return 0;
}

static void expect_refused(const char *path, kvb_status expected, const char *part)
{
    kvb_mapfile map;
    kvb_error err = {0};
    assert_int_equal(kvb_mapfile_open(&map, path, &err), expected);
    assert_null(map.bytes);
    assert_string_equal(err.where, path);
    assert_non_null(strstr(err.message, part));
    kvb_mapfile_close(&map);
}

static void test_whole_file(void **state)
{
    char path[512];
    scratch_path(*state, "a", path);
    assert_int_equal(scratch_write(path, "hello", 5), 0);
    kvb_mapfile map;
    assert_int_equal(kvb_mapfile_open(&map, path, NULL), KVB_OK);
    assert_int_equal(map.size, 5);
    assert_memory_equal(map.bytes, "hello", 5);
    kvb_mapfile_close(&map);
    assert_null(map.bytes);

    char *bytes;
    size_t size;
    assert_int_equal(kvb_read_file(path, 5, &bytes, &size, NULL), KVB_OK);
    assert_int_equal(size, 5);
    assert_string_equal(bytes, "hello");
    free(bytes);

    char head[8];
    assert_int_equal(kvb_read_prefix(path, head, 2, &size, NULL), KVB_OK);
    assert_int_equal(size, 2);
    assert_int_equal(kvb_read_prefix(path, head, 8, &size, NULL), KVB_OK);
    assert_int_equal(size, 5);
}

static void test_refusals(void **state)
{
    char path[512];
    expect_refused(scratch_path(*state, "missing", path), KVB_E_IO, "No such file");
    expect_refused(*state, KVB_E_IO, "folder");
    scratch_path(*state, "fifo", path);
    assert_int_equal(mkfifo(path, 0600), 0);
    expect_refused(path, KVB_E_IO, "pipe");
    scratch_path(*state, "empty", path);
    assert_int_equal(scratch_write(path, "", 0), 0);
    expect_refused(path, KVB_E_FORMAT, "empty");
    scratch_path(*state, "loop", path);
    assert_int_equal(symlink(path, path), 0);
    expect_refused(path, KVB_E_IO, "cannot open");
    expect_refused("/dev/null", KVB_E_IO, "device");
}

static void test_over_the_limit(void **state)
{
    char path[512], *bytes;
    size_t size;
    kvb_error err;
    scratch_path(*state, "a", path);
    assert_int_equal(scratch_write(path, "hello", 5), 0);
    assert_int_equal(kvb_read_file(path, 4, &bytes, &size, &err), KVB_E_FORMAT);
    assert_null(bytes);
    assert_non_null(strstr(err.message, "5 bytes, at most 4"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_whole_file, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_refusals, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_over_the_limit, set_up, tear_down),
    };
    return cmocka_run_group_tests_name("mapfile", tests, NULL, NULL);
}
