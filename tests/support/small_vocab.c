#include "tests/support/small_vocab.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/vocab.h"
#include "tests/support/gguf_build.h"

#define SP "\304\240" /* GPT-2's character for a space */
#define US "\342\226\201" /* SentencePiece's */

uint8_t *small_bpe_make(const char *pre, const char *without, size_t *size)
{
    gguf_build b = {0};
    uint32_t count = 0;
    gguf_bytes tokens = {0};
    for (unsigned byte = 0; byte < 256; byte++) {
        char text[5] = "";
        uint32_t code = kvb_bytelevel_code((uint8_t)byte);
        if (byte != 0 && strchr(without, (int)byte) != NULL)
            continue;
        text[0] = (char)(code < 128 ? code : 0xC0 | code >> 6);
        text[1] = (char)(code < 128 ? 0 : 0x80 | (code & 63));
        gguf_bytes_string(&tokens, text);
        count++;
    }
    gguf_bytes_string(&tokens, "ab");
    gguf_bytes_string(&tokens, SP "whole");
    gguf_build_string(&b, "tokenizer.ggml.model", "gpt2");
    gguf_build_string(&b, "tokenizer.ggml.pre", pre);
    gguf_build_array(&b, "tokenizer.ggml.tokens", 8, count + 2);
    gguf_bytes_put(&b.entries, tokens.at, tokens.size);
    gguf_build_array(&b, "tokenizer.ggml.merges", 8, 1);
    gguf_bytes_string(&b.entries, "a b");
    gguf_build_u32(&b, "tokenizer.ggml.bos_token_id", 7);
    free(tokens.at);
    return gguf_build_finish(&b, size);
}

typedef struct spm_token {
    const char *text;
    float score;
    uint32_t type;
} spm_token;

/* What follows the bytes. */
static const spm_token spm_tokens[] = {
    {US, -1.0f, 1}, {"a", -2.0f, 1}, {"b", -3.0f, 1}, {"c", -4.0f, 1}, {US "a", -5.0f, 1}, {"ab", -7.0f, 1},
    {"bc", -6.0f, 1}, {US "ab", -9.0f, 1}, {"abc", -8.0f, 1}, {US US, -1.5f, 1}, {"<user>", 0.0f, 4}, {"s", -9.0f, 1},
    {">", -9.5f, 1}, {"<", -9.6f, 1}, {"s>", -10.0f, 1}, {"\303\251", -11.0f, 1}, {"<user>s", 0.0f, 4},
};
enum { SPM_TOKENS = sizeof spm_tokens / sizeof *spm_tokens };
_Static_assert(SMALL_SPM_VOCAB == 259 + SPM_TOKENS, "the header has another number of tokens");

static void put_spm_arrays(gguf_build *b, const small_spm *o, uint32_t count)
{
    gguf_build_array(b, "tokenizer.ggml.scores", 6, count);
    for (uint32_t id = 0; id < count; id++) {
        float score = id == 0 ? o->first_score : id < 259 || id - 259 >= SPM_TOKENS ? 0.0f : spm_tokens[id - 259].score;
        gguf_bytes_put(&b->entries, &score, 4);
    }
    gguf_build_array(b, "tokenizer.ggml.token_type", 5, o->types ? o->types : count);
    for (uint32_t id = 0; id < (o->types ? o->types : count); id++)
        gguf_bytes_u32(&b->entries, id == 0 ? o->first_type : id < 3 ? 3 : id < 259 ? 6
                                    : id - 259 >= SPM_TOKENS ? 1 : spm_tokens[id - 259].type);
}

uint8_t *small_spm_make(const small_spm *o, size_t *size)
{
    gguf_build b = {0};
    uint32_t count = 259 + SPM_TOKENS + (o->extra ? 1 : 0);
    gguf_build_string(&b, "tokenizer.ggml.model", "llama");
    gguf_build_array(&b, "tokenizer.ggml.tokens", 8, count);
    gguf_bytes_string(&b.entries, "<unk>");
    gguf_bytes_string(&b.entries, "<s>");
    gguf_bytes_string(&b.entries, "</s>");
    for (int byte = 0; byte < 256; byte++) {
        char text[8];
        snprintf(text, sizeof text, "<0x%02X>", byte == o->missing_byte ? 0 : (unsigned)byte);
        gguf_bytes_string(&b.entries, text);
    }
    for (unsigned i = 0; i < SPM_TOKENS; i++)
        gguf_bytes_string(&b.entries, spm_tokens[i].text);
    if (o->extra)
        gguf_bytes_string(&b.entries, o->extra);
    put_spm_arrays(&b, o, count);
    gguf_build_u32(&b, "tokenizer.ggml.bos_token_id", o->bos);
    if (o->no_prefix)
        gguf_build_bool(&b, "tokenizer.ggml.add_space_prefix", 0);
    return gguf_build_finish(&b, size);
}

small_spm small_spm_default(void)
{
    return (small_spm){.missing_byte = -1, .first_type = 2, .bos = 1};
}
