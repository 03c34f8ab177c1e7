/* Which bytes stand for a saved cache: sizes that follow from policy, geometry and the number of tokens, and the checks of
 * content that reader and writer share. spec/kvp-1.md explains. */
#ifndef KVB_RUNTIME_CACHE_FILE_LAYOUT_H
#define KVB_RUNTIME_CACHE_FILE_LAYOUT_H

#include "format/section_reader.h"
#include "kvbook/cache_file.h"

enum {
    KVB_SAVED_ORIGIN = 80,      /* bytes of a CACH section */
    KVB_SAVED_GEOM_HEAD = 8,    /* of a GEOM section: before its layers, of a layer, of a head */
    KVB_SAVED_GEOM_LAYER = 16,
    KVB_SAVED_GEOM_ROWS = 16,
    KVB_SAVED_PROMPT_HEAD = 8,  /* of a PROM section: before its flags and name */
    KVB_MAX_PROMPTS = 4096,
    KVB_MAX_HIDDEN = 1 << 20,
    KVB_SAVED_PARTS = 6, /* matrices of one head in one section, at most */
};

/* The sections of one layer of one prompt. */
typedef enum kvb_saved_section { KVB_SAVED_KEPT, KVB_SAVED_CODE, KVB_SAVED_ANCH, KVB_SAVED_GAIN } kvb_saved_section;
enum { KVB_SAVED_SECTIONS = 4 };
extern const char kvb_saved_names[KVB_SAVED_SECTIONS][5];

/* Bytes of one token's row of one head, by kvb_kind. */
typedef struct kvb_saved_rows {
    uint32_t code[2]; /* packed codes; 0 where the layer has none */
    uint32_t kept[2]; /* in the window and as an anchor */
} kvb_saved_rows;

typedef struct kvb_saved_layer {
    uint32_t kv_heads, head_dim;
    bool coded;
    const kvb_saved_rows *rows; /* [kv_heads] */
} kvb_saved_layer;

/* Tokens of one head by where they live; all heads of a layer have the same. */
typedef struct kvb_saved_counts {
    uint32_t sinks, window, anchors, coded;
} kvb_saved_counts;

/* `coded` false: every token is in the window. */
kvb_saved_counts kvb_saved_count(const kvb_policy *policy, bool coded, uint32_t tokens);

/* A matrix of a section: so many rows of so many bytes. */
typedef struct kvb_saved_part {
    uint32_t rows, bytes;
} kvb_saved_part;

/* The matrices of head g in a section, in their order; returns how many.
 * KEPT: keys and values of the sinks, of the window by position, of the anchors. CODE: codes of keys, of values. ANCH:
 * positions, scores. GAIN: scores of the window, where attention gives them. */
unsigned kvb_saved_parts(const kvb_policy *policy, const kvb_saved_layer *layer, uint32_t tokens,
                         kvb_saved_section section, uint32_t g, kvb_saved_part part[KVB_SAVED_PARTS]);

/* Bytes of a whole section, heads one after the other. */
uint64_t kvb_saved_size(const kvb_policy *policy, const kvb_saved_layer *layer, uint32_t tokens,
                        kvb_saved_section section);

/* Reorders every matrix of a section to columns, or back to rows. */
void kvb_saved_to_planes(const kvb_policy *policy, const kvb_saved_layer *layer, uint32_t tokens,
                         kvb_saved_section section, const uint8_t *rows, uint8_t *planes);
void kvb_saved_from_planes(const kvb_policy *policy, const kvb_saved_layer *layer, uint32_t tokens,
                           kvb_saved_section section, const uint8_t *planes, uint8_t *rows);

/* What a section holds that no cache could: a sentence in `problem`, or false. */
bool kvb_saved_problem(const kvb_policy *policy, const kvb_saved_layer *layer, uint32_t tokens,
                       kvb_saved_section section, const uint8_t *rows, char *problem, size_t size);

/* A copy to free(); NULL if out of memory. */
char *kvb_saved_copy(const char *text);

/* Names are UTF-8 without control characters, of 1 to 255 bytes. */
bool kvb_saved_name_problem(const char *name, size_t size, char *problem, size_t room);

#endif
