/* Where everything of a capture lies: one plan for the data section of a `.kvc` file and for a capture in memory, which
 * holds the same bytes. Also the names of the tensors (spec/kvc-1.md). */
#ifndef KVB_CALIB_CAPTURE_LAYOUT_H
#define KVB_CALIB_CAPTURE_LAYOUT_H

#include "calib/capture.h"

/* In a file wide types come first, so that every tensor is aligned to its type. */
typedef enum kvb_kvc_part {
    KVB_KVC_WEIGHT_K, KVB_KVC_WEIGHT_V, KVB_KVC_MOMENT_RELATIVE, KVB_KVC_MOMENT_POST, KVB_KVC_SENSITIVITY_K,
    KVB_KVC_SENSITIVITY_V, KVB_KVC_KEYS, KVB_KVC_VALUES, KVB_KVC_GRADIENT_K, KVB_KVC_GRADIENT_V, KVB_KVC_QUERIES, KVB_KVC_QUERY_SUMS, KVB_KVC_QUERY_COUNT,
    KVB_KVC_PARTS,
} kvb_kvc_part;

/* Tensors that only some captures have; a set of bits. */
enum { KVB_KVC_SENSITIVITIES = 1, KVB_KVC_GRADIENTS = 2, KVB_KVC_WITH_QUERIES = 4 };

enum { KVB_KVC_NAME_SIZE = 64 };

typedef struct kvb_kvc_layout {
    const kvb_layer *layer; /* borrowed */
    uint32_t layers;
    uint64_t rows, query_rows; /* the second: of the queries, where they are there */
    uint32_t extras;  /* those that are there */
    uint64_t *offset; /* [layers][KVB_KVC_PARTS] into the data section; UINT64_MAX for tensors that are not there */
    uint64_t row_chunk, row_position; /* offsets */
    uint64_t data_size;
} kvb_kvc_layout;

/* KVB_E_USAGE where the sizes exceed 2^63 bytes, KVB_E_MEMORY. */
kvb_status kvb_kvc_layout_create(const kvb_layer *layer, uint32_t layers, uint64_t rows, uint64_t query_rows, uint32_t extras,
                                 kvb_kvc_layout *layout, kvb_error *err);
void kvb_kvc_layout_free(kvb_kvc_layout *layout);

static inline uint64_t kvb_kvc_offset(const kvb_kvc_layout *l, uint32_t layer, kvb_kvc_part part)
{
    return l->offset[(size_t)layer * KVB_KVC_PARTS + part];
}

/* "layers.3.weight_k" */
const char *kvb_kvc_name(uint32_t layer, kvb_kvc_part part, char name[KVB_KVC_NAME_SIZE]);
/* The last part of such names, by kvb_kvc_part. */
extern const char *const kvb_kvc_part_names[KVB_KVC_PARTS];
/* Shape of a part, its dims returned: [G], [G, n], [G, n, D], [H, query_rows, D], [G, D, D] or [2G, D(D+1)/2, 2]. */
uint32_t kvb_kvc_shape(const kvb_layer *layer, uint64_t rows, uint64_t query_rows, kvb_kvc_part part, uint64_t shape[3]);
/* Bytes of one element: 8, 4 or 2. */
uint32_t kvb_kvc_element(kvb_kvc_part part);
/* Whether the layout has such tensors at all. */
bool kvb_kvc_has(const kvb_kvc_layout *layout, kvb_kvc_part part);
/* Layers that a capture holds nothing of. */
static inline bool kvb_kvc_is_empty(const kvb_layer *layer)
{
    return layer->kind == KVB_LAYER_UNSUPPORTED;
}

/* The file's first bytes: length, JSON header, spaces up to a multiple of 64 that is at least `least` (0: as needed).
 * Free with free(). */
kvb_status kvb_kvc_header(const kvb_kvc_layout *layout, const char *meta_json, uint64_t least, uint8_t **bytes,
                          uint64_t *size, kvb_error *err);

/* Geometry as JSON: written into the header, and read back. */
char *kvb_kvc_geometry_write(const kvb_layer *layer, uint32_t layers); /* NULL: out of memory; free with free() */
kvb_status kvb_kvc_geometry_read(const char *text, const char *file, kvb_layer **layer, uint32_t *layers,
                                 kvb_error *err);
/* Frees what kvb_kvc_geometry_read or kvb_kvc_geometry_copy made, with the rope_factors. */
void kvb_kvc_geometry_free(kvb_layer *layer, uint32_t layers);
kvb_layer *kvb_kvc_geometry_copy(const kvb_layer *layer, uint32_t layers); /* NULL: out of memory */

#endif
