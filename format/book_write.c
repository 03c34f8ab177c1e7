/* Two passes: list the sections with their sizes, then fill one image. Centroids are converted straight into it. */
#include "format/book_write.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/half.h"
#include "format/book_reader.h"
#include "format/book_spec.h"
#include "format/section_write.h"

/* A section on its way: its entry and where its bytes come from. */
typedef struct section {
    kvb_entry entry;
    uint8_t *bytes;         /* made in advance, owned; or NULL: */
    const float *floats[2]; /* stored one after the other, as halves if the dtype says so */
    size_t counts[2];
} section;

typedef struct writer {
    const kvb_book_spec *spec;
    section *section;
    uint32_t count;
    uint8_t *image;
    size_t size;
    kvb_error *err;
} writer;

/* Little-endian bytes, appended. */
typedef struct bytes {
    uint8_t *at;
} bytes;

static void put(bytes *b, uint64_t value, unsigned width)
{
    b->at = kvb_store_le(b->at, value, width);
}

static void put_f64(bytes *b, double value)
{
    b->at = kvb_store_f64(b->at, value);
}

static void put_f32(bytes *b, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    put(b, bits, 4);
}

/* What is not a number, such as an error relative to no variance, is unknown; unknown has one spelling. */
static void put_figure(bytes *b, float value)
{
    if (isfinite(value))
        put_f32(b, value);
    else
        put(b, 0x7FC00000, 4);
}

/* --- the list of sections --- */

/* The room was counted before: this cannot run over. */
static section *add(writer *w, const char *type, uint32_t kind, uint32_t layer, uint32_t head)
{
    section *s = &w->section[w->count++];
    memcpy(s->entry.type, type, sizeof s->entry.type);
    s->entry.kind = kind;
    s->entry.layer = layer;
    s->entry.head = head;
    return s;
}

static kvb_status use_bytes(writer *w, section *s, uint8_t *raw, size_t size)
{
    if (raw == NULL)
        return kvb_fail_memory(w->err, "book");
    s->bytes = raw;
    kvb_entry_raw(&s->entry, raw, size);
    return KVB_OK;
}

/* Compresses a section made by use_bytes() where that makes it smaller. */
static kvb_status compress_section(writer *w, section *s)
{
    size_t size;
    uint8_t *packed = kvb_deflate(s->bytes, (size_t)s->entry.raw_size, 9, &size);
    if (packed == NULL)
        return kvb_fail_memory(w->err, "book");
    if (size >= s->entry.raw_size) {
        free(packed);
        return KVB_OK;
    }
    free(s->bytes);
    s->bytes = packed;
    kvb_entry_packed(&s->entry, KVB_CODEC_ZLIB, packed, size);
    return KVB_OK;
}

/* A section of bytes that belongs to the whole book. */
static kvb_status add_blob(writer *w, const char *type, uint8_t *raw, size_t size)
{
    section *s = add(w, type, KVB_SHARED, KVB_SHARED, KVB_SHARED);
    s->entry.dims = 1;
    s->entry.shape[0] = (uint32_t)size;
    return use_bytes(w, s, raw, size);
}

static kvb_status add_meta(writer *w)
{
    size_t size = strlen(w->spec->meta_json);
    uint8_t *raw = kvb_alloc_array(size, 1);
    if (raw != NULL)
        memcpy(raw, w->spec->meta_json, size);
    kvb_status status = add_blob(w, "META", raw, size);
    return status == KVB_OK && w->spec->compress ? compress_section(w, &w->section[w->count - 1]) : status;
}

static void put_layer(bytes *b, const kvb_layer *l)
{
    put(b, l->heads, 4);
    put(b, l->kv_heads, 4);
    put(b, l->head_dim, 4);
    put(b, l->kind, 4);
    put(b, l->sliding_window, 4);
    put(b, l->frame, 4);
    put(b, l->rope_block, 4);
    put(b, l->rope_style, 4);
    put(b, l->rope_dims, 4);
    put(b, 0, 4);
    put_f64(b, l->rope_style == KVB_ROPE_NONE ? 0 : l->rope_base);
    put_f64(b, l->attention_scale);
    put(b, 0, 8);
}

static kvb_status add_geometry(writer *w)
{
    size_t size = KVB_GEOM_HEAD + (size_t)w->spec->layers * KVB_GEOM_RECORD;
    uint8_t *raw = kvb_alloc_array(size, 1);
    if (raw != NULL) {
        bytes b = {raw};
        put(&b, w->spec->layers, 4);
        put(&b, KVB_GEOM_RECORD, 4);
        for (uint32_t i = 0; i < w->spec->layers; i++)
            put_layer(&b, &w->spec->layer[i]);
    }
    return add_blob(w, "GEOM", raw, size);
}

static kvb_status add_policy(writer *w)
{
    uint8_t *raw = kvb_alloc_array(KVB_POLICY_SIZE, 1);
    if (raw != NULL)
        kvb_store_policy(raw, &w->spec->policy);
    return add_blob(w, "POLC", raw, KVB_POLICY_SIZE);
}

/* A section of one or two float arrays that stay where they are until the image is filled. */
static section *add_floats(writer *w, const char *type, uint32_t kind, uint32_t layer, uint32_t head, uint32_t dtype)
{
    section *s = add(w, type, kind, layer, head);
    s->entry.dtype = (uint16_t)dtype;
    return s;
}

static void set_source(section *s, unsigned i, const float *floats, size_t count)
{
    s->floats[i] = floats;
    s->counts[i] = count;
    s->entry.raw_size += (uint64_t)count * kvb_element_size(s->entry.dtype);
    s->entry.stored_size = s->entry.raw_size;
}

static void set_shape(section *s, uint32_t dims, uint32_t a, uint32_t b, uint32_t c)
{
    s->entry.dims = dims;
    s->entry.shape[0] = a;
    s->entry.shape[1] = b;
    s->entry.shape[2] = c;
}

/* [S][K][d], or [S][M][Km][d] of an additive codebook */
static void set_code_shape(section *s, uint32_t groups, const kvb_book_part *p)
{
    if (kvb_part_stages(p) == 1) {
        set_shape(s, 3, groups, p->centroids, p->channels);
        return;
    }
    set_shape(s, 4, groups, p->stages, p->centroids);
    s->entry.shape[3] = p->channels;
}

static void add_rope(writer *w, uint32_t layer)
{
    const kvb_layer *l = &w->spec->layer[layer];
    if (l->rope_factors == NULL)
        return;
    section *s = add_floats(w, "ROPE", KVB_SHARED, layer, KVB_SHARED, KVB_ELEMENT_F32);
    set_shape(s, 1, l->rope_dims / 2, 0, 0);
    set_source(s, 0, l->rope_factors, l->rope_dims / 2);
}

static kvb_status add_quality(writer *w, const kvb_book_part *p, uint32_t groups, const kvb_entry *of)
{
    size_t size = (size_t)groups * KVB_QUALITY_VALUES * 4;
    section *s = add_floats(w, "qual", of->kind, of->layer, of->head, KVB_ELEMENT_F32);
    set_shape(s, 2, groups, KVB_QUALITY_VALUES, 0);
    uint8_t *raw = kvb_alloc_array(size, 1);
    if (raw != NULL) {
        bytes b = {raw};
        for (uint32_t i = 0; i < groups; i++) {
            put_figure(&b, p->quality[i].train_error);
            put_figure(&b, p->quality[i].heldout_error);
            put_figure(&b, p->quality[i].usage);
            put_figure(&b, p->quality[i].entropy);
        }
    }
    kvb_status status = use_bytes(w, s, raw, size);
    return status == KVB_OK && w->spec->compress ? compress_section(w, s) : status;
}

/* CODE or FINE */
static section *add_centroids(writer *w, const char *type, const kvb_book_part *p, uint32_t kind, uint32_t layer,
                              uint32_t head)
{
    uint32_t n = w->spec->layer[layer].head_dim, groups = n / p->channels;
    section *s = add_floats(w, type, kind, layer, head, KVB_ELEMENT_F16);
    s->entry.groups = groups;
    s->entry.channels = p->channels;
    s->entry.centroids = p->centroids;
    set_code_shape(s, groups, p);
    set_source(s, 0, p->table, (size_t)n * kvb_part_stages(p) * p->centroids);
    return s;
}

/* SCAL: a head of 32 bytes, then the levels as half floats, then fixed offsets and scales. */
static kvb_status add_scaling(writer *w, const kvb_book_part *p, uint32_t kind, uint32_t layer, uint32_t head)
{
    const kvb_scaling *scaling = p->scaling;
    const uint32_t levels = p->table != NULL ? p->centroids : 0;
    const uint32_t fixed = scaling->form == KVB_SCALE_FIXED ? 2 * w->spec->layer[layer].head_dim : 0;
    const size_t size = KVB_SCALING_HEAD + sizeof(uint16_t) * ((size_t)levels + fixed);
    section *s = add(w, "SCAL", kind, layer, head);
    set_shape(s, 1, (uint32_t)size, 0, 0);
    uint8_t *raw = kvb_alloc_array(size, 1);
    if (raw != NULL) {
        bytes b = {raw};
        put(&b, (uint64_t)__builtin_ctz(p->centroids), 4);
        put(&b, scaling->axis, 4);
        put(&b, scaling->form, 4);
        put(&b, scaling->group, 4);
        put_f32(&b, scaling->clip);
        put(&b, levels, 4);
        put(&b, scaling->outliers, 4);
        put(&b, 0, 4);
        for (uint32_t k = 0; k < levels; k++)
            put(&b, kvb_half_from_float(p->table[k]), 2);
        for (uint32_t i = 0; i < fixed; i++)
            put(&b, scaling->fixed[i], 2);
    }
    return use_bytes(w, s, raw, size);
}

/* GRPS, where a scaling has more to say of its groups: a head of 16 bytes, clips, lists of channels. */
static kvb_status add_groups(writer *w, const kvb_scaling *scaling, uint32_t kind, uint32_t layer, uint32_t head)
{
    const uint32_t dim = w->spec->layer[layer].head_dim, order = scaling->lists > 0 ? dim : 0;
    const uint32_t clips = scaling->clips != NULL ? kvb_scaling_groups(scaling, dim) : 0;
    const size_t size = KVB_GROUPS_HEAD + clips * sizeof(float) + (order + scaling->lists) * sizeof(uint16_t);
    if (scaling->store == KVB_STORE_HALF && scaling->lists == 0 && clips == 0)
        return KVB_OK;
    section *s = add(w, "GRPS", kind, layer, head);
    set_shape(s, 1, (uint32_t)size, 0, 0);
    uint8_t *raw = kvb_alloc_array(size, 1);
    if (raw != NULL) {
        bytes b = {raw};
        put(&b, scaling->store, 4);
        put(&b, scaling->lists, 4);
        put(&b, clips, 4);
        put(&b, 0, 4);
        for (uint32_t i = 0; i < clips; i++)
            put_f32(&b, scaling->clips[i]);
        for (uint32_t i = 0; i < order; i++)
            put(&b, scaling->order[i], 2);
        for (uint32_t i = 0; i < scaling->lists; i++)
            put(&b, scaling->end[i], 2);
    }
    return use_bytes(w, s, raw, size);
}

/* POOL, where keys ask for one: both pools' tokens, and 8 bytes of 0. */
static kvb_status add_pool(writer *w, const kvb_scaling *scaling, uint32_t kind, uint32_t layer, uint32_t head)
{
    if (scaling->pool == 0)
        return KVB_OK;
    section *s = add(w, "POOL", kind, layer, head);
    set_shape(s, 1, KVB_POOL_BYTES, 0, 0);
    uint8_t *raw = kvb_alloc_array(KVB_POOL_BYTES, 1);
    if (raw != NULL) {
        bytes b = {raw};
        put(&b, scaling->pool, 4);
        put(&b, scaling->spill, 4);
        put(&b, 0, 4);
        put(&b, 0, 4);
    }
    return use_bytes(w, s, raw, KVB_POOL_BYTES);
}

static kvb_status add_part(writer *w, uint32_t layer, uint32_t head, uint32_t kind)
{
    const kvb_book_part *p = kvb_spec_part(w->spec, layer, head, kind);
    uint32_t n = w->spec->layer[layer].head_dim;
    size_t square = (size_t)n * n;
    if (p->mean != NULL) {
        section *s = add_floats(w, "MEAN", kind, layer, head, KVB_ELEMENT_F32);
        set_shape(s, 1, n, 0, 0);
        set_source(s, 0, p->mean, n);
    }
    if (p->forward != NULL) {
        section *s = add_floats(w, "XFRM", kind, layer, head, KVB_ELEMENT_F32);
        set_shape(s, 3, 2, n, n);
        set_source(s, 0, p->forward, square);
        set_source(s, 1, p->inverse, square);
    }
    if (p->scaling != NULL) {
        kvb_status status = add_scaling(w, p, kind, layer, head);
        if (status == KVB_OK)
            status = add_groups(w, p->scaling, kind, layer, head);
        return status == KVB_OK ? add_pool(w, p->scaling, kind, layer, head) : status;
    }
    section *s = add_centroids(w, "CODE", p, kind, layer, head);
    if (p->fine != NULL)
        add_centroids(w, "FINE", p->fine, kind, layer, head);
    return p->quality != NULL ? add_quality(w, p, s->entry.groups, &s->entry) : KVB_OK;
}

static kvb_status add_parts(writer *w, uint32_t layer)
{
    const kvb_layer *l = &w->spec->layer[layer];
    kvb_status status = KVB_OK;
    if (l->kind == KVB_LAYER_UNSUPPORTED)
        return KVB_OK;
    for (uint32_t n = 0; status == KVB_OK && n < 2 * l->kv_heads; n++)
        status = add_part(w, layer, n / 2, n % 2);
    return status;
}

static kvb_status list_sections(writer *w)
{
    size_t most = 3;
    for (uint32_t i = 0; i < w->spec->layers; i++)
        most += 1 + 2 * (size_t)w->spec->layer[i].kv_heads * 5;
    w->section = kvb_alloc_zeroed(most, sizeof *w->section);
    if (w->section == NULL)
        return kvb_fail_memory(w->err, "book");
    kvb_status status = add_meta(w);
    if (status == KVB_OK)
        status = add_geometry(w);
    if (status == KVB_OK)
        status = add_policy(w);
    for (uint32_t i = 0; i < w->spec->layers; i++)
        add_rope(w, i);
    for (uint32_t i = 0; status == KVB_OK && i < w->spec->layers; i++)
        status = add_parts(w, i);
    return status;
}

/* --- the image --- */

static kvb_status place_sections(writer *w)
{
    uint64_t end = KVB_HEADER_SIZE + (uint64_t)w->count * KVB_ENTRY_SIZE;
    bool fits = w->count <= KVB_MAX_SECTIONS;
    for (uint32_t i = 0; fits && i < w->count; i++)
        fits = kvb_entry_place(&w->section[i].entry, &end);
    if (!fits)
        return kvb_fail(w->err, KVB_E_USAGE, "book", "would have over 2^20 sections or 16 GiB");
    w->size = (size_t)end;
    w->image = kvb_alloc_zeroed(w->size, 1);
    return w->image != NULL ? KVB_OK : kvb_fail_memory(w->err, "book");
}

static void fill_section(writer *w, section *s)
{
    uint8_t *to = w->image + s->entry.offset;
    if (s->bytes != NULL) {
        memcpy(to, s->bytes, (size_t)s->entry.stored_size);
        return;
    }
    for (unsigned i = 0; i < 2 && s->floats[i] != NULL; i++) {
        if (s->entry.dtype == KVB_ELEMENT_F16)
            kvb_half_from_floats((uint16_t *)(void *)to, s->floats[i], s->counts[i]);
        else
            memcpy(to, s->floats[i], s->counts[i] * sizeof(float));
        to += s->counts[i] * kvb_element_size(s->entry.dtype);
    }
    kvb_entry_raw(&s->entry, w->image + s->entry.offset, (size_t)s->entry.stored_size);
}

/* What the reader would refuse must never be written. */
static kvb_status read_back(const writer *w)
{
    kvb_book *book = calloc(1, sizeof *book);
    if (book == NULL)
        return kvb_fail_memory(w->err, "book");
    book->bytes = w->image;
    book->size = w->size;
    kvb_status status = kvb_book_parse(book, "the book to write", false, w->err);
    kvb_book_close(book);
    if (status == KVB_E_FORMAT) {
        status = KVB_E_CHECK;
        if (w->err != NULL)
            w->err->code = status;
    }
    return status;
}

static kvb_status build_image(writer *w)
{
    kvb_status status = place_sections(w);
    if (status != KVB_OK)
        return status;
    uint8_t *entry = w->image + KVB_HEADER_SIZE;
    for (uint32_t i = 0; i < w->count; i++) {
        fill_section(w, &w->section[i]);
        entry = kvb_store_entry(entry, &w->section[i].entry);
    }
    kvb_store_header(w->image, KVB_MAGIC, w->size, w->count, w->image + KVB_HEADER_SIZE);
    return read_back(w);
}

kvb_status kvb_book_build(const kvb_book_spec *spec, uint8_t **image, size_t *size, kvb_error *err)
{
    *image = NULL;
    *size = 0;
    kvb_status status = kvb_spec_check(spec, err);
    if (status != KVB_OK)
        return status;
    writer w = {.spec = spec, .err = err};
    status = list_sections(&w);
    if (status == KVB_OK)
        status = build_image(&w);
    for (uint32_t i = 0; i < w.count; i++)
        free(w.section[i].bytes);
    free(w.section);
    if (status != KVB_OK) {
        free(w.image);
        return status;
    }
    *image = w.image;
    *size = w.size;
    return KVB_OK;
}
