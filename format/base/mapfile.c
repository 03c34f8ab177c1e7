#include "format/base/mapfile.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "format/base/checked.h"
#include "format/base/fail.h"

/* O_NONBLOCK: opening a FIFO without a writer would wait for ever. It means nothing for a regular file. */
static kvb_status open_regular(const char *path, int *fd, uint64_t *size, kvb_error *err)
{
    *fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (*fd < 0)
        return kvb_fail(err, KVB_E_IO, path, "cannot open: %s", strerror(errno));
    struct stat st;
    kvb_status status = KVB_OK;
    if (fstat(*fd, &st) != 0)
        status = kvb_fail(err, KVB_E_IO, path, "cannot stat: %s", strerror(errno));
    else if (!S_ISREG(st.st_mode))
        status = kvb_fail(err, KVB_E_IO, path, "is a %s, expected a regular file",
                          S_ISDIR(st.st_mode) ? "folder" : "device, pipe or socket");
    else if ((uint64_t)st.st_size > SIZE_MAX - 1 || st.st_size < 0)
        status = kvb_fail(err, KVB_E_IO, path, "is too large to address");
    if (status != KVB_OK) {
        close(*fd);
        *fd = -1;
        return status;
    }
    *size = (uint64_t)st.st_size;
    return KVB_OK;
}

kvb_status kvb_mapfile_open(kvb_mapfile *map, const char *path, kvb_error *err)
{
    *map = (kvb_mapfile){0};
    int fd;
    uint64_t size;
    kvb_status status = open_regular(path, &fd, &size, err);
    if (status != KVB_OK)
        return status;
    if (size == 0) {
        close(fd);
        return kvb_fail(err, KVB_E_FORMAT, path, "is empty (0 bytes)");
    }
    void *bytes = mmap(NULL, (size_t)size, PROT_READ, MAP_PRIVATE, fd, 0);
    int cause = errno;
    close(fd);
    if (bytes == MAP_FAILED)
        return kvb_fail(err, KVB_E_IO, path, "cannot map %llu bytes: %s", (unsigned long long)size, strerror(cause));
    *map = (kvb_mapfile){.bytes = bytes, .size = (size_t)size};
    return KVB_OK;
}

void kvb_mapfile_close(kvb_mapfile *map)
{
    if (map->bytes != NULL)
        munmap((void *)(uintptr_t)map->bytes, map->size);
    *map = (kvb_mapfile){0};
}

/* Reads until `want` bytes are there or the file ends. */
static kvb_status read_up_to(int fd, const char *path, char *bytes, size_t want, size_t *got, kvb_error *err)
{
    *got = 0;
    while (*got < want) {
        size_t ask = want - *got < SSIZE_MAX ? want - *got : SSIZE_MAX;
        ssize_t n = read(fd, bytes + *got, ask);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return kvb_fail(err, KVB_E_IO, path, "cannot read at byte %zu: %s", *got, strerror(errno));
        if (n == 0)
            break;
        *got += (size_t)n;
    }
    return KVB_OK;
}

static kvb_status read_all(int fd, const char *path, char *bytes, size_t size, kvb_error *err)
{
    size_t got;
    kvb_status status = read_up_to(fd, path, bytes, size, &got, err);
    if (status == KVB_OK && got != size)
        return kvb_fail(err, KVB_E_IO, path, "ended after %zu of %zu bytes: it shrank while it was read", got, size);
    return status;
}

kvb_status kvb_read_file(const char *path, uint64_t limit, char **bytes, size_t *size, kvb_error *err)
{
    *bytes = NULL;
    *size = 0;
    int fd;
    uint64_t length;
    kvb_status status = open_regular(path, &fd, &length, err);
    if (status != KVB_OK)
        return status;
    char *buffer = NULL;
    if (length > limit) {
        status = kvb_fail(err, KVB_E_FORMAT, path, "has %llu bytes, at most %llu are accepted",
                          (unsigned long long)length, (unsigned long long)limit);
        goto out;
    }
    buffer = kvb_alloc_array((size_t)length + 1, 1);
    if (buffer == NULL) {
        status = kvb_fail_memory(err, path);
        goto out;
    }
    status = read_all(fd, path, buffer, (size_t)length, err);
    if (status != KVB_OK)
        goto out;
    buffer[length] = '\0';
    *bytes = buffer;
    *size = (size_t)length;
    buffer = NULL;
out:
    free(buffer);
    close(fd);
    return status;
}

kvb_status kvb_read_prefix(const char *path, void *bytes, size_t want, size_t *got, kvb_error *err)
{
    *got = 0;
    int fd;
    uint64_t length;
    kvb_status status = open_regular(path, &fd, &length, err);
    if (status != KVB_OK)
        return status;
    status = read_up_to(fd, path, bytes, want, got, err);
    close(fd);
    return status;
}
