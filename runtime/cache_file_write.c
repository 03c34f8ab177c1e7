/* Saving caches: each layer of each prompt becomes a few sections, held until all prompts are there and the table before
 * them has its size. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/crc.h"
#include "format/base/fail.h"
#include "format/base/outfile.h"
#include "format/section_write.h"
#include "runtime/saved_cache.h"

enum { LEVEL = 6 }; /* of zlib */

typedef struct saved_section {
    kvb_entry entry;
    uint8_t *bytes; /* owned: as they will be stored */
} saved_section;

struct kvb_cache_writer {
    char *meta;
    bool compress;
    bool any, has_book; /* whether the fields after it are known */
    uint8_t book_id[32];
    kvb_policy policy;
    uint64_t seed;
    kvb_saved_layer *layer; /* [layers] */
    uint32_t layers, prompts;
    char **name; /* [prompts] */
    saved_section *section;
    uint32_t count, room;
};

/* --- what the file is for --- */

static void free_layers(kvb_saved_layer *layer, uint32_t layers)
{
    for (uint32_t i = 0; layer != NULL && i < layers; i++)
        free((void *)(uintptr_t)layer[i].rows);
    free(layer);
}

/* Row sizes of every layer of a cache, allocated; NULL if out of memory. */
static kvb_saved_layer *describe_layers(const kvb_cache *cache)
{
    kvb_saved_layer *layer = kvb_alloc_zeroed(cache->layers, sizeof *layer);
    for (uint32_t i = 0; layer != NULL && i < cache->layers; i++) {
        const kvb_layer *g = &cache->layer[i].geometry;
        kvb_saved_rows *rows = kvb_alloc_zeroed(g->kv_heads, sizeof *rows);
        layer[i] = (kvb_saved_layer){g->kv_heads, g->head_dim, cache->layer[i].has_codes, rows};
        if (rows == NULL) {
            free_layers(layer, cache->layers);
            return NULL;
        }
        for (uint32_t h = 0; h < g->kv_heads; h++)
            rows[h] = kvb_saved_rows_of(cache, i, h);
    }
    return layer;
}

static bool same_layers(const kvb_saved_layer *layer, const kvb_cache *cache)
{
    for (uint32_t i = 0; i < cache->layers; i++) {
        const kvb_layer *g = &cache->layer[i].geometry;
        if (layer[i].kv_heads != g->kv_heads || layer[i].head_dim != g->head_dim ||
            layer[i].coded != cache->layer[i].has_codes)
            return false;
    }
    return true;
}

/* --- the writer --- */

void kvb_cache_writer_options_init(kvb_cache_writer_options *options)
{
    *options = (kvb_cache_writer_options){.struct_size = sizeof *options, .meta_json = "{}"};
}

void kvb_saved_prompt_init(kvb_saved_prompt *prompt)
{
    *prompt = (kvb_saved_prompt){.struct_size = sizeof *prompt};
}

kvb_status kvb_cache_writer_create(const kvb_cache_writer_options *options, kvb_cache_writer **writer, kvb_error *err)
{
    if (writer == NULL)
        return kvb_fail(err, KVB_E_USAGE, "writer", "found NULL, expected where to put the writer");
    *writer = NULL;
    if (options == NULL || options->struct_size < sizeof *options || options->meta_json == NULL)
        return kvb_fail(err, KVB_E_USAGE, "options", "expected options that kvb_cache_writer_options_init() made, with a "
                        "meta_json");
    if (__BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__)
        return kvb_fail(err, KVB_E_USAGE, "kvb_cache_writer_create", "packed caches can be written on little-endian "
                        "machines only");
    kvb_error why = {0};
    kvb_status status = kvb_meta_check(options->meta_json, strlen(options->meta_json), "meta_json", &why);
    if (status != KVB_OK)
        return kvb_fail(err, status == KVB_E_MEMORY ? status : KVB_E_USAGE, why.where, "%s", why.message);
    kvb_cache_writer *w = calloc(1, sizeof *w);
    if (w != NULL && (w->meta = kvb_saved_copy(options->meta_json)) == NULL) {
        free(w);
        w = NULL;
    }
    if (w == NULL)
        return kvb_fail_memory(err, "writer of caches");
    w->compress = options->compress != 0;
    *writer = w;
    return KVB_OK;
}

static void drop_sections(kvb_cache_writer *w, uint32_t from)
{
    for (uint32_t i = from; i < w->count; i++)
        free(w->section[i].bytes);
    w->count = from;
}

void kvb_cache_writer_abandon(kvb_cache_writer *w)
{
    if (w == NULL)
        return;
    drop_sections(w, 0);
    for (uint32_t i = 0; i < w->prompts; i++)
        free(w->name[i]);
    free_layers(w->layer, w->layers);
    free(w->name);
    free(w->section);
    free(w->meta);
    free(w);
}

/* Takes `bytes` of `size`, also on failure. */
static kvb_status add_section(kvb_cache_writer *w, const char *type, uint32_t layer, uint32_t prompt, uint8_t *bytes,
                              size_t size, saved_section **added, kvb_error *err)
{
    if (bytes != NULL && w->count == w->room) {
        const uint32_t room = w->room < 64 ? 64 : 2 * w->room;
        saved_section *more = realloc(w->section, room * sizeof *more);
        if (more == NULL) {
            free(bytes);
            bytes = NULL;
        } else {
            w->section = more;
            w->room = room;
        }
    }
    if (bytes == NULL)
        return kvb_fail_memory(err, "a saved cache");
    saved_section *s = &w->section[w->count++];
    *s = (saved_section){.bytes = bytes};
    memcpy(s->entry.type, type, 4);
    s->entry.kind = KVB_SHARED;
    s->entry.layer = layer;
    s->entry.head = prompt;
    s->entry.dims = 1;
    s->entry.shape[0] = (uint32_t)size;
    kvb_entry_raw(&s->entry, bytes, size);
    if (added != NULL)
        *added = s;
    return KVB_OK;
}

/* A copy of `from` as a section of its own. */
static kvb_status add_copy(kvb_cache_writer *w, const char *type, uint32_t prompt, const void *from, size_t size,
                           saved_section **added, kvb_error *err)
{
    uint8_t *bytes = kvb_alloc_array(size, 1);
    if (bytes != NULL)
        memcpy(bytes, from, size);
    return add_section(w, type, KVB_SHARED, prompt, bytes, size, added, err);
}

/* Puts the zlib stream in the place of the section's bytes where it is smaller than what is there; takes it. */
static void use_if_smaller(saved_section *s, uint8_t *packed, size_t size, const uint8_t *raw, kvb_codec_id codec)
{
    if (size >= s->entry.stored_size) {
        free(packed);
        return;
    }
    uint8_t *fitted = realloc(packed, size);
    fitted = fitted != NULL ? fitted : packed;
    s->entry.raw_crc = kvb_crc_of(raw, (size_t)s->entry.raw_size);
    kvb_entry_packed(&s->entry, codec, fitted, size);
    free(s->bytes);
    s->bytes = fitted;
}

static kvb_status compress_section(saved_section *s, kvb_error *err)
{
    size_t size;
    uint8_t *packed = kvb_deflate(s->bytes, (size_t)s->entry.raw_size, LEVEL, &size);
    if (packed == NULL)
        return kvb_fail_memory(err, "a saved cache");
    use_if_smaller(s, packed, size, s->bytes, KVB_CODEC_ZLIB);
    return KVB_OK;
}

/* --- the content of a layer --- */

/* Rows hold what tokens have in common, columns what the codes of one group have: the smaller stream is kept. */
static kvb_status compress_rows(const kvb_cache_writer *w, uint32_t layer, uint32_t tokens, kvb_saved_section section,
                                saved_section *s, kvb_error *err)
{
    size_t size;
    uint8_t *packed = NULL, *planes = kvb_alloc_array((size_t)s->entry.raw_size, 1);
    if (planes != NULL) {
        kvb_saved_to_planes(&w->policy, w->layer + layer, tokens, section, s->bytes, planes);
        packed = kvb_deflate(planes, (size_t)s->entry.raw_size, LEVEL, &size);
    }
    kvb_status status = packed != NULL ? compress_section(s, err) : kvb_fail_memory(err, "a saved cache");
    if (status == KVB_OK)
        use_if_smaller(s, packed, size, planes, KVB_CODEC_PLANES);
    else
        free(packed);
    free(planes);
    return status;
}

static kvb_status save_section(kvb_cache_writer *w, const kvb_cache *cache, uint32_t layer, kvb_saved_section section,
                               kvb_error *err)
{
    const kvb_cache_layer *l = cache->layer + layer;
    const kvb_saved_counts n = kvb_saved_count(&w->policy, l->has_codes, l->length);
    const uint64_t size = kvb_saved_size(&w->policy, w->layer + layer, l->length, section);
    char problem[200];
    saved_section *s = NULL;
    if (size == 0)
        return KVB_OK;
    if (size > UINT32_MAX)
        return kvb_fail(err, KVB_E_USAGE, "cache", "layer %u has %llu bytes of one kind, a section holds at most %u", layer,
                        (unsigned long long)size, UINT32_MAX);
    uint8_t *bytes = kvb_alloc_array((size_t)size, 1);
    if (bytes != NULL)
        kvb_saved_pass(l, section, &n, l->length, &(kvb_saved_stream){.to = bytes});
    /* What the reader would refuse must never be written. */
    if (bytes != NULL &&
        kvb_saved_problem(&w->policy, w->layer + layer, l->length, section, bytes, problem, sizeof problem)) {
        free(bytes);
        return kvb_fail(err, KVB_E_CHECK, "cache", "layer %u: %s", layer, problem);
    }
    kvb_status status = add_section(w, kvb_saved_names[section], layer, w->prompts, bytes, (size_t)size, &s, err);
    return status == KVB_OK && w->compress ? compress_rows(w, layer, l->length, section, s, err) : status;
}

/* --- a prompt --- */

static kvb_status save_head(kvb_cache_writer *w, const kvb_cache *cache, const kvb_saved_prompt *p, kvb_error *err)
{
    const size_t name = strlen(p->name), size = KVB_SAVED_PROMPT_HEAD + cache->layers + name;
    uint8_t *bytes = kvb_alloc_array(size, 1), *at = bytes;
    if (bytes != NULL) {
        at = kvb_store_le(at, cache->layer[0].length, 4);
        at = kvb_store_le(at, name, 4);
        for (uint32_t i = 0; i < cache->layers; i++)
            *at++ = cache->layer[i].scored_length == cache->layer[i].length;
        memcpy(at, p->name, name);
    }
    return add_section(w, "PROM", KVB_SHARED, w->prompts, bytes, size, NULL, err);
}

static kvb_status save_ids(kvb_cache_writer *w, const uint32_t *ids, uint32_t count, kvb_error *err)
{
    saved_section *s = NULL;
    kvb_status status = add_copy(w, "toks", w->prompts, ids, count * sizeof *ids, &s, err);
    return status == KVB_OK && w->compress ? compress_section(s, err) : status;
}

static kvb_status save_hidden(kvb_cache_writer *w, const float *hidden, uint32_t count, kvb_error *err)
{
    saved_section *s = NULL;
    kvb_status status = add_copy(w, "last", w->prompts, hidden, count * sizeof *hidden, &s, err);
    if (status == KVB_OK) {
        s->entry.dtype = KVB_ELEMENT_F32;
        s->entry.shape[0] = count;
    }
    return status;
}

static kvb_status check_cache(const kvb_cache *cache, kvb_error *err)
{
    const uint32_t tokens = cache->layer[0].length;
    for (uint32_t i = 1; i < cache->layers; i++)
        if (cache->layer[i].length != tokens)
            return kvb_fail(err, KVB_E_USAGE, "cache", "layer 0 has %u tokens, layer %u %u: save it between tokens", tokens,
                            i, cache->layer[i].length);
    if (tokens < 1 || tokens > KVB_PROMPT_TOKENS_MOST)
        return kvb_fail(err, KVB_E_USAGE, "cache", "found %u tokens, expected 1..%d", tokens, KVB_PROMPT_TOKENS_MOST);
    return KVB_OK;
}

static kvb_status check_prompt(const kvb_cache_writer *w, const kvb_saved_prompt *p, kvb_error *err)
{
    char problem[200];
    if (p == NULL || p->struct_size < sizeof *p || p->name == NULL)
        return kvb_fail(err, KVB_E_USAGE, "prompt", "expected one that kvb_saved_prompt_init() made, with a name");
    if (kvb_saved_name_problem(p->name, strlen(p->name), problem, sizeof problem))
        return kvb_fail(err, KVB_E_USAGE, "prompt.name", "%s", problem);
    for (uint32_t i = 0; i < w->prompts; i++)
        if (strcmp(w->name[i], p->name) == 0)
            return kvb_fail(err, KVB_E_USAGE, "prompt.name", "found %s, which prompt %u has already", p->name, i);
    if (w->prompts >= KVB_MAX_PROMPTS)
        return kvb_fail(err, KVB_E_USAGE, "prompt", "the file has %u, as many as one may", w->prompts);
    if (p->hidden != NULL && (p->hidden_count < 1 || p->hidden_count > KVB_MAX_HIDDEN))
        return kvb_fail(err, KVB_E_USAGE, "prompt.hidden_count", "found %u, expected 1..%d", p->hidden_count,
                        KVB_MAX_HIDDEN);
    for (uint32_t i = 0; p->hidden != NULL && i < p->hidden_count; i++)
        if (!isfinite(p->hidden[i]))
            return kvb_fail(err, KVB_E_CHECK, "prompt.hidden", "number %u is %g, expected a finite one", i,
                            (double)p->hidden[i]);
    return KVB_OK;
}

/* The first cache says what the file is for, the others must agree. */
static kvb_status take_origin(kvb_cache_writer *w, const kvb_cache *cache, kvb_error *err)
{
    const kvb_policy policy = kvb_saved_policy_of(cache);
    if (!w->any) {
        w->layer = describe_layers(cache);
        if (w->layer == NULL)
            return kvb_fail_memory(err, "writer of caches");
        w->layers = cache->layers;
        w->any = true;
        w->has_book = cache->book != NULL;
        memset(w->book_id, 0, sizeof w->book_id);
        if (w->has_book)
            memcpy(w->book_id, kvb_book_id(cache->book), sizeof w->book_id);
        w->policy = policy;
        w->seed = cache->seed;
        return KVB_OK;
    }
    const bool same = w->has_book == (cache->book != NULL) && w->layers == cache->layers && w->seed == cache->seed &&
                      (!w->has_book || memcmp(w->book_id, kvb_book_id(cache->book), sizeof w->book_id) == 0) &&
                      same_layers(w->layer, cache) && kvb_saved_same_policy(&w->policy, &policy);
    return same ? KVB_OK
                : kvb_fail(err, KVB_E_MISMATCH, "cache", "has another book, policy, seed or geometry than the file's first: "
                           "save it in a file of its own");
}

/* A file that has no prompt yet may still be of any book. */
static void forget_origin(kvb_cache_writer *w)
{
    if (w->prompts > 0)
        return;
    free_layers(w->layer, w->layers);
    w->layer = NULL;
    w->layers = 0;
    w->any = false;
}

static kvb_status save_prompt(kvb_cache_writer *w, const kvb_cache *cache, const kvb_saved_prompt *p, kvb_error *err)
{
    kvb_status status = save_head(w, cache, p, err);
    if (status == KVB_OK && p->ids != NULL)
        status = save_ids(w, p->ids, cache->layer[0].length, err);
    if (status == KVB_OK && p->hidden != NULL)
        status = save_hidden(w, p->hidden, p->hidden_count, err);
    for (uint32_t i = 0; i < cache->layers; i++)
        for (int s = 0; status == KVB_OK && s < KVB_SAVED_SECTIONS; s++)
            status = save_section(w, cache, i, (kvb_saved_section)s, err);
    return status;
}

kvb_status kvb_cache_writer_add(kvb_cache_writer *w, const kvb_cache *cache, const kvb_saved_prompt *prompt,
                                kvb_error *err)
{
    if (w == NULL || cache == NULL)
        return kvb_fail(err, KVB_E_USAGE, "kvb_cache_writer_add", "found a NULL pointer");
    kvb_status status = check_prompt(w, prompt, err);
    if (status == KVB_OK)
        status = check_cache(cache, err);
    if (status == KVB_OK)
        status = kvb_saved_check_codes(cache, err);
    if (status == KVB_OK)
        status = take_origin(w, cache, err);
    if (status != KVB_OK)
        return status;
    const uint32_t before = w->count;
    char *name = kvb_saved_copy(prompt->name);
    char **names = realloc(w->name, (w->prompts + 1) * sizeof *names);
    w->name = names != NULL ? names : w->name;
    status = name != NULL && names != NULL ? save_prompt(w, cache, prompt, err) : kvb_fail_memory(err, "a saved cache");
    if (status != KVB_OK) {
        drop_sections(w, before);
        forget_origin(w);
        free(name);
        return status;
    }
    w->name[w->prompts++] = name;
    return KVB_OK;
}

/* --- the file --- */

static kvb_status add_meta(kvb_cache_writer *w, kvb_error *err)
{
    saved_section *s = NULL;
    kvb_status status = add_copy(w, "META", KVB_SHARED, w->meta, strlen(w->meta), &s, err);
    return status == KVB_OK && w->compress ? compress_section(s, err) : status;
}

static kvb_status add_origin(kvb_cache_writer *w, kvb_error *err)
{
    uint8_t *bytes = kvb_alloc_array(KVB_SAVED_ORIGIN, 1);
    if (bytes != NULL) {
        memcpy(bytes, w->book_id, sizeof w->book_id);
        uint8_t *at = kvb_store_policy(bytes + sizeof w->book_id, &w->policy);
        at = kvb_store_le(at, w->seed, 8);
        at = kvb_store_le(at, w->prompts, 4);
        kvb_store_le(at, 0, 4);
    }
    return add_section(w, "CACH", KVB_SHARED, KVB_SHARED, bytes, KVB_SAVED_ORIGIN, NULL, err);
}

static kvb_status add_geometry(kvb_cache_writer *w, kvb_error *err)
{
    size_t size = KVB_SAVED_GEOM_HEAD;
    for (uint32_t i = 0; i < w->layers; i++)
        size += KVB_SAVED_GEOM_LAYER + (size_t)w->layer[i].kv_heads * KVB_SAVED_GEOM_ROWS;
    uint8_t *bytes = kvb_alloc_array(size, 1), *at = bytes;
    if (bytes != NULL) {
        at = kvb_store_le(at, w->layers, 8);
        for (uint32_t i = 0; i < w->layers; i++) {
            at = kvb_store_le(at, w->layer[i].kv_heads, 4);
            at = kvb_store_le(at, w->layer[i].head_dim, 4);
            at = kvb_store_le(at, w->layer[i].coded, 8);
            for (uint32_t g = 0; g < w->layer[i].kv_heads; g++) {
                const kvb_saved_rows *r = w->layer[i].rows + g;
                at = kvb_store_le(at, r->code[KVB_KEY], 4);
                at = kvb_store_le(at, r->code[KVB_VALUE], 4);
                at = kvb_store_le(at, r->kept[KVB_KEY], 4);
                at = kvb_store_le(at, r->kept[KVB_VALUE], 4);
            }
        }
    }
    return add_section(w, "GEOM", KVB_SHARED, KVB_SHARED, bytes, size, NULL, err);
}

/* The three that describe the file go to the front. */
static kvb_status add_front(kvb_cache_writer *w, kvb_error *err)
{
    enum { FRONT = 3 };
    saved_section front[FRONT];
    kvb_status status = add_meta(w, err);
    if (status == KVB_OK)
        status = add_origin(w, err);
    if (status == KVB_OK)
        status = add_geometry(w, err);
    if (status != KVB_OK)
        return status;
    memcpy(front, w->section + w->count - FRONT, sizeof front);
    memmove(w->section + FRONT, w->section, (w->count - FRONT) * sizeof *w->section);
    memcpy(w->section, front, sizeof front);
    return KVB_OK;
}

/* Header and table as they will stand in the file; NULL if out of memory. */
static uint8_t *make_table(kvb_cache_writer *w, uint64_t *table_end, bool *fits)
{
    *table_end = KVB_HEADER_SIZE + (uint64_t)w->count * KVB_ENTRY_SIZE;
    uint64_t end = *table_end;
    *fits = w->count <= KVB_MAX_SECTIONS;
    for (uint32_t i = 0; *fits && i < w->count; i++)
        *fits = kvb_entry_place(&w->section[i].entry, &end);
    uint8_t *bytes = kvb_alloc_array((size_t)*table_end, 1), *at = bytes;
    if (bytes == NULL || !*fits)
        return bytes;
    at += KVB_HEADER_SIZE;
    for (uint32_t i = 0; i < w->count; i++)
        at = kvb_store_entry(at, &w->section[i].entry);
    kvb_store_header(bytes, KVB_PACK_MAGIC, end, w->count, bytes + KVB_HEADER_SIZE);
    return bytes;
}

static kvb_status write_sections(const kvb_cache_writer *w, kvb_outfile *out, uint64_t end, kvb_error *err)
{
    static const uint8_t zeros[KVB_SECTION_ALIGN];
    kvb_status status = KVB_OK;
    for (uint32_t i = 0; status == KVB_OK && i < w->count; i++) {
        const kvb_entry *e = &w->section[i].entry;
        status = kvb_outfile_write(out, zeros, (size_t)(e->offset - end), err);
        if (status == KVB_OK)
            status = kvb_outfile_write(out, w->section[i].bytes, (size_t)e->stored_size, err);
        end = e->offset + e->stored_size;
    }
    return status;
}

static kvb_status write_file(kvb_cache_writer *w, const char *path, kvb_error *err)
{
    uint64_t table_end;
    bool fits;
    kvb_outfile *out = NULL;
    kvb_status status;
    uint8_t *table = make_table(w, &table_end, &fits);
    if (table == NULL)
        status = kvb_fail_memory(err, path);
    else if (!fits)
        status = kvb_fail(err, KVB_E_USAGE, path, "would have over 2^20 sections or 16 GiB: save fewer prompts in a file");
    else
        status = kvb_outfile_open(path, &out, err);
    if (status == KVB_OK)
        status = kvb_outfile_write(out, table, (size_t)table_end, err);
    if (status == KVB_OK)
        status = write_sections(w, out, table_end, err);
    if (status == KVB_OK)
        status = kvb_outfile_commit(out, err);
    else
        kvb_outfile_abandon(out);
    free(table);
    return status;
}

kvb_status kvb_cache_writer_commit(kvb_cache_writer *w, const char *path, kvb_error *err)
{
    if (w == NULL || path == NULL) {
        kvb_cache_writer_abandon(w);
        return kvb_fail(err, KVB_E_USAGE, "kvb_cache_writer_commit", "found a NULL pointer");
    }
    kvb_status status = w->prompts > 0 ? add_front(w, err)
                                       : kvb_fail(err, KVB_E_USAGE, path, "there is no prompt to write: add one first");
    if (status == KVB_OK)
        status = write_file(w, path, err);
    kvb_cache_writer_abandon(w);
    return status;
}
