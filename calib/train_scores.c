#include <math.h>
#include <stdlib.h>

#include "calib/train_impl.h"
#include "format/base/checked.h"
#include "format/base/fail.h"

/* A picture of the token weights for META: bins of a position and of a score, as shares of all rows of all heads. */
enum { POSITION_BINS = KVB_POSITION_BINS, SCORE_BINS = KVB_SCORE_BINS, SCORE_FIRST = -12 };
static const double anchor_share = 0.01;

static int descending(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

/* The first bin also takes what is below it, zeros among them, and the last what is above. */
static int score_bin(double ratio)
{
    const double place = ratio > 0.0 ? floor(log2(ratio)) - SCORE_FIRST : 0.0;
    return place < 0.0 ? 0 : place > SCORE_BINS - 1 ? SCORE_BINS - 1 : (int)place;
}

/* One head: `weight` [n], `sorted` has room for as many. */
static void add_head(kvb_layer_scores *p, const kvb_capture *capture, const float *weight, float *sorted, uint32_t ctx)
{
    double sum = 0.0;
    for (uint64_t r = 0; r < capture->rows; r++) {
        sorted[r] = weight[r];
        sum += (double)weight[r];
    }
    if (!(sum > 0.0))
        return;
    qsort(sorted, capture->rows, sizeof *sorted, descending);
    const uint64_t wanted = (uint64_t)ceil(anchor_share * (double)capture->rows);
    const float least = sorted[wanted - 1];
    uint64_t taken = 0; /* of equal scores the earlier rows */
    for (uint64_t r = 0; r < capture->rows; r++) {
        p->score[score_bin((double)weight[r] * (double)capture->rows / sum)]++;
        if (weight[r] >= least && taken < wanted) {
            taken++;
            p->position[(uint64_t)capture->row_position[r] * POSITION_BINS / ctx]++;
        }
    }
    p->anchors += taken;
    p->rows += capture->rows;
}

static void put_shares(kvb_json_writer *w, const char *key, const uint64_t *count, int bins, uint64_t total)
{
    kvb_json_begin_array(w, key);
    for (int i = 0; i < bins; i++)
        kvb_json_put_number(w, NULL, round(1e5 * (double)count[i] / (double)total) / 1e5);
    kvb_json_end_array(w);
}

uint32_t kvb_train_context(const kvb_capture *capture)
{
    uint32_t ctx = 1;
    for (uint64_t r = 0; r < capture->rows; r++)
        ctx = capture->row_position[r] >= ctx ? capture->row_position[r] + 1 : ctx;
    return ctx;
}

kvb_status kvb_train_count_scores(kvb_trainer *t, uint32_t layer, kvb_error *err)
{
    const kvb_capture *capture = t->capture;
    const float *weight = capture->layer[layer].weight_k;
    if (capture->row_position == NULL || weight == NULL)
        return KVB_OK;
    float *sorted = kvb_alloc_array(capture->rows, sizeof *sorted);
    if (sorted == NULL)
        return kvb_fail_memory(err, "token weights");
    const uint32_t ctx = kvb_train_context(capture);
    for (uint32_t g = 0; g < capture->geometry[layer].kv_heads; g++)
        add_head(&t->result[layer].scores, capture, weight + g * capture->rows, sorted, ctx);
    free(sorted);
    return KVB_OK;
}

void kvb_train_add_scores(kvb_layer_scores *all, const kvb_layer_scores *one)
{
    for (int i = 0; i < POSITION_BINS; i++)
        all->position[i] += one->position[i];
    for (int i = 0; i < SCORE_BINS; i++)
        all->score[i] += one->score[i];
    all->anchors += one->anchors;
    all->rows += one->rows;
}

kvb_layer_scores kvb_train_sum_scores(const kvb_trainer *t)
{
    kvb_layer_scores all = {0};
    for (uint32_t l = 0; l < t->capture->layers; l++)
        kvb_train_add_scores(&all, &t->result[l].scores);
    return all;
}

void kvb_train_put_scores(kvb_json_writer *w, uint32_t ctx, const kvb_layer_scores *all)
{
    if (all->rows == 0)
        return;
    kvb_json_begin_object(w, "scores");
    kvb_json_put_string(w, "score", "exact-k");
    kvb_json_put_number(w, "anchors", anchor_share);
    kvb_json_put_u64(w, "ctx", ctx);
    put_shares(w, "anchor_positions", all->position, POSITION_BINS, all->anchors);
    kvb_json_put_number(w, "first_log2", SCORE_FIRST);
    put_shares(w, "distribution", all->score, SCORE_BINS, all->rows);
    kvb_json_end_object(w);
}
