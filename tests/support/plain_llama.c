#include "tests/support/plain_llama.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "tests/support/synth.h"

static double *doubles(size_t count)
{
    double *x = kvb_alloc_zeroed(count, sizeof *x);
    if (x == NULL)
        abort();
    return x;
}

static double *random_shift(size_t count, uint64_t key, double spread)
{
    float *x = synth_normals(count, key, spread);
    double *shift = doubles(count);
    for (size_t i = 0; i < count; i++)
        shift[i] = (double)x[i];
    free(x);
    return shift;
}

plain_llama plain_llama_make(const kvb_model *model, const uint32_t *ids, uint32_t count, double spread)
{
    const kvb_model_config *c = &model->config;
    plain_llama p = {.model = model, .count = count};
    p.layer_floats = (size_t)c->geometry.kv_heads * count * c->geometry.head_dim;
    p.embedded = doubles((size_t)count * c->embedding);
    p.shift_k = random_shift(c->layers * p.layer_floats, 71, spread);
    p.shift_v = random_shift(c->layers * p.layer_floats, 72, spread);
    float *row = kvb_alloc_array(c->embedding, sizeof *row);
    const double scale = c->arch->embedding_scale ? sqrt((double)c->embedding) : 1.0;
    for (uint32_t t = 0; t < count; t++) {
        kvb_dequantise(model->embedding.part[0], (uint64_t)ids[t] * c->embedding, c->embedding, row);
        for (uint32_t i = 0; i < c->embedding; i++)
            p.embedded[(size_t)t * c->embedding + i] = (double)row[i] * scale;
    }
    free(row);
    return p;
}

void plain_llama_free(plain_llama *p)
{
    free(p->embedded);
    free(p->shift_k);
    free(p->shift_v);
}

static void product(const kvb_weight *w, const double *x, double *y)
{
    for (uint64_t r = 0; r < w->rows; r++) {
        y[r] = 0.0;
        for (uint64_t c = 0; c < w->cols; c++)
            y[r] += (double)w->resident[r * w->cols + c] * x[c];
    }
}

/* y may be x */
static void norm_of(const kvb_model *m, uint32_t n, const double *x, const float *w, double *y)
{
    double square = 0.0;
    for (uint32_t i = 0; i < n; i++)
        square += x[i] * x[i];
    for (uint32_t i = 0; i < n; i++)
        y[i] = x[i] / sqrt(square / n + m->config.norm_epsilon) * (double)w[i];
}

static void norm(const kvb_model *m, const double *x, const float *w, double *y)
{
    norm_of(m, m->config.embedding, x, w, y);
}

/* x += back, normed where the layer has a post norm */
static void add_back(const kvb_model *m, const float *post_norm, double *back, double *x)
{
    if (post_norm != NULL)
        norm(m, back, post_norm, back);
    for (uint32_t i = 0; i < m->config.embedding; i++)
        x[i] += back[i];
}

static double activate(const kvb_architecture *a, double g)
{
    if (a->activation == KVB_ACTIVATION_GELU_TANH)
        return 0.5 * g * (1.0 + tanh(sqrt(2.0 / acos(-1.0)) * (g + 0.044715 * g * g * g)));
    return g / (1.0 + exp(-g));
}

static void rotate(const kvb_layer *g, double *x, uint32_t position)
{
    const bool half = g->rope_style == KVB_ROPE_HALF;
    for (uint32_t i = 0; i < g->rope_dims / 2; i++) {
        double angle = position * pow(g->rope_base, -2.0 * i / g->rope_dims);
        angle /= g->rope_factors != NULL ? (double)g->rope_factors[i] : 1.0;
        double *a = &x[half ? i : 2 * i], *b = &x[half ? i + g->rope_dims / 2 : 2 * i + 1], was = *a;
        *a = was * cos(angle) - *b * sin(angle);
        *b = was * sin(angle) + *b * cos(angle);
    }
}

static double dot(const double *a, const double *b, uint32_t n)
{
    double sum = 0.0;
    for (uint32_t c = 0; c < n; c++)
        sum += a[c] * b[c];
    return sum;
}

/* Probabilities of query i [D] over keys [T][D]. */
static void probabilities(const kvb_layer *g, const double *q, const double *k, uint32_t i, double *p)
{
    double most = -INFINITY, sum = 0.0;
    for (uint32_t j = 0; j <= i; j++) {
        p[j] = g->attention_scale * dot(q, k + (size_t)j * g->head_dim, g->head_dim);
        if (g->kind == KVB_LAYER_SLIDING && i - j >= g->sliding_window)
            p[j] = -INFINITY;
        most = fmax(most, p[j]);
    }
    for (uint32_t j = 0; j <= i; j++)
        sum += p[j] = exp(p[j] - most);
    for (uint32_t j = 0; j <= i; j++)
        p[j] /= sum;
}

/* q [H][T][D], k and v [G][T][D], out [H][T][D] */
static void attention(const kvb_layer *g, uint32_t count, const double *q, const double *k, const double *v, double *out)
{
    const size_t dim = g->head_dim, head = count * dim;
    double *p = doubles(count);
    memset(out, 0, g->heads * head * sizeof *out);
    for (size_t h = 0; h < g->heads; h++)
        for (uint32_t i = 0; i < count; i++) {
            const size_t kv = h / (g->heads / g->kv_heads) * head;
            probabilities(g, q + h * head + i * dim, k + kv, i, p);
            for (uint32_t j = 0; j <= i; j++)
                for (size_t c = 0; c < dim; c++)
                    out[h * head + i * dim + c] += p[j] * v[kv + j * dim + c];
        }
    free(p);
}

/* From row t of [q | k | v] to heads. */
static void split(const plain_llama *p, uint32_t layer, uint32_t t, const double *row, double *q, double *k, double *v)
{
    const kvb_layer *g = &p->model->geometry[layer];
    const kvb_layer_weights *w = &p->model->layer[layer];
    const size_t dim = g->head_dim;
    for (size_t h = 0; h < g->heads + 2 * (size_t)g->kv_heads; h++, row += dim) {
        const bool key = h >= g->heads && h < g->heads + g->kv_heads, value = h >= g->heads + g->kv_heads;
        const size_t at = ((value ? h - g->heads - g->kv_heads : key ? h - g->heads : h) * p->count + t) * dim;
        double *to = (value ? v : key ? k : q) + at;
        memcpy(to, row, dim * sizeof *to);
        for (size_t c = 0; w->qkv_bias != NULL && c < dim; c++)
            to[c] += (double)w->qkv_bias[h * dim + c];
        if (!value && w->q_norm != NULL)
            norm_of(p->model, g->head_dim, to, key ? w->k_norm : w->q_norm, to);
        if (!value)
            rotate(g, to, t);
        for (size_t c = 0; (key || value) && c < dim; c++)
            to[c] += (key ? p->shift_k : p->shift_v)[layer * p->layer_floats + at + c];
    }
}

static void attention_block(const plain_llama *p, uint32_t l, double *x)
{
    const kvb_model_config *c = &p->model->config;
    const kvb_layer *g = &p->model->geometry[l];
    const kvb_layer_weights *w = &p->model->layer[l];
    const size_t dim = g->head_dim, size = (size_t)g->heads * p->count * dim;
    double *q = doubles(size), *k = doubles(p->layer_floats), *v = doubles(p->layer_floats), *out = doubles(size);
    double *row = doubles(w->qkv.rows + g->heads * dim), *normed = doubles(c->embedding), *back = doubles(c->embedding);
    for (uint32_t t = 0; t < p->count; t++) {
        norm(p->model, x + (size_t)t * c->embedding, w->attention_norm, normed);
        product(&w->qkv, normed, row);
        split(p, l, t, row, q, k, v);
    }
    attention(g, p->count, q, k, v, out);
    for (uint32_t t = 0; t < p->count; t++) {
        for (size_t h = 0; h < g->heads; h++)
            memcpy(row + h * dim, out + (h * p->count + t) * dim, dim * sizeof *row);
        product(&w->out, row, back);
        add_back(p->model, w->attention_post_norm, back, x + (size_t)t * c->embedding);
    }
    double *all[] = {q, k, v, out, row, normed, back};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

static void feed_forward(const plain_llama *p, uint32_t l, double *x)
{
    const kvb_model_config *c = &p->model->config;
    const kvb_layer_weights *w = &p->model->layer[l];
    double *normed = doubles(c->embedding), *wide = doubles(2 * (size_t)c->ffn), *back = doubles(c->embedding);
    for (uint32_t t = 0; t < p->count; t++, x += c->embedding) {
        norm(p->model, x, w->ffn_norm, normed);
        product(&w->gate_up, normed, wide);
        for (uint32_t i = 0; i < c->ffn; i++)
            wide[i] = activate(c->arch, wide[i]) * wide[c->ffn + i];
        product(&w->down, wide, back);
        add_back(p->model, w->ffn_post_norm, back, x);
    }
    free(normed);
    free(wide);
    free(back);
}

void plain_llama_hidden(const plain_llama *p, double *hidden)
{
    const uint32_t width = p->model->config.embedding;
    double *x = doubles((size_t)p->count * width);
    memcpy(x, p->embedded, (size_t)p->count * width * sizeof *x);
    for (uint32_t l = 0; l < p->model->config.layers; l++) {
        attention_block(p, l, x);
        feed_forward(p, l, x);
    }
    for (uint32_t t = 0; t < p->count; t++)
        norm(p->model, x + (size_t)t * width, p->model->final_norm, hidden + (size_t)t * width);
    free(x);
}

/* x [n] becomes its log-softmax. */
static void log_softmax(double *x, uint32_t n)
{
    double most = -INFINITY, sum = 0.0;
    for (uint32_t i = 0; i < n; i++)
        most = fmax(most, x[i]);
    for (uint32_t i = 0; i < n; i++)
        sum += exp(x[i] - most);
    for (uint32_t i = 0; i < n; i++)
        x[i] -= most + log(sum);
}

double plain_divergence(const kvb_model *model, const double *teacher, const double *student, uint32_t n)
{
    const uint32_t width = model->config.embedding, vocab = model->config.vocab;
    double *p = doubles(vocab), *q = doubles(vocab), sum = 0.0;
    for (uint32_t t = 0; t < n; t++) {
        product(&model->head, teacher + (size_t)t * width, p);
        product(&model->head, student + (size_t)t * width, q);
        log_softmax(p, vocab);
        log_softmax(q, vocab);
        for (uint32_t i = 0; i < vocab; i++)
            sum += exp(p[i]) * (p[i] - q[i]);
    }
    free(p);
    free(q);
    return sum / n;
}

/* ---- attention for the passes in float */

/* x + shift, or x where shift is NULL, in double. */
static double *shifted(const float *x, const double *shift, size_t n)
{
    double *y = doubles(n);
    for (size_t i = 0; i < n; i++)
        y[i] = (double)x[i] + (shift != NULL ? shift[i] : 0.0);
    return y;
}

kvb_status plain_attend(void *user, const kvb_attention_call *call, float *out, kvb_error *err)
{
    (void)err;
    const plain_llama *p = user;
    const kvb_layer *g = call->geometry;
    const size_t at = call->layer * p->layer_floats, size = (size_t)g->heads * call->tokens * g->head_dim;
    double *q = shifted(call->q, NULL, size), *k = shifted(call->k, p->shift_k + at, p->layer_floats);
    double *v = shifted(call->v, p->shift_v + at, p->layer_floats), *exact = doubles(size);
    attention(g, call->tokens, q, k, v, exact);
    for (size_t i = 0; i < size; i++)
        out[i] = (float)exact[i];
    free(q);
    free(k);
    free(v);
    free(exact);
    return KVB_OK;
}

/* dV = P^T dO, dS = P * (dO V^T - rowsum(dO * O)), dQ = scale dS K, dK = scale dS^T Q; one query at a time. */
static void query_backward(const kvb_layer *g, uint32_t i, const double *q, const double *k, const double *v,
                           const float *out, const float *d_out, double *p, double *d_q, double *d_k, double *d_v)
{
    const uint32_t dim = g->head_dim;
    double mean = 0.0;
    for (uint32_t c = 0; c < dim; c++)
        mean += (double)d_out[c] * (double)out[c];
    probabilities(g, q, k, i, p);
    for (uint32_t j = 0; j <= i; j++) {
        double d_p = 0.0;
        for (uint32_t c = 0; c < dim; c++)
            d_p += (double)d_out[c] * v[(size_t)j * dim + c];
        const double d_s = g->attention_scale * p[j] * (d_p - mean);
        for (uint32_t c = 0; c < dim; c++) {
            d_v[(size_t)j * dim + c] += p[j] * (double)d_out[c];
            d_q[c] += d_s * k[(size_t)j * dim + c];
            d_k[(size_t)j * dim + c] += d_s * q[c];
        }
    }
}

static void narrow(double *x, size_t n, float *y)
{
    for (size_t i = 0; i < n; i++)
        y[i] = (float)x[i];
    free(x);
}

kvb_status plain_attend_backward(void *user, const kvb_attention_call *call, const kvb_attention_gradient *gradient,
                                 kvb_error *err)
{
    (void)err;
    const plain_llama *p = user;
    const kvb_layer *g = call->geometry;
    const size_t dim = g->head_dim, head = call->tokens * dim, size = g->heads * head, at = call->layer * p->layer_floats;
    double *q = shifted(call->q, NULL, size), *k = shifted(call->k, p->shift_k + at, p->layer_floats);
    double *v = shifted(call->v, p->shift_v + at, p->layer_floats), *row = doubles(call->tokens);
    double *d_q = doubles(size), *d_k = doubles(p->layer_floats), *d_v = doubles(p->layer_floats);
    for (size_t h = 0; h < g->heads; h++)
        for (uint32_t i = 0; i < call->tokens; i++) {
            const size_t kv = h / (g->heads / g->kv_heads) * head, mine = h * head + i * dim;
            query_backward(g, i, q + mine, k + kv, v + kv, gradient->out + mine, gradient->d_out + mine, row, d_q + mine,
                           d_k + kv, d_v + kv);
        }
    narrow(d_q, size, gradient->d_q);
    narrow(d_k, p->layer_floats, gradient->d_k);
    narrow(d_v, p->layer_floats, gradient->d_v);
    free(q);
    free(k);
    free(v);
    free(row);
    return KVB_OK;
}
