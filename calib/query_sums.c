#include "calib/query_sums.h"

#include <string.h>

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
