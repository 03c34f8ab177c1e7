/* The benchmarks of `kvbook bench`. */
#ifndef KVB_TOOLS_BENCH_H
#define KVB_TOOLS_BENCH_H

#include <stdbool.h>

#include "kvbook/status.h"
#include "tools/progress.h"

typedef struct kvb_bench_options {
    bool json;  /* one object instead of a table */
    bool quick; /* a few small sizes */
} kvb_bench_options;

/* Prints its results on stdout. */
kvb_status kvb_bench_kmeans(const kvb_bench_options *options, kvb_progress *p, kvb_error *err);

/* Single-precision operations a second of all threads together, the best of several tries; NaN where nobody knows. */
double kvb_bench_peak(int threads);

#endif
