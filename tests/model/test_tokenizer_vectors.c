/* Real vocabularies: llama.cpp's vectors, token counts of whole texts, llama2.c's tokenizer. What is not there is
 * skipped, by name. KVB_TEST_MODEL names the SmolLM2-135M-Instruct file. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/text.h"
#include "tests/support/cm.h"
#include "tests/support/scratch.h"

static const char separator[] = "\n__ggml_vocab_test__\n";

static void skip_without(const char *path)
{
    FILE *f = path != NULL ? fopen(path, "rb") : NULL;
    if (f == NULL) {
        printf("SKIP test_tokenizer_vectors: %s is missing\n", path != NULL ? path : "the model of KVB_TEST_MODEL");
        skip();
    }
    fclose(f);
}

static kvb_tokenizer *from_file(const char *path)
{
    kvb_gguf *g = NULL;
    kvb_tokenizer *t = NULL;
    kvb_error err = {0};
    if (kvb_gguf_open(path, &g, &err) != KVB_OK || kvb_tokenizer_from_gguf(g, &t, &err) != KVB_OK)
        fail_msg("%s: %s", err.where, err.message);
    kvb_gguf_close(g);
    return t;
}

static char *read_text(const char *path)
{
    size_t size;
    char *text = (char *)scratch_read(path, &size);
    assert_non_null(text);
    text[size] = '\0'; /* scratch_read leaves room */
    return text;
}

/* Compares the ids of one string with a line of numbers. */
static void expect_line(const kvb_tokenizer *t, const char *text, size_t size, const char *line, const char *line_end)
{
    uint32_t *ids;
    size_t count, i = 0;
    assert_int_equal(kvb_tokenizer_encode(t, text, size, false, &ids, &count, NULL), KVB_OK);
    for (const char *at = line; at < line_end; i++) {
        char *next;
        unsigned long expected = strtoul(at, &next, 10);
        if (next == at || next > line_end)
            break;
        if (i >= count || ids[i] != expected)
            fail_msg("\"%.*s\": token %zu is %u, expected %lu", (int)size, text, i, i < count ? ids[i] : 0, expected);
        at = next;
    }
    if (i != count)
        fail_msg("\"%.*s\": %zu tokens, expected %zu", (int)size, text, count, i);
    free(ids);
}

static void run_vectors(const char *vocabulary)
{
    char path[300];
    skip_without(vocabulary);
    kvb_tokenizer *t = from_file(vocabulary);
    snprintf(path, sizeof path, "%s.inp", vocabulary);
    char *texts = read_text(path);
    snprintf(path, sizeof path, "%s.out", vocabulary);
    char *lines = read_text(path), *line = lines;
    unsigned strings = 0;
    for (char *text = texts, *end; (end = strstr(text, separator)) != NULL; text = end + sizeof separator - 1) {
        char *line_end = strchr(line, '\n');
        assert_non_null(line_end);
        expect_line(t, text, (size_t)(end - text), line, line_end);
        line = line_end + 1;
        strings++;
    }
    assert_int_equal(strings, 46);
    free(texts);
    free(lines);
    kvb_tokenizer_free(t);
}

static void test_gpt2(void **state)
{
    (void)state;
    run_vectors("../shared/data/tokenizer/ggml-vocab-gpt-2.gguf");
}

static void test_llama_spm(void **state)
{
    (void)state;
    run_vectors("../shared/data/tokenizer/ggml-vocab-llama-spm.gguf");
}

static void expect_count(const kvb_tokenizer *t, const char *path, size_t expected)
{
    kvb_text text;
    kvb_error err = {0};
    if (kvb_text_load(t, &path, 1, &text, &err) != KVB_OK)
        fail_msg("%s: %s", err.where, err.message);
    assert_int_equal(text.id_count, expected);
    kvb_text_free(&text);
}

static void test_smollm2_counts(void **state)
{
    (void)state;
    const char *model = getenv("KVB_TEST_MODEL");
    static const struct {
        const char *path;
        size_t tokens;
    } texts[] = {
        {"../shared/data/wikitext2/wiki.test.raw", 303415},
        {"../shared/data/wikitext2/wiki.valid.raw", 266981},
        {"../shared/data/c4/c4_validation_first400.jsonl", 212723},
    };
    skip_without(model);
    for (unsigned i = 0; i < 3; i++)
        skip_without(texts[i].path);
    kvb_tokenizer *t = from_file(model);
    for (unsigned i = 0; i < 3; i++)
        expect_count(t, texts[i].path, texts[i].tokens);
    kvb_tokenizer_free(t);
}

/* The pieces give the text back behind the one space that SentencePiece puts first. */
static void test_llama2c(void **state)
{
    (void)state;
    static const char path[] = "../shared/data/stories260K/tok512.bin";
    static const char text[] = "Once upon a time, there was a little girl named Lily. \303\251\n";
    char out[128] = "";
    kvb_tokenizer *t;
    kvb_error err;
    uint32_t *ids;
    size_t count, at = 0, size;
    skip_without(path);
    assert_int_equal(kvb_tokenizer_from_llama2c(path, 512, &t, NULL), KVB_OK);
    assert_int_equal(kvb_tokenizer_encode(t, text, sizeof text - 1, false, &ids, &count, NULL), KVB_OK);
    assert_true(count < sizeof text / 2);
    for (size_t i = 0; i < count; i++) {
        const char *piece = kvb_tokenizer_bytes(t, ids[i], &size);
        assert_true(at + size < sizeof out);
        memcpy(out + at, piece, size);
        at += size;
    }
    assert_int_equal(out[0], ' ');
    assert_string_equal(out + 1, text);
    assert_true(kvb_tokenizer_bos(t) == 1 && kvb_tokenizer_eos(t) == 2 && kvb_tokenizer_wants_bos(t));
    free(ids);
    kvb_tokenizer_free(t);
    assert_int_equal(kvb_tokenizer_from_llama2c(path, 511, &t, &err), KVB_E_FORMAT);
    assert_null(t);
    assert_int_equal(kvb_tokenizer_from_llama2c(path, 513, &t, &err), KVB_E_FORMAT);
    assert_int_equal(kvb_tokenizer_from_llama2c(path, 100, &t, &err), KVB_E_FORMAT);
    assert_int_equal(kvb_tokenizer_from_llama2c(path, UINT32_MAX, &t, &err), KVB_E_FORMAT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gpt2),
        cmocka_unit_test(test_llama_spm),
        cmocka_unit_test(test_smollm2_counts),
        cmocka_unit_test(test_llama2c),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
