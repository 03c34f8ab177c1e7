/* Opening a file of caches: its table, what names book, rows and prompts, and where each section of a prompt is. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/cursor.h"
#include "format/base/fail.h"
#include "runtime/anchor_pool.h"
#include "runtime/saved_cache.h"

/* A byte of deflate stands for at most 1032; what claims more would only cost memory. */
enum { MOST_INFLATION = 1032 };

static const char known[][5] = {"META", "CACH", "GEOM", "PROM", "KEPT", "CODE", "ANCH", "GAIN", "toks", "last"};
static const kvb_file_kind kind = {.magic = KVB_PACK_MAGIC, .extension = "kvp", .owner = "prompt", .known = known,
                                   .known_count = sizeof known / sizeof *known, .most_codec = KVB_CODEC_PLANES,
                                   .lazy = true};

static bool is_newer(const kvb_reader *r)
{
    return r->header.minor > KVB_FILE_MINOR;
}

/* A section that there is once, in place. */
static kvb_status read_single(const kvb_reader *r, const char *type, const kvb_entry **e)
{
    kvb_status status = kvb_section_single(r, type, e);
    if (status == KVB_OK)
        status = kvb_section_expect_bytes(r, *e, false);
    return status == KVB_OK ? kvb_section_checksum(r, *e) : status;
}

/* META is the one of these that may be compressed. */
static kvb_status read_meta(kvb_cache_file *f, const kvb_reader *r)
{
    const kvb_entry *e;
    kvb_status status = kvb_section_single(r, "META", &e);
    if (status == KVB_OK)
        status = kvb_section_checksum(r, e);
    return status == KVB_OK ? kvb_section_meta(r, &f->meta, &f->meta_size) : status;
}

static kvb_status read_origin(kvb_cache_file *f, const kvb_reader *r)
{
    const kvb_entry *e;
    char problem[200];
    kvb_status status = read_single(r, "CACH", &e);
    if (status != KVB_OK)
        return status;
    if (is_newer(r) ? e->raw_size < KVB_SAVED_ORIGIN : e->raw_size != KVB_SAVED_ORIGIN)
        return kvb_section_fail(r, e, "%llu bytes, expected %d", (unsigned long long)e->raw_size, KVB_SAVED_ORIGIN);
    kvb_cursor c = kvb_cursor_over(kvb_section_bytes(r, e), KVB_SAVED_ORIGIN);
    memcpy(f->book_id, kvb_cursor_bytes(&c, sizeof f->book_id), sizeof f->book_id);
    for (size_t i = 0; i < sizeof f->book_id; i++)
        f->has_book |= f->book_id[i] != 0;
    bool reserved = kvb_cursor_policy(&c, &f->policy);
    f->seed = kvb_cursor_u64(&c);
    f->prompts = kvb_cursor_u32(&c);
    reserved |= kvb_cursor_u32(&c) != 0;
    if (kvb_policy_problem(&f->policy, problem, sizeof problem))
        return kvb_section_fail(r, e, "%s", problem);
    if (f->prompts < 1 || f->prompts > KVB_MAX_PROMPTS || f->prompts > r->header.sections)
        return kvb_section_fail(r, e, "%u prompts, expected 1..%d and a section of each", f->prompts, KVB_MAX_PROMPTS);
    if (reserved && !is_newer(r))
        return kvb_section_fail(r, e, "reserved bytes are not zero");
    return KVB_OK;
}

static kvb_status read_rows(const kvb_cache_file *f, const kvb_reader *r, const kvb_entry *e, uint32_t i,
                            const kvb_saved_layer *layer, kvb_cursor *c, kvb_saved_rows *rows)
{
    const uint32_t half = 2 * layer->head_dim;
    rows->code[KVB_KEY] = kvb_cursor_u32(c);
    rows->code[KVB_VALUE] = kvb_cursor_u32(c);
    rows->kept[KVB_KEY] = kvb_cursor_u32(c);
    rows->kept[KVB_VALUE] = kvb_cursor_u32(c);
    for (int k = 0; k < 2; k++) {
        const bool fine = layer->coded && f->policy.exact == KVB_EXACT_FINE;
        if (layer->coded ? rows->code[k] < 1 || rows->code[k] > half : rows->code[k] != 0)
            return kvb_section_fail(r, e, "layer %u: codes of %u bytes a token, expected %s", i, rows->code[k],
                                    layer->coded ? "at least 1 and no more than half floats" : "none in a layer without");
        if (fine ? rows->kept[k] < 1 || rows->kept[k] > half : rows->kept[k] != half)
            return kvb_section_fail(r, e, "layer %u: kept tokens of %u bytes, half floats have %u", i, rows->kept[k],
                                    half);
    }
    return KVB_OK;
}

static kvb_status read_layer(kvb_cache_file *f, const kvb_reader *r, const kvb_entry *e, uint32_t i, kvb_cursor *c)
{
    kvb_saved_layer *layer = f->layer + i;
    layer->kv_heads = kvb_cursor_u32(c);
    layer->head_dim = kvb_cursor_u32(c);
    const uint32_t coded = kvb_cursor_u32(c), reserved = kvb_cursor_u32(c);
    layer->coded = coded == 1;
    if (c->failed)
        return kvb_section_fail(r, e, "ends before layer %u", i);
    if (layer->kv_heads < 1 || layer->kv_heads > KVB_MAX_HEADS || layer->head_dim < 1 ||
        layer->head_dim > KVB_MAX_HEAD_DIM)
        return kvb_section_fail(r, e, "layer %u: %u KV heads of %u channels, expected 1..%d of 1..%d", i,
                                layer->kv_heads, layer->head_dim, KVB_MAX_HEADS, KVB_MAX_HEAD_DIM);
    if (coded > 1 || reserved != 0 || (coded == 1 && !f->has_book))
        return kvb_section_fail(r, e, "layer %u: coded is %u, expected 0, or 1 in a file with a book, and zeros after it",
                                i, coded);
    kvb_saved_rows *rows = kvb_alloc_zeroed(layer->kv_heads, sizeof *rows);
    layer->rows = rows;
    if (rows == NULL)
        return kvb_fail_memory(r->err, r->name);
    kvb_status status = KVB_OK;
    for (uint32_t g = 0; status == KVB_OK && g < layer->kv_heads; g++)
        status = c->size - c->at < KVB_SAVED_GEOM_ROWS ? kvb_section_fail(r, e, "ends within layer %u", i)
                                                       : read_rows(f, r, e, i, layer, c, rows + g);
    return status;
}

static kvb_status read_geometry(kvb_cache_file *f, const kvb_reader *r)
{
    const kvb_entry *e;
    kvb_status status = read_single(r, "GEOM", &e);
    if (status != KVB_OK)
        return status;
    kvb_cursor c = kvb_cursor_over(kvb_section_bytes(r, e), (size_t)e->raw_size);
    const uint32_t layers = kvb_cursor_u32(&c), reserved = kvb_cursor_u32(&c);
    if (c.failed || layers < 1 || layers > KVB_MAX_LAYERS || reserved != 0)
        return kvb_section_fail(r, e, "%u layers, expected 1..%d and zeros after the number", layers, KVB_MAX_LAYERS);
    f->layer = kvb_alloc_zeroed(layers, sizeof *f->layer);
    if (f->layer == NULL)
        return kvb_fail_memory(r->err, r->name);
    f->layers = layers;
    for (uint32_t i = 0; status == KVB_OK && i < layers; i++)
        status = read_layer(f, r, e, i, &c);
    if (status == KVB_OK && c.at != c.size)
        return kvb_section_fail(r, e, "%zu bytes follow the last layer", c.size - c.at);
    return status;
}

/* --- prompts --- */

static kvb_status read_prompt(const kvb_cache_file *f, const kvb_reader *r, const kvb_entry *e, kvb_saved *p)
{
    char problem[200];
    const kvb_entry want = {.dtype = KVB_ELEMENT_BYTE, .kind = KVB_SHARED, .layer = KVB_SHARED, .head = e->head,
                            .dims = 1, .shape = {e->shape[0]}};
    kvb_status status = kvb_section_expect(r, e, &want, false);
    if (status == KVB_OK)
        status = kvb_section_checksum(r, e);
    if (status != KVB_OK)
        return status;
    kvb_cursor c = kvb_cursor_over(kvb_section_bytes(r, e), (size_t)e->raw_size);
    p->tokens = kvb_cursor_u32(&c);
    const uint32_t name_size = kvb_cursor_u32(&c);
    p->attended = kvb_cursor_bytes(&c, f->layers);
    const char *name = (const char *)kvb_cursor_bytes(&c, name_size);
    if (c.failed || c.at != c.size)
        return kvb_section_fail(r, e, "%zu bytes do not hold a flag for each of %u layers and a name of %u bytes", c.size,
                                f->layers, name_size);
    if (p->tokens < 1 || p->tokens > KVB_PROMPT_TOKENS_MOST)
        return kvb_section_fail(r, e, "%u tokens, expected 1..%d", p->tokens, KVB_PROMPT_TOKENS_MOST);
    for (uint32_t i = 0; i < f->layers; i++)
        if (p->attended[i] > 1)
            return kvb_section_fail(r, e, "the flag of layer %u is %u, expected 0 or 1", i, p->attended[i]);
    if (kvb_saved_name_problem(name, name_size, problem, sizeof problem))
        return kvb_section_fail(r, e, "%s", problem);
    p->name = kvb_alloc_zeroed((size_t)name_size + 1, 1);
    p->section = kvb_alloc_zeroed(f->layers, sizeof *p->section);
    if (p->name == NULL || p->section == NULL)
        return kvb_fail_memory(r->err, r->name);
    memcpy(p->name, name, name_size);
    return KVB_OK;
}

static kvb_status check_names(const kvb_cache_file *f, const kvb_reader *r)
{
    for (uint32_t i = 0; i < f->prompts; i++)
        for (uint32_t j = 0; j < i; j++)
            if (strcmp(f->prompt[i].name, f->prompt[j].name) == 0)
                return kvb_reader_fail(r, "section table", "prompts %u and %u have the same name", j, i);
    return KVB_OK;
}

static kvb_status read_prompts(kvb_cache_file *f, const kvb_reader *r)
{
    kvb_status status = KVB_OK;
    f->prompt = kvb_alloc_zeroed(f->prompts, sizeof *f->prompt);
    if (f->prompt == NULL)
        return kvb_fail_memory(r->err, r->name);
    for (uint32_t i = 0; status == KVB_OK && i < r->header.sections; i++) {
        const kvb_entry *e = r->entry + i;
        if (strcmp(e->type, "PROM") != 0)
            continue;
        if (e->head >= f->prompts || f->prompt[e->head].name != NULL)
            return kvb_section_fail(r, e, "expected one for each of %u prompts", f->prompts);
        status = read_prompt(f, r, e, f->prompt + e->head);
    }
    for (uint32_t i = 0; status == KVB_OK && i < f->prompts; i++)
        if (f->prompt[i].name == NULL)
            return kvb_reader_fail(r, "section table", "prompt %u has no PROM section", i);
    return status == KVB_OK ? check_names(f, r) : status;
}

/* --- the sections of prompts --- */

static kvb_status check_inflation(const kvb_reader *r, const kvb_entry *e)
{
    if (e->codec != KVB_CODEC_RAW && e->raw_size / MOST_INFLATION > e->stored_size)
        return kvb_section_fail(r, e, "%llu bytes cannot come of %llu by zlib", (unsigned long long)e->raw_size,
                                (unsigned long long)e->stored_size);
    return KVB_OK;
}

static kvb_status take_layer_section(kvb_cache_file *f, const kvb_reader *r, kvb_entry *e, kvb_saved_section section)
{
    if (e->layer >= f->layers)
        return kvb_section_fail(r, e, "the file has %u layers", f->layers);
    kvb_saved *p = f->prompt + e->head;
    const uint64_t size = kvb_saved_size(&f->policy, f->layer + e->layer, p->tokens, section);
    if (size != e->raw_size)
        return kvb_section_fail(r, e, "%llu bytes, %u tokens make %llu", (unsigned long long)e->raw_size, p->tokens,
                                (unsigned long long)size);
    const kvb_entry want = {.dtype = KVB_ELEMENT_BYTE, .kind = KVB_SHARED, .layer = e->layer, .head = e->head,
                            .dims = 1, .shape = {(uint32_t)size}};
    const kvb_entry **place = &p->section[e->layer].at[section];
    if (*place != NULL)
        return kvb_section_fail(r, e, "the layer has two of them");
    *place = e;
    return kvb_section_expect(r, e, &want, true);
}

static kvb_status take_ids(const kvb_reader *r, kvb_entry *e, kvb_saved *p)
{
    const kvb_entry want = {.dtype = KVB_ELEMENT_BYTE, .kind = KVB_SHARED, .layer = KVB_SHARED, .head = e->head,
                            .dims = 1, .shape = {p->tokens * (uint32_t)sizeof(uint32_t)}};
    if (p->ids != NULL)
        return kvb_section_fail(r, e, "the prompt has two of them");
    if (e->codec == KVB_CODEC_PLANES)
        return kvb_section_fail(r, e, "codec 2 (planes), expected 0 (raw) or 1 (zlib)");
    p->ids = e;
    return kvb_section_expect(r, e, &want, true);
}

static kvb_status take_hidden(const kvb_reader *r, kvb_entry *e, kvb_saved *p)
{
    const kvb_entry want = {.dtype = KVB_ELEMENT_F32, .kind = KVB_SHARED, .layer = KVB_SHARED, .head = e->head,
                            .dims = 1, .shape = {e->shape[0]}};
    if (p->hidden != NULL)
        return kvb_section_fail(r, e, "the prompt has two of them");
    if (e->shape[0] < 1 || e->shape[0] > KVB_MAX_HIDDEN)
        return kvb_section_fail(r, e, "%u numbers, expected 1..%d", e->shape[0], KVB_MAX_HIDDEN);
    p->hidden = e;
    return kvb_section_expect(r, e, &want, false);
}

static int layer_section_of(const char *type)
{
    for (int section = 0; section < KVB_SAVED_SECTIONS; section++)
        if (strcmp(type, kvb_saved_names[section]) == 0)
            return section;
    return -1;
}

/* The others were read before, or are of no concern to this reader. */
static kvb_status take_section(kvb_cache_file *f, const kvb_reader *r, kvb_entry *e)
{
    const int section = layer_section_of(e->type);
    const bool ids = strcmp(e->type, "toks") == 0, hidden = strcmp(e->type, "last") == 0;
    if (section < 0 && !ids && !hidden)
        return kvb_section_checksum(r, e);
    if (e->head >= f->prompts)
        return kvb_section_fail(r, e, "the file has %u prompts", f->prompts);
    kvb_status status = check_inflation(r, e);
    if (status != KVB_OK)
        return status;
    if (section >= 0)
        return take_layer_section(f, r, e, (kvb_saved_section)section);
    return ids ? take_ids(r, e, f->prompt + e->head) : take_hidden(r, e, f->prompt + e->head);
}

/* Sizes were compared where a section is; where none is, none may be due. */
static kvb_status check_missing(const kvb_cache_file *f, const kvb_reader *r)
{
    for (uint32_t i = 0; i < f->prompts; i++)
        for (uint32_t l = 0; l < f->layers; l++)
            for (int s = 0; s < KVB_SAVED_SECTIONS; s++)
                if (f->prompt[i].section[l].at[s] == NULL &&
                    kvb_saved_size(&f->policy, f->layer + l, f->prompt[i].tokens, (kvb_saved_section)s) != 0)
                    return kvb_reader_fail(r, "section table", "prompt %u, layer %u: there is no %s section", i, l,
                                           kvb_saved_names[s]);
    return KVB_OK;
}

static kvb_status parse(kvb_cache_file *f, kvb_reader *r)
{
    kvb_status status = kvb_reader_table(r);
    if (status == KVB_OK)
        status = read_meta(f, r);
    if (status == KVB_OK)
        status = read_origin(f, r);
    if (status == KVB_OK)
        status = read_geometry(f, r);
    if (status == KVB_OK)
        status = read_prompts(f, r);
    for (uint32_t i = 0; status == KVB_OK && i < r->header.sections; i++)
        status = take_section(f, r, r->entry + i);
    return status == KVB_OK ? check_missing(f, r) : status;
}

/* Fills a zeroed file over its bytes; frees it on failure. */
static kvb_status open_bytes(kvb_cache_file *f, const uint8_t *bytes, size_t size, const char *name,
                             kvb_cache_file **file, kvb_error *err)
{
    kvb_status status;
    f->r = (kvb_reader){.kind = &kind, .bytes = bytes, .size = size};
    f->name = kvb_saved_copy(name);
    if (f->name == NULL) {
        status = kvb_fail_memory(err, name);
    } else if (__BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__) {
        status = kvb_fail(err, KVB_E_FORMAT, name, "packed caches can be read on little-endian machines only");
    } else {
        f->r.name = f->name;
        f->r.err = err;
        status = parse(f, &f->r);
        f->r.err = NULL;
    }
    if (status != KVB_OK)
        kvb_cache_file_close(f);
    else
        *file = f;
    return status;
}

kvb_status kvb_cache_file_open(const char *path, kvb_cache_file **file, kvb_error *err)
{
    *file = NULL;
    kvb_cache_file *f = calloc(1, sizeof *f);
    if (f == NULL)
        return kvb_fail_memory(err, path);
    kvb_status status = kvb_mapfile_open(&f->map, path, err);
    if (status != KVB_OK) {
        free(f);
        return status;
    }
    return open_bytes(f, f->map.bytes, f->map.size, path, file, err);
}

kvb_status kvb_cache_file_open_memory(const void *bytes, size_t size, const char *name, kvb_cache_file **file,
                                      kvb_error *err)
{
    *file = NULL;
    if (bytes == NULL || size == 0)
        return kvb_fail(err, KVB_E_FORMAT, name, "is empty (0 bytes)");
    kvb_cache_file *f = calloc(1, sizeof *f);
    return f != NULL ? open_bytes(f, bytes, size, name, file, err) : kvb_fail_memory(err, name);
}

void kvb_cache_file_close(kvb_cache_file *f)
{
    if (f == NULL)
        return;
    for (uint32_t i = 0; f->prompt != NULL && i < f->prompts; i++) {
        free(f->prompt[i].name);
        free(f->prompt[i].section);
    }
    for (uint32_t l = 0; l < f->layers; l++)
        free((void *)(uintptr_t)f->layer[l].rows);
    free(f->prompt);
    free(f->layer);
    free(f->meta);
    free(f->r.entry);
    free(f->name);
    kvb_mapfile_close(&f->map);
    free(f);
}

const uint8_t *kvb_cache_file_id(const kvb_cache_file *f)
{
    return f->r.header.id;
}

const uint8_t *kvb_cache_file_book_id(const kvb_cache_file *f)
{
    return f->has_book ? f->book_id : NULL;
}

uint64_t kvb_cache_file_size(const kvb_cache_file *f)
{
    return f->r.size;
}

const char *kvb_cache_file_meta(const kvb_cache_file *f, size_t *size)
{
    if (size != NULL)
        *size = f->meta_size;
    return f->meta;
}

void kvb_cache_file_options(const kvb_cache_file *f, kvb_cache_options *options)
{
    kvb_cache_options_init(options, NULL);
    options->policy = f->policy;
    options->seed = f->seed;
}

uint32_t kvb_cache_file_prompts(const kvb_cache_file *f)
{
    return f->prompts;
}

kvb_prompt_info kvb_cache_file_prompt(const kvb_cache_file *f, uint32_t prompt)
{
    if (prompt >= f->prompts)
        return (kvb_prompt_info){0};
    const kvb_saved *p = f->prompt + prompt;
    kvb_prompt_info info = {.name = p->name, .tokens = p->tokens, .has_ids = p->ids != NULL,
                            .hidden_count = p->hidden != NULL ? p->hidden->shape[0] : 0};
    for (uint32_t l = 0; l < f->layers; l++) {
        info.elements += (uint64_t)p->tokens * 2 * f->layer[l].kv_heads * f->layer[l].head_dim;
        for (int s = 0; s < KVB_SAVED_SECTIONS; s++) {
            const kvb_entry *e = p->section[l].at[s];
            info.stored_size += e != NULL ? e->stored_size : 0;
            info.raw_size += e != NULL ? e->raw_size : 0;
        }
    }
    return info;
}

/* "a, b, c", cut short where it is long. */
static void list_names(const kvb_cache_file *f, char *text, size_t size)
{
    size_t used = 0;
    text[0] = '\0';
    for (uint32_t i = 0; i < f->prompts && used < size; i++)
        used += (size_t)snprintf(text + used, size - used, "%s%s", i > 0 ? ", " : "", f->prompt[i].name);
}

kvb_status kvb_cache_file_find(const kvb_cache_file *f, const char *name, uint32_t *prompt, kvb_error *err)
{
    char names[300];
    for (uint32_t i = 0; name != NULL && i < f->prompts; i++)
        if (strcmp(f->prompt[i].name, name) == 0) {
            *prompt = i;
            return KVB_OK;
        }
    list_names(f, names, sizeof names);
    return kvb_fail(err, KVB_E_USAGE, f->name, "has no prompt %s; it has %s", name != NULL ? name : "(NULL)", names);
}
