/* Small dense vector kernels, the same arithmetic in three builds (plain C, AVX2+FMA, AVX-512), chosen at run time.
 * They are single-threaded and never allocate, so that the runtime needs no threading library; callers parallelise over
 * heads and blocks. Matrices are row-major with a row stride counted in floats. Within one build the result of a call
 * depends on its arguments alone. */
#ifndef KVB_BASE_KERNELS_H
#define KVB_BASE_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct kvb_kernels {
    const char *name; /* "avx512", "avx2", "plain" */

    /* C[m][n] (+)= A[m][k] * B[k][n]; adds to C where `accumulate`. */
    void (*gemm)(size_t m, size_t n, size_t k, const float *a, size_t lda, const float *b, size_t ldb, float *c,
                 size_t ldc, bool accumulate);

    /* C[m][n] = sum over k of |A[m][k] - B[k][n]| */
    void (*l1)(size_t m, size_t n, size_t k, const float *a, size_t lda, const float *b, size_t ldb, float *c,
               size_t ldc);

    /* x[i] = exp(x[i] - shift) for i < n; returns the sum. Relative error below 3e-7; arguments under -87 give 0. */
    float (*exp_sum)(float *x, size_t n, float shift);

    /* The largest of n >= 1 values. */
    float (*max)(const float *x, size_t n);

    /* x[i] *= factor */
    void (*scale)(float *x, size_t n, float factor);

    /* y[i] += factor * x[i] */
    void (*axpy)(float *y, const float *x, size_t n, float factor);

    /* y[i] += factor * a[i] * b[i] */
    void (*axpy_product)(float *y, const float *a, const float *b, size_t n, float factor);

    /* sum of x[i] * y[i] */
    float (*dot)(const float *x, const float *y, size_t n);

    /* gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i], the SwiGLU activation */
    void (*silu_product)(float *gate, const float *up, size_t n);

    /* Its gradient: from d of the product to d_gate and d_up, neither of which is an argument. */
    void (*silu_gradient)(const float *gate, const float *up, const float *d, size_t n, float *d_gate, float *d_up);

    /* The same two for GeGLU in its tanh form: gelu(g) = g/2 (1 + tanh(sqrt(2/pi) (g + 0.044715 g^3))). */
    void (*gelu_product)(float *gate, const float *up, size_t n);
    void (*gelu_gradient)(const float *gate, const float *up, const float *d, size_t n, float *d_gate, float *d_up);
} kvb_kernels;

/* The best build this machine can run. KVB_ISA=plain|avx2|avx512 in the environment asks for a lesser one. */
const kvb_kernels *kvb_kernels_best(void);
/* One build by name, or NULL where the machine or the compiler lacks it: for tests. */
const kvb_kernels *kvb_kernels_named(const char *name);

#endif
