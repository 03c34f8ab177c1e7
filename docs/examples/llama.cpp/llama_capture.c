/* A capture for `kvbook train`, made by llama.cpp:
 *
 *     llama_capture MODEL.gguf TEXT CTX CHUNKS OUT.kvc
 *
 * Keys before RoPE, values and AnTKV's token weights of whole chunks: what recipes without transforms learn from, `antkv` above all. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "kvc_writer.h"
#include "llama_watch.h"

typedef struct capture {
    kvc_layer *layers;
    uint64_t rows, done; /* of all chunks; of chunks before this one */
    float *attention;    /* [CTX] of one query */
} capture;

/* Once a layer, when its shape is known from its first chunk. */
static int start_layer(kvc_layer *l, const watch_step *s, uint64_t rows)
{
    const size_t g = s->kv_heads, elements = g * rows * s->head_dim;
    if (s->rope_scale != 1.0f || s->rope_factors || (s->rope_mode != GGML_ROPE_TYPE_NORMAL && s->rope_mode != GGML_ROPE_TYPE_NEOX))
        return fprintf(stderr, "layer %u: RoPE with scaling or factors; this example does not write them\n", s->layer), 1;
    *l = (kvc_layer){s->heads, s->kv_heads, s->head_dim, s->rope_mode == GGML_ROPE_TYPE_NEOX ? "half" : "interleaved", s->rope_dims,
        s->rope_base, 1.0 / sqrt(s->head_dim), malloc(elements * 2), malloc(elements * 2), calloc(g * rows, 4), calloc(g * rows, 4)};
    return l->keys == NULL || l->values == NULL || l->weight_k == NULL || l->weight_v == NULL;
}

static int put_half(const float *x, uint32_t count, uint16_t *half)
{
    for (uint32_t i = 0; i < count; i++) {
        if (!isfinite(x[i]))
            return fprintf(stderr, "a key or value that is no finite number\n"), 1;
        half[i] = ggml_fp32_to_fp16(fmaxf(-65504.0f, fminf(65504.0f, x[i])));
    }
    return 0;
}

/* A of one query over the keys up to its own, and the norm of the query. */
static double attend(const watch_step *s, uint32_t h, uint32_t i, float *a, double scale)
{
    const uint32_t d = s->head_dim, g = h / (s->heads / s->kv_heads);
    const float *q = s->queries + ((size_t)i * s->heads + h) * d;
    double norm = 0, sum = 0, most = -INFINITY;
    for (uint32_t c = 0; c < d; c++)
        norm += (double)q[c] * q[c];
    for (uint32_t j = 0; j <= i; j++) {
        const float *k = s->rotated_keys + ((size_t)j * s->kv_heads + g) * d;
        float dot = 0;
        for (uint32_t c = 0; c < d; c++)
            dot += q[c] * k[c];
        a[j] = (float)(dot * scale);
        most = fmax(most, a[j]);
    }
    for (uint32_t j = 0; j <= i; j++)
        sum += a[j] = (float)exp(a[j] - most);
    for (uint32_t j = 0; j <= i; j++)
        a[j] = (float)(a[j] / sum);
    return sqrt(norm);
}

/* The two formulas of spec/kvc-1.md; `out` is attention's output O. */
static void add_weights(const watch_step *s, const kvc_layer *l, const capture *c)
{
    const uint32_t d = s->head_dim;
    for (uint32_t h = 0; h < s->heads; h++)
        for (uint32_t i = 0; i < s->tokens; i++) {
            const uint32_t g = h / (s->heads / s->kv_heads);
            const float *o = s->out + ((size_t)i * s->heads + h) * d;
            const double factor = attend(s, h, i, c->attention, l->attention_scale) * l->attention_scale;
            for (uint32_t j = 0; j <= i; j++) {
                const float *v = s->values + ((size_t)j * s->kv_heads + g) * d;
                const size_t at = g * c->rows + c->done + j;
                float distance = 0;
                for (uint32_t k = 0; k < d; k++)
                    distance += fabsf(v[k] - o[k]);
                l->weight_k[at] += (float)(factor * c->attention[j] * distance);
                l->weight_v[at] += c->attention[j];
            }
        }
}

static watch_answer keep(void *user, const watch_step *s)
{
    capture *c = user;
    kvc_layer *l = &c->layers[s->layer];
    if (l->keys == NULL && start_layer(l, s, c->rows))
        return WATCH_STOP;
    for (uint32_t i = 0; i < s->tokens; i++)
        for (uint32_t g = 0; g < s->kv_heads; g++) {
            const size_t from = ((size_t)i * s->kv_heads + g) * s->head_dim, to = (g * c->rows + c->done + i) * s->head_dim;
            if (put_half(s->keys + from, s->head_dim, l->keys + to) || put_half(s->values + from, s->head_dim, l->values + to))
                return WATCH_STOP;
        }
    add_weights(s, l, c);
    return WATCH_GO_ON;
}

static int run(watch *w, capture *c, uint32_t chunks, const char *path)
{
    const uint32_t count = (uint32_t)llama_model_n_layer(w->model);
    uint32_t *chunk = malloc(c->rows * 4), *position = malloc(c->rows * 4);
    c->layers = calloc(count, sizeof *c->layers);
    c->attention = malloc(w->ctx * sizeof *c->attention);
    int failed = chunk == NULL || position == NULL || c->layers == NULL || c->attention == NULL;
    for (uint32_t i = 0; i < chunks && !failed; i++, c->done += w->ctx) {
        for (uint32_t t = 0; t < w->ctx; t++) {
            chunk[c->done + t] = i;
            position[c->done + t] = t;
        }
        failed = watch_run(w, i);
    }
    if (!failed && (failed = kvc_write(path, c->layers, count, c->rows, chunk, position)) != 0)
        perror(path);
    free(chunk);
    free(position);
    return failed != 0;
}

int main(int argc, char **argv)
{
    if (argc != 6)
        return fprintf(stderr, "usage: llama_capture MODEL.gguf TEXT CTX CHUNKS OUT.kvc\n"), 2;
    watch w;
    const uint32_t ctx = (uint32_t)strtoul(argv[3], NULL, 10), chunks = (uint32_t)strtoul(argv[4], NULL, 10);
    capture c = {.rows = (uint64_t)ctx * chunks};
    int code = watch_open(&w, argv[1], argv[2], ctx, GGML_TYPE_F16, keep, &c);
    if (code == 0 && (chunks == 0 || w.chunks < chunks || llama_model_n_swa(w.model) > 0))
        code = (fprintf(stderr, "%u chunks in the text; models with a sliding window are not for this example\n", w.chunks), 2);
    code = code != 0 ? code : run(&w, &c, chunks, argv[5]);
    watch_close(&w);
    return code; /* the capture's memory goes with the process */
}
