#include "model/linear.h"

#include <cblas.h>

/* Measured on two cores (bench/): larger tiles amortise packing, smaller ones balance short sequences. */
enum { TILE_ROWS = 256, TILE_COLS = 1024, BACK_ROWS = 128, BACK_COLS = 288 };

static uint64_t pieces(uint64_t count, uint64_t tile)
{
    return (count + tile - 1) / tile;
}

/* One tile of Y. A single row is a matrix-vector product: packing W for it would cost more than reading it once. */
static void tile(const float *x, uint64_t ldx, const float *w, uint64_t rows, uint64_t cols, uint64_t k, float beta,
                 float *y, uint64_t ldy)
{
    if (rows == 1)
        cblas_sgemv(CblasRowMajor, CblasNoTrans, (blasint)cols, (blasint)k, 1.0f, w, (blasint)k, x, 1, beta, y, 1);
    else
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (blasint)rows, (blasint)cols, (blasint)k, 1.0f, x,
                    (blasint)ldx, w, (blasint)k, beta, y, (blasint)ldy);
}

void kvb_linear(const float *x, uint64_t ldx, const float *w, uint64_t m, uint64_t n, uint64_t k, bool accumulate,
                float *y, uint64_t ldy)
{
    uint64_t down = pieces(m, TILE_ROWS);
    uint64_t width = m >= TILE_ROWS ? TILE_COLS : 256;
    int64_t tiles = (int64_t)(down * pieces(n, width));
#pragma omp parallel for schedule(dynamic)
    for (int64_t t = 0; t < tiles; t++) {
        uint64_t i = (uint64_t)t % down * TILE_ROWS, j = (uint64_t)t / down * width;
        uint64_t rows = m - i < TILE_ROWS ? m - i : TILE_ROWS, cols = n - j < width ? n - j : width;
        tile(x + i * ldx, ldx, w + j * k, rows, cols, k, accumulate ? 1.0f : 0.0f, y + i * ldy + j, ldy);
    }
}

/* Few rows of a wide product (the vocabulary's) have only their columns to share out. */
void kvb_linear_backward(const float *dy, uint64_t lddy, const float *w, uint64_t m, uint64_t n, uint64_t k,
                         bool accumulate, float *dx, uint64_t lddx)
{
    uint64_t height = m > TILE_ROWS ? TILE_ROWS : BACK_ROWS, down = pieces(m, height);
    uint64_t width = m > TILE_ROWS ? TILE_COLS : BACK_COLS;
    int64_t tiles = (int64_t)(down * pieces(k, width));
#pragma omp parallel for schedule(dynamic)
    for (int64_t t = 0; t < tiles; t++) {
        uint64_t i = (uint64_t)t % down * height, j = (uint64_t)t / down * width;
        uint64_t rows = m - i < height ? m - i : height, cols = k - j < width ? k - j : width;
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (blasint)rows, (blasint)cols, (blasint)n, 1.0f,
                    dy + i * lddy, (blasint)lddy, w + j, (blasint)k, accumulate ? 1.0f : 0.0f, dx + i * lddx + j,
                    (blasint)lddx);
    }
}
