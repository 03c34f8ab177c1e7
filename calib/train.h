/* From a capture to a book: per layer, KV head, K or V: transform, weighted k-means per group of channels. */
#ifndef KVB_CALIB_TRAIN_H
#define KVB_CALIB_TRAIN_H

#include "calib/capture.h"
#include "calib/recipe.h"
#include "calib/team.h"

typedef struct kvb_train_options {
    uint64_t seed;
    uint32_t holdout_every; /* one block of 256 tokens in so many is held out of training; 0: none. Default 16 */
    uint32_t threads;
    struct kvb_checkpoint *checkpoint; /* NULL: none. Layers that it has are not trained again; each is saved when it is done */
    const kvb_team *team; /* processes that train together, each with the same options but for the checkpoint, which is the first one's,
                           * and a capture that loads for all (kvb_team_capture()); NULL: none. The image is the first one's alone */
    uint32_t first_layer, layer_count; /* train these alone, the others stay exact in the book: a part, for kvb_merge_books(); 0, 0: all */
    kvb_device device; /* where k-means runs, unless the recipe names a backend of its own: layers are shared out over its GPUs. In a
                        * team each process takes one of them */
    uint32_t lanes;    /* layers trained side by side by a process alone whose capture has all layers at hand; 0: one on the CPU, two
                        * for each GPU, so that one's work on the host hides behind the other's on the GPU */
    kvb_progress_fn progress; /* total in codebooks */
    void *progress_user;
} kvb_train_options;

typedef struct kvb_train_report {
    /* Means over codebooks, relative to a mean-only predictor. Measured behind the recipe's transform, where the points
     * are clustered: they say nothing of the error of the keys and values themselves. */
    double key_error, value_error;
    double key_heldout_error, value_heldout_error; /* NaN without a hold-out */
    double points_per_centroid;                    /* of the largest K */
    double key_fine_error, value_fine_error;       /* of the fine codebooks; NaN where the recipe has none */
    /* By kind, means over heads of what coding does to attention's output, squared and relative to it, with clips of 1 and with those
     * found; NaN where none were searched for. */
    double clip_before[2], clip_after[2];
    double seconds;
} kvb_train_report;

void kvb_train_options_init(kvb_train_options *options);

/* Trains one layer at a time and returns the image of the `.kvb` file (free with free()). KVB_E_USAGE where d does not
 * divide D or there are fewer rows than centroids; KVB_E_CHECK where the capture holds NaN or all-zero weights (place
 * named). The same capture, recipe and seed give the same bytes for any number of threads, lanes and GPUs. */
kvb_status kvb_train_book(const kvb_capture *capture, const kvb_recipe *recipe, const kvb_train_options *options,
                          uint8_t **image, size_t *size, kvb_train_report *report, kvb_error *err);

#endif
