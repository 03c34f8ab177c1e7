#include "calib/tune_table.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/half.h"

static float *transposed(const float *matrix, uint32_t n)
{
    float *t = kvb_alloc_array((size_t)n * n, sizeof *t);
    for (uint32_t i = 0; t != NULL && i < n; i++)
        for (uint32_t j = 0; j < n; j++)
            t[(size_t)j * n + i] = matrix[(size_t)i * n + j];
    return t;
}

static bool make_transforms(kvb_tune_table *t)
{
    const kvb_codebook *b = t->codebook;
    if (b->forward != NULL && (t->forward_t = transposed(b->forward, t->head_dim)) == NULL)
        return false;
    return b->inverse == NULL || (t->inverse_t = transposed(b->inverse, t->head_dim)) != NULL;
}

/* About the entries' own mean; a stage whose entries are all equal does not move. */
static float spread_of(const float *x, size_t n)
{
    double sum = 0.0, square = 0.0;
    for (size_t i = 0; i < n; i++)
        sum += (double)x[i];
    for (size_t i = 0; i < n; i++)
        square += ((double)x[i] - sum / (double)n) * ((double)x[i] - sum / (double)n);
    return (float)sqrt(square / (double)n);
}

void kvb_tune_table_keep(kvb_tune_table *t)
{
    memcpy(t->best, t->table, t->floats * sizeof *t->best);
}

void kvb_tune_table_restore(kvb_tune_table *t)
{
    memcpy(t->table, t->best, t->floats * sizeof *t->best);
}

kvb_status kvb_tune_table_fix(const kvb_codebook *codebook, uint32_t head_dim, kvb_tune_table *t, kvb_error *err)
{
    *t = (kvb_tune_table){
        .codebook = codebook, .head_dim = head_dim, .channels = codebook->channels, .groups = codebook->groups,
        .centroids = codebook->centroids, .stages = codebook->stages, .rows = codebook->stage_centroids,
    };
    t->floats = (size_t)t->groups * t->stages * t->rows * t->channels;
    t->table = kvb_alloc_array(t->floats, sizeof *t->table);
    if (t->table == NULL || !make_transforms(t)) {
        kvb_tune_table_free(t);
        return kvb_fail_memory(err, "a codebook for tuning");
    }
    kvb_half_to_floats(t->table, t->codebook->table, t->floats);
    return KVB_OK;
}

kvb_status kvb_tune_table_create(const kvb_codebook *codebook, uint32_t head_dim, kvb_tune_table *t, kvb_error *err)
{
    kvb_status status = kvb_tune_table_fix(codebook, head_dim, t, err);
    if (status != KVB_OK)
        return status;
    const size_t stage = (size_t)t->rows * t->channels;
    t->gradient = kvb_alloc_zeroed(t->floats, sizeof *t->gradient);
    t->first = kvb_alloc_zeroed(t->floats, sizeof *t->first);
    t->second = kvb_alloc_zeroed(t->floats, sizeof *t->second);
    t->best = kvb_alloc_array(t->floats, sizeof *t->best);
    t->spread = kvb_alloc_array((size_t)t->groups * t->stages, sizeof *t->spread);
    if (t->gradient == NULL || t->first == NULL || t->second == NULL || t->best == NULL || t->spread == NULL) {
        kvb_tune_table_free(t);
        return kvb_fail_memory(err, "tuning of a codebook");
    }
    for (size_t s = 0; s < (size_t)t->groups * t->stages; s++)
        t->spread[s] = spread_of(t->table + s * stage, stage);
    kvb_tune_table_keep(t);
    return KVB_OK;
}

void kvb_tune_table_free(kvb_tune_table *t)
{
    float *all[] = {t->table, t->gradient, t->first, t->second, t->best, t->spread, t->forward_t, t->inverse_t};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    *t = (kvb_tune_table){0};
}

void kvb_tune_enter(const kvb_tune_table *t, const kvb_kernels *k, const float *x, size_t n, float *scratch, float *y)
{
    const size_t dim = t->head_dim;
    const float *mean = t->codebook->mean;
    float *moved = t->forward_t != NULL ? scratch : y;
    for (size_t i = 0; i < n; i++)
        for (size_t c = 0; c < dim; c++)
            moved[i * dim + c] = x[i * dim + c] - (mean != NULL ? mean[c] : 0.0f);
    if (t->forward_t != NULL)
        k->gemm(n, dim, dim, moved, dim, t->forward_t, dim, y, dim, false);
}

/* Row m of the code's digits in base Km. */
static const float *row_of(const kvb_tune_table *t, uint32_t group, uint32_t stage, uint32_t digit)
{
    return t->table + (((size_t)group * t->stages + stage) * t->rows + digit) * t->channels;
}

/* The centroid of a code: its rows added in float, stage 0 first, as the book's readers add them. */
static void centroid_of(const kvb_tune_table *t, uint32_t group, uint32_t code, float *centroid)
{
    memcpy(centroid, row_of(t, group, 0, code % t->rows), t->channels * sizeof *centroid);
    for (uint32_t m = 1, left = code / t->rows; m < t->stages; m++, left /= t->rows) {
        const float *row = row_of(t, group, m, left % t->rows);
        for (uint32_t c = 0; c < t->channels; c++)
            centroid[c] += row[c];
    }
}

void kvb_tune_encode(const kvb_tune_table *t, uint32_t group, const float *y, size_t n, kvb_nearest *search,
                     float *centroids, uint32_t *codes)
{
    for (uint32_t k = 0; k < t->centroids; k++)
        centroid_of(t, group, k, centroids + (size_t)k * t->channels);
    kvb_nearest_set(search, centroids);
    kvb_nearest_find(search, y + (size_t)group * t->channels, t->head_dim, n, codes, NULL);
}

void kvb_tune_decode(const kvb_tune_table *t, const kvb_kernels *k, const uint32_t *codes, size_t n, float *y, float *x)
{
    const size_t dim = t->head_dim;
    const float *mean = t->codebook->mean;
    float *moved = t->inverse_t != NULL ? y : x;
    for (uint32_t s = 0; s < t->groups; s++)
        for (size_t i = 0; i < n; i++)
            centroid_of(t, s, codes[s * n + i], moved + i * dim + (size_t)s * t->channels);
    if (t->inverse_t != NULL)
        k->gemm(n, dim, dim, moved, dim, t->inverse_t, dim, x, dim, false);
    for (size_t i = 0; mean != NULL && i < n; i++)
        for (size_t c = 0; c < dim; c++)
            x[i * dim + c] += mean[c];
}

void kvb_tune_leave(const kvb_tune_table *t, const kvb_kernels *k, const float *dx, size_t n, float *dy)
{
    const size_t dim = t->head_dim;
    if (t->codebook->inverse == NULL)
        memcpy(dy, dx, n * dim * sizeof *dy);
    else
        k->gemm(n, dim, dim, dx, dim, t->codebook->inverse, dim, dy, dim, false);
}

void kvb_tune_scatter(kvb_tune_table *t, uint32_t group, const uint32_t *codes, const float *dy, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const float *from = dy + i * t->head_dim + (size_t)group * t->channels;
        for (uint32_t m = 0, left = codes[i]; m < t->stages; m++, left /= t->rows) {
            const size_t row = ((size_t)group * t->stages + m) * t->rows + left % t->rows;
            float *to = t->gradient + row * t->channels;
            for (uint32_t c = 0; c < t->channels; c++)
                to[c] += from[c];
        }
    }
}

void kvb_tune_step(kvb_tune_table *t, double rate, uint32_t step)
{
    static const double decay_first = 0.9, decay_second = 0.99;
    const double first_bias = 1.0 - pow(decay_first, step), second_bias = 1.0 - pow(decay_second, step);
    const size_t stage = (size_t)t->rows * t->channels;
    for (size_t i = 0; i < t->floats; i++) {
        const double g = (double)t->gradient[i];
        t->first[i] = (float)(decay_first * (double)t->first[i] + (1.0 - decay_first) * g);
        t->second[i] = (float)(decay_second * (double)t->second[i] + (1.0 - decay_second) * g * g);
        /* A row that no token has chosen yet has both moments zero, and stays. */
        const double size = sqrt((double)t->second[i] / second_bias);
        if (size > 0.0)
            t->table[i] -= (float)(rate * (double)t->spread[i / stage] * (double)t->first[i] / first_bias / size);
        t->gradient[i] = 0.0f;
    }
}
