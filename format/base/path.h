/* Names of files. */
#ifndef KVB_BASE_PATH_H
#define KVB_BASE_PATH_H

#include <string.h>

/* What follows the last slash: folders are the user's business, and differ between machines. */
static inline const char *kvb_base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

#endif
