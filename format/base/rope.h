/* Rotary position embedding (RoFormer, arXiv 2104.09864) of rows of one head. Rotation by -p undoes rotation by p. */
#ifndef KVB_BASE_ROPE_H
#define KVB_BASE_ROPE_H

#include <stdbool.h>

#include "kvbook/book.h"

/* Whether two layers rotate alike, so that one table serves both. */
bool kvb_rope_same(const kvb_layer *a, const kvb_layer *b);

/* Cosines and sines of positions first .. first+count-1, computed in double and rounded once. */
typedef struct kvb_rope_table {
    kvb_rope_style style;
    uint32_t dims; /* channels that rotate */
    int64_t first;
    uint32_t count;
    float *cosine, *sine; /* [count][dims/2] */
} kvb_rope_table;

/* KVB_E_MEMORY only. For style NONE the table is empty and rotating copies. */
kvb_status kvb_rope_table_create(kvb_rope_table *t, const kvb_layer *layer, int64_t first, uint32_t count,
                                 kvb_error *err);
void kvb_rope_table_free(kvb_rope_table *t);

/* out[D] = x[D] rotated by `position` (inside the table); out may be x. */
void kvb_rope_rotate(const kvb_rope_table *t, int64_t position, uint32_t head_dim, const float *x, float *out);
/* The same by minus `position`. */
void kvb_rope_unrotate(const kvb_rope_table *t, int64_t position, uint32_t head_dim, const float *x, float *out);

#endif
