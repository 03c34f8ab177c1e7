/* Rows on their way to k-means: turned by RoPE as the frame says, then into the space of the recipe's transform. */
#include <string.h>

#include "calib/row_moments.h"
#include "calib/train_impl.h"
#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/half.h"
#include "format/base/kernels.h"
#include "format/base/rng.h"
#include "format/base/rope.h"

enum { ROWS = 64, RANDOM_ROTATION = 0x726f74 };

/* One head at work. */
typedef struct move_job {
    const kvb_train_points *p;
    const kvb_rope_table *rope; /* NULL: rows are not turned */
    const uint16_t *half;       /* [n][D] */
    const float *weight;        /* [n] or NULL */
    float *x;                   /* [n][D] */
    float *mean;                /* [D] or NULL */
    float *forward, *inverse;   /* [D][D] or NULL */
    float *forward_t;           /* [D][D] transpose of forward */
    float *scratch;             /* [KVB_MOMENT_RANGES][ROWS][D] */
    size_t n;
    uint32_t head, dim;
    int threads;
} move_job;

static const kvb_recipe_kind *wanted(const kvb_train_points *p)
{
    return &p->recipe->kind[p->kind];
}

static bool is_turned(const kvb_train_points *p)
{
    return p->kind == KVB_KEY && p->recipe->frame != KVB_FRAME_PRE &&
           p->capture->geometry[p->layer].rope_style != KVB_ROPE_NONE;
}

/* Positions that the frame turns keys by, and the table for them. */
static kvb_status make_rope(const kvb_train_points *p, kvb_rope_table *rope, kvb_error *err)
{
    const kvb_capture *c = p->capture;
    uint32_t count = p->recipe->rope_block;
    if (c->row_position == NULL)
        return kvb_train_points_refuse(p, 0, KVB_E_MISMATCH, err,
                                       "the capture has no row_position, which the frame of recipe \"%s\" needs: use a "
                                       "capture with it, or the frame \"pre\"",
                                       p->recipe->name);
    if (p->recipe->frame == KVB_FRAME_POST) {
        count = 0;
        for (uint64_t i = 0; i < c->rows; i++)
            count = c->row_position[i] >= count ? c->row_position[i] + 1 : count;
    }
    return kvb_rope_table_create(rope, &c->geometry[p->layer], 0, count, err);
}

/* The layer's moment that the recipe's metric asks for; NULL and OK where it asks for none. */
static kvb_status choose_moment(const kvb_train_points *p, const float **moment, kvb_error *err)
{
    kvb_metric_moment asked = wanted(p)->metric.moment;
    const kvb_capture_layer *l = &p->capture->layer[p->layer];
    *moment = asked == KVB_METRIC_RELATIVE ? l->moment_relative : asked == KVB_METRIC_POST ? l->moment_post : NULL;
    if (asked == KVB_METRIC_NONE || *moment != NULL)
        return KVB_OK;
    return kvb_train_points_refuse(p, 0, KVB_E_MISMATCH, err,
                                   "the capture has no layers.%u.moment_%s, which the metric of recipe \"%s\" is made "
                                   "of: use a capture with moments, or a recipe without \"metric\"",
                                   p->layer, kvb_metric_moment_name(asked), p->recipe->name);
}

static void load_rows(const move_job *job, size_t first, size_t end)
{
    kvb_half_to_floats(job->x + first * job->dim, job->half + first * job->dim, (end - first) * job->dim);
    for (size_t i = first; job->rope != NULL && i < end; i++) {
        float *row = job->x + i * job->dim;
        kvb_rope_rotate(job->rope, kvb_train_turn(job->p, i), job->dim, row, row);
    }
}

/* y = forward (x - mean) in place, with the kernel and the rounding that the runtime's encoder has. */
static void transform_rows(const move_job *job, size_t first, size_t end, float *scratch)
{
    uint32_t dim = job->dim;
    for (size_t i = first, many; i < end; i += many) {
        many = end - i < ROWS ? end - i : ROWS;
        float *x = job->x + i * dim, *to = job->forward_t != NULL ? scratch : x;
        for (size_t r = 0; r < many; r++)
            for (uint32_t c = 0; c < dim; c++)
                to[r * dim + c] = x[r * dim + c] - (job->mean != NULL ? job->mean[c] : 0.0f);
        if (job->forward_t != NULL)
            kvb_kernels_best()->gemm(many, dim, dim, scratch, dim, job->forward_t, dim, x, dim, false);
    }
}

static kvb_status make_transform(const move_job *job, const float *moment, const double *covariance, kvb_error *err)
{
    const kvb_train_points *p = job->p;
    const kvb_recipe_kind *k = wanted(p);
    kvb_transform_request request = {
        .dim = job->dim, .channels = k->shape.channels, .rotation = k->rotation, .moment = moment,
        .alpha = k->metric.alpha, .ridge = k->metric.ridge, .covariance = covariance,
        .seed = kvb_rng_key(p->seed, p->layer, job->head, (uint64_t)p->kind, RANDOM_ROTATION),
    };
    kvb_error inner = {0};
    kvb_status status = kvb_transform_make(&request, job->forward, job->inverse, &inner);
    if (status != KVB_OK)
        return kvb_train_points_refuse(p, job->head, status, err, "%s", inner.message);
    for (uint32_t i = 0; i < job->dim; i++)
        for (uint32_t j = 0; j < job->dim; j++)
            job->forward_t[(size_t)j * job->dim + i] = job->forward[(size_t)i * job->dim + j];
    return KVB_OK;
}

/* Mean and transform of the rows as loaded. Held-out rows count too: D*D numbers out of all rows leave no trace in the
 * error that k-means reports for them. */
static kvb_status find_space(const move_job *job, const float *moment, kvb_error *err)
{
    size_t dim = job->dim;
    double *mean = kvb_alloc_array(dim * (dim + 1), sizeof *mean);
    if (mean == NULL)
        return kvb_fail_memory(err, "transform of the training points");
    bool pca = wanted(job->p)->rotation == KVB_ROTATION_PCA || wanted(job->p)->rotation == KVB_ROTATION_BALANCED_PCA;
    double *covariance = pca ? mean + dim : NULL;
    kvb_status status = KVB_OK;
    if (pca || job->mean != NULL)
        status = kvb_row_moments(job->x, job->n, job->dim, job->weight, job->threads, mean, covariance, err);
    for (uint32_t c = 0; status == KVB_OK && job->mean != NULL && c < job->dim; c++)
        job->mean[c] = (float)mean[c];
    if (status == KVB_OK && job->forward != NULL)
        status = make_transform(job, moment, covariance, err);
    free(mean);
    return status;
}

static kvb_status move_head(const move_job *job, const float *moment, kvb_error *err)
{
#pragma omp parallel for schedule(dynamic, 1) num_threads(job->threads)
    for (size_t r = 0; r < KVB_MOMENT_RANGES; r++)
        load_rows(job, kvb_moment_range(job->n, r), kvb_moment_range(job->n, r + 1));
    kvb_status status = find_space(job, moment, err);
    if (status != KVB_OK || (job->mean == NULL && job->forward == NULL))
        return status;
#pragma omp parallel for schedule(dynamic, 1) num_threads(job->threads)
    for (size_t r = 0; r < KVB_MOMENT_RANGES; r++)
        transform_rows(job, kvb_moment_range(job->n, r), kvb_moment_range(job->n, r + 1),
                       job->scratch + r * ROWS * job->dim);
    return KVB_OK;
}

static bool allocate(kvb_train_points *p, move_job *job)
{
    size_t heads = p->capture->geometry[p->layer].kv_heads, dim = job->dim;
    p->moved = kvb_alloc_array(heads * job->n, dim * sizeof *p->moved);
    bool good = p->moved != NULL;
    if (wanted(p)->mean)
        good &= (p->mean = kvb_alloc_array(heads * dim, sizeof *p->mean)) != NULL;
    if (!kvb_recipe_has_transform(wanted(p)))
        return good;
    p->forward = kvb_alloc_array(heads * dim, dim * sizeof *p->forward);
    p->inverse = kvb_alloc_array(heads * dim, dim * sizeof *p->inverse);
    job->forward_t = kvb_alloc_array(dim, dim * sizeof *job->forward_t);
    job->scratch = kvb_alloc_array((size_t)KVB_MOMENT_RANGES * ROWS, dim * sizeof *job->scratch);
    return good && p->forward != NULL && p->inverse != NULL && job->forward_t != NULL && job->scratch != NULL;
}

static void point_at(const kvb_train_points *p, uint32_t head, move_job *job)
{
    const kvb_capture_layer *l = &p->capture->layer[p->layer];
    size_t rows = head * job->n * job->dim, square = (size_t)job->dim * job->dim;
    job->head = head;
    job->half = (p->kind == KVB_KEY ? l->keys : l->values) + rows;
    job->weight = p->weight != NULL ? p->weight + head * job->n : NULL;
    job->x = p->moved + rows;
    job->mean = p->mean != NULL ? p->mean + (size_t)head * job->dim : NULL;
    job->forward = p->forward != NULL ? p->forward + head * square : NULL;
    job->inverse = p->inverse != NULL ? p->inverse + head * square : NULL;
}

kvb_status kvb_train_points_move(kvb_train_points *points, kvb_error *err)
{
    const kvb_layer *g = &points->capture->geometry[points->layer];
    move_job job = {.p = points, .n = (size_t)points->capture->rows, .dim = g->head_dim,
                    .threads = kvb_train_threads(points)};
    kvb_rope_table rope = {0};
    const float *moment = NULL;
    const bool moves = is_turned(points) || wanted(points)->mean || kvb_recipe_has_transform(wanted(points));
    const bool fisher = wanted(points)->weights == KVB_WEIGHT_FISHER;
    if (!moves)
        return fisher ? kvb_train_fisher_move(points, NULL, err) : KVB_OK;
    kvb_status status = choose_moment(points, &moment, err);
    if (status == KVB_OK && is_turned(points))
        status = make_rope(points, &rope, err);
    job.rope = is_turned(points) ? &rope : NULL;
    if (status == KVB_OK && !allocate(points, &job))
        status = kvb_fail_memory(err, "training points");
    for (uint32_t head = 0; status == KVB_OK && head < g->kv_heads; head++) {
        point_at(points, head, &job);
        status = move_head(&job, moment != NULL ? moment + (size_t)head * job.dim * job.dim : NULL, err);
    }
    if (status == KVB_OK && fisher)
        status = kvb_train_fisher_move(points, job.rope, err);
    kvb_rope_table_free(&rope);
    free(job.forward_t);
    free(job.scratch);
    return status;
}
