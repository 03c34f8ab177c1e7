/* How fast a model runs over one chunk of text, one JSON line a round:
 *   sgemm    the model's matrix products alone, each one call of OpenBLAS with its own threads: the limit
 *   forward  the forward pass without logits       eval  with logits and likelihoods, what `kvbook eval` scores
 *   capture  `kvbook capture` with all its statistics, into memory
 * in tokens per second. Usage: prefill_bench MODEL TEXT TOKENS ROUNDS */
#include <cblas.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

#include "calib/capture.h"
#include "format/base/checked.h"
#include "model/weights.h"
#include "tools/evaluate.h"

void openblas_set_num_threads(int threads);

static void product(const kvb_weight *w, uint32_t tokens, const float *x, float *y)
{
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (blasint)tokens, (blasint)w->rows, (blasint)w->cols, 1.0f, x,
                (blasint)w->cols, w->resident, (blasint)w->cols, 0.0f, y, (blasint)w->rows);
}

/* Logits go block by block as in the evaluation: all of them at once would not fit the cache. */
static double time_products(const kvb_model *m, uint32_t tokens, const float *x, float *y)
{
    double start = omp_get_wtime();
    openblas_set_num_threads(omp_get_max_threads());
    for (uint32_t l = 0; l < m->config.layers; l++) {
        product(&m->layer[l].qkv, tokens, x, y);
        product(&m->layer[l].out, tokens, x, y);
        product(&m->layer[l].gate_up, tokens, x, y);
        product(&m->layer[l].down, tokens, x, y);
    }
    for (uint32_t t = 0; t < tokens; t += 128)
        product(&m->head, tokens - t < 128 ? tokens - t : 128, x, y);
    openblas_set_num_threads(1);
    return omp_get_wtime() - start;
}

static double time_forward(kvb_forward *f, const uint32_t *ids, uint32_t tokens, kvb_error *err)
{
    const float *hidden;
    double start = omp_get_wtime();
    kvb_status status = kvb_forward_run(f, ids, tokens, 0, NULL, &hidden, err);
    return status == KVB_OK ? omp_get_wtime() - start : -1.0;
}

static double time_eval(kvb_model *m, const kvb_text *text, uint32_t tokens, kvb_error *err)
{
    kvb_input input = {.model = m, .text = *text, .ctx = tokens, .chunks = 1, .bos = -1};
    kvb_progress silent;
    kvb_eval_result result;
    kvb_progress_init(&silent, true, false, true);
    double start = omp_get_wtime();
    kvb_status status = kvb_evaluate(&input, NULL, 0, &(kvb_eval_options){.exact = true}, &silent, &result, err);
    return status == KVB_OK ? omp_get_wtime() - start : -1.0;
}

static double time_capture(const kvb_model *m, const kvb_text *text, uint32_t tokens, kvb_error *err)
{
    kvb_capture_options o = {.ctx = tokens, .chunks = 1, .bos = -1, .seed = 1, .stop_on_nan = true};
    kvb_capture_store *store;
    double start = omp_get_wtime();
    kvb_status status = kvb_capture_run(m, text, &o, &store, err);
    if (status != KVB_OK)
        return -1.0;
    double seconds = omp_get_wtime() - start;
    kvb_capture_close(store);
    return seconds;
}

static kvb_status bench(kvb_model *m, const kvb_text *text, uint32_t tokens, int rounds, kvb_error *err)
{
    size_t in = (size_t)tokens * 3 * m->config.ffn, block = (size_t)128 * m->config.vocab, out = in > block ? in : block;
    float *x = kvb_alloc_zeroed(in, sizeof *x), *y = kvb_alloc_array(out, sizeof *y);
    kvb_forward *f = NULL;
    kvb_status status = x && y ? kvb_forward_create(m, tokens, &f, err) : KVB_E_MEMORY;
    for (size_t i = 0; status == KVB_OK && i < in; i++)
        x[i] = (float)(i % 251) * 0.01f - 1.25f;
    for (int r = 0; r < rounds && status == KVB_OK; r++) {
        double sgemm = time_products(m, tokens, x, y), forward = time_forward(f, text->ids, tokens, err);
        double eval = time_eval(m, text, tokens, err), capture = time_capture(m, text, tokens, err);
        if (forward < 0.0 || eval < 0.0 || capture < 0.0)
            status = KVB_E_CHECK;
        printf("{\"tokens\":%u,\"sgemm\":%.1f,\"forward\":%.1f,\"eval\":%.1f,\"capture\":%.1f}\n", tokens,
               tokens / sgemm, tokens / forward, tokens / eval, tokens / capture);
        fflush(stdout);
    }
    kvb_forward_destroy(f);
    free(x);
    free(y);
    return status;
}

int main(int argc, char **argv)
{
    kvb_model *m = NULL;
    kvb_text text = {0};
    kvb_error err = {0};
    if (argc != 5) {
        fprintf(stderr, "usage: prefill_bench MODEL TEXT TOKENS ROUNDS\n");
        return KVB_E_USAGE;
    }
    const char *const paths[] = {argv[2]};
    kvb_status status = kvb_model_open(argv[1], NULL, &m, &err);
    if (status == KVB_OK)
        status = kvb_text_load(kvb_model_tokenizer(m), paths, 1, &text, &err);
    if (status == KVB_OK)
        status = bench(m, &text, (uint32_t)atoi(argv[3]), atoi(argv[4]), &err);
    if (status != KVB_OK)
        fprintf(stderr, "prefill_bench: %s: %s\n", err.where, err.message);
    kvb_text_free(&text);
    kvb_model_close(m);
    return (int)status;
}
