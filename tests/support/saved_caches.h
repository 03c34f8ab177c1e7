/* Caches of random books that run over random tokens, for the tests of saved caches. */
#ifndef KVB_TESTS_SAVED_CACHES_H
#define KVB_TESTS_SAVED_CACHES_H

#include "kvbook/cache_file.h"
#include "tests/support/rt_book.h"

/* NULL without a book: the exact cache of its first layer's geometry. */
kvb_cache *sc_cache(const kvb_book *book, const kvb_policy *policy, uint64_t seed);

/* Appends token t, the same for every cache, to all layers and asks its queries but for every seventh token, which nobody
 * asks about; out [layers][H][D] holds what they got. */
kvb_status sc_step(kvb_cache *cache, const kvb_book *book, uint32_t t, float *out, kvb_error *err);
size_t sc_outputs(const kvb_book *book); /* floats of out */

/* Whether both hold the same bits of every token, and the same tokens exact. */
bool sc_same(const kvb_cache *a, const kvb_cache *b, const kvb_book *book);

/* Saves one cache, named "p", with its ids 0, 1, 2, ... and three numbers of hidden state. */
kvb_status sc_save(const kvb_cache *cache, const char *path, bool compress, kvb_error *err);

#endif
