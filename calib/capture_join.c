/* Captures of parts of one text as the capture of the whole. Rows of a head lie apart in the parts' files, so a layer is put
 * together when it is asked for, in memory that holds one layer. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calib/capture_sink.h"
#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/json.h"

typedef struct joined_part {
    const kvb_capture *capture;
    const char *name;
    kvb_json_doc *meta;
    uint64_t skip, chunks; /* of META; chunks 0: it does not say */
} joined_part;

struct kvb_joined {
    joined_part *part; /* in the order of the text */
    size_t parts;
    kvb_capture_store *store;
    uint32_t *row_chunk, *row_position;
    void *held[10]; /* what layer `layer` points at */
    uint32_t layer; /* UINT32_MAX: none */
};

/* ---- whether the parts belong together */

static const kvb_json *member(const joined_part *p, const char *object, const char *key)
{
    return kvb_json_get(kvb_json_get(kvb_json_root(p->meta), object), key);
}

static kvb_status refuse(const joined_part *a, const joined_part *b, kvb_error *err, const char *what)
{
    return kvb_fail(err, KVB_E_MISMATCH, b->name, "cannot be joined with %.200s: %s", a->name, what);
}

static kvb_status check_geometry(const joined_part *a, const joined_part *b, kvb_error *err)
{
    char *ga = kvb_kvc_geometry_write(a->capture->geometry, a->capture->layers);
    char *gb = kvb_kvc_geometry_write(b->capture->geometry, b->capture->layers);
    const bool memory = ga != NULL && gb != NULL, same = memory && strcmp(ga, gb) == 0;
    free(ga);
    free(gb);
    if (!memory)
        return kvb_fail_memory(err, "join");
    return same ? KVB_OK : refuse(a, b, err, "their geometries differ; expected captures of one model");
}

static kvb_status check_pair(const joined_part *a, const joined_part *b, kvb_error *err)
{
    static const struct {
        const char *object, *key, *what;
    } must[] = {
        {"model", "weights_sha256", "the models differ; expected captures of one model"},
        {"model", "meta_sha256", "the models' metadata differ; expected captures of one model"},
        {"tokenizer", "sha256", "the tokenizers differ"},
        {"text", "sources", "the texts differ; capture parts of one list of --text files, with --shard or --skip and --chunks"},
        {"text", "ctx", "the chunks have different lengths; give the same --ctx"},
        {"text", "bos", "one begins chunks with BOS and the other does not, or with another"},
        {"capture", "seed", "the seeds differ; give the same --seed"},
    };
    kvb_status status = check_geometry(a, b, err);
    for (size_t i = 0; status == KVB_OK && i < sizeof must / sizeof *must; i++) {
        bool same = false;
        status = kvb_json_same(member(a, must[i].object, must[i].key), member(b, must[i].object, must[i].key), &same, err);
        if (status == KVB_OK && !same)
            status = refuse(a, b, err, must[i].what);
    }
    return status;
}

static kvb_status check_neighbours(const joined_part *a, const joined_part *b, kvb_error *err)
{
    char what[160];
    const uint64_t end = a->skip + a->chunks;
    if (a->capture->row_chunk[a->capture->rows - 1] >= b->capture->row_chunk[0] || (a->chunks != 0 && end > b->skip)) {
        snprintf(what, sizeof what, "both hold chunk %u; expected captures of different chunks", b->capture->row_chunk[0]);
        return refuse(a, b, err, what);
    }
    if (a->chunks != 0 && b->chunks != 0 && end < b->skip) {
        snprintf(what, sizeof what, "chunks %" PRIu64 " to %" PRIu64 " are in neither, nor in another; is a part missing?", end, b->skip - 1);
        return refuse(a, b, err, what);
    }
    return KVB_OK;
}

static int by_chunk(const void *a, const void *b)
{
    const uint32_t x = ((const joined_part *)a)->capture->row_chunk[0], y = ((const joined_part *)b)->capture->row_chunk[0];
    return x < y ? -1 : x > y;
}

static kvb_status open_part(joined_part *p, kvb_error *err)
{
    const kvb_capture *c = p->capture;
    const char *json = c->meta_json != NULL ? c->meta_json : "{}";
    uint64_t skip, chunks;
    if (c->rows == 0 || c->row_chunk == NULL)
        return kvb_fail(err, KVB_E_MISMATCH, p->name, "has no row_chunk, so that its place among other captures is not known");
    kvb_status status = kvb_json_parse(json, strlen(json), p->name, &p->meta, err);
    if (status == KVB_OK && kvb_json_u64(member(p, "text", "skip"), &skip) && kvb_json_u64(member(p, "text", "chunks"), &chunks) &&
        skip <= UINT32_MAX && chunks <= UINT32_MAX) {
        p->skip = skip;
        p->chunks = chunks;
    }
    return status;
}

static kvb_status check_parts(kvb_joined *j, kvb_error *err)
{
    kvb_status status = KVB_OK;
    for (size_t i = 0; status == KVB_OK && i < j->parts; i++)
        status = open_part(&j->part[i], err);
    if (status == KVB_OK)
        qsort(j->part, j->parts, sizeof *j->part, by_chunk);
    for (size_t i = 1; status == KVB_OK && i < j->parts; i++) {
        status = check_pair(&j->part[0], &j->part[i], err);
        if (status == KVB_OK)
            status = check_neighbours(&j->part[i - 1], &j->part[i], err);
    }
    return status;
}

/* ---- META of the whole: the first part's, with the counts of all */

static uint64_t sum_of(const kvb_joined *j, const char *object, const char *key)
{
    uint64_t sum = 0, one;
    for (size_t i = 0; i < j->parts; i++)
        sum += kvb_json_u64(member(&j->part[i], object, key), &one) ? one : 0;
    return sum;
}

static bool adds_up(const char *object, const char *key)
{
    static const char *const counts[] = {"rows", "saturated", "quarantined", "bad_queries"};
    if (strcmp(object, "text") == 0)
        return strcmp(key, "chunks") == 0;
    for (size_t i = 0; strcmp(object, "capture") == 0 && i < sizeof counts / sizeof *counts; i++)
        if (strcmp(key, counts[i]) == 0)
            return true;
    return false;
}

static void put_member(kvb_json_writer *w, const kvb_joined *j, const char *object, const kvb_json *value)
{
    if (kvb_json_type_of(value) != KVB_JSON_OBJECT || (strcmp(object, "text") != 0 && strcmp(object, "capture") != 0)) {
        kvb_json_put_value(w, object, value);
        return;
    }
    kvb_json_begin_object(w, object);
    for (size_t i = 0; i < kvb_json_count(value); i++) {
        const char *key = kvb_json_key_at(value, i);
        if (adds_up(object, key))
            kvb_json_put_u64(w, key, sum_of(j, object, key));
        else
            kvb_json_put_value(w, key, kvb_json_at(value, i));
    }
    kvb_json_end_object(w);
}

static char *write_meta(const kvb_joined *j)
{
    kvb_json_writer w = {.compact = true};
    const kvb_json *root = kvb_json_root(j->part[0].meta);
    kvb_json_begin_object(&w, NULL);
    for (size_t i = 0; kvb_json_type_of(root) == KVB_JSON_OBJECT && i < kvb_json_count(root); i++)
        put_member(&w, j, kvb_json_key_at(root, i), kvb_json_at(root, i));
    kvb_json_end_object(&w);
    const char *text = kvb_json_writer_text(&w);
    char *copy = text != NULL ? strdup(text) : NULL;
    kvb_json_writer_free(&w);
    return copy;
}

/* ---- one layer */

static void let_go(kvb_joined *j)
{
    for (size_t i = 0; i < sizeof j->held / sizeof *j->held; i++) {
        free(j->held[i]);
        j->held[i] = NULL;
    }
    if (j->layer != UINT32_MAX)
        j->store->layer[j->layer] = (kvb_capture_layer){0};
    j->layer = UINT32_MAX;
}

static const kvb_capture_layer *layer_of(const kvb_joined *j, size_t part)
{
    return &j->part[part].capture->layer[j->layer];
}

/* One tensor with rows of a part's layer. */
typedef const void *(*tensor_fn)(const kvb_capture_layer *l);
static const void *keys_of(const kvb_capture_layer *l) { return l->keys; }
static const void *values_of(const kvb_capture_layer *l) { return l->values; }
static const void *weight_k_of(const kvb_capture_layer *l) { return l->weight_k; }
static const void *weight_v_of(const kvb_capture_layer *l) { return l->weight_v; }
static const void *gradient_k_of(const kvb_capture_layer *l) { return l->gradient[KVB_KEY]; }
static const void *gradient_v_of(const kvb_capture_layer *l) { return l->gradient[KVB_VALUE]; }
static const void *relative_of(const kvb_capture_layer *l) { return l->moment_relative; }
static const void *post_of(const kvb_capture_layer *l) { return l->moment_post; }
static const void *sums_of(const kvb_capture_layer *l) { return l->query_sums; }

static bool all_have(const kvb_joined *j, tensor_fn tensor)
{
    for (size_t i = 0; i < j->parts; i++)
        if (tensor(layer_of(j, i)) == NULL)
            return false;
    return true;
}

/* [G][n] rows of row_bytes each; false where memory runs out. NULL and true where a part has none. */
static bool join_rows(kvb_joined *j, tensor_fn tensor, size_t row_bytes, void **to)
{
    const uint32_t heads = j->store->geometry[j->layer].kv_heads;
    if (!all_have(j, tensor))
        return true;
    uint8_t *at = kvb_alloc_array(heads * (size_t)j->store->view.rows, row_bytes);
    *to = at;
    if (at == NULL)
        return false;
    for (uint32_t head = 0; head < heads; head++)
        for (size_t i = 0; i < j->parts; i++) {
            const size_t bytes = (size_t)j->part[i].capture->rows * row_bytes;
            memcpy(at, (const uint8_t *)tensor(layer_of(j, i)) + head * bytes, bytes);
            at += bytes;
        }
    return true;
}

static bool add_sums(kvb_joined *j, kvb_exact **sums, uint64_t **queries)
{
    const kvb_layer *g = &j->store->geometry[j->layer];
    const size_t count = 2 * g->kv_heads * kvb_triangle(g->head_dim);
    *sums = kvb_alloc_zeroed(count, sizeof **sums);
    *queries = kvb_alloc_zeroed(g->kv_heads, sizeof **queries);
    if (*sums == NULL || *queries == NULL)
        return false;
    for (size_t p = 0; p < j->parts; p++) {
        const kvb_capture_layer *l = layer_of(j, p);
        for (size_t i = 0; i < count; i++)
            (*sums)[i] = kvb_exact_add((*sums)[i], l->query_sums[i]);
        for (size_t i = 0; i < g->kv_heads; i++)
            (*queries)[i] += l->query_count[i];
    }
    return true;
}

/* Where a part has means alone: theirs, by rows. */
static void average(const kvb_joined *j, tensor_fn tensor, size_t count, float *mean)
{
    for (size_t i = 0; i < count; i++) {
        double sum = 0.0;
        for (size_t p = 0; p < j->parts; p++)
            sum += (double)((const float *)tensor(layer_of(j, p)))[i] * (double)j->part[p].capture->rows;
        mean[i] = (float)(sum / (double)j->store->view.rows);
    }
}

static bool join_moments(kvb_joined *j, kvb_capture_layer *to)
{
    const kvb_layer *g = &j->store->geometry[j->layer];
    const size_t count = (size_t)g->kv_heads * g->head_dim * g->head_dim;
    const tensor_fn tensor[2] = {relative_of, post_of};
    const bool exact = all_have(j, sums_of);
    kvb_exact *sums = NULL;
    uint64_t *queries = NULL;
    const bool added = !exact || add_sums(j, &sums, &queries);
    j->held[4] = sums;
    j->held[5] = queries;
    for (uint32_t which = 0; added && which < 2; which++) {
        if (!exact && !all_have(j, tensor[which]))
            continue;
        float *mean = kvb_alloc_array(count, sizeof *mean);
        j->held[6 + which] = mean;
        if (mean == NULL)
            return false;
        if (exact)
            kvb_query_means(g, sums, queries, which, mean);
        else
            average(j, tensor[which], count, mean);
    }
    to->query_sums = sums;
    to->query_count = queries;
    to->moment_relative = j->held[6];
    to->moment_post = j->held[7];
    return added;
}

/* They are of the first chunks of a run, whose part has them. */
static void take_sensitivity(const kvb_joined *j, kvb_capture_layer *to)
{
    for (size_t i = 0; i < j->parts && to->sensitivity[KVB_KEY] == NULL; i++)
        for (int kind = 0; kind < 2; kind++)
            to->sensitivity[kind] = layer_of(j, i)->sensitivity[kind];
}

/* Of the first chunk, which the first part has. */
static void take_queries(const kvb_joined *j, kvb_capture_layer *to)
{
    to->queries = layer_of(j, 0)->queries;
}

static kvb_status load(void *user, const uint32_t *list, uint32_t count, kvb_error *err)
{
    kvb_joined *j = user;
    const uint32_t layer = list[0];
    (void)count;
    kvb_capture_layer *to = &j->store->layer[layer];
    const kvb_layer *g = &j->store->geometry[layer];
    if (layer == j->layer || kvb_kvc_is_empty(g))
        return KVB_OK;
    let_go(j);
    j->layer = layer;
    if (!join_rows(j, keys_of, g->head_dim * sizeof *to->keys, &j->held[0]) ||
        !join_rows(j, values_of, g->head_dim * sizeof *to->values, &j->held[1]) ||
        !join_rows(j, weight_k_of, sizeof *to->weight_k, &j->held[2]) ||
        !join_rows(j, weight_v_of, sizeof *to->weight_v, &j->held[3]) ||
        !join_rows(j, gradient_k_of, g->head_dim * sizeof *to->gradient[0], &j->held[8]) ||
        !join_rows(j, gradient_v_of, g->head_dim * sizeof *to->gradient[0], &j->held[9]) || !join_moments(j, to)) {
        let_go(j);
        return kvb_fail_memory(err, "a layer of joined captures");
    }
    to->keys = j->held[0];
    to->values = j->held[1];
    to->weight_k = j->held[2];
    to->weight_v = j->held[3];
    to->gradient[KVB_KEY] = j->held[8];
    to->gradient[KVB_VALUE] = j->held[9];
    take_sensitivity(j, to);
    take_queries(j, to);
    return KVB_OK;
}

/* ---- the whole */

static kvb_status join_places(kvb_joined *j, kvb_error *err)
{
    kvb_capture *c = &j->store->view;
    for (size_t i = 0; i < j->parts; i++)
        if (!kvb_add_u64(c->rows, j->part[i].capture->rows, &c->rows))
            return kvb_fail(err, KVB_E_USAGE, "join", "more than 2^64 rows");
    j->row_chunk = kvb_alloc_array((size_t)c->rows, sizeof *j->row_chunk);
    j->row_position = kvb_alloc_array((size_t)c->rows, sizeof *j->row_position);
    if (j->row_chunk == NULL || j->row_position == NULL)
        return kvb_fail_memory(err, "join");
    size_t at = 0;
    for (size_t i = 0; i < j->parts; i++) {
        const kvb_capture *from = j->part[i].capture;
        memcpy(j->row_chunk + at, from->row_chunk, (size_t)from->rows * sizeof *j->row_chunk);
        memcpy(j->row_position + at, from->row_position, (size_t)from->rows * sizeof *j->row_position);
        at += (size_t)from->rows;
    }
    c->row_chunk = j->row_chunk;
    c->row_position = j->row_position;
    c->query_rows = j->part[0].capture->query_rows;
    return KVB_OK;
}

static kvb_status create_store(kvb_joined *j, kvb_error *err)
{
    const kvb_capture *first = j->part[0].capture;
    char *meta = write_meta(j);
    if (meta == NULL)
        return kvb_fail_memory(err, "META of joined captures");
    kvb_status status = kvb_store_create(first->geometry, first->layers, meta, &j->store, err);
    free(meta);
    if (status != KVB_OK)
        return status;
    j->store->view.load = load;
    j->store->view.load_user = j;
    return join_places(j, err);
}

void kvb_joined_free(kvb_joined *j)
{
    if (j == NULL)
        return;
    for (size_t i = 0; i < sizeof j->held / sizeof *j->held; i++)
        free(j->held[i]);
    for (size_t i = 0; j->part != NULL && i < j->parts; i++)
        kvb_json_free(j->part[i].meta);
    free(j->part);
    free(j->row_chunk);
    free(j->row_position);
    free(j);
}

kvb_status kvb_capture_join(const kvb_capture *const *part, const char *const *name, size_t parts, kvb_capture_store **store,
                            kvb_error *err)
{
    *store = NULL;
    kvb_joined *j = kvb_alloc_zeroed(1, sizeof *j);
    if (j == NULL || (j->part = kvb_alloc_zeroed(parts, sizeof *j->part)) == NULL) {
        kvb_joined_free(j);
        return kvb_fail_memory(err, "join");
    }
    j->layer = UINT32_MAX;
    j->parts = parts;
    for (size_t i = 0; i < parts; i++)
        j->part[i] = (joined_part){.capture = part[i], .name = name[i]};
    kvb_status status = check_parts(j, err);
    if (status == KVB_OK)
        status = create_store(j, err);
    if (status != KVB_OK) {
        kvb_capture_close(j->store);
        kvb_joined_free(j);
        return status;
    }
    j->store->joined = j;
    *store = j->store;
    return KVB_OK;
}
