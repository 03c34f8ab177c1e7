/* Fisher weights: gradients of the text's loss equal finite differences, captures keep them, training weights each group of
 * channels by them where its points are. */
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "calib/capture_gradient.h"
#include "calib/capture_rows.h"
#include "calib/text_gradient.h"
#include "calib/train_impl.h"
#include "format/base/fail.h"
#include "format/base/half.h"
#include "format/base/rng.h"
#include "format/base/rope.h"
#include "tests/support/cm.h"
#include "tests/support/scratch.h"
#include "tests/support/synth.h"
#include "tests/support/tiny_run.h"

enum { CTX = 40, CHUNKS = 3 };

typedef struct fixture {
    tiny_run run;
    kvb_capture_options options;
} fixture;

static int set_up(void **state)
{
    static fixture f;
    if (!tiny_run_open(&f.run, CTX, CHUNKS))
        return 1;
    f.options = (kvb_capture_options){.ctx = CTX, .chunks = CHUNKS, .bos = -1, .seed = 1, .gradients = true};
    *state = &f;
    return 0;
}

static int tear_down(void **state)
{
    fixture *f = *state;
    tiny_run_close(&f->run);
    return 0;
}

/* Attention in which one key before RoPE, or one value, is moved; dense and in double. */
typedef struct moved {
    uint32_t layer, head, token;
    kvb_kind kind;
    double step;
    const float *direction; /* [D] */
} moved;

static void dense_head(const kvb_attention_call *c, const float *k, const float *v, uint32_t h, float *out)
{
    const uint32_t dim = c->geometry->head_dim, group = c->geometry->heads / c->geometry->kv_heads;
    const size_t head = (size_t)(h / group) * c->tokens;
    double p[CTX];
    for (uint32_t i = 0; i < c->tokens; i++) {
        const float *q = c->q + ((size_t)h * c->tokens + i) * dim;
        double most = -INFINITY, sum = 0.0;
        for (uint32_t j = 0; j <= i; j++) {
            p[j] = 0.0;
            for (uint32_t d = 0; d < dim; d++)
                p[j] += c->geometry->attention_scale * (double)q[d] * (double)k[(head + j) * dim + d];
            most = fmax(most, p[j]);
        }
        for (uint32_t j = 0; j <= i; j++)
            sum += p[j] = exp(p[j] - most);
        for (uint32_t d = 0; d < dim; d++) {
            double o = 0.0;
            for (uint32_t j = 0; j <= i; j++)
                o += p[j] / sum * (double)v[(head + j) * dim + d];
            out[((size_t)h * c->tokens + i) * dim + d] = (float)o;
        }
    }
}

static kvb_status attend(void *user, const kvb_attention_call *c, float *out, kvb_error *err)
{
    const moved *m = user;
    const kvb_layer *g = c->geometry;
    const size_t values = (size_t)g->kv_heads * c->tokens * g->head_dim;
    float *k = malloc(values * sizeof *k), *v = malloc(values * sizeof *v);
    kvb_rope_table rope = {0};
    kvb_status status = kvb_rope_table_create(&rope, g, 0, c->tokens, err);
    memcpy(k, c->k, values * sizeof *k);
    memcpy(v, c->v, values * sizeof *v);
    if (c->layer == m->layer) {
        const size_t at = ((size_t)m->head * c->tokens + m->token) * g->head_dim;
        float *x = (m->kind == KVB_KEY ? k : v) + at;
        if (m->kind == KVB_KEY)
            memcpy(x, c->k_pre + at, g->head_dim * sizeof *x);
        for (uint32_t d = 0; d < g->head_dim; d++)
            x[d] += (float)(m->step * (double)m->direction[d]);
        if (m->kind == KVB_KEY)
            kvb_rope_rotate(&rope, m->token, g->head_dim, x, x);
    }
    for (uint32_t h = 0; h < g->heads; h++)
        dense_head(c, k, v, h, out);
    free(k);
    free(v);
    kvb_rope_table_free(&rope);
    return status;
}

/* The sum of log p(next token) of a chunk. */
static double likelihood(const fixture *f, kvb_forward *forward, uint64_t chunk, moved m)
{
    const uint32_t vocab = kvb_model_get_info(f->run.model)->vocab;
    const kvb_forward_hooks hooks = {.attend = attend, .attend_user = &m};
    const float *hidden;
    float *logits = malloc((size_t)CTX * vocab * sizeof *logits);
    uint32_t tokens[CTX];
    double sum = 0.0;
    kvb_text_chunk(&f->run.text, CTX, 0, chunk, -1, tokens);
    assert_int_equal(kvb_forward_run(forward, tokens, CTX, 0, &hooks, &hidden, NULL), KVB_OK);
    kvb_forward_logits(forward, hidden, CTX, logits);
    for (uint32_t i = 0; i + 1 < CTX; i++) {
        double all = 0.0;
        for (uint32_t y = 0; y < vocab; y++)
            all += exp((double)logits[(size_t)i * vocab + y]);
        sum += (double)logits[(size_t)i * vocab + tokens[i + 1]] - log(all);
    }
    free(logits);
    return sum;
}

/* All gradients of one chunk. */
typedef struct kept {
    float *gradient[8][2]; /* by layer and kind [G][T][D] */
} kept;

static kvb_status keep(void *user, const kvb_attention_call *call, const float *d_keys, const float *d_values, kvb_error *err)
{
    kept *k = user;
    const float *from[2] = {d_keys, d_values};
    const size_t size = (size_t)call->geometry->kv_heads * call->tokens * call->geometry->head_dim * sizeof(float);
    (void)err;
    for (int kind = 0; kind < 2; kind++) {
        k->gradient[call->layer][kind] = malloc(size);
        memcpy(k->gradient[call->layer][kind], from[kind], size);
    }
    return KVB_OK;
}

static kept gradients_of(const fixture *f, uint64_t chunk)
{
    kept k = {0};
    kvb_text_gradient *g = NULL;
    assert_int_equal(kvb_text_gradient_create(f->run.model, &f->options, KVB_TARGET_NEXT, 0, &g, NULL), KVB_OK);
    assert_int_equal(kvb_text_gradient_run(g, &f->run.text, chunk, keep, &k, NULL), KVB_OK);
    kvb_text_gradient_destroy(g);
    return k;
}

static void free_kept(kept *k)
{
    for (int i = 0; i < 16; i++)
        free(k->gradient[i / 2][i % 2]);
}

static void test_finite_differences(void **state)
{
    const fixture *f = *state;
    const kvb_model_info *info = kvb_model_get_info(f->run.model);
    kvb_forward *forward = NULL;
    kept k = gradients_of(f, 1);
    assert_int_equal(kvb_forward_create(f->run.model, CTX, &forward, NULL), KVB_OK);
    for (uint32_t l = 0; l < info->layers; l++)
        for (uint32_t i = 0; i < 12; i++) {
            const uint32_t head = i % 2, token = i < 4 ? 0 : (uint32_t)kvb_rng_below(5, l * 12 + i, CTX);
            const kvb_kind kind = (kvb_kind)(i / 2 % 2);
            const uint32_t dim = info->layer[l].head_dim;
            const float *g = k.gradient[l][kind] + ((size_t)head * CTX + token) * dim;
            double square = 0.0;
            for (uint32_t d = 0; d < dim; d++)
                square += (double)g[d] * (double)g[d];
            /* Along the gradient: the step changes the sum by about 0.02. */
            moved m = {.layer = l, .head = head, .token = token, .kind = kind, .step = fmin(0.02, 2.0 * sqrt(square)) / (square + 1e-9), .direction = g};
            if (m.step * sqrt(square) > 0.05)
                m.step = 0.05 / sqrt(square);
            const double up = likelihood(f, forward, 1, m);
            m.step = -m.step;
            const double found = (likelihood(f, forward, 1, m) - up) / (2.0 * m.step);
            if (fabs(found - square) > 0.02 * square + 2e-5 / fabs(m.step))
                fail_msg("layer %u, head %u, token %u, kind %d: g^T g %g, by differences %g", l, head, token, (int)kind, square,
                         found);
        }
    kvb_forward_destroy(forward);
    free_kept(&k);
}

static kvb_capture_store *capture(const fixture *f, uint64_t max_rows, int threads)
{
    kvb_capture_options options = f->options;
    kvb_capture_store *store = NULL;
    kvb_error err = {0};
    const int before = omp_get_max_threads();
    options.max_rows = max_rows;
    omp_set_num_threads(threads);
    if (kvb_capture_run(f->run.model, &f->run.text, &options, &store, &err) != KVB_OK)
        fail_msg("%s: %s", err.where, err.message);
    omp_set_num_threads(before);
    return store;
}

/* Each row has the gradient of its own token, also where rows are drawn; a file has the same bytes as memory. */
static void test_capture(void **state)
{
    const fixture *f = *state;
    enum { KEEP = 7 };
    char path[512];
    kvb_capture_options options = f->options;
    kvb_capture_store *store = capture(f, KEEP * CHUNKS, 3), *one = capture(f, KEEP * CHUNKS, 1), *file = NULL;
    options.max_rows = KEEP * CHUNKS;
    scratch_path(f->run.folder, "fisher.kvc", path);
    assert_int_equal(kvb_capture_run_to_file(f->run.model, &f->run.text, &options, path, NULL), KVB_OK);
    assert_int_equal(kvb_capture_open(path, &file, NULL), KVB_OK);
    const kvb_capture *c = kvb_capture_view(store);
    assert_int_equal(c->rows, KEEP * CHUNKS);
    for (uint32_t chunk = 0; chunk < CHUNKS; chunk++) {
        kept k = gradients_of(f, chunk);
        for (uint32_t l = 0; l < c->layers; l++)
            for (int kind = 0; kind < 2; kind++)
                for (uint32_t r = 0; r < KEEP * c->geometry[l].kv_heads; r++) {
                    const uint32_t dim = c->geometry[l].head_dim, head = r / KEEP, row = chunk * KEEP + r % KEEP;
                    const float *from = k.gradient[l][kind] + ((size_t)head * CTX + c->row_position[row]) * dim;
                    const uint16_t *to = c->layer[l].gradient[kind] + (head * c->rows + row) * dim;
                    for (uint32_t d = 0; d < dim; d++)
                        assert_int_equal(to[d], kvb_half_from_float(from[d] * KVB_CAPTURE_GRADIENT_SCALE));
                }
        free_kept(&k);
    }
    for (uint32_t l = 0; l < c->layers; l++)
        for (int kind = 0; kind < 2; kind++) {
            const size_t size = c->geometry[l].kv_heads * c->rows * c->geometry[l].head_dim * sizeof(uint16_t);
            assert_memory_equal(c->layer[l].gradient[kind], kvb_capture_view(one)->layer[l].gradient[kind], size);
            assert_memory_equal(c->layer[l].gradient[kind], kvb_capture_view(file)->layer[l].gradient[kind], size);
        }
    kvb_capture_close(store);
    kvb_capture_close(one);
    kvb_capture_close(file);
}

static int stop(void *user, const char *step, uint64_t done, uint64_t total)
{
    (void)user, (void)total;
    return strcmp(step, "gradients") == 0 && done == 1;
}

static void test_cancel(void **state)
{
    const fixture *f = *state;
    kvb_capture_options options = f->options;
    kvb_capture_store *store = NULL;
    options.progress = stop;
    assert_int_equal(kvb_capture_run(f->run.model, &f->run.text, &options, &store, NULL), KVB_E_CANCELLED);
    assert_null(store);
}

/* ---- training, on made-up captures */

static const synth_capture usual = {.layers = 1, .heads = 4, .kv_heads = 2, .dim = 8, .rows = 1500, .key = 21};

static kvb_recipe recipe_of(const char *json)
{
    kvb_recipe r;
    kvb_error err = {0};
    if (kvb_recipe_parse(json, strlen(json), "test.json", &r, &err) != KVB_OK)
        fail_msg("%s: %s", err.where, err.message);
    return r;
}

#define RECIPE(weights, keys)                                                                                    \
    "{\"schema\":1,\"name\":\"f\",\"keys\":{\"shape\":\"4x16\",\"weights\":\"" weights "\"" keys "},"             \
    "\"values\":{\"shape\":\"2x8\",\"weights\":\"" weights "\"}}"

static kvb_book *train(const kvb_capture *c, const char *json, uint8_t **image)
{
    kvb_recipe r = recipe_of(json);
    kvb_train_options o;
    kvb_book *book = NULL;
    kvb_error err = {0};
    size_t size;
    kvb_train_options_init(&o);
    o.holdout_every = 0;
    if (kvb_train_book(c, &r, &o, image, &size, NULL, &err) != KVB_OK)
        fail_msg("%s: %s", err.where, err.message);
    assert_int_equal(kvb_book_open_memory(*image, size, "book", &book, &err), KVB_OK);
    kvb_recipe_free(&r);
    return book;
}

/* Mean over heads' groups of sum of w |x - x'|^2, w = g^T g of the group. */
static double fisher_error(const kvb_book *book, const kvb_capture *c, kvb_kind kind)
{
    const uint32_t dim = c->geometry[0].head_dim;
    const uint16_t *x = kind == KVB_KEY ? c->layer[0].keys : c->layer[0].values;
    double sum = 0.0;
    for (uint32_t head = 0; head < c->geometry[0].kv_heads; head++) {
        const kvb_codebook *b = kvb_book_codebook(book, 0, head, kind);
        for (size_t i = head * c->rows; i < (head + 1) * c->rows; i++)
            for (uint32_t s = 0; s < b->groups; s++) {
                double best = INFINITY, weight = 0.0;
                for (uint32_t k = 0; k < b->centroids; k++) {
                    double distance = 0.0;
                    for (uint32_t j = 0; j < b->channels; j++) {
                        const size_t at = ((size_t)s * b->centroids + k) * b->channels + j;
                        distance += pow((double)kvb_half_to_float(x[i * dim + s * b->channels + j]) -
                                            (double)kvb_half_to_float(b->table[at]), 2);
                    }
                    best = fmin(best, distance);
                }
                for (uint32_t j = 0; j < b->channels; j++)
                    weight += pow((double)kvb_half_to_float(c->layer[0].gradient[kind][i * dim + s * b->channels + j]), 2);
                sum += weight * best;
            }
    }
    return sum;
}

static void test_weighted(void **state)
{
    (void)state;
    kvb_capture_store *store;
    uint8_t *image[2];
    assert_int_equal(synth_capture_make(&usual, NULL, &store), 0);
    const kvb_capture *c = kvb_capture_view(store);
    /* Some tokens matter much in some groups. */
    for (size_t i = 0; i < 4 * c->rows * 8; i++) {
        uint16_t *g = (uint16_t *)(uintptr_t)(c->layer[0].gradient[i % 2] + i / 2);
        *g = kvb_half_from_float(kvb_half_to_float(*g) * (kvb_rng_below(9, i / 8, 8) == 0 ? 16.0f : 1.0f));
    }
    kvb_book *plain = train(c, RECIPE("none", ""), &image[0]), *fisher = train(c, RECIPE("fisher", ""), &image[1]);
    for (int kind = 0; kind < 2; kind++)
        assert_true(fisher_error(fisher, c, (kvb_kind)kind) < 0.97 * fisher_error(plain, c, (kvb_kind)kind));
    assert_non_null(strstr(kvb_book_meta(fisher, NULL), "\"fisher\""));
    kvb_book_close(plain);
    kvb_book_close(fisher);
    free(image[0]);
    free(image[1]);
    kvb_capture_close(store);
}

/* gradient = (inverse^T R g)^2 in a frame with a metric and a rotation, against the formula in double. */
static void test_moved(void **state)
{
    (void)state;
    static const char json[] = RECIPE("fisher", ",\"frame\":\"post\",\"mean\":true,\"rotation\":\"pca\",\"metric\":{}");
    kvb_capture_store *store;
    kvb_recipe recipe = recipe_of(json);
    kvb_error err = {0};
    assert_int_equal(synth_capture_make(&usual, NULL, &store), 0);
    const kvb_capture *c = kvb_capture_view(store);
    kvb_train_points p = {.capture = c, .recipe = &recipe, .kind = KVB_KEY, .threads = 2};
    if (kvb_train_points_create(&p, &err) != KVB_OK)
        fail_msg("%s: %s", err.where, err.message);
    kvb_rope_table rope;
    assert_int_equal(kvb_rope_table_create(&rope, c->geometry, 0, 512, NULL), KVB_OK);
    for (size_t i = 0; i < 2 * c->rows; i += 37) {
        const size_t head = i / c->rows;
        float g[8];
        double group = 0.0;
        kvb_half_to_floats(g, c->layer[0].gradient[KVB_KEY] + i * 8, 8);
        kvb_rope_rotate(&rope, c->row_position[i % c->rows], 8, g, g);
        for (size_t j = 0; j < 8; j++) {
            double sum = 0.0;
            for (size_t k = 0; k < 8; k++)
                sum += (double)g[k] * (double)p.inverse[(head * 8 + k) * 8 + j];
            assert_true(fabs((double)p.gradient[i * 8 + j] - sum * sum) < 1e-4 * (sum * sum + 1.0));
            group += j >= 4 ? sum * sum : 0.0;
        }
        float all[1500];
        kvb_train_fisher_group(&p, (uint32_t)head, 4, 1, 1, c->rows, all);
        float first[1500];
        kvb_train_fisher_group(&p, (uint32_t)head, 4, 1, c->rows - 1, 2, first);
        assert_true(fabs((double)(first[0] + first[1]) - 2.0) < 1e-4);
        double mean = 0.0;
        for (size_t k = 0; k < c->rows; k++)
            mean += (double)(p.gradient[(head * c->rows + k) * 8 + 4] + p.gradient[(head * c->rows + k) * 8 + 5] +
                             p.gradient[(head * c->rows + k) * 8 + 6] + p.gradient[(head * c->rows + k) * 8 + 7]) / (double)c->rows;
        assert_true(fabs((double)all[i % c->rows] * mean - group) < 1e-3 * (group + 1.0));
    }
    kvb_rope_table_free(&rope);
    kvb_train_points_free(&p);
    kvb_recipe_free(&recipe);
    kvb_capture_close(store);
}

static void expect_refused(const kvb_capture *c, kvb_status expected, const char *where, const char *what)
{
    kvb_recipe r = recipe_of(RECIPE("fisher", ""));
    kvb_train_options o;
    kvb_error err = {0};
    uint8_t *image;
    size_t size;
    kvb_train_options_init(&o);
    assert_int_equal(kvb_train_book(c, &r, &o, &image, &size, NULL, &err), expected);
    assert_non_null(strstr(err.where, where));
    assert_non_null(strstr(err.message, what));
    kvb_recipe_free(&r);
}

static void test_refused(void **state)
{
    (void)state;
    kvb_capture_store *store;
    assert_int_equal(synth_capture_make(&usual, NULL, &store), 0);
    kvb_capture c = *kvb_capture_view(store);
    kvb_capture_layer layer = c.layer[0];
    uint16_t *gradient = malloc(2 * c.rows * 8 * sizeof *gradient);
    memcpy(gradient, layer.gradient[KVB_VALUE], 2 * c.rows * 8 * sizeof *gradient);
    c.layer = &layer;
    layer.gradient[KVB_VALUE] = gradient;
    gradient[(c.rows + 9) * 8 + 3] = 0x7e00;
    expect_refused(&c, KVB_E_CHECK, "layer 0, KV head 1, values", "row 9 of gradient_v");
    memset(gradient + c.rows * 8, 0, c.rows * 8 * sizeof *gradient);
    expect_refused(&c, KVB_E_CHECK, "layer 0, KV head 1, values", "weights are 0");
    layer.gradient[KVB_VALUE] = NULL;
    expect_refused(&c, KVB_E_MISMATCH, "layer 0, KV head 0, values", "no layers.0.gradient_v");
    expect_refused(&c, KVB_E_MISMATCH, "values", "--fisher");
    free(gradient);
    kvb_capture_close(store);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_finite_differences), cmocka_unit_test(test_capture), cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_weighted), cmocka_unit_test(test_moved), cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests_name("fisher", tests, set_up, tear_down);
}
