/* Pivots (IntactKV, arXiv 2403.01241): keys and values of a prompt's first tokens, saved once by the model with an exact cache
 * (`kvbook pack` without a book), that a coded cache begins with and never codes. */
#ifndef KVB_TOOLS_PIVOTS_H
#define KVB_TOOLS_PIVOTS_H

#include "tools/prompt.h"

typedef struct kvb_pivots {
    kvb_cache_file *file;
    uint32_t prompt; /* of the file, the one that matched */
    uint32_t tokens; /* of it; 0: none matched */
} kvb_pivots;

/* KVB_E_MISMATCH for pivots of another model, or that were coded by a book. Nothing is open after a failure. */
kvb_status kvb_pivots_open(const char *path, const kvb_model *model, const kvb_override_args *allow, kvb_pivots *pivots,
                           kvb_error *err);
void kvb_pivots_close(kvb_pivots *pivots);

/* Finds the longest prompt of the file whose ids are exactly the first of these; one without ids never matches. */
kvb_status kvb_pivots_match(kvb_pivots *pivots, const uint32_t *ids, size_t count, kvb_error *err);

/* Puts the tokens that matched into an empty cache, to the bit what the file holds; the cache's policy has at least as many sinks.
 * KVB_E_USAGE for a cache that is not empty. */
kvb_status kvb_pivots_put(const kvb_pivots *pivots, const kvb_model *model, kvb_cache *cache, kvb_error *err);

#endif
