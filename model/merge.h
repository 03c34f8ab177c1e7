/* The one loop of both kinds of BPE: of all neighbouring pairs that may merge, merge the best, the leftmost of equals,
 * until none is left. O(n log n) in the length of a word. */
#ifndef KVB_MODEL_MERGE_H
#define KVB_MODEL_MERGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { KVB_MERGE_END = UINT32_MAX >> 1 }; /* no neighbour; words are shorter than this */

/* A run of a word's bytes. Merged into its left neighbour it has size 0. */
typedef struct kvb_symbol {
    uint32_t at, size;
    uint32_t prev, next; /* index, or KVB_MERGE_END */
    int64_t id;          /* token, or KVB_NO_TOKEN */
} kvb_symbol;

typedef struct kvb_candidate {
    double priority; /* larger first */
    uint32_t left, right;
    uint32_t size; /* of both together when it was found: another size now means one of them has changed */
    uint32_t id;
} kvb_candidate;

/* Scratch that grows; zeroed to begin with. */
typedef struct kvb_merger {
    kvb_symbol *symbols;
    size_t symbol_room;
    kvb_candidate *heap;
    size_t heap_count, heap_room;
} kvb_merger;

/* Whether two neighbours merge, into what and how eagerly. */
typedef bool (*kvb_merge_find)(const void *user, const kvb_symbol *left, const kvb_symbol *right, double *priority,
                               uint32_t *id);

/* Room for `count` symbols; false if out of memory. */
bool kvb_merger_reserve(kvb_merger *m, size_t count);
/* Merges symbols[0..count-1], of which at, size and id are filled in; what is left hangs on symbols[0].next. False if
 * out of memory. */
bool kvb_merger_run(kvb_merger *m, size_t count, kvb_merge_find find, const void *user);
void kvb_merger_free(kvb_merger *m);

#endif
