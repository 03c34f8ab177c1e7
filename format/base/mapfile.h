/* A whole file mapped read-only. Whoever truncates the file while it is mapped kills the reader (SIGBUS), which is the
 * price of opening many gigabytes at once. */
#ifndef KVB_BASE_MAPFILE_H
#define KVB_BASE_MAPFILE_H

#include <stddef.h>
#include <stdint.h>

#include "kvbook/status.h"

typedef struct kvb_mapfile {
    const uint8_t *bytes; /* NULL where not open */
    size_t size;
} kvb_mapfile;

/* Refuses anything but a non-empty regular file, without blocking on a FIFO. KVB_E_IO where it cannot be opened or is
 * no regular file, KVB_E_FORMAT where it is empty. */
kvb_status kvb_mapfile_open(kvb_mapfile *map, const char *path, kvb_error *err);
/* Closing a zeroed kvb_mapfile is allowed. */
void kvb_mapfile_close(kvb_mapfile *map);

/* The whole of a regular file as allocated bytes with a NUL after them, aligned to 64; free with free(). */
kvb_status kvb_read_file(const char *path, uint64_t limit, char **bytes, size_t *size, kvb_error *err);

/* The first `want` bytes of a regular file, or fewer where it is shorter: to tell file types apart cheaply. */
kvb_status kvb_read_prefix(const char *path, void *bytes, size_t want, size_t *got, kvb_error *err);

#endif
