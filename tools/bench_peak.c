/* What the machine's multipliers can do, measured: chains of independent fused multiply-adds in registers. */
#include <math.h>
#include <omp.h>

#include "tools/bench.h"
#include "tools/progress.h"

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
    double start = kvb_seconds();
    for (int i = 0; i < ROUNDS; i++) {
        SIXTEEN(STEP)
    }
    double seconds = kvb_seconds() - start;
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
    double start = kvb_seconds();
    for (int i = 0; i < ROUNDS; i++) {
        EIGHT(STEP)
    }
    double seconds = kvb_seconds() - start;
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

double kvb_bench_peak(int threads)
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
