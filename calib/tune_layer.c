#include "calib/tune_layer.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "calib/attention_grad.h"
#include "format/base/attention.h"
#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/half.h"
#include "format/base/rope.h"
#include "model/linear.h"

/* Everything that one call at a time needs, for the largest layer. By kind: [0] keys, [1] values. */
struct kvb_tune_work {
    const kvb_kernels *kernels;
    kvb_attn_grad *grad;
    const kvb_layer *rope_of; /* the layer that `rope` was made for */
    kvb_rope_table rope;
    uint32_t max_tokens;
    float *exact[2], *coded[2]; /* [G][T][D] what queries read */
    float *moved[2], *spare[2], *d_coded[2]; /* [G][T][D] */
    kvb_tune_memo memo;   /* of callers who bring none */
    uint32_t *until;      /* [G][T] */
    float *out, *d_out;   /* [H][T][D] */
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

/* The tables of one layer's heads and kinds; fixed ones for fine codes. */
static kvb_status make_tables(const kvb_book *book, uint32_t index, bool fine, kvb_tune_table **tables, kvb_error *err)
{
    const kvb_layer *l = kvb_book_layer(book, index);
    kvb_status status = KVB_OK;
    if ((*tables = kvb_alloc_zeroed((size_t)l->kv_heads * 2, sizeof **tables)) == NULL)
        return kvb_fail_memory(err, "tuning of a layer");
    for (uint32_t i = 0; i < l->kv_heads * 2 && status == KVB_OK; i++)
        status = fine ? kvb_tune_table_fix(kvb_book_fine(book, index, i / 2, (kvb_kind)(i % 2)), l->head_dim, *tables + i, err)
                      : kvb_tune_table_create(kvb_book_codebook(book, index, i / 2, (kvb_kind)(i % 2)), l->head_dim,
                                              *tables + i, err);
    return status;
}

kvb_status kvb_tune_layer_create(const kvb_model *model, const kvb_book *book, uint32_t index, bool fine,
                                 kvb_tune_layer *layer, kvb_error *err)
{
    *layer = (kvb_tune_layer){.geometry = kvb_book_layer(book, index)};
    if (kvb_book_codebook(book, index, 0, KVB_KEY) == NULL)
        return KVB_OK;
    kvb_status status = make_tables(book, index, false, &layer->table, err);
    if (status == KVB_OK && fine && kvb_book_fine(book, index, 0, KVB_KEY) != NULL)
        status = make_tables(book, index, true, &layer->fine, err);
    if (status == KVB_OK && model != NULL)
        status = make_gram(model, index, layer, err);
    if (status != KVB_OK)
        kvb_tune_layer_free(layer);
    return status;
}

static void free_tables(kvb_tune_table *tables, uint32_t heads)
{
    for (uint32_t i = 0; tables != NULL && i < heads * 2; i++)
        kvb_tune_table_free(&tables[i]);
    free(tables);
}

void kvb_tune_layer_free(kvb_tune_layer *layer)
{
    if (layer->geometry != NULL) {
        free_tables(layer->table, layer->geometry->kv_heads);
        free_tables(layer->fine, layer->geometry->kv_heads);
    }
    free(layer->gram);
    *layer = (kvb_tune_layer){0};
}

/* ---- what is kept of a call */

/* Groups of all of a layer's tables. */
static uint32_t count_groups(const kvb_tune_table *tables, uint32_t heads)
{
    uint32_t count = 0;
    for (uint32_t i = 0; tables != NULL && i < heads * 2; i++)
        count += tables[i].groups;
    return count;
}

static kvb_status memo_make(kvb_tune_memo *memo, size_t groups, size_t fine_groups, size_t heads, uint32_t tokens,
                            kvb_error *err)
{
    *memo = (kvb_tune_memo){0};
    memo->lse = kvb_alloc_array(heads * tokens, sizeof *memo->lse);
    bool good = memo->lse != NULL;
    if (groups != 0)
        good = (memo->codes = kvb_alloc_array(groups * tokens, sizeof *memo->codes)) != NULL && good;
    if (fine_groups != 0)
        good = (memo->fine_codes = kvb_alloc_array(fine_groups * tokens, sizeof *memo->fine_codes)) != NULL && good;
    if (good)
        return KVB_OK;
    kvb_tune_memo_free(memo);
    return kvb_fail_memory(err, "codes of a layer");
}

kvb_status kvb_tune_memo_create(const kvb_tune_layer *layer, uint32_t max_tokens, kvb_tune_memo *memo, kvb_error *err)
{
    const uint32_t heads = layer->geometry->kv_heads;
    return memo_make(memo, count_groups(layer->table, heads), count_groups(layer->fine, heads), layer->geometry->heads,
                     max_tokens, err);
}

void kvb_tune_memo_free(kvb_tune_memo *memo)
{
    free(memo->codes);
    free(memo->fine_codes);
    free(memo->lse);
    *memo = (kvb_tune_memo){0};
}

/* ---- scratch */

/* The largest numbers of any layer. */
typedef struct most {
    size_t heads, kv_heads, head_dim, groups, fine_groups;
} most;

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static most find_most(const kvb_book *book)
{
    most m = {0};
    for (uint32_t i = 0; i < kvb_book_layers(book); i++) {
        const kvb_layer *l = kvb_book_layer(book, i);
        size_t groups = 0, fine = 0;
        for (uint32_t t = 0; t < l->kv_heads * 2; t++) {
            const kvb_codebook *b = kvb_book_codebook(book, i, t / 2, (kvb_kind)(t % 2));
            const kvb_codebook *f = kvb_book_fine(book, i, t / 2, (kvb_kind)(t % 2));
            groups += b != NULL ? b->groups : 0;
            fine += f != NULL ? f->groups : 0;
        }
        m = (most){larger(m.heads, l->heads), larger(m.kv_heads, l->kv_heads), larger(m.head_dim, l->head_dim),
                   larger(m.groups, groups), larger(m.fine_groups, fine)};
    }
    return m;
}

static bool allocate(kvb_tune_work *w, const most *m)
{
    const size_t t = w->max_tokens, kv = m->kv_heads * m->head_dim, q = m->heads * m->head_dim;
    bool good = memo_make(&w->memo, m->groups, m->fine_groups, m->heads, w->max_tokens, NULL) == KVB_OK;
    for (int kind = 0; kind < 2; kind++) {
        float **all[] = {&w->exact[kind], &w->coded[kind], &w->moved[kind], &w->spare[kind], &w->d_coded[kind]};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++)
            good = (*all[i] = kvb_alloc_array(kv * t, sizeof(float))) != NULL && good;
    }
    float **all[] = {&w->out, &w->d_out, &w->rows, &w->product};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        good = (*all[i] = kvb_alloc_array(q * t, sizeof(float))) != NULL && good;
    w->until = kvb_alloc_array(m->kv_heads * t, sizeof *w->until);
    return good && w->until != NULL;
}

kvb_status kvb_tune_work_create(const kvb_book *book, uint32_t max_tokens, kvb_tune_work **work, kvb_error *err)
{
    kvb_tune_work *w = kvb_alloc_zeroed(1, sizeof *w);
    const most m = find_most(book);
    *work = w;
    if (w == NULL)
        return kvb_fail_memory(err, "tuning");
    w->kernels = kvb_kernels_best();
    w->max_tokens = max_tokens;
    kvb_status status = kvb_attn_grad_create((uint32_t)m.heads, (uint32_t)m.kv_heads, (uint32_t)m.head_dim, max_tokens, 0,
                                             &w->grad, err);
    if (status == KVB_OK && !allocate(w, &m))
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
        float *all[] = {w->exact[kind], w->coded[kind], w->moved[kind], w->spare[kind], w->d_coded[kind]};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++)
            free(all[i]);
    }
    free(w->until);
    free(w->out);
    free(w->d_out);
    free(w->rows);
    free(w->product);
    kvb_tune_memo_free(&w->memo);
    kvb_rope_table_free(&w->rope);
    kvb_attn_grad_destroy(w->grad);
    free(w);
}

/* ---- keys and values as a cache would read them */

/* The pieces of one call that tasks share. Tasks over (KV head, kind) count head * 2 + kind. */
typedef struct coding {
    kvb_tune_work *w;
    const kvb_tune_layer *layer;
    const kvb_tune_call *c;
    const kvb_tune_memo *memo;
    uint32_t tokens;
    size_t head; /* T*D */
} coding;

static coding coding_of(kvb_tune_work *w, const kvb_tune_layer *layer, const kvb_tune_call *c, const kvb_tune_memo *memo)
{
    return (coding){w, layer, c, memo != NULL ? memo : &w->memo, c->call->tokens,
                    (size_t)c->call->tokens * layer->geometry->head_dim};
}

/* How far a key of the layer's frame is already rotated. */
static uint32_t turned_by(const kvb_layer *l, uint32_t position)
{
    return l->frame == KVB_FRAME_PRE ? 0 : l->frame == KVB_FRAME_POST ? position : position % l->rope_block;
}

/* exact = the rows in half floats, keys in the layer's frame. */
static void round_task(const coding *j, uint32_t task)
{
    const kvb_layer *l = j->layer->geometry;
    const uint32_t g = task / 2, kind = task % 2, dim = l->head_dim;
    float *x = j->w->exact[kind] + g * j->head;
    memcpy(x, (kind == KVB_KEY ? j->c->call->k_pre : j->c->call->v) + g * j->head, j->head * sizeof *x);
    if (!j->c->unrounded)
        kvb_round_to_half(x, j->head);
    for (uint32_t i = 0; kind == KVB_KEY && l->frame != KVB_FRAME_PRE && i < j->tokens; i++)
        kvb_rope_rotate(&j->w->rope, turned_by(l, i), dim, x + (size_t)i * dim, x + (size_t)i * dim);
}

/* Keys from the layer's frame to after RoPE. */
static void finish_task(const coding *j, uint32_t task)
{
    const uint32_t g = task / 2, dim = j->layer->geometry->head_dim;
    for (uint32_t i = 0; task % 2 == KVB_KEY && i < j->tokens; i++) {
        const size_t at = g * j->head + (size_t)i * dim;
        const uint32_t left = i - turned_by(j->layer->geometry, i);
        kvb_rope_rotate(&j->w->rope, left, dim, j->w->exact[KVB_KEY] + at, j->w->exact[KVB_KEY] + at);
        if (j->layer->table != NULL)
            kvb_rope_rotate(&j->w->rope, left, dim, j->w->coded[KVB_KEY] + at, j->w->coded[KVB_KEY] + at);
    }
}

/* The rows first .. first+count-1 of `exact` through codes of `table` to `to`, which may be `exact`. */
typedef struct trip {
    const kvb_tune_table *table; /* [G][2] */
    uint32_t first, count;
    uint32_t *codes;             /* [all groups][count] */
    float *const *to;            /* by kind */
} trip;

static size_t trip_at(const coding *j, const trip *r, uint32_t task)
{
    return (task / 2) * j->head + (size_t)r->first * j->layer->geometry->head_dim;
}

static void enter_task(const coding *j, const trip *r, uint32_t task)
{
    const size_t at = trip_at(j, r, task);
    kvb_tune_enter(&r->table[task], j->w->kernels, j->w->exact[task % 2] + at, r->count, j->w->spare[task % 2] + at,
                   j->w->moved[task % 2] + at);
}

/* Group number `number`, counted through all tables, of which it is *task's; returns its number there. */
static uint32_t find_group(const kvb_tune_table *tables, uint32_t number, uint32_t *task)
{
    for (*task = 0; number >= tables[*task].groups; (*task)++)
        number -= tables[*task].groups;
    return number;
}

/* False if out of memory. */
static bool encode_group(const coding *j, const trip *r, uint32_t number)
{
    uint32_t task, group = find_group(r->table, number, &task);
    const kvb_tune_table *t = &r->table[task];
    float *centroids = kvb_alloc_array((size_t)t->centroids * t->channels, sizeof *centroids);
    kvb_nearest *search = kvb_nearest_create(t->channels, t->centroids);
    const bool good = centroids != NULL && search != NULL;
    if (good)
        kvb_tune_encode(t, group, j->w->moved[task % 2] + trip_at(j, r, task), r->count, search, centroids,
                        r->codes + (size_t)number * r->count);
    kvb_nearest_destroy(search);
    free(centroids);
    return good;
}

static void decode_task(const coding *j, const trip *r, uint32_t task)
{
    const size_t at = trip_at(j, r, task);
    const uint32_t *codes = r->codes;
    for (uint32_t i = 0; i < task; i++)
        codes += (size_t)r->table[i].groups * r->count;
    kvb_tune_decode(&r->table[task], j->w->kernels, codes, r->count, j->w->moved[task % 2] + at, r->to[task % 2] + at);
}

/* With `search` the codes are found first, without they are there. */
static kvb_status run_trip(const coding *j, const trip *r, bool search, kvb_error *err)
{
    const uint32_t heads = j->layer->geometry->kv_heads, groups = search ? count_groups(r->table, heads) : 0;
    int starved = 0;
#pragma omp parallel for schedule(dynamic, 1)
    for (uint32_t task = 0; task < (search ? heads * 2 : 0); task++)
        enter_task(j, r, task);
#pragma omp parallel for schedule(dynamic, 1) reduction(+ : starved)
    for (uint32_t number = 0; number < groups; number++)
        starved += !encode_group(j, r, number);
    if (starved != 0)
        return kvb_fail_memory(err, "codes of a layer");
#pragma omp parallel for schedule(dynamic, 1)
    for (uint32_t task = 0; task < heads * 2; task++)
        decode_task(j, r, task);
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

/* What queries read, exactly and from codes, as runtime/prefill_mirror.c makes it: half floats, then fine codes, then codes
 * of what those name. */
static kvb_status read_rows(const coding *j, bool search, kvb_error *err)
{
    const uint32_t tasks = j->layer->geometry->kv_heads * 2, sinks = j->c->sinks < j->tokens ? j->c->sinks : j->tokens;
    const trip fine = {j->layer->fine, sinks, j->tokens - sinks, j->memo->fine_codes, j->w->exact};
    const trip base = {j->layer->table, 0, j->tokens, j->memo->codes, j->w->coded};
    kvb_status status = prepare_rope(j->w, j->layer->geometry, err);
    if (status != KVB_OK)
        return status;
#pragma omp parallel for schedule(dynamic, 1)
    for (uint32_t task = 0; task < tasks; task++)
        round_task(j, task);
    if (fine.table != NULL && fine.count > 0)
        status = run_trip(j, &fine, search, err);
    if (status == KVB_OK && base.table != NULL)
        status = run_trip(j, &base, search, err);
#pragma omp parallel for schedule(dynamic, 1)
    for (uint32_t task = 0; task < (status == KVB_OK ? tasks : 0); task++)
        finish_task(j, task);
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
        .q = j->c->call->q, .exact_k = j->w->exact[KVB_KEY], .exact_v = j->w->exact[KVB_VALUE], .until = j->w->until,
        .coded_k = j->layer->table != NULL ? j->w->coded[KVB_KEY] : j->w->exact[KVB_KEY],
        .coded_v = j->layer->table != NULL ? j->w->coded[KVB_VALUE] : j->w->exact[KVB_VALUE],
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
    const coding j = coding_of(work, layer, call, NULL);
    merge_difference(&j, call->target, NULL);
    return square_of_rows(&j);
}

kvb_status kvb_tune_attend(kvb_tune_work *work, const kvb_tune_layer *layer, const kvb_tune_call *call,
                           kvb_tune_memo *memo, kvb_error *err)
{
    const coding j = coding_of(work, layer, call, memo);
    kvb_status status = read_rows(&j, true, err);
    if (status != KVB_OK)
        return status;
    fill_until(&j);
    const kvb_grad_layer attention = attention_of(&j);
    kvb_attn_grad_forward(work->grad, &attention, work->out, j.memo->lse);
    return KVB_OK;
}

kvb_status kvb_tune_forward(kvb_tune_work *work, const kvb_tune_layer *layer, const kvb_tune_call *call, double *error,
                            kvb_error *err)
{
    const coding j = coding_of(work, layer, call, NULL);
    kvb_status status = kvb_tune_attend(work, layer, call, NULL, err);
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
    const uint32_t heads = layer->geometry->kv_heads, groups = count_groups(layer->table, heads);
#pragma omp parallel
    {
#pragma omp for schedule(dynamic, 1)
        for (uint32_t task = 0; task < heads * 2; task++)
            leave_task(j, task);
#pragma omp for schedule(dynamic, 1)
        for (uint32_t number = 0; number < groups; number++) {
            uint32_t task, group = find_group(layer->table, number, &task);
            kvb_tune_scatter(&layer->table[task], group, j->memo->codes + (size_t)number * j->tokens,
                             j->w->spare[task % 2] + (task / 2) * j->head, j->tokens);
        }
    }
}

void kvb_tune_backward(kvb_tune_work *work, kvb_tune_layer *layer, const kvb_tune_call *call, double factor)
{
    const coding j = coding_of(work, layer, call, NULL);
    const kvb_grad_layer attention = attention_of(&j);
    split_product(&j, (float)factor);
    kvb_attn_grad_backward(work->grad, &attention, work->out, j.memo->lse, work->d_out, work->d_coded[KVB_KEY],
                           work->d_coded[KVB_VALUE]);
    collect_gradients(&j, layer);
}

kvb_status kvb_tune_attend_backward(kvb_tune_work *work, kvb_tune_layer *layer, const kvb_tune_call *call,
                                    const kvb_tune_memo *memo, const kvb_attention_gradient *g, kvb_error *err)
{
    const coding j = coding_of(work, layer, call, memo);
    kvb_status status = read_rows(&j, false, err);
    if (status != KVB_OK)
        return status;
    fill_until(&j);
    const kvb_grad_layer attention = attention_of(&j);
    const kvb_grad_all all = {g->d_q, g->d_k, g->d_v, work->d_coded[KVB_KEY], work->d_coded[KVB_VALUE]};
    kvb_attn_grad_backward_all(work->grad, &attention, g->out, j.memo->lse, g->d_out, &all);
    if (layer->table != NULL)
        collect_gradients(&j, layer);
    return KVB_OK;
}
