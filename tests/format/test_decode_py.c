/* Two readers of one format: spec/kvb_decode.py, which shares no code with the library, must see in every golden book
 * the very numbers that the library sees, and must refuse what the library refuses. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "format/base/half.h"
#include "format/base/json.h"
#include "format/base/sha256.h"
#include "format/book_write.h"
#include "format/kvb_layout.h"
#include "tests/support/cm.h"
#include "tests/support/scratch.h"

static int have_python(void)
{
    return system("python3 -c 'import sys; sys.exit(sys.version_info < (3, 8))' >/dev/null 2>&1") == 0;
}

/* Standard output of a command, and its exit status; NULL if it cannot be run. */
static char *run(const char *command, size_t *size, int *status)
{
    enum { LIMIT = 1 << 20 };
    FILE *pipe = popen(command, "r");
    char *text = malloc(LIMIT);
    if (pipe == NULL || text == NULL) {
        free(text);
        return NULL;
    }
    *size = fread(text, 1, LIMIT, pipe);
    int how = pclose(pipe);
    *status = WIFEXITED(how) ? WEXITSTATUS(how) : -1;
    return text;
}

static void expect_u64(const kvb_json *object, const char *key, uint64_t expected)
{
    uint64_t value = UINT64_MAX;
    if (!kvb_json_u64(kvb_json_get(object, key), &value) || value != expected)
        fail_msg("%s is %llu, the library says %llu", key, (unsigned long long)value, (unsigned long long)expected);
}

static void expect_number(const kvb_json *v, double expected)
{
    assert_true(kvb_json_number(v, (double)NAN) == expected);
}

static void expect_floats(const kvb_json *array, const float *values, size_t count)
{
    assert_int_equal(kvb_json_count(array), values != NULL ? count : 0);
    for (size_t i = 0; values != NULL && i < count; i++)
        expect_number(kvb_json_at(array, i), (double)values[i]);
}

static void expect_layer(const kvb_json *v, const kvb_layer *l)
{
    expect_u64(v, "heads", l->heads);
    expect_u64(v, "kv_heads", l->kv_heads);
    expect_u64(v, "head_dim", l->head_dim);
    expect_u64(v, "kind", l->kind);
    expect_u64(v, "sliding_window", l->sliding_window);
    expect_u64(v, "frame", l->frame);
    expect_u64(v, "rope_block", l->rope_block);
    expect_u64(v, "rope_style", l->rope_style);
    expect_u64(v, "rope_dims", l->rope_dims);
    expect_number(kvb_json_get(v, "rope_base"), l->rope_base);
    expect_number(kvb_json_get(v, "attention_scale"), l->attention_scale);
    expect_floats(kvb_json_get(v, "rope_factors"), l->rope_factors, l->rope_dims / 2);
}

static void expect_quality(const kvb_json *v, const kvb_quality *q, size_t groups)
{
    assert_int_equal(kvb_json_count(v), q != NULL ? 4 * groups : 0);
    for (size_t s = 0; q != NULL && s < groups; s++) {
        expect_number(kvb_json_at(v, 4 * s), (double)q[s].train_error);
        if (isnan(q[s].heldout_error))
            assert_int_equal(kvb_json_type_of(kvb_json_at(v, 4 * s + 1)), KVB_JSON_NULL);
        else
            expect_number(kvb_json_at(v, 4 * s + 1), (double)q[s].heldout_error);
        expect_number(kvb_json_at(v, 4 * s + 2), (double)q[s].usage);
        expect_number(kvb_json_at(v, 4 * s + 3), (double)q[s].entropy);
    }
}

static void expect_table(const kvb_json *v, const kvb_codebook *c)
{
    size_t count = (c->scaling != NULL ? 1 : (size_t)c->groups * c->channels * c->stages) * c->stage_centroids;
    expect_u64(v, "d", c->channels);
    expect_u64(v, "K", c->stage_centroids);
    expect_u64(v, "M", c->stages);
    expect_u64(v, "bits", c->code_bits);
    expect_u64(v, "S", c->groups);
    float *table = malloc(count * sizeof *table);
    assert_non_null(table);
    if (c->table != NULL)
        kvb_half_to_floats(table, c->table, count);
    expect_floats(kvb_json_get(v, "table"), c->table != NULL ? table : NULL, count);
    free(table);
}

static void expect_scaling(const kvb_json *v, const kvb_scaling *s, uint32_t dim)
{
    assert_int_equal(kvb_json_type_of(v), s != NULL ? KVB_JSON_OBJECT : KVB_JSON_NULL);
    if (s == NULL)
        return;
    expect_u64(v, "axis", s->axis);
    expect_u64(v, "form", s->form);
    expect_u64(v, "group", s->group);
    expect_number(kvb_json_get(v, "clip"), (double)s->clip);
    expect_u64(v, "outliers", s->outliers);
    float *fixed = malloc(2 * (size_t)dim * sizeof *fixed);
    assert_non_null(fixed);
    if (s->fixed != NULL)
        kvb_half_to_floats(fixed, s->fixed, 2 * (size_t)dim);
    expect_floats(kvb_json_get(v, "offsets"), s->fixed != NULL ? fixed : NULL, dim);
    expect_floats(kvb_json_get(v, "scales"), s->fixed != NULL ? fixed + dim : NULL, dim);
    free(fixed);
    expect_u64(v, "store", s->store);
    expect_floats(kvb_json_get(v, "clips"), s->clips, s->clips != NULL ? kvb_scaling_groups(s, dim) : 0);
    const kvb_json *order = kvb_json_get(v, "order"), *end = kvb_json_get(v, "end");
    assert_int_equal(kvb_json_type_of(order), s->lists > 0 ? KVB_JSON_ARRAY : KVB_JSON_NULL);
    assert_int_equal(s->lists > 0 ? kvb_json_count(order) : 0, s->lists > 0 ? dim : 0);
    assert_int_equal(s->lists > 0 ? kvb_json_count(end) : 0, s->lists);
    for (uint32_t i = 0; s->lists > 0 && i < dim; i++)
        assert_true(kvb_json_number(kvb_json_at(order, i), -1.0) == (double)s->order[i]);
    for (uint32_t i = 0; i < s->lists; i++)
        assert_true(kvb_json_number(kvb_json_at(end, i), -1.0) == (double)s->end[i]);
}

static void expect_codebook(const kvb_json *v, const kvb_book *book)
{
    uint64_t layer = 0, head = 0;
    assert_true(kvb_json_u64(kvb_json_get(v, "layer"), &layer) && kvb_json_u64(kvb_json_get(v, "head"), &head));
    kvb_kind kind = strcmp(kvb_json_string(kvb_json_get(v, "kind"), ""), "key") == 0 ? KVB_KEY : KVB_VALUE;
    const kvb_codebook *c = kvb_book_codebook(book, (uint32_t)layer, (uint32_t)head, kind);
    assert_non_null(c);
    size_t dim = (size_t)c->groups * c->channels;
    expect_table(v, c);
    expect_scaling(kvb_json_get(v, "scaling"), c->scaling, c->groups);
    const kvb_codebook *fine = kvb_book_fine(book, (uint32_t)layer, (uint32_t)head, kind);
    assert_int_equal(kvb_json_type_of(kvb_json_get(v, "fine")), fine != NULL ? KVB_JSON_OBJECT : KVB_JSON_NULL);
    if (fine != NULL)
        expect_table(kvb_json_get(v, "fine"), fine);
    expect_floats(kvb_json_get(v, "mean"), c->mean, dim);
    expect_floats(kvb_json_get(v, "forward"), c->forward, dim * dim);
    expect_floats(kvb_json_get(v, "inverse"), c->inverse, dim * dim);
    expect_quality(kvb_json_get(v, "quality"), kvb_book_quality(book, (uint32_t)layer, (uint32_t)head, kind), c->groups);
}

static size_t count_codebooks(const kvb_book *book)
{
    size_t count = 0;
    for (uint32_t l = 0; l < kvb_book_layers(book); l++)
        for (uint32_t h = 0; h < kvb_book_layer(book, l)->kv_heads; h++)
            count += kvb_book_codebook(book, l, h, KVB_KEY) != NULL ? 2 : 0;
    return count;
}

static void expect_same(const kvb_json *root, const kvb_book *book)
{
    char hex[65];
    const kvb_json *layers = kvb_json_get(root, "layers"), *codebooks = kvb_json_get(root, "codebooks");
    const kvb_json *header = kvb_json_get(root, "header"), *policy = kvb_json_get(root, "policy");
    kvb_sha256_hex(kvb_book_id(book), hex);
    assert_string_equal(kvb_json_string(kvb_json_get(header, "book_id"), ""), hex);
    expect_u64(header, "file_size", kvb_book_file_size(book));
    expect_number(kvb_json_get(policy, "anchor_fraction"), kvb_book_policy(book).anchor_fraction);
    expect_u64(policy, "score", kvb_book_policy(book).score);
    expect_u64(policy, "window", kvb_book_policy(book).window);
    expect_u64(policy, "sinks", kvb_book_policy(book).sinks);
    expect_u64(policy, "exact_form", kvb_book_policy(book).exact);
    assert_int_equal(kvb_json_count(layers), kvb_book_layers(book));
    for (uint32_t l = 0; l < kvb_book_layers(book); l++)
        expect_layer(kvb_json_at(layers, l), kvb_book_layer(book, l));
    assert_int_equal(kvb_json_count(codebooks), count_codebooks(book));
    for (size_t i = 0; i < kvb_json_count(codebooks); i++)
        expect_codebook(kvb_json_at(codebooks, i), book);
}

/* META as both understand it, written the same way. */
static void expect_same_meta(const kvb_json *meta, const kvb_book *book)
{
    kvb_json_doc *doc;
    kvb_json_writer a = {0}, b = {0};
    size_t size;
    const char *text = kvb_book_meta(book, &size);
    assert_int_equal(kvb_json_parse(text, size, "META", &doc, NULL), KVB_OK);
    kvb_json_put_value(&a, NULL, kvb_json_root(doc));
    kvb_json_put_value(&b, NULL, meta);
    assert_string_equal(kvb_json_writer_text(&a), kvb_json_writer_text(&b));
    kvb_json_writer_free(&a);
    kvb_json_writer_free(&b);
    kvb_json_free(doc);
}

static void check_golden(const char *name)
{
    char path[512], command[640];
    size_t size;
    int status;
    kvb_book *book;
    kvb_json_doc *doc;
    kvb_error err = {0};
    assert_int_equal(kvb_book_open(scratch_path("tests/golden", name, path), &book, &err), KVB_OK);
    snprintf(command, sizeof command, "python3 spec/kvb_decode.py --tables %s", path);
    char *text = run(command, &size, &status);
    assert_non_null(text);
    assert_int_equal(status, 0);
    if (kvb_json_parse(text, size, command, &doc, &err) != KVB_OK)
        fail_msg("%s", err.message);
    expect_same(kvb_json_root(doc), book);
    expect_same_meta(kvb_json_get(kvb_json_root(doc), "meta"), book);
    kvb_json_free(doc);
    free(text);
    kvb_book_close(book);
}

static void test_golden_books(void **state)
{
    (void)state;
    if (!have_python()) {
        printf("SKIP decode_py: no python3 of version 3.8 or later\n");
        skip();
    }
    check_golden("minimal.kvb");
    check_golden("additive.kvb");
    check_golden("full.kvb");
    check_golden("packed.kvb");
    check_golden("newer-minor.kvb");
    check_golden("scaled.kvb");
    check_golden("outliers.kvb");
    check_golden("groups.kvb");
}

static size_t count_lines(const char *text, size_t size)
{
    size_t lines = 0;
    for (size_t i = 0; i < size; i++)
        lines += text[i] == '\n';
    return lines;
}

/* Every file is refused, each for a reason of one line. */
static void test_refusals(void **state)
{
    (void)state;
    size_t size, files;
    int status;
    if (!have_python()) {
        printf("SKIP decode_py: no python3 of version 3.8 or later\n");
        skip();
    }
    char *list = run("ls tests/golden-errors/*.kvb", &size, &status);
    assert_non_null(list);
    files = count_lines(list, size);
    free(list);
    assert_true(files > 150);
    char *text = run("python3 spec/kvb_decode.py tests/golden-errors/*.kvb 2>&1", &size, &status);
    assert_non_null(text);
    assert_int_equal(status, 3);
    assert_int_equal(count_lines(text, size), files);
    text[size - 1] = '\0';
    assert_null(strstr(text, "\"schema\""));
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_golden_books), cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests_name("decode_py", tests, NULL, NULL);
}
