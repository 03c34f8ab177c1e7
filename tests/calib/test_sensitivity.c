/* Sensitivities over a tiny model: what they predict of the KL that errors cause, threads, refusals; and the shapes that
 * training deals out by them. */
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "calib/sensitivity.h"
#include "calib/train.h"
#include "format/base/fail.h"
#include "format/base/rng.h"
#include "format/base/rope.h"
#include "model/divergence.h"
#include "tests/support/cm.h"
#include "tests/support/synth.h"
#include "tests/support/tiny_run.h"

enum { CTX = 192, CHUNKS = 6, DRAWS = 6 };

typedef struct fixture {
    tiny_run run;
    kvb_capture_options options;
} fixture;

static int set_up(void **state)
{
    static fixture f;
    if (!tiny_run_open(&f.run, CTX, CHUNKS))
        return 1;
    f.options = (kvb_capture_options){.ctx = CTX, .chunks = CHUNKS, .bos = -1, .seed = 1};
    *state = &f;
    return 0;
}

static int tear_down(void **state)
{
    fixture *f = *state;
    tiny_run_close(&f->run);
    return 0;
}

static kvb_sensitivity *measure(const fixture *f, int threads)
{
    kvb_sensitivity *s = NULL;
    kvb_error err = {0};
    int before = omp_get_max_threads();
    omp_set_num_threads(threads);
    if (kvb_sensitivity_measure(f->run.model, &f->run.text, &f->options, CHUNKS, &s, &err) != KVB_OK)
        print_error("%s: %s\n", err.where, err.message);
    omp_set_num_threads(before);
    return s;
}

/* Attention in which the window sees one head's keys (or values) as they are, and later queries with noise on them. */
typedef struct noisy {
    uint32_t layer, head;
    kvb_kind kind;
    double size;
    uint64_t key;
} noisy;

static float noise_of(const noisy *n, size_t i)
{
    double u = kvb_rng_unit(n->key, 2 * i), v = kvb_rng_unit(n->key, 2 * i + 1);
    return (float)(n->size * sqrt(-2.0 * log(u)) * cos(2.0 * acos(-1.0) * v));
}

static kvb_status attend(void *user, const kvb_attention_call *c, float *out, kvb_error *err)
{
    const noisy *n = user;
    const kvb_layer *g = c->geometry;
    const uint32_t dim = g->head_dim, group = g->heads / g->kv_heads;
    const size_t values = (size_t)g->kv_heads * c->tokens * dim;
    float *k = malloc(values * sizeof *k), *v = malloc(values * sizeof *v);
    double *p = malloc(c->tokens * sizeof *p);
    kvb_rope_table rope = {0};
    kvb_status status = kvb_rope_table_create(&rope, g, 0, c->tokens, err);
    memcpy(k, c->k, values * sizeof *k);
    memcpy(v, c->v, values * sizeof *v);
    for (uint32_t j = 0; c->layer == n->layer && j < c->tokens; j++) {
        const size_t at = ((size_t)n->head * c->tokens + j) * dim;
        float *x = (n->kind == KVB_KEY ? k : v) + at;
        if (n->kind == KVB_KEY)
            memcpy(x, c->k_pre + at, dim * sizeof *x);
        for (uint32_t i = 0; i < dim; i++)
            x[i] += noise_of(n, at + i);
        if (n->kind == KVB_KEY)
            kvb_rope_rotate(&rope, j, dim, x, x);
    }
    for (uint32_t h = 0; h < g->heads; h++)
        for (uint32_t i = 0; i < c->tokens; i++) {
            const size_t head = (size_t)(h / group) * c->tokens;
            const float *q = c->q + ((size_t)h * c->tokens + i) * dim;
            double most = -INFINITY, sum = 0.0;
            for (uint32_t j = 0; j <= i; j++) {
                const float *key = (i < j + KVB_SENSITIVITY_WINDOW ? c->k : k) + (head + j) * dim;
                p[j] = 0.0;
                for (uint32_t d = 0; d < dim; d++)
                    p[j] += g->attention_scale * (double)q[d] * (double)key[d];
                most = fmax(most, p[j]);
            }
            for (uint32_t j = 0; j <= i; j++)
                sum += p[j] = exp(p[j] - most);
            for (uint32_t d = 0; d < dim; d++) {
                double o = 0.0;
                for (uint32_t j = 0; j <= i; j++)
                    o += p[j] / sum * (double)(i < j + KVB_SENSITIVITY_WINDOW ? c->v : v)[(head + j) * dim + d];
                out[((size_t)h * c->tokens + i) * dim + d] = (float)o;
            }
        }
    free(k);
    free(v);
    free(p);
    kvb_rope_table_free(&rope);
    return status;
}

/* Mean KL of the chunks with that noise. */
static double measure_kl(const fixture *f, noisy n)
{
    const size_t width = kvb_model_get_info(f->run.model)->embedding, values = CTX * width;
    kvb_forward *forward = NULL;
    kvb_divergence *divergence = NULL;
    float *teacher = malloc(values * sizeof *teacher);
    double sum = 0.0;
    uint32_t tokens[CTX];
    assert_int_equal(kvb_forward_create(f->run.model, CTX, &forward, NULL), KVB_OK);
    assert_int_equal(kvb_divergence_create(f->run.model, &divergence, NULL), KVB_OK);
    for (uint32_t c = 0; c < CHUNKS; c++)
        for (uint32_t draw = 0; draw < DRAWS; draw++) {
            const float *hidden;
            n.key = kvb_rng_key(7, c, draw, n.layer, n.head);
            kvb_text_chunk(&f->run.text, CTX, 0, c, -1, tokens);
            assert_int_equal(kvb_forward_run(forward, tokens, CTX, 0, NULL, &hidden, NULL), KVB_OK);
            memcpy(teacher, hidden, values * sizeof *teacher);
            kvb_forward_hooks hooks = {.attend = attend, .attend_user = &n};
            assert_int_equal(kvb_forward_run(forward, tokens, CTX, 0, &hooks, &hidden, NULL), KVB_OK);
            sum += kvb_divergence_run(divergence, teacher, hidden, CTX, NULL) / (CHUNKS * DRAWS);
        }
    free(teacher);
    kvb_forward_destroy(forward);
    kvb_divergence_destroy(divergence);
    return sum;
}

/* KL = 1/2 size^2 trace F for small independent errors. The largest 2 % of the gradients are left out of F, so it comes
 * out a little low. */
static void test_predicts_kl(void **state)
{
    const fixture *f = *state;
    const kvb_model_info *info = kvb_model_get_info(f->run.model);
    kvb_sensitivity *s = measure(f, 2);
    assert_non_null(s);
    double predicted_sum = 0.0, found_sum = 0.0;
    for (uint32_t l = 0; l < info->layers; l++)
        for (int kind = 0; kind < 2; kind++)
            for (uint32_t head = 0; head < info->layer[l].kv_heads; head++) {
                const uint32_t dim = info->layer[l].head_dim;
                const float *m = kvb_sensitivity_get(s, l, (kvb_kind)kind) + (size_t)head * dim * dim;
                const noisy n = {.layer = l, .head = head, .kind = (kvb_kind)kind, .size = 0.05};
                double trace = 0.0;
                for (uint32_t i = 0; i < dim; i++)
                    trace += (double)m[(size_t)i * dim + i];
                const double predicted = 0.5 * n.size * n.size * trace, found = measure_kl(f, n);
                if (!(predicted > 0.4 * found && predicted < 1.6 * found))
                    fail_msg("layer %u, head %u, kind %d: predicted %g, found %g", l, head, kind, predicted, found);
                predicted_sum += predicted;
                found_sum += found;
            }
    assert_true(predicted_sum > 0.7 * found_sum && predicted_sum < 1.15 * found_sum);
    kvb_sensitivity_free(s);
}

static void test_threads(void **state)
{
    const fixture *f = *state;
    const kvb_layer *layer = kvb_model_get_info(f->run.model)->layer;
    kvb_sensitivity *one = measure(f, 1), *three = measure(f, 3);
    assert_true(one != NULL && three != NULL);
    for (int kind = 0; kind < 2; kind++)
        assert_memory_equal(kvb_sensitivity_get(one, 1, (kvb_kind)kind), kvb_sensitivity_get(three, 1, (kvb_kind)kind),
                            (size_t)layer[1].kv_heads * layer[1].head_dim * layer[1].head_dim * sizeof(float));
    kvb_sensitivity_free(one);
    kvb_sensitivity_free(three);
}

static int stop(void *user, const char *step, uint64_t done, uint64_t total)
{
    (void)user, (void)step, (void)total;
    return done == 2;
}

/* The second time it is asked, which is inside the first chunk. */
static int stop_within(void *user, const char *step, uint64_t done, uint64_t total)
{
    int *asked = user;
    (void)step, (void)total;
    assert_int_equal(done, 0);
    return ++*asked == 2;
}

static void test_cancel_within_a_chunk(void **state)
{
    const fixture *f = *state;
    kvb_capture_options options = f->options;
    kvb_sensitivity *s = NULL;
    int asked = 0;
    options.progress = stop_within;
    options.progress_user = &asked;
    assert_int_equal(kvb_sensitivity_measure(f->run.model, &f->run.text, &options, CHUNKS, &s, NULL), KVB_E_CANCELLED);
    assert_int_equal(asked, 2);
    assert_null(s);
}

static void test_cancel(void **state)
{
    const fixture *f = *state;
    kvb_capture_options options = f->options;
    kvb_sensitivity *s = NULL;
    options.progress = stop;
    assert_int_equal(kvb_sensitivity_measure(f->run.model, &f->run.text, &options, CHUNKS, &s, NULL), KVB_E_CANCELLED);
    assert_null(s);
}

#define LADDER                                                                                                         \
    "{\"schema\":1,\"name\":\"t\",\"keys\":{\"mean\":true,\"rotation\":\"balanced-pca\"},"                               \
    "\"allocate\":{\"shapes\":[\"4x4\",\"4x16\",\"2x16\"]}}"

/* Heads with more to lose get more bits; the total stays within what was asked. */
static void test_allocated_book(void **state)
{
    const fixture *f = *state;
    const kvb_model_info *info = kvb_model_get_info(f->run.model);
    kvb_capture_options options = f->options;
    kvb_capture_store *store = NULL;
    kvb_recipe recipe;
    kvb_train_options train;
    kvb_book *book;
    kvb_error err = {0};
    uint8_t *image = NULL;
    size_t size;
    options.sensitivity_chunks = 2;
    assert_int_equal(kvb_recipe_parse(LADDER, strlen(LADDER), "t.json", &recipe, &err), KVB_OK);
    assert_int_equal(kvb_recipe_set_bits(&recipe, 0.4, &err), KVB_E_USAGE);
    assert_non_null(strstr(err.message, "0.5 to 2"));
    assert_int_equal(kvb_recipe_set_bits(&recipe, 1.2, &err), KVB_OK);
    assert_int_equal(kvb_capture_run(f->run.model, &f->run.text, &options, &store, &err), KVB_OK);
    kvb_train_options_init(&train);
    kvb_status status = kvb_train_book(kvb_capture_view(store), &recipe, &train, &image, &size, NULL, &err);
    if (status != KVB_OK)
        fail_msg("%s: %s", err.where, err.message);
    assert_int_equal(kvb_book_open_memory(image, size, "book", &book, &err), KVB_OK);
    double bits = 0.0, elements = 0.0;
    uint32_t least = UINT32_MAX, most = 0;
    for (uint32_t l = 0; l < info->layers; l++)
        for (uint32_t i = 0; i < 2 * info->layer[l].kv_heads; i++) {
            const kvb_codebook *c = kvb_book_codebook(book, l, i / 2, (kvb_kind)(i % 2));
            uint32_t rate = c->groups * c->code_bits;
            bits += rate;
            elements += info->layer[l].head_dim;
            least = rate < least ? rate : least;
            most = rate > most ? rate : most;
        }
    assert_true(bits <= 1.2 * elements + 1e-9 && bits > 1.0 * elements);
    assert_true(least < most);
    kvb_book_close(book);
    kvb_recipe_free(&recipe);
    kvb_capture_close(store);
    free(image);
}

static void test_capture_without(void **state)
{
    const fixture *f = *state;
    kvb_capture_store *store = NULL;
    kvb_recipe recipe;
    kvb_train_options train;
    kvb_error err = {0};
    uint8_t *image = NULL;
    size_t size;
    assert_int_equal(kvb_capture_run(f->run.model, &f->run.text, &f->options, &store, &err), KVB_OK);
    assert_int_equal(kvb_recipe_parse(LADDER, strlen(LADDER), "t.json", &recipe, &err), KVB_OK);
    assert_int_equal(kvb_recipe_set_bits(&recipe, 1, &err), KVB_OK);
    kvb_train_options_init(&train);
    assert_int_equal(kvb_train_book(kvb_capture_view(store), &recipe, &train, &image, &size, NULL, &err), KVB_E_MISMATCH);
    assert_non_null(strstr(err.message, "sensitivity_k"));
    kvb_recipe_free(&recipe);
    kvb_capture_close(store);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_predicts_kl), cmocka_unit_test(test_threads),         cmocka_unit_test(test_cancel), cmocka_unit_test(test_cancel_within_a_chunk),
        cmocka_unit_test(test_allocated_book), cmocka_unit_test(test_capture_without),
    };
    return cmocka_run_group_tests_name("sensitivity", tests, set_up, tear_down);
}
