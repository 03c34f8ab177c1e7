/* The kernel around cuda_tile.cuh, and which layers it takes. */
#include "cuda/cuda_tile.cuh"

/* Where the codes of a tile lie: of this lane's token, and the mask of the tile. */
struct tile_source {
    const uint8_t *key, *value;
    const uint32_t *mask;
    uint32_t hidden; /* ~0 where the page lies outside the cache */
};

KVB_DI tile_source tile_at(const kvb_dev_cache &c, const kvb_dev_sequence &s, const kvb_dev_place &place, const kvb_dev_head &h, uint32_t tile)
{
    const uint32_t lane = threadIdx.x % 32, at = tile & (c.page_tokens / KVB_TILE - 1);
    uint32_t hidden;
    const uint8_t *base = mma_page(c, __ldg(s.page + (tile >> c.page_shift)), &hidden);
    return {base + place.key_codes + (at * KVB_TILE + lane) * h.code_bytes[KVB_KEY],
            base + place.value_codes + (at * KVB_TILE + lane) * h.code_bytes[KVB_VALUE], (const uint32_t *)(base + place.masks) + at, hidden};
}

KVB_DI void tile_prefetch(const uint8_t *row, uint32_t bytes)
{
    for (uint32_t i = 0; i < bytes; i += 128)
        asm volatile("prefetch.global.L1 [%0];" ::"l"(row + i));
}

/* A table of half floats to shared memory, where it has a place there. */
KVB_DI void tile_load_table(unsigned char *to, const kvb_dev_codebook &c, tile_form form)
{
    if (form != TILE_ANY)
        mma_copy_all(to, c.table, c.shape.units * c.shape.rows * c.shape.channels * 2);
}

template <bool HALVES, int DIM>
__global__ void __launch_bounds__(tile_kernel<DIM>::WARPS * 32, 1)
    attend_tile(const kvb_dev_layer l, const kvb_dev_cache c, const kvb_dev_batch b, const void *q, void *out, const kvb_dev_work w,
                uint32_t column_groups)
{
    typedef tile_kernel<DIM> M;
    extern __shared__ __align__(2048) unsigned char shared[];
    unsigned char *at = shared + M::WARPS * M::TILE_BYTES;
    const auto take = [&](uint32_t bytes) {
        unsigned char *here = at;
        at += bytes;
        return here;
    };
    unsigned char *matrix = take(M::MATRIX_BYTES), *key_table = take(M::TABLE_BYTES), *value_table = take(M::TABLE_BYTES);
    unsigned char *turns = take(M::TURN_BYTES);
    float *mean = (float *)take(M::MEAN_BYTES), *queries = (float *)take(M::QUERY_BYTES);
    uint2 *steps = (uint2 *)take(M::STEP_BYTES);
    float2 *shares = (float2 *)take(M::SHARE_BYTES);

    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, t = lane & 3;
    const mma_columns columns = mma_columns_of(l, b, column_groups);
    mma_queries<DIM, M::WARPS> loaded;
    mma_load_queries(loaded, q, l, b, columns);
    const kvb_dev_head &head = l.head[columns.head];
    const tile_form key_form = tile_form_of(head.code[KVB_KEY].shape), value_form = tile_form_of(head.code[KVB_VALUE].shape);
    tile_load_table(key_table, head.code[KVB_KEY], key_form);
    tile_load_table(value_table, head.code[KVB_VALUE], value_form);
    const bool turns_queries = l.frame_block != 0 && l.rope_style != KVB_ROPE_NONE, turns_keys = turns_queries && l.frame_block == 1;
    const bool has_matrix = head.code[KVB_KEY].inverse != NULL;
    if (has_matrix)
        for (uint32_t i = threadIdx.x; i < DIM * DIM / 8; i += blockDim.x)
            mma_copy((uint32_t)__cvta_generic_to_shared(matrix) + i / (DIM / 8) * M::ROW_BYTES + i % (DIM / 8) * 16,
                     l.mma_tables + ((size_t)columns.head * DIM * DIM + (size_t)i * 8) * 2);
    for (uint32_t i = threadIdx.x; i < 2 * DIM; i += blockDim.x) {
        const float *from = head.code[i / DIM].mean;
        mean[i] = from != NULL ? from[i % DIM] : 0.0f;
    }
    for (uint32_t i = threadIdx.x; i < 16 * DIM / 2 && turns_keys; i += blockDim.x) {
        float sine, cosine;
        sincospif(kvb_phase(l.turn[i % (DIM / 2)], i / (DIM / 2)), &sine, &cosine);
        *(float2 *)(turns + i / (DIM / 2) * M::TURN_PITCH + i % (DIM / 2) * 8) = make_float2(cosine, sine);
    }
    if (turns_queries)
        tile_put_steps<HALVES, DIM>(l, steps);
    mma_put_queries<M>(loaded, l, queries);

    const kvb_dev_place place = c.place[columns.head];
    const mma_share share = mma_share_of<M::EXACT_WEIGHT>(c, l, b, w, columns, warp, M::WARPS);
    const kvb_dev_sequence &s = share.sequence;
    const mma_extent &x = share.extent;
    mma_state<DIM> st;
    mma_clear(st);
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();

    unsigned char *room = shared + warp * M::TILE_BYTES;
    __half *mine = (__half *)(room + lane * M::ROW_BYTES);
    const uint32_t rows = (uint32_t)__cvta_generic_to_shared(room);
    const tile_keys keys = {turns, mean, (uint32_t)__cvta_generic_to_shared(matrix), has_matrix, turns_keys};
    const uint32_t own = t & 2 ? 16 + (lane >> 2) : lane >> 2; /* the token of the tile's first product that this lane scores */
    const uint32_t tile_end = min(share.to, x.coded);
    uint32_t tile = min(share.from, x.coded), since = 0;
    tile_source now = {NULL, NULL, NULL, 0};
    if (tile < tile_end)
        now = tile_at(c, s, place, head, tile);
    for (; tile < tile_end; tile++) {
        const uint32_t loaded_mask = __ldg(now.mask);
        tile_source next = now;
        if (tile + 1 < tile_end) {
            next = tile_at(c, s, place, head, tile + 1);
            tile_prefetch(next.key, head.code_bytes[KVB_KEY]);
            tile_prefetch(next.value, head.code_bytes[KVB_VALUE]);
        }
        if (since == 0)
            tile_seed<HALVES, DIM>(st, l, queries + (lane >> 2 & 3) * M::PITCH, tile * KVB_TILE + (lane >> 4) * 16, turns_queries);
        else if (turns_queries)
            tile_step<HALVES, DIM>(st, steps);
        since = turns_queries && since + 1 == M::RESEED ? 0 : since + 1;
        tile_decode_form<DIM>(key_form, head.code[KVB_KEY], now.key, (uint32_t)__cvta_generic_to_shared(key_table), mine);
        __syncwarp();
        float y[2][4], scores[2][2];
        tile_scores<HALVES, DIM>(st, keys, rows, y);
        uint32_t mask = loaded_mask | now.hidden, weights[2];
        if (tile * KVB_TILE < x.sinks || (tile + 1) * KVB_TILE > x.first)
            mask = mma_edges(mask, tile * KVB_TILE, x.sinks, x.first);
        mma_scores(y[0], !(mask >> own & 1), scores[0]);
        mma_scores(y[1], !(mask >> (own + 8) & 1), scores[1]);
        mma_softmax<DIM>(st, scores, weights);
        __syncwarp();
        tile_decode_form<DIM>(value_form, head.code[KVB_VALUE], now.value, (uint32_t)__cvta_generic_to_shared(value_table), mine);
        __syncwarp();
        tile_fold<DIM>(st, rows, weights);
        __syncwarp();
        now = next;
    }
    tile_close<DIM>(st, mean + DIM, (float *)room);
    mma_exact_tiles<M, M::EXACT_WEIGHT>(st, c, l, b, share, columns, queries);
    __syncthreads();
    mma_finish<M, DIM, M::WARPS>(st, shared, shares, l, b, columns, w, column_groups, out);
}

typedef void (*tile_fn)(kvb_dev_layer, kvb_dev_cache, kvb_dev_batch, const void *, void *, kvb_dev_work, uint32_t);

typedef struct tile_entry {
    uint32_t dim;
    bool halves;
    tile_fn kernel;
    uint32_t warps, bytes;
} tile_entry;

static const tile_entry tile_kernels[] = {
    {64, true, attend_tile<true, 64>, tile_kernel<64>::WARPS, tile_kernel<64>::SHARED_BYTES},
    {64, false, attend_tile<false, 64>, tile_kernel<64>::WARPS, tile_kernel<64>::SHARED_BYTES},
    {128, true, attend_tile<true, 128>, tile_kernel<128>::WARPS, tile_kernel<128>::SHARED_BYTES},
    {128, false, attend_tile<false, 128>, tile_kernel<128>::WARPS, tile_kernel<128>::SHARED_BYTES},
};

static const tile_entry *find_kernel(uint32_t dim, bool halves)
{
    for (const tile_entry &k : tile_kernels)
        if (k.dim == dim && k.halves == halves)
            return &k;
    return NULL;
}

int kvb_tile_residency(uint32_t dim, bool halves)
{
    const tile_entry *k = find_kernel(dim, halves);
    return k == NULL ? 0 : mma_ready((const void *)k->kernel, (int)k->warps * 32, k->bytes);
}

cudaError_t kvb_tile_launch(bool halves, const kvb_dev_layer *layer, const kvb_dev_cache *cache, const kvb_dev_batch *batch, const void *q,
                            void *out, const kvb_dev_work *work, uint32_t column_groups, cudaStream_t stream)
{
    const tile_entry *k = find_kernel(layer->dim, halves);
    if (k == NULL)
        return cudaErrorInvalidDeviceFunction;
    k->kernel<<<dim3(work->splits, layer->kv_heads, batch->sequences * column_groups), k->warps * 32, k->bytes, stream>>>(
        *layer, *cache, *batch, q, out, *work, column_groups);
    return cudaGetLastError();
}
