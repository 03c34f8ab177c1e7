/* Vocabulary-only GGUF files small enough to work out every id by hand. */
#ifndef KVB_TESTS_SMALL_VOCAB_H
#define KVB_TESTS_SMALL_VOCAB_H

#include <stddef.h>
#include <stdint.h>

/* Byte-level BPE: the tokens of all bytes but those in `without`, then "ab" with its merge and " whole" with none. */
uint8_t *small_bpe_make(const char *pre, const char *without, size_t *size);

/* SentencePiece: <unk>, <s>, </s>, the 256 bytes, then 17 tokens; see small_vocab.c for their scores. */
enum { SMALL_SPM_VOCAB = 3 + 256 + 17 };

typedef struct small_spm {
    int missing_byte; /* this byte's token is another's; -1: none */
    float first_score;
    uint32_t first_type, bos;
    uint32_t types;    /* as many token types as this, or 0 for one a token */
    const char *extra; /* one token more, of score 0; NULL for none */
    int no_prefix;     /* add_space_prefix is false */
} small_spm;

small_spm small_spm_default(void);
uint8_t *small_spm_make(const small_spm *o, size_t *size);

#endif
