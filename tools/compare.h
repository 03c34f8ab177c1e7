/* A grid of recipes at several rates, calibrated on one text and scored on another, as `kvbook compare` runs it.
 *
 * Nothing is done twice: books lie in a folder under names that hold a fingerprint of all that they were made from, and the
 * scores of every chunk beside them (scores.json) under fingerprints of model, book, policy and tokens. */
#ifndef KVB_TOOLS_COMPARE_H
#define KVB_TOOLS_COMPARE_H

#include "runtime/prefill.h"
#include "tools/calibration.h"

enum { KVB_FINGERPRINT_TEXT = 65 }; /* SHA-256 as text */

typedef struct kvb_compare_cell {
    double bits;       /* as asked for */
    kvb_recipe recipe; /* at that rate */
    bool refused;      /* the recipe has no form at that rate for this model: `why` says so, the rest is not set */
    char why[sizeof(kvb_error)];
    char fingerprint[KVB_FINGERPRINT_TEXT]; /* of what the book is made from */
    char *path;                             /* of the book */
    kvb_book *book;
    kvb_policy policy; /* in force */
    double ppl, kl, top1, delta, delta_error; /* as kvb_eval_score has them */
} kvb_compare_cell;

/* What the grid is run on. */
typedef struct kvb_compare_job {
    const kvb_input *input, *calibration; /* the same model; chunks of either */
    const char *const *text, *const *calib_text; /* files as given, [texts], [calib_texts] */
    size_t texts, calib_texts; /* the second 0: no recipe learns, `calibration` only stands in for a text */
    const kvb_capture_args *capture;
    const kvb_policy_args *policy;
    kvb_anchor_protocol protocol;
    uint64_t seed;
    char *folder; /* of books and scores.json */
} kvb_compare_job;

typedef struct kvb_compare_grid {
    kvb_compare_cell *cell; /* [count], rates of a recipe beside each other */
    size_t count;
    double ppl_exact;
} kvb_compare_grid;

/* compare_grid.c. `recipes` and `bits` are lists with commas. KVB_E_USAGE for unknown recipes (nearest named), rates that are no
 * numbers, and either given twice. A recipe without a form at a rate is a refused cell. */
kvb_status kvb_compare_parse(const char *recipes, const char *bits, kvb_compare_grid *grid, kvb_error *err);
/* Refuses what does not fit the model or the calibration text. KVB_E_USAGE, the first reason, where nothing is left. */
kvb_status kvb_compare_fit(const kvb_compare_job *job, kvb_compare_grid *grid, kvb_error *err);
void kvb_compare_free(kvb_compare_grid *grid);

/* compare_books.c: opens the books of all cells, and makes those that are not there, from one capture. */
kvb_status kvb_compare_books(const kvb_compare_job *job, kvb_compare_grid *grid, kvb_progress *p, kvb_error *err);

/* compare_score.c: scores all cells chunk by chunk; what was scored before comes from scores.json. */
kvb_status kvb_compare_score(const kvb_compare_job *job, kvb_compare_grid *grid, kvb_progress *p, kvb_error *err);

/* compare_write.c: the table in three forms; free *text with free(). */
kvb_status kvb_compare_json(const kvb_compare_job *job, const kvb_compare_grid *grid, char **text, kvb_error *err);
kvb_status kvb_compare_markdown(const kvb_compare_job *job, const kvb_compare_grid *grid, char **text, kvb_error *err);
kvb_status kvb_compare_picture(const kvb_compare_job *job, const kvb_compare_grid *grid, char **text, kvb_error *err);

/* Hashing of fingerprints: of a JSON text that is complete in `w`, and of tokens. */
kvb_status kvb_fingerprint_json(kvb_json_writer *w, char text[KVB_FINGERPRINT_TEXT], kvb_error *err);
void kvb_fingerprint_put_model(kvb_json_writer *w, const kvb_model *model);
void kvb_fingerprint_put_tokens(kvb_json_writer *w, const kvb_input *input, uint64_t first, uint64_t chunks);

#endif
