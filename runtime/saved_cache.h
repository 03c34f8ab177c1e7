/* An open file of caches, for the files that implement it. */
#ifndef KVB_RUNTIME_SAVED_CACHE_H
#define KVB_RUNTIME_SAVED_CACHE_H

#include "format/base/mapfile.h"
#include "runtime/cache_file_layout.h"
#include "runtime/cache_store.h"

/* Sections of a layer, by kvb_saved_section; NULL where it has no bytes. */
typedef struct kvb_saved_sections {
    const kvb_entry *at[KVB_SAVED_SECTIONS];
} kvb_saved_sections;

typedef struct kvb_saved {
    uint32_t tokens;
    char *name;
    const uint8_t *attended;     /* [layers] whether the newest token's query has been asked, in the file */
    const kvb_entry *ids, *hidden;
    kvb_saved_sections *section; /* [layers] */
} kvb_saved;

struct kvb_cache_file {
    kvb_mapfile map; /* not open where the bytes are borrowed */
    kvb_reader r;    /* r.err is NULL: calls work on a copy with their own */
    char *name;
    char *meta;
    size_t meta_size;
    bool has_book;
    uint8_t book_id[32];
    kvb_policy policy;
    uint64_t seed;
    uint32_t layers, prompts;
    kvb_saved_layer *layer; /* [layers] */
    kvb_saved *prompt;      /* [prompts] */
};

/* cache_file_rows.c */
/* The policy of a cache's coded layers; of a cache without any, everything exact. */
kvb_policy kvb_saved_policy_of(const kvb_cache *cache);
bool kvb_saved_same_policy(const kvb_policy *a, const kvb_policy *b);
/* KVB_E_USAGE where numbers are coded one by one: their scales have no place in the file. */
kvb_status kvb_saved_check_codes(const kvb_cache *cache, kvb_error *err);
/* What a row of a head of a cache takes. */
kvb_saved_rows kvb_saved_rows_of(const kvb_cache *cache, uint32_t layer, uint32_t g);

/* Where rows go, or where they come from: one of the two. */
typedef struct kvb_saved_stream {
    uint8_t *to;
    const uint8_t *from;
} kvb_saved_stream;

/* Passes a section of a layer of `tokens` tokens, kvb_saved_size() bytes, out of the cache or into it. */
void kvb_saved_pass(const kvb_cache_layer *l, kvb_saved_section section, const kvb_saved_counts *n, uint32_t tokens,
                    kvb_saved_stream *s);

#endif
