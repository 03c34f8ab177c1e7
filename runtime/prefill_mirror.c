/* Keys and values of a whole sequence as a cache would read them: from the rows of tokens it keeps, and from codes. */
#include <string.h>

#include "format/base/checked.h"
#include "format/base/half.h"
#include "runtime/prefill_work.h"
#include "runtime/row_form.h"

/* A copy rounded to half floats; NULL if out of memory. */
static float *rounded(const kvb_prefill_work *w, const float *x)
{
    const size_t values = (size_t)w->tokens * w->layer->head_dim;
    float *copy = kvb_alloc_array(values, sizeof *copy);
    if (copy == NULL)
        return NULL;
    memcpy(copy, x, values * sizeof *copy);
    kvb_round_to_half(copy, values);
    return copy;
}

/* x -> codes -> coded, in place of the rows `from` .. T-1; false if out of memory. */
static bool code_rows(const kvb_prefill_work *w, const kvb_codebook *codebook, uint32_t from, float *x)
{
    const uint32_t dim = w->layer->head_dim;
    kvb_codec *codec;
    if (from >= w->tokens)
        return true;
    if (kvb_codec_create(codebook, dim, true, &codec, NULL) != KVB_OK)
        return false;
    /* Blocks of tokens that share scales, the unfinished last one left alone; else as many as the codec takes at a time. */
    const uint32_t step = codec->block > 1 ? codec->block : KVB_CODEC_ROWS;
    uint8_t *packed = kvb_alloc_array(kvb_codec_bytes(codec, step), 1);
    for (uint32_t first = from, many; packed != NULL && first < w->tokens; first += many) {
        many = w->tokens - first < step ? w->tokens - first : step;
        if (many % codec->block != 0)
            break;
        kvb_codec_encode_packed(codec, x + (size_t)first * dim, dim, many, packed);
        kvb_codec_decode_packed(codec, packed, 0, many, x + (size_t)first * dim);
    }
    const bool good = packed != NULL;
    free(packed);
    kvb_codec_destroy(codec);
    return good;
}

/* Where codes begin. Blocks are counted from the first token that is no sink; without blocks sinks may be coded too, and nobody
 * reads it. */
static uint32_t coded_from(const kvb_prefill_work *w)
{
    return w->block > 1 ? w->policy.sinks : 0;
}

/* Takes small tokens out of the groups of the rows from coded_from() on: those that keys put into the pools, then the values of the same. */
static void take_out_small(const kvb_prefill_work *w, kvb_prefill_head *h, uint32_t group, kvb_kind kind, float *x)
{
    const uint32_t dim = w->layer->head_dim;
    for (uint64_t first = coded_from(w); h->small.places > 0 && first + group <= w->tokens; first += group) {
        if (kind == KVB_KEY)
            kvb_token_pool_offer(&h->small, (uint32_t)first, group, dim, x + first * dim);
        kvb_token_pool_replace(&h->small, (uint32_t)first, group, dim, x + first * dim);
    }
}

static bool mirror_values(const kvb_prefill_work *w, uint32_t g)
{
    const size_t values = (size_t)w->tokens * w->layer->head_dim;
    kvb_prefill_head *h = w->head + g;
    if ((h->exact_v = rounded(w, w->p->v + g * values)) == NULL ||
        !code_rows(w, kvb_book_fine(w->p->book, w->p->layer, g, KVB_VALUE), w->fine_from, h->exact_v))
        return false;
    if (!w->has_codes)
        return true;
    if ((h->coded_v = kvb_alloc_array(values, sizeof(float))) == NULL)
        return false;
    memcpy(h->coded_v, h->exact_v, values * sizeof(float));
    take_out_small(w, h, kvb_codebook_block(kvb_book_codebook(w->p->book, w->p->layer, g, KVB_KEY)), KVB_VALUE, h->coded_v);
    return code_rows(w, kvb_book_codebook(w->p->book, w->p->layer, g, KVB_VALUE), coded_from(w), h->coded_v);
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
    if ((h->exact_k = rounded(w, w->p->k_pre + g * values)) == NULL)
        return false;
    for (uint32_t j = w->fine_from; j < w->tokens; j++)
        kvb_frame_enter(w->layer, &w->rope, j, h->exact_k + (size_t)j * dim);
    if (!code_rows(w, kvb_book_fine(w->p->book, w->p->layer, g, KVB_KEY), w->fine_from, h->exact_k) ||
        !score_keys(w, g))
        return false;
    if (w->has_codes) {
        if ((h->coded_k = kvb_alloc_array(values, sizeof(float))) == NULL)
            return false;
        memcpy(h->coded_k, h->exact_k, values * sizeof(float));
        for (uint32_t j = 0; j < w->fine_from; j++)
            kvb_frame_enter(w->layer, &w->rope, j, h->coded_k + (size_t)j * dim);
        const kvb_codebook *codebook = kvb_book_codebook(w->p->book, w->p->layer, g, KVB_KEY);
        if (!kvb_token_pool_create(codebook, &h->small))
            return false;
        take_out_small(w, h, kvb_codebook_block(codebook), KVB_KEY, h->coded_k);
        if (!code_rows(w, codebook, coded_from(w), h->coded_k))
            return false;
        for (uint32_t j = 0; j < w->tokens; j++)
            kvb_frame_finish(w->layer, &w->rope, j, h->coded_k + (size_t)j * dim);
    }
    for (uint32_t j = 0; j < w->fine_from; j++)
        kvb_rope_rotate(&w->rope, j, dim, h->exact_k + (size_t)j * dim, h->exact_k + (size_t)j * dim);
    for (uint32_t j = w->fine_from; j < w->tokens; j++)
        kvb_frame_finish(w->layer, &w->rope, j, h->exact_k + (size_t)j * dim);
    return true;
}

/* Values follow the keys of their head: these say which tokens leave their groups. */
static void mirror_task(void *user, size_t i)
{
    kvb_prefill_work *w = user;
    const uint32_t g = (uint32_t)i;
    w->failed[i] = !mirror_keys(w, g) || !mirror_values(w, g);
}

/* Task 2g is the keys of head g, 2g+1 its values. */
static void mirror_half_task(void *user, size_t i)
{
    kvb_prefill_work *w = user;
    const uint32_t g = (uint32_t)(i / 2);
    w->failed[i] = !(i % 2 == 0 ? mirror_keys(w, g) : mirror_values(w, g));
}

kvb_status kvb_prefill_mirror(kvb_prefill_work *w, kvb_error *err)
{
    const uint32_t heads = w->layer->kv_heads;
    bool small = false;
    for (uint32_t g = 0; w->has_codes && g < heads; g++)
        small |= kvb_token_pool_room(kvb_book_codebook(w->p->book, w->p->layer, g, KVB_KEY)) > 0;
    return kvb_work_run(w, small ? mirror_task : mirror_half_task, w, small ? heads : (size_t)2 * heads,
                        "keys and values of a prefill", err);
}
