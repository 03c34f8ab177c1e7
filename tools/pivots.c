#include "tools/pivots.h"

#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"

kvb_status kvb_pivots_open(const char *path, const kvb_model *model, const kvb_override_args *allow, kvb_pivots *pivots,
                           kvb_error *err)
{
    *pivots = (kvb_pivots){0};
    kvb_status status = kvb_prompt_open_file(path, model, allow, &pivots->file, err);
    if (status != KVB_OK || kvb_cache_file_book_id(pivots->file) == NULL)
        return status;
    kvb_pivots_close(pivots);
    return kvb_fail(err, KVB_E_MISMATCH, path, "was coded by a book, and pivots are lossless: pack it again without --book");
}

void kvb_pivots_close(kvb_pivots *pivots)
{
    kvb_cache_file_close(pivots->file);
    *pivots = (kvb_pivots){0};
}

kvb_status kvb_pivots_match(kvb_pivots *pivots, const uint32_t *ids, size_t count, kvb_error *err)
{
    kvb_status status = KVB_OK;
    pivots->tokens = 0;
    for (uint32_t i = 0; status == KVB_OK && i < kvb_cache_file_prompts(pivots->file); i++) {
        const kvb_prompt_info p = kvb_cache_file_prompt(pivots->file, i);
        if (!p.has_ids || p.tokens > count || p.tokens <= pivots->tokens)
            continue;
        uint32_t *saved = kvb_alloc_array(p.tokens, sizeof *saved);
        status = saved != NULL ? kvb_cache_file_ids(pivots->file, i, saved, err) : kvb_fail_memory(err, "pivots");
        if (status == KVB_OK && memcmp(saved, ids, p.tokens * sizeof *saved) == 0) {
            pivots->prompt = i;
            pivots->tokens = p.tokens;
        }
        free(saved);
    }
    return status;
}

/* All KV heads of one token. */
static kvb_status copy_token(const kvb_cache *from, const kvb_layer *g, uint32_t layer, uint32_t position, float *rows, kvb_cache *to,
                             kvb_error *err)
{
    const size_t dim = g->head_dim;
    float *values = rows + g->kv_heads * dim;
    kvb_status status = KVB_OK;
    int exact;
    for (uint32_t head = 0; status == KVB_OK && head < g->kv_heads; head++)
        status = kvb_cache_read(from, layer, head, position, rows + head * dim, values + head * dim, &exact, err);
    return status == KVB_OK ? kvb_cache_append(to, layer, rows, values, err) : status;
}

static kvb_status copy_all(const kvb_pivots *pivots, const kvb_model_info *info, const kvb_cache *from, kvb_cache *to, kvb_error *err)
{
    kvb_status status = KVB_OK;
    for (uint32_t l = 0; status == KVB_OK && l < info->layers; l++) {
        const kvb_layer *g = &info->layer[l];
        float *rows = kvb_alloc_array(2 * (size_t)g->kv_heads * g->head_dim, sizeof *rows);
        if (rows == NULL)
            return kvb_fail_memory(err, "pivots");
        for (uint32_t p = 0; status == KVB_OK && p < pivots->tokens; p++)
            status = copy_token(from, g, l, p, rows, to, err);
        free(rows);
    }
    return status;
}

kvb_status kvb_pivots_put(const kvb_pivots *pivots, const kvb_model *model, kvb_cache *cache, kvb_error *err)
{
    const kvb_model_info *info = kvb_model_get_info(model);
    kvb_cache *exact = NULL;
    if (kvb_cache_length(cache, 0) != 0)
        return kvb_fail(err, KVB_E_USAGE, "pivots", "the cache holds %llu tokens, expected an empty one",
                        (unsigned long long)kvb_cache_length(cache, 0));
    kvb_status status = kvb_cache_create_exact(info->layer, info->layers, &exact, err);
    if (status == KVB_OK)
        status = kvb_cache_file_restore(pivots->file, pivots->prompt, exact, err);
    if (status == KVB_OK)
        status = copy_all(pivots, info, exact, cache, err);
    kvb_cache_destroy(exact);
    return status;
}
