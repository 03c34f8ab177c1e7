#include "model/gguf_write.h"

#include <stdlib.h>
#include <string.h>

#include "format/base/fail.h"
#include "model/gguf.h"

enum { ALIGNMENT = 32, VERSION = 3 };

/* A file's head, in memory: it is small beside the tensors. */
typedef struct head {
    uint8_t *bytes;
    size_t size, room;
    bool failed; /* out of memory */
} head;

static void put(head *h, const void *bytes, size_t size)
{
    if (!h->failed && size > h->room - h->size) {
        const size_t room = 2 * h->room + size + 4096;
        uint8_t *grown = realloc(h->bytes, room);
        h->failed = grown == NULL;
        h->bytes = grown != NULL ? grown : h->bytes;
        h->room = grown != NULL ? room : h->room;
    }
    if (h->failed)
        return;
    memcpy(h->bytes + h->size, bytes, size);
    h->size += size;
}

static void put_number(head *h, uint64_t value, size_t size)
{
    uint8_t bytes[8];
    for (size_t i = 0; i < size; i++)
        bytes[i] = (uint8_t)(value >> (8 * i));
    put(h, bytes, size);
}

static void put_string(head *h, const char *text)
{
    put_number(h, strlen(text), 8);
    put(h, text, strlen(text));
}

static uint64_t padding_after(uint64_t size)
{
    return (ALIGNMENT - size % ALIGNMENT) % ALIGNMENT;
}

static void put_tensors(head *h, const kvb_tensor *tensor, uint64_t tensors)
{
    uint64_t at = 0;
    for (uint64_t i = 0; i < tensors; i++) {
        put_string(h, tensor[i].name);
        put_number(h, tensor[i].dims, 4);
        for (uint32_t d = 0; d < tensor[i].dims; d++)
            put_number(h, tensor[i].shape[d], 8);
        put_number(h, tensor[i].dtype, 4);
        put_number(h, at, 8);
        at += tensor[i].size + padding_after(tensor[i].size);
    }
}

kvb_status kvb_gguf_write_head(kvb_outfile *out, const kvb_json *strings, const kvb_tensor *tensor, uint64_t tensors, kvb_error *err)
{
    head h = {0};
    for (uint64_t i = 0; i < tensors; i++)
        if (tensor[i].dims < 1 || tensor[i].dims > 4)
            return kvb_fail(err, KVB_E_USAGE, tensor[i].name, "%u dimensions, GGUF has 1 to 4", tensor[i].dims);
    put(&h, "GGUF", 4);
    put_number(&h, VERSION, 4);
    put_number(&h, tensors, 8);
    put_number(&h, kvb_json_count(strings), 8);
    for (size_t i = 0; i < kvb_json_count(strings); i++) {
        put_string(&h, kvb_json_key_at(strings, i));
        put_number(&h, KVB_GGUF_STRING, 4);
        put_string(&h, kvb_json_string(kvb_json_at(strings, i), ""));
    }
    put_tensors(&h, tensor, tensors);
    kvb_status status = h.failed ? kvb_fail_memory(err, "GGUF") : kvb_outfile_write(out, h.bytes, h.size, err);
    if (status == KVB_OK)
        status = kvb_gguf_write_pad(out, h.size, err);
    free(h.bytes);
    return status;
}

kvb_status kvb_gguf_write_pad(kvb_outfile *out, uint64_t size, kvb_error *err)
{
    static const uint8_t zeros[ALIGNMENT];
    return kvb_outfile_write(out, zeros, (size_t)padding_after(size), err);
}
