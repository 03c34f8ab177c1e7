/* `.kvc` files: what a sink writes the reader gives back, and damaged or foreign files are refused. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calib/capture_sink.h"
#include "format/base/json.h"
#include "tests/support/cm.h"
#include "tests/support/scratch.h"
#include "tests/support/synth.h"

static const synth_capture small = {.layers = 2, .heads = 4, .kv_heads = 2, .dim = 6, .rows = 11, .key = 5};

typedef struct fixture {
    char *folder;
    char path[512];
} fixture;

static int set_up(void **state)
{
    static fixture f;
    kvb_capture_store *none;
    f.folder = scratch_create();
    *state = &f;
    if (f.folder == NULL)
        return 1;
    scratch_path(f.folder, "a.kvc", f.path);
    return synth_capture_make(&small, f.path, &none);
}

static int tear_down(void **state)
{
    scratch_remove(((fixture *)*state)->folder);
    return 0;
}

static void same_layer(const kvb_capture *a, const kvb_capture *b, uint32_t l)
{
    const kvb_layer *g = &a->geometry[l];
    size_t rows = g->kv_heads * (size_t)a->rows, square = (size_t)g->kv_heads * g->head_dim * g->head_dim;
    assert_memory_equal(a->layer[l].keys, b->layer[l].keys, rows * g->head_dim * 2);
    assert_memory_equal(a->layer[l].values, b->layer[l].values, rows * g->head_dim * 2);
    assert_memory_equal(a->layer[l].weight_k, b->layer[l].weight_k, rows * 4);
    assert_memory_equal(a->layer[l].weight_v, b->layer[l].weight_v, rows * 4);
    assert_memory_equal(a->layer[l].moment_relative, b->layer[l].moment_relative, square * 4);
    assert_memory_equal(a->layer[l].moment_post, b->layer[l].moment_post, square * 4);
    assert_int_equal(g->rope_style, b->geometry[l].rope_style);
    assert_int_equal(g->rope_dims, b->geometry[l].rope_dims);
    assert_memory_equal(a->layer[l].gradient[0], b->layer[l].gradient[0], rows * g->head_dim * 2);
    assert_memory_equal(a->layer[l].gradient[1], b->layer[l].gradient[1], rows * g->head_dim * 2);
    assert_memory_equal(a->layer[l].queries, b->layer[l].queries, a->query_rows * g->heads * g->head_dim * 2);
    assert_true(g->rope_base == b->geometry[l].rope_base && g->attention_scale == b->geometry[l].attention_scale);
}

static void test_round_trip(void **state)
{
    const fixture *f = *state;
    kvb_capture_store *memory, *file;
    assert_int_equal(synth_capture_make(&small, NULL, &memory), 0);
    assert_int_equal(kvb_capture_open(f->path, &file, NULL), KVB_OK);
    const kvb_capture *a = kvb_capture_view(memory), *b = kvb_capture_view(file);
    assert_int_equal(b->layers, 2);
    assert_int_equal(b->rows, 11);
    assert_int_equal(b->query_rows, 11);
    assert_int_equal(a->query_rows, 11);
    assert_string_equal(a->meta_json, b->meta_json);
    assert_memory_equal(a->row_chunk, b->row_chunk, 11 * 4);
    assert_memory_equal(a->row_position, b->row_position, 11 * 4);
    for (uint32_t l = 0; l < 2; l++)
        same_layer(a, b, l);
    kvb_capture_close(memory);
    kvb_capture_close(file);
    kvb_capture_close(NULL);
}

static void test_alignment(void **state)
{
    const fixture *f = *state;
    kvb_safetensors *st;
    assert_int_equal(kvb_safetensors_open(f->path, &st, NULL), KVB_OK);
    assert_int_equal(kvb_safetensors_find(st, "row_chunk")->offset % 64, 0);
    assert_int_equal(kvb_safetensors_count(st), 2 + 2 * KVB_KVC_PARTS);
    kvb_safetensors_close(st);
}

static void test_truncations(void **state)
{
    const fixture *f = *state;
    char cut[512];
    size_t size;
    uint8_t *bytes = scratch_read(f->path, &size);
    scratch_path(f->folder, "cut.kvc", cut);
    assert_non_null(bytes);
    for (size_t n = 0; n < size; n += n < 4096 ? 61 : 509) {
        kvb_capture_store *store;
        kvb_error err;
        assert_int_equal(scratch_write(cut, bytes, n), 0);
        assert_int_equal(kvb_capture_open(cut, &store, &err), KVB_E_FORMAT);
        assert_null(store);
    }
    free(bytes);
}

/* Every bit of the header flipped: refused, or a capture whose every pointer is good. */
static void test_flips(void **state)
{
    const fixture *f = *state;
    char flipped[512];
    size_t size, accepted = 0;
    uint8_t *bytes = scratch_read(f->path, &size);
    scratch_path(f->folder, "flip.kvc", flipped);
    size_t header = 8 + bytes[0] + 256 * (size_t)bytes[1];
    for (size_t at = 0; at < header; at++) {
        kvb_capture_store *store;
        bytes[at] ^= (uint8_t)(1 << at % 8);
        assert_int_equal(scratch_write(flipped, bytes, size), 0);
        bytes[at] ^= (uint8_t)(1 << at % 8);
        if (kvb_capture_open(flipped, &store, NULL) != KVB_OK)
            continue;
        const kvb_capture *c = kvb_capture_view(store);
        accepted++;
        for (uint32_t l = 0; l < c->layers; l++) {
            size_t last = c->geometry[l].kv_heads * (size_t)c->rows * c->geometry[l].head_dim - 1;
            volatile uint16_t touched = c->geometry[l].kind == KVB_LAYER_UNSUPPORTED ? 0 : c->layer[l].values[last];
            (void)touched;
        }
        kvb_capture_close(store);
    }
    assert_true(accepted < header / 20); /* the model's name, digits of rope_base and the like */
    free(bytes);
}

/* A file put together from parts, to be spoilt one at a time. */
typedef struct hand_made {
    const char *version, *geometry, *meta, *tensors;
    size_t data;
} hand_made;

#define GEOMETRY                                                                                       \
    "[{\"heads\":2,\"kv_heads\":1,\"head_dim\":2,\"kind\":\"full\",\"rope_style\":\"none\"," \
    "\"attention_scale\":0.5}]"
#define TENSOR(name, dtype, shape, begin, end) \
    ",\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #begin "," #end "]}"
#define KEYS TENSOR("layers.0.keys", "F16", "[1,3,2]", 0, 12)
#define VALUES TENSOR("layers.0.values", "F16", "[1,3,2]", 12, 24)

static kvb_status open_hand_made(const fixture *f, const hand_made *h, kvb_capture_store **store, kvb_error *err)
{
    char path[512], header[4096];
    kvb_json_writer w = {.compact = true};
    kvb_json_begin_object(&w, NULL);
    if (h->version != NULL)
        kvb_json_put_string(&w, "kvc.version", h->version);
    if (h->geometry != NULL)
        kvb_json_put_string(&w, "kvc.geometry", h->geometry);
    if (h->meta != NULL)
        kvb_json_put_string(&w, "kvc.meta", h->meta);
    kvb_json_end_object(&w);
    int n = snprintf(header + 8, sizeof header - 8, "{\"__metadata__\":%s%s}", kvb_json_writer_text(&w), h->tensors);
    kvb_json_writer_free(&w);
    while (n % 8 != 0)
        header[8 + n++] = ' ';
    for (int i = 0; i < 8; i++)
        header[i] = (char)(uint8_t)((uint64_t)n >> (8 * i));
    memset(header + 8 + n, 0, h->data);
    scratch_path(f->folder, "hand.kvc", path);
    assert_int_equal(scratch_write(path, header, 8 + (size_t)n + h->data), 0);
    return kvb_capture_open(path, store, err);
}

static void test_least_file(void **state)
{
    kvb_capture_store *store;
    kvb_error err = {0};
    const hand_made least = {"1", GEOMETRY, NULL, KEYS VALUES, 24};
    assert_int_equal(open_hand_made(*state, &least, &store, &err), KVB_OK);
    const kvb_capture *c = kvb_capture_view(store);
    assert_int_equal(c->rows, 3);
    assert_non_null(c->layer[0].keys);
    assert_null(c->layer[0].weight_k);
    assert_null(c->layer[0].moment_post);
    assert_null(c->row_position);
    assert_string_equal(c->meta_json, "{}");
    kvb_capture_close(store);
    const hand_made others = {"1.3", GEOMETRY, "{\"a\":1}", KEYS VALUES TENSOR("later", "U8", "[1]", 24, 25), 25};
    assert_int_equal(open_hand_made(*state, &others, &store, &err), KVB_OK);
    kvb_capture_close(store);
    const hand_made own = {"1", GEOMETRY, NULL, KEYS VALUES TENSOR("x.mine", "U8", "[1]", 24, 25), 25};
    assert_int_equal(open_hand_made(*state, &own, &store, &err), KVB_OK);
    kvb_capture_close(store);
}

static void test_refused(void **state)
{
    static const struct {
        hand_made file;
        const char *part;
    } bad[] = {
        {{NULL, GEOMETRY, NULL, KEYS VALUES, 24}, "no capture"},
        {{"2", GEOMETRY, NULL, KEYS VALUES, 24}, "found version \"2\""},
        {{"10", GEOMETRY, NULL, KEYS VALUES, 24}, "found version"},
        {{"1.x", GEOMETRY, NULL, KEYS VALUES, 24}, "1.N"},
        {{"1", NULL, NULL, KEYS VALUES, 24}, "missing"},
        {{"1", "{}", NULL, KEYS VALUES, 24}, "1 to 1024 layers"},
        {{"1", "[]", NULL, KEYS VALUES, 24}, "1 to 1024 layers"},
        {{"1", "[1]", NULL, KEYS VALUES, 24}, "an object"},
        {{"1", "[{\"heads\":3,\"kv_heads\":2,\"head_dim\":2}]", NULL, KEYS VALUES, 24}, "divisor"},
        {{"1", "[{\"heads\":0}]", NULL, KEYS VALUES, 24}, "1 to 1024"},
        {{"1", "[{\"heads\":1,\"kv_heads\":1,\"head_dim\":2000}]", NULL, KEYS VALUES, 24}, "1 to 1024"},
        {{"1", "[{\"heads\":2,\"kv_heads\":1,\"head_dim\":2,\"kind\":\"full\",\"attention_scale\":0}]", NULL, KEYS VALUES,
          24}, "positive"},
        {{"1", "[{\"heads\":2,\"kv_heads\":1,\"head_dim\":2,\"kind\":\"full\",\"attention_scale\":1,\"rope_style\":\"half\","
               "\"rope_dims\":1}]", NULL, KEYS VALUES, 24}, "2 to 2"},
        {{"1", "[{\"heads\":2,\"kv_heads\":1,\"head_dim\":2,\"kind\":\"unsupported\",\"attention_scale\":1,"
               "\"rope_style\":\"none\"}]", NULL, KEYS VALUES, 24}, "no layer"},
        {{"1", GEOMETRY, "[]", KEYS VALUES, 24}, "JSON object"},
        {{"1", GEOMETRY, "{", KEYS VALUES, 24}, ""},
        {{"1", GEOMETRY, NULL, KEYS, 12}, "missing"},
        {{"1", GEOMETRY, NULL, TENSOR("layers.0.values", "F16", "[1,3,2]", 0, 12), 12}, "missing"},
        {{"1", GEOMETRY, NULL, TENSOR("layers.0.keys", "F16", "[1,0,2]", 0, 0) VALUES, 24}, ""},
        {{"1", GEOMETRY, NULL, TENSOR("layers.0.keys", "BF16", "[1,3,2]", 0, 12) VALUES, 24}, "expected F16"},
        {{"1", GEOMETRY, NULL, TENSOR("layers.0.keys", "F16", "[3,2]", 0, 12) VALUES, 24}, "[KV heads, rows"},
        {{"1", GEOMETRY, NULL, KEYS TENSOR("layers.0.values", "F16", "[1,2,3]", 12, 24), 24}, "expected [1, 3, 2]"},
        {{"1", GEOMETRY, NULL, KEYS VALUES TENSOR("layers.0.wieght_k", "F32", "[1,3]", 24, 36), 36}, "\"weight_k\""},
        {{"1", GEOMETRY, NULL, KEYS VALUES TENSOR("layers.1.keys", "F16", "[1,3,2]", 24, 36), 36}, "unknown tensor"},
        {{"1", GEOMETRY, NULL, KEYS VALUES TENSOR("layers.0.weight_k", "F32", "[3]", 24, 36), 36}, "expected [1, 3]"},
        {{"1", GEOMETRY, NULL, KEYS VALUES TENSOR("layers.0.gradient_k", "F16", "[1,2,3]", 24, 36), 36}, "expected [1, 3, 2]"},
        {{"1", GEOMETRY, NULL, KEYS VALUES TENSOR("layers.0.gradient_v", "F32", "[1,3,2]", 24, 48), 48}, "expected F16"},
        {{"1", GEOMETRY, NULL, KEYS VALUES TENSOR("layers.0.queries", "F16", "[1,3,2]", 24, 36), 36}, "expected [2, 3, 2]"},
        {{"1", GEOMETRY, NULL, KEYS VALUES TENSOR("layers.0.queries", "F16", "[2,4,2]", 24, 56), 56}, "rows of the first chunk"},
        {{"1", GEOMETRY, NULL, KEYS VALUES TENSOR("layers.0.queries", "F16", "[2,3,2]", 24, 48), 48}, "queries are of the rows"},
        {{"1", GEOMETRY, NULL, KEYS VALUES TENSOR("row_chunk", "U32", "[3]", 24, 36), 36}, "both or neither"},
        {{"1", GEOMETRY, NULL, KEYS VALUES TENSOR("row_chunk", "U32", "[3]", 24, 36) TENSOR("row_position", "I32", "[3]",
          36, 48), 48}, "ascending"},
        {{"1", GEOMETRY, NULL, TENSOR("x.a", "U8", "[1]", 0, 1) TENSOR("layers.0.keys", "F16", "[1,3,2]", 1, 13)
          TENSOR("layers.0.values", "F16", "[1,3,2]", 13, 25), 25}, "aligned"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        kvb_capture_store *store;
        kvb_error err = {0};
        kvb_status status = open_hand_made(*state, &bad[i].file, &store, &err);
        if (status != KVB_E_FORMAT || strstr(err.message, bad[i].part) == NULL)
            print_error("%zu: %s: %s: %s\n", i, kvb_status_name(status), err.where, err.message);
        assert_int_equal(status, KVB_E_FORMAT);
        assert_null(store);
        assert_non_null(strstr(err.message, bad[i].part));
        assert_non_null(strstr(err.where, "hand.kvc"));
    }
}

/* A capture that another program wrote, with I32 chunks, three kinds of layers and members in its own order. */
static void test_foreign_file(void **state)
{
    (void)state;
    kvb_capture_store *store;
    kvb_error err = {0};
    if (kvb_capture_open("tests/fuzz/corpus/safetensors/capture-full", &store, &err) != KVB_OK)
        fail_msg("%s: %s", err.where, err.message);
    const kvb_capture *c = kvb_capture_view(store);
    assert_int_equal(c->layers, 3);
    assert_int_equal(c->rows, 2);
    assert_int_equal(c->row_position[1], 4);
    assert_int_equal(c->geometry[1].sliding_window, 4);
    assert_true(c->geometry[0].rope_factors[0] == 1.5f);
    assert_non_null(c->layer[1].moment_post);
    assert_null(c->layer[2].keys);
    assert_string_equal(c->meta_json, "{\"tool\":\"other\"}");
    kvb_capture_close(store);
}

static void test_geometry(void **state)
{
    (void)state;
    const float factors[] = {1.0f, 2.5f, 0.1f};
    const kvb_layer layers[] = {
        {.heads = 4, .kv_heads = 2, .head_dim = 8, .kind = KVB_LAYER_SLIDING, .sliding_window = 100,
         .rope_style = KVB_ROPE_INTERLEAVED, .rope_dims = 6, .rope_base = 500000.0, .rope_factors = factors,
         .attention_scale = 0.1},
        {.heads = 1, .kv_heads = 1, .head_dim = 3, .kind = KVB_LAYER_UNSUPPORTED, .attention_scale = 1.0},
    };
    kvb_layer *back;
    uint32_t count;
    char *text = kvb_kvc_geometry_write(layers, 2);
    assert_int_equal(kvb_kvc_geometry_read(text, "g", &back, &count, NULL), KVB_OK);
    assert_int_equal(count, 2);
    assert_int_equal(back[0].kind, KVB_LAYER_SLIDING);
    assert_int_equal(back[0].sliding_window, 100);
    assert_int_equal(back[0].rope_style, KVB_ROPE_INTERLEAVED);
    assert_memory_equal(back[0].rope_factors, factors, sizeof factors);
    assert_true(back[0].attention_scale == 0.1);
    assert_int_equal(back[1].kind, KVB_LAYER_UNSUPPORTED);
    char *again = kvb_kvc_geometry_write(back, 2);
    assert_string_equal(text, again);
    free(text);
    free(again);
    kvb_kvc_geometry_free(back, 2);
}

static void test_sizes(void **state)
{
    (void)state;
    kvb_kvc_layout layout;
    kvb_error err;
    const kvb_layer layer = {.heads = 9, .kv_heads = 3, .head_dim = 64, .attention_scale = 0.125};
    assert_int_equal(kvb_capture_row_bytes(&layer, 1, false), 3 * (64 * 4 + 8) + 8);
    assert_int_equal(kvb_capture_row_bytes(&layer, 1, true), 3 * (64 * 8 + 8) + 8);
    assert_int_equal(kvb_kvc_layout_create(&layer, 1, UINT64_MAX / 64, 0, KVB_KVC_SENSITIVITIES, &layout, &err), KVB_E_USAGE);
    assert_int_equal(kvb_kvc_layout_create(&layer, 1, (uint64_t)1 << 61, 0, KVB_KVC_GRADIENTS, &layout, &err), KVB_E_USAGE);
    assert_int_equal(kvb_kvc_layout_create(&layer, 1, 100, 0, 0, &layout, &err), KVB_OK);
    assert_int_equal(layout.data_size, 100 * kvb_capture_row_bytes(&layer, 1, false) + 2 * 3 * 64 * 64 * 4 + 2 * 3 * 64 * 65 / 2 * 16 + 3 * 8);
    kvb_kvc_layout_free(&layout);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_alignment), cmocka_unit_test(test_truncations),
        cmocka_unit_test(test_flips),      cmocka_unit_test(test_least_file), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_geometry),   cmocka_unit_test(test_sizes), cmocka_unit_test(test_foreign_file),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
