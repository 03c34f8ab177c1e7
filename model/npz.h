/* NPZ: numpy's archive of arrays, a zip file whose members are stored, not compressed, each an array in numpy's own form.
 * Archives of more than 4 GiB (zip64) are neither written nor read. */
#ifndef KVB_MODEL_NPZ_H
#define KVB_MODEL_NPZ_H

#include <stddef.h>
#include <stdint.h>

#include "format/base/outfile.h"

enum { KVB_NPZ_MOST_DIMS = 4, KVB_NPZ_NAME = 64 };

/* ---- writing */

typedef struct kvb_npz_member {
    char name[KVB_NPZ_NAME];
    uint32_t crc, size, offset; /* of the member in the archive, its header of numpy's included */
} kvb_npz_member;

/* Zeroed but for `out` and `path`, which stands in errors. */
typedef struct kvb_npz_writer {
    kvb_outfile *out;
    const char *path;
    kvb_npz_member *member;
    size_t count, room;
    uint64_t at;
} kvb_npz_writer;

/* One array: `descr` as numpy spells it ("<f2"), `shape` slowest first, `size` its bytes. KVB_E_USAGE where the archive outgrows zip. */
kvb_status kvb_npz_add(kvb_npz_writer *w, const char *name, const char *descr, uint32_t dims, const uint64_t *shape, const void *bytes,
                       uint64_t size, kvb_error *err);
/* The directory; the caller commits the file. */
kvb_status kvb_npz_finish(kvb_npz_writer *w, kvb_error *err);
void kvb_npz_writer_free(kvb_npz_writer *w);

/* ---- reading */

typedef struct kvb_npz kvb_npz;

typedef struct kvb_npz_array {
    char name[KVB_NPZ_NAME];
    const uint8_t *bytes; /* of the numbers, in the archive */
    uint64_t size;
} kvb_npz_array;

/* Over bytes that outlive the reader; `name` stands for the path in errors. KVB_E_FORMAT where anything in the directory, a checksum or a
 * header of numpy's is wrong, or a member is compressed. Types and shapes are not looked at. */
kvb_status kvb_npz_open_memory(const void *bytes, size_t size, const char *name, kvb_npz **npz, kvb_error *err);
void kvb_npz_close(kvb_npz *npz);
size_t kvb_npz_count(const kvb_npz *npz);
/* NULL where there is none. */
const kvb_npz_array *kvb_npz_find(const kvb_npz *npz, const char *name);

#endif
