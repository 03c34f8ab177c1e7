#include "tools/captures.h"

#include <stdlib.h>

#include "format/base/checked.h"
#include "format/base/fail.h"

kvb_status kvb_captures_open(const kvb_strings *names, kvb_opened_captures *o, kvb_error *err)
{
    o->part = kvb_alloc_zeroed(names->count, sizeof *o->part);
    o->view = kvb_alloc_zeroed(names->count, sizeof *o->view);
    if (o->part == NULL || o->view == NULL)
        return kvb_fail_memory(err, "captures");
    for (; o->parts < names->count; o->parts++) {
        kvb_status status = kvb_capture_open(names->items[o->parts], &o->part[o->parts], err);
        if (status != KVB_OK)
            return status;
        o->view[o->parts] = kvb_capture_view(o->part[o->parts]);
    }
    return names->count > 1 ? kvb_capture_join(o->view, names->items, o->parts, &o->joined, err) : KVB_OK;
}

const kvb_capture *kvb_captures_view(const kvb_opened_captures *o)
{
    return o->joined != NULL ? kvb_capture_view(o->joined) : o->view[0];
}

void kvb_captures_close(kvb_opened_captures *o)
{
    kvb_capture_close(o->joined);
    for (size_t i = 0; i < o->parts; i++)
        kvb_capture_close(o->part[i]);
    free(o->part);
    free(o->view);
}
