#include "format/base/json_value.h"

#include <string.h>

const kvb_json *kvb_json_root(const kvb_json_doc *doc)
{
    return doc != NULL ? &doc->root : NULL;
}

kvb_json_type kvb_json_type_of(const kvb_json *v)
{
    return v != NULL ? v->type : KVB_JSON_NULL;
}

static bool is_container(const kvb_json *v)
{
    return v != NULL && (v->type == KVB_JSON_ARRAY || v->type == KVB_JSON_OBJECT);
}

const kvb_json *kvb_json_get(const kvb_json *object, const char *key)
{
    if (kvb_json_type_of(object) != KVB_JSON_OBJECT || key == NULL)
        return NULL;
    for (size_t i = 0; i < object->more.count; i++)
        if (strcmp(object->as.child[i].key, key) == 0)
            return &object->as.child[i];
    return NULL;
}

size_t kvb_json_count(const kvb_json *array_or_object)
{
    return is_container(array_or_object) ? array_or_object->more.count : 0;
}

const kvb_json *kvb_json_at(const kvb_json *array_or_object, size_t i)
{
    return i < kvb_json_count(array_or_object) ? &array_or_object->as.child[i] : NULL;
}

const char *kvb_json_key_at(const kvb_json *object, size_t i)
{
    const kvb_json *v = kvb_json_at(object, i);
    return v != NULL ? v->key : NULL;
}

const char *kvb_json_string(const kvb_json *v, const char *otherwise)
{
    return kvb_json_type_of(v) == KVB_JSON_STRING ? v->as.string : otherwise;
}

double kvb_json_number(const kvb_json *v, double otherwise)
{
    return kvb_json_type_of(v) == KVB_JSON_NUMBER ? v->as.number : otherwise;
}

bool kvb_json_bool(const kvb_json *v, bool otherwise)
{
    return kvb_json_type_of(v) == KVB_JSON_BOOL ? v->truth : otherwise;
}

bool kvb_json_u64(const kvb_json *v, uint64_t *value)
{
    if (kvb_json_type_of(v) != KVB_JSON_NUMBER)
        return false;
    if (v->whole) {
        *value = v->more.integer;
        return true;
    }
    double number = v->as.number;
    if (!(number >= 0 && number <= 0x1p53) || (double)(uint64_t)number != number)
        return false;
    *value = (uint64_t)number;
    return true;
}
