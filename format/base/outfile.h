/* Writing a file so that a reader sees the old one or the whole new one, never a part: a temporary file in the same
 * folder, write, fsync, close, rename, fsync of the folder. An abandoned or failed one leaves nothing behind. */
#ifndef KVB_BASE_OUTFILE_H
#define KVB_BASE_OUTFILE_H

#include <stddef.h>
#include <stdint.h>

#include "kvbook/status.h"

typedef struct kvb_outfile kvb_outfile;

kvb_status kvb_outfile_open(const char *path, kvb_outfile **out, kvb_error *err);
/* Appends; retries short writes and EINTR. */
kvb_status kvb_outfile_write(kvb_outfile *out, const void *bytes, size_t size, kvb_error *err);
/* Writes at an absolute offset (the file grows as needed) without moving the append position. */
kvb_status kvb_outfile_write_at(kvb_outfile *out, uint64_t offset, const void *bytes, size_t size, kvb_error *err);
/* Makes the file appear under its name; frees `out` whether it succeeds or not. */
kvb_status kvb_outfile_commit(kvb_outfile *out, kvb_error *err);
/* Removes the temporary file and frees; NULL is allowed. */
void kvb_outfile_abandon(kvb_outfile *out);
/* All of the above for bytes that are there at once. */
kvb_status kvb_write_file(const char *path, const void *bytes, size_t size, kvb_error *err);

#endif
