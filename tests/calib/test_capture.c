/* Runs over a tiny model: the capture against a naive recomputation, its two sinks, its sampled rows, its refusals. */
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calib/capture.h"
#include "calib/capture_rows.h"
#include "calib/observe.h"
#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/half.h"
#include "format/base/json.h"
#include "format/base/rng.h"
#include "format/base/rope.h"
#include "tests/support/cm.h"
#include "tests/support/scratch.h"
#include "tests/support/synth.h"
#include "tests/support/tiny_llama2c.h"

enum { CTX = 150, CHUNKS = 3, SKIP = 1 };

typedef struct fixture {
    char *folder;
    kvb_model *model;
    kvb_text text;
    kvb_text_source source;
} fixture;

static kvb_model *open_model(const fixture *f, const char *path)
{
    char tokenizer[512];
    kvb_model *model = NULL;
    kvb_error err = {0};
    scratch_path(f->folder, "tokenizer.bin", tokenizer);
    kvb_model_options options = {.tokenizer_path = tokenizer};
    if (kvb_model_open(path, &options, &model, &err) != KVB_OK)
        print_error("%s: %s\n", err.where, err.message);
    return model;
}

static kvb_model *open_tiny(const fixture *f)
{
    char path[512], tokenizer[512];
    tiny_llama2c tiny = tiny_llama2c_default();
    scratch_path(f->folder, "tiny.bin", path);
    scratch_path(f->folder, "tokenizer.bin", tokenizer);
    return tiny_llama2c_write(&tiny, path, tokenizer) ? open_model(f, path) : NULL;
}

/* The tiny model with one channel that only the token `rare` uses, and that turns its keys of layer 0 to infinity. */
static kvb_model *open_sick(const fixture *f, uint32_t rare)
{
    enum { HEADER_BYTES = 28 };
    tiny_llama2c t = tiny_llama2c_default();
    char path[512];
    size_t size, width = t.embedding;
    scratch_path(f->folder, "tiny.bin", path);
    uint8_t *bytes = scratch_read(path, &size);
    float *embedding = (float *)(void *)(bytes + HEADER_BYTES);
    float *rms = embedding + width * t.vocab, *wk = rms + t.layers * width + t.layers * width * width;
    rms[0] = 1.0f;
    for (uint32_t token = 0; token < t.vocab; token++)
        embedding[token * width] = token == rare ? 100.0f : 0.0f;
    for (size_t row = 0; row < width / t.heads * t.kv_heads; row++)
        wk[row * width] = 3e38f;
    scratch_path(f->folder, "sick.bin", path);
    int failed = scratch_write(path, bytes, size);
    free(bytes);
    return failed ? NULL : open_model(f, path);
}

static int set_up(void **state)
{
    static fixture f;
    f.folder = scratch_create();
    f.model = open_tiny(&f);
    f.source = (kvb_text_source){.path = "folder/words.txt", .bytes = 9, .tokens = 7};
    f.text = (kvb_text){.sources = &f.source, .source_count = 1, .id_count = CTX * 6 + 5};
    f.text.ids = kvb_alloc_array(f.text.id_count, sizeof *f.text.ids);
    for (size_t i = 0; i < f.text.id_count; i++)
        f.text.ids[i] = (uint32_t)kvb_rng_below(3, i, tiny_llama2c_default().vocab);
    *state = &f;
    return f.model == NULL;
}

static int tear_down(void **state)
{
    fixture *f = *state;
    kvb_model_close(f->model);
    free(f->text.ids);
    scratch_remove(f->folder);
    return 0;
}

static kvb_capture_options usual(void)
{
    return (kvb_capture_options){.ctx = CTX, .skip = SKIP, .chunks = CHUNKS, .bos = 1, .seed = 8, .stop_on_nan = true};
}

/* ---- the naive recomputation */

typedef struct naive {
    const kvb_capture *capture;
    uint64_t chunk;
    size_t checked;
    double worst; /* of the weights, relative */
    const kvb_observer *draws;
    double *moment; /* [layers][G][2][D][D]: relative and post, sums */
} naive;

static void naive_weights(const synth_call *s, double *weight_k, double *weight_v)
{
    uint32_t group = s->layer.heads / s->layer.kv_heads, dim = s->layer.head_dim, tokens = s->call.tokens;
    double *row = malloc(tokens * sizeof *row), out[64];
    for (uint32_t h = 0; h < s->layer.heads; h++)
        for (uint32_t i = 0; i < tokens; i++) {
            double norm = 0.0;
            synth_probabilities(s, h, i, row);
            synth_output(s, h, i, out);
            for (uint32_t c = 0; c < dim; c++)
                norm += pow((double)s->q[((size_t)h * tokens + i) * dim + c], 2.0);
            for (uint32_t j = 0; j <= i; j++) {
                size_t at = (size_t)(h / group) * tokens + j;
                double l1 = 0.0;
                for (uint32_t c = 0; c < dim; c++)
                    l1 += fabs((double)s->v[at * dim + c] - out[c]);
                weight_k[at] += s->layer.attention_scale * row[j] * l1 * sqrt(norm);
                weight_v[at] += row[j];
            }
        }
    free(row);
}

static float *copy_of(const float *x, size_t n)
{
    float *copy = kvb_alloc_array(n, sizeof *copy);
    memcpy(copy, x, n * sizeof *copy);
    return copy;
}

static double distance(double got, double want)
{
    return fabs(got - want) / (fabs(want) + 1e-3);
}

static void compare_head(naive *n, const synth_call *s, uint32_t layer, uint32_t g, const double *weight_k,
                         const double *weight_v)
{
    const kvb_capture *c = n->capture;
    const kvb_capture_layer *l = &c->layer[layer];
    uint32_t dim = s->layer.head_dim, keep = (uint32_t)(c->rows / CHUNKS);
    for (uint32_t i = 0; i < keep; i++) {
        size_t row = g * c->rows + n->chunk * keep + i;
        uint32_t p = c->row_position[n->chunk * keep + i];
        size_t token = (size_t)g * s->call.tokens + p;
        assert_int_equal(c->row_chunk[n->chunk * keep + i], SKIP + n->chunk);
        for (uint32_t d = 0; d < dim; d++) {
            assert_int_equal(l->keys[row * dim + d], kvb_half_from_float(s->k_pre[token * dim + d]));
            assert_int_equal(l->values[row * dim + d], kvb_half_from_float(s->v[token * dim + d]));
        }
        n->worst = fmax(n->worst, distance((double)l->weight_k[row], weight_k[token]));
        n->worst = fmax(n->worst, distance((double)l->weight_v[row], weight_v[token]));
        n->checked++;
    }
}

static void naive_moments(const naive *n, const synth_call *s, uint32_t layer)
{
    uint32_t dim = s->layer.head_dim, tokens = s->call.tokens, group = s->layer.heads / s->layer.kv_heads;
    kvb_rope_table rope;
    float turned[64];
    kvb_rope_table_create(&rope, &s->layer, 0, tokens, NULL);
    for (uint32_t h = 0; h < s->layer.heads; h++)
        for (uint32_t i = 0; i < tokens; i++) {
            const float *q = s->q + ((size_t)h * tokens + i) * dim;
            double *sum = n->moment + ((size_t)layer * s->layer.kv_heads + h / group) * 2 * dim * dim;
            kvb_rope_unrotate(&rope, kvb_observer_draw(n->draws, i, 0), dim, q, turned);
            for (uint32_t a = 0; a < dim; a++)
                for (uint32_t b = 0; b < dim; b++) {
                    sum[a * dim + b] += (double)turned[a] * (double)turned[b];
                    sum[dim * dim + a * dim + b] += (double)q[a] * (double)q[b];
                }
        }
    kvb_rope_table_free(&rope);
}

static void compare_moments(const naive *n)
{
    const kvb_capture *c = n->capture;
    const kvb_layer *g = &c->geometry[0];
    size_t square = (size_t)g->head_dim * g->head_dim;
    double queries = (double)(CHUNKS * CTX * g->heads / g->kv_heads);
    for (size_t l = 0; l < c->layers; l++)
        for (size_t i = 0; i < g->kv_heads * square; i++) {
            const double *sum = n->moment + (l * g->kv_heads + i / square) * 2 * square + i % square;
            assert_true(fabs((double)c->layer[l].moment_relative[i] - sum[0] / queries) < 1e-5);
            assert_true(fabs((double)c->layer[l].moment_post[i] - sum[square] / queries) < 1e-5);
        }
}

static kvb_status naive_observe(void *user, const kvb_attention_call *call, const float *out, const float *lse,
                                kvb_error *err)
{
    naive *n = user;
    const kvb_layer *g = call->geometry;
    size_t rows_q = (size_t)g->heads * call->tokens, rows_k = (size_t)g->kv_heads * call->tokens;
    synth_call s = {.layer = *g, .call = *call, .q = copy_of(call->q, rows_q * g->head_dim),
                    .k_pre = copy_of(call->k_pre, rows_k * g->head_dim), .k = copy_of(call->k, rows_k * g->head_dim),
                    .v = copy_of(call->v, rows_k * g->head_dim)};
    double *weights = kvb_alloc_zeroed(2 * rows_k, sizeof *weights);
    (void)out, (void)lse, (void)err;
    naive_weights(&s, weights, weights + rows_k);
    naive_moments(n, &s, call->layer);
    for (uint32_t head = 0; head < g->kv_heads; head++)
        compare_head(n, &s, call->layer, head, weights, weights + rows_k);
    free(weights);
    synth_call_free(&s);
    return KVB_OK;
}

static void compare_run(const fixture *f, const kvb_capture *c, const kvb_capture_options *o)
{
    uint32_t tokens[CTX];
    const float *hidden;
    kvb_forward *forward;
    kvb_observer *observer;
    naive n = {.capture = c};
    size_t dim = c->geometry[0].head_dim;
    kvb_forward_hooks hooks = {.observe = naive_observe, .observe_user = &n};
    assert_int_equal(kvb_forward_create(f->model, CTX, &forward, NULL), KVB_OK);
    assert_int_equal(kvb_observer_create(c->geometry, c->layers, CTX, o->seed, &observer, NULL), KVB_OK);
    n.draws = observer;
    n.moment = kvb_alloc_zeroed(c->layers * c->geometry[0].kv_heads * 2 * dim * dim, sizeof *n.moment);
    for (n.chunk = 0; n.chunk < CHUNKS; n.chunk++) {
        kvb_observer_begin_chunk(observer, SKIP + n.chunk);
        memcpy(tokens, f->text.ids + (SKIP + n.chunk) * CTX, sizeof tokens);
        tokens[0] = (uint32_t)o->bos;
        assert_int_equal(kvb_forward_run(forward, tokens, CTX, 0, &hooks, &hidden, NULL), KVB_OK);
    }
    kvb_forward_destroy(forward);
    assert_int_equal(n.checked, c->layers * c->geometry[0].kv_heads * c->rows);
    assert_true(n.worst < 2e-4);
    compare_moments(&n);
    kvb_observer_destroy(observer);
    free(n.moment);
}

static void test_naive(void **state)
{
    const fixture *f = *state;
    kvb_capture_options o = usual();
    kvb_capture_store *store;
    assert_int_equal(kvb_capture_run(f->model, &f->text, &o, &store, NULL), KVB_OK);
    assert_int_equal(kvb_capture_view(store)->rows, CTX * CHUNKS);
    compare_run(f, kvb_capture_view(store), &o);
    kvb_capture_close(store);
}

static void test_sampled(void **state)
{
    const fixture *f = *state;
    kvb_capture_options o = usual();
    kvb_capture_store *store, *again;
    uint32_t expected[20];
    o.max_rows = 20 * CHUNKS + 2;
    assert_int_equal(kvb_capture_run(f->model, &f->text, &o, &store, NULL), KVB_OK);
    assert_int_equal(kvb_capture_run(f->model, &f->text, &o, &again, NULL), KVB_OK);
    const kvb_capture *c = kvb_capture_view(store);
    assert_int_equal(c->rows, 20 * CHUNKS);
    for (uint32_t chunk = 0; chunk < CHUNKS; chunk++) {
        kvb_capture_rows_draw(o.seed, SKIP + chunk, CTX, 20, expected);
        assert_memory_equal(c->row_position + chunk * 20, expected, sizeof expected);
    }
    assert_memory_equal(c->row_position, kvb_capture_view(again)->row_position, c->rows * 4);
    compare_run(f, c, &o);
    kvb_capture_close(store);
    kvb_capture_close(again);
}

static kvb_status only_watch(void *user, const kvb_attention_call *call, const float *out, const float *lse,
                             kvb_error *err)
{
    kvb_observed seen;
    return kvb_observer_see(user, call, out, lse, &seen, err);
}

/* Watching never changes what the model computes. */
static void test_only_observes(void **state)
{
    const fixture *f = *state;
    kvb_observer *observer;
    kvb_forward *forward;
    const float *hidden;
    const kvb_model_info *info = kvb_model_get_info(f->model);
    size_t count = (size_t)CTX * info->embedding;
    assert_int_equal(kvb_forward_create(f->model, CTX, &forward, NULL), KVB_OK);
    assert_int_equal(kvb_observer_create(info->layer, info->layers, CTX, 1, &observer, NULL), KVB_OK);
    assert_int_equal(kvb_forward_run(forward, f->text.ids, CTX, 0, NULL, &hidden, NULL), KVB_OK);
    float *before = copy_of(hidden, count);
    kvb_forward_hooks hooks = {.observe = only_watch, .observe_user = observer};
    assert_int_equal(kvb_forward_run(forward, f->text.ids, CTX, 0, &hooks, &hidden, NULL), KVB_OK);
    assert_memory_equal(before, hidden, count * sizeof *hidden);
    kvb_observer_destroy(observer);
    kvb_forward_destroy(forward);
    free(before);
}

static void same_layers(const kvb_capture *a, const kvb_capture *b)
{
    for (uint32_t l = 0; l < a->layers; l++) {
        const kvb_layer *g = &a->geometry[l];
        size_t rows = g->kv_heads * (size_t)a->rows, square = (size_t)g->kv_heads * g->head_dim * g->head_dim;
        assert_memory_equal(a->layer[l].keys, b->layer[l].keys, rows * g->head_dim * 2);
        assert_memory_equal(a->layer[l].values, b->layer[l].values, rows * g->head_dim * 2);
        assert_memory_equal(a->layer[l].weight_k, b->layer[l].weight_k, rows * 4);
        assert_memory_equal(a->layer[l].weight_v, b->layer[l].weight_v, rows * 4);
        assert_memory_equal(a->layer[l].moment_relative, b->layer[l].moment_relative, square * 4);
        assert_memory_equal(a->layer[l].moment_post, b->layer[l].moment_post, square * 4);
    }
}

/* Memory on one thread, the file on two and on three: the same tensors, and the same file. */
static void test_sinks_and_threads(void **state)
{
    const fixture *f = *state;
    kvb_capture_options o = usual();
    kvb_capture_store *memory, *file;
    char path[2][512];
    uint8_t *bytes[2];
    size_t size[2];
    int before = omp_get_max_threads();
    omp_set_num_threads(1);
    assert_int_equal(kvb_capture_run(f->model, &f->text, &o, &memory, NULL), KVB_OK);
    for (int i = 0; i < 2; i++) {
        omp_set_num_threads(2 + i);
        scratch_path(f->folder, i == 0 ? "a.kvc" : "b.kvc", path[i]);
        assert_int_equal(kvb_capture_run_to_file(f->model, &f->text, &o, path[i], NULL), KVB_OK);
        bytes[i] = scratch_read(path[i], &size[i]);
    }
    omp_set_num_threads(before);
    assert_int_equal(size[0], size[1]);
    assert_memory_equal(bytes[0], bytes[1], size[0]);
    assert_int_equal(kvb_capture_open(path[0], &file, NULL), KVB_OK);
    const kvb_capture *a = kvb_capture_view(memory), *b = kvb_capture_view(file);
    assert_string_equal(a->meta_json, b->meta_json);
    same_layers(a, b);
    kvb_capture_close(memory);
    kvb_capture_close(file);
    free(bytes[0]);
    free(bytes[1]);
}

static void test_meta(void **state)
{
    const fixture *f = *state;
    kvb_capture_options o = usual();
    kvb_capture_store *store;
    kvb_json_doc *doc;
    uint64_t number = 0;
    assert_int_equal(kvb_capture_run(f->model, &f->text, &o, &store, NULL), KVB_OK);
    const char *meta = kvb_capture_view(store)->meta_json;
    assert_int_equal(kvb_json_parse(meta, strlen(meta), "meta", &doc, NULL), KVB_OK);
    const kvb_json *root = kvb_json_root(doc), *text = kvb_json_get(root, "text");
    const kvb_json *model = kvb_json_get(root, "model"), *tokenizer = kvb_json_get(root, "tokenizer");
    assert_int_equal(strlen(kvb_json_string(kvb_json_get(model, "weights_sha256"), "")), 64);
    assert_int_equal(strlen(kvb_json_string(kvb_json_get(tokenizer, "sha256"), "")), 64);
    assert_string_equal(kvb_json_string(kvb_json_get(kvb_json_at(kvb_json_get(text, "sources"), 0), "name"), ""),
                        "words.txt");
    assert_true(kvb_json_u64(kvb_json_get(text, "chunks"), &number) && number == CHUNKS);
    assert_true(kvb_json_u64(kvb_json_get(text, "skip"), &number) && number == SKIP);
    assert_true(kvb_json_u64(kvb_json_get(text, "bos"), &number) && number == 1);
    assert_true(kvb_json_u64(kvb_json_get(kvb_json_get(root, "capture"), "rows"), &number) && number == CTX * CHUNKS);
    assert_null(strstr(meta, "folder"));
    kvb_json_free(doc);
    kvb_capture_close(store);
}

static void test_draws(void **state)
{
    (void)state;
    uint32_t counts[40] = {0}, p[40];
    for (uint64_t chunk = 0; chunk < 4000; chunk++) {
        kvb_capture_rows_draw(1, chunk, 40, 10, p);
        for (uint32_t i = 0; i < 10; i++) {
            assert_true(p[i] < 40 && (i == 0 || p[i] > p[i - 1]));
            counts[p[i]]++;
        }
    }
    for (uint32_t i = 0; i < 40; i++)
        assert_in_range(counts[i], 860, 1140); /* 1000 expected, standard deviation 27 */
    kvb_capture_rows_draw(1, 0, 40, 40, p);
    for (uint32_t i = 0; i < 40; i++)
        assert_int_equal(p[i], i);
}

static void test_too_few_rows(void **state)
{
    const fixture *f = *state;
    kvb_capture_options o = usual();
    kvb_capture_store *store;
    kvb_error err;
    o.max_rows = 2;
    assert_int_equal(kvb_capture_run(f->model, &f->text, &o, &store, &err), KVB_E_USAGE);
    assert_non_null(strstr(err.message, "2 rows"));
    assert_null(store);
    o = usual();
    o.skip = 1000;
    assert_int_equal(kvb_capture_run(f->model, &f->text, &o, &store, &err), KVB_E_FORMAT);
}

/* The third token of the second chunk has a key that is not finite. */
static fixture make_sick(const fixture *f)
{
    uint32_t rare = tiny_llama2c_default().vocab - 1, place = (SKIP + 1) * CTX + 3;
    fixture sick = *f;
    sick.model = open_sick(f, rare);
    sick.text.ids = kvb_alloc_array(f->text.id_count, sizeof *f->text.ids);
    for (size_t i = 0; i < f->text.id_count; i++)
        sick.text.ids[i] = i == place ? rare : f->text.ids[i] == rare ? 0 : f->text.ids[i];
    assert_non_null(sick.model);
    return sick;
}

static void free_sick(fixture *sick)
{
    kvb_model_close(sick->model);
    free(sick->text.ids);
}

static void test_nan_stops(void **state)
{
    const fixture *f = *state;
    fixture sick = make_sick(f);
    kvb_capture_options o = usual();
    kvb_capture_store *store;
    kvb_error err = {0};
    char path[512];
    assert_int_equal(kvb_capture_run(sick.model, &sick.text, &o, &store, &err), KVB_E_CHECK);
    assert_null(store);
    assert_non_null(strstr(err.where, "layer 0, KV head 0, chunk 2, token 3"));
    assert_non_null(strstr(err.message, "the key there"));
    size_t entries = scratch_count(f->folder);
    scratch_path(f->folder, "sick.kvc", path);
    assert_int_equal(kvb_capture_run_to_file(sick.model, &sick.text, &o, path, &err), KVB_E_CHECK);
    assert_int_equal(scratch_count(f->folder), entries);
    free_sick(&sick);
}

static void test_nan_counted(void **state)
{
    fixture sick = make_sick(*state);
    kvb_capture_options o = usual();
    kvb_capture_store *store;
    o.stop_on_nan = false;
    assert_int_equal(kvb_capture_run(sick.model, &sick.text, &o, &store, NULL), KVB_OK);
    const kvb_capture *c = kvb_capture_view(store);
    uint32_t dim = c->geometry[0].head_dim;
    size_t spoilt = CTX + 3;
    assert_int_equal(c->row_chunk[spoilt], SKIP + 1);
    assert_int_equal(c->row_position[spoilt], 3);
    for (uint64_t r = 0; r < c->rows; r++) {
        float k = c->layer[0].weight_k[r], v = c->layer[0].weight_v[r];
        assert_true(isfinite(k) && isfinite(v));
        if (r == spoilt)
            assert_true(k == 0.0f && v == 0.0f);
        else if (c->row_chunk[r] != SKIP + 1)
            assert_true(k > 0.0f && v > 0.0f);
    }
    for (uint32_t i = 0; i < dim; i++)
        assert_int_equal(c->layer[0].keys[spoilt * dim + i], 0);
    for (uint32_t i = 0; i < dim * dim; i++)
        assert_true(isfinite(c->layer[1].moment_relative[i]) && isfinite(c->layer[2].moment_post[i]));
    assert_null(strstr(c->meta_json, "\"quarantined\":0"));
    kvb_capture_close(store);
    free_sick(&sick);
}

static int stop_at_second(void *user, const char *step, uint64_t done, uint64_t total)
{
    (void)user, (void)step, (void)total;
    return done == 1;
}

static void test_cancel(void **state)
{
    const fixture *f = *state;
    kvb_capture_options o = usual();
    char path[512];
    kvb_error err;
    size_t entries = scratch_count(f->folder);
    o.progress = stop_at_second;
    scratch_path(f->folder, "never.kvc", path);
    assert_int_equal(kvb_capture_run_to_file(f->model, &f->text, &o, path, &err), KVB_E_CANCELLED);
    assert_int_equal(scratch_count(f->folder), entries);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_naive), cmocka_unit_test(test_sampled),      cmocka_unit_test(test_only_observes),
        cmocka_unit_test(test_meta),  cmocka_unit_test(test_sinks_and_threads), cmocka_unit_test(test_draws),
        cmocka_unit_test(test_nan_stops), cmocka_unit_test(test_nan_counted), cmocka_unit_test(test_too_few_rows),
        cmocka_unit_test(test_cancel),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
