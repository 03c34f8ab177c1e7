/* The books of a comparison: those that are there, and those to make. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calib/capture_meta.h"
#include "format/base/fail.h"
#include "format/base/outfile.h"
#include "format/base/sha256.h"
#include "tools/compare.h"

kvb_status kvb_fingerprint_json(kvb_json_writer *w, char text[KVB_FINGERPRINT_TEXT], kvb_error *err)
{
    uint8_t digest[32];
    const char *json = kvb_json_writer_text(w);
    if (json == NULL)
        return kvb_fail_memory(err, "fingerprint");
    kvb_sha256_of(json, strlen(json), digest);
    kvb_sha256_hex(digest, text);
    return KVB_OK;
}

void kvb_fingerprint_put_model(kvb_json_writer *w, const kvb_model *model)
{
    const kvb_model_info *info = kvb_model_get_info(model);
    kvb_json_put_sha256(w, "model_meta", info->meta_sha256);
    kvb_json_put_sha256(w, "model_weights", info->weights_sha256);
}

/* Tokens, not files: they are what a run depends on, whatever the files are called. */
void kvb_fingerprint_put_tokens(kvb_json_writer *w, const kvb_input *input, uint64_t first, uint64_t chunks)
{
    const uint32_t *ids = input->text.ids + (input->skip + first) * input->ctx;
    uint8_t digest[32];
    kvb_sha256_of(ids, (size_t)(chunks * input->ctx) * sizeof *ids, digest);
    kvb_json_put_sha256(w, "tokens", digest);
    kvb_json_put_u64(w, "ctx", input->ctx);
    kvb_json_put_number(w, "bos", input->bos);
}

static kvb_status fingerprint(const kvb_compare_job *job, kvb_compare_cell *cell, kvb_error *err)
{
    kvb_json_writer w = {.compact = true};
    kvb_json_begin_object(&w, NULL);
    kvb_json_put_string(&w, "kvbook", KVB_VERSION);
    kvb_fingerprint_put_model(&w, job->input->model);
    kvb_fingerprint_put_tokens(&w, job->calibration, 0, job->calibration->chunks);
    kvb_json_put_u64(&w, "seed", job->seed);
    kvb_json_put_u64(&w, "max_memory", job->capture->max_memory.value);
    kvb_json_put_u64(&w, "on_nan", job->capture->on_nan.value);
    kvb_json_put_u64(&w, "device", job->capture->device.value != KVB_DEVICE_CPU);
    kvb_json_put_number(&w, "bits", cell->bits);
    kvb_json_put_value(&w, "recipe", kvb_json_root(cell->recipe.doc));
    kvb_json_end_object(&w);
    kvb_status status = kvb_fingerprint_json(&w, cell->fingerprint, err);
    kvb_json_writer_free(&w);
    return status;
}

/* FOLDER/NAME-BITS-FINGERPRINT.kvb: a recipe's name may hold anything, a file's had better not. */
static kvb_status choose_path(const kvb_compare_job *job, kvb_compare_cell *cell, kvb_error *err)
{
    char name[sizeof cell->recipe.name];
    size_t i = 0;
    for (; cell->recipe.name[i] != '\0'; i++)
        name[i] = isalnum((unsigned char)cell->recipe.name[i]) ? cell->recipe.name[i] : '-';
    name[i] = '\0';
    if (asprintf(&cell->path, "%s/%s-%g-%.16s.kvb", job->folder, name, cell->bits, cell->fingerprint) < 0) {
        cell->path = NULL;
        return kvb_fail_memory(err, "compare");
    }
    return KVB_OK;
}

/* A book that is there but cannot be read is made again. */
static kvb_status look_for(const kvb_compare_job *job, kvb_compare_cell *cell, kvb_progress *p, kvb_error *err)
{
    kvb_error why = {0};
    kvb_status status = fingerprint(job, cell, err);
    if (status == KVB_OK)
        status = choose_path(job, cell, err);
    if (status != KVB_OK)
        return status;
    status = kvb_book_open_with(cell->path, KVB_OPEN_VERIFIED, &cell->book, &why);
    if (status == KVB_E_FORMAT || status == KVB_E_CHECK)
        kvb_warn(p, "%s: %s; it is made again", why.where, why.message);
    return KVB_OK;
}

static kvb_status make_book(const kvb_compare_job *job, const kvb_capture_store *store, kvb_compare_cell *cell, kvb_progress *p,
                            kvb_error *err)
{
    uint8_t *image = NULL;
    size_t size = 0;
    kvb_train_report report;
    char bytes[32];
    kvb_status status =
        kvb_run_training(kvb_capture_view(store), &cell->recipe, job->seed, (kvb_device)job->capture->device.value, KVB_ALL_LAYERS, NULL, p,
                         &image, &size, &report, err);
    if (status == KVB_OK)
        status = kvb_write_file(cell->path, image, size, err);
    if (status == KVB_OK)
        kvb_say(p, "wrote %s: %s", cell->path, kvb_size_text(size, bytes));
    free(image);
    return status == KVB_OK ? kvb_book_open_with(cell->path, KVB_OPEN_VERIFIED, &cell->book, err) : status;
}

static kvb_status make_missing(const kvb_compare_job *job, kvb_compare_cell **missing, size_t count, kvb_progress *p,
                               kvb_error *err)
{
    kvb_capture_store *store = NULL;
    const kvb_recipe **recipe = calloc(count, sizeof *recipe);
    if (recipe == NULL)
        return kvb_fail_memory(err, "compare");
    for (size_t i = 0; i < count; i++)
        recipe[i] = &missing[i]->recipe;
    kvb_status status = kvb_run_capture(job->calibration, recipe, count, job->capture, job->seed, NULL, p, &store, err);
    for (size_t i = 0; i < count && status == KVB_OK; i++) {
        kvb_say(p, "book %zu of %zu: %s at %g bits", i + 1, count, missing[i]->recipe.name, missing[i]->bits);
        status = make_book(job, store, missing[i], p, err);
    }
    kvb_capture_close(store);
    free(recipe);
    return status;
}

kvb_status kvb_compare_books(const kvb_compare_job *job, kvb_compare_grid *grid, kvb_progress *p, kvb_error *err)
{
    kvb_compare_cell **missing = calloc(grid->count + 1, sizeof(kvb_compare_cell *));
    size_t count = 0, there = 0;
    if (missing == NULL)
        return kvb_fail_memory(err, "compare");
    kvb_status status = KVB_OK;
    for (size_t i = 0; i < grid->count && status == KVB_OK; i++) {
        kvb_compare_cell *cell = &grid->cell[i];
        if (cell->refused) {
            kvb_warn(p, "%s at %g bits is left out: %s", cell->recipe.name, cell->bits, cell->why);
            continue;
        }
        status = look_for(job, cell, p, err);
        if (status == KVB_OK && cell->book == NULL)
            missing[count++] = cell;
        else
            there++;
    }
    if (status == KVB_OK)
        kvb_say(p, "books: %zu are there, %zu to make", there, count);
    if (status == KVB_OK && count > 0)
        status = make_missing(job, missing, count, p, err);
    free(missing);
    return status;
}
