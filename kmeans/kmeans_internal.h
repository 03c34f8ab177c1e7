/* What the files of kmeans/ share. One problem is solved in a frame of its own, y = x * scale - origin, where scale is a
 * power of two that brings the largest |x| near 1 and origin lies near the mean: so squares neither overflow nor vanish
 * and no digits are lost to an offset. Weights are scaled by a power of two as well. */
#ifndef KVB_KMEANS_INTERNAL_H
#define KVB_KMEANS_INTERNAL_H

#include <stdatomic.h>
#include <stdbool.h>

#include "format/base/nearest.h"
#include "kmeans/kmeans_kernels.h"
#include "kvbook/kmeans.h"

enum { KVB_KMEANS_CHANNELS = 64, KVB_KMEANS_CENTROIDS = 65536 };

/* What one pass over the input finds out. */
typedef struct kvb_kmeans_range {
    float largest;        /* |x|, over all points */
    float largest_weight; /* 1 without weights */
    bool weighted;        /* false also where all weights are equal */
    size_t training;      /* points that are not held out */
} kvb_kmeans_range;

typedef struct kvb_kmeans_frame {
    uint32_t channels;
    float scale, weight_scale;
    float origin[KVB_KMEANS_CHANNELS];
} kvb_kmeans_frame;

/* Points in the frame: transposed for the search, and row by row for the sums. */
typedef struct kvb_kmeans_points {
    uint32_t channels;   /* d */
    uint32_t row_floats; /* d + 1 rounded up to a multiple of 4 */
    size_t count;
    float *tiles; /* [ceil(n/16)][d][16]: y, zeros past n */
    float *rows;  /* [n][row_floats]: w*y, then w, then zeros */
} kvb_kmeans_points;

/* One call of kvb_kmeans_train(): how far it is and whether it should stop. */
typedef struct kvb_kmeans_run {
    const kvb_kmeans_options *options;
    atomic_bool cancelled;
    _Atomic uint64_t done;
    uint64_t total;
} kvb_kmeans_run;

/* One problem at work. */
typedef struct kvb_kmeans_job {
    kvb_kmeans_run *run;
    const kvb_kmeans_problem *problem;
    const kvb_kmeans_kernels *kernels;
    const kvb_kmeans_range *range; /* where a GPU holds the points, and `training` their number alone */
    kvb_kmeans_frame frame;
    kvb_kmeans_points training, heldout;
    uint32_t channels, centroids;
    int threads;         /* that work inside this problem */
    bool caller;         /* runs on the thread that called kvb_kmeans_train() */
    kvb_nearest *search; /* holds `table` */
    float *table;        /* [K][d] in the frame */
    uint32_t *codes;     /* [n] of the last assignment */
    float *distances;    /* [n] of the last assignment, only where a tolerance asks for them */
    size_t segments;     /* fixed ranges of points, so that sums do not depend on the threads */
    double *sums;        /* [segments][K][row_floats] */
    double *errors;      /* [segments] */
    double *curve;       /* [curve_length] of the options, or NULL */
} kvb_kmeans_job;

/* kmeans_check.c */
kvb_status kvb_kmeans_check(const kvb_kmeans_problem *problem, size_t number, const kvb_kmeans_options *options,
                            kvb_kmeans_range *range, kvb_error *err);
/* Points come in runs of holdout_block; the last of every holdout_every runs is held out. */
bool kvb_kmeans_held_out(const kvb_kmeans_options *options, size_t point);

/* kmeans_points.c */
void kvb_kmeans_frame_choose(kvb_kmeans_frame *frame, const kvb_kmeans_problem *problem,
                             const kvb_kmeans_range *range);
kvb_status kvb_kmeans_points_load(kvb_kmeans_points *points, const kvb_kmeans_frame *frame,
                                  const kvb_kmeans_problem *problem, const kvb_kmeans_range *range,
                                  const kvb_kmeans_options *options, bool heldout, kvb_error *err);
void kvb_kmeans_points_free(kvb_kmeans_points *points);
/* A training point in the frame, its channels 16 floats apart; its weight is returned. */
float kvb_kmeans_training_point(const kvb_kmeans_job *job, size_t i, float *y);
void kvb_kmeans_row_read(const kvb_kmeans_problem *problem, size_t row, float *x);
static inline float kvb_kmeans_weight(const kvb_kmeans_points *points, size_t i)
{
    return points->rows[i * points->row_floats + points->channels];
}

/* Of the failing problem with the lowest number, so that the report does not depend on the threads. */
typedef struct kvb_kmeans_failure {
    size_t number;
    kvb_status status; /* KVB_OK: none so far */
    kvb_error error;
} kvb_kmeans_failure;
/* Any thread may call it. */
void kvb_kmeans_note_failure(kvb_kmeans_failure *f, size_t number, kvb_status status, const kvb_error *error);

/* The caller's centroids in the frame. */
void kvb_kmeans_start_from_initial(kvb_kmeans_job *job);
/* Back out of the frame, into the problem's table. */
void kvb_kmeans_write_table(const kvb_kmeans_job *job);

/* kmeans_plusplus.c: fills job->table. */
kvb_status kvb_kmeans_plus_plus(kvb_kmeans_job *job, kvb_error *err);
void kvb_kmeans_point_read(const float *tiles, size_t i, uint32_t d, float *y);

/* The same in batches over all training points, for a caller that finds the nearest of each batch's centroids itself. Draws
 * the next centroids, whose number is returned and which lie at rows [][d]; 0: there are no more. Then, for each training
 * point, which of them is the nearest, and its squared distance. Closing completes job->table; NULL is allowed. */
enum { KVB_SEED_FEW = 256, KVB_SEED_BATCH = 256 };
typedef struct kvb_kmeans_seeder kvb_kmeans_seeder;
kvb_status kvb_kmeans_seeder_open(kvb_kmeans_job *job, kvb_kmeans_seeder **seeder, kvb_error *err);
uint32_t kvb_kmeans_seeder_draw(kvb_kmeans_seeder *seeder, const float **rows);
void kvb_kmeans_seeder_meet(kvb_kmeans_seeder *seeder, const uint32_t *index, const float *distance);
void kvb_kmeans_seeder_close(kvb_kmeans_seeder *seeder);

/* kmeans_split.c: fills job->table. */
kvb_status kvb_kmeans_split(kvb_kmeans_job *job, kvb_error *err);

/* kmeans_seed.c: fills job->table as the options say. */
kvb_status kvb_kmeans_seed(kvb_kmeans_job *job, kvb_error *err);

/* kmeans_lloyd.c */
const kvb_kmeans_kernels *kvb_kmeans_kernels_for(const kvb_nearest *search);
kvb_status kvb_kmeans_job_open(kvb_kmeans_job *job, kvb_error *err);
void kvb_kmeans_job_close(kvb_kmeans_job *job);
/* Codes of all training points for job->table, with the sums of every segment where asked. */
void kvb_kmeans_assign(kvb_kmeans_job *job, bool with_sums);
/* One plain iteration: codes, sums, means. */
void kvb_kmeans_step(kvb_kmeans_job *job);
/* Swaps come after every second iteration and leave at least three to settle. */
uint32_t kvb_kmeans_swap_rounds(const kvb_kmeans_options *options);
/* Iterates from job->table. */
kvb_status kvb_kmeans_lloyd(kvb_kmeans_job *job, kvb_kmeans_result *result, kvb_error *err);
/* Moves centroids [K][d] to the means of their points, whose sums and weights lie in rows of `stride`; how many have none. */
uint32_t kvb_kmeans_means(const double *sums, size_t stride, uint32_t channels, uint32_t centroids, float *table);
/* Errors by iteration without a pass over the points: sum w |y - c|^2 = squares - gain, where squares = sum w |y|^2 and the gain of
 * centroids [K][d] follows from the sums of the points that they were given. Gains are noted as iterations go, and become errors per
 * channel and weight, times `unscale`, when squares and weight are known. Both do nothing where curve is NULL. */
void kvb_kmeans_curve_note(double *curve, uint32_t length, uint32_t iteration, const double *sums, size_t stride, uint32_t channels,
                           uint32_t centroids, const float *table);
void kvb_kmeans_curve_finish(double *curve, uint32_t length, double squares, double weight, uint32_t channels, double unscale);
static inline double *kvb_kmeans_curve_of(const kvb_kmeans_options *options, size_t number)
{
    return options->curve != NULL ? options->curve + number * options->curve_length : NULL;
}
/* Calls the progress callback and notes its answer; on the calling thread only. */
void kvb_kmeans_report(kvb_kmeans_run *run);
/* True where the caller asked to stop; asks where this is the calling thread. */
bool kvb_kmeans_cancelled(kvb_kmeans_job *job);

/* kmeans_repair.c: gives centroids without weight (in the merged sums) new places and counts those it moved. */
kvb_status kvb_kmeans_repair(kvb_kmeans_job *job, uint32_t round, uint32_t *moved, kvb_error *err);
/* The same for the centroids whose removal costs least, where that pays; round of rounds. */
kvb_status kvb_kmeans_swap(kvb_kmeans_job *job, uint32_t round, uint32_t rounds, uint32_t *moved, kvb_error *err);
/* Weight times squared distance of point i to a centroid of the frame. */
double kvb_kmeans_loss(const kvb_kmeans_points *points, size_t i, const float *centroid);

/* kmeans_backend.c: in place of kvb_kmeans_lloyd(). */
kvb_status kvb_kmeans_faiss(kvb_kmeans_job *job, bool weighted, kvb_kmeans_result *result, kvb_error *err);

/* kmeans_on_device.c: the batch on a GPU, its problems checked; ranges [count], results [count] or NULL. */
kvb_status kvb_kmeans_on_device(const kvb_kmeans_problem *problems, size_t count, kvb_kmeans_run *run,
                                const kvb_kmeans_range *ranges, int threads, kvb_kmeans_result *results, kvb_error *err);

/* kmeans_stats.c: errors, usage and entropy of job->table. */
kvb_status kvb_kmeans_measure(kvb_kmeans_job *job, kvb_kmeans_result *result, kvb_error *err);

#endif
