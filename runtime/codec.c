#include "runtime/codec.h"

#include <math.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/fail.h"
#include "format/base/half.h"

static float *transposed(const float *matrix, uint32_t n)
{
    float *t = kvb_alloc_array((size_t)n * n, sizeof *t);
    for (uint32_t i = 0; t != NULL && i < n; i++)
        for (uint32_t j = 0; j < n; j++)
            t[(size_t)j * n + i] = matrix[(size_t)i * n + j];
    return t;
}

static bool make_transforms(kvb_codec *c)
{
    const kvb_codebook *b = c->codebook;
    if (b->forward != NULL && (c->forward_t = transposed(b->forward, c->head_dim)) == NULL)
        return false;
    if (b->inverse != NULL && (c->inverse_t = transposed(b->inverse, c->head_dim)) == NULL)
        return false;
    if (b->forward != NULL || b->inverse != NULL)
        c->turned = kvb_alloc_array((size_t)KVB_CODEC_ROWS * c->head_dim, sizeof *c->turned);
    return c->turned != NULL || (b->forward == NULL && b->inverse == NULL);
}

static bool make_scratch(kvb_codec *c)
{
    size_t values = (size_t)KVB_CODEC_ROWS * c->head_dim;
    c->rows = kvb_alloc_array(values, sizeof *c->rows);
    c->halves = kvb_alloc_array(values, sizeof *c->halves);
    c->codes = kvb_alloc_array((size_t)KVB_CODEC_ROWS * c->codebook->groups, sizeof *c->codes);
    c->index = kvb_alloc_array(KVB_CODEC_ROWS, sizeof *c->index);
    return c->rows != NULL && c->halves != NULL && c->codes != NULL && c->index != NULL;
}

/* Sums of stages are added as decoding adds them, stage 0 first, so that the search measures distances to what will be read
 * back. */
void kvb_codebook_expand(const kvb_codebook *b, uint32_t group, float *table, float *rows)
{
    const uint32_t d = b->channels, km = b->stage_centroids;
    const size_t stage = (size_t)km * d;
    kvb_half_to_floats(rows, b->table + (size_t)group * b->stages * stage, b->stages * stage);
    for (uint32_t k = 0; k < b->centroids; k++) {
        float *sum = table + (size_t)k * d;
        memcpy(sum, rows + (size_t)(k % km) * d, d * sizeof *sum);
        for (uint32_t m = 1, left = k / km; m < b->stages; m++, left /= km)
            for (uint32_t i = 0; i < d; i++)
                sum[i] += rows[m * stage + (size_t)(left % km) * d + i];
    }
}

/* The search structures, one group at a time. */
static bool make_groups(kvb_codec *c)
{
    const kvb_codebook *b = c->codebook;
    float *table = kvb_alloc_array((size_t)b->centroids * b->channels, sizeof *table);
    float *rows = kvb_alloc_array((size_t)b->stages * b->stage_centroids * b->channels, sizeof *rows);
    c->group = kvb_alloc_zeroed(b->groups, sizeof(kvb_nearest *));
    bool good = table != NULL && rows != NULL && c->group != NULL;
    for (uint32_t s = 0; good && s < b->groups; s++) {
        kvb_codebook_expand(b, s, table, rows);
        c->group[s] = kvb_nearest_create(b->channels, b->centroids);
        good = c->group[s] != NULL;
        if (good)
            kvb_nearest_set(c->group[s], table);
    }
    free(table);
    free(rows);
    return good;
}

static bool make_scaled(kvb_codec *c)
{
    if (c->codebook->scaling == NULL)
        return true;
    c->scaled = malloc(sizeof *c->scaled);
    c->together = kvb_alloc_array((size_t)c->block * c->head_dim, sizeof *c->together);
    if (c->scaled == NULL || c->together == NULL)
        return false;
    kvb_scaled_init(c->scaled, c->codebook, c->head_dim);
    return true;
}

kvb_status kvb_codec_create(const kvb_codebook *codebook, uint32_t head_dim, bool encodes, kvb_codec **codec,
                            kvb_error *err)
{
    *codec = NULL;
    kvb_codec *c = calloc(1, sizeof *c);
    if (c == NULL)
        return kvb_fail_memory(err, "codec of a codebook");
    c->codebook = codebook;
    c->kernels = kvb_kernels_best();
    c->head_dim = head_dim;
    c->block = kvb_codebook_block(codebook);
    c->packed_bytes = kvb_codebook_block_bytes(codebook, head_dim);
    if (!make_transforms(c) || !make_scratch(c) || !make_scaled(c) ||
        (encodes && codebook->scaling == NULL && !make_groups(c))) {
        kvb_codec_destroy(c);
        return kvb_fail_memory(err, "codec of a codebook");
    }
    *codec = c;
    return KVB_OK;
}

void kvb_codec_destroy(kvb_codec *c)
{
    if (c == NULL)
        return;
    for (uint32_t s = 0; c->group != NULL && s < c->codebook->groups; s++)
        kvb_nearest_destroy(c->group[s]);
    free(c->group);
    free(c->scaled);
    free(c->together);
    free(c->forward_t);
    free(c->inverse_t);
    free(c->rows);
    free(c->turned);
    free(c->halves);
    free(c->codes);
    free(c->index);
    free(c);
}

/* y = forward * (x - mean) of up to KVB_CODEC_ROWS rows; returns where y is. */
static const float *transform_rows(kvb_codec *c, const float *x, size_t stride, size_t n)
{
    const uint32_t dim = c->head_dim;
    const float *mean = c->codebook->mean;
    for (size_t i = 0; i < n; i++)
        for (uint32_t j = 0; j < dim; j++)
            c->rows[i * dim + j] = x[i * stride + j] - (mean != NULL ? mean[j] : 0.0f);
    if (c->forward_t == NULL)
        return c->rows;
    c->kernels->gemm(n, dim, dim, c->rows, dim, c->forward_t, dim, c->turned, dim, false);
    return c->turned;
}

static void encode_block(kvb_codec *c, const float *x, size_t stride, size_t n, uint32_t *codes)
{
    const kvb_codebook *b = c->codebook;
    const float *y = transform_rows(c, x, stride, n);
    for (uint32_t s = 0; s < b->groups; s++) {
        kvb_nearest_find(c->group[s], y + (size_t)s * b->channels, c->head_dim, n, c->index, NULL);
        for (size_t i = 0; i < n; i++)
            codes[i * b->groups + s] = c->index[i];
    }
}

/* The rows of one stage that one token's codes name. Inlined with a constant d a copy becomes a move of a register, which
 * counts where groups are small and many. */
static inline __attribute__((always_inline)) void gather(uint16_t *to, const kvb_codebook *b, const uint32_t *codes,
                                                         uint32_t stage, uint32_t d)
{
    const uint32_t shift = b->stages > 1 ? stage * (b->code_bits / b->stages) : 0, mask = b->stage_centroids - 1;
    const size_t rows = (size_t)b->stage_centroids * d, group = b->stages * rows;
    const uint16_t *table = b->table + stage * rows;
    for (uint32_t s = 0; s < b->groups; s++, table += group, to += d)
        memcpy(to, table + (size_t)(codes[s] >> shift & mask) * d, d * sizeof *to);
}

static void gather_row(uint16_t *to, const kvb_codebook *b, const uint32_t *codes, uint32_t stage)
{
    switch (b->channels) {
    case 1: gather(to, b, codes, stage, 1); break;
    case 2: gather(to, b, codes, stage, 2); break;
    case 4: gather(to, b, codes, stage, 4); break;
    case 8: gather(to, b, codes, stage, 8); break;
    case 16: gather(to, b, codes, stage, 16); break;
    default: gather(to, b, codes, stage, b->channels);
    }
}

/* The rows of one stage that the codes name, as floats [n][D]. */
static void gather_stage(kvb_codec *c, const uint32_t *codes, size_t n, uint32_t stage, float *y)
{
    const kvb_codebook *b = c->codebook;
    for (size_t i = 0; i < n; i++)
        gather_row(c->halves + i * c->head_dim, b, codes + i * b->groups, stage);
    kvb_half_to_floats(y, c->halves, n * c->head_dim);
}

/* Where y' of up to KVB_CODEC_ROWS rows goes before restore_rows() makes x of it. */
static float *rows_to_restore(const kvb_codec *c, float *x)
{
    return c->inverse_t != NULL ? c->turned : x;
}

/* x = inverse * y' + mean */
static void restore_rows(kvb_codec *c, size_t n, float *x)
{
    const uint32_t dim = c->head_dim;
    const float *mean = c->codebook->mean;
    if (c->inverse_t != NULL)
        c->kernels->gemm(n, dim, dim, c->turned, dim, c->inverse_t, dim, x, dim, false);
    for (size_t i = 0; mean != NULL && i < n; i++)
        for (uint32_t j = 0; j < dim; j++)
            x[i * dim + j] += mean[j];
}

/* y' being the centroids that the codes name. */
static void decode_block(kvb_codec *c, const uint32_t *codes, size_t n, float *x)
{
    const kvb_codebook *b = c->codebook;
    const uint32_t dim = c->head_dim;
    float *y = rows_to_restore(c, x);
    gather_stage(c, codes, n, 0, y);
    for (uint32_t m = 1; m < b->stages; m++) {
        gather_stage(c, codes, n, m, c->rows);
        for (size_t i = 0; i < n * dim; i++)
            y[i] += c->rows[i];
    }
    restore_rows(c, n, x);
}

static size_t block_rows(size_t left)
{
    return left < KVB_CODEC_ROWS ? left : KVB_CODEC_ROWS;
}

void kvb_codec_encode(kvb_codec *c, const float *x, size_t stride, size_t n, uint32_t *codes)
{
    for (size_t i = 0, many; i < n; i += many) {
        many = block_rows(n - i);
        encode_block(c, x + i * stride, stride, many, codes + i * c->codebook->groups);
    }
}

void kvb_codec_decode(kvb_codec *c, const uint32_t *codes, size_t n, float *x)
{
    for (size_t i = 0, many; i < n; i += many) {
        many = block_rows(n - i);
        decode_block(c, codes + i * c->codebook->groups, many, x + i * c->head_dim);
    }
}

/* One block of tokens that share scales, or one token with its own. */
static void encode_scaled(kvb_codec *c, const float *x, size_t stride, uint8_t *packed)
{
    for (size_t i = 0, many; i < c->block; i += many) {
        many = block_rows(c->block - i);
        memcpy(c->together + i * c->head_dim, transform_rows(c, x + i * stride, stride, many),
               many * c->head_dim * sizeof(float));
    }
    kvb_scaled_encode(c->scaled, c->together, packed, c->codes);
}

void kvb_codec_encode_packed(kvb_codec *c, const float *x, size_t stride, size_t n, uint8_t *packed)
{
    const kvb_codebook *b = c->codebook;
    for (size_t i = 0; c->scaled != NULL && i < n; i += c->block)
        encode_scaled(c, x + i * stride, stride, packed + kvb_codec_bytes(c, i));
    for (size_t i = 0, many; c->scaled == NULL && i < n; i += many) {
        many = block_rows(n - i);
        encode_block(c, x + i * stride, stride, many, c->codes);
        for (size_t r = 0; r < many; r++)
            kvb_pack_codes(c->codes + r * b->groups, b->groups, b->code_bits, packed + (i + r) * c->packed_bytes);
    }
}

/* Up to KVB_CODEC_ROWS tokens that share scales, or have their own. */
static void decode_scaled(kvb_codec *c, const uint8_t *packed, size_t first, size_t n, float *x)
{
    float *y = rows_to_restore(c, x);
    for (size_t i = 0, many; i < n; i += many) {
        const size_t in_block = (first + i) % c->block, left = c->block - in_block;
        many = n - i < left ? n - i : left;
        kvb_scaled_decode(c->scaled, packed + (first + i) / c->block * c->packed_bytes, (uint32_t)in_block, (uint32_t)many,
                          y + i * c->head_dim, c->codes);
    }
    restore_rows(c, n, x);
}

void kvb_codec_decode_packed(kvb_codec *c, const uint8_t *packed, size_t first, size_t n, float *x)
{
    const kvb_codebook *b = c->codebook;
    for (size_t i = 0, many; i < n; i += many) {
        many = block_rows(n - i);
        if (c->scaled != NULL) {
            decode_scaled(c, packed, first + i, many, x + i * c->head_dim);
            continue;
        }
        for (size_t r = 0; r < many; r++)
            kvb_unpack_codes(packed + (first + i + r) * c->packed_bytes, b->groups, b->code_bits, c->codes + r * b->groups);
        decode_block(c, c->codes, many, x + i * c->head_dim);
    }
}

size_t kvb_first_bad_value(const float *x, size_t count)
{
    size_t i = 0;
    while (i < count && isfinite(x[i]))
        i++;
    return i;
}
