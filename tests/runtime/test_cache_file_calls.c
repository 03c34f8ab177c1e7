/* What saving and restoring refuse of their callers, and that a refusal leaves everything as it was. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/cm.h"
#include "tests/support/saved_caches.h"
#include "tests/support/scratch.h"

static const rt_shape shape = {.layers = 2, .heads = 2, .kv_heads = 1, .head_dim = 8, .channels = 4, .centroids = 8,
                               .rope_style = KVB_ROPE_HALF, .rope_dims = 8, .seed = 1};
static const kvb_policy policy = {.anchor_fraction = 0.3, .score = KVB_SCORE_EXACT_K, .window = 4, .sinks = 2};

typedef struct fixture {
    kvb_book *book;
    kvb_cache *cache;
    kvb_cache_file *file;
    char *folder, path[512];
} fixture;

static int setup(void **state)
{
    static fixture f;
    float out[64];
    f.book = rt_book_make(&shape, &policy);
    f.cache = sc_cache(f.book, &policy, 3);
    for (uint32_t t = 0; t < 20; t++)
        if (sc_step(f.cache, f.book, t, out, NULL) != KVB_OK)
            return 1;
    f.folder = scratch_create();
    scratch_path(f.folder, "a.kvp", f.path);
    *state = &f;
    return sc_save(f.cache, f.path, false, NULL) != KVB_OK || kvb_cache_file_open(f.path, &f.file, NULL) != KVB_OK;
}

static int teardown(void **state)
{
    fixture *f = *state;
    kvb_cache_file_close(f->file);
    kvb_cache_destroy(f->cache);
    kvb_book_close(f->book);
    scratch_remove(f->folder);
    return 0;
}

static void expect_refused(kvb_status status, kvb_status expected, const kvb_error *err, const char *part)
{
    if (status != expected || strstr(err->message, part) == NULL)
        fail_msg("%s: %s; expected %s and \"%s\"", kvb_status_name(status), err->message, kvb_status_name(expected), part);
}

static void expect_not_restored(const fixture *f, kvb_cache *cache, kvb_status expected, const char *part)
{
    kvb_error err = {0};
    assert_non_null(cache);
    expect_refused(kvb_cache_file_restore(f->file, 0, cache, &err), expected, &err, part);
    assert_int_equal(kvb_cache_length(cache, 0), 0);
    kvb_cache_destroy(cache);
}

static void other_caches_are_refused(void **state)
{
    const fixture *f = *state;
    kvb_policy other = policy;
    expect_not_restored(f, sc_cache(f->book, &policy, 4), KVB_E_MISMATCH, "another policy or seed");
    other.window = 5;
    expect_not_restored(f, sc_cache(f->book, &other, 3), KVB_E_MISMATCH, "another policy or seed");
    expect_not_restored(f, sc_cache(f->book, NULL, 3), KVB_E_MISMATCH, "the cache has none");
    rt_shape shape2 = shape;
    shape2.seed = 2;
    kvb_book *book2 = rt_book_make(&shape2, &policy);
    expect_not_restored(f, sc_cache(book2, &policy, 3), KVB_E_MISMATCH, "use that book");
    kvb_book_close(book2);
    kvb_error err = {0};
    kvb_cache *cache = sc_cache(f->book, &policy, 3);
    expect_refused(kvb_cache_file_restore(f->file, 1, cache, &err), KVB_E_USAGE, &err, "the file has 1");
    assert_int_equal(kvb_cache_file_restore(f->file, 0, cache, NULL), KVB_OK);
    expect_refused(kvb_cache_file_restore(f->file, 0, cache, &err), KVB_E_USAGE, &err, "expected an empty cache");
    assert_true(sc_same(cache, f->cache, f->book));
    kvb_cache_destroy(cache);
    assert_int_equal(kvb_cache_file_restore(f->file, 0, NULL, NULL), KVB_E_USAGE);
}

/* Without a book the layers' shapes must do. */
static void other_geometry_is_refused(void **state)
{
    const fixture *f = *state;
    char path[512];
    float out[64];
    kvb_cache_file *file;
    kvb_cache *exact = sc_cache(f->book, NULL, 0), *into = NULL;
    assert_int_equal(sc_step(exact, f->book, 0, out, NULL), KVB_OK);
    assert_int_equal(sc_save(exact, scratch_path(f->folder, "exact.kvp", path), false, NULL), KVB_OK);
    kvb_cache_destroy(exact);
    assert_int_equal(kvb_cache_file_open(path, &file, NULL), KVB_OK);
    kvb_layer layer[3] = {*kvb_book_layer(f->book, 0), *kvb_book_layer(f->book, 0), *kvb_book_layer(f->book, 0)};
    kvb_error err = {0};
    assert_int_equal(kvb_cache_create_exact(layer, 3, &into, NULL), KVB_OK);
    expect_refused(kvb_cache_file_restore(file, 0, into, &err), KVB_E_MISMATCH, &err, "has 2 layers, the cache 3");
    kvb_cache_destroy(into);
    layer[1].kv_heads = 2;
    assert_int_equal(kvb_cache_create_exact(layer, 2, &into, NULL), KVB_OK);
    expect_refused(kvb_cache_file_restore(file, 0, into, &err), KVB_E_MISMATCH, &err, "layer 1 has 1 KV heads");
    kvb_cache_destroy(into);
    into = sc_cache(f->book, &policy, 3);
    expect_refused(kvb_cache_file_restore(file, 0, into, &err), KVB_E_MISMATCH, &err, "packed without a book");
    kvb_cache_destroy(into);
    kvb_cache_file_close(file);
}

static void expect_not_added(kvb_cache_writer *w, const kvb_cache *cache, const kvb_saved_prompt *prompt,
                             kvb_status expected, const char *part)
{
    kvb_error err = {0};
    expect_refused(kvb_cache_writer_add(w, cache, prompt, &err), expected, &err, part);
}

static void bad_prompts_are_refused(void **state)
{
    const fixture *f = *state;
    static const float bad[2] = {1.0f, NAN};
    char long_name[258], path[512];
    kvb_saved_prompt prompt;
    kvb_cache_writer_options options;
    kvb_cache_writer *w;
    kvb_cache_writer_options_init(&options);
    assert_int_equal(kvb_cache_writer_create(&options, &w, NULL), KVB_OK);
    kvb_saved_prompt_init(&prompt);
    expect_not_added(w, f->cache, &prompt, KVB_E_USAGE, "with a name");
    memset(long_name, 'x', sizeof long_name);
    long_name[256] = '\0';
    const char *const names[] = {"", "a\tb", "\xC3", "\x7F", long_name};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        prompt.name = names[i];
        expect_not_added(w, f->cache, &prompt, KVB_E_USAGE, "a prompt's name");
    }
    prompt.name = "p";
    prompt.hidden = bad;
    expect_not_added(w, f->cache, &prompt, KVB_E_USAGE, "found 0");
    prompt.hidden_count = 2;
    expect_not_added(w, f->cache, &prompt, KVB_E_CHECK, "number 1 is nan");
    prompt.hidden = NULL;
    prompt.struct_size = 1;
    expect_not_added(w, f->cache, &prompt, KVB_E_USAGE, "kvb_saved_prompt_init");
    kvb_saved_prompt_init(&prompt);
    prompt.name = "p";
    kvb_cache *empty = sc_cache(f->book, &policy, 3);
    expect_not_added(w, empty, &prompt, KVB_E_USAGE, "found 0 tokens");
    const float x[16] = {0};
    assert_int_equal(kvb_cache_append(empty, 0, x, x, NULL), KVB_OK);
    expect_not_added(w, empty, &prompt, KVB_E_USAGE, "save it between tokens");
    kvb_cache_destroy(empty);
    assert_int_equal(kvb_cache_writer_add(NULL, f->cache, &prompt, NULL), KVB_E_USAGE);
    assert_int_equal(kvb_cache_writer_add(w, NULL, &prompt, NULL), KVB_E_USAGE);
    /* A writer without prompts writes nothing. */
    assert_int_equal(kvb_cache_writer_commit(w, scratch_path(f->folder, "none.kvp", path), NULL), KVB_E_USAGE);
    assert_null(scratch_read(path, &(size_t){0}));
}

/* All caches of a file are of one kind. */
static void other_caches_need_another_file(void **state)
{
    const fixture *f = *state;
    float out[64];
    kvb_saved_prompt prompt;
    kvb_cache_writer_options options;
    kvb_cache_writer *w;
    kvb_cache_writer_options_init(&options);
    assert_int_equal(kvb_cache_writer_create(&options, &w, NULL), KVB_OK);
    kvb_saved_prompt_init(&prompt);
    prompt.name = "first";
    assert_int_equal(kvb_cache_writer_add(w, f->cache, &prompt, NULL), KVB_OK);
    prompt.name = "second";
    kvb_policy wide = policy;
    wide.window = 6;
    kvb_cache *other[] = {sc_cache(f->book, NULL, 3), sc_cache(f->book, &policy, 4), sc_cache(f->book, &wide, 3)};
    for (size_t i = 0; i < sizeof other / sizeof *other; i++) {
        assert_int_equal(sc_step(other[i], f->book, 0, out, NULL), KVB_OK);
        expect_not_added(w, other[i], &prompt, KVB_E_MISMATCH, "a file of its own");
        kvb_cache_destroy(other[i]);
    }
    kvb_cache_writer_abandon(w);
}

static void bad_options_are_refused(void **state)
{
    (void)state;
    kvb_cache_writer_options options;
    kvb_cache_writer *w;
    kvb_error err = {0};
    static const char *const metas[] = {"", "[]", "{", "{\"a\":1,\"a\":2}", "{} {}"};
    for (size_t i = 0; i < sizeof metas / sizeof *metas; i++) {
        kvb_cache_writer_options_init(&options);
        options.meta_json = metas[i];
        assert_int_equal(kvb_cache_writer_create(&options, &w, &err), KVB_E_USAGE);
        assert_null(w);
    }
    kvb_cache_writer_options_init(&options);
    options.struct_size = 4;
    expect_refused(kvb_cache_writer_create(&options, &w, &err), KVB_E_USAGE, &err, "kvb_cache_writer_options_init");
    kvb_cache_writer_abandon(NULL);
    kvb_cache_file_close(NULL);
}

/* A file that cannot be written, or read. */
static void bad_paths_are_reported(void **state)
{
    const fixture *f = *state;
    char path[512];
    kvb_cache_file *file;
    kvb_error err = {0};
    assert_int_equal(sc_save(f->cache, scratch_path(f->folder, "no/folder.kvp", path), false, &err), KVB_E_IO);
    assert_int_equal(kvb_cache_file_open(path, &file, &err), KVB_E_IO);
    assert_null(file);
    assert_int_equal(kvb_cache_file_open(f->folder, &file, &err), KVB_E_IO);
    assert_int_equal(kvb_cache_file_open_memory(NULL, 0, "nothing", &file, &err), KVB_E_FORMAT);
    assert_int_equal(kvb_cache_file_ids(f->file, 3, NULL, &err), KVB_E_USAGE);
    assert_int_equal(kvb_cache_file_hidden(f->file, 0, NULL, &err), KVB_E_USAGE);
    assert_int_equal(kvb_cache_file_prompt(f->file, 1).tokens, 0);
    uint32_t at;
    expect_refused(kvb_cache_file_find(f->file, "q", &at, &err), KVB_E_USAGE, &err, "has no prompt q; it has p");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(other_caches_are_refused),       cmocka_unit_test(other_geometry_is_refused),
        cmocka_unit_test(bad_prompts_are_refused),        cmocka_unit_test(other_caches_need_another_file),
        cmocka_unit_test(bad_options_are_refused),        cmocka_unit_test(bad_paths_are_reported),
    };
    return cmocka_run_group_tests_name("calls of saved caches", tests, setup, teardown);
}
