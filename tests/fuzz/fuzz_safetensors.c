/* The safetensors reader, and the capture reader on top of it: whatever is accepted can be read to its last byte. */
#include <stdlib.h>
#include <string.h>

#include "calib/capture.h"
#include "format/base/checked.h"
#include "model/safetensors.h"
#include "tests/fuzz/fuzz.h"

static unsigned touched;

static void touch(const void *bytes, uint64_t size)
{
    const uint8_t *b = bytes;
    for (uint64_t i = 0; b != NULL && i < size; i++)
        touched += b[i];
}

static void read_tensors(const uint8_t *data, size_t size)
{
    kvb_safetensors *st;
    uint64_t sum = 0;
    if (kvb_safetensors_open_memory(data, size, "fuzz", &st, NULL) != KVB_OK)
        return;
    for (size_t i = 0; i < kvb_safetensors_count(st); i++) {
        const kvb_st_tensor *t = kvb_safetensors_at(st, i);
        touch(t->bytes, t->size);
        sum += t->size;
        if (kvb_safetensors_find(st, t->name) != t)
            abort();
    }
    if (sum >= size)
        abort();
    kvb_safetensors_close(st);
}

static void read_layer(const kvb_capture *c, uint32_t l)
{
    const kvb_layer *g = &c->geometry[l];
    const kvb_capture_layer *layer = &c->layer[l];
    uint64_t rows = g->kv_heads * c->rows, square = (uint64_t)g->kv_heads * g->head_dim * g->head_dim;
    touch(layer->keys, rows * g->head_dim * 2);
    touch(layer->values, rows * g->head_dim * 2);
    touch(layer->weight_k, rows * 4);
    touch(layer->weight_v, rows * 4);
    touch(layer->moment_relative, square * 4);
    touch(layer->moment_post, square * 4);
    touch(layer->queries, c->query_rows * g->heads * g->head_dim * 2);
    for (int kind = 0; kind < 2; kind++) {
        touch(layer->sensitivity[kind], square * 4);
        touch(layer->gradient[kind], rows * g->head_dim * 2);
    }
}

static void read_capture(const uint8_t *data, size_t size)
{
    kvb_capture_store *store;
    kvb_error err;
    if (kvb_capture_open_memory(data, size, "fuzz", &store, &err) != KVB_OK)
        return;
    const kvb_capture *c = kvb_capture_view(store);
    for (uint32_t l = 0; l < c->layers; l++)
        if (c->layer[l].keys != NULL)
            read_layer(c, l);
    touch(c->row_chunk, c->rows * 4);
    touch(c->row_position, c->rows * 4);
    kvb_capture_close(store);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size != 0 ? size : 1); /* aligned, and of exactly this size */
    if (copy == NULL)
        return 0;
    if (size != 0)
        memcpy(copy, data, size);
    read_tensors(copy, size);
    read_capture(copy, size);
    free(copy);
    return 0;
}
