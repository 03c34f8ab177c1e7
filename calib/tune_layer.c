#include "calib/tune_layer.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "calib/attention_grad.h"
#include "format/base/attention.h"
#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/rope.h"
#include "model/linear.h"

/* Everything that one call at a time needs, for the largest layer. By kind: [0] keys, [1] values. */
struct kvb_tune_work {
    const kvb_kernels *kernels;
    kvb_attn_grad *grad;
    const kvb_layer *rope_of; /* the layer that `rope` was made for */
    kvb_rope_table rope;
    uint32_t max_tokens;
    float *moved[2], *spare[2], *coded[2], *d_coded[2]; /* [G][T][D] */
    uint32_t *codes[2];   /* [G][S][T] */
    uint32_t *until;      /* [G][T] */
    float *out, *d_out;   /* [H][T][D] */
    float *lse;           /* [H][T] */
    float *rows, *product; /* [T][H*D] output rows with heads side by side, and the same times M */
};

/* ---- what stays of a layer */

/* M = W_O^T W_O, from the transpose so that one product of rows does it. */
static kvb_status make_gram(const kvb_model *model, uint32_t index, kvb_tune_layer *layer, kvb_error *err)
{
    const uint32_t embedding = kvb_model_get_info(model)->embedding;
    const uint32_t width = layer->geometry->heads * layer->geometry->head_dim;
    const size_t size = (size_t)embedding * width;
    float *w = kvb_alloc_array(size, sizeof *w), *w_t = kvb_alloc_array(size, sizeof *w_t);
    layer->gram = kvb_alloc_array((size_t)width * width, sizeof *layer->gram);
    const bool good = w != NULL && w_t != NULL && layer->gram != NULL;
    if (good) {
        kvb_model_output_weights(model, index, w);
        kvb_transpose(w, width, embedding, width, w_t, embedding);
        kvb_linear(w_t, embedding, w_t, width, width, embedding, false, layer->gram, width);
    }
    free(w);
    free(w_t);
    return good ? KVB_OK : kvb_fail_memory(err, "output projection");
}

kvb_status kvb_tune_layer_create(const kvb_model *model, const kvb_book *book, uint32_t index, kvb_tune_layer *layer,
                                 kvb_error *err)
{
    *layer = (kvb_tune_layer){.geometry = kvb_book_layer(book, index)};
    const uint32_t heads = layer->geometry->kv_heads;
    if (kvb_book_codebook(book, index, 0, KVB_KEY) == NULL)
        return KVB_OK;
    if ((layer->table = kvb_alloc_zeroed((size_t)heads * 2, sizeof *layer->table)) == NULL)
        return kvb_fail_memory(err, "tuning of a layer");
    kvb_status status = KVB_OK;
    for (uint32_t i = 0; i < heads * 2 && status == KVB_OK; i++)
        status = kvb_tune_table_create(kvb_book_codebook(book, index, i / 2, (kvb_kind)(i % 2)),
                                       layer->geometry->head_dim, &layer->table[i], err);
    if (status == KVB_OK)
        status = make_gram(model, index, layer, err);
    if (status != KVB_OK)
        kvb_tune_layer_free(layer);
    return status;
}

void kvb_tune_layer_free(kvb_tune_layer *layer)
{
    for (uint32_t i = 0; layer->table != NULL && i < layer->geometry->kv_heads * 2; i++)
        kvb_tune_table_free(&layer->table[i]);
    free(layer->table);
    free(layer->gram);
    *layer = (kvb_tune_layer){0};
}

/* ---- scratch */

static bool allocate(kvb_tune_work *w, const kvb_layer *most)
{
    const size_t t = w->max_tokens, dim = most->head_dim, kv = most->kv_heads * dim, q = most->heads * dim;
    bool good = true;
    for (int kind = 0; kind < 2; kind++) {
        w->moved[kind] = kvb_alloc_array(kv * t, sizeof(float));
        w->spare[kind] = kvb_alloc_array(kv * t, sizeof(float));
        w->coded[kind] = kvb_alloc_array(kv * t, sizeof(float));
        w->d_coded[kind] = kvb_alloc_array(kv * t, sizeof(float));
        w->codes[kind] = kvb_alloc_array(kv * t, sizeof(uint32_t));
        good = good && w->moved[kind] && w->spare[kind] && w->coded[kind] && w->d_coded[kind] && w->codes[kind];
    }
    w->until = kvb_alloc_array(most->kv_heads * t, sizeof *w->until);
    w->out = kvb_alloc_array(q * t, sizeof(float));
    w->d_out = kvb_alloc_array(q * t, sizeof(float));
    w->rows = kvb_alloc_array(q * t, sizeof(float));
    w->product = kvb_alloc_array(q * t, sizeof(float));
    w->lse = kvb_alloc_array(most->heads * t, sizeof(float));
    return good && w->until && w->out && w->d_out && w->rows && w->product && w->lse;
}

kvb_status kvb_tune_work_create(const kvb_book *book, uint32_t max_tokens, kvb_tune_work **work, kvb_error *err)
{
    kvb_tune_work *w = kvb_alloc_zeroed(1, sizeof *w);
    kvb_layer most = {0};
    *work = w;
    if (w == NULL)
        return kvb_fail_memory(err, "tuning");
    for (uint32_t i = 0; i < kvb_book_layers(book); i++) {
        const kvb_layer *l = kvb_book_layer(book, i);
        most.heads = l->heads > most.heads ? l->heads : most.heads;
        most.kv_heads = l->kv_heads > most.kv_heads ? l->kv_heads : most.kv_heads;
        most.head_dim = l->head_dim > most.head_dim ? l->head_dim : most.head_dim;
    }
    w->kernels = kvb_kernels_best();
    w->max_tokens = max_tokens;
    kvb_status status = kvb_attn_grad_create(most.heads, most.kv_heads, most.head_dim, max_tokens, 0, &w->grad, err);
    if (status == KVB_OK && !allocate(w, &most))
        status = kvb_fail(err, KVB_E_MEMORY, "tuning", "out of memory for chunks of %u tokens; use a smaller --ctx",
                          max_tokens);
    if (status != KVB_OK) {
        kvb_tune_work_destroy(w);
        *work = NULL;
    }
    return status;
}

void kvb_tune_work_destroy(kvb_tune_work *w)
{
    if (w == NULL)
        return;
    for (int kind = 0; kind < 2; kind++) {
        free(w->moved[kind]);
        free(w->spare[kind]);
        free(w->coded[kind]);
        free(w->d_coded[kind]);
        free(w->codes[kind]);
    }
    free(w->until);
    free(w->out);
    free(w->d_out);
    free(w->rows);
    free(w->product);
    free(w->lse);
    kvb_rope_table_free(&w->rope);
    kvb_attn_grad_destroy(w->grad);
    free(w);
}

/* ---- keys and values through codes */

/* The pieces of one call that tasks share. Tasks over (KV head, kind) count head * 2 + kind. */
typedef struct coding {
    kvb_tune_work *w;
    const kvb_tune_layer *layer;
    const kvb_tune_call *c;
    uint32_t tokens;
    size_t head; /* T*D */
} coding;

static coding coding_of(kvb_tune_work *w, const kvb_tune_layer *layer, const kvb_tune_call *c)
{
    return (coding){w, layer, c, c->call->tokens, (size_t)c->call->tokens * layer->geometry->head_dim};
}

/* How far a key of the layer's frame is already rotated. */
static uint32_t turned_by(const kvb_layer *l, uint32_t position)
{
    return l->frame == KVB_FRAME_PRE ? 0 : l->frame == KVB_FRAME_POST ? position : position % l->rope_block;
}

static void enter_task(const coding *j, uint32_t task)
{
    const uint32_t g = task / 2, kind = task % 2, dim = j->layer->geometry->head_dim;
    const float *x = (kind == KVB_KEY ? j->c->call->k_pre : j->c->call->v) + g * j->head;
    float *turned = j->w->coded[kind] + g * j->head;
    if (kind == KVB_KEY && j->layer->geometry->frame != KVB_FRAME_PRE) {
        for (uint32_t i = 0; i < j->tokens; i++)
            kvb_rope_rotate(&j->w->rope, turned_by(j->layer->geometry, i), dim, x + (size_t)i * dim,
                            turned + (size_t)i * dim);
        x = turned;
    }
    kvb_tune_enter(&j->layer->table[task], j->w->kernels, x, j->tokens, j->w->spare[kind] + g * j->head,
                   j->w->moved[kind] + g * j->head);
}

static uint32_t *codes_of(const coding *j, uint32_t task)
{
    return j->w->codes[task % 2] + (task / 2) * j->head;
}

/* False if out of memory. */
static bool encode_group(const coding *j, uint32_t task, uint32_t group)
{
    const kvb_tune_table *t = &j->layer->table[task];
    float *centroids = kvb_alloc_array((size_t)t->centroids * t->channels, sizeof *centroids);
    kvb_nearest *search = kvb_nearest_create(t->channels, t->centroids);
    const bool good = centroids != NULL && search != NULL;
    if (good)
        kvb_tune_encode(t, group, j->w->moved[task % 2] + (task / 2) * j->head, j->tokens, search, centroids,
                        codes_of(j, task) + (size_t)group * j->tokens);
    kvb_nearest_destroy(search);
    free(centroids);
    return good;
}

static void decode_task(const coding *j, uint32_t task)
{
    const uint32_t g = task / 2, kind = task % 2, dim = j->layer->geometry->head_dim;
    float *x = j->w->coded[kind] + g * j->head;
    kvb_tune_decode(&j->layer->table[task], j->w->kernels, codes_of(j, task), j->tokens,
                    j->w->moved[kind] + g * j->head, x);
    for (uint32_t i = 0; kind == KVB_KEY && i < j->tokens; i++, x += dim)
        kvb_rope_rotate(&j->w->rope, i - turned_by(j->layer->geometry, i), dim, x, x);
}

/* The groups of all tables of a layer, one after the other. */
static uint32_t count_groups(const kvb_tune_layer *layer)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < layer->geometry->kv_heads * 2; i++)
        count += layer->table[i].groups;
    return count;
}

static uint32_t find_group(const kvb_tune_layer *layer, uint32_t number, uint32_t *task)
{
    for (*task = 0; number >= layer->table[*task].groups; (*task)++)
        number -= layer->table[*task].groups;
    return number;
}

static kvb_status code_layer(const coding *j, kvb_error *err)
{
    const uint32_t tables = j->layer->geometry->kv_heads * 2, groups = count_groups(j->layer);
    int starved = 0;
#pragma omp parallel for schedule(dynamic, 1)
    for (uint32_t task = 0; task < tables; task++)
        enter_task(j, task);
#pragma omp parallel for schedule(dynamic, 1) reduction(+ : starved)
    for (uint32_t number = 0; number < groups; number++) {
        uint32_t task, group = find_group(j->layer, number, &task);
        starved += !encode_group(j, task, group);
    }
    if (starved != 0)
        return kvb_fail_memory(err, "codes of a layer");
#pragma omp parallel for schedule(dynamic, 1)
    for (uint32_t task = 0; task < tables; task++)
        decode_task(j, task);
    return KVB_OK;
}

static kvb_status prepare_rope(kvb_tune_work *w, const kvb_layer *l, kvb_error *err)
{
    if (w->rope_of != NULL && kvb_rope_same(w->rope_of, l))
        return KVB_OK;
    kvb_rope_table_free(&w->rope);
    w->rope = (kvb_rope_table){0};
    w->rope_of = NULL;
    kvb_status status = kvb_rope_table_create(&w->rope, l, 0, w->max_tokens, err);
    if (status == KVB_OK)
        w->rope_of = l;
    return status;
}

static void fill_until(const coding *j)
{
    const uint32_t heads = j->layer->geometry->kv_heads, window = j->c->window;
    for (size_t g = 0; g < heads; g++)
        for (uint32_t i = 0; i < j->tokens; i++) {
            const bool ever = j->layer->table == NULL || (j->c->kept != NULL && j->c->kept[g * j->tokens + i] != 0);
            j->w->until[g * j->tokens + i] = ever || i >= KVB_GRAD_EVER - window ? KVB_GRAD_EVER : i + window;
        }
}

static kvb_grad_layer attention_of(const coding *j)
{
    const kvb_layer *l = j->layer->geometry;
    return (kvb_grad_layer){
        .heads = l->heads, .kv_heads = l->kv_heads, .head_dim = l->head_dim, .tokens = j->tokens,
        .sliding_window = l->kind == KVB_LAYER_SLIDING ? l->sliding_window : 0, .scale = l->attention_scale,
        .q = j->c->call->q, .exact_k = j->c->call->k, .exact_v = j->c->call->v, .until = j->w->until,
        .coded_k = j->layer->table != NULL ? j->w->coded[KVB_KEY] : j->c->call->k,
        .coded_v = j->layer->table != NULL ? j->w->coded[KVB_VALUE] : j->c->call->v,
    };
}

/* ---- the error */

/* rows [T][H*D] = a - b, both [H][T][D]; b may be NULL. */
static void merge_difference(const coding *j, const float *a, const float *b)
{
    const kvb_layer *l = j->layer->geometry;
    const size_t dim = l->head_dim;
#pragma omp parallel for schedule(static)
    for (uint32_t i = 0; i < j->tokens; i++)
        for (uint32_t h = 0; h < l->heads; h++) {
            const size_t from = ((size_t)h * j->tokens + i) * dim;
            float *to = j->w->rows + ((size_t)i * l->heads + h) * dim;
            for (size_t c = 0; c < dim; c++)
                to[c] = a[from + c] - (b != NULL ? b[from + c] : 0.0f);
        }
}

/* Sum over tokens of row M row^T; product keeps row M. */
static double square_of_rows(const coding *j)
{
    const kvb_layer *l = j->layer->geometry;
    const uint64_t width = (uint64_t)l->heads * l->head_dim;
    double sum = 0.0;
    kvb_linear(j->w->rows, width, j->layer->gram, j->tokens, width, width, false, j->w->product, width);
    for (uint32_t i = 0; i < j->tokens; i++)
        sum += (double)j->w->kernels->dot(j->w->rows + i * width, j->w->product + i * width, width);
    return sum;
}

double kvb_tune_norm(kvb_tune_work *work, const kvb_tune_layer *layer, const kvb_tune_call *call)
{
    const coding j = coding_of(work, layer, call);
    merge_difference(&j, call->target, NULL);
    return square_of_rows(&j);
}

kvb_status kvb_tune_attend(kvb_tune_work *work, const kvb_tune_layer *layer, const kvb_tune_call *call, kvb_error *err)
{
    const coding j = coding_of(work, layer, call);
    const bool coded = layer->table != NULL;
    kvb_status status = coded ? prepare_rope(work, layer->geometry, err) : KVB_OK;
    if (status == KVB_OK && coded)
        status = code_layer(&j, err);
    if (status != KVB_OK)
        return status;
    fill_until(&j);
    const kvb_grad_layer attention = attention_of(&j);
    kvb_attn_grad_forward(work->grad, &attention, work->out, work->lse);
    return KVB_OK;
}

kvb_status kvb_tune_forward(kvb_tune_work *work, const kvb_tune_layer *layer, const kvb_tune_call *call, double *error,
                            kvb_error *err)
{
    const coding j = coding_of(work, layer, call);
    kvb_status status = kvb_tune_attend(work, layer, call, err);
    *error = 0.0;
    if (status == KVB_OK && layer->table != NULL) {
        merge_difference(&j, work->out, call->target);
        *error = square_of_rows(&j);
    }
    return status;
}

const float *kvb_tune_output(const kvb_tune_work *work)
{
    return work->out;
}

/* ---- its gradient */

/* d_out [H][T][D] = factor * 2 (O' - O) M. */
static void split_product(const coding *j, float factor)
{
    const kvb_layer *l = j->layer->geometry;
    const size_t dim = l->head_dim;
#pragma omp parallel for schedule(static)
    for (uint32_t i = 0; i < j->tokens; i++)
        for (uint32_t h = 0; h < l->heads; h++) {
            const float *from = j->w->product + ((size_t)i * l->heads + h) * dim;
            float *to = j->w->d_out + ((size_t)h * j->tokens + i) * dim;
            for (size_t c = 0; c < dim; c++)
                to[c] = 2.0f * factor * from[c];
        }
}

/* From gradients of keys after RoPE and of values to those of what the codes name. */
static void leave_task(const coding *j, uint32_t task)
{
    const uint32_t g = task / 2, kind = task % 2, dim = j->layer->geometry->head_dim;
    float *dx = j->w->d_coded[kind] + g * j->head;
    for (uint32_t i = 0; kind == KVB_KEY && i < j->tokens; i++) {
        float *row = dx + (size_t)i * dim;
        kvb_rope_unrotate(&j->w->rope, i - turned_by(j->layer->geometry, i), dim, row, row);
    }
    kvb_tune_leave(&j->layer->table[task], j->w->kernels, dx, j->tokens, j->w->spare[kind] + g * j->head);
}

/* From the gradients of coded rows to those of the tables. */
static void collect_gradients(const coding *j, kvb_tune_layer *layer)
{
    const uint32_t tables = layer->geometry->kv_heads * 2, groups = count_groups(layer);
#pragma omp parallel
    {
#pragma omp for schedule(dynamic, 1)
        for (uint32_t task = 0; task < tables; task++)
            leave_task(j, task);
#pragma omp for schedule(dynamic, 1)
        for (uint32_t number = 0; number < groups; number++) {
            uint32_t task, group = find_group(layer, number, &task);
            kvb_tune_scatter(&layer->table[task], group, codes_of(j, task) + (size_t)group * j->tokens,
                             j->w->spare[task % 2] + (task / 2) * j->head, j->tokens);
        }
    }
}

void kvb_tune_backward(kvb_tune_work *work, kvb_tune_layer *layer, const kvb_tune_call *call, double factor)
{
    const coding j = coding_of(work, layer, call);
    const kvb_grad_layer attention = attention_of(&j);
    split_product(&j, (float)factor);
    kvb_attn_grad_backward(work->grad, &attention, work->out, work->lse, work->d_out, work->d_coded[KVB_KEY],
                           work->d_coded[KVB_VALUE]);
    collect_gradients(&j, layer);
}

void kvb_tune_attend_backward(kvb_tune_work *work, kvb_tune_layer *layer, const kvb_tune_call *call, const float *d_out,
                              float *d_q, float *d_k, float *d_v)
{
    const coding j = coding_of(work, layer, call);
    const kvb_grad_layer attention = attention_of(&j);
    const kvb_grad_all all = {d_q, d_k, d_v, work->d_coded[KVB_KEY], work->d_coded[KVB_VALUE]};
    kvb_attn_grad_backward_all(work->grad, &attention, work->out, work->lse, d_out, &all);
    if (layer->table != NULL)
        collect_gradients(&j, layer);
}
