/* Caches in a file (`.kvp`, spec/kvp-1.md): a prompt is run once, its quantised cache is saved, and later caches go on from
 * it as if it had never left memory: window, scores, anchors, codes and positions come back bit by bit.
 *
 * To save: kvb_cache_writer_create(), _add() for each prompt, _commit(). To go on:
 *
 *     kvb_cache_file_open("prompt.kvp", &file, &err);
 *     kvb_cache_file_options(file, &options);
 *     kvb_cache_create(book, &options, &cache, &err);       // or kvb_cache_create_exact() for a file without a book
 *     kvb_cache_file_restore(file, 0, cache, &err);
 *
 * An open file is mapped, not read: whoever cuts it short while it is open kills the process (SIGBUS). Opening checks
 * header, table and what names the prompts; the bytes of a prompt are checked when it is restored. A file may be used by
 * many threads at once, a writer by one. */
#ifndef KVBOOK_CACHE_FILE_H
#define KVBOOK_CACHE_FILE_H

#include "kvbook/cache.h"

#ifdef __cplusplus
extern "C" {
#endif

#define KVB_PROMPT_NAME_MOST 255        /* bytes of a prompt's name */
#define KVB_PROMPT_TOKENS_MOST (1 << 24)

/* --- saving --- */

typedef struct kvb_cache_writer kvb_cache_writer;

typedef struct kvb_cache_writer_options {
    uint32_t struct_size;  /* set by the init function */
    const char *meta_json; /* where the caches come from: a JSON object of at most 1 MiB; default "{}" */
    int compress;          /* non-zero: zlib, by rows or by columns, where it makes a section smaller */
} kvb_cache_writer_options;
KVB_API void kvb_cache_writer_options_init(kvb_cache_writer_options *options);

/* What is saved with a cache of n tokens besides the cache. */
typedef struct kvb_saved_prompt {
    uint32_t struct_size;   /* set by the init function */
    const char *name;       /* UTF-8 without control characters, 1 to 255 bytes, unlike the others of the file */
    const uint32_t *ids;    /* [n] the tokens, or NULL */
    const float *hidden;    /* [hidden_count] what the engine needs to go on, such as the last token's hidden state, or
                               NULL; finite */
    uint32_t hidden_count;  /* up to 2^20 */
} kvb_saved_prompt;
KVB_API void kvb_saved_prompt_init(kvb_saved_prompt *prompt);

KVB_API kvb_status kvb_cache_writer_create(const kvb_cache_writer_options *options, kvb_cache_writer **writer,
                                           kvb_error *err);
/* Copies the state of a cache, which may then go on. All caches of a file have the same book, policy and seed
 * (KVB_E_MISMATCH) and all layers of a cache the same number of tokens, from 1 to 2^24 (KVB_E_USAGE). A failing call
 * leaves the writer as it was. */
KVB_API kvb_status kvb_cache_writer_add(kvb_cache_writer *writer, const kvb_cache *cache,
                                        const kvb_saved_prompt *prompt, kvb_error *err);
/* Writes the file, which appears whole or not at all, and frees the writer whether it succeeds or not. */
KVB_API kvb_status kvb_cache_writer_commit(kvb_cache_writer *writer, const char *path, kvb_error *err);
KVB_API void kvb_cache_writer_abandon(kvb_cache_writer *writer); /* NULL is allowed */

/* --- going on --- */

typedef struct kvb_cache_file kvb_cache_file;

/* KVB_E_FORMAT says what is wrong with the file. */
KVB_API kvb_status kvb_cache_file_open(const char *path, kvb_cache_file **file, kvb_error *err);
/* The same over bytes in memory, which must stay there and unchanged until the close. */
KVB_API kvb_status kvb_cache_file_open_memory(const void *bytes, size_t size, const char *name, kvb_cache_file **file,
                                              kvb_error *err);
KVB_API void kvb_cache_file_close(kvb_cache_file *file); /* NULL is allowed */

/* 32 bytes each: the identity of the file, and of the book whose codes it holds (NULL: every token is exact). */
KVB_API const uint8_t *kvb_cache_file_id(const kvb_cache_file *file);
KVB_API const uint8_t *kvb_cache_file_book_id(const kvb_cache_file *file);
KVB_API uint64_t kvb_cache_file_size(const kvb_cache_file *file);
/* The META section: UTF-8 JSON, NUL-terminated; *size excludes the NUL and may be NULL. */
KVB_API const char *kvb_cache_file_meta(const kvb_cache_file *file, size_t *size);
/* The options that a cache must have to take what is saved here. */
KVB_API void kvb_cache_file_options(const kvb_cache_file *file, kvb_cache_options *options);

/* A prompt of the file, as it is listed. */
typedef struct kvb_prompt_info {
    const char *name;
    uint32_t tokens;
    int has_ids;
    uint32_t hidden_count;         /* 0: no hidden state */
    uint64_t elements;              /* numbers of K and V that the cache stands for */
    uint64_t stored_size, raw_size; /* bytes in the file and decompressed: all of the prompt but its ids and hidden state */
} kvb_prompt_info;
KVB_API uint32_t kvb_cache_file_prompts(const kvb_cache_file *file);
/* All zero for an index out of range. */
KVB_API kvb_prompt_info kvb_cache_file_prompt(const kvb_cache_file *file, uint32_t prompt);
/* KVB_E_USAGE names the prompts that there are. */
KVB_API kvb_status kvb_cache_file_find(const kvb_cache_file *file, const char *name, uint32_t *prompt, kvb_error *err);

/* Fills an empty cache with a prompt's. KVB_E_USAGE for a cache that is not empty or an index out of range,
 * KVB_E_MISMATCH for a cache of another book, policy, seed or geometry, KVB_E_FORMAT where the prompt's bytes are damaged.
 * After a failure the cache is as empty as before. */
KVB_API kvb_status kvb_cache_file_restore(const kvb_cache_file *file, uint32_t prompt, kvb_cache *cache,
                                          kvb_error *err);
/* ids [tokens]; KVB_E_USAGE where the prompt has none. */
KVB_API kvb_status kvb_cache_file_ids(const kvb_cache_file *file, uint32_t prompt, uint32_t *ids, kvb_error *err);
/* hidden [hidden_count]; KVB_E_USAGE where the prompt has none. */
KVB_API kvb_status kvb_cache_file_hidden(const kvb_cache_file *file, uint32_t prompt, float *hidden, kvb_error *err);
/* Checks all bytes of a prompt as the calls above do, without a cache. */
KVB_API kvb_status kvb_cache_file_check(const kvb_cache_file *file, uint32_t prompt, kvb_error *err);

#ifdef __cplusplus
}
#endif
#endif
