/* "scale" of a recipe's keys or values: numbers coded one by one, with offsets and scales found while coding. */
#include <stdio.h>
#include <string.h>

#include "calib/recipe_read.h"
#include "format/kvb_layout.h"

static const char *const axes[] = {"channel", "token"};          /* by kvb_scale_axis */
static const char *const forms[] = {"range", "absmax", "rms", "fixed"}; /* by kvb_scale_form */
static const char *const levels[] = {"even", "normal", "trained"}; /* by kvb_recipe_levels */

static const char *const stores[] = {"half", "fp8"};               /* by kvb_scale_store */

static const char *at(const char *name, const char *member, char text[64])
{
    snprintf(text, 64, "%s.scale%s%s", name, member[0] != '\0' ? "." : "", member);
    return text;
}

static kvb_status read_then(const recipe_reader *r, const char *name, const kvb_json *object, kvb_recipe_scale *s)
{
    static const char *const members[] = {"layer", "bits"};
    char place[64];
    kvb_status status = kvb_recipe_check_members(r, at(name, "then", place), object, members, COUNT(members));
    if (status != KVB_OK || object == NULL)
        return status;
    status = kvb_recipe_read_number(r, at(name, "then.layer", place), kvb_json_get(object, "layer"), 0, 1024, &s->then_layer);
    if (status == KVB_OK)
        status = kvb_recipe_read_u32(r, at(name, "then.bits", place), kvb_json_get(object, "bits"), 1, KVB_MAX_SCALED_BITS,
                                     &s->then_bits);
    if (status == KVB_OK && (s->then_bits == 0 || kvb_json_get(object, "layer") == NULL))
        return kvb_recipe_refuse(r, at(name, "then", place), "expected both \"layer\" and \"bits\"");
    return status;
}

/* What numbers of a form can have beside their levels. */
static kvb_status check_form(const recipe_reader *r, const char *name, const kvb_json *object, const kvb_recipe_scale *s)
{
    char place[64];
    const bool fixed = s->scaling.form == KVB_SCALE_FIXED, alone = fixed || s->scaling.axis == KVB_AXIS_TOKEN;
    if (s->levels == KVB_LEVELS_NORMAL && s->scaling.form != KVB_SCALE_RMS)
        return kvb_recipe_refuse(r, at(name, "levels", place), "\"normal\" levels are of unit deviation: expected \"form\": \"rms\"");
    if (s->levels == KVB_LEVELS_TRAINED && (s->scaling.form == KVB_SCALE_RMS || !alone))
        return kvb_recipe_refuse(r, at(name, "levels", place), "\"trained\" levels lie between -1 and 1: expected \"form\": \"fixed\", or \"range\" "
                                 "or \"absmax\" along a token");
    if (fixed && (s->scaling.axis != KVB_AXIS_CHANNEL || kvb_json_get(object, "group") != NULL))
        return kvb_recipe_refuse(r, at(name, "form", place), "\"fixed\" is a scale for each channel: expected \"axis\": \"channel\" and no "
                                 "\"group\"");
    if (s->outliers > 0.0 && (s->scaling.form == KVB_SCALE_RMS || !alone))
        return kvb_recipe_refuse(r, at(name, "outliers", place), "expected \"form\": \"fixed\", or \"range\" or \"absmax\" along a token: tokens "
                                 "that share scales are coded without");
    return KVB_OK;
}

/* What "groups", a searched clip and "store" do not go with. */
static kvb_status check_groups(const recipe_reader *r, const char *name, const kvb_json *object, const kvb_recipe_scale *s)
{
    char place[64];
    const bool fixed = s->scaling.form == KVB_SCALE_FIXED, exact = s->outliers > 0.0 || s->levels == KVB_LEVELS_TRAINED;
    if (s->list_size > 0 && kvb_json_get(object, "group") != NULL)
        return kvb_recipe_refuse(r, at(name, "groups", place), "contradicts \"group\": channels are grouped by lists or as neighbours; give one of both");
    if (s->list_size > 0 && (s->scaling.axis != KVB_AXIS_TOKEN || exact))
        return kvb_recipe_refuse(r, at(name, "groups", place), "expected \"axis\": \"token\", no outliers and no trained levels");
    if (s->search && (fixed || exact))
        return kvb_recipe_refuse(r, at(name, "clip", place), "\"search\" is of scales found while coding: expected no \"form\": \"fixed\", no outliers "
                                 "and no trained levels");
    if (fixed && s->scaling.store != KVB_STORE_HALF)
        return kvb_recipe_refuse(r, at(name, "store", place), "\"fixed\" scales are the book's: expected \"half\", or no \"store\"");
    return KVB_OK;
}

static kvb_status read_groups(const recipe_reader *r, const char *name, const kvb_json *object, kvb_recipe_scale *s)
{
    static const char *const members[] = {"by", "size"}, *const ways[] = {"range"};
    char place[64];
    uint32_t by = 0;
    kvb_status status = kvb_recipe_check_members(r, at(name, "groups", place), object, members, COUNT(members));
    if (status != KVB_OK || object == NULL)
        return status;
    s->list_size = 32;
    s->scaling.group = 0;
    status = kvb_recipe_read_word(r, at(name, "groups.by", place), kvb_json_get(object, "by"), ways, COUNT(ways), &by);
    return status == KVB_OK ? kvb_recipe_read_u32(r, at(name, "groups.size", place), kvb_json_get(object, "size"), 1, KVB_MAX_HEAD_DIM,
                                                  &s->list_size)
                            : status;
}

static kvb_status read_pool(const recipe_reader *r, const char *name, const kvb_json *object, kvb_recipe_scale *s)
{
    static const char *const members[] = {"tokens", "spill", "layer"};
    char place[64];
    kvb_status status = kvb_recipe_check_members(r, at(name, "pool", place), object, members, COUNT(members));
    if (status != KVB_OK || object == NULL)
        return status;
    s->scaling.pool = 3;
    s->scaling.spill = 32;
    status = kvb_recipe_read_u32(r, at(name, "pool.tokens", place), kvb_json_get(object, "tokens"), 1, KVB_MAX_TOKEN_GROUP - 1, &s->scaling.pool);
    if (status == KVB_OK)
        status = kvb_recipe_read_u32(r, at(name, "pool.spill", place), kvb_json_get(object, "spill"), 1, KVB_MAX_SPILL, &s->scaling.spill);
    if (status == KVB_OK)
        status = kvb_recipe_read_u32(r, at(name, "pool.layer", place), kvb_json_get(object, "layer"), 0, 1024, &s->pool_layer);
    return status;
}

/* A pool is of keys of tokens that share scales, and leaves one of them at least. */
static kvb_status check_pool(const recipe_reader *r, const char *name, const kvb_recipe_scale *s)
{
    char place[64];
    if (s->scaling.pool == 0)
        return KVB_OK;
    if (strcmp(name, "keys") != 0 || s->scaling.axis != KVB_AXIS_CHANNEL || s->scaling.form == KVB_SCALE_FIXED)
        return kvb_recipe_refuse(r, at(name, "pool", place), "tokens widen the ranges that they share: expected keys with \"axis\": \"channel\" and no "
                                 "\"form\": \"fixed\"");
    if (s->scaling.pool >= s->scaling.group)
        return kvb_recipe_refuse(r, at(name, "pool.tokens", place), "found %u; expected fewer than the %u tokens that share a scale", s->scaling.pool,
                                 s->scaling.group);
    return KVB_OK;
}

/* A number, or "search". */
static kvb_status read_clip(const recipe_reader *r, const char *name, const kvb_json *v, kvb_recipe_scale *s)
{
    static const char *const ways[] = {"search"};
    char place[64];
    uint32_t way = 0;
    double clip = 1.0;
    s->search = v != NULL && kvb_json_type_of(v) == KVB_JSON_STRING;
    if (s->search)
        return kvb_recipe_read_word(r, at(name, "clip", place), v, ways, COUNT(ways), &way);
    kvb_status status = kvb_recipe_read_number(r, at(name, "clip", place), v, 1e-3, KVB_MAX_CLIP, &clip);
    s->scaling.clip = (float)clip;
    return status;
}

/* A group fits some head, whatever the model; the head's own size is checked when the book is made. */
static kvb_status check_group(const recipe_reader *r, const char *name, const kvb_scaling *s)
{
    char place[64];
    if (s->axis == KVB_AXIS_CHANNEL && (s->group < 2 || s->group > KVB_MAX_TOKEN_GROUP || (s->group & (s->group - 1)) != 0))
        return kvb_recipe_refuse(r, at(name, "group", place), "found %u; along channels expected a power of two from 2 to %d tokens",
                                 s->group, KVB_MAX_TOKEN_GROUP);
    return KVB_OK;
}

kvb_status kvb_recipe_read_scale(const recipe_reader *r, const char *name, const kvb_json *object, kvb_recipe_scale *s)
{
    static const char *const members[] = {"axis", "group", "groups", "form", "clip", "levels", "outliers", "store", "then", "pool"};
    char place[64];
    uint32_t axis = KVB_AXIS_TOKEN, form = KVB_SCALE_RANGE, spread = KVB_LEVELS_EVEN, store = KVB_STORE_HALF;
    kvb_status status = kvb_recipe_check_members(r, at(name, "", place), object, members, COUNT(members));
    if (status != KVB_OK || object == NULL)
        return status;
    s->used = true;
    s->scaling.group = 32;
    s->scaling.clip = 1.0f;
    status = kvb_recipe_read_word(r, at(name, "axis", place), kvb_json_get(object, "axis"), axes, COUNT(axes), &axis);
    if (status == KVB_OK)
        status = kvb_recipe_read_word(r, at(name, "form", place), kvb_json_get(object, "form"), forms, COUNT(forms), &form);
    if (status == KVB_OK)
        status = kvb_recipe_read_word(r, at(name, "levels", place), kvb_json_get(object, "levels"), levels, COUNT(levels), &spread);
    if (status == KVB_OK)
        status = kvb_recipe_read_u32(r, at(name, "group", place), kvb_json_get(object, "group"), 0, KVB_MAX_TOKEN_GROUP,
                                     &s->scaling.group);
    if (status == KVB_OK)
        status = read_groups(r, name, kvb_json_get(object, "groups"), s);
    if (status == KVB_OK)
        status = read_clip(r, name, kvb_json_get(object, "clip"), s);
    if (status == KVB_OK)
        status = kvb_recipe_read_word(r, at(name, "store", place), kvb_json_get(object, "store"), stores, COUNT(stores), &store);
    if (status == KVB_OK)
        status = kvb_recipe_read_number(r, at(name, "outliers", place), kvb_json_get(object, "outliers"), 0.0, 0.5, &s->outliers);
    if (status == KVB_OK)
        status = read_then(r, name, kvb_json_get(object, "then"), s);
    if (status == KVB_OK)
        status = read_pool(r, name, kvb_json_get(object, "pool"), s);
    if (status != KVB_OK)
        return status;
    s->scaling.axis = (kvb_scale_axis)axis;
    s->scaling.form = (kvb_scale_form)form;
    s->scaling.store = (kvb_scale_store)store;
    s->levels = (kvb_recipe_levels)spread;
    status = check_form(r, name, object, s);
    if (status == KVB_OK)
        status = check_groups(r, name, object, s);
    if (s->scaling.form == KVB_SCALE_FIXED)
        s->scaling.group = 1;
    if (status == KVB_OK && s->scaling.form != KVB_SCALE_FIXED)
        status = check_group(r, name, &s->scaling);
    return status == KVB_OK ? check_pool(r, name, s) : status;
}
