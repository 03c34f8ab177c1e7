/* What both ways of tuning share, the layers' (calib/tune.h) and the one end to end (calib/distill.h): chunks and which of
 * them are held out, the order of an epoch, steps, tables, and the tokens that stay exact. */
#ifndef KVB_CALIB_TUNE_RUN_H
#define KVB_CALIB_TUNE_RUN_H

#include "calib/tune.h"
#include "calib/tune_layer.h"

/* How far a run is: between two steps, or behind the last one of an epoch that is judged now. */
typedef struct kvb_tune_mark {
    uint64_t steps, done; /* of all epochs; passes over a chunk, for progress */
    uint32_t epochs;      /* that are over, judged where that is to be done */
    double sum;           /* of the losses of the epoch under way */
    double seconds;       /* of training so far */
    kvb_tune_kl kl;
} kvb_tune_mark;

typedef struct kvb_tune_run {
    const kvb_model *model;
    const kvb_text *text;
    const kvb_book *book;
    const kvb_tune_options *o;
    kvb_tune_report report;
    uint32_t layers;
    uint64_t chunks, trained; /* all of them; those not held out */
    uint64_t *order;          /* [trained] chunk numbers, in the order of the epoch */
    kvb_tune_layer *layer;    /* [layers] */
    kvb_tune_work *work;
    uint32_t *tokens;         /* [ctx] of the chunk at hand */
    uint8_t **kept;           /* [chunks][layers] -> [G][T], NULL where not known yet */
    uint64_t chunk;           /* at hand */
    uint64_t done, total;     /* passes over a chunk; the caller sets `total` */
    double start;             /* seconds */
    double sum;               /* of the losses of chunks, where the way of tuning wants it */
    double trained_seconds;   /* of the epochs that are over */
    kvb_tune_mark mark;       /* the last one reached; tables are as they were there */
    bool marked;              /* there is one */
    double saved_at, save_seconds; /* the last save: when, and what it took */
} kvb_tune_run;

/* Makes all of it. KVB_E_USAGE for options that make no sense and for fewer than two chunks, KVB_E_MISMATCH where the book's
 * geometry is not the model's. `grams`: for errors of attention outputs. End it whatever comes back. */
kvb_status kvb_tune_begin(kvb_tune_run *run, const kvb_model *model, const kvb_text *text, const kvb_book *book,
                          const kvb_tune_options *options, bool grams, kvb_error *err);
/* With `image`: the tuned book, from the best tables, and the report where it is not NULL. Frees everything. */
kvb_status kvb_tune_finish(kvb_tune_run *run, kvb_status status, uint8_t **image, size_t *size, kvb_tune_report *report,
                           kvb_error *err);

bool kvb_tune_is_held_out(const kvb_tune_run *run, uint64_t chunk);
/* Makes `chunk` the one at hand. */
void kvb_tune_take(kvb_tune_run *run, uint64_t chunk);
/* A pass more, unless `done` is 0: KVB_E_CANCELLED where the caller has had enough. */
kvb_status kvb_tune_passed(kvb_tune_run *run, uint32_t done, kvb_error *err);

/* Asks which tokens of a call of the exact model stay exact, where that is not known yet: it depends on that model alone. */
kvb_status kvb_tune_find_kept(kvb_tune_run *run, const kvb_attention_call *call, kvb_error *err);
/* A call of the chunk at hand, without a target. */
kvb_tune_call kvb_tune_call_of(const kvb_tune_run *run, const kvb_attention_call *call);

/* Adds the gradient of factor times the chunk's loss to the tables'. */
typedef kvb_status (*kvb_tune_chunk_fn)(void *user, uint64_t chunk, double factor, kvb_error *err);
/* Steps of an epoch. */
uint64_t kvb_tune_steps(const kvb_tune_run *run);
/* One pass over the chunks that are not held out, in steps of o->batch: those of them that report.steps does not count yet. `sum`
 * is zeroed before the first. */
kvb_status kvb_tune_epoch(kvb_tune_run *run, uint32_t epoch, kvb_tune_chunk_fn chunk, void *user, kvb_error *err);

/* tune_resume.c: the state in the options' checkpoint, where there is one. */
/* Goes on from what is there: nothing, or the run's tables, sums and report as they were at its mark. */
kvb_status kvb_tune_resume(kvb_tune_run *run, kvb_error *err);
/* A mark is reached, so many epochs being over: saves it, unless saving would take too much of the time. */
kvb_status kvb_tune_reached(kvb_tune_run *run, uint32_t epochs, kvb_error *err);
/* Saves the last mark, also in the middle of a step; tables must not have been restored since. */
kvb_status kvb_tune_save(kvb_tune_run *run, kvb_error *err);

void kvb_tune_keep_layer(kvb_tune_run *run, uint32_t layer);    /* takes its tables for the best so far */
void kvb_tune_restore_layer(kvb_tune_run *run, uint32_t layer); /* back to those */

/* The image of `book` with the layers' tables, and "tuning" in its META. */
kvb_status kvb_tune_build(const kvb_book *book, const kvb_tune_layer *layer, const kvb_text *text,
                          const kvb_tune_options *options, const kvb_tune_report *report, uint8_t **image, size_t *size,
                          kvb_error *err);

double kvb_tune_wall_seconds(void);

#endif
