#include "model/gguf_place.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "model/dtype.h"

static kvb_status bad(const kvb_gguf *g, const kvb_tensor *t, kvb_error *err, const char *message)
{
    char where[300];
    snprintf(where, sizeof where, "%.170s, tensor \"%.64s\"", g->path, t->name);
    return kvb_fail(err, KVB_E_FORMAT, where, "%s", message);
}

static kvb_status copy_names(kvb_gguf *g, const gguf_info *infos, kvb_error *err)
{
    size_t total = 0; /* the names lie in the file, so that the sum cannot wrap */
    for (size_t i = 0; i < g->tensor_count; i++)
        total += infos[i].name_size + 1;
    g->names = kvb_alloc_array(total, 1);
    if (g->names == NULL)
        return kvb_fail_memory(err, "tensor names of a GGUF file");
    char *at = g->names;
    for (size_t i = 0; i < g->tensor_count; i++) {
        memcpy(at, infos[i].name, infos[i].name_size);
        at[infos[i].name_size] = '\0';
        g->tensors[i].name = at;
        at += infos[i].name_size + 1;
    }
    return KVB_OK;
}

/* Bytes of a tensor; 0 where the type is none of ggml's, so that its size cannot be known. */
static kvb_status size_tensor(const kvb_gguf *g, kvb_tensor *t, kvb_error *err)
{
    char message[200];
    const kvb_dtype_info *d = kvb_dtype_find(t->dtype);
    t->size = 0;
    if (d == NULL)
        return KVB_OK;
    if (t->shape[0] % d->elements != 0) {
        snprintf(message, sizeof message, "rows of %llu elements are not a multiple of a %s block of %u",
                 (unsigned long long)t->shape[0], d->name, d->elements);
        return bad(g, t, err, message);
    }
    uint64_t blocks = t->shape[0] / d->elements * t->shape[1] * t->shape[2] * t->shape[3]; /* checked when read */
    if (!kvb_mul_u64(blocks, d->bytes, &t->size))
        return bad(g, t, err, "has more bytes than 2^64");
    return KVB_OK;
}

static kvb_status place_tensor(const kvb_gguf *g, kvb_tensor *t, uint64_t offset, kvb_error *err)
{
    char message[200];
    uint64_t room = g->size > g->data_at ? g->size - g->data_at : 0;
    kvb_status status = size_tensor(g, t, err);
    if (status != KVB_OK)
        return status;
    if (offset % g->alignment != 0) {
        snprintf(message, sizeof message, "offset %llu is not a multiple of the alignment %llu",
                 (unsigned long long)offset, (unsigned long long)g->alignment);
        return bad(g, t, err, message);
    }
    if (offset > room || t->size > room - offset) {
        snprintf(message, sizeof message,
                 "%llu bytes at offset %llu do not fit in the file's %llu bytes of data: is the download complete?",
                 (unsigned long long)t->size, (unsigned long long)offset, (unsigned long long)room);
        return bad(g, t, err, message);
    }
    t->bytes = g->bytes + g->data_at + offset;
    return KVB_OK;
}

static int order_names(const void *a, const void *b)
{
    const kvb_tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

static int order_places(const void *a, const void *b)
{
    const kvb_tensor *const *x = a, *const *y = b;
    if ((*x)->bytes != (*y)->bytes)
        return (*x)->bytes < (*y)->bytes ? -1 : 1;
    return ((*x)->size > (*y)->size) - ((*x)->size < (*y)->size);
}

static kvb_status check_overlap(kvb_gguf *g, kvb_error *err)
{
    qsort(g->by_name, g->tensor_count, sizeof *g->by_name, order_places);
    for (size_t i = 1; i < g->tensor_count; i++) {
        const kvb_tensor *before = g->by_name[i - 1], *t = g->by_name[i];
        if (t->bytes == before->bytes || (uint64_t)(t->bytes - before->bytes) < before->size) {
            char message[200];
            snprintf(message, sizeof message, "overlaps tensor \"%.64s\"", before->name);
            return bad(g, t, err, message);
        }
    }
    return KVB_OK;
}

static kvb_status check_duplicates(kvb_gguf *g, kvb_error *err)
{
    qsort(g->by_name, g->tensor_count, sizeof *g->by_name, order_names);
    for (size_t i = 1; i < g->tensor_count; i++)
        if (strcmp(g->by_name[i - 1]->name, g->by_name[i]->name) == 0)
            return bad(g, g->by_name[i], err, "is in the file twice");
    return KVB_OK;
}

/* Nothing but padding may follow the last tensor; where a type's size is not known, nothing can be said. */
static kvb_status check_end(const kvb_gguf *g, kvb_error *err)
{
    uint64_t end = g->data_at;
    for (size_t i = 0; i < g->tensor_count; i++) {
        const kvb_tensor *t = &g->tensors[i];
        uint64_t tensor_end = (uint64_t)(t->bytes - g->bytes) + t->size;
        if (kvb_dtype_find(t->dtype) == NULL)
            return KVB_OK;
        end = tensor_end > end ? tensor_end : end;
    }
    if (g->size > end && g->size - end >= g->alignment)
        return kvb_fail(err, KVB_E_FORMAT, g->path, "%llu bytes follow the last tensor, which ends at byte %llu",
                        (unsigned long long)(g->size - end), (unsigned long long)end);
    return KVB_OK;
}

kvb_status kvb_gguf_place(kvb_gguf *g, const gguf_info *infos, kvb_error *err)
{
    if (!kvb_align_u64(g->meta_size, g->alignment, &g->data_at))
        return kvb_fail(err, KVB_E_FORMAT, g->path, "the tensor data would start beyond 2^64");
    g->tensors = kvb_alloc_array(g->tensor_count, sizeof *g->tensors);
    g->by_name = kvb_alloc_array(g->tensor_count, sizeof *g->by_name);
    if (g->tensors == NULL || g->by_name == NULL)
        return kvb_fail_memory(err, "tensor list of a GGUF file");
    for (size_t i = 0; i < g->tensor_count; i++) {
        g->tensors[i] = infos[i].tensor;
        g->by_name[i] = &g->tensors[i];
    }
    kvb_status s = copy_names(g, infos, err);
    for (size_t i = 0; s == KVB_OK && i < g->tensor_count; i++)
        s = place_tensor(g, &g->tensors[i], infos[i].offset, err);
    if (s == KVB_OK) s = check_overlap(g, err);
    if (s == KVB_OK) s = check_duplicates(g, err);
    if (s == KVB_OK) s = check_end(g, err);
    return s;
}
