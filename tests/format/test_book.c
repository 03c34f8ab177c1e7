/* Building a book and reading it back, and what the writer refuses. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/half.h"
#include "tests/support/cm.h"
#include "tests/support/sample_book.h"
#include "tests/support/scratch.h"

static sample_book sample;

static kvb_book *build_and_open(void)
{
    uint8_t *image;
    size_t size;
    kvb_book *book;
    kvb_error err = {0};
    if (kvb_book_build(&sample.spec, &image, &size, &err) != KVB_OK)
        fail_msg("%s: %s", err.where, err.message);
    assert_int_equal(kvb_book_open_memory(image, size, "sample", &book, &err), KVB_OK);
    assert_int_equal(kvb_book_file_size(book), size);
    free(image);
    return book;
}

static void expect_same_layer(const kvb_layer *a, const kvb_layer *b)
{
    assert_int_equal(a->heads, b->heads);
    assert_int_equal(a->kv_heads, b->kv_heads);
    assert_int_equal(a->head_dim, b->head_dim);
    assert_int_equal(a->kind, b->kind);
    assert_int_equal(a->sliding_window, b->sliding_window);
    assert_int_equal(a->frame, b->frame);
    assert_int_equal(a->rope_block, b->rope_block);
    assert_int_equal(a->rope_style, b->rope_style);
    assert_int_equal(a->rope_dims, b->rope_dims);
    assert_true(a->rope_base == b->rope_base);
    assert_true(a->attention_scale == b->attention_scale);
    assert_int_equal(a->rope_factors == NULL, b->rope_factors == NULL);
    if (b->rope_factors != NULL)
        assert_memory_equal(a->rope_factors, b->rope_factors, b->rope_dims / 2 * sizeof(float));
}

static void expect_floats(const float *found, const float *expected, size_t count)
{
    assert_int_equal(found == NULL, expected == NULL);
    if (expected != NULL)
        assert_memory_equal(found, expected, count * sizeof(float));
}

static void expect_same_codebook(const kvb_codebook *c, const kvb_book_part *p, uint32_t head_dim)
{
    assert_non_null(c);
    assert_int_equal(c->channels, p->channels);
    const uint32_t stages = p->stages > 0 ? p->stages : 1;
    uint64_t codes = 1;
    for (uint32_t m = 0; m < stages; m++)
        codes *= p->centroids;
    assert_int_equal(c->stages, stages);
    assert_int_equal(c->stage_centroids, p->centroids);
    assert_int_equal(c->centroids, codes);
    assert_int_equal(c->groups, head_dim / p->channels);
    assert_int_equal(1u << c->code_bits, codes);
    for (size_t i = 0; i < (size_t)head_dim * stages * p->centroids; i++)
        assert_int_equal(c->table[i], kvb_half_from_float(p->table[i]));
    expect_floats(c->mean, p->mean, head_dim);
    expect_floats(c->forward, p->forward, (size_t)head_dim * head_dim);
    expect_floats(c->inverse, p->inverse, (size_t)head_dim * head_dim);
}

static void expect_same_book(const kvb_book *book)
{
    const kvb_book_spec *spec = &sample.spec;
    size_t size;
    assert_int_equal(kvb_book_layers(book), spec->layers);
    assert_string_equal(kvb_book_meta(book, &size), spec->meta_json);
    assert_int_equal(size, strlen(spec->meta_json));
    kvb_policy p = kvb_book_policy(book);
    assert_true(p.anchor_fraction == spec->policy.anchor_fraction && p.score == spec->policy.score &&
                p.window == spec->policy.window && p.sinks == spec->policy.sinks && p.exact == spec->policy.exact);
    for (uint32_t l = 0; l < spec->layers; l++) {
        expect_same_layer(kvb_book_layer(book, l), &spec->layer[l]);
        for (uint32_t i = 0; spec->layer[l].kind != KVB_LAYER_UNSUPPORTED && i < 2 * spec->layer[l].kv_heads; i++)
            expect_same_codebook(kvb_book_codebook(book, l, i / 2, (kvb_kind)(i % 2)),
                                 &spec->part[(l * spec->part_heads + i / 2) * 2 + i % 2], spec->layer[l].head_dim);
    }
}

static void test_round_trip(void **state)
{
    (void)state;
    sample_minimal(&sample);
    kvb_book *book = build_and_open();
    expect_same_book(book);
    kvb_book_close(book);
    sample_additive(&sample);
    book = build_and_open();
    expect_same_book(book);
    kvb_book_close(book);
    for (int compress = 0; compress < 2; compress++) {
        sample_full(&sample);
        sample.spec.compress = compress;
        book = build_and_open();
        expect_same_book(book);
        const kvb_quality *q = kvb_book_quality(book, 0, 1, KVB_KEY);
        assert_non_null(q);
        assert_true(q[0].train_error == 0.25f && q[0].heldout_error == 0.5f && q[1].usage == 1);
        assert_true(isnan(q[1].heldout_error));
        assert_null(kvb_book_quality(book, 0, 1, KVB_VALUE));
        kvb_book_close(book);
    }
    kvb_book_close(NULL);
}

/* Fine codebooks share mean and transform with the others. */
static void test_fine_round_trip(void **state)
{
    (void)state;
    sample_full(&sample);
    kvb_book *book = build_and_open();
    assert_null(kvb_book_fine(book, 0, 0, KVB_KEY));
    kvb_book_close(book);
    sample_fine(&sample);
    book = build_and_open();
    expect_same_book(book);
    for (uint32_t l = 0; l < 2; l++)
        for (uint32_t i = 0; i < 2 * sample.layer[l].kv_heads; i++) {
            const kvb_book_part *part = &sample.part[4 * l + i];
            kvb_book_part fine = *part->fine;
            fine.mean = part->mean;
            fine.forward = part->forward;
            fine.inverse = part->inverse;
            expect_same_codebook(kvb_book_fine(book, l, i / 2, (kvb_kind)(i % 2)), &fine, sample.layer[l].head_dim);
        }
    assert_null(kvb_book_fine(book, 0, 2, KVB_KEY));
    assert_null(kvb_book_fine(book, 2, 0, KVB_KEY));
    kvb_book_close(book);
}

static void test_indices_outside(void **state)
{
    (void)state;
    sample_full(&sample);
    kvb_book *book = build_and_open();
    assert_null(kvb_book_layer(book, 3));
    assert_null(kvb_book_codebook(book, 3, 0, KVB_KEY));
    assert_null(kvb_book_codebook(book, 0, 2, KVB_KEY));
    assert_null(kvb_book_codebook(book, 1, 1, KVB_KEY));
    assert_null(kvb_book_codebook(book, 2, 0, KVB_KEY));
    assert_null(kvb_book_codebook(book, 0, 0, (kvb_kind)2));
    assert_null(kvb_book_codebook(book, UINT32_MAX, UINT32_MAX, KVB_VALUE));
    assert_null(kvb_book_quality(book, 2, 0, KVB_KEY));
    kvb_book_close(book);
}

/* The same spec, the same bytes; another centroid, another identity. */
static void test_identity(void **state)
{
    (void)state;
    sample_full(&sample);
    uint8_t *a, *b, id[32];
    size_t size_a, size_b;
    assert_int_equal(kvb_book_build(&sample.spec, &a, &size_a, NULL), KVB_OK);
    assert_int_equal(kvb_book_build(&sample.spec, &b, &size_b, NULL), KVB_OK);
    assert_int_equal(size_a, size_b);
    assert_memory_equal(a, b, size_a);
    free(a);
    free(b);
    kvb_book *book = build_and_open();
    memcpy(id, kvb_book_id(book), 32);
    kvb_book_close(book);
    sample.table[5][7] += 1;
    book = build_and_open();
    assert_memory_not_equal(id, kvb_book_id(book), 32);
    kvb_book_close(book);
}

static void expect_refused(kvb_status expected, const char *part)
{
    uint8_t *image = (uint8_t *)1;
    size_t size;
    kvb_error err = {0};
    kvb_status status = kvb_book_build(&sample.spec, &image, &size, &err);
    if (status != expected || strstr(err.message, part) == NULL)
        fail_msg("%s \"%s: %s\", expected \"%s\"", kvb_status_name(status), err.where, err.message, part);
    assert_int_equal(err.code, expected);
    assert_null(image);
    sample_full(&sample);
}

static void test_contradictory_specs(void **state)
{
    (void)state;
    sample_full(&sample);
    sample.spec.layers = 0;
    expect_refused(KVB_E_USAGE, "0 layers");
    sample.spec.policy.anchor_fraction = (double)NAN;
    expect_refused(KVB_E_USAGE, "anchor fraction");
    sample.spec.meta_json = "[]";
    expect_refused(KVB_E_USAGE, "begin with '{'");
    sample.spec.meta_json = "{\"a\":}";
    expect_refused(KVB_E_USAGE, "expected a value");
    sample.spec.meta_json = NULL;
    expect_refused(KVB_E_USAGE, "missing");
    sample.layer[0].kv_heads = 3;
    expect_refused(KVB_E_USAGE, "3 KV heads");
    sample.layer[2].rope_factors = sample.factors;
    expect_refused(KVB_E_USAGE, "without RoPE");
    sample.spec.part_heads = 1;
    expect_refused(KVB_E_USAGE, "room for 1");
    sample.part[1].table = NULL;
    expect_refused(KVB_E_USAGE, "no codebook");
    sample.part[1].channels = 3;
    expect_refused(KVB_E_USAGE, "d = 3");
    sample.part[1].centroids = 6;
    expect_refused(KVB_E_USAGE, "K = 6");
    sample.part[1].stages = 9;
    expect_refused(KVB_E_USAGE, "M = 9");
    sample.part[1].stages = 6; /* 8^6 codes */
    expect_refused(KVB_E_USAGE, "6 stages of 8 centroids make over 65536 codes");
    sample.part[0].inverse = NULL;
    expect_refused(KVB_E_USAGE, "without its inverse");
    sample.spec.policy.exact = KVB_EXACT_FINE;
    expect_refused(KVB_E_USAGE, "no fine codebooks");
    sample.spec.policy.exact = (kvb_exact_form)2;
    expect_refused(KVB_E_USAGE, "exact form 2");
    sample_fine(&sample);
    sample.part[5].fine = NULL;
    expect_refused(KVB_E_USAGE, "lacks a fine codebook");
    sample_fine(&sample);
    sample.part[0].fine = NULL;
    expect_refused(KVB_E_USAGE, "has a fine codebook");
    sample_fine(&sample);
    sample.fine[3].centroids = 6;
    expect_refused(KVB_E_USAGE, "K = 6");
    sample_fine(&sample);
    sample.fine[3].mean = sample.mean;
    expect_refused(KVB_E_USAGE, "more than a shape and a table");
}

static void test_bad_values(void **state)
{
    (void)state;
    sample_full(&sample);
    sample.table[0][9] = NAN;
    expect_refused(KVB_E_CHECK, "centroid value 9 is");
    sample.table[0][9] = -65536;
    expect_refused(KVB_E_CHECK, "at most 65504");
    sample.mean[1] = INFINITY;
    expect_refused(KVB_E_CHECK, "mean value 1");
    sample.forward[2] = NAN;
    expect_refused(KVB_E_CHECK, "transform value 2");
    sample.inverse[0] = 2;
    expect_refused(KVB_E_CHECK, "do not undo");
    memset(sample.table[4], 0, sizeof sample.table[4]);
    expect_refused(KVB_E_CHECK, "centroids are equal");
    /* Different in float32, but the same half float. */
    for (unsigned i = 0; i < 64; i++)
        sample.table[4][i] = 1 + (float)i * 0x1p-20f;
    expect_refused(KVB_E_CHECK, "centroids are equal");
    sample.quality[0].entropy = -1;
    expect_refused(KVB_E_CHECK, "negative");
}

/* A stage that says nothing, or that its last row spoils, is found in whatever group it stands. */
static void test_bad_stages(void **state)
{
    (void)state;
    sample_additive(&sample);
    sample.table[0][63] = INFINITY;
    expect_refused(KVB_E_CHECK, "centroid value 63 is");
    sample_additive(&sample);
    for (unsigned i = 0; i < 4; i++) /* 2 rows of 2 channels: values, group 2, stage 1 */
        sample.table[1][2 * 12 + 4 + i] = 0.5f;
    expect_refused(KVB_E_CHECK, "group 2, stage 1: all 2 centroids are equal");
    sample_additive(&sample);
    for (unsigned i = 0; i < 16; i++)
        sample.table[0][i] = 0.0f;
    expect_refused(KVB_E_CHECK, "group 0, stage 0: all 4 centroids are equal");
}

/* An error relative to no variance is unknown, not infinite. */
static void test_undefined_quality(void **state)
{
    (void)state;
    sample_full(&sample);
    sample.quality[0].train_error = INFINITY;
    kvb_book *book = build_and_open();
    assert_true(isnan(kvb_book_quality(book, 0, 0, KVB_KEY)->train_error));
    kvb_book_close(book);
}

/* An open book does not change when another file takes its place, whichever way. */
static void test_open_book_is_immutable(void **state)
{
    (void)state;
    char *folder = scratch_create(), path[512];
    uint8_t *image;
    size_t size;
    kvb_book *book;
    assert_non_null(folder);
    sample_full(&sample);
    assert_int_equal(kvb_book_build(&sample.spec, &image, &size, NULL), KVB_OK);
    assert_int_equal(scratch_write(scratch_path(folder, "a.kvb", path), image, size), 0);
    free(image);
    assert_int_equal(kvb_book_open(path, &book, NULL), KVB_OK);
    assert_int_equal(scratch_write(path, "", 0), 0);
    expect_same_book(book);
    kvb_book_close(book);
    kvb_error err;
    assert_int_equal(kvb_book_open(path, &book, &err), KVB_E_FORMAT);
    assert_null(book);
    assert_int_equal(kvb_book_open(folder, &book, &err), KVB_E_IO);
    assert_string_equal(err.where, folder);
    scratch_remove(folder);
}

/* A book too large to be read when it is opened: 2 MiB of centroids. */
static uint8_t *build_large(size_t *size)
{
    enum { DIM = 64, CENTROIDS = 8192 };
    static float table[DIM * CENTROIDS];
    for (size_t i = 0; i < DIM * CENTROIDS; i++)
        table[i] = (float)(i * 2654435761u >> 7 & 1023) / 256.0f;
    kvb_layer layer = {.heads = 1, .kv_heads = 1, .head_dim = DIM, .attention_scale = 0.125};
    static const kvb_quality quality[DIM / 8] = {{.train_error = 0.25f}};
    const kvb_book_part one = {.channels = 8, .centroids = CENTROIDS, .table = table, .quality = quality};
    const kvb_book_part part[2] = {one, one};
    const kvb_book_spec spec = {.layers = 1, .layer = &layer, .part = part, .part_heads = 1, .meta_json = "{}"};
    uint8_t *image;
    assert_int_equal(kvb_book_build(&spec, &image, size, NULL), KVB_OK);
    assert_true(*size > (2u << 20));
    return image;
}

/* A large book is mapped: damage among its centroids is for kvb_book_verify(), any other for opening. With KVB_OPEN_VERIFIED it is
 * immutable, mapped it outlives its name. */
static void test_large_book(void **state)
{
    (void)state;
    char *folder = scratch_create(), path[512];
    size_t size;
    kvb_book *book;
    kvb_error err, other;
    uint8_t *image = build_large(&size);
    scratch_path(folder, "large.kvb", path);
    assert_int_equal(scratch_write(path, image, size), 0);
    assert_int_equal(kvb_book_open(path, &book, &err), KVB_OK);
    assert_int_equal(remove(path), 0);
    assert_int_equal(kvb_book_verify(book, &err), KVB_OK);
    kvb_book_close(book);

    image[size / 2] ^= 1;
    assert_int_equal(scratch_write(path, image, size), 0);
    assert_int_equal(kvb_book_open_with(path, KVB_OPEN_VERIFIED, &book, &err), KVB_E_FORMAT);
    assert_null(book);
    assert_int_equal(kvb_book_open(path, &book, &other), KVB_OK);
    assert_int_equal(kvb_book_verify(book, &other), KVB_E_FORMAT);
    assert_string_equal(err.where, other.where);
    assert_string_equal(err.message, other.message);
    kvb_book_close(book);
    image[size / 2] ^= 1;

    /* The last section is a record of quality, which is used where it lies: it is shown as it is, and found by verifying. */
    image[size - 1] ^= 0x80;
    assert_int_equal(scratch_write(path, image, size), 0);
    assert_int_equal(kvb_book_open(path, &book, &err), KVB_OK);
    assert_true(kvb_book_quality(book, 0, 0, KVB_VALUE)->train_error == 0.25f);
    assert_int_equal(kvb_book_verify(book, &err), KVB_E_FORMAT);
    assert_non_null(strstr(err.where, "(qual, layer 0, head 0, value)"));
    kvb_book_close(book);
    image[size - 1] ^= 0x80;

    uint8_t *meta = memmem(image, size, "{}", 2);
    assert_non_null(meta);
    *meta = '[';
    assert_int_equal(scratch_write(path, image, size), 0);
    assert_int_equal(kvb_book_open(path, &book, &err), KVB_E_FORMAT);
    *meta = '{';

    assert_int_equal(scratch_write(path, image, size), 0);
    assert_int_equal(kvb_book_open_with(path, KVB_OPEN_VERIFIED, &book, &err), KVB_OK);
    assert_int_equal(scratch_write(path, "", 0), 0);
    assert_int_equal(kvb_book_verify(book, &err), KVB_OK);
    kvb_book_close(book);
    assert_int_equal(kvb_book_open_with(path, 2, &book, &err), KVB_E_USAGE);
    assert_null(book);
    free(image);
    scratch_remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),          cmocka_unit_test(test_indices_outside),
        cmocka_unit_test(test_identity),            cmocka_unit_test(test_contradictory_specs),
        cmocka_unit_test(test_bad_values),          cmocka_unit_test(test_undefined_quality),
        cmocka_unit_test(test_bad_stages),
        cmocka_unit_test(test_fine_round_trip),
        cmocka_unit_test(test_open_book_is_immutable), cmocka_unit_test(test_large_book),
    };
    return cmocka_run_group_tests_name("book", tests, NULL, NULL);
}
