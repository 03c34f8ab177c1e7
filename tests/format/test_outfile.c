/* The atomic writer, also with every system call it makes failing in turn: the Makefile links this program with --wrap
 * for them. Whatever happens, the earlier file is whole and nothing else is in the folder. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "format/base/outfile.h"
#include "tests/support/cm.h"
#include "tests/support/scratch.h"

/* Which call fails next, and with what. */
static struct {
    const char *call;
    int error;     /* 0: a short write of one byte */
    int after;     /* so many calls succeed first */
    int remaining; /* so many then fail */
} fault;

static int strikes(const char *call)
{
    if (fault.call == NULL || strcmp(fault.call, call) != 0 || fault.remaining == 0)
        return 0;
    if (fault.after > 0) {
        fault.after--;
        return 0;
    }
    fault.remaining--;
    errno = fault.error;
    return 1;
}

ssize_t __real_pwrite(int fd, const void *bytes, size_t size, off_t offset);
ssize_t __wrap_pwrite(int fd, const void *bytes, size_t size, off_t offset);
ssize_t __wrap_pwrite(int fd, const void *bytes, size_t size, off_t offset)
{
    if (!strikes("pwrite"))
        return __real_pwrite(fd, bytes, size, offset);
    return fault.error != 0 ? -1 : __real_pwrite(fd, bytes, 1, offset);
}

int __real_fsync(int fd);
int __wrap_fsync(int fd);
int __wrap_fsync(int fd)
{
    return strikes("fsync") ? -1 : __real_fsync(fd);
}

/* As in Linux, the descriptor is gone even where close() fails. */
int __real_close(int fd);
int __wrap_close(int fd);
int __wrap_close(int fd)
{
    int failed = strikes("close"), error = errno;
    int result = __real_close(fd);
    if (failed)
        errno = error;
    return failed ? -1 : result;
}

int __real_rename(const char *from, const char *to);
int __wrap_rename(const char *from, const char *to);
int __wrap_rename(const char *from, const char *to)
{
    return strikes("rename") ? -1 : __real_rename(from, to);
}

static char *folder, path[512];

static int set_up(void **state)
{
    (void)state;
    memset(&fault, 0, sizeof fault);
    folder = scratch_create();
    if (folder == NULL)
        return 1;
    return scratch_write(scratch_path(folder, "book", path), "earlier", 7);
}

static int tear_down(void **state)
{
    (void)state;
    memset(&fault, 0, sizeof fault);
    scratch_remove(folder);
    return 0;
}

static void expect_file(const char *text)
{
    size_t size;
    uint8_t *bytes = scratch_read(path, &size);
    assert_non_null(bytes);
    assert_int_equal(size, strlen(text));
    assert_memory_equal(bytes, text, size);
    free(bytes);
    assert_int_equal(scratch_count(folder), 1);
}

/* Writes "new file" in two pieces. */
static kvb_status write_new(kvb_error *err)
{
    kvb_outfile *out;
    kvb_status status = kvb_outfile_open(path, &out, err);
    if (status != KVB_OK)
        return status;
    status = kvb_outfile_write(out, "new ", 4, err);
    if (status == KVB_OK)
        status = kvb_outfile_write(out, "file", 4, err);
    if (status == KVB_OK)
        return kvb_outfile_commit(out, err);
    kvb_outfile_abandon(out);
    return status;
}

static void test_replaces(void **state)
{
    (void)state;
    assert_int_equal(write_new(NULL), KVB_OK);
    expect_file("new file");
}

static void test_creates_with_the_users_mode(void **state)
{
    (void)state;
    struct stat st;
    unlink(path);
    mode_t mask = umask(027);
    assert_int_equal(write_new(NULL), KVB_OK);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0640);
    /* A replaced file keeps its own. */
    assert_int_equal(chmod(path, 0600), 0);
    assert_int_equal(write_new(NULL), KVB_OK);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    umask(mask);
}

static void test_write_at(void **state)
{
    (void)state;
    kvb_outfile *out;
    assert_int_equal(kvb_outfile_open(path, &out, NULL), KVB_OK);
    assert_int_equal(kvb_outfile_write(out, "ab", 2, NULL), KVB_OK);
    assert_int_equal(kvb_outfile_write_at(out, 5, "xy", 2, NULL), KVB_OK);
    assert_int_equal(kvb_outfile_write(out, "cde", 3, NULL), KVB_OK);
    assert_int_equal(kvb_outfile_write_at(out, 0, "A", 1, NULL), KVB_OK);
    assert_int_equal(kvb_outfile_write_at(out, UINT64_MAX, "A", 1, NULL), KVB_E_USAGE);
    assert_int_equal(kvb_outfile_commit(out, NULL), KVB_OK);
    expect_file("Abcdexy");
}

static void test_abandon(void **state)
{
    (void)state;
    kvb_outfile *out;
    assert_int_equal(kvb_outfile_open(path, &out, NULL), KVB_OK);
    assert_int_equal(kvb_outfile_write(out, "part", 4, NULL), KVB_OK);
    assert_int_equal(scratch_count(folder), 2);
    kvb_outfile_abandon(out);
    kvb_outfile_abandon(NULL);
    expect_file("earlier");
}

static void test_every_failing_call(void **state)
{
    (void)state;
    static const struct {
        const char *call;
        int error, after;
    } faults[] = {
        {"pwrite", ENOSPC, 0}, {"pwrite", EIO, 1}, {"fsync", EIO, 0}, {"close", EIO, 0}, {"rename", EACCES, 0},
    };
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        kvb_error err = {0};
        fault.call = faults[i].call, fault.error = faults[i].error, fault.after = faults[i].after;
        fault.remaining = 1;
        assert_int_equal(write_new(&err), KVB_E_IO);
        assert_int_equal(fault.remaining, 0);
        assert_non_null(strstr(err.message, strerror(faults[i].error)));
        expect_file("earlier");
    }
}

/* The folder's sync comes after the rename: the new file is there and whole, and the caller hears of the doubt. */
static void test_failing_folder_sync(void **state)
{
    (void)state;
    kvb_error err;
    fault.call = "fsync", fault.error = EIO, fault.after = 1, fault.remaining = 1;
    assert_int_equal(write_new(&err), KVB_E_IO);
    assert_non_null(strstr(err.message, "folder could not be synced"));
    expect_file("new file");
}

static void test_interrupted_and_short_writes(void **state)
{
    (void)state;
    fault.call = "pwrite", fault.error = EINTR, fault.remaining = 3;
    assert_int_equal(write_new(NULL), KVB_OK);
    expect_file("new file");
    fault.error = 0, fault.remaining = 5;
    assert_int_equal(write_new(NULL), KVB_OK);
    assert_int_equal(fault.remaining, 0);
    expect_file("new file");
    /* Of the file, and of its folder. */
    for (int after = 0; after < 2; after++) {
        fault.call = "fsync", fault.error = EINTR, fault.after = after, fault.remaining = 2;
        assert_int_equal(write_new(NULL), KVB_OK);
        assert_int_equal(fault.remaining, 0);
    }
    expect_file("new file");
}

/* The kernel's own refusal, not ours: a file size limit stands for a full disk. */
static void test_size_limit(void **state)
{
    (void)state;
    struct rlimit old, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    small = old;
    small.rlim_cur = 6;
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    kvb_error err = {0};
    kvb_status status = write_new(&err);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    signal(SIGXFSZ, handler);
    assert_int_equal(status, KVB_E_IO);
    assert_non_null(strstr(err.message, "at byte 6"));
    expect_file("earlier");
}

static void test_refused_names(void **state)
{
    (void)state;
    kvb_outfile *out;
    kvb_error err;
    char other[512];
    assert_int_equal(kvb_outfile_open(folder, &out, &err), KVB_E_IO);
    assert_null(out);
    assert_int_equal(kvb_outfile_open("/dev/full", &out, &err), KVB_E_IO);
    assert_non_null(strstr(err.message, "device"));
    assert_int_equal(kvb_outfile_open(scratch_path(folder, "none/book", other), &out, &err), KVB_E_IO);
    scratch_path(folder, "loop", other);
    assert_int_equal(symlink(other, other), 0);
    assert_int_equal(kvb_outfile_open(other, &out, &err), KVB_E_IO);
}

/* The link stays a link; what it points to is replaced. */
static void test_through_a_link(void **state)
{
    (void)state;
    char link[512];
    struct stat st;
    scratch_path(folder, "link", link);
    assert_int_equal(symlink("book", link), 0);
    kvb_outfile *out;
    assert_int_equal(kvb_outfile_open(link, &out, NULL), KVB_OK);
    assert_int_equal(kvb_outfile_write(out, "new", 3, NULL), KVB_OK);
    assert_int_equal(kvb_outfile_commit(out, NULL), KVB_OK);
    assert_int_equal(lstat(link, &st), 0);
    assert_true(S_ISLNK(st.st_mode));
    assert_int_equal(unlink(link), 0);
    expect_file("new");
}

/* Killed before the rename: a leftover lies there, but the earlier file is whole and the next writer succeeds. */
static void test_killed_writer(void **state)
{
    (void)state;
    pid_t child = fork();
    if (child == 0) {
        kvb_outfile *out;
        if (kvb_outfile_open(path, &out, NULL) == KVB_OK && kvb_outfile_write(out, "part", 4, NULL) == KVB_OK)
            kill(getpid(), SIGKILL);
        _exit(1);
    }
    int how;
    assert_int_equal(waitpid(child, &how, 0), child);
    assert_true(WIFSIGNALED(how));
    size_t size;
    uint8_t *bytes = scratch_read(path, &size);
    assert_non_null(bytes);
    assert_int_equal(size, 7);
    free(bytes);
    assert_int_equal(write_new(NULL), KVB_OK);
    assert_int_equal(scratch_count(folder), 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_replaces, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_creates_with_the_users_mode, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_write_at, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_abandon, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_every_failing_call, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_failing_folder_sync, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_interrupted_and_short_writes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_size_limit, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_refused_names, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_through_a_link, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_killed_writer, set_up, tear_down),
    };
    return cmocka_run_group_tests_name("outfile", tests, NULL, NULL);
}
