/* A book trained from a capture by a recipe in JSON. */
#ifndef KVB_TEST_TRAIN_RECIPE_H
#define KVB_TEST_TRAIN_RECIPE_H

#include "calib/train.h"

/* What training returns; a recipe that cannot be parsed, or a book that cannot be opened, fails the test. threads 0: all there are; report
 * may be NULL. Close *book with kvb_book_close(); it is NULL after a failure. */
kvb_status train_recipe(const kvb_capture *capture, const char *json, uint32_t threads, kvb_book **book, kvb_train_report *report,
                        kvb_error *err);

#endif
