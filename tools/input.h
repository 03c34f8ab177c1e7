/* What a run over text starts from: a model, its tokens, and how they are cut into chunks. */
#ifndef KVB_TOOLS_INPUT_H
#define KVB_TOOLS_INPUT_H

#include "model/model.h"
#include "model/text.h"
#include "tools/flags.h"
#include "tools/progress.h"

typedef struct kvb_input {
    kvb_model *model;
    kvb_text text;
    uint32_t ctx;
    uint64_t skip, chunks; /* chunks: how many there are to use, at least 1 */
    int32_t bos;           /* token put first in each chunk, or -1 */
} kvb_input;

/* Sets the number of threads of everything that follows. */
void kvb_use_threads(const kvb_common_args *a);

kvb_status kvb_open_model(const kvb_model_args *a, kvb_progress *p, kvb_model **model, kvb_error *err);
/* Whether BOS comes first: flags, then what the model file asks for. -1 for no. */
kvb_status kvb_choose_bos(const kvb_model *model, bool bos, bool no_bos, int32_t *token, kvb_error *err);
/* Both of the above, and the text in chunks. */
kvb_status kvb_input_open(kvb_input *input, const kvb_model_args *m, const kvb_text_args *t, kvb_progress *p,
                          kvb_error *err);
/* The text alone, for a model that is open: fills text, skip and chunks. */
kvb_status kvb_input_load_text(kvb_input *input, const kvb_text_args *t, kvb_progress *p, kvb_error *err);
void kvb_input_close(kvb_input *input);

/* Fails now, not after an hour, where `path` could not be written, or is one of the inputs. */
kvb_status kvb_check_output(const char *path, const char *const *inputs, size_t count, kvb_error *err);

#endif
