/* The tokens of a model: their texts, what they print, and the search from text to id. */
#ifndef KVB_MODEL_VOCAB_H
#define KVB_MODEL_VOCAB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "format/base/sha256.h"
#include "kvbook/status.h"

enum { KVB_NO_TOKEN = -1 };

/* The numbers are GGUF's. */
typedef enum kvb_token_type {
    KVB_TOKEN_UNDEFINED = 0, KVB_TOKEN_NORMAL = 1, KVB_TOKEN_UNKNOWN = 2, KVB_TOKEN_CONTROL = 3, KVB_TOKEN_USER = 4,
    KVB_TOKEN_UNUSED = 5, KVB_TOKEN_BYTE = 6,
} kvb_token_type;

typedef struct kvb_vocab {
    uint32_t count;
    char *text;      /* of all tokens, one after the other: as the file has them */
    size_t *text_at; /* [count + 1] */
    char *piece;     /* the bytes that a token stands for */
    size_t *piece_at;
    float *scores;
    uint8_t *types;
    uint32_t *slots; /* hash of texts: id + 1, 0 where empty */
    uint32_t mask;
    size_t longest; /* text */
} kvb_vocab;

/* Room for `count` tokens of `bytes` bytes of text in all; KVB_E_MEMORY only. */
kvb_status kvb_vocab_create(kvb_vocab *v, uint32_t count, size_t bytes, kvb_error *err);
void kvb_vocab_free(kvb_vocab *v);
/* Appends a token; the caller keeps to what it said at creation. */
void kvb_vocab_add(kvb_vocab *v, const char *text, size_t size, uint8_t type, float score);
/* Makes the texts searchable. Where two tokens have one text, ordinary ones win over special ones, later ones over
 * earlier. */
void kvb_vocab_index(kvb_vocab *v);

/* What each token prints: of byte-level BPE (characters that stand for bytes), or of SentencePiece (U+2581 for a space,
 * <0xNN> for a byte). Special tokens print their text. */
void kvb_vocab_pieces_bytelevel(kvb_vocab *v);
void kvb_vocab_pieces_spm(kvb_vocab *v);

const char *kvb_vocab_text(const kvb_vocab *v, uint32_t id, size_t *size);
/* The token of this text, or KVB_NO_TOKEN. */
int64_t kvb_vocab_find(const kvb_vocab *v, const char *text, size_t size);
/* The same among tokens that ordinary text may become: no control, unknown or byte tokens. */
int64_t kvb_vocab_find_ordinary(const kvb_vocab *v, const char *text, size_t size);
bool kvb_vocab_is_special(const kvb_vocab *v, uint32_t id); /* control or unknown */

void kvb_vocab_hash(const kvb_vocab *v, kvb_sha256 *s);

/* GPT-2's way to write byte `b` as a printable character: its code point. */
uint32_t kvb_bytelevel_code(uint8_t b);

#endif
