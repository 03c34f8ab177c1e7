/* Tuning over a tiny model: errors fall, held-out chunks decide, threads and cancelling, META, refusals. */
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calib/train.h"
#include "calib/tune.h"
#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/json.h"
#include "format/book_write.h"
#include "tests/support/cm.h"
#include "tests/support/rt_book.h"
#include "tests/support/tiny_llama2c.h"
#include "tests/support/tiny_run.h"

enum { CTX = 96, CHUNKS = 8, LAYERS = 3 };
/* The error of a cache that holds everything as half floats, whose relative errors are at most 2^-11 each. */
#define HALF_ROUNDING 1e-6
#define RECIPE                                                                                                         \
    "{\"schema\":1,\"name\":\"t\",\"centroids\":\"%s\",\"keys\":{\"shape\":\"4x16\",\"frame\":\"%s\",\"mean\":true},"             \
    "\"values\":{\"shape\":\"4x16\"}}"

typedef struct fixture {
    tiny_run run;
    kvb_book *book;  /* frame pre */
    kvb_book *block; /* frame block:16 */
    kvb_book *bytes; /* centroids on a grid */
} fixture;

static kvb_book *calibrate(const fixture *f, const char *centroids, const char *frame)
{
    char json[256];
    snprintf(json, sizeof json, RECIPE, centroids, frame);
    return tiny_run_calibrate(&f->run, json, CTX, CHUNKS);
}

static int set_up(void **state)
{
    static fixture f;
    if (!tiny_run_open(&f.run, CTX, CHUNKS))
        return 1;
    f.book = calibrate(&f, "half", "pre");
    f.block = calibrate(&f, "half", "block:16");
    f.bytes = calibrate(&f, "int8", "block:16");
    *state = &f;
    return f.book == NULL || f.block == NULL || f.bytes == NULL;
}

static int tear_down(void **state)
{
    fixture *f = *state;
    kvb_book_close(f->book);
    kvb_book_close(f->block);
    kvb_book_close(f->bytes);
    tiny_run_close(&f->run);
    return 0;
}

static kvb_tune_options usual(void)
{
    kvb_tune_options o;
    kvb_tune_options_init(&o);
    o.ctx = CTX;
    o.stream = KVB_TUNE_EXACT;
    o.epochs = 2;
    return o;
}

typedef struct tuned {
    uint8_t *image;
    size_t size;
    kvb_tune_report report;
    kvb_book *book;
} tuned;

static tuned tune(const fixture *f, const kvb_book *book, const kvb_tune_options *o)
{
    tuned t = {0};
    kvb_error err = {0};
    if (kvb_tune_book(f->run.model, &f->run.text, book, o, &t.image, &t.size, &t.report, &err) != KVB_OK)
        fail_msg("%s: %s", err.where, err.message);
    assert_int_equal(kvb_book_open_memory(t.image, t.size, "tuned", &t.book, &err), KVB_OK);
    return t;
}

static void drop(tuned *t)
{
    kvb_book_close(t->book);
    kvb_tune_report_free(&t->report);
    free(t->image);
}

static bool same_tables(const kvb_book *a, const kvb_book *b, uint32_t layer)
{
    for (uint32_t i = 0; i < 4; i++) {
        const kvb_codebook *x = kvb_book_codebook(a, layer, i / 2, (kvb_kind)(i % 2));
        const kvb_codebook *y = kvb_book_codebook(b, layer, i / 2, (kvb_kind)(i % 2));
        if (memcmp(x->table, y->table, (size_t)x->groups * x->centroids * x->channels * 2) != 0)
            return false;
    }
    return true;
}

static void test_errors_fall(void **state)
{
    const fixture *f = *state;
    const kvb_book *books[] = {f->book, f->block};
    for (int b = 0; b < 2; b++) {
        kvb_tune_options o = usual();
        o.epochs = 4;
        tuned t = tune(f, books[b], &o);
        assert_int_equal(t.report.chunks, CHUNKS);
        assert_int_equal(t.report.heldout_chunks, 1);
        assert_int_equal(t.report.measured_chunks, 1);
        assert_int_equal(t.report.steps, 4 * 4);
        assert_int_equal(t.report.layers, LAYERS);
        for (uint32_t l = 0; l < LAYERS; l++) {
            const kvb_tune_layer_report *r = &t.report.layer[l];
            assert_true(r->coded);
            assert_true(r->train_before > 0.0 && r->train_before < 1.0);
            assert_true(r->train_after < 0.97 * r->train_before);
            assert_int_equal(r->accepted, r->heldout_after < r->heldout_before);
            assert_int_equal(same_tables(t.book, books[b], l), !r->accepted);
        }
        drop(&t);
    }
}

/* What the report says is what the book does: tuning it once more starts from the errors that the first run ended with. */
/* What came on a grid is tuned and goes on one. */
static void test_bytes(void **state)
{
    const fixture *f = *state;
    kvb_tune_options o = usual();
    tuned t = tune(f, f->bytes, &o), other = tune(f, f->block, &o);
    assert_true(rt_book_on_grid(f->bytes) && rt_book_on_grid(t.book));
    assert_false(rt_book_on_grid(f->block) || rt_book_on_grid(other.book));
    bool moved = false;
    for (uint32_t l = 0; l < LAYERS; l++)
        moved = moved || !same_tables(t.book, f->bytes, l);
    assert_true(moved);
    drop(&t);
    drop(&other);
}

static void test_report_is_of_the_book(void **state)
{
    const fixture *f = *state;
    kvb_tune_options o = usual();
    tuned first = tune(f, f->book, &o), second = tune(f, first.book, &o);
    for (uint32_t l = 0; l < LAYERS; l++) {
        const kvb_tune_layer_report *r = &first.report.layer[l], *again = &second.report.layer[l];
        const double train = r->accepted ? r->train_after : r->train_before;
        const double heldout = r->accepted ? r->heldout_after : r->heldout_before;
        assert_true(fabs(again->train_before - train) < 5e-3 * train);
        assert_true(fabs(again->heldout_before - heldout) < 5e-3 * heldout);
    }
    drop(&first);
    drop(&second);
}

/* Other words in the held-out chunk change what is measured there, and no centroid. */
static void test_heldout_chunk_moves_nothing(void **state)
{
    const fixture *f = *state;
    fixture other = *f;
    kvb_tune_options o = usual();
    uint32_t same = 0;
    other.run.text.ids = kvb_alloc_array(f->run.text.id_count, sizeof *other.run.text.ids);
    memcpy(other.run.text.ids, f->run.text.ids, f->run.text.id_count * sizeof *other.run.text.ids);
    for (size_t i = CTX * (CHUNKS - 1); i < CTX * CHUNKS; i++)
        other.run.text.ids[i] = (other.run.text.ids[i] + 1) % tiny_llama2c_default().vocab;
    tuned a = tune(f, f->book, &o), b = tune(&other, f->book, &o);
    for (uint32_t l = 0; l < LAYERS; l++) {
        const kvb_tune_layer_report *x = &a.report.layer[l], *y = &b.report.layer[l];
        assert_true(x->train_before == y->train_before && x->train_after == y->train_after);
        assert_true(x->heldout_before != y->heldout_before);
        same += x->accepted && y->accepted;
        assert_int_equal(same_tables(a.book, b.book, l), x->accepted == y->accepted);
    }
    assert_true(same > 0);
    drop(&a);
    drop(&b);
    free(other.run.text.ids);
}

/* A rate that throws the centroids far away must leave every layer as it was. */
static void test_worse_is_not_kept(void **state)
{
    const fixture *f = *state;
    kvb_tune_options o = usual();
    o.rate = 30.0;
    tuned t = tune(f, f->book, &o);
    for (uint32_t l = 0; l < LAYERS; l++) {
        assert_true(t.report.layer[l].heldout_after > t.report.layer[l].heldout_before);
        assert_false(t.report.layer[l].accepted);
        assert_true(same_tables(t.book, f->book, l));
    }
    drop(&t);
}

static kvb_status keep_some(void *user, const kvb_attention_call *call, uint8_t *kept, kvb_error *err)
{
    uint32_t *calls = user;
    (void)err;
    assert_int_equal(call->tokens, CTX);
    for (uint32_t j = 0; j < call->geometry->kv_heads * CTX; j++) {
        assert_int_equal(kept[j], 0);
        kept[j] = j % 5 == 0;
    }
    ++*calls;
    return KVB_OK;
}

static kvb_status keep_all(void *user, const kvb_attention_call *call, uint8_t *kept, kvb_error *err)
{
    (void)user;
    (void)err;
    memset(kept, 1, (size_t)call->geometry->kv_heads * call->tokens);
    return KVB_OK;
}

static kvb_status keep_fails(void *user, const kvb_attention_call *call, uint8_t *kept, kvb_error *err)
{
    (void)user;
    (void)kept;
    return kvb_fail(err, KVB_E_CHECK, "anchors", "layer %u", call->layer);
}

static void test_kept_tokens(void **state)
{
    const fixture *f = *state;
    kvb_tune_options o = usual();
    uint32_t calls = 0;
    tuned bare = tune(f, f->book, &o);
    o.keep = keep_some;
    o.keep_user = &calls;
    tuned some = tune(f, f->book, &o);
    assert_int_equal(calls, CHUNKS * LAYERS);
    o.keep = NULL;
    o.window = 16;
    tuned window = tune(f, f->book, &o);
    o.window = CTX;
    tuned all = tune(f, f->book, &o);
    for (uint32_t l = 0; l < LAYERS; l++) {
        assert_true(some.report.layer[l].heldout_before < bare.report.layer[l].heldout_before);
        assert_true(window.report.layer[l].heldout_before < bare.report.layer[l].heldout_before);
        assert_true(all.report.layer[l].heldout_before < HALF_ROUNDING);
        assert_true(same_tables(all.book, f->book, l));
    }
    drop(&bare);
    drop(&some);
    drop(&window);
    drop(&all);
}

static void test_threads(void **state)
{
    const fixture *f = *state;
    kvb_tune_options o = usual();
    const int before = omp_get_max_threads();
    uint32_t calls = 0;
    o.window = 8;
    o.stream = KVB_TUNE_CODED;
    o.keep = keep_some;
    o.keep_user = &calls;
    omp_set_num_threads(1);
    tuned one = tune(f, f->block, &o);
    for (int threads = 2; threads <= 3; threads++) {
        omp_set_num_threads(threads);
        tuned more = tune(f, f->block, &o);
        assert_int_equal(one.size, more.size);
        assert_memory_equal(one.image, more.image, one.size);
        drop(&more);
    }
    omp_set_num_threads(before);
    o.seed++;
    tuned other = tune(f, f->block, &o);
    assert_false(other.size == one.size && memcmp(other.image, one.image, one.size) == 0);
    drop(&other);
    drop(&one);
}

static void test_meta(void **state)
{
    const fixture *f = *state;
    kvb_tune_options o = usual();
    kvb_json_doc *doc;
    uint64_t number;
    o.window = 4;
    tuned t = tune(f, f->book, &o), again = tune(f, t.book, &o);
    const char *meta = kvb_book_meta(again.book, NULL);
    assert_int_equal(kvb_json_parse(meta, strlen(meta), "META", &doc, NULL), KVB_OK);
    const kvb_json *root = kvb_json_root(doc), *tuning = kvb_json_get(root, "tuning");
    assert_string_equal(kvb_json_string(kvb_json_get(kvb_json_get(root, "recipe"), "name"), ""), "t");
    assert_true(kvb_json_u64(kvb_json_get(tuning, "epochs"), &number) && number == 2);
    assert_true(kvb_json_u64(kvb_json_get(tuning, "window"), &number) && number == 4);
    assert_true(kvb_json_u64(kvb_json_get(tuning, "heldout_chunks"), &number) && number == 1);
    assert_true(kvb_json_u64(kvb_json_get(kvb_json_get(tuning, "text"), "chunks"), &number) && number == CHUNKS);
    assert_int_equal(kvb_json_count(kvb_json_get(tuning, "layers")), LAYERS);
    const kvb_json *layer = kvb_json_at(kvb_json_get(tuning, "layers"), 2);
    assert_true(kvb_json_number(kvb_json_get(layer, "heldout_after"), -1) == again.report.layer[2].heldout_after);
    assert_true(kvb_json_bool(kvb_json_get(layer, "accepted"), !again.report.layer[2].accepted) ==
                again.report.layer[2].accepted);
    const kvb_quality *q = kvb_book_quality(again.book, 1, 1, KVB_VALUE), *was = kvb_book_quality(f->book, 1, 1, KVB_VALUE);
    assert_memory_equal(q, was, 2 * sizeof *q);
    kvb_json_free(doc);
    drop(&t);
    drop(&again);
}

static int stop_at(void *user, const char *step, uint64_t done, uint64_t total)
{
    uint64_t *at = user;
    assert_string_equal(step, "tune");
    assert_int_equal(total, 2 * (1 + 1) + 2 * 7);
    if (done < *at)
        return 0;
    *at = done;
    return 1;
}

static void test_cancel(void **state)
{
    const fixture *f = *state;
    for (uint64_t at = 0; at <= 18; at += 6) {
        kvb_tune_options o = usual();
        uint64_t stopped = at;
        uint8_t *image = (uint8_t *)1;
        size_t size;
        kvb_error err = {0};
        o.progress = stop_at;
        o.progress_user = &stopped;
        assert_int_equal(kvb_tune_book(f->run.model, &f->run.text, f->book, &o, &image, &size, NULL, &err), KVB_E_CANCELLED);
        assert_int_equal(stopped, at);
        assert_null(image);
    }
}

static void expect_refused(const fixture *f, const kvb_book *book, const kvb_tune_options *o, kvb_status expected,
                           const char *part)
{
    uint8_t *image;
    size_t size;
    kvb_error err = {0};
    kvb_status status = kvb_tune_book(f->run.model, &f->run.text, book, o, &image, &size, NULL, &err);
    if (status != expected || strstr(err.message, part) == NULL)
        print_error("%s: %s: %s\n", kvb_status_name(status), err.where, err.message);
    assert_int_equal(status, expected);
    assert_non_null(strstr(err.message, part));
    assert_null(image);
}

static void test_refusals(void **state)
{
    const fixture *f = *state;
    kvb_tune_options o = usual();
    o.epochs = 0;
    expect_refused(f, f->book, &o, KVB_E_USAGE, "0 epochs");
    o = usual();
    o.rate = NAN;
    expect_refused(f, f->book, &o, KVB_E_USAGE, "rate nan");
    o = usual();
    o.struct_size = 8;
    expect_refused(f, f->book, &o, KVB_E_USAGE, "kvb_tune_options_init");
    o = usual();
    o.chunks = 1;
    expect_refused(f, f->book, &o, KVB_E_USAGE, "one chunk of 96 tokens");
    o = usual();
    o.ctx = CTX * CHUNKS * 2;
    expect_refused(f, f->book, &o, KVB_E_FORMAT, "");
    o = usual();
    o.rate = 1e30;
    expect_refused(f, f->book, &o, KVB_E_CHECK, "smaller rate");
    o = usual();
    o.keep = keep_fails;
    expect_refused(f, f->book, &o, KVB_E_CHECK, "layer 0");
    rt_shape shape = {.layers = 3, .heads = 6, .kv_heads = 2, .head_dim = 16, .channels = 4, .centroids = 8};
    kvb_book *other = rt_book_make(&shape, &(kvb_policy){0});
    o = usual();
    expect_refused(f, other, &o, KVB_E_MISMATCH, "2 KV heads of 16 channels; the model has 6, 2 and 8");
    kvb_book_close(other);
    shape.layers = 2;
    other = rt_book_make(&shape, &(kvb_policy){0});
    expect_refused(f, other, &o, KVB_E_MISMATCH, "has 2 layers, the model 3");
    kvb_book_close(other);
}

/* Layer 0 sees the same queries in both streams, later ones do not; with everything exact the streams are one. */
static void test_coded_stream(void **state)
{
    const fixture *f = *state;
    kvb_tune_options o = usual();
    o.window = 48;
    o.epochs = 4;
    tuned exact = tune(f, f->book, &o);
    o.stream = KVB_TUNE_CODED;
    tuned coded = tune(f, f->book, &o);
    const kvb_tune_layer_report *e = exact.report.layer, *c = coded.report.layer;
    assert_true(e[0].train_before == c[0].train_before && e[0].heldout_after == c[0].heldout_after);
    assert_true(same_tables(exact.book, coded.book, 0));
    for (uint32_t l = 1; l < LAYERS; l++) {
        assert_true(c[l].heldout_before > 1.02 * e[l].heldout_before);
        assert_true(c[l].train_after < c[l].train_before);
    }
    assert_non_null(strstr(kvb_book_meta(coded.book, NULL), "\"stream\":\"coded\""));
    drop(&coded);
    o.window = CTX;
    coded = tune(f, f->book, &o);
    for (uint32_t l = 0; l < LAYERS; l++)
        assert_true(coded.report.layer[l].train_before < HALF_ROUNDING);
    drop(&coded);
    o.window = 0;
    o.keep = keep_all;
    coded = tune(f, f->book, &o);
    for (uint32_t l = 0; l < LAYERS; l++)
        assert_true(coded.report.layer[l].train_before < HALF_ROUNDING);
    drop(&coded);
    drop(&exact);
}

/* Transforms of a book, and layers that it leaves exact, pass through tuning as they are. */
static void test_transforms_and_exact_layers(void **state)
{
    const fixture *f = *state;
    rt_shape shape = {.layers = 3, .heads = 6, .kv_heads = 2, .head_dim = 8, .channels = 4, .centroids = 16,
                      .rope_style = KVB_ROPE_INTERLEAVED, .rope_dims = 8, .transform = true, .last_exact = true, .seed = 4};
    kvb_book *book = rt_book_make(&shape, &(kvb_policy){.window = 3});
    kvb_tune_options o = usual();
    o.rate = 0.1;
    tuned t = tune(f, book, &o);
    for (uint32_t l = 0; l < 2; l++) {
        const kvb_codebook *was = kvb_book_codebook(book, l, 1, KVB_KEY), *is = kvb_book_codebook(t.book, l, 1, KVB_KEY);
        assert_true(t.report.layer[l].accepted && t.report.layer[l].train_after < t.report.layer[l].train_before);
        assert_memory_equal(was->mean, is->mean, 8 * sizeof(float));
        assert_memory_equal(was->forward, is->forward, 64 * sizeof(float));
        assert_memory_equal(was->inverse, is->inverse, 64 * sizeof(float));
    }
    assert_false(t.report.layer[2].coded);
    assert_null(kvb_book_codebook(t.book, 2, 0, KVB_KEY));
    assert_int_equal(kvb_book_policy(t.book).window, 3);
    drop(&t);
    o.stream = KVB_TUNE_CODED;
    t = tune(f, book, &o);
    assert_true(t.report.layer[1].train_after < t.report.layer[1].train_before);
    assert_false(t.report.layer[2].coded);
    drop(&t);
    o.stream = KVB_TUNE_EXACT;
    o.keep = keep_all;
    t = tune(f, book, &o);
    assert_true(same_tables(t.book, book, 0) && same_tables(t.book, book, 1));
    drop(&t);
    kvb_book_close(book);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_errors_fall), cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_report_is_of_the_book),
        cmocka_unit_test(test_heldout_chunk_moves_nothing),
        cmocka_unit_test(test_worse_is_not_kept),
        cmocka_unit_test(test_kept_tokens),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_meta),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_coded_stream),
        cmocka_unit_test(test_transforms_and_exact_layers),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
