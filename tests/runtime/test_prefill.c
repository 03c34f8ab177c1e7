/* Attention of a whole sequence: equal to the cache token by token, and to a dense formula. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/prefill.h"
#include "tests/support/cm.h"
#include "tests/support/rt_book.h"

static const rt_shape base = {.layers = 1, .heads = 4, .kv_heads = 2, .head_dim = 16, .channels = 4, .centroids = 8,
                              .frame = KVB_FRAME_PRE, .rope_style = KVB_ROPE_HALF, .rope_dims = 16, .seed = 1};

typedef struct fixture {
    kvb_book *book;
    const kvb_layer *l;
    rt_rows rows;
    kvb_prefill p;
    kvb_policy policy;
    size_t floats; /* H*T*D */
    float *out, *other;
} fixture;

static void setup(fixture *f, const rt_shape *shape, const kvb_policy *policy, uint32_t tokens)
{
    memset(f, 0, sizeof *f);
    f->book = rt_book_make(shape, policy);
    assert_non_null(f->book);
    f->policy = *policy;
    const uint32_t layer = shape->layers - 1;
    f->l = kvb_book_layer(f->book, layer);
    assert_true(rt_rows_make(&f->rows, f->l, tokens, shape->seed + 77));
    f->p = (kvb_prefill){.book = f->book, .layer = layer, .tokens = tokens, .policy = &f->policy, .seed = 5,
                         .q = f->rows.q, .k_pre = f->rows.k_pre, .k = f->rows.k, .v = f->rows.v};
    f->floats = (size_t)f->l->heads * tokens * f->l->head_dim;
    f->out = calloc(f->floats, sizeof *f->out);
    f->other = calloc(f->floats, sizeof *f->other);
}

static void teardown(fixture *f)
{
    kvb_book_close(f->book);
    rt_rows_free(&f->rows);
    free(f->out);
    free(f->other);
}

static double largest_difference(const float *a, const float *b, size_t count)
{
    double most = 0.0;
    for (size_t i = 0; i < count; i++)
        most = fmax(most, fabs((double)a[i] - (double)b[i]));
    return most;
}

static void run_cache(fixture *f, float *out)
{
    kvb_cache_options options;
    kvb_cache *cache;
    kvb_cache_options_init(&options, f->book);
    options.policy = f->policy;
    options.seed = f->p.seed;
    assert_int_equal(kvb_cache_create(f->book, &options, &cache, NULL), KVB_OK);
    assert_int_equal(rt_run_cache(cache, f->l, f->p.layer, &f->rows, out, NULL), KVB_OK);
    kvb_cache_destroy(cache);
}

static void check_equals_cache(const rt_shape *shape, const kvb_policy *policy, uint32_t tokens)
{
    fixture f;
    setup(&f, shape, policy, tokens);
    assert_int_equal(kvb_prefill_attend(&f.p, NULL, f.out, NULL), KVB_OK);
    run_cache(&f, f.other);
    assert_true(largest_difference(f.out, f.other, f.floats) < 1e-5);
    teardown(&f);
}

static rt_shape with_fine(const rt_shape *shape)
{
    rt_shape s = *shape;
    s.fine_channels = 2;
    s.fine_centroids = 16;
    return s;
}

/* Where scores come from attention, cache and prefill run the same steps: equal to the last bit. */
static void check_fine_equals_cache(const rt_shape *shape, kvb_policy policy, uint32_t tokens)
{
    const rt_shape s = with_fine(shape);
    policy.exact = KVB_EXACT_FINE;
    check_equals_cache(&s, &policy, tokens);
    if (policy.anchor_fraction == 0.0 || policy.window == 0 || policy.score > KVB_SCORE_EXACT_V || shape->last_exact)
        return;
    fixture f;
    setup(&f, &s, &policy, tokens);
    assert_int_equal(kvb_prefill_attend(&f.p, NULL, f.out, NULL), KVB_OK);
    run_cache(&f, f.other);
    assert_memory_equal(f.out, f.other, f.floats * sizeof *f.out);
    teardown(&f);
}

static void causal_equals_the_cache(void **state)
{
    (void)state;
    const kvb_policy policy[] = {
        {.anchor_fraction = 0.05, .score = KVB_SCORE_EXACT_K, .window = 32, .sinks = 4},
        {.anchor_fraction = 0.1, .score = KVB_SCORE_EXACT_V, .window = 5},
        {.anchor_fraction = 0.1, .score = KVB_SCORE_KEY_NORM, .window = 20, .sinks = 1},
        {.anchor_fraction = 0.07, .score = KVB_SCORE_FIRST_N, .window = 3},
        {.anchor_fraction = 0.2, .score = KVB_SCORE_RANDOM, .window = 150, .sinks = 2},
        {.anchor_fraction = 0.2, .score = KVB_SCORE_EXACT_K, .window = 0},
        {.anchor_fraction = 0.2, .score = KVB_SCORE_EXACT_K, .window = 1},
        {.anchor_fraction = 0.0, .window = 0},
        {.anchor_fraction = 0.0, .window = 64},
        {.anchor_fraction = 0.0, .window = 2}, /* a token changes at the second query of a block */
        {.anchor_fraction = 0.0, .window = 66},
        {.anchor_fraction = 1.0, .score = KVB_SCORE_EXACT_K, .window = 10},
        {.anchor_fraction = 0.3, .score = KVB_SCORE_EXACT_K, .window = UINT32_MAX},
        {.anchor_fraction = 0.3, .score = KVB_SCORE_EXACT_K, .window = 9, .sinks = UINT32_MAX},
    };
    for (size_t i = 0; i < sizeof policy / sizeof *policy; i++) {
        check_equals_cache(&base, policy + i, 300);
        check_fine_equals_cache(&base, policy[i], 300);
    }
}

static void causal_equals_the_cache_in_any_shape(void **state)
{
    (void)state;
    const kvb_policy policy = {.anchor_fraction = 0.05, .score = KVB_SCORE_EXACT_K, .window = 20, .sinks = 3};
    const kvb_policy plain = {.window = 20};
    rt_shape shape[7] = {base, base, base, base, base, base, base};
    shape[0].frame = KVB_FRAME_POST;
    shape[1].frame = KVB_FRAME_BLOCK;
    shape[1].rope_block = 16;
    shape[1].rope_style = KVB_ROPE_INTERLEAVED;
    shape[1].rope_dims = 10;
    shape[2].transform = true;
    shape[2].sliding = 40;
    shape[3].layers = 2;
    shape[3].last_exact = true;
    shape[4] = (rt_shape){.layers = 1, .heads = 66, .kv_heads = 1, .head_dim = 10, .channels = 5, .centroids = 4,
                          .rope_style = KVB_ROPE_NONE, .seed = 3};
    shape[5].stages = 2;
    shape[6].stages = 3;
    shape[6].centroids = 4;
    shape[6].transform = true;
    shape[6].frame = KVB_FRAME_BLOCK;
    shape[6].rope_block = 16;
    for (size_t i = 0; i < 7; i++)
        for (uint32_t tokens = 1; tokens < 200; tokens = 2 * tokens + 3) {
            check_equals_cache(shape + i, &policy, tokens);
            check_equals_cache(shape + i, &plain, tokens);
            if (shape[i].head_dim % 2 == 0) {
                check_fine_equals_cache(shape + i, policy, tokens);
                check_fine_equals_cache(shape + i, plain, tokens);
            }
        }
}

/* A token as the cache reads it, once all are codes or all exact. */
static void read_all(const fixture *f, bool exact, uint32_t g, double *keys, float *values)
{
    kvb_cache_options options;
    kvb_cache *cache;
    kvb_cache_options_init(&options, f->book);
    /* Sinks are half floats, and are never read from codes. */
    options.policy = (kvb_policy){.window = exact ? UINT32_MAX : 0, .sinks = f->policy.sinks,
                                  .exact = f->policy.exact};
    assert_int_equal(kvb_cache_create(f->book, &options, &cache, NULL), KVB_OK);
    const uint32_t dim = f->l->head_dim, heads = f->l->kv_heads;
    float *k = calloc(2 * (size_t)heads * dim, sizeof *k), *v = k + (size_t)heads * dim;
    for (uint32_t t = 0; t < f->p.tokens; t++) {
        rt_rows_take(f->p.k_pre, heads, f->p.tokens, dim, t, k);
        rt_rows_take(f->p.v, heads, f->p.tokens, dim, t, v);
        assert_int_equal(kvb_cache_append(cache, f->p.layer, k, v, NULL), KVB_OK);
    }
    for (uint32_t t = 0; t < f->p.tokens; t++) {
        assert_int_equal(kvb_cache_read(cache, f->p.layer, g, t, k, values + (size_t)t * dim, NULL, NULL), KVB_OK);
        rt_rotate(f->l, t, k, keys + (size_t)t * dim);
    }
    free(k);
    kvb_cache_destroy(cache);
}

/* Scores of a head under exact attention in double, as the formula. */
static void dense_scores(const fixture *f, uint32_t g, double *score)
{
    const uint32_t dim = f->l->head_dim, tokens = f->p.tokens, group = f->l->heads / f->l->kv_heads;
    const float *v = f->p.v + (size_t)g * tokens * dim;
    double *keys = calloc((size_t)tokens * dim, sizeof *keys), *probs = calloc(tokens, sizeof *probs), out[64];
    for (size_t i = 0; i < (size_t)tokens * dim; i++)
        keys[i] = (double)f->p.k[(size_t)g * tokens * dim + i];
    memset(score, 0, tokens * sizeof *score);
    for (uint32_t h = g * group; h < (g + 1) * group; h++)
        for (uint32_t i = 0; i < tokens; i++) {
            const float *q = f->p.q + ((size_t)h * tokens + i) * dim;
            double norm = 0.0;
            rt_attend(f->l, q, keys, v, i + 1, out, probs);
            for (uint32_t c = 0; c < dim; c++)
                norm += (double)q[c] * (double)q[c];
            for (uint32_t j = 0; j <= i; j++) {
                double distance = 0.0;
                for (uint32_t c = 0; c < dim; c++)
                    distance += fabs((double)v[(size_t)j * dim + c] - out[c]);
                score[j] += f->policy.score == KVB_SCORE_EXACT_V ? probs[j] : probs[j] * distance * sqrt(norm);
            }
        }
    free(keys);
    free(probs);
}

/* until[] of the chunk protocol, by counting for each token how many are better. */
static void dense_until(const fixture *f, const double *score, uint32_t *until)
{
    const uint32_t tokens = f->p.tokens;
    const double room = ceil(f->policy.anchor_fraction * tokens - 1e-9);
    for (uint32_t j = 0; j < tokens; j++) {
        uint32_t better = 0;
        for (uint32_t o = 0; o < tokens; o++)
            better += score[o] > score[j];
        until[j] = better < room || j < f->policy.sinks ? KVB_UNTIL_EVER : j + f->policy.window;
    }
}

static void check_chunk(const rt_shape *shape, const kvb_policy *policy, uint32_t tokens)
{
    fixture f;
    setup(&f, shape, policy, tokens);
    f.p.protocol = KVB_PROTOCOL_CHUNK;
    assert_int_equal(kvb_prefill_attend(&f.p, NULL, f.out, NULL), KVB_OK);
    const uint32_t dim = f.l->head_dim, group = f.l->heads / f.l->kv_heads;
    const size_t values = (size_t)tokens * dim;
    double *keys = calloc(3 * values, sizeof *keys), *probs = calloc(2 * tokens, sizeof *probs), out[64];
    float *v = calloc(3 * values, sizeof *v);
    uint32_t *until = calloc(tokens, sizeof *until);
    for (uint32_t g = 0; g < f.l->kv_heads; g++) {
        read_all(&f, true, g, keys, v);
        read_all(&f, false, g, keys + values, v + values);
        dense_scores(&f, g, probs + tokens);
        dense_until(&f, probs + tokens, until);
        for (uint32_t i = 0; i < tokens; i++) {
            for (uint32_t j = 0; j <= i; j++) {
                size_t from = i < until[j] ? 0 : values;
                memcpy(keys + 2 * values + j * dim, keys + from + j * dim, dim * sizeof *keys);
                memcpy(v + 2 * values + j * dim, v + from + j * dim, dim * sizeof *v);
            }
            for (uint32_t h = g * group; h < (g + 1) * group; h++) {
                size_t at = ((size_t)h * tokens + i) * dim;
                rt_attend(f.l, f.p.q + at, keys + 2 * values, v + 2 * values, i + 1, out, probs);
                for (uint32_t c = 0; c < dim; c++)
                    assert_true(fabs(out[c] - (double)f.out[at + c]) < 2e-5);
            }
        }
    }
    free(keys);
    free(probs);
    free(v);
    free(until);
    teardown(&f);
}

static void chunk_equals_the_formula(void **state)
{
    (void)state;
    const kvb_policy policy[] = {
        {.anchor_fraction = 0.05, .score = KVB_SCORE_EXACT_K, .window = 32, .sinks = 2},
        {.anchor_fraction = 0.1, .score = KVB_SCORE_EXACT_V, .window = 0},
        {.anchor_fraction = 0.02, .score = KVB_SCORE_EXACT_K, .window = 100},
        {.anchor_fraction = 0.0, .window = 7},
        {.anchor_fraction = 0.0, .window = 0},
    };
    for (size_t i = 0; i < sizeof policy / sizeof *policy; i++) {
        check_chunk(&base, policy + i, 300);
        check_chunk(&base, policy + i, 129);
        check_chunk(&base, policy + i, 1);
    }
    rt_shape s = base;
    s.frame = KVB_FRAME_BLOCK;
    s.rope_block = 16;
    s.sliding = 50;
    s.transform = true;
    check_chunk(&s, policy, 270);
}

static void chunk_equals_the_formula_with_fine_codes(void **state)
{
    (void)state;
    const kvb_policy policy[] = {
        {.anchor_fraction = 0.05, .score = KVB_SCORE_EXACT_K, .window = 32, .sinks = 2, .exact = KVB_EXACT_FINE},
        {.anchor_fraction = 0.1, .score = KVB_SCORE_EXACT_V, .window = 1, .exact = KVB_EXACT_FINE},
        {.anchor_fraction = 0.0, .window = 7, .exact = KVB_EXACT_FINE},
        {.anchor_fraction = 0.0, .window = 0, .exact = KVB_EXACT_FINE},
    };
    rt_shape s = with_fine(&base);
    for (size_t i = 0; i < sizeof policy / sizeof *policy; i++) {
        check_chunk(&s, policy + i, 200);
        check_chunk(&s, policy + i, 1);
    }
    s.frame = KVB_FRAME_BLOCK;
    s.rope_block = 16;
    s.transform = true;
    check_chunk(&s, policy, 190);
}

static void backwards(void (*task)(void *user, size_t i), void *user, size_t count)
{
    while (count-- > 0)
        task(user, count);
}

static void the_order_of_tasks_changes_nothing(void **state)
{
    (void)state;
    const kvb_policy policy = {.anchor_fraction = 0.05, .score = KVB_SCORE_EXACT_K, .window = 32, .sinks = 4};
    for (int protocol = KVB_PROTOCOL_CAUSAL; protocol <= KVB_PROTOCOL_CHUNK; protocol++) {
        fixture f;
        setup(&f, &base, &policy, 200);
        f.p.protocol = (kvb_anchor_protocol)protocol;
        assert_int_equal(kvb_prefill_attend(&f.p, NULL, f.out, NULL), KVB_OK);
        assert_int_equal(kvb_prefill_attend(&f.p, backwards, f.other, NULL), KVB_OK);
        assert_memory_equal(f.out, f.other, f.floats * sizeof *f.out);
        teardown(&f);
    }
}

/* Every 37th token has a key that all queries look for and a value of its own: an error there spoils every output. */
static void plant_heavy_tokens(fixture *f)
{
    const uint32_t dim = f->l->head_dim, tokens = f->p.tokens;
    double turned[64];
    for (size_t row = 0; row < (size_t)f->l->kv_heads * tokens; row++) {
        if (row % tokens % 37 != 5)
            continue;
        float *key = f->rows.k_pre + row * dim;
        for (uint32_t c = 0; c < dim; c++) {
            key[c] = c == dim - 1 ? 7.0f : 0.0f; /* of the slowest pair: seen from everywhere */
            f->rows.v[row * dim + c] *= 5.0f;
        }
        rt_rotate(f->l, (double)(row % tokens), key, turned);
        for (uint32_t c = 0; c < dim; c++)
            f->rows.k[row * dim + c] = (float)turned[c];
    }
    for (size_t row = 0; row < (size_t)f->l->heads * tokens; row++)
        f->rows.q[row * dim + dim - 1] = 3.0f;
}

static double output_error(fixture *f, kvb_anchor_score score, kvb_anchor_protocol protocol, const float *truth)
{
    f->policy.score = score;
    f->p.protocol = protocol;
    assert_int_equal(kvb_prefill_attend(&f->p, NULL, f->out, NULL), KVB_OK);
    double sum = 0.0;
    for (size_t i = 0; i < f->floats; i++)
        sum += ((double)f->out[i] - (double)truth[i]) * ((double)f->out[i] - (double)truth[i]);
    return sum;
}

static void anchors_by_score_beat_random_ones(void **state)
{
    (void)state;
    const kvb_policy exact = {.window = UINT32_MAX};
    fixture f;
    setup(&f, &base, &exact, 400);
    plant_heavy_tokens(&f);
    assert_int_equal(kvb_prefill_attend(&f.p, NULL, f.other, NULL), KVB_OK);
    f.policy = (kvb_policy){.anchor_fraction = 0.03, .window = 8};
    for (int protocol = KVB_PROTOCOL_CAUSAL; protocol <= KVB_PROTOCOL_CHUNK; protocol++) {
        double random = output_error(&f, KVB_SCORE_RANDOM, (kvb_anchor_protocol)protocol, f.other);
        assert_true(output_error(&f, KVB_SCORE_EXACT_K, (kvb_anchor_protocol)protocol, f.other) < 0.2 * random);
        assert_true(output_error(&f, KVB_SCORE_EXACT_V, (kvb_anchor_protocol)protocol, f.other) < 0.2 * random);
    }
    teardown(&f);
}

static void bad_arguments(void **state)
{
    (void)state;
    const kvb_policy policy = {.anchor_fraction = 0.05, .window = 4};
    fixture f;
    kvb_error err = {0};
    setup(&f, &base, &policy, 10);
    assert_int_equal(kvb_prefill_attend(NULL, NULL, f.out, &err), KVB_E_USAGE);
    assert_int_equal(kvb_prefill_attend(&f.p, NULL, NULL, &err), KVB_E_USAGE);
    kvb_prefill p = f.p;
    p.layer = 1;
    assert_int_equal(kvb_prefill_attend(&p, NULL, f.out, &err), KVB_E_USAGE);
    p = f.p;
    p.tokens = 0;
    assert_int_equal(kvb_prefill_attend(&p, NULL, f.out, &err), KVB_E_USAGE);
    p = f.p;
    p.protocol = (kvb_anchor_protocol)2;
    assert_int_equal(kvb_prefill_attend(&p, NULL, f.out, &err), KVB_E_USAGE);
    p = f.p;
    p.book = NULL;
    assert_int_equal(kvb_prefill_attend(&p, NULL, f.out, &err), KVB_E_USAGE);
    f.policy.anchor_fraction = NAN;
    assert_int_equal(kvb_prefill_attend(&f.p, NULL, f.out, &err), KVB_E_USAGE);
    assert_string_equal(err.where, "policy.anchor_fraction");
    f.policy.anchor_fraction = 0.0;
    f.policy.exact = KVB_EXACT_FINE; /* the book has no fine codebooks */
    assert_int_equal(kvb_prefill_attend(&f.p, NULL, f.out, &err), KVB_E_USAGE);
    assert_string_equal(err.where, "policy.exact");
    f.policy.exact = (kvb_exact_form)2;
    assert_int_equal(kvb_prefill_attend(&f.p, NULL, f.out, &err), KVB_E_USAGE);
    f.policy.exact = KVB_EXACT_HALF;
    f.rows.v[16 * 13 + 2] = INFINITY;
    assert_int_equal(kvb_prefill_attend(&f.p, NULL, f.out, &err), KVB_E_CHECK);
    assert_string_equal(err.where, "v");
    assert_non_null(strstr(err.message, "head 1, position 3, channel 2"));
    teardown(&f);
}

/* Tokens kept for ever are those that read exactly in the chunk protocol with no window. */
static void kept_tokens_are_the_anchors_and_sinks(void **state)
{
    (void)state;
    enum { TOKENS = 150 };
    fixture f;
    uint8_t kept[2 * TOKENS];
    setup(&f, &base, &(kvb_policy){.anchor_fraction = 0.1, .score = KVB_SCORE_FIRST_N, .window = 40, .sinks = 3}, TOKENS);
    assert_int_equal(kvb_prefill_kept(&f.p, NULL, kept, NULL), KVB_OK);
    for (uint32_t j = 0; j < TOKENS; j++)
        assert_true(kept[j] == (j < 15) && kept[TOKENS + j] == (j < 15));
    f.policy.score = KVB_SCORE_EXACT_V;
    assert_int_equal(kvb_prefill_kept(&f.p, NULL, kept, NULL), KVB_OK);
    uint32_t count = 0, late = 0;
    for (uint32_t j = 0; j < TOKENS; j++) {
        count += kept[j];
        late += j >= 15 && kept[j];
    }
    assert_true(kept[0] && kept[1] && kept[2] && count >= 15 && count <= 18 && late > 0);
    f.policy = (kvb_policy){.window = 40};
    assert_int_equal(kvb_prefill_kept(&f.p, NULL, kept, NULL), KVB_OK);
    assert_null(memchr(kept, 1, sizeof kept));
    f.policy.sinks = UINT32_MAX;
    assert_int_equal(kvb_prefill_kept(&f.p, NULL, kept, NULL), KVB_OK);
    assert_null(memchr(kept, 0, sizeof kept));
    f.p.q = NULL;
    assert_int_equal(kvb_prefill_kept(&f.p, NULL, kept, NULL), KVB_E_USAGE);
    teardown(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(causal_equals_the_cache),
        cmocka_unit_test(causal_equals_the_cache_in_any_shape),
        cmocka_unit_test(chunk_equals_the_formula),
        cmocka_unit_test(chunk_equals_the_formula_with_fine_codes),
        cmocka_unit_test(the_order_of_tasks_changes_nothing),
        cmocka_unit_test(anchors_by_score_beat_random_ones),
        cmocka_unit_test(kept_tokens_are_the_anchors_and_sinks),
        cmocka_unit_test(bad_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
