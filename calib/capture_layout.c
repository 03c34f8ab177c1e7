#include "calib/capture_layout.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/json.h"

enum { HEADER_ALIGNMENT = 64, LENGTH_BYTES = 8 };

const char *const kvb_kvc_part_names[KVB_KVC_PARTS] = {
    [KVB_KVC_QUERY_SUMS] = "query_sums",
    [KVB_KVC_QUERY_COUNT] = "query_count",
    [KVB_KVC_WEIGHT_K] = "weight_k",
    [KVB_KVC_WEIGHT_V] = "weight_v",
    [KVB_KVC_MOMENT_RELATIVE] = "moment_relative",
    [KVB_KVC_MOMENT_POST] = "moment_post",
    [KVB_KVC_SENSITIVITY_K] = "sensitivity_k",
    [KVB_KVC_SENSITIVITY_V] = "sensitivity_v",
    [KVB_KVC_KEYS] = "keys",
    [KVB_KVC_VALUES] = "values",
    [KVB_KVC_GRADIENT_K] = "gradient_k",
    [KVB_KVC_GRADIENT_V] = "gradient_v",
    [KVB_KVC_QUERIES] = "queries",
};

const char *kvb_kvc_name(uint32_t layer, kvb_kvc_part part, char name[KVB_KVC_NAME_SIZE])
{
    snprintf(name, KVB_KVC_NAME_SIZE, "layers.%u.%s", layer, kvb_kvc_part_names[part]);
    return name;
}

uint32_t kvb_kvc_shape(const kvb_layer *layer, uint64_t rows, uint64_t query_rows, kvb_kvc_part part, uint64_t shape[3])
{
    if (part == KVB_KVC_QUERY_SUMS) {
        shape[0] = 2 * (uint64_t)layer->kv_heads;
        shape[1] = kvb_triangle(layer->head_dim);
        shape[2] = 2;
        return 3;
    }
    if (part == KVB_KVC_QUERIES) {
        shape[0] = layer->heads;
        shape[1] = query_rows;
        shape[2] = layer->head_dim;
        return 3;
    }
    bool moment = part >= KVB_KVC_MOMENT_RELATIVE && part <= KVB_KVC_SENSITIVITY_V;
    shape[0] = layer->kv_heads;
    shape[1] = moment ? layer->head_dim : rows;
    shape[2] = layer->head_dim;
    return part == KVB_KVC_QUERY_COUNT ? 1 : part == KVB_KVC_WEIGHT_K || part == KVB_KVC_WEIGHT_V ? 2 : 3;
}

bool kvb_kvc_has(const kvb_kvc_layout *layout, kvb_kvc_part part)
{
    if (part == KVB_KVC_SENSITIVITY_K || part == KVB_KVC_SENSITIVITY_V)
        return (layout->extras & KVB_KVC_SENSITIVITIES) != 0;
    if (part == KVB_KVC_GRADIENT_K || part == KVB_KVC_GRADIENT_V)
        return (layout->extras & KVB_KVC_GRADIENTS) != 0;
    if (part == KVB_KVC_QUERIES)
        return (layout->extras & KVB_KVC_WITH_QUERIES) != 0;
    return true;
}

uint32_t kvb_kvc_element(kvb_kvc_part part)
{
    switch (part) {
    case KVB_KVC_KEYS:
    case KVB_KVC_VALUES:
    case KVB_KVC_GRADIENT_K:
    case KVB_KVC_GRADIENT_V:
    case KVB_KVC_QUERIES:
        return 2;
    case KVB_KVC_QUERY_SUMS:
    case KVB_KVC_QUERY_COUNT:
        return 8;
    default:
        return 4;
    }
}

/* Gives the next tensor its place; false where the sizes wrap. */
static bool place(kvb_kvc_layout *l, uint32_t layer, kvb_kvc_part part)
{
    uint64_t shape[3], bytes = kvb_kvc_element(part);
    uint32_t dims = kvb_kvc_shape(&l->layer[layer], l->rows, l->query_rows, part, shape);
    for (uint32_t i = 0; i < dims; i++)
        if (!kvb_mul_u64(bytes, shape[i], &bytes))
            return false;
    l->offset[(size_t)layer * KVB_KVC_PARTS + part] = l->data_size;
    return kvb_add_u64(l->data_size, bytes, &l->data_size) && l->data_size <= INT64_MAX;
}

static bool place_all(kvb_kvc_layout *l)
{
    uint64_t row_bytes;
    if (!kvb_mul_u64(l->rows, sizeof(uint32_t), &row_bytes) || row_bytes > INT64_MAX / 2)
        return false;
    l->row_chunk = 0;
    l->row_position = row_bytes;
    l->data_size = 2 * row_bytes;
    for (uint32_t element = 8; element >= 2; element /= 2)
        for (uint32_t i = 0; i < l->layers; i++)
            for (kvb_kvc_part part = 0; part < KVB_KVC_PARTS; part++)
                if (!kvb_kvc_is_empty(&l->layer[i]) && kvb_kvc_has(l, part) && kvb_kvc_element(part) == element &&
                    !place(l, i, part))
                    return false;
    return true;
}

kvb_status kvb_kvc_layout_create(const kvb_layer *layer, uint32_t layers, uint64_t rows, uint64_t query_rows, uint32_t extras,
                                 kvb_kvc_layout *layout, kvb_error *err)
{
    *layout = (kvb_kvc_layout){.layer = layer, .layers = layers, .rows = rows, .query_rows = query_rows, .extras = extras};
    layout->offset = kvb_alloc_array((size_t)layers * KVB_KVC_PARTS, sizeof *layout->offset);
    if (layout->offset == NULL)
        return kvb_fail_memory(err, "capture layout");
    memset(layout->offset, 0xff, (size_t)layers * KVB_KVC_PARTS * sizeof *layout->offset);
    if (place_all(layout))
        return KVB_OK;
    kvb_kvc_layout_free(layout);
    return kvb_fail(err, KVB_E_USAGE, "capture", "%" PRIu64 " rows of %u layers exceed 2^63 bytes; keep fewer rows",
                    rows, layers);
}

void kvb_kvc_layout_free(kvb_kvc_layout *layout)
{
    free(layout->offset);
    layout->offset = NULL;
}

uint64_t kvb_capture_row_bytes(const kvb_layer *geometry, uint32_t layers, bool gradients)
{
    const uint64_t tensors = gradients ? 4 : 2;
    uint64_t bytes = 2 * sizeof(uint32_t);
    for (uint32_t i = 0; i < layers; i++)
        if (!kvb_kvc_is_empty(&geometry[i]))
            bytes += geometry[i].kv_heads * (tensors * sizeof(uint16_t) * geometry[i].head_dim + 2 * sizeof(float));
    return bytes;
}

uint64_t kvb_capture_query_bytes(const kvb_layer *geometry, uint32_t layers)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < layers; i++)
        if (!kvb_kvc_is_empty(&geometry[i]))
            bytes += sizeof(uint16_t) * (uint64_t)geometry[i].heads * geometry[i].head_dim;
    return bytes;
}

static void put_tensor(kvb_json_writer *w, const char *name, const char *dtype, const uint64_t *shape, uint32_t dims,
                       uint64_t element, uint64_t offset)
{
    uint64_t size = element;
    kvb_json_begin_object(w, name);
    kvb_json_put_string(w, "dtype", dtype);
    kvb_json_begin_array(w, "shape");
    for (uint32_t i = 0; i < dims; i++) {
        kvb_json_put_u64(w, NULL, shape[i]);
        size *= shape[i];
    }
    kvb_json_end_array(w);
    kvb_json_begin_array(w, "data_offsets");
    kvb_json_put_u64(w, NULL, offset);
    kvb_json_put_u64(w, NULL, offset + size);
    kvb_json_end_array(w);
    kvb_json_end_object(w);
}

static void put_layer(kvb_json_writer *w, const kvb_kvc_layout *l, uint32_t layer)
{
    char name[KVB_KVC_NAME_SIZE];
    uint64_t shape[3];
    for (kvb_kvc_part part = 0; part < KVB_KVC_PARTS; part++) {
        if (!kvb_kvc_has(l, part))
            continue;
        uint32_t dims = kvb_kvc_shape(&l->layer[layer], l->rows, l->query_rows, part, shape), element = kvb_kvc_element(part);
        put_tensor(w, kvb_kvc_name(layer, part, name), element == 2 ? "F16" : element == 4 ? "F32" : "I64", shape, dims, element,
                   kvb_kvc_offset(l, layer, part));
    }
}

/* The JSON of the header, or NULL if out of memory. */
static const char *header_text(kvb_json_writer *w, const kvb_kvc_layout *l, const char *meta_json)
{
    char *geometry = kvb_kvc_geometry_write(l->layer, l->layers);
    if (geometry == NULL)
        return NULL;
    kvb_json_begin_object(w, NULL);
    kvb_json_begin_object(w, "__metadata__");
    kvb_json_put_string(w, "kvc.version", "1");
    kvb_json_put_string(w, "kvc.meta", meta_json);
    kvb_json_put_string(w, "kvc.geometry", geometry);
    kvb_json_end_object(w);
    put_tensor(w, "row_chunk", "U32", &l->rows, 1, 4, l->row_chunk);
    put_tensor(w, "row_position", "U32", &l->rows, 1, 4, l->row_position);
    for (uint32_t i = 0; i < l->layers; i++)
        if (!kvb_kvc_is_empty(&l->layer[i]))
            put_layer(w, l, i);
    kvb_json_end_object(w);
    free(geometry);
    return kvb_json_writer_text(w);
}

kvb_status kvb_kvc_header(const kvb_kvc_layout *layout, const char *meta_json, uint64_t least, uint8_t **bytes,
                          uint64_t *size, kvb_error *err)
{
    kvb_json_writer w = {.compact = true};
    kvb_status status = KVB_OK;
    const char *text = header_text(&w, layout, meta_json);
    *bytes = NULL;
    if (text == NULL) {
        status = kvb_fail_memory(err, "capture header");
        goto out;
    }
    size_t used = LENGTH_BYTES + strlen(text), whole = used < least ? (size_t)least : used;
    whole = (whole + HEADER_ALIGNMENT - 1) / HEADER_ALIGNMENT * HEADER_ALIGNMENT;
    *bytes = malloc(whole);
    if (*bytes == NULL) {
        status = kvb_fail_memory(err, "capture header");
        goto out;
    }
    for (unsigned i = 0; i < LENGTH_BYTES; i++)
        (*bytes)[i] = (uint8_t)((uint64_t)(whole - LENGTH_BYTES) >> (8 * i));
    memcpy(*bytes + LENGTH_BYTES, text, used - LENGTH_BYTES);
    memset(*bytes + used, ' ', whole - used);
    *size = whole;
out:
    kvb_json_writer_free(&w);
    return status;
}
