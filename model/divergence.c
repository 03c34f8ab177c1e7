#include "model/divergence.h"

#include <math.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/kernels.h"
#include "format/base/rng.h"
#include "model/linear.h"
#include "model/weights.h"

/* BLOCK positions share one product with the output matrix; sums of STRIP entries are float, sums of those double. */
enum { BLOCK = 256, STRIP = 1024 };

struct kvb_divergence {
    const kvb_model *model;
    const kvb_kernels *kernels;
    float *teacher, *student; /* [BLOCK][vocab] logits, then exponentials, then the student's gradient */
    float *weights;           /* an output matrix that is not resident */
    double kl[BLOCK];
};

kvb_status kvb_divergence_create(const kvb_model *model, kvb_divergence **out, kvb_error *err)
{
    kvb_divergence *d = kvb_alloc_zeroed(1, sizeof *d);
    const uint64_t logits = (uint64_t)BLOCK * model->config.vocab;
    const bool resident = model->head.resident != NULL;
    *out = NULL;
    if (d == NULL)
        return kvb_fail_memory(err, "distillation loss");
    d->model = model;
    d->kernels = kvb_kernels_best();
    d->teacher = kvb_alloc_array(logits, sizeof *d->teacher);
    d->student = kvb_alloc_array(logits, sizeof *d->student);
    d->weights = resident ? NULL : kvb_alloc_array(model->head.rows * model->head.cols, sizeof *d->weights);
    if (d->teacher == NULL || d->student == NULL || (d->weights == NULL && !resident)) {
        kvb_divergence_destroy(d);
        return kvb_fail_memory(err, "logits of the distillation loss");
    }
    *out = d;
    return KVB_OK;
}

void kvb_divergence_destroy(kvb_divergence *d)
{
    if (d == NULL)
        return;
    free(d->teacher);
    free(d->student);
    free(d->weights);
    free(d);
}

/* KL of one row of logits [n]: sum p (t - s) - log Zt + log Zs. Where `weight` is not 0, s becomes the gradient times it;
 * subtracting before scaling makes equal rows give 0 exactly. */
static double row_divergence(const kvb_kernels *k, float *t, float *s, uint32_t n, double weight)
{
    const float most_t = k->max(t, n), most_s = k->max(s, n);
    double sum_t = 0.0, sum_s = 0.0, cross = 0.0;
    float difference[STRIP];
    for (uint32_t i = 0; i < n; i += STRIP) {
        const uint32_t count = n - i < STRIP ? n - i : STRIP;
        memcpy(difference, t + i, count * sizeof *t);
        k->axpy(difference, s + i, count, -1.0f);
        sum_t += (double)k->exp_sum(t + i, count, most_t);
        sum_s += (double)k->exp_sum(s + i, count, most_s);
        cross += (double)k->dot(t + i, difference, count);
    }
    if (weight > 0.0) {
        k->axpy(s, t, n, (float)(-sum_s / sum_t));
        k->scale(s, n, (float)(weight / sum_s));
    }
    return cross / sum_t - ((double)most_t - (double)most_s) - (log(sum_t) - log(sum_s));
}

/* The sum of KL over n <= BLOCK positions. */
static double block_divergence(kvb_divergence *d, const float *head, const float *teacher, const float *student,
                               uint32_t n, double weight)
{
    const uint32_t width = d->model->config.embedding, vocab = d->model->config.vocab;
    double sum = 0.0;
    kvb_linear(teacher, width, head, n, vocab, width, false, d->teacher, vocab);
    kvb_linear(student, width, head, n, vocab, width, false, d->student, vocab);
#pragma omp parallel for schedule(static)
    for (uint32_t i = 0; i < n; i++)
        d->kl[i] = row_divergence(d->kernels, d->teacher + (size_t)i * vocab, d->student + (size_t)i * vocab, vocab,
                                  weight);
    for (uint32_t i = 0; i < n; i++)
        sum += d->kl[i];
    return sum;
}

double kvb_divergence_run(kvb_divergence *d, const float *teacher, const float *student, uint32_t n, float *d_student)
{
    const uint32_t width = d->model->config.embedding, vocab = d->model->config.vocab;
    const float *head = kvb_weight_floats(&d->model->head, d->weights);
    double sum = 0.0;
    for (uint32_t first = 0; first < n; first += BLOCK) {
        const uint32_t count = n - first < BLOCK ? n - first : BLOCK;
        const size_t at = (size_t)first * width;
        sum += block_divergence(d, head, teacher + at, student + at, count, d_student != NULL ? 1.0 / n : 0.0);
        if (d_student != NULL)
            kvb_linear_backward(d->student, vocab, head, count, vocab, width, false, d_student + at, width);
    }
    return sum / n;
}

/* Logits s [n] to exponentials; their sum. */
static double exponentials(const kvb_kernels *k, float *s, uint32_t n)
{
    const float most = k->max(s, n);
    double sum = 0.0;
    for (uint32_t i = 0; i < n; i += STRIP)
        sum += (double)k->exp_sum(s + i, n - i < STRIP ? n - i : STRIP, most);
    return sum;
}

/* Exponentials to e_y - softmax. */
static void finish_row(const kvb_kernels *k, float *s, uint32_t n, double sum, uint32_t y)
{
    k->scale(s, n, (float)(-1.0 / sum));
    s[y] += 1.0f;
}

/* y is the entry at which the sum of probabilities passes `unit`. */
static void sample_row(const kvb_kernels *k, float *s, uint32_t n, double unit)
{
    const double sum = exponentials(k, s, n);
    double passed = 0.0;
    uint32_t y = 0;
    for (; y + 1 < n && passed + (double)s[y] <= unit * sum; y++)
        passed += (double)s[y];
    finish_row(k, s, n, sum, y);
}

/* Whose log-probability is differentiated: drawn by a key, or the next token. */
typedef struct target {
    const uint32_t *tokens; /* NULL: drawn */
    uint64_t key;
    uint32_t n;
} target;

static void target_row(const kvb_divergence *d, const target *t, uint32_t position, float *s)
{
    const uint32_t vocab = d->model->config.vocab;
    if (t->tokens == NULL)
        sample_row(d->kernels, s, vocab, kvb_rng_unit(t->key, position));
    else if (position + 1 < t->n)
        finish_row(d->kernels, s, vocab, exponentials(d->kernels, s, vocab), t->tokens[position + 1]);
    else
        memset(s, 0, vocab * sizeof *s);
}

static void run_targets(kvb_divergence *d, const target *t, const float *hidden, float *d_hidden)
{
    const uint32_t width = d->model->config.embedding, vocab = d->model->config.vocab;
    const float *head = kvb_weight_floats(&d->model->head, d->weights);
    for (uint32_t first = 0; first < t->n; first += BLOCK) {
        const uint32_t count = t->n - first < BLOCK ? t->n - first : BLOCK;
        const size_t at = (size_t)first * width;
        kvb_linear(hidden + at, width, head, count, vocab, width, false, d->student, vocab);
#pragma omp parallel for schedule(static)
        for (uint32_t i = 0; i < count; i++)
            target_row(d, t, first + i, d->student + (size_t)i * vocab);
        kvb_linear_backward(d->student, vocab, head, count, vocab, width, false, d_hidden + at, width);
    }
}

void kvb_divergence_sample(kvb_divergence *d, const float *hidden, uint32_t n, uint64_t key, float *d_hidden)
{
    run_targets(d, &(target){.key = key, .n = n}, hidden, d_hidden);
}

void kvb_divergence_next(kvb_divergence *d, const float *hidden, const uint32_t *tokens, uint32_t n, float *d_hidden)
{
    run_targets(d, &(target){.tokens = tokens, .n = n}, hidden, d_hidden);
}
