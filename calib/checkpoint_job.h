/* What a job's results depend on, as one flat JSON object of strings, and what differs between two of them. */
#ifndef KVB_CALIB_CHECKPOINT_JOB_H
#define KVB_CALIB_CHECKPOINT_JOB_H

#include "calib/capture.h"
#include "calib/recipe.h"

/* The members that every job has: version of the tool, kind of processor (its vector code and OpenBLAS's), recipe with shapes,
 * bits and policy, seed, device. The caller adds its own inside the object that it opened. */
void kvb_checkpoint_job_put(kvb_json_writer *w, const kvb_recipe *recipe, uint64_t seed, kvb_device device);
/* Those of a run of a model over text. */
void kvb_checkpoint_job_put_input(kvb_json_writer *w, const kvb_model *model, const kvb_text *text,
                                  const kvb_capture_options *options, uint64_t chunks);
/* Those of training from a capture: its META, rows, and a checksum over what it holds, which reads all of it. */
void kvb_checkpoint_job_put_capture(kvb_json_writer *w, const kvb_capture *capture);

/* KVB_E_MISMATCH names what the checkpoint in `folder`, whose job.json is `found`, has otherwise than `job`; KVB_E_FORMAT where
 * it is no JSON object. */
kvb_status kvb_checkpoint_job_compare(const char *folder, const char *found, size_t size, const char *job, kvb_error *err);

#endif
