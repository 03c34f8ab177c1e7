/* The anchors of one head: how many, which, and in what order they go. */
#include "runtime/anchor_pool.h"
#include "tests/support/cm.h"

static void capacity_is_the_ceiling(void **state)
{
    (void)state;
    assert_int_equal(kvb_pool_capacity(0.01, 0), 0);
    assert_int_equal(kvb_pool_capacity(0.01, 1), 1);
    assert_int_equal(kvb_pool_capacity(0.01, 100), 1);
    assert_int_equal(kvb_pool_capacity(0.01, 101), 2);
    assert_int_equal(kvb_pool_capacity(0.0, 1000), 0);
    assert_int_equal(kvb_pool_capacity(1.0, 1000), 1000);
    /* Products a rounding above a whole number are that number. */
    assert_int_equal(kvb_pool_capacity(0.07, 100), 7);
    for (uint64_t n = 1; n < 100000; n++)
        assert_int_equal(kvb_pool_capacity(0.01, n), (n + 99) / 100);
}

static uint32_t offer(kvb_anchor_pool *pool, uint32_t position, float score, uint32_t *loser)
{
    assert_true(kvb_pool_reserve(pool));
    return kvb_pool_offer(pool, position, score, loser);
}

static void the_lowest_score_goes(void **state)
{
    (void)state;
    kvb_anchor_pool pool = {.fraction = 0.5};
    uint32_t loser;
    assert_int_equal(offer(&pool, 10, 1.0f, &loser), KVB_POOL_NONE); /* 1 of 1 */
    assert_int_equal(offer(&pool, 11, 3.0f, &loser), 0);             /* 1 of 2 */
    assert_int_equal(loser, 10);
    assert_int_equal(offer(&pool, 12, 2.0f, &loser), KVB_POOL_NONE); /* 2 of 3 */
    assert_int_equal(offer(&pool, 13, 0.5f, &loser), 2);             /* itself */
    assert_int_equal(loser, 13);
    assert_int_equal(pool.count, 2);
    assert_int_equal(pool.position[0], 11);
    assert_int_equal(pool.position[1], 12);
    kvb_pool_free(&pool);
}

static void of_equal_scores_the_later_goes(void **state)
{
    (void)state;
    kvb_anchor_pool pool = {.fraction = 0.1};
    uint32_t loser;
    for (uint32_t p = 0; p < 100; p++)
        offer(&pool, p, 0.0f, &loser);
    /* Room comes at the 1st, 11th, 21st ... token, each of which finds a place at once and then stays. */
    assert_int_equal(pool.count, 10);
    for (uint32_t i = 0; i < 10; i++)
        assert_int_equal(pool.position[i], 10 * i);
    assert_int_equal(offer(&pool, 100, 0.0f, &loser), KVB_POOL_NONE);
    assert_int_equal(offer(&pool, 101, 1.0f, &loser), 10);
    assert_int_equal(loser, 100);
    kvb_pool_free(&pool);
}

static void a_fraction_of_zero_needs_no_room(void **state)
{
    (void)state;
    kvb_anchor_pool pool = {.fraction = 0.0};
    uint32_t loser;
    for (uint32_t p = 0; p < 5; p++) {
        assert_int_equal(kvb_pool_offer(&pool, p, 1.0f, &loser), 0);
        assert_int_equal(loser, p);
    }
    kvb_pool_free(&pool);
}

static void rank_counts_what_lies_before(void **state)
{
    (void)state;
    kvb_anchor_pool pool = {.fraction = 1.0};
    uint32_t loser;
    for (uint32_t p = 3; p < 40; p += 4)
        offer(&pool, p, 0.0f, &loser);
    for (uint32_t p = 0; p < 50; p++) {
        uint32_t before = 0;
        for (uint32_t i = 0; i < pool.count; i++)
            before += pool.position[i] < p;
        assert_int_equal(kvb_pool_rank(&pool, p), before);
    }
    kvb_pool_free(&pool);
}

static void scores_without_attention(void **state)
{
    (void)state;
    const float key[3] = {3.0f, 0.0f, -4.0f};
    assert_true(kvb_anchor_static_score(KVB_SCORE_KEY_NORM, 0, 0, 0, 7, key, 3) == -5.0f);
    assert_true(kvb_anchor_static_score(KVB_SCORE_FIRST_N, 0, 0, 0, 7, key, 3) == -7.0f);
    float a = kvb_anchor_static_score(KVB_SCORE_RANDOM, 1, 2, 3, 7, key, 3);
    assert_true(a == kvb_anchor_static_score(KVB_SCORE_RANDOM, 1, 2, 3, 7, key, 3));
    assert_true(a != kvb_anchor_static_score(KVB_SCORE_RANDOM, 1, 2, 3, 8, key, 3));
    assert_true(a != kvb_anchor_static_score(KVB_SCORE_RANDOM, 1, 2, 4, 7, key, 3));
    assert_true(a != kvb_anchor_static_score(KVB_SCORE_RANDOM, 2, 2, 3, 7, key, 3));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(capacity_is_the_ceiling),
        cmocka_unit_test(the_lowest_score_goes),
        cmocka_unit_test(of_equal_scores_the_later_goes),
        cmocka_unit_test(a_fraction_of_zero_needs_no_room),
        cmocka_unit_test(rank_counts_what_lies_before),
        cmocka_unit_test(scores_without_attention),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
