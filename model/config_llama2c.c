/* llama2.c checkpoints, version 0: seven int32 (dim, hidden, layers, heads, kv heads, vocabulary, context), then float32
 * weights in a fixed order. A negative vocabulary says that the classifier is not shared with the embedding. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/cursor.h"
#include "format/base/fail.h"
#include "format/base/path.h"
#include "model/weights.h"

enum { NAME_SIZE = 40 };

typedef struct layout {
    kvb_model *m;
    kvb_cursor cursor;
    char *names;
} layout;

static void add_tensor(layout *l, const char *name, uint64_t cols, uint64_t rows)
{
    kvb_tensor *t = &l->m->tensors[l->m->tensor_count];
    char *kept = l->names + l->m->tensor_count++ * NAME_SIZE;
    snprintf(kept, NAME_SIZE, "%s", name);
    *t = (kvb_tensor){.name = kept, .dtype = KVB_DTYPE_F32, .dims = rows > 1 ? 2 : 1, .shape = {cols, rows, 1, 1}};
    t->size = cols * rows * sizeof(float);
    t->bytes = kvb_cursor_bytes(&l->cursor, t->size);
}

/* The file holds one kind of tensor for all layers, then the next kind. */
static void add_layers(layout *l, const char *suffix, uint64_t cols, uint64_t rows)
{
    for (uint32_t i = 0; i < l->m->config.layers; i++) {
        char name[NAME_SIZE];
        snprintf(name, sizeof name, "blk.%u.%s.weight", i, suffix);
        add_tensor(l, name, cols, rows);
    }
}

static kvb_status read_header(kvb_model *m, kvb_cursor *c, bool *shared, kvb_error *err)
{
    kvb_model_config *g = &m->config;
    uint32_t field[7];
    for (int i = 0; i < 7; i++)
        field[i] = kvb_cursor_u32(c);
    *shared = (int32_t)field[5] > 0;
    if (!*shared)
        field[5] = 0u - field[5];
    for (int i = 0; i < 7; i++)
        if (c->failed || field[i] == 0 || field[i] > (1u << 24))
            return kvb_fail(err, KVB_E_FORMAT, m->path, "neither GGUF nor a llama2.c checkpoint (header field %d)", i);
    g->embedding = field[0];
    g->ffn = field[1];
    g->layers = field[2];
    g->geometry.heads = field[3];
    g->geometry.kv_heads = field[4];
    g->vocab = field[5];
    g->context = field[6];
    if (g->embedding % field[3] != 0 || field[3] % field[4] != 0 || (g->embedding / field[3]) % 2 != 0 ||
        g->layers > 1024)
        return kvb_fail(err, KVB_E_FORMAT, m->path, "%u channels, %u heads, %u KV heads, %u layers do not fit together",
                        field[0], field[3], field[4], field[2]);
    return KVB_OK;
}

static void set_constants(kvb_model *m)
{
    kvb_model_config *g = &m->config;
    snprintf(g->name, sizeof g->name, "%s", kvb_base_name(m->path));
    g->arch = kvb_architecture_of_gguf("llama");
    snprintf(g->architecture, sizeof g->architecture, "%s", g->arch->name);
    g->norm_epsilon = 1e-5;
    g->geometry.head_dim = g->embedding / g->geometry.heads;
    g->geometry.rope_style = KVB_ROPE_INTERLEAVED;
    g->geometry.rope_dims = g->geometry.head_dim;
    g->geometry.rope_base = 10000.0;
    g->geometry.attention_scale = 1.0 / sqrt((double)g->geometry.head_dim);
}

static void lay_out(layout *l, bool shared)
{
    const kvb_model_config *g = &l->m->config;
    uint64_t e = g->embedding, f = g->ffn, kv = (uint64_t)g->geometry.kv_heads * g->geometry.head_dim;
    add_tensor(l, "token_embd.weight", e, g->vocab);
    add_layers(l, "attn_norm", e, 1);
    add_layers(l, "attn_q", e, e);
    add_layers(l, "attn_k", e, kv);
    add_layers(l, "attn_v", e, kv);
    add_layers(l, "attn_output", e, e);
    add_layers(l, "ffn_norm", e, 1);
    add_layers(l, "ffn_gate", e, f);
    add_layers(l, "ffn_down", f, e);
    add_layers(l, "ffn_up", e, f);
    add_tensor(l, "output_norm.weight", e, 1);
    kvb_cursor_bytes(&l->cursor, (uint64_t)g->context * g->geometry.head_dim * sizeof(float)); /* old RoPE tables */
    if (!shared)
        add_tensor(l, "output.weight", e, g->vocab);
}

kvb_status kvb_config_from_llama2c(kvb_model *m, kvb_error *err)
{
    bool shared;
    kvb_cursor cursor = kvb_cursor_over(m->llama2c.bytes, m->llama2c.size);
    kvb_status status = read_header(m, &cursor, &shared, err);
    if (status != KVB_OK)
        return status;
    set_constants(m);
    size_t most = 9 * (size_t)m->config.layers + 3;
    m->tensors = kvb_alloc_zeroed(most, sizeof *m->tensors + NAME_SIZE);
    if (m->tensors == NULL)
        return kvb_fail_memory(err, "tensor list");
    layout l = {m, cursor, (char *)(m->tensors + most)};
    lay_out(&l, shared);
    if (l.cursor.failed || l.cursor.at != l.cursor.size)
        return kvb_fail(err, KVB_E_FORMAT, m->path, "%llu bytes do not match a llama2.c checkpoint of its header's sizes",
                        (unsigned long long)m->llama2c.size);
    return kvb_config_lay_out(m, NULL, err);
}
