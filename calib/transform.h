/* The linear map that a head's keys or values go through before their channels are cut into groups: y = forward (x - mean),
 * x = inverse y + mean.
 *
 * Metric (keys): with M = E[q q^T], scaled to a mean diagonal of 1, the map T = (max(M, 0) + ridge)^(alpha/2) makes
 * distances in y those of (k - k')^T (max(M, 0) + ridge)^alpha (k - k'): what an error does to scores q.k, tempered by
 * alpha. Rotation: an orthogonal U after it, forward = U^T T; a PCA takes the eigenvectors of the covariance of T x.
 * In plain order the first groups would hold nearly all the variance; balanced, they share it. */
#ifndef KVB_CALIB_TRANSFORM_H
#define KVB_CALIB_TRANSFORM_H

#include <stddef.h>
#include <stdint.h>

#include "kvbook/status.h"

enum { KVB_TRANSFORM_MOST_DIM = 1024 };

typedef enum kvb_rotation {
    KVB_ROTATION_NONE = 0,
    KVB_ROTATION_PCA = 1,          /* eigenvectors from the largest eigenvalue down */
    KVB_ROTATION_BALANCED_PCA = 2, /* dealt to the groups so that their products of eigenvalues are near each other */
    KVB_ROTATION_RANDOM = 3,       /* by seed, the same whatever the data: for comparing methods */
} kvb_rotation;

typedef struct kvb_transform_request {
    uint32_t dim;             /* D, at most KVB_TRANSFORM_MOST_DIM */
    uint32_t channels;        /* d, a divisor of D */
    kvb_rotation rotation;
    const float *moment;      /* [D][D] symmetric second moment of the queries, or NULL: no metric */
    double alpha, ridge;      /* of the metric */
    const double *covariance; /* [D][D] of x, where the rotation is a PCA */
    uint64_t seed;            /* stream of KVB_ROTATION_RANDOM */
} kvb_transform_request;

/* forward and inverse [D][D], row-major. Eigenvectors have their largest component positive, so that the same moments
 * give the same bytes. KVB_E_CHECK, with `where` empty, for a moment or covariance that is not finite, a moment without
 * a positive trace, and a metric so steep that float32 cannot undo it. */
kvb_status kvb_transform_make(const kvb_transform_request *request, float *forward, float *inverse, kvb_error *err);

/* How balanced PCA deals: value [dim] of the eigenvalues, descending; place p of the transformed vector takes eigenvector
 * order[p]. In rounds: each gives every group one, the largest left to the group whose product is smallest so far. */
void kvb_transform_deal(const double *value, uint32_t dim, uint32_t channels, uint32_t *order);

#endif
