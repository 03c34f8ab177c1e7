/* The captures of a command line as one. */
#ifndef KVB_TOOLS_CAPTURES_H
#define KVB_TOOLS_CAPTURES_H

#include "calib/capture.h"
#include "tools/args.h"

/* Begins as zeros. */
typedef struct kvb_opened_captures {
    kvb_capture_store **part; /* [parts] */
    const kvb_capture **view; /* [parts] */
    size_t parts;
    kvb_capture_store *joined; /* of several */
} kvb_opened_captures;

/* One or more. What is open after a failure, the caller closes. KVB_E_MISMATCH where they are not parts of one text. */
kvb_status kvb_captures_open(const kvb_strings *names, kvb_opened_captures *o, kvb_error *err);
const kvb_capture *kvb_captures_view(const kvb_opened_captures *o);
void kvb_captures_close(kvb_opened_captures *o);

#endif
