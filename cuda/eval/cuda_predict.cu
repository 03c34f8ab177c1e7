#include "cuda/eval/cuda_predict.h"

#include <cublas_v2.h>

#include <algorithm>
#include <new>
#include <vector>

#include "cuda/calib/cuda_forward_kernels.cuh"
#include "cuda/calib/cuda_try.cuh"

enum { BLOCK_FLOATS = 1 << 26, MOST_ROWS = 4096, THREADS = 256 };

/* A row of logits: as tools/score.h has it. */
struct row_score {
    double log_sum, nll;
    uint32_t top, unused;
};

struct kvb_cuda_predict {
    int device = 0;
    uint32_t width = 0, vocab = 0; /* E, V */
    double epsilon = 0;
    size_t rows = 0, block = 0; /* at most; judged at a time */
    cublasHandle_t blas = nullptr;
    std::vector<void *> memory;
    float *norm = nullptr, *matrix = nullptr;
    float *hidden = nullptr, *exact = nullptr; /* [block][E], [rows][E]: normed */
    float *logits[2] = {};                     /* [block][V]: exact, other */
    row_score *score = nullptr, *exact_score = nullptr; /* [block], [rows] */
    uint32_t *target = nullptr;                /* [rows] */
    kvb_cuda_judged *judged = nullptr;         /* [rows] */
};

static const char memory_hint[] = "use fewer or shorter chunks, or the CPU";

/* Of candidates (value, index): the larger value, of equal ones the lower index. */
static __device__ __forceinline__ bool is_better(float a, uint32_t i, float b, uint32_t j)
{
    return a > b || (a == b && i < j);
}

static __device__ void block_best(float *value, uint32_t *index)
{
    __shared__ float values[THREADS / 32];
    __shared__ uint32_t indices[THREADS / 32];
    for (int far = 16; far > 0; far /= 2) {
        const float v = __shfl_xor_sync(0xffffffffu, *value, far);
        const uint32_t i = __shfl_xor_sync(0xffffffffu, *index, far);
        if (is_better(v, i, *value, *index))
            *value = v, *index = i;
    }
    if (threadIdx.x % 32 == 0)
        values[threadIdx.x / 32] = *value, indices[threadIdx.x / 32] = *index;
    __syncthreads();
    for (int w = 0; w < THREADS / 32; w++)
        if (is_better(values[w], indices[w], *value, *index))
            *value = values[w], *index = indices[w];
    __syncthreads();
}

/* A block a row. A NaN among the logits makes the sum and the likelihood NaN. */
static __global__ void __launch_bounds__(THREADS) score_rows(const float *logits, uint32_t vocab, const uint32_t *target, row_score *score)
{
    const float *row = logits + (size_t)blockIdx.x * vocab;
    float most = -CUDART_INF_F;
    uint32_t top = UINT32_MAX;
    double sum = 0.0;
    for (uint32_t i = threadIdx.x; i < vocab; i += THREADS)
        if (is_better(row[i], i, most, top))
            most = row[i], top = i;
    block_best(&most, &top);
    for (uint32_t i = threadIdx.x; i < vocab; i += THREADS)
        sum += (double)expf(row[i] - most);
    sum = log(kvb_block_sum(sum)) + (double)most;
    if (threadIdx.x == 0)
        score[blockIdx.x] = {sum, sum - (double)row[target[blockIdx.x]], top, 0};
}

/* exact: NULL where nothing is compared. */
static __global__ void __launch_bounds__(THREADS) judge_rows(const float *exact, const row_score *exact_score, const float *other,
                                                             const row_score *other_score, uint32_t vocab, kvb_cuda_judged *judged)
{
    const size_t at = (size_t)blockIdx.x * vocab;
    double sum = 0.0;
    if (exact != nullptr) {
        const double e = exact_score[blockIdx.x].log_sum, o = other_score[blockIdx.x].log_sum;
        for (uint32_t i = threadIdx.x; i < vocab; i += THREADS) {
            const double p = (double)exact[at + i] - e;
            sum += exp(p) * (p - ((double)other[at + i] - o));
        }
        sum = kvb_block_sum(sum);
    }
    if (threadIdx.x == 0)
        judged[blockIdx.x] = {other_score[blockIdx.x].nll, sum,
                              exact != nullptr && exact_score[blockIdx.x].top == other_score[blockIdx.x].top ? 1u : 0u, 0};
}

template <typename T>
static kvb_status take(kvb_cuda_predict *p, T **to, size_t count, kvb_error *err)
{
    void *memory = nullptr;
    kvb_status status = KVB_OK;
    TRY(status, err, "logits", cudaMalloc(&memory, count * sizeof(T)));
    if (status == KVB_OK)
        p->memory.push_back(memory);
    *to = (T *)memory;
    return status;
}

static kvb_status take_all(kvb_cuda_predict *p, kvb_error *err)
{
    kvb_status status = take(p, &p->norm, p->width, err);
    if (status == KVB_OK)
        status = take(p, &p->matrix, (size_t)p->vocab * p->width, err);
    if (status == KVB_OK)
        status = take(p, &p->hidden, p->block * p->width, err);
    if (status == KVB_OK)
        status = take(p, &p->exact, p->rows * p->width, err);
    for (int i = 0; i < 2 && status == KVB_OK; i++)
        status = take(p, &p->logits[i], p->block * p->vocab, err);
    if (status == KVB_OK)
        status = take(p, &p->score, p->block, err);
    if (status == KVB_OK)
        status = take(p, &p->exact_score, p->rows, err);
    if (status == KVB_OK)
        status = take(p, &p->target, p->rows, err);
    return status == KVB_OK ? take(p, &p->judged, p->rows, err) : status;
}

static kvb_status set_up(kvb_cuda_predict *p, const kvb_cuda_head *head, kvb_error *err)
{
    const size_t count = (size_t)p->vocab * p->width;
    kvb_status status = KVB_OK;
    TRY(status, err, "choosing a device", cudaSetDevice(p->device));
    if (status == KVB_OK && cublasCreate(&p->blas) != CUBLAS_STATUS_SUCCESS)
        return kvb_fail(err, KVB_E_DEVICE, "GPU", "cuBLAS cannot be started");
    if (status == KVB_OK)
        status = take_all(p, err);
    TRY(status, err, "final norm", cudaMemcpy(p->norm, head->norm, p->width * sizeof(float), cudaMemcpyHostToDevice));
    TRY(status, err, "head", cudaMemcpy(p->matrix, head->matrix, count * sizeof(float), cudaMemcpyHostToDevice));
    if (status == KVB_OK)
        kvb_round_tf32<<<4096, 256>>>(p->matrix, count);
    TRY(status, err, "head", cudaGetLastError());
    TRY(status, err, "head", cudaDeviceSynchronize());
    return status;
}

kvb_status kvb_cuda_predict_create(int device, const kvb_cuda_head *head, size_t rows, kvb_cuda_predict **out, kvb_error *err)
{
    *out = nullptr;
    try {
        kvb_cuda_predict *p = new kvb_cuda_predict;
        p->device = device;
        p->width = head->embedding, p->vocab = head->vocab, p->epsilon = head->norm_epsilon;
        p->rows = rows;
        p->block = std::min<size_t>({rows, MOST_ROWS, std::max<size_t>(BLOCK_FLOATS / head->vocab, 1)});
        const kvb_status status = set_up(p, head, err);
        if (status == KVB_OK)
            *out = p;
        else
            kvb_cuda_predict_destroy(p);
        return status;
    } catch (const std::bad_alloc &) {
        return kvb_fail_memory(err, "logits");
    }
}

void kvb_cuda_predict_destroy(kvb_cuda_predict *p)
{
    if (p == nullptr)
        return;
    (void)cudaSetDevice(p->device);
    (void)cudaDeviceSynchronize();
    for (void *memory : p->memory)
        cudaFree(memory);
    if (p->blas != nullptr)
        cublasDestroy(p->blas);
    delete p;
}

/* logits [rows][V] of normed rows */
static kvb_status project(kvb_cuda_predict *p, const float *normed, size_t rows, float *logits, kvb_error *err)
{
    const float one = 1.0f, zero = 0.0f;
    const cublasStatus_t code = cublasGemmEx(p->blas, CUBLAS_OP_T, CUBLAS_OP_N, (int)p->vocab, (int)rows, (int)p->width, &one, p->matrix,
                                             CUDA_R_32F, (int)p->width, normed, CUDA_R_32F, (int)p->width, &zero, logits, CUDA_R_32F,
                                             (int)p->vocab, CUBLAS_COMPUTE_32F_FAST_TF32, CUBLAS_GEMM_DEFAULT);
    return code == CUBLAS_STATUS_SUCCESS ? KVB_OK : kvb_fail(err, KVB_E_DEVICE, "GPU", "cuBLAS: %s", cublasGetStatusString(code));
}

/* A block of rows from `at` on: the exact rows' logits are computed again, as the vocabulary is too wide to keep them all. */
static kvb_status judge_block(kvb_cuda_predict *p, const float *x, size_t at, size_t rows, bool keep, bool compare, cudaStream_t stream,
                              kvb_error *err)
{
    float *hidden = keep ? p->exact + at * p->width : p->hidden;
    row_score *score = keep ? p->exact_score + at : p->score;
    kvb_status status = KVB_OK;
    kvb_rms_norm<<<(unsigned)rows, 256, 0, stream>>>(x + at * p->width, p->norm, p->width, p->epsilon, hidden);
    status = project(p, hidden, rows, p->logits[1], err);
    score_rows<<<(unsigned)rows, THREADS, 0, stream>>>(p->logits[1], p->vocab, p->target + at, score);
    if (compare && status == KVB_OK)
        status = project(p, p->exact + at * p->width, rows, p->logits[0], err);
    judge_rows<<<(unsigned)rows, THREADS, 0, stream>>>(compare ? p->logits[0] : nullptr, p->exact_score + at, p->logits[1], score, p->vocab,
                                                       p->judged + at);
    TRY(status, err, "likelihoods", cudaGetLastError());
    return status;
}

kvb_status kvb_cuda_predict_judge(kvb_cuda_predict *p, const float *x, size_t rows, const uint32_t *target, bool keep, bool compare,
                                  struct CUstream_st *stream, kvb_cuda_judged *judged, kvb_error *err)
{
    kvb_status status = KVB_OK;
    if (rows > p->rows)
        return kvb_fail(err, KVB_E_USAGE, "GPU", "%zu rows, expected at most %zu", rows, p->rows);
    TRY(status, err, "choosing a device", cudaSetDevice(p->device));
    if (cublasSetStream(p->blas, stream) != CUBLAS_STATUS_SUCCESS)
        return kvb_fail(err, KVB_E_DEVICE, "GPU", "cuBLAS has no stream");
    TRY(status, err, "targets", cudaMemcpyAsync(p->target, target, rows * sizeof *target, cudaMemcpyHostToDevice, stream));
    for (size_t at = 0; at < rows && status == KVB_OK; at += p->block)
        status = judge_block(p, x, at, std::min(p->block, rows - at), keep, compare, stream, err);
    TRY(status, err, "likelihoods", cudaMemcpyAsync(judged, p->judged, rows * sizeof *judged, cudaMemcpyDeviceToHost, stream));
    TRY(status, err, "likelihoods", cudaStreamSynchronize(stream));
    return status;
}

kvb_status kvb_cuda_predict_hidden(kvb_cuda_predict *p, const float *x, struct CUstream_st *stream, float *hidden, kvb_error *err)
{
    kvb_status status = KVB_OK;
    TRY(status, err, "choosing a device", cudaSetDevice(p->device));
    if (status == KVB_OK)
        kvb_rms_norm<<<1, 256, 0, stream>>>(x, p->norm, p->width, p->epsilon, p->hidden);
    TRY(status, err, "hidden state", cudaMemcpyAsync(hidden, p->hidden, p->width * sizeof *hidden, cudaMemcpyDeviceToHost, stream));
    TRY(status, err, "hidden state", cudaStreamSynchronize(stream));
    return status;
}

kvb_status kvb_cuda_predict_logits(kvb_cuda_predict *p, const float *hidden, struct CUstream_st *stream, float *logits, kvb_error *err)
{
    kvb_status status = KVB_OK;
    TRY(status, err, "choosing a device", cudaSetDevice(p->device));
    if (status == KVB_OK && cublasSetStream(p->blas, stream) != CUBLAS_STATUS_SUCCESS)
        return kvb_fail(err, KVB_E_DEVICE, "GPU", "cuBLAS has no stream");
    TRY(status, err, "logits", cudaMemcpyAsync(p->hidden, hidden, p->width * sizeof *hidden, cudaMemcpyHostToDevice, stream));
    if (status == KVB_OK)
        status = project(p, p->hidden, 1, p->logits[1], err);
    TRY(status, err, "logits", cudaMemcpyAsync(logits, p->logits[1], p->vocab * sizeof *logits, cudaMemcpyDeviceToHost, stream));
    TRY(status, err, "logits", cudaStreamSynchronize(stream));
    return status;
}
