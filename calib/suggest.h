/* "Did you mean": the known word nearest to one that is not known. */
#ifndef KVB_CALIB_SUGGEST_H
#define KVB_CALIB_SUGGEST_H

#include <stddef.h>

/* Edit distance (Levenshtein 1966) of two words; words over 63 bytes count as far from everything. */
size_t kvb_edit_distance(const char *a, const char *b);

/* The nearest of `count` words, the first of equals; NULL where count is 0. */
const char *kvb_suggest(const char *word, const char *const *known, size_t count);

/* Writes "a, b, c" to text, cut where it does not fit; returns text. */
char *kvb_join_words(const char *const *words, size_t count, char *text, size_t size);

#endif
