/* The .kvb reader: any bytes, as they are and with their checksums made right. What opens must be readable throughout, also where
 * CODE, FINE, MEAN, XFRM and raw qual sections are left to kvb_book_verify() as in a mapped book; both ways must come to one verdict. */
#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/book_reader.h"
#include "tests/fuzz/fuzz.h"
#include "tests/support/seal.h"

static volatile double sink; /* so that no read below is optimised away */

static void read_floats(const float *values, size_t count)
{
    for (size_t i = 0; values != NULL && i < count; i++)
        sink += (double)values[i];
}

static void read_scaling(const kvb_codebook *c, size_t dim)
{
    if (c->channels != 1 || c->groups != dim || c->stages != 1)
        abort();
    for (size_t i = 0; c->table != NULL && i < c->centroids; i++)
        sink += c->table[i];
    for (size_t i = 0; c->scaling->fixed != NULL && i < 2 * dim; i++)
        sink += c->scaling->fixed[i];
    for (size_t i = 0; c->scaling->lists > 0 && i < dim; i++)
        sink += c->scaling->order[i];
    for (size_t i = 0; i < c->scaling->lists; i++)
        sink += c->scaling->end[i];
    sink += c->scaling->group + c->scaling->outliers;
}

static void read_codebook(const kvb_codebook *c, size_t dim, const kvb_quality *q)
{
    if (c == NULL)
        return;
    if ((size_t)c->groups * c->channels != dim || 1u << c->code_bits != c->centroids ||
        c->stages * (uint32_t)__builtin_ctz(c->stage_centroids) != c->code_bits)
        abort();
    if (c->scaling != NULL)
        read_scaling(c, dim);
    for (size_t i = 0; c->scaling == NULL && i < dim * c->stages * c->stage_centroids; i++)
        sink += c->table[i];
    read_floats(c->mean, dim);
    read_floats(c->forward, dim * dim);
    read_floats(c->inverse, dim * dim);
    for (uint32_t s = 0; q != NULL && s < c->groups; s++)
        sink += (double)q[s].entropy;
}

static void read_open(const kvb_book *book)
{
    sink += (double)strlen(kvb_book_meta(book, NULL)) + kvb_book_id(book)[31] + kvb_book_policy(book).window;
    for (uint32_t l = 0; l < kvb_book_layers(book); l++) {
        const kvb_layer *layer = kvb_book_layer(book, l);
        read_floats(layer->rope_factors, layer->rope_dims / 2);
        for (uint32_t i = 0; i < 2 * layer->kv_heads; i++) {
            const kvb_kind kind = (kvb_kind)(i % 2);
            read_codebook(kvb_book_codebook(book, l, i / 2, kind), layer->head_dim,
                          kvb_book_quality(book, l, i / 2, kind));
            read_codebook(kvb_book_fine(book, l, i / 2, kind), layer->head_dim, NULL);
        }
    }
}

/* `full`: what opening with every check gave, `why` its error. */
static void read_deferred(const uint8_t *data, size_t size, kvb_status full, const kvb_error *why)
{
    uint8_t *bytes = size > 0 ? kvb_alloc_array(size, 1) : NULL;
    if (bytes == NULL)
        return;
    memcpy(bytes, data, size);
    kvb_error err;
    kvb_book *book = NULL;
    if (kvb_book_adopt(bytes, size, "fuzz", true, &book, &err) != KVB_OK) {
        if (full == KVB_OK)
            abort();
        return;
    }
    read_open(book);
    if (kvb_book_verify(book, &err) != full || (full != KVB_OK && strcmp(err.message, why->message) != 0))
        abort();
    kvb_book_close(book);
}

static void read_book(const uint8_t *data, size_t size)
{
    kvb_book *book;
    kvb_error err;
    const kvb_status status = kvb_book_open_memory(data, size, "fuzz", &book, &err);
    read_deferred(data, size, status, &err);
    if (status != KVB_OK)
        return;
    read_open(book);
    kvb_book_close(book);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    read_book(data, size);
    uint8_t *sealed = malloc(size > 0 ? size : 1);
    if (sealed == NULL)
        return 0;
    memcpy(sealed, data, size);
    seal_book(sealed, size);
    read_book(sealed, size);
    free(sealed);
    return 0;
}
