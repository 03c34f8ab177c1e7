#include "format/base/fail.h"

#include <stdarg.h>
#include <stdio.h>

const char *kvb_status_name(kvb_status status)
{
    switch (status) {
    case KVB_OK: return "KVB_OK";
    case KVB_E_CHECK: return "KVB_E_CHECK";
    case KVB_E_USAGE: return "KVB_E_USAGE";
    case KVB_E_FORMAT: return "KVB_E_FORMAT";
    case KVB_E_IO: return "KVB_E_IO";
    case KVB_E_MEMORY: return "KVB_E_MEMORY";
    case KVB_E_MISMATCH: return "KVB_E_MISMATCH";
    case KVB_E_DEVICE: return "KVB_E_DEVICE";
    case KVB_E_CANCELLED: return "KVB_E_CANCELLED";
    }
    return "KVB_E_UNKNOWN";
}

kvb_status kvb_fail(kvb_error *err, kvb_status status, const char *where, const char *format, ...)
{
    if (err == NULL)
        return status;
    err->code = status;
    snprintf(err->where, sizeof err->where, "%s", where ? where : "");
    va_list args;
    va_start(args, format);
    vsnprintf(err->message, sizeof err->message, format, args);
    va_end(args);
    return status;
}

kvb_status kvb_fail_memory(kvb_error *err, const char *what)
{
    return kvb_fail(err, KVB_E_MEMORY, what, "out of memory");
}
