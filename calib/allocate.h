/* Dealing out bits: of several shapes for each of many items (the codebooks of one head's keys, or values), the choice with
 * the least total loss within a total of bits. */
#ifndef KVB_CALIB_ALLOCATE_H
#define KVB_CALIB_ALLOCATE_H

#include <stddef.h>
#include <stdint.h>

#include "kvbook/status.h"

typedef struct kvb_allocate_problem {
    size_t items;
    uint32_t choices;
    const double *loss; /* [items][choices], finite, at least 0 */
    const double *cost; /* [choices] bits per element, strictly ascending */
    const double *size; /* [items] elements, positive */
    double budget;      /* bits per element on average, at least cost[0] */
} kvb_allocate_problem;

/* Writes choice [items] and *loss, its total. Starts from the cheapest of all and takes, again and again, the step along an
 * item's lower convex hull that lowers the loss most per bit, the lowest item of equal ones; steps that no longer fit are
 * passed over. So each choice lies on its item's hull, and no other choice of hull points within the bits spent is better but
 * for the last step's worth. KVB_E_USAGE where the budget is below the cheapest choice, KVB_E_MEMORY. */
kvb_status kvb_allocate(const kvb_allocate_problem *problem, uint32_t *choice, double *loss, kvb_error *err);

#endif
