/* Checks of what a book is built from, private to the writer. */
#ifndef KVB_FORMAT_BOOK_SPEC_H
#define KVB_FORMAT_BOOK_SPEC_H

#include "format/book_write.h"
#include "format/kvb_layout.h"

/* KVB_E_USAGE where the spec contradicts itself, KVB_E_CHECK where a value is not finite or too large. */
kvb_status kvb_spec_check(const kvb_book_spec *spec, kvb_error *err);
/* Whether the parts have fine codebooks: all or none, by kvb_spec_check(). */
bool kvb_spec_has_fine(const kvb_book_spec *spec);
const kvb_book_part *kvb_spec_part(const kvb_book_spec *spec, uint32_t layer, uint32_t head, uint32_t kind);

/* M; a part that says nothing of stages is plain. */
static inline uint32_t kvb_part_stages(const kvb_book_part *part)
{
    return part->stages > 0 ? part->stages : 1;
}

#endif
