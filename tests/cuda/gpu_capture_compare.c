/* gpu_capture_compare CPU.kvc GPU.kvc: two captures of the same text, on a CPU and on a GPU, whose operands are rounded to TF32.
 * Prints one line a check and ends with "N passed, N failed". */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "calib/capture.h"
#include "format/base/half.h"

static int passed, failed;

/* ||b - a|| / ||a|| over everything of one kind. */
typedef struct apart {
    double difference, size;
} apart;

static void add(apart *sum, double a, double b)
{
    sum->difference += (b - a) * (b - a);
    sum->size += a * a;
}

static void add_floats(apart *sum, const float *a, const float *b, size_t n)
{
    for (size_t i = 0; i < n; i++)
        add(sum, (double)a[i], (double)b[i]);
}

static void add_halves(apart *sum, const uint16_t *a, const uint16_t *b, size_t n)
{
    float x, y;
    for (size_t i = 0; i < n; i++) {
        kvb_half_to_floats(&x, a + i, 1);
        kvb_half_to_floats(&y, b + i, 1);
        add(sum, (double)x, (double)y);
    }
}

static void check(const char *name, apart sum, double most)
{
    const double off = sqrt(sum.difference / sum.size);
    const int good = off <= most; /* false for a NaN */
    printf("%s %s: relative difference %.2e, at most %.0e\n", good ? "ok  " : "FAIL", name, off, most);
    *(good ? &passed : &failed) += 1;
}

int main(int argc, char **argv)
{
    kvb_capture_store *store[2];
    kvb_error err = {0};
    if (argc != 3)
        return 2;
    for (int i = 0; i < 2; i++)
        if (kvb_capture_open(argv[1 + i], &store[i], &err) != KVB_OK) {
            printf("FAIL %s: %s\n", err.where, err.message);
            return 1;
        }
    const kvb_capture *a = kvb_capture_view(store[0]), *b = kvb_capture_view(store[1]);
    int same = a->layers == b->layers && a->rows == b->rows;
    same = same && memcmp(a->row_chunk, b->row_chunk, a->rows * sizeof *a->row_chunk) == 0 &&
           memcmp(a->row_position, b->row_position, a->rows * sizeof *a->row_position) == 0;
    printf("%s the same rows\n", same ? "ok  " : "FAIL");
    *(same ? &passed : &failed) += 1;
    apart keys = {0}, values = {0}, weight_k = {0}, weight_v = {0}, relative = {0}, post = {0};
    for (uint32_t l = 0; same && l < a->layers; l++) {
        const kvb_layer *g = &a->geometry[l];
        const size_t rows = g->kv_heads * (size_t)a->rows, square = (size_t)g->kv_heads * g->head_dim * g->head_dim;
        if (a->layer[l].keys == NULL)
            continue;
        add_halves(&keys, a->layer[l].keys, b->layer[l].keys, rows * g->head_dim);
        add_halves(&values, a->layer[l].values, b->layer[l].values, rows * g->head_dim);
        add_floats(&weight_k, a->layer[l].weight_k, b->layer[l].weight_k, rows);
        add_floats(&weight_v, a->layer[l].weight_v, b->layer[l].weight_v, rows);
        add_floats(&relative, a->layer[l].moment_relative, b->layer[l].moment_relative, square);
        add_floats(&post, a->layer[l].moment_post, b->layer[l].moment_post, square);
    }
    if (same) {
        check("keys", keys, 3e-3);
        check("values", values, 3e-3);
        check("weights of keys", weight_k, 5e-3);
        check("weights of values", weight_v, 5e-3);
        check("moments of queries turned back", relative, 3e-3);
        check("moments of queries", post, 3e-3);
    }
    kvb_capture_close(store[0]);
    kvb_capture_close(store[1]);
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
