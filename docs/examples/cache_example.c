/* A quantised KV cache in an engine's decode loop: open a book, append each new token of a layer, attend with its
 * query.
 *
 *     cache_example BOOK.kvb [TOKENS]
 *
 * An engine passes its own keys (before RoPE), values and queries (after RoPE); here they are made up. */
#include <stdio.h>
#include <stdlib.h>

#include "kvbook/cache.h"

static int report(const kvb_error *err)
{
    fprintf(stderr, "%s: %s (%s)\n", err->where, err->message, kvb_status_name(err->code));
    return (int)err->code;
}

/* Stands for the projections of a model. */
static void make_up(float *x, size_t count, unsigned *state)
{
    for (size_t i = 0; i < count; i++) {
        *state = *state * 1664525u + 1013904223u;
        x[i] = (float)((double)(*state >> 8) / 8388608.0 - 1.0);
    }
}

/* One decode step of one layer. */
static kvb_status step(kvb_cache *cache, const kvb_layer *layer, uint32_t index, float *memory, unsigned *state,
                       kvb_error *err)
{
    const size_t kv = (size_t)layer->kv_heads * layer->head_dim, qs = (size_t)layer->heads * layer->head_dim;
    float *keys = memory, *values = keys + kv, *q = values + kv, *out = q + qs;
    make_up(memory, 2 * kv + qs, state);
    kvb_status status = kvb_cache_append(cache, index, keys, values, err);
    return status != KVB_OK ? status : kvb_cache_attend(cache, index, q, out, err);
}

static void print_bytes(const kvb_cache *cache)
{
    kvb_cache_bytes b = kvb_cache_count_bytes(cache);
    printf("codes %llu, anchors %llu, window %llu, sinks %llu, index %llu, codebooks %llu bytes\n",
           (unsigned long long)b.codes, (unsigned long long)b.anchors, (unsigned long long)b.window,
           (unsigned long long)b.sinks, (unsigned long long)b.index, (unsigned long long)b.codebooks);
    if (b.elements > 0)
        printf("%.3f bits per element with the codebooks, %.3f without\n", 8.0 * (double)b.total / (double)b.elements,
               8.0 * (double)(b.total - b.codebooks) / (double)b.elements);
}

static size_t largest_step(const kvb_book *book)
{
    size_t most = 0;
    for (uint32_t i = 0; i < kvb_book_layers(book); i++) {
        const kvb_layer *l = kvb_book_layer(book, i);
        size_t floats = 2 * (size_t)(l->kv_heads + l->heads) * l->head_dim;
        most = floats > most ? floats : most;
    }
    return most;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: cache_example BOOK.kvb [TOKENS]\n");
        return 2;
    }
    const long tokens = argc > 2 ? strtol(argv[2], NULL, 10) : 256;
    kvb_error err = {0};
    kvb_book *book = NULL;
    kvb_cache *cache = NULL;
    kvb_cache_options options;
    float *memory = NULL;
    unsigned state = 1;
    kvb_status status = kvb_book_open(argv[1], &book, &err);
    if (status != KVB_OK)
        return report(&err);
    kvb_cache_options_init(&options, book);
    status = kvb_cache_create(book, &options, &cache, &err);
    if (status == KVB_OK && (memory = malloc(largest_step(book) * sizeof *memory)) == NULL) {
        fprintf(stderr, "out of memory\n");
        kvb_cache_destroy(cache);
        kvb_book_close(book);
        return KVB_E_MEMORY;
    }
    for (long t = 0; status == KVB_OK && t < tokens; t++)
        for (uint32_t i = 0; status == KVB_OK && i < kvb_book_layers(book); i++)
            status = step(cache, kvb_book_layer(book, i), i, memory, &state, &err);
    int code = status == KVB_OK ? 0 : report(&err);
    if (code == 0)
        print_bytes(cache);
    free(memory);
    kvb_cache_destroy(cache);
    kvb_book_close(book);
    return code;
}
