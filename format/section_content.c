/* One section of a file: what its table entry must say, and its content. */
#include <string.h>
#include <zlib.h>

#include "format/base/checked.h"
#include "format/base/crc.h"
#include "format/base/fail.h"
#include "format/section_reader.h"

static bool shape_size(const kvb_entry *e, uint64_t *size)
{
    *size = kvb_element_size(e->dtype);
    for (uint32_t i = 0; i < e->dims; i++)
        if (!kvb_mul_u64(*size, e->shape[i], size))
            return false;
    return true;
}

kvb_status kvb_section_expect(const kvb_reader *r, const kvb_entry *e, const kvb_entry *want, bool may_compress)
{
    const struct {
        const char *field;
        uint32_t found, expected;
    } fields[] = {
        {"dtype", e->dtype, want->dtype},          {"kind", e->kind, want->kind},
        {"layer", e->layer, want->layer},          {r->kind->owner, e->head, want->head},
        {"first group", e->first_group, want->first_group}, {"groups", e->groups, want->groups},
        {"d", e->channels, want->channels},        {"K", e->centroids, want->centroids},
        {"dimensions", e->dims, want->dims},       {"shape[0]", e->shape[0], want->shape[0]},
        {"shape[1]", e->shape[1], want->shape[1]}, {"shape[2]", e->shape[2], want->shape[2]},
        {"shape[3]", e->shape[3], want->shape[3]},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (fields[i].found != fields[i].expected)
            return kvb_section_fail(r, e, "%s is %u, expected %u", fields[i].field, fields[i].found,
                                    fields[i].expected);
    uint64_t size;
    if (!shape_size(e, &size) || size != e->raw_size)
        return kvb_section_fail(r, e, "%llu bytes, its shape and dtype make another size",
                                (unsigned long long)e->raw_size);
    if (e->codec != KVB_CODEC_RAW && !may_compress)
        return kvb_section_fail(r, e, "is compressed, this section must be stored raw");
    return KVB_OK;
}

kvb_status kvb_section_single(const kvb_reader *r, const char *type, const kvb_entry **found)
{
    *found = NULL;
    for (uint32_t i = 0; i < r->header.sections; i++) {
        if (strcmp(r->entry[i].type, type) != 0)
            continue;
        if (*found != NULL)
            return kvb_section_fail(r, &r->entry[i], "a second %s section, expected one", type);
        *found = &r->entry[i];
    }
    return *found != NULL ? KVB_OK : kvb_reader_fail(r, "section table", "there is no %s section", type);
}

kvb_status kvb_section_expect_bytes(const kvb_reader *r, const kvb_entry *e, bool may_compress)
{
    if (e->raw_size > UINT32_MAX)
        return kvb_section_fail(r, e, "%llu bytes are too many", (unsigned long long)e->raw_size);
    kvb_entry want = {.dtype = KVB_ELEMENT_BYTE, .kind = KVB_SHARED, .layer = KVB_SHARED, .head = KVB_SHARED, .dims = 1,
                      .shape = {(uint32_t)e->raw_size}};
    return kvb_section_expect(r, e, &want, may_compress);
}

const uint8_t *kvb_section_bytes(const kvb_reader *r, const kvb_entry *e)
{
    return r->bytes + e->offset;
}

/* Into exactly raw_size bytes; the stream must end with them and with the stored bytes. Sizes are under 2^32 here: the
 * caller has checked raw_size against a shape of small limits, and stored bytes that are left over are an error. */
static kvb_status inflate_section(const kvb_reader *r, const kvb_entry *e, uint8_t *out)
{
    if (e->stored_size > UINT32_MAX || e->raw_size > UINT32_MAX)
        return kvb_section_fail(r, e, "is too large to be compressed");
    z_stream z = {0};
    if (inflateInit(&z) != Z_OK)
        return kvb_fail_memory(r->err, r->name);
    z.next_in = (z_const Bytef *)(uintptr_t)kvb_section_bytes(r, e);
    z.avail_in = (uInt)e->stored_size;
    z.next_out = out;
    z.avail_out = (uInt)e->raw_size;
    int result = inflate(&z, Z_FINISH);
    uInt left_in = z.avail_in, left_out = z.avail_out;
    inflateEnd(&z);
    if (result == Z_MEM_ERROR)
        return kvb_fail_memory(r->err, r->name);
    if (result == Z_NEED_DICT)
        return kvb_section_fail(r, e, "its zlib stream wants a preset dictionary");
    if (result != Z_STREAM_END)
        return kvb_section_fail(r, e, result == Z_DATA_ERROR ? "its zlib stream of %llu bytes is damaged"
                                      : left_out == 0        ? "its zlib stream holds more than %llu bytes"
                                                             : "its zlib stream ends before %llu bytes",
                                (unsigned long long)e->raw_size);
    if (left_out != 0)
        return kvb_section_fail(r, e, "its zlib stream ends before %llu bytes", (unsigned long long)e->raw_size);
    if (left_in != 0)
        return kvb_section_fail(r, e, "%u bytes follow its zlib stream", left_in);
    return KVB_OK;
}

kvb_status kvb_section_copy(const kvb_reader *r, const kvb_entry *e, uint8_t *out)
{
    if (e->codec == KVB_CODEC_RAW) {
        memcpy(out, kvb_section_bytes(r, e), (size_t)e->raw_size);
        return KVB_OK;
    }
    kvb_status status = inflate_section(r, e, out);
    if (status == KVB_OK && kvb_crc_of(out, (size_t)e->raw_size) != e->raw_crc)
        return kvb_section_fail(r, e, "the inflated bytes do not have the checksum %08x", e->raw_crc);
    return status;
}

bool kvb_cursor_policy(kvb_cursor *c, kvb_policy *policy)
{
    policy->anchor_fraction = kvb_cursor_f64(c);
    policy->score = (kvb_anchor_score)kvb_cursor_u32(c);
    policy->window = kvb_cursor_u32(c);
    policy->sinks = kvb_cursor_u32(c);
    policy->exact = (kvb_exact_form)kvb_cursor_u32(c);
    return kvb_cursor_u64(c) != 0;
}

kvb_status kvb_section_meta(const kvb_reader *r, char **meta, size_t *size)
{
    const kvb_entry *e;
    char where[256];
    kvb_status status = kvb_section_single(r, "META", &e);
    if (status == KVB_OK)
        status = kvb_section_expect_bytes(r, e, true);
    if (status != KVB_OK)
        return status;
    if (e->raw_size > KVB_MAX_META)
        return kvb_section_fail(r, e, "%llu bytes, the limit is %d", (unsigned long long)e->raw_size, KVB_MAX_META);
    *size = (size_t)e->raw_size;
    *meta = kvb_alloc_array(*size + 1, 1);
    if (*meta == NULL)
        return kvb_fail_memory(r->err, r->name);
    (*meta)[*size] = '\0';
    status = kvb_section_copy(r, e, (uint8_t *)*meta);
    if (status != KVB_OK)
        return status;
    kvb_section_name(r, e, where, sizeof where);
    return kvb_meta_check(*meta, *size, where, r->err);
}
