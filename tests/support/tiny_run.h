/* A tiny model over random tokens, which tests of calibration share: what they need of capture, tuning and gradients. */
#ifndef KVB_TESTS_TINY_RUN_H
#define KVB_TESTS_TINY_RUN_H

#include "calib/capture.h"
#include "model/model.h"
#include "model/text.h"

typedef struct tiny_run {
    char *folder;
    kvb_model *model; /* tiny_llama2c_default() */
    kvb_text text;    /* whole chunks and five tokens more */
    kvb_text_source source;
} tiny_run;

/* False if anything fails; the run then holds what tiny_run_close() frees. */
bool tiny_run_open(tiny_run *run, uint32_t ctx, uint32_t chunks);
void tiny_run_close(tiny_run *run);

/* A book of a recipe (JSON) from a capture of the first chunks; NULL, with the reason printed, if that fails. */
kvb_book *tiny_run_calibrate(const tiny_run *run, const char *recipe_json, uint32_t ctx, uint32_t chunks);

#endif
