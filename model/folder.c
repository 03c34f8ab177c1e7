#include "model/folder.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/path.h"
#include "format/base/mapfile.h"
#include "model/safetensors.h"

#define CONFIG "config.json"
#define SINGLE "model.safetensors"
#define INDEX "model.safetensors.index.json"

static const uint64_t largest_json = (uint64_t)64 << 20;
enum { MOST_SHARDS = 4096 };

struct kvb_folder {
    char *path;
    char *config; /* as the file has it */
    size_t config_size;
    kvb_json_doc *json;
    kvb_safetensors **shard;
    size_t shards;
    kvb_tensor *tensor; /* sorted by name */
    size_t tensors;
};

char *kvb_folder_file(const kvb_folder *f, const char *name)
{
    return kvb_join_path(f->path, name, "");
}

void kvb_folder_close(kvb_folder *f)
{
    if (f == NULL)
        return;
    for (size_t i = 0; i < f->shards; i++)
        kvb_safetensors_close(f->shard[i]);
    kvb_json_free(f->json);
    free(f->shard);
    free(f->tensor);
    free(f->config);
    free(f->path);
    free(f);
}

static bool exists(const kvb_folder *f, const char *name)
{
    char *path = kvb_folder_file(f, name);
    const bool there = path != NULL && access(path, F_OK) == 0;
    free(path);
    return there;
}

static kvb_status read_json(const kvb_folder *f, const char *name, char **bytes, size_t *size, kvb_json_doc **json,
                            kvb_error *err)
{
    char *path = kvb_folder_file(f, name);
    *bytes = NULL;
    if (path == NULL)
        return kvb_fail_memory(err, f->path);
    kvb_status status = kvb_read_file(path, largest_json, bytes, size, err);
    if (status == KVB_OK)
        status = kvb_json_parse(*bytes, *size, path, json, err);
    if (status == KVB_OK && kvb_json_type_of(kvb_json_root(*json)) != KVB_JSON_OBJECT)
        status = kvb_fail(err, KVB_E_FORMAT, path, "the file holds no JSON object");
    free(path);
    return status;
}

static kvb_status open_shard(kvb_folder *f, const char *name, kvb_error *err)
{
    char *path = kvb_folder_file(f, name);
    if (path == NULL)
        return kvb_fail_memory(err, f->path);
    kvb_status status = kvb_safetensors_open(path, &f->shard[f->shards], err);
    f->shards += status == KVB_OK;
    free(path);
    return status;
}

static const kvb_safetensors *find_shard(const kvb_folder *f, const char *name)
{
    for (size_t i = 0; i < f->shards; i++)
        if (strcmp(kvb_base_name(kvb_safetensors_path(f->shard[i])), name) == 0)
            return f->shard[i];
    return NULL;
}

/* One entry of the index: "tensor": "file". */
static kvb_status open_entry(kvb_folder *f, const char *tensor, const char *file, kvb_error *err)
{
    if (file[0] == '\0' || file[0] == '.' || strchr(file, '/') != NULL)
        return kvb_fail(err, KVB_E_FORMAT, f->path, INDEX " puts %s into \"%s\", which is no file name", tensor, file);
    if (find_shard(f, file) == NULL) {
        if (!exists(f, file))
            return kvb_fail(err, KVB_E_FORMAT, f->path, INDEX " puts %s into %s, which is missing; download all files of "
                            "the model", tensor, file);
        if (f->shards == MOST_SHARDS)
            return kvb_fail(err, KVB_E_FORMAT, f->path, INDEX " names over %d files", MOST_SHARDS);
        kvb_status status = open_shard(f, file, err);
        if (status != KVB_OK)
            return status;
    }
    if (kvb_safetensors_find(find_shard(f, file), tensor) == NULL)
        return kvb_fail(err, KVB_E_FORMAT, f->path, INDEX " puts %s into %s, which does not hold it", tensor, file);
    return KVB_OK;
}

static kvb_status open_index(kvb_folder *f, kvb_error *err)
{
    char *bytes;
    size_t size;
    kvb_json_doc *json = NULL;
    kvb_status status = read_json(f, INDEX, &bytes, &size, &json, err);
    const kvb_json *map = status == KVB_OK ? kvb_json_get(kvb_json_root(json), "weight_map") : NULL;
    if (status == KVB_OK && kvb_json_type_of(map) != KVB_JSON_OBJECT)
        status = kvb_fail(err, KVB_E_FORMAT, f->path, INDEX " has no object weight_map");
    for (size_t i = 0; status == KVB_OK && i < kvb_json_count(map); i++)
        status = open_entry(f, kvb_json_key_at(map, i), kvb_json_string(kvb_json_at(map, i), ""), err);
    kvb_json_free(json);
    free(bytes);
    return status;
}

static kvb_status open_shards(kvb_folder *f, kvb_error *err)
{
    f->shard = kvb_alloc_zeroed(MOST_SHARDS, sizeof *f->shard);
    if (f->shard == NULL)
        return kvb_fail_memory(err, f->path);
    if (exists(f, INDEX))
        return open_index(f, err);
    if (exists(f, SINGLE))
        return open_shard(f, SINGLE, err);
    return kvb_fail(err, KVB_E_FORMAT, f->path, "neither " SINGLE " nor " INDEX " is there; weights in other formats are "
                    "not read: save the model with safe_serialization=True");
}

static kvb_status take_tensor(const kvb_folder *f, const kvb_st_tensor *from, kvb_tensor *t, kvb_error *err)
{
    static const struct {
        kvb_st_dtype dtype;
        kvb_dtype becomes;
    } readable[] = {{KVB_ST_F32, KVB_DTYPE_F32}, {KVB_ST_F16, KVB_DTYPE_F16}, {KVB_ST_BF16, KVB_DTYPE_BF16}};
    *t = (kvb_tensor){.name = from->name, .dims = from->dims, .shape = {1, 1, 1, 1}, .bytes = from->bytes,
                      .size = from->size};
    size_t i = 0;
    while (i < 3 && readable[i].dtype != from->dtype)
        i++;
    if (i == 3)
        return kvb_fail(err, KVB_E_FORMAT, f->path, "%s has type %s, which cannot be read (F32, F16 and BF16 can); convert "
                        "the model to BF16", from->name, kvb_st_dtype_name(from->dtype));
    if (from->dims < 1 || from->dims > 2)
        return kvb_fail(err, KVB_E_FORMAT, f->path, "%s has %u dimensions, expected 1 or 2", from->name, from->dims);
    t->dtype = readable[i].becomes;
    for (uint32_t d = 0; d < from->dims; d++)
        t->shape[from->dims - 1 - d] = from->shape[d];
    return KVB_OK;
}

static int compare_tensors(const void *a, const void *b)
{
    return strcmp(((const kvb_tensor *)a)->name, ((const kvb_tensor *)b)->name);
}

static kvb_status list_tensors(kvb_folder *f, kvb_error *err)
{
    size_t count = 0;
    for (size_t i = 0; i < f->shards; i++)
        count += kvb_safetensors_count(f->shard[i]);
    f->tensor = kvb_alloc_array(count, sizeof *f->tensor);
    if (f->tensor == NULL)
        return kvb_fail_memory(err, f->path);
    for (size_t i = 0; i < f->shards; i++)
        for (size_t j = 0; j < kvb_safetensors_count(f->shard[i]); j++) {
            const kvb_st_tensor *from = kvb_safetensors_at(f->shard[i], j);
            if (kvb_folder_is_beside(from->name))
                continue;
            kvb_status status = take_tensor(f, from, &f->tensor[f->tensors++], err);
            if (status != KVB_OK)
                return status;
        }
    qsort(f->tensor, f->tensors, sizeof *f->tensor, compare_tensors);
    for (size_t i = 1; i < f->tensors; i++)
        if (compare_tensors(&f->tensor[i - 1], &f->tensor[i]) == 0)
            return kvb_fail(err, KVB_E_FORMAT, f->path, "two files hold the tensor %s", f->tensor[i].name);
    return KVB_OK;
}

static kvb_status open_all(kvb_folder *f, kvb_error *err)
{
    if (!exists(f, CONFIG))
        return kvb_fail(err, KVB_E_FORMAT, f->path, "a folder without " CONFIG ": expected a GGUF file, a llama2.c "
                        "checkpoint or a Hugging Face folder");
    kvb_status status = read_json(f, CONFIG, &f->config, &f->config_size, &f->json, err);
    if (status == KVB_OK)
        status = open_shards(f, err);
    return status == KVB_OK ? list_tensors(f, err) : status;
}

kvb_status kvb_folder_open(const char *path, kvb_folder **folder, kvb_error *err)
{
    *folder = NULL;
    kvb_folder *f = kvb_alloc_zeroed(1, sizeof *f);
    if (f == NULL || (f->path = strdup(path)) == NULL) {
        free(f);
        return kvb_fail_memory(err, path);
    }
    kvb_status status = open_all(f, err);
    if (status != KVB_OK) {
        kvb_folder_close(f);
        return status;
    }
    *folder = f;
    return KVB_OK;
}

const kvb_json *kvb_folder_config(const kvb_folder *f)
{
    return kvb_json_root(f->json);
}

size_t kvb_folder_tensors(const kvb_folder *f)
{
    return f->tensors;
}

const kvb_tensor *kvb_folder_tensor_at(const kvb_folder *f, size_t i)
{
    return &f->tensor[i];
}

const kvb_tensor *kvb_folder_tensor(const kvb_folder *f, const char *name)
{
    const kvb_tensor key = {.name = name};
    return bsearch(&key, f->tensor, f->tensors, sizeof key, compare_tensors);
}

/* Name, type and shape as text, then the bytes. */
void kvb_folder_hash(const kvb_folder *f, uint8_t meta[32], uint8_t weights[32])
{
    kvb_sha256 s;
    kvb_sha256_of(f->config, f->config_size, meta);
    kvb_sha256_begin(&s);
    for (size_t i = 0; i < f->tensors; i++) {
        const kvb_tensor *t = &f->tensor[i];
        char shape[96];
        const int size = snprintf(shape, sizeof shape, " %s %u %llu %llu\n", kvb_dtype_name(t->dtype), t->dims,
                                  (unsigned long long)t->shape[1], (unsigned long long)t->shape[0]);
        kvb_sha256_add(&s, t->name, strlen(t->name));
        kvb_sha256_add(&s, shape, (size_t)size);
        kvb_sha256_add(&s, t->bytes, (size_t)t->size);
    }
    kvb_sha256_end(&s, weights);
}
