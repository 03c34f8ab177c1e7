#include "tests/support/tiny_llama2c.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "format/base/rng.h"

tiny_llama2c tiny_llama2c_default(void)
{
    return (tiny_llama2c){48, 80, 3, 6, 2, 272, 320, true, 1, UINT64_MAX};
}

uint64_t tiny_llama2c_floats(const tiny_llama2c *t)
{
    uint64_t e = t->embedding, dim = e / t->heads, kv = t->kv_heads * dim;
    uint64_t layer = 2 * e + 2 * e * e + 2 * e * kv + 3 * e * t->ffn;
    return t->vocab * e * (t->shared ? 1 : 2) + t->layers * layer + e + t->context * dim;
}

static float weight_at(const tiny_llama2c *t, uint64_t i)
{
    if (i == t->nan_at)
        return NAN;
    double spread = 2.0 * kvb_rng_unit(kvb_rng_key(t->seed, 0, 0, 0, 0), i) - 1.0;
    return (float)(0.45 * spread);
}

static bool write_model(const tiny_llama2c *t, const char *path)
{
    FILE *f = fopen(path, "wb");
    if (f == NULL)
        return false;
    int32_t vocab = t->shared ? (int32_t)t->vocab : -(int32_t)t->vocab;
    int32_t header[7] = {(int32_t)t->embedding, (int32_t)t->ffn, (int32_t)t->layers, (int32_t)t->heads,
                         (int32_t)t->kv_heads, vocab, (int32_t)t->context};
    bool ok = fwrite(header, sizeof header, 1, f) == 1;
    for (uint64_t i = 0, n = tiny_llama2c_floats(t); i < n && ok; i++) {
        float w = weight_at(t, i);
        ok = fwrite(&w, sizeof w, 1, f) == 1;
    }
    return (fclose(f) == 0) && ok;
}

/* Ids 0..2 are <unk>, <s>, </s>; 3..258 the bytes; then pairs of letters. */
static void token_text(uint32_t id, char *text)
{
    static const char *const special[] = {"<unk>", "\n<s>\n", "\n</s>\n"};
    if (id < 3)
        strcpy(text, special[id]);
    else if (id < 259)
        sprintf(text, "<0x%02X>", id - 3);
    else
        sprintf(text, "%c%c", 'a' + (int)(id - 259) % 26, 'e');
}

static bool write_tokenizer(const tiny_llama2c *t, const char *path)
{
    FILE *f = fopen(path, "wb");
    if (f == NULL)
        return false;
    int32_t longest = 8;
    bool ok = fwrite(&longest, 4, 1, f) == 1;
    for (uint32_t id = 0; id < t->vocab && ok; id++) {
        char text[16];
        float score = id < 259 ? 0.0f : -(float)id;
        token_text(id, text);
        int32_t length = (int32_t)strlen(text);
        ok = fwrite(&score, 4, 1, f) == 1 && fwrite(&length, 4, 1, f) == 1 &&
             fwrite(text, (size_t)length, 1, f) == 1;
    }
    return (fclose(f) == 0) && ok;
}

bool tiny_llama2c_write(const tiny_llama2c *t, const char *model_path, const char *tokenizer_path)
{
    return (model_path == NULL || write_model(t, model_path)) &&
           (tokenizer_path == NULL || write_tokenizer(t, tokenizer_path));
}
