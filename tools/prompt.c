#include "tools/prompt.h"

#include <stdlib.h>
#include <string.h>

#include "format/base/fail.h"
#include "format/base/mapfile.h"
#include "format/kvb_layout.h"
#include "tools/identity.h"
#include "tools/input.h"
#include "tools/summary.h"

enum { PROMPT_MOST_BYTES = 1 << 26 };

kvb_status kvb_prompt_check(const kvb_prompt_args *a, kvb_error *err)
{
    const char *idle = a->book == NULL ? kvb_policy_flag_given(a->policy) : NULL;
    return idle == NULL ? KVB_OK : kvb_fail(err, KVB_E_USAGE, idle, "means nothing without --book: every token stays exact");
}

kvb_status kvb_prompt_open(const kvb_prompt_args *a, kvb_progress *p, kvb_model **model, kvb_book **book, kvb_error *err)
{
    kvb_status status = KVB_OK;
    if (a->book != NULL)
        status = kvb_book_open_with(a->book, KVB_OPEN_VERIFIED, book, err);
    if (status == KVB_OK && *book != NULL)
        status = kvb_check_book_form(a->policy, *book, a->book, err);
    if (status == KVB_OK)
        status = kvb_open_model(a->model, p, model, err);
    if (status == KVB_OK && *book != NULL)
        status = kvb_check_identity(*book, a->book, *model, a->allow, err);
    return status;
}

kvb_status kvb_prompt_new_cache(const kvb_prompt_args *a, const kvb_model *model, const kvb_book *book, uint64_t seed,
                                uint32_t sinks, kvb_cache **cache, kvb_error *err)
{
    kvb_cache_options options;
    kvb_cache_options_init(&options, book);
    options.policy = kvb_policy_from_args(a->policy, options.policy);
    if (options.policy.sinks < sinks)
        options.policy.sinks = sinks;
    options.seed = seed;
    return kvb_prompt_cache(model, book, &options, cache, err);
}

static kvb_status put_first(int32_t bos, const uint32_t *ids, size_t count, kvb_prompt *prompt, kvb_error *err)
{
    prompt->ids = malloc((count + 1) * sizeof *ids);
    if (prompt->ids == NULL)
        return kvb_fail_memory(err, "prompt");
    if (bos >= 0)
        prompt->ids[prompt->count++] = (uint32_t)bos;
    if (count > 0)
        memcpy(prompt->ids + prompt->count, ids, count * sizeof *ids);
    prompt->count += count;
    return KVB_OK;
}

kvb_status kvb_prompt_encode(const kvb_model *model, const char *text, const char *path, int32_t bos, kvb_prompt *prompt,
                             kvb_error *err)
{
    char *bytes = NULL;
    size_t size = text != NULL ? strlen(text) : 0, count = 0;
    uint32_t *ids = NULL;
    kvb_status status = KVB_OK;
    *prompt = (kvb_prompt){0};
    if (text == NULL)
        status = kvb_read_file(path, PROMPT_MOST_BYTES, &bytes, &size, err);
    if (status == KVB_OK)
        status = kvb_tokenizer_encode(kvb_model_tokenizer(model), bytes != NULL ? bytes : text, size, true, &ids, &count,
                                      err);
    if (status == KVB_OK)
        status = put_first(bos, ids, count, prompt, err);
    free(ids);
    free(bytes);
    return status;
}

static kvb_status find_prompt(const kvb_cache_file *file, const char *path, const char *name, uint32_t *prompt,
                              kvb_error *err)
{
    if (name != NULL || kvb_cache_file_prompts(file) == 1) {
        *prompt = 0;
        return name != NULL ? kvb_cache_file_find(file, name, prompt, err) : KVB_OK;
    }
    return kvb_fail(err, KVB_E_USAGE, path, "holds %u prompts, `kvbook info` lists them: choose one with --cache-name",
                    kvb_cache_file_prompts(file));
}

kvb_status kvb_prompt_open_file(const char *path, const kvb_model *model, const kvb_override_args *allow, kvb_cache_file **file,
                                kvb_error *err)
{
    size_t size;
    kvb_status status = kvb_cache_file_open(path, file, err);
    if (status != KVB_OK)
        return status;
    const char *meta = kvb_cache_file_meta(*file, &size);
    status = kvb_check_hashes(meta, size, path, "pack the prompt again with this model", model, allow, err);
    if (status != KVB_OK) {
        kvb_cache_file_close(*file);
        *file = NULL;
    }
    return status;
}

kvb_status kvb_prompt_open_packed(const char *path, const char *name, const kvb_model *model,
                                  const kvb_override_args *allow, kvb_cache_file **file, uint32_t *prompt, kvb_error *err)
{
    kvb_status status = kvb_prompt_open_file(path, model, allow, file, err);
    if (status == KVB_OK)
        status = find_prompt(*file, path, name, prompt, err);
    if (status != KVB_OK) {
        kvb_cache_file_close(*file);
        *file = NULL;
    }
    return status;
}

bool kvb_is_cache_file(const char *path)
{
    char head[KVB_MAGIC_SIZE];
    size_t got;
    return kvb_read_prefix(path, head, sizeof head, &got, NULL) == KVB_OK && got >= 4 &&
           memcmp(head + 1, KVB_PACK_MAGIC + 1, 3) == 0;
}

kvb_status kvb_prompt_cache(const kvb_model *model, const kvb_book *book, const kvb_cache_options *options,
                            kvb_cache **cache, kvb_error *err)
{
    const kvb_model_info *info = kvb_model_get_info(model);
    if (book == NULL)
        return kvb_cache_create_exact(info->layer, info->layers, cache, err);
    return kvb_cache_create(book, options, cache, err);
}
