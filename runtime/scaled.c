#include "runtime/scaled.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

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

/* Half floats of a group: its scale, and its offset where the form has one; none where the book has them. */
static uint32_t halves_of(const kvb_scaling *s)
{
    return s->form == KVB_SCALE_FIXED ? 0 : s->form == KVB_SCALE_RANGE ? 2 : 1;
}

/* Groups of a block: they all have as many numbers. */
static uint32_t groups_of(const kvb_scaling *s, uint32_t head_dim)
{
    return s->axis == KVB_AXIS_CHANNEL ? head_dim : head_dim / s->group;
}

size_t kvb_scaled_head_bytes(const kvb_codebook *codebook, uint32_t head_dim)
{
    return sizeof(uint16_t) * (size_t)groups_of(codebook->scaling, head_dim) * halves_of(codebook->scaling);
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
    *s = (kvb_scaled){.codebook = codebook, .head_dim = head_dim, .levels = codebook->centroids};
    for (uint32_t k = 0; k < s->levels; k++)
        s->level[k] = codebook->table != NULL ? kvb_half_to_float(codebook->table[k])
                                              : (float)(2.0 * k / (s->levels - 1) - 1.0);
    for (uint32_t k = 0; k + 1 < s->levels; k++)
        s->bound[k] = 0.5f * (s->level[k] + s->level[k + 1]);
}

/* Numbers of a group, `stride` apart. */
typedef struct group {
    const float *at;
    uint32_t count, stride;
} group;

/* Offset and scale as they will be read back. */
typedef struct affine {
    float offset, scale;
} affine;

static float rounded(float x)
{
    return kvb_half_to_float(kvb_half_from_float(x));
}

static affine measure(const kvb_scaling *s, const group *g)
{
    float least = g->at[0], most = g->at[0];
    double square = 0.0;
    for (uint32_t i = 0; i < g->count; i++) {
        const float x = g->at[(size_t)i * g->stride];
        least = x < least ? x : least;
        most = x > most ? x : most;
        square += (double)x * (double)x;
    }
    switch (s->form) {
    case KVB_SCALE_RANGE: return (affine){rounded(0.5f * least + 0.5f * most), rounded(s->clip * (0.5f * most - 0.5f * least))};
    case KVB_SCALE_ABSMAX: return (affine){0.0f, rounded(s->clip * fmaxf(-least, most))};
    case KVB_SCALE_RMS:
    case KVB_SCALE_FIXED: break;
    }
    return (affine){0.0f, rounded(s->clip * (float)sqrt(square / g->count))};
}

/* Level of a number in units of its scale: as many as there are bounds below it. */
static uint32_t level_of(const kvb_scaled *s, float t)
{
    uint32_t low = 0, high = s->levels - 1;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (t > s->bound[middle])
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static uint32_t code_of(const kvb_scaled *s, float x, affine a)
{
    return level_of(s, a.scale > 0.0f ? (x - a.offset) / a.scale : 0.0f);
}

static void put_affine(const kvb_scaling *s, affine a, uint32_t index, uint8_t *bytes)
{
    const uint16_t halves[2] = {kvb_half_from_float(a.scale), kvb_half_from_float(a.offset)};
    const size_t size = sizeof *halves * halves_of(s);
    memcpy(bytes + index * size, halves, size);
}

static affine get_affine(const kvb_scaled *q, uint32_t index, const uint8_t *bytes)
{
    const kvb_scaling *s = q->codebook->scaling;
    uint16_t halves[2] = {0, 0};
    if (s->form == KVB_SCALE_FIXED)
        return (affine){kvb_half_to_float(s->fixed[index]), kvb_half_to_float(s->fixed[q->head_dim + index])};
    const size_t size = sizeof *halves * halves_of(s);
    memcpy(halves, bytes + index * size, size);
    return (affine){kvb_half_to_float(halves[1]), kvb_half_to_float(halves[0])};
}

static bool is_among(const uint32_t *place, uint32_t count, uint32_t at)
{
    uint32_t i = 0;
    while (i < count && place[i] != at)
        i++;
    return i < count;
}

/* Neighbouring channels of a token that are in one group. */
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

void kvb_scaled_encode(const kvb_scaled *s, const float *y, uint8_t *bytes, uint32_t *codes)
{
    const kvb_codebook *c = s->codebook;
    const kvb_scaling *how = c->scaling;
    const uint32_t dim = s->head_dim, block = kvb_codebook_block(c), groups = groups_of(how, dim), run = run_of(how);
    const size_t row = kvb_packed_bytes(dim, c->code_bits);
    uint8_t *packed = bytes + kvb_scaled_head_bytes(c, dim);
    float rest[KVB_MAX_HEAD_DIM];
    if (how->outliers > 0) {
        put_outliers(s, y, packed + block * row, codes, rest);
        y = rest;
    }
    for (uint32_t i = 0; how->form != KVB_SCALE_FIXED && i < groups; i++) {
        const group g = {y + i * run, how->group, how->axis == KVB_AXIS_CHANNEL ? dim : 1};
        put_affine(how, measure(how, &g), i, bytes);
    }
    for (uint32_t t = 0; t < block; t++) {
        for (uint32_t i = 0; i < groups; i++) {
            const affine a = get_affine(s, i, bytes);
            for (uint32_t j = i * run; j < (i + 1) * run; j++)
                codes[j] = code_of(s, y[(size_t)t * dim + j], a);
        }
        kvb_pack_codes(codes, dim, c->code_bits, packed + t * row);
    }
}

void kvb_scaled_decode(const kvb_scaled *s, const uint8_t *bytes, uint32_t first, uint32_t count, float *y, uint32_t *codes)
{
    const kvb_codebook *c = s->codebook;
    const uint32_t dim = s->head_dim, groups = groups_of(c->scaling, dim), run = run_of(c->scaling);
    const size_t row = kvb_packed_bytes(dim, c->code_bits);
    const uint8_t *packed = bytes + kvb_scaled_head_bytes(c, dim) + first * row;
    for (uint32_t t = 0; t < count; t++) {
        kvb_unpack_codes(packed + t * row, dim, c->code_bits, codes);
        for (uint32_t i = 0; i < groups; i++) {
            const affine a = get_affine(s, i, bytes);
            for (uint32_t j = i * run; j < (i + 1) * run; j++)
                y[(size_t)t * dim + j] = a.offset + a.scale * s->level[codes[j]];
        }
        if (c->scaling->outliers > 0)
            get_outliers(s, packed + row, y); /* tokens that have them are coded alone */
    }
}
