/* What the files of training share. */
#ifndef KVB_CALIB_TRAIN_IMPL_H
#define KVB_CALIB_TRAIN_IMPL_H

#include "calib/checkpoint.h"
#include "calib/train.h"
#include "format/base/affine.h"
#include "format/base/rope.h"
#include "format/book_write.h"

enum { KVB_HOLDOUT_BLOCK = 256, KVB_TRAIN_MOST_DIM = KVB_TRANSFORM_MOST_DIM };

/* Points and weights of one layer and kind, ready for k-means. */
typedef struct kvb_train_points {
    const kvb_capture *capture;
    const kvb_recipe *recipe;
    uint32_t layer, threads;
    kvb_kind kind;
    uint64_t seed;
    float *moved;   /* [G][n][D] after RoPE, mean removal and transform; NULL: the capture's half floats as they are */
    float *weight;  /* [G][n] with mean 1 in each head; NULL: all ones */
    float *gradient; /* [G][n][D] squares of the gradient where the points are, of which each group's weights are sums; NULL: all
                      * groups have `weight` */
    float *mean;    /* [G][D], or NULL */
    float *forward; /* [G][D][D], or NULL: no transform */
    float *inverse; /* [G][D][D], NULL where forward is */
} kvb_train_points;

/* Checks and prepares; `points` has its members up to the seed filled in. On failure nothing is left to free. */
kvb_status kvb_train_points_create(kvb_train_points *points, kvb_error *err);
void kvb_train_points_free(kvb_train_points *points);

/* Fills moved, mean, forward and inverse as the recipe says; weight is there. kvb_train_points_free() frees what a
 * failure leaves. */
kvb_status kvb_train_points_move(kvb_train_points *points, kvb_error *err);

/* The position that the recipe's frame turns a row's key by. */
static inline int64_t kvb_train_turn(const kvb_train_points *points, size_t row)
{
    const uint64_t block = points->recipe->frame == KVB_FRAME_BLOCK ? points->recipe->rope_block : 0;
    const uint64_t position = points->capture->row_position[row];
    return (int64_t)(block != 0 ? position % block : position);
}

/* train_fisher.c: g^T g of whole rows [G][n]. KVB_E_MISMATCH where the capture has no gradients. */
kvb_status kvb_train_fisher_rows(const kvb_train_points *points, float *weight, kvb_error *err);
/* Fills points->gradient; rope: NULL where the frame does not turn. */
kvb_status kvb_train_fisher_move(kvb_train_points *points, const kvb_rope_table *rope, kvb_error *err);
/* Weights with mean 1 of one group in rows 0, step, 2 step, ...; all 1 where no error in the group matters. */
void kvb_train_fisher_group(const kvb_train_points *points, uint32_t head, uint32_t channels, uint32_t group, size_t step,
                            size_t count, float *weight);

/* Row `row` of a head where the points are, y [D]. */
void kvb_train_points_row(const kvb_train_points *points, uint32_t head, size_t row, float *y);
/* Rows that the capture left out, and, of those that do not count, also the ones that the recipe keeps exact as sinks. */
bool kvb_train_points_left_out(const kvb_train_points *points, uint32_t head, size_t row);
bool kvb_train_points_counts(const kvb_train_points *points, uint32_t head, size_t row);
int kvb_train_threads(const kvb_train_points *points);

/* A failure of one head: "layer 3, KV head 1, keys". */
kvb_status kvb_train_points_refuse(const kvb_train_points *points, uint32_t head, kvb_status status, kvb_error *err,
                                   const char *format, ...) __attribute__((format(printf, 5, 6)));

/* One small problem made out of points, with the recipe's iterations and seeding; a failure is that head's. */
kvb_status kvb_train_points_solve(const kvb_train_points *points, uint32_t head, const kvb_kmeans_problem *problem, kvb_error *err);

/* Errors of a layer's codebooks, added up by kind: a plain list of numbers without padding. */
typedef struct kvb_layer_sums {
    double error[2], heldout[2], fine[2], clip_before[2], clip_after[2];
    uint64_t count[2], fine_count[2], clip_count[2];
} kvb_layer_sums;

/* A layer's token weights counted by place and by size: the rows with the highest 1 % of weight_k of each head by position, and all rows
 * by floor(log2(weight / mean of the head)). A plain list of numbers without padding. */
enum { KVB_POSITION_BINS = 16, KVB_SCORE_BINS = 25 };
typedef struct kvb_layer_scores {
    uint64_t position[KVB_POSITION_BINS], score[KVB_SCORE_BINS];
    uint64_t anchors, rows;
} kvb_layer_scores;

/* What one layer's training leaves for the book. */
typedef struct kvb_layer_result {
    float *table;         /* all codebooks, one after the other */
    float *mean[2];       /* [G][D] by kind, or NULL */
    float *forward[2];    /* [G][D][D] by kind, or NULL */
    float *inverse[2];
    kvb_quality *quality; /* [codebooks] in the same order */
    kvb_scaling *scaling[2]; /* [G] by kind, where the recipe has scales */
    uint16_t *fixed[2];      /* [G][2][D] by kind, which these point into; NULL where none are of calibration */
    float *levels[2];        /* [K] by kind, or NULL: even ones */
    uint16_t *lists[2];      /* [G][KVB_LISTS_SIZE(D)] by kind: how many, then the order [D], then where each ends; or NULL */
    float *clips[2];         /* [G][D] by kind, of each group, or along channels the head's first; NULL where none was searched for */
    kvb_layer_sums sums;
    kvb_layer_scores scores;
    float *curve; /* [G][2][length + 1] by kind: a head's error, relative to the variance, mean of its groups, before each iteration and
                   * after the last; groups that ended early stay where they are. NaN past the longest, and where nothing is trained */
    float *fine_table;    /* fine codebooks, one after the other, or NULL */
    kvb_book_part *fine;  /* [G][2] or NULL */
} kvb_layer_result;

#define KVB_LISTS_SIZE(dim) (1 + 2 * (size_t)(dim))

typedef struct kvb_trainer {
    const kvb_capture *capture;
    const kvb_recipe *recipe;
    const kvb_train_options *options;
    uint32_t holdout_every;
    kvb_layer *layer;         /* [layers] with the recipe's frame */
    kvb_book_part *part;      /* [layers][part_heads][2] */
    kvb_layer_result *result; /* [layers] */
    uint32_t *chosen;         /* [layers][part_heads][2] of the recipe's ladder, or NULL: the recipe's shapes */
    uint32_t part_heads;
    uint64_t done, total; /* codebooks */
    uint32_t gpu, gpu_lanes; /* where this lane's k-means runs, and how many lanes share it; unused on the CPU */
} kvb_trainer;

static inline size_t kvb_train_item(const kvb_trainer *t, uint32_t layer, uint32_t head, int kind)
{
    return ((size_t)layer * t->part_heads + head) * 2 + (size_t)kind;
}

/* The shape of a head's codebooks of one kind, coarse or fine, and the groups that they cut its channels into. */
static inline kvb_shape kvb_train_shape(const kvb_trainer *t, uint32_t layer, uint32_t head, int kind, bool fine)
{
    const kvb_recipe_kind *k = &t->recipe->kind[kind];
    if (fine)
        return k->fine;
    if (k->scale.used)
        return (kvb_shape){1, 1u << kvb_recipe_scaled_bits(k, layer, t->capture->layers), 1};
    return t->chosen != NULL ? t->recipe->ladder[t->chosen[kvb_train_item(t, layer, head, kind)]] : k->shape;
}

static inline uint32_t kvb_train_groups(const kvb_trainer *t, uint32_t layer, uint32_t head, int kind, bool fine)
{
    if (!fine && t->recipe->kind[kind].scale.used)
        return 0; /* nothing to train */
    return t->capture->geometry[layer].head_dim / kvb_train_shape(t, layer, head, kind, fine).channels;
}

static inline bool kvb_train_has(const kvb_trainer *t, uint32_t layer)
{
    return t->capture->geometry[layer].kind != KVB_LAYER_UNSUPPORTED;
}

/* A part of the layers, not all. */
static inline bool kvb_train_is_part(const kvb_train_options *o, uint32_t layers)
{
    return o->layer_count != 0 && o->layer_count < layers;
}

/* Among the layers that were asked for. */
static inline bool kvb_train_wants(const kvb_trainer *t, uint32_t layer)
{
    const kvb_train_options *o = t->options;
    return kvb_train_has(t, layer) && (o->layer_count == 0 || (layer >= o->first_layer && layer - o->first_layer < o->layer_count));
}

/* Points of one layer and kind; on failure nothing is left to free. */
kvb_status kvb_train_points_of(const kvb_trainer *t, uint32_t layer, kvb_kind kind, kvb_train_points *points,
                               kvb_error *err);

/* The group's points inside the captured half floats, or inside the moved copy. */
kvb_kmeans_problem kvb_train_problem(const kvb_trainer *t, const kvb_train_points *points, uint32_t head,
                                     const kvb_shape *shape, uint32_t group);

/* Measures what each shape of the recipe's ladder costs each head and kind in the model's predictions, and fills `chosen`
 * with the best choice within the recipe's bits. KVB_E_MISMATCH where the capture has no sensitivities. */
kvb_status kvb_train_allocate(kvb_trainer *t, kvb_error *err);

/* Codebooks of a layer: the coarse or the fine ones; 0 where it has none. */
size_t kvb_train_count(const kvb_trainer *t, uint32_t layer, bool fine);

/* Floats of a layer's tables: of each head and kind S*rows*d = rows*D. */
size_t kvb_train_table_floats(const kvb_trainer *t, uint32_t layer, bool fine);
/* Fills a layer's parts from its result: the coarse codebooks, or the fine ones, which hang on to them. */
void kvb_train_describe(const kvb_trainer *t, uint32_t layer, bool fine);

/* train_scores.c: counts a layer's token weights, while the capture has the layer at hand; nothing where it has no weights or positions. */
kvb_status kvb_train_count_scores(kvb_trainer *t, uint32_t layer, kvb_error *err);
kvb_layer_scores kvb_train_sum_scores(const kvb_trainer *t);
/* Writes the object "scores" into META, or nothing where none were counted. */
void kvb_train_put_scores(kvb_json_writer *w, uint32_t ctx, const kvb_layer_scores *all);
/* Positions run below this. */
uint32_t kvb_train_context(const kvb_capture *capture);

/* The means that a report has, of the sums over layers. */
kvb_train_report kvb_train_report_of(const kvb_layer_sums *all, double points_per_centroid);
void kvb_train_add_sums(kvb_layer_sums *all, const kvb_layer_sums *one);
void kvb_train_add_scores(kvb_layer_scores *all, const kvb_layer_scores *one);
/* Writes the object "quality" into META. */
void kvb_train_put_quality(kvb_json_writer *w, const kvb_train_report *report);
/* Of clips that were searched for: what coding does to attention's output with clips of 1, and with those found. */
void kvb_train_put_clips(kvb_json_writer *w, const kvb_train_report *report);

/* train_part.c: what the META of a book of a part of the layers says beyond others, in "training": the object "part" with the layers
 * and what their sums were, exactly, so that parts together give the numbers of a whole. */
void kvb_train_put_part(kvb_json_writer *w, const kvb_trainer *t, const kvb_layer_scores *scores);
/* The layers of a part; false where the value is none. */
bool kvb_train_part_range(const kvb_json *part, uint32_t *first, uint32_t *last);
/* One layer's sums, and the scores of all of the part's. KVB_E_FORMAT, of `name`, where they are not what kvb_train_put_part() writes. */
/* One layer's curves, to be freed; NULL where the part has none. `length`: iterations that there is room for. */
kvb_status kvb_train_part_curves(const kvb_json *part, uint32_t layer, uint32_t heads, uint32_t length, const char *name, float **curve,
                                 kvb_error *err);
kvb_status kvb_train_part_sums(const kvb_json *part, uint32_t layer, const char *name, kvb_layer_sums *sums, kvb_error *err);
kvb_status kvb_train_part_scores(const kvb_json *part, const char *name, kvb_layer_scores *scores, kvb_error *err);

/* train_curves.c: iterations that a layer's curves have room for. */
uint32_t kvb_train_curve_length(const kvb_recipe *recipe);
/* The curves of layers: [heads][2][length + 1] each as in kvb_layer_result, which the layers keep; NULL where there are none. */
typedef struct kvb_layer_curves {
    uint32_t layers, length;
    uint32_t *heads;      /* [layers] */
    const float **curve;  /* [layers] */
} kvb_layer_curves;

/* No heads and no curves yet; false if out of memory. Free in either case. */
bool kvb_train_curves_create(uint32_t layers, uint32_t length, kvb_layer_curves *c);
bool kvb_train_curves_of(const kvb_trainer *t, kvb_layer_curves *c);
void kvb_train_curves_free(kvb_layer_curves *c);
/* The last point of a curve of up to `length` iterations; 0 where it has none, or only the start. */
uint32_t kvb_train_curve_end(const float *curve, uint32_t length);
/* Writes the object "curves" into META: quartiles over the heads of all layers; nothing where none are known. */
void kvb_train_put_curves(kvb_json_writer *w, const kvb_layer_curves *c);

/* train_resume.c: a trained layer as bytes, and back: then its result and parts are as training would have left them. `name` stands for
 * the bytes in errors. */
void kvb_train_pack_layer(const kvb_trainer *t, uint32_t layer, kvb_record *record);
kvb_status kvb_train_unpack_layer(kvb_trainer *t, uint32_t layer, kvb_saved *saved, const char *name, kvb_error *err);
/* Frees what a layer's result holds. */
void kvb_train_free_layer(kvb_layer_result *r);

/* What a checkpoint keeps. All do nothing without one. Loading says whether it was there. */
kvb_status kvb_train_save_layer(const kvb_trainer *t, uint32_t layer, kvb_error *err);
kvb_status kvb_train_load_layer(kvb_trainer *t, uint32_t layer, bool *there, kvb_error *err);
kvb_status kvb_train_save_choice(const kvb_trainer *t, kvb_error *err);
kvb_status kvb_train_load_choice(kvb_trainer *t, bool *there, kvb_error *err);

/* Trains a layer's codebooks: fills its result and its parts. What it leaves after a failure belongs to the trainer. */
kvb_status kvb_train_layer(kvb_trainer *t, uint32_t layer, kvb_error *err);

/* train_lanes.c: how many layers the job trains at a time, by itself, and training so many of them. A failure is the first layer's. */
kvb_status kvb_train_choose_lanes(kvb_trainer *t, uint32_t *lanes, kvb_error *err);
kvb_status kvb_train_lanes(kvb_trainer *t, const uint32_t *layer, uint32_t count, kvb_error *err);

/* META of the book: the capture's, the recipe and how it was trained. NULL if out of memory; free with free().
 * KVB_E_FORMAT only where the capture's own META cannot be parsed. */
kvb_status kvb_train_meta_write(const kvb_trainer *t, const kvb_train_report *report, const kvb_layer_scores *scores, char **meta,
                                kvb_error *err);

/* train_levels.c: fills fixed [G][2][D] and level [count], ascending; either may be NULL, where the recipe has none of calibration. */
kvb_status kvb_train_levels(const kvb_trainer *t, uint32_t layer, kvb_kind kind, const kvb_scaling *scaling, uint16_t *fixed,
                            float *level, uint32_t count, kvb_error *err);

/* train_lists.c: lists [G][KVB_LISTS_SIZE(D)] of `size` channels in the mean, alike in their ranges. */
kvb_status kvb_train_lists(const kvb_trainer *t, const kvb_train_points *points, uint32_t size, uint16_t *lists, kvb_error *err);

/* train_clips.c: clips [G][D], of each group (along channels, the head's first) the one that harms attention's output least, with scaling
 * [G] and its lists; before and after [G]: squared error relative to the output with all clips 1 and with those found, never more.
 * KVB_E_MISMATCH where the capture has no queries. */
kvb_status kvb_train_clips(const kvb_train_points *points, const kvb_scaling *scaling, const kvb_levels *levels, float *clips, double *before,
                           double *after, kvb_error *err);

/* train_scale.c: fills scaling and levels of a layer's result, for kinds with scales. */
kvb_status kvb_train_scale(kvb_trainer *t, uint32_t layer, kvb_error *err);

/* "keys" or "values" */
static inline const char *kvb_train_kind_name(kvb_kind kind)
{
    return kind == KVB_KEY ? "keys" : "values";
}

#endif
