/* Cutting text into the words that byte-level BPE never merges across. Each scheme is a list of patterns applied in
 * turn: a pattern cuts every piece so far into its matches and what lies between them. */
#ifndef KVB_MODEL_PRETOKENIZE_H
#define KVB_MODEL_PRETOKENIZE_H

#include <stdbool.h>
#include <stddef.h>

#include "kvbook/status.h"

typedef struct kvb_pretokenizer kvb_pretokenizer;

/* A scheme by its name in tokenizer.ggml.pre. KVB_E_FORMAT (with `path`) for one we do not know. */
kvb_status kvb_pretokenizer_create(const char *name, const char *path, kvb_pretokenizer **p, kvb_error *err);
void kvb_pretokenizer_free(kvb_pretokenizer *p);

/* The scheme that cuts as tokenizer.json does: by its pattern, in that file's spelling, or "" for GPT-2's own; `digits`: each
 * digit is cut out first. NULL for patterns that are not known. */
const char *kvb_pretokenizer_of_pattern(const char *pattern, bool digits);

/* Vocabularies of this scheme: a word that is a token whole needs no merges; texts start with BOS unless the file says
 * otherwise. */
bool kvb_pretokenizer_whole_words(const kvb_pretokenizer *p);
bool kvb_pretokenizer_wants_bos(const kvb_pretokenizer *p);
/* The same for all names of one scheme. */
const char *kvb_pretokenizer_scheme(const kvb_pretokenizer *p);

/* The ends of the words of a text that is valid UTF-8; they cover it without gaps. Free *ends with free(). */
kvb_status kvb_pretokenizer_split(const kvb_pretokenizer *p, const char *text, size_t size, size_t **ends,
                                  size_t *count, kvb_error *err);

#endif
