/* One layer's step of tuning: its codes against the runtime's codec, the centroids' gradient against finite differences in
 * every frame, with transforms, windows and anchors, sums of stages, and Adam by hand. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "calib/attention_grad.h"
#include "calib/tune_layer.h"
#include "format/base/checked.h"
#include "format/base/half.h"
#include "runtime/codec.h"
#include "runtime/prefill.h"
#include "tests/support/cm.h"
#include "tests/support/rt_book.h"
#include "tests/support/synth.h"

static rt_shape usual(void)
{
    return (rt_shape){.layers = 1, .heads = 4, .kv_heads = 2, .head_dim = 8, .channels = 4, .centroids = 8,
                      .rope_style = KVB_ROPE_HALF, .rope_dims = 8, .transform = true, .seed = 3};
}

/* A layer of a random book with a random positive definite M. */
typedef struct fixture {
    kvb_book *book;
    kvb_tune_layer layer;
    kvb_tune_work *work;
    rt_rows rows;
    kvb_attention_call call;
    float *target;
    uint8_t *kept;
    kvb_tune_call c;
} fixture;

enum { TOKENS = 37 };

static void fill_gram(kvb_tune_layer *layer, uint32_t width)
{
    float *w = synth_normals((size_t)width * width, 99, 0.3);
    layer->gram = kvb_alloc_zeroed((size_t)width * width, sizeof *layer->gram);
    for (uint32_t i = 0; i < width; i++)
        for (uint32_t j = 0; j < width; j++)
            for (uint32_t k = 0; k < width; k++)
                layer->gram[i * width + j] += w[k * width + i] * w[k * width + j];
    free(w);
}

/* Keys and values that are half floats already, so that what is read exactly is what they are. */
static void to_half(rt_rows *rows, const kvb_layer *l)
{
    double turned[64];
    kvb_round_to_half(rows->k_pre, (size_t)l->kv_heads * rows->tokens * l->head_dim);
    kvb_round_to_half(rows->v, (size_t)l->kv_heads * rows->tokens * l->head_dim);
    for (uint32_t i = 0; i < l->kv_heads * rows->tokens; i++) {
        rt_rotate(l, i % rows->tokens, rows->k_pre + (size_t)i * l->head_dim, turned);
        for (uint32_t c = 0; c < l->head_dim; c++)
            rows->k[(size_t)i * l->head_dim + c] = (float)turned[c];
    }
}

static fixture set_up(const rt_shape *shape, uint32_t window, bool anchors)
{
    fixture f = {.book = rt_book_make(shape, &(kvb_policy){0})};
    const kvb_layer *l = kvb_book_layer(f.book, 0);
    assert_non_null(f.book);
    f.layer.geometry = l;
    f.layer.table = kvb_alloc_zeroed(l->kv_heads * 2, sizeof *f.layer.table);
    for (uint32_t i = 0; i < l->kv_heads * 2; i++)
        assert_int_equal(kvb_tune_table_create(kvb_book_codebook(f.book, 0, i / 2, (kvb_kind)(i % 2)), l->head_dim,
                                               &f.layer.table[i], NULL), KVB_OK);
    fill_gram(&f.layer, l->heads * l->head_dim);
    assert_int_equal(kvb_tune_work_create(f.book, TOKENS, &f.work, NULL), KVB_OK);
    assert_true(rt_rows_make(&f.rows, l, TOKENS, 17));
    to_half(&f.rows, l);
    f.target = synth_normals((size_t)l->heads * TOKENS * l->head_dim, 23, 1.0);
    f.kept = kvb_alloc_zeroed(l->kv_heads * TOKENS, 1);
    for (uint32_t j = 0; anchors && j < l->kv_heads * TOKENS; j += 7)
        f.kept[j] = 1;
    f.call = (kvb_attention_call){.geometry = l, .tokens = TOKENS, .q = f.rows.q, .k_pre = f.rows.k_pre, .k = f.rows.k,
                                  .v = f.rows.v};
    f.c = (kvb_tune_call){.target = f.target, .kept = anchors ? f.kept : NULL, .window = window};
    return f;
}

static void drop(fixture *f)
{
    kvb_tune_layer_free(&f->layer);
    kvb_tune_work_destroy(f->work);
    rt_rows_free(&f->rows);
    kvb_book_close(f->book);
    free(f->target);
    free(f->kept);
}

/* ---- a second computation of the error, in double, from codes that stay what they are */

static uint32_t turned(const kvb_layer *l, uint32_t position)
{
    return l->frame == KVB_FRAME_PRE ? 0 : l->frame == KVB_FRAME_POST ? position : position % l->rope_block;
}

/* Codes of all rows of (head, kind) as the runtime would choose them from the book's own table. */
static void choose_codes(const fixture *f, uint32_t task, uint32_t *codes)
{
    const kvb_layer *l = f->layer.geometry;
    const float *x = (task % 2 == 0 ? f->rows.k_pre : f->rows.v) + (size_t)(task / 2) * TOKENS * l->head_dim;
    kvb_codec *codec;
    float row[64];
    double moved[64];
    assert_int_equal(kvb_codec_create(f->layer.table[task].codebook, l->head_dim, true, &codec, NULL), KVB_OK);
    for (uint32_t i = 0; i < TOKENS; i++) {
        memcpy(row, x + (size_t)i * l->head_dim, l->head_dim * sizeof *row);
        if (task % 2 == 0) {
            rt_rotate(l, turned(l, i), x + (size_t)i * l->head_dim, moved);
            for (uint32_t c = 0; c < l->head_dim; c++)
                row[c] = (float)moved[c];
        }
        kvb_codec_encode(codec, row, l->head_dim, 1, codes + (size_t)i * codec->codebook->groups);
    }
    kvb_codec_destroy(codec);
}

static void decode_row(const fixture *f, uint32_t task, uint32_t position, const uint32_t *codes, float *x)
{
    const kvb_tune_table *t = &f->layer.table[task];
    const kvb_layer *l = f->layer.geometry;
    double y[64], out[64];
    for (uint32_t c = 0; c < l->head_dim; c++) {
        uint32_t s = c / t->channels;
        y[c] = 0.0;
        for (uint32_t m = 0, left = codes[s]; m < t->stages; m++, left /= t->rows)
            y[c] += (double)t->table[(((size_t)s * t->stages + m) * t->rows + left % t->rows) * t->channels + c % t->channels];
    }
    for (uint32_t i = 0; i < l->head_dim; i++) {
        out[i] = t->codebook->inverse == NULL ? y[i] : 0.0;
        for (uint32_t j = 0; t->codebook->inverse != NULL && j < l->head_dim; j++)
            out[i] += (double)t->codebook->inverse[i * l->head_dim + j] * y[j];
        x[i] = (float)(out[i] + (t->codebook->mean != NULL ? (double)t->codebook->mean[i] : 0.0));
    }
    if (task % 2 == 0) {
        rt_rotate(l, position - turned(l, position), x, out);
        for (uint32_t i = 0; i < l->head_dim; i++)
            x[i] = (float)out[i];
    }
}

static double error_of(const fixture *f, const double *out)
{
    const kvb_layer *l = f->layer.geometry;
    const uint32_t width = l->heads * l->head_dim;
    double sum = 0.0, row[256];
    for (uint32_t i = 0; i < TOKENS; i++) {
        for (uint32_t a = 0; a < width; a++) {
            size_t at = ((size_t)(a / l->head_dim) * TOKENS + i) * l->head_dim + a % l->head_dim;
            row[a] = out[at] - (double)f->target[at];
        }
        for (uint32_t a = 0; a < width; a++)
            for (uint32_t b = 0; b < width; b++)
                sum += row[a] * (double)f->layer.gram[a * width + b] * row[b];
    }
    return sum;
}

static double slow_error(const fixture *f, uint32_t *const *codes)
{
    const kvb_layer *l = f->layer.geometry;
    const size_t values = (size_t)l->kv_heads * TOKENS * l->head_dim;
    float *coded[2] = {kvb_alloc_array(values, sizeof(float)), kvb_alloc_array(values, sizeof(float))};
    uint32_t *until = kvb_alloc_array(l->kv_heads * TOKENS, sizeof *until);
    double *out = kvb_alloc_array((size_t)l->heads * TOKENS * l->head_dim, sizeof *out);
    for (uint32_t task = 0; task < l->kv_heads * 2; task++)
        for (uint32_t i = 0; i < TOKENS; i++)
            decode_row(f, task, i, codes[task] + (size_t)i * f->layer.table[task].groups,
                       coded[task % 2] + ((size_t)(task / 2) * TOKENS + i) * l->head_dim);
    for (uint32_t i = 0; i < l->kv_heads * TOKENS; i++)
        until[i] = f->c.kept != NULL && f->c.kept[i] ? KVB_GRAD_EVER : i % TOKENS + f->c.window;
    kvb_grad_layer layer = {.heads = l->heads, .kv_heads = l->kv_heads, .head_dim = l->head_dim, .tokens = TOKENS,
                            .scale = l->attention_scale, .q = f->rows.q, .exact_k = f->rows.k, .exact_v = f->rows.v,
                            .coded_k = coded[0], .coded_v = coded[1], .until = until,
                            .sliding_window = l->kind == KVB_LAYER_SLIDING ? l->sliding_window : 0};
    assert_int_equal(kvb_attn_grad_forward_reference(&layer, out, NULL, NULL), KVB_OK);
    double error = error_of(f, out);
    free(coded[0]);
    free(coded[1]);
    free(until);
    free(out);
    return error;
}

static void check_gradient(fixture *f, uint32_t *const *codes, uint32_t task)
{
    kvb_tune_table *t = &f->layer.table[task];
    double most = 0.0;
    for (size_t i = 0; i < t->floats; i++)
        most = fmax(most, fabs((double)t->gradient[i]));
    assert_true(most > 0.0);
    for (size_t i = 0; i < t->floats; i++) {
        const float saved = t->table[i], step = 4e-3f;
        t->table[i] = saved + step;
        const double above = slow_error(f, codes), up = (double)t->table[i];
        t->table[i] = saved - step;
        const double below = slow_error(f, codes), down = (double)t->table[i];
        t->table[i] = saved;
        const double expected = 0.5 * (above - below) / (up - down);
        if (fabs((double)t->gradient[i] - expected) > 2e-3 * most)
            fail_msg("task %u, entry %zu: gradient %g, difference %g, largest %g", task, i, (double)t->gradient[i],
                     expected, most);
    }
}

static void check_layer(const rt_shape *shape, uint32_t window, bool anchors)
{
    fixture f = set_up(shape, window, anchors);
    uint32_t *codes[4];
    double error;
    f.c.call = &f.call;
    for (uint32_t task = 0; task < 4; task++) {
        codes[task] = kvb_alloc_array((size_t)TOKENS * f.layer.table[task].groups, sizeof(uint32_t));
        choose_codes(&f, task, codes[task]);
    }
    assert_int_equal(kvb_tune_forward(f.work, &f.layer, &f.c, &error, NULL), KVB_OK);
    const double expected = slow_error(&f, codes);
    if (!(fabs(error - expected) < 1e-4 * expected))
        fail_msg("error %g, expected %g", error, expected);
    kvb_tune_backward(f.work, &f.layer, &f.c, 0.5);
    for (uint32_t task = 0; task < 4; task++)
        check_gradient(&f, codes, task);
    for (uint32_t task = 0; task < 4; task++)
        free(codes[task]);
    drop(&f);
}

static void test_gradient(void **state)
{
    (void)state;
    rt_shape pre = usual(), post = usual(), block = usual(), sliding = usual();
    check_layer(&pre, 0, false);
    pre.transform = false;
    check_layer(&pre, 5, true);
    post.frame = KVB_FRAME_POST;
    check_layer(&post, 0, true);
    block.frame = KVB_FRAME_BLOCK;
    block.rope_block = 16;
    block.rope_style = KVB_ROPE_INTERLEAVED;
    block.rope_dims = 4;
    check_layer(&block, 3, false);
    sliding.sliding = 11;
    check_layer(&sliding, 2, false);
}

static void test_norm(void **state)
{
    (void)state;
    rt_shape shape = usual();
    fixture f = set_up(&shape, 0, false);
    f.c.call = &f.call;
    double *zero = kvb_alloc_zeroed(4 * TOKENS * 8, sizeof *zero);
    const double expected = error_of(&f, zero), found = kvb_tune_norm(f.work, &f.layer, &f.c);
    assert_true(fabs(found - expected) < 1e-5 * expected);
    free(zero);
    drop(&f);
}

/* ---- what queries read, against the runtime */

/* The attention of one layer of random rows, codes and anchors against what a prefill makes of the same policy. */
static void check_prefill(const rt_shape *shape, uint32_t index, const kvb_policy *policy)
{
    kvb_book *book = rt_book_make(shape, policy);
    assert_non_null(book);
    const kvb_layer *l = kvb_book_layer(book, index);
    const size_t outputs = (size_t)l->heads * TOKENS * l->head_dim;
    kvb_tune_layer layer;
    kvb_tune_work *work;
    rt_rows rows;
    assert_true(rt_rows_make(&rows, l, TOKENS, 29));
    assert_int_equal(kvb_tune_layer_create(NULL, book, index, policy->exact == KVB_EXACT_FINE, &layer, NULL), KVB_OK);
    assert_true((layer.fine != NULL) == (policy->exact == KVB_EXACT_FINE && layer.table != NULL));
    assert_int_equal(kvb_tune_work_create(book, TOKENS, &work, NULL), KVB_OK);
    uint8_t *kept = kvb_alloc_zeroed((size_t)l->kv_heads * TOKENS, 1);
    float *expected = kvb_alloc_array(outputs, sizeof *expected);
    const kvb_prefill p = {.book = book, .layer = index, .tokens = TOKENS, .policy = policy, .protocol = KVB_PROTOCOL_CHUNK,
                           .q = rows.q, .k_pre = rows.k_pre, .k = rows.k, .v = rows.v};
    assert_int_equal(kvb_prefill_attend(&p, NULL, expected, NULL), KVB_OK);
    assert_int_equal(kvb_prefill_kept(&p, NULL, kept, NULL), KVB_OK);
    const kvb_attention_call call = {.geometry = l, .tokens = TOKENS, .q = rows.q, .k_pre = rows.k_pre, .k = rows.k,
                                     .v = rows.v};
    const kvb_tune_call c = {.call = &call, .kept = kept, .window = policy->window, .sinks = policy->sinks};
    assert_int_equal(kvb_tune_attend(work, &layer, &c, NULL, NULL), KVB_OK);
    const float *out = kvb_tune_output(work);
    for (size_t i = 0; i < outputs; i++)
        if (!(fabs((double)out[i] - (double)expected[i]) < 1e-4))
            fail_msg("output %zu is %g, of a prefill %g (frame %d, window %u, sinks %u, anchors %g, form %d)", i,
                     (double)out[i], (double)expected[i], (int)shape->frame, policy->window, policy->sinks,
                     policy->anchor_fraction, (int)policy->exact);
    free(kept);
    free(expected);
    rt_rows_free(&rows);
    kvb_tune_layer_free(&layer);
    kvb_tune_work_destroy(work);
    kvb_book_close(book);
}

static void test_reads_what_a_cache_reads(void **state)
{
    (void)state;
    static const kvb_policy policies[] = {
        {0}, {.window = 5}, {.sinks = 3}, {.anchor_fraction = 0.2, .score = KVB_SCORE_EXACT_K},
        {.anchor_fraction = 0.15, .score = KVB_SCORE_KEY_NORM, .window = 4, .sinks = 2}, {.sinks = TOKENS + 5, .window = 1},
    };
    static const kvb_rope_frame frames[] = {KVB_FRAME_PRE, KVB_FRAME_POST, KVB_FRAME_BLOCK};
    for (int frame = 0; frame < 3; frame++)
        for (size_t i = 0; i < sizeof policies / sizeof *policies; i++)
            for (int form = 0; form < 2; form++) {
                rt_shape shape = usual();
                kvb_policy policy = policies[i];
                shape.frame = frames[frame];
                shape.rope_block = frames[frame] == KVB_FRAME_BLOCK ? 16 : 0;
                shape.stages = i % 2 == 0 ? 0 : 2;
                shape.fine_channels = 2;
                shape.fine_centroids = 64;
                policy.exact = form == 0 ? KVB_EXACT_HALF : KVB_EXACT_FINE;
                check_prefill(&shape, 0, &policy);
            }
    rt_shape exact = usual();
    exact.layers = 2;
    exact.last_exact = true;
    check_prefill(&exact, 1, &policies[4]);
}

/* ---- the way back of another loss */

typedef struct every_gradient {
    float *q, *k, *v;
} every_gradient;

static void expect_close(const char *what, const float *found, const double *expected, size_t n)
{
    double most = 0.0;
    for (size_t i = 0; i < n; i++)
        most = fmax(most, fabs(expected[i]));
    assert_true(most > 1e-3);
    for (size_t i = 0; i < n; i++)
        if (!(fabs((double)found[i] - expected[i]) < 1e-4 * most))
            fail_msg("%s %zu is %g, expected %g, largest %g", what, i, (double)found[i], expected[i], most);
}

/* What the references make of rows that the test computes itself: no fine codes, so the exact rows are the given ones. */
static void all_reference(const fixture *f, const float *d_out, const kvb_grad_all_reference *d)
{
    const kvb_layer *l = f->layer.geometry;
    const size_t values = (size_t)l->kv_heads * TOKENS * l->head_dim, outputs = (size_t)l->heads * TOKENS * l->head_dim;
    float *coded[2] = {kvb_alloc_array(values, sizeof(float)), kvb_alloc_array(values, sizeof(float))};
    double *wide = kvb_alloc_array(outputs, sizeof *wide);
    uint32_t *until = kvb_alloc_array(l->kv_heads * TOKENS, sizeof *until), codes[64 * TOKENS];
    for (uint32_t task = 0; task < l->kv_heads * 2; task++) {
        choose_codes(f, task, codes);
        for (uint32_t i = 0; i < TOKENS; i++)
            decode_row(f, task, i, codes + (size_t)i * f->layer.table[task].groups,
                       coded[task % 2] + ((size_t)(task / 2) * TOKENS + i) * l->head_dim);
    }
    for (uint32_t i = 0; i < l->kv_heads * TOKENS; i++)
        until[i] = f->c.kept != NULL && f->c.kept[i] ? KVB_GRAD_EVER : i % TOKENS + f->c.window;
    for (size_t i = 0; i < outputs; i++)
        wide[i] = (double)d_out[i];
    const kvb_grad_layer layer = {.heads = l->heads, .kv_heads = l->kv_heads, .head_dim = l->head_dim, .tokens = TOKENS,
                                  .scale = l->attention_scale, .q = f->rows.q, .exact_k = f->rows.k, .exact_v = f->rows.v,
                                  .coded_k = coded[0], .coded_v = coded[1], .until = until,
                                  .sliding_window = l->kind == KVB_LAYER_SLIDING ? l->sliding_window : 0};
    assert_int_equal(kvb_attn_grad_all_reference(&layer, wide, d, NULL), KVB_OK);
    free(coded[0]);
    free(coded[1]);
    free(wide);
    free(until);
}

/* With a memo of the caller's, and another call in between: the way back must need nothing else of the way there. */
static void check_all(const rt_shape *shape, uint32_t window, bool anchors)
{
    fixture f = set_up(shape, window, anchors);
    const kvb_layer *l = f.layer.geometry;
    const size_t values = (size_t)l->kv_heads * TOKENS * l->head_dim, outputs = (size_t)l->heads * TOKENS * l->head_dim;
    const every_gradient g = {kvb_alloc_array(outputs, sizeof(float)), kvb_alloc_array(values, sizeof(float)),
                              kvb_alloc_array(values, sizeof(float))};
    const kvb_grad_all_reference d = {
        kvb_alloc_array(outputs, sizeof(double)), kvb_alloc_array(values, sizeof(double)),
        kvb_alloc_array(values, sizeof(double)), kvb_alloc_array(values, sizeof(double)),
        kvb_alloc_array(values, sizeof(double)),
    };
    float *d_out = synth_normals(outputs, 31, 1.0), *out = kvb_alloc_array(outputs, sizeof *out);
    kvb_tune_memo memo, other;
    rt_rows others;
    f.c.call = &f.call;
    assert_true(rt_rows_make(&others, l, TOKENS, 77));
    const kvb_attention_call between = {.geometry = l, .tokens = TOKENS, .q = others.q, .k_pre = others.k_pre,
                                        .k = others.k, .v = others.v};
    const kvb_tune_call c = {.call = &between};
    assert_int_equal(kvb_tune_memo_create(&f.layer, TOKENS, &memo, NULL), KVB_OK);
    assert_int_equal(kvb_tune_memo_create(&f.layer, TOKENS, &other, NULL), KVB_OK);
    assert_int_equal(kvb_tune_attend(f.work, &f.layer, &f.c, &memo, NULL), KVB_OK);
    memcpy(out, kvb_tune_output(f.work), outputs * sizeof *out);
    assert_int_equal(kvb_tune_attend(f.work, &f.layer, &c, &other, NULL), KVB_OK);
    const kvb_attention_gradient gradient = {.out = out, .d_out = d_out, .d_q = g.q, .d_k = g.k, .d_v = g.v};
    assert_int_equal(kvb_tune_attend_backward(f.work, &f.layer, &f.c, &memo, &gradient, NULL), KVB_OK);
    all_reference(&f, d_out, &d);
    expect_close("d_q", g.q, d.q, outputs);
    expect_close("d_k", g.k, d.exact_k, values);
    expect_close("d_v", g.v, d.exact_v, values);
    kvb_tune_memo_free(&memo);
    kvb_tune_memo_free(&other);
    rt_rows_free(&others);
    double *wide[] = {d.q, d.exact_k, d.exact_v, d.coded_k, d.coded_v};
    float *narrow[] = {g.q, g.k, g.v, d_out, out};
    for (int i = 0; i < 5; i++) {
        free(wide[i]);
        free(narrow[i]);
    }
    drop(&f);
}

static void test_every_gradient(void **state)
{
    (void)state;
    rt_shape pre = usual(), block = usual(), post = usual();
    check_all(&pre, 4, true);
    block.frame = KVB_FRAME_BLOCK;
    block.rope_block = 16;
    check_all(&block, 3, false);
    post.frame = KVB_FRAME_POST;
    post.sliding = 11;
    check_all(&post, 0, true);
}

/* ---- tables */

/* Code 5 of 2 stages of 4 rows is row 1 of the first and row 1 of the second. */
static void test_stages(void **state)
{
    (void)state;
    const kvb_codebook book = {.channels = 2, .centroids = 16, .groups = 1, .code_bits = 4};
    float table[16], gradient[16] = {0}, centroids[32], y[4] = {0}, x[4], dy[] = {1.0f, 2.0f, 10.0f, 20.0f};
    uint32_t codes[2];
    kvb_tune_table t = {.codebook = &book, .head_dim = 2, .channels = 2, .groups = 1, .centroids = 16, .stages = 2,
                        .rows = 4, .floats = 16, .table = table, .gradient = gradient};
    for (int i = 0; i < 16; i++)
        table[i] = (float)(i < 8 ? i : 10 * i);
    kvb_nearest *search = kvb_nearest_create(2, 16);
    const float wanted[] = {2.0f + 100.0f, 3.0f + 110.0f, 6.0f + 80.5f, 7.0f + 90.0f};
    kvb_tune_encode(&t, 0, wanted, 2, search, centroids, codes);
    assert_int_equal(codes[0], 1 + 4 * 1);
    assert_int_equal(codes[1], 3 + 4 * 0);
    kvb_tune_decode(&t, kvb_kernels_best(), codes, 2, y, x);
    assert_true(x[0] == 102.0f && x[1] == 113.0f && x[2] == 86.0f && x[3] == 97.0f);
    codes[1] = 1 + 4 * 3;
    kvb_tune_scatter(&t, 0, codes, dy, 2);
    for (int i = 0; i < 16; i++) {
        const float expected = i == 2 ? 11.0f : i == 3 ? 22.0f : i == 10 ? 1.0f : i == 11 ? 2.0f : i == 14 ? 10.0f : i == 15 ? 20.0f : 0.0f;
        assert_true(gradient[i] == expected);
    }
    kvb_nearest_destroy(search);
}

static void test_adam(void **state)
{
    (void)state;
    rt_shape shape = usual();
    kvb_book *book = rt_book_make(&shape, &(kvb_policy){0});
    kvb_tune_table t;
    assert_int_equal(kvb_tune_table_create(kvb_book_codebook(book, 0, 1, KVB_VALUE), 8, &t, NULL), KVB_OK);
    const float start = t.table[40], still = t.table[41];
    const double g[] = {2.0, -0.5};
    double first = 0.0, second = 0.0, at = (double)start;
    assert_true(t.spread[1] > 0.5f && t.spread[1] < 2.0f);
    for (uint32_t step = 1; step <= 2; step++) {
        first = 0.9 * first + 0.1 * g[step - 1];
        second = 0.99 * second + 0.01 * g[step - 1] * g[step - 1];
        at -= 0.1 * (double)t.spread[1] * (first / (1 - pow(0.9, step))) / sqrt(second / (1 - pow(0.99, step)));
        t.gradient[40] = (float)g[step - 1];
        kvb_tune_step(&t, 0.1, step);
        assert_true(t.gradient[40] == 0.0f);
    }
    assert_true(fabs((double)t.table[40] - at) < 1e-6);
    assert_true(fabs((double)start - at) > 0.05);
    assert_true(t.table[41] == still);
    const float moved = t.table[40];
    kvb_tune_table_restore(&t);
    assert_true(t.table[40] == start);
    t.table[40] = moved;
    kvb_tune_table_keep(&t);
    t.table[40] = start;
    kvb_tune_table_restore(&t);
    assert_true(t.table[40] == moved);
    kvb_tune_table_free(&t);
    kvb_book_close(book);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradient),
        cmocka_unit_test(test_norm),
        cmocka_unit_test(test_reads_what_a_cache_reads),
        cmocka_unit_test(test_every_gradient),
        cmocka_unit_test(test_stages),
        cmocka_unit_test(test_adam),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
