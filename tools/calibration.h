/* Capture and training in one go: what `calibrate` does, and `eval --recipe`. */
#ifndef KVB_TOOLS_CALIBRATION_H
#define KVB_TOOLS_CALIBRATION_H

#include "calib/checkpoint_job.h"
#include "calib/checkpoint.h"
#include "calib/train.h"
#include "tools/input.h"

/* What a calibration would take. */
typedef struct kvb_calibration_plan {
    uint64_t tokens, rows;   /* of the text; kept of each head */
    uint64_t max_memory;
    uint64_t row_bytes, fixed_bytes; /* the peak is fixed_bytes + rows * row_bytes */
    uint64_t capture_bytes;          /* of what is kept */
    uint64_t codebooks, book_bytes; /* book_bytes without META and padding */
    double bits;
} kvb_calibration_plan;

void kvb_plan_calibration(const kvb_input *input, const kvb_recipe *recipe, uint64_t max_memory,
                          kvb_calibration_plan *plan);
/* What training would refuse, before hours of capture: d that does not divide a head, fewer rows than centroids. */
kvb_status kvb_check_plan(const kvb_input *input, const kvb_recipe *recipe, const kvb_calibration_plan *plan,
                          kvb_error *err);
/* Seconds that capture and training would take here, from a run over a few tokens and a few centroids. */
kvb_status kvb_estimate_calibration(const kvb_input *input, const kvb_recipe *recipe, const kvb_calibration_plan *plan,
                                    double *seconds, kvb_error *err);

/* The options of a capture of `input`. */
kvb_capture_options kvb_capture_options_for(const kvb_input *input, const kvb_capture_args *capture, uint64_t seed,
                                            uint64_t max_rows, kvb_progress *p);

/* Warns of what the capture's META says was left out of it or cut short. */
void kvb_warn_of_capture(const kvb_capture *capture, kvb_progress *p);

/* Its folder: the one given, or the output's name and ".ckpt"; NULL where the flags ask for none. */
enum { KVB_FOLDER_TEXT = 4200 };
const char *kvb_checkpoint_folder_of(const kvb_checkpoint_args *a, const char *output, char usual[KVB_FOLDER_TEXT]);
/* A checkpoint as the flags ask for one; *checkpoint is NULL where they do not. `job`: what results depend on. */
kvb_status kvb_begin_checkpoint(const kvb_checkpoint_args *a, const char *output, const kvb_json_writer *job, kvb_progress *p,
                                kvb_checkpoint **checkpoint, kvb_error *err);
/* Ends it: removed where the job is done or left nothing, else kept, which is said. Returns `status`. */
kvb_status kvb_end_checkpoint(kvb_checkpoint *checkpoint, kvb_status status, kvb_progress *p);
/* The options that a calibration captures with, which a checkpoint's job.json has too. */
kvb_capture_options kvb_calibration_options(const kvb_input *input, const kvb_recipe *recipe, const kvb_capture_args *capture,
                                            uint64_t seed, kvb_progress *p);
/* The capture that all of these recipes can be trained from; one or more. Close it with kvb_capture_close(), also on failure. */
kvb_status kvb_run_capture(const kvb_input *input, const kvb_recipe *const *recipe, size_t recipes,
                           const kvb_capture_args *capture, uint64_t seed, const kvb_checkpoint *checkpoint, kvb_progress *p,
                           kvb_capture_store **store, kvb_error *err);

/* A part of the chunks, from 0. */
typedef struct kvb_shard {
    uint64_t index, count;
} kvb_shard;
#define KVB_SHARD_HELP                                                                                                    \
    "capture the I-th of N equal parts of the chunks alone; `kvbook train` of all parts gives what one capture would"
/* "I/N", I from 1; NULL: all in one. */
kvb_status kvb_shard_parse(const char *text, kvb_shard *shard, kvb_error *err);
/* Captures a part to a file; `options` are those of the whole, and of the part afterwards. */
kvb_status kvb_capture_shard(const kvb_input *input, kvb_capture_options *options, const kvb_shard *shard, const char *path,
                             kvb_progress *p, kvb_error *err);
/* The same with what kvb_run_calibration() would capture for the recipe. */
kvb_status kvb_calibration_shard(const kvb_input *input, const kvb_recipe *recipe, const kvb_capture_args *capture, uint64_t seed,
                                 const kvb_shard *shard, const char *path, kvb_progress *p, kvb_error *err);

/* The image of the book; free with free(). */
kvb_status kvb_run_calibration(const kvb_input *input, const kvb_recipe *recipe, const kvb_capture_args *capture,
                               uint64_t seed, kvb_checkpoint *checkpoint, kvb_progress *p, uint8_t **image, size_t *size,
                               kvb_train_report *report, kvb_error *err);
/* The same by several processes: each captures a part of the text, in `folder` if it is not NULL, and trains some of the layers. The
 * checkpoint and the image are the first one's; the same bytes for any number of processes. */
kvb_status kvb_run_team_calibration(const kvb_team *team, const kvb_input *input, const kvb_recipe *recipe,
                                    const kvb_capture_args *capture, uint64_t seed, const char *folder, kvb_checkpoint *checkpoint,
                                    kvb_progress *p, uint8_t **image, size_t *size, kvb_train_report *report, kvb_error *err);
/* Layers that follow each other; a count of 0 is all. */
typedef struct kvb_layer_range {
    uint32_t first, count;
} kvb_layer_range;
#define KVB_ALL_LAYERS ((kvb_layer_range){0, 0})
/* "A-B", both among them and counted from 0, or "A"; NULL: all. */
kvb_status kvb_layer_range_parse(const char *text, kvb_layer_range *range, kvb_error *err);

/* Trains from a capture, all layers or a part of them; says what came of it. */
kvb_status kvb_run_training(const kvb_capture *capture, const kvb_recipe *recipe, uint64_t seed, kvb_device device,
                            kvb_layer_range layers, kvb_checkpoint *checkpoint, kvb_progress *p, uint8_t **image, size_t *size,
                            kvb_train_report *report, kvb_error *err);

/* Default of --max-memory and of --seed. */
#define KVB_USUAL_MEMORY ((uint64_t)8 << 30)
#define KVB_USUAL_SEED 1u
#define KVB_USUAL_SENSITIVITY 8u /* chunks */

#endif
