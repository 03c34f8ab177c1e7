/* Seeding step by step, as a GPU takes part in it, against seeding in one go. */
#include "tests/support/cm.h"

#include <stdlib.h>
#include <string.h>

#include "format/base/rng.h"
#include "kmeans/kmeans_internal.h"

enum { POINTS = 3000, CHANNELS = 5, CENTROIDS = 700, STRIDE = 7 };

typedef struct fixture {
    float points[POINTS * STRIDE], weights[POINTS], table[CENTROIDS * CHANNELS];
    kvb_kmeans_options options;
    kvb_kmeans_run run;
    kvb_kmeans_problem problem;
    kvb_kmeans_range range;
    kvb_kmeans_frame frame;
} fixture;

static void set_up(fixture *f, uint32_t holdout_every, int weighted)
{
    kvb_error err = {0};
    memset(f, 0, sizeof *f);
    for (size_t i = 0; i < POINTS * STRIDE; i++)
        f->points[i] = (float)(kvb_rng_unit(3, i) + 5.0 * (double)(i % STRIDE));
    for (size_t i = 0; i < POINTS; i++)
        f->weights[i] = (float)kvb_rng_unit(4, i);
    kvb_kmeans_options_init(&f->options);
    f->options.holdout_every = holdout_every;
    f->options.holdout_block = 16;
    f->run.options = &f->options;
    f->problem = (kvb_kmeans_problem){.points = f->points, .count = POINTS, .stride = STRIDE, .channels = CHANNELS,
                                      .centroids = CENTROIDS, .weights = weighted ? f->weights : NULL, .seed = 17,
                                      .table = f->table};
    assert_int_equal(kvb_kmeans_check(&f->problem, 0, &f->options, &f->range, &err), KVB_OK);
    kvb_kmeans_frame_choose(&f->frame, &f->problem, &f->range);
}

/* A job of the fixture's problem; with its points, or with their number alone. */
static kvb_kmeans_job job_of(fixture *f, bool with_points)
{
    kvb_kmeans_job job = {.run = &f->run, .problem = &f->problem, .range = &f->range, .frame = f->frame, .channels = CHANNELS,
                          .centroids = CENTROIDS, .threads = 1};
    kvb_error err = {0};
    job.training.count = f->range.training;
    job.training.channels = CHANNELS;
    if (with_points)
        assert_int_equal(kvb_kmeans_points_load(&job.training, &f->frame, &f->problem, &f->range, &f->options, false, &err), KVB_OK);
    return job;
}

static void step_by_step(fixture *f, const kvb_kmeans_job *points, float *table)
{
    kvb_kmeans_job job = job_of(f, false);
    kvb_nearest *any = kvb_nearest_create(CHANNELS, 1);
    kvb_kmeans_seeder *seeder = NULL;
    kvb_error err = {0};
    uint32_t *index = calloc(job.training.count, sizeof *index), have;
    float *distance = calloc(job.training.count, sizeof *distance);
    const float *rows;
    assert_true(any != NULL && index != NULL && distance != NULL);
    job.kernels = kvb_kmeans_kernels_for(any);
    job.table = table;
    assert_int_equal(kvb_kmeans_seeder_open(&job, &seeder, &err), KVB_OK);
    while ((have = kvb_kmeans_seeder_draw(seeder, &rows)) > 0) {
        assert_true(have <= KVB_SEED_BATCH);
        kvb_nearest *search = kvb_nearest_create(CHANNELS, have);
        assert_non_null(search);
        kvb_nearest_set_around(search, rows, NULL);
        kvb_nearest_find_packed(search, points->training.tiles, job.training.count, index, distance);
        kvb_kmeans_seeder_meet(seeder, index, distance);
        kvb_nearest_destroy(search);
    }
    kvb_kmeans_seeder_close(seeder);
    kvb_nearest_destroy(any);
    free(index);
    free(distance);
}

static void compare(uint32_t holdout_every, int weighted)
{
    static fixture f;
    static float whole[CENTROIDS * CHANNELS], steps[CENTROIDS * CHANNELS];
    kvb_error err = {0};
    set_up(&f, holdout_every, weighted);
    kvb_kmeans_job job = job_of(&f, true);
    assert_int_equal(kvb_kmeans_job_open(&job, &err), KVB_OK);
    assert_int_equal(kvb_kmeans_plus_plus(&job, &err), KVB_OK);
    memcpy(whole, job.table, sizeof whole);
    step_by_step(&f, &job, steps);
    kvb_kmeans_job_close(&job);
    assert_memory_equal(whole, steps, sizeof whole);
}

static void test_steps_give_the_same_table(void **state)
{
    (void)state;
    compare(0, 0);
    compare(0, 1);
    compare(4, 1); /* rows are found without the held-out ones */
}

static void test_too_few_points_are_repeated(void **state)
{
    static fixture f;
    static float table[CENTROIDS * CHANNELS];
    (void)state;
    set_up(&f, 0, 0);
    for (size_t i = 3; i < POINTS; i++)
        memcpy(f.points + i * STRIDE, f.points + i % 3 * STRIDE, CHANNELS * sizeof(float));
    kvb_kmeans_job job = job_of(&f, true);
    step_by_step(&f, &job, table);
    kvb_kmeans_points_free(&job.training);
    for (size_t k = 3; k < CENTROIDS; k++)
        assert_memory_equal(table + k * CHANNELS, table + k % 3 * CHANNELS, CHANNELS * sizeof(float));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_steps_give_the_same_table),
        cmocka_unit_test(test_too_few_points_are_repeated),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
