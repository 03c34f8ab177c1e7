/* A book as named arrays in a safetensors, NPZ or GGUF file, and back to the same bytes. The arrays of numbers stand under their names, with type and
 * shape; all other bytes of the book stand in one array more, "book.rest"; __metadata__ says where each array lies in the book. In NPZ that
 * is an array of bytes, too, a JSON object; in GGUF its members are strings of the metadata. Arrays that the book holds compressed stay in the rest. */
#ifndef KVB_TOOLS_EXCHANGE_H
#define KVB_TOOLS_EXCHANGE_H

#include "kvbook/book.h"

/* Writes the form that the path's end names: .safetensors, .npz or .gguf. KVB_E_USAGE for other names, and where the book is too large
 * for NPZ. */
kvb_status kvb_exchange_write(const kvb_book *book, const char *path, kvb_error *err);
/* Puts a book together from such a file: *image [*size], free with free(). KVB_E_FORMAT where the file is no exported book or does not
 * make a whole one; arrays that were changed do not fit the book's checksums. */
kvb_status kvb_exchange_read(const char *path, uint8_t **image, size_t *size, kvb_error *err);

#endif
