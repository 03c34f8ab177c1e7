#include "runtime/rope_frame.h"

/* How far a key of the frame is already rotated. */
static uint32_t turned_by(const kvb_layer *layer, uint32_t position)
{
    switch (layer->frame) {
    case KVB_FRAME_PRE: return 0;
    case KVB_FRAME_POST: return position;
    case KVB_FRAME_BLOCK: return position % layer->rope_block;
    }
    return 0;
}

void kvb_frame_enter(const kvb_layer *layer, const kvb_rope_table *rope, uint32_t position, float *key)
{
    if (layer->frame != KVB_FRAME_PRE)
        kvb_rope_rotate(rope, turned_by(layer, position), layer->head_dim, key, key);
}

void kvb_frame_leave(const kvb_layer *layer, const kvb_rope_table *rope, uint32_t position, float *key)
{
    if (layer->frame != KVB_FRAME_PRE)
        kvb_rope_unrotate(rope, turned_by(layer, position), layer->head_dim, key, key);
}

void kvb_frame_finish(const kvb_layer *layer, const kvb_rope_table *rope, uint32_t position, float *key)
{
    if (layer->frame != KVB_FRAME_POST)
        kvb_rope_rotate(rope, position - turned_by(layer, position), layer->head_dim, key, key);
}
