/* What training leaves in a checkpoint: the choice of shapes, and each layer when it is done. */
#include <stdio.h>
#include <stdlib.h>

#include "calib/train_impl.h"
#include "format/base/checked.h"
#include "format/base/fail.h"

/* One array of a layer's result; absent ones are told from empty ones. */
typedef struct field {
    void **at;
    size_t size;
    bool optional;
} field;

enum { MOST_FIELDS = 20 };

static size_t list_fields(const kvb_trainer *t, uint32_t layer, field *f)
{
    kvb_layer_result *r = &t->result[layer];
    const kvb_layer *g = &t->capture->geometry[layer];
    const size_t row = (size_t)g->kv_heads * g->head_dim, square = row * g->head_dim;
    size_t n = 0;
    f[n++] = (field){(void **)&r->table, kvb_train_table_floats(t, layer, false) * sizeof(float), false};
    f[n++] = (field){(void **)&r->quality, kvb_train_count(t, layer, false) * sizeof(kvb_quality), false};
    f[n++] = (field){(void **)&r->curve, 2 * (size_t)g->kv_heads * (kvb_train_curve_length(t->recipe) + 1) * sizeof(float), false};
    for (int kind = 0; kind < 2; kind++) {
        f[n++] = (field){(void **)&r->mean[kind], row * sizeof(float), true};
        f[n++] = (field){(void **)&r->forward[kind], square * sizeof(float), true};
        f[n++] = (field){(void **)&r->inverse[kind], square * sizeof(float), true};
        f[n++] = (field){(void **)&r->fixed[kind], 2 * row * sizeof(uint16_t), true};
        f[n++] = (field){(void **)&r->lists[kind], g->kv_heads * KVB_LISTS_SIZE(g->head_dim) * sizeof(uint16_t), true};
        f[n++] = (field){(void **)&r->clips[kind], row * sizeof(float), true};
        f[n++] = (field){(void **)&r->levels[kind], kvb_train_shape(t, layer, 0, kind, false).centroids * sizeof(float), true};
    }
    if (kvb_recipe_has_fine(t->recipe))
        f[n++] = (field){(void **)&r->fine_table, kvb_train_table_floats(t, layer, true) * sizeof(float), false};
    return n;
}

static const char *name_of(uint32_t layer, char name[32])
{
    snprintf(name, 32, "layer-%u", layer);
    return name;
}

void kvb_train_pack_layer(const kvb_trainer *t, uint32_t layer, kvb_record *record)
{
    field f[MOST_FIELDS];
    kvb_record_put(record, &t->result[layer].sums, sizeof t->result[layer].sums);
    kvb_record_put(record, &t->result[layer].scores, sizeof t->result[layer].scores);
    const size_t n = list_fields(t, layer, f);
    for (size_t i = 0; i < n; i++) {
        const uint8_t there = *f[i].at != NULL;
        kvb_record_put(record, &there, 1);
        if (there)
            kvb_record_put(record, *f[i].at, f[i].size);
    }
}

kvb_status kvb_train_save_layer(const kvb_trainer *t, uint32_t layer, kvb_error *err)
{
    kvb_record record = {0};
    char name[32];
    if (t->options->checkpoint == NULL)
        return KVB_OK;
    kvb_train_pack_layer(t, layer, &record);
    kvb_status status = kvb_checkpoint_save(t->options->checkpoint, name_of(layer, name), &record, err);
    kvb_record_free(&record);
    return status;
}

/* Into memory of its own; false where the record has something else, or memory runs out. */
static bool take_field(kvb_saved *saved, const field *f, bool *memory)
{
    uint8_t there;
    if (!kvb_saved_take(saved, &there, 1) || there > 1 || (there == 0 && !f->optional))
        return false;
    if (there == 0)
        return true;
    *f->at = kvb_alloc_array(f->size + 1, 1); /* never empty: NULL is "not there" */
    *memory = *f->at != NULL;
    return *memory && kvb_saved_take(saved, *f->at, f->size);
}

static kvb_status take_fields(kvb_trainer *t, uint32_t layer, kvb_saved *saved, bool *good, kvb_error *err)
{
    field f[MOST_FIELDS];
    bool memory = true;
    *good = kvb_saved_take(saved, &t->result[layer].sums, sizeof t->result[layer].sums) &&
            kvb_saved_take(saved, &t->result[layer].scores, sizeof t->result[layer].scores);
    const size_t n = list_fields(t, layer, f);
    for (size_t i = 0; *good && i < n; i++)
        *good = take_field(saved, &f[i], &memory);
    return memory ? KVB_OK : kvb_fail_memory(err, "a saved layer");
}

static kvb_status finish_layer(kvb_trainer *t, uint32_t layer, kvb_error *err)
{
    kvb_layer_result *r = &t->result[layer];
    kvb_status status = kvb_train_scale(t, layer, err);
    if (status != KVB_OK)
        return status;
    kvb_train_describe(t, layer, false);
    if (!kvb_recipe_has_fine(t->recipe))
        return KVB_OK;
    r->fine = kvb_alloc_zeroed((size_t)2 * t->capture->geometry[layer].kv_heads, sizeof *r->fine);
    if (r->fine == NULL)
        return kvb_fail_memory(err, "a saved layer");
    kvb_train_describe(t, layer, true);
    return KVB_OK;
}

kvb_status kvb_train_unpack_layer(kvb_trainer *t, uint32_t layer, kvb_saved *saved, const char *name, kvb_error *err)
{
    bool good = false;
    kvb_status status = take_fields(t, layer, saved, &good, err);
    if (status != KVB_OK) {
        kvb_saved_free(saved);
        return status;
    }
    saved->cursor.failed |= !good;
    status = kvb_saved_end(saved, t->options->checkpoint, name, err);
    return status == KVB_OK ? finish_layer(t, layer, err) : status;
}

kvb_status kvb_train_load_layer(kvb_trainer *t, uint32_t layer, bool *there, kvb_error *err)
{
    kvb_saved saved;
    char name[32];
    *there = false;
    kvb_status status = kvb_checkpoint_load(t->options->checkpoint, name_of(layer, name), &saved, err);
    if (status != KVB_OK || saved.file == NULL)
        return status;
    *there = true;
    return kvb_train_unpack_layer(t, layer, &saved, name, err);
}

static size_t choice_bytes(const kvb_trainer *t)
{
    return (size_t)t->capture->layers * t->part_heads * 2 * sizeof *t->chosen;
}

kvb_status kvb_train_save_choice(const kvb_trainer *t, kvb_error *err)
{
    kvb_record record = {0};
    if (t->options->checkpoint == NULL || t->chosen == NULL)
        return KVB_OK;
    kvb_record_put(&record, t->chosen, choice_bytes(t));
    kvb_status status = kvb_checkpoint_save(t->options->checkpoint, "shapes", &record, err);
    kvb_record_free(&record);
    return status;
}

kvb_status kvb_train_load_choice(kvb_trainer *t, bool *there, kvb_error *err)
{
    const kvb_checkpoint *c = t->options->checkpoint;
    kvb_saved saved;
    *there = false;
    kvb_status status = kvb_checkpoint_load(c, "shapes", &saved, err);
    if (status != KVB_OK || saved.file == NULL)
        return status;
    const size_t count = choice_bytes(t) / sizeof *t->chosen;
    t->chosen = kvb_alloc_array(count, sizeof *t->chosen);
    if (t->chosen == NULL) {
        kvb_saved_free(&saved);
        return kvb_fail_memory(err, "saved shapes");
    }
    bool good = kvb_saved_take(&saved, t->chosen, choice_bytes(t));
    for (size_t i = 0; good && i < count; i++)
        good = t->chosen[i] < t->recipe->ladder_count;
    saved.cursor.failed |= !good;
    status = kvb_saved_end(&saved, c, "shapes", err);
    *there = status == KVB_OK;
    return status;
}
