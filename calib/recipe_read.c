#include "calib/recipe_read.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "calib/suggest.h"
#include "format/base/fail.h"

kvb_status kvb_recipe_refuse(const recipe_reader *r, const char *place, const char *format, ...)
{
    char where[256], message[400];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    snprintf(where, sizeof where, "%s: %s", r->file, place);
    return kvb_fail(r->err, KVB_E_FORMAT, where, "%s", message);
}

const char *kvb_recipe_quoted(const char *word, char *text, size_t size)
{
    size_t n = 0;
    for (; word[n] != '\0' && n + 4 < size; n++)
        text[n] = (unsigned char)word[n] < 0x20 || word[n] == 0x7f ? '?' : word[n];
    memcpy(text + n, word[n] != '\0' ? "..." : "", word[n] != '\0' ? 4 : 1);
    return text;
}

kvb_status kvb_recipe_read_word(const recipe_reader *r, const char *place, const kvb_json *v, const char *const *known,
                            size_t count, uint32_t *index)
{
    char list[200], word[64];
    if (v == NULL)
        return KVB_OK;
    const char *text = kvb_json_string(v, NULL);
    if (text == NULL)
        return kvb_recipe_refuse(r, place, "expected a string, one of: %s", kvb_join_words(known, count, list, sizeof list));
    for (uint32_t i = 0; i < count; i++)
        if (strcmp(text, known[i]) == 0) {
            *index = i;
            return KVB_OK;
        }
    return kvb_recipe_refuse(r, place, "unknown value \"%s\"; did you mean \"%s\"? Known: %s", kvb_recipe_quoted(text, word, sizeof word),
                  kvb_suggest(text, known, count), kvb_join_words(known, count, list, sizeof list));
}

kvb_status kvb_recipe_read_bool(const recipe_reader *r, const char *place, const kvb_json *v, bool *value)
{
    if (v == NULL)
        return KVB_OK;
    if (kvb_json_type_of(v) != KVB_JSON_BOOL)
        return kvb_recipe_refuse(r, place, "expected true or false");
    *value = kvb_json_bool(v, false);
    return KVB_OK;
}

kvb_status kvb_recipe_read_u32(const recipe_reader *r, const char *place, const kvb_json *v, uint32_t least, uint32_t most,
                           uint32_t *value)
{
    uint64_t number;
    if (v == NULL)
        return KVB_OK;
    if (!kvb_json_u64(v, &number) || number < least || number > most)
        return kvb_recipe_refuse(r, place, "expected a whole number from %u to %u", least, most);
    *value = (uint32_t)number;
    return KVB_OK;
}

kvb_status kvb_recipe_read_number(const recipe_reader *r, const char *place, const kvb_json *v, double least, double most,
                              double *value)
{
    if (v == NULL)
        return KVB_OK;
    double number = kvb_json_number(v, NAN);
    if (!(number >= least && number <= most))
        return kvb_recipe_refuse(r, place, "expected a number from %g to %g", least, most);
    *value = number;
    return KVB_OK;
}

kvb_status kvb_recipe_check_members(const recipe_reader *r, const char *place, const kvb_json *object,
                                const char *const *known, size_t count)
{
    char list[200], word[64];
    if (object == NULL)
        return KVB_OK;
    if (kvb_json_type_of(object) != KVB_JSON_OBJECT)
        return kvb_recipe_refuse(r, place, "expected an object");
    for (size_t i = 0; i < kvb_json_count(object); i++) {
        const char *key = kvb_json_key_at(object, i);
        size_t k = 0;
        while (k < count && strcmp(key, known[k]) != 0)
            k++;
        if (k == count)
            return kvb_recipe_refuse(r, place, "unknown key \"%s\"; did you mean \"%s\"? Known: %s",
                          kvb_recipe_quoted(key, word, sizeof word), kvb_suggest(key, known, count),
                          kvb_join_words(known, count, list, sizeof list));
    }
    return KVB_OK;
}
