#include "calib/team_capture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calib/capture_sink.h"
#include "format/base/checked.h"
#include "format/base/fail.h"

/* Tensors with a row for each token, in the order of row_tensor(), and the others. */
enum { ROW_TENSORS = 6, GRADIENTS = 4, SUMS = 6, COUNT = 7, MEANS = 8, SENSITIVITY = 10, QUERIES = 12, HELD = 13, TAG_HEADS = 1024 };

struct kvb_team_capture {
    const kvb_team *team;
    const kvb_capture *mine;
    kvb_capture *part;       /* [size] what the others have, without their layers */
    void **places, **meta;   /* [size] */
    kvb_capture_store *joined;
    uint64_t *first;         /* [size] row of each part in the whole */
    bool sensitivity;        /* whether the first process has any */
    uint64_t query_rows;     /* that it has queries of */
    int tensors;             /* with a row for each token: ROW_TENSORS, or GRADIENTS without gradients */
    uint32_t layer;          /* held; UINT32_MAX: none */
    void *held[HELD];
    kvb_exact *others_sums;  /* [size][2][G][D(D+1)/2] while they arrive */
    uint64_t *others_count;  /* [size][G] */
    kvb_transfer *transfer;
    size_t transfers, room;
    bool failed;             /* out of memory for transfers */
};

static const void *row_tensor(const kvb_capture_layer *l, int tensor)
{
    const void *const all[ROW_TENSORS] = {l->keys, l->values, l->weight_k, l->weight_v, l->gradient[KVB_KEY], l->gradient[KVB_VALUE]};
    return all[tensor];
}

static size_t row_bytes(const kvb_layer *g, int tensor)
{
    return tensor < 2 || tensor >= GRADIENTS ? g->head_dim * sizeof(uint16_t) : sizeof(float);
}

static size_t sum_count(const kvb_layer *g)
{
    return 2 * g->kv_heads * kvb_triangle(g->head_dim);
}

static size_t square_bytes(const kvb_layer *g)
{
    return (size_t)g->kv_heads * g->head_dim * g->head_dim * sizeof(float);
}

static size_t query_bytes(const kvb_team_capture *w, const kvb_layer *g)
{
    return (size_t)w->query_rows * g->heads * g->head_dim * sizeof(uint16_t);
}

static void add(kvb_team_capture *w, kvb_transfer t)
{
    if (w->transfers == w->room) {
        const size_t room = 2 * w->room + 64;
        kvb_transfer *grown = realloc(w->transfer, room * sizeof *grown);
        if (grown == NULL) {
            w->failed = true;
            return;
        }
        w->transfer = grown;
        w->room = room;
    }
    w->transfer[w->transfers++] = t;
}

/* ---- what a layer's owner gets from a process, and what that process sends: in the same order */

static void send_layer(kvb_team_capture *w, uint32_t layer, uint32_t owner)
{
    const kvb_capture_layer *l = &w->mine->layer[layer];
    const kvb_layer *g = &w->mine->geometry[layer];
    const size_t n = (size_t)w->mine->rows;
    kvb_transfer t = {.peer = owner, .send = true};
    for (int tensor = 0; tensor < w->tensors; tensor++)
        for (uint32_t head = 0; head < g->kv_heads; head++) {
            t.size = n * row_bytes(g, tensor);
            t.bytes = (uint8_t *)(uintptr_t)row_tensor(l, tensor) + head * t.size;
            t.tag = tensor * TAG_HEADS + (int)head;
            add(w, t);
        }
    add(w, (kvb_transfer){(void *)(uintptr_t)l->query_sums, sum_count(g) * sizeof(kvb_exact), owner, SUMS * TAG_HEADS, true});
    add(w, (kvb_transfer){(void *)(uintptr_t)l->query_count, g->kv_heads * sizeof(uint64_t), owner, COUNT * TAG_HEADS, true});
    for (int kind = 0; kind < 2 && w->team->rank == 0 && w->sensitivity; kind++)
        add(w, (kvb_transfer){(void *)(uintptr_t)l->sensitivity[kind], square_bytes(g), owner, (SENSITIVITY + kind) * TAG_HEADS, true});
    if (w->team->rank == 0 && w->query_rows > 0)
        add(w, (kvb_transfer){(void *)(uintptr_t)l->queries, query_bytes(w, g), owner, QUERIES * TAG_HEADS, true});
}

static void *place_of(const kvb_team_capture *w, const kvb_layer *g, uint32_t from, int tensor, uint32_t head)
{
    const size_t row = head * (size_t)w->joined->view.rows + (size_t)w->first[from];
    return (uint8_t *)w->held[tensor] + row * row_bytes(g, tensor);
}

static void receive_layer(kvb_team_capture *w, const kvb_layer *g, uint32_t from)
{
    for (int tensor = 0; tensor < w->tensors; tensor++)
        for (uint32_t head = 0; head < g->kv_heads; head++)
            add(w, (kvb_transfer){place_of(w, g, from, tensor, head), (size_t)w->part[from].rows * row_bytes(g, tensor), from,
                                  tensor * TAG_HEADS + (int)head, false});
    add(w, (kvb_transfer){w->others_sums + from * sum_count(g), sum_count(g) * sizeof(kvb_exact), from, SUMS * TAG_HEADS, false});
    add(w, (kvb_transfer){w->others_count + (size_t)from * g->kv_heads, g->kv_heads * sizeof(uint64_t), from, COUNT * TAG_HEADS, false});
    for (int kind = 0; kind < 2 && from == 0 && w->sensitivity; kind++)
        add(w, (kvb_transfer){w->held[SENSITIVITY + kind], square_bytes(g), from, (SENSITIVITY + kind) * TAG_HEADS, false});
    if (from == 0 && w->query_rows > 0)
        add(w, (kvb_transfer){w->held[QUERIES], query_bytes(w, g), from, QUERIES * TAG_HEADS, false});
}

static void take_own(kvb_team_capture *w, uint32_t layer)
{
    const kvb_capture_layer *l = &w->mine->layer[layer];
    const kvb_layer *g = &w->mine->geometry[layer];
    const uint32_t rank = w->team->rank;
    for (int tensor = 0; tensor < w->tensors; tensor++)
        for (uint32_t head = 0; head < g->kv_heads; head++) {
            const size_t size = (size_t)w->mine->rows * row_bytes(g, tensor);
            memcpy(place_of(w, g, rank, tensor, head), (const uint8_t *)row_tensor(l, tensor) + head * size, size);
        }
    memcpy(w->others_sums + rank * sum_count(g), l->query_sums, sum_count(g) * sizeof(kvb_exact));
    memcpy(w->others_count + (size_t)rank * g->kv_heads, l->query_count, g->kv_heads * sizeof(uint64_t));
    for (int kind = 0; kind < 2 && rank == 0 && w->sensitivity; kind++)
        memcpy(w->held[SENSITIVITY + kind], l->sensitivity[kind], square_bytes(g));
    if (rank == 0 && w->query_rows > 0)
        memcpy(w->held[QUERIES], l->queries, query_bytes(w, g));
}

/* ---- the layer that this process owns */

static void let_go(kvb_team_capture *w)
{
    for (int i = 0; i < HELD; i++) {
        free(w->held[i]);
        w->held[i] = NULL;
    }
    if (w->layer != UINT32_MAX)
        w->joined->layer[w->layer] = (kvb_capture_layer){0};
    w->layer = UINT32_MAX;
}

static bool make_room(kvb_team_capture *w, const kvb_layer *g)
{
    const size_t rows = g->kv_heads * (size_t)w->joined->view.rows, size = w->team->size;
    bool good = true;
    for (int tensor = 0; tensor < w->tensors; tensor++)
        good &= (w->held[tensor] = kvb_alloc_array(rows, row_bytes(g, tensor))) != NULL;
    good &= (w->held[SUMS] = kvb_alloc_zeroed(sum_count(g), sizeof(kvb_exact))) != NULL;
    good &= (w->held[COUNT] = kvb_alloc_zeroed(g->kv_heads, sizeof(uint64_t))) != NULL;
    for (int i = MEANS; i < SENSITIVITY + (w->sensitivity ? 2 : 0); i++)
        good &= (w->held[i] = kvb_alloc_array(square_bytes(g), 1)) != NULL;
    if (w->query_rows > 0)
        good &= (w->held[QUERIES] = kvb_alloc_array(query_bytes(w, g), 1)) != NULL;
    w->others_sums = kvb_alloc_array(size * sum_count(g), sizeof *w->others_sums);
    w->others_count = kvb_alloc_array(size * g->kv_heads, sizeof *w->others_count);
    return good && w->others_sums != NULL && w->others_count != NULL;
}

static void finish_layer(kvb_team_capture *w, uint32_t layer)
{
    const kvb_layer *g = &w->mine->geometry[layer];
    kvb_exact *sums = w->held[SUMS];
    uint64_t *queries = w->held[COUNT];
    for (uint32_t p = 0; p < w->team->size; p++) {
        for (size_t i = 0; i < sum_count(g); i++)
            sums[i] = kvb_exact_add(sums[i], w->others_sums[p * sum_count(g) + i]);
        for (uint32_t i = 0; i < g->kv_heads; i++)
            queries[i] += w->others_count[(size_t)p * g->kv_heads + i];
    }
    for (uint32_t which = 0; which < 2; which++)
        kvb_query_means(g, sums, queries, which, w->held[MEANS + which]);
    w->layer = layer;
    w->joined->layer[layer] = (kvb_capture_layer){
        .keys = w->held[0], .values = w->held[1], .weight_k = w->held[2], .weight_v = w->held[3],
        .gradient = {w->held[GRADIENTS], w->held[GRADIENTS + 1]}, .query_sums = sums,
        .query_count = queries, .moment_relative = w->held[MEANS], .moment_post = w->held[MEANS + 1],
        .sensitivity = {w->held[SENSITIVITY], w->held[SENSITIVITY + 1]}, .queries = w->held[QUERIES],
    };
}

static kvb_status load(void *user, const uint32_t *layer, uint32_t count, kvb_error *err)
{
    kvb_team_capture *w = user;
    const uint32_t rank = w->team->rank;
    bool good = true;
    let_go(w);
    w->transfers = 0;
    w->failed = false;
    if (rank < count)
        good = make_room(w, &w->mine->geometry[layer[rank]]);
    if (good && rank < count)
        take_own(w, layer[rank]);
    for (uint32_t peer = 0; good && peer < w->team->size; peer++) {
        if (peer != rank && rank < count)
            receive_layer(w, &w->mine->geometry[layer[rank]], peer);
        if (peer != rank && peer < count)
            send_layer(w, layer[peer], peer);
    }
    kvb_status status = kvb_team_agree(w->team, good && !w->failed ? KVB_OK : kvb_fail_memory(err, "a layer from all processes"), err);
    if (status == KVB_OK)
        status = kvb_team_exchange(w->team, w->transfer, w->transfers, err);
    if (status == KVB_OK && rank < count)
        finish_layer(w, layer[rank]);
    free(w->others_sums);
    free(w->others_count);
    w->others_sums = NULL;
    w->others_count = NULL;
    return status;
}

/* ---- the whole */

static kvb_status gather_parts(kvb_team_capture *w, kvb_error *err)
{
    const size_t n = (size_t)w->mine->rows, size = w->team->size;
    uint64_t *bytes = kvb_alloc_zeroed(size, sizeof *bytes);
    uint32_t *both = kvb_alloc_array(2 * n, sizeof *both);
    kvb_status status = kvb_team_agree(w->team, bytes != NULL && both != NULL ? KVB_OK : kvb_fail_memory(err, "parts"), err);
    if (status == KVB_OK) {
        memcpy(both, w->mine->row_chunk, n * sizeof *both);
        memcpy(both + n, w->mine->row_position, n * sizeof *both);
        status = kvb_team_gather(w->team, w->mine->meta_json, strlen(w->mine->meta_json) + 1, w->meta, bytes, err);
    }
    if (status == KVB_OK)
        status = kvb_team_gather(w->team, both, 2 * n * sizeof *both, w->places, bytes, err);
    for (size_t i = 0; status == KVB_OK && i < size; i++) {
        const uint64_t rows = bytes[i] / (2 * sizeof(uint32_t));
        w->part[i] = (kvb_capture){.layers = w->mine->layers, .geometry = w->mine->geometry, .rows = rows, .row_chunk = w->places[i],
                                   .row_position = (uint32_t *)w->places[i] + rows, .meta_json = w->meta[i]};
        w->first[i] = i > 0 ? w->first[i - 1] + w->part[i - 1].rows : 0;
    }
    free(bytes);
    free(both);
    return status;
}

static kvb_status join(kvb_team_capture *w, kvb_error *err)
{
    const kvb_capture *part[1024];
    const char *name[1024];
    char text[1024][16];
    kvb_status status = w->team->size <= 1024 ? KVB_OK : kvb_fail(err, KVB_E_USAGE, "MPI", "%u processes; at most 1024", w->team->size);
    if (status != KVB_OK)
        return status;
    w->part[0].query_rows = w->query_rows;
    for (uint32_t i = 0; i < w->team->size; i++) {
        snprintf(text[i], sizeof text[i], "rank %u", i);
        part[i] = &w->part[i];
        name[i] = text[i];
    }
    status = kvb_capture_join(part, name, w->team->size, &w->joined, err);
    if (status == KVB_OK) {
        w->joined->view.load = load;
        w->joined->view.load_user = w;
    }
    return status;
}

static bool has_sensitivity(const kvb_capture *c)
{
    for (uint32_t l = 0; l < c->layers; l++)
        if (c->layer[l].sensitivity[KVB_KEY] != NULL)
            return true;
    return false;
}

static bool has_gradients(const kvb_capture *c)
{
    for (uint32_t l = 0; l < c->layers; l++)
        if (c->layer[l].gradient[KVB_KEY] != NULL)
            return true;
    return false;
}

kvb_status kvb_team_capture_create(const kvb_team *team, const kvb_capture *mine, kvb_team_capture **whole, kvb_error *err)
{
    kvb_team_capture *w = kvb_alloc_zeroed(1, sizeof *w);
    kvb_status status = KVB_OK;
    *whole = w;
    if (w != NULL) {
        *w = (kvb_team_capture){.team = team, .mine = mine, .layer = UINT32_MAX, .sensitivity = has_sensitivity(mine), .query_rows = mine->query_rows,
                                .tensors = has_gradients(mine) ? ROW_TENSORS : GRADIENTS};
        w->part = kvb_alloc_zeroed(team->size, sizeof *w->part);
        w->places = kvb_alloc_zeroed(team->size, sizeof *w->places);
        w->meta = kvb_alloc_zeroed(team->size, sizeof *w->meta);
        w->first = kvb_alloc_zeroed(team->size, sizeof *w->first);
    }
    if (w == NULL || w->part == NULL || w->places == NULL || w->meta == NULL || w->first == NULL)
        status = kvb_fail_memory(err, "parts");
    status = kvb_team_agree(team, status, err);
    if (status == KVB_OK && team->size > 1)
        status = gather_parts(w, err);
    if (status == KVB_OK && team->size > 1)
        status = kvb_team_share(team, &w->sensitivity, sizeof w->sensitivity, err);
    if (status == KVB_OK && team->size > 1)
        status = kvb_team_share(team, &w->query_rows, sizeof w->query_rows, err);
    if (status == KVB_OK && team->size > 1)
        status = kvb_team_agree(team, join(w, err), err);
    if (status == KVB_OK)
        return status;
    kvb_team_capture_free(w);
    *whole = NULL;
    return status;
}

const kvb_capture *kvb_team_capture_view(const kvb_team_capture *w)
{
    return w->joined != NULL ? kvb_capture_view(w->joined) : w->mine;
}

void kvb_team_capture_free(kvb_team_capture *w)
{
    if (w == NULL)
        return;
    if (w->joined != NULL)
        let_go(w);
    kvb_capture_close(w->joined);
    for (uint32_t i = 0; i < w->team->size; i++) {
        free(w->places != NULL ? w->places[i] : NULL);
        free(w->meta != NULL ? w->meta[i] : NULL);
    }
    free(w->places);
    free(w->meta);
    free(w->part);
    free(w->first);
    free(w->transfer);
    free(w);
}
