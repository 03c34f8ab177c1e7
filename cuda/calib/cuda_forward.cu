#include "cuda/calib/cuda_forward.h"

#include <cublas_v2.h>

#include <string.h>

#include <algorithm>
#include <new>
#include <vector>

#include "cuda/calib/cuda_forward_kernels.cuh"
#include "cuda/calib/cuda_try.cuh"

enum { MOST_DIM = 128, COUNTERS = 2 /* then one a query head */, SLOTS = 2, STAGES = 4 };
static const size_t STAGE_BYTES = (size_t)16 << 20;

/* One layer's matrices, as they come and as they are used. */
struct weight_slot {
    float *qkv = nullptr, *out = nullptr, *gate_up = nullptr, *down = nullptr, *norm = nullptr; /* norm [2][E] */
    float *bias = nullptr, *head_norm = nullptr; /* [(H+2G)D], [2][D] */
    bool biased = false, head_normed = false;    /* whether this layer has them */
    cudaEvent_t here = nullptr, used = nullptr; /* copied; the layer is done with them */
};

/* What one layer leaves: the same blocks on the device and on the host. */
struct seen_slot {
    __half *kept = nullptr;   /* [2][G][n][D] */
    uint8_t *bad = nullptr;   /* [2][G][n] */
    float *weight = nullptr;  /* [2][G][n] */
    kvb_exact *sums = nullptr; /* [2][G][D(D+1)/2] */
    unsigned long long *counter = nullptr; /* saturated keys, values, then bad queries of each head */
    cudaEvent_t done = nullptr; /* the layer */
};

struct kvb_cuda_forward {
    int device = 0;
    kvb_cuda_shape shape = {};
    cublasHandle_t blas = nullptr;
    cudaStream_t compute = nullptr, in = nullptr, out = nullptr;
    std::vector<void *> memory, host;
    float *x = nullptr;      /* [sequences][T][E] the residual stream */
    float *normed = nullptr; /* [T][E] */
    float *wide = nullptr;   /* [T][2F] */
    float *narrow = nullptr; /* [T][F] */
    float *product = nullptr; /* [H][D][D] */
    uint32_t *drawn = nullptr; /* [n] */
    std::vector<weight_slot> weights; /* SLOTS, or one a layer */
    seen_slot seen[SLOTS], held; /* held: on the host */
    float *handed = nullptr; /* [T][sequences][2(H+G)D]: queries, keys, values and outputs of a layer, where others attend */
    uint32_t rows = 0, position = 0; /* tokens of a sequence that are at work, and the first one's place */
    uint64_t copied = 0, layers = 0, observed = 0, read = 0; /* layers whose weights came, that were begun, observed, read */
    char *stage[STAGES] = {};
    cudaEvent_t staged[STAGES] = {};
    unsigned next_stage = 0;
    kvb_dev_work_layer work = {};
};

static const char memory_hint[] = "use fewer or shorter chunks, or the CPU";

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

/* Page-locked host memory, which copies reach without a detour. */
template <typename T>
static kvb_status take_host(kvb_cuda_forward *f, T **to, size_t count, kvb_error *err)
{
    void *memory = nullptr;
    kvb_status status = KVB_OK;
    const cudaError_t code = cudaHostAlloc(&memory, count * sizeof(T), cudaHostAllocDefault);
    if (code == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        return kvb_fail(err, KVB_E_MEMORY, "GPU", "%zu bytes of page-locked memory cannot be had; use fewer or shorter chunks, or the CPU",
                        count * sizeof(T));
    }
    TRY(status, err, "page-locked memory", code);
    if (status == KVB_OK)
        f->host.push_back(memory);
    *to = (T *)memory;
    return status;
}

static kvb_status take_event(cudaEvent_t *event, kvb_error *err)
{
    kvb_status status = KVB_OK;
    TRY(status, err, "events", cudaEventCreateWithFlags(event, cudaEventDisableTiming));
    return status;
}

static kvb_status take_weights(kvb_cuda_forward *f, weight_slot *w, kvb_error *err)
{
    const kvb_layer *g = &f->shape.geometry;
    const size_t width = f->shape.embedding, ffn = f->shape.ffn, heads = (size_t)g->heads * g->head_dim;
    kvb_status status = take(f, &w->qkv, qkv_width(g) * width, err);
    if (status == KVB_OK)
        status = take(f, &w->out, width * heads, err);
    if (status == KVB_OK)
        status = take(f, &w->gate_up, 2 * ffn * width, err);
    if (status == KVB_OK)
        status = take(f, &w->down, ffn * width, err);
    if (status == KVB_OK)
        status = take(f, &w->norm, 2 * width, err);
    if (status == KVB_OK)
        status = take(f, &w->bias, qkv_width(g), err);
    if (status == KVB_OK)
        status = take(f, &w->head_norm, 2 * g->head_dim, err);
    if (status == KVB_OK)
        status = take_event(&w->here, err);
    return status == KVB_OK ? take_event(&w->used, err) : status;
}

static kvb_status take_stages(kvb_cuda_forward *f, kvb_error *err)
{
    kvb_status status = KVB_OK;
    for (int i = 0; i < STAGES && status == KVB_OK; i++) {
        status = take_host(f, &f->stage[i], STAGE_BYTES, err);
        if (status == KVB_OK)
            status = take_event(&f->staged[i], err);
    }
    return status;
}

static kvb_status take_rows(kvb_cuda_forward *f, kvb_error *err)
{
    const kvb_layer *g = &f->shape.geometry;
    const size_t rows = (size_t)f->shape.ctx, heads = (size_t)g->heads * g->head_dim;
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

/* Elements of a slot's blocks. */
struct seen_sizes {
    size_t kept, rows, sums, counters;
    explicit seen_sizes(const kvb_cuda_forward *f)
    {
        const kvb_layer *g = &f->shape.geometry;
        rows = 2 * g->kv_heads * all_rows(f);
        kept = rows * g->head_dim;
        sums = 2 * g->kv_heads * kvb_triangle(g->head_dim);
        counters = COUNTERS + g->heads;
    }
};

static kvb_status take_seen(kvb_cuda_forward *f, seen_slot *s, kvb_error *err)
{
    const seen_sizes n(f);
    kvb_status status = take(f, &s->kept, n.kept, err);
    if (status == KVB_OK)
        status = take(f, &s->bad, n.rows, err);
    if (status == KVB_OK)
        status = take(f, &s->weight, n.rows, err);
    if (status == KVB_OK)
        status = take(f, &s->sums, n.sums, err);
    if (status == KVB_OK)
        status = take(f, &s->counter, n.counters, err);
    return status == KVB_OK ? take_event(&s->done, err) : status;
}

static kvb_status take_held(kvb_cuda_forward *f, seen_slot *s, kvb_error *err)
{
    const seen_sizes n(f);
    kvb_status status = take_host(f, &s->kept, n.kept, err);
    if (status == KVB_OK)
        status = take_host(f, &s->bad, n.rows, err);
    if (status == KVB_OK)
        status = take_host(f, &s->weight, n.rows, err);
    if (status == KVB_OK)
        status = take_host(f, &s->sums, n.sums, err);
    return status == KVB_OK ? take_host(f, &s->counter, n.counters, err) : status;
}

static kvb_status take_places(kvb_cuda_forward *f, kvb_error *err)
{
    const kvb_layer *g = &f->shape.geometry;
    const size_t square = (size_t)g->head_dim * g->head_dim, n = all_rows(f), pairs = g->rope_dims / 2;
    const size_t positions = std::max(f->shape.positions, f->shape.ctx);
    float *cosine = nullptr, *sine = nullptr;
    kvb_status status = take(f, &cosine, positions * pairs + 1, err);
    if (status == KVB_OK)
        status = take(f, &sine, positions * pairs + 1, err);
    if (status == KVB_OK && g->rope_style != KVB_ROPE_NONE) {
        TRY(status, err, "rotary table", cudaMemcpy(cosine, f->shape.cosine, positions * pairs * 4, cudaMemcpyHostToDevice));
        TRY(status, err, "rotary table", cudaMemcpy(sine, f->shape.sine, positions * pairs * 4, cudaMemcpyHostToDevice));
    }
    if (status == KVB_OK && f->shape.drawn != nullptr) {
        status = take(f, &f->product, g->heads * square, err);
        if (status == KVB_OK)
            status = take(f, &f->drawn, n, err);
        TRY(status, err, "drawn positions", cudaMemcpy(f->drawn, f->shape.drawn, n * sizeof(uint32_t), cudaMemcpyHostToDevice));
    }
    if (status == KVB_OK && f->shape.handed)
        status = take(f, &f->handed, n * 2 * (g->heads + g->kv_heads) * g->head_dim, err);
    TRY(status, err, "tables", cudaDeviceSynchronize()); /* the streams do not wait for copies of this kind */
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
    TRY(status, err, "streams", cudaStreamCreateWithFlags(&f->compute, cudaStreamNonBlocking));
    TRY(status, err, "streams", cudaStreamCreateWithFlags(&f->in, cudaStreamNonBlocking));
    TRY(status, err, "streams", cudaStreamCreateWithFlags(&f->out, cudaStreamNonBlocking));
    if (status == KVB_OK && (cublasCreate(&f->blas) != CUBLAS_STATUS_SUCCESS || cublasSetStream(f->blas, f->compute) != CUBLAS_STATUS_SUCCESS))
        return kvb_fail(err, KVB_E_DEVICE, "GPU", "cuBLAS cannot be started");
    f->work.heads = g->heads, f->work.kv_heads = g->kv_heads, f->work.dim = g->head_dim, f->work.tokens = f->shape.ctx;
    f->work.rope_style = g->rope_style, f->work.rope_dims = g->rope_style == KVB_ROPE_NONE ? 0 : g->rope_dims;
    f->work.window = g->kind == KVB_LAYER_SLIDING ? g->sliding_window : 0;
    f->work.scale = (float)g->attention_scale;
    f->work.sequences = 1;
    f->rows = f->shape.ctx;
    f->weights.resize(std::max<size_t>(f->shape.resident, SLOTS));
    for (size_t i = 0; i < f->weights.size() && status == KVB_OK; i++)
        status = take_weights(f, &f->weights[i], err);
    for (int i = 0; i < SLOTS && status == KVB_OK && f->shape.drawn != nullptr; i++)
        status = take_seen(f, &f->seen[i], err);
    if (status == KVB_OK && f->shape.drawn != nullptr)
        status = take_held(f, &f->held, err);
    if (status == KVB_OK)
        status = take_stages(f, err);
    if (status == KVB_OK)
        status = take_rows(f, err);
    return status == KVB_OK ? take_places(f, err) : status;
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
    (void)cudaSetDevice(f->device);
    (void)cudaDeviceSynchronize(); /* nothing is under way in what is freed now */
    for (void *memory : f->memory)
        cudaFree(memory);
    for (void *memory : f->host)
        cudaFreeHost(memory);
    std::vector<cudaEvent_t> events(f->staged, f->staged + STAGES);
    for (const weight_slot &w : f->weights)
        events.insert(events.end(), {w.here, w.used});
    for (const seen_slot &s : f->seen)
        events.push_back(s.done);
    for (cudaEvent_t event : events)
        if (event != nullptr)
            cudaEventDestroy(event);
    for (cudaStream_t stream : {f->compute, f->in, f->out})
        if (stream != nullptr)
            cudaStreamDestroy(stream);
    if (f->blas != nullptr)
        cublasDestroy(f->blas);
    delete f;
}

static kvb_status move_rows(kvb_cuda_forward *f, uint64_t sequence, float *host, const float *from, kvb_error *err)
{
    const size_t stride = (size_t)f->shape.ctx * f->shape.embedding, size = (size_t)f->rows * f->shape.embedding;
    kvb_status status = KVB_OK;
    if (sequence >= f->shape.sequences)
        return kvb_fail(err, KVB_E_USAGE, "GPU", "sequence %llu of %llu", (unsigned long long)sequence,
                        (unsigned long long)f->shape.sequences);
    TRY(status, err, "choosing a device", cudaSetDevice(f->device));
    if (from != nullptr)
        TRY(status, err, "embeddings",
            cudaMemcpyAsync(f->x + sequence * stride, from, size * sizeof(float), cudaMemcpyHostToDevice, f->compute));
    else
        TRY(status, err, "hidden states",
            cudaMemcpyAsync(host, f->x + sequence * stride, size * sizeof(float), cudaMemcpyDeviceToHost, f->compute));
    TRY(status, err, "rows of a sequence", cudaStreamSynchronize(f->compute));
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

static void copy_by_all(char *to, const char *from, size_t size)
{
    const size_t piece = 1 << 20;
#pragma omp parallel for schedule(static)
    for (size_t at = 0; at < size; at += piece)
        memcpy(to + at, from + at, std::min(piece, size - at));
}

/* A matrix to the device by way of page-locked memory, rounded to TF32 there where asked. */
static kvb_status upload(kvb_cuda_forward *f, float *to, const float *from, size_t count, bool rounded, kvb_error *err)
{
    const size_t size = count * sizeof(float);
    kvb_status status = KVB_OK;
    for (size_t at = 0; at < size && status == KVB_OK; at += STAGE_BYTES) {
        const unsigned i = f->next_stage++ % STAGES;
        const size_t part = std::min(STAGE_BYTES, size - at);
        TRY(status, err, "copying weights", cudaEventSynchronize(f->staged[i]));
        copy_by_all(f->stage[i], (const char *)from + at, part);
        TRY(status, err, "copying weights", cudaMemcpyAsync((char *)to + at, f->stage[i], part, cudaMemcpyHostToDevice, f->in));
        TRY(status, err, "copying weights", cudaEventRecord(f->staged[i], f->in));
    }
    if (status == KVB_OK && rounded)
        kvb_round_tf32<<<blocks_for(count), 256, 0, f->in>>>(to, count);
    TRY(status, err, "copying weights", cudaGetLastError());
    return status;
}

static kvb_status upload_layer(kvb_cuda_forward *f, const weight_slot *to, const kvb_cuda_weights *w, kvb_error *err)
{
    const kvb_layer *g = &f->shape.geometry;
    const size_t width = f->shape.embedding, ffn = f->shape.ffn;
    kvb_status status = upload(f, to->qkv, w->qkv, qkv_width(g) * width, true, err);
    if (status == KVB_OK)
        status = upload(f, to->out, w->out, width * g->heads * g->head_dim, true, err);
    if (status == KVB_OK)
        status = upload(f, to->gate_up, w->gate_up, 2 * ffn * width, true, err);
    if (status == KVB_OK)
        status = upload(f, to->down, w->down, ffn * width, true, err);
    if (status == KVB_OK)
        status = upload(f, to->norm, w->attention_norm, width, false, err);
    if (status == KVB_OK && w->qkv_bias != nullptr)
        status = upload(f, to->bias, w->qkv_bias, qkv_width(g), false, err);
    if (status == KVB_OK && w->q_norm != nullptr)
        status = upload(f, to->head_norm, w->q_norm, g->head_dim, false, err);
    if (status == KVB_OK && w->q_norm != nullptr)
        status = upload(f, to->head_norm + g->head_dim, w->k_norm, g->head_dim, false, err);
    return status == KVB_OK ? upload(f, to->norm + width, w->ffn_norm, width, false, err) : status;
}

kvb_status kvb_cuda_forward_weights(kvb_cuda_forward *f, const kvb_cuda_weights *weights, kvb_error *err)
{
    weight_slot *slot = &f->weights[f->copied % f->weights.size()];
    kvb_status status = KVB_OK;
    if ((weights->q_norm != nullptr) != (weights->k_norm != nullptr))
        return kvb_fail(err, KVB_E_USAGE, "GPU", "a norm of queries or of keys alone: expected both or neither");
    if (f->copied - f->layers >= f->weights.size())
        return kvb_fail(err, KVB_E_USAGE, "GPU", "weights of %zu layers are waiting already; begin a layer first", f->weights.size());
    TRY(status, err, "choosing a device", cudaSetDevice(f->device));
    TRY(status, err, "copying weights", cudaStreamWaitEvent(f->in, slot->used, 0));
    if (status == KVB_OK)
        status = upload_layer(f, slot, weights, err);
    TRY(status, err, "copying weights", cudaEventRecord(slot->here, f->in));
    slot->biased = weights->qkv_bias != nullptr;
    slot->head_normed = weights->q_norm != nullptr;
    f->copied += status == KVB_OK;
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
static kvb_status add_moments(kvb_cuda_forward *f, const float *x, size_t m, kvb_exact *sums, kvb_error *err)
{
    const kvb_layer *g = &f->shape.geometry;
    const int dim = (int)g->head_dim, width = (int)(g->heads * g->head_dim);
    const float one = 1.0f, zero = 0.0f;
    const cublasStatus_t code =
        cublasSgemmStridedBatched(f->blas, CUBLAS_OP_N, CUBLAS_OP_T, dim, dim, (int)m, &one, x, width, dim, x, width, dim, &zero,
                                  f->product, dim, (long long)dim * dim, (int)g->heads);
    if (code != CUBLAS_STATUS_SUCCESS)
        return kvb_fail(err, KVB_E_DEVICE, "GPU", "cuBLAS: %s", cublasGetStatusString(code));
    kvb_add_moments<<<blocks_for((size_t)g->kv_heads * dim * dim), 256, 0, f->compute>>>(f->product, g->heads, g->kv_heads, g->head_dim, sums);
    return KVB_OK;
}

template <int D> static void launch_attend(const kvb_dev_work_layer &w, cudaStream_t stream)
{
    kvb_attend_tiles<D><<<dim3((w.tokens + 63) / 64, w.heads, w.sequences), 256, kvb_attend_bytes<D>(), stream>>>(w);
}

template <int D> static void launch_weigh(const kvb_dev_work_layer &w, cudaStream_t stream)
{
    kvb_weigh_tiles<D><<<dim3((w.tokens + 63) / 64, w.heads, w.sequences), 256, kvb_weigh_bytes<D>(), stream>>>(w);
}

#define BY_DIM(launch, w, stream)            \
    switch (padded_dim((w).dim)) {           \
    case 16: launch<16>(w, stream); break;   \
    case 32: launch<32>(w, stream); break;   \
    case 64: launch<64>(w, stream); break;   \
    default: launch<128>(w, stream); break;  \
    }

/* Weights and moments of a sequence, whose attention is there. */
static kvb_status observe(kvb_cuda_forward *f, const kvb_dev_work_layer &w, const seen_slot *to, size_t first, kvb_error *err)
{
    const kvb_layer *g = &f->shape.geometry;
    const size_t rows = w.tokens, all = all_rows(f), triangle = kvb_triangle(g->head_dim);
    BY_DIM(launch_weigh, w, f->compute)
    for (size_t kind = 0; kind < 2; kind++)
        kvb_add_weights<<<blocks_for(rows * g->kv_heads), 256, 0, f->compute>>>(w, w.weight + kind * g->heads * rows, first, all,
                                                                                to->weight + kind * g->kv_heads * all);
    kvb_status status = add_moments(f, w.q_back, rows, to->sums, err);
    kvb_good_queries<<<blocks_for(rows * g->heads * g->head_dim), 256, 0, f->compute>>>(w, w.q_back, to->counter + COUNTERS);
    if (status == KVB_OK)
        status = add_moments(f, w.q_back, rows, to->sums + g->kv_heads * triangle, err);
    TRY(status, err, "token weights", cudaGetLastError());
    return status;
}

/* The heads of a sequence's tokens as they are before RoPE: w.qkv. */
static kvb_status project_heads(kvb_cuda_forward *f, const kvb_dev_work_layer &w, const weight_slot *weights, size_t first, kvb_error *err)
{
    const kvb_layer *g = &f->shape.geometry;
    const size_t rows = w.tokens, width = f->shape.embedding;
    kvb_rms_norm<<<(unsigned)rows, 256, 0, f->compute>>>(f->x + first * width, weights->norm, f->shape.embedding, f->shape.norm_epsilon,
                                                         f->normed);
    const kvb_status status = linear(f, f->normed, weights->qkv, rows, qkv_width(g), width, 0.0f, w.qkv, err);
    if (weights->biased || weights->head_normed)
        kvb_finish_heads<<<(unsigned)rows, 256, 0, f->compute>>>(
            w, weights->biased ? weights->bias : nullptr, weights->head_normed ? weights->head_norm : nullptr,
            weights->head_normed ? weights->head_norm + g->head_dim : nullptr, f->shape.norm_epsilon);
    return status;
}

/* x += w.out W_O^T */
static kvb_status project_out(kvb_cuda_forward *f, const kvb_dev_work_layer &w, const weight_slot *weights, size_t first, kvb_error *err)
{
    const size_t heads = (size_t)w.heads * w.dim, rows = w.tokens, width = f->shape.embedding;
    kvb_round_tf32<<<blocks_for(rows * heads), 256, 0, f->compute>>>(w.out, rows * heads);
    return linear(f, w.out, weights->out, rows, width, heads, 1.0f, f->x + first * width, err);
}

/* to: NULL where nobody observes. */
static kvb_status attention_block(kvb_cuda_forward *f, const kvb_dev_work_layer &w, const weight_slot *weights, const seen_slot *to,
                                  size_t first, kvb_error *err)
{
    const kvb_layer *g = &f->shape.geometry;
    const size_t rows = w.tokens, all = all_rows(f);
    kvb_status status = project_heads(f, w, weights, first, err);
    for (int values = 0; values < 2 && to != nullptr; values++)
        kvb_keep_rows<<<blocks_for(rows * g->kv_heads * g->head_dim), 256, 0, f->compute>>>(
            w, values != 0, first, all, to->kept + values * g->kv_heads * all * g->head_dim, to->bad + values * g->kv_heads * all,
            to->counter + values);
    kvb_turn<<<(unsigned)rows, 256, 0, f->compute>>>(w, to != nullptr);
    BY_DIM(launch_attend, w, f->compute)
    TRY(status, err, "attention", cudaGetLastError());
    if (status == KVB_OK && to != nullptr)
        status = observe(f, w, to, first, err);
    return status == KVB_OK ? project_out(f, w, weights, first, err) : status;
}

static kvb_status feed_forward(kvb_cuda_forward *f, const weight_slot *weights, size_t first, kvb_error *err)
{
    const size_t rows = f->rows, width = f->shape.embedding, ffn = f->shape.ffn;
    float *x = f->x + first * width;
    kvb_rms_norm<<<(unsigned)rows, 256, 0, f->compute>>>(x, weights->norm + width, f->shape.embedding, f->shape.norm_epsilon, f->normed);
    kvb_status status = linear(f, f->normed, weights->gate_up, rows, 2 * ffn, width, 0.0f, f->wide, err);
    kvb_swiglu<<<blocks_for(rows * ffn), 256, 0, f->compute>>>(f->wide, f->shape.ffn, rows, f->narrow);
    if (status == KVB_OK)
        status = linear(f, f->narrow, weights->down, rows, width, ffn, 1.0f, x, err);
    TRY(status, err, "feed-forward", cudaGetLastError());
    return status;
}

static kvb_status clear_seen(kvb_cuda_forward *f, const seen_slot *s, kvb_error *err)
{
    const seen_sizes n(f);
    kvb_status status = KVB_OK;
    TRY(status, err, "moments", cudaMemsetAsync(s->sums, 0, n.sums * sizeof *s->sums, f->compute));
    TRY(status, err, "counts", cudaMemsetAsync(s->bad, 0, n.rows, f->compute));
    TRY(status, err, "counts", cudaMemsetAsync(s->counter, 0, n.counters * sizeof *s->counter, f->compute));
    return status;
}

/* The weights of the next layer, when they are there. */
static kvb_status begin_layer(kvb_cuda_forward *f, const weight_slot **weights, kvb_error *err)
{
    kvb_status status = KVB_OK;
    const bool there = f->shape.resident != 0 ? f->copied == f->shape.resident : f->copied > f->layers;
    *weights = &f->weights[f->layers % f->weights.size()];
    if (!there)
        return kvb_fail(err, KVB_E_USAGE, "GPU", "no weights are waiting: kvb_cuda_forward_weights() comes first");
    TRY(status, err, "choosing a device", cudaSetDevice(f->device));
    TRY(status, err, "layer", cudaStreamWaitEvent(f->compute, (*weights)->here, 0));
    return status;
}

static kvb_status end_layer(kvb_cuda_forward *f, const weight_slot *weights, kvb_error *err)
{
    kvb_status status = KVB_OK;
    TRY(status, err, "layer", cudaEventRecord(weights->used, f->compute));
    f->layers++;
    return status;
}

static kvb_dev_work_layer work_of(const kvb_cuda_forward *f)
{
    kvb_dev_work_layer w = f->work;
    w.tokens = f->rows;
    w.cosine += (size_t)f->position * (w.rope_dims / 2);
    w.sine += (size_t)f->position * (w.rope_dims / 2);
    return w;
}

kvb_status kvb_cuda_forward_layer(kvb_cuda_forward *f, bool observed, kvb_error *err)
{
    const weight_slot *weights;
    const seen_slot *to = observed ? &f->seen[f->observed % SLOTS] : nullptr;
    if (observed && (f->shape.drawn == nullptr || f->observed - f->read >= SLOTS))
        return kvb_fail(err, KVB_E_USAGE, "GPU", "%s", f->shape.drawn == nullptr ? "nobody observes this forward pass"
                                                                               : "two observed layers are waiting to be read");
    kvb_status status = begin_layer(f, &weights, err);
    if (status == KVB_OK && observed)
        status = clear_seen(f, to, err);
    for (uint64_t s = 0; s < f->shape.sequences && status == KVB_OK; s++) {
        kvb_dev_work_layer w = work_of(f);
        const size_t first = (size_t)s * f->shape.ctx;
        w.drawn = f->drawn + first;
        status = attention_block(f, w, weights, to, first, err);
        if (status == KVB_OK)
            status = feed_forward(f, weights, first, err);
    }
    if (observed)
        TRY(status, err, "layer", cudaEventRecord(to->done, f->compute));
    f->observed += observed;
    return status == KVB_OK ? end_layer(f, weights, err) : status;
}

/* Where the queries, keys, values and outputs of all sequences lie. */
static kvb_cuda_handed handed_of(const kvb_cuda_forward *f)
{
    const kvb_layer *g = &f->shape.geometry;
    const size_t heads = (size_t)f->rows * f->shape.sequences * g->heads * g->head_dim, kv = heads / g->heads * g->kv_heads;
    float *q = f->handed;
    return {f->position, f->rows, q, q + heads, q + heads + kv, q + heads + 2 * kv};
}

static kvb_status hand_over(kvb_cuda_forward *f, const kvb_cuda_handed &to, const weight_slot *weights, kvb_error *err)
{
    kvb_status status = KVB_OK;
    for (uint64_t s = 0; s < f->shape.sequences && status == KVB_OK; s++) {
        const kvb_dev_work_layer w = work_of(f);
        const size_t n = (size_t)w.tokens * w.dim, at = w.heads * (size_t)w.dim, kv = w.kv_heads * (size_t)w.dim;
        const uint32_t many = (uint32_t)f->shape.sequences;
        status = project_heads(f, w, weights, s * f->shape.ctx, err);
        kvb_take_heads<<<blocks_for(n * w.kv_heads), 256, 0, f->compute>>>(w, at, kv, (uint32_t)s, many, to.k);
        kvb_take_heads<<<blocks_for(n * w.kv_heads), 256, 0, f->compute>>>(w, at + kv, kv, (uint32_t)s, many, to.v);
        kvb_turn<<<w.tokens, 256, 0, f->compute>>>(w, false);
        kvb_take_heads<<<blocks_for(n * w.heads), 256, 0, f->compute>>>(w, 0, at, (uint32_t)s, many, to.q);
    }
    TRY(status, err, "queries and keys", cudaGetLastError());
    return status;
}

kvb_status kvb_cuda_forward_layer_by(kvb_cuda_forward *f, uint32_t layer, kvb_cuda_attend_fn attend, void *user, kvb_error *err)
{
    const weight_slot *weights;
    if (f->handed == nullptr)
        return kvb_fail(err, KVB_E_USAGE, "GPU", "this forward pass was not made for others' attention");
    kvb_status status = begin_layer(f, &weights, err);
    const kvb_cuda_handed handed = handed_of(f);
    if (status == KVB_OK)
        status = hand_over(f, handed, weights, err);
    if (status == KVB_OK)
        status = attend(user, layer, &handed, f->compute, err);
    for (uint64_t s = 0; s < f->shape.sequences && status == KVB_OK; s++) {
        const kvb_dev_work_layer w = work_of(f);
        const size_t first = (size_t)s * f->shape.ctx;
        kvb_put_heads<<<blocks_for((size_t)w.tokens * w.heads * w.dim), 256, 0, f->compute>>>(w, handed.out, (uint32_t)s,
                                                                                              (uint32_t)f->shape.sequences);
        status = project_out(f, w, weights, first, err);
        if (status == KVB_OK)
            status = feed_forward(f, weights, first, err);
    }
    return status == KVB_OK ? end_layer(f, weights, err) : status;
}

kvb_status kvb_cuda_forward_place(kvb_cuda_forward *f, uint32_t position, uint32_t tokens, kvb_error *err)
{
    if (tokens == 0 || tokens > f->shape.ctx || position > std::max(f->shape.positions, f->shape.ctx) - tokens)
        return kvb_fail(err, KVB_E_USAGE, "GPU", "%u tokens from position %u on: expected at most %u, before position %u", tokens, position,
                        f->shape.ctx, std::max(f->shape.positions, f->shape.ctx));
    f->position = position;
    f->rows = tokens;
    return KVB_OK;
}

const float *kvb_cuda_forward_rows(const kvb_cuda_forward *f, cudaStream_t *stream)
{
    *stream = f->compute;
    return f->x;
}

kvb_status kvb_cuda_forward_seen(kvb_cuda_forward *f, kvb_cuda_seen *seen, kvb_error *err)
{
    const seen_slot *from = &f->seen[f->read % SLOTS], *to = &f->held;
    const size_t head_rows = f->shape.geometry.kv_heads * all_rows(f);
    const seen_sizes n(f);
    kvb_status status = KVB_OK;
    if (f->read == f->observed)
        return kvb_fail(err, KVB_E_USAGE, "GPU", "no observed layer is waiting to be read");
    TRY(status, err, "choosing a device", cudaSetDevice(f->device));
    TRY(status, err, "layer", cudaStreamWaitEvent(f->out, from->done, 0));
    TRY(status, err, "keys", cudaMemcpyAsync(to->kept, from->kept, n.kept * sizeof *to->kept, cudaMemcpyDeviceToHost, f->out));
    TRY(status, err, "rows left out", cudaMemcpyAsync(to->bad, from->bad, n.rows, cudaMemcpyDeviceToHost, f->out));
    TRY(status, err, "token weights", cudaMemcpyAsync(to->weight, from->weight, n.rows * sizeof *to->weight, cudaMemcpyDeviceToHost, f->out));
    TRY(status, err, "moments", cudaMemcpyAsync(to->sums, from->sums, n.sums * sizeof *to->sums, cudaMemcpyDeviceToHost, f->out));
    TRY(status, err, "counts", cudaMemcpyAsync(to->counter, from->counter, n.counters * sizeof *to->counter, cudaMemcpyDeviceToHost, f->out));
    TRY(status, err, "layer", cudaStreamSynchronize(f->out));
    f->read++;
    static_assert(sizeof *to->counter == sizeof *seen->bad_queries, "counters are 64 bits");
    *seen = {
        (const uint16_t *)to->kept, (const uint16_t *)to->kept + head_rows * f->shape.geometry.head_dim,
        to->bad, to->bad + head_rows, to->weight, to->weight + head_rows, to->sums,
        (const uint64_t *)(const void *)(to->counter + COUNTERS), to->counter[0], to->counter[1],
    };
    return status;
}
