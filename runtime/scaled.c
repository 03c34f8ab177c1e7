#include "runtime/scaled.h"

#include <stdbool.h>
#include <string.h>

#include "format/base/fp8.h"
#include "format/base/half.h"
#include "format/base/outliers.h"
#include "format/kvb_layout.h"

uint32_t kvb_codebook_block(const kvb_codebook *codebook)
{
    const kvb_scaling *s = codebook->scaling;
    return s != NULL && s->axis == KVB_AXIS_CHANNEL ? s->group : 1;
}

uint32_t kvb_layer_block(const kvb_book *book, uint32_t layer)
{
    uint32_t most = 1;
    for (uint32_t i = 0; i < 2 * kvb_book_layer(book, layer)->kv_heads; i++) {
        const kvb_codebook *c = kvb_book_codebook(book, layer, i / 2, (kvb_kind)(i % 2));
        const uint32_t block = c != NULL ? kvb_codebook_block(c) : 1;
        most = block > most ? block : most;
    }
    return most;
}

/* Numbers kept of a group: its scale, and its offset where the form has one; none where the book has them. */
static uint32_t kept_of(const kvb_scaling *s)
{
    return s->form == KVB_SCALE_FIXED ? 0 : s->form == KVB_SCALE_RANGE ? 2 : 1;
}

static uint32_t bytes_of_kept(const kvb_scaling *s)
{
    return s->store == KVB_STORE_FP8 ? 1 : sizeof(uint16_t);
}

size_t kvb_scaled_head_bytes(const kvb_codebook *codebook, uint32_t head_dim)
{
    const kvb_scaling *s = codebook->scaling;
    return (size_t)kvb_scaling_groups(s, head_dim) * kept_of(s) * bytes_of_kept(s);
}

/* Of an outlier: its channel and a half float. */
static size_t outlier_bytes(uint32_t head_dim)
{
    return (head_dim > 256 ? 2 : 1) + sizeof(uint16_t);
}

size_t kvb_codebook_block_bytes(const kvb_codebook *codebook, uint32_t head_dim)
{
    const size_t rows = kvb_codebook_block(codebook) * kvb_packed_bytes(codebook->groups, codebook->code_bits);
    const kvb_scaling *s = codebook->scaling;
    return rows + (s != NULL ? kvb_scaled_head_bytes(codebook, head_dim) + s->outliers * outlier_bytes(head_dim) : 0);
}

void kvb_scaled_init(kvb_scaled *s, const kvb_codebook *codebook, uint32_t head_dim)
{
    *s = (kvb_scaled){.codebook = codebook, .head_dim = head_dim};
    kvb_levels_init(&s->levels, codebook->centroids, codebook->table);
}

static void put_affine(const kvb_scaling *s, kvb_affine a, uint32_t index, uint8_t *bytes)
{
    const float kept[2] = {a.scale, a.offset};
    bytes += (size_t)index * kept_of(s) * bytes_of_kept(s);
    for (uint32_t i = 0; i < kept_of(s); i++) {
        const uint16_t half = kvb_half_from_float(kept[i]);
        if (s->store == KVB_STORE_FP8)
            bytes[i] = kvb_fp8_from_float(kept[i]);
        else
            memcpy(bytes + i * sizeof half, &half, sizeof half);
    }
}

static kvb_affine get_affine(const kvb_scaled *q, uint32_t index, const uint8_t *bytes)
{
    const kvb_scaling *s = q->codebook->scaling;
    uint16_t halves[2] = {0, 0};
    const uint32_t kept = kept_of(s);
    if (s->form == KVB_SCALE_FIXED)
        return (kvb_affine){kvb_half_to_float(s->fixed[index]), kvb_half_to_float(s->fixed[q->head_dim + index])};
    bytes += (size_t)index * kept * bytes_of_kept(s);
    if (s->store == KVB_STORE_FP8)
        return (kvb_affine){kept > 1 ? kvb_fp8_to_float(bytes[1]) : 0.0f, kvb_fp8_to_float(bytes[0])};
    memcpy(halves, bytes, kept * sizeof *halves);
    return (kvb_affine){kvb_half_to_float(halves[1]), kvb_half_to_float(halves[0])};
}

static bool is_among(const uint32_t *place, uint32_t count, uint32_t at)
{
    uint32_t i = 0;
    while (i < count && place[i] != at)
        i++;
    return i < count;
}

/* Neighbouring channels of a token that are in one group, where groups are no lists. */
static uint32_t run_of(const kvb_scaling *s)
{
    return s->axis == KVB_AXIS_CHANNEL ? 1 : s->group;
}

/* Writes a token's outliers, and `rest` [D]: y with a number in the place of each that leaves range and largest of its group alone. */
static void put_outliers(const kvb_scaled *s, const float *y, uint8_t *bytes, uint32_t *place, float *rest)
{
    const kvb_scaling *how = s->codebook->scaling;
    const uint32_t dim = s->head_dim, run = run_of(how), index_bytes = (uint32_t)(outlier_bytes(dim) - sizeof(uint16_t));
    if (how->form == KVB_SCALE_FIXED) {
        float fixed[2][KVB_MAX_HEAD_DIM];
        kvb_half_to_floats(fixed[0], how->fixed, dim);
        kvb_half_to_floats(fixed[1], how->fixed + dim, dim);
        kvb_outliers_of_channels(y, fixed[0], fixed[1], dim, how->outliers, place);
    } else {
        kvb_outliers_of_groups(y, dim, run, how->outliers, place);
    }
    memcpy(rest, y, dim * sizeof *rest);
    for (uint32_t i = 0; i < how->outliers; i++) {
        const uint32_t c = place[i];
        const uint16_t half = kvb_half_from_float(y[c]);
        *bytes++ = (uint8_t)c;
        if (index_bytes == 2)
            *bytes++ = (uint8_t)(c >> 8);
        *bytes++ = (uint8_t)half;
        *bytes++ = (uint8_t)(half >> 8);
    }
    for (uint32_t i = 0, kept; how->form != KVB_SCALE_FIXED && i < how->outliers; i++) {
        const uint32_t first = place[i] / run * run;
        for (kept = first; is_among(place, how->outliers, kept); kept++)
            continue;
        rest[place[i]] = y[kept];
    }
}

/* Their places are below D in any cache that was coded here; others are passed over. */
static void get_outliers(const kvb_scaled *s, const uint8_t *bytes, float *y)
{
    const size_t index_bytes = outlier_bytes(s->head_dim) - sizeof(uint16_t);
    for (uint32_t i = 0; i < s->codebook->scaling->outliers; i++, bytes += index_bytes + sizeof(uint16_t)) {
        const uint32_t c = index_bytes == 2 ? bytes[0] | (uint32_t)bytes[1] << 8 : bytes[0];
        const uint8_t *half = bytes + index_bytes;
        if (c < s->head_dim)
            y[c] = kvb_half_to_float((uint16_t)(half[0] | half[1] << 8));
    }
}

/* The offsets and scales of a block, found and written. */
static void put_affines(const kvb_scaling *how, const float *y, uint32_t dim, uint8_t *bytes)
{
    const bool across = how->axis == KVB_AXIS_CHANNEL;
    for (uint32_t i = 0, first = 0; how->form != KVB_SCALE_FIXED && i < kvb_scaling_groups(how, dim); i++) {
        const uint32_t end = kvb_scaling_group_end(how, i);
        const float clip = how->clips != NULL ? how->clips[i] : how->clip;
        put_affine(how, kvb_affine_measure(how, clip, y + first, across ? how->group : end - first, across ? dim : 1), i, bytes);
        first = end;
    }
}

void kvb_scaled_encode(const kvb_scaled *s, const float *y, uint8_t *bytes, uint32_t *codes)
{
    const kvb_codebook *c = s->codebook;
    const kvb_scaling *how = c->scaling;
    const uint32_t dim = s->head_dim, block = kvb_codebook_block(c), groups = kvb_scaling_groups(how, dim);
    const size_t row = kvb_packed_bytes(dim, c->code_bits);
    uint8_t *packed = bytes + kvb_scaled_head_bytes(c, dim);
    float rest[KVB_MAX_HEAD_DIM];
    if (how->outliers > 0)
        put_outliers(s, y, packed + block * row, codes, rest);
    for (uint32_t i = 0; how->lists > 0 && i < dim; i++)
        rest[i] = y[how->order[i]];
    if (how->outliers > 0 || how->lists > 0)
        y = rest; /* of one token */
    put_affines(how, y, dim, bytes);
    for (uint32_t t = 0; t < block; t++) {
        for (uint32_t i = 0, j = 0; i < groups; i++) {
            const kvb_affine a = get_affine(s, i, bytes);
            for (; j < kvb_scaling_group_end(how, i); j++)
                codes[j] = kvb_levels_code(&s->levels, y[(size_t)t * dim + j], a);
        }
        kvb_pack_codes(codes, dim, c->code_bits, packed + t * row);
    }
}

void kvb_scaled_decode(const kvb_scaled *s, const uint8_t *bytes, uint32_t first, uint32_t count, float *y, uint32_t *codes)
{
    const kvb_codebook *c = s->codebook;
    const kvb_scaling *how = c->scaling;
    const uint32_t dim = s->head_dim, groups = kvb_scaling_groups(how, dim);
    const size_t row = kvb_packed_bytes(dim, c->code_bits);
    const uint8_t *packed = bytes + kvb_scaled_head_bytes(c, dim) + first * row;
    for (uint32_t t = 0; t < count; t++) {
        kvb_unpack_codes(packed + t * row, dim, c->code_bits, codes);
        for (uint32_t i = 0, j = 0; i < groups; i++) {
            const kvb_affine a = get_affine(s, i, bytes);
            for (; j < kvb_scaling_group_end(how, i); j++)
                y[(size_t)t * dim + (how->lists > 0 ? how->order[j] : j)] = a.offset + a.scale * s->levels.level[codes[j]];
        }
        if (how->outliers > 0)
            get_outliers(s, packed + row, y); /* tokens that have them are coded alone */
    }
}
