/* llama2.c's tokenizer.bin: u32 longest token, then for each token a float32 score, an i32 length and its text. The
 * texts are SentencePiece's with plain spaces; ids 0, 1 and 2 are <unk>, <s> and </s>, and 3 to 258 the bytes. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/cursor.h"
#include "format/base/fail.h"
#include "format/base/mapfile.h"
#include "model/tokenizer_impl.h"

enum { FIRST_BYTE = 3, FIRST_TEXT = FIRST_BYTE + 256, LONGEST = 65536 };

static const uint64_t largest_file = 1u << 28;

static kvb_status bad(const char *path, uint32_t id, kvb_error *err, const char *message)
{
    char where[300];
    snprintf(where, sizeof where, "%.250s, token %u", path, id);
    return kvb_fail(err, KVB_E_FORMAT, where, "%s", message);
}

static uint8_t type_of(uint32_t id)
{
    if (id == 0)
        return KVB_TOKEN_UNKNOWN;
    if (id < FIRST_BYTE)
        return KVB_TOKEN_CONTROL;
    return id < FIRST_TEXT ? KVB_TOKEN_BYTE : KVB_TOKEN_NORMAL;
}

/* Spaces become U+2581, as everywhere else; `out` has room for three times the size. */
static size_t escape_spaces(const uint8_t *text, size_t size, char *out)
{
    size_t written = 0;
    for (size_t i = 0; i < size; i++) {
        if (text[i] == ' ') {
            memcpy(out + written, "\xE2\x96\x81", 3);
            written += 3;
        } else {
            out[written++] = (char)text[i];
        }
    }
    return written;
}

static kvb_status read_token(kvb_tokenizer *t, kvb_cursor *c, uint32_t id, const char *path, char *scratch,
                             kvb_error *err)
{
    float score = kvb_cursor_f32(c);
    uint32_t size = kvb_cursor_u32(c);
    const uint8_t *text = size <= LONGEST ? kvb_cursor_bytes(c, size) : NULL;
    if (c->failed || text == NULL)
        return bad(path, id, err, "the file ends inside it or its length is over 65536: is it this model's?");
    if (!isfinite(score))
        return bad(path, id, err, "its score is not finite");
    size_t written = escape_spaces(text, size, scratch);
    char byte_text[8];
    if (type_of(id) == KVB_TOKEN_BYTE) {
        snprintf(byte_text, sizeof byte_text, "<0x%02X>", id - FIRST_BYTE);
        if (size != 6 || memcmp(text, byte_text, 6) != 0)
            return bad(path, id, err, "is not the byte token expected here, <0x00> to <0xFF> at ids 3 to 258");
    }
    kvb_vocab_add(&t->vocab, scratch, written, type_of(id), score);
    return KVB_OK;
}

static kvb_status read_tokens(kvb_tokenizer *t, const char *bytes, size_t size, uint32_t vocab, const char *path,
                              kvb_error *err)
{
    kvb_cursor c = kvb_cursor_over(bytes, size);
    kvb_cursor_u32(&c);
    if (vocab < FIRST_TEXT || vocab > INT32_MAX || (uint64_t)vocab * 8 > size)
        return kvb_fail(err, KVB_E_FORMAT, path, "%zu bytes cannot hold the model's %u tokens (at least 259)", size,
                        vocab);
    kvb_status s = kvb_vocab_create(&t->vocab, vocab, 3 * size, err);
    char *scratch = s == KVB_OK ? malloc(3 * LONGEST) : NULL;
    if (s == KVB_OK && scratch == NULL)
        s = kvb_fail_memory(err, path);
    for (uint32_t id = 0; s == KVB_OK && id < vocab; id++)
        s = read_token(t, &c, id, path, scratch, err);
    if (s == KVB_OK && c.at != size)
        s = kvb_fail(err, KVB_E_FORMAT, path, "%zu bytes follow token %u: the model has fewer tokens than this file",
                     size - c.at, vocab - 1);
    free(scratch);
    return s;
}

kvb_status kvb_tokenizer_from_llama2c(const char *path, uint32_t vocab, kvb_tokenizer **out, kvb_error *err)
{
    *out = NULL;
    char *bytes;
    size_t size;
    kvb_status s = kvb_read_file(path, largest_file, &bytes, &size, err);
    if (s != KVB_OK)
        return s;
    kvb_tokenizer *t = calloc(1, sizeof *t);
    if (t == NULL) {
        free(bytes);
        return kvb_fail_memory(err, path);
    }
    t->kind = KVB_TOKENIZER_SPM;
    t->bos = 1;
    t->eos = 2;
    t->wants_bos = t->space_prefix = true;
    s = read_tokens(t, bytes, size, vocab, path, err);
    if (s == KVB_OK) {
        kvb_vocab_index(&t->vocab);
        s = kvb_tokenizer_finish(t, path, err);
    }
    free(bytes);
    if (s != KVB_OK) {
        kvb_tokenizer_free(t);
        return s;
    }
    *out = t;
    return KVB_OK;
}
