/* Dealing out bits: against all choices of small problems, and at its edges. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "calib/allocate.h"
#include "format/base/rng.h"
#include "tests/support/cm.h"

enum { ITEMS = 5, CHOICES = 4 };

/* Losses that fall with the cost by diminishing amounts: every choice lies on the hull. */
static void fill_convex(uint64_t key, double *loss)
{
    for (int i = 0; i < ITEMS; i++) {
        double weight = exp(6.0 * kvb_rng_unit(key, (uint64_t)i)), rate = 1.0 + 2.0 * kvb_rng_unit(key, (uint64_t)i + 50);
        for (int c = 0; c < CHOICES; c++)
            loss[i * CHOICES + c] = weight * exp(-rate * c);
    }
}

static double bits_of(const kvb_allocate_problem *p, const uint32_t *choice)
{
    double bits = 0.0;
    for (size_t i = 0; i < p->items; i++)
        bits += p->cost[choice[i]] * p->size[i];
    return bits;
}

static double loss_of(const kvb_allocate_problem *p, const uint32_t *choice)
{
    double loss = 0.0;
    for (size_t i = 0; i < p->items; i++)
        loss += p->loss[i * p->choices + choice[i]];
    return loss;
}

/* The least loss of any choice of at most so many bits. */
static double best_of_all(const kvb_allocate_problem *p, double bits)
{
    double best = INFINITY;
    uint32_t choice[ITEMS];
    for (uint32_t n = 0; n < 1024; n++) {
        for (uint32_t i = 0, left = n; i < ITEMS; i++, left /= CHOICES)
            choice[i] = left % CHOICES;
        if (bits_of(p, choice) <= bits + 1e-9)
            best = fmin(best, loss_of(p, choice));
    }
    return best;
}

static void test_against_all(void **state)
{
    (void)state;
    static const double cost[CHOICES] = {0.5, 1, 1.5, 2}, size[ITEMS] = {64, 64, 64, 64, 64};
    for (uint64_t key = 1; key <= 50; key++) {
        double loss[ITEMS * CHOICES], found;
        uint32_t choice[ITEMS];
        fill_convex(key, loss);
        kvb_allocate_problem p = {.items = ITEMS, .choices = CHOICES, .loss = loss, .cost = cost, .size = size};
        for (p.budget = 0.5; p.budget <= 2.0; p.budget += 0.1) {
            assert_int_equal(kvb_allocate(&p, choice, &found, NULL), KVB_OK);
            assert_true(bits_of(&p, choice) <= p.budget * 64 * ITEMS + 1e-6);
            assert_true(fabs(found - loss_of(&p, choice)) < 1e-12);
            /* Steps of one size over convex losses: greedy is exact. */
            assert_true(found <= best_of_all(&p, p.budget * 64 * ITEMS) * (1 + 1e-12));
        }
    }
}

/* A choice above the hull is never taken, one that costs more and loses more neither. */
static void test_hull(void **state)
{
    (void)state;
    static const double cost[3] = {1, 2, 3}, size[2] = {8, 8};
    static const double loss[6] = {10, 9.9, 1, 5, 6, 5};
    uint32_t choice[2];
    double found;
    kvb_allocate_problem p = {.items = 2, .choices = 3, .loss = loss, .cost = cost, .size = size, .budget = 1.5};
    assert_int_equal(kvb_allocate(&p, choice, &found, NULL), KVB_OK);
    assert_true(choice[0] == 0 && choice[1] == 0); /* a step of 2 bits does not fit into 1 */
    p.budget = 2;
    assert_int_equal(kvb_allocate(&p, choice, &found, NULL), KVB_OK);
    assert_true(choice[0] == 2 && choice[1] == 0);
    p.budget = 3;
    assert_int_equal(kvb_allocate(&p, choice, &found, NULL), KVB_OK);
    assert_true(choice[0] == 2 && choice[1] == 0 && found == 6);
}

static void test_sizes_and_ties(void **state)
{
    (void)state;
    static const double cost[2] = {1, 2}, size[3] = {16, 8, 8}, loss[6] = {2, 0, 1, 0, 1, 0};
    uint32_t choice[3];
    double found;
    kvb_allocate_problem p = {.items = 3, .choices = 2, .loss = loss, .cost = cost, .size = size, .budget = 1.25};
    kvb_error err;
    assert_int_equal(kvb_allocate(&p, choice, &found, NULL), KVB_OK);
    /* 8 bits are left and all gain the same per bit: the first does not fit, so the second takes them. */
    assert_true(choice[0] == 0 && choice[1] == 1 && choice[2] == 0);
    p.budget = 0.9;
    assert_int_equal(kvb_allocate(&p, choice, &found, &err), KVB_E_USAGE);
    assert_non_null(strstr(err.message, "fewer than"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_all),
        cmocka_unit_test(test_hull),
        cmocka_unit_test(test_sizes_and_ties),
    };
    return cmocka_run_group_tests_name("allocate", tests, NULL, NULL);
}
