#include <errno.h>
#include <locale.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/json_value.h"
#include "format/base/utf8.h"

enum { MAX_DEPTH = 16, MAX_NUMBER = 512, BLOCK_SIZE = 8192 };

struct kvb_json_block {
    kvb_json_block *next;
    size_t used;
    max_align_t bytes[];
};

typedef struct parser {
    const char *text;
    size_t size, at;
    unsigned depth;
    const char *name;
    kvb_json_doc *doc;
    kvb_json *stack; /* finished values whose container is still open */
    size_t stack_count, stack_capacity;
    locale_t plain; /* numbers have a point whatever the user's locale says */
    kvb_error *err;
    kvb_status status;
} parser;

static bool parse_value(parser *p, kvb_json *v);

static bool refuse(parser *p, const char *message)
{
    size_t line = 1, column = 1;
    for (size_t i = 0; i < p->at && i < p->size; i++) {
        column++;
        if (p->text[i] == '\n')
            line++, column = 1;
    }
    p->status = kvb_fail(p->err, KVB_E_FORMAT, p->name, "JSON, line %zu, column %zu: %s", line, column, message);
    return false;
}

static bool out_of_memory(parser *p)
{
    p->status = kvb_fail_memory(p->err, p->name);
    return false;
}

/* Memory that lives as long as the document; NULL (and the failure recorded) if there is none. */
static void *doc_alloc(parser *p, size_t size)
{
    const size_t unit = sizeof(max_align_t);
    size = (size + unit - 1) / unit * unit;
    kvb_json_doc *doc = p->doc;
    if (doc->blocks == NULL || doc->room < size) {
        size_t capacity = size > BLOCK_SIZE ? size : BLOCK_SIZE;
        kvb_json_block *block = malloc(sizeof *block + capacity);
        if (block == NULL) {
            out_of_memory(p);
            return NULL;
        }
        block->next = doc->blocks;
        block->used = 0;
        doc->blocks = block;
        doc->room = capacity;
    }
    void *memory = doc->blocks->bytes + doc->blocks->used;
    doc->blocks->used += size / unit;
    doc->room -= size;
    return memory;
}

static void skip_space(parser *p)
{
    while (p->at < p->size && strchr(" \t\r\n", p->text[p->at]) != NULL && p->text[p->at] != '\0')
        p->at++;
}

static int peek(const parser *p)
{
    return p->at < p->size ? (unsigned char)p->text[p->at] : -1;
}

static bool take(parser *p, char c)
{
    if (peek(p) != c)
        return false;
    p->at++;
    return true;
}

/* Four hexadecimal digits at `at`, or -1. */
static int32_t hex4(const parser *p, size_t at)
{
    if (at > p->size || p->size - at < 4)
        return -1;
    int32_t value = 0;
    for (size_t i = at; i < at + 4; i++) {
        char c = p->text[i];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0)
            return -1;
        value = value * 16 + digit;
    }
    return value;
}

/* After "\u": one code point, which takes two escapes above U+FFFF. */
static bool parse_unicode(parser *p, uint32_t *code)
{
    int32_t high = hex4(p, p->at);
    if (high < 0)
        return refuse(p, "\\u needs four hexadecimal digits");
    if (high == 0)
        return refuse(p, "NUL (\\u0000) is not accepted in a string");
    p->at += 4;
    *code = (uint32_t)high;
    if (high < 0xD800 || high > 0xDFFF)
        return true;
    int32_t low = -1;
    if (high < 0xDC00 && p->size - p->at >= 6 && p->text[p->at] == '\\' && p->text[p->at + 1] == 'u')
        low = hex4(p, p->at + 2);
    if (low < 0xDC00 || low > 0xDFFF)
        return refuse(p, "half of a surrogate pair");
    p->at += 6;
    *code = 0x10000 + (((uint32_t)high - 0xD800) << 10) + ((uint32_t)low - 0xDC00);
    return true;
}

static bool parse_escape(parser *p, char **to)
{
    static const char from[] = "\"\\/bfnrt", becomes[] = "\"\\/\b\f\n\r\t";
    int c = peek(p);
    const char *place = c > 0 ? strchr(from, c) : NULL;
    if (place != NULL) {
        p->at++;
        *(*to)++ = becomes[place - from];
        return true;
    }
    if (!take(p, 'u'))
        return refuse(p, "unknown escape in a string");
    uint32_t code = 0;
    if (!parse_unicode(p, &code))
        return false;
    uint8_t bytes[4];
    size_t length = kvb_utf8_put(bytes, code);
    memcpy(*to, bytes, length);
    *to += length;
    return true;
}

/* Bytes up to the closing quote: no string is longer once its escapes are resolved. */
static bool raw_length(parser *p, size_t *length)
{
    size_t i = p->at;
    while (i < p->size && p->text[i] != '"')
        i += p->text[i] == '\\' ? 2 : 1;
    if (i >= p->size)
        return refuse(p, "the string has no end");
    *length = i - p->at;
    return true;
}

/* After the opening quote. */
static bool parse_string(parser *p, const char **string)
{
    size_t length = 0;
    if (!raw_length(p, &length))
        return false;
    char *start = doc_alloc(p, length + 1);
    if (start == NULL)
        return false;
    char *to = start;
    while (!take(p, '"')) {
        if (take(p, '\\')) {
            if (!parse_escape(p, &to))
                return false;
            continue;
        }
        if (peek(p) < 0x20)
            return refuse(p, "a control character must be escaped in a string");
        size_t n = kvb_utf8_length((const uint8_t *)p->text + p->at, p->size - p->at);
        if (n == 0)
            return refuse(p, "not UTF-8");
        memcpy(to, p->text + p->at, n);
        to += n;
        p->at += n;
    }
    *to = '\0';
    *string = start;
    return true;
}

static size_t digits(parser *p)
{
    size_t from = p->at;
    while (peek(p) >= '0' && peek(p) <= '9')
        p->at++;
    return p->at - from;
}

/* number = [-] int [. digits] [e [+-] digits], where int has no leading zeros */
static bool scan_number(parser *p, bool *plain)
{
    *plain = !take(p, '-');
    if (take(p, '0')) {
        if (peek(p) >= '0' && peek(p) <= '9')
            return refuse(p, "a number must not have leading zeros");
    } else if (digits(p) == 0) {
        return refuse(p, "expected a value");
    }
    if (take(p, '.')) {
        *plain = false;
        if (digits(p) == 0)
            return refuse(p, "a number needs digits after its point");
    }
    if (take(p, 'e') || take(p, 'E')) {
        *plain = false;
        if (!take(p, '+'))
            take(p, '-');
        if (digits(p) == 0)
            return refuse(p, "a number needs digits in its exponent");
    }
    return true;
}

static bool parse_number(parser *p, kvb_json *v)
{
    size_t from = p->at;
    bool plain;
    if (!scan_number(p, &plain))
        return false;
    char copy[MAX_NUMBER + 1];
    size_t length = p->at - from;
    if (length > MAX_NUMBER)
        return refuse(p, "a number has over 512 characters");
    memcpy(copy, p->text + from, length);
    copy[length] = '\0';
    v->type = KVB_JSON_NUMBER;
    v->as.number = strtod_l(copy, NULL, p->plain);
    if (!isfinite(v->as.number))
        return refuse(p, "a number is too large for a double");
    if (plain) {
        errno = 0;
        unsigned long long integer = strtoull(copy, NULL, 10);
        v->whole = errno == 0;
        v->more.integer = integer;
    }
    return true;
}

static bool parse_word(parser *p, kvb_json *v)
{
    static const struct {
        const char *word;
        kvb_json_type type;
        bool truth;
    } words[] = {{"true", KVB_JSON_BOOL, true}, {"false", KVB_JSON_BOOL, false}, {"null", KVB_JSON_NULL, false}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        size_t length = strlen(words[i].word);
        if (p->size - p->at < length || memcmp(p->text + p->at, words[i].word, length) != 0)
            continue;
        p->at += length;
        v->type = words[i].type;
        v->truth = words[i].truth;
        return true;
    }
    return refuse(p, p->at < p->size ? "expected a value" : "the text ends where a value is expected");
}

static bool push(parser *p, const kvb_json *v)
{
    if (p->stack_count == p->stack_capacity) {
        size_t capacity = p->stack_capacity ? p->stack_capacity * 2 : 64;
        kvb_json *grown = capacity > SIZE_MAX / sizeof *grown ? NULL : realloc(p->stack, capacity * sizeof *grown);
        if (grown == NULL)
            return out_of_memory(p);
        p->stack = grown;
        p->stack_capacity = capacity;
    }
    p->stack[p->stack_count++] = *v;
    return true;
}

static int compare_keys(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* By sorting: comparing all pairs of a hostile object would take hours. */
static bool check_unique(parser *p, const kvb_json *members, size_t count)
{
    if (count < 2)
        return true;
    const char **keys = kvb_alloc_array(count, sizeof *keys);
    if (keys == NULL)
        return out_of_memory(p);
    for (size_t i = 0; i < count; i++)
        keys[i] = members[i].key;
    qsort(keys, count, sizeof *keys, compare_keys);
    bool unique = true;
    for (size_t i = 1; unique && i < count; i++)
        unique = strcmp(keys[i - 1], keys[i]) != 0;
    free(keys);
    return unique || refuse(p, "the object before this place has a key twice");
}

static bool parse_member(parser *p, kvb_json *v)
{
    const char *key;
    skip_space(p);
    if (!take(p, '"'))
        return refuse(p, "expected a key in double quotes");
    if (!parse_string(p, &key))
        return false;
    skip_space(p);
    if (!take(p, ':'))
        return refuse(p, "expected ':' after a key");
    if (!parse_value(p, v))
        return false;
    v->key = key;
    return true;
}

/* Moves the values above `base` from the stack into the container. */
static bool close_container(parser *p, kvb_json *v, size_t base)
{
    size_t count = p->stack_count - base;
    p->stack_count = base;
    v->more.count = count;
    if (count == 0)
        return true;
    kvb_json *children = doc_alloc(p, count * sizeof *children);
    if (children == NULL)
        return false;
    memcpy(children, p->stack + base, count * sizeof *children);
    v->as.child = children;
    return v->type == KVB_JSON_ARRAY || check_unique(p, children, count);
}

/* After the opening bracket. */
static bool parse_container(parser *p, kvb_json *v)
{
    if (++p->depth > MAX_DEPTH)
        return refuse(p, "nested deeper than 16");
    bool object = v->type == KVB_JSON_OBJECT;
    char end = object ? '}' : ']';
    size_t base = p->stack_count;
    skip_space(p);
    if (!take(p, end)) {
        do {
            kvb_json child;
            if (!(object ? parse_member(p, &child) : parse_value(p, &child)) || !push(p, &child))
                return false;
            skip_space(p);
        } while (take(p, ','));
        if (!take(p, end))
            return refuse(p, object ? "expected ',' or '}'" : "expected ',' or ']'");
    }
    p->depth--;
    return close_container(p, v, base);
}

static bool parse_value(parser *p, kvb_json *v)
{
    memset(v, 0, sizeof *v);
    skip_space(p);
    int c = peek(p);
    if (c == '{' || c == '[') {
        p->at++;
        v->type = c == '{' ? KVB_JSON_OBJECT : KVB_JSON_ARRAY;
        return parse_container(p, v);
    }
    if (c == '"') {
        p->at++;
        v->type = KVB_JSON_STRING;
        return parse_string(p, &v->as.string);
    }
    return c == '-' || (c >= '0' && c <= '9') ? parse_number(p, v) : parse_word(p, v);
}

kvb_status kvb_json_parse(const char *text, size_t size, const char *name, kvb_json_doc **doc, kvb_error *err)
{
    *doc = NULL;
    parser p = {.text = text, .size = size, .name = name, .err = err};
    p.doc = calloc(1, sizeof *p.doc);
    p.plain = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    if (p.doc == NULL || p.plain == (locale_t)0) {
        out_of_memory(&p);
        goto out;
    }
    if (!parse_value(&p, &p.doc->root))
        goto out;
    skip_space(&p);
    if (p.at < size) {
        refuse(&p, "something follows the value");
        goto out;
    }
    *doc = p.doc;
    p.doc = NULL;
out:
    kvb_json_free(p.doc);
    free(p.stack);
    if (p.plain != (locale_t)0)
        freelocale(p.plain);
    return p.status;
}

void kvb_json_free(kvb_json_doc *doc)
{
    if (doc == NULL)
        return;
    for (kvb_json_block *block = doc->blocks, *next; block != NULL; block = next) {
        next = block->next;
        free(block);
    }
    free(doc);
}
