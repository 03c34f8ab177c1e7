/* Feeds files, and the files of folders, named on the command line to a fuzz target, as libFuzzer would. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "tests/fuzz/fuzz.h"
#include "tests/support/scratch.h"

/* How many inputs were run, or -1. */
static long replay_file(const char *path)
{
    size_t size;
    uint8_t *bytes = scratch_read(path, &size);
    if (bytes == NULL) {
        fprintf(stderr, "replay: cannot read %s\n", path);
        return -1;
    }
    /* A copy of the exact size, so that a sanitizer sees a read past the end. */
    uint8_t *exact = malloc(size > 0 ? size : 1);
    if (exact != NULL) {
        memcpy(exact, bytes, size);
        LLVMFuzzerTestOneInput(exact, size);
    }
    free(exact);
    free(bytes);
    return exact != NULL ? 1 : -1;
}

static long replay_folder(const char *folder)
{
    long count = 0;
    DIR *dir = opendir(folder);
    if (dir == NULL)
        return -1;
    for (struct dirent *e; count >= 0 && (e = readdir(dir)) != NULL;) {
        char path[512];
        if (e->d_name[0] == '.')
            continue;
        long n = replay_file(scratch_path(folder, e->d_name, path));
        count = n < 0 ? -1 : count + n;
    }
    closedir(dir);
    return count;
}

int main(int argc, char **argv)
{
    long total = 0;
    for (int i = 1; i < argc; i++) {
        struct stat st;
        long n = stat(argv[i], &st) == 0 && S_ISDIR(st.st_mode) ? replay_folder(argv[i]) : replay_file(argv[i]);
        if (n <= 0) {
            fprintf(stderr, "replay: %s: no input\n", argv[i]);
            return 1;
        }
        total += n;
    }
    printf("%ld inputs\n", total);
    return total > 0 ? 0 : 1;
}
