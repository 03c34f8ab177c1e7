/* One word to ids, with a cache: text repeats its words. */
#include <stdlib.h>
#include <string.h>

#include "format/base/fail.h"
#include "format/base/rng.h"
#include "model/tokenizer_impl.h"

bool kvb_ids_push(kvb_ids *ids, uint32_t id)
{
    if (ids->count == ids->room) {
        size_t room = ids->room ? 2 * ids->room : 256;
        uint32_t *grown = realloc(ids->at, room * sizeof *grown);
        if (grown == NULL)
            return false;
        ids->at = grown;
        ids->room = room;
    }
    ids->at[ids->count++] = id;
    return true;
}

/* A symbol that is no token: SentencePiece spells it in byte tokens. Byte-level symbols that are none are bytes that
 * the vocabulary lacks: they vanish, as in llama.cpp and in the library that such vocabularies come from. */
static bool put_symbol(kvb_encoder *e, const char *word, const kvb_symbol *s)
{
    if (s->id >= 0)
        return kvb_ids_push(&e->out, (uint32_t)s->id);
    for (uint32_t i = 0; i < s->size; i++) {
        int64_t id = e->t->byte_id[(uint8_t)word[s->at + i]];
        if (id >= 0 && !kvb_ids_push(&e->out, (uint32_t)id))
            return false;
    }
    return true;
}

static bool encode_word(kvb_encoder *e, const char *word, size_t size)
{
    const kvb_tokenizer *t = e->t;
    bool bpe = t->kind == KVB_TOKENIZER_BPE;
    int64_t whole = bpe ? kvb_bpe_whole_word(e, word, size) : KVB_NO_TOKEN;
    if (whole >= 0)
        return kvb_ids_push(&e->out, (uint32_t)whole);
    if (!kvb_merger_reserve(&e->merger, size))
        return false;
    kvb_symbol *symbols = e->merger.symbols;
    size_t count = bpe ? kvb_bpe_symbols(t, word, size, symbols) : kvb_spm_symbols(t, word, size, symbols);
    kvb_merge_view view = {t, word};
    if (!kvb_merger_run(&e->merger, count, t->merges.pairs != NULL ? kvb_bpe_merge : kvb_spm_merge, &view))
        return false;
    for (uint32_t i = 0; i != KVB_MERGE_END; i = symbols[i].next)
        if (!put_symbol(e, word, &symbols[i]))
            return false;
    return true;
}

static uint64_t hash_word(const char *word, size_t size)
{
    uint64_t hash = size;
    for (size_t at = 0; at < size; at += 8) {
        uint64_t part = 0;
        memcpy(&part, word + at, size - at < 8 ? size - at : 8);
        hash = kvb_mix64(hash ^ part);
    }
    return hash;
}

/* The entry of a word, or the empty one where it would go. The table is never full: see remember(). */
static kvb_word *find_word(const kvb_encoder *e, const char *word, size_t size, uint64_t hash)
{
    for (size_t at = hash % KVB_WORD_SLOTS;; at = (at + 1) % KVB_WORD_SLOTS) {
        kvb_word *w = &e->words[at];
        if (w->size == 0 || (w->hash == hash && w->size == size && memcmp(e->word_text + w->text, word, size) == 0))
            return w;
    }
}

static bool remember(kvb_encoder *e, kvb_word *w, const char *word, size_t size, uint64_t hash, size_t first)
{
    if (e->word_count >= KVB_WORD_SLOTS / 2)
        return true;
    *w = (kvb_word){.hash = hash, .text = e->word_text_size, .ids = e->word_ids.count, .size = (uint32_t)size,
                    .id_count = (uint32_t)(e->out.count - first)};
    memcpy(e->word_text + e->word_text_size, word, size);
    e->word_text_size += size;
    e->word_count++;
    for (size_t i = first; i < e->out.count; i++)
        if (!kvb_ids_push(&e->word_ids, e->out.at[i]))
            return false;
    return true;
}

static bool encode_cached(kvb_encoder *e, const char *word, size_t size)
{
    uint64_t hash = hash_word(word, size);
    kvb_word *w = find_word(e, word, size, hash);
    size_t first = e->out.count;
    if (w->size == 0)
        return encode_word(e, word, size) && remember(e, w, word, size, hash, first);
    for (uint32_t i = 0; i < w->id_count; i++)
        if (!kvb_ids_push(&e->out, e->word_ids.at[w->ids + i]))
            return false;
    return true;
}

kvb_status kvb_encoder_word(kvb_encoder *e, const char *word, size_t size)
{
    if (size == 0)
        return KVB_OK;
    if (size >= KVB_MERGE_END)
        return kvb_fail(e->err, KVB_E_FORMAT, "text", "a word of %zu bytes without a break: at most %u", size,
                        (unsigned)KVB_MERGE_END);
    bool ok = size <= KVB_WORD_LONGEST ? encode_cached(e, word, size) : encode_word(e, word, size);
    return ok ? KVB_OK : kvb_fail_memory(e->err, "tokens of a text");
}
