/* The cache against a plain simulation of its own definition: where each token lives, what is read of it, and attention
 * over that in double. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/half.h"
#include "format/base/rng.h"
#include "tests/support/cm.h"
#include "tests/support/rt_book.h"

typedef struct fixture {
    kvb_book *book;
    const kvb_layer *l;
    kvb_policy policy;
    uint32_t layer;
    kvb_cache *cache;
    rt_rows rows;
    /* What the definition says of one head after each step. */
    bool *exact;   /* [G][T] */
    double *score; /* [G][T] */
    /* Scratch. */
    float *values;         /* [T][D] */
    double *keys, *probs;  /* [T][D], [T] */
    double *out;           /* [D] */
    float *q, *o, *k, *v;  /* one token of all heads */
} fixture;

static void setup(fixture *f, const rt_shape *shape, const kvb_policy *policy, uint32_t tokens)
{
    memset(f, 0, sizeof *f);
    f->book = rt_book_make(shape, policy);
    assert_non_null(f->book);
    f->l = kvb_book_layer(f->book, 0);
    f->policy = *policy;
    kvb_cache_options options;
    kvb_cache_options_init(&options, f->book);
    options.seed = 5;
    assert_int_equal(kvb_cache_create(f->book, &options, &f->cache, NULL), KVB_OK);
    assert_true(rt_rows_make(&f->rows, f->l, tokens, shape->seed + 1000));
    const size_t dim = f->l->head_dim;
    f->exact = calloc((size_t)f->l->kv_heads * tokens, sizeof *f->exact);
    f->score = calloc((size_t)f->l->kv_heads * tokens, sizeof *f->score);
    f->values = calloc(tokens * dim, sizeof *f->values);
    f->keys = calloc(tokens * dim, sizeof *f->keys);
    f->probs = calloc(tokens, sizeof *f->probs);
    f->out = calloc(dim, sizeof *f->out);
    f->q = calloc(f->l->heads * dim, sizeof *f->q);
    f->o = calloc(f->l->heads * dim, sizeof *f->o);
    f->k = calloc(f->l->kv_heads * dim, sizeof *f->k);
    f->v = calloc(f->l->kv_heads * dim, sizeof *f->v);
}

static void teardown(fixture *f)
{
    kvb_cache_destroy(f->cache);
    kvb_book_close(f->book);
    rt_rows_free(&f->rows);
    free(f->exact);
    free(f->score);
    free(f->values);
    free(f->keys);
    free(f->probs);
    free(f->out);
    free(f->q);
    free(f->o);
    free(f->k);
    free(f->v);
}

static void halved(const float *x, uint32_t dim, float *out)
{
    for (uint32_t c = 0; c < dim; c++)
        out[c] = kvb_half_to_float(kvb_half_from_float(x[c]));
}

static double turned_by(const kvb_layer *l, uint32_t position)
{
    return l->frame == KVB_FRAME_PRE ? 0.0 : l->frame == KVB_FRAME_POST ? position : position % l->rope_block;
}

static void turn(const kvb_layer *l, double position, float *x)
{
    double turned[64];
    if (position == 0.0)
        return;
    rt_rotate(l, position, x, turned);
    for (uint32_t c = 0; c < l->head_dim; c++)
        x[c] = (float)turned[c];
}

static void code(const kvb_codebook *b, uint32_t dim, float *x)
{
    uint32_t codes[64];
    assert_int_equal(kvb_encode(b, dim, x, dim, 1, codes, NULL), KVB_OK);
    assert_int_equal(kvb_decode(b, dim, codes, 1, x, NULL), KVB_OK);
}

static bool is_fine(const fixture *f, uint32_t j)
{
    return f->policy.exact == KVB_EXACT_FINE && j >= f->policy.sinks;
}

/* A token as it is kept, a key in the layer's frame: half floats, or what fine codes make of them. */
static void kept_in_frame(const fixture *f, kvb_kind kind, uint32_t g, uint32_t j, float *row)
{
    const uint32_t dim = f->l->head_dim;
    halved((kind == KVB_KEY ? f->rows.k_pre : f->rows.v) + ((size_t)g * f->rows.tokens + j) * dim, dim, row);
    if (kind == KVB_KEY)
        turn(f->l, turned_by(f->l, j), row);
    if (is_fine(f, j))
        code(kvb_book_fine(f->book, f->layer, g, kind), dim, row);
}

/* The score of a token that leaves the window, by the definition. */
static double leaving_score(const fixture *f, uint32_t g, uint32_t j)
{
    const uint32_t dim = f->l->head_dim;
    float key[64];
    double square = 0.0;
    switch (f->policy.score) {
    case KVB_SCORE_EXACT_K:
    case KVB_SCORE_EXACT_V: return f->score[(size_t)g * f->rows.tokens + j];
    case KVB_SCORE_KEY_NORM:
        kept_in_frame(f, KVB_KEY, g, j, key);
        for (uint32_t c = 0; c < dim; c++)
            square += (double)key[c] * (double)key[c];
        return -sqrt(square);
    case KVB_SCORE_FIRST_N: return -(double)j;
    case KVB_SCORE_RANDOM: return kvb_rng_unit(kvb_rng_key(5, f->layer, g, 0, 0), j);
    }
    return 0.0;
}

/* Token i has come: who is exact now? */
static void age(fixture *f, uint32_t g, uint32_t i)
{
    bool *exact = f->exact + (size_t)g * f->rows.tokens;
    const uint32_t w = f->policy.window, sinks = f->policy.sinks;
    exact[i] = true;
    if (i < w || i - w < sinks)
        return;
    uint32_t leaver = i - w, anchors = 0, weakest = leaver;
    double lowest = INFINITY;
    for (uint32_t j = sinks; j <= leaver; j++) {
        anchors += exact[j];
        double score = exact[j] ? leaving_score(f, g, j) : INFINITY;
        if (score <= lowest) {
            lowest = score;
            weakest = j;
        }
    }
    if (anchors > ceil(f->policy.anchor_fraction * (leaver + 1 - sinks) - 1e-9))
        exact[weakest] = false;
}

static void check_key(const fixture *f, uint32_t j, float *in_frame, const float *key)
{
    turn(f->l, -turned_by(f->l, j), in_frame);
    for (uint32_t c = 0; c < f->l->head_dim; c++)
        assert_true(fabs((double)in_frame[c] - (double)key[c]) < 2e-5);
}

static void check_exact_row(const fixture *f, uint32_t g, uint32_t j, const float *key, const float *value)
{
    const uint32_t dim = f->l->head_dim;
    float row[64];
    kept_in_frame(f, KVB_VALUE, g, j, row);
    assert_memory_equal(row, value, dim * sizeof *row);
    if (is_fine(f, j)) {
        kept_in_frame(f, KVB_KEY, g, j, row);
        check_key(f, j, row, key);
        return;
    }
    halved(f->rows.k_pre + ((size_t)g * f->rows.tokens + j) * dim, dim, row);
    assert_memory_equal(row, key, dim * sizeof *row);
}

/* Encoding what was kept, in the frame, and decoding gives what the cache reads. */
static void check_coded_row(const fixture *f, uint32_t g, uint32_t j, const float *key, const float *value)
{
    const uint32_t dim = f->l->head_dim;
    float row[64];
    kept_in_frame(f, KVB_VALUE, g, j, row);
    code(kvb_book_codebook(f->book, f->layer, g, KVB_VALUE), dim, row);
    assert_memory_equal(row, value, dim * sizeof *row);
    kept_in_frame(f, KVB_KEY, g, j, row);
    code(kvb_book_codebook(f->book, f->layer, g, KVB_KEY), dim, row);
    check_key(f, j, row, key);
}

/* Reads all tokens of a head into f->keys (after RoPE, double) and f->values, checking each. */
static void read_head(fixture *f, uint32_t g, uint32_t length, bool thorough)
{
    const uint32_t dim = f->l->head_dim;
    float key[64];
    for (uint32_t j = 0; j < length; j++) {
        float *value = f->values + (size_t)j * dim;
        int exact = -1;
        assert_int_equal(kvb_cache_read(f->cache, f->layer, g, j, key, value, &exact, NULL), KVB_OK);
        assert_int_equal(exact, f->exact[(size_t)g * f->rows.tokens + j]);
        if (exact)
            check_exact_row(f, g, j, key, value);
        else if (thorough)
            check_coded_row(f, g, j, key, value);
        rt_rotate(f->l, j, key, f->keys + (size_t)j * dim);
    }
}

/* Attention over what was read, and what each token of the window gains by it. */
static void check_attention(fixture *f, uint32_t g, uint32_t i)
{
    const uint32_t dim = f->l->head_dim, group = f->l->heads / f->l->kv_heads;
    for (uint32_t h = g * group; h < (g + 1) * group; h++) {
        const float *q = f->q + (size_t)h * dim;
        double square = 0.0;
        rt_attend(f->l, q, f->keys, f->values, i + 1, f->out, f->probs);
        for (uint32_t c = 0; c < dim; c++) {
            assert_true(fabs(f->out[c] - (double)f->o[(size_t)h * dim + c]) < 2e-5);
            square += (double)q[c] * (double)q[c];
        }
        for (uint32_t j = i + 1 > f->policy.window ? i + 1 - f->policy.window : 0; j <= i; j++) {
            double distance = 0.0;
            for (uint32_t c = 0; c < dim; c++)
                distance += fabs((double)f->values[(size_t)j * dim + c] - f->out[c]);
            f->score[(size_t)g * f->rows.tokens + j] +=
                f->policy.score == KVB_SCORE_EXACT_V
                    ? f->probs[j]
                    : f->l->attention_scale * f->probs[j] * distance * sqrt(square);
        }
    }
}

static void run_case(const rt_shape *shape, const kvb_policy *policy, uint32_t tokens)
{
    fixture f;
    setup(&f, shape, policy, tokens);
    f.layer = shape->layers - 1;
    for (uint32_t i = 0; i < tokens; i++) {
        rt_rows_take(f.rows.k_pre, f.l->kv_heads, tokens, f.l->head_dim, i, f.k);
        rt_rows_take(f.rows.v, f.l->kv_heads, tokens, f.l->head_dim, i, f.v);
        rt_rows_take(f.rows.q, f.l->heads, tokens, f.l->head_dim, i, f.q);
        assert_int_equal(kvb_cache_append(f.cache, f.layer, f.k, f.v, NULL), KVB_OK);
        assert_int_equal(kvb_cache_attend(f.cache, f.layer, f.q, f.o, NULL), KVB_OK);
        for (uint32_t g = 0; g < f.l->kv_heads; g++) {
            age(&f, g, i);
            read_head(&f, g, i + 1, i == tokens / 2 || i + 1 == tokens);
            check_attention(&f, g, i);
        }
    }
    assert_int_equal(kvb_cache_length(f.cache, f.layer), tokens);
    teardown(&f);
}

static const rt_shape base = {.layers = 1, .heads = 4, .kv_heads = 2, .head_dim = 16, .channels = 4, .centroids = 8,
                              .frame = KVB_FRAME_PRE, .rope_style = KVB_ROPE_HALF, .rope_dims = 16, .seed = 1};

static void every_frame_and_rotation(void **state)
{
    (void)state;
    const kvb_policy policy = {.anchor_fraction = 0.1, .score = KVB_SCORE_EXACT_K, .window = 9, .sinks = 3};
    for (uint64_t seed = 0; seed < 12; seed++) {
        rt_shape s = base;
        s.frame = (kvb_rope_frame)(seed % 3);
        s.rope_block = seed < 6 ? 16 : 7;
        s.rope_style = seed % 2 == 0 ? KVB_ROPE_HALF : KVB_ROPE_INTERLEAVED;
        s.rope_dims = seed < 4 ? 16 : 6;
        s.transform = seed >= 6;
        s.seed = 10 * seed;
        run_case(&s, &policy, 60);
    }
}

/* Everything again with window and anchors as fine codes. */
static void run_fine(const rt_shape *shape, kvb_policy policy, uint32_t tokens)
{
    rt_shape s = *shape;
    s.fine_channels = 2;
    s.fine_centroids = 16;
    policy.exact = KVB_EXACT_FINE;
    run_case(&s, &policy, tokens);
}

static void fine_in_every_frame(void **state)
{
    (void)state;
    const kvb_policy policy = {.anchor_fraction = 0.1, .score = KVB_SCORE_EXACT_K, .window = 9, .sinks = 3};
    for (uint64_t seed = 0; seed < 6; seed++) {
        rt_shape s = base;
        s.frame = (kvb_rope_frame)(seed % 3);
        s.rope_block = 7;
        s.rope_style = seed % 2 == 0 ? KVB_ROPE_HALF : KVB_ROPE_INTERLEAVED;
        s.transform = seed >= 3;
        s.seed = 10 * seed;
        run_fine(&s, policy, 80);
    }
}

static void fine_with_every_score_and_window(void **state)
{
    (void)state;
    const uint32_t window[] = {0, 1, 8, 70, UINT32_MAX};
    for (int score = KVB_SCORE_EXACT_K; score <= KVB_SCORE_RANDOM; score++)
        for (size_t w = 0; w < sizeof window / sizeof *window; w++)
            run_fine(&base, (kvb_policy){.anchor_fraction = 0.13, .score = (kvb_anchor_score)score, .window = window[w],
                                         .sinks = (uint32_t)w}, 90);
    rt_shape s = base;
    s.layers = 2;
    s.sliding = 40;
    run_fine(&s, (kvb_policy){.anchor_fraction = 0.1, .window = 12, .sinks = UINT32_MAX}, 60);
    run_fine(&s, (kvb_policy){.anchor_fraction = 1.0, .window = 12}, 60);
}

static void every_score(void **state)
{
    (void)state;
    for (int score = KVB_SCORE_EXACT_K; score <= KVB_SCORE_RANDOM; score++) {
        const kvb_policy policy = {.anchor_fraction = 0.13, .score = (kvb_anchor_score)score, .window = 8, .sinks = 1};
        run_case(&base, &policy, 150);
    }
}

static void odd_shapes(void **state)
{
    (void)state;
    const kvb_policy policy = {.anchor_fraction = 0.05, .score = KVB_SCORE_EXACT_K, .window = 5};
    run_case(&(rt_shape){.layers = 2, .heads = 3, .kv_heads = 3, .head_dim = 10, .channels = 5, .centroids = 2,
                         .rope_style = KVB_ROPE_NONE, .seed = 2}, &policy, 139);
    run_case(&(rt_shape){.layers = 1, .heads = 70, .kv_heads = 1, .head_dim = 6, .channels = 2, .centroids = 4,
                         .frame = KVB_FRAME_POST, .rope_style = KVB_ROPE_HALF, .rope_dims = 4, .seed = 3}, &policy, 40);
    run_case(&(rt_shape){.layers = 1, .heads = 2, .kv_heads = 1, .head_dim = 64, .channels = 32, .centroids = 64,
                         .frame = KVB_FRAME_BLOCK, .rope_block = 16, .rope_style = KVB_ROPE_INTERLEAVED,
                         .rope_dims = 64, .transform = true, .seed = 4}, &policy, 50);
    run_case(&(rt_shape){.layers = 1, .heads = 4, .kv_heads = 2, .head_dim = 16, .channels = 8, .centroids = 4, .stages = 3,
                         .rope_style = KVB_ROPE_HALF, .rope_dims = 16, .seed = 5}, &policy, 60);
}

static void policies_at_their_ends(void **state)
{
    (void)state;
    const kvb_policy policy[] = {
        {.anchor_fraction = 0.0, .window = 0, .sinks = 0},
        {.anchor_fraction = 0.2, .window = 0, .sinks = 2, .score = KVB_SCORE_KEY_NORM},
        {.anchor_fraction = 0.2, .window = 0, .sinks = 0, .score = KVB_SCORE_EXACT_K},
        {.anchor_fraction = 0.0, .window = 1, .sinks = 4},
        {.anchor_fraction = 1.0, .window = 3, .sinks = 0},
        {.anchor_fraction = 0.5, .window = 1000, .sinks = 0},
        {.anchor_fraction = 0.5, .window = UINT32_MAX, .sinks = 7},
        {.anchor_fraction = 0.5, .window = 4, .sinks = UINT32_MAX},
        {.anchor_fraction = 0.5, .window = 4, .sinks = 10, .score = KVB_SCORE_EXACT_V},
    };
    for (size_t i = 0; i < sizeof policy / sizeof *policy; i++)
        run_case(&base, policy + i, 45);
}

static void sliding_layers_see_their_window_only(void **state)
{
    (void)state;
    rt_shape s = base;
    for (uint32_t sliding = 1; sliding < 200; sliding = 3 * sliding + 2) {
        s.sliding = sliding;
        const kvb_policy policy = {.anchor_fraction = 0.1, .score = KVB_SCORE_EXACT_K, .window = 12, .sinks = 2};
        run_case(&s, &policy, 170);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_frame_and_rotation),
        cmocka_unit_test(fine_in_every_frame),
        cmocka_unit_test(fine_with_every_score_and_window),
        cmocka_unit_test(every_score),
        cmocka_unit_test(odd_shapes),
        cmocka_unit_test(policies_at_their_ends),
        cmocka_unit_test(sliding_layers_see_their_window_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
