/* The backward pass and the distillation loss against finite differences of a model in double. */
#include <math.h>
#include <omp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "format/base/checked.h"
#include "format/base/rng.h"
#include "model/divergence.h"
#include "model/linear.h"
#include "tests/support/plain_llama.h"
#include "tests/support/synth.h"
#include "tests/support/tiny_gguf.h"
#include "tests/support/tiny_llama2c.h"

static char model_path[64], tokenizer_path[64];

/* One model and one sequence; the student reads keys and values that are pushed aside, the teacher does not. */
typedef struct bed {
    kvb_model *model;
    uint32_t count;
    uint32_t *ids;
    plain_llama plain;          /* the student */
    float *teacher;             /* [T][E] */
    float *d_k, *d_v;           /* [L][G][T][D] what the backward pass gave */
    float *d_embedded;          /* [T][E] */
    uint32_t calls;
    double loss;
} bed;

static kvb_model *open_gguf(const tiny_gguf *t)
{
    kvb_model *m = NULL;
    kvb_error err;
    assert_int_equal(tiny_gguf_write(t, model_path), 0);
    if (kvb_model_open(model_path, NULL, &m, &err) != KVB_OK)
        fail_msg("%s: %s", err.where, err.message);
    return m;
}

static kvb_model *open_llama2c(const tiny_llama2c *t, uint64_t budget)
{
    kvb_model *m = NULL;
    kvb_error err;
    assert_true(tiny_llama2c_write(t, model_path, tokenizer_path));
    kvb_model_options o = {.tokenizer_path = tokenizer_path, .max_weight_bytes = budget};
    if (kvb_model_open(model_path, &o, &m, &err) != KVB_OK)
        fail_msg("%s: %s", err.where, err.message);
    return m;
}

static void bed_make(bed *b, kvb_model *model, uint32_t count, double spread)
{
    *b = (bed){.model = model, .count = count};
    const size_t rows = (size_t)count * model->config.embedding;
    kvb_forward *f;
    const float *hidden;
    b->ids = kvb_alloc_array(count, sizeof *b->ids);
    for (uint32_t i = 0; i < count; i++)
        b->ids[i] = (uint32_t)kvb_rng_below(99, i, model->config.vocab);
    b->plain = plain_llama_make(model, b->ids, count, spread);
    b->teacher = kvb_alloc_array(rows, sizeof(float));
    b->d_embedded = kvb_alloc_array(rows, sizeof(float));
    b->d_k = kvb_alloc_array(model->config.layers * b->plain.layer_floats, sizeof(float));
    b->d_v = kvb_alloc_array(model->config.layers * b->plain.layer_floats, sizeof(float));
    assert_int_equal(kvb_forward_create(model, count, &f, NULL), KVB_OK);
    assert_int_equal(kvb_forward_run(f, b->ids, count, 0, NULL, &hidden, NULL), KVB_OK);
    memcpy(b->teacher, hidden, rows * sizeof *hidden);
    kvb_forward_destroy(f);
}

static void bed_free(bed *b)
{
    plain_llama_free(&b->plain);
    free(b->ids);
    free(b->teacher);
    free(b->d_k);
    free(b->d_v);
    free(b->d_embedded);
}

/* Keys' and values' gradients are kept; layers must come from the last to the first. */
static kvb_status collect(void *user, const kvb_attention_call *call, const kvb_attention_gradient *g, kvb_error *err)
{
    bed *b = user;
    const size_t size = b->plain.layer_floats, at = call->layer * size;
    assert_int_equal(call->layer, b->model->config.layers - 1 - b->calls++);
    kvb_status status = plain_attend_backward(&b->plain, call, g, err);
    memcpy(b->d_k + at, g->d_k, size * sizeof *b->d_k);
    memcpy(b->d_v + at, g->d_v, size * sizeof *b->d_v);
    return status;
}

static void run_with(bed *b, uint64_t product_bytes, const kvb_forward_hooks *hooks)
{
    const float *student;
    kvb_backward *back;
    kvb_divergence *d;
    float *d_hidden = kvb_alloc_array((size_t)b->count * b->model->config.embedding, sizeof *d_hidden);
    assert_int_equal(kvb_backward_create(b->model, b->count + 3, product_bytes, &back, NULL), KVB_OK);
    assert_int_equal(kvb_divergence_create(b->model, &d, NULL), KVB_OK);
    assert_int_equal(kvb_backward_forward(back, b->ids, b->count, hooks, &student, NULL), KVB_OK);
    b->loss = kvb_divergence_run(d, b->teacher, student, b->count, d_hidden);
    b->calls = 0;
    assert_int_equal(kvb_backward_run(back, d_hidden, collect, b, b->d_embedded, NULL), KVB_OK);
    assert_int_equal(b->calls, b->model->config.layers);
    kvb_backward_destroy(back);
    kvb_divergence_destroy(d);
    free(d_hidden);
}

static void run(bed *b, uint64_t product_bytes)
{
    const kvb_forward_hooks hooks = {.attend = plain_attend, .attend_user = &b->plain};
    run_with(b, product_bytes, &hooks);
}

/* ---- finite differences */

static double loss_of(const bed *b, const double *teacher, double *hidden)
{
    plain_llama_hidden(&b->plain, hidden);
    return plain_divergence(b->model, teacher, hidden, b->count);
}

static double largest(const float *x, size_t n)
{
    double most = 0.0;
    for (size_t i = 0; i < n; i++)
        most = fmax(most, fabs((double)x[i]));
    return most;
}

/* The gradients of `samples` of n numbers x, against the loss's change. */
static void check_gradient(const bed *b, const double *teacher, double *hidden, double *x, const float *gradient,
                           size_t n, uint32_t samples, uint64_t key)
{
    const double step = 1e-4, scale = largest(gradient, n);
    assert_true(scale > 1e-6);
    for (uint32_t s = 0; s < samples; s++) {
        const size_t i = kvb_rng_below(key, s, n);
        const double was = x[i];
        x[i] = was + step;
        const double up = loss_of(b, teacher, hidden);
        x[i] = was - step;
        const double down = loss_of(b, teacher, hidden);
        x[i] = was;
        const double want = (up - down) / (2.0 * step);
        if (!(fabs((double)gradient[i] - want) < 2e-4 * scale))
            fail_msg("entry %zu of %zu: gradient %.8g, the loss changes by %.8g (largest gradient %.8g)", i, n,
                     (double)gradient[i], want, scale);
    }
}

static void check_model(kvb_model *model, uint32_t count)
{
    const kvb_model_config *c = &model->config;
    const size_t rows = (size_t)count * c->embedding;
    double *teacher = kvb_alloc_array(rows, sizeof *teacher), *hidden = kvb_alloc_array(rows, sizeof *hidden);
    bed b;
    bed_make(&b, model, count, 0.3);
    for (size_t i = 0; i < rows; i++)
        teacher[i] = (double)b.teacher[i];
    run(&b, 0);
    const double want = loss_of(&b, teacher, hidden);
    assert_true(want > 1e-3);
    assert_true(fabs(b.loss - want) < 1e-5 * want);
    for (uint32_t l = 0; l < c->layers; l++) {
        const size_t size = b.plain.layer_floats, at = l * size;
        if (count > 1)
            check_gradient(&b, teacher, hidden, b.plain.shift_k + at, b.d_k + at, size, 12, l);
        check_gradient(&b, teacher, hidden, b.plain.shift_v + at, b.d_v + at, size, 12, 100 + l);
    }
    check_gradient(&b, teacher, hidden, b.plain.embedded, b.d_embedded, rows, 24, 1000);
    bed_free(&b);
    free(teacher);
    free(hidden);
}

static void check_llama2c(const tiny_llama2c *t, uint32_t count, kvb_rope_style style, uint32_t rope_dims)
{
    kvb_model *m = open_llama2c(t, 0);
    for (uint32_t l = 0; l <= t->layers; l++) {
        kvb_layer *g = l == t->layers ? &m->config.geometry : &m->geometry[l];
        g->rope_style = style;
        g->rope_dims = rope_dims;
    }
    check_model(m, count);
    kvb_model_close(m);
}

static void test_gradients(void **state)
{
    (void)state;
    tiny_llama2c t = tiny_llama2c_default();
    t.layers = 2;
    check_llama2c(&t, 11, KVB_ROPE_INTERLEAVED, 8);
    check_llama2c(&t, 9, KVB_ROPE_HALF, 8);
    check_llama2c(&t, 1, KVB_ROPE_HALF, 4);
    t = (tiny_llama2c){.embedding = 30, .ffn = 37, .layers = 3, .heads = 5, .kv_heads = 5, .vocab = 261, .context = 64,
                       .shared = false, .seed = 3, .nan_at = UINT64_MAX};
    check_llama2c(&t, 7, KVB_ROPE_INTERLEAVED, 6);
    t.heads = 3;
    t.kv_heads = 1;
    check_llama2c(&t, 5, KVB_ROPE_HALF, 6);
    check_llama2c(&t, 6, KVB_ROPE_NONE, 0);
}

static void test_gradients_of_gguf(void **state)
{
    (void)state;
    for (int untied = 0; untied < 2; untied++) {
        tiny_gguf t = tiny_gguf_default();
        t.untied = untied != 0;
        kvb_model *m = open_gguf(&t);
        check_model(m, 10);
        kvb_model_close(m);
    }
}

static void test_gradients_of_architectures(void **state)
{
    (void)state;
    static const char *const names[] = {"qwen2", "qwen3", "gemma3", "phi3"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const tiny_gguf t = tiny_gguf_of(names[i]);
        kvb_model *m = open_gguf(&t);
        check_model(m, 9);
        kvb_model_close(m);
    }
}

/* ---- properties */

static void expect_same(const bed *a, const bed *b)
{
    const size_t kv = a->model->config.layers * a->plain.layer_floats;
    assert_memory_equal(&a->loss, &b->loss, sizeof a->loss);
    assert_memory_equal(a->d_k, b->d_k, kv * sizeof *a->d_k);
    assert_memory_equal(a->d_v, b->d_v, kv * sizeof *a->d_v);
    assert_memory_equal(a->d_embedded, b->d_embedded, (size_t)a->count * a->model->config.embedding * sizeof(float));
}

static void test_threads_do_not_matter(void **state)
{
    (void)state;
    const tiny_llama2c t = tiny_llama2c_default();
    kvb_model *m = open_llama2c(&t, 0);
    const int before = omp_get_max_threads();
    bed one;
    bed_make(&one, m, 300, 0.3);
    omp_set_num_threads(1);
    run(&one, 0);
    for (int threads = 2; threads <= 3; threads++) {
        bed more;
        bed_make(&more, m, 300, 0.3);
        omp_set_num_threads(threads);
        run(&more, 0);
        expect_same(&one, &more);
        bed_free(&more);
    }
    omp_set_num_threads(before);
    bed_free(&one);
    kvb_model_close(m);
}

/* Products made again and weights expanded when used give the same bits. */
static void test_budgets_do_not_matter(void **state)
{
    (void)state;
    const tiny_llama2c t = tiny_llama2c_default();
    kvb_model *m = open_llama2c(&t, 0), *lean = open_llama2c(&t, 1);
    bed kept, some, none;
    bed_make(&kept, m, 20, 0.3);
    bed_make(&some, m, 20, 0.3);
    bed_make(&none, lean, 20, 0.3);
    run(&kept, 0);
    run(&some, 30000); /* one layer's: 23 * (80 + 160) floats */
    expect_same(&kept, &some);
    run(&none, 1);
    expect_same(&kept, &none);
    bed_free(&kept);
    bed_free(&some);
    bed_free(&none);
    kvb_model_close(m);
    kvb_model_close(lean);
}

/* Post norms' inputs are on the tape whatever the budget; products of q and k made again go through their norms again. */
static void test_budgets_of_architectures(void **state)
{
    (void)state;
    static const char *const names[] = {"qwen2", "gemma3"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const tiny_gguf t = tiny_gguf_of(names[i]);
        kvb_model *m = open_gguf(&t);
        bed kept, none;
        bed_make(&kept, m, 12, 0.3);
        bed_make(&none, m, 12, 0.3);
        run(&kept, 0);
        run(&none, 1);
        expect_same(&kept, &none);
        bed_free(&kept);
        bed_free(&none);
        kvb_model_close(m);
    }
}

static void test_equal_student(void **state)
{
    (void)state;
    const tiny_gguf t = tiny_gguf_default();
    kvb_model *m = open_gguf(&t);
    bed b;
    bed_make(&b, m, 33, 0.0);
    run_with(&b, 0, NULL); /* the model's own exact attention, as the teacher's */
    assert_true(b.loss == 0.0);
    assert_true(largest(b.d_k, m->config.layers * b.plain.layer_floats) == 0.0);
    assert_true(largest(b.d_v, m->config.layers * b.plain.layer_floats) == 0.0);
    assert_true(largest(b.d_embedded, 33 * (size_t)m->config.embedding) == 0.0);
    bed_free(&b);
    kvb_model_close(m);
}

static kvb_status stop(void *user, const kvb_attention_call *call, const kvb_attention_gradient *g, kvb_error *err)
{
    (void)user, (void)g, (void)err;
    return call->layer == 1 ? KVB_E_CANCELLED : KVB_OK;
}

static void test_errors(void **state)
{
    (void)state;
    const tiny_llama2c t = tiny_llama2c_default();
    kvb_model *m = open_llama2c(&t, 0);
    bed b;
    bed_make(&b, m, 5, 0.1);
    kvb_backward *back;
    kvb_error err = {0};
    const float *hidden;
    assert_int_equal(kvb_backward_create(m, 4, 0, &back, &err), KVB_OK);
    assert_int_equal(kvb_backward_run(back, b.teacher, stop, NULL, NULL, &err), KVB_E_USAGE);
    assert_non_null(strstr(err.message, "kvb_backward_forward"));
    assert_int_equal(kvb_backward_forward(back, b.ids, 4, NULL, &hidden, &err), KVB_OK);
    assert_int_equal(kvb_backward_run(back, b.teacher, stop, NULL, NULL, &err), KVB_E_CANCELLED);
    assert_int_equal(kvb_backward_forward(back, b.ids, 5, NULL, &hidden, &err), KVB_E_USAGE);
    assert_int_equal(kvb_backward_run(back, b.teacher, stop, NULL, NULL, &err), KVB_E_USAGE); /* the tape is stale */
    kvb_backward_destroy(back);
    kvb_backward_destroy(NULL);
    bed_free(&b);
    kvb_model_close(m);
}

/* ---- the parts */

/* A vocabulary of several strips, more positions than a block. */
static void check_divergence(uint32_t vocab, uint32_t width, uint32_t n)
{
    kvb_model m = {.config = {.embedding = width, .vocab = vocab}};
    m.head = (kvb_weight){.rows = vocab, .cols = width, .resident = synth_normals((size_t)vocab * width, 5, 1.0)};
    const size_t rows = (size_t)n * width;
    float *teacher = synth_normals(rows, 6, 1.0), *student = synth_normals(rows, 7, 1.0);
    float *gradient = kvb_alloc_array(rows, sizeof *gradient);
    double *p = kvb_alloc_array(rows, sizeof *p), *q = kvb_alloc_array(rows, sizeof *q);
    kvb_divergence *d;
    assert_int_equal(kvb_divergence_create(&m, &d, NULL), KVB_OK);
    for (size_t i = 0; i < rows; i++) {
        p[i] = (double)teacher[i];
        q[i] = (double)student[i];
    }
    const double loss = kvb_divergence_run(d, teacher, student, n, gradient), want = plain_divergence(&m, p, q, n);
    assert_true(fabs(loss - want) < 1e-6 * want);
    const double alone = kvb_divergence_run(d, teacher, student, n, NULL);
    assert_memory_equal(&loss, &alone, sizeof loss);
    for (uint32_t s = 0; s < 8; s++) {
        const size_t i = s == 0 ? rows - 1 : kvb_rng_below(8, s, rows), row = i / width * width;
        const double was = q[i];
        q[i] = was + 1e-4;
        const double up = plain_divergence(&m, p + row, q + row, 1);
        q[i] = was - 1e-4;
        const double down = plain_divergence(&m, p + row, q + row, 1);
        q[i] = was;
        assert_true(fabs((double)gradient[i] - (up - down) / 2e-4 / n) < 1e-5 * largest(gradient, rows));
    }
    student[rows - 1] = NAN;
    assert_true(isnan(kvb_divergence_run(d, teacher, student, n, gradient)));
    void *all[] = {m.head.resident, teacher, student, gradient, p, q};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    kvb_divergence_destroy(d);
}

static void test_divergence(void **state)
{
    (void)state;
    check_divergence(7, 3, 1);
    check_divergence(1024, 5, 2);
    check_divergence(3001, 9, 5);
    check_divergence(130, 11, 259);
    kvb_divergence_destroy(NULL);
}

static void check_linear(uint64_t m, uint64_t n, uint64_t k, bool accumulate)
{
    const uint64_t lddy = n + 3, lddx = k + 5;
    float *dy = synth_normals(m * lddy, 1, 1.0), *w = synth_normals(n * k, 2, 1.0), *dx = synth_normals(m * lddx, 3, 1.0);
    float *before = kvb_alloc_array(m * lddx, sizeof *before);
    memcpy(before, dx, m * lddx * sizeof *dx);
    kvb_linear_backward(dy, lddy, w, m, n, k, accumulate, dx, lddx);
    for (uint64_t i = 0; i < m; i++)
        for (uint64_t c = 0; c < lddx; c++) {
            double want = accumulate || c >= k ? (double)before[i * lddx + c] : 0.0;
            for (uint64_t j = 0; c < k && j < n; j++)
                want += (double)dy[i * lddy + j] * (double)w[j * k + c];
            assert_true(fabs((double)dx[i * lddx + c] - want) < 1e-5 * (double)n);
        }
    free(dy);
    free(w);
    free(dx);
    free(before);
}

static void test_linear_backward(void **state)
{
    (void)state;
    static const uint64_t shapes[][3] = {{1, 3, 5}, {2, 40, 17}, {129, 20, 300}, {256, 3, 577}, {300, 9, 1030}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        check_linear(shapes[i][0], shapes[i][1], shapes[i][2], false);
        check_linear(shapes[i][0], shapes[i][1], shapes[i][2], true);
    }
}

int main(void)
{
    snprintf(model_path, sizeof model_path, "/tmp/kvb-test-backward-%d.bin", (int)getpid());
    snprintf(tokenizer_path, sizeof tokenizer_path, "/tmp/kvb-test-backward-%d.tok", (int)getpid());
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients),
        cmocka_unit_test(test_gradients_of_gguf),
        cmocka_unit_test(test_gradients_of_architectures),
        cmocka_unit_test(test_threads_do_not_matter),
        cmocka_unit_test(test_budgets_do_not_matter),
        cmocka_unit_test(test_budgets_of_architectures),
        cmocka_unit_test(test_equal_student),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_divergence),
        cmocka_unit_test(test_linear_backward),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(model_path);
    unlink(tokenizer_path);
    return failed;
}
