/* What a book of a part of the layers remembers so that parts can become a whole: sums that its META otherwise has as means. */
#include <math.h>
#include <stdlib.h>

#include "calib/train_impl.h"
#include "format/base/checked.h"
#include "format/base/fail.h"

/* Sums of doubles are kept layer by layer: in another order they would come out otherwise. */
enum { SUMS = 10, COUNTS = 6 };

static void put_layer(kvb_json_writer *w, const kvb_layer_sums *s)
{
    const double sum[SUMS] = {s->error[0], s->error[1], s->heldout[0], s->heldout[1], s->fine[0], s->fine[1],
                              s->clip_before[0], s->clip_before[1], s->clip_after[0], s->clip_after[1]};
    const uint64_t count[COUNTS] = {s->count[0], s->count[1], s->fine_count[0], s->fine_count[1], s->clip_count[0], s->clip_count[1]};
    kvb_json_begin_array(w, NULL);
    for (int i = 0; i < SUMS; i++)
        kvb_json_put_number(w, NULL, sum[i]);
    for (int i = 0; i < COUNTS; i++)
        kvb_json_put_u64(w, NULL, count[i]);
    kvb_json_end_array(w);
}

static void put_counts(kvb_json_writer *w, const char *key, const uint64_t *count, int bins)
{
    kvb_json_begin_array(w, key);
    for (int i = 0; i < bins; i++)
        kvb_json_put_u64(w, NULL, count[i]);
    kvb_json_end_array(w);
}

/* Of each head's keys and values the points up to the last. */
static void put_curves(kvb_json_writer *w, const kvb_trainer *t, uint32_t layer)
{
    const uint32_t length = kvb_train_curve_length(t->recipe);
    const float *all = kvb_train_has(t, layer) ? t->result[layer].curve : NULL;
    kvb_json_begin_array(w, NULL);
    for (uint32_t i = 0; all != NULL && i < 2 * t->capture->geometry[layer].kv_heads; i++) {
        const float *curve = all + (size_t)i * (length + 1);
        const uint32_t end = kvb_train_curve_end(curve, length);
        kvb_json_begin_array(w, NULL);
        for (uint32_t k = 0; end > 0 && k <= end; k++)
            kvb_json_put_number(w, NULL, (double)curve[k]);
        kvb_json_end_array(w);
    }
    kvb_json_end_array(w);
}

void kvb_train_put_part(kvb_json_writer *w, const kvb_trainer *t, const kvb_layer_scores *scores)
{
    const uint32_t first = t->options->first_layer, last = first + t->options->layer_count - 1;
    kvb_json_begin_object(w, "part");
    put_counts(w, "layers", (const uint64_t[]){first, last}, 2);
    kvb_json_begin_array(w, "sums");
    for (uint32_t l = first; l <= last; l++)
        put_layer(w, &t->result[l].sums);
    kvb_json_end_array(w);
    kvb_json_begin_array(w, "curves");
    for (uint32_t l = first; l <= last; l++)
        put_curves(w, t, l);
    kvb_json_end_array(w);
    put_counts(w, "positions", scores->position, KVB_POSITION_BINS);
    put_counts(w, "scores", scores->score, KVB_SCORE_BINS);
    kvb_json_put_u64(w, "anchors", scores->anchors);
    kvb_json_put_u64(w, "rows", scores->rows);
    kvb_json_end_object(w);
}

static bool read_counts(const kvb_json *array, size_t from, uint64_t *count, size_t bins)
{
    bool good = kvb_json_type_of(array) == KVB_JSON_ARRAY && kvb_json_count(array) == from + bins;
    for (size_t i = 0; good && i < bins; i++)
        good = kvb_json_u64(kvb_json_at(array, from + i), &count[i]);
    return good;
}

bool kvb_train_part_range(const kvb_json *part, uint32_t *first, uint32_t *last)
{
    uint64_t range[2];
    if (!read_counts(kvb_json_get(part, "layers"), 0, range, 2) || range[0] > range[1] || range[1] >= UINT32_MAX)
        return false;
    *first = (uint32_t)range[0];
    *last = (uint32_t)range[1];
    return true;
}

kvb_status kvb_train_part_sums(const kvb_json *part, uint32_t layer, const char *name, kvb_layer_sums *sums, kvb_error *err)
{
    uint32_t first, last;
    uint64_t count[COUNTS];
    double sum[SUMS];
    const kvb_json *all = kvb_json_get(part, "sums");
    if (!kvb_train_part_range(part, &first, &last) || layer < first || layer > last || kvb_json_count(all) != (size_t)last - first + 1 ||
        !read_counts(kvb_json_at(all, layer - first), SUMS, count, COUNTS))
        return kvb_fail(err, KVB_E_FORMAT, name, "META has no sums of layer %u in training.part", layer);
    for (size_t i = 0; i < SUMS; i++)
        sum[i] = kvb_json_number(kvb_json_at(kvb_json_at(all, layer - first), i), NAN);
    *sums = (kvb_layer_sums){.error = {sum[0], sum[1]}, .heldout = {sum[2], sum[3]}, .fine = {sum[4], sum[5]},
                             .clip_before = {sum[6], sum[7]}, .clip_after = {sum[8], sum[9]}, .count = {count[0], count[1]},
                             .fine_count = {count[2], count[3]}, .clip_count = {count[4], count[5]}};
    return KVB_OK;
}

kvb_status kvb_train_part_curves(const kvb_json *part, uint32_t layer, uint32_t heads, uint32_t length, const char *name, float **curve,
                                 kvb_error *err)
{
    uint32_t first, last;
    *curve = NULL;
    if (!kvb_train_part_range(part, &first, &last) || layer < first || layer > last)
        return kvb_fail(err, KVB_E_FORMAT, name, "META has no curves of layer %u in training.part", layer);
    const kvb_json *all = kvb_json_at(kvb_json_get(part, "curves"), layer - first);
    if (kvb_json_count(all) == 0)
        return KVB_OK;
    if (kvb_json_count(all) != 2 * (size_t)heads)
        return kvb_fail(err, KVB_E_FORMAT, name, "META has curves of %zu in layer %u, expected %u", kvb_json_count(all), layer, 2 * heads);
    if ((*curve = kvb_alloc_array(2 * (size_t)heads * (length + 1), sizeof **curve)) == NULL)
        return kvb_fail_memory(err, "curves");
    for (uint32_t i = 0; i < 2 * heads; i++)
        for (uint32_t k = 0; k <= length; k++) /* NaN past the end of the array */
            (*curve)[(size_t)i * (length + 1) + k] = (float)kvb_json_number(kvb_json_at(kvb_json_at(all, i), k), NAN);
    return KVB_OK;
}

kvb_status kvb_train_part_scores(const kvb_json *part, const char *name, kvb_layer_scores *scores, kvb_error *err)
{
    if (!read_counts(kvb_json_get(part, "positions"), 0, scores->position, KVB_POSITION_BINS) ||
        !read_counts(kvb_json_get(part, "scores"), 0, scores->score, KVB_SCORE_BINS) ||
        !kvb_json_u64(kvb_json_get(part, "anchors"), &scores->anchors) || !kvb_json_u64(kvb_json_get(part, "rows"), &scores->rows))
        return kvb_fail(err, KVB_E_FORMAT, name, "META has no counts of scores in training.part");
    return KVB_OK;
}
