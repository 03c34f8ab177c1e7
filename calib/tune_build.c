#include <stdlib.h>
#include <string.h>

#include "calib/capture_meta.h"
#include "calib/tune_run.h"
#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/grid.h"
#include "format/base/half.h"
#include "format/base/json.h"
#include "format/book_write.h"

/* Mean of a layer error over the coded layers. */
static double mean_of(const kvb_tune_report *r, size_t offset)
{
    double sum = 0.0;
    uint32_t count = 0;
    for (uint32_t l = 0; l < r->layers; l++)
        if (r->layer[l].coded) {
            double value;
            memcpy(&value, (const char *)&r->layer[l] + offset, sizeof value);
            sum += value;
            count++;
        }
    return count != 0 ? sum / count : 0.0;
}

static void put_errors(kvb_json_writer *w, const kvb_tune_report *r)
{
    kvb_json_put_number(w, "train_before", mean_of(r, offsetof(kvb_tune_layer_report, train_before)));
    kvb_json_put_number(w, "train_after", mean_of(r, offsetof(kvb_tune_layer_report, train_after)));
    kvb_json_put_number(w, "heldout_before", mean_of(r, offsetof(kvb_tune_layer_report, heldout_before)));
    kvb_json_put_number(w, "heldout_after", mean_of(r, offsetof(kvb_tune_layer_report, heldout_after)));
    kvb_json_begin_array(w, "layers");
    for (uint32_t l = 0; l < r->layers; l++) {
        const kvb_tune_layer_report *layer = &r->layer[l];
        if (!layer->coded)
            continue;
        kvb_json_begin_object(w, NULL);
        kvb_json_put_u64(w, "layer", l);
        kvb_json_put_number(w, "train_before", layer->train_before);
        kvb_json_put_number(w, "train_after", layer->train_after);
        kvb_json_put_number(w, "heldout_before", layer->heldout_before);
        kvb_json_put_number(w, "heldout_after", layer->heldout_after);
        kvb_json_put_bool(w, "accepted", layer->accepted);
        kvb_json_end_object(w);
    }
    kvb_json_end_array(w);
}

static void put_kl(kvb_json_writer *w, const kvb_tune_kl *kl)
{
    kvb_json_put_number(w, "train_first", kl->train_first);
    kvb_json_put_number(w, "train_last", kl->train_last);
    kvb_json_put_number(w, "heldout_before", kl->heldout_before);
    kvb_json_put_number(w, "heldout_after", kl->heldout_after);
    kvb_json_put_bool(w, "accepted", kl->accepted);
    kvb_json_put_u64(w, "best_epoch", kl->best_epoch);
}

static void put_tuning(kvb_json_writer *w, const kvb_text *text, const kvb_tune_options *o, const kvb_tune_report *r)
{
    const kvb_capture_options cut = {.ctx = o->ctx, .skip = o->skip, .bos = o->bos};
    kvb_json_begin_object(w, "tuning");
    kvb_json_put_string(w, "objective", r->kl.used ? "KL(exact model || model with the coded cache)"
                                                   : "||(O' - O) W_O||^2 / ||O W_O||^2");
    if (!r->kl.used)
        kvb_json_put_string(w, "stream", o->stream == KVB_TUNE_CODED ? "coded" : "exact");
    kvb_json_put_u64(w, "epochs", o->epochs);
    kvb_json_put_u64(w, "batch", o->batch);
    kvb_json_put_u64(w, "steps", r->steps);
    kvb_json_put_number(w, "rate", o->rate);
    kvb_json_put_u64(w, "seed", o->seed);
    kvb_json_put_u64(w, "window", o->window);
    kvb_json_put_bool(w, "anchors", o->keep != NULL);
    kvb_json_put_string(w, "exact", o->exact == KVB_EXACT_FINE ? "fine" : "half");
    kvb_json_put_u64(w, "heldout_chunks", r->heldout_chunks);
    kvb_json_put_u64(w, "measured_chunks", r->measured_chunks);
    kvb_meta_put_text(w, text, &cut, r->chunks);
    r->kl.used ? put_kl(w, &r->kl) : put_errors(w, r);
    kvb_json_end_object(w);
}

/* The book's META with "tuning" in place of an earlier one. */
static kvb_status write_meta(const kvb_book *book, const kvb_text *text, const kvb_tune_options *options,
                             const kvb_tune_report *report, char **meta, kvb_error *err)
{
    kvb_json_doc *doc = NULL;
    kvb_json_writer w = {.compact = true};
    size_t size;
    const char *given = kvb_book_meta(book, &size);
    *meta = NULL;
    kvb_status status = kvb_json_parse(given, size, "META of the book", &doc, err);
    if (status != KVB_OK)
        return status;
    const kvb_json *root = kvb_json_root(doc);
    kvb_json_begin_object(&w, NULL);
    for (size_t i = 0; i < kvb_json_count(root); i++)
        if (strcmp(kvb_json_key_at(root, i), "tuning") != 0)
            kvb_json_put_value(&w, kvb_json_key_at(root, i), kvb_json_at(root, i));
    put_tuning(&w, text, options, report);
    kvb_json_end_object(&w);
    const char *written = kvb_json_writer_text(&w);
    *meta = written != NULL ? strdup(written) : NULL;
    kvb_json_writer_free(&w);
    kvb_json_free(doc);
    return *meta != NULL ? KVB_OK : kvb_fail_memory(err, "META of the book");
}

static kvb_book_part part_of(const kvb_book *book, const kvb_tune_table *t, uint32_t layer, uint32_t head, kvb_kind kind)
{
    return (kvb_book_part){
        .channels = t->channels, .centroids = t->rows, .stages = t->stages, .table = t->table, .mean = t->codebook->mean,
        .forward = t->codebook->forward, .inverse = t->codebook->inverse,
        .quality = kvb_book_quality(book, layer, head, kind),
    };
}

/* The parts of a book as they are put together. */
typedef struct parts {
    kvb_layer *geometry;  /* [layers] */
    uint32_t layers, heads; /* heads: the most of any layer */
    kvb_book_part *part, *fine; /* [layers][heads][2] */
} parts;

static kvb_status make_parts(const kvb_book *book, parts *p, kvb_error *err)
{
    p->layers = kvb_book_layers(book);
    for (uint32_t l = 0; l < p->layers; l++)
        p->heads = kvb_book_layer(book, l)->kv_heads > p->heads ? kvb_book_layer(book, l)->kv_heads : p->heads;
    p->geometry = kvb_alloc_array(p->layers, sizeof *p->geometry);
    p->part = kvb_alloc_zeroed((size_t)p->layers * p->heads * 2, sizeof *p->part);
    p->fine = kvb_alloc_zeroed((size_t)p->layers * p->heads * 2, sizeof *p->fine);
    return p->geometry != NULL && p->part != NULL && p->fine != NULL ? KVB_OK : kvb_fail_memory(err, "tuned book");
}

static void free_parts(parts *p)
{
    for (size_t i = 0; p->fine != NULL && i < (size_t)p->layers * p->heads * 2; i++)
        free((float *)(uintptr_t)p->fine[i].table);
    free(p->geometry);
    free(p->part);
    free(p->fine);
}

/* What came as multiples of steps goes as such: see format/base/grid.h. */
static kvb_status keep_grid(const kvb_codebook *from, const kvb_layer *layer, kvb_kind kind, const kvb_tune_table *t, kvb_error *err)
{
    const kvb_grid grid = kvb_grid_of(layer, kind, t->channels, t->stages, t->rows);
    float *before = kvb_alloc_array(t->floats, sizeof *before), *step = kvb_alloc_array(layer->head_dim, sizeof *step);
    if (before != NULL && step != NULL) {
        kvb_half_to_floats(before, from->table, t->floats);
        kvb_grid_steps(&grid, before, step);
        if (kvb_grid_holds(&grid, before, step)) {
            kvb_grid_steps(&grid, t->table, step);
            kvb_grid_snap(&grid, t->table, step);
        }
    }
    const bool held = before != NULL && step != NULL;
    free(before);
    free(step);
    return held ? KVB_OK : kvb_fail_memory(err, "tuned book");
}

static kvb_status fill_part(const kvb_book *book, const kvb_tune_layer *layer, uint32_t l, uint32_t task, parts *p,
                            kvb_error *err)
{
    const size_t at = (size_t)l * p->heads * 2 + task;
    const kvb_codebook *fine = kvb_book_fine(book, l, task / 2, (kvb_kind)(task % 2));
    p->part[at] = part_of(book, &layer->table[task], l, task / 2, (kvb_kind)(task % 2));
    kvb_status status = keep_grid(kvb_book_codebook(book, l, task / 2, (kvb_kind)(task % 2)), &p->geometry[l], (kvb_kind)(task % 2),
                                  &layer->table[task], err);
    if (status != KVB_OK)
        return status;
    if (fine == NULL)
        return KVB_OK;
    p->part[at].fine = &p->fine[at];
    return kvb_book_part_copy(fine, &p->fine[at], err); /* they stay what they are */
}

kvb_status kvb_tune_build(const kvb_book *book, const kvb_tune_layer *layer, const kvb_text *text,
                          const kvb_tune_options *options, const kvb_tune_report *report, uint8_t **image, size_t *size,
                          kvb_error *err)
{
    parts p = {0};
    char *meta = NULL;
    kvb_status status = make_parts(book, &p, err);
    for (uint32_t l = 0; status == KVB_OK && l < p.layers; l++) {
        p.geometry[l] = *kvb_book_layer(book, l);
        for (uint32_t i = 0; status == KVB_OK && layer[l].table != NULL && i < p.geometry[l].kv_heads * 2; i++)
            status = fill_part(book, &layer[l], l, i, &p, err);
    }
    if (status == KVB_OK)
        status = write_meta(book, text, options, report, &meta, err);
    if (status == KVB_OK)
        status = kvb_book_build(&(kvb_book_spec){.layers = p.layers, .layer = p.geometry, .part = p.part,
                                                 .part_heads = p.heads, .policy = kvb_book_policy(book), .meta_json = meta,
                                                 .compress = true}, image, size, err);
    free(meta);
    free_parts(&p);
    return status;
}
