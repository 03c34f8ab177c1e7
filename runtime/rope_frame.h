/* Moving a key between "before RoPE", the frame its codes are in, and "after RoPE at its position". All in place. */
#ifndef KVB_RUNTIME_ROPE_FRAME_H
#define KVB_RUNTIME_ROPE_FRAME_H

#include "format/base/rope.h"

/* Before RoPE -> the layer's frame, and back. */
void kvb_frame_enter(const kvb_layer *layer, const kvb_rope_table *rope, uint32_t position, float *key);
void kvb_frame_leave(const kvb_layer *layer, const kvb_rope_table *rope, uint32_t position, float *key);
/* The layer's frame -> after RoPE at `position`. */
void kvb_frame_finish(const kvb_layer *layer, const kvb_rope_table *rope, uint32_t position, float *key);

#endif
