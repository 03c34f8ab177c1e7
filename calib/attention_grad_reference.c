#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "calib/attention_grad.h"
#include "format/base/checked.h"
#include "format/base/fail.h"

static bool sees(const kvb_grad_layer *l, uint32_t query, uint32_t key)
{
    return key <= query && (l->sliding_window == 0 || query - key < l->sliding_window);
}

/* Row of key or value j of KV head g as query i reads it. */
static const float *row_read(const kvb_grad_layer *l, uint32_t g, uint32_t i, uint32_t j, const float *exact,
                             const float *coded)
{
    size_t row = (size_t)g * l->tokens + j;
    return (i < l->until[row] ? exact : coded) + row * l->head_dim;
}

/* Row i of P of query head h over keys 0..T-1; returns the log-sum-exp of its scores. */
static double probabilities(const kvb_grad_layer *l, uint32_t h, uint32_t i, double *p)
{
    const uint32_t g = h / (l->heads / l->kv_heads);
    const float *q = l->q + ((size_t)h * l->tokens + i) * l->head_dim;
    double most = -INFINITY, sum = 0.0;
    for (uint32_t j = 0; j < l->tokens; j++) {
        const float *k = row_read(l, g, i, j, l->exact_k, l->coded_k);
        double score = 0.0;
        for (uint32_t c = 0; c < l->head_dim; c++)
            score += (double)q[c] * (double)k[c];
        p[j] = sees(l, i, j) ? score * l->scale : -INFINITY;
        most = p[j] > most ? p[j] : most;
    }
    for (uint32_t j = 0; j < l->tokens; j++)
        sum += exp(p[j] - most);
    for (uint32_t j = 0; j < l->tokens; j++)
        p[j] = exp(p[j] - most) / sum;
    return most + log(sum);
}

static void output_row(const kvb_grad_layer *l, uint32_t h, uint32_t i, const double *p, double *out)
{
    const uint32_t g = h / (l->heads / l->kv_heads);
    for (uint32_t c = 0; c < l->head_dim; c++) {
        out[c] = 0.0;
        for (uint32_t j = 0; j <= i; j++)
            out[c] += p[j] * (double)row_read(l, g, i, j, l->exact_v, l->coded_v)[c];
    }
}

kvb_status kvb_attn_grad_forward_reference(const kvb_grad_layer *l, double *out, double *lse, kvb_error *err)
{
    double *p = kvb_alloc_array(l->tokens, sizeof *p);
    if (p == NULL)
        return kvb_fail_memory(err, "attention reference");
    for (uint32_t h = 0; h < l->heads; h++)
        for (uint32_t i = 0; i < l->tokens; i++) {
            size_t row = (size_t)h * l->tokens + i;
            double sum = probabilities(l, h, i, p);
            output_row(l, h, i, p, out + row * l->head_dim);
            if (lse != NULL)
                lse[row] = sum;
        }
    free(p);
    return KVB_OK;
}

static double dot(const double *a, const float *b, uint32_t n)
{
    double sum = 0.0;
    for (uint32_t c = 0; c < n; c++)
        sum += a[c] * (double)b[c];
    return sum;
}

/* What query i of head h adds to the gradients of its KV head. */
static void add_query(const kvb_grad_layer *l, uint32_t h, uint32_t i, const double *p, const double *out,
                      const double *d_out, double *d_k, double *d_v)
{
    const uint32_t g = h / (l->heads / l->kv_heads), dim = l->head_dim;
    const float *q = l->q + ((size_t)h * l->tokens + i) * dim;
    double delta = 0.0;
    for (uint32_t c = 0; c < dim; c++)
        delta += d_out[c] * out[c];
    for (uint32_t j = 0; j <= i; j++) {
        size_t row = (size_t)g * l->tokens + j;
        if (i < l->until[row])
            continue;
        double d_score = p[j] * (dot(d_out, l->coded_v + row * dim, dim) - delta);
        for (uint32_t c = 0; c < dim; c++) {
            d_v[row * dim + c] += p[j] * d_out[c];
            d_k[row * dim + c] += l->scale * d_score * (double)q[c];
        }
    }
}

kvb_status kvb_attn_grad_backward_reference(const kvb_grad_layer *l, const double *d_out, double *d_k, double *d_v,
                                            kvb_error *err)
{
    const size_t values = (size_t)l->kv_heads * l->tokens * l->head_dim;
    double *p = kvb_alloc_array(l->tokens, sizeof *p), *out = kvb_alloc_array(l->head_dim, sizeof *out);
    kvb_status status = p != NULL && out != NULL ? KVB_OK : kvb_fail_memory(err, "attention reference");
    if (status == KVB_OK) {
        memset(d_k, 0, values * sizeof *d_k);
        memset(d_v, 0, values * sizeof *d_v);
    }
    for (uint32_t h = 0; status == KVB_OK && h < l->heads; h++)
        for (uint32_t i = 0; i < l->tokens; i++) {
            probabilities(l, h, i, p);
            output_row(l, h, i, p, out);
            add_query(l, h, i, p, out, d_out + ((size_t)h * l->tokens + i) * l->head_dim, d_k, d_v);
        }
    free(p);
    free(out);
    return status;
}

/* Where the gradient of row j goes as query i reads it. */
static void add_query_everywhere(const kvb_grad_layer *l, uint32_t h, uint32_t i, const double *p, const double *out,
                                 const double *d_out, const kvb_grad_all_reference *d)
{
    const uint32_t g = h / (l->heads / l->kv_heads), dim = l->head_dim;
    const size_t mine = ((size_t)h * l->tokens + i) * dim;
    double delta = 0.0;
    for (uint32_t c = 0; c < dim; c++)
        delta += d_out[c] * out[c];
    for (uint32_t j = 0; j <= i; j++) {
        const size_t row = (size_t)g * l->tokens + j;
        const bool exact = i < l->until[row];
        const float *k = row_read(l, g, i, j, l->exact_k, l->coded_k);
        double *d_k = (exact ? d->exact_k : d->coded_k) + row * dim, *d_v = (exact ? d->exact_v : d->coded_v) + row * dim;
        const double d_score = p[j] * (dot(d_out, row_read(l, g, i, j, l->exact_v, l->coded_v), dim) - delta);
        for (uint32_t c = 0; c < dim; c++) {
            d_v[c] += p[j] * d_out[c];
            d_k[c] += l->scale * d_score * (double)l->q[mine + c];
            d->q[mine + c] += l->scale * d_score * (double)k[c];
        }
    }
}

kvb_status kvb_attn_grad_all_reference(const kvb_grad_layer *l, const double *d_out, const kvb_grad_all_reference *d,
                                       kvb_error *err)
{
    const size_t values = (size_t)l->kv_heads * l->tokens * l->head_dim, outputs = (size_t)l->heads * l->tokens * l->head_dim;
    double *p = kvb_alloc_array(l->tokens, sizeof *p), *out = kvb_alloc_array(l->head_dim, sizeof *out);
    double *rows[] = {d->exact_k, d->exact_v, d->coded_k, d->coded_v};
    kvb_status status = p != NULL && out != NULL ? KVB_OK : kvb_fail_memory(err, "attention reference");
    for (size_t k = 0; status == KVB_OK && k < sizeof rows / sizeof *rows; k++)
        memset(rows[k], 0, values * sizeof **rows);
    if (status == KVB_OK)
        memset(d->q, 0, outputs * sizeof *d->q);
    for (uint32_t h = 0; status == KVB_OK && h < l->heads; h++)
        for (uint32_t i = 0; i < l->tokens; i++) {
            probabilities(l, h, i, p);
            output_row(l, h, i, p, out);
            add_query_everywhere(l, h, i, p, out, d_out + ((size_t)h * l->tokens + i) * l->head_dim, d);
        }
    free(p);
    free(out);
    return status;
}
