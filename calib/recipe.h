/* A recipe: a method as data. JSON, one object, built in under calib/recipes/ or a user's own file:
 *
 *   {"schema": 1, "name": "antkv", "source": "arXiv 2506.19505", "about": "...",
 *    "keys":   {"frame": "pre", "weights": "exact-k", "mean": false},
 *    "values": {"weights": "exact-v", "mean": false},
 *    "kmeans": {"iterations": 15, "seeding": "kmeans++"},
 *    "cache":  {"anchors": 0.01, "score": "exact-k", "window": 32, "sinks": 0, "exact": "half"}}
 *
 * "seeding" is "kmeans++", "random" or "split". Every key is optional but schema and name; an unknown key or value is refused with the nearest known one. "keys" and
 * "values" may hold "shape": "8x256" (d x K) or "add:8x16+16" (additive: d x the centroids of each stage), which a --bits
 * or a shape of the command line overrides, and, both or neither, "fine": "2x256": a second codebook, for the tokens that
 * "exact": "fine" keeps.
 *
 * With "allocate": {"shapes": [...]}, shapes of ascending bits, every head's keys and values get the one of these that serves
 * the model's predictions best within the bits asked for (calib/train_allocate.c); fixed shapes take precedence.
 *
 * With "scale": {"axis": "channel", "group": 32, "form": "range", "clip": 1, "levels": "even"} a kind has no codebook: its numbers
 * are coded one by one, offset and scale being found while coding (kvb_scaling in kvbook/book.h). "axis" is "channel" (a scale for
 * `group` tokens of a channel) or "token" (for `group` channels of a token; 0, or more than a head has: all of the head), "form" is "range", "absmax" or
 * "rms", "levels" are "even" or, with "rms", "normal" (Lloyd-Max levels of a normal distribution), or, but with "rms", "trained": by k-means over the
 * layer's numbers, weighted as "weights" says. "form" may also be "fixed", along channels: each
 * channel's offset and scale are found once, in calibration. "pool": {"tokens": 3, "spill": 32, "layer": 2} of
 * keys keeps tokens with small keys out of the groups, exactly, from a layer on. "outliers": 0.01 holds that share of each token's numbers exactly. In place of "group", along a token,
 * "groups": {"by": "range", "size": 32} makes lists of channels, of so many in the mean, whose least and largest numbers are alike. "clip" may be "search":
 * for each group of a token (for each head along channels) the one from 0.4 to 1 that harms attention's output least. "store": "fp8" keeps what is found while coding in a byte. The bits asked for, 1 .. 8, are
 * those of a number; "then": {"layer": 16, "bits": 1} sets others from that layer on (a number under 1 is a share of the layers).
 *
 * "centroids" is "half" or "int8": each a multiple, up to 127 (63 in each of several stages and in up to 16 rows), of a step of its channel, so that decoders can hold bytes (format/base/grid.h); the book's tables are half floats either way.
 *
 * Before channels are grouped (calib/transform.h), "mean": true removes the weighted mean, and "rotation" is "none",
 * "pca", "balanced-pca" or "random" (to compare with). Keys may have a metric of the queries before the rotation:
 * "metric": {"moment": "relative", "alpha": 0.5, "ridge": 0.001}. The moment is the capture's "relative" or "post"; left
 * out, it is "post" in the frame "post" and "relative" otherwise. */
#ifndef KVB_CALIB_RECIPE_H
#define KVB_CALIB_RECIPE_H

#include "calib/transform.h"
#include "calib/shape.h"
#include "format/base/json.h"
#include "kvbook/book.h"
#include "kvbook/kmeans.h"

typedef struct kvb_recipe_text {
    const char *name;
    const char *json;
} kvb_recipe_text;

extern const kvb_recipe_text kvb_recipe_texts[]; /* generated from calib/recipes/ */
extern const size_t kvb_recipe_text_count;

typedef enum kvb_weighting {
    KVB_WEIGHT_NONE = 0,
    KVB_WEIGHT_EXACT_K = 1, /* the capture's weight_k */
    KVB_WEIGHT_EXACT_V = 2, /* the capture's weight_v */
    KVB_WEIGHT_FISHER = 3,  /* of each group of channels: the square of the capture's gradient there */
} kvb_weighting;

/* Which second moment of the queries is the keys' metric. */
typedef enum kvb_metric_moment {
    KVB_METRIC_NONE = 0,
    KVB_METRIC_RELATIVE = 1, /* the capture's moment_relative */
    KVB_METRIC_POST = 2,     /* the capture's moment_post */
} kvb_metric_moment;

typedef struct kvb_recipe_metric {
    kvb_metric_moment moment;
    double alpha, ridge;
} kvb_recipe_metric;

typedef enum kvb_recipe_levels { KVB_LEVELS_EVEN = 0, KVB_LEVELS_NORMAL = 1, KVB_LEVELS_TRAINED = 2 } kvb_recipe_levels;

/* Scales found while coding, in place of a codebook. */
typedef struct kvb_recipe_scale {
    bool used;
    kvb_scaling scaling; /* group 0: the whole head */
    kvb_recipe_levels levels;
    uint32_t list_size;  /* groups are lists of channels alike in their ranges, of so many in the mean; 0: neighbours */
    bool search;         /* clips are found by what they do to attention's output */
    double outliers;     /* share of each token's numbers held exactly, rounded up to a whole number of each head */
    double then_layer;   /* from this layer on, or this share of the layers (under 1), then_bits */
    uint32_t then_bits;  /* 0: the same bits everywhere */
    uint32_t pool_layer; /* scaling.pool and spill are those of the layers from this one on */
} kvb_recipe_scale;

/* How the keys, or the values, are coded. */
typedef struct kvb_recipe_kind {
    kvb_recipe_scale scale;
    kvb_weighting weights;
    bool mean;           /* remove the weighted mean before grouping channels */
    kvb_rotation rotation;
    kvb_recipe_metric metric; /* of keys only */
    kvb_shape shape;     /* 0 channels: from the bits asked for */
    kvb_shape fine;      /* of the fine codebook; 0 channels: none */
} kvb_recipe_kind;

enum { KVB_RECIPE_LADDER = 16 };

typedef struct kvb_recipe {
    char name[64];
    kvb_rope_frame frame; /* of the keys */
    uint32_t rope_block;
    kvb_recipe_kind kind[2]; /* by kvb_kind */
    kvb_shape ladder[KVB_RECIPE_LADDER]; /* shapes that bits are dealt out by, of ascending rates */
    uint32_t ladder_count;               /* 0: every head has the shapes of its kind */
    double budget;                       /* bits per element to deal out */
    uint32_t iterations;
    kvb_kmeans_seeding seeding;
    bool int8;                /* coarse centroids are multiples of steps: format/base/grid.h */
    kvb_kmeans_backend backend; /* not of the method: the command line's choice */
    kvb_policy policy;
    kvb_json_doc *doc; /* the text as given, for META */
} kvb_recipe;

/* By name, or by path where `name` holds a '/' or ends in ".json". KVB_E_USAGE for an unknown name (nearest named). */
kvb_status kvb_recipe_load(const char *name, kvb_recipe *recipe, kvb_error *err);
/* The same from a text; `file` stands for it in errors. KVB_E_FORMAT for anything wrong in it. */
kvb_status kvb_recipe_parse(const char *text, size_t size, const char *file, kvb_recipe *recipe, kvb_error *err);
void kvb_recipe_free(kvb_recipe *recipe);

/* Drops the ladder: the shapes of the kinds hold, which kvb_recipe_set_shape() then sets. */
void kvb_recipe_fix_shapes(kvb_recipe *recipe);
/* Gives a recipe without a ladder that of "best" in place of its shapes: bits are dealt out over heads. */
kvb_status kvb_recipe_allocate(kvb_recipe *recipe, kvb_error *err);
/* Leaves in the ladder what a model's heads can use: groups that divide every head of the supported layers. KVB_E_USAGE where
 * fewer than two shapes are left, or the budget lies outside them. Nothing to do without a ladder. */
kvb_status kvb_recipe_fit(kvb_recipe *recipe, const kvb_layer *layer, uint32_t layers, kvb_error *err);
/* With a ladder, any bits between its cheapest and its dearest shape. Without, the usual shapes: 0.375 = 32x4096, 0.5 = 16x256,
 * 0.75 = 16x4096, 1 = 8x256, 2 = 4x256, 3 = 4x4096, 4 = 2x256 (d x K). KVB_E_USAGE for other bits: the list is named. */
kvb_status kvb_recipe_set_bits(kvb_recipe *recipe, double bits, kvb_error *err);
/* "8x256": d x K for one kind, or "add:8x16+16" (calib/shape.h). */
kvb_status kvb_recipe_set_shape(kvb_recipe *recipe, kvb_kind kind, const char *shape, kvb_error *err);
/* Bits of a number of a kind with scales, in one of `layers` layers. */
uint32_t kvb_recipe_scaled_bits(const kvb_recipe_kind *kind, uint32_t layer, uint32_t layers);
/* Whether training needs a capture with gradients. */
bool kvb_recipe_wants_gradients(const kvb_recipe *recipe);
/* Whether training needs a capture with queries. */
bool kvb_recipe_wants_queries(const kvb_recipe *recipe);
/* Whether a book of it depends on captured rows at all: not where both kinds are coded by scales found while coding, at given levels. */
bool kvb_recipe_learns(const kvb_recipe *recipe);
/* Whether the book gets fine codebooks. */
bool kvb_recipe_has_fine(const kvb_recipe *recipe);
/* As recipes spell it. */
const char *kvb_seeding_name(kvb_kmeans_seeding seeding);
/* Mean of (bits of a code)/d over keys and values. */
double kvb_recipe_nominal_bits(const kvb_recipe *recipe);
/* Whether the recipe puts a linear map before the groups of a kind. */
static inline bool kvb_recipe_has_transform(const kvb_recipe_kind *kind)
{
    return kind->rotation != KVB_ROTATION_NONE || kind->metric.moment != KVB_METRIC_NONE;
}
/* Names as recipes have them. */
const char *kvb_rotation_name(kvb_rotation rotation);
const char *kvb_metric_moment_name(kvb_metric_moment moment);

#endif
