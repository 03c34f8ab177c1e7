#include "calib/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "calib/checkpoint_job.h"
#include "format/base/crc.h"
#include "format/base/fail.h"
#include "format/base/mapfile.h"
#include "format/base/outfile.h"
#include "format/base/path.h"
#include "format/base/sha256.h"

#define JOB_FILE "job.json"
#define CAPTURE_BEGIN "capture"
#define CAPTURE_END ".kvc"
#define RECORD_END ".kvck"

enum { MOST_JOB_BYTES = 1 << 20, HEADER_BYTES = 64, HASH_AT = 8, SIZE_AT = 40, CRC_AT = 48 };
static const char magic[8] = {'K', 'V', 'B', 'C', 'K', 'P', 'T', '2'};

struct kvb_checkpoint {
    char *folder, *capture;
    uint8_t job_hash[32];
    int fd; /* of the folder: holds the lock */
    bool resumes, made; /* made: the folder was not there before */
};

/* ---- names inside the folder */

static bool ends_with(const char *name, const char *end)
{
    const size_t a = strlen(name), b = strlen(end);
    return a >= b && strcmp(name + a - b, end) == 0;
}

static bool begins_with(const char *name, const char *begin)
{
    return strncmp(name, begin, strlen(begin)) == 0;
}

/* What a killed writer leaves behind. */
static bool is_leftover(const char *name)
{
    return strstr(name, RECORD_END ".tmp-") != NULL || strncmp(name, JOB_FILE ".tmp-", strlen(JOB_FILE ".tmp-")) == 0 ||
           (begins_with(name, CAPTURE_BEGIN) && strstr(name, CAPTURE_END ".tmp-") != NULL);
}

static bool is_result(const char *name)
{
    return ends_with(name, RECORD_END) || (begins_with(name, CAPTURE_BEGIN) && ends_with(name, CAPTURE_END));
}

/* Calls `see` for each entry until it says true; returns whether it did. */
static bool any_entry(const kvb_checkpoint *c, bool (*see)(const kvb_checkpoint *c, const char *name, void *user), void *user)
{
    bool found = false;
    DIR *dir = opendir(c->folder);
    if (dir == NULL)
        return false;
    for (struct dirent *e = readdir(dir); e != NULL && !found; e = readdir(dir))
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            found = see(c, e->d_name, user);
    closedir(dir);
    return found;
}

static bool drop_leftover(const kvb_checkpoint *c, const char *name, void *user)
{
    (void)user;
    if (is_leftover(name))
        (void)unlinkat(c->fd, name, 0);
    return false;
}

static bool drop_result(const kvb_checkpoint *c, const char *name, void *user)
{
    (void)user;
    if (is_leftover(name) || is_result(name))
        (void)unlinkat(c->fd, name, 0);
    return false;
}

static bool see_foreign(const kvb_checkpoint *c, const char *name, void *user)
{
    char *found = user;
    (void)c;
    if (is_leftover(name) || is_result(name) || strcmp(name, JOB_FILE) == 0)
        return false;
    snprintf(found, 64, "%.63s", name);
    return true;
}

static bool see_result(const kvb_checkpoint *c, const char *name, void *user)
{
    (void)c, (void)user;
    return is_result(name);
}

/* ---- entering and leaving */

static kvb_status enter_folder(kvb_checkpoint *c, kvb_error *err)
{
    char foreign[64];
    c->made = mkdir(c->folder, 0777) == 0;
    if (!c->made && errno != EEXIST)
        return kvb_fail(err, KVB_E_IO, c->folder, "cannot make the folder of the checkpoint: %s", strerror(errno));
    c->fd = open(c->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (c->fd < 0)
        return kvb_fail(err, KVB_E_IO, c->folder, "cannot open the folder of the checkpoint: %s", strerror(errno));
    /* File systems without locks are no reason to refuse. */
    if (flock(c->fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
        return kvb_fail(err, KVB_E_USAGE, c->folder, "another run is at work in this checkpoint; wait for it, or choose another "
                        "folder with --checkpoint");
    if (any_entry(c, see_foreign, foreign))
        return kvb_fail(err, KVB_E_USAGE, c->folder, "holds \"%s\", which is no part of a checkpoint; choose an empty or a new "
                        "folder", foreign);
    (void)any_entry(c, drop_leftover, NULL);
    return KVB_OK;
}

static kvb_status begin(kvb_checkpoint *c, const char *path, const char *job, kvb_error *err)
{
    /* Results that no job.json speaks for cannot be trusted. */
    (void)any_entry(c, drop_result, NULL);
    return kvb_write_file(path, job, strlen(job), err);
}

static kvb_status go_on(kvb_checkpoint *c, const char *path, const char *job, bool resume, kvb_error *err)
{
    char *found = NULL;
    size_t size;
    if (!resume)
        return kvb_fail(err, KVB_E_USAGE, c->folder, "holds the checkpoint of a job that did not end; go on with it (--resume), "
                        "delete the folder, or choose another with --checkpoint");
    kvb_status status = kvb_read_file(path, MOST_JOB_BYTES, &found, &size, err);
    if (status == KVB_OK)
        status = kvb_checkpoint_job_compare(c->folder, found, size, job, err);
    free(found);
    c->resumes = status == KVB_OK;
    return status;
}

static kvb_status enter(kvb_checkpoint *c, const char *job, bool resume, kvb_error *err)
{
    kvb_status status = enter_folder(c, err);
    if (status != KVB_OK)
        return status;
    char *path = kvb_join_path(c->folder, JOB_FILE, "");
    if (path == NULL)
        return kvb_fail_memory(err, c->folder);
    struct stat st;
    status = stat(path, &st) == 0 ? go_on(c, path, job, resume, err) : begin(c, path, job, err);
    free(path);
    return status;
}

kvb_status kvb_checkpoint_open(const char *folder, const char *job, bool resume, kvb_checkpoint **checkpoint,
                               kvb_error *err)
{
    kvb_checkpoint *c = calloc(1, sizeof *c);
    *checkpoint = NULL;
    if (c == NULL)
        return kvb_fail_memory(err, folder);
    c->fd = -1;
    c->folder = strdup(folder);
    c->capture = c->folder != NULL ? kvb_join_path(c->folder, CAPTURE_BEGIN, CAPTURE_END) : NULL;
    if (c->capture == NULL) {
        kvb_checkpoint_close(c);
        return kvb_fail_memory(err, folder);
    }
    kvb_sha256_of(job, strlen(job), c->job_hash);
    kvb_status status = enter(c, job, resume, err);
    if (status == KVB_OK)
        *checkpoint = c;
    else if (c->made)
        kvb_checkpoint_remove(c);
    else
        kvb_checkpoint_close(c);
    return status;
}

bool kvb_checkpoint_resumes(const kvb_checkpoint *c)
{
    return c != NULL && c->resumes;
}

bool kvb_checkpoint_has_results(const kvb_checkpoint *c)
{
    return c != NULL && any_entry(c, see_result, NULL);
}

const char *kvb_checkpoint_folder(const kvb_checkpoint *c)
{
    return c->folder;
}

void kvb_checkpoint_close(kvb_checkpoint *c)
{
    if (c == NULL)
        return;
    if (c->fd >= 0)
        close(c->fd);
    free(c->folder);
    free(c->capture);
    free(c);
}

void kvb_checkpoint_remove(kvb_checkpoint *c)
{
    if (c == NULL)
        return;
    /* job.json goes last: killed in between, what is left still says whose it is. */
    (void)any_entry(c, drop_result, NULL);
    (void)unlinkat(c->fd, JOB_FILE, 0);
    (void)rmdir(c->folder);
    kvb_checkpoint_close(c);
}

/* ---- records */

void kvb_record_put(kvb_record *r, const void *bytes, size_t size)
{
    if (r->failed || size == 0)
        return;
    if (size > r->capacity - r->size) {
        size_t capacity = r->capacity * 2 > r->size + size ? r->capacity * 2 : r->size + size;
        uint8_t *grown = size <= SIZE_MAX - r->size ? realloc(r->bytes, capacity) : NULL;
        if (grown == NULL) {
            r->failed = true;
            return;
        }
        r->bytes = grown;
        r->capacity = capacity;
    }
    memcpy(r->bytes + r->size, bytes, size);
    r->size += size;
}

void kvb_record_free(kvb_record *r)
{
    free(r->bytes);
    *r = (kvb_record){0};
}

static void make_header(const kvb_checkpoint *c, const kvb_record *record, uint8_t header[HEADER_BYTES])
{
    const uint64_t size = record->size;
    const uint32_t crc = kvb_crc_of(record->bytes, record->size);
    memset(header, 0, HEADER_BYTES);
    memcpy(header, magic, sizeof magic);
    memcpy(header + HASH_AT, c->job_hash, sizeof c->job_hash);
    memcpy(header + SIZE_AT, &size, sizeof size);
    memcpy(header + CRC_AT, &crc, sizeof crc);
}

kvb_status kvb_checkpoint_save(kvb_checkpoint *c, const char *name, const kvb_record *record, kvb_error *err)
{
    uint8_t header[HEADER_BYTES];
    kvb_outfile *out = NULL;
    char *path = kvb_join_path(c->folder, name, RECORD_END);
    if (record->failed || path == NULL) {
        free(path);
        return kvb_fail_memory(err, c->folder);
    }
    make_header(c, record, header);
    kvb_status status = kvb_outfile_open(path, &out, err);
    free(path);
    if (status == KVB_OK)
        status = kvb_outfile_write(out, header, sizeof header, err);
    if (status == KVB_OK)
        status = kvb_outfile_write(out, record->bytes, record->size, err);
    if (status == KVB_OK)
        return kvb_outfile_commit(out, err);
    kvb_outfile_abandon(out);
    return status;
}

static kvb_status refuse(const char *path, const char *what, kvb_error *err)
{
    return kvb_fail(err, KVB_E_FORMAT, path, "%s; delete this file to have its part done again, or the folder to begin anew",
                    what);
}

static kvb_status check_record(const kvb_checkpoint *c, const char *path, const char *file, size_t size, kvb_error *err)
{
    uint64_t payload;
    uint32_t crc;
    if (size < HEADER_BYTES || memcmp(file, magic, sizeof magic) != 0)
        return refuse(path, "is no record of a checkpoint", err);
    if (memcmp(file + HASH_AT, c->job_hash, sizeof c->job_hash) != 0)
        return refuse(path, "belongs to the checkpoint of another job", err);
    memcpy(&payload, file + SIZE_AT, sizeof payload);
    memcpy(&crc, file + CRC_AT, sizeof crc);
    if (payload != size - HEADER_BYTES || crc != kvb_crc_of(file + HEADER_BYTES, size - HEADER_BYTES))
        return refuse(path, "is damaged: its size or checksum is not what was written", err);
    return KVB_OK;
}

kvb_status kvb_checkpoint_load(const kvb_checkpoint *c, const char *name, kvb_saved *saved, kvb_error *err)
{
    struct stat st;
    size_t size;
    *saved = (kvb_saved){0};
    if (c == NULL || !c->resumes)
        return KVB_OK;
    char *path = kvb_join_path(c->folder, name, RECORD_END);
    if (path == NULL)
        return kvb_fail_memory(err, c->folder);
    kvb_status status = KVB_OK;
    if (stat(path, &st) == 0) {
        status = kvb_read_file(path, UINT64_MAX - 1, &saved->file, &size, err);
        if (status == KVB_OK)
            status = check_record(c, path, saved->file, size, err);
        if (status == KVB_OK)
            saved->cursor = kvb_cursor_over(saved->file + HEADER_BYTES, size - HEADER_BYTES);
        else
            kvb_saved_free(saved);
    }
    free(path);
    return status;
}

bool kvb_saved_take(kvb_saved *saved, void *to, size_t size)
{
    const uint8_t *from = kvb_cursor_bytes(&saved->cursor, size);
    if (from == NULL)
        return false;
    if (size != 0)
        memcpy(to, from, size);
    return true;
}

kvb_status kvb_saved_end(kvb_saved *saved, const kvb_checkpoint *c, const char *name, kvb_error *err)
{
    const bool good = !saved->cursor.failed && saved->cursor.at == saved->cursor.size;
    char *path = good || c == NULL ? NULL : kvb_join_path(c->folder, name, RECORD_END);
    kvb_saved_free(saved);
    if (good)
        return KVB_OK;
    kvb_status status = refuse(path != NULL ? path : name, "holds other things than this job has", err);
    free(path);
    return status;
}

void kvb_saved_free(kvb_saved *saved)
{
    free(saved->file);
    *saved = (kvb_saved){0};
}

/* ---- the capture */

const char *kvb_checkpoint_capture(const kvb_checkpoint *c)
{
    return c->capture;
}

char *kvb_checkpoint_part(const char *folder, uint64_t first, uint64_t chunks)
{
    char name[64];
    snprintf(name, sizeof name, CAPTURE_BEGIN "-%" PRIu64 "-%" PRIu64, first, chunks);
    return kvb_join_path(folder, name, CAPTURE_END);
}

bool kvb_checkpoint_has_capture(const kvb_checkpoint *c)
{
    struct stat st;
    return c != NULL && stat(c->capture, &st) == 0;
}
