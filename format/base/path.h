/* Names of files. */
#ifndef KVB_BASE_PATH_H
#define KVB_BASE_PATH_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* folder/name[end]: allocated; NULL if out of memory. */
static inline char *kvb_join_path(const char *folder, const char *name, const char *end)
{
    const size_t size = strlen(folder) + strlen(name) + strlen(end) + 2;
    char *path = malloc(size);
    if (path != NULL)
        snprintf(path, size, "%s/%s%s", folder, name, end);
    return path;
}

/* What follows the last slash: folders are the user's business, and differ between machines. */
static inline const char *kvb_base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

#endif
