/* Points of many k-means problems on a GPU, and the passes over them. What to do with the sums (means, repairs, swaps) is
 * the caller's: kmeans/kmeans_on_device.c runs the same algorithm as the CPU, with these passes in place of its own.
 *
 * Every pass is deterministic: points are sorted by code with a stable counting sort, and sums are taken over each cluster
 * in the order of its points, in double, by a fixed assignment of points to lanes. No atomics on floats.
 *
 * All problems of a batch have channels that round up to the same power of two. Arrays that run over the problems of a
 * batch ("all tables") lie one after the other without gaps. Not thread-safe: one thread a batch. */
#ifndef KVB_CUDA_KMEANS_H
#define KVB_CUDA_KMEANS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kvbook/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct kvb_cuda_points kvb_cuda_points;

/* The two sides of a hold-out: of every holdout_every runs of holdout_block points the last is held out. */
typedef enum kvb_cuda_side { KVB_SIDE_TRAINING = 0, KVB_SIDE_HELDOUT = 1 } kvb_cuda_side;

typedef struct kvb_cuda_problem {
    const void *points; /* host: count rows of `channels` values with `stride`; float, or half floats */
    bool half;
    size_t count, stride;
    uint32_t channels, centroids; /* d <= 64, K <= 65536 */
    const float *weights;         /* host [count], or NULL for ones */
    float scale, weight_scale;    /* y = x * scale - origin, w * weight_scale */
    float origin[64];
    size_t training;              /* points that are not held out */
} kvb_cuda_problem;

/* How many devices there are; 0 without a driver. */
kvb_status kvb_cuda_points_devices(uint32_t *count, kvb_error *err);
/* KVB_E_DEVICE where there is no such device or it is older than compute capability 8.0. */
kvb_status kvb_cuda_points_device(int device, kvb_error *err);
/* Device bytes that a problem takes in a batch, its host points not counted; and bytes free now. */
uint64_t kvb_cuda_points_bytes(const kvb_cuda_problem *problem);
kvb_status kvb_cuda_points_room(int device, uint64_t *bytes, kvb_error *err);

/* Copies the points over. The problems may be forgotten afterwards. KVB_E_MEMORY leaves nothing allocated. */
kvb_status kvb_cuda_points_open(int device, const kvb_cuda_problem *problems, size_t count, uint32_t holdout_every,
                                uint32_t holdout_block, kvb_cuda_points **out, kvb_error *err);
void kvb_cuda_points_close(kvb_cuda_points *points); /* NULL is allowed */

/* Gives every point the code of its nearest centroid, the lowest on ties. tables: all [K][d] in the frame. sums, where not
 * NULL: all [K][d+1] of w*y and w over the points of each code. */
kvb_status kvb_cuda_points_assign(kvb_cuda_points *points, kvb_cuda_side side, const float *tables, double *sums,
                                  kvb_error *err);
/* Of the codes assigned last, with other tables: error [K] = sum of w*|y - c|^2, and how many points there are, [K]. Also
 * keeps each point's loss for kvb_cuda_points_draw(). counts may be NULL. */
kvb_status kvb_cuda_points_errors(kvb_cuda_points *points, kvb_cuda_side side, const float *tables, double *errors,
                                  uint32_t *counts, kvb_error *err);
/* cost [count] = sum of w*|y - c'|^2 over the training points of each candidate cluster, c' the nearest centroid that is no
 * candidate, for the tables of the last call. first [problems + 1] says where a problem's candidates begin. */
kvb_status kvb_cuda_points_removal(kvb_cuda_points *points, const uint32_t *candidates, const size_t *first, double *cost,
                                   kvb_error *err);
/* Draws training points by their loss, which then is 0: for each draw the first at which the running sum of the cluster's losses
 * passes unit * (their sum). y [draws][d of the batch rounded up]; found[i] false where the cluster has no loss left. */
typedef struct kvb_cuda_draw {
    uint32_t cluster;
    double unit;
} kvb_cuda_draw;
kvb_status kvb_cuda_points_draw(kvb_cuda_points *points, const kvb_cuda_draw *draws, const size_t *first, float *y,
                                uint32_t *found, kvb_error *err);
/* For seeding: the nearest of a few centroids, `rows` [problems][KVB_CUDA_FEW][d of the batch rounded up] of which the first
 * have[i] count; index and squared distance of all training points, problem after problem. Problems whose have is 0 are left
 * as they are. */
enum { KVB_CUDA_FEW = 256 };
kvb_status kvb_cuda_points_nearest(kvb_cuda_points *points, const float *rows, const uint32_t *have, uint32_t *index, float *distance,
                                   kvb_error *err);
/* d rounded up to 2, 4, 8, 16, 32 or 64. */
uint32_t kvb_cuda_points_width(uint32_t channels);

#ifdef __cplusplus
}
#endif
#endif
