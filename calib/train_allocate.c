/* Which shape of the recipe's ladder each head's keys and values get.
 *
 * The loss of a choice is what its error does to the model's predictions, 1/2 E[e^T F e], with F the captured sensitivity and
 * e = inverse e_y. Groups are coded apart and balanced, so e_y is taken as uncorrelated between groups and even inside
 * one: 1/2 sum over channels of the error of their group times the diagonal of inverse^T F inverse. The errors are measured:
 * each shape is trained on an even sample of the rows. */
#include <math.h>
#include <stdlib.h>

#include "calib/additive.h"
#include "calib/allocate.h"
#include "calib/train_impl.h"
#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/rng.h"

enum { PROBE_ROWS = 8192, PROBE_ROUNDS = 6 };

/* One layer and kind while its shapes are tried. */
typedef struct probe {
    const kvb_trainer *t;
    kvb_train_points points;
    size_t step, rows;  /* every step-th row is in the sample */
    float *weight;      /* [G][rows] of whole rows, or [G*S][rows] of groups; or NULL */
    double *importance; /* [G][D] diagonal of inverse^T F inverse */
    kvb_kmeans_problem *problem;
    kvb_kmeans_result *result;
    uint32_t *stages;
    float *table;
} probe;

static uint32_t heads_of(const probe *p)
{
    return p->t->capture->geometry[p->points.layer].kv_heads;
}

static uint32_t dim_of(const probe *p)
{
    return p->t->capture->geometry[p->points.layer].head_dim;
}

/* x^T F x of one column x of the inverse (of a unit vector where there is no transform). */
static double importance_of(const float *f, const float *inverse, uint32_t dim, uint32_t column)
{
    double sum = 0.0;
    if (inverse == NULL)
        return (double)f[(size_t)column * dim + column];
    for (uint32_t i = 0; i < dim; i++) {
        double row = 0.0;
        for (uint32_t j = 0; j < dim; j++)
            row += (double)f[(size_t)i * dim + j] * (double)inverse[(size_t)j * dim + column];
        sum += row * (double)inverse[(size_t)i * dim + column];
    }
    return sum;
}

static kvb_status weigh_channels(probe *p, kvb_error *err)
{
    const kvb_train_points *points = &p->points;
    const float *f = p->t->capture->layer[points->layer].sensitivity[points->kind];
    const size_t dim = dim_of(p);
    if (f == NULL)
        return kvb_train_points_refuse(points, 0, KVB_E_MISMATCH, err,
                                       "the capture has no layers.%u.sensitivity_%s, by which recipe \"%s\" deals out bits: "
                                       "capture with --sensitivity 8, or give fixed shapes with --k and --v",
                                       points->layer, points->kind == KVB_KEY ? "k" : "v", p->t->recipe->name);
    for (uint32_t head = 0; head < heads_of(p); head++)
        for (uint32_t c = 0; c < dim; c++) {
            const float *inverse = points->inverse != NULL ? points->inverse + head * dim * dim : NULL;
            double value = importance_of(f + head * dim * dim, inverse, (uint32_t)dim, c);
            if (!isfinite(value))
                return kvb_train_points_refuse(points, head, KVB_E_CHECK, err, "its sensitivity holds a NaN or infinity");
            p->importance[head * dim + c] = value > 0.0 ? value : 0.0;
        }
    return KVB_OK;
}

static void sample_weights(probe *p)
{
    const size_t n = p->t->capture->rows;
    if (p->points.gradient != NULL)
        return;
    for (uint32_t head = 0; p->weight != NULL && head < heads_of(p); head++)
        for (size_t i = 0; i < p->rows; i++)
            p->weight[head * p->rows + i] = p->points.weight[head * n + i * p->step];
}

static kvb_status open_probe(const kvb_trainer *t, uint32_t layer, kvb_kind kind, probe *p, kvb_error *err)
{
    *p = (probe){.t = t};
    kvb_status status = kvb_train_points_of(t, layer, kind, &p->points, err);
    if (status != KVB_OK)
        return status;
    const size_t heads = heads_of(p), dim = dim_of(p), most = heads * dim;
    size_t rows = 0;
    for (uint32_t i = 0; i < t->recipe->ladder_count; i++) {
        const kvb_shape *s = &t->recipe->ladder[i];
        rows = (size_t)s->stages * s->centroids > rows ? (size_t)s->stages * s->centroids : rows;
    }
    p->step = (size_t)((t->capture->rows + PROBE_ROWS - 1) / PROBE_ROWS);
    p->rows = (size_t)t->capture->rows / p->step;
    const size_t weights = p->points.gradient != NULL ? most : heads;
    p->weight = p->points.weight != NULL ? kvb_alloc_array(weights * p->rows, sizeof *p->weight) : NULL;
    p->importance = kvb_alloc_array(most, sizeof *p->importance);
    p->problem = kvb_alloc_zeroed(most, sizeof *p->problem);
    p->result = kvb_alloc_zeroed(most, sizeof *p->result);
    p->stages = kvb_alloc_zeroed(most, sizeof *p->stages);
    p->table = kvb_alloc_array(most * rows, sizeof *p->table);
    if ((p->points.weight != NULL && p->weight == NULL) || p->importance == NULL || p->problem == NULL ||
        p->result == NULL || p->stages == NULL || p->table == NULL)
        return kvb_fail_memory(err, "allocation of bits");
    sample_weights(p);
    return weigh_channels(p, err);
}

static void close_probe(probe *p)
{
    kvb_train_points_free(&p->points);
    free(p->weight);
    free(p->importance);
    free(p->problem);
    free(p->result);
    free(p->stages);
    free(p->table);
}

static kvb_status train_shape(probe *p, const kvb_shape *shape, kvb_error *err)
{
    const kvb_trainer *t = p->t;
    const uint32_t groups = dim_of(p) / shape->channels;
    const size_t rows = (size_t)shape->stages * shape->centroids;
    kvb_additive_options options;
    for (uint32_t i = 0; i < heads_of(p) * groups; i++) {
        kvb_kmeans_problem *q = &p->problem[i];
        *q = kvb_train_problem(t, &p->points, i / groups, shape, i % groups);
        q->count = p->rows;
        q->stride *= p->step;
        q->weights = p->weight != NULL ? p->weight + i / groups * p->rows : NULL;
        if (p->points.gradient != NULL) {
            float *weight = p->weight + i * p->rows;
            kvb_train_fisher_group(&p->points, i / groups, shape->channels, i % groups, p->step, p->rows, weight);
            q->weights = weight;
        }
        q->seed = kvb_rng_key(t->options->seed, p->points.layer, i / groups, 4 + (uint64_t)p->points.kind, i % groups);
        q->table = p->table + i * rows * shape->channels;
        p->stages[i] = shape->stages;
    }
    kvb_additive_options_init(&options);
    options.kmeans.iterations = PROBE_ROUNDS;
    options.kmeans.swap_rounds = 0;
    options.kmeans.threads = t->options->threads;
    options.rounds = PROBE_ROUNDS;
    return kvb_additive_train(p->problem, p->stages, heads_of(p) * groups, &options, p->result, err);
}

/* Loss of one shape for each head, at stride `choices`. */
static void judge_shape(const probe *p, const kvb_shape *shape, double *loss, uint32_t choices)
{
    const uint32_t groups = dim_of(p) / shape->channels;
    for (uint32_t head = 0; head < heads_of(p); head++) {
        double sum = 0.0;
        for (uint32_t c = 0; c < dim_of(p); c++)
            sum += p->result[head * groups + c / shape->channels].train_error *
                   p->importance[(size_t)head * dim_of(p) + c];
        loss[(size_t)head * 2 * choices] = 0.5 * sum;
    }
}

static kvb_status try_shapes(const kvb_trainer *t, uint32_t layer, kvb_kind kind, double *loss, kvb_error *err)
{
    const uint32_t choices = t->recipe->ladder_count;
    probe p;
    kvb_status status = open_probe(t, layer, kind, &p, err);
    for (uint32_t c = 0; status == KVB_OK && c < choices; c++) {
        status = train_shape(&p, &t->recipe->ladder[c], err);
        if (status == KVB_OK)
            judge_shape(&p, &t->recipe->ladder[c], loss + (size_t)kind * choices + c, choices);
    }
    close_probe(&p);
    return status;
}

/* Items of the problem: head by head of the trained layers, keys before values. The first of a layer: */
static size_t item_of(const kvb_trainer *t, uint32_t layer)
{
    size_t item = 0;
    for (uint32_t l = 0; l < layer; l++)
        item += kvb_train_has(t, l) ? 2 * (size_t)t->capture->geometry[l].kv_heads : 0;
    return item;
}

/* One layer for each process of the team. */
static kvb_status measure_round(const kvb_trainer *t, const uint32_t *layer, uint32_t count, double *loss, kvb_error *err)
{
    const kvb_train_options *o = t->options;
    const uint32_t rank = kvb_team_rank(o->team);
    kvb_status status = kvb_capture_load(t->capture, layer, count, err);
    if (status == KVB_OK && o->progress != NULL && o->progress(o->progress_user, "allocate", layer[0], t->capture->layers) != 0)
        status = kvb_fail(err, KVB_E_CANCELLED, "allocation of bits", "stopped at layer %u", layer[0]);
    for (int kind = 0; status == KVB_OK && rank < count && kind < 2; kind++)
        status = try_shapes(t, layer[rank], (kvb_kind)kind, loss + item_of(t, layer[rank]) * t->recipe->ladder_count, err);
    return kvb_team_agree(o->team, status, err);
}

static kvb_status measure(const kvb_trainer *t, size_t items, double *loss, double *size, kvb_error *err)
{
    const uint32_t team = kvb_team_size(t->options->team);
    uint32_t count = 0, *layer = kvb_alloc_array(t->capture->layers, sizeof *layer);
    kvb_status status = kvb_team_agree(t->options->team, layer != NULL ? KVB_OK : kvb_fail_memory(err, "allocation of bits"), err);
    size_t item = 0;
    for (uint32_t l = 0; status == KVB_OK && l < t->capture->layers; l++) {
        if (kvb_train_has(t, l))
            layer[count++] = l;
        for (uint32_t i = 0; kvb_train_has(t, l) && i < 2 * t->capture->geometry[l].kv_heads; i++)
            size[item++] = t->capture->geometry[l].head_dim;
    }
    for (uint32_t i = 0; status == KVB_OK && i < count; i += team)
        status = measure_round(t, layer + i, count - i < team ? count - i : team, loss, err);
    /* Each number is one process's; the others have 0 there. */
    if (status == KVB_OK)
        status = kvb_team_sum(t->options->team, loss, items * t->recipe->ladder_count, err);
    free(layer);
    return status;
}

static kvb_status choose(kvb_trainer *t, size_t items, const double *loss, const double *size, kvb_error *err)
{
    double cost[KVB_RECIPE_LADDER], total;
    uint32_t *choice = kvb_alloc_array(items, sizeof *choice);
    if (choice == NULL)
        return kvb_fail_memory(err, "allocation of bits");
    for (uint32_t c = 0; c < t->recipe->ladder_count; c++)
        cost[c] = kvb_shape_rate(&t->recipe->ladder[c]);
    const kvb_allocate_problem problem = {.items = items, .choices = t->recipe->ladder_count, .loss = loss, .cost = cost,
                                          .size = size, .budget = t->recipe->budget};
    kvb_status status = kvb_allocate(&problem, choice, &total, err);
    size_t item = 0;
    for (uint32_t l = 0; status == KVB_OK && l < t->capture->layers; l++)
        for (uint32_t i = 0; kvb_train_has(t, l) && i < 2 * t->capture->geometry[l].kv_heads; i++)
            t->chosen[kvb_train_item(t, l, i / 2, i % 2)] = choice[item++];
    free(choice);
    return status;
}

kvb_status kvb_train_allocate(kvb_trainer *t, kvb_error *err)
{
    size_t items = 0;
    if (t->recipe->ladder_count == 0)
        return KVB_OK;
    for (uint32_t l = 0; l < t->capture->layers; l++)
        items += kvb_train_has(t, l) ? 2 * (size_t)t->capture->geometry[l].kv_heads : 0;
    double *loss = kvb_alloc_zeroed(items * t->recipe->ladder_count, sizeof *loss);
    double *size = kvb_alloc_array(items, sizeof *size);
    uint32_t *chosen = kvb_alloc_zeroed((size_t)t->capture->layers * t->part_heads * 2, sizeof *chosen);
    kvb_status status = loss != NULL && size != NULL && chosen != NULL ? KVB_OK : kvb_fail_memory(err, "allocation of bits");
    t->chosen = chosen;
    status = kvb_team_agree(t->options->team, status, err);
    if (status == KVB_OK)
        status = measure(t, items, loss, size, err);
    if (status == KVB_OK)
        status = choose(t, items, loss, size, err);
    free(loss);
    free(size);
    return status;
}
