/* A tokenizer out of a GGUF file's tokenizer.ggml.* keys. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/fail.h"
#include "model/tokenizer_impl.h"

#define KEY(name) "tokenizer.ggml." name

static kvb_status bad(const kvb_gguf *g, const char *key, uint64_t index, kvb_error *err, const char *message)
{
    char where[300];
    snprintf(where, sizeof where, "%.200s, %s[%llu]", kvb_gguf_path(g), key, (unsigned long long)index);
    return kvb_fail(err, KVB_E_FORMAT, where, "%s", message);
}

/* An array that, where it is there, has one number a token. */
static kvb_status check_parallel(const kvb_gguf *g, const char *key, uint64_t count, bool *there, kvb_error *err)
{
    kvb_gguf_type type;
    uint64_t have;
    *there = kvb_gguf_has(g, key);
    if (!*there)
        return KVB_OK;
    if (!kvb_gguf_get_array(g, key, &type, &have) || type == KVB_GGUF_STRING || type == KVB_GGUF_BOOL ||
        have != count) {
        char message[160];
        snprintf(message, sizeof message, "is not an array of %llu numbers, one for each token",
                 (unsigned long long)count);
        return bad(g, key, 0, err, message);
    }
    return KVB_OK;
}

static kvb_status read_token(kvb_tokenizer *t, const kvb_gguf *g, uint64_t id, bool types, bool scores, kvb_error *err)
{
    const char *text;
    uint64_t size, type = KVB_TOKEN_NORMAL;
    double score = 0.0;
    if (types && (!kvb_gguf_array_u64(g, KEY("token_type"), id, &type) || type > KVB_TOKEN_BYTE))
        return bad(g, KEY("token_type"), id, err, "is no token type, expected an integer from 0 to 6");
    if (scores && (!kvb_gguf_array_f64(g, KEY("scores"), id, &score) || !isfinite(score)))
        return bad(g, KEY("scores"), id, err, "is not a finite number");
    kvb_gguf_array_string(g, KEY("tokens"), id, &text, &size);
    if (type == KVB_TOKEN_BYTE && (size != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>'))
        return bad(g, KEY("tokens"), id, err, "is a byte token, expected a text such as <0x0A>");
    kvb_vocab_add(&t->vocab, text, (size_t)size, (uint8_t)type, (float)score);
    return KVB_OK;
}

static kvb_status read_tokens(kvb_tokenizer *t, const kvb_gguf *g, kvb_error *err)
{
    kvb_gguf_type type = KVB_GGUF_U8;
    uint64_t count = 0, bytes = 0, size;
    const char *text;
    if (!kvb_gguf_get_array(g, KEY("tokens"), &type, &count) || type != KVB_GGUF_STRING || count == 0 ||
        count > INT32_MAX)
        return bad(g, KEY("tokens"), 0, err, "is missing, empty or no array of strings: the file has no vocabulary");
    for (uint64_t i = 0; i < count; i++) {
        kvb_gguf_array_string(g, KEY("tokens"), i, &text, &size);
        bytes += size; /* the strings lie in the file: no overflow */
    }
    bool types, scores;
    kvb_status s = check_parallel(g, KEY("token_type"), count, &types, err);
    if (s == KVB_OK) s = check_parallel(g, KEY("scores"), count, &scores, err);
    if (s == KVB_OK && t->kind == KVB_TOKENIZER_SPM && !(types && scores))
        s = bad(g, KEY("scores"), 0, err, "and token_type are needed by a vocabulary of this kind");
    if (s == KVB_OK) s = kvb_vocab_create(&t->vocab, (uint32_t)count, (size_t)bytes, err);
    for (uint64_t i = 0; s == KVB_OK && i < count; i++)
        s = read_token(t, g, i, types, scores, err);
    if (s == KVB_OK)
        kvb_vocab_index(&t->vocab);
    return s;
}

/* "left right": both and the two together must be tokens. */
static kvb_status read_merge(kvb_tokenizer *t, const kvb_gguf *g, uint32_t rank, char *joined, kvb_sha256 *digest,
                             kvb_error *err)
{
    const char *text;
    uint64_t size;
    kvb_gguf_array_string(g, KEY("merges"), rank, &text, &size);
    const char *gap = size > 1 ? memchr(text + 1, ' ', (size_t)size - 1) : NULL;
    if (gap == NULL || size - 1 > t->vocab.longest)
        return bad(g, KEY("merges"), rank, err, "is not two tokens with a space between, or makes one too long");
    size_t left_size = (size_t)(gap - text), right_size = (size_t)size - left_size - 1;
    memcpy(joined, text, left_size);
    memcpy(joined + left_size, gap + 1, right_size);
    const char *missing = kvb_tokenizer_add_merge(t, joined, left_size, left_size + right_size, rank, digest);
    if (missing != NULL) {
        char message[200];
        snprintf(message, sizeof message, "\"%.*s\": %s is not in the vocabulary", (int)(size < 80 ? size : 80), text,
                 missing);
        return bad(g, KEY("merges"), rank, err, message);
    }
    return KVB_OK;
}

static kvb_status read_merges(kvb_tokenizer *t, const kvb_gguf *g, kvb_error *err)
{
    kvb_gguf_type type = KVB_GGUF_U8;
    uint64_t count = 0;
    if (!kvb_gguf_get_array(g, KEY("merges"), &type, &count) || type != KVB_GGUF_STRING || count > INT32_MAX)
        return bad(g, KEY("merges"), 0, err, "is missing or no array of strings");
    char *joined = malloc(t->vocab.longest + 1);
    kvb_status s = joined == NULL ? kvb_fail_memory(err, "merges") : kvb_merges_create(&t->merges, (size_t)count, err);
    kvb_sha256 digest;
    kvb_sha256_begin(&digest);
    for (uint64_t i = 0; s == KVB_OK && i < count; i++)
        s = read_merge(t, g, (uint32_t)i, joined, &digest, err);
    kvb_sha256_end(&digest, t->merges.digest);
    free(joined);
    return s;
}

static kvb_status read_pretokenizer(kvb_tokenizer *t, const kvb_gguf *g, kvb_error *err)
{
    const char *text = "default";
    uint64_t size = 7;
    char name[65];
    if (kvb_gguf_has(g, KEY("pre")) && !kvb_gguf_get_string(g, KEY("pre"), &text, &size))
        return bad(g, KEY("pre"), 0, err, "is no string");
    snprintf(name, sizeof name, "%.*s", (int)(size < 64 ? size : 64), text);
    return kvb_pretokenizer_create(name, kvb_gguf_path(g), &t->pre, err);
}

static kvb_status read_special_id(const kvb_tokenizer *t, const kvb_gguf *g, const char *key, int32_t *id,
                                  kvb_error *err)
{
    uint64_t value;
    *id = -1;
    if (!kvb_gguf_has(g, key))
        return KVB_OK;
    if (!kvb_gguf_get_u64(g, key, &value) || value >= t->vocab.count) {
        char message[120];
        snprintf(message, sizeof message, "is not an id below the vocabulary's size %u", t->vocab.count);
        return bad(g, key, 0, err, message);
    }
    *id = (int32_t)value;
    return KVB_OK;
}

static kvb_status read_flag(const kvb_gguf *g, const char *key, bool otherwise, bool *flag, kvb_error *err)
{
    *flag = otherwise;
    if (kvb_gguf_has(g, key) && !kvb_gguf_get_bool(g, key, flag))
        return bad(g, key, 0, err, "is no boolean");
    return KVB_OK;
}

static kvb_status read_kind(kvb_tokenizer *t, const kvb_gguf *g, kvb_error *err)
{
    const char *kind = "";
    uint64_t size = 0;
    kvb_gguf_get_string(g, KEY("model"), &kind, &size);
    if (size == 4 && memcmp(kind, "gpt2", 4) == 0)
        t->kind = KVB_TOKENIZER_BPE;
    else if (size == 5 && memcmp(kind, "llama", 5) == 0)
        t->kind = KVB_TOKENIZER_SPM;
    else
        return kvb_fail(err, KVB_E_FORMAT, kvb_gguf_path(g),
                        "tokenizer.ggml.model is \"%.*s\": expected gpt2 (byte-level BPE) or llama (SentencePiece BPE)",
                        (int)(size < 64 ? size : 64), kind);
    return KVB_OK;
}

static kvb_status read_all(kvb_tokenizer *t, const kvb_gguf *g, kvb_error *err)
{
    kvb_status s = read_kind(t, g, err);
    bool bpe = t->kind == KVB_TOKENIZER_BPE;
    if (s == KVB_OK) s = read_tokens(t, g, err);
    if (s == KVB_OK && bpe) s = read_pretokenizer(t, g, err);
    if (s == KVB_OK && bpe) s = read_merges(t, g, err);
    if (s == KVB_OK) s = read_special_id(t, g, KEY("bos_token_id"), &t->bos, err);
    if (s == KVB_OK) s = read_special_id(t, g, KEY("eos_token_id"), &t->eos, err);
    bool wants = s == KVB_OK && (bpe ? kvb_pretokenizer_wants_bos(t->pre) : true);
    if (s == KVB_OK) s = read_flag(g, KEY("add_bos_token"), wants, &t->wants_bos, err);
    if (s == KVB_OK) s = read_flag(g, KEY("add_space_prefix"), true, &t->space_prefix, err);
    t->wants_bos = t->wants_bos && t->bos >= 0;
    t->space_prefix = t->space_prefix && !bpe;
    return s == KVB_OK ? kvb_tokenizer_finish(t, kvb_gguf_path(g), err) : s;
}

kvb_status kvb_tokenizer_from_gguf(const kvb_gguf *g, kvb_tokenizer **out, kvb_error *err)
{
    *out = NULL;
    kvb_tokenizer *t = calloc(1, sizeof *t);
    if (t == NULL)
        return kvb_fail_memory(err, "tokenizer");
    kvb_status status = read_all(t, g, err);
    if (status != KVB_OK) {
        kvb_tokenizer_free(t);
        return status;
    }
    *out = t;
    return KVB_OK;
}
