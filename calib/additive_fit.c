#include "calib/additive_fit.h"

#include <math.h>
#include <string.h>

bool kvb_additive_shape_of(uint32_t stages, uint32_t rows, uint32_t channels, kvb_additive_shape *shape)
{
    if (stages < 1 || stages > KVB_ADDITIVE_STAGES || channels < 1 || channels > KVB_ADDITIVE_CHANNELS || rows < 2 ||
        rows > KVB_ADDITIVE_CODES || (rows & (rows - 1)) != 0)
        return false;
    uint32_t bits = stages * (uint32_t)__builtin_ctz(rows);
    if (bits > 16)
        return false;
    *shape = (kvb_additive_shape){.stages = stages, .rows = rows, .channels = channels, .codes = 1u << bits};
    return true;
}

void kvb_additive_expand(const kvb_additive_shape *s, const float *rows, float *sums)
{
    const uint32_t d = s->channels;
    const size_t stage = (size_t)s->rows * d;
    for (uint32_t k = 0; k < s->codes; k++) {
        float *sum = sums + (size_t)k * d;
        memcpy(sum, rows + (size_t)(k % s->rows) * d, d * sizeof *sum);
        for (uint32_t m = 1, left = k / s->rows; m < s->stages; m++, left /= s->rows)
            for (uint32_t c = 0; c < d; c++)
                sum[c] += rows[m * stage + (size_t)(left % s->rows) * d + c];
    }
}

static size_t unknowns(const kvb_additive_shape *s)
{
    return (size_t)s->stages * s->rows;
}

size_t kvb_additive_scratch(const kvb_additive_shape *shape)
{
    return unknowns(shape) * (unknowns(shape) + shape->channels);
}

/* The rows, counted over all stages, that code k adds up. */
static void rows_of(const kvb_additive_shape *s, uint32_t code, uint32_t at[KVB_ADDITIVE_STAGES])
{
    for (uint32_t m = 0; m < s->stages; m++, code /= s->rows)
        at[m] = m * s->rows + code % s->rows;
}

/* Lower triangle of the normal matrix [n][n], weights of points that two rows share, plus the ridge; and minus the
 * gradient [n][d]: of each row, the sum over its points of w (x - sum of rows). */
static void build_system(const kvb_additive_shape *s, const double *moments, double ridge, const float *rows,
                         double *matrix, double *right)
{
    const size_t n = unknowns(s), d = s->channels;
    uint32_t at[KVB_ADDITIVE_STAGES];
    double rest[KVB_ADDITIVE_CHANNELS];
    memset(matrix, 0, n * n * sizeof *matrix);
    memset(right, 0, n * d * sizeof *right);
    for (uint32_t k = 0; k < s->codes; k++) {
        const double *sum = moments + k * (d + 1), weight = sum[d];
        if (!(weight > 0.0))
            continue;
        rows_of(s, k, at);
        for (size_t c = 0; c < d; c++) {
            rest[c] = sum[c];
            for (uint32_t m = 0; m < s->stages; m++)
                rest[c] -= weight * (double)rows[at[m] * d + c];
        }
        for (uint32_t m = 0; m < s->stages; m++) {
            for (uint32_t l = 0; l <= m; l++)
                matrix[at[m] * n + at[l]] += weight;
            for (size_t c = 0; c < d; c++)
                right[at[m] * d + c] += rest[c];
        }
    }
    for (size_t i = 0; i < n; i++)
        matrix[i * n + i] += ridge;
}

/* Cholesky: the lower triangle becomes L with L L^T the matrix. */
static bool factor(double *a, size_t n)
{
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j <= i; j++) {
            double sum = a[i * n + j];
            for (size_t k = 0; k < j; k++)
                sum -= a[i * n + k] * a[j * n + k];
            if (i != j)
                a[i * n + j] = sum / a[j * n + j];
            else if (sum > 0.0 && isfinite(sum))
                a[i * n + i] = sqrt(sum);
            else
                return false;
        }
    return true;
}

/* L L^T y = right, in place, for all d columns. */
static void solve_columns(const double *l, size_t n, size_t d, double *right)
{
    for (size_t i = 0; i < n; i++) {
        for (size_t k = 0; k < i; k++)
            for (size_t c = 0; c < d; c++)
                right[i * d + c] -= l[i * n + k] * right[k * d + c];
        for (size_t c = 0; c < d; c++)
            right[i * d + c] /= l[i * n + i];
    }
    for (size_t i = n; i-- > 0;) {
        for (size_t k = i + 1; k < n; k++)
            for (size_t c = 0; c < d; c++)
                right[i * d + c] -= l[k * n + i] * right[k * d + c];
        for (size_t c = 0; c < d; c++)
            right[i * d + c] /= l[i * n + i];
    }
}

bool kvb_additive_update(const kvb_additive_shape *s, const double *moments, double ridge, float *rows, double *scratch)
{
    const size_t n = unknowns(s), values = n * s->channels;
    double *matrix = scratch, *change = scratch + n * n;
    build_system(s, moments, ridge, rows, matrix, change);
    if (!factor(matrix, n))
        return false;
    solve_columns(matrix, n, s->channels, change);
    for (size_t i = 0; i < values; i++)
        if (!isfinite(change[i]))
            return false;
    for (size_t i = 0; i < values; i++)
        rows[i] = (float)((double)rows[i] + change[i]);
    return true;
}
