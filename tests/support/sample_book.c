#include "tests/support/sample_book.h"

#include <math.h>
#include <string.h>

/* Multiples of 1/32 that differ between centroids, tables and channels. */
static void fill_table(float *table, uint32_t count, uint32_t which)
{
    for (uint32_t i = 0; i < count; i++)
        table[i] = (float)((int)((i * 37 + which * 11) % 101) - 50) / 32;
}

static kvb_book_part part_of(const float *table, uint32_t channels, uint32_t centroids)
{
    return (kvb_book_part){.channels = channels, .centroids = centroids, .table = table};
}

void sample_minimal(sample_book *b)
{
    memset(b, 0, sizeof *b);
    b->layer[0] = (kvb_layer){.heads = 1, .kv_heads = 1, .head_dim = 4, .rope_style = KVB_ROPE_HALF, .rope_dims = 4,
                              .rope_base = 10000, .attention_scale = 0.5};
    for (uint32_t kind = 0; kind < 2; kind++) {
        fill_table(b->table[kind], 8, kind);
        b->part[kind] = part_of(b->table[kind], 2, 2);
    }
    b->spec = (kvb_book_spec){.layers = 1, .layer = b->layer, .part = b->part, .part_heads = 1,
                              .policy = {.anchor_fraction = 0.25, .window = 32}, .meta_json = SAMPLE_META};
}

void sample_scaled(sample_book *b)
{
    static const kvb_scaling keys = {.axis = KVB_AXIS_CHANNEL, .form = KVB_SCALE_RANGE, .group = 8, .clip = 1.0f};
    static const kvb_scaling values = {.axis = KVB_AXIS_TOKEN, .form = KVB_SCALE_RMS, .group = 4, .clip = 1.25f};
    sample_minimal(b);
    b->table[1][0] = -0.75f;
    b->table[1][1] = 0.875f;
    b->part[0] = (kvb_book_part){.centroids = 4, .scaling = &keys};
    b->part[1] = (kvb_book_part){.centroids = 2, .scaling = &values, .table = b->table[1]};
    b->spec.policy.anchor_fraction = 0;
}

void sample_outliers(sample_book *b)
{
    static const uint16_t fixed[8] = {0x0000, 0xbc00, 0x3800, 0x4000, 0x3c00, 0x3400, 0x4200, 0x0400};
    static const kvb_scaling keys = {.axis = KVB_AXIS_CHANNEL, .form = KVB_SCALE_FIXED, .group = 1, .clip = 1.0f, .outliers = 1, .fixed = fixed};
    static const kvb_scaling values = {.axis = KVB_AXIS_TOKEN, .form = KVB_SCALE_RANGE, .group = 4, .clip = 1.0f, .outliers = 3};
    sample_scaled(b);
    b->part[0] = (kvb_book_part){.centroids = 2, .scaling = &keys, .table = b->table[1]};
    b->part[1] = (kvb_book_part){.centroids = 4, .scaling = &values};
    b->spec.policy.anchor_fraction = 0.25;
}

void sample_groups(sample_book *b)
{
    static const uint16_t order[4] = {2, 0, 3, 1}, end[2] = {1, 4};
    static const float clips[2] = {0.75f, 1.125f};
    static const kvb_scaling keys = {.axis = KVB_AXIS_TOKEN, .form = KVB_SCALE_RANGE, .group = 4, .clip = 1.0f, .store = KVB_STORE_FP8,
                                     .lists = 2, .order = order, .end = end, .clips = clips};
    static const kvb_scaling values = {.axis = KVB_AXIS_CHANNEL, .form = KVB_SCALE_RANGE, .group = 8, .clip = 1.0f, .store = KVB_STORE_FP8};
    sample_scaled(b);
    b->part[0] = (kvb_book_part){.centroids = 4, .scaling = &keys};
    b->part[1] = (kvb_book_part){.centroids = 4, .scaling = &values};
}

void sample_pool(sample_book *b)
{
    static const kvb_scaling keys = {.axis = KVB_AXIS_CHANNEL, .form = KVB_SCALE_RANGE, .group = 8, .clip = 1.0f, .pool = 2, .spill = 5};
    static const kvb_scaling values = {.axis = KVB_AXIS_TOKEN, .form = KVB_SCALE_RANGE, .group = 4, .clip = 1.0f};
    sample_scaled(b);
    b->part[0] = (kvb_book_part){.centroids = 4, .scaling = &keys};
    b->part[1] = (kvb_book_part){.centroids = 4, .scaling = &values};
}

void sample_additive(sample_book *b)
{
    memset(b, 0, sizeof *b);
    b->layer[0] = (kvb_layer){.heads = 2, .kv_heads = 1, .head_dim = 8, .rope_style = KVB_ROPE_HALF, .rope_dims = 8,
                              .rope_base = 10000, .attention_scale = 0.375};
    fill_table(b->table[0], 64, 3);
    fill_table(b->table[1], 48, 5);
    for (uint32_t s = 0; s < 4; s++)
        b->quality[s] = (kvb_quality){.train_error = 0.25f, .heldout_error = 0.5f, .usage = 1, .entropy = 2.5f};
    b->part[0] = part_of(b->table[0], 4, 4);
    b->part[0].stages = 2;
    b->part[1] = part_of(b->table[1], 2, 2);
    b->part[1].stages = 3;
    b->part[1].quality = b->quality;
    b->spec = (kvb_book_spec){.layers = 1, .layer = b->layer, .part = b->part, .part_heads = 1,
                              .policy = {.anchor_fraction = 0.25, .window = 32}, .meta_json = SAMPLE_META};
}

/* Blocks [1 1/2; 0 1] and their inverses: exact in float32. */
static void fill_transform(sample_book *b)
{
    for (uint32_t i = 0; i < 8; i++) {
        b->mean[i] = (float)i / 4 - 1;
        b->forward[i * 8 + i] = b->inverse[i * 8 + i] = 1;
        if (i % 2 == 0) {
            b->forward[i * 8 + i + 1] = 0.5f;
            b->inverse[i * 8 + i + 1] = -0.5f;
        }
    }
}

static void fill_full_layers(sample_book *b)
{
    b->layer[0] = (kvb_layer){.heads = 4, .kv_heads = 2, .head_dim = 8, .rope_style = KVB_ROPE_HALF, .rope_dims = 8,
                              .rope_base = 500000, .rope_factors = b->factors, .attention_scale = 0.375};
    b->layer[1] = (kvb_layer){.heads = 2, .kv_heads = 1, .head_dim = 4, .kind = KVB_LAYER_SLIDING,
                              .sliding_window = 64, .frame = KVB_FRAME_BLOCK, .rope_block = 16,
                              .rope_style = KVB_ROPE_INTERLEAVED, .rope_dims = 2, .rope_base = 10000,
                              .attention_scale = 0.5};
    b->layer[2] = (kvb_layer){.heads = 2, .kv_heads = 2, .head_dim = 6, .kind = KVB_LAYER_UNSUPPORTED,
                              .attention_scale = 0.5};
}

void sample_fine(sample_book *b)
{
    sample_full(b);
    for (uint32_t i = 0; i < 6; i++) {
        fill_table(b->fine_table[i], 64, 7 + i);
        b->fine[i] = i < 4 ? part_of(b->fine_table[i], 2, 8) : part_of(b->fine_table[i], 1, 16);
        b->part[i].fine = &b->fine[i];
    }
    b->spec.policy.exact = KVB_EXACT_FINE;
}

void sample_full(sample_book *b)
{
    memset(b, 0, sizeof *b);
    fill_full_layers(b);
    fill_transform(b);
    for (uint32_t i = 0; i < 6; i++)
        fill_table(b->table[i], 64, i);
    b->table[1][3] = 0x1p-24f; /* denormal halves and the negative zero are ordinary values */
    b->table[1][4] = -0x1.8p-16f;
    b->table[1][5] = -0.0f;
    for (uint32_t i = 0; i < 4; i++) {
        b->factors[i] = (float)(1u << i);
        b->quality[i] = (kvb_quality){.train_error = 0.25f, .heldout_error = i % 2 ? NAN : 0.5f, .usage = 1,
                                      .entropy = 1.5f};
    }
    for (uint32_t head = 0; head < 2; head++) {
        kvb_book_part *key = &b->part[head * 2];
        *key = part_of(b->table[head * 2], 4, 4);
        key->mean = b->mean;
        key->forward = b->forward;
        key->inverse = b->inverse;
        key->quality = b->quality;
        b->part[head * 2 + 1] = part_of(b->table[head * 2 + 1], 2, 8);
    }
    b->part[4] = part_of(b->table[4], 2, 2);
    b->part[5] = part_of(b->table[5], 4, 16);
    b->spec = (kvb_book_spec){
        .layers = 3, .layer = b->layer, .part = b->part, .part_heads = 2,
        .policy = {.anchor_fraction = 0.01, .score = KVB_SCORE_EXACT_V, .window = 32, .sinks = 4},
        .meta_json = "{\"tool\":\"kvbook\",\"model\":{\"name\":\"sample \xC3\xA9\",\"layers\":3},\"note\":\"a text long "
                     "enough that compressing it pays: codebook codebook codebook codebook codebook codebook\"}"};
}
