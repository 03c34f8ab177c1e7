/* Attention of one position: the R query heads of one KV head against tiles of keys, and what each token of the recent
 * window gains as an anchor by it. The cache and the causal prefill run the same steps over the same tiles, so their
 * results are equal to the last bit. */
#ifndef KVB_RUNTIME_ATTEND_STEP_H
#define KVB_RUNTIME_ATTEND_STEP_H

#include "format/base/attention.h"
#include "kvbook/cache.h"

typedef struct kvb_step {
    /* Set by kvb_step_create(). */
    const kvb_kernels *kernels;
    uint32_t rows, head_dim, sliding_window; /* R, D */
    float scale;
    bool scores_k; /* of KVB_SCORE_EXACT_K rather than KVB_SCORE_EXACT_V */
    /* Set by kvb_step_begin(). */
    uint32_t position, recent_first, recent_count;
    /* Owned. */
    uint32_t blocks, recent_room;
    kvb_attn_state *state;      /* [blocks of KVB_ATTN_ROWS rows] */
    float *q, *out;             /* [R][D] */
    float *scaled;              /* [R][D] scale * q */
    float *lse, *q_norm;        /* [R] */
    float *tile, *distance;     /* [R][KVB_ATTN_COLS] */
    float *recent;              /* [R][recent_room] scaled scores of the recent tokens */
    float *values_t;            /* [D][KVB_ATTN_COLS] */
} kvb_step;

kvb_status kvb_step_create(kvb_step *s, const kvb_layer *layer, const kvb_policy *policy, kvb_error *err);
void kvb_step_free(kvb_step *s); /* of a zeroed one is allowed */

/* Makes room for scores of `recent` tokens; false if out of memory. */
bool kvb_step_reserve(kvb_step *s, uint32_t recent);

/* Starts the query at `position`, its heads' rows being in s->q. Scores of recent_first .. position are kept where
 * recent_count > 0. */
void kvb_step_begin(kvb_step *s, uint32_t position, uint32_t recent_first, uint32_t recent_count);

/* First position of the first tile that the query sees. */
uint32_t kvb_step_first_tile(const kvb_step *s);

/* One tile: keys_t [D][KVB_ATTN_COLS] are the transposed keys, after RoPE, of tokens first .. first+cols-1, `first`
 * being a multiple of KVB_ATTN_COLS; values [cols][D]. Tiles come in ascending order. */
void kvb_step_tile(kvb_step *s, uint32_t first, uint32_t cols, const float *keys_t, const float *values);

/* Ends with s->out and s->lse. */
void kvb_step_end(kvb_step *s);

/* Adds to score[0 .. count-1] what tokens first .. first+count-1 (at most KVB_ATTN_COLS, all recent) gain by this
 * query: EXACT_K: scale * sum_r A_rj ||V_j - O_r||_1 ||Q_r||_2; EXACT_V: sum_r A_rj. values [count][D]. */
void kvb_step_add_scores(kvb_step *s, uint32_t first, uint32_t count, const float *values, double *score);

#endif
