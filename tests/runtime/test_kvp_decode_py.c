/* Two readers of packed caches: spec/kvp_decode.py must see in every golden file what a cache that the library restores from
 * it holds, and must refuse what the library refuses. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "format/base/half.h"
#include "format/base/json.h"
#include "format/base/sha256.h"
#include "tests/support/cm.h"
#include "tests/support/saved_caches.h"
#include "tests/support/scratch.h"

static void need_python(void)
{
    if (system("python3 -c 'import sys; sys.exit(sys.version_info < (3, 8))' >/dev/null 2>&1") != 0) {
        printf("SKIP kvp_decode_py: no python3 of version 3.8 or later\n");
        skip();
    }
}

static char *run(const char *command, size_t *size, int *status)
{
    enum { LIMIT = 1 << 20 };
    FILE *pipe = popen(command, "r");
    char *text = malloc(LIMIT);
    assert_non_null(pipe);
    assert_non_null(text);
    *size = fread(text, 1, LIMIT, pipe);
    int how = pclose(pipe);
    *status = WIFEXITED(how) ? WEXITSTATUS(how) : -1;
    return text;
}

/* Bytes of a matrix, which the decoder prints in hexadecimal. */
static size_t unhex(const kvb_json *v, uint8_t *out, size_t room)
{
    const char *text = kvb_json_string(v, "");
    const size_t count = strlen(text) / 2;
    assert_true(count <= room);
    for (size_t i = 0; i < count; i++) {
        unsigned byte;
        assert_int_equal(sscanf(text + 2 * i, "%2x", &byte), 1);
        out[i] = (uint8_t)byte;
    }
    return count;
}

/* What one head of one layer of one prompt is, by the decoder. */
typedef struct decoded {
    const kvb_json *kept, *code, *anch;
} decoded;

static decoded find_head(const kvb_json *prompt, uint32_t layer, uint32_t head)
{
    decoded d = {0};
    const kvb_json *sections = kvb_json_get(prompt, "sections");
    for (size_t i = 0; i < kvb_json_count(sections); i++) {
        const kvb_json *s = kvb_json_at(sections, i);
        const char *type = kvb_json_string(kvb_json_get(s, "type"), "");
        if (kvb_json_number(kvb_json_get(s, "layer"), -1) != (double)layer)
            continue;
        const kvb_json *parts = kvb_json_at(kvb_json_get(s, "heads"), head);
        if (strcmp(type, "KEPT") == 0)
            d.kept = parts;
        else if (strcmp(type, "CODE") == 0)
            d.code = parts;
        else if (strcmp(type, "ANCH") == 0)
            d.anch = parts;
    }
    return d;
}

/* A kept token as the cache reads it must be the decoder's row: half floats as they are. */
static void expect_halves(const kvb_cache *cache, uint32_t layer, uint32_t head, uint64_t position, const uint8_t *key,
                          const uint8_t *value, uint32_t dim)
{
    float k[64], v[64], expected[64];
    uint16_t halves[64];
    int exact = 0;
    assert_int_equal(kvb_cache_read(cache, layer, head, position, k, v, &exact, NULL), KVB_OK);
    assert_true(exact);
    memcpy(halves, key, dim * sizeof *halves);
    kvb_half_to_floats(expected, halves, dim);
    assert_memory_equal(k, expected, dim * sizeof *k);
    memcpy(halves, value, dim * sizeof *halves);
    kvb_half_to_floats(expected, halves, dim);
    assert_memory_equal(v, expected, dim * sizeof *v);
}

static void expect_rows(const kvb_cache *cache, uint32_t layer, uint32_t head, const kvb_json *kept, size_t part,
                        const uint32_t *positions, uint64_t first, uint32_t dim)
{
    uint8_t keys[4096], values[4096];
    const size_t bytes = unhex(kvb_json_at(kept, part), keys, sizeof keys);
    assert_int_equal(unhex(kvb_json_at(kept, part + 1), values, sizeof values), bytes);
    for (size_t i = 0; i < bytes / (2 * dim); i++)
        expect_halves(cache, layer, head, positions != NULL ? positions[i] : first + i, keys + 2 * i * dim,
                      values + 2 * i * dim, dim);
}

/* Values of coded tokens, which have no frame: the codebook's decoding of the decoder's codes. */
static size_t expect_codes(const kvb_cache *cache, const kvb_book *book, uint32_t layer, uint32_t head,
                           const kvb_json *code, const uint32_t *anchors, size_t anchor_count, uint64_t first)
{
    const kvb_codebook *c = kvb_book_codebook(book, layer, head, KVB_VALUE);
    const uint32_t dim = c->groups * c->channels;
    const size_t row = kvb_packed_bytes(c->groups, c->code_bits);
    uint8_t packed[4096];
    uint32_t codes[64];
    float k[64], v[64], expected[64];
    const size_t rows = unhex(kvb_json_at(code, 1), packed, sizeof packed) / row;
    uint64_t position = first;
    for (size_t i = 0; i < rows; i++, position++) {
        int exact = 1;
        for (size_t a = 0; a < anchor_count; a++)
            position += anchors[a] == position;
        kvb_unpack_codes(packed + i * row, c->groups, c->code_bits, codes);
        assert_int_equal(kvb_decode(c, dim, codes, 1, expected, NULL), KVB_OK);
        assert_int_equal(kvb_cache_read(cache, layer, head, position, k, v, &exact, NULL), KVB_OK);
        assert_false(exact);
        assert_memory_equal(v, expected, dim * sizeof *v);
    }
    return rows;
}

static void expect_head(const kvb_cache *cache, const kvb_book *book, bool coded, bool fine, const kvb_policy *policy,
                        uint32_t layer, uint32_t head, const kvb_json *prompt)
{
    const uint32_t dim = kvb_book_layer(book, layer)->head_dim;
    const uint64_t tokens = kvb_cache_length(cache, layer);
    const decoded d = find_head(prompt, layer, head);
    uint32_t anchors[64];
    const size_t count = d.anch != NULL ? unhex(kvb_json_at(d.anch, 0), (uint8_t *)anchors, sizeof anchors) / 4 : 0;
    const uint64_t sinks = coded ? policy->sinks : 0, window = coded ? policy->window : tokens;
    size_t rows = 0;
    expect_rows(cache, layer, head, d.kept, 0, NULL, 0, dim);
    if (!fine || !coded) {
        expect_rows(cache, layer, head, d.kept, 2, NULL, tokens - window, dim);
        expect_rows(cache, layer, head, d.kept, 4, anchors, 0, dim);
    }
    if (coded)
        rows = expect_codes(cache, book, layer, head, d.code, anchors, count, sinks);
    assert_int_equal(sinks + window + count + rows, tokens);
}

static void check_golden(const char *name, const char *book_name, bool has_book)
{
    char path[512], command[640], hex[65];
    size_t size;
    int status;
    kvb_book *book;
    kvb_cache_file *file;
    kvb_json_doc *doc;
    kvb_cache_options options;
    kvb_error err = {0};
    assert_int_equal(kvb_book_open(scratch_path("tests/golden", book_name, path), &book, &err), KVB_OK);
    assert_int_equal(kvb_cache_file_open(scratch_path("tests/golden", name, path), &file, &err), KVB_OK);
    snprintf(command, sizeof command, "python3 spec/kvp_decode.py --rows %s", path);
    char *text = run(command, &size, &status);
    assert_int_equal(status, 0);
    if (kvb_json_parse(text, size, command, &doc, &err) != KVB_OK)
        fail_msg("%s", err.message);
    const kvb_json *root = kvb_json_root(doc), *prompts = kvb_json_get(root, "prompts");
    kvb_sha256_hex(kvb_cache_file_id(file), hex);
    assert_string_equal(kvb_json_string(kvb_json_get(root, "id"), ""), hex);
    assert_int_equal(kvb_json_count(prompts), kvb_cache_file_prompts(file));
    kvb_cache_file_options(file, &options);
    for (uint32_t p = 0; p < kvb_cache_file_prompts(file); p++) {
        const kvb_prompt_info info = kvb_cache_file_prompt(file, p);
        const kvb_json *prompt = kvb_json_at(prompts, p);
        assert_string_equal(kvb_json_string(kvb_json_get(prompt, "name"), ""), info.name);
        assert_true(kvb_json_number(kvb_json_get(prompt, "tokens"), 0) == info.tokens);
        assert_int_equal(kvb_json_count(kvb_json_get(prompt, "ids")), info.has_ids ? info.tokens : 0);
        assert_int_equal(kvb_json_count(kvb_json_get(prompt, "last")), info.hidden_count);
        kvb_cache *cache = sc_cache(book, has_book ? &options.policy : NULL, options.seed);
        assert_int_equal(kvb_cache_file_restore(file, p, cache, &err), KVB_OK);
        for (uint32_t l = 0; l < kvb_book_layers(book); l++)
            for (uint32_t g = 0; g < kvb_book_layer(book, l)->kv_heads; g++)
                expect_head(cache, book, has_book && kvb_book_codebook(book, l, 0, KVB_KEY) != NULL,
                            options.policy.exact == KVB_EXACT_FINE, &options.policy, l, g, prompt);
        kvb_cache_destroy(cache);
    }
    kvb_json_free(doc);
    free(text);
    kvb_cache_file_close(file);
    kvb_book_close(book);
}

static void golden_caches(void **state)
{
    (void)state;
    need_python();
    check_golden("caches.kvp", "full.kvb", true);
    check_golden("planes.kvp", "fine.kvb", true);
    check_golden("exact.kvp", "full.kvb", false);
    check_golden("newer-minor.kvp", "full.kvb", true);
}

static size_t count_lines(const char *text, size_t size)
{
    size_t lines = 0;
    for (size_t i = 0; i < size; i++)
        lines += text[i] == '\n';
    return lines;
}

static void refusals(void **state)
{
    (void)state;
    size_t size;
    int status;
    need_python();
    char *list = run("ls tests/golden-errors/*.kvp", &size, &status);
    const size_t files = count_lines(list, size);
    free(list);
    assert_true(files > 120);
    char *text = run("python3 spec/kvp_decode.py tests/golden-errors/*.kvp 2>&1", &size, &status);
    assert_int_equal(status, 3);
    assert_int_equal(count_lines(text, size), files);
    text[size - 1] = '\0';
    assert_null(strstr(text, "\"schema\""));
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(golden_caches), cmocka_unit_test(refusals)};
    return cmocka_run_group_tests_name("kvp_decode_py", tests, NULL, NULL);
}
