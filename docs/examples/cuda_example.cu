/* A quantised KV cache on a GPU in an engine's decode loop: open a book, upload it, then append and attend on a stream.
 *
 *     cuda_example BOOK.kvb [TOKENS]
 *
 * An engine's own kernels write keys (before RoPE), values and queries (after RoPE) into device memory; here zeros stand for them. */
#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>

#include "kvbook/cuda.h"

static int fail(const kvb_error *err)
{
    fprintf(stderr, "%s: %s (%s)\n", err->where, err->message, kvb_status_name(err->code));
    return (int)err->code;
}

int main(int argc, char **argv)
{
    const unsigned long tokens = argc > 2 ? strtoul(argv[2], NULL, 10) : 256;
    kvb_book *book = NULL;
    kvb_cuda_book *there = NULL;
    kvb_cuda_cache *cache = NULL;
    kvb_error err = {};
    if (argc < 2 || kvb_book_open(argv[1], &book, &err) != KVB_OK || kvb_cuda_book_create(book, 0, &there, &err) != KVB_OK)
        return argc < 2 ? (fprintf(stderr, "usage: cuda_example BOOK.kvb [TOKENS]\n"), 2) : fail(&err);
    kvb_cuda_cache_options options; /* one sequence, its pages in order; all device memory is taken here */
    kvb_cuda_cache_options_init(&options, there);
    options.slots = 1;
    options.pages = options.sequence_pages = (uint32_t)(tokens / options.page_tokens + 1);
    if (kvb_cuda_cache_create(there, &options, &cache, &err) != KVB_OK)
        return fail(&err);

    int32_t *length, *page; /* on the device: tokens so far, page table */
    float *row;             /* keys, values, query and output of one layer, one after the other */
    const size_t most = 4 * 1024 * KVB_CUDA_MOST_DIM;
    cudaStream_t stream;
    if (cudaStreamCreate(&stream) != cudaSuccess || cudaMallocManaged(&length, sizeof *length) != cudaSuccess ||
        cudaMallocManaged(&page, options.pages * sizeof *page) != cudaSuccess || cudaMalloc(&row, most * sizeof *row) != cudaSuccess)
        return fprintf(stderr, "the device has no room\n"), 5;
    for (uint32_t i = 0; i < options.pages; i++)
        page[i] = (int32_t)i;
    cudaMemsetAsync(row, 0, most * sizeof *row, stream);

    kvb_status status = KVB_OK;
    for (unsigned long t = 0; t < tokens && status == KVB_OK; t++) {
        *length = (int32_t)t; /* an engine with a graph counts on the device instead */
        const kvb_cuda_batch batch = {1, 1, (uint32_t)t + 1, KVB_CUDA_FLOAT, length, NULL, page};
        for (uint32_t l = 0; l < kvb_book_layers(book) && status == KVB_OK; l++) {
            const kvb_layer *g = kvb_book_layer(book, l);
            if (g->kind == KVB_LAYER_UNSUPPORTED) /* such a layer stays in the engine's own cache */
                continue;
            float *values = row + g->kv_heads * g->head_dim, *q = values + g->kv_heads * g->head_dim, *out = q + g->heads * g->head_dim;
            status = kvb_cuda_append(cache, l, &batch, row, values, stream, &err);
            if (status == KVB_OK)
                status = kvb_cuda_attend(cache, l, &batch, q, out, stream, &err);
        }
        cudaStreamSynchronize(stream); /* before *length changes */
    }
    if (status != KVB_OK || kvb_cuda_cache_check(cache, stream, &err) != KVB_OK)
        return fail(&err);
    printf("%lu tokens in %.1f KiB of pages, layer 0 by kernel %s\n", tokens,
           (double)options.pages * (double)kvb_cuda_cache_bytes(cache).page / 1024.0, kvb_cuda_book_kernel(there, 0));
    kvb_cuda_cache_destroy(cache);
    kvb_cuda_book_destroy(there);
    kvb_book_close(book);
    return 0;
}
