/* Weighted k-means++ (Arthur and Vassilvitskii 2007): each centroid is a point drawn with a probability proportional to
 * its mass, weight times squared distance to the nearest centroid so far.
 *
 * Few centroids are drawn one by one on a sample, each the best of several candidates (the greedy variant). Many are
 * drawn in batches on all points, with the same distribution: a point is drawn by the masses at the beginning of the
 * batch, and the draw stands with the probability mass now / mass then, where only the batch's own centroids count.
 * Either way seeding costs one to two of Lloyd's iterations. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/rng.h"
#include "kmeans/kmeans_internal.h"

/* Streams of random numbers of one problem. */
enum { STREAM_SAMPLE = 1, STREAM_DRAW = 2 };

enum {
    FEW = KVB_SEED_FEW,      /* centroids, up to which they are drawn one by one */
    POINTS_A_CENTROID = 16,  /* of the sample for the greedy variant */
    BATCH_SAMPLE = 64,       /* points a centroid at most in batches */
    MOST_IN_BATCH = KVB_SEED_BATCH, /* a batch is half as many as there are, so that few draws are rejected, up to this */
    CHUNK = 768,
};

typedef struct seeding {
    kvb_kmeans_job *job;
    size_t count, tiles; /* points of the sample */
    uint32_t candidates; /* tried for each centroid: 1, 2 or 4 */
    uint64_t key, draws; /* random numbers used so far */
    float *points;       /* [tiles][d][16] */
    float *weights;      /* [16*tiles], zeros past count */
    float *nearest;      /* [16*tiles] squared distance to the nearest centroid so far */
    uint32_t *owner;     /* [count] which centroid that is; only in batches */
    float *fresh[KVB_SEED_CANDIDATES];
    double *mass; /* of blocks of KVB_SEED_BLOCK points: sum of weight * nearest */
    double total; /* of all of them */
    size_t blocks;
} seeding;

static void seeding_close(seeding *s)
{
    free(s->points);
    free(s->weights);
    free(s->nearest);
    free(s->owner);
    for (uint32_t j = 0; j < KVB_SEED_CANDIDATES; j++)
        free(s->fresh[j]);
    free(s->mass);
}

static kvb_status seeding_open(seeding *s, kvb_kmeans_job *job, size_t count, uint32_t candidates, kvb_error *err)
{
    *s = (seeding){.job = job, .count = count, .tiles = (count + 15) / 16, .candidates = candidates};
    s->key = kvb_rng_key(job->problem->seed, STREAM_DRAW, 0, 0, 0);
    s->blocks = (s->tiles * 16 + KVB_SEED_BLOCK - 1) / KVB_SEED_BLOCK;
    s->points = kvb_alloc_zeroed(s->tiles * 16, job->channels * sizeof(float));
    s->weights = kvb_alloc_zeroed(s->tiles * 16, sizeof(float));
    s->nearest = kvb_alloc_zeroed(s->tiles * 16, sizeof(float));
    s->mass = kvb_alloc_zeroed(s->blocks, sizeof(double));
    bool complete = s->points != NULL && s->weights != NULL && s->nearest != NULL && s->mass != NULL;
    for (uint32_t j = 0; j < candidates; j++) {
        s->fresh[j] = kvb_alloc_zeroed(s->tiles * 16, sizeof(float));
        complete = complete && s->fresh[j] != NULL;
    }
    if (candidates == 0) {
        s->owner = kvb_alloc_zeroed(count, sizeof(uint32_t));
        complete = complete && s->owner != NULL;
    }
    return complete ? KVB_OK : kvb_fail_memory(err, "the seeding of a k-means problem");
}

static void tile_copy(float *to, size_t at, const float *from, size_t i, uint32_t d)
{
    to += at / 16 * 16 * d + at % 16;
    from += i / 16 * 16 * d + i % 16;
    for (uint32_t c = 0; c < d; c++)
        to[(size_t)c * 16] = from[(size_t)c * 16];
}

void kvb_kmeans_point_read(const float *tiles, size_t i, uint32_t d, float *y)
{
    const float *from = tiles + i / 16 * 16 * d + i % 16;
    for (uint32_t c = 0; c < d; c++)
        y[c] = from[(size_t)c * 16];
}

/* One point out of each of `count` equal strata. */
static void take_sample(seeding *s)
{
    const kvb_kmeans_points *all = &s->job->training;
    uint64_t key = kvb_rng_key(s->job->problem->seed, STREAM_SAMPLE, 0, 0, 0);
    size_t n = all->count, m = s->count, d = s->job->channels;
    for (size_t i = 0; i < m; i++) {
        __extension__ typedef unsigned __int128 u128;
        size_t first = (size_t)((u128)i * n / m), end = (size_t)((u128)(i + 1) * n / m);
        size_t from = first + (size_t)kvb_rng_below(key, i, end - first);
        if (all->tiles == NULL) { /* the job holds no points: a GPU does */
            s->weights[i] = kvb_kmeans_training_point(s->job, from, s->points + i / 16 * 16 * d + i % 16);
            continue;
        }
        tile_copy(s->points, i, all->tiles, from, all->channels);
        s->weights[i] = kvb_kmeans_weight(all, from);
    }
}

static void fill_nearest(seeding *s, float distance)
{
    for (size_t i = 0; i < s->tiles * 16; i++)
        s->nearest[i] = i < s->count ? distance : 0.0f;
}

static void weigh(seeding *s)
{
    s->job->kernels->weigh(s->nearest, s->weights, s->tiles, s->mass);
    s->total = 0.0;
    for (size_t b = 0; b < s->blocks; b++)
        s->total += s->mass[b];
}

static double unit(seeding *s)
{
    return kvb_rng_unit(s->key, s->draws++);
}

/* Any point with mass, for the rare case that rounding led a draw past the last one. */
static size_t last_with_mass(const seeding *s)
{
    for (size_t i = s->count; i-- > 0;)
        if (s->weights[i] > 0.0f && s->nearest[i] > 0.0f)
            return i;
    return SIZE_MAX;
}

/* The first point at which the running sum of masses passes a random share of the total; SIZE_MAX without mass. */
static size_t draw_point(seeding *s)
{
    double target = unit(s) * s->total;
    size_t b = 0;
    while (b + 1 < s->blocks && target >= s->mass[b])
        target -= s->mass[b++];
    size_t first = b * KVB_SEED_BLOCK, end = first + KVB_SEED_BLOCK < s->count ? first + KVB_SEED_BLOCK : s->count;
    for (size_t i = first; i < end; i++) {
        double mass = (double)s->weights[i] * s->nearest[i];
        target -= mass;
        if (target < 0.0 && mass > 0.0)
            return i;
    }
    return last_with_mass(s);
}

/* Draws candidates by mass, takes the one that leaves the least; false where no point has mass. */
static bool next_centroid(seeding *s, uint32_t k)
{
    uint32_t d = s->job->channels, best = 0, candidates = k == 0 ? 1 : s->candidates;
    float rows[KVB_SEED_CANDIDATES * KVB_KMEANS_CHANNELS];
    double potential[KVB_SEED_CANDIDATES];
    weigh(s);
    for (uint32_t j = 0; j < candidates; j++) {
        size_t i = draw_point(s);
        if (i == SIZE_MAX)
            return false;
        kvb_kmeans_point_read(s->points, i, d, rows + (size_t)j * d);
    }
    if (k == 0)
        fill_nearest(s, FLT_MAX); /* the first was drawn by weight; from here on these are distances */
    s->job->kernels->candidates(s->points, s->tiles, d, rows, candidates, s->nearest, s->weights, s->fresh, potential);
    for (uint32_t j = 1; j < candidates; j++)
        if (potential[j] < potential[best])
            best = j;
    memcpy(s->job->table + (size_t)k * d, rows + (size_t)best * d, d * sizeof(float));
    float *old = s->nearest;
    s->nearest = s->fresh[best];
    s->fresh[best] = old;
    return true;
}

static kvb_status one_by_one(seeding *s, uint32_t *found, kvb_error *err)
{
    for (; *found < s->job->centroids; ++*found) {
        if (*found % 64 == 0 && kvb_kmeans_cancelled(s->job))
            return kvb_fail(err, KVB_E_CANCELLED, "k-means seeding", "cancelled by the progress callback");
        if (!next_centroid(s, *found))
            break;
    }
    return KVB_OK;
}

static float distance_to(const seeding *s, size_t i, uint32_t k)
{
    uint32_t d = s->job->channels;
    const float *x = s->points + i / 16 * 16 * d + i % 16, *centroid = s->job->table + (size_t)k * d;
    float sum = 0.0f;
    for (uint32_t c = 0; c < d; c++)
        sum += (x[(size_t)c * 16] - centroid[c]) * (x[(size_t)c * 16] - centroid[c]);
    return sum;
}

/* Draws up to `want` centroids that stand after the `found` there are; how many stood. */
static uint32_t draw_batch(seeding *s, uint32_t found, uint32_t want)
{
    uint32_t have = 0;
    for (uint32_t tries = 0; have < want && tries < 4 * want; tries++) {
        size_t i = draw_point(s);
        if (i == SIZE_MAX)
            break;
        float then = s->nearest[i], now = then;
        if (found > 0) /* the search rounds at |x|^2; this is exact: an equal of a centroid is never drawn */
            now = fminf(now, distance_to(s, i, s->owner[i]));
        if (!(now > 0.0f))
            s->nearest[i] = 0.0f;
        for (uint32_t j = 0; j < have; j++)
            now = fminf(now, distance_to(s, i, found + j));
        if (unit(s) * then < now)
            kvb_kmeans_point_read(s->points, i, s->job->channels,
                                  s->job->table + (size_t)(found + have++) * s->job->channels);
    }
    return have;
}

/* Brings nearest[] and owner[] up to date with `have` new centroids. */
static kvb_status meet_batch(seeding *s, uint32_t found, uint32_t have, kvb_error *err)
{
    uint32_t index[CHUNK], d = s->job->channels;
    float distance[CHUNK];
    kvb_nearest *search = kvb_nearest_create(d, have);
    if (search == NULL)
        return kvb_fail_memory(err, "the seeding of a k-means problem");
    kvb_nearest_set_around(search, s->job->table + (size_t)found * d, NULL);
    for (size_t first = 0; first < s->count; first += CHUNK) {
        size_t n = s->count - first < CHUNK ? s->count - first : CHUNK;
        kvb_nearest_find_packed(search, s->points + first * d, n, index, distance);
        for (size_t i = 0; i < n; i++)
            if (distance[i] < s->nearest[first + i]) {
                s->nearest[first + i] = distance[i];
                s->owner[first + i] = found + index[i];
            }
    }
    kvb_nearest_destroy(search);
    return KVB_OK;
}

static kvb_status in_batches(seeding *s, uint32_t *found, kvb_error *err)
{
    kvb_status status = KVB_OK;
    while (*found < s->job->centroids && status == KVB_OK) {
        uint32_t want = *found / 2 + 1, missing = s->job->centroids - *found;
        want = want < MOST_IN_BATCH ? want : MOST_IN_BATCH;
        if (kvb_kmeans_cancelled(s->job))
            return kvb_fail(err, KVB_E_CANCELLED, "k-means seeding", "cancelled by the progress callback");
        weigh(s);
        uint32_t have = draw_batch(s, *found, want < missing ? want : missing);
        if (have == 0)
            break;
        if (*found == 0)
            fill_nearest(s, FLT_MAX);
        status = meet_batch(s, *found, have, err);
        *found += have;
    }
    return status;
}

/* Fewer distinct points than centroids: the rest repeat what there is. */
static void fill_rest(kvb_kmeans_job *job, uint32_t found)
{
    size_t row = job->channels * sizeof(float);
    if (found == 0) {
        memset(job->table, 0, row);
        found = 1;
    }
    for (uint32_t k = found; k < job->centroids; k++)
        memcpy(job->table + (size_t)k * job->channels, job->table + (size_t)(k % found) * job->channels, row);
}

kvb_status kvb_kmeans_plus_plus(kvb_kmeans_job *job, kvb_error *err)
{
    bool few = job->centroids <= FEW;
    size_t n = job->training.count, m = (size_t)job->centroids * (few ? POINTS_A_CENTROID : BATCH_SAMPLE);
    uint32_t found = 0;
    m = m < n ? m : n;
    seeding s;
    kvb_status status = seeding_open(&s, job, m, !few ? 0 : n / m >= 4 ? 4 : n / m >= 2 ? 2 : 1, err);
    if (status == KVB_OK) {
        take_sample(&s);
        fill_nearest(&s, 1.0f);
        status = few ? one_by_one(&s, &found, err) : in_batches(&s, &found, err);
    }
    if (status == KVB_OK)
        fill_rest(job, found);
    seeding_close(&s);
    return status;
}

struct kvb_kmeans_seeder {
    seeding s;
    uint32_t found, have; /* centroids so far, and of the batch at hand */
};

kvb_status kvb_kmeans_seeder_open(kvb_kmeans_job *job, kvb_kmeans_seeder **out, kvb_error *err)
{
    kvb_kmeans_seeder *x = kvb_alloc_zeroed(1, sizeof *x);
    if ((*out = x) == NULL)
        return kvb_fail_memory(err, "the seeding of a k-means problem");
    kvb_status status = seeding_open(&x->s, job, job->training.count, 0, err);
    if (status == KVB_OK) {
        take_sample(&x->s);
        fill_nearest(&x->s, 1.0f);
    }
    return status;
}

uint32_t kvb_kmeans_seeder_draw(kvb_kmeans_seeder *x, const float **rows)
{
    uint32_t want = x->found / 2 + 1, missing = x->s.job->centroids - x->found;
    want = want < MOST_IN_BATCH ? want : MOST_IN_BATCH;
    if (missing > 0)
        weigh(&x->s);
    x->have = missing > 0 ? draw_batch(&x->s, x->found, want < missing ? want : missing) : 0;
    if (x->found == 0 && x->have > 0)
        fill_nearest(&x->s, FLT_MAX);
    *rows = x->s.job->table + (size_t)x->found * x->s.job->channels;
    return x->have;
}

void kvb_kmeans_seeder_meet(kvb_kmeans_seeder *x, const uint32_t *index, const float *distance)
{
    for (size_t i = 0; i < x->s.count; i++)
        if (distance[i] < x->s.nearest[i]) {
            x->s.nearest[i] = distance[i];
            x->s.owner[i] = x->found + index[i];
        }
    x->found += x->have;
}

void kvb_kmeans_seeder_close(kvb_kmeans_seeder *x)
{
    if (x == NULL)
        return;
    fill_rest(x->s.job, x->found);
    seeding_close(&x->s);
    free(x);
}
