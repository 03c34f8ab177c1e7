/* Every allocation fails in turn: each call reports it, leaves nothing behind, and goes on where it was. The Makefile
 * routes the allocations of this program through the functions below. */
#include <stdlib.h>
#include <string.h>

#include "runtime/prefill.h"
#include "tests/support/cm.h"
#include "tests/support/rt_book.h"

static long countdown = -1; /* allocations until one fails; negative: none does */

static int fails(void)
{
    return countdown >= 0 && countdown-- == 0;
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
    return fails() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return fails() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *memory, size_t size)
{
    return fails() ? NULL : __real_realloc(memory, size);
}

void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
    return fails() ? NULL : __real_aligned_alloc(alignment, size);
}

enum { TOKENS = 60, DIM = 8 };

static const rt_shape shape = {.layers = 1, .heads = 2, .kv_heads = 1, .head_dim = DIM, .channels = 4, .centroids = 8,
                               .rope_style = KVB_ROPE_HALF, .rope_dims = 8, .transform = true, .seed = 1,
                               .fine_channels = 2, .fine_centroids = 4};
static const kvb_policy policy = {.anchor_fraction = 0.3, .score = KVB_SCORE_EXACT_K, .window = 20, .sinks = 18};
static const kvb_policy fine_policy = {.anchor_fraction = 0.3, .score = KVB_SCORE_EXACT_K, .window = 20, .sinks = 18,
                                       .exact = KVB_EXACT_FINE};

/* Calls until it does not run out of memory: a failure must change nothing. */
static int create(const kvb_book *book, kvb_cache **cache)
{
    kvb_cache_options options;
    kvb_cache_options_init(&options, book);
    int failures = 0;
    for (;; failures++) {
        kvb_status status = kvb_cache_create(book, &options, cache, NULL);
        if (status == KVB_OK)
            return failures;
        assert_int_equal(status, KVB_E_MEMORY);
        assert_null(*cache);
    }
}

static int step(kvb_cache *cache, uint32_t t, float *out)
{
    float kv[2 * DIM], q[2 * DIM];
    int failures = 0;
    kvb_status status;
    rt_normal(kv, 2 * DIM, t);
    rt_normal(q, 2 * DIM, 1000 + t);
    while ((status = kvb_cache_append(cache, 0, kv, kv + DIM, NULL)) != KVB_OK && ++failures < 3)
        assert_int_equal(status, KVB_E_MEMORY);
    while ((status = kvb_cache_attend(cache, 0, q, out, NULL)) != KVB_OK && ++failures < 3)
        assert_int_equal(status, KVB_E_MEMORY);
    return failures;
}

static int run(const kvb_book *book, float *out)
{
    kvb_cache *cache;
    int failures = create(book, &cache);
    for (uint32_t t = 0; t < TOKENS; t++)
        failures += step(cache, t, out + (size_t)t * 2 * DIM);
    kvb_cache_destroy(cache);
    return failures;
}

static void check_cache(const kvb_policy *kept)
{
    static float expected[TOKENS * 2 * DIM], out[TOKENS * 2 * DIM];
    kvb_book *book = rt_book_make(&shape, kept);
    assert_non_null(book);
    assert_int_equal(run(book, expected), 0);
    int failures = 1;
    long at = 0;
    for (; failures == 1; at++) {
        countdown = at;
        failures = run(book, out);
        countdown = -1;
        assert_in_range(failures, 0, 1);
        assert_memory_equal(out, expected, sizeof out);
    }
    assert_true(at > 40); /* the run does allocate */
    kvb_book_close(book);
}

static void a_cache_goes_on_after_every_failure(void **state)
{
    (void)state;
    check_cache(&policy);
    check_cache(&fine_policy);
}

static void check_prefill(const kvb_policy *kept, kvb_anchor_protocol protocol, long least)
{
    static float expected[TOKENS * 2 * DIM], out[TOKENS * 2 * DIM];
    kvb_book *book = rt_book_make(&shape, &policy);
    assert_non_null(book);
    rt_rows rows;
    assert_true(rt_rows_make(&rows, kvb_book_layer(book, 0), TOKENS, 9));
    const kvb_prefill p = {.book = book, .tokens = TOKENS, .policy = kept, .protocol = protocol, .q = rows.q,
                           .k_pre = rows.k_pre, .k = rows.k, .v = rows.v};
    assert_int_equal(kvb_prefill_attend(&p, NULL, expected, NULL), KVB_OK);
    kvb_status status = KVB_E_MEMORY;
    long at = 0;
    for (; status != KVB_OK; at++) {
        kvb_error err = {0};
        countdown = at;
        status = kvb_prefill_attend(&p, NULL, out, &err);
        countdown = -1;
        assert_true(status == KVB_OK || status == KVB_E_MEMORY);
        assert_int_equal(err.code, status);
    }
    assert_memory_equal(out, expected, sizeof out);
    assert_true(at > least);
    rt_rows_free(&rows);
    kvb_book_close(book);
}

static void a_prefill_reports_every_failure(void **state)
{
    (void)state;
    check_prefill(&policy, KVB_PROTOCOL_CAUSAL, 40);
    check_prefill(&policy, KVB_PROTOCOL_CHUNK, 40);
    check_prefill(&fine_policy, KVB_PROTOCOL_CAUSAL, 60);
    check_prefill(&fine_policy, KVB_PROTOCOL_CHUNK, 60);
}

static void encoding_reports_every_failure(void **state)
{
    (void)state;
    kvb_book *book = rt_book_make(&shape, &policy);
    assert_non_null(book);
    const kvb_codebook *b = kvb_book_codebook(book, 0, 0, KVB_KEY);
    float x[DIM] = {0};
    uint32_t codes[2];
    for (int decoding = 0; decoding < 2; decoding++) {
        kvb_status status = KVB_E_MEMORY;
        long at = 0;
        for (; status != KVB_OK; at++) {
            countdown = at;
            status = decoding ? kvb_decode(b, DIM, codes, 1, x, NULL) : kvb_encode(b, DIM, x, DIM, 1, codes, NULL);
            countdown = -1;
            assert_true(status == KVB_OK || status == KVB_E_MEMORY);
        }
        assert_true(at > 5);
    }
    kvb_book_close(book);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_cache_goes_on_after_every_failure),
        cmocka_unit_test(a_prefill_reports_every_failure),
        cmocka_unit_test(encoding_reports_every_failure),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
