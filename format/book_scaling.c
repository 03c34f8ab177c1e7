/* SCAL sections: scalar quantisers whose scales are found while coding, in place of codebooks; and GRPS and POOL
 * sections, which say more of them. */
#include <math.h>
#include <string.h>

#include "format/base/cursor.h"
#include "format/base/half.h"
#include "format/book_reader.h"

/* What a section's head says; false where it is too short or its reserved bytes are not zero. */
static bool parse_head(kvb_cursor *c, kvb_scaling *s, uint32_t *bits, uint32_t *levels)
{
    *bits = kvb_cursor_u32(c);
    s->axis = (kvb_scale_axis)kvb_cursor_u32(c);
    s->form = (kvb_scale_form)kvb_cursor_u32(c);
    s->group = kvb_cursor_u32(c);
    s->clip = kvb_cursor_f32(c);
    *levels = kvb_cursor_u32(c);
    s->outliers = kvb_cursor_u32(c);
    return kvb_cursor_u32(c) == 0 && !c->failed;
}

static kvb_status check_levels(const kvb_reader *r, const kvb_entry *e, const uint16_t *level, uint32_t count)
{
    for (uint32_t k = 0; k < count; k++) {
        const float now = kvb_half_to_float(level[k]), before = k > 0 ? kvb_half_to_float(level[k - 1]) : -INFINITY;
        if (!isfinite(now) || !(now > before))
            return kvb_section_fail(r, e, "level %u is %g, expected finite numbers in ascending order", k, (double)now);
    }
    return KVB_OK;
}

/* Offsets of the channels, then scales. */
static kvb_status check_fixed(const kvb_reader *r, const kvb_entry *e, const uint16_t *fixed, uint32_t head_dim)
{
    for (uint32_t i = 0; i < 2 * head_dim; i++) {
        const float x = kvb_half_to_float(fixed[i]);
        if (!isfinite(x) || (i >= head_dim && !(x > 0.0f)))
            return kvb_section_fail(r, e, "the %s of channel %u is %g, expected a %s number", i < head_dim ? "offset" : "scale",
                                    i % head_dim, (double)x, i < head_dim ? "finite" : "positive");
    }
    return KVB_OK;
}

static kvb_status expect_entry(const kvb_reader *r, const kvb_entry *e)
{
    if (e->raw_size > KVB_SCALING_HEAD + (2u << KVB_MAX_SCALED_BITS) + 8u * KVB_MAX_HEAD_DIM)
        return kvb_section_fail(r, e, "%llu bytes are too many", (unsigned long long)e->raw_size);
    const kvb_entry want = {.dtype = KVB_ELEMENT_BYTE, .kind = e->kind, .layer = e->layer, .head = e->head, .dims = 1,
                            .shape = {(uint32_t)e->raw_size}};
    return kvb_section_expect(r, e, &want, false);
}

/* The head that a section of bytes belongs to. */
static kvb_status find_slot(const kvb_reader *r, const kvb_entry *e, uint32_t *slot)
{
    kvb_status status = kvb_reader_slot(r, e, slot);
    return status == KVB_OK ? expect_entry(r, e) : status;
}

static kvb_status check_rules(const kvb_reader *r, const kvb_entry *e, const kvb_scaling *s, uint32_t levels)
{
    char problem[200];
    if (kvb_scaling_problem(s, r->book->layer[e->layer].head_dim, levels, problem, sizeof problem))
        return kvb_section_fail(r, e, "%s", problem);
    return KVB_OK;
}

kvb_status kvb_reader_scaling(const kvb_reader *r, const kvb_entry *e)
{
    uint32_t slot, bits, levels;
    kvb_status status = find_slot(r, e, &slot);
    if (status != KVB_OK)
        return status;
    kvb_codebook *c = &r->book->codebook[slot];
    kvb_scaling *s = &r->book->scaling[slot];
    const uint32_t head_dim = r->book->layer[e->layer].head_dim;
    if (c->channels != 0)
        return kvb_section_fail(r, e, "the head has a CODE or SCAL section already");
    const uint8_t *bytes = kvb_section_bytes(r, e);
    kvb_cursor cursor = kvb_cursor_over(bytes, (size_t)e->raw_size);
    if (!parse_head(&cursor, s, &bits, &levels))
        return kvb_section_fail(r, e, "shorter than %d bytes, or its reserved bytes are not zero", KVB_SCALING_HEAD);
    status = check_rules(r, e, s, bits < 32 ? 1u << bits : 0);
    if (status != KVB_OK)
        return status;
    const uint32_t fixed = s->form == KVB_SCALE_FIXED ? 2 * head_dim : 0;
    if ((levels != 0 && levels != 1u << bits) || e->raw_size != KVB_SCALING_HEAD + 2 * ((uint64_t)levels + fixed))
        return kvb_section_fail(r, e, "%u levels in %llu bytes, expected none or %u, of 2 bytes each after %d, and then %u bytes of "
                                "fixed offsets and scales", levels, (unsigned long long)e->raw_size, 1u << bits, KVB_SCALING_HEAD,
                                2 * fixed);
    c->channels = c->stages = 1;
    c->centroids = c->stage_centroids = 1u << bits;
    c->groups = head_dim;
    c->code_bits = bits;
    c->table = levels != 0 ? (const uint16_t *)(const void *)(bytes + KVB_SCALING_HEAD) : NULL;
    s->fixed = fixed > 0 ? (const uint16_t *)(const void *)(bytes + KVB_SCALING_HEAD) + levels : NULL;
    c->scaling = s;
    status = check_levels(r, e, c->table, levels);
    return status == KVB_OK && fixed > 0 ? check_fixed(r, e, s->fixed, head_dim) : status;
}

/* What a GRPS section's head counts, as bytes that follow it. */
static uint64_t groups_bytes(const kvb_scaling *s, uint32_t clips, uint32_t head_dim)
{
    return (uint64_t)clips * sizeof(float) + (s->lists > 0 ? ((uint64_t)head_dim + s->lists) * sizeof(uint16_t) : 0);
}

kvb_status kvb_reader_groups(const kvb_reader *r, const kvb_entry *e)
{
    uint32_t slot;
    kvb_status status = find_slot(r, e, &slot);
    if (status != KVB_OK)
        return status;
    const kvb_codebook *c = &r->book->codebook[slot];
    const uint32_t head_dim = r->book->layer[e->layer].head_dim;
    if (c->scaling == NULL)
        return kvb_section_fail(r, e, "the head has no SCAL section, which it belongs to");
    kvb_scaling *s = &r->book->scaling[slot];
    const uint8_t *bytes = kvb_section_bytes(r, e);
    kvb_cursor cursor = kvb_cursor_over(bytes, (size_t)e->raw_size);
    if (s->store != KVB_STORE_HALF || s->lists > 0 || s->clips != NULL)
        return kvb_section_fail(r, e, "a second one for this head");
    s->store = (kvb_scale_store)kvb_cursor_u32(&cursor);
    s->lists = kvb_cursor_u32(&cursor);
    const uint32_t clips = kvb_cursor_u32(&cursor), reserved = kvb_cursor_u32(&cursor);
    if (cursor.failed || reserved != 0)
        return kvb_section_fail(r, e, "shorter than %d bytes, or its reserved bytes are not zero", KVB_GROUPS_HEAD);
    if (s->lists > head_dim || (clips != 0 && clips != kvb_scaling_groups(s, head_dim)) ||
        e->raw_size != KVB_GROUPS_HEAD + groups_bytes(s, clips, head_dim))
        return kvb_section_fail(r, e, "%u lists and %u clips in %llu bytes, expected up to %u lists, and no clips or one for each group", s->lists,
                                clips, (unsigned long long)e->raw_size, head_dim);
    if (s->store == KVB_STORE_HALF && s->lists == 0 && clips == 0)
        return kvb_section_fail(r, e, "says nothing: expected another store, lists or clips");
    bytes += KVB_GROUPS_HEAD;
    s->clips = clips > 0 ? (const float *)(const void *)bytes : NULL;
    s->order = s->lists > 0 ? (const uint16_t *)(const void *)(bytes + clips * sizeof(float)) : NULL;
    s->end = s->lists > 0 ? s->order + head_dim : NULL;
    return check_rules(r, e, s, c->centroids);
}

kvb_status kvb_reader_pool(const kvb_reader *r, const kvb_entry *e)
{
    uint32_t slot;
    kvb_status status = find_slot(r, e, &slot);
    if (status != KVB_OK)
        return status;
    const kvb_codebook *c = &r->book->codebook[slot];
    if (e->kind != KVB_KEY || c->scaling == NULL)
        return kvb_section_fail(r, e, "expected keys with a SCAL section, which it belongs to");
    kvb_scaling *s = &r->book->scaling[slot];
    if (s->pool != 0)
        return kvb_section_fail(r, e, "a second one for this head");
    kvb_cursor cursor = kvb_cursor_over(kvb_section_bytes(r, e), (size_t)e->raw_size);
    s->pool = kvb_cursor_u32(&cursor);
    s->spill = kvb_cursor_u32(&cursor);
    const uint32_t low = kvb_cursor_u32(&cursor), high = kvb_cursor_u32(&cursor);
    if (cursor.failed || e->raw_size != KVB_POOL_BYTES || low != 0 || high != 0)
        return kvb_section_fail(r, e, "expected %d bytes, the last 8 of them 0", KVB_POOL_BYTES);
    if (s->pool == 0 && s->spill == 0)
        return kvb_section_fail(r, e, "says nothing: expected tokens of both pools");
    return check_rules(r, e, s, c->centroids);
}

kvb_status kvb_reader_check_scaled(const kvb_reader *r)
{
    const kvb_book *book = r->book;
    if (book->scaling == NULL)
        return KVB_OK;
    if (book->fine != NULL)
        return kvb_reader_fail(r, "section table", "FINE sections beside SCAL sections; a book has one or the other");
    for (uint32_t i = 0; i < book->codebooks; i++) {
        const kvb_scaling *s = book->codebook[i].scaling;
        if (s != NULL && s->axis == KVB_AXIS_CHANNEL && s->group > 1 && book->policy.anchor_fraction > 0)
            return kvb_reader_fail(r, "POLC", "anchor fraction %g, expected 0: a token cannot leave or join the %u tokens "
                                   "that share a scale", book->policy.anchor_fraction, s->group);
    }
    return KVB_OK;
}
