#include "cuda/calib/cuda_forward.h"

#include <cublas_v2.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <new>
#include <vector>

#include "cuda/calib/cuda_forward_kernels.cuh"

extern "C" {
#include "format/base/fail.h"
}

enum { ROWS_AT_WORK = 8192, MOST_DIM = 128, COUNTERS = 2 /* then one a query head */ };

struct kvb_cuda_forward {
    int device = 0;
    kvb_cuda_shape shape = {};
    uint32_t at_work = 0; /* sequences */
    cublasHandle_t blas = nullptr;
    std::vector<void *> memory;
    float *x = nullptr;      /* [sequences][T][E] the residual stream */
    float *normed = nullptr; /* [M][E] */
    float *wide = nullptr;   /* [M][2F] */
    float *narrow = nullptr; /* [M][F] */
    float *qkv_w = nullptr, *out_w = nullptr, *gate_up_w = nullptr, *down_w = nullptr, *norm_w = nullptr; /* norm_w [2][E] */
    float *product = nullptr; /* [H][D][D] */
    double *moment = nullptr; /* [2][G][D][D] */
    __half *kept = nullptr;   /* [2][G][n][D] */
    uint8_t *bad = nullptr;   /* [2][G][n] */
    float *weight = nullptr;  /* [2][G][n] */
    unsigned long long *counter = nullptr; /* saturated keys, values, then bad queries of each head */
    uint32_t *drawn = nullptr; /* [n] */
    kvb_dev_work_layer work = {};
};

static kvb_status fail(kvb_error *err, const char *what, cudaError_t code)
{
    (void)cudaGetLastError();
    if (code == cudaErrorMemoryAllocation)
        return kvb_fail(err, KVB_E_MEMORY, "GPU", "%s: out of device memory; use fewer or shorter chunks, or the CPU", what);
    return kvb_fail(err, KVB_E_DEVICE, "GPU", "%s: %s", what, cudaGetErrorString(code));
}

#define TRY(status, err, what, call)                   \
    do {                                               \
        if ((status) == KVB_OK) {                      \
            const cudaError_t code_ = (call);          \
            if (code_ != cudaSuccess)                  \
                (status) = fail((err), (what), code_); \
        }                                              \
    } while (0)

template <typename T>
static kvb_status take(kvb_cuda_forward *f, T **to, size_t count, kvb_error *err)
{
    void *memory = nullptr;
    kvb_status status = KVB_OK;
    TRY(status, err, "forward pass", cudaMalloc(&memory, count * sizeof(T)));
    if (status == KVB_OK)
        f->memory.push_back(memory);
    *to = (T *)memory;
    return status;
}

static size_t all_rows(const kvb_cuda_forward *f)
{
    return (size_t)f->shape.sequences * f->shape.ctx;
}

static size_t qkv_width(const kvb_layer *g)
{
    return (g->heads + 2 * (size_t)g->kv_heads) * g->head_dim;
}

static kvb_status take_weights(kvb_cuda_forward *f, kvb_error *err)
{
    const kvb_layer *g = &f->shape.geometry;
    const size_t width = f->shape.embedding, ffn = f->shape.ffn, heads = (size_t)g->heads * g->head_dim;
    kvb_status status = take(f, &f->qkv_w, qkv_width(g) * width, err);
    if (status == KVB_OK)
        status = take(f, &f->out_w, width * heads, err);
    if (status == KVB_OK)
        status = take(f, &f->gate_up_w, 2 * ffn * width, err);
    if (status == KVB_OK)
        status = take(f, &f->down_w, ffn * width, err);
    if (status == KVB_OK)
        status = take(f, &f->norm_w, 2 * width, err);
    return status;
}

static kvb_status take_rows(kvb_cuda_forward *f, kvb_error *err)
{
    const kvb_layer *g = &f->shape.geometry;
    const size_t rows = (size_t)f->at_work * f->shape.ctx, heads = (size_t)g->heads * g->head_dim;
    kvb_dev_work_layer *w = &f->work;
    kvb_status status = take(f, &f->x, all_rows(f) * f->shape.embedding, err);
    if (status == KVB_OK)
        status = take(f, &f->normed, rows * f->shape.embedding, err);
    if (status == KVB_OK)
        status = take(f, &f->wide, rows * 2 * f->shape.ffn, err);
    if (status == KVB_OK)
        status = take(f, &f->narrow, rows * std::max((size_t)f->shape.ffn, heads), err);
    if (status == KVB_OK)
        status = take(f, &w->qkv, rows * qkv_width(g), err);
    if (status == KVB_OK)
        status = take(f, &w->q_back, rows * heads, err);
    if (status == KVB_OK)
        status = take(f, &w->out, rows * heads, err);
    if (status == KVB_OK)
        status = take(f, &w->lse, rows * g->heads, err);
    if (status == KVB_OK)
        status = take(f, &w->norm, rows * g->heads, err);
    if (status == KVB_OK)
        status = take(f, &w->weight, 2 * rows * g->heads, err);
    return status;
}

static kvb_status take_seen(kvb_cuda_forward *f, kvb_error *err)
{
    const kvb_layer *g = &f->shape.geometry;
    const size_t square = (size_t)g->head_dim * g->head_dim, n = all_rows(f), pairs = g->rope_dims / 2;
    float *cosine = nullptr, *sine = nullptr;
    kvb_status status = take(f, &f->product, g->heads * square, err);
    if (status == KVB_OK)
        status = take(f, &f->moment, 2 * g->kv_heads * square, err);
    if (status == KVB_OK)
        status = take(f, &f->kept, 2 * g->kv_heads * n * g->head_dim, err);
    if (status == KVB_OK)
        status = take(f, &f->bad, 2 * g->kv_heads * n, err);
    if (status == KVB_OK)
        status = take(f, &f->weight, 2 * g->kv_heads * n, err);
    if (status == KVB_OK)
        status = take(f, &f->counter, COUNTERS + g->heads, err);
    if (status == KVB_OK)
        status = take(f, &f->drawn, n, err);
    if (status == KVB_OK)
        status = take(f, &cosine, f->shape.ctx * pairs + 1, err);
    if (status == KVB_OK)
        status = take(f, &sine, f->shape.ctx * pairs + 1, err);
    if (status == KVB_OK && g->rope_style != KVB_ROPE_NONE) {
        TRY(status, err, "rotary table", cudaMemcpy(cosine, f->shape.cosine, f->shape.ctx * pairs * 4, cudaMemcpyHostToDevice));
        TRY(status, err, "rotary table", cudaMemcpy(sine, f->shape.sine, f->shape.ctx * pairs * 4, cudaMemcpyHostToDevice));
    }
    TRY(status, err, "drawn positions", cudaMemcpy(f->drawn, f->shape.drawn, n * sizeof(uint32_t), cudaMemcpyHostToDevice));
    f->work.cosine = cosine;
    f->work.sine = sine;
    return status;
}

/* The padded head dimension that kernels are compiled for. */
static uint32_t padded_dim(uint32_t dim)
{
    return dim <= 16 ? 16 : dim <= 32 ? 32 : dim <= 64 ? 64 : 128;
}

template <int D> static cudaError_t allow(void)
{
    cudaError_t code = cudaFuncSetAttribute(kvb_attend_tiles<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)kvb_attend_bytes<D>());
    if (code == cudaSuccess)
        code = cudaFuncSetAttribute(kvb_weigh_tiles<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)kvb_weigh_bytes<D>());
    return code;
}

static kvb_status set_up(kvb_cuda_forward *f, kvb_error *err)
{
    const kvb_layer *g = &f->shape.geometry;
    kvb_status status = KVB_OK;
    TRY(status, err, "choosing a device", cudaSetDevice(f->device));
    TRY(status, err, "attention kernels", allow<16>());
    TRY(status, err, "attention kernels", allow<32>());
    TRY(status, err, "attention kernels", allow<64>());
    TRY(status, err, "attention kernels", allow<128>());
    if (status == KVB_OK && cublasCreate(&f->blas) != CUBLAS_STATUS_SUCCESS)
        return kvb_fail(err, KVB_E_DEVICE, "GPU", "cuBLAS cannot be started");
    f->at_work = (uint32_t)std::min<uint64_t>(std::max<uint64_t>(ROWS_AT_WORK / f->shape.ctx, 1), f->shape.sequences);
    f->work.heads = g->heads, f->work.kv_heads = g->kv_heads, f->work.dim = g->head_dim, f->work.tokens = f->shape.ctx;
    f->work.rope_style = g->rope_style, f->work.rope_dims = g->rope_style == KVB_ROPE_NONE ? 0 : g->rope_dims;
    f->work.window = g->kind == KVB_LAYER_SLIDING ? g->sliding_window : 0;
    f->work.scale = (float)g->attention_scale;
    if (status == KVB_OK)
        status = take_weights(f, err);
    if (status == KVB_OK)
        status = take_rows(f, err);
    if (status == KVB_OK)
        status = take_seen(f, err);
    return status;
}

kvb_status kvb_cuda_forward_create(int device, const kvb_cuda_shape *shape, kvb_cuda_forward **out, kvb_error *err)
{
    *out = nullptr;
    if (shape->geometry.head_dim > MOST_DIM)
        return kvb_fail(err, KVB_E_USAGE, "--device cuda", "heads of %u channels: the GPU captures heads of at most %d; use --device cpu",
                        shape->geometry.head_dim, MOST_DIM);
    if (shape->sequences == 0 || shape->ctx == 0)
        return kvb_fail(err, KVB_E_USAGE, "GPU", "no tokens: expected at least one sequence of one token");
    try {
        kvb_cuda_forward *f = new kvb_cuda_forward;
        f->device = device;
        f->shape = *shape;
        kvb_status status = set_up(f, err);
        if (status == KVB_OK)
            *out = f;
        else
            kvb_cuda_forward_destroy(f);
        return status;
    } catch (const std::bad_alloc &) {
        return kvb_fail_memory(err, "forward pass");
    }
}

void kvb_cuda_forward_destroy(kvb_cuda_forward *f)
{
    if (f == nullptr)
        return;
    for (void *memory : f->memory)
        cudaFree(memory);
    if (f->blas != nullptr)
        cublasDestroy(f->blas);
    delete f;
}

static kvb_status move_rows(kvb_cuda_forward *f, uint64_t sequence, float *host, const float *from, kvb_error *err)
{
    const size_t size = (size_t)f->shape.ctx * f->shape.embedding;
    kvb_status status = KVB_OK;
    if (sequence >= f->shape.sequences)
        return kvb_fail(err, KVB_E_USAGE, "GPU", "sequence %llu of %llu", (unsigned long long)sequence,
                        (unsigned long long)f->shape.sequences);
    TRY(status, err, "choosing a device", cudaSetDevice(f->device));
    if (from != nullptr)
        TRY(status, err, "embeddings", cudaMemcpy(f->x + sequence * size, from, size * sizeof(float), cudaMemcpyHostToDevice));
    else
        TRY(status, err, "hidden states", cudaMemcpy(host, f->x + sequence * size, size * sizeof(float), cudaMemcpyDeviceToHost));
    return status;
}

kvb_status kvb_cuda_forward_put(kvb_cuda_forward *f, uint64_t sequence, const float *x, kvb_error *err)
{
    return move_rows(f, sequence, nullptr, x, err);
}

kvb_status kvb_cuda_forward_get(kvb_cuda_forward *f, uint64_t sequence, float *x, kvb_error *err)
{
    return move_rows(f, sequence, x, nullptr, err);
}

static unsigned blocks_for(size_t count)
{
    return (unsigned)std::min<size_t>((count + 255) / 256, 65536);
}

/* A matrix to the device, rounded to TF32. */
static kvb_status upload(float *to, const float *from, size_t count, kvb_error *err)
{
    kvb_status status = KVB_OK;
    TRY(status, err, "copying weights", cudaMemcpy(to, from, count * sizeof(float), cudaMemcpyHostToDevice));
    if (status == KVB_OK)
        kvb_round_tf32<<<blocks_for(count), 256>>>(to, count);
    TRY(status, err, "copying weights", cudaGetLastError());
    return status;
}

static kvb_status upload_layer(kvb_cuda_forward *f, const kvb_cuda_weights *w, kvb_error *err)
{
    const kvb_layer *g = &f->shape.geometry;
    const size_t width = f->shape.embedding, ffn = f->shape.ffn;
    kvb_status status = upload(f->qkv_w, w->qkv, qkv_width(g) * width, err);
    if (status == KVB_OK)
        status = upload(f->out_w, w->out, width * g->heads * g->head_dim, err);
    if (status == KVB_OK)
        status = upload(f->gate_up_w, w->gate_up, 2 * ffn * width, err);
    if (status == KVB_OK)
        status = upload(f->down_w, w->down, ffn * width, err);
    TRY(status, err, "norms", cudaMemcpy(f->norm_w, w->attention_norm, width * sizeof(float), cudaMemcpyHostToDevice));
    TRY(status, err, "norms", cudaMemcpy(f->norm_w + width, w->ffn_norm, width * sizeof(float), cudaMemcpyHostToDevice));
    return status;
}

/* y [m][n] = x [m][k] w[n][k]^T, added to y where beta is 1 */
static kvb_status linear(kvb_cuda_forward *f, const float *x, const float *w, size_t m, size_t n, size_t k, float beta, float *y,
                         kvb_error *err)
{
    const float one = 1.0f;
    const cublasStatus_t code =
        cublasGemmEx(f->blas, CUBLAS_OP_T, CUBLAS_OP_N, (int)n, (int)m, (int)k, &one, w, CUDA_R_32F, (int)k, x, CUDA_R_32F, (int)k,
                     &beta, y, CUDA_R_32F, (int)n, CUBLAS_COMPUTE_32F_FAST_TF32, CUBLAS_GEMM_DEFAULT);
    return code == CUBLAS_STATUS_SUCCESS ? KVB_OK
                                         : kvb_fail(err, KVB_E_DEVICE, "GPU", "cuBLAS: %s", cublasGetStatusString(code));
}

/* sums += the second moments of queries x [m][HD] */
static kvb_status add_moments(kvb_cuda_forward *f, const float *x, size_t m, double *sums, kvb_error *err)
{
    const kvb_layer *g = &f->shape.geometry;
    const int dim = (int)g->head_dim, width = (int)(g->heads * g->head_dim);
    const float one = 1.0f, zero = 0.0f;
    const cublasStatus_t code =
        cublasSgemmStridedBatched(f->blas, CUBLAS_OP_N, CUBLAS_OP_T, dim, dim, (int)m, &one, x, width, dim, x, width, dim, &zero,
                                  f->product, dim, (long long)dim * dim, (int)g->heads);
    if (code != CUBLAS_STATUS_SUCCESS)
        return kvb_fail(err, KVB_E_DEVICE, "GPU", "cuBLAS: %s", cublasGetStatusString(code));
    kvb_add_moments<<<blocks_for((size_t)g->kv_heads * dim * dim), 256>>>(f->product, g->heads, g->kv_heads, g->head_dim, sums);
    return KVB_OK;
}

template <int D> static void launch_attend(const kvb_dev_work_layer &w)
{
    kvb_attend_tiles<D><<<dim3((w.tokens + 63) / 64, w.heads, w.sequences), 256, kvb_attend_bytes<D>()>>>(w);
}

template <int D> static void launch_weigh(const kvb_dev_work_layer &w)
{
    kvb_weigh_tiles<D><<<dim3((w.tokens + 63) / 64, w.heads, w.sequences), 256, kvb_weigh_bytes<D>()>>>(w);
}

#define BY_DIM(launch, w)                    \
    switch (padded_dim((w).dim)) {           \
    case 16: launch<16>(w); break;           \
    case 32: launch<32>(w); break;           \
    case 64: launch<64>(w); break;           \
    default: launch<128>(w); break;          \
    }

/* Weights and moments of the rows at work, whose attention is there. */
static kvb_status observe(kvb_cuda_forward *f, const kvb_dev_work_layer &w, size_t first, kvb_error *err)
{
    const kvb_layer *g = &f->shape.geometry;
    const size_t rows = (size_t)w.sequences * w.tokens, all = all_rows(f), square = (size_t)g->head_dim * g->head_dim;
    BY_DIM(launch_weigh, w)
    for (size_t kind = 0; kind < 2; kind++)
        kvb_add_weights<<<blocks_for(rows * g->kv_heads), 256>>>(w, w.weight + kind * g->heads * rows, first, all,
                                                                 f->weight + kind * g->kv_heads * all);
    kvb_status status = add_moments(f, w.q_back, rows, f->moment, err);
    kvb_good_queries<<<blocks_for(rows * g->heads * g->head_dim), 256>>>(w, w.q_back, f->counter + COUNTERS);
    if (status == KVB_OK)
        status = add_moments(f, w.q_back, rows, f->moment + g->kv_heads * square, err);
    TRY(status, err, "token weights", cudaGetLastError());
    return status;
}

static kvb_status attention_block(kvb_cuda_forward *f, const kvb_dev_work_layer &w, size_t first, bool observed, kvb_error *err)
{
    const kvb_layer *g = &f->shape.geometry;
    const size_t rows = (size_t)w.sequences * w.tokens, width = f->shape.embedding, heads = (size_t)g->heads * g->head_dim;
    const size_t all = all_rows(f);
    float *x = f->x + first * width;
    kvb_rms_norm<<<(unsigned)rows, 256>>>(x, f->norm_w, f->shape.embedding, f->shape.norm_epsilon, f->normed);
    kvb_status status = linear(f, f->normed, f->qkv_w, rows, qkv_width(g), width, 0.0f, w.qkv, err);
    for (int values = 0; values < 2 && observed; values++)
        kvb_keep_rows<<<blocks_for(rows * g->kv_heads * g->head_dim), 256>>>(
            w, values != 0, first, all, f->kept + values * g->kv_heads * all * g->head_dim, f->bad + values * g->kv_heads * all,
            f->counter + values);
    kvb_turn<<<(unsigned)rows, 256>>>(w, observed);
    BY_DIM(launch_attend, w)
    TRY(status, err, "attention", cudaGetLastError());
    if (status == KVB_OK && observed)
        status = observe(f, w, first, err);
    kvb_round_tf32<<<blocks_for(rows * heads), 256>>>(w.out, rows * heads);
    return status == KVB_OK ? linear(f, w.out, f->out_w, rows, width, heads, 1.0f, x, err) : status;
}

static kvb_status feed_forward(kvb_cuda_forward *f, size_t first, size_t rows, kvb_error *err)
{
    const size_t width = f->shape.embedding, ffn = f->shape.ffn;
    float *x = f->x + first * width;
    kvb_rms_norm<<<(unsigned)rows, 256>>>(x, f->norm_w + width, f->shape.embedding, f->shape.norm_epsilon, f->normed);
    kvb_status status = linear(f, f->normed, f->gate_up_w, rows, 2 * ffn, width, 0.0f, f->wide, err);
    kvb_swiglu<<<blocks_for(rows * ffn), 256>>>(f->wide, f->shape.ffn, rows, f->narrow);
    if (status == KVB_OK)
        status = linear(f, f->narrow, f->down_w, rows, width, ffn, 1.0f, x, err);
    TRY(status, err, "feed-forward", cudaGetLastError());
    return status;
}

static kvb_status read_seen(kvb_cuda_forward *f, kvb_cuda_seen *seen, kvb_error *err)
{
    const kvb_layer *g = &f->shape.geometry;
    const size_t n = all_rows(f), half = g->kv_heads * n * g->head_dim;
    std::vector<unsigned long long> counter(COUNTERS + g->heads);
    kvb_status status = KVB_OK;
    TRY(status, err, "keys", cudaMemcpy(seen->keys, f->kept, half * sizeof(__half), cudaMemcpyDeviceToHost));
    TRY(status, err, "values", cudaMemcpy(seen->values, f->kept + half, half * sizeof(__half), cudaMemcpyDeviceToHost));
    TRY(status, err, "rows left out", cudaMemcpy(seen->bad_keys, f->bad, g->kv_heads * n, cudaMemcpyDeviceToHost));
    TRY(status, err, "rows left out", cudaMemcpy(seen->bad_values, f->bad + g->kv_heads * n, g->kv_heads * n, cudaMemcpyDeviceToHost));
    TRY(status, err, "token weights", cudaMemcpy(seen->weight_k, f->weight, g->kv_heads * n * sizeof(float), cudaMemcpyDeviceToHost));
    TRY(status, err, "token weights",
        cudaMemcpy(seen->weight_v, f->weight + g->kv_heads * n, g->kv_heads * n * sizeof(float), cudaMemcpyDeviceToHost));
    TRY(status, err, "moments", cudaMemcpy(seen->moment, f->moment, 2 * g->kv_heads * (size_t)g->head_dim * g->head_dim * sizeof(double),
                                           cudaMemcpyDeviceToHost));
    TRY(status, err, "counts", cudaMemcpy(counter.data(), f->counter, counter.size() * sizeof counter[0], cudaMemcpyDeviceToHost));
    seen->saturated_keys = counter[0];
    seen->saturated_values = counter[1];
    for (size_t h = 0; h < g->heads; h++)
        seen->bad_queries[h] = counter[COUNTERS + h];
    return status;
}

static kvb_status run_layer(kvb_cuda_forward *f, const kvb_cuda_weights *weights, kvb_cuda_seen *seen, kvb_error *err)
{
    const kvb_layer *g = &f->shape.geometry;
    kvb_status status = KVB_OK;
    TRY(status, err, "choosing a device", cudaSetDevice(f->device));
    if (status == KVB_OK)
        status = upload_layer(f, weights, err);
    TRY(status, err, "moments", cudaMemset(f->moment, 0, 2 * g->kv_heads * (size_t)g->head_dim * g->head_dim * sizeof(double)));
    TRY(status, err, "counts", cudaMemset(f->bad, 0, 2 * g->kv_heads * all_rows(f)));
    TRY(status, err, "counts", cudaMemset(f->counter, 0, (COUNTERS + g->heads) * sizeof *f->counter));
    for (uint64_t s = 0; s < f->shape.sequences && status == KVB_OK; s += f->at_work) {
        kvb_dev_work_layer w = f->work;
        const size_t first = (size_t)s * f->shape.ctx;
        w.sequences = (uint32_t)std::min<uint64_t>(f->at_work, f->shape.sequences - s);
        w.drawn = f->drawn + first;
        status = attention_block(f, w, first, seen != nullptr, err);
        if (status == KVB_OK)
            status = feed_forward(f, first, (size_t)w.sequences * f->shape.ctx, err);
    }
    TRY(status, err, "layer", cudaDeviceSynchronize());
    return status == KVB_OK && seen != nullptr ? read_seen(f, seen, err) : status;
}

kvb_status kvb_cuda_forward_layer(kvb_cuda_forward *f, const kvb_cuda_weights *weights, kvb_cuda_seen *seen, kvb_error *err)
{
    try {
        return run_layer(f, weights, seen, err);
    } catch (const std::bad_alloc &) {
        return kvb_fail_memory(err, "capture on a GPU");
    }
}
