#include "model/jsonl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/fail.h"
#include "format/base/json.h"

typedef struct joined {
    char *text;
    size_t size, room;
    size_t documents;
} joined;

static kvb_status append(joined *j, const char *text, kvb_error *err)
{
    size_t size = strlen(text), gap = j->documents > 0 ? 2 : 0, need = j->size + gap + size + 1;
    if (need > j->room) {
        size_t room = need > 2 * j->room ? need : 2 * j->room;
        char *grown = realloc(j->text, room);
        if (grown == NULL)
            return kvb_fail_memory(err, "text of JSON lines");
        j->text = grown;
        j->room = room;
    }
    memcpy(j->text + j->size, "\n\n", gap);
    memcpy(j->text + j->size + gap, text, size + 1);
    j->size += gap + size;
    j->documents++;
    return KVB_OK;
}

static kvb_status append_line(joined *j, const char *line, size_t size, const char *where, kvb_error *err)
{
    kvb_json_doc *doc = NULL;
    kvb_status status = kvb_json_parse(line, size, where, &doc, err);
    if (status != KVB_OK)
        return status;
    const char *text = kvb_json_string(kvb_json_get(kvb_json_root(doc), "text"), NULL);
    status = text != NULL ? append(j, text, err)
                          : kvb_fail(err, KVB_E_FORMAT, where, "no string \"text\": expected a JSON object with one");
    kvb_json_free(doc);
    return status;
}

static size_t trimmed(const char *line, size_t size)
{
    while (size > 0 && (line[size - 1] == '\r' || line[size - 1] == ' ' || line[size - 1] == '\t'))
        size--;
    return size;
}

kvb_status kvb_jsonl_texts(const char *bytes, size_t size, const char *path, char **text, size_t *text_size,
                           kvb_error *err)
{
    joined j = {0};
    kvb_status status = KVB_OK;
    unsigned long long number = 1;
    for (size_t at = 0; status == KVB_OK && at < size; number++) {
        const char *line = bytes + at, *end = memchr(line, '\n', size - at);
        size_t length = end != NULL ? (size_t)(end - line) : size - at;
        at += length + 1;
        length = trimmed(line, length);
        char where[300];
        snprintf(where, sizeof where, "%.200s, line %llu of the file", path, number);
        if (length > 0)
            status = append_line(&j, line, length, where, err);
    }
    if (status == KVB_OK && j.documents == 0)
        status = kvb_fail(err, KVB_E_FORMAT, path, "has no line of JSON");
    if (status != KVB_OK) {
        free(j.text);
        j.text = NULL;
    }
    *text = j.text;
    *text_size = j.size;
    return status;
}
