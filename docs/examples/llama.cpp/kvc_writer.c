#include "kvc_writer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The file is written in two passes over the same list of tensors: what the header says of each, then the bytes. */
typedef struct writer {
    FILE *file;
    char *header;
    size_t length, room, at;
    int bad;
} writer;

static void add(writer *w, const char *text)
{
    const size_t size = strlen(text);
    if (w->length + size + 1 > w->room) {
        char *more = realloc(w->header, 2 * w->room + size + 1024);
        if (more == NULL) {
            w->bad = 1;
            return;
        }
        w->header = more;
        w->room = 2 * w->room + size + 1024;
    }
    memcpy(w->header + w->length, text, size + 1);
    w->length += size;
}

static void tensor(writer *w, int bytes_too, const char *name, const char *dtype, const char *shape, const void *data, size_t size)
{
    char text[256];
    if (bytes_too) {
        w->bad |= fwrite(data, 1, size, w->file) != size;
        return;
    }
    snprintf(text, sizeof text, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}", name, dtype, shape, w->at, w->at + size);
    add(w, text);
    w->at += size;
}

/* Tensors of 4-byte elements first: each begins at a multiple of its element's size. */
static void all_tensors(writer *w, int bytes_too, const kvc_layer *layers, uint32_t count, uint64_t n, const uint32_t *chunk, const uint32_t *position)
{
    char name[64], shape[64];
    snprintf(shape, sizeof shape, "%llu", (unsigned long long)n);
    tensor(w, bytes_too, "row_chunk", "U32", shape, chunk, n * 4);
    tensor(w, bytes_too, "row_position", "U32", shape, position, n * 4);
    for (int kind = 0; kind < 4; kind++)
        for (uint32_t i = 0; i < count; i++) {
            static const char *const names[] = {"weight_k", "weight_v", "keys", "values"};
            const void *data[] = {layers[i].weight_k, layers[i].weight_v, layers[i].keys, layers[i].values};
            const uint64_t elements = layers[i].kv_heads * n * (kind < 2 ? 1 : layers[i].head_dim);
            if (data[kind] == NULL)
                continue;
            snprintf(name, sizeof name, "layers.%u.%s", i, names[kind]);
            snprintf(shape, sizeof shape, kind < 2 ? "%u,%llu" : "%u,%llu,%u", layers[i].kv_heads, (unsigned long long)n, layers[i].head_dim);
            tensor(w, bytes_too, name, kind < 2 ? "F32" : "F16", shape, data[kind], elements * (kind < 2 ? 4 : 2));
        }
}

/* The geometry is JSON in a string of JSON: its quotes are escaped. */
static void add_geometry(writer *w, const kvc_layer *layers, uint32_t count)
{
    char text[512], rope[160];
    add(w, "{\"__metadata__\":{\"kvc.version\":\"1\",\"kvc.geometry\":\"[");
    for (uint32_t i = 0; i < count; i++) {
        const kvc_layer *l = &layers[i];
        rope[0] = 0;
        if (strcmp(l->rope_style, "none") != 0)
            snprintf(rope, sizeof rope, ",\\\"rope_dims\\\":%u,\\\"rope_base\\\":%.17g", l->rope_dims, l->rope_base);
        snprintf(text, sizeof text,
                 "%s{\\\"heads\\\":%u,\\\"kv_heads\\\":%u,\\\"head_dim\\\":%u,\\\"kind\\\":\\\"full\\\",\\\"rope_style\\\":\\\"%s\\\"%s,"
                 "\\\"attention_scale\\\":%.17g}", i > 0 ? "," : "", l->heads, l->kv_heads, l->head_dim, l->rope_style, rope, l->attention_scale);
        add(w, text);
    }
    add(w, "]\"}");
}

static int write_file(writer *w, const kvc_layer *layers, uint32_t count, uint64_t n, const uint32_t *chunk, const uint32_t *position)
{
    add_geometry(w, layers, count);
    all_tensors(w, 0, layers, count, n, chunk, position);
    add(w, "}");
    while (!w->bad && (w->length + 8) % 64 != 0)
        add(w, " "); /* the data begins at a multiple of 64 */
    uint8_t size[8];
    for (int i = 0; i < 8; i++)
        size[i] = (uint8_t)((uint64_t)w->length >> 8 * i);
    if (w->bad || fwrite(size, 1, 8, w->file) != 8 || fwrite(w->header, 1, w->length, w->file) != w->length)
        return -1;
    all_tensors(w, 1, layers, count, n, chunk, position);
    return w->bad ? -1 : 0;
}

int kvc_write(const char *path, const kvc_layer *layers, uint32_t count, uint64_t rows, const uint32_t *chunk, const uint32_t *position)
{
    writer w = {0};
    char *temporary = malloc(strlen(path) + 6);
    int status = -1;
    if (temporary != NULL && (w.file = fopen(strcat(strcpy(temporary, path), ".part"), "wb")) != NULL) {
        status = write_file(&w, layers, count, rows, chunk, position);
        if (fclose(w.file) != 0 || status != 0 || rename(temporary, path) != 0) {
            status = -1;
            remove(temporary);
        }
    }
    free(w.header);
    free(temporary);
    return status;
}
