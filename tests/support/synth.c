#include "tests/support/synth.h"

#include <math.h>
#include <stdlib.h>

#include "calib/capture_sink.h"
#include "format/base/checked.h"
#include "format/base/half.h"
#include "format/base/rng.h"
#include "format/base/rope.h"

static double normal(uint64_t key, uint64_t i)
{
    return sqrt(-2.0 * log(kvb_rng_unit(key, 2 * i))) * cos(6.283185307179586 * kvb_rng_unit(key, 2 * i + 1));
}

float *synth_normals(size_t n, uint64_t key, double spread)
{
    float *x = kvb_alloc_array(n, sizeof *x);
    for (size_t i = 0; x != NULL && i < n; i++)
        x[i] = (float)(spread * normal(key, i));
    return x;
}

static bool visible(const synth_call *s, uint32_t i, uint32_t j)
{
    return j <= i && (s->layer.sliding_window == 0 || i - j < s->layer.sliding_window);
}

double synth_probabilities(const synth_call *s, uint32_t head, uint32_t i, double *row)
{
    uint32_t tokens = s->call.tokens, dim = s->layer.head_dim, kv = head / (s->layer.heads / s->layer.kv_heads);
    const float *q = s->q + ((size_t)head * tokens + i) * dim, *k = s->k + (size_t)kv * tokens * dim;
    double most = -INFINITY, sum = 0.0;
    for (uint32_t j = 0; j < tokens; j++) {
        row[j] = 0.0;
        for (uint32_t c = 0; c < dim; c++)
            row[j] += (double)q[c] * (double)k[(size_t)j * dim + c];
        row[j] = visible(s, i, j) ? row[j] * s->layer.attention_scale : -INFINITY;
        most = row[j] > most ? row[j] : most;
    }
    for (uint32_t j = 0; j < tokens; j++)
        sum += exp(row[j] - most);
    for (uint32_t j = 0; j < tokens; j++)
        row[j] = exp(row[j] - most) / sum;
    return most + log(sum);
}

static double output_and_lse(const synth_call *s, uint32_t head, uint32_t i, double *out)
{
    uint32_t tokens = s->call.tokens, dim = s->layer.head_dim, kv = head / (s->layer.heads / s->layer.kv_heads);
    double *row = malloc(tokens * sizeof *row);
    double lse = synth_probabilities(s, head, i, row);
    for (uint32_t c = 0; c < dim; c++) {
        out[c] = 0.0;
        for (uint32_t j = 0; j < tokens; j++)
            out[c] += row[j] * (double)s->v[((size_t)kv * tokens + j) * dim + c];
    }
    free(row);
    return lse;
}

void synth_output(const synth_call *s, uint32_t head, uint32_t i, double *out)
{
    (void)output_and_lse(s, head, i, out);
}

static void attend(synth_call *s)
{
    uint32_t tokens = s->call.tokens, dim = s->layer.head_dim;
    double *out = malloc(dim * sizeof *out);
    for (uint32_t h = 0; h < s->layer.heads; h++)
        for (uint32_t i = 0; i < tokens; i++) {
            size_t row = (size_t)h * tokens + i;
            s->lse[row] = (float)output_and_lse(s, h, i, out);
            for (uint32_t c = 0; c < dim; c++)
                s->out[row * dim + c] = (float)out[c];
        }
    free(out);
}

static void rotate_keys(synth_call *s)
{
    kvb_rope_table rope;
    uint32_t tokens = s->call.tokens, dim = s->layer.head_dim;
    kvb_rope_table_create(&rope, &s->layer, 0, tokens, NULL);
    for (uint32_t g = 0; g < s->layer.kv_heads; g++)
        for (uint32_t i = 0; i < tokens; i++) {
            size_t at = ((size_t)g * tokens + i) * dim;
            kvb_rope_rotate(&rope, i, dim, s->k_pre + at, s->k + at);
        }
    kvb_rope_table_free(&rope);
}

void synth_call_create(synth_call *s, uint32_t heads, uint32_t kv_heads, uint32_t dim, uint32_t tokens, uint32_t window,
                       uint64_t key)
{
    size_t rows_q = (size_t)heads * tokens, rows_k = (size_t)kv_heads * tokens;
    *s = (synth_call){.layer = {
        .heads = heads, .kv_heads = kv_heads, .head_dim = dim, .sliding_window = window,
        .kind = window != 0 ? KVB_LAYER_SLIDING : KVB_LAYER_FULL, .rope_style = KVB_ROPE_HALF,
        .rope_dims = dim / 2 * 2, .rope_base = 10000.0, .attention_scale = 1.0 / sqrt(dim),
    }};
    s->q = synth_normals(rows_q * dim, key, 1.5);
    s->k_pre = synth_normals(rows_k * dim, key + 1, 1.5);
    s->k = synth_normals(rows_k * dim, key + 2, 1.0);
    s->v = synth_normals(rows_k * dim, key + 3, 1.0);
    s->out = kvb_alloc_zeroed(rows_q * dim, sizeof *s->out);
    s->lse = kvb_alloc_zeroed(rows_q, sizeof *s->lse);
    s->call = (kvb_attention_call){.geometry = &s->layer, .tokens = tokens, .q = s->q, .k_pre = s->k_pre, .k = s->k,
                                   .v = s->v};
    rotate_keys(s);
    attend(s);
}

void synth_call_free(synth_call *s)
{
    free(s->q);
    free(s->k_pre);
    free(s->k);
    free(s->v);
    free(s->out);
    free(s->lse);
}

enum { CLUSTERS = 24, CHUNK = 512 };

/* Row i of a head: a cluster's centre and some noise around it. */
static void fill_rows(uint16_t *half, const synth_capture *s, uint64_t key)
{
    for (uint32_t i = 0; i < s->rows; i++) {
        uint64_t cluster = kvb_rng_below(key, i, CLUSTERS);
        for (uint32_t c = 0; c < s->dim; c++) {
            double centre = 2.0 * normal(key + 1, cluster * s->dim + c);
            uint64_t at = (uint64_t)i * s->dim + c;
            half[at] = kvb_half_from_float((float)(centre + 0.5 * normal(key + 2, at)));
        }
    }
}

static void fill_floats(float *x, size_t n, uint64_t key)
{
    for (size_t i = 0; i < n; i++)
        x[i] = (float)exp(1.5 * normal(key, i));
}

static kvb_status write_layer(const synth_capture *s, const kvb_kvc_layout *layout, uint32_t layer,
                              kvb_capture_sink *sink)
{
    size_t rows = (size_t)s->kv_heads * s->rows, square = (size_t)s->kv_heads * s->dim * s->dim;
    float *floats = kvb_alloc_array(rows > square ? rows : square, sizeof *floats);
    uint16_t *half = kvb_alloc_array(rows * s->dim, sizeof *half);
    kvb_status status = KVB_OK;
    for (kvb_kvc_part part = 0; status == KVB_OK && part < KVB_KVC_PARTS; part++) {
        uint64_t key = kvb_rng_key(s->key, layer, part, 0, 0), offset = kvb_kvc_offset(layout, layer, part);
        if (part == KVB_KVC_QUERIES) {
            for (uint32_t h = 0; status == KVB_OK && h < s->heads; h++) {
                fill_rows(half, s, key + 10 * h);
                const size_t size = layout->query_rows * s->dim * sizeof *half;
                status = kvb_sink_write(sink, offset + h * size, half, size, NULL);
            }
        } else if (kvb_kvc_element(part) == 2) {
            for (uint32_t g = 0; g < s->kv_heads; g++)
                fill_rows(half + (size_t)g * s->rows * s->dim, s, key + 10 * g);
            status = kvb_sink_write(sink, offset, half, rows * s->dim * sizeof *half, NULL);
        } else if (kvb_kvc_element(part) == 8) { /* no query was seen */
            const size_t words = part == KVB_KVC_QUERY_COUNT ? 1 : 4 * kvb_triangle(s->dim);
            uint64_t *zeros = kvb_alloc_zeroed(s->kv_heads * words, sizeof *zeros);
            status = kvb_sink_write(sink, offset, zeros, s->kv_heads * words * sizeof *zeros, NULL);
            free(zeros);
        } else {
            size_t n = part == KVB_KVC_WEIGHT_K || part == KVB_KVC_WEIGHT_V ? rows : square;
            fill_floats(floats, n, key);
            status = kvb_sink_write(sink, offset, floats, n * sizeof *floats, NULL);
        }
    }
    free(floats);
    free(half);
    return status;
}

static kvb_status write_places(const synth_capture *s, const kvb_kvc_layout *layout, kvb_capture_sink *sink)
{
    kvb_status status = KVB_OK;
    for (uint32_t i = 0; status == KVB_OK && i < s->rows; i++) {
        uint32_t chunk = i / CHUNK, position = i % CHUNK;
        status = kvb_sink_write(sink, layout->row_chunk + 4 * (uint64_t)i, &chunk, 4, NULL);
        if (status == KVB_OK)
            status = kvb_sink_write(sink, layout->row_position + 4 * (uint64_t)i, &position, 4, NULL);
    }
    return status;
}

int synth_capture_make(const synth_capture *s, const char *path, kvb_capture_store **store)
{
    static const char meta[] = "{\"model\":{\"name\":\"synthetic\"}}";
    kvb_kvc_layout layout;
    kvb_capture_sink *sink = NULL;
    kvb_layer *layer = kvb_alloc_zeroed(s->layers, sizeof *layer);
    for (uint32_t l = 0; l < s->layers; l++)
        layer[l] = (kvb_layer){.heads = s->heads, .kv_heads = s->kv_heads, .head_dim = s->dim, .kind = KVB_LAYER_FULL,
                               .rope_style = KVB_ROPE_HALF, .rope_dims = s->dim, .rope_base = 10000.0,
                               .attention_scale = 0.25};
    *store = NULL;
    kvb_status status = kvb_kvc_layout_create(layer, s->layers, s->rows, s->rows < CHUNK ? s->rows : CHUNK,
                                                KVB_KVC_SENSITIVITIES | KVB_KVC_GRADIENTS | KVB_KVC_WITH_QUERIES, &layout, NULL);
    if (status == KVB_OK)
        status = path != NULL ? kvb_sink_to_file(&layout, path, meta, &sink, NULL)
                              : kvb_sink_to_memory(&layout, &sink, NULL);
    for (uint32_t l = 0; status == KVB_OK && l < s->layers; l++)
        status = write_layer(s, &layout, l, sink);
    if (status == KVB_OK)
        status = write_places(s, &layout, sink);
    if (status == KVB_OK)
        status = kvb_sink_finish(sink, meta, store, NULL);
    kvb_kvc_layout_free(&layout);
    free(layer);
    return status != KVB_OK;
}
