/* Strict JSON (RFC 8259) for metadata, recipes and --json output.
 *
 * The reader takes UTF-8 only and refuses NUL bytes and \u0000, duplicate keys, depth over 16, numbers that are not
 * finite or have over 512 digits, and anything after the value. The locale does not matter. Values live in one document freed as a whole; lookups never fail hard: a missing
 * member is NULL, and every accessor takes NULL. */
#ifndef KVB_BASE_JSON_H
#define KVB_BASE_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kvbook/status.h"

typedef enum kvb_json_type { KVB_JSON_NULL, KVB_JSON_BOOL, KVB_JSON_NUMBER, KVB_JSON_STRING, KVB_JSON_ARRAY,
                             KVB_JSON_OBJECT } kvb_json_type;

typedef struct kvb_json kvb_json;         /* one value */
typedef struct kvb_json_doc kvb_json_doc; /* owns all values of a text */

/* `name` stands for the file in errors, which give line and column. KVB_E_FORMAT on anything refused. */
kvb_status kvb_json_parse(const char *text, size_t size, const char *name, kvb_json_doc **doc, kvb_error *err);
void kvb_json_free(kvb_json_doc *doc);
const kvb_json *kvb_json_root(const kvb_json_doc *doc);

kvb_json_type kvb_json_type_of(const kvb_json *v); /* KVB_JSON_NULL for NULL */
const kvb_json *kvb_json_get(const kvb_json *object, const char *key);
size_t kvb_json_count(const kvb_json *array_or_object);
const kvb_json *kvb_json_at(const kvb_json *array_or_object, size_t i); /* the i-th value */
const char *kvb_json_key_at(const kvb_json *object, size_t i);
const char *kvb_json_string(const kvb_json *v, const char *otherwise);
double kvb_json_number(const kvb_json *v, double otherwise);
bool kvb_json_bool(const kvb_json *v, bool otherwise);
/* True where v is exactly a non-negative integer: plain digits up to 2^64 - 1, any other spelling (1e3, 2.0) up to 2^53. */
bool kvb_json_u64(const kvb_json *v, uint64_t *value);

/* Writer: a growing NUL-terminated text. Commas and indentation are its business. After an allocation failure every
 * call does nothing and kvb_json_writer_text() gives NULL. Key is NULL inside arrays and for the root. */
typedef struct kvb_json_writer {
    char *text;
    size_t size, capacity;
    unsigned depth;
    bool first, failed;
    bool compact; /* set before the first call: no white space */
} kvb_json_writer;

void kvb_json_begin_object(kvb_json_writer *w, const char *key);
void kvb_json_end_object(kvb_json_writer *w);
void kvb_json_begin_array(kvb_json_writer *w, const char *key);
void kvb_json_end_array(kvb_json_writer *w);
/* NULL is written as null; bytes that are not UTF-8 as U+FFFD. */
void kvb_json_put_string(kvb_json_writer *w, const char *key, const char *value);
/* The shortest form that reads back equal; null where the value is not finite. */
void kvb_json_put_number(kvb_json_writer *w, const char *key, double value);
void kvb_json_put_u64(kvb_json_writer *w, const char *key, uint64_t value);
void kvb_json_put_bool(kvb_json_writer *w, const char *key, bool value);
void kvb_json_put_null(kvb_json_writer *w, const char *key);
/* A SHA-256 as hexadecimal, or null. */
void kvb_json_put_sha256(kvb_json_writer *w, const char *key, const uint8_t *digest);
/* Copies a parsed value, such as a recipe into META. */
void kvb_json_put_value(kvb_json_writer *w, const char *key, const kvb_json *value);
/* Whether both are NULL, or would be written alike. */
kvb_status kvb_json_same(const kvb_json *a, const kvb_json *b, bool *same, kvb_error *err);
/* The text, owned by the writer; free with kvb_json_writer_free(). NULL after a failure. */
const char *kvb_json_writer_text(const kvb_json_writer *w);
void kvb_json_writer_free(kvb_json_writer *w);

#endif
