/* The NPZ reader: whatever is accepted lies inside the file, is found by its name, and all of it is no larger than the file. */
#include <stdlib.h>
#include <string.h>

#include "model/npz.h"
#include "tests/fuzz/fuzz.h"

static unsigned touched;

static void read_arrays(const uint8_t *data, size_t size)
{
    static const char *const names[] = {"__metadata__", "book.rest", "a"};
    kvb_npz *npz;
    uint64_t sum = 0;
    if (kvb_npz_open_memory(data, size, "fuzz", &npz, NULL) != KVB_OK)
        return;
    for (size_t n = 0; n < sizeof names / sizeof *names; n++) {
        const kvb_npz_array *a = kvb_npz_find(npz, names[n]);
        if (a != NULL && (strcmp(a->name, names[n]) != 0 || a->bytes < data || a->size > size || (size_t)(a->bytes - data) > size - a->size))
            abort();
        for (uint64_t i = 0; a != NULL && i < a->size; i++)
            touched += a->bytes[i];
        sum += a != NULL ? a->size : 0;
    }
    if (sum >= size)
        abort();
    kvb_npz_close(npz);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size != 0 ? size : 1); /* of exactly this size */
    if (copy == NULL)
        return 0;
    if (size != 0)
        memcpy(copy, data, size);
    read_arrays(copy, size);
    free(copy);
    return 0;
}
