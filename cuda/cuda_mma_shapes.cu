/* Which shapes have a fast kernel, and their tables. A shape that is not here runs on the plain kernel. */
#include "cuda/cuda_mma_kernel.cuh"

typedef cudaError_t (*mma_start_fn)(const kvb_dev_layer *, const kvb_dev_cache *, const kvb_dev_batch *, const void *, void *,
                                    const kvb_dev_work *, uint32_t, cudaStream_t);
typedef struct mma_entry {
    kvb_mma_shape kind;
    uint32_t dim;
    bool halves;
    mma_start_fn start;
    int (*resident)(void);
    void (*tables)(const uint16_t *, const uint16_t *, std::vector<uint8_t> &);
} mma_entry;

#define MMA_ENTRY(kind, dim, halves)                                                             \
    {kind, dim, halves, mma_start<kind, halves, dim>, mma_resident<kind, halves, dim>, mma_tables<mma_kernel<kind, halves, dim>, halves>}
static const mma_entry entries[] = {
    MMA_ENTRY(KVB_MMA_4X16, 64, true),      MMA_ENTRY(KVB_MMA_4X16, 128, true),     MMA_ENTRY(KVB_MMA_4X16, 256, true),
    MMA_ENTRY(KVB_MMA_4X16, 64, false),     MMA_ENTRY(KVB_MMA_4X16, 128, false),
    MMA_ENTRY(KVB_MMA_ADD_8X16, 64, true),  MMA_ENTRY(KVB_MMA_ADD_8X16, 128, true), MMA_ENTRY(KVB_MMA_ADD_8X16, 256, true),
    MMA_ENTRY(KVB_MMA_ADD_8X16, 64, false), MMA_ENTRY(KVB_MMA_ADD_8X16, 128, false),
    MMA_ENTRY(KVB_MMA_8X256, 64, true),     MMA_ENTRY(KVB_MMA_8X256, 128, true),
    MMA_ENTRY(KVB_MMA_8X256, 64, false),    MMA_ENTRY(KVB_MMA_8X256, 128, false),
    MMA_ENTRY(KVB_MMA_4X256, 64, true),     MMA_ENTRY(KVB_MMA_4X256, 128, true),
    MMA_ENTRY(KVB_MMA_4X256, 64, false),    MMA_ENTRY(KVB_MMA_4X256, 128, false),
    MMA_ENTRY(KVB_MMA_2X256, 64, true),     MMA_ENTRY(KVB_MMA_2X256, 128, true),
    MMA_ENTRY(KVB_MMA_16X256, 128, true),   MMA_ENTRY(KVB_MMA_16X256, 128, false),
    MMA_ENTRY(KVB_MMA_16X4096, 64, true),   MMA_ENTRY(KVB_MMA_16X4096, 128, true),  MMA_ENTRY(KVB_MMA_16X4096, 256, true),
    MMA_ENTRY(KVB_MMA_16X4096, 64, false),  MMA_ENTRY(KVB_MMA_16X4096, 128, false),
    MMA_ENTRY(KVB_MMA_32X4096, 64, true),   MMA_ENTRY(KVB_MMA_32X4096, 128, true),  MMA_ENTRY(KVB_MMA_32X4096, 256, true),
    MMA_ENTRY(KVB_MMA_32X4096, 64, false),  MMA_ENTRY(KVB_MMA_32X4096, 128, false),
};

static const mma_entry *find_entry(kvb_mma_shape kind, bool halves, uint32_t dim)
{
    for (size_t i = 0; i < sizeof entries / sizeof *entries; i++)
        if (entries[i].kind == kind && entries[i].halves == halves && entries[i].dim == dim)
            return entries + i;
    return NULL;
}

kvb_mma_shape kvb_mma_shape_of(const kvb_shape *s)
{
    const struct { kvb_mma_shape kind; uint32_t channels, rows, stages; } known[] = {
        {KVB_MMA_4X16, 4, 16, 1},   {KVB_MMA_ADD_8X16, 8, 16, 2}, {KVB_MMA_8X256, 8, 256, 1},
        {KVB_MMA_4X256, 4, 256, 1}, {KVB_MMA_2X256, 2, 256, 1},   {KVB_MMA_16X256, 16, 256, 1},
        {KVB_MMA_16X4096, 16, 4096, 1}, {KVB_MMA_32X4096, 32, 4096, 1},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (s->channels == known[i].channels && s->rows == known[i].rows && s->stages == known[i].stages)
            return known[i].kind;
    return KVB_MMA_NONE;
}

int kvb_mma_residency(kvb_mma_shape kind, bool halves, uint32_t dim)
{
    const mma_entry *entry = find_entry(kind, halves, dim);
    return entry == NULL ? 0 : entry->resident();
}

uint32_t kvb_mma_layout(kvb_mma_shape kind, bool halves)
{
    if (kind == KVB_MMA_NONE || kind == KVB_MMA_16X4096 || kind == KVB_MMA_32X4096)
        return KVB_LAYOUT_ROWS;
    return halves ? KVB_LAYOUT_LANES_HALF : KVB_LAYOUT_LANES_QUARTER;
}

void kvb_mma_put_tables(kvb_mma_shape kind, bool halves, const kvb_shape *s, const uint16_t *key, const uint16_t *value,
                        std::vector<uint8_t> &to)
{
    const size_t all = (size_t)s->units * s->rows * s->channels;
    std::vector<uint16_t> turned(key, key + all);
    /* RoPE pairs of neighbours: of each four channels the two that are turned alike come to lie side by side. */
    for (size_t i = 0; i < all && !halves; i++)
        turned[i] = key[i - i % 4 + (i % 4 == 1 ? 2 : i % 4 == 2 ? 1 : i % 4)];
    std::vector<uint8_t> bytes;
    find_entry(kind, halves, s->dim)->tables(turned.data(), value, bytes);
    to.insert(to.end(), bytes.begin(), bytes.end());
}

cudaError_t kvb_mma_launch(kvb_mma_shape kind, bool halves, const kvb_dev_layer *layer, const kvb_dev_cache *cache,
                           const kvb_dev_batch *batch, const void *q, void *out, const kvb_dev_work *work,
                           uint32_t column_groups, cudaStream_t stream)
{
    const mma_entry *entry = find_entry(kind, halves, layer->dim);
    return entry == NULL ? cudaErrorInvalidDeviceFunction
                         : entry->start(layer, cache, batch, q, out, work, column_groups, stream);
}
