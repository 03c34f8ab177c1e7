#include "model/model.h"

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/sha256.h"
#include "model/weights.h"

void openblas_set_num_threads(int threads);

static kvb_status open_gguf(kvb_model *m, kvb_error *err)
{
    kvb_status status = kvb_gguf_open(m->path, &m->gguf, err);
    return status == KVB_OK ? kvb_config_from_gguf(m, err) : status;
}

static kvb_status open_llama2c(kvb_model *m, kvb_error *err)
{
    kvb_status status = kvb_mapfile_open(&m->llama2c, m->path, err);
    return status == KVB_OK ? kvb_config_from_llama2c(m, err) : status;
}

static kvb_status open_folder(kvb_model *m, kvb_error *err)
{
    kvb_status status = kvb_folder_open(m->path, &m->folder, err);
    return status == KVB_OK ? kvb_config_from_folder(m, err) : status;
}

static kvb_status open_tokenizer_json(kvb_model *m, kvb_error *err)
{
    char *file = kvb_folder_file(m->folder, "tokenizer.json");
    if (file == NULL)
        return kvb_fail_memory(err, m->path);
    kvb_status status = KVB_OK;
    if (access(file, F_OK) != 0)
        status = kvb_fail(err, KVB_E_FORMAT, m->path, "a folder without tokenizer.json: saving its tokenizer with transformers' "
                          "AutoTokenizer makes one");
    if (status == KVB_OK)
        status = kvb_tokenizer_from_json(file, kvb_folder_config(m->folder), &m->tokenizer, err);
    free(file);
    if (status == KVB_OK && kvb_tokenizer_vocab(m->tokenizer) > m->config.vocab)
        return kvb_fail(err, KVB_E_FORMAT, m->path, "%u tokens in tokenizer.json, %u rows in the embedding",
                        kvb_tokenizer_vocab(m->tokenizer), m->config.vocab);
    return status;
}

static kvb_status open_tokenizer(kvb_model *m, const char *path, kvb_error *err)
{
    if (path != NULL)
        return kvb_tokenizer_from_llama2c(path, m->config.vocab, &m->tokenizer, err);
    if (m->folder != NULL)
        return open_tokenizer_json(m, err);
    if (m->gguf == NULL)
        return kvb_fail(err, KVB_E_USAGE, m->path,
                        "a llama2.c checkpoint has no vocabulary: name its tokenizer.bin with --tokenizer");
    kvb_status status = kvb_tokenizer_from_gguf(m->gguf, &m->tokenizer, err);
    if (status == KVB_OK && kvb_tokenizer_vocab(m->tokenizer) > m->config.vocab)
        return kvb_fail(err, KVB_E_FORMAT, m->path, "%u tokens in the vocabulary, %u rows in token_embd.weight",
                        kvb_tokenizer_vocab(m->tokenizer), m->config.vocab);
    return status;
}

/* The old RoPE tables at the end of a llama2.c file are hashed with its weights: a file has one identity. */
static void hash_model(kvb_model *m)
{
    const uint8_t *meta = m->llama2c.bytes, *data = NULL;
    uint64_t meta_size = 28, data_size = 0;
    if (m->folder != NULL) {
        kvb_folder_hash(m->folder, m->info.meta_sha256, m->info.weights_sha256);
        return;
    }
    if (m->gguf != NULL)
        kvb_gguf_spans(m->gguf, &meta, &meta_size, &data, &data_size);
    else
        data = m->llama2c.bytes + 28, data_size = m->llama2c.size - 28;
    kvb_sha256_of(meta, meta_size, m->info.meta_sha256);
    kvb_sha256_of(data, data_size, m->info.weights_sha256);
}

static void fill_info(kvb_model *m)
{
    m->info.path = m->path;
    m->info.name = m->config.name;
    m->info.architecture = m->config.architecture;
    m->info.layers = m->config.layers;
    m->info.embedding = m->config.embedding;
    m->info.vocab = m->config.vocab;
    m->info.context = m->config.context;
    m->info.layer = m->geometry;
}

static kvb_status open_file(kvb_model *m, kvb_error *err)
{
    char magic[4] = "";
    size_t got = 0;
    struct stat what;
    if (stat(m->path, &what) == 0 && S_ISDIR(what.st_mode))
        return open_folder(m, err);
    kvb_status status = kvb_read_prefix(m->path, magic, sizeof magic, &got, err);
    if (status != KVB_OK)
        return status;
    return memcmp(magic, "GGUF", 4) == 0 ? open_gguf(m, err) : open_llama2c(m, err);
}

/* Products are cut into tiles and spread by OpenMP here, so each call of OpenBLAS is single-threaded: that is what
 * makes results independent of the number of threads. */
static kvb_status open_parts(kvb_model *m, const kvb_model_options *o, kvb_error *err)
{
    openblas_set_num_threads(1);
    kvb_status s = open_file(m, err);
    if (s == KVB_OK) s = open_tokenizer(m, o ? o->tokenizer_path : NULL, err);
    if (s == KVB_OK) s = kvb_weights_load(m, o ? o->max_weight_bytes : 0, err);
    if (s == KVB_OK) {
        fill_info(m);
        hash_model(m);
    }
    return s;
}

kvb_status kvb_model_open(const char *path, const kvb_model_options *options, kvb_model **model, kvb_error *err)
{
    *model = NULL;
    kvb_model *m = kvb_alloc_zeroed(1, sizeof *m);
    if (m == NULL || (m->path = strdup(path)) == NULL) {
        free(m);
        return kvb_fail_memory(err, path);
    }
    kvb_status status = open_parts(m, options, err);
    if (status != KVB_OK) {
        kvb_model_close(m);
        return status;
    }
    *model = m;
    return KVB_OK;
}

void kvb_model_close(kvb_model *m)
{
    if (m == NULL)
        return;
    kvb_weights_free(m);
    kvb_tokenizer_free(m->tokenizer);
    kvb_gguf_close(m->gguf);
    kvb_mapfile_close(&m->llama2c);
    free(m->tensors);
    kvb_folder_close(m->folder);
    free(m->config.rope_factors);
    free(m->config.sliding_factors);
    free(m->geometry);
    free(m->path);
    free(m);
}

const kvb_model_info *kvb_model_get_info(const kvb_model *m)
{
    return &m->info;
}

const kvb_tokenizer *kvb_model_tokenizer(const kvb_model *m)
{
    return m->tokenizer;
}
