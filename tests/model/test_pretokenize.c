/* How each scheme cuts text into words. The expected cuts were made by hand from the published patterns. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/pretokenize.h"
#include "tests/support/cm.h"

typedef struct split_case {
    const char *scheme, *text, *cut; /* "|" between the words; texts have none of their own */
} split_case;

static const split_case cases[] = {
    {"gpt-2", "Hello world", "Hello| world"},
    {"gpt-2", "  two", " | two"},
    {"gpt-2", "a\n\nb", "a|\n|\n|b"},
    {"gpt-2", "a \n ", "a| \n "},
    {"gpt-2", "I'm you'll I'M", "I|'m| you|'ll| I|'|M"},
    {"gpt-2", "x=123456, 7", "x|=|123456|,| 7"},
    {"gpt-2", "\xC3\x84pfel!!", "\xC3\x84pfel|!!"},
    {"gpt-2", "a\xC2\xA0""b", "a|\xC2\xA0|b"},          /* a no-break space is white space */
    {"gpt-2", "a\xE1\xA0\x8E""b", "a|\xE1\xA0\x8E|b"},  /* U+180E no longer is: a word of neither letters nor digits */
    {"gpt-2", "a\xE1\xA0\x8E b", "a|\xE1\xA0\x8E| b"},
    {"smollm", "x123 45", "x|1|2|3| |4|5"},
    {"smollm", " 1 a", " |1| a"},
    {"smollm", "it's \xC2\xBD", "it|'s| |\xC2\xBD"},    /* one half is a number */
    {"smollm", "a  b 9", "a| | b| |9"},
    {"llama-bpe", "I'M 1234567", "I|'M| |123|456|7"},
    {"llama-bpe", "(word) _x", "(word|)| _|x"},
    {"llama-bpe", "!word", "!word"},
    {"llama-bpe", "end.\n\n  next", "end|.\n\n| | next"},
    {"llama-bpe", "a  \n b", "a|  \n| b"},
    {"llama-bpe", "a   b", "a|  | b"},
    {"llama-bpe", "tail  ", "tail|  "},
    {"llama3", "12345", "123|45"},
    {"qwen2", "I'M 1234", "I|'M| |1|2|3|4"},
    {"qwen2", "\tx", "\tx"},
    {"qwen2", "a\r\n\r\nb", "a|\r\n\r\n|b"},
    {"qwen2", "don't 'll", "don|'t| '|ll"},
    {"default", "Hello, world", "Hello|,| world"},
    {"default", "a+b=12345", "a|+|b|=|123|45"},
    {"default", "x 42", "x| |42"},
};

static kvb_pretokenizer *create(const char *scheme)
{
    kvb_pretokenizer *p;
    kvb_error err = {0};
    if (kvb_pretokenizer_create(scheme, "test", &p, &err) != KVB_OK)
        fail_msg("%s: %s", scheme, err.message);
    return p;
}

static void test_cases(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const split_case *c = &cases[i];
        kvb_pretokenizer *p = create(c->scheme);
        size_t *ends, count, written = 0, from = 0;
        char cut[128];
        assert_int_equal(kvb_pretokenizer_split(p, c->text, strlen(c->text), &ends, &count, NULL), KVB_OK);
        for (size_t w = 0; w < count; from = ends[w++])
            written += (size_t)snprintf(cut + written, sizeof cut - written, "%s%.*s", w ? "|" : "",
                                        (int)(ends[w] - from), c->text + from);
        if (from != strlen(c->text) || strcmp(cut, c->cut) != 0)
            fail_msg("%s \"%s\": \"%s\", expected \"%s\"", c->scheme, c->text, cut, c->cut);
        free(ends);
        kvb_pretokenizer_free(p);
    }
}

static void test_empty_text(void **state)
{
    (void)state;
    kvb_pretokenizer *p = create("gpt-2");
    size_t *ends, count = 1;
    assert_int_equal(kvb_pretokenizer_split(p, "", 0, &ends, &count, NULL), KVB_OK);
    assert_int_equal(count, 0);
    free(ends);
    kvb_pretokenizer_free(p);
}

/* Runs of one kind of character must not cost quadratic time or a deep stack. */
static void test_long_runs(void **state)
{
    (void)state;
    enum { LENGTH = 1 << 20 };
    static const char kinds[] = " \na1.";
    static const char *const schemes[] = {"default", "gpt-2", "smollm", "llama-bpe", "qwen2"};
    char *text = malloc(LENGTH);
    assert_non_null(text);
    for (size_t s = 0; s < 5; s++)
        for (size_t k = 0; k < 5; k++) {
            kvb_pretokenizer *p = create(schemes[s]);
            size_t *ends, count;
            memset(text, kinds[k], LENGTH);
            text[LENGTH - 1] = 'x';
            assert_int_equal(kvb_pretokenizer_split(p, text, LENGTH, &ends, &count, NULL), KVB_OK);
            assert_true(count >= 1 && ends[count - 1] == LENGTH);
            free(ends);
            kvb_pretokenizer_free(p);
        }
    free(text);
}

static void test_unknown_scheme(void **state)
{
    (void)state;
    kvb_pretokenizer *p;
    kvb_error err;
    assert_int_equal(kvb_pretokenizer_create("chameleon", "m.gguf", &p, &err), KVB_E_FORMAT);
    assert_null(p);
    assert_non_null(strstr(err.message, "\"chameleon\" is not supported"));
    assert_string_equal(err.where, "m.gguf");
    assert_int_equal(kvb_pretokenizer_create("", "m.gguf", &p, &err), KVB_E_FORMAT);
    kvb_pretokenizer_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cases),
        cmocka_unit_test(test_empty_text),
        cmocka_unit_test(test_long_runs),
        cmocka_unit_test(test_unknown_scheme),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
