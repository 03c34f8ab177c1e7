/* Which shapes have a fast kernel, and their tables. A shape that is not here runs on the plain kernel. */
#include "cuda/cuda_mma_select.cuh"

typedef cudaError_t (*mma_start_fn)(const kvb_dev_layer *, const kvb_dev_cache *, const kvb_dev_batch *, const void *, void *,
                                    const kvb_dev_work *, uint32_t, cudaStream_t);
typedef struct mma_entry {
    kvb_mma_choice choice;
    uint32_t dim, head_bytes;
    mma_start_fn start;
    int (*resident)(void);
    void (*tables)(const uint8_t *, const uint8_t *, uint8_t *);
} mma_entry;

#define MMA_ENTRY(kind, dim, halves, bytes)                                                                             \
    {{kind, halves, bytes}, dim, mma_kernel<kind, halves, dim, bytes>::HEAD_BYTES, mma_start<kind, halves, dim, bytes>, \
     mma_resident<kind, halves, dim, bytes>, mma_tables<mma_kernel<kind, halves, dim, bytes>, halves>}
#define MMA_BOTH(kind, dim, halves) MMA_ENTRY(kind, dim, halves, false), MMA_ENTRY(kind, dim, halves, true)
#define SELECT_ENTRY(dim, halves)                                                                                     \
    {{KVB_MMA_4X16, halves, true}, dim, select_kernel<halves, dim, 8>::HEAD_BYTES, select_start<halves, dim>,                \
     select_resident<halves, dim>, select_tables<halves, dim>}
static const mma_entry entries[] = {
    SELECT_ENTRY(64, true),                          SELECT_ENTRY(128, true),
    SELECT_ENTRY(64, false),                         SELECT_ENTRY(128, false),
    MMA_ENTRY(KVB_MMA_4X16, 64, true, false),      MMA_ENTRY(KVB_MMA_4X16, 128, true, false),
    MMA_ENTRY(KVB_MMA_4X16, 256, true, false),     MMA_ENTRY(KVB_MMA_4X16, 64, false, false),
    MMA_ENTRY(KVB_MMA_4X16, 128, false, false),    MMA_BOTH(KVB_MMA_ADD_8X16, 64, true),
    MMA_BOTH(KVB_MMA_ADD_8X16, 128, true),         MMA_BOTH(KVB_MMA_ADD_8X16, 256, true),
    MMA_BOTH(KVB_MMA_ADD_8X16, 64, false),         MMA_BOTH(KVB_MMA_ADD_8X16, 128, false),
    MMA_BOTH(KVB_MMA_8X256, 64, true),             MMA_BOTH(KVB_MMA_8X256, 128, true),
    MMA_BOTH(KVB_MMA_8X256, 64, false),            MMA_BOTH(KVB_MMA_8X256, 128, false),
    MMA_BOTH(KVB_MMA_4X256, 64, true),             MMA_BOTH(KVB_MMA_4X256, 128, true),
    MMA_BOTH(KVB_MMA_4X256, 64, false),            MMA_BOTH(KVB_MMA_4X256, 128, false),
    MMA_ENTRY(KVB_MMA_2X256, 64, true, false),     MMA_ENTRY(KVB_MMA_2X256, 128, true, false),
    MMA_BOTH(KVB_MMA_16X256, 128, true),           MMA_BOTH(KVB_MMA_16X256, 128, false),
    MMA_ENTRY(KVB_MMA_16X4096, 64, true, false),   MMA_ENTRY(KVB_MMA_16X4096, 128, true, false),
    MMA_ENTRY(KVB_MMA_16X4096, 256, true, false),  MMA_ENTRY(KVB_MMA_16X4096, 64, false, false),
    MMA_ENTRY(KVB_MMA_16X4096, 128, false, false), MMA_ENTRY(KVB_MMA_32X4096, 64, true, false),
    MMA_ENTRY(KVB_MMA_32X4096, 128, true, false),  MMA_ENTRY(KVB_MMA_32X4096, 256, true, false),
    MMA_ENTRY(KVB_MMA_32X4096, 64, false, false),  MMA_ENTRY(KVB_MMA_32X4096, 128, false, false),
};

static const mma_entry *find_entry(kvb_mma_choice choice, uint32_t dim)
{
    for (const mma_entry &e : entries)
        if (e.choice.kind == choice.kind && e.choice.halves == choice.halves && e.choice.bytes == choice.bytes && e.dim == dim)
            return &e;
    return NULL;
}

kvb_mma_shape kvb_mma_shape_of(const kvb_shape *s)
{
    const struct { kvb_mma_shape kind; uint32_t channels, rows, stages; } known[] = {
        {KVB_MMA_4X16, 4, 16, 1},       {KVB_MMA_ADD_8X16, 8, 16, 2},   {KVB_MMA_8X256, 8, 256, 1},
        {KVB_MMA_4X256, 4, 256, 1},     {KVB_MMA_2X256, 2, 256, 1},     {KVB_MMA_16X256, 16, 256, 1},
        {KVB_MMA_16X4096, 16, 4096, 1}, {KVB_MMA_32X4096, 32, 4096, 1},
    };
    for (const auto &k : known)
        if (s->channels == k.channels && s->rows == k.rows && s->stages == k.stages)
            return k.kind;
    return KVB_MMA_NONE;
}

uint32_t kvb_mma_layout(kvb_mma_choice choice)
{
    if (choice.kind == KVB_MMA_NONE || choice.kind == KVB_MMA_TILE || choice.kind == KVB_MMA_16X4096 || choice.kind == KVB_MMA_32X4096)
        return KVB_LAYOUT_ROWS;
    if (choice.kind == KVB_MMA_4X16 && choice.bytes)
        return choice.halves ? KVB_LAYOUT_UNITS_HALF : KVB_LAYOUT_UNITS_QUARTER;
    return choice.halves ? KVB_LAYOUT_LANES_HALF : KVB_LAYOUT_LANES_QUARTER;
}

int kvb_mma_residency(kvb_mma_choice choice, uint32_t dim)
{
    const mma_entry *entry = find_entry(choice, dim);
    return entry == NULL ? 0 : entry->resident();
}

/* A table as rows of the kernel: half floats, or bytes by the steps of its channels, `zero` for 0. `pairs`: of each four channels the two that RoPE
 * turns alike come to lie side by side. */
static std::vector<uint8_t> table_rows(const kvb_shape *s, const uint16_t *table, const float *step, bool bytes, long zero, bool pairs)
{
    const size_t all = (size_t)s->units * s->rows * s->channels, size = bytes ? 1 : 2;
    std::vector<uint8_t> to(all * size);
    for (size_t i = 0; i < all; i++) {
        const size_t from = pairs && i % 4 == 1 ? i + 1 : pairs && i % 4 == 2 ? i - 1 : i;
        const size_t channel = from / s->channels / s->rows / s->stages * s->channels + from % s->channels;
        if (bytes)
            to[i] = (uint8_t)(lrintf(kvb_half_to_float(table[from]) / step[channel]) + zero);
        else
            memcpy(&to[2 * i], &table[from], 2);
    }
    return to;
}

void kvb_mma_put_tables(kvb_mma_choice choice, const kvb_shape *s, const uint16_t *const table[2], const float *const step[2],
                        std::vector<uint8_t> &to)
{
    const mma_entry *entry = find_entry(choice, s->dim);
    const size_t begin = to.size();
    to.resize(begin + entry->head_bytes);
    /* 4x16 in bytes: keys stay half floats, and no entry of the values' is negative. */
    const bool select = choice.kind == KVB_MMA_4X16 && choice.bytes;
    const long zero = select ? (long)SELECT_ZERO : 128 / (long)s->stages;
    const std::vector<uint8_t> key = table_rows(s, table[0], step[0], choice.bytes && !select, zero, !choice.halves && !select);
    const std::vector<uint8_t> value = table_rows(s, table[1], step[1], choice.bytes, zero, false);
    entry->tables(key.data(), value.data(), to.data() + begin);
    for (uint32_t kind = select; kind < 2 && choice.bytes; kind++)
        memcpy(to.data() + begin + entry->head_bytes - (2 - kind) * s->dim * sizeof(float), step[kind], s->dim * sizeof(float));
}

cudaError_t kvb_mma_launch(kvb_mma_choice choice, const kvb_dev_layer *layer, const kvb_dev_cache *cache,
                           const kvb_dev_batch *batch, const void *q, void *out, const kvb_dev_work *work,
                           uint32_t column_groups, cudaStream_t stream)
{
    if (choice.kind == KVB_MMA_TILE)
        return kvb_tile_launch(choice.halves, layer, cache, batch, q, out, work, column_groups, stream);
    const mma_entry *entry = find_entry(choice, layer->dim);
    return entry == NULL ? cudaErrorInvalidDeviceFunction
                         : entry->start(layer, cache, batch, q, out, work, column_groups, stream);
}
