/* Text out of lines of JSON. */
#ifndef KVB_MODEL_JSONL_H
#define KVB_MODEL_JSONL_H

#include <stddef.h>

#include "kvbook/status.h"

/* The field "text" of every line, joined by two newlines; blank lines are passed over. Free *text with free().
 * KVB_E_FORMAT with the line's number where a line is no JSON object with that field as a string. */
kvb_status kvb_jsonl_texts(const char *bytes, size_t size, const char *path, char **text, size_t *text_size,
                           kvb_error *err);

#endif
