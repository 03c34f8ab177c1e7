#include "tools/packed.h"

#include "format/base/fail.h"
#include "format/base/sha256.h"
#include "kvbook/cache_file.h"
#include "tools/identity.h"
#include "tools/input.h"
#include "tools/output.h"
#include "tools/summary.h"

/* --- info --- */

static double bits_of(const kvb_prompt_info *p)
{
    return 8.0 * (double)p->stored_size / (double)p->elements;
}

static void print_prompts(const kvb_cache_file *f)
{
    printf("prompts     %u\n", kvb_cache_file_prompts(f));
    for (uint32_t i = 0; i < kvb_cache_file_prompts(f); i++) {
        const kvb_prompt_info p = kvb_cache_file_prompt(f, i);
        char stored[32], raw[32];
        printf("            ");
        kvb_put_printable(stdout, p.name);
        printf(": %u tokens in %s", p.tokens, kvb_size_text(p.stored_size, stored));
        if (p.stored_size != p.raw_size)
            printf(" (%s before zlib)", kvb_size_text(p.raw_size, raw));
        printf(", %.3f bits an element\n", bits_of(&p));
    }
}

static void print_text(const char *path, const kvb_cache_file *f, const kvb_json *meta)
{
    char size[32], hex[65], policy[96];
    kvb_cache_options options;
    kvb_cache_file_options(f, &options);
    kvb_sha256_hex(kvb_cache_file_id(f), hex);
    printf("%s: packed caches, %s, id %.16s\n", path, kvb_size_text(kvb_cache_file_size(f), size), hex);
    kvb_print_model(meta);
    if (kvb_cache_file_book_id(f) != NULL) {
        kvb_sha256_hex(kvb_cache_file_book_id(f), hex);
        printf("book        ");
        kvb_put_printable(stdout, kvb_meta_string(meta, "book.name"));
        printf(", id %.16s; %s\n", hex, kvb_policy_text(&options.policy, policy));
    } else {
        printf("book        none: every token is exact\n");
    }
    print_prompts(f);
}

static void put_prompt(kvb_json_writer *w, const kvb_prompt_info *p)
{
    kvb_json_begin_object(w, NULL);
    kvb_json_put_string(w, "name", p->name);
    kvb_json_put_u64(w, "tokens", p->tokens);
    kvb_json_put_bool(w, "has_ids", p->has_ids != 0);
    kvb_json_put_u64(w, "hidden", p->hidden_count);
    kvb_json_put_u64(w, "bytes", p->stored_size);
    kvb_json_put_u64(w, "bytes_raw", p->raw_size);
    kvb_json_put_u64(w, "elements", p->elements);
    kvb_json_put_number(w, "bits", bits_of(p));
    kvb_json_end_object(w);
}

static void put_file(kvb_json_writer *w, const char *path, const kvb_cache_file *f, const kvb_json *meta)
{
    kvb_cache_options options;
    kvb_cache_file_options(f, &options);
    kvb_json_put_string(w, "cache", path);
    kvb_json_put_sha256(w, "id", kvb_cache_file_id(f));
    kvb_json_put_sha256(w, "book_id", kvb_cache_file_book_id(f));
    kvb_json_put_u64(w, "bytes", kvb_cache_file_size(f));
    kvb_json_put_u64(w, "seed", options.seed);
    kvb_put_policy(w, &options.policy, NULL);
    kvb_json_begin_array(w, "prompts");
    for (uint32_t i = 0; i < kvb_cache_file_prompts(f); i++) {
        const kvb_prompt_info p = kvb_cache_file_prompt(f, i);
        put_prompt(w, &p);
    }
    kvb_json_end_array(w);
    kvb_json_put_value(w, "meta", meta);
}

kvb_status kvb_info_packed(const char *path, bool json, kvb_error *err)
{
    kvb_cache_file *f;
    kvb_json_doc *doc = NULL;
    size_t size;
    kvb_status status = kvb_cache_file_open(path, &f, err);
    if (status != KVB_OK)
        return status;
    const char *meta = kvb_cache_file_meta(f, &size);
    status = kvb_json_parse(meta, size, path, &doc, err);
    if (status == KVB_OK && json) {
        kvb_json_writer w = {0};
        kvb_json_begin_object(&w, NULL);
        kvb_json_put_u64(&w, "schema", 1);
        put_file(&w, path, f, kvb_json_root(doc));
        kvb_json_end_object(&w);
        status = kvb_print_json(&w, "packed caches", err);
    } else if (status == KVB_OK) {
        print_text(path, f, kvb_json_root(doc));
    }
    kvb_json_free(doc);
    kvb_cache_file_close(f);
    return status;
}

/* --- verify --- */

static kvb_status check_model(const kvb_cache_file *f, const char *path, const char *model_path, const char *tokenizer,
                              kvb_progress *p, kvb_error *err)
{
    const kvb_model_args files = {.model = model_path, .tokenizer = tokenizer};
    const kvb_override_args strict = {0};
    kvb_model *model;
    size_t size;
    kvb_status status = kvb_open_model(&files, p, &model, err);
    if (status != KVB_OK)
        return status;
    const char *meta = kvb_cache_file_meta(f, &size);
    status = kvb_check_hashes(meta, size, path, "pack the prompts again with this model", model, &strict, err);
    kvb_model_close(model);
    return status;
}

static kvb_status restore_each(const kvb_cache_file *f, const kvb_book *book, kvb_error *err)
{
    kvb_status status = KVB_OK;
    kvb_cache_options options;
    kvb_cache_file_options(f, &options);
    for (uint32_t i = 0; status == KVB_OK && i < kvb_cache_file_prompts(f); i++) {
        kvb_cache *cache = NULL;
        status = kvb_cache_create(book, &options, &cache, err);
        if (status == KVB_OK)
            status = kvb_cache_file_restore(f, i, cache, err);
        kvb_cache_destroy(cache);
    }
    return status;
}

static kvb_status check_book(const kvb_cache_file *f, const char *path, const char *book_path, kvb_error *err)
{
    kvb_book *book;
    kvb_status status = kvb_book_open_with(book_path, KVB_OPEN_VERIFIED, &book, err);
    if (status != KVB_OK)
        return status;
    status = kvb_check_packed_book(f, path, book, book_path, err);
    if (status == KVB_OK)
        status = restore_each(f, book, err);
    kvb_book_close(book);
    return status;
}

static kvb_status say_whole(const char *path, const kvb_cache_file *f, bool json, kvb_error *err)
{
    uint64_t tokens = 0;
    for (uint32_t i = 0; i < kvb_cache_file_prompts(f); i++)
        tokens += kvb_cache_file_prompt(f, i).tokens;
    if (!json) {
        printf("%s: %u prompts of %llu tokens, all bytes whole\n", path, kvb_cache_file_prompts(f),
               (unsigned long long)tokens);
        return KVB_OK;
    }
    kvb_json_writer w = {0};
    kvb_json_begin_object(&w, NULL);
    kvb_json_put_u64(&w, "schema", 1);
    kvb_json_put_string(&w, "cache", path);
    kvb_json_put_u64(&w, "prompts", kvb_cache_file_prompts(f));
    kvb_json_put_u64(&w, "tokens", tokens);
    kvb_json_put_bool(&w, "ok", true);
    kvb_json_end_object(&w);
    return kvb_print_json(&w, "packed caches", err);
}

kvb_status kvb_verify_packed(const char *path, const char *model, const char *tokenizer, const char *book, bool json,
                             kvb_progress *p, kvb_error *err)
{
    kvb_cache_file *f;
    kvb_status status = kvb_cache_file_open(path, &f, err);
    if (status != KVB_OK)
        return status;
    for (uint32_t i = 0; status == KVB_OK && i < kvb_cache_file_prompts(f); i++)
        status = kvb_cache_file_check(f, i, err);
    if (status == KVB_OK && model != NULL)
        status = check_model(f, path, model, tokenizer, p, err);
    if (status == KVB_OK && book != NULL)
        status = check_book(f, path, book, err);
    if (status == KVB_OK)
        status = say_whole(path, f, json, err);
    kvb_cache_file_close(f);
    return status;
}
