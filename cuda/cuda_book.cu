/* A book in device memory. */
#include "cuda/cuda_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

kvb_status kvb_cuda_fail(kvb_error *err, const char *what, cudaError_t code)
{
    cudaGetLastError(); /* not to be told of again */
    if (code == cudaErrorMemoryAllocation)
        return kvb_fail(err, KVB_E_MEMORY, what, "out of device memory: make the cache smaller, or free some");
    return kvb_fail(err, KVB_E_DEVICE, what, "%s (%s)", cudaGetErrorString(code), cudaGetErrorName(code));
}

/* One block of device memory, filled on the host first: offsets now, pointers once it is there. */
struct upload {
    std::vector<uint8_t> bytes;
    size_t put(const void *data, size_t size)
    {
        const size_t at = (bytes.size() + 255) / 256 * 256;
        bytes.resize(at + size);
        if (size != 0)
            memcpy(bytes.data() + at, data, size);
        return at;
    }
};

static const size_t NOWHERE = SIZE_MAX;

struct codebook_offsets {
    size_t table = NOWHERE, mean = NOWHERE, forward = NOWHERE, inverse = NOWHERE;
};

static size_t put_transposed(upload &u, const float *matrix, uint32_t dim)
{
    std::vector<float> turned((size_t)dim * dim);
    for (uint32_t i = 0; i < dim; i++)
        for (uint32_t j = 0; j < dim; j++)
            turned[(size_t)j * dim + i] = matrix[(size_t)i * dim + j];
    return u.put(turned.data(), turned.size() * sizeof(float));
}

static kvb_shape shape_of(const kvb_codebook *c, uint32_t dim)
{
    uint32_t bits = 0;
    while (1u << bits < c->stage_centroids)
        bits++;
    return kvb_shape{dim, c->channels, c->stages, c->stage_centroids, bits, c->groups * c->stages, KVB_LAYOUT_ROWS};
}

static codebook_offsets put_codebook(upload &u, const kvb_codebook *c, uint32_t dim)
{
    codebook_offsets o;
    o.table = u.put(c->table, (size_t)c->groups * c->stages * c->stage_centroids * c->channels * sizeof(uint16_t));
    if (c->mean != NULL)
        o.mean = u.put(c->mean, dim * sizeof(float));
    if (c->forward != NULL)
        o.forward = put_transposed(u, c->forward, dim);
    if (c->inverse != NULL)
        o.inverse = put_transposed(u, c->inverse, dim);
    return o;
}

template <class T> static const T *at(const void *base, size_t offset)
{
    return offset == NOWHERE ? NULL : (const T *)((const uint8_t *)base + offset);
}

static kvb_dev_codebook place_codebook(const kvb_shape &shape, const codebook_offsets &o, const void *base)
{
    return kvb_dev_codebook{shape, at<__half>(base, o.table), at<float>(base, o.mean), at<float>(base, o.forward),
                            at<float>(base, o.inverse)};
}

static kvb_status check_layer(const kvb_book *book, uint32_t index, kvb_error *err)
{
    const kvb_layer *l = kvb_book_layer(book, index);
    char where[32];
    snprintf(where, sizeof where, "layer %u", index);
    if (l->head_dim > KVB_CUDA_MOST_DIM || l->head_dim % 16 != 0)
        return kvb_fail(err, KVB_E_USAGE, where, "head dimension %u has no kernel: expected a multiple of 16 up to %u; use the CPU "
                        "cache", l->head_dim, (unsigned)KVB_CUDA_MOST_DIM);
    for (uint32_t g = 0; g < l->kv_heads; g++)
        for (int kind = 0; kind < 2; kind++)
            for (int fine = 0; fine < 2; fine++) {
                const kvb_codebook *c = fine ? kvb_book_fine(book, index, g, (kvb_kind)kind)
                                             : kvb_book_codebook(book, index, g, (kvb_kind)kind);
                if (c == NULL)
                    continue;
                if (c->scaling != NULL)
                    return kvb_fail(err, KVB_E_USAGE, where, "numbers coded one by one, with scales found while coding, have no kernel: use "
                                    "the CPU cache");
                if (c->code_bits > 16)
                    return kvb_fail(err, KVB_E_USAGE, where, "codes of %u bits (%u stages of %u) have no kernel: expected 16 bits at "
                                    "most; use the CPU cache, or train with fewer stages", c->code_bits, c->stages,
                                    c->stage_centroids);
                if (c->groups * c->stages > 1024)
                    return kvb_fail(err, KVB_E_USAGE, where, "%u indices a token have no kernel: expected 1024 at most",
                                    c->groups * c->stages);
            }
    return KVB_OK;
}

static bool same_shape(const kvb_shape &a, const kvb_shape &b)
{
    return a.channels == b.channels && a.stages == b.stages && a.rows == b.rows;
}

/* Where the tables of a layer are multiples of steps: the steps [G][2][D], else none. */
static std::vector<float> grid_steps(const kvb_book *book, uint32_t index)
{
    const kvb_layer *l = kvb_book_layer(book, index);
    std::vector<float> step((size_t)l->kv_heads * 2 * l->head_dim);
    for (uint32_t g = 0; g < l->kv_heads; g++)
        for (uint32_t k = 0; k < 2; k++) {
            const kvb_codebook *c = kvb_book_codebook(book, index, g, (kvb_kind)k);
            const kvb_grid grid = kvb_grid_of(l, (kvb_kind)k, c->channels, c->stages, c->stage_centroids);
            std::vector<float> table((size_t)l->head_dim * c->stages * c->stage_centroids);
            kvb_half_to_floats(table.data(), c->table, table.size());
            float *mine = &step[((size_t)g * 2 + k) * l->head_dim];
            kvb_grid_steps(&grid, table.data(), mine);
            if (!kvb_grid_holds(&grid, table.data(), mine))
                return {};
        }
    return step;
}

/* Whether a kernel made for one shape fits keys that it need not turn; then the others tell which, how many of its blocks fit on a
 * multiprocessor, and the steps of tables of bytes. */
static bool choose_shape(const kvb_book *book, uint32_t index, bool halves, kvb_mma_choice *choice, int *resident, std::vector<float> &step)
{
    const kvb_layer *l = kvb_book_layer(book, index);
    const kvb_shape shape = shape_of(kvb_book_codebook(book, index, 0, KVB_KEY), l->head_dim);
    for (uint32_t g = 0; g < l->kv_heads; g++)
        for (int k = 0; k < 2; k++) {
            const kvb_codebook *c = kvb_book_codebook(book, index, g, (kvb_kind)k);
            if (!same_shape(shape, shape_of(c, l->head_dim)))
                return false;
            if (c->mean != NULL || c->forward != NULL)
                return false;
        }
    kvb_mma_choice found = {kvb_mma_shape_of(&shape), halves, true};
    if (found.kind != KVB_MMA_NONE)
        step = grid_steps(book, index);
    *resident = step.empty() ? 0 : kvb_mma_residency(found, l->head_dim);
    if (*resident == 0) {
        step.clear();
        found.bytes = false;
        *resident = kvb_mma_residency(found, l->head_dim);
    }
    if (*resident == 0)
        return false;
    *choice = found;
    return true;
}

static bool fits_halves(const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!(fabsf(x[i]) < 60000.0f))
            return false;
    return true;
}

/* Why no fast kernel fits, or NULL; then the others tell as choose_shape() does. */
static const char *choose_kernel(const kvb_book *book, uint32_t index, kvb_mma_choice *choice, int *resident, std::vector<float> &step)
{
    const kvb_layer *l = kvb_book_layer(book, index);
    const bool turns = l->rope_style != KVB_ROPE_NONE && l->frame != KVB_FRAME_POST, halves = !turns || l->rope_style == KVB_ROPE_HALF;
    *choice = {KVB_MMA_NONE, true, false};
    if (l->kind == KVB_LAYER_SLIDING)
        return "a sliding layer";
    if (turns && l->frame != KVB_FRAME_PRE && l->rope_block != 16)
        return "the frame is not block:16";
    if (turns && l->rope_dims != l->head_dim)
        return "part of the channels has no RoPE";
    if (!(turns && l->frame == KVB_FRAME_PRE) && choose_shape(book, index, halves, choice, resident, step))
        return NULL;
    for (uint32_t g = 0; g < l->kv_heads; g++) {
        const float *inverse = kvb_book_codebook(book, index, g, KVB_KEY)->inverse;
        if (kvb_book_codebook(book, index, g, KVB_VALUE)->inverse != NULL)
            return "values have a transform";
        if (inverse != NULL && !fits_halves(inverse, (size_t)l->head_dim * l->head_dim))
            return "the transform does not fit half floats";
    }
    *resident = kvb_tile_residency(l->head_dim, halves);
    if (*resident == 0)
        return "no faster kernel is compiled for the head dimension";
    *choice = {KVB_MMA_TILE, halves, false};
    return NULL;
}

/* The inverses [G][D][D] of the keys' transforms as half floats; nothing where no head has one. */
static std::vector<uint8_t> key_inverses(const kvb_book *book, uint32_t index)
{
    const kvb_layer *l = kvb_book_layer(book, index);
    const size_t each = (size_t)l->head_dim * l->head_dim;
    std::vector<uint8_t> to;
    for (uint32_t g = 0; g < l->kv_heads; g++) {
        const float *inverse = kvb_book_codebook(book, index, g, KVB_KEY)->inverse;
        if (inverse == NULL)
            continue;
        to.resize(l->kv_heads * each * 2);
        for (size_t i = 0; i < each; i++) {
            const uint16_t half = kvb_half_from_float(inverse[i]);
            memcpy(&to[(g * each + i) * 2], &half, 2);
        }
    }
    return to;
}

static kvb_status upload_layer(kvb_cuda_book *b, uint32_t index, kvb_error *err)
{
    const kvb_layer *l = kvb_book_layer(b->book, index);
    kvb_host_layer *to = b->layer + index;
    const uint32_t G = l->kv_heads, dim = l->head_dim, pairs = l->rope_style == KVB_ROPE_NONE ? 0 : l->rope_dims / 2;
    to->has_codes = l->kind != KVB_LAYER_UNSUPPORTED;
    if (!to->has_codes) {
        snprintf(to->kernel, sizeof to->kernel, "none: the book does not support this layer");
        return KVB_OK;
    }
    kvb_status status = check_layer(b->book, index, err);
    if (status != KVB_OK)
        return status;
    std::vector<float> step;
    const char *why = choose_kernel(b->book, index, &to->mma, &to->mma_resident, step);
    const uint32_t layout = kvb_mma_layout(to->mma);

    upload u;
    std::vector<uint64_t> turn(pairs);
    for (uint32_t i = 0; i < pairs; i++)
        turn[i] = kvb_turn(l->rope_base, i, l->rope_dims, l->rope_factors != NULL ? (double)l->rope_factors[i] : 1.0);
    const size_t turn_at = pairs != 0 ? u.put(turn.data(), pairs * sizeof turn[0]) : NOWHERE;
    std::vector<codebook_offsets> offsets(G * 4);
    std::vector<kvb_shape> shapes(G * 4, kvb_shape{});
    for (uint32_t g = 0; g < G; g++)
        for (uint32_t i = 0; i < 4; i++) {
            const kvb_kind kind = (kvb_kind)(i % 2);
            const kvb_codebook *c = i < 2 ? kvb_book_codebook(b->book, index, g, kind) : kvb_book_fine(b->book, index, g, kind);
            if (c == NULL)
                continue;
            shapes[g * 4 + i] = shape_of(c, dim);
            shapes[g * 4 + i].layout = i < 2 ? layout : (uint32_t)KVB_LAYOUT_ROWS;
            offsets[g * 4 + i] = put_codebook(u, c, dim);
        }
    size_t tables_at = NOWHERE;
    if (to->mma.kind == KVB_MMA_TILE) {
        const std::vector<uint8_t> inverses = key_inverses(b->book, index);
        tables_at = u.put(inverses.data(), inverses.size());
    } else if (to->mma.kind != KVB_MMA_NONE) {
        std::vector<uint8_t> tables;
        for (uint32_t g = 0; g < G; g++) {
            const uint16_t *const table[2] = {kvb_book_codebook(b->book, index, g, KVB_KEY)->table,
                                              kvb_book_codebook(b->book, index, g, KVB_VALUE)->table};
            const float *const steps[2] = {step.empty() ? NULL : &step[(size_t)g * 2 * dim],
                                           step.empty() ? NULL : &step[((size_t)g * 2 + 1) * dim]};
            kvb_mma_put_tables(to->mma, &shapes[0], table, steps, tables);
        }
        tables_at = u.put(tables.data(), tables.size());
    }
    const size_t heads_at = u.put(NULL, 0);
    u.bytes.resize(heads_at + G * sizeof(kvb_dev_head));
    KVB_CUDA_TRY(status, err, "a layer of the book", cudaMalloc(&to->memory, u.bytes.size()));
    if (status != KVB_OK)
        return status;
    std::vector<kvb_dev_head> heads(G);
    for (uint32_t g = 0; g < G; g++)
        for (int kind = 0; kind < 2; kind++) {
            heads[g].code[kind] = place_codebook(shapes[g * 4 + (size_t)kind], offsets[g * 4 + (size_t)kind], to->memory);
            heads[g].fine[kind] = place_codebook(shapes[g * 4 + 2 + (size_t)kind], offsets[g * 4 + 2 + (size_t)kind], to->memory);
            heads[g].code_bytes[kind] = kvb_shape_row_bytes(&heads[g].code[kind].shape);
        }
    memcpy(u.bytes.data() + heads_at, heads.data(), G * sizeof(kvb_dev_head));
    KVB_CUDA_TRY(status, err, "a layer of the book",
                 cudaMemcpy(to->memory, u.bytes.data(), u.bytes.size(), cudaMemcpyHostToDevice));
    to->host_head = (kvb_dev_head *)malloc(G * sizeof(kvb_dev_head));
    if (status == KVB_OK && to->host_head == NULL)
        status = kvb_fail_memory(err, "a layer of the book");
    if (status != KVB_OK)
        return status;
    memcpy(to->host_head, heads.data(), G * sizeof(kvb_dev_head));
    to->dev = kvb_dev_layer{};
    to->dev.index = index;
    to->dev.heads = l->heads;
    to->dev.kv_heads = G;
    to->dev.rows = l->heads / G;
    to->dev.dim = dim;
    to->dev.sliding = l->kind == KVB_LAYER_SLIDING ? l->sliding_window : 0;
    to->dev.frame_block = l->frame == KVB_FRAME_POST ? 0 : l->frame == KVB_FRAME_PRE ? 1 : l->rope_block;
    to->dev.rope_style = (uint32_t)l->rope_style;
    to->dev.rope_dims = pairs * 2;
    to->dev.scale = (float)l->attention_scale;
    to->dev.turn = at<uint64_t>(to->memory, turn_at);
    to->dev.head = at<kvb_dev_head>(to->memory, heads_at);
    to->dev.mma_tables = at<uint8_t>(to->memory, tables_at);
    uint32_t units = 0;
    for (const kvb_shape &shape : shapes)
        units = shape.units > units ? shape.units : units;
    KVB_CUDA_TRY(status, err, "a layer of the book", kvb_append_prepare(&to->dev, units));
    const kvb_shape &s = shapes[0];
    if (why != NULL)
        snprintf(to->kernel, sizeof to->kernel, "plain: %s", why);
    else if (to->mma.kind == KVB_MMA_TILE)
        snprintf(to->kernel, sizeof to->kernel, "tiles of any shapes");
    else
        snprintf(to->kernel, sizeof to->kernel, "mma %s%ux%u%s%s", s.stages == 1 ? "" : "add:", s.channels, s.rows,
                 s.stages == 1 ? "" : "+16", to->mma.bytes ? " in bytes" : "");
    return status;
}

static kvb_status open_device(int device, int *multiprocessors, kvb_error *err)
{
    int count = 0;
    const cudaError_t code = cudaGetDeviceCount(&count);
    if (code != cudaSuccess || count == 0) {
        cudaGetLastError();
        return kvb_fail(err, KVB_E_DEVICE, "device", "no CUDA device: %s",
                        code != cudaSuccess ? cudaGetErrorString(code) : "none is installed");
    }
    if (device < 0 || device >= count)
        return kvb_fail(err, KVB_E_DEVICE, "device", "found %d, expected 0 .. %d", device, count - 1);
    int major = 0, minor = 0;
    kvb_status status = KVB_OK;
    KVB_CUDA_TRY(status, err, "device", cudaSetDevice(device));
    KVB_CUDA_TRY(status, err, "device", cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    KVB_CUDA_TRY(status, err, "device", cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
    KVB_CUDA_TRY(status, err, "device", cudaDeviceGetAttribute(multiprocessors, cudaDevAttrMultiProcessorCount, device));
    if (status == KVB_OK && major < 8)
        return kvb_fail(err, KVB_E_DEVICE, "device", "compute capability %d.%d, expected 8.0 or newer", major, minor);
    return status;
}

kvb_status kvb_cuda_book_create(const kvb_book *book, int device, kvb_cuda_book **out, kvb_error *err)
{
    *out = NULL;
    int multiprocessors = 0;
    kvb_status status = open_device(device, &multiprocessors, err);
    if (status != KVB_OK)
        return status;
    kvb_cuda_book *b = (kvb_cuda_book *)calloc(1, sizeof *b);
    if (b == NULL)
        return kvb_fail_memory(err, "a book on the device");
    b->book = book;
    b->device = device;
    b->multiprocessors = multiprocessors;
    b->layers = kvb_book_layers(book);
    b->layer = (kvb_host_layer *)calloc(b->layers, sizeof *b->layer);
    if (b->layer == NULL)
        status = kvb_fail_memory(err, "a book on the device");
    for (uint32_t i = 0; i < b->layers && status == KVB_OK; i++)
        status = upload_layer(b, i, err);
    if (status != KVB_OK) {
        kvb_cuda_book_destroy(b);
        return status;
    }
    *out = b;
    return KVB_OK;
}

void kvb_cuda_book_destroy(kvb_cuda_book *book)
{
    if (book == NULL)
        return;
    for (uint32_t i = 0; i < book->layers && book->layer != NULL; i++) {
        cudaFree(book->layer[i].memory);
        free(book->layer[i].host_head);
    }
    free(book->layer);
    free(book);
}

const char *kvb_cuda_book_kernel(const kvb_cuda_book *book, uint32_t layer)
{
    return layer < book->layers ? book->layer[layer].kernel : "none: no such layer";
}
