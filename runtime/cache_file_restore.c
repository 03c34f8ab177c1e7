/* A saved prompt back into a cache. Everything is read and checked before the first layer counts its tokens, so that a
 * failure leaves the cache empty. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/sha256.h"
#include "runtime/saved_cache.h"

/* A section in row order: in place, or in memory of its own. */
typedef struct loaded {
    const uint8_t *rows; /* NULL where there is none */
    uint8_t *owned;
} loaded;

static kvb_status load_zlib(const kvb_cache_file *f, const kvb_reader *r, const kvb_saved *p, uint32_t layer,
                            kvb_saved_section section, loaded *l)
{
    const kvb_entry *e = p->section[layer].at[section];
    l->rows = l->owned = kvb_alloc_array((size_t)e->raw_size, 1);
    if (l->owned == NULL)
        return kvb_fail_memory(r->err, r->name);
    if (e->codec == KVB_CODEC_ZLIB)
        return kvb_section_copy(r, e, l->owned);
    uint8_t *planes = kvb_alloc_array((size_t)e->raw_size, 1);
    kvb_status status = planes != NULL ? kvb_section_copy(r, e, planes) : kvb_fail_memory(r->err, r->name);
    if (status == KVB_OK)
        kvb_saved_from_planes(&f->policy, f->layer + layer, p->tokens, section, planes, l->owned);
    free(planes);
    return status;
}

/* The caller frees l->owned, also after a failure. */
static kvb_status load_section(const kvb_cache_file *f, const kvb_reader *r, const kvb_saved *p, uint32_t layer,
                               kvb_saved_section section, loaded *l)
{
    const kvb_entry *e = p->section[layer].at[section];
    char problem[200];
    *l = (loaded){0};
    if (e == NULL)
        return KVB_OK;
    kvb_status status = kvb_section_checksum(r, e);
    if (status != KVB_OK)
        return status;
    if (e->codec == KVB_CODEC_RAW)
        l->rows = kvb_section_bytes(r, e);
    else
        status = load_zlib(f, r, p, layer, section, l);
    if (status == KVB_OK &&
        kvb_saved_problem(&f->policy, f->layer + layer, p->tokens, section, l->rows, problem, sizeof problem))
        return kvb_section_fail(r, e, "%s", problem);
    return status;
}

/* --- into a cache --- */

/* Scores of a window that attention does not give are never read, but are 0 as in a cache that was not saved. */
static void clear_gains(kvb_cache_layer *l)
{
    for (uint32_t g = 0; g < l->geometry.kv_heads; g++)
        for (uint32_t i = 0; i < l->head[g].window_room; i++)
            l->head[g].score[i] = 0.0;
}

static kvb_status fill_layer(const kvb_cache_file *f, const kvb_reader *r, const kvb_saved *p, uint32_t layer,
                             kvb_cache *cache)
{
    kvb_cache_layer *l = cache->layer + layer;
    const kvb_saved_counts n = kvb_saved_count(&f->policy, l->has_codes, p->tokens);
    loaded section[KVB_SAVED_SECTIONS] = {{0}};
    kvb_status status = KVB_OK;
    for (int s = 0; status == KVB_OK && s < KVB_SAVED_SECTIONS; s++)
        status = load_section(f, r, p, layer, (kvb_saved_section)s, section + s);
    if (status == KVB_OK)
        status = kvb_store_make_room(cache, layer, p->tokens, n.anchors, n.coded, r->err);
    if (status == KVB_OK)
        clear_gains(l);
    for (int s = 0; status == KVB_OK && s < KVB_SAVED_SECTIONS; s++)
        if (section[s].rows != NULL)
            kvb_saved_pass(l, (kvb_saved_section)s, &n, p->tokens, &(kvb_saved_stream){.from = section[s].rows});
    for (int s = 0; s < KVB_SAVED_SECTIONS; s++)
        free(section[s].owned);
    return status;
}

/* From here on the layer has its tokens. */
static void count_tokens(const kvb_cache_file *f, const kvb_saved *p, uint32_t layer, kvb_cache_layer *l)
{
    const kvb_saved_counts n = kvb_saved_count(&f->policy, l->has_codes, p->tokens);
    for (uint32_t g = 0; g < l->geometry.kv_heads; g++) {
        kvb_cache_head *head = l->head + g;
        head->pool.left = l->has_codes ? p->tokens - n.sinks - n.window : 0;
        head->pool.count = n.anchors;
        head->coded = n.coded;
    }
    l->length = p->tokens;
    l->scored_length = p->attended[layer] ? p->tokens : p->tokens - 1;
}

/* --- whether file and cache belong together --- */

static kvb_status check_book(const kvb_cache_file *f, const kvb_reader *r, const kvb_cache *cache)
{
    char packed[65], used[65];
    const uint8_t *id = cache->book != NULL ? kvb_book_id(cache->book) : NULL;
    if (!f->has_book && id == NULL)
        return KVB_OK;
    if (f->has_book && id != NULL && memcmp(id, f->book_id, sizeof f->book_id) == 0)
        return KVB_OK;
    kvb_sha256_hex(f->book_id, packed);
    if (id == NULL)
        return kvb_fail(r->err, KVB_E_MISMATCH, r->name, "was packed with the book %.16s, the cache has none; open it with "
                        "that book", packed);
    kvb_sha256_hex(id, used);
    if (!f->has_book)
        return kvb_fail(r->err, KVB_E_MISMATCH, r->name, "was packed without a book, the cache has %.16s; open it without "
                        "one", used);
    return kvb_fail(r->err, KVB_E_MISMATCH, r->name, "was packed with the book %.16s, the cache has %.16s; use that book, or "
                    "pack the prompt again with this one", packed, used);
}

/* By the file's own words: bytes of every row as the cache has them. */
static bool rows_fit(const kvb_saved_layer *saved, const kvb_cache *cache, uint32_t layer)
{
    const kvb_cache_layer *l = cache->layer + layer;
    if (saved->kv_heads != l->geometry.kv_heads || saved->head_dim != l->geometry.head_dim ||
        saved->coded != l->has_codes)
        return false;
    for (uint32_t g = 0; g < saved->kv_heads; g++) {
        const kvb_saved_rows rows = kvb_saved_rows_of(cache, layer, g);
        if (memcmp(&rows, saved->rows + g, sizeof rows) != 0)
            return false;
    }
    return true;
}

static kvb_status check_cache(const kvb_cache_file *f, const kvb_reader *r, const kvb_cache *cache)
{
    for (uint32_t i = 0; i < cache->layers; i++)
        if (cache->layer[i].length != 0)
            return kvb_fail(r->err, KVB_E_USAGE, "cache", "layer %u has %u tokens already, expected an empty cache", i,
                            cache->layer[i].length);
    kvb_status status = check_book(f, r, cache);
    if (status == KVB_OK)
        status = kvb_saved_check_codes(cache, r->err);
    if (status != KVB_OK)
        return status;
    const kvb_policy policy = kvb_saved_policy_of(cache);
    if (f->has_book && (!kvb_saved_same_policy(&f->policy, &policy) || f->seed != cache->seed))
        return kvb_fail(r->err, KVB_E_MISMATCH, r->name, "was packed with another policy or seed than the cache has; make "
                        "it with the options that kvb_cache_file_options() gives");
    if (f->layers != cache->layers)
        return kvb_fail(r->err, KVB_E_MISMATCH, r->name, "has %u layers, the cache %u", f->layers, cache->layers);
    for (uint32_t i = 0; i < f->layers; i++)
        if (!rows_fit(f->layer + i, cache, i))
            return kvb_fail(r->err, KVB_E_MISMATCH, r->name, "layer %u has %u KV heads of %u channels with other rows than "
                            "the cache's %u of %u", i, f->layer[i].kv_heads, f->layer[i].head_dim,
                            cache->layer[i].geometry.kv_heads, cache->layer[i].geometry.head_dim);
    return KVB_OK;
}

/* --- calls --- */

/* A reader of the file that reports to `err`. */
static kvb_status read_prompt(const kvb_cache_file *f, uint32_t prompt, kvb_reader *r, kvb_error *err)
{
    if (f == NULL || prompt >= f->prompts)
        return kvb_fail(err, KVB_E_USAGE, "prompt", "found %u, the file has %u", prompt, f != NULL ? f->prompts : 0);
    *r = f->r;
    r->err = err;
    return KVB_OK;
}

kvb_status kvb_cache_file_restore(const kvb_cache_file *f, uint32_t prompt, kvb_cache *cache, kvb_error *err)
{
    kvb_reader r;
    kvb_status status = read_prompt(f, prompt, &r, err);
    if (status != KVB_OK)
        return status;
    if (cache == NULL)
        return kvb_fail(err, KVB_E_USAGE, "cache", "found NULL, expected an empty cache");
    const kvb_saved *p = f->prompt + prompt;
    status = check_cache(f, &r, cache);
    for (uint32_t i = 0; status == KVB_OK && i < f->layers; i++)
        status = fill_layer(f, &r, p, i, cache);
    for (uint32_t i = 0; status == KVB_OK && i < f->layers; i++)
        count_tokens(f, p, i, cache->layer + i);
    return status;
}

kvb_status kvb_cache_file_ids(const kvb_cache_file *f, uint32_t prompt, uint32_t *ids, kvb_error *err)
{
    kvb_reader r;
    kvb_status status = read_prompt(f, prompt, &r, err);
    if (status != KVB_OK)
        return status;
    const kvb_entry *e = f->prompt[prompt].ids;
    if (e == NULL || ids == NULL)
        return kvb_fail(err, KVB_E_USAGE, f->name, "prompt %u has no token ids, or there is no place for them", prompt);
    status = kvb_section_checksum(&r, e);
    return status == KVB_OK ? kvb_section_copy(&r, e, (uint8_t *)ids) : status;
}

static kvb_status check_hidden(const kvb_reader *r, const kvb_entry *e)
{
    kvb_status status = kvb_section_checksum(r, e);
    if (status != KVB_OK)
        return status;
    const uint8_t *bytes = kvb_section_bytes(r, e);
    for (uint32_t i = 0; i < e->shape[0]; i++)
        if ((bytes[4 * i + 3] & 0x7F) == 0x7F && (bytes[4 * i + 2] & 0x80) != 0)
            return kvb_section_fail(r, e, "number %u is infinite or NaN", i);
    return KVB_OK;
}

kvb_status kvb_cache_file_hidden(const kvb_cache_file *f, uint32_t prompt, float *hidden, kvb_error *err)
{
    kvb_reader r;
    kvb_status status = read_prompt(f, prompt, &r, err);
    if (status != KVB_OK)
        return status;
    const kvb_entry *e = f->prompt[prompt].hidden;
    if (e == NULL || hidden == NULL)
        return kvb_fail(err, KVB_E_USAGE, f->name, "prompt %u has no hidden state, or there is no place for it", prompt);
    status = check_hidden(&r, e);
    return status == KVB_OK ? kvb_section_copy(&r, e, (uint8_t *)hidden) : status;
}

static kvb_status check_ids(const kvb_cache_file *f, uint32_t prompt, kvb_error *err)
{
    if (f->prompt[prompt].ids == NULL)
        return KVB_OK;
    uint32_t *ids = kvb_alloc_array(f->prompt[prompt].tokens, sizeof *ids);
    kvb_status status = ids != NULL ? kvb_cache_file_ids(f, prompt, ids, err) : kvb_fail_memory(err, f->name);
    free(ids);
    return status;
}

kvb_status kvb_cache_file_check(const kvb_cache_file *f, uint32_t prompt, kvb_error *err)
{
    kvb_reader r;
    kvb_status status = read_prompt(f, prompt, &r, err);
    if (status != KVB_OK)
        return status;
    const kvb_saved *p = f->prompt + prompt;
    for (uint32_t i = 0; i < f->layers; i++)
        for (int s = 0; status == KVB_OK && s < KVB_SAVED_SECTIONS; s++) {
            loaded l;
            status = load_section(f, &r, p, i, (kvb_saved_section)s, &l);
            free(l.owned);
        }
    if (status == KVB_OK && p->hidden != NULL)
        status = check_hidden(&r, p->hidden);
    return status == KVB_OK ? check_ids(f, prompt, err) : status;
}
