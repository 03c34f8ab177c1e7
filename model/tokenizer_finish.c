/* What every tokenizer needs once its vocabulary is there: byte tokens, the special ones in order, the identity. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/utf8.h"
#include "model/tokenizer_impl.h"

/* Byte-level vocabularies are trained on text and may lack bytes that it did not have; one without the printable ASCII
 * characters is no byte-level vocabulary at all. */
static kvb_status find_bytes_bpe(kvb_tokenizer *t, const char *path, kvb_error *err)
{
    for (unsigned b = 0; b < 256; b++) {
        char text[4];
        size_t size = kvb_utf8_put((uint8_t *)text, kvb_bytelevel_code((uint8_t)b));
        t->byte_id[b] = kvb_vocab_find_ordinary(&t->vocab, text, size);
        if (t->byte_id[b] < 0 && b >= 0x20 && b < 0x7F)
            return kvb_fail(err, KVB_E_FORMAT, path,
                            "the vocabulary has no token for byte 0x%02X: not a byte-level vocabulary", b);
    }
    return KVB_OK;
}

static kvb_status find_bytes_spm(kvb_tokenizer *t, const char *path, kvb_error *err)
{
    for (unsigned b = 0; b < 256; b++) {
        char text[8];
        snprintf(text, sizeof text, "<0x%02X>", b);
        int64_t id = kvb_vocab_find(&t->vocab, text, 6);
        if (id < 0 || t->vocab.types[id] != KVB_TOKEN_BYTE)
            return kvb_fail(err, KVB_E_FORMAT, path, "the vocabulary has no byte token %s: all 256 are needed", text);
        t->byte_id[b] = id;
    }
    return KVB_OK;
}

static bool has_inner_space(const char *text, size_t size)
{
    static const char space[] = "\xE2\x96\x81";
    for (size_t at = 1; at + 3 <= size; at++)
        if (memcmp(text + at, space, 3) == 0 && (at < 3 || memcmp(text + at - 3, space, 3) != 0))
            return true;
    return false;
}

/* User-defined tokens do not count: they are cut out before words are. */
static bool spaces_start_words(const kvb_vocab *v)
{
    for (uint32_t id = 0; id < v->count; id++) {
        size_t size;
        const char *text = kvb_vocab_text(v, id, &size);
        if (has_inner_space(text, size))
            return false;
    }
    return true;
}

typedef struct special {
    size_t size;
    uint32_t id;
} special;

static int order_specials(const void *a, const void *b)
{
    const special *x = a, *y = b;
    if (x->size != y->size)
        return x->size > y->size ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

static kvb_status list_specials(kvb_tokenizer *t, kvb_error *err)
{
    const kvb_vocab *v = &t->vocab;
    special *list = kvb_alloc_array(v->count, sizeof *list);
    size_t count = 0;
    for (uint32_t id = 0; list != NULL && id < v->count; id++) {
        size_t size;
        kvb_vocab_text(v, id, &size);
        if (size > 0 && (kvb_vocab_is_special(v, id) || v->types[id] == KVB_TOKEN_USER))
            list[count++] = (special){size, id};
    }
    t->special = list == NULL ? NULL : kvb_alloc_array(count, sizeof *t->special);
    if (t->special == NULL) {
        free(list);
        return kvb_fail_memory(err, "special tokens");
    }
    qsort(list, count, sizeof *list, order_specials);
    for (size_t i = 0; i < count; i++)
        t->special[i] = list[i].id;
    t->special_count = count;
    free(list);
    return KVB_OK;
}

static void identify(kvb_tokenizer *t)
{
    char head[160];
    int size = snprintf(head, sizeof head, "kvb-tokenizer-1 %s %s bos %d %d prefix %d%s%s vocab %u\n",
                        t->kind == KVB_TOKENIZER_BPE ? "bpe" : "spm", t->pre ? kvb_pretokenizer_scheme(t->pre) : "-",
                        (int)t->bos, t->wants_bos, t->space_prefix, t->space_prefix_first ? " first" : "",
                        t->space_prefix_once ? " once" : "", t->vocab.count);
    kvb_sha256 s;
    kvb_sha256_begin(&s);
    kvb_sha256_add(&s, head, (size_t)size);
    kvb_vocab_hash(&t->vocab, &s);
    kvb_sha256_add(&s, t->merges.digest, sizeof t->merges.digest);
    kvb_sha256_end(&s, t->id);
}

kvb_status kvb_tokenizer_finish(kvb_tokenizer *t, const char *path, kvb_error *err)
{
    bool bpe = t->kind == KVB_TOKENIZER_BPE;
    if (bpe)
        kvb_vocab_pieces_bytelevel(&t->vocab);
    else
        kvb_vocab_pieces_spm(&t->vocab);
    t->space_starts_word = !bpe && spaces_start_words(&t->vocab);
    kvb_status s = bpe ? find_bytes_bpe(t, path, err) : find_bytes_spm(t, path, err);
    if (s == KVB_OK) s = list_specials(t, err);
    if (s == KVB_OK) identify(t);
    return s;
}
