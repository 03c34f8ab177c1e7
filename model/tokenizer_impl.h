/* What the parts of the tokenizer share: the vocabulary with its merges, and the state of one call of encode. */
#ifndef KVB_MODEL_TOKENIZER_IMPL_H
#define KVB_MODEL_TOKENIZER_IMPL_H

#include "model/merge.h"
#include "model/pretokenize.h"
#include "model/tokenizer.h"
#include "model/vocab.h"

typedef enum kvb_tokenizer_kind { KVB_TOKENIZER_BPE, KVB_TOKENIZER_SPM } kvb_tokenizer_kind;

/* Merges by rank: an open-addressed table from a pair of ids to its rank and the id of both together. */
typedef struct kvb_merges {
    uint64_t *pairs; /* left << 32 | right; UINT64_MAX where empty */
    uint32_t *ranks, *ids;
    uint64_t mask;
    uint8_t digest[32]; /* of all pairs in the order of their ranks */
} kvb_merges;

struct kvb_tokenizer {
    kvb_tokenizer_kind kind;
    kvb_vocab vocab;
    int32_t bos, eos;
    bool wants_bos;
    uint32_t *special; /* ids that parse_special and user-defined tokens need: longest text first */
    size_t special_count;
    int64_t byte_id[256]; /* KVB_NO_TOKEN where the vocabulary has none */
    uint8_t id[32];
    kvb_merges merges;    /* of byte-level BPE always; SentencePiece without them merges by score */
    kvb_pretokenizer *pre; /* of byte-level BPE */
    /* SentencePiece */
    bool space_prefix;       /* a space before each run of ordinary text, */
    bool space_prefix_first; /* but only at the start of the whole text, */
    bool space_prefix_once;  /* and only where there is none yet */
    bool space_starts_word; /* no token has a space after anything but a space, so that words merge on their own */
};

/* Ids in the making. */
typedef struct kvb_ids {
    uint32_t *at;
    size_t count, room;
} kvb_ids;

bool kvb_ids_push(kvb_ids *ids, uint32_t id); /* false if out of memory */

/* A word met before, in this call. */
typedef struct kvb_word {
    uint64_t hash;
    size_t text, ids; /* offsets into the cache's texts and ids */
    uint32_t size, id_count;
} kvb_word;

enum { KVB_WORD_SLOTS = 1 << 16, KVB_WORD_LONGEST = 48 };

typedef struct kvb_encoder {
    const kvb_tokenizer *t;
    kvb_error *err;
    kvb_ids out;
    kvb_merger merger;
    kvb_word *words; /* [KVB_WORD_SLOTS]; size 0 where empty */
    size_t word_count;
    char *word_text;
    size_t word_text_size;
    kvb_ids word_ids;
    char *mapped; /* scratch for a word written in GPT-2's characters */
} kvb_encoder;

/* Appends the ids of a word (a piece of text that merges on its own), out of the cache where it has been met. */
kvb_status kvb_encoder_word(kvb_encoder *e, const char *word, size_t size);
/* The parts of encoding that differ: cut a run of ordinary text into words; fill in the symbols of a word; say which
 * merge; put out one symbol that is left. */
kvb_status kvb_bpe_encode(kvb_encoder *e, const char *text, size_t size);
kvb_status kvb_spm_encode(kvb_encoder *e, const char *text, size_t size, bool prefix);
size_t kvb_bpe_symbols(const kvb_tokenizer *t, const char *word, size_t size, kvb_symbol *symbols);
size_t kvb_spm_symbols(const kvb_tokenizer *t, const char *word, size_t size, kvb_symbol *symbols);
/* A word that needs no merges, or KVB_NO_TOKEN. */
int64_t kvb_bpe_whole_word(const kvb_encoder *e, const char *word, size_t size);

/* Where a word is and whose it is: what merging asks. */
typedef struct kvb_merge_view {
    const kvb_tokenizer *t;
    const char *word;
} kvb_merge_view;

bool kvb_bpe_merge(const void *view, const kvb_symbol *left, const kvb_symbol *right, double *priority, uint32_t *id);
bool kvb_spm_merge(const void *view, const kvb_symbol *left, const kvb_symbol *right, double *priority, uint32_t *id);

/* Run once all of the vocabulary is there: kind, vocab, flags, and for BPE pre and merges. `path` is for errors. */
kvb_status kvb_tokenizer_finish(kvb_tokenizer *t, const char *path, kvb_error *err);
kvb_status kvb_merges_create(kvb_merges *m, size_t count, kvb_error *err);
/* Adds the merge of joined[0 .. left_size) and the rest up to `size`, and hashes its ids. NULL, or which of its three tokens
 * the vocabulary lacks. */
const char *kvb_tokenizer_add_merge(kvb_tokenizer *t, const char *joined, size_t left_size, size_t size, uint32_t rank,
                                    kvb_sha256 *digest);
/* A pair that is there already keeps its rank. */
void kvb_merges_add(kvb_merges *m, uint32_t left, uint32_t right, uint32_t rank, uint32_t id);
/* The index of a pair, or UINT64_MAX. */
uint64_t kvb_merges_find(const kvb_merges *m, uint32_t left, uint32_t right);
void kvb_merges_free(kvb_merges *m);

#endif
