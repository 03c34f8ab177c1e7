#include "format/base/outfile.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "format/base/checked.h"
#include "format/base/fail.h"

struct kvb_outfile {
    char *path;      /* where the file will appear; never a symbolic link to an existing file */
    char *temporary; /* where it is written */
    int fd;
    uint64_t at; /* append position */
};

static void outfile_free(kvb_outfile *out)
{
    if (out == NULL)
        return;
    free(out->path);
    free(out->temporary);
    free(out);
}

/* The name to replace. A link to an existing file is followed, so that the link survives; anything that is not a
 * regular file is refused, because rename would replace it (a device as well). */
static kvb_status resolve(const char *path, char **real, mode_t *mode, kvb_error *err)
{
    struct stat st;
    *mode = 0;
    if (stat(path, &st) == 0) {
        if (!S_ISREG(st.st_mode))
            return kvb_fail(err, KVB_E_IO, path, "is a %s, expected the name of a regular file to write",
                            S_ISDIR(st.st_mode) ? "folder" : "device, pipe or socket");
        *mode = st.st_mode & 0777;
        *real = realpath(path, NULL);
    } else if (errno == ENOENT) {
        *real = strdup(path);
    } else {
        return kvb_fail(err, KVB_E_IO, path, "cannot write there: %s", strerror(errno));
    }
    return *real != NULL ? KVB_OK : kvb_fail_memory(err, path);
}

/* Creates path.tmp-PID-N. Not mkstemp, whose files are private: the mode must follow the user's umask. */
static int create_temporary(const char *path, char *name, size_t size)
{
    for (unsigned n = 0; n < 10000; n++) {
        snprintf(name, size, "%s.tmp-%ld-%u", path, (long)getpid(), n);
        int fd = open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd >= 0 || errno != EEXIST)
            return fd;
    }
    return -1;
}

kvb_status kvb_outfile_open(const char *path, kvb_outfile **out, kvb_error *err)
{
    *out = NULL;
    kvb_outfile *o = calloc(1, sizeof *o);
    if (o == NULL)
        return kvb_fail_memory(err, path);
    o->fd = -1;
    mode_t mode;
    kvb_status status = resolve(path, &o->path, &mode, err);
    if (status != KVB_OK)
        goto fail;
    size_t size = strlen(o->path) + 48;
    o->temporary = malloc(size);
    if (o->temporary == NULL) {
        status = kvb_fail_memory(err, path);
        goto fail;
    }
    o->fd = create_temporary(o->path, o->temporary, size);
    if (o->fd < 0) {
        status = kvb_fail(err, KVB_E_IO, path, "cannot create a temporary file beside it: %s", strerror(errno));
        goto fail;
    }
    /* A replaced file keeps its mode; a file system without modes may refuse, which harms nobody. */
    if (mode != 0 && fchmod(o->fd, mode) != 0)
        errno = 0;
    *out = o;
    return KVB_OK;
fail:
    outfile_free(o);
    return status;
}

kvb_status kvb_outfile_write_at(kvb_outfile *out, uint64_t offset, const void *bytes, size_t size, kvb_error *err)
{
    const char *from = bytes;
    uint64_t end;
    if (!kvb_add_u64(offset, size, &end) || end > INT64_MAX)
        return kvb_fail(err, KVB_E_USAGE, out->path, "offset %llu is beyond any file", (unsigned long long)offset);
    while (size > 0) {
        ssize_t n = pwrite(out->fd, from, size < SSIZE_MAX ? size : SSIZE_MAX, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return kvb_fail(err, KVB_E_IO, out->path, "cannot write at byte %llu: %s", (unsigned long long)offset,
                            n < 0 ? strerror(errno) : "no byte was accepted");
        from += n;
        offset += (uint64_t)n;
        size -= (size_t)n;
    }
    return KVB_OK;
}

kvb_status kvb_outfile_write(kvb_outfile *out, const void *bytes, size_t size, kvb_error *err)
{
    kvb_status status = kvb_outfile_write_at(out, out->at, bytes, size, err);
    if (status == KVB_OK)
        out->at += size;
    return status;
}

/* fsync, again where a signal came in between. */
static int sync_all(int fd)
{
    int failed;
    do
        failed = fsync(fd);
    while (failed != 0 && errno == EINTR);
    return failed;
}

/* Makes the rename durable. Folders that cannot be opened or synced on this file system are let be. */
static kvb_status sync_folder(const char *path, kvb_error *err)
{
    const char *slash = strrchr(path, '/');
    size_t length = slash == NULL ? 1 : slash == path ? 1 : (size_t)(slash - path);
    char *folder = strndup(slash == NULL ? "." : path, length);
    if (folder == NULL)
        return kvb_fail_memory(err, path);
    kvb_status status = KVB_OK;
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0 && sync_all(fd) != 0 && errno != EINVAL && errno != ENOTSUP && errno != EROFS)
        status = kvb_fail(err, KVB_E_IO, path, "was written, but its folder could not be synced: %s",
                          strerror(errno));
    if (fd >= 0)
        close(fd);
    free(folder);
    return status;
}

kvb_status kvb_outfile_commit(kvb_outfile *out, kvb_error *err)
{
    kvb_status status = KVB_OK;
    if (sync_all(out->fd) != 0)
        status = kvb_fail(err, KVB_E_IO, out->path, "cannot sync: %s", strerror(errno));
    /* The descriptor is gone after close whatever it says; a delayed write error may be its only witness. */
    int closed = close(out->fd);
    out->fd = -1;
    if (status == KVB_OK && closed != 0)
        status = kvb_fail(err, KVB_E_IO, out->path, "cannot close: %s", strerror(errno));
    if (status == KVB_OK && rename(out->temporary, out->path) != 0)
        status = kvb_fail(err, KVB_E_IO, out->path, "cannot rename %s to it: %s", out->temporary, strerror(errno));
    if (status != KVB_OK) {
        kvb_outfile_abandon(out);
        return status;
    }
    status = sync_folder(out->path, err);
    outfile_free(out);
    return status;
}

void kvb_outfile_abandon(kvb_outfile *out)
{
    if (out == NULL)
        return;
    if (out->fd >= 0)
        close(out->fd);
    unlink(out->temporary);
    outfile_free(out);
}

kvb_status kvb_write_file(const char *path, const void *bytes, size_t size, kvb_error *err)
{
    kvb_outfile *out;
    kvb_status status = kvb_outfile_open(path, &out, err);
    if (status != KVB_OK)
        return status;
    status = kvb_outfile_write(out, bytes, size, err);
    if (status == KVB_OK)
        return kvb_outfile_commit(out, err);
    kvb_outfile_abandon(out);
    return status;
}
