/* What both ways of tuning share, the layers' (calib/tune.h) and the one end to end (calib/distill.h): chunks and which of
 * them are held out, the order of an epoch, steps, tables, and the tokens that stay exact. */
#ifndef KVB_CALIB_TUNE_RUN_H
#define KVB_CALIB_TUNE_RUN_H

#include "calib/tune.h"
#include "calib/tune_layer.h"

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
/* One pass over the chunks that are not held out, in steps of o->batch. */
kvb_status kvb_tune_epoch(kvb_tune_run *run, uint32_t epoch, kvb_tune_chunk_fn chunk, void *user, kvb_error *err);

void kvb_tune_keep_layer(kvb_tune_run *run, uint32_t layer);    /* takes its tables for the best so far */
void kvb_tune_restore_layer(kvb_tune_run *run, uint32_t layer); /* back to those */

/* The image of `book` with the layers' tables, and "tuning" in its META. */
kvb_status kvb_tune_build(const kvb_book *book, const kvb_tune_layer *layer, const kvb_text *text,
                          const kvb_tune_options *options, const kvb_tune_report *report, uint8_t **image, size_t *size,
                          kvb_error *err);

double kvb_tune_wall_seconds(void);

#endif
