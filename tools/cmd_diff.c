/* What differs between two books. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/json.h"
#include "format/base/sha256.h"
#include "format/kvb_layout.h"
#include "runtime/codec.h"
#include "tools/commands.h"
#include "tools/identity.h"
#include "tools/output.h"
#include "tools/summary.h"

typedef struct diff_args {
    kvb_common_args common;
    kvb_strings books;
    bool json;
} diff_args;

static const kvb_flag flags[] = {
    {"--json", KVB_FLAG_BOOL, NULL, "print one JSON object", .offset = offsetof(diff_args, json)},
};

static const kvb_command_spec spec = {
    .name = "diff",
    .operands = "A.kvb B.kvb",
    .summary = "Say what differs between two books",
    .about = "Compares identity, model, recipe, policy, geometry and shapes, and how far apart the codebooks are: the mean\n"
             "squared distance of each centroid to the nearest one of the other book, both ways, relative to the variance of\n"
             "the centroids. The order of centroids does not count. Exits with 0 where the books are the same file, 1 where\n"
             "they are not.",
    .args_size = sizeof(diff_args),
    .operands_offset = offsetof(diff_args, books),
    .group = {{"Flags", flags, 1, 0}, KVB_GROUP(common, "Common flags", diff_args, common)},
    .groups = 2,
};

/* Books with more centroids than this in a group (sums of stages too) are compared in shape only. */
enum { MOST_MATCHED = 4096, BOOKS = 2 };

/* Distance of one layer's codebooks of a kind; NaN where nothing could be compared. */
typedef struct layer_distance {
    double sum, groups;   /* groups that were compared */
    double worst;
    uint32_t other_shape; /* heads with codebooks of different shapes */
    uint32_t transformed; /* heads whose mean or transform differs: centroids are points of different spaces there */
} layer_distance;

typedef struct comparison {
    const char *path[BOOKS];
    kvb_book *book[BOOKS];
    kvb_json_doc *doc[BOOKS];
    const kvb_json *meta[BOOKS];
    bool same_geometry;
    uint32_t layers;
    layer_distance (*layer)[2]; /* [layers] by kind */
} comparison;

static double variance(const float *x, uint32_t count, uint32_t d)
{
    double sum = 0.0;
    for (uint32_t e = 0; e < d; e++) {
        double mean = 0.0;
        for (uint32_t k = 0; k < count; k++)
            mean += (double)x[(size_t)k * d + e] / count;
        for (uint32_t k = 0; k < count; k++)
            sum += ((double)x[(size_t)k * d + e] - mean) * ((double)x[(size_t)k * d + e] - mean) / count;
    }
    return sum;
}

/* Room to compare groups of up to MOST_MATCHED centroids; stages have no more rows than sums. */
typedef struct matcher {
    float *centroid[BOOKS], *rows, *distance;
    uint32_t *index;
} matcher;

/* Mean squared distance of the first's centroids to the nearest of the second's. */
static bool one_way(const matcher *m, const float *from, const float *to, const kvb_codebook *c, double *mean)
{
    kvb_nearest *nearest = kvb_nearest_create(c->channels, c->centroids);
    if (nearest == NULL)
        return false;
    kvb_nearest_set(nearest, to);
    kvb_nearest_find(nearest, from, c->channels, c->centroids, m->index, m->distance);
    kvb_nearest_destroy(nearest);
    *mean = 0.0;
    for (uint32_t k = 0; k < c->centroids; k++)
        *mean += (double)m->distance[k] / c->centroids;
    return true;
}

static bool match_group(const matcher *m, const kvb_codebook *const c[BOOKS], uint32_t group, layer_distance *l)
{
    double there = 0.0, back = 0.0;
    for (int b = 0; b < BOOKS; b++)
        kvb_codebook_expand(c[b], group, m->centroid[b], m->rows);
    if (!one_way(m, m->centroid[0], m->centroid[1], c[0], &there) || !one_way(m, m->centroid[1], m->centroid[0], c[0], &back))
        return false;
    const double spread = 0.5 * (variance(m->centroid[0], c[0]->centroids, c[0]->channels) +
                                 variance(m->centroid[1], c[1]->centroids, c[1]->channels));
    const double relative = 0.5 * (there + back) / spread;
    l->sum += relative;
    l->groups++;
    l->worst = relative > l->worst ? relative : l->worst;
    return true;
}

static bool same_floats(const float *a, const float *b, size_t count)
{
    return (a == NULL) == (b == NULL) && (a == NULL || memcmp(a, b, count * sizeof *a) == 0);
}

static bool same_space(const kvb_codebook *a, const kvb_codebook *b)
{
    const size_t dim = (size_t)a->groups * a->channels;
    return same_floats(a->mean, b->mean, dim) && same_floats(a->forward, b->forward, dim * dim);
}

static bool same_shape(const kvb_codebook *a, const kvb_codebook *b)
{
    return a->channels == b->channels && a->stages == b->stages && a->stage_centroids == b->stage_centroids &&
           (a->scaling == NULL) == (b->scaling == NULL);
}

static bool compare_head(const comparison *c, const matcher *m, uint32_t layer, uint32_t head, kvb_kind kind, layer_distance *l)
{
    const kvb_codebook *const of[BOOKS] = {kvb_book_codebook(c->book[0], layer, head, kind),
                                           kvb_book_codebook(c->book[1], layer, head, kind)};
    if (of[0] == NULL && of[1] == NULL)
        return true;
    if (of[0] == NULL || of[1] == NULL || !same_shape(of[0], of[1])) {
        l->other_shape++;
        return true;
    }
    l->transformed += !same_space(of[0], of[1]);
    for (uint32_t g = 0; of[0]->scaling == NULL && of[0]->centroids <= MOST_MATCHED && g < of[0]->groups; g++)
        if (!match_group(m, of, g, l))
            return false;
    return true;
}

static bool same_layer(const kvb_layer *a, const kvb_layer *b)
{
    return a->heads == b->heads && a->kv_heads == b->kv_heads && a->head_dim == b->head_dim && a->kind == b->kind;
}

static kvb_status compare_codebooks(comparison *c, kvb_error *err)
{
    const size_t most = (size_t)MOST_MATCHED * KVB_MAX_CHANNELS;
    matcher m = {{kvb_alloc_array(most, sizeof(float)), kvb_alloc_array(most, sizeof(float))},
                 kvb_alloc_array(most, sizeof(float)), kvb_alloc_array(MOST_MATCHED, sizeof(float)),
                 kvb_alloc_array(MOST_MATCHED, sizeof(uint32_t))};
    bool good = m.centroid[0] != NULL && m.centroid[1] != NULL && m.rows != NULL && m.distance != NULL && m.index != NULL;
    for (uint32_t l = 0; good && l < c->layers; l++)
        for (uint32_t i = 0; good && i < 2 * kvb_book_layer(c->book[0], l)->kv_heads; i++)
            good = compare_head(c, &m, l, i / 2, (kvb_kind)(i % 2), &c->layer[l][i % 2]);
    free(m.centroid[0]);
    free(m.centroid[1]);
    free(m.rows);
    free(m.distance);
    free(m.index);
    return good ? KVB_OK : kvb_fail_memory(err, "comparing codebooks");
}

static kvb_status open_both(comparison *c, const diff_args *a, kvb_error *err)
{
    kvb_status status = KVB_OK;
    for (int b = 0; b < BOOKS && status == KVB_OK; b++) {
        c->path[b] = a->books.items[b];
        status = kvb_book_open_with(c->path[b], KVB_OPEN_VERIFIED, &c->book[b], err);
        if (status != KVB_OK)
            break;
        size_t size;
        const char *meta = kvb_book_meta(c->book[b], &size);
        status = kvb_json_parse(meta, size, c->path[b], &c->doc[b], err);
        c->meta[b] = kvb_json_root(c->doc[b]);
    }
    if (status != KVB_OK)
        return status;
    c->layers = kvb_book_layers(c->book[0]);
    c->same_geometry = c->layers == kvb_book_layers(c->book[1]);
    for (uint32_t l = 0; c->same_geometry && l < c->layers; l++)
        c->same_geometry = same_layer(kvb_book_layer(c->book[0], l), kvb_book_layer(c->book[1], l));
    c->layer = kvb_alloc_zeroed(c->layers, sizeof *c->layer);
    if (c->layer == NULL)
        return kvb_fail_memory(err, "comparing books");
    return c->same_geometry ? compare_codebooks(c, err) : KVB_OK;
}

static bool same_books(const comparison *c)
{
    return memcmp(kvb_book_id(c->book[0]), kvb_book_id(c->book[1]), 32) == 0;
}

/* Over all layers. */
static layer_distance total_of(const comparison *c, kvb_kind kind)
{
    layer_distance all = {0};
    for (uint32_t l = 0; l < c->layers; l++) {
        const layer_distance *one = &c->layer[l][kind];
        all.sum += one->sum;
        all.groups += one->groups;
        all.worst = fmax(all.worst, one->worst);
        all.other_shape += one->other_shape;
        all.transformed += one->transformed;
    }
    return all;
}

/* ---- as text */

static void print_pair(const char *what, const char *a, const char *b)
{
    printf("%-11s ", what);
    kvb_put_printable(stdout, a);
    if (strcmp(a, b) != 0) {
        fputs("  |  ", stdout);
        kvb_put_printable(stdout, b);
    }
    putchar('\n');
}

static void print_meta(const comparison *c, const char *what, const char *path)
{
    print_pair(what, kvb_meta_string(c->meta[0], path), kvb_meta_string(c->meta[1], path));
}

static void print_summaries(const comparison *c)
{
    char text[BOOKS][KVB_SHAPE_TEXT], policy[BOOKS][96], bits[BOOKS][64];
    kvb_book_summary s[BOOKS];
    for (int b = 0; b < BOOKS; b++) {
        const kvb_policy p = kvb_book_policy(c->book[b]);
        s[b] = kvb_summarise_book(c->book[b]);
        kvb_policy_text(&p, policy[b]);
        snprintf(bits[b], sizeof bits[b], "%g nominal, %.3f effective at 128K", s[b].bits_nominal,
                 kvb_effective_bits(c->book[b], &p, KVB_CTX_128K));
    }
    print_pair("bits", bits[0], bits[1]);
    for (int kind = 0; kind < 2; kind++) {
        for (int b = 0; b < BOOKS; b++)
            if (s[b].first[kind] != NULL)
                kvb_codebook_text(s[b].first[kind], text[b]);
            else
                snprintf(text[b], sizeof text[b], "none");
        print_pair(kind == KVB_KEY ? "keys" : "values", text[0], text[1]);
    }
    print_pair("policy", policy[0], policy[1]);
}

static void print_distance(const comparison *c, kvb_kind kind)
{
    const layer_distance d = total_of(c, kind);
    printf("%-11s ", kind == KVB_KEY ? "key dist." : "value dist.");
    if (d.groups > 0)
        printf("%.4g of the centroids' variance on average, %.4g in the worst group", d.sum / d.groups, d.worst);
    else
        printf("not compared");
    if (d.other_shape > 0)
        printf("; %u heads have other shapes", d.other_shape);
    if (d.transformed > 0)
        printf("; in %u heads means or transforms differ, so centroids lie in different spaces", d.transformed);
    putchar('\n');
}

static void print_text(const comparison *c)
{
    char id[BOOKS][65];
    for (int b = 0; b < BOOKS; b++) {
        kvb_sha256_hex(kvb_book_id(c->book[b]), id[b]);
        id[b][16] = '\0';
    }
    print_pair("books", c->path[0], c->path[1]);
    print_pair("id", id[0], id[1]);
    if (same_books(c)) {
        puts("the same");
        return;
    }
    print_meta(c, "model", "model.name");
    print_meta(c, "weights", "model.weights_sha256");
    print_meta(c, "tokenizer", "tokenizer.sha256");
    print_meta(c, "recipe", "recipe.name");
    print_summaries(c);
    if (!c->same_geometry) {
        puts("geometry    differs: codebooks cannot be compared");
        return;
    }
    print_distance(c, KVB_KEY);
    print_distance(c, KVB_VALUE);
}

/* ---- as JSON */

static void put_distance(kvb_json_writer *w, const char *key, const layer_distance *d)
{
    kvb_json_begin_object(w, key);
    kvb_json_put_number(w, "distance", d->groups > 0 ? d->sum / d->groups : NAN);
    kvb_json_put_number(w, "worst", d->groups > 0 ? d->worst : NAN);
    kvb_json_put_u64(w, "heads_of_other_shape", d->other_shape);
    kvb_json_put_u64(w, "heads_of_other_transform", d->transformed);
    kvb_json_end_object(w);
}

static kvb_status print_json(const comparison *c, kvb_error *err)
{
    kvb_json_writer w = {0};
    kvb_json_begin_object(&w, NULL);
    kvb_json_put_u64(&w, "schema", 1);
    kvb_json_begin_array(&w, "books");
    for (int b = 0; b < BOOKS; b++) {
        kvb_json_begin_object(&w, NULL);
        kvb_json_put_string(&w, "book", c->path[b]);
        kvb_json_put_sha256(&w, "id", kvb_book_id(c->book[b]));
        kvb_json_put_number(&w, "bits_nominal", kvb_summarise_book(c->book[b]).bits_nominal);
        kvb_json_end_object(&w);
    }
    kvb_json_end_array(&w);
    kvb_json_put_bool(&w, "same", same_books(c));
    kvb_json_put_bool(&w, "same_geometry", c->same_geometry);
    if (c->same_geometry) {
        const layer_distance key = total_of(c, KVB_KEY), value = total_of(c, KVB_VALUE);
        put_distance(&w, "keys", &key);
        put_distance(&w, "values", &value);
        kvb_json_begin_array(&w, "layers");
        for (uint32_t l = 0; l < c->layers; l++) {
            kvb_json_begin_object(&w, NULL);
            put_distance(&w, "keys", &c->layer[l][KVB_KEY]);
            put_distance(&w, "values", &c->layer[l][KVB_VALUE]);
            kvb_json_end_object(&w);
        }
        kvb_json_end_array(&w);
    }
    kvb_json_end_object(&w);
    return kvb_print_json(&w, "diff", err);
}

static kvb_status run(const void *args, kvb_progress *p, kvb_error *err)
{
    const diff_args *a = args;
    comparison c = {0};
    (void)p;
    if (a->books.count != BOOKS)
        return kvb_fail(err, KVB_E_USAGE, "diff", "found %zu books, expected two", a->books.count);
    kvb_status status = open_both(&c, a, err);
    if (status == KVB_OK && a->json)
        status = print_json(&c, err);
    else if (status == KVB_OK)
        print_text(&c);
    if (status == KVB_OK && !same_books(&c))
        status = kvb_fail(err, KVB_E_CHECK, c.path[1], "is another book than %s", c.path[0]);
    for (int b = 0; b < BOOKS; b++) {
        kvb_json_free(c.doc[b]);
        kvb_book_close(c.book[b]);
    }
    free(c.layer);
    return status;
}

static const diff_args defaults = {0};
const kvb_command kvb_diff_command = {&spec, &defaults, run};
