#include "kmeans/kmeans_reference.h"

#include <math.h>

static double weight(const float *weights, size_t i)
{
    return weights != NULL ? weights[i] : 1.0;
}

static double squared_distance(const float *x, const double *c, uint32_t d)
{
    double sum = 0.0;
    for (uint32_t j = 0; j < d; j++)
        sum += (x[j] - c[j]) * (x[j] - c[j]);
    return sum;
}

double kvb_kmeans_reference_assign(const float *x, const float *weights, size_t n, uint32_t d, const double *table,
                                   uint32_t centroids, uint32_t *codes)
{
    double objective = 0.0;
    for (size_t i = 0; i < n; i++) {
        double best = INFINITY;
        codes[i] = 0;
        for (uint32_t k = 0; k < centroids; k++) {
            double distance = squared_distance(x + i * d, table + (size_t)k * d, d);
            if (distance < best) {
                best = distance;
                codes[i] = k;
            }
        }
        objective += weight(weights, i) * best;
    }
    return objective;
}

void kvb_kmeans_reference_update(const float *x, const float *weights, size_t n, uint32_t d, double *table,
                                 uint32_t centroids, const uint32_t *codes)
{
    for (uint32_t k = 0; k < centroids; k++)
        for (uint32_t j = 0; j < d; j++) {
            double sum = 0.0, total = 0.0;
            for (size_t i = 0; i < n; i++)
                if (codes[i] == k) {
                    sum += weight(weights, i) * x[i * d + j];
                    total += weight(weights, i);
                }
            if (total > 0.0)
                table[(size_t)k * d + j] = sum / total;
        }
}
