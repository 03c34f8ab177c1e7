/* The golden packed caches: still read, still restored and saved again byte for byte, and no damage passes unnoticed; and one
 * file per condition that must be refused, as tests/golden-errors/expected-kvp.txt says. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/cm.h"
#include "tests/support/saved_caches.h"
#include "tests/support/scratch.h"

#define ERRORS "tests/golden-errors"

static const struct {
    const char *name, *book;
    bool compress;
} golden[] = {{"caches.kvp", "full.kvb", false}, {"planes.kvp", "fine.kvb", true}, {"exact.kvp", NULL, false},
              {"newer-minor.kvp", "full.kvb", false}};
enum { GOLDEN = sizeof golden / sizeof *golden };

static uint8_t *load(const char *name, size_t *size)
{
    char path[512];
    uint8_t *bytes = scratch_read(scratch_path("tests/golden", name, path), size);
    assert_non_null(bytes);
    return bytes;
}

static kvb_book *open_book(const char *name)
{
    char path[512];
    kvb_book *book;
    assert_int_equal(kvb_book_open(scratch_path("tests/golden", name != NULL ? name : "full.kvb", path), &book, NULL), KVB_OK);
    return book;
}

static kvb_cache *restore(const kvb_cache_file *file, uint32_t prompt, const kvb_book *book)
{
    kvb_cache_options options;
    kvb_error err = {0};
    kvb_cache_file_options(file, &options);
    kvb_cache *cache = sc_cache(book, kvb_cache_file_book_id(file) != NULL ? &options.policy : NULL, options.seed);
    assert_non_null(cache);
    if (kvb_cache_file_restore(file, prompt, cache, &err) != KVB_OK)
        fail_msg("%s: %s", err.where, err.message);
    return cache;
}

static void add_again(kvb_cache_writer *w, const kvb_cache_file *file, uint32_t prompt, const kvb_book *book)
{
    const kvb_prompt_info info = kvb_cache_file_prompt(file, prompt);
    uint32_t ids[64];
    float hidden[8];
    kvb_saved_prompt saved;
    kvb_saved_prompt_init(&saved);
    saved.name = info.name;
    if (info.has_ids) {
        assert_int_equal(kvb_cache_file_ids(file, prompt, ids, NULL), KVB_OK);
        saved.ids = ids;
    }
    if (info.hidden_count > 0) {
        assert_int_equal(kvb_cache_file_hidden(file, prompt, hidden, NULL), KVB_OK);
        saved.hidden = hidden;
        saved.hidden_count = info.hidden_count;
    }
    kvb_cache *cache = restore(file, prompt, book);
    assert_int_equal(kvb_cache_writer_add(w, cache, &saved, NULL), KVB_OK);
    kvb_cache_destroy(cache);
}

static void golden_caches_are_saved_again(void **state)
{
    (void)state;
    char *folder = scratch_create(), path[512];
    for (size_t i = 0; i < 3; i++) {
        size_t size, again_size;
        kvb_cache_file *file;
        kvb_cache_writer *w;
        kvb_cache_writer_options options;
        kvb_book *book = open_book(golden[i].book);
        uint8_t *bytes = load(golden[i].name, &size);
        assert_int_equal(kvb_cache_file_open_memory(bytes, size, golden[i].name, &file, NULL), KVB_OK);
        kvb_cache_writer_options_init(&options);
        options.meta_json = kvb_cache_file_meta(file, NULL);
        options.compress = golden[i].compress;
        assert_int_equal(kvb_cache_writer_create(&options, &w, NULL), KVB_OK);
        for (uint32_t p = 0; p < kvb_cache_file_prompts(file); p++)
            add_again(w, file, p, book);
        assert_int_equal(kvb_cache_writer_commit(w, scratch_path(folder, "again.kvp", path), NULL), KVB_OK);
        uint8_t *again = scratch_read(path, &again_size);
        assert_int_equal(again_size, size);
        assert_memory_equal(again, bytes, size);
        kvb_cache_file_close(file);
        kvb_book_close(book);
        free(again);
        free(bytes);
    }
    scratch_remove(folder);
}

/* A version to come brings what this one knows, and the golden tokens go on. */
static void golden_caches_go_on(void **state)
{
    (void)state;
    float out[2][256];
    char path[512];
    kvb_book *book = open_book("full.kvb");
    for (uint32_t prompt = 0; prompt < 2; prompt++) {
        kvb_cache *cache[2];
        for (int i = 0; i < 2; i++) {
            kvb_cache_file *file;
            assert_int_equal(kvb_cache_file_open(scratch_path("tests/golden", golden[i * 3].name, path), &file, NULL),
                             KVB_OK);
            assert_int_equal(kvb_cache_file_check(file, prompt, NULL), KVB_OK);
            assert_string_equal(kvb_cache_file_prompt(file, prompt).name, prompt == 0 ? "system" : "short \xC3\xA4");
            cache[i] = restore(file, prompt, book);
            kvb_cache_file_close(file);
        }
        for (uint32_t t = 100; t < 120; t++) {
            for (int i = 0; i < 2; i++)
                assert_int_equal(sc_step(cache[i], book, t, out[i], NULL), KVB_OK);
            assert_memory_equal(out[0], out[1], sc_outputs(book) * sizeof(float));
        }
        assert_true(sc_same(cache[0], cache[1], book));
        kvb_cache_destroy(cache[0]);
        kvb_cache_destroy(cache[1]);
    }
    kvb_book_close(book);
}

/* Opens and checks everything; the first failure. */
static kvb_status check_all(const uint8_t *bytes, size_t size, const char *name, kvb_error *err)
{
    kvb_cache_file *file;
    kvb_status status = kvb_cache_file_open_memory(bytes, size, name, &file, err);
    for (uint32_t p = 0; status == KVB_OK && p < kvb_cache_file_prompts(file); p++)
        status = kvb_cache_file_check(file, p, err);
    kvb_cache_file_close(file);
    return status;
}

static void expect_damage_seen(const uint8_t *bytes, size_t size, const char *how, size_t at)
{
    kvb_error err = {0};
    if (check_all(bytes, size, "golden", &err) != KVB_E_FORMAT)
        fail_msg("%s at byte %zu was not noticed", how, at);
    assert_true(err.where[0] != '\0' && err.message[0] != '\0');
}

static void every_truncation(void **state)
{
    (void)state;
    for (size_t g = 0; g < GOLDEN; g++) {
        size_t size;
        uint8_t *bytes = load(golden[g].name, &size);
        assert_int_equal(check_all(bytes, size, golden[g].name, NULL), KVB_OK);
        for (size_t n = 0; n < size; n++)
            expect_damage_seen(bytes, n, golden[g].name, n);
        free(bytes);
    }
}

/* Every byte is under a checksum or is padding that must be zero. */
static void every_byte_flipped(void **state)
{
    (void)state;
    for (size_t g = 0; g < GOLDEN; g++) {
        size_t size;
        uint8_t *bytes = load(golden[g].name, &size);
        for (size_t i = 0; i < size; i++)
            for (unsigned bit = 0; bit < 8; bit++) {
                bytes[i] ^= (uint8_t)(1u << bit);
                expect_damage_seen(bytes, size, golden[g].name, i);
                bytes[i] ^= (uint8_t)(1u << bit);
            }
        free(bytes);
    }
}

/* 0 where the file is refused as expected, by open() or before a prompt is used. */
static int check_file(const char *name, int expected, const char *part)
{
    char path[512], said[sizeof(kvb_error)];
    kvb_error err = {0}, disk_err = {0};
    kvb_cache_file *file;
    size_t size;
    uint8_t *bytes = scratch_read(scratch_path(ERRORS, name, path), &size);
    kvb_status status = check_all(bytes, size, path, &err);
    kvb_status disk = kvb_cache_file_open(path, &file, &disk_err);
    for (uint32_t p = 0; disk == KVB_OK && p < kvb_cache_file_prompts(file); p++)
        disk = kvb_cache_file_check(file, p, &disk_err);
    kvb_cache_file_close(file);
    free(bytes);
    snprintf(said, sizeof said, "%s: %s", err.where, err.message);
    if ((int)status == expected && disk == status && strcmp(err.message, disk_err.message) == 0 &&
        strstr(said, part) != NULL && strstr(said, name) != NULL)
        return 0;
    print_error("%s: %s, %s; expected status %d and \"%s\"\n", name, kvb_status_name(status), said, expected, part);
    return 1;
}

static size_t count_files(void)
{
    size_t count = 0;
    DIR *dir = opendir(ERRORS);
    assert_non_null(dir);
    for (struct dirent *e; (e = readdir(dir)) != NULL;)
        count += strstr(e->d_name, ".kvp") != NULL;
    closedir(dir);
    return count;
}

static void expected_errors(void **state)
{
    (void)state;
    char line[512];
    size_t files = 0;
    int wrong = 0;
    FILE *table = fopen(ERRORS "/expected-kvp.txt", "r");
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
    assert_int_equal(files, count_files());
    assert_true(files > 120);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_caches_are_saved_again), cmocka_unit_test(golden_caches_go_on),
        cmocka_unit_test(every_truncation),              cmocka_unit_test(every_byte_flipped),
        cmocka_unit_test(expected_errors),
    };
    return cmocka_run_group_tests_name("golden caches", tests, NULL, NULL);
}
