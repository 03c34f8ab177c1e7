/* One file per condition that must be refused: tests/golden-errors/expected.txt says how. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/book_reader.h"
#include "tests/support/cm.h"
#include "tests/support/scratch.h"

#define FOLDER "tests/golden-errors"

static size_t two_steps; /* files that only kvb_book_verify() refuses when content is left to it */

/* As a large book is: what the first step leaves the second one finds, with the error of one reading. (A file with several
 * faults may be refused by the first step for another one.) */
static bool refused_in_two_steps(const uint8_t *bytes, size_t size, const char *name, const char *expected)
{
    char said[sizeof(kvb_error)];
    kvb_error err = {0};
    kvb_book *book = NULL;
    void *aligned = NULL;
    if (posix_memalign(&aligned, 64, size) != 0)
        abort();
    memcpy(aligned, bytes, size);
    kvb_status status = kvb_book_adopt(aligned, size, name, true, &book, &err);
    const bool opened = status == KVB_OK;
    if (opened)
        status = kvb_book_verify(book, &err);
    kvb_book_close(book);
    snprintf(said, sizeof said, "%s: %s", err.where, err.message);
    two_steps += opened;
    return status == KVB_E_FORMAT && (!opened || strcmp(said, expected) == 0);
}

/* 0 where the file is refused as expected, from the disk and from memory. */
static int check_file(const char *name, int expected, const char *part)
{
    char path[512], said[sizeof(kvb_error)];
    kvb_book *book, *copy;
    kvb_error err = {0}, copy_err = {0};
    size_t size;
    kvb_status status = kvb_book_open_with(scratch_path(FOLDER, name, path), KVB_OPEN_VERIFIED, &book, &err);
    snprintf(said, sizeof said, "%s: %s", err.where, err.message);
    uint8_t *bytes = scratch_read(path, &size);
    kvb_status copy_status = kvb_book_open_memory(bytes, size, path, &copy, &copy_err);
    const bool later = size == 0 || refused_in_two_steps(bytes, size, path, said);
    free(bytes);
    kvb_book_close(book);
    kvb_book_close(copy);
    if ((int)status == expected && copy_status == status && later && strstr(said, part) != NULL && strstr(said, name) != NULL)
        return 0;
    print_error("%s: %s, %s; expected status %d and \"%s\"\n", name, kvb_status_name(status), said, expected, part);
    return 1;
}

static size_t count_books(void)
{
    size_t count = 0;
    DIR *dir = opendir(FOLDER);
    assert_non_null(dir);
    for (struct dirent *e; (e = readdir(dir)) != NULL;)
        count += strstr(e->d_name, ".kvb") != NULL;
    closedir(dir);
    return count;
}

static void test_expected_errors(void **state)
{
    (void)state;
    char line[512];
    size_t files = 0;
    int wrong = 0;
    FILE *table = fopen(FOLDER "/expected.txt", "r");
    assert_non_null(table);
    while (fgets(line, sizeof line, table) != NULL) {
        char *name = strtok(line, "\t"), *status = strtok(NULL, "\t"), *part = strtok(NULL, "\n");
        if (line[0] == '#')
            continue;
        assert_non_null(part);
        wrong += check_file(name, atoi(status), part);
        files++;
    }
    fclose(table);
    assert_int_equal(wrong, 0);
    assert_int_equal(files, count_books());
    assert_true(files > 150);
    assert_true(two_steps > 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_expected_errors)};
    return cmocka_run_group_tests_name("golden errors", tests, NULL, NULL);
}
