/* The bodies of kvb_kernels for one build. The including file defines, before it includes this:
 *   KERNEL_NAME   the build's name          LANES     floats in a vector
 *   MR, NV        rows and vectors of a tile held in registers
 *   VMAX(a, b)    lane-wise maximum that gives b where b is NaN
 * GCC vector types keep the three builds one text. Where the build has FMA, products and sums are contracted. */
#include <math.h>
#include <string.h>

#include "format/base/kernels.h"

typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
#define INLINE static inline __attribute__((always_inline))

INLINE vec load(const float *p)
{
    return *(const vec *)p;
}

INLINE void store(float *p, vec v)
{
    *(vec *)p = v;
}

INLINE vec splat(float x)
{
    return x - (vec){0};
}

INLINE float reduce_add(vec v)
{
    float lane[LANES];
    store(lane, v);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++)
            lane[i] += lane[i + width];
    return lane[0];
}

/* Polynomial of Cephes expf over [-ln2/2, ln2/2]; the exponent is added as bits. Under -87.68 the result is 0. */
INLINE vec vexp(vec x)
{
    const vec magic = splat(12582912.0f);
    x = VMAX(splat(-88.0f), x);
    x = -VMAX(splat(-88.0f), -x);
    vec n = (x * 1.44269504f + magic) - magic;
    vec r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    vec p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    ivec bits = (__builtin_convertvector(n, ivec) + 127) << 23;
    vec power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

INLINE vec vabs(vec x)
{
    ivec bits;
    memcpy(&bits, &x, sizeof bits);
    bits &= 0x7fffffff;
    memcpy(&x, &bits, sizeof x);
    return x;
}

typedef struct tile_args {
    size_t k;
    const float *a;
    size_t lda;
    const float *b;
    size_t ldb;
    float *c;
    size_t ldc;
    bool accumulate, l1;
} tile_args;

/* One register tile: `rows` x (vectors * LANES) of C. Both counts are constants after inlining. */
INLINE void tile(const tile_args *t, const int rows, const int vectors, const bool l1)
{
    vec acc[MR][NV];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++)
            acc[i][j] = t->accumulate ? load(t->c + (size_t)i * t->ldc + (size_t)j * LANES) : splat(0.0f);
    for (size_t p = 0; p < t->k; p++) {
        vec b[NV];
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++)
            b[j] = load(t->b + p * t->ldb + (size_t)j * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            vec a = splat(t->a[(size_t)i * t->lda + p]);
#pragma GCC unroll 4
            for (int j = 0; j < vectors; j++)
                acc[i][j] = l1 ? acc[i][j] + vabs(b[j] - a) : acc[i][j] + a * b[j];
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++)
            store(t->c + (size_t)i * t->ldc + (size_t)j * LANES, acc[i][j]);
}

INLINE void tile_of_rows(const tile_args *t, size_t rows, const int vectors, const bool l1)
{
    switch (rows) {
    case 1: tile(t, 1, vectors, l1); break;
    case 2: tile(t, 2, vectors, l1); break;
    case 3: tile(t, 3, vectors, l1); break;
#if MR > 4
    case 4: tile(t, 4, vectors, l1); break;
    case 5: tile(t, 5, vectors, l1); break;
#endif
    default: tile(t, MR, vectors, l1); break;
    }
}

/* The columns that do not fill a vector, one at a time. */
static void tile_tail(const tile_args *t, size_t m, size_t n)
{
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
            float sum = t->accumulate ? t->c[i * t->ldc + j] : 0.0f;
            for (size_t p = 0; p < t->k; p++) {
                float a = t->a[i * t->lda + p], b = t->b[p * t->ldb + j];
                sum += t->l1 ? fabsf(b - a) : a * b;
            }
            t->c[i * t->ldc + j] = sum;
        }
}

INLINE void panel(const tile_args *whole, size_t m, size_t column, const int vectors, const bool l1)
{
    tile_args t = *whole;
    t.b += column;
    t.c += column;
    for (size_t i = 0; i < m; i += MR) {
        tile_of_rows(&t, m - i < MR ? m - i : MR, vectors, l1);
        t.a += MR * t.lda;
        t.c += MR * t.ldc;
    }
}

INLINE void panels(const tile_args *t, size_t m, size_t n, const bool l1)
{
    size_t j = 0;
    for (; j + NV * LANES <= n; j += NV * LANES)
        panel(t, m, j, NV, l1);
    for (; j + LANES <= n; j += LANES)
        panel(t, m, j, 1, l1);
    if (j < n) {
        tile_args rest = *t;
        rest.b += j;
        rest.c += j;
        tile_tail(&rest, m, n - j);
    }
}

static void gemm(size_t m, size_t n, size_t k, const float *a, size_t lda, const float *b, size_t ldb, float *c,
                 size_t ldc, bool accumulate)
{
    tile_args t = {k, a, lda, b, ldb, c, ldc, accumulate, false};
    panels(&t, m, n, false);
}

static void l1_distance(size_t m, size_t n, size_t k, const float *a, size_t lda, const float *b, size_t ldb, float *c,
                        size_t ldc)
{
    tile_args t = {k, a, lda, b, ldb, c, ldc, false, true};
    panels(&t, m, n, true);
}

/* Loads the last n < LANES values, the other lanes being `fill`. */
INLINE vec load_tail(const float *p, size_t n, float fill)
{
    float lane[LANES];
    for (size_t i = 0; i < LANES; i++)
        lane[i] = i < n ? p[i] : fill;
    return load(lane);
}

INLINE void store_tail(float *p, size_t n, vec v)
{
    float lane[LANES];
    store(lane, v);
    memcpy(p, lane, n * sizeof *p);
}

static float exp_sum(float *x, size_t n, float shift)
{
    vec sum = splat(0.0f);
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        vec e = vexp(load(x + i) - shift);
        store(x + i, e);
        sum += e;
    }
    if (i < n) {
        vec e = vexp(load_tail(x + i, n - i, -INFINITY) - shift);
        store_tail(x + i, n - i, e);
        sum += e;
    }
    return reduce_add(sum);
}

static float max_of(const float *x, size_t n)
{
    vec best = splat(-INFINITY);
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        best = VMAX(best, load(x + i));
    if (i < n)
        best = VMAX(best, load_tail(x + i, n - i, -INFINITY));
    float lane[LANES], most;
    store(lane, best);
    most = lane[0];
    for (size_t l = 1; l < LANES; l++)
        most = lane[l] > most ? lane[l] : most;
    return most;
}

static void scale_by(float *x, size_t n, float factor)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        store(x + i, load(x + i) * factor);
    for (; i < n; i++)
        x[i] *= factor;
}

static void axpy(float *y, const float *x, size_t n, float factor)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        store(y + i, load(y + i) + load(x + i) * factor);
    for (; i < n; i++)
        y[i] += factor * x[i];
}

static void axpy_product(float *y, const float *a, const float *b, size_t n, float factor)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        store(y + i, load(y + i) + load(a + i) * load(b + i) * factor);
    for (; i < n; i++)
        y[i] += factor * (a[i] * b[i]);
}

static float dot(const float *x, const float *y, size_t n)
{
    vec sum = splat(0.0f), other = splat(0.0f);
    size_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        sum += load(x + i) * load(y + i);
        other += load(x + i + LANES) * load(y + i + LANES);
    }
    for (; i + LANES <= n; i += LANES)
        sum += load(x + i) * load(y + i);
    float rest = 0.0f;
    for (; i < n; i++)
        rest += x[i] * y[i];
    return reduce_add(sum + other) + rest;
}

static void silu_product(float *gate, const float *up, size_t n)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        vec g = load(gate + i);
        store(gate + i, g / (1.0f + vexp(-g)) * load(up + i));
    }
    if (i < n) {
        vec g = load_tail(gate + i, n - i, 0.0f);
        store_tail(gate + i, n - i, g / (1.0f + vexp(-g)) * load_tail(up + i, n - i, 0.0f));
    }
}

static inline vec silu_slope(vec g, vec sigmoid)
{
    return sigmoid * (1.0f + g * (1.0f - sigmoid));
}

static void silu_gradient(const float *gate, const float *up, const float *d, size_t n, float *d_gate, float *d_up)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        vec g = load(gate + i), by = load(d + i), sigmoid = 1.0f / (1.0f + vexp(-g));
        store(d_up + i, by * (g * sigmoid));
        store(d_gate + i, by * load(up + i) * silu_slope(g, sigmoid));
    }
    if (i < n) {
        vec g = load_tail(gate + i, n - i, 0.0f), by = load_tail(d + i, n - i, 0.0f);
        vec sigmoid = 1.0f / (1.0f + vexp(-g));
        store_tail(d_up + i, n - i, by * (g * sigmoid));
        store_tail(d_gate + i, n - i, by * load_tail(up + i, n - i, 0.0f) * silu_slope(g, sigmoid));
    }
}

/* gelu(g) = g sigmoid(a (g + b g^3)), a = 2 sqrt(2 / pi), b = 0.044715: the tanh form, as sigmoid(2x) = (1 + tanh x) / 2. */
static inline vec gelu_sigmoid(vec g)
{
    return 1.0f / (1.0f + vexp(g * (g * g * -0.0713548163f - 1.59576912f)));
}

static inline vec gelu_slope(vec g, vec sigmoid)
{
    return sigmoid * (1.0f + g * (1.0f - sigmoid) * (g * g * 0.214064449f + 1.59576912f));
}

static void gelu_product(float *gate, const float *up, size_t n)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        vec g = load(gate + i);
        store(gate + i, g * gelu_sigmoid(g) * load(up + i));
    }
    if (i < n) {
        vec g = load_tail(gate + i, n - i, 0.0f);
        store_tail(gate + i, n - i, g * gelu_sigmoid(g) * load_tail(up + i, n - i, 0.0f));
    }
}

static void gelu_gradient(const float *gate, const float *up, const float *d, size_t n, float *d_gate, float *d_up)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        vec g = load(gate + i), by = load(d + i), sigmoid = gelu_sigmoid(g);
        store(d_up + i, by * (g * sigmoid));
        store(d_gate + i, by * load(up + i) * gelu_slope(g, sigmoid));
    }
    if (i < n) {
        vec g = load_tail(gate + i, n - i, 0.0f), by = load_tail(d + i, n - i, 0.0f), sigmoid = gelu_sigmoid(g);
        store_tail(d_up + i, n - i, by * (g * sigmoid));
        store_tail(d_gate + i, n - i, by * load_tail(up + i, n - i, 0.0f) * gelu_slope(g, sigmoid));
    }
}

static const kvb_kernels table = {
    .name = KERNEL_NAME,
    .gemm = gemm,
    .l1 = l1_distance,
    .exp_sum = exp_sum,
    .max = max_of,
    .scale = scale_by,
    .axpy = axpy,
    .axpy_product = axpy_product,
    .dot = dot,
    .silu_product = silu_product,
    .silu_gradient = silu_gradient,
    .gelu_product = gelu_product,
    .gelu_gradient = gelu_gradient,
};
