/* The bytes of `.kvb` version 1 as constants and parsed forms, for its reader and its writer, and of `.kvp` where it has the
 * same shell. spec/kvb-1.md and spec/kvp-1.md explain. */
#ifndef KVB_FORMAT_KVB_LAYOUT_H
#define KVB_FORMAT_KVB_LAYOUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kvbook/book.h"

#define KVB_MAGIC "\x89KVB\r\n\x1a\n"
#define KVB_PACK_MAGIC "\x89KVP\r\n\x1a\n"
#define KVB_SHARED UINT32_MAX /* a section that belongs to no one layer, head or kind */

enum {
    KVB_FILE_MAJOR = 1,
    KVB_FILE_MINOR = 0,
    KVB_MAGIC_SIZE = 8,
    KVB_HEADER_SIZE = 128,
    KVB_ENTRY_SIZE = 96,
    KVB_SECTION_ALIGN = 256,
    KVB_BYTE_ORDER = 0x01020304,
    KVB_ORDER_OFFSET = 48, /* of the byte-order tag in the header */

    KVB_GEOM_HEAD = 8,
    KVB_GEOM_RECORD = 64,
    KVB_POLICY_SIZE = 32,
    KVB_QUALITY_VALUES = 4,
    KVB_SCALING_HEAD = 32, /* of a SCAL section, before its levels */
    KVB_GROUPS_HEAD = 16,  /* of a GRPS section, before its clips */
    KVB_POOL_BYTES = 16,   /* of a POOL section */
    KVB_MAX_SPILL = 4096,
};

/* Limits. */
enum {
    KVB_MAX_HEADER = 4096,
    KVB_MAX_ENTRY = 4096,
    KVB_MAX_SECTIONS = 1 << 20,
    KVB_MAX_META = 1 << 20,
    KVB_MAX_LAYERS = 1024,
    KVB_MAX_HEADS = 1024,
    KVB_MAX_HEAD_DIM = 1024,
    KVB_MAX_CENTROIDS = 65536, /* also of the sums of an additive codebook */
    KVB_MAX_STAGES = 8,
    KVB_MAX_CHANNELS = 256,
    KVB_MAX_ROPE_BLOCK = 1 << 20,
    KVB_MAX_SCALED_BITS = 8,
    KVB_MAX_TOKEN_GROUP = 1024,
    KVB_MAX_CLIP = 16,
};
#define KVB_MAX_FILE ((uint64_t)16 << 30)

/* Planes, in packed caches only: zlib of rows whose bytes were put in order of columns. */
typedef enum kvb_codec_id { KVB_CODEC_RAW = 0, KVB_CODEC_ZLIB = 1, KVB_CODEC_PLANES = 2 } kvb_codec_id;
typedef enum kvb_element { KVB_ELEMENT_BYTE = 0, KVB_ELEMENT_F16 = 1, KVB_ELEMENT_F32 = 2 } kvb_element;

typedef struct kvb_header {
    uint16_t major, minor;
    uint32_t header_size;
    uint64_t file_size;
    uint32_t incompatible, compatible;
    uint64_t table_offset;
    uint32_t sections, entry_size;
    uint32_t table_crc;
    uint8_t id[32];
} kvb_header;

/* One row of the section table. */
typedef struct kvb_entry {
    char type[5]; /* NUL-terminated here */
    uint16_t codec, dtype;
    uint32_t kind, layer, head; /* KVB_SHARED where it does not apply */
    uint32_t first_group, groups, channels, centroids; /* centroids: of each stage */
    uint32_t dims, shape[4];
    uint64_t offset, stored_size, raw_size;
    uint32_t stored_crc, raw_crc;
} kvb_entry;

/* Bytes of one element; 0 for an unknown dtype. */
uint32_t kvb_element_size(uint32_t dtype);
/* What layer, policy and codebook rules a geometry breaks: a sentence in `problem`, or false where all is well. Readers
 * and the writer share these rules. */
bool kvb_layer_problem(const kvb_layer *layer, char *problem, size_t size);
bool kvb_policy_problem(const kvb_policy *policy, char *problem, size_t size);
/* stages 1: plain; centroids: of each stage. */
bool kvb_shape_problem(uint32_t head_dim, uint32_t channels, uint32_t stages, uint32_t centroids, char *problem,
                       size_t size);
/* Groups of a block of tokens that share scales, or of a token. */
uint32_t kvb_scaling_groups(const kvb_scaling *scaling, uint32_t head_dim);
/* Where group i of them ends, in the order of its lists if it has them. */
uint32_t kvb_scaling_group_end(const kvb_scaling *scaling, uint32_t i);
/* The lists and clips of a scaling included. */
bool kvb_scaling_problem(const kvb_scaling *scaling, uint32_t head_dim, uint32_t levels, char *problem, size_t size);
/* META is an object by the rules of format/base/json.h, begins with '{' and fits its limit. */
kvb_status kvb_meta_check(const char *text, uint64_t size, const char *where, kvb_error *err);

#endif
