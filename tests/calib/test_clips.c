/* Channels in lists by their ranges, and clips by search on attention's output: against attention in double over what the book decodes to. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "calib/train.h"
#include "format/base/checked.h"
#include "format/base/half.h"
#include "format/base/rng.h"
#include "format/base/rope.h"
#include "runtime/codec.h"
#include "tests/support/cm.h"
#include "tests/support/scratch.h"
#include "tests/support/synth.h"
#include "tests/support/train_recipe.h"
#include "tests/support/tiny_llama2c.h"

enum { ROWS = 700, QUERIES = 512, D = 8, HEADS = 2 };

static const synth_capture usual = {.layers = 1, .heads = 4, .kv_heads = HEADS, .dim = D, .rows = ROWS, .key = 21};

#define RECIPE(keys, values, cache)                                                                                          \
    "{\"schema\":1,\"name\":\"t\",\"keys\":{\"shape\":\"1x4\"," keys "},\"values\":{\"shape\":\"1x4\"," values "},\"cache\":{" cache "}}"
#define LISTS "\"axis\":\"token\",\"groups\":{\"by\":\"range\",\"size\":3}"

typedef struct trained {
    kvb_book *book;
    kvb_train_report report;
} trained;

static kvb_status train(const kvb_capture *c, const char *json, uint32_t threads, trained *t, kvb_error *err)
{
    *t = (trained){0};
    return train_recipe(c, json, threads, &t->book, &t->report, err);
}

static trained trained_of(const kvb_capture *c, const char *json)
{
    trained t;
    kvb_error err = {0};
    if (train(c, json, 0, &t, &err) != KVB_OK)
        fail_msg("%s: %s", err.where, err.message);
    return t;
}

/* Scales the channels: of keys the positive numbers of 1, 3 and 6 are large, of values the negative ones of 0 to 2. */
static void shape_channels(const kvb_capture *c)
{
    for (size_t i = 0; i < (size_t)HEADS * ROWS * D; i++) {
        uint16_t *key = (uint16_t *)(uintptr_t)(c->layer[0].keys + i), *value = (uint16_t *)(uintptr_t)(c->layer[0].values + i);
        const size_t d = i % D;
        *key = kvb_half_from_float(kvb_half_to_float(*key) * ((d == 1 || d == 3 || d == 6) && *key < 0x8000 ? 2.0f : 0.25f));
        *value = kvb_half_from_float(kvb_half_to_float(*value) * (d < 3 && *value >= 0x8000 ? 4.0f : 0.5f));
    }
    for (size_t i = 0; i < (size_t)4 * QUERIES * D; i++) {
        uint16_t *q = (uint16_t *)(uintptr_t)(c->layer[0].queries + i);
        *q = kvb_half_from_float(kvb_half_to_float(*q) * 0.5f);
    }
}

/* Rows 0 .. QUERIES-1 of a head as the book has them, after RoPE. Tokens of a group that is not whole, and sinks, as they are. */
static void decode(const kvb_book *book, const kvb_capture *c, uint32_t head, kvb_kind kind, uint32_t sinks, bool coded, float *x)
{
    const uint16_t *half = (kind == KVB_KEY ? c->layer[0].keys : c->layer[0].values) + (size_t)head * ROWS * D;
    const kvb_layer *l = kvb_book_layer(book, 0);
    kvb_rope_table rope;
    kvb_codec *codec;
    kvb_half_to_floats(x, half, QUERIES * D);
    assert_int_equal(kvb_rope_table_create(&rope, &c->geometry[0], 0, QUERIES, NULL), KVB_OK);
    for (uint32_t i = 0; kind == KVB_KEY && l->frame == KVB_FRAME_POST && i < QUERIES; i++)
        kvb_rope_rotate(&rope, i, D, x + i * D, x + i * D);
    assert_int_equal(kvb_codec_create(kvb_book_codebook(book, 0, head, kind), D, true, &codec, NULL), KVB_OK);
    const uint32_t count = (QUERIES - sinks) / codec->block * codec->block;
    uint8_t *packed = malloc(kvb_codec_bytes(codec, count));
    if (coded) {
        kvb_codec_encode_packed(codec, x + sinks * D, D, count, packed);
        kvb_codec_decode_packed(codec, packed, 0, count, x + sinks * D);
    }
    for (uint32_t i = 0; kind == KVB_KEY && l->frame == KVB_FRAME_PRE && i < QUERIES; i++)
        kvb_rope_rotate(&rope, i, D, x + i * D, x + i * D);
    free(packed);
    kvb_codec_destroy(codec);
    kvb_rope_table_free(&rope);
}

/* The output of query `row` of query head h: sinks and the last `window` tokens exact. */
static void attend(const kvb_capture *c, uint32_t h, uint32_t row, uint32_t window, float *const keys[2], float *const values[2], double *out)
{
    double p[QUERIES], sum = 0.0;
    for (uint32_t j = 0; j <= row; j++) {
        const float *k = keys[row - j >= window] + j * D;
        p[j] = 0.0;
        for (uint32_t d = 0; d < D; d++)
            p[j] += (double)kvb_half_to_float(c->layer[0].queries[((size_t)h * QUERIES + row) * D + d]) * (double)k[d];
        p[j] = exp(p[j] * c->geometry[0].attention_scale);
        sum += p[j];
    }
    memset(out, 0, D * sizeof *out);
    for (uint32_t j = 0; j <= row; j++)
        for (uint32_t d = 0; d < D; d++)
            out[d] += p[j] / sum * (double)values[row - j >= window][j * D + d];
}

/* What coding one kind does to the output of the queries that are looked at, relative to the output; the mean over heads. */
static double error_of(const kvb_book *book, const kvb_capture *c, kvb_kind kind, uint32_t window, uint32_t sinks)
{
    static float memory[4][QUERIES * D];
    float *const exact[2][2] = {{memory[0], memory[0]}, {memory[1], memory[1]}};
    float *const keys[2] = {memory[0], kind == KVB_KEY ? memory[2] : memory[0]};
    float *const values[2] = {memory[1], kind == KVB_VALUE ? memory[2] : memory[1]};
    double mean = 0.0;
    for (uint32_t head = 0; head < HEADS; head++) {
        double error = 0.0, norm = 0.0, want[D], is[D];
        decode(book, c, head, KVB_KEY, sinks, false, memory[0]);
        decode(book, c, head, KVB_VALUE, sinks, false, memory[1]);
        decode(book, c, head, kind, sinks, true, memory[2]);
        for (uint32_t h = 2 * head; h < 2 * head + 2; h++)
            for (uint32_t row = QUERIES / 64 - 1; row < QUERIES; row += QUERIES / 64) {
                attend(c, h, row, window, exact[0], exact[1], want);
                attend(c, h, row, window, keys, values, is);
                for (uint32_t d = 0; d < D; d++) {
                    error += (is[d] - want[d]) * (is[d] - want[d]);
                    norm += want[d] * want[d];
                }
            }
        mean += error / norm / HEADS;
    }
    return mean;
}

static void near(double a, double b)
{
    if (fabs(a - b) > 2e-3 * fabs(b) + 1e-9)
        fail_msg("%g is not %g", a, b);
}

/* The error that is reported is that of the book, before (the same recipe with clips of 1) and after; it never rises, and here it falls. */
static void test_search(void **state)
{
    (void)state;
    static const struct {
        const char *name, *searched, *fixed;
        bool falls;
        uint32_t window, sinks;
    } cases[] = {
#define CASE(name, frame, scale, cache, falls, window, sinks)                                                                \
    {name, RECIPE("\"frame\":\"" frame "\",\"scale\":{" scale ",\"clip\":\"search\"}", "\"scale\":{" scale ",\"clip\":\"search\"}", cache), \
     RECIPE("\"frame\":\"" frame "\",\"scale\":{" scale "}", "\"scale\":{" scale "}", cache), falls, window, sinks}
        CASE("lists", "pre", LISTS ",\"store\":\"fp8\"", "\"window\":16,\"sinks\":3", true, 16, 3),
        CASE("lists after RoPE", "post", LISTS, "\"window\":0", true, 0, 0),
        CASE("neighbours", "pre", "\"group\":4", "\"window\":40", true, 40, 0),
        CASE("a root mean square", "pre", "\"group\":0,\"form\":\"rms\",\"levels\":\"normal\"", "\"sinks\":1", false, 0, 1),
        CASE("along channels", "post", "\"axis\":\"channel\",\"group\":16,\"store\":\"fp8\"", "\"sinks\":5", true, 0, 5),
    };
    kvb_capture_store *store;
    assert_int_equal(synth_capture_make(&usual, NULL, &store), 0);
    const kvb_capture *c = kvb_capture_view(store);
    shape_channels(c);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        trained fixed = trained_of(c, cases[i].fixed), searched = trained_of(c, cases[i].searched);
        assert_true(isnan(fixed.report.clip_before[0]));
        for (int kind = 0; kind < 2; kind++) {
            const double before = error_of(fixed.book, c, (kvb_kind)kind, cases[i].window, cases[i].sinks);
            const double after = error_of(searched.book, c, (kvb_kind)kind, cases[i].window, cases[i].sinks);
            near(searched.report.clip_before[kind], before);
            near(searched.report.clip_after[kind], after);
            assert_true(searched.report.clip_after[kind] <= searched.report.clip_before[kind]);
            if (cases[i].falls)
                assert_true(after < 0.99 * before);
            const kvb_scaling *s = kvb_book_codebook(searched.book, 0, 0, (kvb_kind)kind)->scaling;
            const kvb_scaling *other = kvb_book_codebook(searched.book, 0, 1, (kvb_kind)kind)->scaling;
            assert_true((s->clips == NULL) == (s->axis == KVB_AXIS_CHANNEL));
            assert_true(s->clips != NULL || fminf(s->clip, other->clip) < 1.0f);
        }
        kvb_book_close(fixed.book);
        kvb_book_close(searched.book);
    }
    kvb_capture_close(store);
}

/* Behind a transform and a mean: the decoded rows come back from there. */
static void test_transformed(void **state)
{
    (void)state;
    static const char json[] = RECIPE("\"mean\":true,\"rotation\":\"pca\",\"scale\":{\"group\":4,\"clip\":\"search\"}",
                                      "\"mean\":true,\"rotation\":\"random\",\"scale\":{\"group\":4,\"clip\":\"search\"}", "\"window\":8");
    kvb_capture_store *store;
    assert_int_equal(synth_capture_make(&usual, NULL, &store), 0);
    const kvb_capture *c = kvb_capture_view(store);
    trained t = trained_of(c, json);
    for (int kind = 0; kind < 2; kind++)
        near(t.report.clip_after[kind], error_of(t.book, c, (kvb_kind)kind, 8, 0));
    kvb_book_close(t.book);
    kvb_capture_close(store);
}

/* Each channel in one list; those of like ranges together; the same bytes for any number of threads. */
static void test_lists(void **state)
{
    (void)state;
    static const char json[] = RECIPE("\"scale\":{\"axis\":\"token\",\"groups\":{\"by\":\"range\",\"size\":4},\"clip\":\"search\"}",
                                      "\"scale\":{\"axis\":\"token\",\"groups\":{\"by\":\"range\",\"size\":4}}", "\"window\":8");
    kvb_capture_store *store;
    kvb_error err = {0};
    assert_int_equal(synth_capture_make(&usual, NULL, &store), 0);
    const kvb_capture *c = kvb_capture_view(store);
    shape_channels(c);
    trained one, two;
    assert_int_equal(train(c, json, 1, &one, &err), KVB_OK);
    assert_int_equal(train(c, json, 2, &two, &err), KVB_OK);
    assert_memory_equal(kvb_book_id(one.book), kvb_book_id(two.book), 32);
    for (uint32_t head = 0; head < HEADS; head++) {
        static const uint16_t keys[D] = {0, 2, 4, 5, 7, 1, 3, 6}, values[D] = {0, 1, 2, 3, 4, 5, 6, 7};
        const kvb_scaling *k = kvb_book_codebook(one.book, 0, head, KVB_KEY)->scaling, *v = kvb_book_codebook(one.book, 0, head, KVB_VALUE)->scaling;
        assert_int_equal(k->lists, 2);
        assert_memory_equal(k->order, keys, sizeof keys);
        assert_int_equal(k->end[0], 5);
        assert_non_null(k->clips);
        assert_int_equal(v->lists, 2);
        assert_memory_equal(v->order, values, sizeof values);
        assert_int_equal(v->end[0], 3);
        assert_null(v->clips);
    }
    kvb_book_close(one.book);
    kvb_book_close(two.book);
    /* Channels that are all alike make one list, however many were asked for. */
    for (size_t i = 0; i < (size_t)HEADS * ROWS * D; i++)
        ((uint16_t *)(uintptr_t)c->layer[0].values)[i] = c->layer[0].values[i / D * D];
    trained same = trained_of(c, json);
    assert_int_equal(kvb_book_codebook(same.book, 0, 0, KVB_VALUE)->scaling->lists, 1);
    kvb_book_close(same.book);
    kvb_capture_close(store);
}

static void test_refused(void **state)
{
    (void)state;
    kvb_capture_store *store;
    trained t;
    kvb_error err = {0};
    assert_int_equal(synth_capture_make(&usual, NULL, &store), 0);
    kvb_capture c = *kvb_capture_view(store);
    c.query_rows = 0;
    assert_int_equal(train(&c, RECIPE("\"scale\":{\"clip\":\"search\"}", "\"scale\":{}", ""), 0, &t, &err), KVB_E_MISMATCH);
    assert_non_null(strstr(err.message, "layers.0.queries"));
    kvb_capture_close(store);
}

/* ---- what a capture keeps */

typedef struct kept {
    float *q[8]; /* by layer [H][T][D] */
} kept;

static kvb_status keep(void *user, const kvb_attention_call *call, const float *out, const float *lse, kvb_error *err)
{
    kept *k = user;
    const size_t size = (size_t)call->geometry->heads * call->tokens * call->geometry->head_dim * sizeof(float);
    (void)out;
    (void)lse;
    (void)err;
    k->q[call->layer] = malloc(size);
    memcpy(k->q[call->layer], call->q, size);
    return KVB_OK;
}

/* The queries of the first chunk's rows, drawn or all; a file has what memory has, and parts of a run what the run has. */
static void test_capture(void **state)
{
    (void)state;
    enum { CTX = 40, KEEP = 7 };
    char path[512], tokenizer[512], *folder = scratch_create();
    tiny_llama2c tiny = tiny_llama2c_default();
    kvb_model *model;
    scratch_path(folder, "tiny.bin", path);
    scratch_path(folder, "tokenizer.bin", tokenizer);
    const kvb_model_options with = {.tokenizer_path = tokenizer};
    assert_true(tiny_llama2c_write(&tiny, path, tokenizer));
    assert_int_equal(kvb_model_open(path, &with, &model, NULL), KVB_OK);
    uint32_t ids[3 * CTX];
    for (size_t i = 0; i < 3 * CTX; i++)
        ids[i] = (uint32_t)kvb_rng_below(3, i, tiny.vocab);
    kvb_text_source source = {.path = "words.txt", .bytes = 9, .tokens = 3 * CTX};
    const kvb_text text = {.sources = &source, .source_count = 1, .id_count = 3 * CTX, .ids = ids};
    kvb_capture_options options = {.ctx = CTX, .chunks = 2, .skip = 1, .bos = -1, .seed = 1, .queries = true, .max_rows = 2 * KEEP};
    kvb_capture_store *store, *file, *part[2], *joined;
    scratch_path(folder, "q.kvc", path);
    assert_int_equal(kvb_capture_run(model, &text, &options, &store, NULL), KVB_OK);
    assert_int_equal(kvb_capture_run_to_file(model, &text, &options, path, NULL), KVB_OK);
    assert_int_equal(kvb_capture_open(path, &file, NULL), KVB_OK);
    for (uint64_t i = 0; i < 2; i++) {
        kvb_capture_options of = options;
        assert_int_equal(kvb_capture_part(&of, i, 2, NULL), KVB_OK);
        assert_int_equal(of.queries, i == 0);
        assert_int_equal(kvb_capture_run(model, &text, &of, &part[i], NULL), KVB_OK);
    }
    const kvb_capture *views[] = {kvb_capture_view(part[1]), kvb_capture_view(part[0])};
    const char *names[] = {"b", "a"};
    assert_int_equal(kvb_capture_join(views, names, 2, &joined, NULL), KVB_OK);
    kept k = {0};
    const kvb_forward_hooks hooks = {.observe = keep, .observe_user = &k};
    kvb_forward *forward;
    const float *hidden;
    assert_int_equal(kvb_forward_create(model, CTX, &forward, NULL), KVB_OK);
    assert_int_equal(kvb_forward_run(forward, ids + CTX, CTX, 0, &hooks, &hidden, NULL), KVB_OK);
    const kvb_capture *c = kvb_capture_view(store), *whole = kvb_capture_view(joined);
    assert_int_equal(c->query_rows, KEEP);
    assert_int_equal(kvb_capture_view(file)->query_rows, KEEP);
    assert_int_equal(whole->query_rows, KEEP);
    for (uint32_t l = 0; l < c->layers; l++) {
        const uint32_t heads = c->geometry[l].heads, dim = c->geometry[l].head_dim;
        const size_t size = (size_t)heads * KEEP * dim * sizeof(uint16_t);
        for (uint32_t i = 0; i < heads * KEEP * dim; i++) {
            const size_t head = i / (KEEP * dim), row = c->row_position[i / dim % KEEP];
            assert_int_equal(c->layer[l].queries[i], kvb_half_from_float(k.q[l][(head * CTX + row) * dim + i % dim]));
        }
        assert_int_equal(kvb_capture_load(whole, &l, 1, NULL), KVB_OK);
        assert_memory_equal(kvb_capture_view(file)->layer[l].queries, c->layer[l].queries, size);
        assert_memory_equal(whole->layer[l].queries, c->layer[l].queries, size);
        free(k.q[l]);
    }
    kvb_forward_destroy(forward);
    kvb_capture_close(joined);
    kvb_capture_close(part[0]);
    kvb_capture_close(part[1]);
    kvb_capture_close(store);
    kvb_capture_close(file);
    kvb_model_close(model);
    scratch_remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_search), cmocka_unit_test(test_transformed), cmocka_unit_test(test_lists), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_capture),
    };
    return cmocka_run_group_tests_name("clips", tests, NULL, NULL);
}
