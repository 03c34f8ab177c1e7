/* End-to-end tuning over a tiny model: the gradients of centroids against differences of the KL, what tuning does to it,
 * held-out chunks, threads, refusals. */
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calib/distill.h"
#include "calib/train.h"
#include "calib/tune_layer.h"
#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/rng.h"
#include "model/backward.h"
#include "model/divergence.h"
#include "tests/support/cm.h"
#include "tests/support/scratch.h"
#include "tests/support/tiny_run.h"

enum { CTX = 96, CHUNKS = 42, LAYERS = 3, WINDOW = 5 };
#define RECIPE                                                                                                         \
    "{\"schema\":1,\"name\":\"t\",\"keys\":{\"shape\":\"4x16\",\"frame\":\"%s\",\"mean\":true},"                        \
    "\"values\":{\"shape\":\"4x16\"}}"

typedef struct fixture {
    tiny_run run;
    kvb_book *book[2]; /* frames pre and block:16 */
} fixture;

static kvb_book *calibrate(const fixture *f, const char *frame)
{
    char json[256];
    snprintf(json, sizeof json, RECIPE, frame);
    return tiny_run_calibrate(&f->run, json, CTX, CHUNKS);
}

static int set_up(void **state)
{
    static fixture f;
    if (!tiny_run_open(&f.run, CTX, CHUNKS))
        return 1;
    f.book[0] = calibrate(&f, "pre");
    f.book[1] = calibrate(&f, "block:16");
    *state = &f;
    return f.book[0] == NULL || f.book[1] == NULL;
}

static int tear_down(void **state)
{
    fixture *f = *state;
    kvb_book_close(f->book[0]);
    kvb_book_close(f->book[1]);
    tiny_run_close(&f->run);
    return 0;
}

/* ---- centroids' gradients */

/* One student; the teacher is the exact model. Nothing is rounded, so that the loss has a derivative but where codes change. */
typedef struct student {
    kvb_tune_layer layer[LAYERS];
    kvb_tune_memo memo[LAYERS];
    kvb_tune_work *work;
    kvb_backward *backward;
    kvb_divergence *divergence;
    const uint32_t *ids;
    float *teacher, *d_hidden;
    uint8_t *kept;
} student;

static kvb_status attend(void *user, const kvb_attention_call *call, float *out, kvb_error *err)
{
    student *s = user;
    const kvb_tune_call c = {.call = call, .window = WINDOW, .kept = s->kept, .unrounded = true};
    kvb_status status = kvb_tune_attend(s->work, &s->layer[call->layer], &c, &s->memo[call->layer], err);
    memcpy(out, kvb_tune_output(s->work),
           (size_t)call->geometry->heads * call->tokens * call->geometry->head_dim * sizeof *out);
    return status;
}

static kvb_status attend_backward(void *user, const kvb_attention_call *call, const kvb_attention_gradient *g,
                                  kvb_error *err)
{
    student *s = user;
    const kvb_tune_call c = {.call = call, .window = WINDOW, .kept = s->kept, .unrounded = true};
    return kvb_tune_attend_backward(s->work, &s->layer[call->layer], &c, &s->memo[call->layer], g, err);
}

static double student_loss(student *s, uint32_t tokens, bool wanted)
{
    const kvb_forward_hooks hooks = {.attend = attend, .attend_user = s};
    const float *hidden;
    assert_int_equal(kvb_backward_forward(s->backward, s->ids, tokens, &hooks, &hidden, NULL), KVB_OK);
    double kl = kvb_divergence_run(s->divergence, s->teacher, hidden, tokens, wanted ? s->d_hidden : NULL);
    if (wanted)
        assert_int_equal(kvb_backward_run(s->backward, s->d_hidden, attend_backward, s, NULL, NULL), KVB_OK);
    return kl;
}

static void student_make(student *s, const fixture *f, const kvb_book *book, uint32_t tokens)
{
    const uint32_t width = kvb_model_get_info(f->run.model)->embedding;
    const float *hidden;
    *s = (student){.ids = f->run.text.ids};
    assert_int_equal(kvb_tune_work_create(book, tokens, &s->work, NULL), KVB_OK);
    for (uint32_t l = 0; l < LAYERS; l++) {
        assert_int_equal(kvb_tune_layer_create(NULL, book, l, false, &s->layer[l], NULL), KVB_OK);
        assert_int_equal(kvb_tune_memo_create(&s->layer[l], tokens, &s->memo[l], NULL), KVB_OK);
    }
    assert_int_equal(kvb_backward_create(f->run.model, tokens, 0, &s->backward, NULL), KVB_OK);
    assert_int_equal(kvb_divergence_create(f->run.model, &s->divergence, NULL), KVB_OK);
    s->teacher = kvb_alloc_array((size_t)tokens * width, sizeof(float));
    s->d_hidden = kvb_alloc_array((size_t)tokens * width, sizeof(float));
    s->kept = kvb_alloc_zeroed((size_t)kvb_book_layer(book, 0)->kv_heads * tokens, 1);
    s->kept[3] = s->kept[tokens + 1] = 1;
    assert_int_equal(kvb_backward_forward(s->backward, s->ids, tokens, NULL, &hidden, NULL), KVB_OK);
    memcpy(s->teacher, hidden, (size_t)tokens * width * sizeof *hidden);
}

static void student_free(student *s)
{
    for (uint32_t l = 0; l < LAYERS; l++) {
        kvb_tune_layer_free(&s->layer[l]);
        kvb_tune_memo_free(&s->memo[l]);
    }
    kvb_tune_work_destroy(s->work);
    kvb_backward_destroy(s->backward);
    kvb_divergence_destroy(s->divergence);
    free(s->teacher);
    free(s->d_hidden);
    free(s->kept);
}

/* Of `samples` entries of a table, how many disagree: a code that changes with the entry makes the loss jump. */
static uint32_t disagreements(student *s, kvb_tune_table *t, uint32_t tokens, uint32_t samples, uint64_t key)
{
    const float step = 4e-3f;
    uint32_t bad = 0;
    double most = 0.0;
    for (size_t i = 0; i < t->floats; i++)
        most = fmax(most, fabs((double)t->gradient[i]));
    assert_true(most > 1e-5);
    for (uint32_t n = 0; n < samples; n++) {
        const size_t i = kvb_rng_below(key, n, t->floats);
        const float was = t->table[i];
        t->table[i] = was + step;
        const double up = student_loss(s, tokens, false);
        t->table[i] = was - step;
        const double down = student_loss(s, tokens, false);
        t->table[i] = was;
        bad += fabs((up - down) / (2.0 * (double)step) - (double)t->gradient[i]) > 0.04 * most;
    }
    return bad;
}

static void test_gradients(void **state)
{
    const fixture *f = *state;
    const uint32_t tokens = 24, samples = 20;
    for (int frame = 0; frame < 2; frame++) {
        student s;
        student_make(&s, f, f->book[frame], tokens);
        const double kl = student_loss(&s, tokens, true);
        assert_true(kl > 0.005);
        for (uint32_t l = 0; l < LAYERS; l++)
            for (uint32_t i = 0; i < 4; i++) {
                const uint32_t bad = disagreements(&s, &s.layer[l].table[i], tokens, samples, 100 * l + i);
                if (bad > samples / 5)
                    fail_msg("layer %u, table %u: %u of %u gradients are not the loss's change", l, i, bad, samples);
            }
        student_free(&s);
    }
}

/* ---- books */

static kvb_tune_options usual(void)
{
    kvb_tune_options o;
    kvb_distill_options_init(&o);
    o.ctx = CTX;
    o.holdout_every = 7;
    o.epochs = 3;
    o.window = WINDOW;
    return o;
}

typedef struct tuned {
    uint8_t *image;
    size_t size;
    kvb_tune_report report;
} tuned;

static tuned distill(const fixture *f, const kvb_tune_options *o)
{
    tuned t = {0};
    kvb_error err = {0};
    if (kvb_distill_book(f->run.model, &f->run.text, f->book[0], o, &t.image, &t.size, &t.report, &err) != KVB_OK)
        fail_msg("%s: %s", err.where, err.message);
    return t;
}

static bool same_centroids(const kvb_book *a, const kvb_book *b)
{
    for (uint32_t l = 0; l < LAYERS; l++)
        for (uint32_t i = 0; i < kvb_book_layer(a, l)->kv_heads * 2; i++) {
            kvb_tune_table x, y;
            assert_int_equal(kvb_tune_table_create(kvb_book_codebook(a, l, i / 2, (kvb_kind)(i % 2)), 8, &x, NULL), KVB_OK);
            assert_int_equal(kvb_tune_table_create(kvb_book_codebook(b, l, i / 2, (kvb_kind)(i % 2)), 8, &y, NULL), KVB_OK);
            const bool same = memcmp(x.table, y.table, x.floats * sizeof *x.table) == 0;
            kvb_tune_table_free(&x);
            kvb_tune_table_free(&y);
            if (!same)
                return false;
        }
    return true;
}

static void test_kl_falls(void **state)
{
    const fixture *f = *state;
    const kvb_tune_options o = usual();
    kvb_book *book = NULL;
    tuned t = distill(f, &o);
    const kvb_tune_kl *kl = &t.report.kl;
    print_message("KL %.4f -> %.4f trained on, %.4f -> %.4f held out\n", kl->train_first, kl->train_last,
                  kl->heldout_before, kl->heldout_after);
    assert_true(kl->used && kl->accepted);
    assert_true(kl->train_last < 0.95 * kl->train_first);
    assert_true(kl->heldout_after < kl->heldout_before);
    assert_int_equal(t.report.chunks, CHUNKS);
    assert_int_equal(t.report.heldout_chunks, 6);
    assert_int_equal(t.report.steps, 3 * 18);
    assert_int_equal(kvb_book_open_memory(t.image, t.size, "tuned", &book, NULL), KVB_OK);
    assert_false(same_centroids(book, f->book[0]));
    size_t size;
    const char *meta = kvb_book_meta(book, &size);
    assert_non_null(strstr(meta, "\"objective\":\"KL(exact model || model with the coded cache)\""));
    assert_non_null(strstr(meta, "\"accepted\":true"));
    /* What the tuned book measures before another tuning is what this one measured after. */
    kvb_tune_options again = usual();
    again.epochs = 1;
    tuned u = {0};
    assert_int_equal(kvb_distill_book(f->run.model, &f->run.text, book, &again, &u.image, &u.size, &u.report, NULL), KVB_OK);
    assert_true(fabs(u.report.kl.heldout_before - kl->heldout_after) < 1e-2 * kl->heldout_after);
    kvb_book_close(book);
    free(t.image);
    free(u.image);
}

/* Steps far too large make it worse: the book keeps what it came with. */
static void test_worse_is_refused(void **state)
{
    const fixture *f = *state;
    kvb_tune_options o = usual();
    kvb_book *book = NULL;
    o.rate = 5.0;
    tuned t = distill(f, &o);
    assert_false(t.report.kl.accepted);
    assert_true(t.report.kl.heldout_after >= t.report.kl.heldout_before);
    assert_int_equal(kvb_book_open_memory(t.image, t.size, "tuned", &book, NULL), KVB_OK);
    assert_true(same_centroids(book, f->book[0]));
    kvb_book_close(book);
    free(t.image);
}

static void test_threads_do_not_matter(void **state)
{
    const fixture *f = *state;
    const int before = omp_get_max_threads();
    kvb_tune_options o = usual();
    o.epochs = 1;
    omp_set_num_threads(1);
    tuned one = distill(f, &o);
    omp_set_num_threads(3);
    tuned three = distill(f, &o);
    omp_set_num_threads(before);
    assert_int_equal(one.size, three.size);
    assert_memory_equal(one.image, three.image, one.size);
    free(one.image);
    free(three.image);
}

static kvb_status keep_all(void *user, const kvb_attention_call *call, uint8_t *kept, kvb_error *err)
{
    (void)err;
    ++*(uint32_t *)user;
    memset(kept, 1, (size_t)call->geometry->kv_heads * call->tokens);
    return KVB_OK;
}

/* With every token exact the student is the teacher but for the order of sums; asked once for each chunk and layer. */
static void test_kept_tokens(void **state)
{
    const fixture *f = *state;
    kvb_tune_options o = usual();
    uint32_t calls = 0;
    o.keep = keep_all;
    o.keep_user = &calls;
    tuned t = distill(f, &o);
    assert_true(t.report.kl.heldout_before < 1e-6);
    assert_int_equal(calls, CHUNKS * LAYERS);
    free(t.image);
}

static int stop(void *user, const char *step, uint64_t done, uint64_t total)
{
    (void)step;
    assert_int_equal(total, 4 * 6 + 3 * 36);
    return done == *(uint64_t *)user;
}

static void test_refusals(void **state)
{
    const fixture *f = *state;
    kvb_tune_options o = usual();
    kvb_error err = {0};
    uint8_t *image;
    size_t size;
    uint64_t last = 7;
    o.progress = stop;
    o.progress_user = &last;
    assert_int_equal(kvb_distill_book(f->run.model, &f->run.text, f->book[0], &o, &image, &size, NULL, &err), KVB_E_CANCELLED);
    assert_null(image);
    assert_non_null(strstr(err.message, "7 of 132"));
    o = usual();
    o.chunks = 1;
    assert_int_equal(kvb_distill_book(f->run.model, &f->run.text, f->book[0], &o, &image, &size, NULL, &err), KVB_E_USAGE);
    o = usual();
    o.epochs = 0;
    assert_int_equal(kvb_distill_book(f->run.model, &f->run.text, f->book[0], &o, &image, &size, NULL, &err), KVB_E_USAGE);
}

/* ---- jobs that are stopped */

typedef kvb_status tune_fn(const kvb_model *model, const kvb_text *text, const kvb_book *book, const kvb_tune_options *options,
                           uint8_t **image, size_t *size, kvb_tune_report *report, kvb_error *err);

typedef struct interruption {
    uint64_t after, seen; /* calls of progress that a run lives through */
} interruption;

static int interrupt(void *user, const char *what, uint64_t done, uint64_t total)
{
    interruption *i = user;
    (void)what, (void)done, (void)total;
    return i->seen++ >= i->after;
}

static kvb_checkpoint *enter(const char *folder)
{
    kvb_checkpoint *c;
    kvb_error err = {0};
    if (kvb_checkpoint_open(folder, "{\"job\": \"a\"}", true, &c, &err) != KVB_OK)
        fail_msg("%s: %s", err.where, err.message);
    return c;
}

/* Stopped after every `lives` passes, resumed each time: how many runs it took, and what the last one reports. */
static int stop_and_go(tune_fn *tune, const fixture *f, kvb_tune_options o, uint64_t lives, uint8_t **image, size_t *size,
                       kvb_tune_report *report)
{
    char folder[512];
    scratch_path(f->run.folder, "stopped", folder);
    kvb_status status = KVB_E_CANCELLED;
    int runs = 0;
    for (; status == KVB_E_CANCELLED && runs < 200; runs++) {
        interruption i = {.after = lives};
        kvb_error err = {0};
        o.checkpoint = enter(folder);
        o.progress = interrupt;
        o.progress_user = &i;
        status = tune(f->run.model, &f->run.text, f->book[0], &o, image, size, report, &err);
        if (status == KVB_OK)
            kvb_checkpoint_remove(o.checkpoint);
        else
            kvb_checkpoint_close(o.checkpoint);
    }
    assert_int_equal(status, KVB_OK);
    return runs;
}

static void check_resumes(tune_fn *tune, const fixture *f, kvb_tune_options o, uint64_t least)
{
    uint8_t *whole, *image;
    size_t whole_size, size;
    kvb_tune_report report;
    o.ctx = CTX / 4;
    o.chunks = 7;
    o.epochs = 3;
    o.batch = 2;
    o.holdout_every = 4;
    o.rate = 0.05;
    assert_int_equal(tune(f->run.model, &f->run.text, f->book[0], &o, &whole, &whole_size, &report, NULL), KVB_OK);
    assert_int_equal(report.resumed, 0);
    kvb_tune_report_free(&report);
    for (uint64_t lives = least; lives <= 16; lives += 1 + lives / 2) {
        const int runs = stop_and_go(tune, f, o, lives, &image, &size, &report);
        assert_true(runs > 1);
        assert_int_equal(size, whole_size);
        assert_memory_equal(image, whole, size);
        /* Not from the start: the last run alone lives too short for all steps. */
        assert_true(report.resumed > 0);
        kvb_tune_report_free(&report);
        free(image);
    }
    free(whole);
}

static void test_resumes(void **state)
{
    const fixture *f = *state;
    kvb_tune_options o;
    kvb_distill_options_init(&o);
    check_resumes(kvb_distill_book, f, o, 3);
    kvb_tune_options_init(&o);
    check_resumes(kvb_tune_book, f, o, 5);
    o.stream = KVB_TUNE_EXACT;
    check_resumes(kvb_tune_book, f, o, 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients),      cmocka_unit_test(test_kl_falls),
        cmocka_unit_test(test_worse_is_refused), cmocka_unit_test(test_threads_do_not_matter),
        cmocka_unit_test(test_kept_tokens),    cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_resumes),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
