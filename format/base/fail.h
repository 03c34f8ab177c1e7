/* Filling a kvb_error in one line: `return kvb_fail(err, KVB_E_FORMAT, path, "found %u", n);` */
#ifndef KVB_BASE_FAIL_H
#define KVB_BASE_FAIL_H

#include "kvbook/status.h"

/* Records a failure in `err` (which may be NULL) and returns `status`. `where` may be NULL. */
kvb_status kvb_fail(kvb_error *err, kvb_status status, const char *where, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* Out of memory while doing `what`. */
kvb_status kvb_fail_memory(kvb_error *err, const char *what);

#endif
