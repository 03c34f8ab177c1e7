/* Text to token ids and back, from a model file's own vocabulary. Immutable once made; safe to share among threads. */
#ifndef KVB_MODEL_TOKENIZER_H
#define KVB_MODEL_TOKENIZER_H

#include <stdbool.h>

#include "format/base/json.h"
#include "model/gguf.h"

typedef struct kvb_tokenizer kvb_tokenizer;

/* Byte-level BPE ("gpt2", with the pre-tokenizer that tokenizer.ggml.pre names: default/gpt-2, smollm, llama-bpe,
 * qwen2; another is named in the error) or SentencePiece-style BPE ("llama"). KVB_E_FORMAT where the vocabulary is
 * inconsistent: merges naming unknown tokens, ids out of range, missing byte tokens (all 256 of SentencePiece, the
 * printable ASCII ones of byte-level BPE: such vocabularies often lack rare bytes, which then vanish from a text, as in
 * llama.cpp). A vocabulary without tokenizer.ggml.pre is split by `default`. */
kvb_status kvb_tokenizer_from_gguf(const kvb_gguf *g, kvb_tokenizer **t, kvb_error *err);
/* The same out of tokenizer.json (the library `tokenizers`): BPE, byte-level with one of the patterns above or over characters
 * with byte tokens, merged by rank. A BOS is wanted where post_processor puts one first. `config`: config.json for the ids of
 * BOS and EOS, or NULL. Flags of added tokens other than `special` are not looked at. KVB_E_FORMAT for what is not supported,
 * by its name. */
kvb_status kvb_tokenizer_from_json(const char *path, const kvb_json *config, kvb_tokenizer **t, kvb_error *err);
/* llama2.c's tokenizer.bin, of `vocab` entries (SentencePiece-style). */
kvb_status kvb_tokenizer_from_llama2c(const char *path, uint32_t vocab, kvb_tokenizer **t, kvb_error *err);
void kvb_tokenizer_free(kvb_tokenizer *t);

uint32_t kvb_tokenizer_vocab(const kvb_tokenizer *t);
/* SHA-256 over everything that decides the ids: model kind, pre-tokenizer, tokens, merges, scores, types, flags. */
const uint8_t *kvb_tokenizer_id(const kvb_tokenizer *t);
/* Special ids, or -1. */
int32_t kvb_tokenizer_bos(const kvb_tokenizer *t);
int32_t kvb_tokenizer_eos(const kvb_tokenizer *t);
/* Whether the file asks for a BOS before each text. */
bool kvb_tokenizer_wants_bos(const kvb_tokenizer *t);

/* Encodes UTF-8 bytes; adds no BOS. Text is data: with `parse_special` false (evaluation, calibration) a special
 * token's spelling inside the text is ordinary text; with true (prompts) it becomes that token. User-defined tokens of
 * the vocabulary are tokens always. Both as in llama.cpp, but that a special token never forms by merging. Invalid UTF-8
 * does not fail: each offending byte is tokenised as U+FFFD. Ids are allocated; free with free(). */
kvb_status kvb_tokenizer_encode(const kvb_tokenizer *t, const char *text, size_t size, bool parse_special,
                                uint32_t **ids, size_t *count, kvb_error *err);
/* Bytes of one token (not NUL-terminated; may be part of a UTF-8 sequence). Ids out of range give size 0. */
const char *kvb_tokenizer_bytes(const kvb_tokenizer *t, uint32_t id, size_t *size);

#endif
