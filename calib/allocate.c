#include "calib/allocate.h"

#include <stdbool.h>
#include <stdlib.h>

#include "format/base/checked.h"
#include "format/base/fail.h"

/* One step along an item's hull. */
typedef struct step {
    double slope; /* loss saved per bit */
    size_t item;
    uint32_t from, to;
} step;

/* The next point of the item's lower convex hull after `from`: where the loss falls steepest, the dearest of equals.
 * Returns `from` where no dearer choice has a lower loss. */
static uint32_t next_on_hull(const kvb_allocate_problem *p, size_t item, uint32_t from, double *slope)
{
    const double *loss = p->loss + item * p->choices;
    uint32_t best = from;
    *slope = 0.0;
    for (uint32_t c = from + 1; c < p->choices; c++) {
        double saved = (loss[from] - loss[c]) / ((p->cost[c] - p->cost[from]) * p->size[item]);
        if (saved > 0.0 && saved >= *slope) {
            *slope = saved;
            best = c;
        }
    }
    return best;
}

static int compare_steps(const void *a, const void *b)
{
    const step *x = a, *y = b;
    if (x->slope != y->slope)
        return x->slope > y->slope ? -1 : 1;
    if (x->item != y->item)
        return x->item < y->item ? -1 : 1;
    return x->from < y->from ? -1 : x->from > y->from;
}

/* Slopes of an item's steps fall, so sorting all steps keeps each item's in order. */
static size_t list_steps(const kvb_allocate_problem *p, step *list)
{
    size_t count = 0;
    for (size_t i = 0; i < p->items; i++) {
        double slope;
        for (uint32_t from = 0, to; (to = next_on_hull(p, i, from, &slope)) != from; from = to)
            list[count++] = (step){slope, i, from, to};
    }
    qsort(list, count, sizeof *list, compare_steps);
    return count;
}

kvb_status kvb_allocate(const kvb_allocate_problem *p, uint32_t *choice, double *loss, kvb_error *err)
{
    double left = 0.0, total = 0.0;
    if (p->budget < p->cost[0])
        return kvb_fail(err, KVB_E_USAGE, "bits", "%g bits per element are fewer than the %g of the cheapest shape",
                        p->budget, p->cost[0]);
    step *list = kvb_alloc_array(p->items * p->choices, sizeof *list);
    if (list == NULL)
        return kvb_fail_memory(err, "allocation of bits");
    for (size_t i = 0; i < p->items; i++) {
        choice[i] = 0;
        left += (p->budget - p->cost[0]) * p->size[i];
    }
    const size_t steps = list_steps(p, list);
    const double slack = 1e-9 * left; /* of sums of fractions */
    for (size_t s = 0; s < steps; s++) {
        const step *t = &list[s];
        double bits = (p->cost[t->to] - p->cost[t->from]) * p->size[t->item];
        if (choice[t->item] != t->from || bits > left + slack)
            continue;
        choice[t->item] = t->to;
        left -= bits;
    }
    for (size_t i = 0; i < p->items; i++)
        total += p->loss[i * p->choices + choice[i]];
    *loss = total;
    free(list);
    return KVB_OK;
}
