#include "runtime/row_form.h"

#include "format/base/half.h"

kvb_status kvb_row_form_create(const kvb_book *book, uint32_t layer, uint32_t head, kvb_row_form *form, kvb_error *err)
{
    *form = (kvb_row_form){.head_dim = kvb_book_layer(book, layer)->head_dim};
    kvb_status status = KVB_OK;
    for (int kind = 0; status == KVB_OK && kind < 2; kind++)
        status = kvb_codec_create(kvb_book_fine(book, layer, head, (kvb_kind)kind), form->head_dim, true,
                                  &form->codec[kind], err);
    if (status != KVB_OK)
        kvb_row_form_free(form);
    return status;
}

void kvb_row_form_free(kvb_row_form *form)
{
    for (int kind = 0; kind < 2; kind++) {
        kvb_codec_destroy(form->codec[kind]);
        form->codec[kind] = NULL;
    }
}

size_t kvb_row_bytes(const kvb_row_form *form, kvb_kind kind)
{
    return form->codec[kind] != NULL ? form->codec[kind]->packed_bytes : form->head_dim * sizeof(uint16_t);
}

uint64_t kvb_row_pair_bytes(kvb_exact_form exact, uint32_t head_dim, const kvb_codebook *fine_keys,
                            const kvb_codebook *fine_values)
{
    if (exact == KVB_EXACT_HALF || fine_keys == NULL || fine_values == NULL)
        return (uint64_t)2 * head_dim * sizeof(uint16_t);
    return kvb_packed_bytes(fine_keys->groups, fine_keys->code_bits) +
           kvb_packed_bytes(fine_values->groups, fine_values->code_bits);
}

void kvb_row_store(const kvb_row_form *form, kvb_kind kind, const kvb_layer *layer, const kvb_rope_table *rope,
                   uint32_t position, float *x, uint8_t *row)
{
    kvb_codec *codec = form->codec[kind];
    if (codec == NULL) {
        kvb_half_from_floats((uint16_t *)(void *)row, x, form->head_dim);
        return;
    }
    kvb_round_to_half(x, form->head_dim);
    if (kind == KVB_KEY)
        kvb_frame_enter(layer, rope, position, x);
    kvb_codec_encode_packed(codec, x, form->head_dim, 1, row);
}

void kvb_row_load(const kvb_row_form *form, kvb_kind kind, const uint8_t *rows, size_t n, float *x)
{
    if (form->codec[kind] != NULL)
        kvb_codec_decode_packed(form->codec[kind], rows, 0, n, x);
    else
        kvb_half_to_floats(x, (const uint16_t *)(const void *)rows, n * form->head_dim);
}

void kvb_row_key_finish(const kvb_row_form *form, const kvb_layer *layer, const kvb_rope_table *rope,
                        uint32_t position, float *key)
{
    if (form->codec[KVB_KEY] != NULL)
        kvb_frame_finish(layer, rope, position, key);
    else
        kvb_rope_rotate(rope, position, form->head_dim, key, key);
}

void kvb_row_key_to_frame(const kvb_row_form *form, const kvb_layer *layer, const kvb_rope_table *rope,
                          uint32_t position, float *key)
{
    if (form->codec[KVB_KEY] == NULL)
        kvb_frame_enter(layer, rope, position, key);
}

void kvb_row_key_to_start(const kvb_row_form *form, const kvb_layer *layer, const kvb_rope_table *rope,
                          uint32_t position, float *key)
{
    if (form->codec[KVB_KEY] != NULL)
        kvb_frame_leave(layer, rope, position, key);
}
