/* Fisher weights: an error e in a group of channels of a token costs the loss about w |e|^2 with w = g^T g, g being the loss's
 * gradient with respect to these channels (arXiv 2405.03917, equation 8), in the space that the groups are cut in. */
#include <inttypes.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "calib/train_impl.h"
#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/half.h"
#include "format/base/kernels.h"
#include "format/base/rope.h"

enum { ROWS = 64 };

static const uint16_t *captured(const kvb_train_points *p)
{
    return p->capture->layer[p->layer].gradient[p->kind];
}

kvb_status kvb_train_fisher_rows(const kvb_train_points *p, float *weight, kvb_error *err)
{
    const size_t dim = p->capture->geometry[p->layer].head_dim, n = p->capture->rows;
    const size_t rows = p->capture->geometry[p->layer].kv_heads * n;
    uint64_t bad = UINT64_MAX;
    if (captured(p) == NULL)
        return kvb_train_points_refuse(p, 0, KVB_E_MISMATCH, err,
                                       "the capture has no layers.%u.gradient_%s, and recipe \"%s\" weights the %s by it: capture "
                                       "with --fisher, or change the recipe to other \"weights\"",
                                       p->layer, p->kind == KVB_KEY ? "k" : "v", p->recipe->name, kvb_train_kind_name(p->kind));
#pragma omp parallel for schedule(static) reduction(min : bad)
    for (size_t r = 0; r < rows; r++) {
        double sum = 0.0;
        for (size_t c = 0; c < dim; c++) {
            const uint16_t half = captured(p)[r * dim + c];
            const double g = (double)kvb_half_to_float(half);
            if ((half & 0x7c00) == 0x7c00)
                bad = r < bad ? r : bad;
            sum += g * g;
        }
        weight[r] = (float)sum;
    }
    if (bad == UINT64_MAX)
        return KVB_OK;
    return kvb_train_points_refuse(p, (uint32_t)(bad / n), KVB_E_CHECK, err,
                                   "row %" PRIu64 " of gradient_%s holds a NaN or infinity; expected finite numbers: capture again",
                                   bad % n, p->kind == KVB_KEY ? "k" : "v");
}

/* Rows first .. end of a head from the frame of the capture into the recipe's: with x = R^T (inverse y + mean), the gradient with
 * respect to y is inverse^T R g. */
static void move_rows(const kvb_train_points *p, const kvb_rope_table *rope, uint32_t head, size_t first, size_t end, float *scratch)
{
    const size_t dim = p->capture->geometry[p->layer].head_dim, n = p->capture->rows, at = (head * n + first) * dim;
    const float *inverse = p->inverse != NULL ? p->inverse + head * dim * dim : NULL;
    float *to = p->gradient + at, *x = inverse != NULL ? scratch : to;
    kvb_half_to_floats(x, captured(p) + at, (end - first) * dim);
    for (size_t i = first; rope != NULL && i < end; i++)
        kvb_rope_rotate(rope, kvb_train_turn(p, i), (uint32_t)dim, x + (i - first) * dim, x + (i - first) * dim);
    if (inverse != NULL)
        kvb_kernels_best()->gemm(end - first, dim, dim, scratch, dim, inverse, dim, to, dim, false);
    for (size_t i = 0; i < (end - first) * dim; i++)
        to[i] *= to[i];
}

kvb_status kvb_train_fisher_move(kvb_train_points *p, const kvb_rope_table *rope, kvb_error *err)
{
    const kvb_layer *g = &p->capture->geometry[p->layer];
    const size_t dim = g->head_dim, n = p->capture->rows, blocks = (n + ROWS - 1) / ROWS;
    const int threads = p->threads != 0 ? (int)p->threads : omp_get_max_threads();
    float *scratch = kvb_alloc_array((size_t)threads * ROWS, dim * sizeof *scratch);
    p->gradient = kvb_alloc_array(g->kv_heads * n, dim * sizeof *p->gradient);
    if (scratch == NULL || p->gradient == NULL) {
        free(scratch);
        return kvb_fail_memory(err, "training weights");
    }
#pragma omp parallel for schedule(static) num_threads(threads)
    for (size_t task = 0; task < blocks * g->kv_heads; task++) {
        const size_t first = task % blocks * ROWS, end = first + ROWS < n ? first + ROWS : n;
        move_rows(p, rope, (uint32_t)(task / blocks), first, end, scratch + (size_t)omp_get_thread_num() * ROWS * dim);
    }
    free(scratch);
    return KVB_OK;
}

void kvb_train_fisher_group(const kvb_train_points *p, uint32_t head, uint32_t channels, uint32_t group, size_t step, size_t count,
                            float *weight)
{
    const size_t dim = p->capture->geometry[p->layer].head_dim, n = p->capture->rows;
    double sum = 0.0;
    for (size_t i = 0; i < count; i++) {
        const float *g = p->gradient + (head * n + i * step) * dim + (size_t)group * channels;
        double square = 0.0;
        for (uint32_t c = 0; c < channels; c++)
            square += (double)g[c];
        weight[i] = p->weight[head * n + i * step] > 0.0f ? (float)square : 0.0f;
        sum += (double)weight[i];
    }
    for (size_t i = 0; i < count; i++)
        weight[i] = sum > 0.0 ? (float)((double)weight[i] * (double)count / sum) : 1.0f;
}
