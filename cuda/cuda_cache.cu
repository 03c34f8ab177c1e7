/* The cache of many sequences: its memory, and the calls of an engine. */
#include "cuda/cuda_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

void kvb_cuda_cache_options_init(kvb_cuda_cache_options *options, const kvb_cuda_book *book)
{
    *options = kvb_cuda_cache_options{};
    options->struct_size = sizeof *options;
    options->policy = kvb_book_policy(book->book);
    options->slots = 1;
    options->pages = 1;
    options->page_tokens = 256;
    options->sequence_pages = 1;
}

static kvb_status check_options(const kvb_cuda_book *book, const kvb_cuda_cache_options *o, kvb_error *err)
{
    const kvb_policy *p = &o->policy;
    if (o->struct_size != sizeof *o)
        return kvb_fail(err, KVB_E_USAGE, "options.struct_size", "found %u, expected %zu: call kvb_cuda_cache_options_init()",
                        o->struct_size, sizeof *o);
    if (o->page_tokens < KVB_TILE || (o->page_tokens & (o->page_tokens - 1)) != 0 || o->page_tokens > 65536)
        return kvb_fail(err, KVB_E_USAGE, "options.page_tokens", "found %u, expected a power of two from %d to 65536", o->page_tokens,
                        (int)KVB_TILE);
    if (o->slots == 0 || o->slots > 65536 || o->pages == 0 || o->pages > INT32_MAX || o->sequence_pages == 0 ||
        (uint64_t)o->sequence_pages * o->page_tokens > INT32_MAX)
        return kvb_fail(err, KVB_E_USAGE, "options", "found %u slots (expected 1 .. 65536), %u pages, %u pages a sequence of %u tokens "
                        "(expected at most 2^31 tokens)", o->slots, o->pages, o->sequence_pages, o->page_tokens);
    if (!(p->anchor_fraction >= 0.0 && p->anchor_fraction <= 1.0))
        return kvb_fail(err, KVB_E_USAGE, "policy.anchor_fraction", "found %g, expected 0 .. 1 (1%% is 0.01)", p->anchor_fraction);
    if ((unsigned)p->score > KVB_SCORE_RANDOM || (unsigned)p->exact > KVB_EXACT_FINE || p->window > (1u << 20) ||
        p->sinks > (1u << 20))
        return kvb_fail(err, KVB_E_USAGE, "policy", "found score %u, form %u, window %u, sinks %u: out of range", (unsigned)p->score,
                        (unsigned)p->exact, p->window, p->sinks);
    if (p->exact != KVB_EXACT_FINE)
        return KVB_OK;
    for (uint32_t i = 0; i < book->layers; i++)
        if (book->layer[i].has_codes && kvb_book_fine(book->book, i, 0, KVB_KEY) == NULL)
            return kvb_fail(err, KVB_E_USAGE, "policy.exact", "found fine codes, but the book has no fine codebooks");
    return KVB_OK;
}

/* Lays a page out; returns its bytes, 0 where they pass 2^31. */
static uint32_t place_page(const kvb_host_layer *l, const kvb_cuda_cache_options *o, uint32_t anchors, kvb_dev_place *place)
{
    uint64_t at = 0;
    const auto put = [&](uint64_t bytes) {
        const uint64_t here = at;
        at += (bytes + 255) / 256 * 256;
        return (uint32_t)here;
    };
    for (uint32_t g = 0; g < l->dev.kv_heads; g++) {
        place[g].key_codes = put((uint64_t)o->page_tokens * l->host_head[g].code_bytes[0]);
        place[g].value_codes = put((uint64_t)o->page_tokens * l->host_head[g].code_bytes[1]);
        place[g].anchor_keys = put((uint64_t)anchors * l->dev.dim * 2);
        place[g].anchor_values = put((uint64_t)anchors * l->dev.dim * 2);
        /* Small things share their last 256 bytes. */
        const uint64_t small = put((uint64_t)o->page_tokens / 8 + (uint64_t)anchors * 8);
        place[g].masks = (uint32_t)small;
        place[g].anchor_position = (uint32_t)small + o->page_tokens / 8;
        place[g].anchor_score = place[g].anchor_position + anchors * 4;
        if (at > INT32_MAX)
            return 0;
    }
    return (uint32_t)at;
}

static kvb_status create_layer(kvb_cuda_cache *c, uint32_t index, kvb_error *err)
{
    const kvb_host_layer *l = c->book->layer + index;
    const kvb_cuda_cache_options *o = &c->options;
    kvb_dev_cache *d = &c->layer[index].dev;
    const uint32_t G = l->dev.kv_heads, dim = l->dev.dim;
    const double share = o->policy.anchor_fraction * o->page_tokens;
    const uint32_t anchors = (uint32_t)(share + 0.999999999);
    std::vector<kvb_dev_place> place(G);
    d->page_bytes = place_page(l, o, anchors, place.data());
    if (d->page_bytes == 0)
        return kvb_fail(err, KVB_E_USAGE, "options.page_tokens", "a page of %u tokens takes over 2 GiB: use smaller ones", o->page_tokens);
    d->page_count = o->pages;
    d->page_tokens = o->page_tokens;
    while ((uint32_t)KVB_TILE << d->page_shift < o->page_tokens)
        d->page_shift++;
    d->page_anchors = anchors;
    d->sequence_pages = o->sequence_pages;
    d->slots = o->slots;
    d->window = o->policy.window;
    d->ring_rows = o->policy.window + KVB_CUDA_MOST_TOKENS;
    d->sink_count = o->policy.sinks;
    d->fraction = o->policy.anchor_fraction;
    d->score_kind = (uint32_t)o->policy.score;
    d->scores_attention = o->policy.anchor_fraction > 0.0 && o->policy.window > 0 &&
                          (o->policy.score == KVB_SCORE_EXACT_K || o->policy.score == KVB_SCORE_EXACT_V);
    d->fine = o->policy.exact == KVB_EXACT_FINE;
    d->seed = o->seed;
    d->flags = c->flags;

    const uint64_t ring = (uint64_t)d->ring_rows * G * dim * 2, sinks = (uint64_t)d->sink_count * G * dim * 2;
    const uint64_t slot = 2 * ring + 2 * sinks + (uint64_t)d->ring_rows * G * sizeof(double) + G * sizeof(uint32_t);
    c->layer[index].slot_bytes = (uint32_t)slot;
    uint64_t at = 0;
    const auto put = [&](uint64_t bytes) {
        const uint64_t here = at;
        at += (bytes + 255) / 256 * 256;
        return here;
    };
    const uint64_t places_at = put(G * sizeof(kvb_dev_place)), score_at = put((uint64_t)o->slots * G * d->ring_rows * 8);
    const uint64_t ring_at[2] = {put(o->slots * ring), put(o->slots * ring)};
    const uint64_t sinks_at[2] = {put(o->slots * sinks), put(o->slots * sinks)}, anchors_at = put((uint64_t)o->slots * G * 4);
    const uint64_t pages_at = put((uint64_t)o->pages * d->page_bytes);
    uint8_t *memory = NULL;
    const cudaError_t code = cudaMalloc((void **)&memory, at);
    if (code == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        return kvb_fail(err, KVB_E_MEMORY, "cache", "layer %u of %u needs %.2f GB of device memory and did not get them: use fewer pages "
                        "or slots", index, c->book->layers, (double)at * 1e-9);
    }
    if (code != cudaSuccess)
        return kvb_cuda_fail(err, "cache", code);
    c->layer[index].memory = memory;
    c->total += at;
    d->place = (const kvb_dev_place *)(memory + places_at);
    d->score = (double *)(memory + score_at);
    for (int kind = 0; kind < 2; kind++) {
        d->ring[kind] = (__half *)(memory + ring_at[kind]);
        d->sinks[kind] = (__half *)(memory + sinks_at[kind]);
    }
    d->anchors = (uint32_t *)(memory + anchors_at);
    d->pages = memory + pages_at;
    kvb_status status = KVB_OK;
    /* A first read of the masks of a tile that nothing was written to must not find every token an anchor. */
    KVB_CUDA_TRY(status, err, "cache", cudaMemset(memory, 0, at));
    KVB_CUDA_TRY(status, err, "cache",
                 cudaMemcpy(memory + places_at, place.data(), G * sizeof(kvb_dev_place), cudaMemcpyHostToDevice));
    return status;
}

static uint32_t groups_of(const kvb_dev_layer *l, uint32_t tokens) { return (l->rows * tokens + KVB_COLUMNS - 1) / KVB_COLUMNS; }

/* Room for partial sums: as many splits as fill the device even with one sequence, and one for each column group at most. */
static kvb_status create_work(kvb_cuda_cache *c, kvb_error *err)
{
    uint64_t rows = 0, groups = 0, dim = 0, scores = 0;
    for (uint32_t i = 0; i < c->book->layers; i++) {
        const kvb_host_layer *l = c->book->layer + i;
        if (!l->has_codes)
            continue;
        const uint64_t all = (uint64_t)c->options.slots * l->dev.kv_heads * groups_of(&l->dev, KVB_CUDA_MOST_TOKENS);
        const uint64_t prompt = (uint64_t)l->dev.kv_heads * c->options.sequence_pages * c->options.page_tokens;
        rows = (uint64_t)c->options.slots * KVB_CUDA_MOST_TOKENS * l->dev.heads > rows
                   ? (uint64_t)c->options.slots * KVB_CUDA_MOST_TOKENS * l->dev.heads : rows;
        groups = all > groups ? all : groups;
        dim = l->dev.dim > dim ? l->dev.dim : dim;
        scores = c->options.policy.anchor_fraction > 0.0 && prompt > scores ? prompt : scores;
    }
    /* The splits of all groups together: two rounds of blocks on every multiprocessor, and at least one each. */
    const uint64_t parts = groups + (uint64_t)c->book->multiprocessors * 8 + KVB_MOST_SPLITS;
    uint64_t sums = parts * KVB_COLUMNS * dim * sizeof(float);
    sums = sums > scores * sizeof(float) ? sums : scores * sizeof(float);
    uint64_t at = 0;
    const auto put = [&](uint64_t bytes) {
        const uint64_t here = at;
        at += (bytes + 255) / 256 * 256;
        return here;
    };
    const uint64_t sum_at = put(sums), share_at = put(parts * KVB_COLUMNS * sizeof(float2)), done_at = put(groups * 4);
    const uint64_t out_at = put(rows * dim * sizeof(float)), lse_at = put(rows * sizeof(float));
    uint8_t *memory = NULL;
    kvb_status status = KVB_OK;
    KVB_CUDA_TRY(status, err, "workspace", cudaMalloc((void **)&memory, at));
    c->work_memory = memory;
    KVB_CUDA_TRY(status, err, "workspace", cudaMemset(memory + done_at, 0, groups * 4));
    if (status != KVB_OK)
        return status;
    c->total += at;
    c->most_groups = (uint32_t)(parts < UINT32_MAX ? parts : UINT32_MAX);
    c->work.sum = (float *)(memory + sum_at);
    c->work.share = (float2 *)(memory + share_at);
    c->work.done = (uint32_t *)(memory + done_at);
    c->work.out = (float *)(memory + out_at);
    c->work.lse = (float *)(memory + lse_at);
    c->score_room = scores;
    return KVB_OK;
}

kvb_status kvb_cuda_cache_create(const kvb_cuda_book *book, const kvb_cuda_cache_options *options, kvb_cuda_cache **out,
                                 kvb_error *err)
{
    *out = NULL;
    kvb_status status = check_options(book, options, err);
    if (status != KVB_OK)
        return status;
    kvb_cuda_cache *c = (kvb_cuda_cache *)calloc(1, sizeof *c);
    if (c == NULL)
        return kvb_fail_memory(err, "a cache on the device");
    c->book = book;
    c->options = *options;
    c->layer = (kvb_cache_layer_memory *)calloc(book->layers, sizeof *c->layer);
    if (c->layer == NULL)
        status = kvb_fail_memory(err, "a cache on the device");
    KVB_CUDA_TRY(status, err, "device", cudaSetDevice(book->device));
    KVB_CUDA_TRY(status, err, "cache", cudaMalloc((void **)&c->flags, sizeof *c->flags));
    KVB_CUDA_TRY(status, err, "cache", cudaMemset(c->flags, 0, sizeof *c->flags));
    if (status == KVB_OK)
        status = create_work(c, err);
    for (uint32_t i = 0; i < book->layers && status == KVB_OK; i++)
        if (book->layer[i].has_codes)
            status = create_layer(c, i, err);
    if (status != KVB_OK) {
        kvb_cuda_cache_destroy(c);
        return status;
    }
    *out = c;
    return KVB_OK;
}

void kvb_cuda_cache_destroy(kvb_cuda_cache *cache)
{
    if (cache == NULL)
        return;
    for (uint32_t i = 0; cache->layer != NULL && i < cache->book->layers; i++)
        cudaFree(cache->layer[i].memory);
    cudaFree(cache->work_memory);
    cudaFree(cache->flags);
    free(cache->layer);
    free(cache);
}

kvb_cuda_cache_size kvb_cuda_cache_bytes(const kvb_cuda_cache *cache)
{
    kvb_cuda_cache_size size = {0, 0, cache->total};
    for (uint32_t i = 0; i < cache->book->layers; i++) {
        size.page += cache->layer[i].dev.page_bytes;
        size.slot += cache->layer[i].slot_bytes;
    }
    return size;
}

void kvb_cuda_cache_plain(kvb_cuda_cache *cache)
{
    cache->plain_only = true;
}

static kvb_status check_call(const kvb_cuda_cache *c, uint32_t layer, const kvb_cuda_batch *b, uint32_t most, kvb_error *err)
{
    if (layer >= c->book->layers)
        return kvb_fail(err, KVB_E_USAGE, "layer", "found %u, the book has %u", layer, c->book->layers);
    if (!c->book->layer[layer].has_codes)
        return kvb_fail(err, KVB_E_USAGE, "layer", "the book does not support layer %u: keep it in the engine's own cache", layer);
    if (b->sequences == 0 || b->sequences > c->options.slots || b->tokens == 0 || b->tokens > most)
        return kvb_fail(err, KVB_E_USAGE, "batch", "found %u sequences of %u tokens, expected 1 .. %u of 1 .. %u", b->sequences,
                        b->tokens, c->options.slots, most);
    if ((unsigned)b->type > KVB_CUDA_FLOAT || b->length == NULL || b->page == NULL)
        return kvb_fail(err, KVB_E_USAGE, "batch", "found type %u, length %p, page %p: expected a kvb_cuda_type and arrays in device "
                        "memory", (unsigned)b->type, (const void *)b->length, (const void *)b->page);
    if (b->longest > (uint64_t)c->options.sequence_pages * c->options.page_tokens)
        return kvb_fail(err, KVB_E_USAGE, "batch.longest", "found %u tokens, a sequence has room for %u", b->longest,
                        c->options.sequence_pages * c->options.page_tokens);
    return KVB_OK;
}

static kvb_status check_pointer(const void *p, const char *what, kvb_cuda_type type, kvb_error *err)
{
    const uintptr_t align = type == KVB_CUDA_FLOAT ? 4 : 2;
    if (p == NULL || (uintptr_t)p % align != 0)
        return kvb_fail(err, KVB_E_USAGE, what, "found %p, expected device memory aligned to its elements of %u bytes", p,
                        (unsigned)align);
    return KVB_OK;
}

static kvb_dev_batch dev_batch(const kvb_cuda_batch *b)
{
    return kvb_dev_batch{b->sequences, b->tokens, (uint32_t)b->type, b->length, b->slot, b->page};
}

kvb_status kvb_cuda_append(kvb_cuda_cache *cache, uint32_t layer, const kvb_cuda_batch *batch, const void *keys,
                           const void *values, struct CUstream_st *stream, kvb_error *err)
{
    kvb_status status = check_call(cache, layer, batch, KVB_CUDA_MOST_TOKENS, err);
    if (status == KVB_OK)
        status = check_pointer(keys, "keys", batch->type, err);
    if (status == KVB_OK)
        status = check_pointer(values, "values", batch->type, err);
    const kvb_dev_batch b = dev_batch(batch);
    KVB_CUDA_TRY(status, err, "append",
                 kvb_append_launch(&cache->book->layer[layer].dev, &cache->layer[layer].dev, &b, keys, values, stream));
    return status;
}

/* How many blocks share the tokens of a sequence: enough to fill the device, as few as keep each of them busy. */
static uint32_t choose_splits(const kvb_cuda_cache *c, uint32_t groups, uint32_t tokens, uint32_t resident, uint32_t warps)
{
    const uint32_t fill = (uint32_t)c->book->multiprocessors * resident, tiles = (tokens + KVB_TILE - 1) / KVB_TILE;
    uint32_t splits = fill / groups;
    splits = splits > (uint32_t)KVB_MOST_SPLITS ? (uint32_t)KVB_MOST_SPLITS : splits;
    splits = splits * warps > tiles ? tiles / warps : splits;
    splits = splits == 0 ? 1 : splits;
    return (uint64_t)splits * groups > c->most_groups ? c->most_groups / groups : splits;
}

static kvb_status attend(kvb_cuda_cache *cache, uint32_t layer, const kvb_cuda_batch *batch, const void *q, void *out, bool scores,
                         struct CUstream_st *stream, kvb_error *err)
{
    kvb_status status = check_call(cache, layer, batch, KVB_CUDA_MOST_TOKENS, err);
    if (status == KVB_OK)
        status = check_pointer(q, "q", batch->type, err);
    if (status == KVB_OK)
        status = check_pointer(out, "out", batch->type, err);
    if (status != KVB_OK)
        return status;
    const kvb_host_layer *l = cache->book->layer + layer;
    const kvb_dev_cache *d = &cache->layer[layer].dev;
    const kvb_dev_batch b = dev_batch(batch);
    const uint32_t columns = groups_of(&l->dev, b.tokens), groups = b.sequences * l->dev.kv_heads * columns;
    const uint32_t tokens = batch->longest != 0 ? batch->longest : cache->options.sequence_pages * cache->options.page_tokens;
    /* Codes that a query of the step may not see yet are the plain kernel's business. */
    const bool fast = l->mma.kind != KVB_MMA_NONE && cache->options.policy.window >= b.tokens && !cache->plain_only;
    const int resident = fast ? l->mma_resident : 4;
    kvb_dev_work work = cache->work;
    work.splits = choose_splits(cache, groups, tokens, (uint32_t)resident, fast ? 8 : 4);
    scores = scores && d->scores_attention;
    if (!scores)
        work.out = work.lse = NULL;
    KVB_CUDA_TRY(status, err, "attend",
                 fast ? kvb_mma_launch(l->mma, &l->dev, d, &b, q, out, &work, columns, stream)
                      : kvb_plain_launch(&l->dev, d, &b, q, out, &work, columns, stream));
    if (scores)
        KVB_CUDA_TRY(status, err, "attend", kvb_score_launch(&l->dev, d, &b, q, work.out, work.lse, stream));
    return status;
}

kvb_status kvb_cuda_attend(kvb_cuda_cache *cache, uint32_t layer, const kvb_cuda_batch *batch, const void *q, void *out,
                           struct CUstream_st *stream, kvb_error *err)
{
    return attend(cache, layer, batch, q, out, true, stream, err);
}

kvb_status kvb_cuda_attend_only(kvb_cuda_cache *cache, uint32_t layer, const kvb_cuda_batch *batch, const void *q, void *out,
                                struct CUstream_st *stream, kvb_error *err)
{
    return attend(cache, layer, batch, q, out, false, stream, err);
}

kvb_status kvb_cuda_prefill(kvb_cuda_cache *cache, uint32_t layer, const kvb_cuda_batch *batch, const void *keys,
                            const void *values, const void *q, const void *out, const float *lse, struct CUstream_st *stream,
                            kvb_error *err)
{
    kvb_status status = check_call(cache, layer, batch, cache->options.sequence_pages * cache->options.page_tokens, err);
    if (status == KVB_OK)
        status = check_pointer(keys, "keys", batch->type, err);
    if (status == KVB_OK)
        status = check_pointer(values, "values", batch->type, err);
    if (status == KVB_OK && cache->layer[layer].dev.scores_attention) {
        status = check_pointer(q, "q", batch->type, err);
        if (status == KVB_OK)
            status = check_pointer(out, "out", batch->type, err);
        if (status == KVB_OK)
            status = check_pointer(lse, "lse", KVB_CUDA_FLOAT, err);
    }
    const kvb_dev_batch b = dev_batch(batch);
    kvb_dev_layer l = cache->book->layer[layer].dev;
    if (cache->plain_only)
        l.select_room = l.prompt_bytes = 0;
    KVB_CUDA_TRY(status, err, "prefill",
                 kvb_prefill_launch(&l, &cache->layer[layer].dev, &b, keys, values, q, out, lse,
                                    cache->work.sum, cache->score_room, stream));
    return status;
}

kvb_status kvb_cuda_cache_check(kvb_cuda_cache *cache, struct CUstream_st *stream, kvb_error *err)
{
    uint32_t flags = 0;
    kvb_status status = KVB_OK;
    KVB_CUDA_TRY(status, err, "device", cudaMemcpyAsync(&flags, cache->flags, sizeof flags, cudaMemcpyDeviceToHost, stream));
    KVB_CUDA_TRY(status, err, "device", cudaMemsetAsync(cache->flags, 0, sizeof flags, stream));
    KVB_CUDA_TRY(status, err, "device", cudaStreamSynchronize(stream));
    if (status != KVB_OK || flags == 0)
        return status;
    if (flags & KVB_FLAG_PLACE)
        return kvb_fail(err, KVB_E_USAGE, "batch", "a length, slot or page in device memory lies outside the cache (%u slots, %u pages, "
                        "%u pages a sequence): what it named was left out", cache->options.slots, cache->options.pages,
                        cache->options.sequence_pages);
    if (flags & KVB_FLAG_NOT_EMPTY)
        return kvb_fail(err, KVB_E_USAGE, "batch.length", "a prompt was given to a sequence that is not empty: append to it instead");
    return kvb_fail(err, KVB_E_CHECK, "keys or values", "a number that is not finite was appended; it is held as 0");
}

/* Downloads `count` things at `from`. */
template <class T> static kvb_status download(std::vector<T> &to, const void *from, size_t count, kvb_error *err)
{
    kvb_status status = KVB_OK;
    to.resize(count);
    KVB_CUDA_TRY(status, err, "read", cudaMemcpy(to.data(), from, count * sizeof(T), cudaMemcpyDeviceToHost));
    return status;
}

static kvb_status read_exact(const __half *keys, const __half *values, uint32_t dim, float *key, float *value, kvb_error *err)
{
    std::vector<__half> row;
    kvb_status status = download(row, keys, dim, err);
    for (uint32_t i = 0; i < dim && status == KVB_OK; i++)
        key[i] = __half2float(row[i]);
    if (status == KVB_OK)
        status = download(row, values, dim, err);
    for (uint32_t i = 0; i < dim && status == KVB_OK; i++)
        value[i] = __half2float(row[i]);
    return status;
}

kvb_status kvb_cuda_cache_read(const kvb_cuda_cache *cache, uint32_t layer, uint32_t slot, const int32_t *page, uint32_t length,
                               uint32_t head, uint32_t position, float *key, float *value, int *exact, kvb_error *err)
{
    if (layer >= cache->book->layers || !cache->book->layer[layer].has_codes || slot >= cache->options.slots ||
        position >= length || head >= cache->book->layer[layer].dev.kv_heads)
        return kvb_fail(err, KVB_E_USAGE, "read", "layer %u, slot %u, head %u or position %u of %u lies outside", layer, slot, head,
                        position, length);
    const kvb_host_layer *l = cache->book->layer + layer;
    const kvb_dev_cache *d = &cache->layer[layer].dev;
    const uint32_t G = l->dev.kv_heads, dim = l->dev.dim;
    const kvb_layer *geometry = kvb_book_layer(cache->book->book, layer);
    kvb_status status = KVB_OK;
    KVB_CUDA_TRY(status, err, "read", cudaDeviceSynchronize());
    if (status != KVB_OK)
        return status;
    *exact = 1;
    if (position < d->sink_count) {
        const size_t row = (((size_t)slot * G + head) * d->sink_count + position) * dim;
        return read_exact(d->sinks[0] + row, d->sinks[1] + row, dim, key, value, err);
    }
    if (position >= kvb_window_first(length, d->window, d->sink_count)) {
        const size_t row = (((size_t)slot * G + head) * d->ring_rows + position % d->ring_rows) * dim;
        return read_exact(d->ring[0] + row, d->ring[1] + row, dim, key, value, err);
    }
    std::vector<kvb_dev_place> place;
    std::vector<uint32_t> count, positions;
    status = download(place, d->place, G, err);
    if (status == KVB_OK)
        status = download(count, d->anchors, (size_t)cache->options.slots * G, err);
    const uint32_t anchors = status == KVB_OK ? count[(size_t)slot * G + head] : 0;
    for (uint32_t i = 0; i < anchors && status == KVB_OK; i += d->page_anchors) {
        const uint8_t *base = d->pages + (size_t)page[i / d->page_anchors] * d->page_bytes;
        status = download(positions, base + place[head].anchor_position, d->page_anchors, err);
        for (uint32_t k = 0; k < d->page_anchors && i + k < anchors && status == KVB_OK; k++)
            if (positions[k] == position)
                return read_exact((const __half *)(base + place[head].anchor_keys) + (size_t)k * dim,
                                  (const __half *)(base + place[head].anchor_values) + (size_t)k * dim, dim, key, value, err);
    }
    *exact = 0;
    float *const to[2] = {key, value};
    for (int kind = 0; kind < 2 && status == KVB_OK; kind++) {
        const kvb_shape *s = &l->host_head[head].code[kind].shape;
        const uint8_t *base = d->pages + (size_t)page[position / d->page_tokens] * d->page_bytes +
                              (kind == 0 ? place[head].key_codes : place[head].value_codes);
        std::vector<uint8_t> tile;
        const size_t bytes = (size_t)KVB_TILE * kvb_shape_row_bytes(s);
        status = download(tile, base + position % d->page_tokens / KVB_TILE * bytes, bytes, err);
        std::vector<uint32_t> code(s->units / s->stages);
        for (uint32_t u = 0; u < s->units && status == KVB_OK; u++)
            code[u / s->stages] |= kvb_tile_unit(s, kind, tile.data(), position % KVB_TILE, u) << (u % s->stages * s->bits);
        if (status == KVB_OK)
            status = kvb_decode(kvb_book_codebook(cache->book->book, layer, head, (kvb_kind)kind), dim, code.data(), 1, to[kind], err);
    }
    const uint32_t rest = kvb_frame_rest(l->dev.frame_block, position);
    for (uint32_t i = 0; i < l->dev.rope_dims / 2 && status == KVB_OK; i++) {
        const uint32_t a = geometry->rope_style == KVB_ROPE_INTERLEAVED ? 2 * i : i;
        const uint32_t b = geometry->rope_style == KVB_ROPE_INTERLEAVED ? a + 1 : i + l->dev.rope_dims / 2;
        const double factor = geometry->rope_factors != NULL ? (double)geometry->rope_factors[i] : 1.0;
        const double angle = 3.141592653589793 *
            (double)kvb_phase(kvb_turn(geometry->rope_base, i, geometry->rope_dims, factor), (int64_t)rest);
        const double u = key[a], v = key[b];
        key[a] = (float)(u * cos(angle) - v * sin(angle));
        key[b] = (float)(u * sin(angle) + v * cos(angle));
    }
    return status;
}
