#include "llama_watch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ggml-backend.h"
#include "ggml.h"

enum { KEYS, VALUES, ROTATED_KEYS, QUERIES, OUT, OTHER };

/* What a tensor of the graph is. "Kcur" names the product, then the sum with a bias, then a view by heads, and after RoPE the rotated keys:
 * of those before RoPE the last one seen stays. "Kcur_normed" is the key of models that normalise before RoPE. */
static int role(const struct ggml_tensor *t, uint32_t *layer)
{
    static const struct { const char *name; int before, after; } known[] = {
        {"Kcur-%u%n", KEYS, ROTATED_KEYS}, {"Kcur_normed-%u%n", KEYS, OTHER}, {"Vcur-%u%n", VALUES, OTHER},
        {"Qcur-%u%n", OTHER, QUERIES},     {"kqv_out-%u%n", OUT, OTHER},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        int end = 0;
        if (sscanf(t->name, known[i].name, layer, &end) == 1 && t->name[end] == 0)
            return t->op == GGML_OP_ROPE ? known[i].after : known[i].before;
    }
    return OTHER;
}

/* The rows of n tokens, each without gaps; views into a fused product have gaps between tokens. */
static int read_rows(watch *w, const struct ggml_tensor *t, int what)
{
    const size_t n = w->step.tokens, bytes = ggml_nelements(t) / n * sizeof(float);
    const size_t stride = t->ne[2] == (int64_t)n ? t->nb[2] : t->nb[1];
    float *rows = realloc(w->rows[what], n * bytes);
    if (t->type != GGML_TYPE_F32 || rows == NULL)
        return fprintf(stderr, "%s: not float32, or out of memory\n", t->name), 1;
    w->rows[what] = rows;
    for (size_t i = 0; i < n; i++)
        ggml_backend_tensor_get(t, (char *)rows + i * bytes, i * stride, bytes);
    return 0;
}

/* RoPE as the graph has it, which is right for each layer of every model. */
static void read_rope(watch_step *s, const struct ggml_tensor *t, uint32_t *heads)
{
    *heads = (uint32_t)t->ne[1];
    s->head_dim = (uint32_t)t->ne[0];
    s->rope_dims = (uint32_t)t->op_params[1];
    s->rope_mode = t->op_params[2];
    memcpy(&s->rope_base, t->op_params + 5, sizeof s->rope_base);
    memcpy(&s->rope_scale, t->op_params + 6, sizeof s->rope_scale);
    s->rope_factors = t->src[2] != NULL;
}

static int attention(watch *w, struct ggml_tensor *t, uint32_t layer)
{
    watch_step *s = &w->step;
    if (w->seen != (1u << OTHER) - 1)
        return fprintf(stderr, "layer %u: keys, values or queries have other names in this model's graph\n", layer), 1;
    w->seen = 0;
    s->layer = layer;
    s->keys = w->rows[KEYS];
    s->values = w->rows[VALUES];
    s->rotated_keys = w->rows[ROTATED_KEYS];
    s->queries = w->rows[QUERIES];
    s->out = w->rows[OUT];
    const watch_answer answer = w->attention(w->user, s);
    if (answer == WATCH_WRITE_BACK)
        ggml_backend_tensor_set(t, s->out, 0, ggml_nbytes(t));
    return answer == WATCH_STOP;
}

/* llama.cpp asks first whether a tensor is wanted, and calls again when it is computed and nothing after it is. */
static bool observe(struct ggml_tensor *t, bool ask, void *user)
{
    watch *w = user;
    uint32_t layer = 0;
    const int what = role(t, &layer);
    if (ask || what == OTHER || w->failed)
        return what != OTHER;
    w->failed = read_rows(w, t, what);
    w->seen |= 1u << what;
    if (what == QUERIES || what == ROTATED_KEYS)
        read_rope(&w->step, t, what == QUERIES ? &w->step.heads : &w->step.kv_heads);
    if (what == OUT && !w->failed)
        w->failed = attention(w, t, layer);
    return !w->failed;
}

static int read_tokens(watch *w, const char *path)
{
    const struct llama_vocab *vocab = llama_model_get_vocab(w->model);
    FILE *file = fopen(path, "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0)
        return perror(path), 1;
    const long size = ftell(file);
    char *text = malloc((size_t)size + 1);
    w->tokens = malloc(((size_t)size + 8) * sizeof *w->tokens);
    rewind(file);
    const int bad = text == NULL || w->tokens == NULL || fread(text, 1, (size_t)size, file) != (size_t)size;
    fclose(file);
    const int32_t count = bad ? -1 : llama_tokenize(vocab, text, (int32_t)size, w->tokens, (int32_t)size + 8, false, false);
    free(text);
    if (count < (int32_t)w->ctx)
        return fprintf(stderr, "%s: cannot be read, or has less than a chunk of %u tokens\n", path, w->ctx), 1;
    w->chunks = (uint32_t)count / w->ctx;
    for (uint32_t i = 0; i < w->chunks && llama_vocab_get_add_bos(vocab); i++)
        w->tokens[(size_t)i * w->ctx] = llama_vocab_bos(vocab); /* as `kvbook capture` and `eval` do */
    return 0;
}

static void quiet(enum ggml_log_level level, const char *text, void *user)
{
    (void)user;
    if (level == GGML_LOG_LEVEL_ERROR)
        fputs(text, stderr);
}

int watch_open(watch *w, const char *model, const char *text, uint32_t ctx, enum ggml_type type, watch_attention attention_of, void *user)
{
    *w = (watch){.ctx = ctx, .attention = attention_of, .user = user, .step.tokens = ctx};
    llama_log_set(quiet, NULL);
    llama_backend_init();
    w->model = llama_model_load_from_file(model, llama_model_default_params());
    if (w->model == NULL)
        return 1;
    struct llama_context_params p = llama_context_default_params();
    p.n_ctx = p.n_batch = p.n_ubatch = p.n_outputs_max = ctx; /* a chunk is one step: observe() sees all of it at once */
    p.n_seq_max = 1;
    p.n_threads = p.n_threads_batch = (int32_t)sysconf(_SC_NPROCESSORS_ONLN);
    p.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    p.type_k = p.type_v = type;
    p.cb_eval = attention_of != NULL ? observe : NULL;
    p.cb_eval_user_data = w;
    w->context = llama_init_from_model(w->model, p);
    return w->context == NULL || read_tokens(w, text);
}

int watch_run(watch *w, uint32_t chunk)
{
    struct llama_batch batch = llama_batch_init((int32_t)w->ctx, 0, 1);
    batch.n_tokens = (int32_t)w->ctx;
    for (uint32_t i = 0; i < w->ctx; i++) {
        batch.token[i] = w->tokens[(size_t)chunk * w->ctx + i];
        batch.pos[i] = (llama_pos)i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = 1;
    }
    llama_memory_clear(llama_get_memory(w->context), true);
    const int code = llama_decode(w->context, batch);
    llama_batch_free(batch);
    if (code != 0)
        fprintf(stderr, "llama_decode: %d\n", code);
    return code != 0 || w->failed;
}

void watch_close(watch *w)
{
    for (int i = 0; i < OTHER; i++)
        free(w->rows[i]);
    free(w->tokens);
    if (w->context != NULL)
        llama_free(w->context);
    if (w->model != NULL)
        llama_model_free(w->model);
    llama_backend_free();
}
