/* Processes that work on one job, each with a rank from 0. With MPI (a build with MPI=1, started by mpirun) there are several; else a
 * process is alone, and so is NULL. Everything here but rank and size is called by all of them together, in the same order; nothing
 * depends on how fast one is. A process that dies ends the job (MPI's own error handling). */
#ifndef KVB_CALIB_TEAM_H
#define KVB_CALIB_TEAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kvbook/status.h"

typedef struct kvb_team {
    uint32_t rank, size;
} kvb_team;

/* What the environment says of how this process was started: {0, 1} for one that was started alone. */
kvb_team kvb_team_launched(void);
/* Joins them. KVB_E_USAGE where there are several and this build has no MPI. */
kvb_status kvb_team_begin(kvb_team *team, kvb_error *err);
void kvb_team_end(const kvb_team *team);

static inline uint32_t kvb_team_rank(const kvb_team *team)
{
    return team != NULL ? team->rank : 0;
}
static inline uint32_t kvb_team_size(const kvb_team *team)
{
    return team != NULL ? team->size : 1;
}

/* KVB_OK where it is that for all; else the failure of the first that has one, for all. */
kvb_status kvb_team_agree(const kvb_team *team, kvb_status status, kvb_error *err);
/* The first one's bytes for all. */
kvb_status kvb_team_share(const kvb_team *team, void *bytes, size_t size, kvb_error *err);
/* x [n]: the sums over all, for all. The order in which they are added is MPI's. */
kvb_status kvb_team_sum(const kvb_team *team, double *x, size_t n, kvb_error *err);

struct kvb_record;
/* A record of process `from` becomes the first one's; other processes' are left as they are. */
kvb_status kvb_team_send(const kvb_team *team, uint32_t from, struct kvb_record *record, kvb_error *err);
/* Everyone's bytes for all: all[i], NULL before, of all_size[i], to be freed with free(), also after a failure. */
kvb_status kvb_team_gather(const kvb_team *team, const void *bytes, size_t size, void **all, uint64_t *all_size, kvb_error *err);

/* Bytes from or to another process. Between two of them, each tag has as many sends as receives, of the same sizes in order. */
typedef struct kvb_transfer {
    void *bytes;
    size_t size;
    uint32_t peer;
    int tag;
    bool send;
} kvb_transfer;
kvb_status kvb_team_exchange(const kvb_team *team, const kvb_transfer *transfer, size_t count, kvb_error *err);

#endif
