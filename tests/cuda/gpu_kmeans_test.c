/* k-means on a GPU against the CPU's: errors within 0.1 %, the same bytes twice, odd sizes, hold-outs, degenerate points, and
 * refusals. Needs a device. Prints one line a check and ends with "N passed, N failed"; `few` runs few of them, --bench times a
 * layer's worth. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "format/base/half.h"
#include "format/base/rng.h"
#include "kvbook/kmeans.h"

static int passed, failed;

static void check(int ok, const char *name, const char *detail)
{
    printf("%s %s: %s\n", ok ? "ok  " : "FAIL", name, detail);
    fflush(stdout);
    *(ok ? &passed : &failed) += 1;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Rows like a head's keys: channels of unlike spread that lean on each other, some tokens far out. [n][dim] */
static void fill(float *x, size_t n, uint32_t dim, uint64_t seed)
{
    for (size_t i = 0; i < n; i++) {
        const double far = kvb_rng_unit(seed, i) < 0.01 ? 3.0 : 1.0;
        double last = 0.0;
        for (uint32_t c = 0; c < dim; c++) {
            double g = -6.0;
            for (int k = 0; k < 12; k++)
                g += kvb_rng_unit(seed + 1 + (uint64_t)k, i * dim + c);
            last = 0.5 * last + g;
            x[i * dim + c] = (float)(far * last * (1.0 + c % 5) + 3.0 * (c % 3));
        }
    }
}

typedef struct batch {
    size_t count, n;
    uint32_t dim, channels, centroids;
    float *x, *weights;
    uint16_t *half;
    float *tables[2];
    kvb_kmeans_problem *problem[2];
    kvb_kmeans_result *result[2];
} batch;

static void *need(size_t size)
{
    void *p = calloc(1, size ? size : 1);
    if (p == NULL)
        abort();
    return p;
}

static batch make(size_t heads, uint32_t dim, uint32_t channels, uint32_t centroids, size_t n, int weighted, int half)
{
    batch b = {.count = heads * (dim / channels), .n = n, .dim = dim, .channels = channels, .centroids = centroids};
    b.x = need(heads * n * dim * sizeof(float));
    b.weights = weighted ? need(heads * n * sizeof(float)) : NULL;
    b.half = half ? need(heads * n * dim * sizeof(uint16_t)) : NULL;
    for (size_t h = 0; h < heads; h++)
        fill(b.x + h * n * dim, n, dim, 77 * (h + 1));
    for (size_t i = 0; weighted && i < heads * n; i++)
        b.weights[i] = (float)exp(-6.0 * kvb_rng_unit(5, i));
    if (half)
        kvb_half_from_floats(b.half, b.x, heads * n * dim);
    for (int m = 0; m < 2; m++) {
        b.tables[m] = need(b.count * centroids * channels * sizeof(float));
        b.problem[m] = need(b.count * sizeof(kvb_kmeans_problem));
        b.result[m] = need(b.count * sizeof(kvb_kmeans_result));
        for (size_t i = 0; i < b.count; i++) {
            const size_t head = i / (dim / channels), at = head * n * dim + i % (dim / channels) * channels;
            b.problem[m][i] = (kvb_kmeans_problem){
                .points = half ? (const void *)(b.half + at) : (const void *)(b.x + at), .count = n, .stride = dim,
                .type = half ? KVB_POINTS_F16 : KVB_POINTS_F32, .channels = channels, .centroids = centroids,
                .weights = weighted ? b.weights + head * n : NULL, .seed = 1000 + i,
                .table = b.tables[m] + i * centroids * channels,
            };
        }
    }
    return b;
}

static void drop(batch *b)
{
    free(b->x);
    free(b->weights);
    free(b->half);
    for (int m = 0; m < 2; m++) {
        free(b->tables[m]);
        free(b->problem[m]);
        free(b->result[m]);
    }
}

static kvb_kmeans_options options_of(kvb_kmeans_backend backend)
{
    kvb_kmeans_options o;
    kvb_kmeans_options_init(&o);
    o.backend = backend;
    return o;
}

/* Both machines on the same problems. */
static int train_both(batch *b, kvb_kmeans_options o, const char *name, double seconds[2])
{
    const kvb_kmeans_backend backend[2] = {KVB_KMEANS_OWN, KVB_KMEANS_CUDA};
    for (int m = 0; m < 2; m++) {
        kvb_error err = {0};
        o.backend = backend[m];
        const double start = now();
        if (kvb_kmeans_train(b->problem[m], b->count, &o, b->result[m], &err) != KVB_OK) {
            check(0, name, err.message);
            return 0;
        }
        seconds[m] = now() - start;
    }
    return 1;
}

static double mean_of(const batch *b, int machine, int heldout)
{
    double sum = 0.0;
    for (size_t i = 0; i < b->count; i++)
        sum += (heldout ? b->result[machine][i].heldout_error : b->result[machine][i].train_error) / (double)b->count;
    return sum;
}

/* Single problems end in other local optima where a tie turned; over a batch the errors agree. */
static void compare(size_t heads, uint32_t dim, uint32_t channels, uint32_t centroids, size_t n, int weighted, int half,
                    uint32_t holdout)
{
    char name[120], detail[240];
    double seconds[2], worst = 0.0;
    batch b = make(heads, dim, channels, centroids, n, weighted, half);
    kvb_kmeans_options o = options_of(KVB_KMEANS_OWN);
    o.holdout_every = holdout;
    snprintf(name, sizeof name, "%ux%u of %u, %zu points%s%s%s", channels, centroids, dim, n, weighted ? ", weighted" : "",
             half ? ", half" : "", holdout ? ", hold-out" : "");
    if (train_both(&b, o, name, seconds)) {
        for (size_t i = 0; i < b.count; i++)
            worst = fmax(worst, fabs(b.result[1][i].variance / b.result[0][i].variance - 1.0));
        const double train = mean_of(&b, 1, 0) / mean_of(&b, 0, 0) - 1.0;
        const double heldout = holdout ? mean_of(&b, 1, 1) / mean_of(&b, 0, 1) - 1.0 : 0.0;
        snprintf(detail, sizeof detail, "error %+.4f %%, held out %+.4f %%, variance %.1e, swaps %u/%u, entropy %.3f/%.3f, %.2f s / %.2f s",
                 100 * train, 100 * heldout, worst, b.result[0][0].swaps, b.result[1][0].swaps, b.result[0][0].entropy,
                 b.result[1][0].entropy, seconds[0], seconds[1]);
        check(fabs(train) < 1e-3 && worst < 1e-6 && fabs(heldout) < (double)centroids / (double)n + 2e-3, name, detail);
    }
    drop(&b);
}

/* One iteration from given centroids leaves no room for other optima: tables agree to rounding but where a tie turned. */
static void one_step(void)
{
    const uint32_t channels = 8, centroids = 100;
    double seconds[2], most = 0.0;
    size_t apart = 0;
    batch b = make(2, 64, channels, centroids, 5003, 1, 0);
    kvb_kmeans_options o = options_of(KVB_KMEANS_OWN);
    o.iterations = 1;
    o.tolerance = 1e-9;
    for (int m = 0; m < 2; m++)
        for (size_t i = 0; i < b.count; i++) {
            b.problem[m][i].initial = need(centroids * channels * sizeof(float));
            for (size_t k = 0; k < centroids; k++)
                memcpy((float *)(uintptr_t)b.problem[m][i].initial + k * channels,
                       (const float *)b.problem[m][i].points + k * 49 * 64, channels * sizeof(float));
        }
    if (train_both(&b, o, "one step", seconds)) {
        for (size_t i = 0; i < b.count * centroids * channels; i++) {
            const double off = fabs((double)b.tables[0][i] - (double)b.tables[1][i]);
            most = fmax(most, off);
            apart += off > 1e-4;
        }
        char detail[120];
        snprintf(detail, sizeof detail, "largest difference %.2e, %zu of %zu beyond 1e-4", most, apart,
                 b.count * centroids * channels);
        check(apart * 1000 < b.count * centroids * channels, "one step from given centroids", detail);
    }
    for (int m = 0; m < 2; m++)
        for (size_t i = 0; i < b.count; i++)
            free((void *)(uintptr_t)b.problem[m][i].initial);
    drop(&b);
}

static void twice_the_same(void)
{
    batch b = make(3, 64, 4, 256, 30000, 1, 1);
    kvb_kmeans_options o = options_of(KVB_KMEANS_CUDA);
    kvb_error err = {0};
    int good = 1;
    for (int m = 0; m < 2; m++) {
        o.threads = m == 0 ? 0 : 3;
        good = good && kvb_kmeans_train(b.problem[m], b.count, &o, b.result[m], &err) == KVB_OK;
    }
    good = good && memcmp(b.tables[0], b.tables[1], b.count * 256 * 4 * sizeof(float)) == 0;
    check(good, "the same bytes twice, with other threads", good ? "equal" : err.message);
    drop(&b);
}

/* Fewer distinct points than centroids, and points all equal. */
static void degenerate(void)
{
    char detail[120];
    double seconds[2];
    batch b = make(1, 8, 8, 64, 2000, 0, 0);
    for (size_t i = 0; i < b.n; i++)
        memcpy(b.x + i * 8, b.x + i % 20 * 8, 8 * sizeof(float));
    if (train_both(&b, options_of(KVB_KMEANS_OWN), "20 distinct points", seconds)) {
        snprintf(detail, sizeof detail, "error %.2e, %u used; CPU %.2e, %u", b.result[1][0].train_error, b.result[1][0].used,
                 b.result[0][0].train_error, b.result[0][0].used);
        check(b.result[1][0].train_error < 1e-9 && b.result[1][0].used == 20, "20 distinct points", detail);
    }
    for (size_t i = 0; i < b.n * 8; i++)
        b.x[i] = 2.5f;
    if (train_both(&b, options_of(KVB_KMEANS_OWN), "equal points", seconds))
        check(b.result[1][0].train_error < 1e-9 && fabsf(b.tables[1][0] - 2.5f) < 1e-6f, "equal points", "one value");
    drop(&b);
}

static void refusals(void)
{
    batch b = make(1, 8, 8, 64, 2000, 0, 0);
    kvb_kmeans_options o = options_of(KVB_KMEANS_CUDA);
    kvb_error err = {0};
    b.x[100] = NAN;
    kvb_status status = kvb_kmeans_train(b.problem[0], 1, &o, b.result[0], &err);
    check(status == KVB_E_CHECK, "a NaN is refused", err.message);
    b.x[100] = 0.0f;
    b.problem[0][0].centroids = 3000;
    status = kvb_kmeans_train(b.problem[0], 1, &o, b.result[0], &err);
    check(status == KVB_E_USAGE, "more centroids than points are refused", err.message);
    drop(&b);
}

/* One layer of an 8B model: 8 KV heads, 64 chunks of 2048 tokens, keys alone. */
static void bench(uint32_t channels, uint32_t centroids)
{
    batch b = make(8, 128, channels, centroids, 131072, 1, 1);
    kvb_kmeans_options o = options_of(KVB_KMEANS_CUDA);
    kvb_error err = {0};
    o.holdout_every = 16;
    for (int i = 0; i < 2; i++) {
        const double start = now();
        kvb_status status = kvb_kmeans_train(b.problem[0], b.count, &o, b.result[0], &err);
        const double took = now() - start;
        const double work = 2.0 * 17 * 131072.0 * centroids * 128 * 8;
        printf("bench %ux%u: %zu problems of 131072 points, 15 iterations with results: %.3f s, %.1f TFLOP/s of the assignment%s\n",
               channels, centroids, b.count, took, work / took / 1e12, status == KVB_OK ? "" : err.message);
        fflush(stdout);
    }
    drop(&b);
}

int main(int argc, char **argv)
{
    kvb_kmeans_options o = options_of(KVB_KMEANS_CUDA);
    kvb_error err = {0};
    float x[2] = {0, 1}, y[1];
    const kvb_kmeans_problem one = {.points = x, .count = 2, .stride = 1, .channels = 1, .centroids = 1, .table = y};
    kvb_status status = kvb_kmeans_train(&one, 1, &o, NULL, &err);
    if (status == KVB_E_DEVICE) {
        printf("SKIP k-means on a GPU: %s\n", err.message);
        return 0;
    }
    check(status == KVB_OK && fabsf(y[0] - 0.5f) < 1e-6f, "a mean", err.message);
    if (argc > 1 && strcmp(argv[1], "--bench") == 0) {
        bench(8, 256);
        bench(4, 256);
        bench(32, 4096);
        return 0;
    }
    if (argc > 1 && strcmp(argv[1], "few") == 0) { /* for compute-sanitizer */
        one_step();
        compare(1, 16, 8, 64, 3001, 1, 1, 8);
        compare(1, 32, 32, 300, 2000, 1, 0, 0);
        printf("%d passed, %d failed\n", passed, failed);
        return failed != 0;
    }
    one_step();
    compare(2, 64, 8, 256, 20000, 1, 1, 16);
    compare(4, 64, 4, 256, 20011, 1, 0, 0);
    compare(4, 64, 2, 256, 16384, 0, 1, 0);
    compare(2, 64, 4, 16, 5000, 0, 0, 8);
    compare(4, 64, 16, 256, 20000, 1, 0, 0);
    compare(2, 96, 32, 1000, 40000, 1, 1, 16);
    compare(1, 128, 32, 4096, 65536, 1, 1, 0);
    compare(1, 128, 64, 64, 8000, 0, 0, 0);
    compare(3, 60, 5, 33, 3001, 1, 0, 4);
    compare(3, 60, 3, 7, 257, 0, 1, 0);
    twice_the_same();
    degenerate();
    refusals();
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
