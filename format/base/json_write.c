#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/fail.h"
#include "format/base/json_value.h"
#include "format/base/sha256.h"
#include "format/base/utf8.h"

static void append(kvb_json_writer *w, const char *bytes, size_t size)
{
    if (w->failed)
        return;
    if (size >= w->capacity - w->size) {
        size_t capacity = (w->capacity + size + 64) * 2;
        char *grown = capacity > w->capacity ? realloc(w->text, capacity) : NULL;
        if (grown == NULL) {
            w->failed = true;
            return;
        }
        w->text = grown;
        w->capacity = capacity;
    }
    memcpy(w->text + w->size, bytes, size);
    w->size += size;
    w->text[w->size] = '\0';
}

static void append_text(kvb_json_writer *w, const char *text)
{
    append(w, text, strlen(text));
}

static void new_line(kvb_json_writer *w)
{
    if (w->compact)
        return;
    append_text(w, "\n");
    for (unsigned i = 0; i < w->depth; i++)
        append_text(w, "  ");
}

/* One character of a string at `at`; returns how many bytes it took. */
static size_t append_character(kvb_json_writer *w, const char *at, size_t left)
{
    static const char special[] = "\"\\\b\f\n\r\t", letter[] = "\"\\bfnrt";
    unsigned char c = (unsigned char)*at;
    const char *place = strchr(special, c);
    char escape[8];
    if (place != NULL) {
        escape[0] = '\\';
        escape[1] = letter[place - special];
        append(w, escape, 2);
        return 1;
    }
    if (c < 0x20) {
        snprintf(escape, sizeof escape, "\\u%04x", c);
        append(w, escape, 6);
        return 1;
    }
    size_t length = kvb_utf8_length((const uint8_t *)at, left);
    if (length == 0)
        append_text(w, "\xEF\xBF\xBD");
    else
        append(w, at, length);
    return length > 0 ? length : 1;
}

static void append_quoted(kvb_json_writer *w, const char *string)
{
    append_text(w, "\"");
    for (size_t left = strlen(string), n; left > 0; left -= n, string += n)
        n = append_character(w, string, left);
    append_text(w, "\"");
}

/* What stands between the value before and this one. */
static void begin_value(kvb_json_writer *w, const char *key)
{
    if (w->depth > 0) {
        if (!w->first)
            append_text(w, ",");
        new_line(w);
    }
    w->first = false;
    if (key == NULL)
        return;
    append_quoted(w, key);
    append_text(w, w->compact ? ":" : ": ");
}

static void open_container(kvb_json_writer *w, const char *key, const char *bracket)
{
    begin_value(w, key);
    append_text(w, bracket);
    w->depth++;
    w->first = true;
}

static void close_container(kvb_json_writer *w, const char *bracket)
{
    w->depth--;
    if (!w->first)
        new_line(w);
    append_text(w, bracket);
    w->first = false;
}

void kvb_json_begin_object(kvb_json_writer *w, const char *key)
{
    open_container(w, key, "{");
}

void kvb_json_end_object(kvb_json_writer *w)
{
    close_container(w, "}");
}

void kvb_json_begin_array(kvb_json_writer *w, const char *key)
{
    open_container(w, key, "[");
}

void kvb_json_end_array(kvb_json_writer *w)
{
    close_container(w, "]");
}

void kvb_json_put_string(kvb_json_writer *w, const char *key, const char *value)
{
    begin_value(w, key);
    if (value == NULL)
        append_text(w, "null");
    else
        append_quoted(w, value);
}

/* A locale may write the point as another character, even one of several bytes. */
static void restore_point(char *text)
{
    char *to = text;
    for (const char *from = text; *from != '\0'; from++) {
        if (strchr("0123456789+-e", *from) != NULL)
            *to++ = *from;
        else if (to == text || to[-1] != '.')
            *to++ = '.';
    }
    *to = '\0';
}

void kvb_json_put_number(kvb_json_writer *w, const char *key, double value)
{
    char text[64];
    if (!isfinite(value)) {
        kvb_json_put_null(w, key);
        return;
    }
    begin_value(w, key);
    if (fabs(value) < 1e15 && rint(value) == value) {
        snprintf(text, sizeof text, "%.0f", value);
    } else {
        for (int precision = 1; precision <= 17; precision++) {
            snprintf(text, sizeof text, "%.*g", precision, value);
            if (strtod(text, NULL) == value)
                break;
        }
        restore_point(text);
    }
    append_text(w, text);
}

void kvb_json_put_u64(kvb_json_writer *w, const char *key, uint64_t value)
{
    char text[24];
    snprintf(text, sizeof text, "%" PRIu64, value);
    begin_value(w, key);
    append_text(w, text);
}

void kvb_json_put_bool(kvb_json_writer *w, const char *key, bool value)
{
    begin_value(w, key);
    append_text(w, value ? "true" : "false");
}

void kvb_json_put_null(kvb_json_writer *w, const char *key)
{
    begin_value(w, key);
    append_text(w, "null");
}

void kvb_json_put_sha256(kvb_json_writer *w, const char *key, const uint8_t *digest)
{
    char hex[65];
    if (digest != NULL)
        kvb_sha256_hex(digest, hex);
    kvb_json_put_string(w, key, digest != NULL ? hex : NULL);
}

static void put_container(kvb_json_writer *w, const char *key, const kvb_json *value)
{
    bool object = value->type == KVB_JSON_OBJECT;
    open_container(w, key, object ? "{" : "[");
    for (size_t i = 0; i < value->more.count; i++)
        kvb_json_put_value(w, value->as.child[i].key, &value->as.child[i]);
    close_container(w, object ? "}" : "]");
}

void kvb_json_put_value(kvb_json_writer *w, const char *key, const kvb_json *value)
{
    switch (kvb_json_type_of(value)) {
    case KVB_JSON_NULL: kvb_json_put_null(w, key); break;
    case KVB_JSON_BOOL: kvb_json_put_bool(w, key, value->truth); break;
    case KVB_JSON_STRING: kvb_json_put_string(w, key, value->as.string); break;
    case KVB_JSON_ARRAY:
    case KVB_JSON_OBJECT: put_container(w, key, value); break;
    case KVB_JSON_NUMBER:
        if (value->whole)
            kvb_json_put_u64(w, key, value->more.integer);
        else
            kvb_json_put_number(w, key, value->as.number);
    }
}

const char *kvb_json_writer_text(const kvb_json_writer *w)
{
    return w->failed ? NULL : w->text;
}

void kvb_json_writer_free(kvb_json_writer *w)
{
    free(w->text);
    *w = (kvb_json_writer){0};
}

kvb_status kvb_json_same(const kvb_json *a, const kvb_json *b, bool *same, kvb_error *err)
{
    *same = a == b;
    if (a == NULL || b == NULL)
        return KVB_OK;
    kvb_json_writer x = {.compact = true}, y = {.compact = true};
    kvb_json_put_value(&x, NULL, a);
    kvb_json_put_value(&y, NULL, b);
    const char *one = kvb_json_writer_text(&x), *other = kvb_json_writer_text(&y);
    *same = one != NULL && other != NULL && strcmp(one, other) == 0;
    kvb_status status = one != NULL && other != NULL ? KVB_OK : kvb_fail_memory(err, "comparing JSON");
    kvb_json_writer_free(&x);
    kvb_json_writer_free(&y);
    return status;
}
