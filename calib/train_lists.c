/* Lists of channels that share a scale: k-means over the least and the largest number of each channel puts channels of like ranges together
 * (SKVQ, arXiv 2405.06219), in groups that need not be of one size. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "calib/train_impl.h"
#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/rng.h"

enum { LISTS_STREAM = 0x6c697374 };

/* range [D][2]: least and largest of each channel over the rows that count. */
static kvb_status find_ranges(const kvb_train_points *p, uint32_t head, float *range, kvb_error *err)
{
    const uint32_t dim = p->capture->geometry[p->layer].head_dim;
    float row[KVB_TRAIN_MOST_DIM];
    uint64_t rows = 0;
    for (uint32_t c = 0; c < dim; c++) {
        range[2 * c] = INFINITY;
        range[2 * c + 1] = -INFINITY;
    }
    for (uint64_t i = 0; i < p->capture->rows; i++) {
        if (!kvb_train_points_counts(p, head, i))
            continue;
        kvb_train_points_row(p, head, i, row);
        for (uint32_t c = 0; c < dim; c++) {
            range[2 * c] = fminf(range[2 * c], row[c]);
            range[2 * c + 1] = fmaxf(range[2 * c + 1], row[c]);
        }
        rows++;
    }
    return rows > 0 ? KVB_OK : kvb_train_points_refuse(p, head, KVB_E_CHECK, err, "no row to find ranges of channels in: all are sinks of the recipe, or were left out; "
                                                                "capture longer chunks");
}

static uint32_t nearest(const float *x, const float *table, uint32_t count)
{
    uint32_t best = 0;
    float least = INFINITY;
    for (uint32_t k = 0; k < count; k++) {
        const float a = x[0] - table[2 * k], b = x[1] - table[2 * k + 1], distance = a * a + b * b;
        if (distance < least) {
            least = distance;
            best = k;
        }
    }
    return best;
}

/* Lists in the order of their first channels, channels ascending in each; clusters that no channel is nearest to are none. */
static void put_lists(const float *range, const float *table, uint32_t clusters, uint32_t dim, uint16_t *lists)
{
    uint16_t *order = lists + 1, *end = order + dim, count = 0, at = 0;
    bool taken[KVB_TRAIN_MOST_DIM] = {false};
    memset(lists, 0, KVB_LISTS_SIZE(dim) * sizeof *lists);
    for (uint32_t first = 0; first < dim; first++) {
        if (taken[first])
            continue;
        const uint32_t cluster = nearest(range + 2 * first, table, clusters);
        for (uint32_t c = first; c < dim; c++)
            if (!taken[c] && nearest(range + 2 * c, table, clusters) == cluster) {
                taken[c] = true;
                order[at++] = (uint16_t)c;
            }
        end[count++] = at;
    }
    lists[0] = count;
}

static kvb_status group_head(const kvb_trainer *t, const kvb_train_points *p, uint32_t head, uint32_t clusters, float *memory, uint16_t *lists,
                             kvb_error *err)
{
    const uint32_t dim = p->capture->geometry[p->layer].head_dim;
    float *range = memory, *table = memory + 2 * (size_t)dim;
    kvb_status status = find_ranges(p, head, range, err);
    if (status != KVB_OK)
        return status;
    const kvb_kmeans_problem problem = {
        .points = range, .type = KVB_POINTS_F32, .count = dim, .stride = 2, .channels = 2, .centroids = clusters,
        .seed = kvb_rng_key(t->options->seed, p->layer, head, (uint64_t)p->kind, LISTS_STREAM), .table = table,
    };
    status = kvb_train_points_solve(p, head, &problem, err);
    if (status == KVB_OK)
        put_lists(range, table, clusters, dim, lists);
    return status;
}

kvb_status kvb_train_lists(const kvb_trainer *t, const kvb_train_points *points, uint32_t size, uint16_t *lists, kvb_error *err)
{
    const kvb_layer *g = &points->capture->geometry[points->layer];
    const uint32_t clusters = (g->head_dim + size - 1) / size;
    float *memory = kvb_alloc_array(4 * (size_t)g->head_dim, sizeof *memory);
    kvb_status status = memory != NULL ? KVB_OK : kvb_fail_memory(err, "groups of channels");
    for (uint32_t head = 0; status == KVB_OK && head < g->kv_heads; head++)
        status = group_head(t, points, head, clusters, memory, lists + head * KVB_LISTS_SIZE(g->head_dim), err);
    free(memory);
    return status;
}
