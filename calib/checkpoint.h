/* The folder of a job that may be killed at any moment and goes on later with the same result, to the byte.
 *
 * It holds job.json, which says what the results depend on; records, each written atomically and checked when it is read;
 * and the capture of a job that makes one. A checkpoint belongs to one process at a time (flock), and its records to the
 * job.json that they were made under. Not thread-safe. */
#ifndef KVB_CALIB_CHECKPOINT_H
#define KVB_CALIB_CHECKPOINT_H

#include <stdbool.h>

#include "format/base/cursor.h"
#include "kvbook/status.h"

typedef struct kvb_checkpoint kvb_checkpoint;

/* Makes or enters the folder. `job` is a flat JSON object of strings: everything that a result depends on, by a name that a
 * user understands. With `resume` an earlier checkpoint must have the same job: KVB_E_MISMATCH names what differs; where there
 * is none, the job begins. Without it KVB_E_USAGE where there is one. KVB_E_USAGE also for a folder with other things in it
 * and for one that another process has open, KVB_E_IO, KVB_E_FORMAT for a damaged job.json. */
kvb_status kvb_checkpoint_open(const char *folder, const char *job, bool resume, kvb_checkpoint **checkpoint,
                               kvb_error *err);
/* Whether an earlier checkpoint was found. */
bool kvb_checkpoint_resumes(const kvb_checkpoint *c);
/* Whether there is anything in it that a later run could use. */
bool kvb_checkpoint_has_results(const kvb_checkpoint *c);
const char *kvb_checkpoint_folder(const kvb_checkpoint *c);
/* Leaves the folder to a later run. NULL is allowed, here and below. */
void kvb_checkpoint_close(kvb_checkpoint *c);
/* The same without the folder: the job is done, or not worth going on with. */
void kvb_checkpoint_remove(kvb_checkpoint *c);

/* What a record holds, in the order of the calls: this machine's numbers, without padding. */
typedef struct kvb_record {
    uint8_t *bytes;
    size_t size, capacity;
    bool failed; /* out of memory: the calls that follow do nothing, and saving fails */
} kvb_record;
void kvb_record_put(kvb_record *r, const void *bytes, size_t size);
void kvb_record_free(kvb_record *r);

/* Saves under a name of letters, digits and '-', in place of an earlier one. */
kvb_status kvb_checkpoint_save(kvb_checkpoint *c, const char *name, const kvb_record *record, kvb_error *err);

/* A record as it is read. */
typedef struct kvb_saved {
    char *file;        /* the whole of it; NULL where there is no such record */
    kvb_cursor cursor; /* over what was put */
} kvb_saved;
/* KVB_OK and saved->file == NULL where there is none (or no checkpoint); KVB_E_FORMAT where it is damaged or of another job. */
kvb_status kvb_checkpoint_load(const kvb_checkpoint *c, const char *name, kvb_saved *saved, kvb_error *err);
/* Copies `size` bytes out; false where there are fewer. */
bool kvb_saved_take(kvb_saved *saved, void *to, size_t size);
/* Ends the reading: KVB_E_FORMAT where kvb_saved_take() failed or something is left. Frees it in any case. */
kvb_status kvb_saved_end(kvb_saved *saved, const kvb_checkpoint *c, const char *name, kvb_error *err);
void kvb_saved_free(kvb_saved *saved);

/* Where the capture of the job is, or is to be written in one piece (kvb_capture_run_to_file()). The checkpoint's. */
const char *kvb_checkpoint_capture(const kvb_checkpoint *c);
/* Where a process of a team puts its part of it. NULL: out of memory; free with free(). */
char *kvb_checkpoint_part(const char *folder, uint64_t first, uint64_t chunks);
/* Whether the whole is there. */
bool kvb_checkpoint_has_capture(const kvb_checkpoint *c);

#endif
