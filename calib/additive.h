/* Training of codebooks for batches of groups, plain and additive: minimise sum_i w_i ||x_i - c_a(i)||^2, where the
 * centroids of an additive codebook are the K = Km^M sums of one row of each of its M stages of Km rows.
 *
 * A plain codebook is solved by kvb_kmeans_train(). An additive one starts from k-means on the points, then on what each
 * stage leaves of them (residual quantisation), and then alternates: exact assignment to the nearest of the K sums; all
 * M*Km rows at once by weighted least squares for these codes (Babenko and Lempitsky 2014, additive quantisation, with
 * the exact search that small K allows). Neither step can raise the weighted error, but for the rounding of float. */
#ifndef KVB_CALIB_ADDITIVE_H
#define KVB_CALIB_ADDITIVE_H

#include "kvbook/kmeans.h"

typedef struct kvb_additive_options {
    kvb_kmeans_options kmeans; /* of plain problems and of the stages' starts; its hold-out, threads and progress are those
                                * of the whole batch. Progress counts problems */
    uint32_t rounds;           /* of assignment and least squares, at most; default 20; 0: the greedy start as it is */
    double tolerance;          /* stop when a round improves the error by no more than this, relatively; default 1e-4 */
} kvb_additive_options;

void kvb_additive_options_init(kvb_additive_options *options);

/* Solves `count` problems of stages[i] stages each. Where that is over 1, problem i has `centroids` Km rows a stage, a
 * power of two, and its `table` takes [M][Km][d]; `initial` must be NULL. results[i] (results may be NULL) is as
 * kvb_kmeans_train() gives it, but `used` counts rows of all stages, of M*Km, and `entropy` is that of the codes, of up to
 * M log2 Km bits; `iterations` counts rounds, `repairs` and `swaps` those of the stages' starts.
 *
 * KVB_E_USAGE for sizes out of range, KVB_E_CHECK for values or weights that no training can use (problem and row named;
 * k-means numbers the plain problems among themselves), KVB_E_CANCELLED. The result depends on the inputs and seeds, not on the number of threads: each additive problem is
 * solved by one thread, as many side by side as there are threads. On the CPU, also where plain ones go to a GPU. */
kvb_status kvb_additive_train(const kvb_kmeans_problem *problems, const uint32_t *stages, size_t count,
                              const kvb_additive_options *options, kvb_kmeans_result *results, kvb_error *err);

#endif
