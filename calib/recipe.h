/* A recipe: a method as data. JSON, one object, built in under calib/recipes/ or a user's own file:
 *
 *   {"schema": 1, "name": "antkv", "source": "arXiv 2506.19505", "about": "...",
 *    "keys":   {"frame": "pre", "weights": "exact-k", "mean": false},
 *    "values": {"weights": "exact-v", "mean": false},
 *    "kmeans": {"iterations": 15, "seeding": "kmeans++"},
 *    "cache":  {"anchors": 0.01, "score": "exact-k", "window": 32, "sinks": 0}}
 *
 * "seeding" is "kmeans++", "random" or "split". Every key is optional but schema and name; an unknown key or value is
 * refused with the nearest known one. "keys" and "values" may hold "shape": "8x256" (d x K), which a --bits or a shape of
 * the command line overrides. */
#ifndef KVB_CALIB_RECIPE_H
#define KVB_CALIB_RECIPE_H

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
} kvb_weighting;

/* How the keys, or the values, are coded. */
typedef struct kvb_recipe_kind {
    kvb_weighting weights;
    bool mean;           /* remove the weighted mean before grouping channels */
    uint32_t channels;   /* d; 0: from the bits asked for */
    uint32_t centroids;  /* K */
} kvb_recipe_kind;

typedef struct kvb_recipe {
    char name[64];
    kvb_rope_frame frame; /* of the keys */
    uint32_t rope_block;
    kvb_recipe_kind kind[2]; /* by kvb_kind */
    uint32_t iterations;
    kvb_kmeans_seeding seeding;
    kvb_kmeans_backend backend; /* not of the method: the command line's choice */
    kvb_policy policy;
    kvb_json_doc *doc; /* the text as given, for META */
} kvb_recipe;

/* By name, or by path where `name` holds a '/' or ends in ".json". KVB_E_USAGE for an unknown name (nearest named). */
kvb_status kvb_recipe_load(const char *name, kvb_recipe *recipe, kvb_error *err);
/* The same from a text; `file` stands for it in errors. KVB_E_FORMAT for anything wrong in it. */
kvb_status kvb_recipe_parse(const char *text, size_t size, const char *file, kvb_recipe *recipe, kvb_error *err);
void kvb_recipe_free(kvb_recipe *recipe);

/* The usual shapes: 0.375 = 32x4096, 0.5 = 16x256, 0.75 = 16x4096, 1 = 8x256, 2 = 4x256, 3 = 4x4096, 4 = 2x256 (d x K).
 * KVB_E_USAGE for other bits: the list is named. */
kvb_status kvb_recipe_set_bits(kvb_recipe *recipe, double bits, kvb_error *err);
/* "8x256": d x K for one kind. */
kvb_status kvb_recipe_set_shape(kvb_recipe *recipe, kvb_kind kind, const char *shape, kvb_error *err);
/* As recipes spell it. */
const char *kvb_seeding_name(kvb_kmeans_seeding seeding);
/* Mean of log2(K)/d over keys and values. */
double kvb_recipe_nominal_bits(const kvb_recipe *recipe);

#endif
