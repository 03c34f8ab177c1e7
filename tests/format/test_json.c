#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/json.h"
#include "tests/support/cm.h"

static kvb_json_doc *parse(const char *text)
{
    kvb_json_doc *doc;
    kvb_error err;
    assert_int_equal(kvb_json_parse(text, strlen(text), "t.json", &doc, &err), KVB_OK);
    return doc;
}

static void expect_refused(const char *text, size_t size, const char *part)
{
    kvb_json_doc *doc = (kvb_json_doc *)1;
    kvb_error err = {0};
    /* A copy of the exact size lets a sanitizer see a read past the end. */
    char *copy = malloc(size > 0 ? size : 1);
    assert_non_null(copy);
    memcpy(copy, text, size);
    assert_int_equal(kvb_json_parse(copy, size, "t.json", &doc, &err), KVB_E_FORMAT);
    free(copy);
    assert_null(doc);
    assert_string_equal(err.where, "t.json");
    if (strstr(err.message, part) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", err.message, part);
}

static void test_values(void **state)
{
    (void)state;
    kvb_json_doc *doc = parse(" {\"a\": [1, -2.5e3, true, false, null], \"s\": \"x\\n\\u00e9\\ud83d\\ude00\\/\", \"o\": {}}\n");
    const kvb_json *root = kvb_json_root(doc), *a = kvb_json_get(root, "a");
    assert_int_equal(kvb_json_type_of(root), KVB_JSON_OBJECT);
    assert_int_equal(kvb_json_count(root), 3);
    assert_string_equal(kvb_json_key_at(root, 1), "s");
    assert_int_equal(kvb_json_count(a), 5);
    assert_true(kvb_json_number(kvb_json_at(a, 1), 0) == -2500);
    assert_true(kvb_json_bool(kvb_json_at(a, 2), false));
    assert_false(kvb_json_bool(kvb_json_at(a, 3), true));
    assert_int_equal(kvb_json_type_of(kvb_json_at(a, 4)), KVB_JSON_NULL);
    assert_string_equal(kvb_json_string(kvb_json_get(root, "s"), ""), "x\n\xC3\xA9\xF0\x9F\x98\x80/");
    assert_int_equal(kvb_json_count(kvb_json_get(root, "o")), 0);
    kvb_json_free(doc);
}

/* Missing things and wrong types give the default, never a crash. */
static void test_lookups_of_nothing(void **state)
{
    (void)state;
    kvb_json_doc *doc = parse("[1]");
    const kvb_json *root = kvb_json_root(doc);
    uint64_t n;
    assert_null(kvb_json_get(root, "a"));
    assert_null(kvb_json_get(NULL, "a"));
    assert_null(kvb_json_at(root, 1));
    assert_null(kvb_json_key_at(root, 0));
    assert_int_equal(kvb_json_count(NULL), 0);
    assert_string_equal(kvb_json_string(root, "none"), "none");
    assert_true(kvb_json_number(NULL, 7) == 7);
    assert_false(kvb_json_u64(root, &n));
    assert_false(kvb_json_u64(NULL, &n));
    kvb_json_free(doc);
    kvb_json_free(NULL);
}

static void test_whole_numbers(void **state)
{
    (void)state;
    kvb_json_doc *doc = parse("[0, 18446744073709551615, 18446744073709551616, -1, 1.5, 2.0, 1e3, 9007199254740993]");
    static const struct {
        bool is;
        uint64_t value;
    } expected[] = {{true, 0},  {true, UINT64_MAX}, {false, 0},   {false, 0},
                    {false, 0}, {true, 2},          {true, 1000}, {true, 9007199254740993u}};
    for (size_t i = 0; i < 8; i++) {
        uint64_t value = 0;
        assert_int_equal(kvb_json_u64(kvb_json_at(kvb_json_root(doc), i), &value), expected[i].is);
        assert_true(value == expected[i].value);
    }
    kvb_json_free(doc);
}

static void test_refusals(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"", "ends where a value"}, {"  ", "ends where a value"}, {"{", "key in double quotes"},
        {"[1", "expected ',' or ']'"}, {"[1,]", "expected a value"}, {"{\"a\":1,}", "key in double quotes"},
        {"{\"a\" 1}", "expected ':'"}, {"{\"a\":1 \"b\":2}", "expected ',' or '}'"}, {"{\"a\":}", "expected a value"},
        {"{\"a\":1,\"b\":2,\"a\":3}", "key twice"}, {"{\"a\":1,\"\\u0061\":3}", "key twice"}, {"{1:2}", "double quotes"},
        {"1 2", "something follows"}, {"{}x", "something follows"}, {"1e999", "too large"}, {"-1e999", "too large"},
        {"01", "leading zeros"}, {"-", "expected a value"}, {"1.", "after its point"}, {"1e", "exponent"},
        {"+1", "expected a value"}, {".5", "expected a value"}, {"NaN", "expected a value"}, {"tru", "expected a value"},
        {"\"abc", "no end"}, {"\"a\\\"", "no end"}, {"\"a\nb\"", "control character"}, {"\"\\x\"", "unknown escape"},
        {"\"\\u12\"", "four hexadecimal"}, {"\"\\u0000\"", "NUL"}, {"\"\\ud800\"", "surrogate"},
        {"\"\\udc00\"", "surrogate"}, {"\"\\ud800\\u0041\"", "surrogate"}, {"\"\xC0\xAF\"", "not UTF-8"},
        {"\"\xED\xA0\x80\"", "not UTF-8"}, {"\"\xF5\x80\x80\x80\"", "not UTF-8"}, {"\"\xE2\x82\"", "not UTF-8"},
        {"\xEF\xBB\xBF{}", "expected a value"}, {"[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]", "deeper than 16"},
        {"// no\n1", "expected a value"}, {"'a'", "expected a value"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect_refused(cases[i][0], strlen(cases[i][0]), cases[i][1]);
    expect_refused("{\"a\0\":1}", 8, "control character");
    expect_refused("1\0", 2, "something follows");
}

static void test_long_inputs(void **state)
{
    (void)state;
    enum { SIZE = 200000 };
    char *text = malloc(SIZE);
    assert_non_null(text);
    memset(text, '[', SIZE);
    expect_refused(text, SIZE, "deeper than 16");
    memset(text, '1', SIZE);
    expect_refused(text, SIZE, "512 characters");
    memset(text, '"', 1);
    expect_refused(text, SIZE, "no end");
    /* Many members: uniqueness must not be checked pair by pair. */
    size_t at = 1;
    text[0] = '{';
    for (unsigned i = 0; at + 20 < SIZE; i++)
        at += (size_t)snprintf(text + at, 20, "\"%x\":0,", i);
    text[at - 1] = '}';
    kvb_json_doc *doc;
    assert_int_equal(kvb_json_parse(text, at, "t", &doc, NULL), KVB_OK);
    assert_true(kvb_json_count(kvb_json_root(doc)) > 15000);
    kvb_json_free(doc);
    free(text);
}

static void test_error_place(void **state)
{
    (void)state;
    expect_refused("{\n  \"a\": 1,\n  \"b\": x\n}", 23, "line 3, column 8");
}

static const char *const pretty = "{\n"
                                  "  \"name\": \"a \\\"b\\\"\\u0001\",\n"
                                  "  \"empty\": [],\n"
                                  "  \"list\": [\n    1,\n    0.1,\n    -2500,\n    null,\n    true\n  ],\n"
                                  "  \"none\": {},\n"
                                  "  \"seed\": 18446744073709551615\n"
                                  "}";

static void write_sample(kvb_json_writer *w)
{
    kvb_json_begin_object(w, NULL);
    kvb_json_put_string(w, "name", "a \"b\"\x01");
    kvb_json_begin_array(w, "empty");
    kvb_json_end_array(w);
    kvb_json_begin_array(w, "list");
    kvb_json_put_number(w, NULL, 1);
    kvb_json_put_number(w, NULL, 0.1);
    kvb_json_put_number(w, NULL, -2500);
    kvb_json_put_number(w, NULL, (double)NAN);
    kvb_json_put_bool(w, NULL, true);
    kvb_json_end_array(w);
    kvb_json_begin_object(w, "none");
    kvb_json_end_object(w);
    kvb_json_put_u64(w, "seed", UINT64_MAX);
    kvb_json_end_object(w);
}

static void test_writer(void **state)
{
    (void)state;
    kvb_json_writer w = {0};
    write_sample(&w);
    assert_string_equal(kvb_json_writer_text(&w), pretty);
    kvb_json_writer_free(&w);
    w.compact = true;
    write_sample(&w);
    assert_string_equal(kvb_json_writer_text(&w), "{\"name\":\"a \\\"b\\\"\\u0001\",\"empty\":[],\"list\":[1,0.1,-2500,"
                                                  "null,true],\"none\":{},\"seed\":18446744073709551615}");
    kvb_json_writer_free(&w);
}

/* What is copied through a parsed value is the same text again. */
static void test_copy(void **state)
{
    (void)state;
    kvb_json_doc *doc = parse(pretty);
    kvb_json_writer w = {0};
    kvb_json_put_value(&w, NULL, kvb_json_root(doc));
    assert_string_equal(kvb_json_writer_text(&w), pretty);
    kvb_json_writer_free(&w);
    kvb_json_put_string(&w, NULL, "\xFF" "a\xC3\xA9");
    assert_string_equal(kvb_json_writer_text(&w), "\"\xEF\xBF\xBD" "a\xC3\xA9\"");
    kvb_json_writer_free(&w);
    kvb_json_free(doc);
}

/* Every double reads back as itself, whatever the locale's decimal point. */
static void check_round_trip(double value)
{
    kvb_json_writer w = {0};
    kvb_json_put_number(&w, NULL, value);
    kvb_json_doc *doc = parse(kvb_json_writer_text(&w));
    assert_true(kvb_json_number(kvb_json_root(doc), (double)NAN) == value);
    kvb_json_free(doc);
    kvb_json_writer_free(&w);
}

static void test_numbers_round_trip(void **state)
{
    (void)state;
    static const double values[] = {0.1, 1.0 / 3, 5e-324, 1.7976931348623157e308, -1e22, 123456789.125, 1e15, 2e-7};
    static const char *const locales[] = {"C", "de_DE.UTF-8", "fa_IR.UTF-8"};
    for (size_t l = 0; l < 3; l++) {
        if (setlocale(LC_NUMERIC, locales[l]) == NULL)
            continue;
        for (size_t i = 0; i < sizeof values / sizeof *values; i++)
            check_round_trip(values[i]);
    }
    setlocale(LC_NUMERIC, "C");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),        cmocka_unit_test(test_lookups_of_nothing),
        cmocka_unit_test(test_whole_numbers), cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_long_inputs),   cmocka_unit_test(test_error_place),
        cmocka_unit_test(test_writer),        cmocka_unit_test(test_copy),
        cmocka_unit_test(test_numbers_round_trip),
    };
    return cmocka_run_group_tests_name("json", tests, NULL, NULL);
}
