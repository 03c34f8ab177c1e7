/* Every allocation of saving and restoring fails in turn: each call reports it, leaves nothing behind, and what it was to
 * change as it was. The Makefile routes the allocations of this program through the functions below. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/cm.h"
#include "tests/support/saved_caches.h"
#include "tests/support/scratch.h"

static long countdown = -1; /* allocations until one fails; negative: none does */

static int fails(void)
{
    return countdown >= 0 && countdown-- == 0;
}

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *memory, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *memory, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);

void *__wrap_malloc(size_t size)
{
    return fails() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return fails() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *memory, size_t size)
{
    return fails() ? NULL : __real_realloc(memory, size);
}

void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
    return fails() ? NULL : __real_aligned_alloc(alignment, size);
}

enum { TOKENS = 40 };

static const rt_shape shape = {.layers = 2, .heads = 2, .kv_heads = 2, .head_dim = 8, .channels = 4, .centroids = 8,
                               .rope_style = KVB_ROPE_HALF, .rope_dims = 8, .transform = true, .seed = 1,
                               .fine_channels = 2, .fine_centroids = 4};
static const kvb_policy policy = {.anchor_fraction = 0.3, .score = KVB_SCORE_EXACT_K, .window = 9, .sinks = 2,
                                  .exact = KVB_EXACT_FINE};

static kvb_book *book;
static kvb_cache *cache;
static char *folder;
static char path[512];

static int setup(void **state)
{
    (void)state;
    static float out[64];
    book = rt_book_make(&shape, &policy);
    cache = sc_cache(book, &policy, 3);
    /* Every third token again: planes must compress. */
    for (uint32_t t = 0; t < TOKENS; t++)
        if (sc_step(cache, book, t % 3, out, NULL) != KVB_OK)
            return 1;
    folder = scratch_create();
    scratch_path(folder, "a.kvp", path);
    return folder == NULL;
}

static int teardown(void **state)
{
    (void)state;
    kvb_cache_destroy(cache);
    kvb_book_close(book);
    scratch_remove(folder);
    return 0;
}

static void expect_same_files(const char *one, const char *other)
{
    size_t sizes[2];
    uint8_t *a = scratch_read(one, &sizes[0]), *b = scratch_read(other, &sizes[1]);
    assert_int_equal(sizes[0], sizes[1]);
    assert_memory_equal(a, b, sizes[0]);
    free(a);
    free(b);
}

/* Saving with one failure leaves no file, or where it could do without that memory the file that there is otherwise. */
static void saving_reports_every_failure(void **state)
{
    (void)state;
    char other[512];
    assert_int_equal(sc_save(cache, scratch_path(folder, "b.kvp", other), true, NULL), KVB_OK);
    long at = 0;
    for (bool failed = true; failed; at++) {
        kvb_error err = {0};
        countdown = at;
        kvb_status status = sc_save(cache, path, true, &err);
        failed = countdown < 0;
        countdown = -1;
        assert_true(status == KVB_OK || (status == KVB_E_MEMORY && failed));
        assert_int_equal(err.code, status);
        assert_int_equal(scratch_count(folder), status == KVB_OK ? 2 : 1);
        if (status == KVB_OK) {
            expect_same_files(path, other);
            remove(path);
        }
    }
    assert_true(at > 40);
}

/* A failed addition leaves the writer with what it had. */
static void a_writer_goes_on_after_every_failure(void **state)
{
    (void)state;
    uint32_t prompts = 0;
    kvb_cache_writer_options options;
    kvb_cache_writer *w;
    kvb_cache_writer_options_init(&options);
    options.compress = 1;
    assert_int_equal(kvb_cache_writer_create(&options, &w, NULL), KVB_OK);
    long at = 0;
    for (bool failed = true; failed; at++) {
        char name[32];
        kvb_saved_prompt prompt;
        kvb_saved_prompt_init(&prompt);
        snprintf(name, sizeof name, "%u", prompts);
        prompt.name = name;
        countdown = at;
        kvb_status status = kvb_cache_writer_add(w, cache, &prompt, NULL);
        failed = countdown < 0;
        countdown = -1;
        assert_true(status == KVB_OK || (status == KVB_E_MEMORY && failed));
        prompts += status == KVB_OK;
    }
    assert_true(at > 25);
    assert_int_equal(kvb_cache_writer_commit(w, path, NULL), KVB_OK);
    kvb_cache_file *file;
    assert_int_equal(kvb_cache_file_open(path, &file, NULL), KVB_OK);
    assert_int_equal(kvb_cache_file_prompts(file), prompts);
    for (uint32_t i = 0; i < prompts; i++)
        assert_int_equal(kvb_cache_file_check(file, i, NULL), KVB_OK);
    kvb_cache_file_close(file);
}

static void opening_reports_every_failure(void **state)
{
    (void)state;
    kvb_cache_file *file = NULL;
    assert_int_equal(sc_save(cache, path, true, NULL), KVB_OK);
    kvb_status status = KVB_E_MEMORY;
    long at = 0;
    for (; status != KVB_OK; at++) {
        kvb_error err = {0};
        countdown = at;
        status = kvb_cache_file_open(path, &file, &err);
        countdown = -1;
        assert_true(status == KVB_OK || status == KVB_E_MEMORY);
        assert_int_equal(err.code, status);
        assert_true((file != NULL) == (status == KVB_OK));
    }
    assert_true(at > 8);
    kvb_cache_file_close(file);
}

/* The same cache is filled after each failure: it stays empty until all is there. */
static void restoring_reports_every_failure(void **state)
{
    (void)state;
    kvb_cache_file *file;
    assert_int_equal(sc_save(cache, path, true, NULL), KVB_OK);
    assert_int_equal(kvb_cache_file_open(path, &file, NULL), KVB_OK);
    kvb_cache *restored = sc_cache(book, &policy, 3);
    kvb_status status = KVB_E_MEMORY;
    long at = 0, failures = 0;
    for (; status != KVB_OK; at++) {
        kvb_error err = {0};
        countdown = at;
        /* Every other time into a cache that has room for nothing yet. */
        kvb_cache *into = at % 2 == 0 ? restored : NULL;
        if (into == NULL) {
            countdown = -1;
            into = sc_cache(book, &policy, 3);
            countdown = at;
        }
        status = kvb_cache_file_restore(file, 0, into, &err);
        countdown = -1;
        assert_true(status == KVB_OK || status == KVB_E_MEMORY);
        assert_int_equal(err.code, status);
        if (status != KVB_OK) {
            failures++;
            assert_int_equal(kvb_cache_length(into, 0), 0);
            assert_int_equal(kvb_cache_count_bytes(into).elements, 0);
        } else {
            assert_true(sc_same(cache, into, book));
        }
        if (into != restored)
            kvb_cache_destroy(into);
        if (into == restored && status == KVB_OK)
            break;
    }
    assert_true(failures > 20);
    kvb_cache_destroy(restored);
    kvb_cache_file_close(file);
}

static void checking_reports_every_failure(void **state)
{
    (void)state;
    kvb_cache_file *file;
    assert_int_equal(sc_save(cache, path, true, NULL), KVB_OK);
    assert_int_equal(kvb_cache_file_open(path, &file, NULL), KVB_OK);
    kvb_status status = KVB_E_MEMORY;
    long at = 0;
    for (; status != KVB_OK; at++) {
        countdown = at;
        status = kvb_cache_file_check(file, 0, NULL);
        countdown = -1;
        assert_true(status == KVB_OK || status == KVB_E_MEMORY);
    }
    assert_true(at > 6);
    kvb_cache_file_close(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(saving_reports_every_failure), cmocka_unit_test(a_writer_goes_on_after_every_failure),
        cmocka_unit_test(opening_reports_every_failure), cmocka_unit_test(restoring_reports_every_failure),
        cmocka_unit_test(checking_reports_every_failure),
    };
    return cmocka_run_group_tests_name("memory of saved caches", tests, setup, teardown);
}
