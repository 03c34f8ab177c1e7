/* Keys and values of a whole sequence as a cache would read them: rounded to half floats, and from their codes. */
#include <string.h>

#include "format/base/checked.h"
#include "format/base/half.h"
#include "runtime/codec.h"
#include "runtime/prefill_work.h"
#include "runtime/rope_frame.h"

static void round_to_half(const float *x, size_t count, float *rounded)
{
    uint16_t half[256];
    for (size_t i = 0, many; i < count; i += many) {
        many = count - i < 256 ? count - i : 256;
        kvb_half_from_floats(half, x + i, many);
        kvb_half_to_floats(rounded + i, half, many);
    }
}

/* x -> codes -> coded, in place of all `tokens` rows; false if out of memory. */
static bool code_rows(const kvb_prefill_work *w, uint32_t g, kvb_kind kind, float *x)
{
    const uint32_t dim = w->layer->head_dim;
    kvb_codec *codec;
    if (kvb_codec_create(kvb_book_codebook(w->p->book, w->p->layer, g, kind), dim, true, &codec, NULL) != KVB_OK)
        return false;
    for (uint32_t first = 0, many; first < w->tokens; first += many) {
        many = w->tokens - first < KVB_CODEC_ROWS ? w->tokens - first : KVB_CODEC_ROWS;
        kvb_codec_encode(codec, x + (size_t)first * dim, dim, many, codec->codes);
        kvb_codec_decode(codec, codec->codes, many, x + (size_t)first * dim);
    }
    kvb_codec_destroy(codec);
    return true;
}

static bool mirror_values(const kvb_prefill_work *w, uint32_t g)
{
    const size_t values = (size_t)w->tokens * w->layer->head_dim;
    kvb_prefill_head *h = w->head + g;
    if ((h->exact_v = kvb_alloc_array(values, sizeof(float))) == NULL)
        return false;
    round_to_half(w->p->v + g * values, values, h->exact_v);
    if (!w->has_codes)
        return true;
    if ((h->coded_v = kvb_alloc_array(values, sizeof(float))) == NULL)
        return false;
    memcpy(h->coded_v, h->exact_v, values * sizeof(float));
    return code_rows(w, g, KVB_VALUE, h->coded_v);
}

static bool score_keys(const kvb_prefill_work *w, uint32_t g)
{
    kvb_prefill_head *h = w->head + g;
    if (kvb_policy_scores_attention(&w->policy))
        return true;
    if ((h->static_score = kvb_alloc_array(w->tokens, sizeof(float))) == NULL)
        return false;
    for (uint32_t j = 0; j < w->tokens; j++)
        h->static_score[j] = kvb_anchor_static_score(w->policy.score, w->p->seed, w->p->layer, g, j,
                                                     h->exact_k + (size_t)j * w->layer->head_dim, w->layer->head_dim);
    return true;
}

static bool mirror_keys(const kvb_prefill_work *w, uint32_t g)
{
    const uint32_t dim = w->layer->head_dim;
    const size_t values = (size_t)w->tokens * dim;
    kvb_prefill_head *h = w->head + g;
    if ((h->exact_k = kvb_alloc_array(values, sizeof(float))) == NULL)
        return false;
    round_to_half(w->p->k_pre + g * values, values, h->exact_k);
    if (!score_keys(w, g))
        return false;
    if (w->has_codes) {
        if ((h->coded_k = kvb_alloc_array(values, sizeof(float))) == NULL)
            return false;
        memcpy(h->coded_k, h->exact_k, values * sizeof(float));
        for (uint32_t j = 0; j < w->tokens; j++)
            kvb_frame_enter(w->layer, &w->rope, j, h->coded_k + (size_t)j * dim);
        if (!code_rows(w, g, KVB_KEY, h->coded_k))
            return false;
        for (uint32_t j = 0; j < w->tokens; j++)
            kvb_frame_finish(w->layer, &w->rope, j, h->coded_k + (size_t)j * dim);
    }
    for (uint32_t j = 0; j < w->tokens; j++)
        kvb_rope_rotate(&w->rope, j, dim, h->exact_k + (size_t)j * dim, h->exact_k + (size_t)j * dim);
    return true;
}

/* Task 2g is the keys of head g, 2g+1 its values. */
static void mirror_task(void *user, size_t i)
{
    kvb_prefill_work *w = user;
    uint32_t g = (uint32_t)(i / 2);
    w->failed[i] = !(i % 2 == 0 ? mirror_keys(w, g) : mirror_values(w, g));
}

kvb_status kvb_prefill_mirror(kvb_prefill_work *w, kvb_error *err)
{
    return kvb_work_run(w, mirror_task, w, (size_t)2 * w->layer->kv_heads, "keys and values of a prefill", err);
}
