/* Encoder and decoder: any table and any rows. Codes are in range, survive packing, and decode to a centroid that none lies nearer than. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/half.h"
#include "kvbook/cache.h"
#include "tests/fuzz/fuzz.h"

enum { MOST_DIM = 64, ROWS = 3, HEADER = 4 };

/* Numbers out of the input, round and round; none that is not finite, which a book's reader refuses. */
static uint16_t half_at(const uint8_t *data, size_t size, size_t i)
{
    const uint8_t low = data[2 * i % size], high = data[(2 * i + 1) % size];
    const uint16_t half = (uint16_t)(low | high << 8);
    return (half & 0x7c00) == 0x7c00 ? (uint16_t)(half & 0x83ff) : half;
}

static double distance(const float *a, const float *b, uint32_t n)
{
    double sum = 0.0;
    for (uint32_t i = 0; i < n; i++)
        sum += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
    return sum;
}

/* Sum k of the rows of a group's stages. */
static void centroid(const kvb_codebook *c, uint32_t group, uint32_t k, float *to)
{
    const uint32_t bits = c->code_bits / c->stages;
    for (uint32_t m = 0; m < c->stages; m++)
        for (uint32_t e = 0; e < c->channels; e++) {
            const uint32_t row = k >> (m * bits) & (c->stage_centroids - 1);
            const float x = kvb_half_to_float(c->table[((size_t)(group * c->stages + m) * c->stage_centroids + row) * c->channels + e]);
            to[e] = m == 0 ? x : to[e] + x;
        }
}

static void check_row(const kvb_codebook *c, const float *x, const uint32_t *code, const float *decoded)
{
    for (uint32_t g = 0; g < c->groups; g++) {
        const float *row = x + g * c->channels;
        float best[MOST_DIM], other[MOST_DIM];
        double size = 0.0;
        if (code[g] >= c->centroids)
            abort();
        centroid(c, g, code[g], best);
        if (memcmp(best, decoded + g * c->channels, c->channels * sizeof *best) != 0)
            abort();
        const double mine = distance(row, best, c->channels);
        for (uint32_t k = 0; k < c->centroids; k++) {
            centroid(c, g, k, other);
            size = fmax(size, distance(row, other, c->channels));
        }
        for (uint32_t k = 0; k < c->centroids; k++) {
            centroid(c, g, k, other);
            if (distance(row, other, c->channels) < mine - 1e-5 * size - 1e-30)
                abort();
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < HEADER + 2)
        return 0;
    const uint32_t channels = 1u << data[0] % 4, stages = 1 + data[1] % 2, bits = 1 + data[2] % 4, groups = 1 + data[3] % (MOST_DIM / channels);
    const uint32_t rows = 1u << bits, dim = groups * channels;
    const size_t count = (size_t)dim * stages * rows;
    uint16_t *table = malloc(count * sizeof *table);
    float x[ROWS * MOST_DIM], back[ROWS * MOST_DIM];
    uint32_t code[ROWS * MOST_DIM], again[MOST_DIM];
    uint8_t packed[MOST_DIM * 2];
    kvb_error err;
    if (table == NULL)
        return 0;
    data += HEADER;
    size -= HEADER;
    for (size_t i = 0; i < count; i++)
        table[i] = half_at(data, size, i);
    for (size_t i = 0; i < ROWS * dim; i++)
        x[i] = kvb_half_to_float(half_at(data, size, count + i));
    const kvb_codebook c = {.channels = channels, .centroids = 1u << (bits * stages), .groups = groups, .code_bits = bits * stages, .table = table,
                            .stages = stages, .stage_centroids = rows};
    if (kvb_encode(&c, dim, x, dim, ROWS, code, &err) == KVB_OK) {
        if (kvb_decode(&c, dim, code, ROWS, back, &err) != KVB_OK)
            abort();
        for (uint32_t i = 0; i < ROWS; i++) {
            check_row(&c, x + i * dim, code + i * groups, back + i * dim);
            kvb_pack_codes(code + i * groups, groups, c.code_bits, packed);
            kvb_unpack_codes(packed, groups, c.code_bits, again);
            if (memcmp(again, code + i * groups, groups * sizeof *again) != 0)
                abort();
        }
    }
    free(table);
    return 0;
}
