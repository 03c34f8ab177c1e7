#include "calib/lanes.h"

#include <omp.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

#include "format/base/checked.h"
#include "format/base/fail.h"

typedef struct lane {
    pthread_t thread;
    bool started;
    kvb_lane_fn work;
    void *user;
    uint32_t number;
    int threads; /* of OpenMP */
    kvb_status status;
    kvb_error error;
} lane;

static void *run_lane(void *user)
{
    lane *l = user;
    omp_set_num_threads(l->threads);
    l->status = l->work(l->user, l->number, &l->error);
    return NULL;
}

static void run_all(lane *all, uint32_t lanes)
{
    for (uint32_t i = 1; i < lanes; i++) {
        all[i].started = pthread_create(&all[i].thread, NULL, run_lane, &all[i]) == 0;
        if (!all[i].started)
            all[i].status = kvb_fail(&all[i].error, KVB_E_MEMORY, "threads", "thread %u of %u cannot be started", i + 1, lanes);
    }
    run_lane(&all[0]);
    for (uint32_t i = 1; i < lanes; i++)
        if (all[i].started)
            pthread_join(all[i].thread, NULL);
}

kvb_status kvb_lanes_run(uint32_t lanes, kvb_lane_fn work, void *user, kvb_error *err)
{
    if (lanes == 1)
        return work(user, 0, err);
    if (lanes == 0 || lanes > KVB_MOST_LANES)
        return kvb_fail(err, KVB_E_USAGE, "threads", "%u at once; expected 1 to %d", lanes, KVB_MOST_LANES);
    const int threads = omp_get_max_threads(), each = threads / (int)lanes;
    kvb_status status = KVB_OK;
    lane *all = kvb_alloc_zeroed(lanes, sizeof *all);
    if (all == NULL)
        return kvb_fail_memory(err, "threads");
    for (uint32_t i = 0; i < lanes; i++) {
        all[i].work = work;
        all[i].user = user;
        all[i].number = i;
        all[i].threads = each > 0 ? each : 1;
    }
    run_all(all, lanes);
    omp_set_num_threads(threads);
    for (uint32_t i = 0; i < lanes && status == KVB_OK; i++) {
        status = all[i].status;
        if (status != KVB_OK && err != NULL)
            *err = all[i].error;
    }
    free(all);
    return status;
}
