/* Tuning of a book's centroids: what `tune` does, and --tune elsewhere. */
#ifndef KVB_TOOLS_TUNING_H
#define KVB_TOOLS_TUNING_H

#include "calib/tune.h"
#include "format/base/json.h"
#include "tools/input.h"

/* Tunes `book` on the input's text and says what came of it; free the image with free(). Epochs that were not set are the
 * objective's own number. With a checkpoint (or NULL) its state is kept there, and what was left there is gone on from. */
kvb_status kvb_run_tuning(const kvb_input *input, const kvb_book *book, const kvb_tune_args *args, uint64_t seed,
                          kvb_checkpoint *checkpoint, kvb_progress *p, uint8_t **image, size_t *size, kvb_error *err);
/* The same in place, for the image of a book; with 0 epochs it stays as it is. On failure the image is freed. */
kvb_status kvb_tune_image(const kvb_input *input, const kvb_tune_args *args, uint64_t seed, kvb_checkpoint *checkpoint,
                          kvb_progress *p, uint8_t **image, size_t *size, kvb_error *err);
/* What its result depends on, as a member of a checkpoint's job (calib/checkpoint_job.h); none where there is no tuning. */
void kvb_tune_job_put(kvb_json_writer *w, const kvb_tune_args *args);

#endif
