#include "model/text.h"

#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/mapfile.h"
#include "format/base/sha256.h"
#include "model/jsonl.h"

static kvb_status append_ids(kvb_text *text, const uint32_t *ids, size_t count, kvb_error *err)
{
    if (count == 0)
        return KVB_OK;
    uint64_t bytes;
    uint32_t *grown = NULL;
    if (kvb_mul_u64((uint64_t)text->id_count + count, sizeof *grown, &bytes) && bytes <= SIZE_MAX)
        grown = realloc(text->ids, (size_t)bytes);
    if (grown == NULL)
        return kvb_fail_memory(err, "tokens of a text");
    memcpy(grown + text->id_count, ids, count * sizeof *ids);
    text->ids = grown;
    text->id_count += count;
    return KVB_OK;
}

static bool is_jsonl(const char *path)
{
    size_t size = strlen(path);
    return size >= 6 && strcmp(path + size - 6, ".jsonl") == 0;
}

/* The text of one file: the map itself, or *owned where lines of JSON had to be put together. */
static kvb_status get_text(const kvb_mapfile *map, const char *path, const char **bytes, size_t *size, char **owned,
                           kvb_error *err)
{
    *owned = NULL;
    *bytes = (const char *)map->bytes;
    *size = map->size;
    if (!is_jsonl(path))
        return KVB_OK;
    kvb_status status = kvb_jsonl_texts(*bytes, map->size, path, owned, size, err);
    *bytes = *owned;
    return status;
}

static kvb_status load_source(const kvb_tokenizer *t, const char *path, kvb_text *text, kvb_error *err)
{
    kvb_text_source *source = &text->sources[text->source_count];
    kvb_mapfile map;
    kvb_status status = kvb_mapfile_open(&map, path, err);
    if (status != KVB_OK)
        return status;
    char *owned = NULL;
    const char *bytes = NULL;
    uint32_t *ids = NULL;
    size_t size = 0, count = 0;
    source->path = strdup(path);
    source->bytes = map.size;
    text->source_count++;
    kvb_sha256_of(map.bytes, map.size, source->sha256);
    status = source->path == NULL ? kvb_fail_memory(err, path) : get_text(&map, path, &bytes, &size, &owned, err);
    if (status == KVB_OK)
        status = kvb_tokenizer_encode(t, bytes, size, false, &ids, &count, err);
    if (status == KVB_OK && count == 0)
        status = kvb_fail(err, KVB_E_FORMAT, path, "has no text: not one token in %zu bytes", map.size);
    if (status == KVB_OK)
        status = append_ids(text, ids, count, err);
    source->tokens = count;
    free(ids);
    free(owned);
    kvb_mapfile_close(&map);
    return status;
}

kvb_status kvb_text_load(const kvb_tokenizer *t, const char *const *paths, size_t count, kvb_text *text,
                         kvb_error *err)
{
    *text = (kvb_text){0};
    if (count == 0)
        return kvb_fail(err, KVB_E_USAGE, "text", "no text file is given, expected one at least");
    text->sources = kvb_alloc_zeroed(count, sizeof *text->sources);
    if (text->sources == NULL)
        return kvb_fail_memory(err, "text sources");
    kvb_status status = KVB_OK;
    for (size_t i = 0; status == KVB_OK && i < count; i++)
        status = load_source(t, paths[i], text, err);
    if (status != KVB_OK)
        kvb_text_free(text);
    return status;
}

void kvb_text_free(kvb_text *text)
{
    if (text == NULL)
        return;
    for (size_t i = 0; i < text->source_count; i++)
        free((char *)(uintptr_t)text->sources[i].path);
    free(text->sources);
    free(text->ids);
    *text = (kvb_text){0};
}

kvb_status kvb_text_chunks(const kvb_text *text, uint32_t ctx, uint64_t skip, uint64_t wanted, uint64_t *chunks,
                           kvb_error *err)
{
    *chunks = 0;
    if (ctx == 0)
        return kvb_fail(err, KVB_E_USAGE, "ctx", "chunks of 0 tokens, expected one at least");
    uint64_t whole = text->id_count / ctx;
    if (whole <= skip)
        return kvb_fail(err, KVB_E_FORMAT, text->source_count > 0 ? text->sources[0].path : "text",
                        "%zu tokens are %llu chunks of %u, and %llu are skipped: not one whole chunk is left. Give "
                        "more text or a smaller --ctx or --skip",
                        text->id_count, (unsigned long long)whole, ctx, (unsigned long long)skip);
    *chunks = wanted != 0 && wanted < whole - skip ? wanted : whole - skip;
    return KVB_OK;
}

void kvb_text_chunk(const kvb_text *text, uint32_t ctx, uint64_t skip, uint64_t c, int32_t bos, uint32_t *out)
{
    memcpy(out, text->ids + (skip + c) * ctx, ctx * sizeof *out);
    if (bos >= 0)
        out[0] = (uint32_t)bos;
}
