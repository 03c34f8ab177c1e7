/* A quantised KV cache in an engine's decode loop: open a book, append each new token of a layer, attend with its
 * query.
 *
 *     cache_example BOOK.kvb [TOKENS]
 *
 * An engine passes its own keys (before RoPE), values and queries (after RoPE); here they are made up. */
#include <stdio.h>
#include <stdlib.h>

#include "kvbook/cache.h"

enum { MOST = 1 << 16 }; /* floats of a layer's token that this example has room for */
static float memory[MOST];

static int fail(const kvb_error *err)
{
    fprintf(stderr, "%s: %s (%s)\n", err->where, err->message, kvb_status_name(err->code));
    return (int)err->code;
}

/* One decode step of one layer: keys and values [G][D], query and output [H][D]. */
static kvb_status step(kvb_cache *cache, const kvb_layer *layer, uint32_t index, kvb_error *err)
{
    const size_t kv = (size_t)layer->kv_heads * layer->head_dim, qs = (size_t)layer->heads * layer->head_dim;
    float *keys = memory, *values = keys + kv, *q = values + kv, *out = q + qs;
    if (2 * (kv + qs) > MOST) {
        snprintf(err->message, sizeof err->message, "layer %u is wider than this example has room for", index);
        return err->code = KVB_E_MEMORY;
    }
    for (size_t i = 0; i < 2 * kv + qs; i++)
        memory[i] = (float)rand() / (float)RAND_MAX - 0.5f; /* an engine's projections */
    kvb_status status = kvb_cache_append(cache, index, keys, values, err);
    return status != KVB_OK ? status : kvb_cache_attend(cache, index, q, out, err);
}

int main(int argc, char **argv)
{
    const long tokens = argc > 2 ? strtol(argv[2], NULL, 10) : 256;
    kvb_error err = {0};
    kvb_book *book = NULL;
    kvb_cache *cache = NULL;
    kvb_cache_options options;
    if (argc < 2 || kvb_book_open(argv[1], &book, &err) != KVB_OK)
        return argc < 2 ? (fprintf(stderr, "usage: cache_example BOOK.kvb [TOKENS]\n"), 2) : fail(&err);
    kvb_cache_options_init(&options, book); /* the recipe's window, sinks and anchors */
    kvb_status status = kvb_cache_create(book, &options, &cache, &err);
    for (long t = 0; status == KVB_OK && t < tokens; t++)
        for (uint32_t i = 0; status == KVB_OK && i < kvb_book_layers(book); i++)
            status = step(cache, kvb_book_layer(book, i), i, &err);
    if (status == KVB_OK && tokens > 0) {
        const kvb_cache_bytes b = kvb_cache_count_bytes(cache);
        printf("%llu bytes of codes, %llu held exactly, %llu of codebooks: %.3f bits per element without the codebooks\n",
               (unsigned long long)b.codes, (unsigned long long)(b.total - b.codes - b.codebooks), (unsigned long long)b.codebooks,
               8.0 * (double)(b.total - b.codebooks) / (double)b.elements);
    }
    kvb_cache_destroy(cache);
    kvb_book_close(book);
    return status == KVB_OK ? 0 : fail(&err);
}
