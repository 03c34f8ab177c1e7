/* Offset and scale of numbers that are coded one by one (kvb_scaling in kvbook/book.h): how they follow from the numbers of a group, and
 * the level that a number gets. What the runtime codes by and what calibration tries clips with is the same. */
#ifndef KVB_BASE_AFFINE_H
#define KVB_BASE_AFFINE_H

#include <stddef.h>

#include "kvbook/book.h"

enum { KVB_AFFINE_MOST_LEVELS = 256 };

/* As they are read back: rounded to what they are stored as. */
typedef struct kvb_affine {
    float offset, scale;
} kvb_affine;

/* Of `count` numbers, `stride` apart, at least one; the scaling's form is not KVB_SCALE_FIXED. */
kvb_affine kvb_affine_measure(const kvb_scaling *scaling, float clip, const float *at, uint32_t count, size_t stride);

/* Levels in ascending order and the bounds halfway between neighbours. */
typedef struct kvb_levels {
    uint32_t count;
    float level[KVB_AFFINE_MOST_LEVELS];
    float bound[KVB_AFFINE_MOST_LEVELS]; /* [count - 1] */
} kvb_levels;

/* From a table of half floats, or, where it is NULL, spread evenly from -1 to 1. */
void kvb_levels_init(kvb_levels *levels, uint32_t count, const uint16_t *table);
/* The nearest level to x in units of its scale, the lower of two equally near; a scale of 0: the one nearest to 0. */
uint32_t kvb_levels_code(const kvb_levels *levels, float x, kvb_affine a);

#endif
