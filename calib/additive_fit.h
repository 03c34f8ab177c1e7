/* The two small steps of additive training that are pure arithmetic. Rows of a group are [M][Km][d]. */
#ifndef KVB_CALIB_ADDITIVE_FIT_H
#define KVB_CALIB_ADDITIVE_FIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { KVB_ADDITIVE_STAGES = 8, KVB_ADDITIVE_CHANNELS = 64, KVB_ADDITIVE_CODES = 65536 };

typedef struct kvb_additive_shape {
    uint32_t stages, rows, channels; /* M, Km (a power of two), d */
    uint32_t codes;                  /* K = Km^M */
} kvb_additive_shape;

/* False where M, Km, d or K are out of range; else fills in K. */
bool kvb_additive_shape_of(uint32_t stages, uint32_t rows, uint32_t channels, kvb_additive_shape *shape);

/* The K sums [K][d]: code k = c_0 + c_1 Km + ... names row c_m of stage m; added in float from stage 0 on, as a reader of
 * the book adds them. */
void kvb_additive_expand(const kvb_additive_shape *shape, const float *rows, float *sums);

/* Doubles of scratch that kvb_additive_update() needs. */
size_t kvb_additive_scratch(const kvb_additive_shape *shape);

/* New rows for given codes: t minimises sum_i w_i ||x_i - sum_m t_m[c_m(i)]||^2 + ridge ||t - rows||^2, which never raises
 * the first term. moments [K][d+1]: of the points of each code, sum_i w_i x_i and then sum_i w_i. The ridge keeps rows
 * without points, and what all stages could shift among themselves, where they are. False, and rows as they were, where
 * the system has no solution in double. */
bool kvb_additive_update(const kvb_additive_shape *shape, const double *moments, double ridge, float *rows,
                         double *scratch);

#endif
