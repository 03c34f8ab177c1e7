/* One additive problem from its points to its rows, by one thread. Private to additive training. */
#ifndef KVB_CALIB_ADDITIVE_JOB_H
#define KVB_CALIB_ADDITIVE_JOB_H

#include "calib/additive.h"
#include "calib/additive_fit.h"
#include "format/base/nearest.h"

/* Points of one side of the hold-out, in the frame y = x * scale - origin. */
typedef struct kvb_additive_points {
    float *rows;    /* [count][d] */
    float *weights; /* [count], scaled */
    size_t count, room;
    double weight;  /* their sum */
} kvb_additive_points;

typedef struct kvb_additive_job {
    const kvb_kmeans_problem *problem;
    const kvb_additive_options *options;
    int (*stopped)(void *user); /* asked between steps: not 0 to stop */
    void *stopped_user;
    size_t number; /* of the problem, for errors */
    double *curve; /* [curve_length] of the k-means options, NaN, or NULL: takes the errors that rounds begin with */
    kvb_additive_shape shape;
    double scale;        /* a power of two that brings the largest |x| near 1 */
    double weight_scale; /* the same for weights */
    float origin[KVB_ADDITIVE_CHANNELS]; /* near the mean of the training points */
    kvb_additive_points training, heldout;
    kvb_nearest *search; /* of K sums */
    float *table;        /* [M][Km][d] in the frame */
    float *sums;         /* [K][d] */
    float *tiles;        /* the training points packed for the search */
    uint32_t *codes;     /* [training.count] */
    double *moments;     /* [K][d+1] */
    double *scratch;     /* of kvb_additive_update() */
} kvb_additive_job;

/* With the first six members filled in: solves the problem with so many stages, writes its table and, where result is not
 * NULL, its result. Frees all it took. */
kvb_status kvb_additive_job_run(kvb_additive_job *job, uint32_t stages, kvb_kmeans_result *result, kvb_error *err);

#endif
