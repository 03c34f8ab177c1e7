/* A few host threads, each with OpenMP threads of its own: one for each GPU at work. */
#ifndef KVB_CALIB_LANES_H
#define KVB_CALIB_LANES_H

#include <stdint.h>

#include "kvbook/status.h"

enum { KVB_MOST_LANES = 128 };

/* The work of lane 0 .. lanes - 1. */
typedef kvb_status (*kvb_lane_fn)(void *user, uint32_t lane, kvb_error *err);

/* Runs them side by side, lane 0 in the caller's thread, and waits for all. OpenMP's threads are shared out: an own team of
 * omp_get_max_threads() / lanes in each. Of several failures the lowest lane's is returned. KVB_E_MEMORY where a thread cannot be had:
 * then some lanes have not run. KVB_E_USAGE for more than KVB_MOST_LANES. */
kvb_status kvb_lanes_run(uint32_t lanes, kvb_lane_fn work, void *user, kvb_error *err);

#endif
