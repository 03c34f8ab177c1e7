#include "cuda/calib/cuda_kmeans.h"

#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <new>
#include <vector>

#include "cuda/calib/cuda_kmeans_kernels.cuh"
#include "cuda/calib/cuda_try.cuh"

static const uint32_t CHUNK = 1024; /* points of a warp's share of the sort */

/* Offsets into the arrays of one side. */
struct side_state {
    std::vector<kvb_dev_problem> host;
    kvb_dev_points dev = {};
    uint32_t most_points = 0, most_chunks = 0;
};

struct kvb_cuda_points {
    int device = 0;
    uint32_t width = 0, holdout_every = 0, holdout_block = 0, most_centroids = 0;
    size_t count = 0, table_floats = 0, sum_doubles = 0, rows = 0; /* of all problems; rows: centroids */
    side_state side[2];
    std::vector<uint32_t> centroids;
    std::vector<void *> memory;
    float *compact = nullptr; /* tables as they come */
    double *sums = nullptr;
};

/* A stretch of host memory that problems read, and where it lies on the device. */
struct stretch {
    const char *begin, *end;
    char *device;
};

static const char memory_hint[] = "use fewer rows (--max-memory), or the CPU";

uint32_t kvb_cuda_points_width(uint32_t channels)
{
    uint32_t width = 2;
    while (width < channels)
        width *= 2;
    return width;
}

kvb_status kvb_cuda_points_devices(uint32_t *count, kvb_error *err)
{
    int there = 0;
    const cudaError_t code = cudaGetDeviceCount(&there);
    *count = 0;
    if (code == cudaErrorNoDevice || code == cudaErrorInsufficientDriver) {
        (void)cudaGetLastError();
        return KVB_OK;
    }
    kvb_status status = KVB_OK;
    TRY(status, err, "counting devices", code);
    *count = (uint32_t)there;
    return status;
}

kvb_status kvb_cuda_points_device(int device, kvb_error *err)
{
    int count = 0, major = 0;
    const cudaError_t code = cudaGetDeviceCount(&count);
    if (code != cudaSuccess || device < 0 || device >= count) {
        (void)cudaGetLastError();
        return kvb_fail(err, KVB_E_DEVICE, "--device cuda", "no CUDA device %d (%s): expected an NVIDIA GPU of compute "
                        "capability 8.0 or newer with its driver; use --device cpu",
                        device, code != cudaSuccess ? cudaGetErrorString(code) : "fewer devices than that");
    }
    kvb_status status = KVB_OK;
    TRY(status, err, "device properties", cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    if (status == KVB_OK && major < 8)
        return kvb_fail(err, KVB_E_DEVICE, "--device cuda", "device %d has compute capability %d.x; expected 8.0 or newer",
                        device, major);
    return status;
}

kvb_status kvb_cuda_points_room(int device, uint64_t *bytes, kvb_error *err)
{
    size_t room = 0, total = 0;
    kvb_status status = KVB_OK;
    TRY(status, err, "choosing a device", cudaSetDevice(device));
    TRY(status, err, "device memory", cudaMemGetInfo(&room, &total));
    *bytes = room;
    return status;
}

static uint32_t chunk_of(uint32_t centroids)
{
    return centroids > CHUNK ? (centroids + 31) / 32 * 32 : CHUNK;
}

uint64_t kvb_cuda_points_bytes(const kvb_cuda_problem *p)
{
    const uint64_t width = kvb_cuda_points_width(p->channels), k = p->centroids;
    const uint64_t point = 4 * (width + 4), chunks = p->count / chunk_of(p->centroids) + 2;
    return p->count * point + 4 * k * (chunks + 2 * width + 8) + 8 * k * (p->channels + 3);
}

template <typename T>
static kvb_status take(kvb_cuda_points *b, T **to, size_t count, kvb_error *err)
{
    kvb_status status = KVB_OK;
    void *memory = nullptr;
    TRY(status, err, "k-means points", cudaMalloc(&memory, std::max(count, (size_t)1) * sizeof(T)));
    if (status == KVB_OK)
        b->memory.push_back(memory);
    *to = (T *)memory;
    return status;
}

/* The stretches of all problems, those that touch merged: problems of one head read the same rows. */
static std::vector<stretch> stretches_of(const kvb_cuda_problem *problems, size_t count)
{
    std::vector<stretch> all, merged;
    for (size_t i = 0; i < count; i++) {
        const kvb_cuda_problem *p = &problems[i];
        const char *begin = (const char *)p->points;
        all.push_back({begin, begin + ((p->count - 1) * p->stride + p->channels) * (p->half ? 2 : 4), nullptr});
        if (p->weights != nullptr)
            all.push_back({(const char *)p->weights, (const char *)(p->weights + p->count), nullptr});
    }
    std::sort(all.begin(), all.end(), [](const stretch &a, const stretch &b) { return a.begin < b.begin; });
    for (const stretch &s : all)
        if (merged.empty() || s.begin > merged.back().end)
            merged.push_back(s);
        else
            merged.back().end = std::max(merged.back().end, s.end);
    return merged;
}

static const void *on_device(const std::vector<stretch> &all, const void *host)
{
    const char *at = (const char *)host;
    if (at == nullptr)
        return nullptr;
    auto after = std::upper_bound(all.begin(), all.end(), at, [](const char *a, const stretch &s) { return a < s.begin; });
    return (after - 1)->device + (at - (after - 1)->begin);
}

static kvb_status copy_stretches(std::vector<stretch> &all, kvb_error *err)
{
    kvb_status status = KVB_OK;
    for (stretch &s : all) {
        const size_t size = (size_t)(s.end - s.begin);
        TRY(status, err, "host points", cudaMalloc((void **)&s.device, size));
        TRY(status, err, "copying points", cudaMemcpy(s.device, s.begin, size, cudaMemcpyHostToDevice));
    }
    return status;
}

/* Where everything of one side lies. */
static void plan_side(kvb_cuda_points *b, const kvb_cuda_problem *problems, const std::vector<stretch> &raw, int side)
{
    side_state &s = b->side[side];
    size_t points = 0, table = 0, start = 0, offset = 0, sum = 0;
    for (size_t i = 0; i < b->count; i++) {
        const kvb_cuda_problem *p = &problems[i];
        kvb_dev_problem d = {};
        d.raw = on_device(raw, p->points);
        d.raw_weight = (const float *)on_device(raw, p->weights);
        d.stride = p->stride;
        d.half = p->half;
        d.count = (uint32_t)(side == KVB_SIDE_TRAINING ? p->training : p->count - p->training);
        d.channels = p->channels;
        d.centroids = p->centroids;
        d.chunk = chunk_of(p->centroids);
        d.chunks = (d.count + d.chunk - 1) / d.chunk;
        d.point_at = points, d.table_at = table, d.start_at = start, d.offset_at = offset, d.sum_at = sum;
        d.scale = p->scale, d.weight_scale = p->weight_scale;
        std::copy(p->origin, p->origin + 64, d.origin);
        points += d.count, table += p->centroids, start += p->centroids + 1, offset += (size_t)d.chunks * p->centroids;
        sum += (size_t)p->centroids * (p->channels + 1);
        s.most_points = std::max(s.most_points, d.count);
        s.most_chunks = std::max(s.most_chunks, d.chunks);
        s.host.push_back(d);
    }
    b->rows = table;
    b->sum_doubles = sum;
    b->table_floats = sum - table;
}

static kvb_status allocate_side(kvb_cuda_points *b, int side, kvb_error *err)
{
    side_state &s = b->side[side];
    const kvb_dev_problem &last = s.host.back();
    const size_t n = last.point_at + last.count, offsets = last.offset_at + (size_t)last.chunks * last.centroids;
    kvb_dev_problem *problem = nullptr;
    kvb_status status = take(b, &problem, b->count, err);
    if (status == KVB_OK)
        status = take(b, &s.dev.y, n * b->width, err);
    if (status == KVB_OK)
        status = take(b, &s.dev.w, n, err);
    if (status == KVB_OK)
        status = take(b, &s.dev.code, n, err);
    if (status == KVB_OK)
        status = take(b, &s.dev.order, n, err);
    if (status == KVB_OK)
        status = take(b, &s.dev.loss, n, err);
    if (status == KVB_OK)
        status = take(b, &s.dev.start, b->rows + b->count, err);
    if (status == KVB_OK)
        status = take(b, &s.dev.offset, offsets, err);
    TRY(status, err, "k-means problems",
        cudaMemcpy(problem, s.host.data(), b->count * sizeof *problem, cudaMemcpyHostToDevice));
    s.dev.problem = problem;
    return status;
}

/* Tables, norms and sums serve both sides. */
static kvb_status allocate_tables(kvb_cuda_points *b, kvb_error *err)
{
    kvb_dev_points &d = b->side[0].dev, &other = b->side[1].dev;
    kvb_status status = take(b, &d.table, b->rows * b->width, err);
    if (status == KVB_OK)
        status = take(b, &d.norm, b->rows, err);
    if (status == KVB_OK)
        status = take(b, &d.alive, b->rows, err);
    if (status == KVB_OK)
        status = take(b, &d.error, b->rows, err);
    if (status == KVB_OK)
        status = take(b, &b->compact, b->table_floats, err);
    if (status == KVB_OK)
        status = take(b, &b->sums, b->sum_doubles, err);
    other.table = d.table, other.norm = d.norm, other.alive = d.alive, other.error = d.error;
    return status;
}

/* Calls KERNEL<W><<<GRID, THREADS>>>(ARGS) for the batch's width. */
#define LAUNCH(b, kernel, grid, threads, ...)                                         \
    do {                                                                              \
        switch ((b)->width) {                                                         \
        case 2: kernel<2><<<(grid), (threads)>>>(__VA_ARGS__); break;                 \
        case 4: kernel<4><<<(grid), (threads)>>>(__VA_ARGS__); break;                 \
        case 8: kernel<8><<<(grid), (threads)>>>(__VA_ARGS__); break;                 \
        case 16: kernel<16><<<(grid), (threads)>>>(__VA_ARGS__); break;               \
        case 32: kernel<32><<<(grid), (threads)>>>(__VA_ARGS__); break;               \
        default: kernel<64><<<(grid), (threads)>>>(__VA_ARGS__); break;               \
        }                                                                             \
    } while (0)

static dim3 grid_of(const kvb_cuda_points *b, uint64_t items, uint32_t each)
{
    return dim3((unsigned)std::max((items + each - 1) / each, (uint64_t)1), (unsigned)b->count);
}

static kvb_status load(kvb_cuda_points *b, const kvb_cuda_problem *problems, kvb_error *err)
{
    std::vector<stretch> raw = stretches_of(problems, b->count);
    kvb_status status = copy_stretches(raw, err);
    for (int side = 0; side < 2 && status == KVB_OK; side++) {
        plan_side(b, problems, raw, side);
        status = allocate_side(b, side, err);
    }
    if (status == KVB_OK)
        status = allocate_tables(b, err);
    for (int side = 0; side < 2 && status == KVB_OK; side++) {
        if (b->side[side].most_points == 0)
            continue;
        LAUNCH(b, kvb_km_load, grid_of(b, b->side[side].most_points, 256), 256, b->side[side].dev, b->holdout_every,
               b->holdout_block, side == KVB_SIDE_HELDOUT);
        TRY(status, err, "loading points", cudaGetLastError());
    }
    TRY(status, err, "loading points", cudaDeviceSynchronize());
    for (stretch &s : raw)
        cudaFree(s.device);
    return status;
}

kvb_status kvb_cuda_points_open(int device, const kvb_cuda_problem *problems, size_t count, uint32_t holdout_every,
                                uint32_t holdout_block, kvb_cuda_points **out, kvb_error *err)
{
    kvb_status status = kvb_cuda_points_device(device, err);
    *out = nullptr;
    if (status == KVB_OK && (count == 0 || count > 65535))
        return kvb_fail(err, KVB_E_USAGE, "GPU", "%zu k-means problems at once; expected 1 to 65535", count);
    for (size_t i = 0; status == KVB_OK && i < count; i++)
        if (problems[i].count > UINT32_MAX / 2)
            return kvb_fail(err, KVB_E_USAGE, "GPU", "problem %zu has %zu points; expected at most 2^31", i, problems[i].count);
    TRY(status, err, "choosing a device", cudaSetDevice(device));
    if (status != KVB_OK)
        return status;
    try {
        kvb_cuda_points *b = new kvb_cuda_points;
        b->device = device;
        b->count = count;
        b->width = kvb_cuda_points_width(problems[0].channels);
        b->holdout_every = holdout_every;
        b->holdout_block = holdout_block;
        for (size_t i = 0; i < count; i++)
            b->most_centroids = std::max(b->most_centroids, problems[i].centroids);
        status = load(b, problems, err);
        if (status == KVB_OK)
            *out = b;
        else
            kvb_cuda_points_close(b);
    } catch (const std::bad_alloc &) {
        return kvb_fail_memory(err, "k-means points");
    }
    return status;
}

void kvb_cuda_points_close(kvb_cuda_points *b)
{
    if (b == nullptr)
        return;
    for (void *memory : b->memory)
        cudaFree(memory);
    delete b;
}

/* Tables of all problems to the device, with their norms. */
static kvb_status set_tables(kvb_cuda_points *b, side_state &s, const float *tables, kvb_error *err)
{
    kvb_status status = KVB_OK;
    TRY(status, err, "choosing a device", cudaSetDevice(b->device));
    TRY(status, err, "copying tables",
        cudaMemcpy(b->compact, tables, b->table_floats * sizeof *tables, cudaMemcpyHostToDevice));
    if (status == KVB_OK)
        LAUNCH(b, kvb_km_table, grid_of(b, b->most_centroids, 128), 128, s.dev, b->compact);
    TRY(status, err, "tables", cudaGetLastError());
    return status;
}

/* Points that a block of the search takes. */
static uint32_t block_points(uint32_t width)
{
    return KVB_KM_THREADS * (width <= 4 ? 16 : 64 / width);
}

kvb_status kvb_cuda_points_assign(kvb_cuda_points *b, kvb_cuda_side which, const float *tables, double *sums, kvb_error *err)
{
    side_state &s = b->side[which];
    kvb_status status = set_tables(b, s, tables, err);
    if (status != KVB_OK)
        return status;
    LAUNCH(b, kvb_km_assign, grid_of(b, s.most_points, block_points(b->width)), KVB_KM_THREADS, s.dev);
    kvb_km_count<<<grid_of(b, s.most_chunks, 4), 128>>>(s.dev);
    kvb_km_scan<<<(unsigned)b->count, 256>>>(s.dev);
    kvb_km_sort<<<grid_of(b, s.most_chunks, 4), 128>>>(s.dev);
    if (sums != nullptr)
        LAUNCH(b, kvb_km_sums, grid_of(b, b->most_centroids, 4), 128, s.dev, b->sums);
    TRY(status, err, "k-means assignment", cudaGetLastError());
    if (sums != nullptr)
        TRY(status, err, "k-means sums", cudaMemcpy(sums, b->sums, b->sum_doubles * sizeof *sums, cudaMemcpyDeviceToHost));
    else
        TRY(status, err, "k-means assignment", cudaDeviceSynchronize());
    return status;
}

static kvb_status read_counts(kvb_cuda_points *b, const side_state &s, uint32_t *counts, kvb_error *err)
{
    std::vector<uint32_t> start(b->rows + b->count);
    kvb_status status = KVB_OK;
    TRY(status, err, "k-means counts",
        cudaMemcpy(start.data(), s.dev.start, start.size() * sizeof(uint32_t), cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < b->count && status == KVB_OK; i++)
        for (uint32_t k = 0; k < s.host[i].centroids; k++)
            counts[s.host[i].table_at + k] = start[s.host[i].start_at + k + 1] - start[s.host[i].start_at + k];
    return status;
}

kvb_status kvb_cuda_points_errors(kvb_cuda_points *b, kvb_cuda_side which, const float *tables, double *errors, uint32_t *counts,
                                  kvb_error *err)
{
    side_state &s = b->side[which];
    kvb_status status = set_tables(b, s, tables, err);
    if (status == KVB_OK)
        LAUNCH(b, kvb_km_errors, grid_of(b, b->most_centroids, 4), 128, s.dev);
    TRY(status, err, "k-means errors", cudaGetLastError());
    TRY(status, err, "k-means errors", cudaMemcpy(errors, s.dev.error, b->rows * sizeof *errors, cudaMemcpyDeviceToHost));
    try {
        if (status == KVB_OK && counts != nullptr)
            status = read_counts(b, s, counts, err);
    } catch (const std::bad_alloc &) {
        return kvb_fail_memory(err, "k-means counts");
    }
    return status;
}

/* Device memory of one call, freed at its end. */
struct scratch {
    std::vector<void *> memory;
    ~scratch()
    {
        for (void *m : memory)
            cudaFree(m);
    }
    template <typename T> kvb_status take(T **to, const T *from, size_t count, kvb_error *err)
    {
        kvb_status status = KVB_OK;
        void *m = nullptr;
        TRY(status, err, "k-means lists", cudaMalloc(&m, std::max(count, (size_t)1) * sizeof(T)));
        if (status == KVB_OK)
            memory.push_back(m);
        if (from != nullptr)
            TRY(status, err, "k-means lists", cudaMemcpy(m, from, count * sizeof(T), cudaMemcpyHostToDevice));
        *to = (T *)m;
        return status;
    }
};

static size_t most_of(const size_t *first, size_t count)
{
    size_t most = 0;
    for (size_t i = 0; i < count; i++)
        most = std::max(most, first[i + 1] - first[i]);
    return most;
}

static kvb_status removal(kvb_cuda_points *b, const uint32_t *candidates, const size_t *first, double *cost, kvb_error *err)
{
    const kvb_dev_points &dev = b->side[0].dev;
    const size_t all = first[b->count], most = most_of(first, b->count);
    uint32_t *list;
    size_t *begin;
    double *to;
    scratch room;
    kvb_status status = room.take(&list, candidates, all, err);
    if (status == KVB_OK)
        status = room.take(&begin, first, b->count + 1, err);
    if (status == KVB_OK)
        status = room.take(&to, (const double *)nullptr, all, err);
    if (status != KVB_OK)
        return status;
    kvb_km_mask<<<(unsigned)b->count, 128>>>(dev, list, begin, false);
    kvb_km_mask<<<(unsigned)b->count, 128>>>(dev, list, begin, true);
    LAUNCH(b, kvb_km_removal, grid_of(b, most, 1), KVB_KM_THREADS, dev, list, begin, to);
    TRY(status, err, "k-means removal", cudaGetLastError());
    TRY(status, err, "k-means removal", cudaMemcpy(cost, to, all * sizeof *cost, cudaMemcpyDeviceToHost));
    return status;
}

kvb_status kvb_cuda_points_removal(kvb_cuda_points *b, const uint32_t *candidates, const size_t *first, double *cost, kvb_error *err)
{
    try {
        return first[b->count] == 0 ? KVB_OK : removal(b, candidates, first, cost, err);
    } catch (const std::bad_alloc &) {
        return kvb_fail_memory(err, "k-means swaps");
    }
}

static kvb_status draw(kvb_cuda_points *b, const kvb_cuda_draw *draws, const size_t *first, float *y, uint32_t *found, kvb_error *err)
{
    const size_t all = first[b->count];
    const kvb_dev_points &dev = b->side[0].dev;
    std::vector<kvb_dev_draw> copy(all);
    for (size_t i = 0; i < all; i++)
        copy[i] = {draws[i].cluster, draws[i].unit};
    kvb_dev_draw *list;
    size_t *begin;
    float *to;
    uint32_t *did;
    scratch room;
    kvb_status status = room.take(&list, copy.data(), all, err);
    if (status == KVB_OK)
        status = room.take(&begin, first, b->count + 1, err);
    if (status == KVB_OK)
        status = room.take(&to, (const float *)nullptr, all * b->width, err);
    if (status == KVB_OK)
        status = room.take(&did, (const uint32_t *)nullptr, all, err);
    if (status != KVB_OK)
        return status;
    LAUNCH(b, kvb_km_draw, (unsigned)b->count, 32, dev, list, begin, to, did);
    TRY(status, err, "k-means draws", cudaGetLastError());
    TRY(status, err, "k-means draws", cudaMemcpy(y, to, all * b->width * sizeof *y, cudaMemcpyDeviceToHost));
    TRY(status, err, "k-means draws", cudaMemcpy(found, did, all * sizeof *found, cudaMemcpyDeviceToHost));
    return status;
}

kvb_status kvb_cuda_points_draw(kvb_cuda_points *b, const kvb_cuda_draw *draws, const size_t *first, float *y, uint32_t *found,
                                kvb_error *err)
{
    try {
        return first[b->count] == 0 ? KVB_OK : draw(b, draws, first, y, found, err);
    } catch (const std::bad_alloc &) {
        return kvb_fail_memory(err, "k-means draws");
    }
}

static kvb_status nearest(kvb_cuda_points *b, const float *rows, const uint32_t *have, uint32_t *index, float *distance, kvb_error *err)
{
    side_state &s = b->side[0];
    const size_t few = b->count * KVB_CUDA_FEW, n = s.host.back().point_at + s.host.back().count;
    float *table, *norm;
    uint32_t *counts;
    scratch room;
    kvb_status status = KVB_OK;
    TRY(status, err, "choosing a device", cudaSetDevice(b->device));
    if (status == KVB_OK)
        status = room.take(&table, rows, few * b->width, err);
    if (status == KVB_OK)
        status = room.take(&norm, (const float *)nullptr, few, err);
    if (status == KVB_OK)
        status = room.take(&counts, have, b->count, err);
    if (status != KVB_OK)
        return status;
    LAUNCH(b, kvb_km_few_norms, (unsigned)((few + 127) / 128), 128, table, KVB_CUDA_FEW, b->count, norm);
    LAUNCH(b, kvb_km_few_nearest, grid_of(b, s.most_points, block_points(b->width)), KVB_KM_THREADS, s.dev, table, norm, KVB_CUDA_FEW,
           counts);
    TRY(status, err, "k-means seeding", cudaGetLastError());
    TRY(status, err, "k-means seeding", cudaMemcpy(index, s.dev.code, n * sizeof *index, cudaMemcpyDeviceToHost));
    TRY(status, err, "k-means seeding", cudaMemcpy(distance, s.dev.loss, n * sizeof *distance, cudaMemcpyDeviceToHost));
    return status;
}

kvb_status kvb_cuda_points_nearest(kvb_cuda_points *b, const float *rows, const uint32_t *have, uint32_t *index, float *distance,
                                   kvb_error *err)
{
    try {
        return nearest(b, rows, have, index, distance, err);
    } catch (const std::bad_alloc &) {
        return kvb_fail_memory(err, "k-means seeding");
    }
}
