/* Data for the k-means tests: a mixture of Gaussians with heavy tails, like keys and values. */
#ifndef KVB_TESTS_KMEANS_TESTDATA_H
#define KVB_TESTS_KMEANS_TESTDATA_H

#include <math.h>
#include <stdlib.h>

#include "format/base/rng.h"

static inline double test_normal(uint64_t key, uint64_t i)
{
    return sqrt(-2.0 * log(kvb_rng_unit(key, 2 * i))) * cos(6.283185307179586 * kvb_rng_unit(key, 2 * i + 1));
}

/* n rows of d floats; free() it. */
static inline float *test_mixture(size_t n, uint32_t d, uint64_t seed)
{
    float *x = malloc(n * d * sizeof *x);
    uint64_t key = kvb_rng_key(seed, 1, 2, 3, 4), means = kvb_rng_key(seed, 5, 6, 7, 8);
    for (size_t i = 0; x != NULL && i < n; i++) {
        uint64_t part = kvb_rng_below(key + 1, i, 12);
        double tail = 0.5 / sqrt(kvb_rng_unit(key + 2, i) + 0.05);
        for (uint32_t c = 0; c < d; c++)
            x[i * d + c] = (float)(1.5 * test_normal(means, part * d + c) + tail * test_normal(key, i * d + c));
    }
    return x;
}

/* Positive weights with a heavy tail. */
static inline float *test_weights(size_t n, uint64_t seed)
{
    float *w = malloc(n * sizeof *w);
    for (size_t i = 0; w != NULL && i < n; i++)
        w[i] = (float)exp(1.5 * test_normal(kvb_rng_key(seed, 9, 9, 9, 9), i));
    return w;
}

#endif
