/* What a tuning under way leaves in a checkpoint. Tables move between chunks only, at the end of a step, so that what stands in
 * them while a step is under way is what the step before left: a run that is cancelled in the middle can still be saved. */
#include <string.h>

#include "calib/tune_run.h"
#include "format/base/fail.h"

static const char record_name[] = "tuning";

/* A save may take so much of the time since the one before. */
static const double share_of_saving = 0.05;

/* What a record has: one value after the other, the same list for both ways. */
typedef struct field {
    void *at;
    size_t size;
} field;

enum { STATE_FIELDS = 11, LAYER_FIELDS = 3, TABLE_FIELDS = 4 };

static void list_state(kvb_tune_mark *m, field f[STATE_FIELDS])
{
    const field all[STATE_FIELDS] = {
        {&m->steps, sizeof m->steps}, {&m->done, sizeof m->done}, {&m->epochs, sizeof m->epochs}, {&m->sum, sizeof m->sum},
        {&m->kl.accepted, sizeof m->kl.accepted}, {&m->kl.best_epoch, sizeof m->kl.best_epoch},
        {&m->kl.heldout_before, sizeof m->kl.heldout_before}, {&m->kl.heldout_after, sizeof m->kl.heldout_after},
        {&m->kl.train_first, sizeof m->kl.train_first}, {&m->kl.train_last, sizeof m->kl.train_last},
        {&m->seconds, sizeof m->seconds},
    };
    memcpy(f, all, sizeof all);
}

static void list_layer(kvb_tune_layer_report *r, field f[LAYER_FIELDS])
{
    const field all[LAYER_FIELDS] = {{&r->coded, sizeof r->coded}, {&r->train_before, sizeof r->train_before},
                                     {&r->heldout_before, sizeof r->heldout_before}};
    memcpy(f, all, sizeof all);
}

static void list_table(const kvb_tune_table *t, field f[TABLE_FIELDS])
{
    float *const all[TABLE_FIELDS] = {t->table, t->first, t->second, t->best};
    for (size_t i = 0; i < TABLE_FIELDS; i++)
        f[i] = (field){all[i], t->floats * sizeof *all[i]};
}

typedef bool (*field_fn)(void *user, const field *f);

static bool all_of(field_fn visit, void *user, const field *f, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (!visit(user, &f[i]))
            return false;
    return true;
}

/* Shows `visit` all that a record holds; false where it said so. */
static bool visit_state(kvb_tune_run *t, kvb_tune_mark *mark, field_fn visit, void *user)
{
    field f[STATE_FIELDS];
    list_state(mark, f);
    bool good = all_of(visit, user, f, STATE_FIELDS);
    for (uint32_t l = 0; good && t->report.layer != NULL && l < t->layers; l++) {
        list_layer(&t->report.layer[l], f);
        good = all_of(visit, user, f, LAYER_FIELDS);
    }
    for (uint32_t l = 0; l < t->layers; l++)
        for (uint32_t i = 0; good && i < kvb_tune_tables(&t->layer[l]); i++) {
            list_table(&t->layer[l].table[i], f);
            good = all_of(visit, user, f, TABLE_FIELDS);
        }
    return good;
}

static bool put(void *record, const field *f)
{
    kvb_record_put(record, f->at, f->size);
    return true;
}

static bool take(void *saved, const field *f)
{
    return kvb_saved_take(saved, f->at, f->size);
}

kvb_status kvb_tune_save(kvb_tune_run *t, kvb_error *err)
{
    kvb_record record = {0};
    if (t->o->checkpoint == NULL || !t->marked)
        return KVB_OK;
    visit_state(t, &t->mark, put, &record);
    kvb_status status = kvb_checkpoint_save(t->o->checkpoint, record_name, &record, err);
    kvb_record_free(&record);
    return status;
}

kvb_status kvb_tune_reached(kvb_tune_run *t, uint32_t epochs, kvb_error *err)
{
    const double now = kvb_tune_wall_seconds();
    t->mark = (kvb_tune_mark){.steps = t->report.steps, .done = t->done, .epochs = epochs, .sum = t->sum, .kl = t->report.kl,
                              .seconds = t->trained_seconds};
    t->marked = true;
    if (t->o->checkpoint == NULL || t->save_seconds > share_of_saving * (now - t->saved_at))
        return KVB_OK;
    kvb_status status = kvb_tune_save(t, err);
    t->saved_at = kvb_tune_wall_seconds();
    t->save_seconds = t->saved_at - now;
    return status;
}

static bool mark_is_good(const kvb_tune_run *t, const kvb_tune_mark *m)
{
    const uint64_t each = kvb_tune_steps(t);
    return m->epochs <= t->o->epochs && m->steps >= m->epochs * each && m->steps <= ((uint64_t)m->epochs + 1) * each &&
           m->steps <= t->o->epochs * each && m->done <= t->total && m->kl.best_epoch <= m->epochs;
}

kvb_status kvb_tune_resume(kvb_tune_run *t, kvb_error *err)
{
    kvb_saved saved = {0};
    kvb_tune_mark m = {.kl = t->report.kl}; /* what a record has not of it stays */
    kvb_status status = kvb_checkpoint_load(t->o->checkpoint, record_name, &saved, err);
    if (status != KVB_OK || saved.file == NULL)
        return status;
    visit_state(t, &m, take, &saved);
    status = kvb_saved_end(&saved, t->o->checkpoint, record_name, err);
    if (status != KVB_OK)
        return status;
    if (!mark_is_good(t, &m))
        return kvb_fail(err, KVB_E_FORMAT, kvb_checkpoint_folder(t->o->checkpoint), "what tuning left there is of another tuning; delete "
                        "%s.kvck in it to tune anew", record_name);
    t->report.kl = m.kl;
    t->report.steps = t->report.resumed = m.steps;
    t->done = m.done;
    t->sum = m.sum;
    t->trained_seconds = m.seconds;
    t->mark = m;
    t->marked = true;
    return KVB_OK;
}
