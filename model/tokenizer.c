#include "model/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "format/base/fail.h"
#include "format/base/utf8.h"
#include "model/tokenizer_impl.h"

/* A run of ordinary text, or one special token. */
typedef struct fragment {
    size_t from, size;
    int64_t id;
} fragment;

typedef struct fragments {
    fragment *at;
    size_t count, room;
} fragments;

void kvb_tokenizer_free(kvb_tokenizer *t)
{
    if (t == NULL)
        return;
    kvb_vocab_free(&t->vocab);
    kvb_merges_free(&t->merges);
    kvb_pretokenizer_free(t->pre);
    free(t->special);
    free(t);
}

uint32_t kvb_tokenizer_vocab(const kvb_tokenizer *t)
{
    return t->vocab.count;
}

const uint8_t *kvb_tokenizer_id(const kvb_tokenizer *t)
{
    return t->id;
}

int32_t kvb_tokenizer_bos(const kvb_tokenizer *t)
{
    return t->bos;
}

int32_t kvb_tokenizer_eos(const kvb_tokenizer *t)
{
    return t->eos;
}

bool kvb_tokenizer_wants_bos(const kvb_tokenizer *t)
{
    return t->wants_bos;
}

const char *kvb_tokenizer_bytes(const kvb_tokenizer *t, uint32_t id, size_t *size)
{
    const kvb_vocab *v = &t->vocab;
    *size = id < v->count ? v->piece_at[id + 1] - v->piece_at[id] : 0;
    return id < v->count ? v->piece + v->piece_at[id] : "";
}

/* The text with each byte that is no part of valid UTF-8 replaced by U+FFFD; NULL and *bad = 0 where there is none. */
static char *repair_utf8(const char *text, size_t size, size_t *repaired, size_t *bad)
{
    const uint8_t *bytes = (const uint8_t *)text;
    *bad = 0;
    for (size_t at = 0, step; at < size; at += step ? step : 1)
        *bad += (step = kvb_utf8_length(bytes + at, size - at)) == 0;
    if (*bad == 0 || *bad > (SIZE_MAX - size) / 2)
        return NULL;
    char *out = malloc(size + 2 * *bad);
    *repaired = 0;
    for (size_t at = 0; out != NULL && at < size;) {
        size_t step = kvb_utf8_length(bytes + at, size - at);
        memcpy(out + *repaired, step ? text + at : "\xEF\xBF\xBD", step ? step : 3);
        *repaired += step ? step : 3;
        at += step ? step : 1;
    }
    return out;
}

static bool push_fragment(fragments *f, size_t from, size_t size, int64_t id)
{
    if (size == 0)
        return true;
    if (f->count == f->room) {
        size_t room = f->room ? 2 * f->room : 16;
        fragment *grown = realloc(f->at, room * sizeof *grown);
        if (grown == NULL)
            return false;
        f->at = grown;
        f->room = room;
    }
    f->at[f->count++] = (fragment){from, size, id};
    return true;
}

/* Cuts every run of ordinary text at the occurrences of one special token. */
static bool cut_at(const char *text, const char *token, size_t token_size, int64_t id, const fragments *in,
                   fragments *out)
{
    out->count = 0;
    for (size_t i = 0; i < in->count; i++) {
        fragment f = in->at[i];
        const char *hit;
        while (f.id < 0 && (hit = memmem(text + f.from, f.size, token, token_size)) != NULL) {
            size_t before = (size_t)(hit - text) - f.from;
            if (!push_fragment(out, f.from, before, KVB_NO_TOKEN) ||
                !push_fragment(out, f.from + before, token_size, id))
                return false;
            f.from += before + token_size;
            f.size -= before + token_size;
        }
        if (!push_fragment(out, f.from, f.size, f.id))
            return false;
    }
    return true;
}

/* As llama.cpp does it: longer tokens first, user-defined ones always, control and unknown ones only if asked. */
static bool cut_specials(const kvb_tokenizer *t, const char *text, size_t size, bool parse_special, fragments *result)
{
    fragments next = {0};
    bool ok = push_fragment(result, 0, size, KVB_NO_TOKEN);
    for (size_t i = 0; ok && i < t->special_count; i++) {
        uint32_t id = t->special[i];
        size_t token_size;
        const char *token = kvb_vocab_text(&t->vocab, id, &token_size);
        if (!parse_special && kvb_vocab_is_special(&t->vocab, id))
            continue;
        if (memmem(text, size, token, token_size) == NULL)
            continue;
        ok = cut_at(text, token, token_size, id, result, &next);
        fragments swap = *result;
        *result = next;
        next = swap;
    }
    free(next.at);
    return ok;
}

static bool wants_space(const kvb_tokenizer *t, const char *text, const fragment *part)
{
    if (!t->space_prefix || (t->space_prefix_first && part->from != 0))
        return false;
    return !(t->space_prefix_once && part->size > 0 && text[part->from] == ' ');
}

static kvb_status encode_fragments(kvb_encoder *e, const char *text, const fragments *f)
{
    const kvb_tokenizer *t = e->t;
    kvb_status status = KVB_OK;
    for (size_t i = 0; status == KVB_OK && i < f->count; i++) {
        const fragment *part = &f->at[i];
        if (part->id >= 0)
            status = kvb_ids_push(&e->out, (uint32_t)part->id) ? KVB_OK : kvb_fail_memory(e->err, "tokens of a text");
        else if (t->kind == KVB_TOKENIZER_BPE)
            status = kvb_bpe_encode(e, text + part->from, part->size);
        else
            status = kvb_spm_encode(e, text + part->from, part->size, wants_space(t, text, part));
    }
    return status;
}

static bool encoder_begin(kvb_encoder *e, const kvb_tokenizer *t, kvb_error *err)
{
    *e = (kvb_encoder){.t = t, .err = err};
    e->words = calloc(KVB_WORD_SLOTS, sizeof *e->words);
    e->word_text = malloc((size_t)KVB_WORD_SLOTS / 2 * KVB_WORD_LONGEST);
    e->mapped = malloc(2 * t->vocab.longest + 4);
    return e->words != NULL && e->word_text != NULL && e->mapped != NULL && kvb_ids_push(&e->out, 0);
}

static void encoder_end(kvb_encoder *e)
{
    kvb_merger_free(&e->merger);
    free(e->out.at);
    free(e->words);
    free(e->word_text);
    free(e->word_ids.at);
    free(e->mapped);
}

kvb_status kvb_tokenizer_encode(const kvb_tokenizer *t, const char *text, size_t size, bool parse_special,
                                uint32_t **ids, size_t *count, kvb_error *err)
{
    *ids = NULL;
    *count = 0;
    kvb_encoder e;
    fragments parts = {0};
    kvb_status status = KVB_E_MEMORY;
    size_t bad;
    char *repaired = repair_utf8(text, size, &size, &bad);
    if (bad > 0 && repaired == NULL)
        return kvb_fail_memory(err, "text");
    const char *clean = repaired ? repaired : text;
    if (!encoder_begin(&e, t, err) || !cut_specials(t, clean, size, parse_special, &parts)) {
        status = kvb_fail_memory(err, "tokens of a text");
        goto out;
    }
    e.out.count = 0; /* encoder_begin pushed one so that an empty result is no NULL */
    status = encode_fragments(&e, clean, &parts);
    if (status == KVB_OK) {
        *ids = e.out.at;
        *count = e.out.count;
        e.out.at = NULL;
    }
out:
    encoder_end(&e);
    free(parts.at);
    free(repaired);
    return status;
}
