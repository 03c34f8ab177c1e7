/* What verify says of captures (.kvc). */
#ifndef KVB_TOOLS_VERIFY_CAPTURE_H
#define KVB_TOOLS_VERIFY_CAPTURE_H

#include <stdbool.h>

#include "kvbook/status.h"

/* A safetensors file, by its first bytes: no book and no packed caches. */
bool kvb_is_capture_file(const char *path);
/* Checks every number that training would read. KVB_E_CHECK where one is bad: each array with one is printed. */
kvb_status kvb_verify_capture(const char *path, bool json, kvb_error *err);

#endif
