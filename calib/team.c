#include "calib/team.h"

#include <stdlib.h>
#include <string.h>

#include "calib/checkpoint.h"
#include "format/base/checked.h"
#include "format/base/fail.h"

static bool read_count(const char *const *names, uint32_t *value)
{
    for (; *names != NULL; names++) {
        const char *text = getenv(*names);
        char *end;
        const unsigned long n = text != NULL && *text >= '0' && *text <= '9' ? strtoul(text, &end, 10) : UINT32_MAX;
        if (n < UINT32_MAX && *end == '\0') {
            *value = (uint32_t)n;
            return true;
        }
    }
    return false;
}

/* Open MPI's mpirun, then what others that speak PMI set. */
kvb_team kvb_team_launched(void)
{
    static const char *const sizes[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", NULL};
    static const char *const ranks[] = {"OMPI_COMM_WORLD_RANK", "PMI_RANK", NULL};
    kvb_team team = {0, 1};
    if (!read_count(sizes, &team.size) || !read_count(ranks, &team.rank) || team.rank >= team.size)
        return (kvb_team){0, 1};
    return team;
}

#ifdef KVB_MPI
#include <mpi.h>

/* MPI counts in int. */
enum { PIECE = 1 << 30 };

kvb_status kvb_team_begin(kvb_team *team, kvb_error *err)
{
    int provided, rank, size;
    *team = kvb_team_launched();
    if (team->size == 1)
        return KVB_OK;
    /* Errors of MPI end the job: its default. */
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS || provided < MPI_THREAD_FUNNELED)
        return kvb_fail(err, KVB_E_IO, "MPI", "cannot be started for programs with threads");
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    *team = (kvb_team){(uint32_t)rank, (uint32_t)size};
    return KVB_OK;
}

void kvb_team_end(const kvb_team *team)
{
    if (kvb_team_size(team) > 1)
        MPI_Finalize();
}

static void broadcast(void *bytes, size_t size, uint32_t from)
{
    for (size_t at = 0; at < size; at += PIECE)
        MPI_Bcast((char *)bytes + at, (int)(size - at < PIECE ? size - at : PIECE), MPI_BYTE, (int)from, MPI_COMM_WORLD);
}

kvb_status kvb_team_agree(const kvb_team *team, kvb_status status, kvb_error *err)
{
    kvb_error told = {0};
    int mine = status == KVB_OK ? (int)kvb_team_size(team) : (int)kvb_team_rank(team), first = mine, worst = (int)status;
    if (kvb_team_size(team) == 1)
        return status;
    MPI_Allreduce(&mine, &first, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
    if ((uint32_t)first == team->size)
        return KVB_OK;
    if (err != NULL && (uint32_t)first == team->rank)
        told = *err;
    broadcast(&worst, sizeof worst, (uint32_t)first);
    broadcast(&told, sizeof told, (uint32_t)first);
    if (err != NULL)
        *err = told;
    return (kvb_status)worst;
}

kvb_status kvb_team_share(const kvb_team *team, void *bytes, size_t size, kvb_error *err)
{
    (void)err;
    if (kvb_team_size(team) > 1)
        broadcast(bytes, size, 0);
    return KVB_OK;
}

kvb_status kvb_team_sum(const kvb_team *team, double *x, size_t n, kvb_error *err)
{
    (void)err;
    for (size_t at = 0; kvb_team_size(team) > 1 && at < n; at += PIECE / 8)
        MPI_Allreduce(MPI_IN_PLACE, x + at, (int)(n - at < PIECE / 8 ? n - at : PIECE / 8), MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    return KVB_OK;
}

kvb_status kvb_team_exchange(const kvb_team *team, const kvb_transfer *transfer, size_t count, kvb_error *err)
{
    size_t pieces = 0;
    for (size_t i = 0; i < count; i++)
        pieces += transfer[i].size / PIECE + 1;
    MPI_Request *request = kvb_alloc_array(pieces, sizeof(MPI_Request));
    kvb_status status = kvb_team_agree(team, request != NULL ? KVB_OK : kvb_fail_memory(err, "MPI"), err);
    pieces = 0;
    for (size_t i = 0; status == KVB_OK && i < 2 * count; i++) {
        const kvb_transfer *t = &transfer[i % count];
        if (t->send != (i >= count)) /* receives first, so that what arrives has its place */
            continue;
        for (size_t at = 0; at < t->size; at += PIECE) {
            const int size = (int)(t->size - at < PIECE ? t->size - at : PIECE);
            if (t->send)
                MPI_Isend((char *)t->bytes + at, size, MPI_BYTE, (int)t->peer, t->tag, MPI_COMM_WORLD, &request[pieces++]);
            else
                MPI_Irecv((char *)t->bytes + at, size, MPI_BYTE, (int)t->peer, t->tag, MPI_COMM_WORLD, &request[pieces++]);
        }
    }
    for (size_t at = 0; status == KVB_OK && at < pieces; at += PIECE)
        MPI_Waitall((int)(pieces - at < PIECE ? pieces - at : PIECE), request + at, MPI_STATUSES_IGNORE);
    free(request);
    return status;
}

kvb_status kvb_team_send(const kvb_team *team, uint32_t from, kvb_record *record, kvb_error *err)
{
    uint64_t size = record->size;
    const bool giving = kvb_team_rank(team) == from, taking = kvb_team_rank(team) == 0;
    kvb_status status = record->failed ? kvb_fail_memory(err, "a record") : KVB_OK;
    broadcast(&size, sizeof size, from);
    if (taking && !giving && (record->bytes = malloc((size_t)size + 1)) == NULL)
        status = kvb_fail_memory(err, "a record");
    status = kvb_team_agree(team, status, err);
    if (status != KVB_OK || giving == taking)
        return status != KVB_OK ? status : kvb_team_exchange(team, NULL, 0, err);
    if (taking)
        record->size = record->capacity = (size_t)size;
    const kvb_transfer t = {.bytes = record->bytes, .size = (size_t)size, .peer = giving ? 0 : from, .send = giving};
    return kvb_team_exchange(team, &t, 1, err);
}

kvb_status kvb_team_gather(const kvb_team *team, const void *bytes, size_t size, void **all, uint64_t *all_size, kvb_error *err)
{
    const uint64_t mine = size;
    bool memory = true;
    MPI_Allgather(&mine, sizeof mine, MPI_BYTE, all_size, sizeof mine, MPI_BYTE, MPI_COMM_WORLD);
    for (uint32_t i = 0; i < team->size; i++)
        memory = memory && (all[i] = malloc((size_t)all_size[i] + 1)) != NULL;
    kvb_status status = kvb_team_agree(team, memory ? KVB_OK : kvb_fail_memory(err, "MPI"), err);
    if (status != KVB_OK)
        return status;
    memcpy(all[team->rank], bytes, size);
    for (uint32_t i = 0; i < team->size; i++)
        broadcast(all[i], (size_t)all_size[i], i);
    return KVB_OK;
}
#else
/* A process alone: there is nobody to tell. */
kvb_status kvb_team_begin(kvb_team *team, kvb_error *err)
{
    *team = kvb_team_launched();
    if (team->size > 1)
        return kvb_fail(err, KVB_E_USAGE, "MPI", "started as one of %u processes, but this build has no MPI: build it with make MPI=1, or "
                        "start it alone", team->size);
    return KVB_OK;
}

void kvb_team_end(const kvb_team *team)
{
    (void)team;
}

kvb_status kvb_team_agree(const kvb_team *team, kvb_status status, kvb_error *err)
{
    (void)team, (void)err;
    return status;
}

kvb_status kvb_team_share(const kvb_team *team, void *bytes, size_t size, kvb_error *err)
{
    (void)team, (void)bytes, (void)size, (void)err;
    return KVB_OK;
}

kvb_status kvb_team_sum(const kvb_team *team, double *x, size_t n, kvb_error *err)
{
    (void)team, (void)x, (void)n, (void)err;
    return KVB_OK;
}

kvb_status kvb_team_send(const kvb_team *team, uint32_t from, kvb_record *record, kvb_error *err)
{
    (void)team, (void)from, (void)record, (void)err;
    return KVB_OK;
}

kvb_status kvb_team_gather(const kvb_team *team, const void *bytes, size_t size, void **all, uint64_t *all_size, kvb_error *err)
{
    (void)team;
    all_size[0] = size;
    all[0] = malloc(size + 1);
    if (all[0] == NULL)
        return kvb_fail_memory(err, "gather");
    memcpy(all[0], bytes, size);
    return KVB_OK;
}

kvb_status kvb_team_exchange(const kvb_team *team, const kvb_transfer *transfer, size_t count, kvb_error *err)
{
    (void)team, (void)transfer, (void)count, (void)err;
    return KVB_OK;
}
#endif
