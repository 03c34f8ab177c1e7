#include "calib/capture_sink.h"

#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/outfile.h"

/* Counts in META are known at the end only: up to so many more digits. */
enum { META_SLACK = 256 };

struct kvb_capture_sink {
    const kvb_kvc_layout *layout;
    uint8_t *data;        /* memory */
    kvb_outfile *out;     /* file */
    uint64_t header_size; /* of the file */
};

static kvb_status create(const kvb_kvc_layout *layout, kvb_capture_sink **sink, kvb_error *err)
{
    *sink = calloc(1, sizeof **sink);
    if (*sink == NULL)
        return kvb_fail_memory(err, "capture");
    (*sink)->layout = layout;
    return KVB_OK;
}

kvb_status kvb_sink_to_memory(const kvb_kvc_layout *layout, kvb_capture_sink **sink, kvb_error *err)
{
    kvb_status status = create(layout, sink, err);
    if (status != KVB_OK)
        return status;
    (*sink)->data = kvb_alloc_array(layout->data_size, 1);
    if ((*sink)->data != NULL)
        return KVB_OK;
    kvb_sink_abandon(*sink);
    *sink = NULL;
    return kvb_fail(err, KVB_E_MEMORY, "capture",
                    "%llu bytes for the captured tokens cannot be had; keep fewer rows, or capture to a file",
                    (unsigned long long)layout->data_size);
}

kvb_status kvb_sink_to_file(const kvb_kvc_layout *layout, const char *path, const char *meta_json,
                            kvb_capture_sink **sink, kvb_error *err)
{
    uint8_t *header = NULL;
    kvb_status status = create(layout, sink, err);
    if (status != KVB_OK)
        return status;
    status = kvb_kvc_header(layout, meta_json, 0, &header, &(*sink)->header_size, err);
    free(header);
    (*sink)->header_size += META_SLACK;
    if (status == KVB_OK)
        status = kvb_outfile_open(path, &(*sink)->out, err);
    if (status != KVB_OK) {
        kvb_sink_abandon(*sink);
        *sink = NULL;
    }
    return status;
}

/* Much of this memory is touched here for the first time, which takes longer than the copying and is done by all threads. */
static void copy_by_all(uint8_t *to, const uint8_t *from, size_t size)
{
    const size_t piece = 1 << 20;
#pragma omp parallel for schedule(static) if (size > piece)
    for (size_t at = 0; at < size; at += piece)
        memcpy(to + at, from + at, size - at < piece ? size - at : piece);
}

kvb_status kvb_sink_write(kvb_capture_sink *sink, uint64_t offset, const void *bytes, size_t size, kvb_error *err)
{
    if (sink->out != NULL)
        return kvb_outfile_write_at(sink->out, sink->header_size + offset, bytes, size, err);
    copy_by_all(sink->data + offset, bytes, size);
    return KVB_OK;
}

kvb_status kvb_sink_write_part(kvb_capture_sink *sink, uint32_t layer, kvb_kvc_part part, const void *bytes, kvb_error *err)
{
    uint64_t shape[3], size = kvb_kvc_element(part);
    const uint32_t dims = kvb_kvc_shape(&sink->layout->layer[layer], sink->layout->rows, sink->layout->query_rows, part, shape);
    for (uint32_t i = 0; i < dims; i++)
        size *= shape[i];
    return kvb_sink_write(sink, kvb_kvc_offset(sink->layout, layer, part), bytes, (size_t)size, err);
}

kvb_status kvb_sink_write_moments(kvb_capture_sink *sink, uint32_t layer, const kvb_exact *sums, const uint64_t *queries,
                                  kvb_error *err)
{
    const kvb_layer *g = &sink->layout->layer[layer];
    const size_t square = (size_t)g->head_dim * g->head_dim;
    float *mean = kvb_alloc_array(g->kv_heads * square, sizeof *mean);
    if (mean == NULL)
        return kvb_fail_memory(err, "query moments");
    kvb_status status = kvb_sink_write_part(sink, layer, KVB_KVC_QUERY_SUMS, sums, err);
    if (status == KVB_OK)
        status = kvb_sink_write_part(sink, layer, KVB_KVC_QUERY_COUNT, queries, err);
    for (uint32_t which = 0; status == KVB_OK && which < 2; which++) {
        kvb_query_means(g, sums, queries, which, mean);
        status = kvb_sink_write_part(sink, layer, KVB_KVC_MOMENT_RELATIVE + which, mean, err);
    }
    free(mean);
    return status;
}

static kvb_status finish_file(kvb_capture_sink *sink, const char *meta_json, kvb_error *err)
{
    uint8_t *header = NULL;
    uint64_t size = 0;
    kvb_status status = kvb_kvc_header(sink->layout, meta_json, sink->header_size, &header, &size, err);
    if (status == KVB_OK && size != sink->header_size)
        status = kvb_fail(err, KVB_E_CHECK, "capture header", "grew from %llu to %llu bytes",
                          (unsigned long long)sink->header_size, (unsigned long long)size);
    if (status == KVB_OK)
        status = kvb_outfile_write_at(sink->out, 0, header, (size_t)size, err);
    free(header);
    if (status != KVB_OK)
        return status;
    kvb_outfile *out = sink->out;
    sink->out = NULL; /* commit frees it whatever happens */
    return kvb_outfile_commit(out, err);
}

static const void *tensor(const kvb_capture_sink *sink, uint32_t layer, kvb_kvc_part part)
{
    return kvb_kvc_has(sink->layout, part) ? sink->data + kvb_kvc_offset(sink->layout, layer, part) : NULL;
}

static void view_memory(const kvb_capture_sink *sink, kvb_capture_store *store)
{
    const kvb_kvc_layout *l = sink->layout;
    for (uint32_t i = 0; i < l->layers; i++)
        if (!kvb_kvc_is_empty(&l->layer[i]))
            store->layer[i] = (kvb_capture_layer){
                .keys = tensor(sink, i, KVB_KVC_KEYS),
                .values = tensor(sink, i, KVB_KVC_VALUES),
                .weight_k = tensor(sink, i, KVB_KVC_WEIGHT_K),
                .weight_v = tensor(sink, i, KVB_KVC_WEIGHT_V),
                .moment_relative = tensor(sink, i, KVB_KVC_MOMENT_RELATIVE),
                .moment_post = tensor(sink, i, KVB_KVC_MOMENT_POST),
                .query_sums = tensor(sink, i, KVB_KVC_QUERY_SUMS),
                .query_count = tensor(sink, i, KVB_KVC_QUERY_COUNT),
                .sensitivity = {tensor(sink, i, KVB_KVC_SENSITIVITY_K), tensor(sink, i, KVB_KVC_SENSITIVITY_V)},
                .gradient = {tensor(sink, i, KVB_KVC_GRADIENT_K), tensor(sink, i, KVB_KVC_GRADIENT_V)},
                .queries = tensor(sink, i, KVB_KVC_QUERIES),
            };
    store->view.rows = l->rows;
    store->view.query_rows = kvb_kvc_has(l, KVB_KVC_QUERIES) ? l->query_rows : 0;
    store->view.row_chunk = (const uint32_t *)(const void *)(sink->data + l->row_chunk);
    store->view.row_position = (const uint32_t *)(const void *)(sink->data + l->row_position);
}

kvb_status kvb_sink_finish(kvb_capture_sink *sink, const char *meta_json, kvb_capture_store **store, kvb_error *err)
{
    kvb_status status;
    *store = NULL;
    if (sink->out != NULL) {
        status = finish_file(sink, meta_json, err);
    } else {
        status = kvb_store_create(sink->layout->layer, sink->layout->layers, meta_json, store, err);
        if (status == KVB_OK) {
            view_memory(sink, *store);
            (*store)->data = sink->data;
            sink->data = NULL;
        }
    }
    kvb_sink_abandon(sink);
    return status;
}

void kvb_sink_abandon(kvb_capture_sink *sink)
{
    if (sink == NULL)
        return;
    kvb_outfile_abandon(sink->out);
    free(sink->data);
    free(sink);
}

kvb_status kvb_store_create(const kvb_layer *geometry, uint32_t layers, const char *meta_json,
                            kvb_capture_store **store, kvb_error *err)
{
    *store = calloc(1, sizeof **store);
    if (*store == NULL)
        return kvb_fail_memory(err, "capture");
    kvb_capture_store *s = *store;
    s->view.layers = layers;
    s->geometry = kvb_kvc_geometry_copy(geometry, layers);
    s->layer = kvb_alloc_zeroed(layers, sizeof *s->layer);
    s->meta = strdup(meta_json);
    if (s->geometry == NULL || s->layer == NULL || s->meta == NULL) {
        kvb_capture_close(s);
        *store = NULL;
        return kvb_fail_memory(err, "capture");
    }
    s->view.geometry = s->geometry;
    s->view.layer = s->layer;
    s->view.meta_json = s->meta;
    return KVB_OK;
}

void kvb_capture_close(kvb_capture_store *store)
{
    if (store == NULL)
        return;
    kvb_kvc_geometry_free(store->geometry, store->view.layers);
    kvb_safetensors_close(store->file);
    kvb_joined_free(store->joined);
    free(store->layer);
    free(store->meta);
    free(store->data);
    free(store);
}

const kvb_capture *kvb_capture_view(const kvb_capture_store *store)
{
    return &store->view;
}
