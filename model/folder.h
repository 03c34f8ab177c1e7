/* A model as a Hugging Face folder: config.json, tokenizer.json, and safetensors files, one or several with an index. Nothing
 * here knows what the weights mean; names of tensors are put into GGUF's words by model/folder_names.c. */
#ifndef KVB_MODEL_FOLDER_H
#define KVB_MODEL_FOLDER_H

#include "format/base/json.h"
#include "format/base/sha256.h"
#include "model/architecture.h"
#include "model/tensor.h"

typedef struct kvb_folder kvb_folder;

/* Reads config.json and maps every file of weights. KVB_E_FORMAT for an index that names missing files or tensors, for tensors
 * that two files hold, of more than two dimensions or of types other than F32, F16 and BF16; KVB_E_IO where the files cannot be
 * read. Whatever is found is checked against the files; contents of tensors are not touched. */
kvb_status kvb_folder_open(const char *path, kvb_folder **folder, kvb_error *err);
/* NULL is allowed. */
void kvb_folder_close(kvb_folder *f);

/* The object of config.json. */
const kvb_json *kvb_folder_config(const kvb_folder *f);
/* "PATH/NAME" of a file of the folder; free with free(), NULL: out of memory. */
char *kvb_folder_file(const kvb_folder *f, const char *name);

/* Tensors in order of name; NULL where there is none of that name. */
size_t kvb_folder_tensors(const kvb_folder *f);
const kvb_tensor *kvb_folder_tensor_at(const kvb_folder *f, size_t i);
const kvb_tensor *kvb_folder_tensor(const kvb_folder *f, const char *name);

/* SHA-256 of config.json, and of all tensors in order of name, however they are spread over files. */
void kvb_folder_hash(const kvb_folder *f, uint8_t meta[32], uint8_t weights[32]);

enum { KVB_TENSOR_NAME = 128 };

/* Between GGUF's name of a tensor ("blk.3.attn_q.weight") and the folder's ("model.layers.3.self_attn.q_proj.weight"); false
 * for names that have no counterpart. The prefix of the folder's names is found once, by kvb_folder_prefix(). */
const char *kvb_folder_prefix(const kvb_folder *f);
bool kvb_folder_name(const kvb_architecture *a, const char *prefix, const char *gguf, char name[KVB_TENSOR_NAME]);
bool kvb_folder_gguf_name(const kvb_architecture *a, const char *prefix, const char *name, char gguf[KVB_TENSOR_NAME]);
/* Tensors that belong to no part of the language model: vision towers, tables that follow from the configuration. */
bool kvb_folder_is_beside(const char *name);

#endif
