/* Weighted k-means for many small problems: minimise sum_i w_i ||x_i - c_a(i)||^2.
 *
 * A batch of independent problems is solved in one call. Points are read in place with a stride, so that the groups of
 * channels of one capture need no copies. The result depends on the inputs and the seed, not on the number of threads. */
#ifndef KVBOOK_KMEANS_H
#define KVBOOK_KMEANS_H

#include <stdbool.h>
#include <stddef.h>

#include "kvbook/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum kvb_points_type { KVB_POINTS_F32 = 0, KVB_POINTS_F16 = 1 } kvb_points_type;

typedef struct kvb_kmeans_problem {
    const void *points;       /* n rows of d channels; row i starts at points + i*stride elements */
    kvb_points_type type;
    size_t count;             /* n */
    size_t stride;            /* in elements, >= d */
    uint32_t channels;        /* d, 1..64 */
    uint32_t centroids;       /* K, 1..65536, K <= n */
    const float *weights;     /* [n], finite, >= 0, not all zero; or NULL for all ones */
    const float *initial;     /* [K][d] to start from, or NULL to seed */
    uint64_t seed;            /* stream of this problem's random numbers */
    float *table;             /* out: [K][d] */
} kvb_kmeans_problem;

/* With fewer points a centroid, a table fits its sample and not what the sample stands for. */
#define KVB_KMEANS_FEW_POINTS 64

typedef struct kvb_kmeans_result {
    double train_error;   /* sum_i w_i ||x_i - c||^2 / (d * sum_i w_i) over the training points, after the last update */
    double heldout_error; /* the same over held-out points; NaN without a hold-out */
    double variance;      /* weighted variance per channel: the error of one centroid at the mean */
    double heldout_variance; /* the held-out points' mean squared distance to the training mean, per channel */
    uint32_t iterations;  /* done */
    uint32_t repairs;     /* empty clusters re-seeded */
    uint32_t used;        /* centroids with at least one training point */
    double entropy;       /* bits: of the training points' codes, unweighted */
    uint32_t swaps;       /* centroids moved from where they did little good to where the error was */
    double points_per_centroid; /* training points over K; warn under KVB_KMEANS_FEW_POINTS */
} kvb_kmeans_result;

typedef enum kvb_kmeans_seeding {
    KVB_SEED_PLUSPLUS = 0, /* weighted greedy k-means++ (Arthur and Vassilvitskii 2007), on a sample where n is large */
    KVB_SEED_RANDOM = 1,   /* points drawn by weight, without replacement */
    KVB_SEED_SPLIT = 2,    /* from one centroid up, splitting the clusters with the largest errors */
} kvb_kmeans_seeding;

typedef enum kvb_kmeans_backend {
    KVB_KMEANS_OWN = 0,
    KVB_KMEANS_FAISS = 1, /* faiss::Clustering from the same start, in builds with `make FAISS=1`. Its empty clusters are
                           * its own affair; tolerance and swap_rounds mean nothing, cancelling waits for the problems
                           * at work, and bytes may depend on the number of threads */
    KVB_KMEANS_CUDA = 2,  /* the same algorithm on a CUDA device, in builds with `make CUDA=1`; codes differ only where two
                           * centroids are equally near but for rounding, and tables of more than 256 centroids are seeded on
                           * all points, never on a sample. KVB_E_DEVICE without a device */
} kvb_kmeans_backend;

typedef struct kvb_kmeans_options {
    uint32_t struct_size;    /* sizeof(kvb_kmeans_options), set by the init function */
    uint32_t iterations;     /* Lloyd iterations at most; default 15 */
    kvb_kmeans_seeding seeding;
    double tolerance;        /* stop when the relative improvement falls under it; default 0: never */
    uint32_t holdout_every;  /* hold out one block of holdout_block points in every holdout_every; 0: none */
    uint32_t holdout_block;  /* default 256: neighbouring tokens are alike, so whole runs are held out */
    uint32_t threads;        /* 0: OpenMP's default */
    kvb_progress_fn progress;
    void *progress_user;
    uint32_t swap_rounds;    /* every second iteration, so many times at most, centroids whose removal costs little move
                              * to clusters whose split saves more; default 6; 0: plain Lloyd iterations, whose error
                              * never rises. Needs iterations >= 5; a swap may raise the error for an iteration or two */
    kvb_kmeans_backend backend; /* default KVB_KMEANS_OWN */
    uint32_t device;         /* of KVB_KMEANS_CUDA; default 0 */
    uint32_t device_callers; /* calls at work on that device at the same time, which share its memory; 0 and 1: this one alone */
    double *curve;           /* out: [count][curve_length], or NULL (default): the training error, as train_error, of the centroids
                              * that iteration 0, 1, ... began with; NaN past the last iteration, and all of FAISS's. Needs results */
    uint32_t curve_length;   /* iterations of each problem that have room there */
} kvb_kmeans_options;

/* Fills the first `size` bytes of the struct with defaults, sizeof(kvb_kmeans_options) as the caller's header has it: a newer
 * library writes no further, and takes fields that an older header lacks for their defaults. */
KVB_API void kvb_kmeans_options_init_sized(kvb_kmeans_options *options, size_t size);

/* The init function. A program that looks the symbol up at run time, or was compiled when there was no macro, cannot say how long its
 * struct is: for it the function fills the fields up to progress_user, which every version had, and struct_size says so. */
KVB_API void kvb_kmeans_options_init(kvb_kmeans_options *options);
#define kvb_kmeans_options_init(options) kvb_kmeans_options_init_sized((options), sizeof(kvb_kmeans_options))

/* Whether this build can train with it. */
KVB_API bool kvb_kmeans_has_backend(kvb_kmeans_backend backend);

/* Solves `count` problems; results[count] may be NULL. Checks every problem before it starts: KVB_E_USAGE for sizes
 * out of range or n < K (numbers named), KVB_E_CHECK for NaN, infinity or a negative weight (problem and row named). */
KVB_API kvb_status kvb_kmeans_train(const kvb_kmeans_problem *problems, size_t count, const kvb_kmeans_options *options,
                                    kvb_kmeans_result *results, kvb_error *err);

#ifdef __cplusplus
}
#endif
#endif
