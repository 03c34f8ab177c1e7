#include "model/config_rope.h"

#include <math.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"

typedef struct scaling {
    bool llama3;
    double factor, low, high, context;
} scaling;

static const char *type_of(const kvb_json *rope)
{
    return kvb_json_string(kvb_json_get(rope, "rope_type"), kvb_json_string(kvb_json_get(rope, "type"), "default"));
}

/* A key that nobody here knows may change every angle. */
static kvb_status check_keys(const kvb_rope_source *s, bool llama3, bool scaled, kvb_error *err)
{
    static const char *const plain[] = {"rope_type", "type", "rope_theta", "partial_rotary_factor"};
    static const char *const more[] = {"low_freq_factor", "high_freq_factor", "original_max_position_embeddings"};
    for (size_t i = 0; i < kvb_json_count(s->rope); i++) {
        const char *key = kvb_json_key_at(s->rope, i);
        bool known = scaled && strcmp(key, "factor") == 0;
        for (size_t k = 0; k < sizeof plain / sizeof *plain; k++)
            known = known || strcmp(key, plain[k]) == 0;
        for (size_t k = 0; llama3 && k < sizeof more / sizeof *more; k++)
            known = known || strcmp(key, more[k]) == 0;
        if (!known && kvb_json_type_of(kvb_json_at(s->rope, i)) != KVB_JSON_NULL)
            return kvb_fail(err, KVB_E_FORMAT, s->path, "config.json: RoPE of type \"%s\" has an unknown key \"%s\"",
                            type_of(s->rope), key);
    }
    return KVB_OK;
}

static kvb_status read_number(const kvb_rope_source *s, const char *key, double *value, kvb_error *err)
{
    *value = kvb_json_number(kvb_json_get(s->rope, key), 0.0);
    if (*value > 0.0 && isfinite(*value))
        return KVB_OK;
    return kvb_fail(err, KVB_E_FORMAT, s->path, "config.json: RoPE of type \"%s\": %s is missing or not a positive number",
                    type_of(s->rope), key);
}

static kvb_status read_scaling(const kvb_rope_source *s, scaling *to, kvb_error *err)
{
    to->llama3 = strcmp(type_of(s->rope), "llama3") == 0;
    kvb_status status = read_number(s, "factor", &to->factor, err);
    if (status != KVB_OK || !to->llama3)
        return status;
    status = read_number(s, "low_freq_factor", &to->low, err);
    if (status == KVB_OK)
        status = read_number(s, "high_freq_factor", &to->high, err);
    if (status == KVB_OK)
        status = read_number(s, "original_max_position_embeddings", &to->context, err);
    if (status == KVB_OK && !(to->high > to->low))
        status = kvb_fail(err, KVB_E_FORMAT, s->path, "config.json: high_freq_factor %g is not above low_freq_factor %g",
                          to->high, to->low);
    return status;
}

/* What the frequency of one pair is divided by. Llama 3.1: waves that fit often into the original context stay, long ones
 * are slowed down by `factor`, those between by something between. */
static double divisor(const scaling *s, double frequency)
{
    if (!s->llama3)
        return s->factor;
    const double waves = s->context * frequency / (2.0 * acos(-1.0));
    if (waves < s->low)
        return s->factor;
    if (waves > s->high)
        return 1.0;
    const double smooth = (waves - s->low) / (s->high - s->low);
    return 1.0 / ((1.0 - smooth) / s->factor + smooth);
}

static kvb_status make_factors(const kvb_rope_source *source, const scaling *s, kvb_layer *g, float **factors,
                               kvb_error *err)
{
    const uint32_t pairs = g->rope_dims / 2;
    *factors = kvb_alloc_array(pairs, sizeof **factors);
    if (*factors == NULL)
        return kvb_fail_memory(err, "RoPE factors");
    for (uint32_t i = 0; i < pairs; i++) {
        (*factors)[i] = (float)divisor(s, pow(g->rope_base, -2.0 * i / g->rope_dims));
        if (!((*factors)[i] > 0.0f) || !isnormal((*factors)[i]))
            return kvb_fail(err, KVB_E_FORMAT, source->path, "config.json: RoPE factor %g of pair %u is out of range",
                            (double)(*factors)[i], i);
    }
    g->rope_factors = *factors;
    return KVB_OK;
}

kvb_status kvb_config_rope(const kvb_rope_source *source, kvb_layer *g, float **factors, kvb_error *err)
{
    const char *type = type_of(source->rope);
    const bool llama3 = strcmp(type, "llama3") == 0, scaled = llama3 || strcmp(type, "linear") == 0;
    if (!scaled && strcmp(type, "default") != 0)
        return kvb_fail(err, KVB_E_FORMAT, source->path, "config.json: RoPE of type \"%s\" is not supported (default, linear "
                        "and llama3 are)", type);
    if (source->rope != NULL && kvb_json_type_of(source->rope) != KVB_JSON_OBJECT)
        return kvb_fail(err, KVB_E_FORMAT, source->path, "config.json: the RoPE parameters are no object");
    const double part = kvb_json_number(kvb_json_get(source->rope, "partial_rotary_factor"), source->part);
    if (!(part > 0.0) || part > 1.0)
        return kvb_fail(err, KVB_E_FORMAT, source->path, "config.json: partial_rotary_factor %g is not in (0, 1]", part);
    g->rope_style = KVB_ROPE_HALF;
    g->rope_dims = (uint32_t)(part * g->head_dim);
    g->rope_base = kvb_json_number(kvb_json_get(source->rope, "rope_theta"), source->base);
    g->rope_factors = NULL;
    scaling s = {0};
    kvb_status status = check_keys(source, llama3, scaled, err);
    if (status != KVB_OK || !scaled)
        return status;
    status = read_scaling(source, &s, err);
    return status == KVB_OK ? make_factors(source, &s, g, factors, err) : status;
}
