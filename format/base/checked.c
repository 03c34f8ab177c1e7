#include "format/base/checked.h"

#include <string.h>

void *kvb_alloc_zeroed(size_t count, size_t item)
{
    void *memory = kvb_alloc_array(count, item);
    if (memory != NULL)
        memset(memory, 0, count * item);
    return memory;
}
