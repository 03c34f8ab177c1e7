#include "model/pretokenize.h"

#include <stdlib.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "format/base/fail.h"

/* Unicode's White_Space, spelled out: \s of PCRE2 has U+180E besides, which the tokenizers' own engines lack. */
#define WS "\\x09-\\x0D\\x20\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}"
#define TRAILING_WS "[" WS "]+(?![^" WS "])|[" WS "]+"
#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" WS "\\p{L}\\p{N}]+|" TRAILING_WS
#define LLAMA3_TO_LETTERS "'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
#define LLAMA3_REST "| ?[^" WS "\\p{L}\\p{N}]+[\\r\\n]*|[" WS "]*[\\r\\n]+|" TRAILING_WS

enum { MAX_PATTERNS = 4, MAX_NAMES = 3 };

typedef struct scheme {
    const char *names[MAX_NAMES]; /* the first is the scheme's own */
    bool whole_words, wants_bos;
    const char *patterns[MAX_PATTERNS];
} scheme;

static const scheme schemes[] = {
    {{"default"}, false, false, {"[\\p{P}$+<=>^~|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"}},
    {{"gpt-2", "phi-2"}, false, false, {GPT2}},
    {{"smollm", "starcoder"}, false, false, {"\\p{N}", GPT2}},
    {{"llama-bpe", "llama3", "llama-v3"}, true, true, {LLAMA3_TO_LETTERS "\\p{N}{1,3}" LLAMA3_REST}},
    {{"qwen2", "deepseek-r1-qwen"}, false, false, {LLAMA3_TO_LETTERS "\\p{N}" LLAMA3_REST}},
};

/* The patterns as tokenizer.json spells them. */
#define JSON_LETTERS "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
#define JSON_REST "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

const char *kvb_pretokenizer_of_pattern(const char *pattern, bool digits)
{
    if (pattern[0] == '\0')
        return digits ? "smollm" : "gpt-2";
    if (digits)
        return NULL;
    if (strcmp(pattern, JSON_LETTERS "\\p{N}{1,3}" JSON_REST) == 0)
        return "llama-bpe";
    return strcmp(pattern, JSON_LETTERS "\\p{N}" JSON_REST) == 0 ? "qwen2" : NULL;
}

struct kvb_pretokenizer {
    const scheme *scheme;
    pcre2_code *code[MAX_PATTERNS];
    size_t count;
};

static const scheme *find_scheme(const char *name)
{
    for (size_t i = 0; i < sizeof schemes / sizeof *schemes; i++)
        for (size_t n = 0; n < MAX_NAMES && schemes[i].names[n] != NULL; n++)
            if (strcmp(schemes[i].names[n], name) == 0)
                return &schemes[i];
    return NULL;
}

static kvb_status compile(kvb_pretokenizer *p, const char *pattern, kvb_error *err)
{
    int number;
    size_t offset;
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP, &number,
                                     &offset, NULL);
    if (code == NULL)
        return kvb_fail(err, KVB_E_CHECK, "pre-tokenizer", "PCRE2 error %d at %zu of pattern %s", number, offset,
                        pattern);
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE); /* matching works without it, more slowly */
    p->code[p->count++] = code;
    return KVB_OK;
}

kvb_status kvb_pretokenizer_create(const char *name, const char *path, kvb_pretokenizer **out, kvb_error *err)
{
    *out = NULL;
    const scheme *s = find_scheme(name);
    if (s == NULL)
        return kvb_fail(err, KVB_E_FORMAT, path,
                        "pre-tokenizer \"%.64s\" is not supported (default, gpt-2, smollm, llama-bpe and qwen2 are)",
                        name);
    kvb_pretokenizer *p = calloc(1, sizeof *p);
    if (p == NULL)
        return kvb_fail_memory(err, "pre-tokenizer");
    p->scheme = s;
    kvb_status status = KVB_OK;
    for (size_t i = 0; status == KVB_OK && i < MAX_PATTERNS && s->patterns[i] != NULL; i++)
        status = compile(p, s->patterns[i], err);
    if (status != KVB_OK) {
        kvb_pretokenizer_free(p);
        return status;
    }
    *out = p;
    return KVB_OK;
}

void kvb_pretokenizer_free(kvb_pretokenizer *p)
{
    for (size_t i = 0; p != NULL && i < p->count; i++)
        pcre2_code_free(p->code[i]);
    free(p);
}

bool kvb_pretokenizer_whole_words(const kvb_pretokenizer *p)
{
    return p->scheme->whole_words;
}

bool kvb_pretokenizer_wants_bos(const kvb_pretokenizer *p)
{
    return p->scheme->wants_bos;
}

const char *kvb_pretokenizer_scheme(const kvb_pretokenizer *p)
{
    return p->scheme->names[0];
}

/* Ends of pieces; `failed` where memory has run out. */
typedef struct ends {
    size_t *at;
    size_t count, room;
    bool failed;
} ends;

static void push_end(ends *e, size_t end)
{
    if (e->count > 0 && e->at[e->count - 1] == end)
        return;
    if (e->count == e->room) {
        size_t room = e->room ? 2 * e->room : 1024;
        size_t *grown = realloc(e->at, room * sizeof *grown);
        if (grown == NULL) {
            e->failed = true;
            return;
        }
        e->at = grown;
        e->room = room;
    }
    e->at[e->count++] = end;
}

/* Cuts the piece [from, to) at the borders of every match inside it; what lies around the piece is not seen. */
static kvb_status cut_piece(const pcre2_code *code, pcre2_match_data *match, const char *text, size_t from, size_t to,
                            ends *out, kvb_error *err)
{
    size_t at = 0, size = to - from;
    while (at < size) {
        int found = pcre2_match(code, (PCRE2_SPTR)(text + from), size, at, PCRE2_NO_UTF_CHECK, match, NULL);
        if (found == PCRE2_ERROR_NOMATCH)
            break;
        if (found < 0)
            return kvb_fail(err, KVB_E_CHECK, "pre-tokenizer", "PCRE2 error %d while cutting %zu bytes of text", found,
                            size);
        const size_t *span = pcre2_get_ovector_pointer(match);
        if (span[1] <= at)
            break;
        if (span[0] > 0)
            push_end(out, from + span[0]);
        push_end(out, from + span[1]);
        at = span[1];
    }
    push_end(out, to);
    return out->failed ? kvb_fail_memory(err, "words of a text") : KVB_OK;
}

static kvb_status cut_all(const pcre2_code *code, pcre2_match_data *match, const char *text, const ends *in, ends *out,
                          kvb_error *err)
{
    kvb_status status = KVB_OK;
    size_t from = 0;
    out->count = 0;
    for (size_t i = 0; status == KVB_OK && i < in->count; from = in->at[i++])
        status = cut_piece(code, match, text, from, in->at[i], out, err);
    return status;
}

kvb_status kvb_pretokenizer_split(const kvb_pretokenizer *p, const char *text, size_t size, size_t **result,
                                  size_t *count, kvb_error *err)
{
    ends now = {0}, next = {0};
    *result = NULL;
    *count = 0;
    if (size == 0)
        return KVB_OK;
    kvb_status status = KVB_OK;
    pcre2_match_data *match = pcre2_match_data_create(1, NULL);
    push_end(&now, size);
    if (match == NULL || now.failed) {
        status = kvb_fail_memory(err, "words of a text");
        goto out;
    }
    for (size_t i = 0; i < p->count && status == KVB_OK; i++) {
        status = cut_all(p->code[i], match, text, &now, &next, err);
        ends swap = now;
        now = next;
        next = swap;
    }
    if (status == KVB_OK) {
        *result = now.at;
        *count = now.count;
        now.at = NULL;
    }
out:
    pcre2_match_data_free(match);
    free(now.at);
    free(next.at);
    return status;
}
