/* The NPZ reader: whatever is accepted lies inside the file, is found by its name, and all of it is no larger than the file.
 * Each input is read as it is, and then with the checksums of its members made right, to get behind them. */
#include <stdlib.h>
#include <string.h>

#include "format/base/crc.h"
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

static uint32_t get(const uint8_t *at, int bytes)
{
    uint32_t value = 0;
    for (int i = 0; i < bytes; i++)
        value |= (uint32_t)at[i] << (8 * i);
    return value;
}

/* Of every record of a directory, wherever it is, whose member lies inside the file. */
static void seal(uint8_t *data, size_t size)
{
    for (size_t i = 0; i + 46 <= size; i++) {
        if (memcmp(data + i, "PK\1\2", 4) != 0)
            continue;
        const uint64_t length = get(data + i + 20, 4), local = get(data + i + 42, 4);
        if (local + 30 > size)
            continue;
        const uint64_t begin = local + 30 + get(data + local + 26, 2) + get(data + local + 28, 2);
        if (begin + length > size)
            continue;
        const uint32_t crc = kvb_crc_of(data + begin, (size_t)length);
        for (int b = 0; b < 4; b++)
            data[i + 16 + (size_t)b] = (uint8_t)(crc >> (8 * b));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *copy = calloc(size != 0 ? size : 1, 1); /* of exactly this size */
    if (copy == NULL)
        return 0;
    if (size != 0)
        memcpy(copy, data, size);
    read_arrays(copy, size);
    seal(copy, size);
    read_arrays(copy, size);
    free(copy);
    return 0;
}
