/* Tuning of a book end to end: centroids adjusted by gradient so that the model with coded keys and values predicts what the
 * exact model does, min KL(exact model || model with the coded cache), the mean over the positions of a chunk.
 *
 * A step runs each of its chunks through the exact model (the teacher), through the model whose attention reads codes (the
 * student), and back. Codes are assigned anew every time; no gradient flows through the choice of a code. It does flow
 * through queries, and through keys and values while they are read exactly, as if those were not rounded. Held-out chunks
 * never move a centroid: after each epoch they say whether its centroids are the best so far, and where no epoch made their
 * KL fall the book keeps the centroids it came with, all of them.
 *
 * Memory: kvb_backward's tape (model/backward.h), one layer's keys, values and attention, 4 bytes for each code of a chunk in
 * all layers, 512 * vocab floats of logits, and up to `teacher_bytes` of chunks*T*E floats, the teacher's hidden states. */
#ifndef KVB_CALIB_DISTILL_H
#define KVB_CALIB_DISTILL_H

#include "calib/tune.h"

/* As kvb_tune_options_init(), but one epoch, rate 0.05, one chunk in 16 held out and 512 MiB for the teacher. */
void kvb_distill_options_init(kvb_tune_options *options);

/* As kvb_tune_book(), which see for errors; `stream` is not read, for the stream is always the coded one. Of the report,
 * `layer` stays NULL and `kl` is filled. */
kvb_status kvb_distill_book(const kvb_model *model, const kvb_text *text, const kvb_book *book,
                            const kvb_tune_options *options, uint8_t **image, size_t *size, kvb_tune_report *report,
                            kvb_error *err);

#endif
