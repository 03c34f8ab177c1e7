/* Scores of a comparison, a chunk of text at a time: an interrupted run loses one chunk, and more chunks or recipes later cost
 * only what is new. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calib/capture_meta.h"
#include "format/base/fail.h"
#include "format/base/mapfile.h"
#include "format/base/outfile.h"
#include "format/base/path.h"
#include "tools/compare.h"
#include "tools/evaluate.h"
#include "tools/summary.h"

enum { MOST_BYTES = 1 << 28 };

/* One cache on one chunk. */
typedef struct record {
    char key[KVB_FINGERPRINT_TEXT];
    double nll, kl, top1; /* means over the chunk's targets */
} record;

typedef struct store {
    char *path;
    record *item;
    size_t count, capacity;
} store;

static const record *find(const store *s, const char *key)
{
    for (size_t i = 0; i < s->count; i++)
        if (strcmp(s->item[i].key, key) == 0)
            return &s->item[i];
    return NULL;
}

static kvb_status add(store *s, const record *r, kvb_error *err)
{
    if (s->count == s->capacity) {
        const size_t capacity = s->capacity > 0 ? 2 * s->capacity : 64;
        record *grown = reallocarray(s->item, capacity, sizeof *grown);
        if (grown == NULL)
            return kvb_fail_memory(err, s->path);
        s->item = grown;
        s->capacity = capacity;
    }
    s->item[s->count++] = *r;
    return KVB_OK;
}

static kvb_status refuse_store(const store *s, const char *what, kvb_error *err)
{
    return kvb_fail(err, KVB_E_FORMAT, s->path, "%s, expected scores that an earlier comparison left; remove the file, and all is scored anew",
                    what);
}

static kvb_status read_records(store *s, const kvb_json *root, kvb_error *err)
{
    const kvb_json *scores = kvb_json_get(root, "scores");
    uint64_t schema = 0;
    if (!kvb_json_u64(kvb_json_get(root, "schema"), &schema) || schema != 1)
        return refuse_store(s, "\"schema\" is not 1", err);
    if (kvb_json_type_of(scores) != KVB_JSON_OBJECT)
        return refuse_store(s, "there is no object \"scores\"", err);
    kvb_status status = KVB_OK;
    for (size_t i = 0; i < kvb_json_count(scores) && status == KVB_OK; i++) {
        const char *key = kvb_json_key_at(scores, i);
        const kvb_json *v = kvb_json_at(scores, i);
        record r = {.nll = kvb_json_number(kvb_json_at(v, 0), NAN), .kl = kvb_json_number(kvb_json_at(v, 1), NAN),
                    .top1 = kvb_json_number(kvb_json_at(v, 2), NAN)};
        if (strlen(key) + 1 != sizeof r.key || kvb_json_type_of(v) != KVB_JSON_ARRAY || kvb_json_count(v) != 3 || isnan(r.nll) ||
            isnan(r.kl) || isnan(r.top1))
            return refuse_store(s, "a score is not three numbers under 64 digits", err);
        memcpy(r.key, key, sizeof r.key);
        status = add(s, &r, err);
    }
    return status;
}

static kvb_status load(const kvb_compare_job *job, store *s, kvb_error *err)
{
    kvb_json_doc *doc = NULL;
    char *text = NULL;
    size_t size = 0;
    *s = (store){0};
    s->path = kvb_join_path(job->folder, "scores.json", "");
    if (s->path == NULL)
        return kvb_fail_memory(err, "compare");
    FILE *there = fopen(s->path, "rb");
    if (there == NULL && errno == ENOENT)
        return KVB_OK;
    if (there != NULL)
        fclose(there);
    kvb_status status = kvb_read_file(s->path, MOST_BYTES, &text, &size, err);
    if (status == KVB_OK)
        status = kvb_json_parse(text, size, s->path, &doc, err);
    if (status == KVB_OK)
        status = read_records(s, kvb_json_root(doc), err);
    kvb_json_free(doc);
    free(text);
    return status;
}

static kvb_status save(const store *s, kvb_error *err)
{
    kvb_json_writer w = {.compact = true};
    kvb_json_begin_object(&w, NULL);
    kvb_json_put_u64(&w, "schema", 1);
    kvb_json_begin_object(&w, "scores");
    for (size_t i = 0; i < s->count; i++) {
        kvb_json_begin_array(&w, s->item[i].key);
        kvb_json_put_number(&w, NULL, s->item[i].nll);
        kvb_json_put_number(&w, NULL, s->item[i].kl);
        kvb_json_put_number(&w, NULL, s->item[i].top1);
        kvb_json_end_array(&w);
    }
    kvb_json_end_object(&w);
    kvb_json_end_object(&w);
    const char *text = kvb_json_writer_text(&w);
    kvb_status status = text != NULL ? kvb_write_file(s->path, text, strlen(text), err) : kvb_fail_memory(err, s->path);
    kvb_json_writer_free(&w);
    return status;
}

/* `cell` NULL: the exact cache. The seed places random anchors. */
static kvb_status make_key(const kvb_compare_job *job, const kvb_compare_cell *cell, uint64_t chunk, char key[KVB_FINGERPRINT_TEXT],
                           kvb_error *err)
{
    kvb_json_writer w = {.compact = true};
    kvb_json_begin_object(&w, NULL);
    kvb_json_put_string(&w, "kvbook", KVB_VERSION);
    kvb_fingerprint_put_model(&w, job->input->model);
    kvb_fingerprint_put_tokens(&w, job->input, chunk, 1);
    if (cell != NULL) {
        kvb_json_put_string(&w, "book", cell->fingerprint);
        kvb_put_policy_members(&w, &cell->policy, NULL);
        kvb_json_put_u64(&w, "protocol", job->protocol);
        kvb_json_put_u64(&w, "seed", job->seed);
    }
    kvb_json_end_object(&w);
    kvb_status status = kvb_fingerprint_json(&w, key, err);
    kvb_json_writer_free(&w);
    return status;
}

/* The cells that chunk `chunk` has no score of. */
typedef struct chunk_work {
    kvb_eval_variant *variant; /* [count] */
    kvb_eval_score *score;     /* [count] */
    record *key;               /* [count], then that of the exact cache */
    size_t count;
} chunk_work;

static kvb_status list_work(const kvb_compare_job *job, const kvb_compare_grid *grid, const store *s, uint64_t chunk, chunk_work *w,
                            kvb_error *err)
{
    record key;
    kvb_status status = KVB_OK;
    w->count = 0;
    for (size_t i = 0; i < grid->count && status == KVB_OK; i++) {
        const kvb_compare_cell *cell = &grid->cell[i];
        if (cell->refused)
            continue;
        status = make_key(job, cell, chunk, key.key, err);
        if (status != KVB_OK || find(s, key.key) != NULL)
            continue;
        w->key[w->count] = key;
        w->variant[w->count++] = (kvb_eval_variant){.book = cell->book, .policy = cell->policy, .protocol = job->protocol,
                                                    .seed = job->seed};
    }
    return status == KVB_OK ? make_key(job, NULL, chunk, w->key[w->count].key, err) : status;
}

/* The exact pass runs again where a chunk was scored before: divergences need its logits. */
static kvb_status score_chunk(const kvb_compare_job *job, store *s, uint64_t chunk, chunk_work *w, kvb_progress *p, kvb_error *err)
{
    kvb_input input = *job->input;
    const kvb_eval_options options = {.exact = true};
    kvb_eval_result result = {.variant = w->score};
    input.skip += chunk;
    input.chunks = 1;
    kvb_status status = kvb_evaluate(&input, w->variant, w->count, &options, p, &result, err);
    for (size_t i = 0; i < w->count && status == KVB_OK; i++) {
        w->key[i].nll = log(w->score[i].ppl);
        w->key[i].kl = w->score[i].kl;
        w->key[i].top1 = w->score[i].top1;
        status = add(s, &w->key[i], err);
    }
    record *exact = &w->key[w->count];
    exact->nll = log(result.exact.ppl);
    exact->kl = 0;
    exact->top1 = 1;
    if (status == KVB_OK && find(s, exact->key) == NULL)
        status = add(s, exact, err);
    return status == KVB_OK ? save(s, err) : status;
}

static kvb_status score_missing(const kvb_compare_job *job, const kvb_compare_grid *grid, store *s, kvb_progress *p, kvb_error *err)
{
    chunk_work w = {.variant = calloc(grid->count, sizeof *w.variant), .score = calloc(grid->count, sizeof *w.score),
                    .key = calloc(grid->count + 1, sizeof *w.key)};
    kvb_status status = w.variant != NULL && w.score != NULL && w.key != NULL ? KVB_OK : kvb_fail_memory(err, "compare");
    uint64_t there = 0;
    for (uint64_t c = 0; c < job->input->chunks && status == KVB_OK; c++) {
        status = list_work(job, grid, s, c, &w, err);
        there += w.count == 0;
        if (status != KVB_OK || w.count == 0)
            continue;
        kvb_say(p, "chunk %llu of %llu: %zu caches to score", (unsigned long long)c + 1, (unsigned long long)job->input->chunks, w.count);
        status = score_chunk(job, s, c, &w, p, err);
    }
    if (status == KVB_OK && there > 0)
        kvb_say(p, "chunks: %llu of %llu had all their scores", (unsigned long long)there, (unsigned long long)job->input->chunks);
    free(w.variant);
    free(w.score);
    free(w.key);
    return status;
}

/* Every chunk has as many targets: means over chunks are means over targets. */
static kvb_status summarise(const kvb_compare_job *job, const store *s, kvb_compare_cell *cell, double *ppl_exact, kvb_error *err)
{
    const uint64_t chunks = job->input->chunks;
    double nll = 0, exact = 0, kl = 0, top1 = 0, square = 0;
    char key[2][KVB_FINGERPRINT_TEXT];
    for (uint64_t c = 0; c < chunks; c++) {
        kvb_status status = make_key(job, cell, c, key[0], err);
        if (status == KVB_OK)
            status = make_key(job, NULL, c, key[1], err);
        if (status != KVB_OK)
            return status;
        const record *own = find(s, key[0]), *other = find(s, key[1]);
        if (own == NULL || other == NULL)
            return refuse_store(s, "scores of a chunk are there without those of the exact cache", err);
        const double delta = own->nll - other->nll, before = c > 0 ? (nll - exact) / (double)c : 0;
        nll += own->nll;
        exact += other->nll;
        kl += own->kl;
        top1 += own->top1;
        square += (delta - before) * (delta - (nll - exact) / (double)(c + 1)); /* Welford 1962 */
    }
    *ppl_exact = exp(exact / (double)chunks);
    cell->ppl = exp(nll / (double)chunks);
    cell->kl = kl / (double)chunks;
    cell->top1 = top1 / (double)chunks;
    cell->delta = (nll - exact) / (double)chunks;
    cell->delta_error = chunks > 1 ? sqrt(fmax(square, 0) / (double)(chunks - 1) / (double)chunks) : NAN;
    return KVB_OK;
}

kvb_status kvb_compare_score(const kvb_compare_job *job, kvb_compare_grid *grid, kvb_progress *p, kvb_error *err)
{
    store s;
    kvb_status status = load(job, &s, err);
    if (status == KVB_OK)
        status = score_missing(job, grid, &s, p, err);
    for (size_t i = 0; i < grid->count && status == KVB_OK; i++)
        if (!grid->cell[i].refused)
            status = summarise(job, &s, &grid->cell[i], &grid->ppl_exact, err);
    free(s.item);
    free(s.path);
    return status;
}
