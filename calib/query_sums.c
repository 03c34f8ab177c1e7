#include "calib/query_sums.h"

#include <math.h>
#include <string.h>

static const double most = 4611686018427387904.0; /* 2^62 */

static kvb_exact negate(kvb_exact a)
{
    const uint64_t low = ~a.low + 1;
    return (kvb_exact){low, (int64_t)(~(uint64_t)a.high + (low == 0))};
}

kvb_exact kvb_exact_of(double x)
{
    if (isnan(x))
        return (kvb_exact){0, 0};
    const double size = fabs(x) < most ? fabs(x) : most, whole = floor(size);
    const kvb_exact e = {(uint64_t)ldexp(size - whole, 64), (int64_t)whole}; /* size - whole is exact and below 1 */
    return x < 0.0 ? negate(e) : e;
}

kvb_exact kvb_exact_add(kvb_exact a, kvb_exact b)
{
    const uint64_t low = a.low + b.low;
    return (kvb_exact){low, (int64_t)((uint64_t)a.high + (uint64_t)b.high + (low < a.low))};
}

double kvb_exact_to_double(kvb_exact a)
{
    if (a.high < 0)
        return -((double)(uint64_t)negate(a).high + ldexp((double)negate(a).low, -64));
    return (double)a.high + ldexp((double)a.low, -64);
}

void kvb_query_sums_add(kvb_exact *sums, const double *m, uint32_t dim)
{
    for (size_t i = 0; i < dim; i++)
        for (size_t j = i; j < dim; j++, sums++)
            *sums = kvb_exact_add(*sums, kvb_exact_of(0.5 * (m[i * dim + j] + m[j * dim + i])));
}

void kvb_query_sums_mean(const kvb_exact *sums, uint64_t queries, uint32_t dim, float *mean)
{
    if (queries == 0) {
        memset(mean, 0, (size_t)dim * dim * sizeof *mean);
        return;
    }
    for (size_t i = 0; i < dim; i++)
        for (size_t j = i; j < dim; j++, sums++)
            mean[i * dim + j] = mean[j * dim + i] = (float)(kvb_exact_to_double(*sums) / (double)queries);
}

void kvb_query_means(const kvb_layer *layer, const kvb_exact *sums, const uint64_t *queries, uint32_t which, float *mean)
{
    const size_t dim = layer->head_dim;
    for (size_t head = 0; head < layer->kv_heads; head++)
        kvb_query_sums_mean(sums + (which * layer->kv_heads + head) * kvb_triangle(dim), queries[head], layer->head_dim,
                            mean + head * dim * dim);
}
