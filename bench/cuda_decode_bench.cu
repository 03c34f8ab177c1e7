/* Times decode attention of the GPU cache on random books: 32 query heads, 8 KV heads, D = 128, keys in blocks of 16. One line of
 * JSON a cell. Layers rotate, so that the 50 MB of a GPU's second-level cache do not hold the codes.
 * Usage: cuda_decode_bench [shape ...], shapes as 4x16, 8x256, add:8x16; bench/cuda_bench.sh runs it beside PyTorch. */
#include <cuda_runtime.h>

#include <algorithm>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

#include "kvbook/cuda.h"
extern "C" {
#include "tests/support/rt_book.h"
}

#define TRY(x)                                                                                  \
    do {                                                                                        \
        const cudaError_t e_ = (x);                                                             \
        if (e_ != cudaSuccess) {                                                                \
            fprintf(stderr, "%s:%d %s\n", __FILE__, __LINE__, cudaGetErrorString(e_));          \
            exit(1);                                                                            \
        }                                                                                       \
    } while (0)

enum { H = 32, G = 8, D = 128 };

static kvb_error err;
static void need(kvb_status status)
{
    if (status != KVB_OK) {
        fprintf(stderr, "%s: %s\n", err.where, err.message);
        exit(1);
    }
}

__global__ void fill(uint16_t *x, size_t n, uint32_t seed, float scale)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        uint64_t z = (i + seed) * 0x9E3779B97F4A7C15ull;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
        z ^= z >> 31;
        /* Near enough to a normal: the sum of four uniforms. */
        const float u = (float)((z & 65535) + (z >> 16 & 65535) + (z >> 32 & 65535) + (z >> 48)) / 65536.0f - 2.0f;
        const float v = u * 1.7320508f * scale;
        uint16_t h;
        asm("{.reg .b16 t; cvt.rn.f16.f32 t, %1; mov.b16 %0, t;}" : "=h"(h) : "f"(v));
        x[i] = h;
    }
}

static void *make(size_t n, uint32_t seed, float scale)
{
    void *p;
    TRY(cudaMalloc(&p, n * 2));
    fill<<<1024, 256>>>((uint16_t *)p, n, seed, scale);
    TRY(cudaGetLastError());
    return p;
}

static double median(std::vector<float> &x)
{
    std::sort(x.begin(), x.end());
    return x[x.size() / 2];
}

struct cell {
    uint32_t B, T;
    double anchors;
    uint32_t window;
};

static void run(const char *name, const rt_shape &shape, const cell &c, const char *kernel_kind)
{
    const uint32_t layers = c.T * (uint64_t)c.B > 300000 ? 2 : 6;
    rt_shape s = shape;
    s.layers = layers;
    kvb_policy policy = {};
    policy.anchor_fraction = c.anchors;
    policy.score = KVB_SCORE_EXACT_K;
    policy.window = c.window;
    kvb_book *book = rt_book_make(&s, &policy);
    if (book == NULL)
        exit(1);
    kvb_cuda_book *device_book;
    kvb_cuda_cache *cache;
    need(kvb_cuda_book_create(book, 0, &device_book, &err));
    kvb_cuda_cache_options o;
    kvb_cuda_cache_options_init(&o, device_book);
    o.slots = c.B;
    o.sequence_pages = (c.T + 255) / 256 + 1;
    o.pages = c.B * o.sequence_pages;
    need(kvb_cuda_cache_create(device_book, &o, &cache, &err));
    if (kernel_kind != NULL && strcmp(kernel_kind, "plain") == 0)
        kvb_cuda_cache_plain(cache);
    std::vector<int32_t> page((size_t)o.pages), zero(c.B, 0), length(c.B, (int32_t)c.T - 1);
    for (size_t i = 0; i < page.size(); i++)
        page[i] = (int32_t)((i * 7919) % page.size());
    std::vector<bool> seen(page.size());
    bool ok = true;
    for (int32_t p : page) {
        ok = ok && !seen[(size_t)p];
        seen[(size_t)p] = true;
    }
    for (size_t i = 0; !ok && i < page.size(); i++)
        page[i] = (int32_t)i;
    int32_t *dpage, *dzero, *dlength;
    TRY(cudaMalloc(&dpage, page.size() * 4));
    TRY(cudaMalloc(&dzero, c.B * 4));
    TRY(cudaMalloc(&dlength, c.B * 4));
    TRY(cudaMemcpy(dpage, page.data(), page.size() * 4, cudaMemcpyHostToDevice));
    TRY(cudaMemcpy(dzero, zero.data(), c.B * 4, cudaMemcpyHostToDevice));
    TRY(cudaMemcpy(dlength, length.data(), c.B * 4, cudaMemcpyHostToDevice));
    /* Prompts go in one sequence at a time, so that their queries need little room. */
    const uint32_t prompt = c.T - 1;
    void *k = make((size_t)prompt * G * D, 1, 1.0f), *v = make((size_t)prompt * G * D, 2, 1.0f), *q = make((size_t)prompt * H * D, 3, 1.0f);
    float *lse;
    TRY(cudaMalloc(&lse, (size_t)H * prompt * 4));
    TRY(cudaMemset(lse, 0, (size_t)H * prompt * 4));
    cudaEvent_t a, b;
    TRY(cudaEventCreate(&a));
    TRY(cudaEventCreate(&b));
    std::vector<int32_t> slots(c.B);
    for (uint32_t i = 0; i < c.B; i++)
        slots[i] = (int32_t)i;
    int32_t *dslots;
    TRY(cudaMalloc(&dslots, c.B * 4));
    TRY(cudaMemcpy(dslots, slots.data(), c.B * 4, cudaMemcpyHostToDevice));
    std::vector<float> encode;
    for (uint32_t layer = 0; layer < layers; layer++)
        for (uint32_t i = 0; i < c.B; i++) {
            kvb_cuda_batch one = {1, prompt, 0, KVB_CUDA_HALF, dzero, dslots + i, dpage + (size_t)i * o.sequence_pages};
            TRY(cudaEventRecord(a));
            need(kvb_cuda_prefill(cache, layer, &one, k, v, q, q, lse, NULL, &err));
            TRY(cudaEventRecord(b));
            TRY(cudaEventSynchronize(b));
            float ms;
            TRY(cudaEventElapsedTime(&ms, a, b));
            encode.push_back(ms);
        }
    need(kvb_cuda_cache_check(cache, NULL, &err));
    void *nk = make((size_t)c.B * G * D, 4, 1.0f), *nv = make((size_t)c.B * G * D, 5, 1.0f), *nq = make((size_t)c.B * H * D, 6, 1.0f);
    void *out = make((size_t)c.B * H * D, 7, 1.0f);
    kvb_cuda_batch batch = {c.B, 1, c.T, KVB_CUDA_HALF, dlength, NULL, dpage};
    for (uint32_t layer = 0; layer < layers; layer++)
        need(kvb_cuda_append(cache, layer, &batch, nk, nv, NULL, &err));
    std::vector<float> attend, append;
    for (int i = 0; i < 60; i++) {
        float ms;
        TRY(cudaEventRecord(a));
        need(kvb_cuda_attend_only(cache, (uint32_t)i % layers, &batch, nq, out, NULL, &err));
        TRY(cudaEventRecord(b));
        TRY(cudaEventSynchronize(b));
        TRY(cudaEventElapsedTime(&ms, a, b));
        if (i >= 10)
            attend.push_back(ms);
        TRY(cudaEventRecord(a));
        need(kvb_cuda_append(cache, (uint32_t)i % layers, &batch, nk, nv, NULL, &err));
        TRY(cudaEventRecord(b));
        TRY(cudaEventSynchronize(b));
        TRY(cudaEventElapsedTime(&ms, a, b));
        if (i >= 10)
            append.push_back(ms);
    }
    /* A graph of all layers, several times over: what a call costs where calls follow each other. */
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    TRY(cudaStreamCreate(&stream));
    TRY(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < 24; i++)
        need(kvb_cuda_attend_only(cache, (uint32_t)i % layers, &batch, nq, out, stream, &err));
    TRY(cudaStreamEndCapture(stream, &graph));
    TRY(cudaGraphInstantiate(&exec, graph, 0));
    std::vector<float> many;
    for (int i = 0; i < 8; i++) {
        float ms;
        TRY(cudaEventRecord(a, stream));
        TRY(cudaGraphLaunch(exec, stream));
        TRY(cudaEventRecord(b, stream));
        TRY(cudaEventSynchronize(b));
        TRY(cudaEventElapsedTime(&ms, a, b));
        if (i >= 2)
            many.push_back(ms / 24);
    }
    need(kvb_cuda_cache_check(cache, NULL, &err));
    const kvb_codebook *book_k = kvb_book_codebook(book, 0, 0, KVB_KEY);
    const double code_bytes = 2.0 * c.B * c.T * G * kvb_packed_bytes(book_k->groups, book_k->code_bits);
    const double exact_rows = c.anchors * c.T + c.window;
    const double bytes = code_bytes * (1 - c.anchors) + (double)c.B * exact_rows * G * D * 4;
    printf("{\"shape\": \"%s\", \"kernel\": \"%s\", \"batch\": %u, \"tokens\": %u, \"anchors\": %g, \"window\": %u, \"us\": %.2f, "
           "\"graph_us\": %.2f, \"append_us\": %.2f, \"prefill_ms\": %.3f, \"mbytes\": %.1f}\n",
           name, kernel_kind != NULL ? kernel_kind : kvb_cuda_book_kernel(device_book, 0), c.B, c.T, c.anchors, c.window,
           1e3 * median(attend), 1e3 * median(many), 1e3 * median(append), median(encode), bytes * 1e-6);
    fflush(stdout);
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
    cudaEventDestroy(a);
    cudaEventDestroy(b);
    for (void *p : {k, v, q, nk, nv, nq, out, (void *)lse, (void *)dpage, (void *)dzero, (void *)dlength, (void *)dslots})
        cudaFree(p);
    kvb_cuda_cache_destroy(cache);
    kvb_cuda_book_destroy(device_book);
    kvb_book_close(book);
}

/* How many tokens one GPU holds and decodes: 32 layers, 64 sequences, codes of the first layers from real prompts, and one step
 * of all layers timed. */
static void capacity(const char *name, uint32_t channels, uint32_t centroids, uint32_t B, uint32_t T)
{
    enum { LAYERS = 32, FILLED = 2 };
    rt_shape s = {};
    s.layers = LAYERS;
    s.heads = H;
    s.kv_heads = G;
    s.head_dim = D;
    s.channels = channels;
    s.centroids = centroids;
    s.frame = KVB_FRAME_BLOCK;
    s.rope_block = 16;
    s.rope_style = KVB_ROPE_HALF;
    s.rope_dims = D;
    s.seed = 3;
    kvb_policy policy = {};
    policy.anchor_fraction = 0.01;
    policy.score = KVB_SCORE_EXACT_K;
    policy.window = 32;
    kvb_book *book = rt_book_make(&s, &policy);
    kvb_cuda_book *device_book;
    kvb_cuda_cache *cache;
    size_t before, after, all;
    need(kvb_cuda_book_create(book, 0, &device_book, &err));
    TRY(cudaMemGetInfo(&before, &all));
    kvb_cuda_cache_options o;
    kvb_cuda_cache_options_init(&o, device_book);
    o.slots = B;
    o.sequence_pages = (T + 255) / 256;
    o.pages = B * o.sequence_pages;
    need(kvb_cuda_cache_create(device_book, &o, &cache, &err));
    TRY(cudaMemGetInfo(&after, &all));
    std::vector<int32_t> page((size_t)o.pages), length(B, (int32_t)T - 1), zero(B, 0), slots(B);
    for (uint32_t i = 0; i < o.pages; i++)
        page[i] = (int32_t)(i % B * o.sequence_pages + i / B);
    for (uint32_t i = 0; i < B; i++)
        slots[i] = (int32_t)i;
    int32_t *dpage, *dlength, *dzero, *dslots;
    TRY(cudaMalloc(&dpage, page.size() * 4));
    TRY(cudaMalloc(&dlength, B * 4));
    TRY(cudaMalloc(&dzero, B * 4));
    TRY(cudaMalloc(&dslots, B * 4));
    TRY(cudaMemcpy(dpage, page.data(), page.size() * 4, cudaMemcpyHostToDevice));
    TRY(cudaMemcpy(dlength, length.data(), B * 4, cudaMemcpyHostToDevice));
    TRY(cudaMemcpy(dzero, zero.data(), B * 4, cudaMemcpyHostToDevice));
    TRY(cudaMemcpy(dslots, slots.data(), B * 4, cudaMemcpyHostToDevice));
    void *k = make((size_t)T * G * D, 1, 1.0f), *v = make((size_t)T * G * D, 2, 1.0f), *q = make((size_t)T * H * D, 3, 1.0f);
    float *lse;
    TRY(cudaMalloc(&lse, (size_t)H * T * 4));
    TRY(cudaMemset(lse, 0, (size_t)H * T * 4));
    for (uint32_t layer = 0; layer < FILLED; layer++)
        for (uint32_t i = 0; i < B; i++) {
            const kvb_cuda_batch one = {1, T - 1, 0, KVB_CUDA_HALF, dzero, dslots + i, dpage + (size_t)i * o.sequence_pages};
            need(kvb_cuda_prefill(cache, layer, &one, k, v, q, q, lse, NULL, &err));
        }
    const kvb_cuda_batch batch = {B, 1, T, KVB_CUDA_HALF, dlength, NULL, dpage};
    void *out = make((size_t)B * H * D, 7, 1.0f);
    cudaEvent_t a, b;
    TRY(cudaEventCreate(&a));
    TRY(cudaEventCreate(&b));
    std::vector<float> times;
    for (int i = 0; i < 5; i++) {
        TRY(cudaEventRecord(a));
        for (uint32_t layer = 0; layer < LAYERS; layer++) {
            need(kvb_cuda_append(cache, layer, &batch, k, v, NULL, &err));
            need(kvb_cuda_attend(cache, layer, &batch, q, out, NULL, &err));
        }
        TRY(cudaEventRecord(b));
        TRY(cudaEventSynchronize(b));
        float ms;
        TRY(cudaEventElapsedTime(&ms, a, b));
        times.push_back(ms);
    }
    need(kvb_cuda_cache_check(cache, NULL, &err));
    printf("{\"capacity\": \"%s, 1 %% anchors, window 32, 32 layers, 8 KV heads, D 128\", \"sequences\": %u, \"tokens_each\": %u, "
           "\"tokens\": %llu, \"cache_gb\": %.2f, \"device_gb\": %.2f, \"step_ms\": %.2f}\n",
           name, B, T, (unsigned long long)B * T, (double)kvb_cuda_cache_bytes(cache).total * 1e-9, (double)(before - after) * 1e-9,
           median(times));
    fflush(stdout);
    for (void *p : {k, v, q, out, (void *)lse, (void *)dpage, (void *)dlength, (void *)dzero, (void *)dslots})
        cudaFree(p);
    kvb_cuda_cache_destroy(cache);
    kvb_cuda_book_destroy(device_book);
    kvb_book_close(book);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "capacity") == 0) {
        capacity("4x16", 4, 16, 64, 65536);
        capacity("32x4096", 32, 4096, 128, 65536);
        return 0;
    }
    /* grid: centroids that are multiples of steps, as the recipe key "centroids": "int8" makes them. */
    const struct { const char *name; uint32_t d, K, stages; bool grid, best; kvb_rope_frame frame; } shapes[] = {
        {"4x16", 4, 16, 0, false, false, KVB_FRAME_BLOCK}, {"add:8x16+16", 8, 16, 2, false, false, KVB_FRAME_BLOCK},
        {"8x256", 8, 256, 0, false, false, KVB_FRAME_BLOCK}, {"16x256", 16, 256, 0, false, false, KVB_FRAME_BLOCK},
        {"4x256", 4, 256, 0, false, false, KVB_FRAME_BLOCK}, {"2x256", 2, 256, 0, false, false, KVB_FRAME_BLOCK},
        {"16x4096", 16, 4096, 0, false, false, KVB_FRAME_BLOCK}, {"32x4096", 32, 4096, 0, false, false, KVB_FRAME_BLOCK},
        {"4x16:int8", 4, 16, 0, true, false, KVB_FRAME_BLOCK}, {"add:8x16+16:int8", 8, 16, 2, true, false, KVB_FRAME_BLOCK},
        {"8x256:int8", 8, 256, 0, true, false, KVB_FRAME_BLOCK}, {"16x256:int8", 16, 256, 0, true, false, KVB_FRAME_BLOCK},
        {"4x256:int8", 4, 256, 0, true, false, KVB_FRAME_BLOCK},
        /* What the recipes `best` and `best-fast` make at about half a bit, 1 bit and 2 bits. */
        {"best:16x16+16", 16, 16, 2, false, true, KVB_FRAME_PRE}, {"best:8x16+16", 8, 16, 2, false, true, KVB_FRAME_PRE},
        {"best:4x16+16", 4, 16, 2, false, true, KVB_FRAME_PRE}, {"best-fast:8x16+16", 8, 16, 2, false, true, KVB_FRAME_BLOCK},
    };
    const cell cells[] = {{1, 131072, 0, 1}, {1, 131072, 0.01, 32}, {1, 8192, 0.01, 32}, {1, 32768, 0.01, 32},
                          {16, 8192, 0.01, 32}, {64, 2048, 0.01, 32}, {8, 131072, 0, 1}};
    const bool quick = getenv("QUICK") != NULL;
    const char *only = getenv("CELL"); /* the number of one cell, for a profiler */
    for (const auto &s : shapes) {
        bool wanted = argc < 2;
        for (int i = 1; i < argc; i++)
            wanted = wanted || strcmp(argv[i], s.name) == 0;
        if (!wanted)
            continue;
        rt_shape shape = {};
        shape.heads = H;
        shape.kv_heads = G;
        shape.head_dim = D;
        shape.channels = s.d;
        shape.centroids = s.K;
        shape.stages = s.stages;
        shape.grid = s.grid;
        shape.key_transform = s.best;
        shape.frame = s.frame;
        shape.rope_block = 16;
        shape.rope_style = KVB_ROPE_HALF;
        shape.rope_dims = D;
        shape.seed = 3;
        for (size_t i = 0; i < sizeof cells / sizeof *cells; i++) {
            if (quick && i > 1 && i != 6)
                continue;
            if (only != NULL && (size_t)atoi(only) != i)
                continue;
            run(s.name, shape, cells[i], NULL);
        }
        if (only == NULL && !s.grid)
            run(s.name, shape, cells[3], "plain");
    }
    return 0;
}
