/* What info and verify say of packed caches (.kvp). */
#ifndef KVB_TOOLS_PACKED_H
#define KVB_TOOLS_PACKED_H

#include <stdbool.h>

#include "tools/progress.h"

kvb_status kvb_info_packed(const char *path, bool json, kvb_error *err);

/* Checks every byte; with `model` that it was packed for that model, and with `book` that a cache coded by that book takes
 * each prompt. Each may be NULL. */
kvb_status kvb_verify_packed(const char *path, const char *model, const char *tokenizer, const char *book, bool json,
                             kvb_progress *p, kvb_error *err);

#endif
