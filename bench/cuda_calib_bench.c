/* How long calibration of an 8B model takes on a GPU: a model of Llama-3-8B's shape with random weights, made here, so that
 * nothing need be fetched. Every layer has the same matrices; they are copied to the GPU for every layer all the same.
 *
 *   build/cuda/bench/cuda_calib_bench [RECIPE [BITS [CHUNKS [LAYERS [DEVICE [LANES]]]]]]
 *
 * Chunks of 2048 tokens. DEVICE as in `kvbook --device` (cuda); LANES: layers trained side by side (0: the usual number). Prints seconds
 * of capture and of training (with the book's image), the training's errors, and a checksum of the capture's rows and of the book,
 * which other devices and lanes must not change. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <zlib.h>

#include "calib/train.h"
#include "format/base/checked.h"
#include "format/base/rng.h"
#include "model/tokenizer_impl.h"
#include "model/weights.h"

enum { WIDTH = 4096, FFN = 14336, HEADS = 32, KV_HEADS = 8, DIM = 128, VOCAB = 8192, CTX = 2048 };

static double seconds(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + 1e-9 * (double)at.tv_nsec;
}

/* Near normal: the sum of four numbers, each uniform. */
static float *random_matrix(size_t rows, size_t cols, double deviation, uint64_t key)
{
    float *x = kvb_alloc_array(rows, cols * sizeof *x);
    if (x == NULL)
        exit(5);
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < rows * cols; i++) {
        const uint64_t bits = kvb_rng_u64(key, i);
        const double sum = (double)(bits & 0xffff) + (double)(bits >> 16 & 0xffff) + (double)(bits >> 32 & 0xffff) + (double)(bits >> 48);
        x[i] = (float)(deviation * (sum / 65536.0 - 2.0) * 1.7320508);
    }
    return x;
}

static float *ones(size_t count)
{
    float *x = kvb_alloc_array(count, sizeof *x);
    for (size_t i = 0; x != NULL && i < count; i++)
        x[i] = 1.0f;
    return x;
}

static kvb_weight matrix(size_t rows, size_t cols, double deviation, uint64_t key)
{
    return (kvb_weight){.rows = rows, .cols = cols, .resident = random_matrix(rows, cols, deviation, key)};
}

static void make_model(kvb_model *m, kvb_tensor *embedding, uint32_t layers)
{
    const kvb_layer g = {
        .heads = HEADS, .kv_heads = KV_HEADS, .head_dim = DIM, .kind = KVB_LAYER_FULL, .rope_style = KVB_ROPE_INTERLEAVED,
        .rope_dims = DIM, .rope_base = 500000.0, .attention_scale = 1.0 / sqrt(DIM),
    };
    const kvb_layer_weights w = {
        .qkv = matrix((HEADS + 2 * KV_HEADS) * DIM, WIDTH, 0.03, 1), .out = matrix(WIDTH, HEADS * DIM, 0.02, 2),
        .gate_up = matrix(2 * (size_t)FFN, WIDTH, 0.02, 3), .down = matrix(WIDTH, FFN, 0.02, 4),
        .attention_norm = ones(WIDTH), .ffn_norm = ones(WIDTH),
    };
    *embedding = (kvb_tensor){
        .name = "embedding", .dtype = KVB_DTYPE_F32, .dims = 2, .shape = {WIDTH, VOCAB},
        .bytes = (const uint8_t *)random_matrix(VOCAB, WIDTH, 0.02, 5), .size = (uint64_t)VOCAB * WIDTH * sizeof(float),
    };
    m->config = (kvb_model_config){.layers = layers, .embedding = WIDTH, .ffn = FFN, .vocab = VOCAB, .context = CTX,
                                   .norm_epsilon = 1e-5, .geometry = g, .arch = kvb_architecture_of_gguf("llama"), .name = "random 8B", .architecture = "llama"};
    m->final_norm = ones(WIDTH);
    m->geometry = kvb_alloc_array(layers, sizeof *m->geometry);
    m->layer = kvb_alloc_array(layers, sizeof *m->layer);
    if (m->geometry == NULL || m->layer == NULL)
        exit(5);
    for (uint32_t l = 0; l < layers; l++) {
        m->geometry[l] = g;
        m->layer[l] = w;
    }
    m->tokenizer = kvb_alloc_zeroed(1, sizeof *m->tokenizer); /* its hash alone is asked for */
    m->embedding = (kvb_weight){.part = {embedding}, .parts = 1, .rows = VOCAB, .cols = WIDTH};
    m->info = (kvb_model_info){.path = "random", .name = "random 8B", .architecture = "llama", .layers = layers,
                               .embedding = WIDTH, .vocab = VOCAB, .context = CTX, .layer = m->geometry};
}

static uint32_t crc_of(const void *bytes, size_t size, uint32_t crc)
{
    const uint8_t *at = bytes;
    for (; size > 0; at += 1 << 30, size -= size < 1 << 30 ? size : 1 << 30)
        crc = (uint32_t)crc32(crc, at, (uInt)(size < 1 << 30 ? size : 1 << 30));
    return crc;
}

/* Of the first and the last layer: rows, weights and means of queries. */
static uint32_t capture_crc(const kvb_capture *c)
{
    const size_t n = (size_t)KV_HEADS * c->rows;
    uint32_t crc = 0;
    for (uint32_t l = 0; l < c->layers; l += c->layers > 1 ? c->layers - 1 : 1) {
        const kvb_capture_layer *layer = &c->layer[l];
        crc = crc_of(layer->keys, n * DIM * sizeof *layer->keys, crc);
        crc = crc_of(layer->values, n * DIM * sizeof *layer->values, crc);
        crc = crc_of(layer->weight_k, n * sizeof *layer->weight_k, crc);
        crc = crc_of(layer->weight_v, n * sizeof *layer->weight_v, crc);
        crc = crc_of(layer->moment_relative, (size_t)KV_HEADS * DIM * DIM * sizeof *layer->moment_relative, crc);
        crc = crc_of(layer->moment_post, (size_t)KV_HEADS * DIM * DIM * sizeof *layer->moment_post, crc);
    }
    return crc;
}

static int fail(const kvb_error *err)
{
    fprintf(stderr, "%s: %s\n", err->where, err->message);
    return (int)err->code;
}

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "antkv";
    const double bits = argc > 2 ? atof(argv[2]) : 1.0;
    const uint64_t chunks = argc > 3 ? strtoull(argv[3], NULL, 10) : 64;
    const uint32_t layers = argc > 4 ? (uint32_t)strtoul(argv[4], NULL, 10) : 32;
    const uint32_t lanes = argc > 6 ? (uint32_t)strtoul(argv[6], NULL, 10) : 0;
    kvb_device device = KVB_DEVICE_CUDA;
    if (argc > 5 && !kvb_device_parse(argv[5], &device)) {
        fprintf(stderr, "%s: expected cpu, cuda, cuda:all or cuda:0,1\n", argv[5]);
        return 2;
    }
    kvb_model model = {0};
    kvb_tensor embedding;
    kvb_error err = {0};
    kvb_recipe recipe;
    kvb_capture_store *store = NULL;
    kvb_status status = kvb_device_check(device, &err);
    if (status == KVB_OK)
        status = kvb_recipe_load(name, &recipe, &err);
    if (status == KVB_OK && bits > 0.0)
        status = kvb_recipe_set_bits(&recipe, bits, &err);
    if (status != KVB_OK)
        return fail(&err);
    double start = seconds();
    make_model(&model, &embedding, layers);
    kvb_text text = {.ids = kvb_alloc_array(chunks * CTX, sizeof(uint32_t)), .id_count = chunks * CTX};
    for (size_t i = 0; i < text.id_count; i++)
        text.ids[i] = (uint32_t)kvb_rng_below(9, i, VOCAB);
    printf("random weights made in %.1f s\n", seconds() - start);
    fflush(stdout);
    start = seconds();
    const kvb_capture_options capture = {.ctx = CTX, .chunks = chunks, .bos = -1, .seed = 1, .stop_on_nan = true,
                                         .device = device};
    status = kvb_capture_run(&model, &text, &capture, &store, &err);
    if (status != KVB_OK)
        return fail(&err);
    const double captured = seconds() - start;
    printf("capture of %llu x %d tokens, %u layers: %.2f s\n", (unsigned long long)chunks, CTX, layers, captured);
    fflush(stdout);
    start = seconds();
    kvb_train_options options;
    kvb_train_report report;
    uint8_t *image = NULL;
    size_t size = 0;
    kvb_train_options_init(&options);
    options.device = device;
    options.lanes = lanes;
    status = kvb_train_book(kvb_capture_view(store), &recipe, &options, &image, &size, &report, &err);
    if (status != KVB_OK)
        return fail(&err);
    const double trained = seconds() - start;
    printf("training %s at %g bits: %.2f s, relative errors %.4f and %.4f, book of %.1f MB\n", name, kvb_recipe_nominal_bits(&recipe),
           trained, report.key_error, report.value_error, (double)size / 1e6);
    printf("together %.1f s; checksums %08x %08x\n", captured + trained, capture_crc(kvb_capture_view(store)), crc_of(image, size, 0));
    return 0;
}
