/* What a recipe's "scale" takes from calibration: the fixed offset and scale of each channel, and the levels that a layer's numbers
 * are coded by. Levels are centroids of a 1-D k-means over numbers in units of their scales, outliers left out (arXiv 2401.18079); with
 * Fisher weights each counts as what its error costs, gradient^2 scale^2. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "calib/train_impl.h"
#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/half.h"
#include "format/base/outliers.h"
#include "format/base/rng.h"

enum { MOST_NUMBERS = 1 << 18, MOST_LEVELS = 256, LEVELS_STREAM = 0x6c766c };

/* One layer and kind. */
typedef struct levels_job {
    const kvb_trainer *t;
    const kvb_train_points *points;
    const kvb_recipe_scale *scale;
    const kvb_scaling *scaling; /* of head 0; those of others differ in `fixed` alone */
    uint32_t heads, dim;
    size_t step, rows; /* every step-th row is used */
    float *x, *weight; /* [heads * rows * D] */
    size_t count;
} levels_job;

static int compare_floats(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Between what stretches from the lower to the upper quantile, so that the share of outliers lies beyond. */
static void fix_channel(float *x, size_t n, double outliers, uint16_t *offset, uint16_t *scale)
{
    static const float least = 6.103515625e-05f; /* of a normal half float */
    const size_t cut = (size_t)(outliers / 2.0 * (double)n);
    qsort(x, n, sizeof *x, compare_floats);
    const float low = x[cut], high = x[n - 1 - cut];
    *offset = kvb_half_from_float(fminf(fmaxf(0.5f * low + 0.5f * high, -65504.0f), 65504.0f));
    *scale = kvb_half_from_float(fminf(fmaxf(0.5f * high - 0.5f * low, least), 65504.0f));
}

static kvb_status fix_head(const levels_job *j, uint32_t head, uint16_t *fixed, kvb_error *err)
{
    float *all = kvb_alloc_array(j->rows * j->dim, sizeof *all), *row = kvb_alloc_array(j->dim, sizeof *row);
    size_t n = 0;
    if (all != NULL && row != NULL) {
        for (size_t i = 0; i < j->rows; i++) {
            if (!kvb_train_points_counts(j->points, head, i * j->step))
                continue;
            kvb_train_points_row(j->points, head, i * j->step, row);
            for (uint32_t c = 0; c < j->dim; c++)
                all[c * j->rows + n] = row[c];
            n++;
        }
        for (uint32_t c = 0; n > 0 && c < j->dim; c++)
            fix_channel(all + c * j->rows, n, j->scale->outliers, &fixed[c], &fixed[j->dim + c]);
    }
    const bool memory = all != NULL && row != NULL;
    free(all);
    free(row);
    if (!memory)
        return kvb_fail_memory(err, "scales of channels");
    return n > 0 ? KVB_OK : kvb_train_points_refuse(j->points, head, KVB_E_CHECK, err, "no row to find scales of channels in");
}

/* One number in units of its scale; beyond +-1 it is no affair of the levels. */
static void add_number(levels_job *j, size_t at, float y, double offset, double scale)
{
    const double x = scale > 0.0 ? ((double)y - offset) / scale : 0.0;
    if (fabs(x) > 1.0 + 1e-6)
        return;
    j->x[j->count] = (float)x;
    j->weight[j->count++] = (float)((j->points->gradient != NULL ? (double)j->points->gradient[at] : 1.0) * scale * scale);
}

/* The numbers of one group of a token, without those at `place`. */
static void add_group(levels_job *j, const float *y, size_t at, uint32_t first, const uint32_t *place)
{
    float low = INFINITY, high = -INFINITY;
    for (int pass = 0; pass < 2; pass++)
        for (uint32_t c = first, next = 0; c < first + j->scaling->group; c++) {
            while (next < j->scaling->outliers && place[next] < c)
                next++;
            if (next < j->scaling->outliers && place[next] == c)
                continue;
            if (pass == 0) {
                low = fminf(low, y[c]);
                high = fmaxf(high, y[c]);
            } else if (j->scaling->form == KVB_SCALE_RANGE) {
                add_number(j, at + c, y[c], 0.5 * ((double)low + (double)high), (double)j->scaling->clip * 0.5 * ((double)high - (double)low));
            } else {
                add_number(j, at + c, y[c], 0.0, (double)j->scaling->clip * fmax(-(double)low, (double)high));
            }
        }
}

static void add_row(levels_job *j, uint32_t head, size_t row, const float *y, const float *fixed)
{
    const size_t at = (head * (size_t)j->points->capture->rows + row) * j->dim;
    uint32_t place[KVB_TRAIN_MOST_DIM];
    if (j->scaling->form == KVB_SCALE_FIXED) {
        for (uint32_t c = 0; c < j->dim; c++)
            add_number(j, at + c, y[c], (double)fixed[c], (double)fixed[j->dim + c]);
        return;
    }
    kvb_outliers_of_groups(y, j->dim, j->scaling->group, j->scaling->outliers, place);
    for (uint32_t first = 0; first < j->dim; first += j->scaling->group)
        add_group(j, y, at, first, place);
}

static kvb_status gather(levels_job *j, const uint16_t *fixed, kvb_error *err)
{
    float *row = kvb_alloc_array(3 * (size_t)j->dim, sizeof *row);
    if (row == NULL)
        return kvb_fail_memory(err, "levels");
    for (uint32_t head = 0; head < j->heads; head++) {
        if (fixed != NULL)
            kvb_half_to_floats(row + j->dim, fixed + (size_t)head * 2 * j->dim, 2 * j->dim);
        for (size_t i = 0; i < j->rows; i++)
            if (kvb_train_points_counts(j->points, head, i * j->step)) {
                kvb_train_points_row(j->points, head, i * j->step, row);
                add_row(j, head, i * j->step, row, row + j->dim);
            }
    }
    free(row);
    return KVB_OK;
}

/* In ascending order and apart as half floats, as a file wants them. */
static void put_in_order(float *level, uint32_t count)
{
    qsort(level, count, sizeof *level, compare_floats);
    for (uint32_t k = 0; k < count; k++) {
        level[k] = kvb_half_to_float(kvb_half_from_float(level[k]));
        while (k > 0 && !(level[k] > level[k - 1]))
            level[k] = kvb_half_to_float(kvb_half_from_float(level[k] + fmaxf(6e-8f, fabsf(level[k]) * 0x1p-10f)));
    }
}

static kvb_status cluster(levels_job *j, float *level, uint32_t count, kvb_error *err)
{
    const kvb_trainer *t = j->t;
    double sum = 0.0;
    for (size_t i = 0; i < j->count; i++)
        sum += (double)j->weight[i];
    if (j->count < count || !(sum > 0.0) || !isfinite(sum))
        return kvb_train_points_refuse(j->points, 0, KVB_E_CHECK, err, "%zu numbers whose weights add up to %g: nothing to find %u levels in",
                                       j->count, sum, count);
    for (size_t i = 0; i < j->count; i++)
        j->weight[i] = (float)((double)j->weight[i] * (double)j->count / sum);
    kvb_kmeans_problem problem = {
        .points = j->x, .type = KVB_POINTS_F32, .count = j->count, .stride = 1, .channels = 1, .centroids = count, .weights = j->weight,
        .seed = kvb_rng_key(t->options->seed, j->points->layer, 0, (uint64_t)j->points->kind, LEVELS_STREAM), .table = level,
    };
    kvb_status status = kvb_train_points_solve(j->points, 0, &problem, err);
    if (status == KVB_OK)
        put_in_order(level, count);
    return status;
}

static kvb_status train_levels(levels_job *j, const uint16_t *fixed, float *level, uint32_t count, kvb_error *err)
{
    const size_t most = (size_t)j->heads * j->rows * j->dim;
    j->x = kvb_alloc_array(most, sizeof *j->x);
    j->weight = kvb_alloc_array(most, sizeof *j->weight);
    kvb_status status = j->x != NULL && j->weight != NULL ? gather(j, fixed, err) : kvb_fail_memory(err, "levels");
    if (status == KVB_OK)
        status = cluster(j, level, count, err);
    free(j->x);
    free(j->weight);
    return status;
}

kvb_status kvb_train_levels(const kvb_trainer *t, uint32_t layer, kvb_kind kind, const kvb_scaling *scaling, uint16_t *fixed,
                            float *level, uint32_t count, kvb_error *err)
{
    const kvb_layer *g = &t->capture->geometry[layer];
    kvb_train_points points;
    kvb_status status = kvb_train_points_of(t, layer, kind, &points, err);
    if (status != KVB_OK)
        return status;
    levels_job j = {.t = t, .points = &points, .scale = &t->recipe->kind[kind].scale, .scaling = scaling, .heads = g->kv_heads,
                    .dim = g->head_dim, .step = 1};
    const size_t n = (size_t)t->capture->rows, row = (size_t)g->kv_heads * g->head_dim;
    while (n / j.step * row > MOST_NUMBERS && n / j.step > 2 * MOST_LEVELS)
        j.step *= 2;
    j.rows = n / j.step;
    for (uint32_t head = 0; fixed != NULL && status == KVB_OK && head < j.heads; head++)
        status = fix_head(&j, head, fixed + (size_t)head * 2 * j.dim, err);
    if (status == KVB_OK && level != NULL)
        status = train_levels(&j, fixed, level, count, err);
    kvb_train_points_free(&points);
    return status;
}
