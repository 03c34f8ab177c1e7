/* META, GEOM and POLC: what the book says of itself and of the model's layers. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/cursor.h"
#include "format/base/fail.h"
#include "format/book_reader.h"

static kvb_status read_meta(kvb_reader *r)
{
    return kvb_section_meta(r, &r->book->meta, &r->book->meta_size);
}

static void parse_layer(kvb_cursor *c, kvb_layer *l, bool *reserved)
{
    l->heads = kvb_cursor_u32(c);
    l->kv_heads = kvb_cursor_u32(c);
    l->head_dim = kvb_cursor_u32(c);
    l->kind = (kvb_layer_kind)kvb_cursor_u32(c);
    l->sliding_window = kvb_cursor_u32(c);
    l->frame = (kvb_rope_frame)kvb_cursor_u32(c);
    l->rope_block = kvb_cursor_u32(c);
    l->rope_style = (kvb_rope_style)kvb_cursor_u32(c);
    l->rope_dims = kvb_cursor_u32(c);
    *reserved = kvb_cursor_u32(c) != 0;
    l->rope_base = kvb_cursor_f64(c);
    l->attention_scale = kvb_cursor_f64(c);
    *reserved |= kvb_cursor_u64(c) != 0;
}

static kvb_status read_layer(const kvb_reader *r, const kvb_entry *e, kvb_cursor *c, uint32_t i)
{
    kvb_layer *l = &r->book->layer[i];
    char problem[200];
    bool reserved;
    parse_layer(c, l, &reserved);
    if (kvb_layer_problem(l, problem, sizeof problem))
        return kvb_section_fail(r, e, "layer %u: %s", i, problem);
    if (l->rope_style == KVB_ROPE_NONE && l->rope_base != 0)
        return kvb_section_fail(r, e, "layer %u: RoPE base %g without RoPE, expected 0", i, l->rope_base);
    if (reserved && r->header.minor <= KVB_FILE_MINOR)
        return kvb_section_fail(r, e, "layer %u: reserved bytes are not zero", i);
    return KVB_OK;
}

static kvb_status read_geometry(kvb_reader *r)
{
    const kvb_entry *e;
    kvb_status status = kvb_section_single(r, "GEOM", &e);
    if (status == KVB_OK)
        status = kvb_section_expect_bytes(r, e, false);
    if (status != KVB_OK)
        return status;
    kvb_cursor c = kvb_cursor_over(kvb_section_bytes(r, e), (size_t)e->raw_size);
    uint32_t layers = kvb_cursor_u32(&c), record = kvb_cursor_u32(&c);
    bool newer = r->header.minor > KVB_FILE_MINOR;
    if (c.failed || layers < 1 || layers > KVB_MAX_LAYERS)
        return kvb_section_fail(r, e, "%u layers, expected 1..%d", layers, KVB_MAX_LAYERS);
    if (newer ? record < KVB_GEOM_RECORD || record > KVB_MAX_ENTRY || record % 8 != 0 : record != KVB_GEOM_RECORD)
        return kvb_section_fail(r, e, "records of %u bytes, expected %d", record, KVB_GEOM_RECORD);
    if (e->raw_size != KVB_GEOM_HEAD + (uint64_t)layers * record)
        return kvb_section_fail(r, e, "%llu bytes do not hold %u layers of %u bytes",
                                (unsigned long long)e->raw_size, layers, record);
    r->book->layer = kvb_alloc_zeroed(layers, sizeof *r->book->layer);
    if (r->book->layer == NULL)
        return kvb_fail_memory(r->err, r->name);
    r->book->layers = layers;
    for (uint32_t i = 0; status == KVB_OK && i < layers; i++) {
        kvb_cursor_seek(&c, KVB_GEOM_HEAD + (uint64_t)i * record);
        status = read_layer(r, e, &c, i);
    }
    return status;
}

static kvb_status read_policy(kvb_reader *r)
{
    const kvb_entry *e;
    kvb_status status = kvb_section_single(r, "POLC", &e);
    if (status == KVB_OK)
        status = kvb_section_expect_bytes(r, e, false);
    if (status != KVB_OK)
        return status;
    bool newer = r->header.minor > KVB_FILE_MINOR;
    if (newer ? e->raw_size < KVB_POLICY_SIZE : e->raw_size != KVB_POLICY_SIZE)
        return kvb_section_fail(r, e, "%llu bytes, expected %d", (unsigned long long)e->raw_size, KVB_POLICY_SIZE);
    kvb_cursor c = kvb_cursor_over(kvb_section_bytes(r, e), (size_t)e->raw_size);
    kvb_policy *p = &r->book->policy;
    bool reserved = kvb_cursor_policy(&c, p);
    char problem[200];
    if (kvb_policy_problem(p, problem, sizeof problem))
        return kvb_section_fail(r, e, "%s", problem);
    if (reserved && !newer)
        return kvb_section_fail(r, e, "reserved bytes are not zero");
    return KVB_OK;
}

/* One slot per codebook that the geometry asks for. Each needs a section, so the table bounds the memory. */
static kvb_status make_slots(kvb_reader *r)
{
    kvb_book *book = r->book;
    uint64_t count = 0;
    book->first = kvb_alloc_zeroed(book->layers, sizeof *book->first);
    if (book->first == NULL)
        return kvb_fail_memory(r->err, r->name);
    for (uint32_t i = 0; i < book->layers; i++) {
        bool coded = book->layer[i].kind != KVB_LAYER_UNSUPPORTED;
        book->first[i] = coded ? (uint32_t)count : KVB_NO_CODEBOOKS;
        count += coded ? 2 * (uint64_t)book->layer[i].kv_heads : 0;
    }
    if (count == 0)
        return kvb_reader_fail(r, "GEOM", "no layer has codebooks: all %u are marked unsupported", book->layers);
    if (count > r->header.sections)
        return kvb_reader_fail(r, "section table", "%u sections cannot hold the %llu codebooks of the geometry",
                               r->header.sections, (unsigned long long)count);
    book->codebook = kvb_alloc_zeroed((size_t)count, sizeof *book->codebook);
    book->quality = kvb_alloc_zeroed((size_t)count, sizeof *book->quality);
    book->own_quality = kvb_alloc_zeroed((size_t)count, sizeof *book->own_quality);
    book->codebooks = (uint32_t)count;
    if (book->codebook == NULL || book->quality == NULL || book->own_quality == NULL) {
        book->codebooks = 0;
        return kvb_fail_memory(r->err, r->name);
    }
    return KVB_OK;
}

kvb_status kvb_reader_geometry(kvb_reader *r)
{
    kvb_status status = read_meta(r);
    if (status == KVB_OK)
        status = read_geometry(r);
    if (status == KVB_OK)
        status = read_policy(r);
    if (status == KVB_OK)
        status = make_slots(r);
    return status;
}
