/* From books of parts of the layers to the book of all of them. */
#ifndef KVB_CALIB_MERGE_H
#define KVB_CALIB_MERGE_H

#include "kvbook/book.h"

/* Joins books that were trained with options.first_layer and layer_count, in any order: the image has the bytes of a book trained whole
 * from the same capture with the same recipe and seed (free with free()). `name` stands for each of the `books`, 1 or more, in errors.
 * KVB_E_MISMATCH where one is no such part, where they are not of one job (model, text, recipe, seed, ...: the error says what differs),
 * where a layer is in two of them, or in none. */
kvb_status kvb_merge_books(kvb_book *const *book, const char *const *name, size_t books, uint8_t **image, size_t *size, kvb_error *err);

#endif
