#include "tools/identity.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "format/base/fail.h"
#include "format/base/sha256.h"
#include "tools/progress.h"

const kvb_json *kvb_meta_find(const kvb_json *meta, const char *path)
{
    while (meta != NULL && *path != '\0') {
        char key[64];
        size_t length = strcspn(path, ".");
        snprintf(key, sizeof key, "%.*s", (int)length, path);
        meta = kvb_json_get(meta, key);
        path += length;
        path += *path == '.';
    }
    return meta;
}

const char *kvb_meta_string(const kvb_json *meta, const char *path)
{
    return kvb_json_string(kvb_meta_find(meta, path), "");
}

/* The first 12 bytes of a hash. */
static const char *short_hash(const kvb_json *meta, const char *path, char text[16])
{
    snprintf(text, 16, "%.12s", kvb_meta_string(meta, path));
    return text;
}

void kvb_print_model(const kvb_json *meta)
{
    printf("model       ");
    kvb_put_printable(stdout, kvb_meta_string(meta, "model.name"));
    printf(" (");
    kvb_put_printable(stdout, kvb_meta_string(meta, "model.architecture"));
    printf("), weights ");
    kvb_put_printable(stdout, short_hash(meta, "model.weights_sha256", (char[16]){0}));
    printf(", tokenizer ");
    kvb_put_printable(stdout, short_hash(meta, "tokenizer.sha256", (char[16]){0}));
    printf("\n");
}

const char *kvb_meta_extent(const kvb_json *meta, char text[KVB_EXTENT_TEXT])
{
    double chunks = kvb_json_number(kvb_meta_find(meta, "chunks"), NAN);
    double ctx = kvb_json_number(kvb_meta_find(meta, "ctx"), NAN);
    if (isfinite(chunks) && isfinite(ctx))
        snprintf(text, KVB_EXTENT_TEXT, "%.15g chunks of %.15g tokens", chunks, ctx);
    else
        snprintf(text, KVB_EXTENT_TEXT, "-");
    return text;
}

static kvb_status mismatch(const char *path, const char *what, double found, double expected, uint32_t layer,
                           kvb_error *err)
{
    return kvb_fail(err, KVB_E_MISMATCH, path,
                    "layer %u was made for %s %.17g, the model has %.17g; calibrate a book for this model", layer, what,
                    found, expected);
}

static bool same_factors(const kvb_layer *a, const kvb_layer *b)
{
    for (uint32_t i = 0; i < a->rope_dims / 2; i++) {
        float x = a->rope_factors != NULL ? a->rope_factors[i] : 1.0f;
        float y = b->rope_factors != NULL ? b->rope_factors[i] : 1.0f;
        if (x < y || x > y)
            return false;
    }
    return true;
}

static kvb_status check_layer(const kvb_layer *book, const kvb_layer *model, uint32_t layer, const char *path,
                              kvb_error *err)
{
    /* A book may keep exact (unsupported) what the model has as an ordinary layer, but buffers have the model's shape. */
    const bool exact = book->kind == KVB_LAYER_UNSUPPORTED;
    const struct {
        const char *what;
        double found, expected;
    } pair[] = {
        {"query heads", book->heads, model->heads},
        {"KV heads", book->kv_heads, model->kv_heads},
        {"head dimension", book->head_dim, model->head_dim},
        {"layer kind", exact ? model->kind : book->kind, model->kind},
        {"sliding window", exact ? model->sliding_window : book->sliding_window, model->sliding_window},
        {"RoPE style", book->rope_style, model->rope_style},
        {"rotating channels", book->rope_dims, model->rope_dims},
        {"RoPE base", book->rope_base, model->rope_base},
        {"attention scale", book->attention_scale, model->attention_scale},
    };
    for (size_t i = 0; i < sizeof pair / sizeof *pair; i++)
        if (pair[i].found < pair[i].expected || pair[i].found > pair[i].expected)
            return mismatch(path, pair[i].what, pair[i].found, pair[i].expected, layer, err);
    if (!same_factors(book, model))
        return kvb_fail(err, KVB_E_MISMATCH, path,
                        "layer %u has other RoPE scaling factors than the model; calibrate a book for this model",
                        layer);
    return KVB_OK;
}

static kvb_status check_geometry(const kvb_book *book, const char *path, const kvb_model_info *info, kvb_error *err)
{
    if (kvb_book_layers(book) != info->layers)
        return kvb_fail(err, KVB_E_MISMATCH, path,
                        "was made for %u layers, the model %s has %u; calibrate a book for this model",
                        kvb_book_layers(book), info->path, info->layers);
    kvb_status status = KVB_OK;
    for (uint32_t l = 0; l < info->layers && status == KVB_OK; l++)
        status = check_layer(kvb_book_layer(book, l), &info->layer[l], l, path, err);
    return status;
}

static kvb_status check_hash(const kvb_json *meta, const char *key, const uint8_t expected[32], const char *path,
                             const char *what, const char *override, const char *remedy, kvb_error *err)
{
    char hex[65];
    kvb_sha256_hex(expected, hex);
    const char *found = kvb_meta_string(meta, key);
    if (strcmp(found, hex) == 0)
        return KVB_OK;
    return kvb_fail(err, KVB_E_MISMATCH, path,
                    "was made for another %s: its %s is %.12s, this model's %.12s; %s, or use it all the same with %s",
                    what, key, found[0] != '\0' ? found : "missing", hex, remedy, override);
}

kvb_status kvb_check_hashes(const char *meta_json, size_t size, const char *path, const char *remedy,
                            const kvb_model *model, const kvb_override_args *allow, kvb_error *err)
{
    const kvb_model_info *info = kvb_model_get_info(model);
    const uint8_t *tokenizer = kvb_tokenizer_id(kvb_model_tokenizer(model));
    kvb_json_doc *doc = NULL;
    kvb_status status = kvb_json_parse(meta_json, size, path, &doc, err);
    const kvb_json *meta = status == KVB_OK ? kvb_json_root(doc) : NULL;
    if (status == KVB_OK && !allow->tokenizer)
        status = check_hash(meta, "tokenizer.sha256", tokenizer, path, "tokenizer", "--allow-tokenizer-mismatch", remedy,
                            err);
    if (status == KVB_OK && !allow->model)
        status = check_hash(meta, "model.weights_sha256", info->weights_sha256, path, "model", "--allow-model-mismatch",
                            remedy, err);
    if (status == KVB_OK && !allow->model)
        status = check_hash(meta, "model.meta_sha256", info->meta_sha256, path, "model", "--allow-model-mismatch", remedy,
                            err);
    kvb_json_free(doc);
    return status;
}

kvb_status kvb_check_identity(const kvb_book *book, const char *path, const kvb_model *model,
                              const kvb_override_args *allow, kvb_error *err)
{
    size_t size;
    const char *text = kvb_book_meta(book, &size);
    kvb_status status = check_geometry(book, path, kvb_model_get_info(model), err);
    return status == KVB_OK
               ? kvb_check_hashes(text, size, path, "calibrate a book for this model", model, allow, err)
               : status;
}

kvb_status kvb_check_packed_book(const kvb_cache_file *file, const char *path, const kvb_book *book, const char *book_path,
                                 kvb_error *err)
{
    const uint8_t *id = kvb_cache_file_book_id(file);
    if (book == NULL && id != NULL)
        return kvb_fail(err, KVB_E_USAGE, "--book", "missing: %s was packed with a book; give the same one", path);
    if (book == NULL || (id != NULL && memcmp(id, kvb_book_id(book), 32) == 0))
        return KVB_OK;
    if (id == NULL)
        return kvb_fail(err, KVB_E_MISMATCH, path, "was packed without a book, not with %s; leave --book out", book_path);
    return kvb_fail(err, KVB_E_MISMATCH, path, "was packed with another book than %s; give that book, or pack the prompt "
                    "again with this one", book_path);
}
