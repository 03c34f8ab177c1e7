/* Preloaded into the command (LD_PRELOAD): one system call of its own fails as the environment asks.
 * KVB_FAULT=CALL:N:WHAT, the N-th call (from 1) of open, read, mmap, pwrite, fsync, close, rename, mkdir or flock fails with EIO, ENOSPC,
 * ENOMEM or EINTR, or (read and pwrite) is short. KVB_FAULT_COUNT=FILE: at the end each call's count goes there. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { OPEN, READ, MMAP, PWRITE, FSYNC, CLOSE, RENAME, MKDIR, FLOCK, CALLS };
enum { NOTHING = 0, SHORT = -1 };
static const char *const names[CALLS] = {"open", "read", "mmap", "pwrite", "fsync", "close", "rename", "mkdir", "flock"};
static atomic_ulong count[CALLS];

/* The function that this one stands before; POSIX, not C, has pointers to functions out of dlsym(). */
#define REAL(name, result, ...) (__extension__(result(*)(__VA_ARGS__)) dlsym(RTLD_NEXT, name))

/* What the call at hand is to do: NOTHING special, SHORT, or an errno. */
static int fault(int call)
{
    static const struct {
        const char *name;
        int what;
    } kinds[] = {{"EIO", EIO}, {"ENOSPC", ENOSPC}, {"ENOMEM", ENOMEM}, {"EINTR", EINTR}, {"SHORT", SHORT}};
    const unsigned long now = atomic_fetch_add(&count[call], 1) + 1;
    const char *wanted = getenv("KVB_FAULT");
    char name[16], what[16];
    unsigned long n;
    if (wanted == NULL || sscanf(wanted, "%15[a-z]:%lu:%15s", name, &n, what) != 3 || strcmp(name, names[call]) != 0 || n != now)
        return NOTHING;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(kinds[i].name, what) == 0)
            return kinds[i].what;
    return NOTHING;
}

#define FAIL(call, value)                                                                                              \
    const int what = fault(call);                                                                                      \
    if (what > 0) {                                                                                                    \
        errno = what;                                                                                                  \
        return value;                                                                                                  \
    }

int open(const char *path, int flags, ...)
{
    mode_t mode = 0;
    FAIL(OPEN, -1)
    if (flags & O_CREAT) {
        va_list args;
        va_start(args, flags);
        mode = va_arg(args, mode_t);
        va_end(args);
    }
    return REAL("open", int, const char *, int, mode_t)(path, flags, mode);
}

ssize_t read(int fd, void *to, size_t size)
{
    FAIL(READ, -1)
    return REAL("read", ssize_t, int, void *, size_t)(fd, to, what == SHORT && size > 1 ? size / 2 : size);
}

void *mmap(void *at, size_t size, int prot, int flags, int fd, off_t offset)
{
    if (fd >= 0) { /* of a file */
        FAIL(MMAP, MAP_FAILED)
    }
    return REAL("mmap", void *, void *, size_t, int, int, int, off_t)(at, size, prot, flags, fd, offset);
}

ssize_t pwrite(int fd, const void *from, size_t size, off_t offset)
{
    FAIL(PWRITE, -1)
    return REAL("pwrite", ssize_t, int, const void *, size_t, off_t)(fd, from, what == SHORT && size > 1 ? size / 2 : size, offset);
}

int fsync(int fd)
{
    FAIL(FSYNC, -1)
    return REAL("fsync", int, int)(fd);
}

/* A close that fails has closed. */
int close(int fd)
{
    const int done = REAL("close", int, int)(fd);
    FAIL(CLOSE, -1)
    return done;
}

int rename(const char *from, const char *to)
{
    FAIL(RENAME, -1)
    return REAL("rename", int, const char *, const char *)(from, to);
}

int mkdir(const char *path, mode_t mode)
{
    FAIL(MKDIR, -1)
    return REAL("mkdir", int, const char *, mode_t)(path, mode);
}

int flock(int fd, int how)
{
    FAIL(FLOCK, -1)
    return REAL("flock", int, int, int)(fd, how);
}

__attribute__((destructor)) static void tell(void)
{
    const char *path = getenv("KVB_FAULT_COUNT");
    FILE *file = path != NULL ? fopen(path, "w") : NULL;
    if (file == NULL)
        return;
    for (int i = 0; i < CALLS; i++)
        fprintf(file, "%s %lu\n", names[i], atomic_load(&count[i]));
    fclose(file);
}
