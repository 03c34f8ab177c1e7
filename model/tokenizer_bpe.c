#include <stdlib.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/rng.h"
#include "format/base/utf8.h"
#include "model/tokenizer_impl.h"

kvb_status kvb_merges_create(kvb_merges *m, size_t count, kvb_error *err)
{
    size_t slots = 16;
    while (slots < 2 * count)
        slots *= 2;
    m->mask = slots - 1;
    m->pairs = kvb_alloc_array(slots, sizeof *m->pairs);
    m->ranks = kvb_alloc_array(slots, sizeof *m->ranks);
    m->ids = kvb_alloc_array(slots, sizeof *m->ids);
    if (m->pairs == NULL || m->ranks == NULL || m->ids == NULL) {
        kvb_merges_free(m);
        return kvb_fail_memory(err, "merges of a vocabulary");
    }
    for (size_t i = 0; i < slots; i++)
        m->pairs[i] = UINT64_MAX;
    return KVB_OK;
}

void kvb_merges_free(kvb_merges *m)
{
    free(m->pairs);
    free(m->ranks);
    free(m->ids);
    *m = (kvb_merges){0};
}

/* The slot of a pair, or the empty one where it would go. */
static uint64_t slot_of(const kvb_merges *m, uint64_t pair)
{
    uint64_t at = kvb_mix64(pair) & m->mask;
    while (m->pairs[at] != UINT64_MAX && m->pairs[at] != pair)
        at = (at + 1) & m->mask;
    return at;
}

void kvb_merges_add(kvb_merges *m, uint32_t left, uint32_t right, uint32_t rank, uint32_t id)
{
    uint64_t pair = (uint64_t)left << 32 | right, at = slot_of(m, pair);
    if (m->pairs[at] == pair)
        return;
    m->pairs[at] = pair;
    m->ranks[at] = rank;
    m->ids[at] = id;
}

const char *kvb_tokenizer_add_merge(kvb_tokenizer *t, const char *joined, size_t left_size, size_t size, uint32_t rank,
                                    kvb_sha256 *digest)
{
    const int64_t left = kvb_vocab_find(&t->vocab, joined, left_size);
    const int64_t right = kvb_vocab_find(&t->vocab, joined + left_size, size - left_size);
    const int64_t both = kvb_vocab_find(&t->vocab, joined, size);
    if (left < 0 || right < 0 || both < 0)
        return left < 0 ? "the left token" : right < 0 ? "the right token" : "the merged token";
    kvb_merges_add(&t->merges, (uint32_t)left, (uint32_t)right, rank, (uint32_t)both);
    const uint32_t ids[2] = {(uint32_t)left, (uint32_t)right};
    uint8_t bytes[8];
    for (unsigned i = 0; i < 8; i++)
        bytes[i] = (uint8_t)(ids[i / 4] >> (8 * (i % 4)));
    kvb_sha256_add(digest, bytes, sizeof bytes);
    return NULL;
}

uint64_t kvb_merges_find(const kvb_merges *m, uint32_t left, uint32_t right)
{
    uint64_t at = slot_of(m, (uint64_t)left << 32 | right);
    return m->pairs[at] == UINT64_MAX ? UINT64_MAX : at;
}

bool kvb_bpe_merge(const void *user, const kvb_symbol *left, const kvb_symbol *right, double *priority, uint32_t *id)
{
    const kvb_merge_view *view = user;
    if (left->id < 0 || right->id < 0)
        return false;
    uint64_t at = kvb_merges_find(&view->t->merges, (uint32_t)left->id, (uint32_t)right->id);
    if (at == UINT64_MAX)
        return false;
    *priority = -(double)view->t->merges.ranks[at];
    *id = view->t->merges.ids[at];
    return true;
}

size_t kvb_bpe_symbols(const kvb_tokenizer *t, const char *word, size_t size, kvb_symbol *symbols)
{
    for (size_t i = 0; i < size; i++)
        symbols[i] = (kvb_symbol){.at = (uint32_t)i, .size = 1, .id = t->byte_id[(uint8_t)word[i]]};
    return size;
}

int64_t kvb_bpe_whole_word(const kvb_encoder *e, const char *word, size_t size)
{
    if (size > e->t->vocab.longest || !kvb_pretokenizer_whole_words(e->t->pre))
        return KVB_NO_TOKEN;
    size_t written = 0;
    for (size_t i = 0; i < size; i++)
        written += kvb_utf8_put((uint8_t *)e->mapped + written, kvb_bytelevel_code((uint8_t)word[i]));
    return kvb_vocab_find_ordinary(&e->t->vocab, e->mapped, written);
}

kvb_status kvb_bpe_encode(kvb_encoder *e, const char *text, size_t size)
{
    size_t *ends, count, from = 0;
    kvb_status status = kvb_pretokenizer_split(e->t->pre, text, size, &ends, &count, e->err);
    for (size_t i = 0; status == KVB_OK && i < count; from = ends[i++])
        status = kvb_encoder_word(e, text + from, ends[i] - from);
    free(ends);
    return status;
}
