#include "runtime/scaled.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "format/base/half.h"

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

/* Half floats of a group: its scale, and its offset where the form has one. */
static uint32_t halves_of(const kvb_scaling *s)
{
    return s->form == KVB_SCALE_RANGE ? 2 : 1;
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

size_t kvb_codebook_block_bytes(const kvb_codebook *codebook, uint32_t head_dim)
{
    const size_t rows = kvb_codebook_block(codebook) * kvb_packed_bytes(codebook->groups, codebook->code_bits);
    return rows + (codebook->scaling != NULL ? kvb_scaled_head_bytes(codebook, head_dim) : 0);
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
    case KVB_SCALE_RMS: break;
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

static affine get_affine(const kvb_scaling *s, uint32_t index, const uint8_t *bytes)
{
    uint16_t halves[2] = {0, 0};
    const size_t size = sizeof *halves * halves_of(s);
    memcpy(halves, bytes + index * size, size);
    return (affine){kvb_half_to_float(halves[1]), kvb_half_to_float(halves[0])};
}

/* Neighbouring channels of a token that are in one group. */
static uint32_t run_of(const kvb_scaling *s)
{
    return s->axis == KVB_AXIS_CHANNEL ? 1 : s->group;
}

void kvb_scaled_encode(const kvb_scaled *s, const float *y, uint8_t *bytes, uint32_t *codes)
{
    const kvb_codebook *c = s->codebook;
    const kvb_scaling *how = c->scaling;
    const uint32_t dim = s->head_dim, block = kvb_codebook_block(c), groups = groups_of(how, dim), run = run_of(how);
    const size_t row = kvb_packed_bytes(dim, c->code_bits);
    uint8_t *packed = bytes + kvb_scaled_head_bytes(c, dim);
    for (uint32_t i = 0; i < groups; i++) {
        const group g = {y + i * run, how->group, how->axis == KVB_AXIS_CHANNEL ? dim : 1};
        put_affine(how, measure(how, &g), i, bytes);
    }
    for (uint32_t t = 0; t < block; t++) {
        for (uint32_t i = 0; i < groups; i++) {
            const affine a = get_affine(how, i, bytes);
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
            const affine a = get_affine(c->scaling, i, bytes);
            for (uint32_t j = i * run; j < (i + 1) * run; j++)
                y[(size_t)t * dim + j] = a.offset + a.scale * s->level[codes[j]];
        }
    }
}
