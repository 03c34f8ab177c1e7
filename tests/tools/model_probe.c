/* model_probe MODEL OUT ID...: runs a model over token ids and writes what tests compare, little-endian: uint32 layers, KV
 * heads, head size, tokens, vocabulary; float32 logits [T][vocab]; per layer keys before RoPE and values [G][T][D].
 * model_probe MODEL --tokens [FILE...]: the ids of each file's bytes, one line a file; special tokens are read as such. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/mapfile.h"
#include "model/model.h"

enum { MOST_IDS = 512 };

static int complain(const kvb_error *err)
{
    fprintf(stderr, "%s: %s\n", err->where, err->message);
    return 3;
}

static kvb_status write_kv(void *user, const kvb_attention_call *call, const float *out, const float *lse, kvb_error *err)
{
    (void)out, (void)lse, (void)err;
    const size_t floats = (size_t)call->geometry->kv_heads * call->tokens * call->geometry->head_dim;
    fwrite(call->k_pre, sizeof(float), floats, user);
    fwrite(call->v, sizeof(float), floats, user);
    return KVB_OK;
}

static int run_model(const kvb_model *model, const uint32_t *ids, uint32_t count, FILE *file)
{
    const kvb_model_info *info = kvb_model_get_info(model);
    const uint32_t head[] = {info->layers, info->layer->kv_heads, info->layer->head_dim, count, info->vocab};
    const size_t logit_bytes = (size_t)count * info->vocab * sizeof(float);
    const kvb_forward_hooks hooks = {.observe = write_kv, .observe_user = file};
    const float *hidden;
    kvb_forward *f = NULL;
    kvb_error err = {0};
    float *logits = kvb_alloc_zeroed(1, logit_bytes);
    fwrite(head, sizeof *head, 5, file);
    fwrite(logits, 1, logit_bytes, file);
    kvb_status status = kvb_forward_create(model, count, &f, &err);
    if (status == KVB_OK)
        status = kvb_forward_run(f, ids, count, 0, &hooks, &hidden, &err);
    if (status == KVB_OK) {
        kvb_forward_logits(f, hidden, count, logits);
        fseek(file, sizeof head, SEEK_SET);
        fwrite(logits, 1, logit_bytes, file);
    }
    free(logits);
    kvb_forward_destroy(f);
    return status == KVB_OK ? 0 : complain(&err);
}

static int print_ids(const kvb_model *model, const char *path)
{
    char *text;
    size_t size, count;
    uint32_t *ids = NULL;
    kvb_error err;
    kvb_status status = kvb_read_file(path, 1 << 20, &text, &size, &err);
    if (status == KVB_OK) {
        status = kvb_tokenizer_encode(kvb_model_tokenizer(model), text, size, true, &ids, &count, &err);
        free(text);
    }
    if (status != KVB_OK)
        return complain(&err);
    for (size_t i = 0; i < count; i++)
        printf("%s%u", i > 0 ? " " : "", ids[i]);
    printf("\n");
    free(ids);
    return 0;
}

static int run(const kvb_model *model, int argc, char **argv)
{
    uint32_t ids[MOST_IDS];
    int result = 0;
    if (strcmp(argv[2], "--tokens") == 0) {
        printf("bos %d eos %d wanted %d\n", (int)kvb_tokenizer_bos(kvb_model_tokenizer(model)),
               (int)kvb_tokenizer_eos(kvb_model_tokenizer(model)), kvb_tokenizer_wants_bos(kvb_model_tokenizer(model)));
        for (int i = 3; i < argc && result == 0; i++)
            result = print_ids(model, argv[i]);
        return result;
    }
    FILE *file = fopen(argv[2], "wb");
    if (file == NULL) {
        perror(argv[2]);
        return 4;
    }
    for (int i = 3; i < argc; i++)
        ids[i - 3] = (uint32_t)strtoul(argv[i], NULL, 10);
    result = run_model(model, ids, (uint32_t)argc - 3, file);
    return fclose(file) == 0 ? result : 4;
}

int main(int argc, char **argv)
{
    kvb_model *model;
    kvb_error err;
    if (argc < 3 || argc > MOST_IDS + 3) {
        fprintf(stderr, "usage: %s MODEL OUT ID...\n       %s MODEL --tokens FILE...\n", argv[0], argv[0]);
        return 2;
    }
    if (kvb_model_open(argv[1], NULL, &model, &err) != KVB_OK)
        return complain(&err);
    const int result = run(model, argc, argv);
    kvb_model_close(model);
    return result;
}
