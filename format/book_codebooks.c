/* The sections of layers and heads: ROPE, CODE, FINE (and SCAL, GRPS and POOL, book_scaling.c), MEAN, XFRM, qual. Tables are used in place: sections are stored raw at
 * multiples of 256 bytes, and the machine is little-endian (kvb_book_parse made sure). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/cursor.h"
#include "format/base/fail.h"
#include "format/base/half.h"
#include "format/base/rng.h"
#include "format/book_reader.h"

/* The identity check of a transform: so many vectors of +-1, and how far off each coordinate may come back. */
enum { PROBES = 8 };
static const double probe_tolerance = 1e-2;

/* What an entry of a head has to say, apart from its shape. */
static kvb_entry head_entry(const kvb_entry *e, uint32_t dtype)
{
    return (kvb_entry){.dtype = (uint16_t)dtype, .kind = e->kind, .layer = e->layer, .head = e->head};
}

/* The codebook a section belongs to. */
kvb_status kvb_reader_slot(const kvb_reader *r, const kvb_entry *e, uint32_t *slot)
{
    const kvb_book *book = r->book;
    if (e->layer >= book->layers)
        return kvb_section_fail(r, e, "layer %u, the geometry has %u", e->layer, book->layers);
    const kvb_layer *l = &book->layer[e->layer];
    if (book->first[e->layer] == KVB_NO_CODEBOOKS)
        return kvb_section_fail(r, e, "belongs to layer %u, which is marked unsupported", e->layer);
    if (e->head >= l->kv_heads)
        return kvb_section_fail(r, e, "head %u, the layer has %u KV heads", e->head, l->kv_heads);
    if (e->kind > KVB_VALUE)
        return kvb_section_fail(r, e, "kind %u, expected 0 (key) or 1 (value)", e->kind);
    *slot = book->first[e->layer] + 2 * e->head + e->kind;
    return KVB_OK;
}

static kvb_status check_finite(const kvb_reader *r, const kvb_entry *e, const float *values, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (!isfinite(values[i]))
            return kvb_section_fail(r, e, "value %zu is %g, expected a finite number", i, (double)values[i]);
    return KVB_OK;
}

static kvb_status read_rope(const kvb_reader *r, const kvb_entry *e)
{
    if (e->layer >= r->book->layers)
        return kvb_section_fail(r, e, "layer %u, the geometry has %u", e->layer, r->book->layers);
    kvb_layer *l = &r->book->layer[e->layer];
    if (l->rope_factors != NULL)
        return kvb_section_fail(r, e, "a second one for this layer");
    if (l->rope_style == KVB_ROPE_NONE)
        return kvb_section_fail(r, e, "the layer has no RoPE");
    kvb_entry want = {.dtype = KVB_ELEMENT_F32, .kind = KVB_SHARED, .layer = e->layer, .head = KVB_SHARED, .dims = 1,
                      .shape = {l->rope_dims / 2}};
    kvb_status status = kvb_section_expect(r, e, &want, false);
    if (status != KVB_OK)
        return status;
    l->rope_factors = (const float *)(const void *)kvb_section_bytes(r, e);
    for (uint32_t i = 0; i < l->rope_dims / 2; i++)
        if (!isnormal(l->rope_factors[i]) || l->rope_factors[i] < 0)
            return kvb_section_fail(r, e, "frequency factor %u is %g, expected a positive number", i,
                                    (double)l->rope_factors[i]);
    return KVB_OK;
}

/* Equal as numbers: the two zeros are one value. */
static bool same_half(uint16_t a, uint16_t b)
{
    return a == b || ((a | b) & 0x7FFF) == 0;
}

static bool all_centroids_equal(const uint16_t *table, uint32_t centroids, uint32_t channels)
{
    for (size_t i = channels; i < (size_t)centroids * channels; i++)
        if (!same_half(table[i], table[i % channels]))
            return false;
    return true;
}

/* "group 3", or of an additive codebook "group 3, stage 1": `block` counts stages over all groups. */
static const char *block_name(const kvb_codebook *c, size_t block, char text[48])
{
    if (c->stages == 1)
        snprintf(text, 48, "group %zu", block);
    else
        snprintf(text, 48, "group %zu, stage %zu", block / c->stages, block % c->stages);
    return text;
}

/* A stage whose rows are all equal would waste its bits as surely as such a group. */
static kvb_status check_centroids(const kvb_reader *r, const kvb_entry *e, const kvb_codebook *c)
{
    size_t block = (size_t)c->stage_centroids * c->channels, blocks = (size_t)c->groups * c->stages;
    char name[48];
    const size_t bad = kvb_half_first_bad(c->table, block * blocks);
    if (bad < block * blocks)
        return kvb_section_fail(r, e, "%s, centroid %zu, channel %zu is not a finite number", block_name(c, bad / block, name),
                                bad % block / c->channels, bad % c->channels);
    for (size_t b = 0; b < blocks; b++)
        if (all_centroids_equal(c->table + b * block, c->stage_centroids, c->channels))
            return kvb_section_fail(r, e, "%s: all %u centroids are equal; the calibration that wrote it saw no "
                                    "variation", block_name(c, b, name), c->stage_centroids);
    return KVB_OK;
}

static uint32_t log2_of(uint32_t power)
{
    return (uint32_t)__builtin_ctz(power);
}

/* What the entry of a CODE or FINE section, which follow the same rules, must say once its d, K and stages are known to be
 * good. */
static kvb_entry code_entry(const kvb_entry *e, uint32_t head_dim, uint32_t stages)
{
    kvb_entry want = head_entry(e, KVB_ELEMENT_F16);
    want.channels = e->channels;
    want.centroids = e->centroids;
    want.groups = head_dim / e->channels;
    want.dims = stages > 1 ? 4 : 3;
    uint32_t at = 0;
    want.shape[at++] = want.groups;
    if (stages > 1)
        want.shape[at++] = stages;
    want.shape[at++] = e->centroids;
    want.shape[at] = e->channels;
    return want;
}

static kvb_status read_centroids(const kvb_reader *r, const kvb_entry *e)
{
    uint32_t slot = 0;
    char problem[200];
    kvb_status status = kvb_reader_slot(r, e, &slot);
    if (status != KVB_OK)
        return status;
    bool fine = strcmp(e->type, "FINE") == 0;
    kvb_codebook *c = fine ? &r->book->fine[slot] : &r->book->codebook[slot];
    uint32_t head_dim = r->book->layer[e->layer].head_dim, stages = e->dims == 4 ? e->shape[1] : 1;
    if (c->channels != 0)
        return kvb_section_fail(r, e, "a second one for this head");
    if (kvb_shape_problem(head_dim, e->channels, stages, e->centroids, problem, sizeof problem))
        return kvb_section_fail(r, e, "%s", problem);
    if (e->dims == 4 && stages == 1)
        return kvb_section_fail(r, e, "1 stage in a shape of 4 dimensions: a plain codebook has 3");
    kvb_entry want = code_entry(e, head_dim, stages);
    status = kvb_section_expect(r, e, &want, false);
    if (status != KVB_OK)
        return status;
    c->channels = e->channels;
    c->stages = stages;
    c->stage_centroids = e->centroids;
    c->groups = want.groups;
    c->code_bits = stages * log2_of(e->centroids);
    c->centroids = 1u << c->code_bits;
    c->table = (const uint16_t *)(const void *)kvb_section_bytes(r, e);
    return r->kind->lazy ? KVB_OK : check_centroids(r, e, c);
}

static kvb_status read_mean(const kvb_reader *r, const kvb_entry *e)
{
    uint32_t slot = 0;
    kvb_status status = kvb_reader_slot(r, e, &slot);
    if (status != KVB_OK)
        return status;
    kvb_codebook *c = &r->book->codebook[slot];
    if (c->mean != NULL)
        return kvb_section_fail(r, e, "a second one for this head");
    kvb_entry want = head_entry(e, KVB_ELEMENT_F32);
    want.dims = 1;
    want.shape[0] = r->book->layer[e->layer].head_dim;
    status = kvb_section_expect(r, e, &want, false);
    if (status != KVB_OK)
        return status;
    c->mean = (const float *)(const void *)kvb_section_bytes(r, e);
    return r->kind->lazy ? KVB_OK : check_finite(r, e, c->mean, want.shape[0]);
}

/* y = matrix * x for all probes at once, which are next to each other: x and y are [n][PROBES]. */
static void multiply(const float *matrix, uint32_t n, const double *x, double *y)
{
    for (uint32_t i = 0; i < n; i++) {
        double sum[PROBES] = {0};
        for (uint32_t j = 0; j < n; j++)
            for (size_t p = 0; p < PROBES; p++)
                sum[p] += (double)matrix[(size_t)i * n + j] * x[j * PROBES + p];
        memcpy(y + i * PROBES, sum, sizeof sum);
    }
}

/* Freivalds' check: inverse * (forward * x) must give x back for random x. A product of the matrices would take D times
 * as long, and a hostile file could make opening it take hours. */
static kvb_status check_inverse(const kvb_reader *r, const kvb_entry *e, const kvb_codebook *c, uint32_t n)
{
    const size_t size = (size_t)n * PROBES;
    kvb_status status = KVB_OK;
    double *x = kvb_alloc_array(3 * size, sizeof *x);
    if (x == NULL)
        return kvb_fail_memory(r->err, r->name);
    double *y = x + size, *back = y + size;
    for (size_t i = 0; i < size; i++)
        x[i] = kvb_rng_u64(i % PROBES, i / PROBES) >> 63 ? 1 : -1;
    multiply(c->forward, n, x, y);
    multiply(c->inverse, n, y, back);
    for (size_t i = 0; status == KVB_OK && i < size; i++)
        if (!(fabs(back[i] - x[i]) <= probe_tolerance))
            status = kvb_section_fail(r, e, "the transform and its inverse do not undo each other: channel %zu comes back as %g instead "
                                      "of %g", i / PROBES, back[i], x[i]);
    free(x);
    return status;
}

static kvb_status read_transform(const kvb_reader *r, const kvb_entry *e)
{
    uint32_t slot = 0;
    kvb_status status = kvb_reader_slot(r, e, &slot);
    if (status != KVB_OK)
        return status;
    kvb_codebook *c = &r->book->codebook[slot];
    if (c->forward != NULL)
        return kvb_section_fail(r, e, "a second one for this head");
    uint32_t n = r->book->layer[e->layer].head_dim;
    kvb_entry want = head_entry(e, KVB_ELEMENT_F32);
    want.dims = 3;
    want.shape[0] = 2;
    want.shape[1] = want.shape[2] = n;
    status = kvb_section_expect(r, e, &want, false);
    if (status != KVB_OK)
        return status;
    size_t square = (size_t)n * n;
    c->forward = (const float *)(const void *)kvb_section_bytes(r, e);
    c->inverse = c->forward + square;
    if (r->kind->lazy)
        return KVB_OK;
    status = check_finite(r, e, c->forward, 2 * square);
    return status == KVB_OK ? check_inverse(r, e, c, n) : status;
}

/* NaN stands for unknown; errors, shares and bits are never negative or infinite. */
static bool quality_is_good(const kvb_quality *q)
{
    const float values[] = {q->train_error, q->heldout_error, q->usage, q->entropy};
    for (size_t i = 0; i < KVB_QUALITY_VALUES; i++)
        if (isinf(values[i]) || values[i] < 0)
            return false;
    return true;
}

/* Records lie in the file as they do in memory (book_read.c made sure of the byte order). */
_Static_assert(sizeof(kvb_quality) == KVB_QUALITY_VALUES * sizeof(float), "quality records are used in place");

static kvb_status check_quality(const kvb_reader *r, const kvb_entry *e, const kvb_quality *quality)
{
    for (uint32_t s = 0; s < e->shape[0]; s++)
        if (!quality_is_good(&quality[s]))
            return kvb_section_fail(r, e, "group %u has an infinite or negative figure", s);
    return KVB_OK;
}

static kvb_status inflate_quality(const kvb_reader *r, const kvb_entry *e, uint32_t slot)
{
    kvb_quality *own = r->book->own_quality[slot] = kvb_alloc_array((size_t)e->raw_size, 1);
    if (own == NULL)
        return kvb_fail_memory(r->err, r->name);
    r->book->quality[slot] = own;
    kvb_status status = kvb_section_copy(r, e, (uint8_t *)own);
    return status == KVB_OK ? check_quality(r, e, own) : status;
}

static kvb_status read_quality(const kvb_reader *r, const kvb_entry *e)
{
    uint32_t slot = 0;
    kvb_status status = kvb_reader_slot(r, e, &slot);
    if (status != KVB_OK)
        return status;
    if (r->book->quality[slot] != NULL)
        return kvb_section_fail(r, e, "a second one for this head");
    if (r->book->codebook[slot].scaling != NULL)
        return kvb_section_fail(r, e, "the head has a SCAL section, which nothing was trained for");
    kvb_entry want = head_entry(e, KVB_ELEMENT_F32);
    want.dims = 2;
    want.shape[0] = r->book->codebook[slot].groups;
    want.shape[1] = KVB_QUALITY_VALUES;
    status = kvb_section_expect(r, e, &want, true);
    if (status != KVB_OK)
        return status;
    if (e->codec != KVB_CODEC_RAW)
        return inflate_quality(r, e, slot);
    r->book->quality[slot] = (const kvb_quality *)(const void *)kvb_section_bytes(r, e);
    return r->kind->lazy ? KVB_OK : check_quality(r, e, r->book->quality[slot]);
}

static bool has_section(const kvb_reader *r, const char *type)
{
    for (uint32_t i = 0; i < r->header.sections; i++)
        if (strcmp(r->entry[i].type, type) == 0)
            return true;
    return false;
}

/* Room for the fine codebooks and the scalings of a file that has any. */
static kvb_status make_optional(const kvb_reader *r)
{
    kvb_book *book = r->book;
    const bool fine = has_section(r, "FINE"), scaled = has_section(r, "SCAL");
    if (fine)
        book->fine = kvb_alloc_zeroed(book->codebooks, sizeof *book->fine);
    if (scaled)
        book->scaling = kvb_alloc_zeroed(book->codebooks, sizeof *book->scaling);
    if ((fine && book->fine == NULL) || (scaled && book->scaling == NULL))
        return kvb_fail_memory(r->err, r->name);
    return KVB_OK;
}

/* Fine codebooks code the y of their coarse ones. */
static void share_transforms(const kvb_book *book)
{
    for (uint32_t i = 0; book->fine != NULL && i < book->codebooks; i++) {
        book->fine[i].mean = book->codebook[i].mean;
        book->fine[i].forward = book->codebook[i].forward;
        book->fine[i].inverse = book->codebook[i].inverse;
    }
}

static kvb_status check_complete(const kvb_reader *r, const char *type, const kvb_codebook *codebook)
{
    const kvb_book *book = r->book;
    for (uint32_t l = 0; l < book->layers; l++) {
        if (book->first[l] == KVB_NO_CODEBOOKS)
            continue;
        for (uint32_t i = 0; i < 2 * book->layer[l].kv_heads; i++)
            if (codebook[book->first[l] + i].channels == 0)
                return kvb_reader_fail(r, "section table", "there is no %s section for layer %u, head %u, %s", type, l,
                                       i / 2, i % 2 == KVB_KEY ? "key" : "value");
    }
    return KVB_OK;
}

kvb_status kvb_reader_codebooks(kvb_reader *r)
{
    /* In this order: quality is checked against the shape of the codebook. */
    static const struct {
        const char *type;
        kvb_status (*read)(const kvb_reader *r, const kvb_entry *e);
    } steps[] = {{"ROPE", read_rope}, {"CODE", read_centroids}, {"SCAL", kvb_reader_scaling}, {"GRPS", kvb_reader_groups},
                 {"POOL", kvb_reader_pool},
                 {"FINE", read_centroids}, {"MEAN", read_mean}, {"XFRM", read_transform}};
    kvb_status status = make_optional(r);
    if (status != KVB_OK)
        return status;
    for (size_t s = 0; s < sizeof steps / sizeof *steps; s++)
        for (uint32_t i = 0; i < r->header.sections; i++) {
            status = strcmp(r->entry[i].type, steps[s].type) == 0 ? steps[s].read(r, &r->entry[i]) : KVB_OK;
            if (status != KVB_OK)
                return status;
        }
    status = check_complete(r, r->book->scaling != NULL ? "CODE or SCAL" : "CODE", r->book->codebook);
    if (status == KVB_OK && r->book->fine != NULL)
        status = check_complete(r, "FINE", r->book->fine);
    if (status == KVB_OK && r->book->policy.exact == KVB_EXACT_FINE && r->book->fine == NULL)
        status = kvb_reader_fail(r, "POLC", "exact form 1 (fine codes), but the book has no FINE sections");
    if (status == KVB_OK)
        status = kvb_reader_check_scaled(r);
    share_transforms(r->book);
    for (uint32_t i = 0; status == KVB_OK && i < r->header.sections; i++)
        if (strcmp(r->entry[i].type, "qual") == 0)
            status = read_quality(r, &r->entry[i]);
    return status;
}
