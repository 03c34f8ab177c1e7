/* What a spec must satisfy before a book is built from it. Content that the reader judges (equal centroids, transforms
 * that do not undo each other) is left to it: the writer reads every image back before handing it out. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/half.h"
#include "format/book_spec.h"

static kvb_status check_floats(const float *values, size_t count, double limit, const char *where, const char *what,
                               kvb_error *err)
{
    for (size_t i = 0; i < count; i++) {
        double value = (double)values[i];
        if (!isfinite(value))
            return kvb_fail(err, KVB_E_CHECK, where, "%s value %zu is %g, expected a finite number", what, i, value);
        if (fabs(value) > limit)
            return kvb_fail(err, KVB_E_CHECK, where, "%s value %zu is %g, a half float holds at most %g", what, i, value,
                            limit);
    }
    return KVB_OK;
}

static kvb_status check_space(const kvb_book_part *p, uint32_t head_dim, const char *where, kvb_error *err)
{
    const size_t square = (size_t)head_dim * head_dim;
    if ((p->forward == NULL) != (p->inverse == NULL))
        return kvb_fail(err, KVB_E_USAGE, where, "a transform without its inverse, or the reverse");
    kvb_status status = KVB_OK;
    if (p->mean != NULL)
        status = check_floats(p->mean, head_dim, INFINITY, where, "mean", err);
    if (status == KVB_OK && p->forward != NULL)
        status = check_floats(p->forward, square, INFINITY, where, "transform", err);
    if (status == KVB_OK && p->inverse != NULL)
        status = check_floats(p->inverse, square, INFINITY, where, "inverse transform", err);
    return status;
}

static kvb_status check_scaled_part(const kvb_book_part *p, uint32_t head_dim, const char *where, kvb_error *err)
{
    char problem[200];
    if (p->scaling->lists > 0 && (p->scaling->order == NULL || p->scaling->end == NULL))
        return kvb_fail(err, KVB_E_USAGE, where, "%u lists of channels that are not there", p->scaling->lists);
    if (kvb_scaling_problem(p->scaling, head_dim, p->centroids, problem, sizeof problem))
        return kvb_fail(err, KVB_E_USAGE, where, "%s", problem);
    if (p->quality != NULL || p->fine != NULL)
        return kvb_fail(err, KVB_E_USAGE, where, "a scalar quantiser with a quality record or a fine codebook");
    for (uint32_t i = 0; p->scaling->form == KVB_SCALE_FIXED && i < 2 * head_dim; i++)
        if (p->scaling->fixed == NULL || (p->scaling->fixed[i] & 0x7c00) == 0x7c00 || (i >= head_dim && (p->scaling->fixed[i] - 1u) >= 0x7bffu))
            return kvb_fail(err, KVB_E_USAGE, where, "fixed scales that are not there, or channel %u has no finite offset or no positive scale",
                            i % head_dim);
    kvb_status status = KVB_OK;
    if (p->table != NULL)
        status = check_floats(p->table, p->centroids, 65504, where, "level", err);
    return status == KVB_OK ? check_space(p, head_dim, where, err) : status;
}

static kvb_status check_part(const kvb_book_part *p, uint32_t head_dim, const char *where, kvb_error *err)
{
    char problem[200];
    if (p->scaling != NULL)
        return check_scaled_part(p, head_dim, where, err);
    if (p->table == NULL)
        return kvb_fail(err, KVB_E_USAGE, where, "there is no codebook, expected one for every head of a coded layer");
    if (kvb_shape_problem(head_dim, p->channels, kvb_part_stages(p), p->centroids, problem, sizeof problem))
        return kvb_fail(err, KVB_E_USAGE, where, "%s", problem);
    size_t values = (size_t)head_dim * kvb_part_stages(p) * p->centroids;
    kvb_status status = check_floats(p->table, values, 65504, where, "centroid", err);
    return status == KVB_OK ? check_space(p, head_dim, where, err) : status;
}

static kvb_status check_fine(const kvb_book_part *p, uint32_t head_dim, bool expected, const char *where,
                             kvb_error *err)
{
    if ((p->fine != NULL) != expected)
        return kvb_fail(err, KVB_E_USAGE, where, "%s a fine codebook, unlike the first head: all have one or none",
                        p->fine != NULL ? "has" : "lacks");
    if (!expected)
        return KVB_OK;
    const kvb_book_part *f = p->fine;
    if (f->mean != NULL || f->forward != NULL || f->inverse != NULL || f->quality != NULL || f->fine != NULL)
        return kvb_fail(err, KVB_E_USAGE, where, "the fine codebook has more than a shape and a table: it shares the "
                        "mean and transform of the other");
    char place[100];
    snprintf(place, sizeof place, "%s, fine", where);
    return check_part(f, head_dim, place, err);
}

bool kvb_spec_has_fine(const kvb_book_spec *spec)
{
    for (uint32_t i = 0; i < spec->layers; i++)
        if (spec->layer[i].kind != KVB_LAYER_UNSUPPORTED)
            return kvb_spec_part(spec, i, 0, KVB_KEY)->fine != NULL;
    return false;
}

static kvb_status check_layer(const kvb_book_spec *spec, uint32_t i, kvb_error *err)
{
    const kvb_layer *l = &spec->layer[i];
    char where[80], problem[200];
    snprintf(where, sizeof where, "layer %u", i);
    if (kvb_layer_problem(l, problem, sizeof problem))
        return kvb_fail(err, KVB_E_USAGE, where, "%s", problem);
    if (l->rope_factors != NULL && l->rope_style == KVB_ROPE_NONE)
        return kvb_fail(err, KVB_E_USAGE, where, "RoPE frequency factors in a layer without RoPE");
    if (l->kind == KVB_LAYER_UNSUPPORTED)
        return KVB_OK;
    if (l->kv_heads > spec->part_heads)
        return kvb_fail(err, KVB_E_USAGE, where, "%u KV heads, the parts have room for %u", l->kv_heads,
                        spec->part_heads);
    kvb_status status = KVB_OK;
    for (uint32_t n = 0; status == KVB_OK && n < 2 * l->kv_heads; n++) {
        snprintf(where, sizeof where, "layer %u, head %u, %s", i, n / 2, n % 2 == KVB_KEY ? "key" : "value");
        const kvb_book_part *p = kvb_spec_part(spec, i, n / 2, n % 2);
        status = check_part(p, l->head_dim, where, err);
        if (status == KVB_OK)
            status = check_fine(p, l->head_dim, kvb_spec_has_fine(spec), where, err);
    }
    return status;
}

const kvb_book_part *kvb_spec_part(const kvb_book_spec *spec, uint32_t layer, uint32_t head, uint32_t kind)
{
    return &spec->part[((size_t)layer * spec->part_heads + head) * 2 + kind];
}

kvb_status kvb_spec_check(const kvb_book_spec *spec, kvb_error *err)
{
    char problem[200];
    if (spec->layers < 1 || spec->layers > KVB_MAX_LAYERS)
        return kvb_fail(err, KVB_E_USAGE, "book", "%u layers, expected 1..%d", spec->layers, KVB_MAX_LAYERS);
    if (kvb_policy_problem(&spec->policy, problem, sizeof problem))
        return kvb_fail(err, KVB_E_USAGE, "policy", "%s", problem);
    if (spec->meta_json == NULL)
        return kvb_fail(err, KVB_E_USAGE, "META", "is missing, expected a JSON object");
    kvb_status status = kvb_meta_check(spec->meta_json, strlen(spec->meta_json), "META", err);
    if (status == KVB_E_FORMAT) {
        if (err != NULL)
            err->code = KVB_E_USAGE;
        return KVB_E_USAGE;
    }
    for (uint32_t i = 0; status == KVB_OK && i < spec->layers; i++)
        status = check_layer(spec, i, err);
    if (status == KVB_OK && spec->policy.exact == KVB_EXACT_FINE && !kvb_spec_has_fine(spec))
        return kvb_fail(err, KVB_E_USAGE, "policy", "keeps tokens as fine codes, but there are no fine codebooks");
    return status;
}

kvb_status kvb_book_part_copy(const kvb_codebook *from, kvb_book_part *part, kvb_error *err)
{
    const bool scaled = from->scaling != NULL;
    const size_t floats = scaled ? from->centroids : (size_t)from->groups * from->stages * from->stage_centroids * from->channels;
    float *table = NULL;
    if (from->table != NULL) {
        table = kvb_alloc_array(floats, sizeof *table);
        if (table == NULL)
            return kvb_fail_memory(err, "codebooks");
        kvb_half_to_floats(table, from->table, floats);
    }
    part->channels = from->channels;
    part->centroids = from->stage_centroids;
    part->stages = from->stages;
    part->scaling = from->scaling;
    part->table = table;
    return KVB_OK;
}
