/* Pieces of the `.kvb` reader, private to format/book_*.c. */
#ifndef KVB_FORMAT_BOOK_READER_H
#define KVB_FORMAT_BOOK_READER_H

#include "format/base/mapfile.h"
#include "format/book_write.h"
#include "format/section_reader.h"

#define KVB_NO_CODEBOOKS UINT32_MAX

struct kvb_book {
    uint8_t *owned;       /* what close frees; NULL where the bytes are mapped or borrowed */
    kvb_mapfile map;      /* what close unmaps; zeroed where they are not mapped */
    char *name;           /* for errors of kvb_book_verify() */
    const uint8_t *bytes; /* the whole file, aligned to 64 */
    size_t size;
    uint32_t layers;
    kvb_layer *layer;       /* [layers] */
    uint32_t *first;        /* [layers] the layer's first codebook, or KVB_NO_CODEBOOKS */
    kvb_codebook *codebook; /* [codebooks] by layer, head, kind */
    kvb_scaling *scaling;   /* [codebooks] of those that have one; NULL where the file has none */
    kvb_codebook *fine;     /* [codebooks] or NULL where the file has none */
    const kvb_quality **quality; /* [codebooks] NULL where the file has none; in place, or */
    kvb_quality **own_quality;   /* [codebooks] where they were compressed */
    uint32_t codebooks;
    kvb_policy policy;
    char *meta; /* NUL-terminated */
    size_t meta_size;
    uint8_t id[32];
};

/* book_geometry.c: META, GEOM, POLC, and the arrays they size. */
kvb_status kvb_reader_geometry(kvb_reader *r);
/* book_codebooks.c: ROPE, CODE, SCAL, GRPS, POOL, FINE, MEAN, XFRM, qual, and that nothing is missing. */
kvb_status kvb_reader_codebooks(kvb_reader *r);
/* The codebook a section of a head belongs to. */
kvb_status kvb_reader_slot(const kvb_reader *r, const kvb_entry *e, uint32_t *slot);
/* book_scaling.c: one SCAL section, the GRPS and POOL sections of one that was read, and what a book with them may not have. */
kvb_status kvb_reader_scaling(const kvb_reader *r, const kvb_entry *e);
kvb_status kvb_reader_groups(const kvb_reader *r, const kvb_entry *e);
kvb_status kvb_reader_pool(const kvb_reader *r, const kvb_entry *e);
kvb_status kvb_reader_check_scaled(const kvb_reader *r);

/* book_read.c: validates `book->bytes` and fills the rest of a zeroed book. On failure the caller still closes it.
 * `defer` leaves what the bytes of CODE, FINE, MEAN, XFRM and raw qual sections are to kvb_book_verify(). */
kvb_status kvb_book_parse(kvb_book *book, const char *name, bool defer, kvb_error *err);
/* A book over bytes in memory, which it owns from now on, also on failure. */
kvb_status kvb_book_adopt(uint8_t *bytes, size_t size, const char *name, bool defer, kvb_book **out, kvb_error *err);

#endif
