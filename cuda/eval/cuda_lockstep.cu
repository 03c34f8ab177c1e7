#include "cuda/eval/cuda_lockstep.h"

#include <new>
#include <vector>

#include "cuda/calib/cuda_try.cuh"

enum { PAGE_TOKENS = 256 };
static const char memory_hint[] = "use fewer or shorter chunks, or the CPU";

struct kvb_cuda_lockstep {
    const kvb_book *book = nullptr;
    kvb_cuda_book *tables = nullptr;
    kvb_cuda_cache *cache = nullptr;
    uint32_t sequences = 0, positions = 0;
    int32_t *length = nullptr; /* [positions][sequences]: row p holds p everywhere */
    int32_t *page = nullptr;   /* [sequences][pages of a sequence], one after the other */
};

static kvb_status copy_table(const std::vector<int32_t> &from, int32_t **to, kvb_error *err)
{
    kvb_status status = KVB_OK;
    TRY(status, err, "page table", cudaMalloc(to, from.size() * sizeof from[0]));
    TRY(status, err, "page table", cudaMemcpy(*to, from.data(), from.size() * sizeof from[0], cudaMemcpyHostToDevice));
    TRY(status, err, "page table", cudaDeviceSynchronize()); /* streams do not wait for copies of this kind */
    return status;
}

static kvb_status make_tables(kvb_cuda_lockstep *l, uint32_t pages, kvb_error *err)
{
    std::vector<int32_t> length((size_t)l->positions * l->sequences), page((size_t)l->sequences * pages);
    for (size_t i = 0; i < length.size(); i++)
        length[i] = (int32_t)(i / l->sequences);
    for (size_t i = 0; i < page.size(); i++)
        page[i] = (int32_t)i;
    const kvb_status status = copy_table(length, &l->length, err);
    return status == KVB_OK ? copy_table(page, &l->page, err) : status;
}

static kvb_status set_up(kvb_cuda_lockstep *l, int device, const kvb_policy *policy, uint64_t seed, kvb_error *err)
{
    const uint32_t pages = (l->positions + PAGE_TOKENS - 1) / PAGE_TOKENS;
    kvb_cuda_cache_options options;
    kvb_status status = kvb_cuda_book_create(l->book, device, &l->tables, err);
    if (status != KVB_OK)
        return status;
    kvb_cuda_cache_options_init(&options, l->tables);
    options.policy = *policy;
    options.seed = seed;
    options.slots = l->sequences;
    options.pages = l->sequences * pages;
    options.page_tokens = PAGE_TOKENS;
    options.sequence_pages = pages;
    status = kvb_cuda_cache_create(l->tables, &options, &l->cache, err);
    return status == KVB_OK ? make_tables(l, pages, err) : status;
}

kvb_status kvb_cuda_lockstep_create(int device, const kvb_book *book, const kvb_policy *policy, uint64_t seed, uint32_t sequences,
                                    uint32_t positions, kvb_cuda_lockstep **out, kvb_error *err)
{
    *out = nullptr;
    try {
        kvb_cuda_lockstep *l = new kvb_cuda_lockstep;
        l->book = book;
        l->sequences = sequences;
        l->positions = positions;
        const kvb_status status = set_up(l, device, policy, seed, err);
        if (status == KVB_OK)
            *out = l;
        else
            kvb_cuda_lockstep_destroy(l);
        return status;
    } catch (const std::bad_alloc &) {
        return kvb_fail_memory(err, "GPU cache");
    }
}

void kvb_cuda_lockstep_destroy(kvb_cuda_lockstep *l)
{
    if (l == nullptr)
        return;
    (void)cudaDeviceSynchronize(); /* nothing is under way in what is freed now */
    kvb_cuda_cache_destroy(l->cache);
    kvb_cuda_book_destroy(l->tables);
    cudaFree(l->length);
    cudaFree(l->page);
    delete l;
}

kvb_status kvb_cuda_lockstep_attend(void *user, uint32_t layer, const kvb_cuda_handed *h, struct CUstream_st *stream, kvb_error *err)
{
    const kvb_cuda_lockstep *l = (const kvb_cuda_lockstep *)user;
    const kvb_layer *g = kvb_book_layer(l->book, layer);
    const size_t queries = (size_t)l->sequences * g->heads * g->head_dim, keys = (size_t)l->sequences * g->kv_heads * g->head_dim;
    kvb_status status = KVB_OK;
    if (h->position > l->positions || h->tokens > l->positions - h->position)
        return kvb_fail(err, KVB_E_USAGE, "GPU cache", "%u tokens from position %u on of a cache for %u", h->tokens, h->position, l->positions);
    for (uint32_t t = 0; t < h->tokens && status == KVB_OK; t++) {
        const uint32_t at = h->position + t;
        const kvb_cuda_batch batch = {
            l->sequences, 1, at + 1, KVB_CUDA_FLOAT, l->length + (size_t)at * l->sequences, nullptr, l->page,
        };
        status = kvb_cuda_append(l->cache, layer, &batch, h->k + t * keys, h->v + t * keys, stream, err);
        if (status == KVB_OK)
            status = kvb_cuda_attend(l->cache, layer, &batch, h->q + t * queries, h->out + t * queries, stream, err);
    }
    return status;
}

kvb_status kvb_cuda_lockstep_check(kvb_cuda_lockstep *l, struct CUstream_st *stream, kvb_error *err)
{
    return kvb_cuda_cache_check(l->cache, stream, err);
}
