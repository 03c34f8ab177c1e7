/* Files to tokens to chunks. The tiny vocabulary has a token for every byte, so that texts without merges have as many
 * tokens as bytes. */
#include <stdlib.h>
#include <string.h>

#include "format/base/sha256.h"
#include "model/text.h"
#include "tests/support/cm.h"
#include "tests/support/scratch.h"
#include "tests/support/tiny_gguf.h"

static kvb_tokenizer *tokenizer;
static char *folder;

static int set_up(void **state)
{
    (void)state;
    tiny_gguf tiny = tiny_gguf_default();
    size_t size;
    uint8_t *bytes = tiny_gguf_make(&tiny, &size);
    kvb_gguf *g = NULL;
    folder = scratch_create();
    if (kvb_gguf_open_memory(bytes, size, "tiny", &g, NULL) == KVB_OK)
        kvb_tokenizer_from_gguf(g, &tokenizer, NULL);
    kvb_gguf_close(g);
    free(bytes);
    return folder == NULL || tokenizer == NULL;
}

static int tear_down(void **state)
{
    (void)state;
    scratch_remove(folder);
    kvb_tokenizer_free(tokenizer);
    return 0;
}

/* The tokens of one file as the text that they stand for. */
static void expect_text(const char *name, const char *content, const char *expected)
{
    char path[512], out[256] = "";
    const char *paths[1] = {scratch_path(folder, name, path)};
    kvb_text text;
    kvb_error err = {0};
    size_t at = 0;
    assert_int_equal(scratch_write(path, content, strlen(content)), 0);
    if (kvb_text_load(tokenizer, paths, 1, &text, &err) != KVB_OK)
        fail_msg("%s: %s", err.where, err.message);
    for (size_t i = 0; i < text.id_count; i++) {
        size_t size;
        const char *piece = kvb_tokenizer_bytes(tokenizer, text.ids[i], &size);
        memcpy(out + at, piece, size);
        at += size;
    }
    assert_string_equal(out, expected);
    kvb_text_free(&text);
}

static void expect_refused(const char *name, const char *content, kvb_status status, const char *where,
                           const char *message)
{
    char path[512];
    const char *paths[1] = {scratch_path(folder, name, path)};
    kvb_text text;
    kvb_error err = {0};
    assert_int_equal(scratch_write(path, content, strlen(content)), 0);
    assert_int_equal(kvb_text_load(tokenizer, paths, 1, &text, &err), status);
    assert_true(text.ids == NULL && text.sources == NULL);
    if (strstr(err.where, where) == NULL || strstr(err.message, message) == NULL)
        fail_msg("\"%s: %s\", expected \"%s: %s\"", err.where, err.message, where, message);
}

static void test_plain_text(void **state)
{
    (void)state;
    expect_text("a.txt", "The end.\r\n", "The end.\r\n");
    expect_text("a.txt", "{\"text\": 1}", "{\"text\": 1}"); /* only the name makes it JSON */
    expect_refused("a.txt", "", KVB_E_FORMAT, "a.txt", "empty");
}

static void test_jsonl(void **state)
{
    (void)state;
    expect_text("a.jsonl", "{\"text\":\"one\"}\n{\"id\":3,\"text\":\"t\\u0077o\\n\"}\n", "one\n\ntwo\n");
    expect_text("a.jsonl", "{\"text\":\"one\"}\r\n\r\n{\"text\":\"two\"}", "one\n\ntwo");
    expect_text("a.jsonl", "{\"text\":\"\"}\n{\"text\":\"x\"}\n", "\n\nx");
    expect_refused("a.jsonl", "{\"text\":\"one\"}\n{\"text\":2}\n", KVB_E_FORMAT, "line 2", "\"text\"");
    expect_refused("a.jsonl", "{\"text\":\"one\"}\n\n[\"text\"]\n", KVB_E_FORMAT, "line 3", "\"text\"");
    expect_refused("a.jsonl", "{\"text\":\"one\"}\n{\"text\":\"tw", KVB_E_FORMAT, "line 2", "");
    expect_refused("a.jsonl", "\n\n", KVB_E_FORMAT, "a.jsonl", "no line of JSON");
    expect_refused("a.jsonl", "{\"text\":\"\"}\n", KVB_E_FORMAT, "a.jsonl", "no text");
}

static void test_several_files(void **state)
{
    (void)state;
    char a[512], b[512];
    const char *paths[3] = {scratch_path(folder, "one.txt", a), scratch_path(folder, "two.txt", b), a};
    kvb_text text;
    kvb_error err;
    uint8_t digest[32];
    assert_int_equal(scratch_write(a, "t", 1), 0);
    assert_int_equal(scratch_write(b, "he xx", 5), 0); /* "t" + "he" must not become one word */
    assert_int_equal(kvb_text_load(tokenizer, paths, 3, &text, NULL), KVB_OK);
    assert_int_equal(text.source_count, 3);
    assert_int_equal(text.id_count, 6);
    assert_true(text.sources[0].tokens == 1 && text.sources[1].tokens == 4 && text.sources[1].bytes == 5);
    assert_string_equal(text.sources[1].path, b);
    kvb_sha256_of("he xx", 5, digest);
    assert_memory_equal(text.sources[1].sha256, digest, 32);
    assert_int_equal(text.ids[0], text.ids[5]);
    kvb_text_free(&text);
    paths[1] = "there is no such file";
    assert_int_equal(kvb_text_load(tokenizer, paths, 3, &text, &err), KVB_E_IO);
    assert_string_equal(err.where, paths[1]);
    assert_int_equal(kvb_text_load(tokenizer, paths, 0, &text, &err), KVB_E_USAGE);
    kvb_text_free(&text);
    kvb_text_free(NULL);
}

static void test_chunks(void **state)
{
    (void)state;
    uint32_t ids[11] = {10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20}, out[4];
    kvb_text text = {.ids = ids, .id_count = 11};
    uint64_t chunks;
    kvb_error err;
    assert_int_equal(kvb_text_chunks(&text, 3, 0, 0, &chunks, &err), KVB_OK);
    assert_int_equal(chunks, 3); /* the last two tokens are no chunk */
    assert_int_equal(kvb_text_chunks(&text, 3, 1, 0, &chunks, &err), KVB_OK);
    assert_int_equal(chunks, 2);
    assert_int_equal(kvb_text_chunks(&text, 3, 1, 1, &chunks, &err), KVB_OK);
    assert_int_equal(chunks, 1);
    assert_int_equal(kvb_text_chunks(&text, 3, 0, 99, &chunks, &err), KVB_OK);
    assert_int_equal(chunks, 3);
    assert_int_equal(kvb_text_chunks(&text, 11, 0, 0, &chunks, &err), KVB_OK);
    assert_int_equal(chunks, 1);
    kvb_text_chunk(&text, 3, 1, 1, -1, out);
    assert_true(out[0] == 16 && out[1] == 17 && out[2] == 18);
    kvb_text_chunk(&text, 3, 1, 1, 7, out);
    assert_true(out[0] == 7 && out[1] == 17 && out[2] == 18);
}

static void test_too_few_tokens(void **state)
{
    (void)state;
    uint32_t ids[11] = {0};
    kvb_text text = {.ids = ids, .id_count = 11};
    uint64_t chunks = 5;
    kvb_error err;
    assert_int_equal(kvb_text_chunks(&text, 12, 0, 0, &chunks, &err), KVB_E_FORMAT);
    assert_int_equal(chunks, 0);
    assert_true(strstr(err.message, "11 tokens") != NULL && strstr(err.message, "of 12") != NULL);
    assert_int_equal(kvb_text_chunks(&text, 3, 3, 0, &chunks, &err), KVB_E_FORMAT);
    assert_int_equal(kvb_text_chunks(&text, 3, UINT64_MAX, 0, &chunks, &err), KVB_E_FORMAT);
    assert_int_equal(kvb_text_chunks(&text, 0, 0, 0, &chunks, &err), KVB_E_USAGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain_text), cmocka_unit_test(test_jsonl),          cmocka_unit_test(test_several_files),
        cmocka_unit_test(test_chunks),     cmocka_unit_test(test_too_few_tokens),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
