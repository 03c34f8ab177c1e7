#include "model/vocab.h"

#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/rng.h"
#include "format/base/utf8.h"

kvb_status kvb_vocab_create(kvb_vocab *v, uint32_t count, size_t bytes, kvb_error *err)
{
    *v = (kvb_vocab){0};
    size_t slots = 16;
    while (slots < 2 * (size_t)count)
        slots *= 2;
    v->mask = (uint32_t)(slots - 1);
    v->text = kvb_alloc_array(bytes, 1);
    v->piece = kvb_alloc_array(bytes, 1);
    v->text_at = kvb_alloc_zeroed((size_t)count + 1, sizeof *v->text_at);
    v->piece_at = kvb_alloc_zeroed((size_t)count + 1, sizeof *v->piece_at);
    v->scores = kvb_alloc_array(count, sizeof *v->scores);
    v->types = kvb_alloc_array(count, 1);
    v->slots = kvb_alloc_zeroed(slots, sizeof *v->slots);
    if (!v->text || !v->piece || !v->text_at || !v->piece_at || !v->scores || !v->types || !v->slots) {
        kvb_vocab_free(v);
        return kvb_fail_memory(err, "vocabulary");
    }
    return KVB_OK;
}

void kvb_vocab_free(kvb_vocab *v)
{
    free(v->text);
    free(v->piece);
    free(v->text_at);
    free(v->piece_at);
    free(v->scores);
    free(v->types);
    free(v->slots);
    *v = (kvb_vocab){0};
}

void kvb_vocab_add(kvb_vocab *v, const char *text, size_t size, uint8_t type, float score)
{
    size_t at = v->text_at[v->count];
    memcpy(v->text + at, text, size);
    v->types[v->count] = type;
    v->scores[v->count] = score;
    v->text_at[++v->count] = at + size;
    v->longest = size > v->longest ? size : v->longest;
}

const char *kvb_vocab_text(const kvb_vocab *v, uint32_t id, size_t *size)
{
    *size = v->text_at[id + 1] - v->text_at[id];
    return v->text + v->text_at[id];
}

bool kvb_vocab_is_special(const kvb_vocab *v, uint32_t id)
{
    return v->types[id] == KVB_TOKEN_CONTROL || v->types[id] == KVB_TOKEN_UNKNOWN;
}

/* The slot that holds this text, or the empty one where it would go. */
static uint32_t *slot_of(const kvb_vocab *v, const char *text, size_t size)
{
    uint64_t hash = 0xCBF29CE484222325u; /* FNV-1a, then mixed, since its low bits are weak */
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ (uint8_t)text[i]) * 0x100000001B3u;
    for (uint32_t at = (uint32_t)kvb_mix64(hash) & v->mask;; at = (at + 1) & v->mask) {
        if (v->slots[at] == 0)
            return &v->slots[at];
        size_t have;
        const char *there = kvb_vocab_text(v, v->slots[at] - 1, &have);
        if (have == size && memcmp(there, text, size) == 0)
            return &v->slots[at];
    }
}

void kvb_vocab_index(kvb_vocab *v)
{
    for (uint32_t id = 0; id < v->count; id++) {
        size_t size;
        const char *text = kvb_vocab_text(v, id, &size);
        if (size == 0)
            continue;
        uint32_t *slot = slot_of(v, text, size);
        if (*slot == 0 || kvb_vocab_is_special(v, *slot - 1) || !kvb_vocab_is_special(v, id))
            *slot = id + 1;
    }
}

int64_t kvb_vocab_find(const kvb_vocab *v, const char *text, size_t size)
{
    if (size == 0 || size > v->longest)
        return KVB_NO_TOKEN;
    return (int64_t)*slot_of(v, text, size) - 1;
}

int64_t kvb_vocab_find_ordinary(const kvb_vocab *v, const char *text, size_t size)
{
    int64_t id = kvb_vocab_find(v, text, size);
    if (id < 0 || kvb_vocab_is_special(v, (uint32_t)id) || v->types[id] == KVB_TOKEN_BYTE)
        return KVB_NO_TOKEN;
    return id;
}

void kvb_vocab_hash(const kvb_vocab *v, kvb_sha256 *s)
{
    for (uint32_t id = 0; id < v->count; id++) {
        size_t size;
        const char *text = kvb_vocab_text(v, id, &size);
        uint32_t score;
        memcpy(&score, &v->scores[id], sizeof score);
        uint8_t head[13];
        for (unsigned i = 0; i < 8; i++)
            head[i] = (uint8_t)((uint64_t)size >> (8 * i));
        for (unsigned i = 0; i < 4; i++)
            head[8 + i] = (uint8_t)(score >> (8 * i));
        head[12] = v->types[id];
        kvb_sha256_add(s, head, sizeof head);
        kvb_sha256_add(s, text, size);
    }
}

/* Printable Latin-1 bytes stand for themselves, the other 68 take the code points from 256 on, in order. */
uint32_t kvb_bytelevel_code(uint8_t b)
{
    if (b <= 0x20)
        return 256u + b;
    if (b >= 0x7F && b <= 0xA0)
        return 256u + 33u + (uint32_t)(b - 0x7F);
    return b == 0xAD ? 256u + 67u : b;
}

/* The byte that a code point stands for, or -1. */
static int byte_of_code(uint32_t code)
{
    if (code >= 256u && code <= 256u + 32u)
        return (int)(code - 256u);
    if (code >= 256u + 33u && code <= 256u + 66u)
        return (int)(code - 256u - 33u + 0x7F);
    if (code == 256u + 67u)
        return 0xAD;
    return code < 256u && kvb_bytelevel_code((uint8_t)code) == code ? (int)code : -1;
}

/* The code point of a two-byte or one-byte sequence; characters that stand for bytes need no more. */
static uint32_t short_code(const uint8_t *text, size_t length)
{
    return length == 1 ? text[0] : length == 2 ? (text[0] & 31u) << 6 | (text[1] & 63u) : UINT32_MAX;
}

static size_t decode_bytelevel(const char *text, size_t size, char *out)
{
    size_t written = 0;
    for (size_t at = 0; at < size;) {
        const uint8_t *here = (const uint8_t *)text + at;
        size_t length = kvb_utf8_length(here, size - at);
        length = length ? length : 1;
        int byte = byte_of_code(short_code(here, length));
        if (byte >= 0) {
            out[written++] = (char)byte;
        } else {
            memcpy(out + written, here, length);
            written += length;
        }
        at += length;
    }
    return written;
}

static size_t decode_spm(const char *text, size_t size, char *out)
{
    size_t written = 0;
    for (size_t at = 0; at < size;) {
        bool space = size - at >= 3 && memcmp(text + at, "\xE2\x96\x81", 3) == 0;
        out[written++] = space ? ' ' : text[at];
        at += space ? 3 : 1;
    }
    return written;
}

static size_t decode_byte_token(const char *text, size_t size, char *out)
{
    char digits[3] = "";
    if (size != 6)
        return 0;
    memcpy(digits, text + 3, 2);
    out[0] = (char)strtoul(digits, NULL, 16);
    return 1;
}

typedef size_t (*decoder)(const char *text, size_t size, char *out);

static void make_pieces(kvb_vocab *v, decoder normal)
{
    for (uint32_t id = 0; id < v->count; id++) {
        size_t size;
        const char *text = kvb_vocab_text(v, id, &size);
        char *out = v->piece + v->piece_at[id];
        size_t written = size;
        if (v->types[id] == KVB_TOKEN_BYTE)
            written = decode_byte_token(text, size, out);
        else if (kvb_vocab_is_special(v, id) || v->types[id] == KVB_TOKEN_USER)
            memcpy(out, text, size);
        else
            written = normal(text, size, out);
        v->piece_at[id + 1] = v->piece_at[id] + written;
    }
}

void kvb_vocab_pieces_bytelevel(kvb_vocab *v)
{
    make_pieces(v, decode_bytelevel);
}

void kvb_vocab_pieces_spm(kvb_vocab *v)
{
    make_pieces(v, decode_spm);
}
