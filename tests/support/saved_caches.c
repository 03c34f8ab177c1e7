#include "tests/support/saved_caches.h"

#include <string.h>

enum { MOST = 1024 }; /* floats of a layer's token, tokens of a cache */

kvb_cache *sc_cache(const kvb_book *book, const kvb_policy *policy, uint64_t seed)
{
    kvb_cache *cache = NULL;
    kvb_cache_options options;
    if (policy == NULL) {
        kvb_layer layer[8];
        for (uint32_t i = 0; i < kvb_book_layers(book); i++)
            layer[i] = *kvb_book_layer(book, i);
        kvb_cache_create_exact(layer, kvb_book_layers(book), &cache, NULL);
        return cache;
    }
    kvb_cache_options_init(&options, book);
    options.policy = *policy;
    options.seed = seed;
    kvb_cache_create(book, &options, &cache, NULL);
    return cache;
}

size_t sc_outputs(const kvb_book *book)
{
    size_t sum = 0;
    for (uint32_t i = 0; i < kvb_book_layers(book); i++)
        sum += (size_t)kvb_book_layer(book, i)->heads * kvb_book_layer(book, i)->head_dim;
    return sum;
}

kvb_status sc_step(kvb_cache *cache, const kvb_book *book, uint32_t t, float *out, kvb_error *err)
{
    float keys[MOST], values[MOST], q[MOST];
    kvb_status status = KVB_OK;
    memset(out, 0, sc_outputs(book) * sizeof *out);
    for (uint32_t i = 0; status == KVB_OK && i < kvb_book_layers(book); i++) {
        const kvb_layer *l = kvb_book_layer(book, i);
        const size_t kv = (size_t)l->kv_heads * l->head_dim, qs = (size_t)l->heads * l->head_dim;
        rt_normal(keys, kv, 16 * t + 3 * i);
        rt_normal(values, kv, 16 * t + 3 * i + 1);
        rt_normal(q, qs, 16 * t + 3 * i + 2);
        status = kvb_cache_append(cache, i, keys, values, err);
        if (status == KVB_OK && t % 7 != 6)
            status = kvb_cache_attend(cache, i, q, out, err);
        out += qs;
    }
    return status;
}

bool sc_same(const kvb_cache *a, const kvb_cache *b, const kvb_book *book)
{
    float x[4][MOST];
    for (uint32_t i = 0; i < kvb_book_layers(book); i++) {
        const kvb_layer *l = kvb_book_layer(book, i);
        if (kvb_cache_length(a, i) != kvb_cache_length(b, i))
            return false;
        for (uint32_t g = 0; g < l->kv_heads; g++)
            for (uint64_t p = 0; p < kvb_cache_length(a, i); p++) {
                int exact[2];
                if (kvb_cache_read(a, i, g, p, x[0], x[1], exact, NULL) != KVB_OK ||
                    kvb_cache_read(b, i, g, p, x[2], x[3], exact + 1, NULL) != KVB_OK || exact[0] != exact[1] ||
                    memcmp(x[0], x[2], l->head_dim * sizeof(float)) != 0 ||
                    memcmp(x[1], x[3], l->head_dim * sizeof(float)) != 0)
                    return false;
            }
    }
    const kvb_cache_bytes m = kvb_cache_count_bytes(a), n = kvb_cache_count_bytes(b);
    return memcmp(&m, &n, sizeof m) == 0;
}

kvb_status sc_save(const kvb_cache *cache, const char *path, bool compress, kvb_error *err)
{
    static const float hidden[3] = {0.5f, -2.0f, 1e-20f};
    const uint64_t tokens = kvb_cache_length(cache, 0);
    kvb_cache_writer_options options;
    kvb_saved_prompt prompt;
    kvb_cache_writer *w;
    uint32_t ids[MOST];
    if (tokens > MOST)
        return KVB_E_USAGE;
    for (uint32_t i = 0; i < tokens; i++)
        ids[i] = i;
    kvb_cache_writer_options_init(&options);
    options.compress = compress;
    kvb_saved_prompt_init(&prompt);
    prompt.name = "p";
    prompt.ids = ids;
    prompt.hidden = hidden;
    prompt.hidden_count = 3;
    kvb_status status = kvb_cache_writer_create(&options, &w, err);
    if (status == KVB_OK && (status = kvb_cache_writer_add(w, cache, &prompt, err)) != KVB_OK)
        kvb_cache_writer_abandon(w);
    else if (status == KVB_OK)
        status = kvb_cache_writer_commit(w, path, err);
    return status;
}
