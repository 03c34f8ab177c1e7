#include "tests/support/scratch.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

char *scratch_create(void)
{
    const char *base = getenv("TMPDIR");
    char path[512];
    snprintf(path, sizeof path, "%s/kvb-test-XXXXXX", base != NULL ? base : "/tmp");
    return mkdtemp(path) != NULL ? strdup(path) : NULL;
}

const char *scratch_path(const char *folder, const char *name, char path[512])
{
    snprintf(path, 512, "%s/%s", folder, name);
    return path;
}

/* Visits all entries; counts them or removes them. */
static size_t each_entry(const char *folder, int remove_them)
{
    DIR *dir = opendir(folder);
    size_t count = 0;
    for (struct dirent *e; dir != NULL && (e = readdir(dir)) != NULL;) {
        char path[512];
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        count++;
        if (remove_them)
            remove(scratch_path(folder, e->d_name, path));
    }
    if (dir != NULL)
        closedir(dir);
    return count;
}

size_t scratch_count(const char *folder)
{
    return each_entry(folder, 0);
}

void scratch_remove(char *folder)
{
    if (folder == NULL)
        return;
    each_entry(folder, 1);
    rmdir(folder);
    free(folder);
}

int scratch_write(const char *path, const void *bytes, size_t size)
{
    FILE *f = fopen(path, "wb");
    if (f == NULL)
        return -1;
    size_t n = size > 0 ? fwrite(bytes, 1, size, f) : 0;
    return fclose(f) == 0 && n == size ? 0 : -1;
}

uint8_t *scratch_read(const char *path, size_t *size)
{
    *size = 0;
    FILE *f = fopen(path, "rb");
    if (f == NULL)
        return NULL;
    uint8_t *bytes = NULL;
    if (fseek(f, 0, SEEK_END) == 0) {
        long length = ftell(f);
        bytes = length >= 0 ? malloc((size_t)length + 1) : NULL;
        rewind(f);
        if (bytes != NULL)
            *size = fread(bytes, 1, (size_t)length, f);
    }
    fclose(f);
    return bytes;
}
