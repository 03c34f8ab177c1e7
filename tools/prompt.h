/* Prompts as a cache takes them: token ids of a text, and prompts that were packed before. */
#ifndef KVB_TOOLS_PROMPT_H
#define KVB_TOOLS_PROMPT_H

#include "kvbook/cache_file.h"
#include "model/model.h"
#include "tools/flags.h"
#include "tools/progress.h"

typedef struct kvb_prompt {
    uint32_t *ids; /* owned; free with free() */
    size_t count;
} kvb_prompt;

/* What prompts run through, as flags say it. */
typedef struct kvb_prompt_args {
    const kvb_model_args *model;
    const char *book; /* NULL: every token stays exact */
    const kvb_policy_args *policy;
    const kvb_override_args *allow;
} kvb_prompt_args;

/* KVB_E_USAGE for flags that only a book would heed where there is none. */
kvb_status kvb_prompt_check(const kvb_prompt_args *a, kvb_error *err);
/* Opens model and book, checked against each other. What is open after a failure, the caller closes. */
kvb_status kvb_prompt_open(const kvb_prompt_args *a, kvb_progress *p, kvb_model **model, kvb_book **book, kvb_error *err);
/* An empty cache with the policy that book and flags ask for, but no fewer sinks than `sinks`. */
kvb_status kvb_prompt_new_cache(const kvb_prompt_args *a, const kvb_model *model, const kvb_book *book, uint64_t seed,
                                uint32_t sinks, kvb_cache **cache, kvb_error *err);

/* Ids of `text`, or where that is NULL of the UTF-8 file `path`; special tokens may be spelt out. `bos` comes first, or
 * nothing where it is -1. */
kvb_status kvb_prompt_encode(const kvb_model *model, const char *text, const char *path, int32_t bos, kvb_prompt *prompt,
                             kvb_error *err);

/* Opens a file of caches. Tells whether it is packed for the model by the hashes in its META, as kvb_check_identity() does for
 * books. Nothing is open after a failure. */
kvb_status kvb_prompt_open_file(const char *path, const kvb_model *model, const kvb_override_args *allow, kvb_cache_file **file,
                                kvb_error *err);
/* The same, and finds a prompt by name; name NULL: the only one there is. */
kvb_status kvb_prompt_open_packed(const char *path, const char *name, const kvb_model *model,
                                  const kvb_override_args *allow, kvb_cache_file **file, uint32_t *prompt, kvb_error *err);

/* Whether a file begins as a file of caches does: false where it cannot be read. */
bool kvb_is_cache_file(const char *path);

/* An empty cache for the model: coded by the book, or exact where it is NULL. `options` are used with a book. */
kvb_status kvb_prompt_cache(const kvb_model *model, const kvb_book *book, const kvb_cache_options *options,
                            kvb_cache **cache, kvb_error *err);

#endif
