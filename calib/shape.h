/* The shape of a group's codebook as text: "8x256" (d x K), or "add:8x16+16" (d x Km of each of M stages). */
#ifndef KVB_CALIB_SHAPE_H
#define KVB_CALIB_SHAPE_H

#include <stdint.h>

typedef struct kvb_shape {
    uint32_t channels;  /* d */
    uint32_t centroids; /* K of a plain codebook, Km of each stage of an additive one */
    uint32_t stages;    /* M; 1: plain */
} kvb_shape;

/* NULL and *shape, or what is wrong with the text and *shape as it was. */
const char *kvb_shape_parse(const char *text, kvb_shape *shape);

/* The text of a shape; returns it. */
enum { KVB_SHAPE_TEXT = 128 };
const char *kvb_shape_text(uint32_t channels, uint32_t centroids, uint32_t stages, char text[KVB_SHAPE_TEXT]);

/* Bits per element: M log2(Km) / d; 0 where the shape is open (0 channels). */
double kvb_shape_rate(const kvb_shape *shape);

/* log2 of the number of codes: M log2 Km */
uint32_t kvb_shape_bits(uint32_t centroids, uint32_t stages);

#endif
