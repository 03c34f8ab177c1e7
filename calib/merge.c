#include "calib/merge.h"

#include <stdlib.h>
#include <string.h>

#include "calib/train_impl.h"
#include "format/base/checked.h"
#include "format/base/fail.h"

/* One of the books. */
typedef struct piece {
    const kvb_book *book;
    const char *name;
    kvb_json_doc *doc;
    const kvb_json *root, *training, *part; /* META, and in it */
    uint32_t first, last;                   /* layers */
} piece;

typedef struct merger {
    piece *piece; /* [pieces] */
    size_t pieces;
    uint32_t layers, heads; /* heads: the most of any layer */
    const piece **owner;    /* [layers] */
    kvb_layer *geometry;    /* [layers] */
    kvb_book_part *part, *fine; /* [layers][heads][2] */
    kvb_layer_curves curves;
} merger;

static kvb_status open_piece(piece *p, kvb_error *err)
{
    size_t size;
    const char *meta = kvb_book_meta(p->book, &size);
    kvb_status status = kvb_json_parse(meta, size, p->name, &p->doc, err);
    if (status != KVB_OK)
        return status;
    p->root = kvb_json_root(p->doc);
    p->training = kvb_json_get(p->root, "training");
    p->part = kvb_json_get(p->training, "part");
    if (p->part == NULL)
        return kvb_fail(err, KVB_E_MISMATCH, p->name, "is not a book of a part of the layers; `kvbook train --layers A-B` makes them");
    if (kvb_json_get(p->root, "tuning") != NULL)
        return kvb_fail(err, KVB_E_MISMATCH, p->name, "was tuned as a part; merge the books first and tune the whole");
    if (!kvb_train_part_range(p->part, &p->first, &p->last) || p->last >= kvb_book_layers(p->book))
        return kvb_fail(err, KVB_E_FORMAT, p->name, "META's training.part names no layers of the book's %u", kvb_book_layers(p->book));
    return KVB_OK;
}

/* What parts of one job may differ in, and what is made anew. */
static bool is_open(const char *key)
{
    static const char *const open[] = {"training", "created", "quality", "clips", "curves", "scores", "part"};
    for (size_t i = 0; i < sizeof open / sizeof *open; i++)
        if (strcmp(key, open[i]) == 0)
            return true;
    return false;
}

/* Every member of `a` that is not open is in `b`, and the same. `inside` names the object in the error. */
static kvb_status check_members(const piece *p, const piece *q, const kvb_json *a, const kvb_json *b, const char *inside, kvb_error *err)
{
    kvb_status status = KVB_OK;
    for (size_t i = 0; status == KVB_OK && i < kvb_json_count(a); i++) {
        const char *key = kvb_json_key_at(a, i);
        const kvb_json *other = kvb_json_get(b, key);
        bool same = other != NULL;
        if (is_open(key))
            continue;
        if (same)
            status = kvb_json_same(kvb_json_at(a, i), other, &same, err);
        if (status == KVB_OK && !same)
            status = kvb_fail(err, KVB_E_MISMATCH, q->name,
                              "is of another job than %s: META's \"%s%s\" differs; train all parts from one capture with the same flags",
                              p->name, inside, key);
    }
    return status;
}

static bool same_policy(const kvb_policy *a, const kvb_policy *b)
{
    return !(a->anchor_fraction < b->anchor_fraction) && !(a->anchor_fraction > b->anchor_fraction) && a->score == b->score &&
           a->window == b->window && a->sinks == b->sinks && a->exact == b->exact;
}

/* What a writer of captures may have left out of META. */
static kvb_status check_shape(const piece *p, const piece *q, kvb_error *err)
{
    const kvb_policy a = kvb_book_policy(p->book), b = kvb_book_policy(q->book);
    const uint32_t layers = kvb_book_layers(p->book);
    if (kvb_book_layers(q->book) != layers)
        return kvb_fail(err, KVB_E_MISMATCH, q->name, "has %u layers, %s has %u: they are of different models",
                        kvb_book_layers(q->book), p->name, layers);
    for (uint32_t l = 0; l < layers; l++) {
        const kvb_layer *x = kvb_book_layer(p->book, l), *y = kvb_book_layer(q->book, l);
        if (x->heads != y->heads || x->kv_heads != y->kv_heads || x->head_dim != y->head_dim)
            return kvb_fail(err, KVB_E_MISMATCH, q->name, "layer %u has other heads than in %s: they are of different models", l, p->name);
    }
    if (!same_policy(&a, &b))
        return kvb_fail(err, KVB_E_MISMATCH, q->name, "asks a cache to keep other tokens exact than %s; train all parts with the same "
                        "--anchors, --window, --sinks and --exact", p->name);
    return KVB_OK;
}

static kvb_status check_same_job(const piece *p, const piece *q, kvb_error *err)
{
    kvb_status status = check_members(p, q, p->root, q->root, "", err);
    if (status == KVB_OK)
        status = check_members(q, p, q->root, p->root, "", err);
    if (status == KVB_OK)
        status = check_members(p, q, p->training, q->training, "training.", err);
    if (status == KVB_OK)
        status = check_members(q, p, q->training, p->training, "training.", err);
    return status == KVB_OK ? check_shape(p, q, err) : status;
}

/* Who has which layer. */
static kvb_status find_owners(merger *m, kvb_error *err)
{
    for (size_t i = 0; i < m->pieces; i++)
        for (uint32_t l = m->piece[i].first; l <= m->piece[i].last; l++) {
            if (m->owner[l] != NULL)
                return kvb_fail(err, KVB_E_MISMATCH, m->piece[i].name, "and %s both hold layer %u; give books of disjoint layers",
                                m->owner[l]->name, l);
            m->owner[l] = &m->piece[i];
        }
    for (uint32_t l = 0, end; l < m->layers; l++) {
        for (end = l; end < m->layers && m->owner[end] == NULL; end++)
            ;
        if (end > l)
            return kvb_fail(err, KVB_E_MISMATCH, "merge", "layers %u to %u are in none of the books; train them with --layers %u-%u", l,
                            end - 1, l, end - 1);
    }
    return KVB_OK;
}

static kvb_status fill_part(merger *m, uint32_t l, uint32_t head, kvb_kind kind, kvb_error *err)
{
    const kvb_book *book = m->owner[l]->book;
    const size_t at = ((size_t)l * m->heads + head) * 2 + (size_t)kind;
    const kvb_codebook *c = kvb_book_codebook(book, l, head, kind), *fine = kvb_book_fine(book, l, head, kind);
    kvb_book_part *part = &m->part[at];
    if (c == NULL)
        return KVB_OK;
    part->mean = c->mean;
    part->forward = c->forward;
    part->inverse = c->inverse;
    part->quality = kvb_book_quality(book, l, head, kind);
    kvb_status status = kvb_book_part_copy(c, part, err);
    if (status != KVB_OK || fine == NULL)
        return status;
    part->fine = &m->fine[at];
    return kvb_book_part_copy(fine, &m->fine[at], err);
}

static kvb_status fill_parts(merger *m, kvb_error *err)
{
    kvb_status status = KVB_OK;
    for (uint32_t l = 0; l < m->layers; l++) {
        m->geometry[l] = *kvb_book_layer(m->owner[l]->book, l);
        m->heads = m->geometry[l].kv_heads > m->heads ? m->geometry[l].kv_heads : m->heads;
    }
    m->part = kvb_alloc_zeroed((size_t)m->layers * m->heads * 2, sizeof *m->part);
    m->fine = kvb_alloc_zeroed((size_t)m->layers * m->heads * 2, sizeof *m->fine);
    if (m->part == NULL || m->fine == NULL)
        return kvb_fail_memory(err, "merge");
    for (uint32_t l = 0; l < m->layers; l++)
        for (uint32_t i = 0; status == KVB_OK && i < 2 * m->geometry[l].kv_heads; i++)
            status = fill_part(m, l, i / 2, (kvb_kind)(i % 2), err);
    return status;
}

/* What training would have counted over all layers, in its order. */
static kvb_status add_up(const merger *m, kvb_layer_sums *sums, kvb_layer_scores *scores, kvb_error *err)
{
    kvb_status status = KVB_OK;
    for (uint32_t l = 0; status == KVB_OK && l < m->layers; l++) {
        kvb_layer_sums one = {0};
        status = kvb_train_part_sums(m->owner[l]->part, l, m->owner[l]->name, &one, err);
        kvb_train_add_sums(sums, &one);
    }
    for (size_t i = 0; status == KVB_OK && i < m->pieces; i++) {
        kvb_layer_scores one = {0};
        status = kvb_train_part_scores(m->piece[i].part, m->piece[i].name, &one, err);
        kvb_train_add_scores(scores, &one);
    }
    return status;
}

/* The most points that a head's curve has, of any part. */
static uint32_t longest_curve(const merger *m)
{
    size_t most = 1;
    for (size_t i = 0; i < m->pieces; i++) {
        const kvb_json *layers = kvb_json_get(m->piece[i].part, "curves");
        for (size_t l = 0; l < kvb_json_count(layers); l++)
            for (size_t h = 0; h < kvb_json_count(kvb_json_at(layers, l)); h++) {
                const size_t points = kvb_json_count(kvb_json_at(kvb_json_at(layers, l), h));
                most = points > most ? points : most;
            }
    }
    return (uint32_t)(most - 1);
}

static kvb_status gather_curves(merger *m, kvb_error *err)
{
    const uint32_t length = longest_curve(m);
    kvb_status status = kvb_train_curves_create(m->layers, length, &m->curves) ? KVB_OK : kvb_fail_memory(err, "curves");
    for (uint32_t l = 0; status == KVB_OK && l < m->layers; l++) {
        float *curve;
        m->curves.heads[l] = m->geometry[l].kv_heads;
        status = kvb_train_part_curves(m->owner[l]->part, l, m->geometry[l].kv_heads, length, m->owner[l]->name, &curve, err);
        m->curves.curve[l] = curve;
    }
    return status;
}

/* Of the piece that has any. */
static uint32_t context_of(const merger *m)
{
    uint64_t ctx = 0;
    for (size_t i = 0; ctx == 0 && i < m->pieces; i++)
        kvb_json_u64(kvb_json_get(kvb_json_get(m->piece[i].training, "scores"), "ctx"), &ctx);
    return (uint32_t)ctx;
}

static void put_training(kvb_json_writer *w, const merger *m, const kvb_layer_sums *sums, const kvb_layer_scores *scores)
{
    const kvb_json *training = m->piece[0].training;
    const double points = kvb_json_number(kvb_json_get(kvb_json_get(training, "quality"), "points_per_centroid"), 0);
    const kvb_train_report report = kvb_train_report_of(sums, points);
    kvb_json_begin_object(w, "training");
    for (size_t i = 0; i < kvb_json_count(training); i++) {
        const char *key = kvb_json_key_at(training, i);
        if (!is_open(key)) {
            kvb_json_put_value(w, key, kvb_json_at(training, i));
        } else if (strcmp(key, "quality") == 0) {
            kvb_train_put_quality(w, &report);
            kvb_train_put_clips(w, &report);
            kvb_train_put_curves(w, &m->curves);
            kvb_train_put_scores(w, context_of(m), scores);
        }
    }
    kvb_json_end_object(w);
}

static kvb_status write_meta(const merger *m, char **meta, kvb_error *err)
{
    kvb_json_writer w = {.compact = true};
    kvb_layer_sums sums = {0};
    kvb_layer_scores scores = {0};
    const kvb_json *root = m->piece[0].root;
    kvb_status status = add_up(m, &sums, &scores, err);
    if (status != KVB_OK)
        return status;
    kvb_json_begin_object(&w, NULL);
    for (size_t i = 0; i < kvb_json_count(root); i++) {
        const char *key = kvb_json_key_at(root, i);
        if (strcmp(key, "training") == 0)
            put_training(&w, m, &sums, &scores);
        else
            kvb_json_put_value(&w, key, kvb_json_at(root, i));
    }
    kvb_json_end_object(&w);
    const char *text = kvb_json_writer_text(&w);
    *meta = text != NULL ? strdup(text) : NULL;
    kvb_json_writer_free(&w);
    return *meta != NULL ? KVB_OK : kvb_fail_memory(err, "META of the book");
}

static kvb_status merge(merger *m, uint8_t **image, size_t *size, kvb_error *err)
{
    char *meta = NULL;
    kvb_status status = find_owners(m, err);
    if (status == KVB_OK)
        status = fill_parts(m, err);
    if (status == KVB_OK)
        status = gather_curves(m, err);
    if (status == KVB_OK)
        status = write_meta(m, &meta, err);
    if (status == KVB_OK)
        status = kvb_book_build(&(kvb_book_spec){.layers = m->layers, .layer = m->geometry, .part = m->part, .part_heads = m->heads,
                                                 .policy = kvb_book_policy(m->piece[0].book), .meta_json = meta, .compress = true},
                                image, size, err);
    free(meta);
    return status;
}

static void destroy(merger *m)
{
    for (size_t i = 0; m->part != NULL && m->fine != NULL && i < (size_t)m->layers * m->heads * 2; i++) {
        free((float *)(uintptr_t)m->part[i].table);
        free((float *)(uintptr_t)m->fine[i].table);
    }
    for (uint32_t l = 0; l < m->curves.layers && m->curves.curve != NULL; l++)
        free((float *)(uintptr_t)m->curves.curve[l]);
    kvb_train_curves_free(&m->curves);
    for (size_t i = 0; m->piece != NULL && i < m->pieces; i++)
        kvb_json_free(m->piece[i].doc);
    free(m->piece);
    free(m->owner);
    free(m->geometry);
    free(m->part);
    free(m->fine);
}

kvb_status kvb_merge_books(kvb_book *const *book, const char *const *name, size_t books, uint8_t **image, size_t *size, kvb_error *err)
{
    merger m = {.pieces = books, .layers = kvb_book_layers(book[0])};
    kvb_status status = KVB_OK;
    *image = NULL;
    *size = 0;
    m.piece = kvb_alloc_zeroed(books, sizeof *m.piece);
    m.owner = kvb_alloc_zeroed(m.layers, sizeof *m.owner);
    m.geometry = kvb_alloc_array(m.layers, sizeof *m.geometry);
    if (m.piece == NULL || m.owner == NULL || m.geometry == NULL)
        status = kvb_fail_memory(err, "merge");
    for (size_t i = 0; status == KVB_OK && i < books; i++) {
        m.piece[i].book = book[i];
        m.piece[i].name = name[i];
        status = open_piece(&m.piece[i], err);
        if (status == KVB_OK && i > 0)
            status = check_same_job(&m.piece[0], &m.piece[i], err);
    }
    if (status == KVB_OK)
        status = merge(&m, image, size, err);
    destroy(&m);
    return status;
}
