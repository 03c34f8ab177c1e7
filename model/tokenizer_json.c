/* A tokenizer out of tokenizer.json (the library `tokenizers`): byte-level BPE, and BPE over characters with byte tokens, as
 * SentencePiece vocabularies become there. What a file asks for and is not done here is refused by name; of NFC, which changes
 * nothing in text that is composed already, only the name is heard, as in llama.cpp. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/mapfile.h"
#include "model/tokenizer_impl.h"

#define SPACE "\xE2\x96\x81"

static const uint64_t largest_file = (uint64_t)256 << 20;
enum { MOST_TOKENS = 1 << 24 };

/* What one file says, in the making. */
typedef struct reader {
    kvb_tokenizer *t;
    const char *path;
    const kvb_json *root, *model;
    const kvb_json *config; /* config.json, or NULL */
    kvb_error *err;
} reader;

static const char *text_of(const kvb_json *object, const char *key)
{
    return kvb_json_string(kvb_json_get(object, key), "");
}

static bool is_type(const kvb_json *part, const char *type)
{
    return strcmp(text_of(part, "type"), type) == 0;
}

static bool is_set(const kvb_json *v)
{
    return v != NULL && kvb_json_type_of(v) != KVB_JSON_NULL;
}

static kvb_status refuse(const reader *r, const char *what, const char *found, const char *expected)
{
    return kvb_fail(r->err, KVB_E_FORMAT, r->path, "%s is \"%.120s\", which is not supported (%s)", what, found, expected);
}

/* ---- vocabulary */

typedef struct entry {
    const char *text;
    uint8_t type;
} entry;

static bool is_byte_text(const char *text)
{
    return strlen(text) == 6 && strncmp(text, "<0x", 3) == 0 && text[5] == '>';
}

static kvb_status place(const reader *r, entry *list, uint32_t count, const kvb_json *id, const char *text, uint8_t type)
{
    uint64_t at;
    if (!kvb_json_u64(id, &at) || at >= count)
        return kvb_fail(r->err, KVB_E_FORMAT, r->path, "token \"%.80s\" has no id below %u", text, count);
    if (list[at].text != NULL && strcmp(list[at].text, text) != 0)
        return kvb_fail(r->err, KVB_E_FORMAT, r->path, "tokens \"%.80s\" and \"%.80s\" have one id, %u", list[at].text, text,
                        (unsigned)at);
    list[at] = (entry){text, type};
    return KVB_OK;
}

/* The library `tokenizers` does not hear the id of an added token that the vocabulary lacks: it gives it the next one. A file
 * that says otherwise means two things. */
static kvb_status check_added(const reader *r, const entry *list, const kvb_json *token, uint64_t *next)
{
    uint64_t id = 0;
    if (!kvb_json_u64(kvb_json_get(token, "id"), &id) || (list[id].text == NULL && id != *next))
        return kvb_fail(r->err, KVB_E_FORMAT, r->path, "added token \"%.80s\" has id %llu, expected %llu, the next one",
                        text_of(token, "content"), (unsigned long long)id, (unsigned long long)*next);
    if (id >= *next)
        *next = id + 1;
    return KVB_OK;
}

static kvb_status list_tokens(const reader *r, entry *list, uint32_t count)
{
    const kvb_json *vocab = kvb_json_get(r->model, "vocab"), *added = kvb_json_get(r->root, "added_tokens");
    const char *unknown = text_of(r->model, "unk_token");
    const bool bytes = r->t->kind == KVB_TOKENIZER_SPM;
    kvb_status s = KVB_OK;
    for (size_t i = 0; s == KVB_OK && i < kvb_json_count(vocab); i++) {
        const char *text = kvb_json_key_at(vocab, i);
        const uint8_t type = bytes && is_byte_text(text)                      ? KVB_TOKEN_BYTE
                             : unknown[0] != '\0' && strcmp(text, unknown) == 0 ? KVB_TOKEN_UNKNOWN
                                                                              : KVB_TOKEN_NORMAL;
        s = place(r, list, count, kvb_json_at(vocab, i), text, type);
    }
    uint64_t next = kvb_json_count(vocab);
    for (size_t i = 0; s == KVB_OK && i < kvb_json_count(added); i++) {
        const kvb_json *token = kvb_json_at(added, i);
        const char *text = text_of(token, "content");
        s = check_added(r, list, token, &next);
        if (s != KVB_OK)
            return s;
        const bool special = kvb_json_bool(kvb_json_get(token, "special"), false);
        const uint8_t type = unknown[0] != '\0' && strcmp(text, unknown) == 0 ? KVB_TOKEN_UNKNOWN
                             : special                                         ? KVB_TOKEN_CONTROL
                                                                              : KVB_TOKEN_USER;
        s = place(r, list, count, kvb_json_get(token, "id"), text, type);
    }
    return s;
}

/* One more than the largest id; 0 where there are no tokens or ids no vocabulary has. */
static uint32_t count_ids(const reader *r)
{
    const kvb_json *vocab = kvb_json_get(r->model, "vocab"), *added = kvb_json_get(r->root, "added_tokens");
    const size_t ordinary = kvb_json_count(vocab);
    uint64_t most = 0, id = 0;
    for (size_t i = 0; i < ordinary + kvb_json_count(added); i++) {
        const kvb_json *v = i < ordinary ? kvb_json_at(vocab, i) : kvb_json_get(kvb_json_at(added, i - ordinary), "id");
        if (!kvb_json_u64(v, &id) || id >= MOST_TOKENS)
            return 0;
        most = id + 1 > most ? id + 1 : most;
    }
    return (uint32_t)most;
}

/* Ids that no token has stay empty: no text becomes them. */
static kvb_status read_vocab(reader *r)
{
    const uint32_t count = count_ids(r);
    if (kvb_json_type_of(kvb_json_get(r->model, "vocab")) != KVB_JSON_OBJECT || count == 0)
        return kvb_fail(r->err, KVB_E_FORMAT, r->path, "model.vocab is no object of ids below %d", MOST_TOKENS);
    entry *list = kvb_alloc_zeroed(count, sizeof *list);
    if (list == NULL)
        return kvb_fail_memory(r->err, r->path);
    kvb_status s = list_tokens(r, list, count);
    size_t bytes = 0;
    for (uint32_t id = 0; s == KVB_OK && id < count; id++)
        bytes += list[id].text != NULL ? strlen(list[id].text) : 0;
    if (s == KVB_OK)
        s = kvb_vocab_create(&r->t->vocab, count, bytes, r->err);
    for (uint32_t id = 0; s == KVB_OK && id < count; id++) {
        const char *text = list[id].text != NULL ? list[id].text : "";
        kvb_vocab_add(&r->t->vocab, text, strlen(text), list[id].text != NULL ? list[id].type : KVB_TOKEN_UNUSED, 0.0f);
    }
    if (s == KVB_OK)
        kvb_vocab_index(&r->t->vocab);
    free(list);
    return s;
}

/* ---- merges: "left right", or [left, right] */

static kvb_status read_merge(reader *r, uint32_t rank, const kvb_json *merge, char *joined, kvb_sha256 *digest)
{
    const char *left = "", *right = "", *gap;
    size_t left_size = 0;
    if (kvb_json_type_of(merge) == KVB_JSON_ARRAY && kvb_json_count(merge) == 2) {
        left = kvb_json_string(kvb_json_at(merge, 0), "");
        right = kvb_json_string(kvb_json_at(merge, 1), "");
        left_size = strlen(left);
    } else if ((gap = strchr(kvb_json_string(merge, ""), ' ')) != NULL) {
        left = kvb_json_string(merge, "");
        right = gap + 1;
        left_size = (size_t)(gap - left);
    }
    const size_t right_size = strlen(right);
    if (left_size == 0 || right_size == 0 || left_size + right_size > r->t->vocab.longest)
        return kvb_fail(r->err, KVB_E_FORMAT, r->path, "model.merges[%u] is no pair of tokens, or makes one too long", rank);
    memcpy(joined, left, left_size);
    memcpy(joined + left_size, right, right_size);
    const char *missing = kvb_tokenizer_add_merge(r->t, joined, left_size, left_size + right_size, rank, digest);
    if (missing != NULL)
        return kvb_fail(r->err, KVB_E_FORMAT, r->path, "model.merges[%u], \"%.60s\": %s is not in the vocabulary", rank, left,
                        missing);
    return KVB_OK;
}

static kvb_status read_merges(reader *r)
{
    const kvb_json *merges = kvb_json_get(r->model, "merges");
    if (kvb_json_type_of(merges) != KVB_JSON_ARRAY || kvb_json_count(merges) > INT32_MAX)
        return kvb_fail(r->err, KVB_E_FORMAT, r->path, "model.merges is missing or no array");
    char *joined = malloc(r->t->vocab.longest + 1);
    kvb_status s = joined == NULL ? kvb_fail_memory(r->err, r->path) :
                                    kvb_merges_create(&r->t->merges, kvb_json_count(merges), r->err);
    kvb_sha256 digest;
    kvb_sha256_begin(&digest);
    for (size_t i = 0; s == KVB_OK && i < kvb_json_count(merges); i++)
        s = read_merge(r, (uint32_t)i, kvb_json_at(merges, i), joined, &digest);
    kvb_sha256_end(&digest, r->t->merges.digest);
    free(joined);
    return s;
}

/* ---- what comes before merging */

/* The i-th part of a Sequence, or the part itself; NULL past the end. */
static const kvb_json *part_at(const kvb_json *part, const char *list, size_t i)
{
    if (is_type(part, "Sequence"))
        return kvb_json_at(kvb_json_get(part, list), i);
    return i == 0 && is_set(part) ? part : NULL;
}

/* The pattern of a Split that keeps what it cuts, or NULL. */
static const char *split_pattern(const kvb_json *part)
{
    const bool isolated = is_type(part, "Split") && strcmp(text_of(part, "behavior"), "Isolated") == 0 &&
                          !kvb_json_bool(kvb_json_get(part, "invert"), false);
    return isolated ? kvb_json_string(kvb_json_get(kvb_json_get(part, "pattern"), "Regex"), NULL) : NULL;
}

/* Byte-level BPE: Split or Digits, or both, then ByteLevel with or without GPT-2's pattern. The name of the scheme whose
 * patterns these are. */
static kvb_status read_scheme(reader *r, const kvb_json *pre, const char **name)
{
    const char *pattern = NULL;
    bool digits = false, level = false;
    const kvb_json *part;
    for (size_t i = 0; (part = part_at(pre, "pretokenizers", i)) != NULL; i++) {
        if (level)
            return refuse(r, "pre_tokenizer after ByteLevel", text_of(part, "type"), "ByteLevel is the last");
        if (is_type(part, "ByteLevel")) {
            level = true;
            if (kvb_json_bool(kvb_json_get(part, "add_prefix_space"), true))
                return refuse(r, "pre_tokenizer.add_prefix_space", "true", "false is");
            if (kvb_json_bool(kvb_json_get(part, "use_regex"), true) && pattern == NULL)
                pattern = "";
        } else if (is_type(part, "Digits") && kvb_json_bool(kvb_json_get(part, "individual_digits"), false) && !digits) {
            digits = true;
        } else if (split_pattern(part) != NULL && pattern == NULL && !digits) {
            pattern = split_pattern(part);
        } else {
            return refuse(r, "a part of pre_tokenizer", text_of(part, "type"), "one Split by a pattern that is Isolated, "
                          "Digits that are individual, and ByteLevel are");
        }
    }
    *name = level && pattern != NULL ? kvb_pretokenizer_of_pattern(pattern, digits) : NULL;
    if (*name == NULL)
        return refuse(r, "the pattern of pre_tokenizer", pattern != NULL ? pattern : "", "those of GPT-2, SmolLM, Llama 3, "
                      "Qwen2 and Qwen3 are");
    return KVB_OK;
}

static kvb_status read_bytelevel(reader *r)
{
    const kvb_json *normalizer = kvb_json_get(r->root, "normalizer"), *part;
    const char *scheme = NULL;
    for (size_t i = 0; (part = part_at(normalizer, "normalizers", i)) != NULL; i++)
        if (!is_type(part, "NFC"))
            return refuse(r, "normalizer", text_of(part, "type"), "none and NFC are, for byte-level BPE");
    kvb_status s = read_scheme(r, kvb_json_get(r->root, "pre_tokenizer"), &scheme);
    if (s == KVB_OK)
        s = kvb_pretokenizer_create(scheme, r->path, &r->t->pre, r->err);
    const bool whole = kvb_json_bool(kvb_json_get(r->model, "ignore_merges"), false);
    if (s == KVB_OK && whole != kvb_pretokenizer_whole_words(r->t->pre))
        s = refuse(r, "model.ignore_merges", whole ? "true" : "false", "true with Llama 3's pattern, else false");
    return s;
}

static bool replaces_spaces(const kvb_json *part)
{
    return is_type(part, "Replace") && strcmp(text_of(part, "content"), SPACE) == 0 &&
           strcmp(text_of(kvb_json_get(part, "pattern"), "String"), " ") == 0;
}

static kvb_status read_metaspace(reader *r, const kvb_json *part)
{
    const char *scheme = text_of(part, "prepend_scheme");
    if (strcmp(text_of(part, "replacement"), SPACE) != 0)
        return refuse(r, "pre_tokenizer.replacement", text_of(part, "replacement"), SPACE " is");
    if (kvb_json_bool(kvb_json_get(part, "split"), true))
        return refuse(r, "pre_tokenizer.split", "true", "false is, for Metaspace");
    r->t->space_prefix = strcmp(scheme, "first") == 0 || strcmp(scheme, "always") == 0;
    r->t->space_prefix_first = strcmp(scheme, "first") == 0;
    r->t->space_prefix_once = true;
    return r->t->space_prefix || strcmp(scheme, "never") == 0 ? KVB_OK :
           refuse(r, "pre_tokenizer.prepend_scheme", scheme, "first, always and never are");
}

/* SentencePiece-like BPE: spaces become U+2581, by a normalizer or by Metaspace, and one may be put before the text. */
static kvb_status read_characters(reader *r)
{
    const kvb_json *normalizer = kvb_json_get(r->root, "normalizer"), *pre = kvb_json_get(r->root, "pre_tokenizer"), *part;
    bool spaces = false;
    for (size_t i = 0; (part = part_at(normalizer, "normalizers", i)) != NULL; i++) {
        if (is_type(part, "Prepend") && strcmp(text_of(part, "prepend"), SPACE) == 0)
            r->t->space_prefix = true;
        else if (replaces_spaces(part))
            spaces = true;
        else
            return refuse(r, "a part of normalizer", text_of(part, "type"), "Prepend " SPACE " and Replace of a space by it "
                          "are, for BPE with byte_fallback");
    }
    if (is_type(pre, "Metaspace") && !spaces && !r->t->space_prefix)
        return read_metaspace(r, pre);
    /* Gemma's: a cut at spaces, of which its normalizer leaves none. */
    const bool idle = is_type(pre, "Split") && spaces && strcmp(text_of(kvb_json_get(pre, "pattern"), "String"), " ") == 0;
    if (!spaces || (is_set(pre) && !idle))
        return refuse(r, "pre_tokenizer", is_set(pre) ? text_of(pre, "type") : "none", "BPE with byte_fallback needs spaces "
                      "replaced by " SPACE ", by a normalizer without pre_tokenizer or by Metaspace");
    return KVB_OK;
}

static bool has_bytelevel(const kvb_json *pre)
{
    const kvb_json *part;
    for (size_t i = 0; (part = part_at(pre, "pretokenizers", i)) != NULL; i++)
        if (is_type(part, "ByteLevel"))
            return true;
    return false;
}

static kvb_status read_kind(reader *r)
{
    if (!is_type(r->model, "BPE"))
        return refuse(r, "model.type", text_of(r->model, "type"), "BPE is");
    static const char *const unset[] = {"dropout", "continuing_subword_prefix", "end_of_word_suffix"};
    for (size_t i = 0; i < sizeof unset / sizeof *unset; i++) {
        const kvb_json *v = kvb_json_get(r->model, unset[i]);
        if (is_set(v) && kvb_json_string(v, "?")[0] != '\0')
            return refuse(r, unset[i], kvb_json_string(v, "a number"), "none is");
    }
    if (has_bytelevel(kvb_json_get(r->root, "pre_tokenizer")))
        r->t->kind = KVB_TOKENIZER_BPE;
    else if (kvb_json_bool(kvb_json_get(r->model, "byte_fallback"), false))
        r->t->kind = KVB_TOKENIZER_SPM;
    else
        return refuse(r, "BPE", "neither byte-level nor with byte_fallback", "one of both is");
    return KVB_OK;
}

/* ---- special ids */

/* An id of config.json; of a list the first. */
static int32_t config_id(const reader *r, const char *key)
{
    const kvb_json *v = kvb_json_get(r->config, key);
    uint64_t id;
    if (!is_set(v))
        v = kvb_json_get(kvb_json_get(r->config, "text_config"), key);
    if (kvb_json_type_of(v) == KVB_JSON_ARRAY)
        v = kvb_json_at(v, 0);
    return kvb_json_u64(v, &id) && id < r->t->vocab.count ? (int32_t)id : -1;
}

/* The token that post_processor puts before every text, or NULL. */
static const char *first_of_template(const kvb_json *processor)
{
    const kvb_json *part;
    for (size_t i = 0; (part = part_at(processor, "processors", i)) != NULL; i++) {
        if (!is_type(part, "TemplateProcessing"))
            continue;
        const kvb_json *first = kvb_json_get(kvb_json_at(kvb_json_get(part, "single"), 0), "SpecialToken");
        return kvb_json_string(kvb_json_get(first, "id"), NULL);
    }
    return NULL;
}

static void read_special_ids(reader *r)
{
    const char *first = first_of_template(kvb_json_get(r->root, "post_processor"));
    const int64_t id = first != NULL ? kvb_vocab_find(&r->t->vocab, first, strlen(first)) : KVB_NO_TOKEN;
    r->t->wants_bos = id >= 0;
    r->t->bos = id >= 0 ? (int32_t)id : config_id(r, "bos_token_id");
    r->t->eos = config_id(r, "eos_token_id");
}

static kvb_status read_all(reader *r)
{
    r->model = kvb_json_get(r->root, "model");
    kvb_status s = read_kind(r);
    if (s == KVB_OK) s = read_vocab(r);
    if (s == KVB_OK) s = r->t->kind == KVB_TOKENIZER_BPE ? read_bytelevel(r) : read_characters(r);
    if (s == KVB_OK) s = read_merges(r);
    if (s != KVB_OK)
        return s;
    read_special_ids(r);
    return kvb_tokenizer_finish(r->t, r->path, r->err);
}

kvb_status kvb_tokenizer_from_json(const char *path, const kvb_json *config, kvb_tokenizer **out, kvb_error *err)
{
    *out = NULL;
    char *bytes = NULL;
    size_t size;
    kvb_json_doc *json = NULL;
    kvb_status s = kvb_read_file(path, largest_file, &bytes, &size, err);
    if (s == KVB_OK)
        s = kvb_json_parse(bytes, size, path, &json, err);
    reader r = {.path = path, .config = config, .err = err};
    if (s == KVB_OK && (r.t = calloc(1, sizeof *r.t)) == NULL)
        s = kvb_fail_memory(err, path);
    if (s == KVB_OK) {
        r.root = kvb_json_root(json);
        s = read_all(&r);
    }
    kvb_json_free(json);
    free(bytes);
    if (s != KVB_OK) {
        kvb_tokenizer_free(r.t);
        return s;
    }
    *out = r.t;
    return KVB_OK;
}
