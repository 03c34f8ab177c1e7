/* How long one layer's step of tuning takes on random rows: attention over coded keys and values, and its gradient.
 *
 *   build/bench/tune_bench [tokens heads kv_heads head_dim rounds]
 *
 * Prints seconds of wall clock and of processor time (which other work on the machine disturbs less), and GFLOP/s of the
 * matrix products by processor time: forward 2, backward 4 products of T*T/2*D a head. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "calib/attention_grad.h"
#include "format/base/checked.h"
#include "format/base/rng.h"

static double seconds(clockid_t clock)
{
    struct timespec at;
    clock_gettime(clock, &at);
    return (double)at.tv_sec + 1e-9 * (double)at.tv_nsec;
}

static float *random_rows(size_t n, uint64_t key)
{
    float *x = kvb_alloc_array(n, sizeof *x);
    for (size_t i = 0; x != NULL && i < n; i++)
        x[i] = (float)(kvb_rng_unit(key, i) * 2.0 - 1.0);
    return x;
}

static void report(const char *what, double wall, double cpu, double products, const kvb_grad_layer *l)
{
    const double flops = products * l->heads * (double)l->tokens * l->tokens * l->head_dim;
    printf("%-9s %.4f s, processor %.4f s, %.1f GFLOP/s a core\n", what, wall, cpu, flops / cpu * 1e-9);
}

int main(int argc, char **argv)
{
    const uint32_t given[] = {2048, 9, 3, 64, 5};
    uint32_t n[5];
    for (int i = 0; i < 5; i++)
        n[i] = argc > i + 1 ? (uint32_t)atoi(argv[i + 1]) : given[i];
    const size_t values = (size_t)n[0] * n[2] * n[3], outputs = (size_t)n[0] * n[1] * n[3];
    kvb_grad_layer l = {.heads = n[1], .kv_heads = n[2], .head_dim = n[3], .tokens = n[0], .scale = 1.0 / sqrt(n[3]),
                        .q = random_rows(outputs, 1), .exact_k = random_rows(values, 2), .exact_v = random_rows(values, 3),
                        .coded_k = random_rows(values, 4), .coded_v = random_rows(values, 5)};
    uint32_t *until = kvb_alloc_array((size_t)n[0] * n[2], sizeof *until);
    float *out = random_rows(outputs, 6), *d_out = random_rows(outputs, 7), *lse = random_rows((size_t)n[0] * n[1], 8);
    float *d_k = random_rows(values, 9), *d_v = random_rows(values, 10);
    kvb_attn_grad *grad = NULL;
    if (until == NULL || out == NULL || d_out == NULL || lse == NULL || d_k == NULL || d_v == NULL ||
        kvb_attn_grad_create(n[1], n[2], n[3], n[0], 0, &grad, NULL) != KVB_OK)
        return 1;
    for (size_t i = 0; i < (size_t)n[0] * n[2]; i++)
        until[i] = (uint32_t)(i % n[0]) + 32;
    l.until = until;
    for (uint32_t round = 0; round < n[4]; round++) {
        double wall = seconds(CLOCK_MONOTONIC), cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);
        kvb_attn_grad_forward(grad, &l, out, lse);
        report("forward", seconds(CLOCK_MONOTONIC) - wall, seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu, 2, &l);
        wall = seconds(CLOCK_MONOTONIC), cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);
        kvb_attn_grad_backward(grad, &l, out, lse, d_out, d_k, d_v);
        report("backward", seconds(CLOCK_MONOTONIC) - wall, seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu, 4, &l);
    }
    return 0;
}
