/* Whether a book belongs to a model: by geometry always, by the hashes in its META unless told otherwise by name. */
#ifndef KVB_TOOLS_IDENTITY_H
#define KVB_TOOLS_IDENTITY_H

#include "format/base/json.h"
#include "kvbook/cache_file.h"
#include "model/model.h"
#include "tools/flags.h"

/* KVB_E_MISMATCH names what differs. Geometry (layers, heads, head dimension, RoPE, attention scale) has no override:
 * codes of another geometry decode to noise. `path` is the book's. */
kvb_status kvb_check_identity(const kvb_book *book, const char *path, const kvb_model *model,
                              const kvb_override_args *allow, kvb_error *err);

/* The same by hashes alone, for a META of any kind of file at `path`; `remedy` says what to do instead. */
kvb_status kvb_check_hashes(const char *meta_json, size_t size, const char *path, const char *remedy,
                            const kvb_model *model, const kvb_override_args *allow, kvb_error *err);

/* Whether packed caches belong to a book; book NULL: to none. KVB_E_USAGE where they need one. */
kvb_status kvb_check_packed_book(const kvb_cache_file *file, const char *path, const kvb_book *book, const char *book_path,
                                 kvb_error *err);

/* A string of a META object by its path, such as "model.name"; "" where there is none. */
const char *kvb_meta_string(const kvb_json *meta, const char *path);
/* The line "model ..." of what `info` prints. */
void kvb_print_model(const kvb_json *meta);
const kvb_json *kvb_meta_find(const kvb_json *meta, const char *path);
/* "8 chunks of 2048 tokens", from the members `chunks` and `ctx` of an object; "-" where they are not known. */
enum { KVB_EXTENT_TEXT = 80 };
const char *kvb_meta_extent(const kvb_json *meta, char text[KVB_EXTENT_TEXT]);

#endif
