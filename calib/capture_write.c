#include "calib/capture_sink.h"
#include "format/base/fail.h"

/* A part's array in a layer of the capture; moments go with their sums. */
static const void *array_of(const kvb_capture_layer *l, kvb_kvc_part part)
{
    switch (part) {
    case KVB_KVC_WEIGHT_K: return l->weight_k;
    case KVB_KVC_WEIGHT_V: return l->weight_v;
    case KVB_KVC_SENSITIVITY_K: return l->sensitivity[KVB_KEY];
    case KVB_KVC_SENSITIVITY_V: return l->sensitivity[KVB_VALUE];
    case KVB_KVC_KEYS: return l->keys;
    case KVB_KVC_VALUES: return l->values;
    case KVB_KVC_GRADIENT_K: return l->gradient[KVB_KEY];
    case KVB_KVC_GRADIENT_V: return l->gradient[KVB_VALUE];
    case KVB_KVC_QUERIES: return l->queries;
    default: return NULL;
    }
}

static bool is_moment(kvb_kvc_part part)
{
    return part == KVB_KVC_MOMENT_RELATIVE || part == KVB_KVC_MOMENT_POST || part == KVB_KVC_QUERY_SUMS || part == KVB_KVC_QUERY_COUNT;
}

static kvb_status write_layer(const kvb_capture *c, const kvb_kvc_layout *layout, kvb_capture_sink *sink, uint32_t layer, kvb_error *err)
{
    kvb_status status = kvb_capture_load(c, &layer, 1, err);
    if (status != KVB_OK)
        return status;
    const kvb_capture_layer *l = &c->layer[layer];
    char name[KVB_KVC_NAME_SIZE];
    if (l->query_sums == NULL || l->query_count == NULL)
        return kvb_fail(err, KVB_E_MISMATCH, kvb_kvc_name(layer, KVB_KVC_QUERY_SUMS, name), "is not in every capture: another engine wrote one; "
                        "give the captures to `kvbook train` as they are");
    for (kvb_kvc_part part = 0; part < KVB_KVC_PARTS && status == KVB_OK; part++) {
        if (!kvb_kvc_has(layout, part) || is_moment(part))
            continue;
        const void *bytes = array_of(l, part);
        status = bytes != NULL ? kvb_sink_write_part(sink, layer, part, bytes, err)
                               : kvb_fail(err, KVB_E_MISMATCH, kvb_kvc_name(layer, part, name), "is not in every capture, or not in every layer");
    }
    return status == KVB_OK ? kvb_sink_write_moments(sink, layer, l->query_sums, l->query_count, err) : status;
}

/* By the first layer that holds anything. */
static kvb_status find_extras(const kvb_capture *c, uint32_t *extras, kvb_error *err)
{
    uint32_t layer = 0;
    while (layer < c->layers && kvb_kvc_is_empty(&c->geometry[layer]))
        layer++;
    *extras = 0;
    if (layer == c->layers)
        return KVB_OK;
    kvb_status status = kvb_capture_load(c, &layer, 1, err);
    const kvb_capture_layer *l = &c->layer[layer];
    *extras |= l->sensitivity[KVB_KEY] != NULL ? KVB_KVC_SENSITIVITIES : 0;
    *extras |= l->gradient[KVB_KEY] != NULL ? KVB_KVC_GRADIENTS : 0;
    *extras |= l->queries != NULL ? KVB_KVC_WITH_QUERIES : 0;
    return status;
}

static kvb_status write_all(const kvb_capture *c, const kvb_kvc_layout *layout, kvb_capture_sink *sink, kvb_progress_fn progress, void *user,
                            kvb_error *err)
{
    const size_t places = (size_t)c->rows * sizeof *c->row_chunk;
    kvb_status status = kvb_sink_write(sink, layout->row_chunk, c->row_chunk, places, err);
    if (status == KVB_OK)
        status = kvb_sink_write(sink, layout->row_position, c->row_position, places, err);
    for (uint32_t l = 0; l < c->layers && status == KVB_OK; l++) {
        if (progress != NULL && progress(user, "merge", l, c->layers) != 0)
            return kvb_fail(err, KVB_E_CANCELLED, "merge", "stopped at layer %u of %u", l, c->layers);
        if (!kvb_kvc_is_empty(&c->geometry[l]))
            status = write_layer(c, layout, sink, l, err);
    }
    return status;
}

kvb_status kvb_capture_write(const kvb_capture *c, const char *path, kvb_progress_fn progress, void *user, kvb_error *err)
{
    kvb_kvc_layout layout = {0};
    kvb_capture_sink *sink = NULL;
    kvb_capture_store *none;
    uint32_t extras;
    if (c->row_chunk == NULL)
        return kvb_fail(err, KVB_E_MISMATCH, "row_chunk", "is not in the capture");
    kvb_status status = find_extras(c, &extras, err);
    if (status == KVB_OK)
        status = kvb_kvc_layout_create(c->geometry, c->layers, c->rows, c->query_rows, extras, &layout, err);
    if (status == KVB_OK)
        status = kvb_sink_to_file(&layout, path, c->meta_json, &sink, err);
    if (status == KVB_OK)
        status = write_all(c, &layout, sink, progress, user, err);
    if (status == KVB_OK)
        status = kvb_sink_finish(sink, c->meta_json, &none, err);
    else
        kvb_sink_abandon(sink);
    kvb_kvc_layout_free(&layout);
    return status;
}
