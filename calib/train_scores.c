#include <math.h>
#include <stdlib.h>

#include "calib/train_impl.h"
#include "format/base/checked.h"
#include "format/base/fail.h"

/* A picture of the token weights for META: bins of a position and of a score, as shares of all rows of all heads. */
enum { POSITION_BINS = 16, SCORE_BINS = 25, SCORE_FIRST = -12 };
static const double anchor_share = 0.01;

typedef struct score_picture {
    uint64_t position[POSITION_BINS], score[SCORE_BINS]; /* anchors by place, rows by floor(log2(score / mean)) */
    uint64_t anchors, rows;
} score_picture;

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
static void add_head(score_picture *p, const kvb_capture *capture, const float *weight, float *sorted, uint32_t ctx)
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

kvb_status kvb_train_put_scores(kvb_json_writer *w, const kvb_capture *capture, kvb_error *err)
{
    score_picture p = {.rows = 0};
    if (capture->row_position == NULL || capture->rows == 0)
        return KVB_OK;
    uint32_t ctx = 1;
    for (uint64_t r = 0; r < capture->rows; r++)
        ctx = capture->row_position[r] >= ctx ? capture->row_position[r] + 1 : ctx;
    float *sorted = kvb_alloc_array(capture->rows, sizeof *sorted);
    if (sorted == NULL)
        return kvb_fail_memory(err, "token weights");
    for (uint32_t l = 0; l < capture->layers; l++)
        for (uint32_t g = 0; capture->layer[l].weight_k != NULL && g < capture->geometry[l].kv_heads; g++)
            add_head(&p, capture, capture->layer[l].weight_k + g * capture->rows, sorted, ctx);
    free(sorted);
    if (p.rows == 0)
        return KVB_OK;
    kvb_json_begin_object(w, "scores");
    kvb_json_put_string(w, "score", "exact-k");
    kvb_json_put_number(w, "anchors", anchor_share);
    kvb_json_put_u64(w, "ctx", ctx);
    put_shares(w, "anchor_positions", p.position, POSITION_BINS, p.anchors);
    kvb_json_put_number(w, "first_log2", SCORE_FIRST);
    put_shares(w, "distribution", p.score, SCORE_BINS, p.rows);
    kvb_json_end_object(w);
    return KVB_OK;
}
