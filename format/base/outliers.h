/* Which numbers of a row stand out: they are held exactly where the others are coded by one scale. */
#ifndef KVB_FORMAT_BASE_OUTLIERS_H
#define KVB_FORMAT_BASE_OUTLIERS_H

#include <stdint.h>

/* Picks `count` of y [dim], which is finite, and writes their places in ascending order. One after the other: the number that is
 * farthest from the mean of its group's numbers not picked yet, the first of those equally far. A group is `run` channels that follow
 * each other; count < run <= dim, run divides dim. */
void kvb_outliers_of_groups(const float *y, uint32_t dim, uint32_t run, uint32_t count, uint32_t *place);

/* The same, picking the largest |y - offset| / scale of each channel's own offset and positive scale [dim]. count < dim. */
void kvb_outliers_of_channels(const float *y, const float *offset, const float *scale, uint32_t dim, uint32_t count, uint32_t *place);

#endif
