/* GGUF bytes to the reader, then everything that an open file offers: dequantisation and the tokenizer. */
#include <stdlib.h>

#include "model/gguf.h"
#include "model/tokenizer.h"
#include "tests/fuzz/fuzz.h"

static void read_tensors(const kvb_gguf *g)
{
    float out[256];
    for (uint64_t i = 0; i < kvb_gguf_tensor_count(g); i++) {
        const kvb_tensor *t = kvb_gguf_tensor_at(g, i);
        uint32_t elements, bytes;
        if (kvb_dtype_block(t->dtype, &elements, &bytes) && t->size >= bytes)
            kvb_dequantise(t, (t->size / bytes - 1) * elements, elements, out);
    }
}

static void tokenise(const kvb_gguf *g)
{
    static const char text[] = "Hello \xFF w\xC3\xB6rld 123\n\n  the end <|endoftext|>";
    kvb_tokenizer *t;
    uint32_t *ids = NULL;
    size_t count;
    if (kvb_tokenizer_from_gguf(g, &t, NULL) != KVB_OK)
        return;
    if (kvb_tokenizer_encode(t, text, sizeof text - 1, true, &ids, &count, NULL) == KVB_OK)
        for (size_t i = 0; i < count; i++)
            if (ids[i] >= kvb_tokenizer_vocab(t))
                abort();
    free(ids);
    kvb_tokenizer_free(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    kvb_gguf *g;
    if (kvb_gguf_open_memory(data, size, "fuzz", &g, NULL) != KVB_OK)
        return 0;
    read_tensors(g);
    tokenise(g);
    kvb_gguf_close(g);
    return 0;
}
