#include "tests/support/gguf_cases.h"

#include <stdlib.h>
#include <string.h>

#include "tests/support/gguf_build.h"
#include "tests/support/small_vocab.h"

static const uint64_t four_by_two[] = {4, 2};
static const float floats[8] = {0.0f, 1.0f, -2.0f, 3.5f, 4.0f, 5.0f, 6.0f, 7.0f};

/* Some of everything: all value types, two tensors. */
static gguf_build good_build(void)
{
    gguf_build b = {0};
    gguf_build_string(&b, "general.architecture", "test");
    gguf_build_u32(&b, "u32", 4000000000u);
    gguf_build_f32(&b, "f32", 0.5f);
    gguf_build_bool(&b, "yes", 1);
    gguf_build_key(&b, "i8", 1);
    gguf_bytes_put(&b.entries, "\xFE", 1);
    gguf_build_key(&b, "u16", 2);
    gguf_bytes_put(&b.entries, "\x01\x02", 2);
    gguf_build_key(&b, "i64", 11);
    gguf_bytes_u64(&b.entries, UINT64_MAX);
    gguf_build_key(&b, "u64", 10);
    gguf_bytes_u64(&b.entries, UINT64_MAX);
    gguf_build_key(&b, "f64", 12);
    gguf_bytes_u64(&b.entries, 0x3FF8000000000000u); /* 1.5 */
    gguf_build_array(&b, "names", 8, 3);
    gguf_bytes_string(&b.entries, "one");
    gguf_bytes_string(&b.entries, "");
    gguf_bytes_string(&b.entries, "three");
    gguf_build_array(&b, "numbers", 3, 2);
    gguf_bytes_put(&b.entries, "\x07\x00\xFF\xFF", 4); /* int16: 7, -1 */
    gguf_build_array(&b, "nothing", 8, 0);
    gguf_build_tensor(&b, "weight", 0, 2, four_by_two, floats, sizeof floats);
    gguf_build_tensor(&b, "bias", 0, 1, four_by_two, floats, 16);
    return b;
}

static uint8_t *good(size_t *size)
{
    gguf_build b = good_build();
    return gguf_build_finish(&b, size);
}

static uint8_t *version_2(size_t *size)
{
    gguf_build b = good_build();
    b.version = 2;
    return gguf_build_finish(&b, size);
}

static uint8_t *aligned_to_8(size_t *size)
{
    gguf_build b = {.alignment = 8};
    gguf_build_u32(&b, "general.alignment", 8);
    gguf_build_tensor(&b, "bias", 0, 1, four_by_two, floats, 16);
    return gguf_build_finish(&b, size);
}

/* A type that ggml has and we cannot read, and a number that is none of its types: errors where they are used only. */
static uint8_t *foreign_types(size_t *size)
{
    gguf_build b = {0};
    gguf_build_tensor(&b, "iq2_xxs", 16, 1, (uint64_t[]){256}, (uint8_t[66]){0}, 66);
    gguf_build_tensor(&b, "novel", 99, 1, four_by_two, floats, 16);
    return gguf_build_finish(&b, size);
}

/* One block of every type that we read. */
static uint8_t *all_types(size_t *size)
{
    static const struct {
        const char *name;
        uint32_t dtype, elements, bytes;
    } types[] = {
        {"F32", 0, 1, 4},      {"F16", 1, 1, 2},      {"Q4_0", 2, 32, 18},   {"Q4_1", 3, 32, 20},
        {"Q5_0", 6, 32, 22},   {"Q5_1", 7, 32, 24},   {"Q8_0", 8, 32, 34},   {"Q4_K", 12, 256, 144},
        {"Q5_K", 13, 256, 176}, {"Q6_K", 14, 256, 210}, {"BF16", 30, 1, 2},
    };
    gguf_build b = {0};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        gguf_build_tensor(&b, types[i].name, types[i].dtype, 1, (uint64_t[]){types[i].elements}, (uint8_t[256]){0},
                          types[i].bytes);
    return gguf_build_finish(&b, size);
}

static uint8_t *bpe_vocabulary(size_t *size) { return small_bpe_make("llama-bpe", "", size); }

static uint8_t *spm_vocabulary(size_t *size)
{
    small_spm o = small_spm_default();
    return small_spm_make(&o, size);
}

static uint8_t *with_bytes(size_t at, const void *bytes, size_t count, size_t *size)
{
    uint8_t *file = good(size);
    memcpy(file + at, bytes, count);
    return file;
}

static uint8_t *magic(size_t *size) { return with_bytes(0, "GGUG", 4, size); }
static uint8_t *swapped_magic(size_t *size) { return with_bytes(0, "FUGG", 4, size); }
static uint8_t *ggml_magic(size_t *size) { return with_bytes(0, "tjgg", 4, size); }
static uint8_t *version_0(size_t *size) { return with_bytes(4, "\0\0\0\0", 4, size); }
static uint8_t *version_1(size_t *size) { return with_bytes(4, "\1\0\0\0", 4, size); }
static uint8_t *version_4(size_t *size) { return with_bytes(4, "\4\0\0\0", 4, size); }
static uint8_t *swapped_version(size_t *size) { return with_bytes(4, "\0\0\0\3", 4, size); }
static uint8_t *tensors_2_63(size_t *size) { return with_bytes(8, "\0\0\0\0\0\0\0\x80", 8, size); }
static uint8_t *keys_2_32(size_t *size) { return with_bytes(16, "\xFF\xFF\xFF\xFF\0\0\0\0", 8, size); }
static uint8_t *key_too_long(size_t *size) { return with_bytes(24, "\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF", 8, size); }
static uint8_t *key_empty(size_t *size) { return with_bytes(24, "\0\0\0\0\0\0\0\0", 8, size); }
static uint8_t *key_with_nul(size_t *size) { return with_bytes(34, "", 1, size); }

static uint8_t *cut_short(size_t *size)
{
    uint8_t *file = good(size);
    *size -= 4;
    return file;
}

static uint8_t *trailing(size_t *size)
{
    gguf_build b = good_build();
    gguf_bytes_put(&b.data, (uint8_t[32]){0}, 32);
    return gguf_build_finish(&b, size);
}

static uint8_t *more_keys(size_t *size)
{
    gguf_build b = {.extra_entries = 1, .alignment = 1}; /* no padding that could pass for a key */
    gguf_build_string(&b, "general.architecture", "a long enough string to leave room for another key");
    return gguf_build_finish(&b, size);
}

static uint8_t *key_twice(size_t *size)
{
    gguf_build b = good_build();
    gguf_build_u32(&b, "u32", 1);
    return gguf_build_finish(&b, size);
}

static uint8_t *value_type_13(size_t *size)
{
    gguf_build b = {0};
    gguf_build_key(&b, "novel", 13);
    gguf_bytes_u64(&b.entries, 0);
    return gguf_build_finish(&b, size);
}

static uint8_t *bool_2(size_t *size)
{
    gguf_build b = {0};
    gguf_build_bool(&b, "maybe", 2);
    return gguf_build_finish(&b, size);
}

static uint8_t *array_of(uint32_t element, uint64_t count, size_t *size)
{
    gguf_build b = {0};
    gguf_build_array(&b, "array", element, count);
    gguf_bytes_put(&b.entries, (uint8_t[64]){0, 2}, 64);
    return gguf_build_finish(&b, size);
}

static uint8_t *nested_array(size_t *size) { return array_of(9, 1, size); }
static uint8_t *element_type_13(size_t *size) { return array_of(13, 1, size); }
static uint8_t *array_2_63(size_t *size) { return array_of(10, 1ull << 63, size); }
static uint8_t *array_wraps_to_0(size_t *size) { return array_of(10, 1ull << 61, size); }
static uint8_t *strings_2_32(size_t *size) { return array_of(8, UINT32_MAX, size); }
static uint8_t *bool_array_2(size_t *size) { return array_of(7, 64, size); }

static uint8_t *alignment_of(uint32_t value, size_t *size)
{
    gguf_build b = {0};
    gguf_build_u32(&b, "general.alignment", value);
    return gguf_build_finish(&b, size);
}

static uint8_t *alignment_0(size_t *size) { return alignment_of(0, size); }
static uint8_t *alignment_24(size_t *size) { return alignment_of(24, size); }

static uint8_t *alignment_string(size_t *size)
{
    gguf_build b = {0};
    gguf_build_string(&b, "general.alignment", "32");
    return gguf_build_finish(&b, size);
}

static uint8_t *one_tensor(uint32_t dtype, uint32_t dims, const uint64_t *shape, uint64_t offset, size_t *size)
{
    gguf_build b = {0};
    gguf_build_info(&b, "weight", dtype, dims, shape, offset);
    gguf_bytes_put(&b.data, (uint8_t[128]){0}, 128);
    return gguf_build_finish(&b, size);
}

static const uint64_t wraps[] = {1ull << 62, 4, 1, 1};          /* 2^64 elements: 0 */
static const uint64_t wraps_bytes[] = {1ull << 62, 1, 1, 1};    /* 2^64 bytes of F32: 0 */
static const uint64_t beyond_i64[] = {1ull << 63, 1, 1, 1};
static const uint64_t hollow[] = {4, 0};
static const uint64_t thirty[] = {30};
static const uint64_t thirty_two[] = {32};
static const uint64_t five_dims[] = {1, 1, 1, 1, 1};

static uint8_t *dims_0(size_t *size) { return one_tensor(0, 0, NULL, 0, size); }
static uint8_t *dims_5(size_t *size) { return one_tensor(0, 5, five_dims, 0, size); }
static uint8_t *dim_of_0(size_t *size) { return one_tensor(0, 2, hollow, 0, size); }
static uint8_t *elements_wrap(size_t *size) { return one_tensor(0, 4, wraps, 0, size); }
static uint8_t *bytes_wrap(size_t *size) { return one_tensor(0, 4, wraps_bytes, 0, size); }
static uint8_t *elements_2_63(size_t *size) { return one_tensor(24, 4, beyond_i64, 0, size); }
static uint8_t *part_block(size_t *size) { return one_tensor(2, 1, thirty, 0, size); }
static uint8_t *unaligned(size_t *size) { return one_tensor(0, 1, thirty, 4, size); }
static uint8_t *offset_outside(size_t *size) { return one_tensor(0, 1, thirty, 160, size); }
static uint8_t *end_outside(size_t *size) { return one_tensor(0, 1, thirty_two, 32, size); }
static uint8_t *offset_wraps(size_t *size) { return one_tensor(0, 1, thirty_two, UINT64_MAX - 31, size); }
static uint8_t *novel_outside(size_t *size) { return one_tensor(99, 1, thirty_two, 160, size); }

static uint8_t *two_tensors(const char *second, uint64_t offset, size_t *size)
{
    gguf_build b = {0};
    gguf_build_tensor(&b, "a", 0, 1, thirty_two, (float[32]){0}, 128);
    gguf_build_info(&b, second, 0, 1, thirty_two, offset);
    gguf_bytes_put(&b.data, (float[32]){0}, 128);
    return gguf_build_finish(&b, size);
}

static uint8_t *overlap(size_t *size) { return two_tensors("b", 96, size); }
static uint8_t *same_place(size_t *size) { return two_tensors("b", 0, size); }
static uint8_t *tensor_twice(size_t *size) { return two_tensors("a", 128, size); }

const gguf_case gguf_cases[] = {
    {"good", NULL, good},
    {"version-2", NULL, version_2},
    {"aligned-to-8", NULL, aligned_to_8},
    {"foreign-types", NULL, foreign_types},
    {"all-types", NULL, all_types},
    {"bpe-vocabulary", NULL, bpe_vocabulary},
    {"spm-vocabulary", NULL, spm_vocabulary},
    {"magic", "not a GGUF file", magic},
    {"swapped-magic", "big-endian", swapped_magic},
    {"ggml-magic", "older than GGUF", ggml_magic},
    {"version-0", "version 0 is not known", version_0},
    {"version-1", "version 1 is not supported", version_1},
    {"version-4", "version 4 is not known", version_4},
    {"swapped-version", "big-endian", swapped_version},
    {"tensors-2-63", "9223372036854775808 tensors", tensors_2_63},
    {"keys-2-32", "4294967295 metadata keys", keys_2_32},
    {"key-too-long", "18446744073709551615 bytes, but only", key_too_long},
    {"key-empty", "is empty", key_empty},
    {"key-with-nul", "NUL inside", key_with_nul},
    {"cut-short", "do not fit in the file's", cut_short},
    {"trailing", "follow the last tensor", trailing},
    {"more-keys", "the file ends", more_keys},
    {"key-twice", "\"u32\" is there twice", key_twice},
    {"value-type-13", "value type 13", value_type_13},
    {"bool-2", "a boolean is 2", bool_2},
    {"nested-array", "array of arrays", nested_array},
    {"element-type-13", "element type 13", element_type_13},
    {"array-2-63", "9223372036854775808 array elements", array_2_63},
    {"array-wraps-to-0", "2305843009213693952 array elements", array_wraps_to_0},
    {"strings-2-32", "4294967295 array elements", strings_2_32},
    {"bool-array-2", "a boolean is 2", bool_array_2},
    {"alignment-0", "power of two", alignment_0},
    {"alignment-24", "power of two", alignment_24},
    {"alignment-string", "no integer", alignment_string},
    {"dims-0", "0 dimensions", dims_0},
    {"dims-5", "5 dimensions", dims_5},
    {"dim-of-0", "dimension 1 is 0", dim_of_0},
    {"elements-wrap", "more than 2^63", elements_wrap},
    {"elements-2-63", "more than 2^63", elements_2_63},
    {"bytes-wrap", "more bytes than 2^64", bytes_wrap},
    {"part-block", "not a multiple of a Q4_0 block", part_block},
    {"unaligned", "not a multiple of the alignment", unaligned},
    {"offset-outside", "do not fit", offset_outside},
    {"end-outside", "do not fit", end_outside},
    {"offset-wraps", "do not fit", offset_wraps},
    {"novel-outside", "do not fit", novel_outside},
    {"overlap", "overlaps tensor \"a\"", overlap},
    {"same-place", "overlaps tensor", same_place},
    {"tensor-twice", "twice", tensor_twice},
};
const size_t gguf_case_count = sizeof gguf_cases / sizeof *gguf_cases;
