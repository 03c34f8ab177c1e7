#include "model/tensor.h"

#include <string.h>

#include "format/base/half.h"
#include "model/dequant.h"
#include "model/dtype.h"

static const kvb_dtype_info known[] = {
    {KVB_DTYPE_F32, "F32", 1, 4, true},       {KVB_DTYPE_F16, "F16", 1, 2, true},
    {KVB_DTYPE_Q4_0, "Q4_0", 32, 18, true},   {KVB_DTYPE_Q4_1, "Q4_1", 32, 20, true},
    {KVB_DTYPE_Q5_0, "Q5_0", 32, 22, true},   {KVB_DTYPE_Q5_1, "Q5_1", 32, 24, true},
    {KVB_DTYPE_Q8_0, "Q8_0", 32, 34, true},   {9, "Q8_1", 32, 40, false},
    {10, "Q2_K", 256, 84, false},             {11, "Q3_K", 256, 110, false},
    {KVB_DTYPE_Q4_K, "Q4_K", 256, 144, true}, {KVB_DTYPE_Q5_K, "Q5_K", 256, 176, true},
    {KVB_DTYPE_Q6_K, "Q6_K", 256, 210, true}, {15, "Q8_K", 256, 292, false},
    {16, "IQ2_XXS", 256, 66, false},          {17, "IQ2_XS", 256, 74, false},
    {18, "IQ3_XXS", 256, 98, false},          {19, "IQ1_S", 256, 50, false},
    {20, "IQ4_NL", 32, 18, false},            {21, "IQ3_S", 256, 110, false},
    {22, "IQ2_S", 256, 82, false},            {23, "IQ4_XS", 256, 136, false},
    {24, "I8", 1, 1, false},                  {25, "I16", 1, 2, false},
    {26, "I32", 1, 4, false},                 {27, "I64", 1, 8, false},
    {28, "F64", 1, 8, false},                 {29, "IQ1_M", 256, 56, false},
    {KVB_DTYPE_BF16, "BF16", 1, 2, true},     {34, "TQ1_0", 256, 54, false},
    {35, "TQ2_0", 256, 66, false},            {39, "MXFP4", 32, 17, false},
    {40, "NVFP4", 64, 36, false},             {41, "Q1_0", 128, 18, false},
};

const kvb_dtype_info *kvb_dtype_find(uint32_t dtype)
{
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].dtype == dtype)
            return &known[i];
    return NULL;
}

const char *kvb_dtype_name(uint32_t dtype)
{
    const kvb_dtype_info *d = kvb_dtype_find(dtype);
    return d != NULL ? d->name : NULL;
}

int kvb_dtype_block(uint32_t dtype, uint32_t *elements, uint32_t *bytes)
{
    const kvb_dtype_info *d = kvb_dtype_find(dtype);
    if (d == NULL || !d->readable)
        return 0;
    *elements = d->elements;
    *bytes = d->bytes;
    return 1;
}

/* Files align to whole tensors only, and bytes are little-endian whatever the machine is. */
static uint32_t read_u32(const uint8_t *b)
{
    return (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

static void read_f32(const uint8_t *bytes, uint64_t count, float *out)
{
    for (uint64_t i = 0; i < count; i++) {
        uint32_t bits = read_u32(bytes + 4 * i);
        memcpy(&out[i], &bits, sizeof bits);
    }
}

static void read_f16(const uint8_t *bytes, uint64_t count, float *out)
{
    uint16_t halves[256]; /* aligned, for the vector conversion */
    for (uint64_t done = 0; done < count; done += 256) {
        size_t n = count - done < 256 ? (size_t)(count - done) : 256;
        for (size_t i = 0; i < n; i++)
            halves[i] = kvb_dequant_u16(bytes + 2 * (done + i));
        kvb_half_to_floats(out + done, halves, n);
    }
}

static void read_bf16(const uint8_t *bytes, uint64_t count, float *out)
{
    for (uint64_t i = 0; i < count; i++)
        out[i] = kvb_bfloat_to_float(kvb_dequant_u16(bytes + 2 * i));
}

static void read_q4_0(const uint8_t *block, float *out)
{
    float d = kvb_dequant_half(block);
    const uint8_t *q = block + 2;
    for (unsigned i = 0; i < 16; i++) {
        out[i] = (float)((q[i] & 15) - 8) * d;
        out[i + 16] = (float)((q[i] >> 4) - 8) * d;
    }
}

static void read_q4_1(const uint8_t *block, float *out)
{
    float d = kvb_dequant_half(block), m = kvb_dequant_half(block + 2);
    const uint8_t *q = block + 4;
    for (unsigned i = 0; i < 16; i++) {
        out[i] = (float)(q[i] & 15) * d + m;
        out[i + 16] = (float)(q[i] >> 4) * d + m;
    }
}

/* The fifth bits of 32 elements lie in one word, bit i for element i. */
static void read_q5_0(const uint8_t *block, float *out)
{
    float d = kvb_dequant_half(block);
    uint32_t high = read_u32(block + 2);
    const uint8_t *q = block + 6;
    for (unsigned i = 0; i < 16; i++) {
        out[i] = (float)((int)((q[i] & 15u) | (high >> i & 1) << 4) - 16) * d;
        out[i + 16] = (float)((int)((unsigned)q[i] >> 4 | (high >> (i + 16) & 1) << 4) - 16) * d;
    }
}

static void read_q5_1(const uint8_t *block, float *out)
{
    float d = kvb_dequant_half(block), m = kvb_dequant_half(block + 2);
    uint32_t high = read_u32(block + 4);
    const uint8_t *q = block + 8;
    for (unsigned i = 0; i < 16; i++) {
        out[i] = (float)((q[i] & 15u) | (high >> i & 1) << 4) * d + m;
        out[i + 16] = (float)((unsigned)q[i] >> 4 | (high >> (i + 16) & 1) << 4) * d + m;
    }
}

static void read_q8_0(const uint8_t *block, float *out)
{
    float d = kvb_dequant_half(block);
    for (unsigned i = 0; i < 32; i++)
        out[i] = (float)(int8_t)block[2 + i] * d;
}

typedef void (*read_block)(const uint8_t *block, float *out);

static read_block quant_reader(uint32_t dtype)
{
    switch (dtype) {
    case KVB_DTYPE_Q4_0: return read_q4_0;
    case KVB_DTYPE_Q4_1: return read_q4_1;
    case KVB_DTYPE_Q5_0: return read_q5_0;
    case KVB_DTYPE_Q5_1: return read_q5_1;
    case KVB_DTYPE_Q8_0: return read_q8_0;
    case KVB_DTYPE_Q4_K: return kvb_dequant_q4_k;
    case KVB_DTYPE_Q5_K: return kvb_dequant_q5_k;
    case KVB_DTYPE_Q6_K: return kvb_dequant_q6_k;
    default: return NULL;
    }
}

void kvb_dequantise(const kvb_tensor *t, uint64_t first, uint64_t count, float *out)
{
    const kvb_dtype_info *d = kvb_dtype_find(t->dtype);
    if (d == NULL)
        return;
    const uint8_t *block = t->bytes + first / d->elements * d->bytes;
    if (t->dtype == KVB_DTYPE_F32)
        read_f32(block, count, out);
    else if (t->dtype == KVB_DTYPE_F16)
        read_f16(block, count, out);
    else if (t->dtype == KVB_DTYPE_BF16)
        read_bf16(block, count, out);
    read_block read = quant_reader(t->dtype);
    for (uint64_t done = 0; read != NULL && done < count; done += d->elements, block += d->bytes)
        read(block, out + done);
}
