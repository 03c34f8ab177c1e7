/* Writes a capture (`.kvc`, spec/kvc-1.md) with libc alone: for engines that would rather not use Python. Copy it. */
#ifndef KVC_WRITER_H
#define KVC_WRITER_H

#include <stdint.h>

/* One layer: H query heads, G KV heads, D channels, n rows. Arrays are row-major. */
typedef struct kvc_layer {
    uint32_t heads, kv_heads, head_dim;
    const char *rope_style; /* "none", "interleaved" (pairs 2c, 2c+1) or "half" (pairs c, c + rope_dims/2) */
    uint32_t rope_dims;
    double rope_base, attention_scale;
    uint16_t *keys, *values;    /* [G][n][D] half floats, finite; keys before RoPE */
    float *weight_k, *weight_v; /* [G][n] what an error in the row costs, or both NULL */
} kvc_layer;

/* Rows in the order of the text: row r comes from chunk `chunk[r]`, position[r] in it. Both ascend as a pair.
 * `path` gets the whole file or stays as it was. 0, or -1 with errno. */
int kvc_write(const char *path, const kvc_layer *layers, uint32_t count, uint64_t rows, const uint32_t *chunk, const uint32_t *position);

#endif
