/* What json_read.c builds and json_value.c looks up. Private to the two. */
#ifndef KVB_BASE_JSON_VALUE_H
#define KVB_BASE_JSON_VALUE_H

#include "format/base/json.h"

struct kvb_json {
    kvb_json_type type;
    bool whole;      /* a number written as plain digits that fit `integer` */
    bool truth;
    const char *key; /* of a member of an object, else NULL */
    union {
        double number;
        const char *string;
        const kvb_json *child; /* [count], contiguous */
    } as;
    union {
        uint64_t integer;
        size_t count;
    } more;
};

typedef struct kvb_json_block kvb_json_block;

struct kvb_json_doc {
    kvb_json root;
    kvb_json_block *blocks; /* memory of all strings and child arrays */
    size_t room;            /* left in the first block */
};

#endif
