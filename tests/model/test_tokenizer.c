/* Tokenizers made for the purpose, where every id can be worked out by hand; refusals; and a slow reference. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/rng.h"
#include "model/tokenizer_impl.h"
#include "tests/support/cm.h"
#include "tests/support/small_vocab.h"
#include "tests/support/tiny_gguf.h"

static kvb_status try_bytes(uint8_t *bytes, size_t size, kvb_tokenizer **t, kvb_error *err)
{
    kvb_gguf *g = NULL;
    *t = NULL;
    kvb_status status = kvb_gguf_open_memory(bytes, size, "test", &g, err);
    if (status == KVB_OK)
        status = kvb_tokenizer_from_gguf(g, t, err);
    kvb_gguf_close(g); /* a tokenizer keeps nothing of the file */
    free(bytes);
    return status;
}

static kvb_tokenizer *from_bytes(uint8_t *bytes, size_t size)
{
    kvb_tokenizer *t;
    kvb_error err = {0};
    if (try_bytes(bytes, size, &t, &err) != KVB_OK)
        fail_msg("%s: %s", err.where, err.message);
    return t;
}

static kvb_tokenizer *from_tiny(const tiny_gguf *tiny)
{
    size_t size;
    uint8_t *bytes = tiny_gguf_make(tiny, &size);
    return from_bytes(bytes, size);
}

/* Encodes and compares with the tokens' texts joined by "|". */
static void expect_tokens(const kvb_tokenizer *t, const char *text, size_t size, bool parse_special, const char *joined)
{
    uint32_t *ids;
    size_t count, written = 0;
    char out[512] = "";
    assert_int_equal(kvb_tokenizer_encode(t, text, size, parse_special, &ids, &count, NULL), KVB_OK);
    assert_non_null(ids);
    for (size_t i = 0; i < count; i++) {
        size_t piece_size;
        const char *piece = kvb_vocab_text(&t->vocab, ids[i], &piece_size);
        written += (size_t)snprintf(out + written, sizeof out - written, "%s%.*s", i ? "|" : "",
                                    (int)piece_size, piece);
    }
    free(ids);
    if (strcmp(out, joined) != 0)
        fail_msg("\"%s\": \"%s\", expected \"%s\"", text, out, joined);
}

static void expect(const kvb_tokenizer *t, const char *text, const char *joined)
{
    expect_tokens(t, text, strlen(text), false, joined);
}

#define SP "\304\240" /* GPT-2's character for a space */
#define US "\342\226\201" /* SentencePiece's */

static void test_bpe_merges(void **state)
{
    (void)state;
    tiny_gguf tiny = tiny_gguf_default();
    kvb_tokenizer *t = from_tiny(&tiny);
    expect(t, "", "");
    expect(t, " the", SP "the");
    expect(t, "the", "t|he");          /* "he" ranks before " the", "th" is no token */
    expect(t, "there", "t|he|re");     /* leftmost first among equals of other pairs: "h e" before "e r", "r e" */
    expect(t, " to the inn", SP "to|" SP "the|" SP "in|n");
    expect(t, "lion", "l|ion");
    expect(t, "onion", "on|ion");
    expect(t, "12", "1|2");
    expect(t, "a\r\n", "a|\304\215|\304\212"); /* bytes as they are: CR and LF both stay */
    expect(t, "\303\251", "\303\203|\302\251");  /* é: bytes C3 A9 written as Ã and © */
    kvb_tokenizer_free(t);
}

static void test_bpe_pieces_give_the_text_back(void **state)
{
    (void)state;
    static const char text[] =
        "The na\303\257ve caf\303\251 \360\237\246\231 was in\tthe\r\n\r\n   1984 \001\177\302\240end";
    tiny_gguf tiny = tiny_gguf_default();
    kvb_tokenizer *t = from_tiny(&tiny);
    uint32_t *ids;
    size_t count, at = 0, size;
    assert_int_equal(kvb_tokenizer_encode(t, text, sizeof text - 1, false, &ids, &count, NULL), KVB_OK);
    for (size_t i = 0; i < count; i++) {
        const char *piece = kvb_tokenizer_bytes(t, ids[i], &size);
        assert_true(at + size < sizeof text && memcmp(text + at, piece, size) == 0);
        at += size;
    }
    assert_int_equal(at, sizeof text - 1);
    for (uint32_t b = 0; b < 256; b++) { /* tokens 3 to 258 are the bytes */
        const char *piece = kvb_tokenizer_bytes(t, 3 + b, &size);
        assert_true(size == 1 && (uint8_t)piece[0] == b);
    }
    kvb_tokenizer_bytes(t, 300, &size);
    assert_int_equal(size, 0);
    free(ids);
    kvb_tokenizer_free(t);
}

static void test_special_tokens(void **state)
{
    (void)state;
    static const char text[] = "<|im_start|>a<|im_end|><|im_end|> the<|endoftext|>";
    tiny_gguf tiny = tiny_gguf_default();
    kvb_tokenizer *t = from_tiny(&tiny);
    expect_tokens(t, text, sizeof text - 1, true, "<|im_start|>|a|<|im_end|>|<|im_end|>|" SP "the|<|endoftext|>");
    uint32_t *ids;
    size_t count;
    assert_int_equal(kvb_tokenizer_encode(t, text, sizeof text - 1, false, &ids, &count, NULL), KVB_OK);
    for (size_t i = 0; i < count; i++)
        assert_true(ids[i] > 2);
    free(ids);
    assert_int_equal(kvb_tokenizer_bos(t), 0);
    assert_int_equal(kvb_tokenizer_eos(t), 0);
    assert_false(kvb_tokenizer_wants_bos(t));
    assert_int_equal(kvb_tokenizer_vocab(t), 300);
    kvb_tokenizer_free(t);
}

static void test_invalid_utf8(void **state)
{
    (void)state;
    static const char bad[] = "a\xFF the\xC3(\xE2\x82 \xED\xA0\x80", fixed[] = "a\xEF\xBF\xBD the\xEF\xBF\xBD("
                      "\xEF\xBF\xBD\xEF\xBF\xBD \xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD";
    tiny_gguf tiny = tiny_gguf_default();
    kvb_tokenizer *t = from_tiny(&tiny);
    uint32_t *a, *b;
    size_t a_count, b_count;
    assert_int_equal(kvb_tokenizer_encode(t, bad, sizeof bad - 1, false, &a, &a_count, NULL), KVB_OK);
    assert_int_equal(kvb_tokenizer_encode(t, fixed, sizeof fixed - 1, false, &b, &b_count, NULL), KVB_OK);
    assert_int_equal(a_count, b_count);
    assert_memory_equal(a, b, a_count * sizeof *a);
    free(a);
    free(b);
    kvb_tokenizer_free(t);
}

/* BPE as its definition has it: find the best pair, merge it, look again. */
static size_t merge_slowly(const kvb_tokenizer *t, const char *word, size_t size, uint32_t *ids)
{
    size_t count = size;
    for (size_t i = 0; i < size; i++)
        ids[i] = (uint32_t)t->byte_id[(uint8_t)word[i]];
    for (;;) {
        size_t best = count;
        uint64_t best_at = 0;
        for (size_t i = 0; i + 1 < count; i++) {
            uint64_t at = kvb_merges_find(&t->merges, ids[i], ids[i + 1]);
            if (at == UINT64_MAX || (best < count && t->merges.ranks[at] >= t->merges.ranks[best_at]))
                continue;
            best = i;
            best_at = at;
        }
        if (best == count)
            return count;
        ids[best] = t->merges.ids[best_at];
        memmove(ids + best + 1, ids + best + 2, (count - best - 2) * sizeof *ids);
        count--;
    }
}

static void test_against_slow_merging(void **state)
{
    (void)state;
    enum { LONGEST = 200 };
    static const char letters[] = "aeinorsthd";
    tiny_gguf tiny = tiny_gguf_default();
    kvb_tokenizer *t = from_tiny(&tiny);
    uint64_t key = kvb_rng_key(5, 0, 0, 0, 0), draw = 0;
    for (unsigned round = 0; round < 400; round++) {
        char word[LONGEST];
        uint32_t expected[LONGEST], *ids;
        size_t count, size = 1 + (size_t)kvb_rng_below(key, draw++, round % 2 ? LONGEST : 12);
        for (size_t i = 0; i < size; i++)
            word[i] = letters[kvb_rng_below(key, draw++, sizeof letters - 1)];
        word[0] = round % 3 ? word[0] : ' ';
        if (size == 1)
            word[0] = 'x';
        assert_int_equal(kvb_tokenizer_encode(t, word, size, false, &ids, &count, NULL), KVB_OK);
        assert_int_equal(count, merge_slowly(t, word, size, expected));
        assert_memory_equal(ids, expected, count * sizeof *ids);
        free(ids);
    }
    kvb_tokenizer_free(t);
}

/* Words out of the cache are the words worked out: repeats give the ids of one, again and again. */
static void test_repeated_words(void **state)
{
    (void)state;
    enum { REPEATS = 5000 };
    static const char unit[] = " the onion of stations";
    tiny_gguf tiny = tiny_gguf_default();
    kvb_tokenizer *t = from_tiny(&tiny);
    uint32_t *once, *many;
    size_t once_count, many_count;
    char *text = malloc(REPEATS * (sizeof unit - 1));
    assert_non_null(text);
    for (size_t i = 0; i < REPEATS; i++)
        memcpy(text + i * (sizeof unit - 1), unit, sizeof unit - 1);
    assert_int_equal(kvb_tokenizer_encode(t, unit, sizeof unit - 1, false, &once, &once_count, NULL), KVB_OK);
    assert_int_equal(kvb_tokenizer_encode(t, text, REPEATS * (sizeof unit - 1), false, &many, &many_count, NULL),
                     KVB_OK);
    assert_int_equal(many_count, REPEATS * once_count);
    for (size_t i = 0; i < REPEATS; i++)
        assert_memory_equal(many + i * once_count, once, once_count * sizeof *once);
    free(once);
    free(many);
    free(text);
    kvb_tokenizer_free(t);
}

/* More different words than the cache takes, so that its slots collide and it fills up; then all of them again. */
static void test_many_words(void **state)
{
    (void)state;
    enum { WORDS = 70000, SIZE = 5 };
    tiny_gguf tiny = tiny_gguf_default();
    kvb_tokenizer *t = from_tiny(&tiny);
    char *text = malloc(2 * WORDS * SIZE);
    assert_non_null(text);
    for (size_t i = 0; i < 2 * WORDS; i++) {
        text[i * SIZE] = ' ';
        for (size_t c = 1, rest = i % WORDS; c < SIZE; c++, rest /= 26)
            text[i * SIZE + c] = (char)('a' + rest % 26);
    }
    uint32_t *ids, expected[SIZE];
    size_t count, at = 0;
    assert_int_equal(kvb_tokenizer_encode(t, text, 2 * WORDS * SIZE, false, &ids, &count, NULL), KVB_OK);
    for (size_t i = 0; i < 2 * WORDS; i++) {
        size_t n = merge_slowly(t, text + i * SIZE, SIZE, expected);
        assert_true(at + n <= count && memcmp(ids + at, expected, n * sizeof *ids) == 0);
        at += n;
    }
    assert_int_equal(at, count);
    free(ids);
    free(text);
    kvb_tokenizer_free(t);
}

static void test_identity(void **state)
{
    (void)state;
    tiny_gguf tiny = tiny_gguf_default(), other = tiny;
    kvb_tokenizer *a = from_tiny(&tiny);
    other.seed = 2; /* weights decide no ids */
    kvb_tokenizer *same = from_tiny(&other);
    assert_memory_equal(kvb_tokenizer_id(a), kvb_tokenizer_id(same), 32);
    kvb_tokenizer_free(same);
    tiny_gguf changed[4] = {tiny, tiny, tiny, tiny};
    changed[0].pre = "gpt-2";
    changed[1].first_merge = "i t"; /* the same tokens, another order of merges */
    changed[2].wants_bos = true;
    changed[3].vocab = 304;
    for (unsigned i = 0; i < 4; i++) {
        kvb_tokenizer *b = from_tiny(&changed[i]);
        assert_memory_not_equal(kvb_tokenizer_id(a), kvb_tokenizer_id(b), 32);
        kvb_tokenizer_free(b);
    }
    kvb_tokenizer_free(a);
}

/* ---- byte-level vocabularies with gaps, and whole words */

static void test_missing_bytes_vanish(void **state)
{
    (void)state;
    size_t size;
    uint8_t *bytes = small_bpe_make("gpt-2", "\x04\xF1", &size);
    kvb_tokenizer *t = from_bytes(bytes, size), *none;
    expect(t, "ab", "ab");
    expect(t, "x\x04y", "x|y");
    expect(t, "a\x04""b", "a|b"); /* what vanished still parts its neighbours */
    kvb_tokenizer_free(t);
    kvb_error err;
    bytes = small_bpe_make("gpt-2", "Q", &size);
    assert_int_equal(try_bytes(bytes, size, &none, &err), KVB_E_FORMAT);
    assert_non_null(strstr(err.message, "byte 0x51"));
}

static void test_whole_words(void **state)
{
    (void)state;
    size_t size;
    uint8_t *bytes = small_bpe_make("llama-bpe", "", &size);
    kvb_tokenizer *t = from_bytes(bytes, size);
    expect(t, "a whole", "a|" SP "whole"); /* no merge leads there */
    assert_true(kvb_tokenizer_wants_bos(t));
    kvb_tokenizer_free(t);
    bytes = small_bpe_make("qwen2", "", &size);
    t = from_bytes(bytes, size);
    expect(t, " whole", SP "|w|h|o|l|e");
    assert_false(kvb_tokenizer_wants_bos(t));
    kvb_tokenizer_free(t);
}

/* ---- SentencePiece */

static kvb_tokenizer *from_spm(const small_spm *o)
{
    size_t size;
    uint8_t *bytes = small_spm_make(o, &size);
    return from_bytes(bytes, size);
}

static void test_spm(void **state)
{
    (void)state;
    small_spm whole = small_spm_default();
    kvb_tokenizer *t = from_spm(&whole);
    assert_true(kvb_tokenizer_wants_bos(t));
    expect(t, "", "");
    expect(t, "a", US "a");
    expect(t, "ab", US "ab");   /* "_a" (-5) before "ab" (-7), then both */
    expect(t, "abc", US "a|bc"); /* "_a", then "bc" (-6) before "_ab" (-9) */
    expect(t, "b a", US "|b|" US "a");
    expect(t, "b  a", US "|b|" US US "|a");   /* two spaces (-1.5) merge before "_a" */
    expect(t, "b   c", US "|b|" US US "|" US "|c"); /* of two equal pairs the left one */
    expect(t, "\303\251", US "|\303\251");
    expect(t, "\303\250", US "|<0xC3>|<0xA8>"); /* è is no token: its bytes */
    expect(t, "\n", US "|<0x0A>");
    expect(t, "<s>", US "|<|s>");             /* never the control token, by whatever merges */
    expect(t, "<0x41>", US "|<|<0x30>|<0x78>|<0x34>|<0x31>|>");
    expect(t, "a<user>a", US "a|<user>|" US "a"); /* user-defined tokens are tokens always */
    expect(t, "<user>s", "<user>s");              /* the longer one first */
    assert_int_equal(kvb_vocab_find_ordinary(&t->vocab, "<0x41>", 6), KVB_NO_TOKEN);
    expect_tokens(t, "<s>a</s>b", 9, true, "<s>|" US "a|</s>|" US "|b");
    size_t size;
    assert_memory_equal(kvb_tokenizer_bytes(t, 259 + 4, &size), " a", 2);
    assert_int_equal(size, 2);
    assert_memory_equal(kvb_tokenizer_bytes(t, 3 + 10, &size), "\n", 1);
    assert_int_equal(size, 1);
    kvb_tokenizer_free(t);
}

static void test_spm_options(void **state)
{
    (void)state;
    small_spm o = small_spm_default();
    o.no_prefix = 1;
    kvb_tokenizer *t = from_spm(&o);
    expect(t, "ab a", "ab|" US "a");
    assert_true(t->space_starts_word);
    kvb_tokenizer_free(t);
    o.extra = "b" US "a"; /* words no longer merge on their own */
    t = from_spm(&o);
    assert_false(t->space_starts_word);
    expect(t, "b a", "b" US "a");
    expect(t, "c b", "c|" US "|b");
    kvb_tokenizer_free(t);
}

/* ---- refusals */

static void expect_refused(uint8_t *bytes, size_t size, const char *where, const char *message)
{
    kvb_tokenizer *t;
    kvb_error err = {0};
    kvb_status status = try_bytes(bytes, size, &t, &err);
    if (status != KVB_E_FORMAT || strstr(err.where, where) == NULL || strstr(err.message, message) == NULL)
        fail_msg("%s, \"%s: %s\", expected \"%s: %s\"", kvb_status_name(status), err.where, err.message, where,
                 message);
    assert_null(t);
}

static void refuse_tiny(const tiny_gguf *tiny, const char *where, const char *message)
{
    size_t size;
    uint8_t *bytes = tiny_gguf_make(tiny, &size);
    expect_refused(bytes, size, where, message);
}

static void refuse_spm(small_spm o, const char *where, const char *message)
{
    size_t size;
    uint8_t *bytes = small_spm_make(&o, &size);
    expect_refused(bytes, size, where, message);
}

static void test_refused_bpe(void **state)
{
    (void)state;
    tiny_gguf tiny = tiny_gguf_default();
    tiny.first_merge = "zz y";
    refuse_tiny(&tiny, "merges[0]", "the left token is not");
    tiny.first_merge = "y zz";
    refuse_tiny(&tiny, "merges[0]", "the right token is not");
    tiny.first_merge = "y z";
    refuse_tiny(&tiny, "merges[0]", "the merged token is not");
    tiny.first_merge = "yz";
    refuse_tiny(&tiny, "merges[0]", "not two tokens");
    tiny = tiny_gguf_default();
    tiny.pre = "chameleon";
    refuse_tiny(&tiny, "test", "\"chameleon\" is not supported");
    static const char *const keys[] = {"tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.merges"};
    for (unsigned i = 0; i < 3; i++) {
        tiny = tiny_gguf_default();
        tiny.without_key = keys[i];
        refuse_tiny(&tiny, "test", i == 0 ? "expected gpt2" : "missing");
    }
}

static void test_refused_spm(void **state)
{
    (void)state;
    small_spm o = small_spm_default();
    o.missing_byte = 0x41;
    refuse_spm(o, "test", "no byte token <0x41>");
    o = small_spm_default();
    o.first_score = NAN;
    refuse_spm(o, "scores[0]", "not a finite number");
    o = small_spm_default();
    o.bos = SMALL_SPM_VOCAB;
    refuse_spm(o, "bos_token_id", "not an id below");
    o = small_spm_default();
    o.first_type = 7;
    refuse_spm(o, "token_type[0]", "no token type");
    o.first_type = (uint32_t)-1;
    refuse_spm(o, "token_type[0]", "no token type");
    o = small_spm_default();
    o.first_type = 6;
    refuse_spm(o, "tokens[0]", "is a byte token");
    o = small_spm_default();
    o.types = 200;
    refuse_spm(o, "token_type", "one for each token");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bpe_merges),         cmocka_unit_test(test_bpe_pieces_give_the_text_back),
        cmocka_unit_test(test_special_tokens),     cmocka_unit_test(test_invalid_utf8),
        cmocka_unit_test(test_against_slow_merging), cmocka_unit_test(test_repeated_words),
        cmocka_unit_test(test_many_words),
        cmocka_unit_test(test_identity),           cmocka_unit_test(test_missing_bytes_vanish),
        cmocka_unit_test(test_whole_words),        cmocka_unit_test(test_spm),
        cmocka_unit_test(test_spm_options),        cmocka_unit_test(test_refused_bpe),
        cmocka_unit_test(test_refused_spm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
