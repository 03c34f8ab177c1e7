/* What a book may say of its geometry: one set of rules for reading and writing. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>

#include "format/base/fail.h"
#include "format/base/json.h"
#include "format/kvb_layout.h"

typedef struct complaint {
    char *text;
    size_t size;
} complaint;

static bool complain(complaint c, const char *format, ...) __attribute__((format(printf, 2, 3)));

static bool complain(complaint c, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(c.text, c.size, format, args);
    va_end(args);
    return true;
}

uint32_t kvb_element_size(uint32_t dtype)
{
    static const uint32_t size[] = {1, 2, 4};
    return dtype < 3 ? size[dtype] : 0;
}

static bool heads_problem(const kvb_layer *l, complaint c)
{
    if (l->heads < 1 || l->heads > KVB_MAX_HEADS)
        return complain(c, "%u query heads, expected 1..%d", l->heads, KVB_MAX_HEADS);
    if (l->kv_heads < 1 || l->kv_heads > l->heads || l->heads % l->kv_heads != 0)
        return complain(c, "%u KV heads, expected a divisor of the %u query heads", l->kv_heads, l->heads);
    if (l->head_dim < 1 || l->head_dim > KVB_MAX_HEAD_DIM)
        return complain(c, "head dimension %u, expected 1..%d", l->head_dim, KVB_MAX_HEAD_DIM);
    return false;
}

/* Enums are compared as unsigned: the compiler may choose a signed type, and the value came from outside. */
static bool attention_problem(const kvb_layer *l, complaint c)
{
    if ((unsigned)l->kind > KVB_LAYER_UNSUPPORTED)
        return complain(c, "layer kind %u, expected 0..2", (unsigned)l->kind);
    if ((l->kind == KVB_LAYER_SLIDING) != (l->sliding_window > 0))
        return complain(c, "sliding window of %u tokens in a layer of kind %u (only kind 1 has one)", l->sliding_window,
                        (unsigned)l->kind);
    if (!isnormal(l->attention_scale) || l->attention_scale < 0)
        return complain(c, "attention scale %g, expected a positive number", l->attention_scale);
    return false;
}

static bool rope_problem(const kvb_layer *l, complaint c)
{
    if ((unsigned)l->frame > KVB_FRAME_BLOCK)
        return complain(c, "RoPE frame %u, expected 0..2", (unsigned)l->frame);
    if ((l->frame == KVB_FRAME_BLOCK) != (l->rope_block > 0) || l->rope_block > KVB_MAX_ROPE_BLOCK)
        return complain(c, "RoPE block of %u tokens in frame %u (only frame 2 has one, of 1..%d)", l->rope_block,
                        (unsigned)l->frame, KVB_MAX_ROPE_BLOCK);
    if ((unsigned)l->rope_style > KVB_ROPE_HALF)
        return complain(c, "RoPE style %u, expected 0..2", (unsigned)l->rope_style);
    if (l->rope_style == KVB_ROPE_NONE)
        return l->rope_dims != 0 && complain(c, "%u rotating channels without RoPE, expected 0", l->rope_dims);
    if (l->rope_dims < 2 || l->rope_dims % 2 != 0 || l->rope_dims > l->head_dim)
        return complain(c, "%u rotating channels, expected an even number of 2..%u", l->rope_dims, l->head_dim);
    if (!isnormal(l->rope_base) || l->rope_base < 0)
        return complain(c, "RoPE base %g, expected a positive number", l->rope_base);
    return false;
}

bool kvb_layer_problem(const kvb_layer *layer, char *problem, size_t size)
{
    complaint c = {problem, size};
    return heads_problem(layer, c) || attention_problem(layer, c) || rope_problem(layer, c);
}

bool kvb_policy_problem(const kvb_policy *policy, char *problem, size_t size)
{
    complaint c = {problem, size};
    if (!(policy->anchor_fraction >= 0 && policy->anchor_fraction <= 1))
        return complain(c, "anchor fraction %g, expected 0..1", policy->anchor_fraction);
    if ((unsigned)policy->score > KVB_SCORE_RANDOM)
        return complain(c, "anchor score %u, expected 0..%d", (unsigned)policy->score, KVB_SCORE_RANDOM);
    if ((unsigned)policy->exact > KVB_EXACT_FINE)
        return complain(c, "exact form %u, expected 0 (half floats) or 1 (fine codes)", (unsigned)policy->exact);
    return false;
}

bool kvb_shape_problem(uint32_t head_dim, uint32_t channels, uint32_t stages, uint32_t centroids, char *problem,
                       size_t size)
{
    complaint c = {problem, size};
    if (channels < 1 || channels > KVB_MAX_CHANNELS || head_dim % channels != 0)
        return complain(c, "d = %u channels per group, expected 1..%d and a divisor of the head dimension %u", channels,
                        KVB_MAX_CHANNELS, head_dim);
    if (centroids < 2 || centroids > KVB_MAX_CENTROIDS || (centroids & (centroids - 1)) != 0)
        return complain(c, "K = %u centroids, expected a power of two of 2..%d", centroids, KVB_MAX_CENTROIDS);
    if (stages < 1 || stages > KVB_MAX_STAGES)
        return complain(c, "M = %u stages, expected 1..%d", stages, KVB_MAX_STAGES);
    if (stages * (uint32_t)__builtin_ctz(centroids) > 16)
        return complain(c, "%u stages of %u centroids make over %d codes", stages, centroids, KVB_MAX_CENTROIDS);
    return false;
}

uint32_t kvb_scaling_groups(const kvb_scaling *s, uint32_t head_dim)
{
    return s->axis == KVB_AXIS_CHANNEL ? head_dim : s->lists > 0 ? s->lists : head_dim / s->group;
}

uint32_t kvb_scaling_group_end(const kvb_scaling *s, uint32_t i)
{
    return s->lists > 0 ? s->end[i] : (i + 1) * (s->axis == KVB_AXIS_CHANNEL ? 1 : s->group);
}

static bool clip_problem(float clip, complaint c)
{
    return (!isnormal(clip) || clip < 0 || clip > KVB_MAX_CLIP) &&
           complain(c, "clip %g, expected a positive number up to %d", (double)clip, KVB_MAX_CLIP);
}

/* Each channel once, each group with one at least. */
static bool lists_problem(const kvb_scaling *s, uint32_t head_dim, complaint c)
{
    bool seen[KVB_MAX_HEAD_DIM] = {false};
    if (s->axis != KVB_AXIS_TOKEN || s->group != head_dim || s->outliers > 0 || s->lists > head_dim)
        return complain(c, "%u lists of channels with a scale for every %u numbers on axis %u and %u outliers, expected up to %u lists, "
                        "with %u on axis 1 and none", s->lists, s->group, (unsigned)s->axis, s->outliers, head_dim, head_dim);
    for (uint32_t i = 0; i < head_dim; i++) {
        if (s->order[i] >= head_dim || seen[s->order[i]])
            return complain(c, "place %u of the order has channel %u, expected each of 0..%u once", i, s->order[i], head_dim - 1);
        seen[s->order[i]] = true;
    }
    for (uint32_t i = 0; i < s->lists; i++)
        if (s->end[i] <= (i > 0 ? s->end[i - 1] : 0) || (i + 1 == s->lists ? s->end[i] != head_dim : s->end[i] > head_dim))
            return complain(c, "list %u ends at %u, expected ascending ends, the last %u", i, s->end[i], head_dim);
    return false;
}

/* What GRPS says. */
static bool groups_problem(const kvb_scaling *s, uint32_t head_dim, complaint c)
{
    if ((unsigned)s->store > KVB_STORE_FP8)
        return complain(c, "scales stored as %u, expected 0 (half floats) or 1 (e4m3)", (unsigned)s->store);
    if (s->form == KVB_SCALE_FIXED && s->store != KVB_STORE_HALF)
        return complain(c, "fixed scales stored as %u, expected 0 (half floats)", (unsigned)s->store);
    if (s->clips != NULL && s->axis != KVB_AXIS_TOKEN)
        return complain(c, "a clip of each group on axis %u, expected axis 1", (unsigned)s->axis);
    if (s->lists > 0 && lists_problem(s, head_dim, c))
        return true;
    for (uint32_t i = 0; s->clips != NULL && i < kvb_scaling_groups(s, head_dim); i++)
        if (clip_problem(s->clips[i], c))
            return true;
    return false;
}

/* What POOL says. One token of a group at least stays, for its mean stands for the others. */
static bool pool_problem(const kvb_scaling *s, complaint c)
{
    if (s->pool == 0 && s->spill == 0)
        return false;
    if (s->axis != KVB_AXIS_CHANNEL || s->form == KVB_SCALE_FIXED)
        return complain(c, "a pool of tokens beside scales on axis %u of form %u, expected axis 0 and a form found while coding",
                        (unsigned)s->axis, (unsigned)s->form);
    if (s->pool < 1 || s->pool >= s->group)
        return complain(c, "a pool of %u tokens, expected 1..%u, fewer than share a scale", s->pool, s->group - 1);
    if (s->spill < 1 || s->spill > KVB_MAX_SPILL)
        return complain(c, "a second pool of %u tokens, expected 1..%d", s->spill, KVB_MAX_SPILL);
    return false;
}

bool kvb_scaling_problem(const kvb_scaling *s, uint32_t head_dim, uint32_t levels, char *problem, size_t size)
{
    complaint c = {problem, size};
    if (levels < 2 || levels > 1u << KVB_MAX_SCALED_BITS || (levels & (levels - 1)) != 0)
        return complain(c, "%u levels, expected a power of two of 2..%u", levels, 1u << KVB_MAX_SCALED_BITS);
    if ((unsigned)s->axis > KVB_AXIS_TOKEN)
        return complain(c, "scale axis %u, expected 0 (channel) or 1 (token)", (unsigned)s->axis);
    if ((unsigned)s->form > KVB_SCALE_FIXED)
        return complain(c, "scale form %u, expected 0..%d", (unsigned)s->form, KVB_SCALE_FIXED);
    if (s->form == KVB_SCALE_FIXED && (s->axis != KVB_AXIS_CHANNEL || s->group != 1))
        return complain(c, "fixed scales on axis %u for %u numbers, expected axis 0 and 1", (unsigned)s->axis, s->group);
    if (s->axis == KVB_AXIS_CHANNEL && s->form != KVB_SCALE_FIXED &&
        (s->group < 2 || s->group > KVB_MAX_TOKEN_GROUP || (s->group & (s->group - 1)) != 0))
        return complain(c, "a scale for every %u tokens, expected a power of two of 2..%d", s->group, KVB_MAX_TOKEN_GROUP);
    if (s->axis == KVB_AXIS_TOKEN && (s->group < 1 || head_dim % s->group != 0))
        return complain(c, "a scale for every %u channels, expected a divisor of the head dimension %u", s->group, head_dim);
    const uint32_t most = s->form == KVB_SCALE_FIXED ? head_dim : s->axis == KVB_AXIS_TOKEN && s->form != KVB_SCALE_RMS ? s->group : 1;
    if (s->outliers >= most)
        return complain(c, "%u outliers of a token, expected fewer than %u of this form and group", s->outliers, most);
    return clip_problem(s->clip, c) || groups_problem(s, head_dim, c) || pool_problem(s, c);
}

kvb_status kvb_meta_check(const char *text, uint64_t size, const char *where, kvb_error *err)
{
    if (size < 1 || size > KVB_MAX_META)
        return kvb_fail(err, KVB_E_FORMAT, where, "META has %llu bytes, expected 1..%d", (unsigned long long)size,
                        KVB_MAX_META);
    if (text[0] != '{')
        return kvb_fail(err, KVB_E_FORMAT, where, "META does not begin with '{'");
    kvb_json_doc *doc;
    kvb_status status = kvb_json_parse(text, (size_t)size, where, &doc, err);
    kvb_json_free(doc);
    return status;
}
