#include "tools/input.h"

#include <omp.h>
#include <sys/stat.h>

#include "format/base/fail.h"
#include "format/base/outfile.h"

enum { USUAL_CTX = 2048 };

void kvb_use_threads(const kvb_common_args *a)
{
    if (a->threads.set)
        omp_set_num_threads((int)a->threads.value);
}

/* Opening a FIFO would wait for a writer that never comes. */
static kvb_status check_regular(const char *path, kvb_error *err)
{
    struct stat st;
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode))
        return kvb_fail(err, KVB_E_IO, path, "is a %s, expected a regular file",
                        S_ISDIR(st.st_mode) ? "folder" : "device, pipe or socket");
    return KVB_OK;
}

static bool is_folder(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

kvb_status kvb_open_model(const kvb_model_args *a, kvb_progress *p, kvb_model **model, kvb_error *err)
{
    kvb_model_options options = {.tokenizer_path = a->tokenizer, .max_weight_bytes = a->max_weights.value};
    double start = kvb_seconds();
    *model = NULL;
    kvb_status status = is_folder(a->model) ? KVB_OK : check_regular(a->model, err);
    if (status == KVB_OK)
        status = kvb_model_open(a->model, &options, model, err);
    if (status != KVB_OK)
        return status;
    const kvb_model_info *info = kvb_model_get_info(*model);
    const kvb_layer *g = &info->layer[0];
    char took[32];
    kvb_say_more(p, "model %s: %s, %u layers, %u query heads, %u KV heads of %u channels, context %u (%s)", info->name,
                 info->architecture, info->layers, g->heads, g->kv_heads, g->head_dim, info->context,
                 kvb_time_text(kvb_seconds() - start, took));
    return KVB_OK;
}

kvb_status kvb_choose_bos(const kvb_model *model, bool bos, bool no_bos, int32_t *token, kvb_error *err)
{
    const kvb_tokenizer *t = kvb_model_tokenizer(model);
    *token = -1;
    if (bos && no_bos)
        return kvb_fail(err, KVB_E_USAGE, "--bos", "given together with --no-bos: choose one");
    if (no_bos || (!bos && !kvb_tokenizer_wants_bos(t)))
        return KVB_OK;
    *token = kvb_tokenizer_bos(t);
    if (*token < 0 && bos)
        return kvb_fail(err, KVB_E_USAGE, "--bos",
                        "the vocabulary of %s has no beginning-of-sequence token; drop the flag",
                        kvb_model_get_info(model)->path);
    return KVB_OK;
}

/* A context beyond what the model was trained for gives numbers that mean nothing. */
static kvb_status choose_ctx(kvb_input *in, const kvb_text_args *t, kvb_error *err)
{
    const kvb_model_info *info = kvb_model_get_info(in->model);
    uint64_t ctx = t->ctx.set ? t->ctx.value : USUAL_CTX;
    if (!t->ctx.set && info->context != 0 && info->context < ctx)
        ctx = info->context;
    if (info->context != 0 && ctx > info->context)
        return kvb_fail(err, KVB_E_USAGE, "--ctx",
                        "found %llu, but %s was trained for %u tokens; expected at most that",
                        (unsigned long long)ctx, info->path, info->context);
    in->ctx = (uint32_t)ctx;
    return KVB_OK;
}

kvb_status kvb_input_load_text(kvb_input *in, const kvb_text_args *t, kvb_progress *p, kvb_error *err)
{
    kvb_status status = KVB_OK;
    for (size_t i = 0; i < t->text.count && status == KVB_OK; i++)
        status = check_regular(t->text.items[i], err);
    if (status == KVB_OK)
        status = kvb_text_load(kvb_model_tokenizer(in->model), t->text.items, t->text.count, &in->text, err);
    if (status == KVB_OK)
        status = kvb_text_chunks(&in->text, in->ctx, t->skip.value, t->chunks.value, &in->chunks, err);
    if (status != KVB_OK)
        return status;
    in->skip = t->skip.value;
    kvb_say_more(p, "text: %zu tokens of %zu files, %llu chunks of %u", in->text.id_count, in->text.source_count,
                 (unsigned long long)in->chunks, in->ctx);
    if (t->chunks.set && in->chunks < t->chunks.value)
        kvb_warn(p, "%llu chunks asked for, the text holds %llu of %u tokens", (unsigned long long)t->chunks.value,
                 (unsigned long long)in->chunks, in->ctx);
    return KVB_OK;
}

kvb_status kvb_input_open(kvb_input *in, const kvb_model_args *m, const kvb_text_args *t, kvb_progress *p,
                          kvb_error *err)
{
    *in = (kvb_input){0};
    if (t->bos && t->no_bos)
        return kvb_fail(err, KVB_E_USAGE, "--bos", "given together with --no-bos: choose one");
    kvb_status status = kvb_open_model(m, p, &in->model, err);
    if (status == KVB_OK)
        status = choose_ctx(in, t, err);
    if (status == KVB_OK)
        status = kvb_choose_bos(in->model, t->bos, t->no_bos, &in->bos, err);
    if (status == KVB_OK)
        status = kvb_input_load_text(in, t, p, err);
    if (status != KVB_OK)
        kvb_input_close(in);
    return status;
}

void kvb_input_close(kvb_input *in)
{
    kvb_text_free(&in->text);
    kvb_model_close(in->model);
    *in = (kvb_input){0};
}

kvb_status kvb_check_output(const char *path, const char *const *inputs, size_t count, kvb_error *err)
{
    struct stat out, in;
    if (stat(path, &out) == 0)
        for (size_t i = 0; i < count; i++)
            if (inputs[i] != NULL && stat(inputs[i], &in) == 0 && in.st_dev == out.st_dev && in.st_ino == out.st_ino)
                return kvb_fail(err, KVB_E_USAGE, path, "is also the input %s; give the output another name",
                                inputs[i]);
    kvb_outfile *probe;
    kvb_status status = kvb_outfile_open(path, &probe, err);
    if (status == KVB_OK)
        kvb_outfile_abandon(probe);
    return status;
}
