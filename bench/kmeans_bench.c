/* Speed of kvb_kmeans_train() over d x K x n, beside the machine's peak of fused multiply-adds measured in the same run.
 *
 *   make && cc -O2 -std=c11 -D_GNU_SOURCE -Iinclude -I. -o build/kmeans_bench bench/kmeans_bench.c \
 *       build/libkvb-kmeans.a -fopenmp -lm -lz
 *   build/kmeans_bench [threads [iterations]]
 *
 * One line a cell: seconds of the fastest of several runs for a batch and for one problem, arithmetic rate (2*n*K*d a
 * iteration; nothing else is counted), and its share of peak * d/(d + 1.2), the d multiply-adds and 1.2 operations of
 * selection that a centroid costs a vector of points. */
#include <math.h>
#include <omp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "format/base/rng.h"
#include "kvbook/kmeans.h"

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#if defined(__x86_64__)
#include <immintrin.h>
#define EIGHT(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7)
#define SIXTEEN(F) EIGHT(F) F(8) F(9) F(10) F(11) F(12) F(13) F(14) F(15)
enum { ROUNDS = 200000 };

__attribute__((target("avx512f"))) static double peak_avx512(float *sink)
{
#define SET(i) __m512 a##i = _mm512_set1_ps(i + 0.5f);
#define STEP(i) a##i = _mm512_fmadd_ps(a##i, b, c);
#define SUM(i) total = _mm512_add_ps(total, a##i);
    __m512 b = _mm512_set1_ps(0.999f), c = _mm512_set1_ps(1e-3f), total = c;
    SIXTEEN(SET)
    double start = now();
    for (int i = 0; i < ROUNDS; i++) {
        SIXTEEN(STEP)
    }
    double seconds = now() - start;
    SIXTEEN(SUM)
    *sink += _mm512_reduce_add_ps(total);
    return 2.0 * 16 * 16 * ROUNDS / seconds;
#undef SET
#undef STEP
#undef SUM
}

__attribute__((target("avx2,fma"))) static double peak_avx2(float *sink)
{
#define SET(i) __m256 a##i = _mm256_set1_ps(i + 0.5f);
#define STEP(i) a##i = _mm256_fmadd_ps(a##i, b, c);
#define SUM(i) total = _mm256_add_ps(total, a##i);
    __m256 b = _mm256_set1_ps(0.999f), c = _mm256_set1_ps(1e-3f), total = c;
    EIGHT(SET)
    double start = now();
    for (int i = 0; i < ROUNDS; i++) {
        EIGHT(STEP)
    }
    double seconds = now() - start;
    EIGHT(SUM)
    *sink += _mm256_cvtss_f32(total);
    return 2.0 * 8 * 8 * ROUNDS / seconds;
}

static double peak_of_one_thread(float *sink)
{
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f"))
        return peak_avx512(sink);
    return __builtin_cpu_supports("fma") ? peak_avx2(sink) : NAN;
}
#else
static double peak_of_one_thread(float *sink)
{
    return *sink = NAN;
}
#endif

/* Single-precision operations a second of all threads together, the best of several tries. */
static double peak(int threads)
{
    double best = 0.0;
    for (int i = 0; i < 20; i++) {
        double sum = 0.0;
        float sink = 0.0f;
#pragma omp parallel num_threads(threads) reduction(+ : sum, sink)
        sum += peak_of_one_thread(&sink);
        if (sum > best && sink > -1e30f)
            best = sum;
    }
    return best;
}

static float *make_points(size_t n, uint32_t d, uint64_t seed)
{
    float *x = malloc(n * d * sizeof *x);
    uint64_t key = kvb_rng_key(seed, n, d, 0, 0);
    for (size_t i = 0; x != NULL && i < n * d; i++)
        x[i] = (float)(kvb_rng_unit(key, 3 * i) + kvb_rng_unit(key, 3 * i + 1) + kvb_rng_unit(key, 3 * i + 2) - 1.5);
    return x;
}

enum { MOST = 16 };

/* Seconds of the fastest of a few runs over `count` problems that share their points and nothing else. */
static double time_batch(const float *x, size_t n, uint32_t d, uint32_t k, size_t count, int threads,
                         uint32_t iterations, bool seeded)
{
    kvb_kmeans_problem problems[MOST];
    kvb_kmeans_options options;
    float *tables = malloc(count * k * d * sizeof *tables);
    double best = INFINITY, begin = now();
    kvb_kmeans_options_init(&options);
    options.threads = (uint32_t)threads;
    options.iterations = iterations;
    for (size_t i = 0; i < count; i++)
        problems[i] = (kvb_kmeans_problem){.points = x, .count = n, .stride = d, .channels = d, .centroids = k,
                                           .initial = seeded ? NULL : x, .seed = i, .table = tables + i * k * d};
    for (int run = 0; run < 3 || (run < 20 && now() - begin < 0.4); run++) {
        double start = now();
        if (kvb_kmeans_train(problems, count, &options, NULL, NULL) != KVB_OK)
            exit(1);
        double seconds = now() - start;
        best = seconds < best ? seconds : best;
    }
    free(tables);
    return best;
}

static void bench_cell(uint32_t d, uint32_t k, size_t n, int threads, uint32_t iterations, double top)
{
    size_t count = (size_t)threads * (k >= 4096 || d >= 32 ? 1 : 4);
    if (count > MOST)
        count = MOST;
    float *x = make_points(n, d, 1);
    double work = 2.0 * (double)n * k * d * iterations, reach = top * d / (d + 1.2);
    double batch = time_batch(x, n, d, k, count, threads, iterations, false) / (double)count;
    double single = time_batch(x, n, d, k, 1, threads, iterations, false);
    double seeded = time_batch(x, n, d, k, count, threads, iterations, true) / (double)count;
    printf("%3u %6u %7zu  %9.3f %7.1f %5.1f%%  %9.3f %7.1f %5.1f%%  %6.2f\n", d, k, n, 1e3 * batch, work / batch / 1e9,
           100.0 * work / batch / reach, 1e3 * single, work / single / 1e9, 100.0 * work / single / reach,
           (seeded - batch) / batch * iterations);
    fflush(stdout);
    free(x);
}

int main(int argc, char **argv)
{
    static const uint32_t channels[] = {2, 4, 8, 16, 32, 64}, counts[] = {16, 64, 256, 1024, 4096};
    int threads = argc > 1 ? atoi(argv[1]) : omp_get_max_threads();
    uint32_t iterations = argc > 2 ? (uint32_t)atoi(argv[2]) : 20;
    double top = peak(threads);
    printf("%d threads, %u iterations, peak %.1f Gflop/s\n", threads, iterations, top / 1e9);
    printf("  d      K       n   batch ms    GF/s  share  single ms    GF/s  share  seeding in iterations\n");
    for (size_t i = 0; i < sizeof channels / sizeof *channels; i++)
        for (size_t j = 0; j < sizeof counts / sizeof *counts; j++)
            bench_cell(channels[i], counts[j], counts[j] >= 4096 && channels[i] >= 16 ? 16384 : 65536, threads,
                       counts[j] >= 4096 ? 3 : iterations, top);
    return 0;
}
