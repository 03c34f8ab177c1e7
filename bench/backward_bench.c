/* What one step of end-to-end tuning costs without its attention over codes, one JSON line a round, in processor seconds a
 * chunk over the number of threads (on a quiet machine, that is how long it takes; on a busy one, it still is the cost):
 *   forward   the exact forward pass to the final hidden states        student   the same with a tape
 *   loss      KL of the two and its gradient over all positions        backward  all layers, attention's own step left out
 *   lean      backward where every product is made again
 * and, of the products alone in each, loss_gemm and backward_gemm. Usage: backward_bench MODEL TEXT TOKENS ROUNDS */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "format/base/checked.h"
#include "model/backward.h"
#include "model/divergence.h"
#include "model/linear.h"
#include "model/text.h"
#include "model/weights.h"

typedef struct bench {
    const kvb_model *model;
    const uint32_t *ids;
    uint32_t tokens;
    kvb_forward *forward;
    kvb_backward *backward, *lean;
    kvb_divergence *divergence;
    float *teacher, *d_hidden;
    float *x, *y;
} bench;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return ((double)t.tv_sec + 1e-9 * (double)t.tv_nsec) / omp_get_max_threads();
}

static kvb_status no_attention(void *user, const kvb_attention_call *call, const kvb_attention_gradient *g,
                               kvb_error *err)
{
    (void)user, (void)err;
    const size_t head = (size_t)call->tokens * call->geometry->head_dim;
    memset(g->d_q, 0, call->geometry->heads * head * sizeof *g->d_q);
    memset(g->d_k, 0, call->geometry->kv_heads * head * sizeof *g->d_k);
    memset(g->d_v, 0, call->geometry->kv_heads * head * sizeof *g->d_v);
    return KVB_OK;
}

static void back(bench *b, const kvb_weight *w, uint32_t tokens)
{
    kvb_linear_backward(b->y, w->rows, w->resident, tokens, w->rows, w->cols, false, b->x, w->cols);
}

static double time_backward_products(bench *b)
{
    double start = now();
    for (uint32_t l = 0; l < b->model->config.layers; l++) {
        const kvb_layer_weights *w = &b->model->layer[l];
        back(b, &w->down, b->tokens);
        back(b, &w->gate_up, b->tokens);
        back(b, &w->out, b->tokens);
        back(b, &w->qkv, b->tokens);
    }
    return now() - start;
}

static double time_loss_products(bench *b)
{
    const kvb_weight *w = &b->model->head;
    double start = now();
    for (uint32_t first = 0; first < b->tokens; first += 256) {
        const uint32_t count = b->tokens - first < 256 ? b->tokens - first : 256;
        for (int twice = 0; twice < 2; twice++)
            kvb_linear(b->x, w->cols, w->resident, count, w->rows, w->cols, false, b->y, w->rows);
        back(b, w, count);
    }
    return now() - start;
}

static kvb_status pass(bench *b, kvb_backward *backward, double *student, double *loss, double *back_seconds,
                       kvb_error *err)
{
    const float *hidden;
    double start = now();
    kvb_status status = kvb_backward_forward(backward, b->ids, b->tokens, NULL, &hidden, err);
    double forwarded = now();
    if (status != KVB_OK)
        return status;
    double value = kvb_divergence_run(b->divergence, b->teacher, hidden, b->tokens, b->d_hidden);
    double lost = now();
    status = kvb_backward_run(backward, b->d_hidden, no_attention, NULL, NULL, err);
    *student = forwarded - start;
    *loss = lost - forwarded;
    *back_seconds = now() - lost;
    return status == KVB_OK && !(value > 1e-3) ? KVB_E_CHECK : status;
}

static kvb_status bench_round(bench *b, kvb_error *err)
{
    const float *hidden;
    double student, loss, backward, lean, start = now();
    kvb_status status = kvb_forward_run(b->forward, b->ids, b->tokens, 0, NULL, &hidden, err);
    double forward = now() - start;
    if (status != KVB_OK)
        return status;
    for (size_t i = 0; i < (size_t)b->tokens * b->model->config.embedding; i++)
        b->teacher[i] = 0.9f * hidden[i]; /* a gradient of zeros would be no work like the real one */
    status = pass(b, b->lean, &student, &loss, &lean, err);
    if (status == KVB_OK)
        status = pass(b, b->backward, &student, &loss, &backward, err);
    if (status == KVB_OK)
        printf("{\"tokens\":%u,\"forward\":%.3f,\"student\":%.3f,\"loss\":%.3f,\"loss_gemm\":%.3f,\"backward\":%.3f,"
               "\"backward_gemm\":%.3f,\"lean\":%.3f}\n", b->tokens, forward, student, loss, time_loss_products(b),
               backward, time_backward_products(b), lean);
    fflush(stdout);
    return status;
}

static kvb_status bench_run(const kvb_model *m, const kvb_text *text, uint32_t tokens, int rounds, kvb_error *err)
{
    bench b = {.model = m, .ids = text->ids, .tokens = tokens};
    const size_t wide = (size_t)tokens * 3 * m->config.ffn, logits = (size_t)256 * m->config.vocab;
    const size_t rows = (size_t)tokens * m->config.embedding;
    b.teacher = kvb_alloc_array(rows, sizeof(float));
    b.d_hidden = kvb_alloc_array(rows, sizeof(float));
    b.x = kvb_alloc_zeroed(wide, sizeof(float));
    b.y = kvb_alloc_zeroed(wide > logits ? wide : logits, sizeof(float));
    kvb_status status = b.teacher && b.d_hidden && b.x && b.y ? KVB_OK : KVB_E_MEMORY;
    if (status == KVB_OK) status = kvb_forward_create(m, tokens, &b.forward, err);
    if (status == KVB_OK) status = kvb_backward_create(m, tokens, 0, &b.backward, err);
    if (status == KVB_OK) status = kvb_backward_create(m, tokens, 1, &b.lean, err);
    if (status == KVB_OK) status = kvb_divergence_create(m, &b.divergence, err);
    for (int r = 0; r < rounds && status == KVB_OK; r++)
        status = bench_round(&b, err);
    kvb_forward_destroy(b.forward);
    kvb_backward_destroy(b.backward);
    kvb_backward_destroy(b.lean);
    kvb_divergence_destroy(b.divergence);
    free(b.teacher);
    free(b.d_hidden);
    free(b.x);
    free(b.y);
    return status;
}

int main(int argc, char **argv)
{
    kvb_model *m = NULL;
    kvb_text text = {0};
    kvb_error err = {0};
    if (argc != 5) {
        fprintf(stderr, "usage: backward_bench MODEL TEXT TOKENS ROUNDS\n");
        return KVB_E_USAGE;
    }
    const char *const paths[] = {argv[2]};
    kvb_status status = kvb_model_open(argv[1], NULL, &m, &err);
    if (status == KVB_OK)
        status = kvb_text_load(kvb_model_tokenizer(m), paths, 1, &text, &err);
    if (status == KVB_OK)
        status = bench_run(m, &text, (uint32_t)atoi(argv[3]), atoi(argv[4]), &err);
    if (status != KVB_OK)
        fprintf(stderr, "backward_bench: %s: %s\n", err.where, err.message);
    kvb_text_free(&text);
    kvb_model_close(m);
    return (int)status;
}
