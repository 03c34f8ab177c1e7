/* What the files of tuning share. */
#ifndef KVB_CALIB_TUNE_IMPL_H
#define KVB_CALIB_TUNE_IMPL_H

#include "calib/tune.h"
#include "calib/tune_layer.h"

/* The image of `book` with the layers' tables, and "tuning" in its META. */
kvb_status kvb_tune_build(const kvb_book *book, const kvb_tune_layer *layer, const kvb_text *text,
                          const kvb_tune_options *options, const kvb_tune_report *report, uint8_t **image, size_t *size,
                          kvb_error *err);

/* KVB_E_USAGE for options that make no sense, KVB_E_MISMATCH where the book's geometry is not the model's. */
kvb_status kvb_tune_check(const kvb_model *model, const kvb_book *book, const kvb_tune_options *options, kvb_error *err);

#endif
