/* Every allocation fails in turn: the call reports it and leaks nothing (AddressSanitizer sees to that). And memory grows
 * linearly with n. The Makefile routes the allocations of this program through the functions below. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "kvbook/kmeans.h"
#include "tests/kmeans/kmeans_testdata.h"
#include "tests/support/cm.h"

static atomic_long countdown = -1; /* allocations until one fails; negative: none does */
static atomic_size_t requested;    /* bytes in all */

static int fails(size_t size)
{
    atomic_fetch_add(&requested, size);
    return atomic_load(&countdown) >= 0 && atomic_fetch_sub(&countdown, 1) == 0;
}

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *memory, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *memory, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);

void *__wrap_malloc(size_t size)
{
    return fails(size) ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return fails(count * size) ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *memory, size_t size)
{
    return fails(size) ? NULL : __real_realloc(memory, size);
}

void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
    return fails(size) ? NULL : __real_aligned_alloc(alignment, size);
}

enum { N = 4096, D = 4, MOST_FAILURES = 400 };

typedef struct setting {
    const char *name;
    uint32_t centroids;
    kvb_kmeans_seeding seeding;
    bool far; /* starts where no point is near: empty clusters are repaired */
    double tolerance;
    uint32_t holdout;
} setting;

static kvb_status train(const setting *s, const float *x, const float *w, const float *start, uint32_t n, float *table)
{
    kvb_kmeans_options options;
    kvb_kmeans_result result;
    kvb_kmeans_options_init(&options);
    options.iterations = 6;
    options.threads = 1;
    options.seeding = s->seeding;
    options.tolerance = s->tolerance;
    options.holdout_every = s->holdout;
    kvb_kmeans_problem p = {.points = x, .count = n, .stride = D, .channels = D, .centroids = s->centroids, .weights = w,
                            .initial = s->far ? start : NULL, .table = table};
    return kvb_kmeans_train(&p, 1, &options, &result, NULL);
}

/* The first, the second, ... allocation fails, until a call needs fewer; then all is as it was. */
static void fails_everywhere(const setting *s, const float *x, const float *w, const float *start)
{
    float *table = malloc((size_t)s->centroids * D * sizeof *table), *again = malloc((size_t)s->centroids * D * sizeof *table);
    long i = 0;
    assert_int_equal(train(s, x, w, start, N, table), KVB_OK);
    for (;; i++) {
        atomic_store(&countdown, i);
        kvb_status status = train(s, x, w, start, N, again);
        bool reached = atomic_load(&countdown) < 0;
        atomic_store(&countdown, -1);
        if (!reached)
            break;
        if (status != KVB_E_MEMORY)
            fail_msg("%s: allocation %ld failed, status %d", s->name, i, (int)status);
    }
    if (i < 10 || i > MOST_FAILURES)
        fail_msg("%s: %ld allocations", s->name, i);
    assert_memory_equal(table, again, (size_t)s->centroids * D * sizeof *table);
    free(table), free(again);
}

static void every_allocation_fails_once(void **state)
{
    (void)state;
    static const setting settings[] = {
        {"greedy seeding, swaps", 16, KVB_SEED_PLUSPLUS, false, 0.0, 0},
        {"batches, hold-out", 300, KVB_SEED_PLUSPLUS, false, 0.0, 4},
        {"random, tolerance", 16, KVB_SEED_RANDOM, false, 1e-6, 0},
        {"splits", 40, KVB_SEED_SPLIT, false, 0.0, 0},
        {"repair", 16, KVB_SEED_PLUSPLUS, true, 0.0, 0},
    };
    float *x = test_mixture(N, D, 1), *w = test_weights(N, 1), start[16 * D];
    for (size_t i = 0; i < 16 * D; i++)
        start[i] = i < D ? 0.0f : 1000.0f;
    for (size_t s = 0; s < sizeof settings / sizeof *settings; s++)
        fails_everywhere(&settings[s], x, w, start);
    free(x), free(w);
}

static size_t bytes_for(const setting *s, const float *x, uint32_t n, float *table)
{
    atomic_store(&requested, 0);
    assert_int_equal(train(s, x, NULL, NULL, n, table), KVB_OK);
    return atomic_load(&requested);
}

/* n, 2n and 4n: what comes on top doubles at most, and a matrix of n x K would be seen. */
static void memory_is_linear(void **state)
{
    (void)state;
    static const setting s = {"linear", 128, KVB_SEED_PLUSPLUS, false, 0.0, 0};
    enum { MORE = 16384 };
    float *x = test_mixture(4 * MORE, D, 1), *table = malloc(128 * D * sizeof *table);
    size_t one = bytes_for(&s, x, MORE, table), two = bytes_for(&s, x, 2 * MORE, table);
    size_t four = bytes_for(&s, x, 4 * MORE, table);
    assert_true(two <= 2 * one);
    assert_true(four - two <= 2 * (two - one) + (two - one) / 4); /* segments of sums come in steps */
    assert_true(one < (size_t)MORE * 128 * sizeof(float));
    free(x), free(table);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_allocation_fails_once),
        cmocka_unit_test(memory_is_linear),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
