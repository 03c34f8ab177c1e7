#include <stdlib.h>
#include <string.h>

#include "format/base/fail.h"
#include "format/base/utf8.h"
#include "model/tokenizer_impl.h"

static const char space[] = "\xE2\x96\x81"; /* U+2581, which stands for a space */
enum { SPACE_SIZE = 3 };

bool kvb_spm_merge(const void *user, const kvb_symbol *left, const kvb_symbol *right, double *priority, uint32_t *id)
{
    const kvb_merge_view *view = user;
    const kvb_vocab *v = &view->t->vocab;
    int64_t found = kvb_vocab_find_ordinary(v, view->word + left->at, (size_t)left->size + right->size);
    if (found < 0)
        return false;
    *priority = (double)v->scores[found];
    *id = (uint32_t)found;
    return true;
}

size_t kvb_spm_symbols(const kvb_tokenizer *t, const char *word, size_t size, kvb_symbol *symbols)
{
    size_t count = 0;
    for (size_t at = 0; at < size; count++) {
        size_t length = kvb_utf8_length((const uint8_t *)word + at, size - at);
        length = length ? length : 1;
        symbols[count] = (kvb_symbol){.at = (uint32_t)at, .size = (uint32_t)length,
                                      .id = kvb_vocab_find_ordinary(&t->vocab, word + at, length)};
        at += length;
    }
    return count;
}

/* Whether a word may start here: at a space that follows something else. */
static bool starts_word(const char *text, size_t at, size_t size)
{
    if (size - at < SPACE_SIZE || memcmp(text + at, space, SPACE_SIZE) != 0)
        return false;
    return at < SPACE_SIZE || memcmp(text + at - SPACE_SIZE, space, SPACE_SIZE) != 0;
}

static kvb_status encode_words(kvb_encoder *e, const char *text, size_t size)
{
    kvb_status status = KVB_OK;
    size_t from = 0;
    for (size_t at = 1; status == KVB_OK && at <= size; at++) {
        if (at < size && !(e->t->space_starts_word && starts_word(text, at, size)))
            continue;
        status = kvb_encoder_word(e, text + from, at - from);
        from = at;
    }
    return status;
}

kvb_status kvb_spm_encode(kvb_encoder *e, const char *text, size_t size, bool prefix)
{
    size_t spaces = prefix ? 1 : 0, written = 0;
    for (size_t i = 0; i < size; i++)
        spaces += text[i] == ' ';
    if (spaces > (SIZE_MAX - size - 1) / SPACE_SIZE)
        return kvb_fail_memory(e->err, "text");
    char *escaped = malloc(size + spaces * SPACE_SIZE + 1);
    if (escaped == NULL)
        return kvb_fail_memory(e->err, "text");
    for (size_t i = 0; i < size + (prefix ? 1 : 0); i++) {
        char c = prefix ? (i == 0 ? ' ' : text[i - 1]) : text[i];
        if (c != ' ') {
            escaped[written++] = c;
            continue;
        }
        memcpy(escaped + written, space, SPACE_SIZE);
        written += SPACE_SIZE;
    }
    kvb_status status = encode_words(e, escaped, written);
    free(escaped);
    return status;
}
