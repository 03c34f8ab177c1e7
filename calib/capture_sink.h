/* Where a run puts what it captured: into memory, or into the data section of a `.kvc` file. Both hold the same
 * bytes. */
#ifndef KVB_CALIB_CAPTURE_SINK_H
#define KVB_CALIB_CAPTURE_SINK_H

#include "calib/capture_layout.h"
#include "model/safetensors.h"

typedef struct kvb_capture_sink kvb_capture_sink;

/* `layout` must outlive the sink. meta_json: as it will be but for the digits of its counts. */
kvb_status kvb_sink_to_memory(const kvb_kvc_layout *layout, kvb_capture_sink **sink, kvb_error *err);
kvb_status kvb_sink_to_file(const kvb_kvc_layout *layout, const char *path, const char *meta_json,
                            kvb_capture_sink **sink, kvb_error *err);
/* Bytes at an offset of the data section, inside it. Threads may write at the same time where their bytes do not overlap. */
kvb_status kvb_sink_write(kvb_capture_sink *sink, uint64_t offset, const void *bytes, size_t size, kvb_error *err);
/* All of a tensor. */
kvb_status kvb_sink_write_part(kvb_capture_sink *sink, uint32_t layer, kvb_kvc_part part, const void *bytes, kvb_error *err);
/* The sums of a layer's queries, [2][G][D(D+1)/2] over queries [G], and both means of them. */
kvb_status kvb_sink_write_moments(kvb_capture_sink *sink, uint32_t layer, const kvb_exact *sums, const uint64_t *queries,
                                  kvb_error *err);
/* Frees the sink whether it succeeds or not. Memory: *store is the capture. File: it appears, and *store is NULL. */
kvb_status kvb_sink_finish(kvb_capture_sink *sink, const char *meta_json, kvb_capture_store **store, kvb_error *err);
/* Drops everything; NULL is allowed. */
void kvb_sink_abandon(kvb_capture_sink *sink);

/* What a joined capture loads its layers with (capture_join.c). */
typedef struct kvb_joined kvb_joined;

/* What kvb_capture_view() looks into, and what it owns. */
struct kvb_capture_store {
    kvb_capture view;
    kvb_layer *geometry;
    kvb_capture_layer *layer;
    char *meta;
    uint8_t *data;         /* of a capture in memory */
    kvb_safetensors *file; /* of one in a file */
    kvb_joined *joined;    /* of one made of several */
};
void kvb_joined_free(kvb_joined *joined); /* NULL is allowed */

/* Copies geometry and meta; all tensors NULL. */
kvb_status kvb_store_create(const kvb_layer *geometry, uint32_t layers, const char *meta_json,
                            kvb_capture_store **store, kvb_error *err);

#endif
